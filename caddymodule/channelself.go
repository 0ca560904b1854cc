package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin/state"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// ChannelSelf configures the calls by which a device chooses its channel. They are answered from the app's manifest. New
// plugins keep the choice themselves. That of plugins before 5.34, 6.34, 7.34 and 8.0 is kept in the storage directory of
// this edge; other edges do not learn of it.
type ChannelSelf struct {
	// Limits is "official" for the official server's limit, 5 calls per second of one device and kind, or "off" for none.
	// A 429 silences a phone, update checks included, for as long as it says; plugins before 8.51.5 send no more statistics
	// and channel calls until the app is started anew. Default: off.
	Limits string `json:"limits,omitempty"`
}

// The values of ChannelSelf.Limits.
const (
	limitsOff      = "off"
	limitsOfficial = "official"
)

func (c *ChannelSelf) check() error {
	switch c.Limits {
	case "", limitsOff, limitsOfficial:
		return nil
	}
	return fmt.Errorf("limits: %q is neither off nor official", c.Limits)
}

// provision makes what limits the calls; nil if nothing does.
func (c *ChannelSelf) provision() (*channelLimits, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("channel_self: %w", err)
	}
	setDefault(&c.Limits, limitsOff)
	if c.Limits == limitsOff {
		return nil, nil //nolint:nilnil // nothing to do is no error
	}
	return newChannelLimits(), nil
}

// unmarshal reads:
//
//	channel_self {
//		limits off | official
//	}
func (c *ChannelSelf) unmarshal(d *caddyfile.Dispenser) error {
	return eachOption(d, func() error {
		if d.Val() != "limits" {
			return unknown(d, "limits")
		}
		if err := oneArgument(d, &c.Limits); err != nil {
			return err
		}
		return atLine(d, c.check())
	})
}

// serveChannelSelf answers the calls by which a device chooses its channel, and asks for it (protocol 5).
func (h *Handler) serveChannelSelf(w http.ResponseWriter, r *http.Request) {
	s := h.takeScratch()
	defer h.giveScratch(s)
	call, ok := h.readChannelCall(w, r, s)
	if !ok {
		return
	}
	app, err := h.releaseFor(w, r, call.AppID)
	if h.relays(err) {
		h.relayChannelCall(w, r, s, &call)
		return
	}
	now := time.Now()
	if reset, ok := h.channelLimits.allow(&call, now); !ok {
		h.runtime.channelCalls.count(call.Op, channelLimited)
		refuseChannelCall(w, s, &call, reset, now)
		return
	}
	if err != nil {
		h.refuseChannelApp(w, call.Op, err)
		return
	}
	reply := h.answerChannelCall(r, app, &call)
	h.runtime.channelCalls.count(call.Op, reply.Result)
	if reply.Result == "ok" {
		h.channelLimits.done(&call, now)
	}
	if c := h.log.Check(zap.DebugLevel, "channel call answered"); c != nil {
		c.Write(zap.String(fieldAppID, call.AppID), zap.String("device_id", call.DeviceID), zap.Stringer("call", call.Op),
			zap.String("channel", call.Channel), zap.String("result", reply.Result))
	}
	s.answer = resolver.AppendChannelReply(s.answer[:0], &reply)
	writeJSON(w, http.StatusOK, s.answer)
}

// readChannelCall reads a call from the body or the query. If it reports false, the request was answered.
func (h *Handler) readChannelCall(w http.ResponseWriter, r *http.Request, s *scratch) (call resolver.ChannelCall, ok bool) {
	op, ok := channelOps[r.Method]
	if !ok {
		h.refuseOrForward(w, r, pathChannels,
			http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions)
		return call, false
	}
	if hasBody(op) && !h.readLarge(w, r, s, maxCheckBody) {
		h.runtime.channelCalls.count(op, channelRefused)
		return call, false
	}
	call, err := parseChannelCall(op, r, s)
	if err == nil {
		return call, true
	}
	if h.forwardOdd(w, r, s, pathChannels, maxCheckBody) {
		return call, false
	}
	h.runtime.channelCalls.count(op, channelRefused)
	refusal, _ := errors.AsType[*resolver.Refusal](err) // there is no other kind
	s.answer = resolver.AppendRefusal(s.answer[:0], refusal)
	writeJSON(w, refusal.Status, s.answer)
	return call, false
}

const pathChannels = "/channel_self"

// channelOps are the calls by their methods.
var channelOps = map[string]resolver.ChannelOp{
	http.MethodPost: resolver.SetChannel, http.MethodPut: resolver.GetChannel, http.MethodDelete: resolver.UnsetChannel,
	http.MethodGet: resolver.ListChannels, http.MethodHead: resolver.ListChannels,
}

// hasBody reports whether a call comes in the body, and not in the query.
func hasBody(op resolver.ChannelOp) bool {
	return op == resolver.SetChannel || op == resolver.GetChannel
}

func parseChannelCall(op resolver.ChannelOp, r *http.Request, s *scratch) (resolver.ChannelCall, error) {
	if hasBody(op) {
		return s.channels.Parse(op, s.body)
	}
	s.body = s.body[:0]
	return s.channels.ParseQuery(op, r.URL.Query())
}

