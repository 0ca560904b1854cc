package upstreams

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// channelSelf answers the calls by which devices choose their channel (protocol 5).
func (o *Official) channelSelf(w http.ResponseWriter, r *http.Request) {
	call, err := readCall(r)
	if refused, ok := errors.AsType[*resolver.Refusal](err); ok {
		refusal(w, refused)
		return
	}
	if err != nil {
		notFound(w)
		return
	}
	if o.throttled(w, call.AppID) || o.limits(w, r, &call) {
		return
	}
	app := o.admit(w, r, call.AppID, http.StatusTooManyRequests)
	if app == nil {
		return
	}
	device := [2]string{call.AppID, call.DeviceID}
	o.state.Lock()
	stored, has := o.choices[device]
	reply := app.manifest.AnswerChannel(&call, stored, has)
	switch reply.Change {
	case resolver.KeepChoice:
	case resolver.StoreChoice:
		o.choices[device] = reply.ChannelID
	case resolver.DropChoice:
		delete(o.choices, device)
	}
	o.state.Unlock()
	writeJSON(w, http.StatusOK, resolver.AppendChannelReply(nil, &reply))
}

var errMethod = errors.New("upstreams: no such method")

func readCall(r *http.Request) (resolver.ChannelCall, error) {
	var parser resolver.ChannelParser
	switch r.Method {
	case http.MethodPost:
		return parser.Parse(resolver.SetChannel, body(r))
	case http.MethodPut:
		return parser.Parse(resolver.GetChannel, body(r))
	case http.MethodDelete:
		return parser.ParseQuery(resolver.UnsetChannel, r.URL.Query())
	case http.MethodGet:
		return parser.ParseQuery(resolver.ListChannels, r.URL.Query())
	}
	return resolver.ChannelCall{}, errMethod
}

// limits answers calls that come too often: of an address, of a device, or for the channel that was just set.
func (o *Official) limits(w http.ResponseWriter, r *http.Request, c *resolver.ChannelCall) bool {
	if o.NoLimits {
		return false
	}
	if reset, ok := o.allow(fmt.Sprint("address ", ClientOf(r), " ", c.AppID), maxSelfPerMin, time.Minute); !ok {
		o.refuseCall(w, reset, object{"reason": "ip_rate_limit_exceeded", "app_id": c.AppID})
		return true
	}
	if c.DeviceID == "" {
		return false
	}
	reset, ok := o.allow(fmt.Sprint("device ", c.AppID, c.DeviceID, c.Op), maxSelfPerSec, time.Second)
	if ok && c.Op == resolver.SetChannel {
		reset, ok = o.allow(fmt.Sprint("channel ", c.AppID, c.DeviceID, c.Channel), 1, sameChannelWait)
	}
	if !ok {
		o.refuseCall(w, reset, object{"app_id": c.AppID, "device_id": c.DeviceID})
	}
	return !ok
}

// allow reports whether there were fewer than so many calls within a time, and else when there will be.
func (o *Official) allow(what string, calls int, within time.Duration) (reset time.Time, ok bool) {
	now := o.now()
	o.state.Lock()
	defer o.state.Unlock()
	recent := o.calls[what][:0]
	for _, at := range o.calls[what] {
		if now.Sub(at) < within {
			recent = append(recent, at)
		}
	}
	if len(recent) >= calls {
		o.calls[what] = recent
		return recent[0].Add(within), false
	}
	o.calls[what] = append(recent, now)
	return time.Time{}, true
}

func (o *Official) refuseCall(w http.ResponseWriter, reset time.Time, info object) {
	seconds := int64(reset.Sub(o.now())/time.Second) + 1
	info["rateLimitResetAt"] = reset.UnixMilli()
	info["retryAfterSeconds"] = seconds
	w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
	w.Header().Set("X-RateLimit-Reset", strconv.FormatInt(reset.Unix(), 10))
	writeJSON(w, http.StatusTooManyRequests, object{"error": "too_many_requests", "message": "Too many requests", "moreInfo": info})
}
