package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin/upstream"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// relayCheck answers a check of an app that has no manifest here.
func (h *Handler) relayCheck(w http.ResponseWriter, r *http.Request, s *scratch) {
	if h.refuseAmbiguous(w, s.body) {
		return
	}
	a, state, seen, err := h.relay.ask(r, s, h.names(s.check.AppID))
	if h.Debug {
		w.Header().Set("Cache-Status", relayStatus(a, state))
	}
	if err != nil {
		h.runtime.counters.relay(relayUnavailable)
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "This app's updates cannot be told just now, try again later")
		return
	}
	h.runtime.counters.relay(relayStateOf(state))
	if !seen { // else the upstream has counted the device itself
		h.statistics.sawCheck(&s.check, s.body, a.event)
	}
	h.writeRelayed(w, r, s, a)
}

// relayStatus is manifestStatus for an answer of an upstream.
func relayStatus(a *relayed, state cache.State) string {
	if state == cache.Loaded && a != nil && (a.learned == nil || !a.learned.Keep) {
		return "capgo-edge; fwd=miss"
	}
	return manifestStatus(state)
}

// writeRelayed gives an answer of the upstream to a client.
func (h *Handler) writeRelayed(w http.ResponseWriter, r *http.Request, s *scratch, a *relayed) {
	if a.learned == nil {
		h.passRelayed(w, a)
		return
	}
	l := a.learned
	if h.address != nil && h.address.signer != nil {
		l = h.address.learned(l, time.Now())
	}
	s.answer = l.Append(s.answer[:0], h.publicBase(r))
	writeJSON(w, a.status, s.answer)
}

// passRelayed gives an answer to a client as it came.
func (h *Handler) passRelayed(w http.ResponseWriter, a *relayed) {
	header := w.Header()
	if a.kind != "" {
		header.Set("Content-Type", a.kind)
	}
	if a.retryAfter != "" {
		header.Set("Retry-After", a.retryAfter)
	}
	header["Cache-Control"] = noStore
	header["X-Content-Type-Options"] = noSniff
	if a.status != http.StatusNoContent { // RFC 9110 section 8.6
		header["Content-Length"] = []string{strconv.Itoa(len(a.body))}
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) //nolint:gosec // it is the upstream's, and not sniffed; a client that went away is no fault
}

// passed is what became of a request that was passed through.
type passed struct {
	status int  // of the answer; 0: there was none, and the request was answered here
	sent   bool // a server may have seen something of it
}

// forward passes a request through to the upstream, whose answer is the client's.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, path string, limit int64) passed {
	scheme := "https"
	if strings.HasPrefix(h.publicBase(r), "http://") {
		scheme = "http"
	}
	status, err := h.relay.group.Forward(w, r, upstream.Passage{
		Path: path, Address: clientOf(r).Address, Proto: scheme, Host: r.Host, MaxBody: limit,
	})
	switch {
	case status != 0 && err != nil:
		panic(http.ErrAbortHandler)
	case status != 0:
		return passed{status, true}
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		refuseTooLarge(w, limit)
	} else if r.Context().Err() == nil {
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "The server behind this edge cannot be reached just now, try again later")
	}
	return passed{0, !errors.Is(err, upstream.ErrNotSent)}
}

// forwardRead is forward for a request whose body was read already.
func (h *Handler) forwardRead(w http.ResponseWriter, r *http.Request, body []byte, path string, limit int64) passed {
	again := r.Clone(r.Context())
	again.Body, again.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return h.forward(w, again, path, limit)
}

// admitForward reports whether a request about an app may be passed through. If not, it was answered.
func (h *Handler) admitForward(w http.ResponseWriter, r *http.Request, appID string) (p pass, ok bool) {
	known, err := h.relay.knows(appID)
	switch {
	case err != nil: // the upstream has just said that there is none
		refuseLookup(w, err)
		return pass{}, false
	case known || h.names(appID):
		return pass{}, true
	}
	if p, ok = h.relay.admit(clientOf(r).Address); !ok {
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "Nothing is known of this app just now, try again later")
	}
	return p, ok
}

// used says what became of the request. One that was not sent has cost the upstream nothing.
func (p pass) used(became passed) {
	if !became.sent {
		p.giveBack(true)
	}
}

// purge forgets what is known of an app, so that the next check asks anew.
func (h *Handler) purge(appID string) {
	if len(appID) <= maxAppIDLen && resolver.IsAppID(appID) && h.serves(appID) {
		h.relay.forget(appID)
	}
}