// refuseChannelApp answers a call about an app that could not be had.
func (h *Handler) refuseChannelApp(w http.ResponseWriter, op resolver.ChannelOp, err error) {
	result := channelUnavailable
	if errors.Is(err, cache.ErrNotFound) {
		result = channelUnknownApp
	}
	h.runtime.channelCalls.count(op, result)
	refuseLookup(w, err)
}

// answerChannelCall decides about a call and has the device's choice on disk before it says so.
func (h *Handler) answerChannelCall(r *http.Request, app *release, call *resolver.ChannelCall) resolver.ChannelReply {
	if !call.Stored {
		return app.manifest.AnswerChannel(call, 0, false)
	}
	own := h.ownState()
	stored, hasStored := own.Assigned(call.AppID, call.DeviceID)
	reply := app.manifest.AnswerChannel(call, stored, hasStored)
	var err error
	switch reply.Change {
	case resolver.KeepChoice:
	case resolver.StoreChoice:
		if !hasStored && !h.allowNewChoice(r, call.AppID) {
			return resolver.ChannelStorageUnavailable()
		}
		if err = own.Assign(r.Context(), call.AppID, call.DeviceID, reply.ChannelID); err != nil && !hasStored {
			h.runtime.newChoices.giveBack(networkOf(r))
		}
	case resolver.DropChoice:
		err = own.Unassign(r.Context(), call.AppID, call.DeviceID)
	}
	if err != nil { // the state reported it
		return resolver.ChannelStorageUnavailable()
	}
	return reply
}

// allowNewChoice reports whether one more device of the client's network may leave a choice here.
func (h *Handler) allowNewChoice(r *http.Request, appID string) bool {
	ok, tell := h.runtime.newChoices.allow(networkOf(r), time.Now())
	if tell {
		h.log.Warn("too many devices of one network have chosen a channel for the first time, further ones are refused for now; "+
			"made-up choices are removed by POST /capgo_edge/forget_choices; behind a proxy, name it in trusted_proxies",
			zap.String(fieldAppID, appID), zap.String("client", clientOf(r).Address.String()), zap.Int("a_day", choicesPerDay))
	}
	return ok
}

// assign puts the device's stored choice into a check that asks for it: those of old plugins alone.
func (h *Handler) assign(c *resolver.Check) {
	if !c.AsksAssignment() {
		return
	}
	if channel, ok := h.ownState().Assigned(c.AppID, c.DeviceID); ok {
		c.Assign(channel)
	}
}

// stateFile is what an edge knows by itself, in the storage directory.
const stateFile = "state.db"

func (r *runtime) openState() (*state.State, error) {
	return state.Open(state.Options{Path: filepath.Join(r.dir, stateFile), Report: r.reportState})
}

// reportState logs that what this edge knows by itself cannot be kept, or can again.
func (r *runtime) reportState(err error) {
	where := zap.String(fieldStorage, r.dir)
	if err == nil {
		r.faults.well("state", "choices of devices and pauses can be kept again", where)
		return
	}
	switch {
	case errors.Is(err, state.ErrLost):
		r.faults.fault("state file", "damaged", "state.db is damaged, and what it held is lost: devices with old plugins are back in their default channel, and rollouts that "+
			"the release guard had stopped go on",
			where, zap.Error(err))
	case errors.Is(err, state.ErrFull):
		r.faults.fault("state", "full", "state.db takes no more choices or pauses, and what is there stays; if devices were made up, remove an app's choices by "+
			"POST /capgo_edge/forget_choices", where, zap.Error(err))
	default:
		r.faults.fault("state", "failing", "choices of devices and pauses cannot be kept; check space and permissions", where, zap.Error(err))
	}
}

// The results of channel calls that never got as far as the manifest, besides those of resolver.ChannelResults.
const (
	channelRefused     = "refused"     // the request is malformed
	channelLimited     = "limited"     // too many calls
	channelUnknownApp  = "unknown_app" // the origin has no such app
	channelUnavailable = "unavailable" // the origin fails
)

// channelCounters count calls of /channel_self by what they do and how they ended. The maps are filled once, then only read.
type channelCounters [resolver.ChannelOps]map[string]*atomic.Uint64

func newChannelCounters() (c channelCounters) {
	for op, results := range resolver.ChannelResults() {
		c[op] = map[string]*atomic.Uint64{}
		for _, result := range append(results, channelRefused, channelLimited, channelUnknownApp, channelUnavailable) {
			c[op][result] = new(atomic.Uint64)
		}
	}
	return c
}

func (c *channelCounters) count(op resolver.ChannelOp, result string) { c[op][result].Add(1) }

// each calls f with every count.
func (c *channelCounters) each(f func(call, result string, n uint64)) {
	for op := range resolver.ChannelOps {
		for result, n := range c[op] {
			f(op.String(), result, n.Load())
		}
	}
}

// refuseChannelCall answers a device that calls too often (protocol 5.1).
func refuseChannelCall(w http.ResponseWriter, s *scratch, call *resolver.ChannelCall, reset, now time.Time) {
	const unit = time.Second
	seconds := int64((reset.Sub(now) + unit - 1) / unit)
	header := w.Header()
	header.Set("Retry-After", strconv.FormatInt(seconds, 10))
	header.Set("X-RateLimit-Reset", strconv.FormatInt(now.Unix()+seconds, 10))
	s.answer = resolver.AppendChannelLimit(s.answer[:0], call, reset.UnixMilli(), seconds)
	writeJSON(w, http.StatusTooManyRequests, s.answer)
}