// relays reports whether the upstream answers for an app: it has no manifest here.
func (h *Handler) relays(err error) bool {
	return h.relay != nil && errors.Is(err, cache.ErrNotFound) && !errors.Is(err, errForeignApp)
}

// refuseOrForward answers a method that a path does not have here: the upstream may have it.
func (h *Handler) refuseOrForward(w http.ResponseWriter, r *http.Request, path string, allowed ...string) {
	if h.relayOnly && len(h.Apps) == 0 {
		if p, ok := h.relay.admit(clientOf(r).Address); ok {
			p.used(h.forward(w, r, path, maxCheckBody))
			return
		}
	}
	refuseMethod(w, allowed...)
}

// forwardOdd passes a request through that is none by the protocol of the official server; others may take it. It reports
// false if that was not done, and the request is yet to be answered. If nobody can say which app it is about, it shares the
// trickle of unknown apps, where a site serves all apps.
func (h *Handler) forwardOdd(w http.ResponseWriter, r *http.Request, s *scratch, path string, limit int64) bool {
	if !h.relayOnly || len(s.body) > 0 && !json.Valid(s.body) {
		return false
	}
	var p pass
	ok := false
	switch appID := h.relay.appIDOf(s.body); {
	case appID == "" && len(h.Apps) > 0, appID != "" && !h.serves(appID):
		return false
	case appID == "":
		if p, ok = h.relay.admit(clientOf(r).Address); !ok {
			return false
		}
	default:
		if p, ok = h.admitForward(w, r, appID); !ok {
			return true // it was answered
		}
	}
	p.used(h.forwardRead(w, r, s.body, path, limit))
	return true
}

// appIDOf is the app that a request is about, by its body alone, if all servers must read it so; else it is empty.
func (l *relay) appIDOf(body []byte) string {
	if ambiguous, app := l.foreign.Ambiguous(body); ambiguous || app {
		return ""
	}
	var named struct {
		AppID string `json:"app_id"`
	}
	if json.Unmarshal(body, &named) != nil || len(named.AppID) > maxAppIDLen || !resolver.IsAppID(named.AppID) {
		return ""
	}
	return named.AppID
}

// relayChannelCall passes a channel call through to the upstream, which knows the app.
func (h *Handler) relayChannelCall(w http.ResponseWriter, r *http.Request, s *scratch, call *resolver.ChannelCall) {
	if len(r.URL.Query()["app_id"]) > 1 { // which of them the upstream would take, nobody knows
		refuse(w, http.StatusBadRequest, "invalid_query_parameters", "There is more than one app_id")
		return
	}
	if h.refuseAmbiguous(w, s.body) {
		return
	}
	p, ok := h.admitForward(w, r, call.AppID)
	if !ok {
		return
	}
	if !call.Stored || call.Op != resolver.SetChannel && call.Op != resolver.UnsetChannel {
		p.used(h.forwardRead(w, r, s.body, pathChannels, maxCheckBody))
		return
	}
	watched, chosen := &headWriter{ResponseWriter: w}, true
	defer func() { // also if the answer breaks off: the choice may have been taken
		if chosen {
			h.relay.differs(call.AppID, call.DeviceID)
		}
	}()
	plain := r.Clone(r.Context())
	plain.Header.Set("Accept-Encoding", "identity") // the answer is read here, too
	became := h.forwardRead(watched, plain, s.body, pathChannels, maxCheckBody)
	p.used(became)
	switch became.status {
	case 0, http.StatusBadGateway, http.StatusGatewayTimeout: // what became of it, nobody knows
		chosen = became.sent
	default:
		chosen = became.status/100 == 2 && !refusesChoice(watched.head)
	}
}

// refuseAmbiguous refuses a body that other servers may read as one of another app.
func (h *Handler) refuseAmbiguous(w http.ResponseWriter, body []byte) bool {
	if _, app := h.relay.foreign.Ambiguous(body); !app {
		return false
	}
	refuse(w, http.StatusBadRequest, codeInvalidBody, messageTwoApps)
	return true
}

// refusesChoice reports that a channel call was refused, by an answer with status 200 (protocol 5).
func refusesChoice(answer []byte) bool {
	var refusal struct {
		Error any `json:"error"`
	}
	return json.Unmarshal(answer, &refusal) == nil && refusal.Error != nil
}

// headWriter keeps the beginning of what is written through it.
type headWriter struct {
	http.ResponseWriter
	head []byte
}

const maxHead = 4 << 10

func (w *headWriter) Write(p []byte) (int, error) {
	w.head = append(w.head, p[:min(len(p), maxHead-len(w.head))]...)
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *headWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
