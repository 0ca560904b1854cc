package caddymodule

import (
	"errors"
	"net/http"

	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin/stats"
	"github.com/capgo-edge/capgo-edge/resolver"
)

const pathStats = "/stats"

// maxEventsBody is the largest body of POST /stats (contract section 3).
const maxEventsBody = 16 << 20

// What a batch costs beside its body, which may be small.
const (
	// ordinaryBatch is how many events are free: five times what plugins keep (protocol 4.5). Those of a larger batch take of the
	// memory for large requests.
	ordinaryBatch = 1000
	// eventMemory is bytes for an event, what is said of it, and its entry in the answer.
	eventMemory = 400
	// smallAnswer is bytes that the system sends behind our back. For a client that reads a longer answer slowly, nothing is
	// held but that.
	smallAnswer = 16 << 10
)

// serveStats takes events (protocol 4), and answers GET, which only asks whether we live.
func (h *Handler) serveStats(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		writeJSON(w, http.StatusOK, statusOK)
	case http.MethodPost:
		h.takeEvents(w, r)
	default:
		h.refuseOrForward(w, r, pathStats, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodOptions)
	}
}

// takeEvents answers POST /stats once the events are on disk. A phone that gets no answer, or 503, keeps its events and
// sends them again a second later, so no more must be said than is true, and a 429 only of an app that nobody knows.
func (h *Handler) takeEvents(w http.ResponseWriter, r *http.Request) {
	s := h.takeScratch()
	defer h.giveScratch(s)
	if !h.readLarge(w, r, s, maxEventsBody) {
		h.runtime.counters.event(eventRefused, 1)
		return
	}
	events, batch, err := s.events.Parse(s.body)
	if err != nil {
		h.runtime.counters.event(eventRefused, 1)
		refusal, _ := errors.AsType[*resolver.Refusal](err) // there is no other kind
		s.answer = resolver.AppendRefusal(s.answer[:0], refusal)
		writeJSON(w, refusal.Status, s.answer)
		return
	}
	if h.relay != nil {
		h.relay.refuseTwins(events)
		if h.forwardEvents(w, r, s, events) {
			return
		}
	}
	if h.statistics.looped(r.Header) {
		h.runtime.counters.event(eventRefused, len(events))
		refuse(w, http.StatusLoopDetected, "loop_detected", "These events come from this edge itself; correct the address of its collector")
		return
	}
	if len(events) > ordinaryBatch && !h.takeLarge(r, s, int64(len(events)*eventMemory)) {
		h.runtime.counters.event(eventUnavailable, len(events))
		refuseBusy(w)
		return
	}
	if s.refusals, s.accepted, err = h.judgeEvents(r, events, s.refusals[:0], s.accepted[:0]); err != nil {
		h.refuseEvents(w, len(events), err)
		return
	}
	if err := h.statistics.keep(r.Context(), s.accepted); err != nil {
		h.refuseEvents(w, len(s.accepted), err)
		return
	}
	h.runtime.counters.event(eventAccepted, len(s.accepted))
	for i := range events {
		if s.refusals[i] == nil {
			h.runtime.guard.saw(r.Context(), h.library.source.Scope, &events[i])
		}
	}
	h.answerEvents(w, s, batch)
}

// judgeEvents tells what is wrong with each event, and which of them are to be kept.
func (h *Handler) judgeEvents(
	r *http.Request, events []resolver.Event, refusals []*resolver.Refusal, accepted []event,
) ([]*resolver.Refusal, []event, error) {
	if len(events) == 0 {
		return refusals, accepted, nil
	}
	app, confirmed, err := h.appOf(r, events[0].AppID) // they all have the same
	if errors.Is(err, errNotAdmitted) {
		return refusals, accepted, err
	}
	app = h.judgeOf(r.Context(), app, events)
	most := h.statistics.maxEvent(events[0].AppID)
	for i := range events {
		e := &events[i]
		refusal := e.Refusal
		switch {
		case refusal != nil:
		case errors.Is(err, cache.ErrNotFound):
			refusal = unknownApp
		case app != nil:
			refusal = app.manifest.JudgeEvent(e)
		}
		if refusal == nil && !e.Ignored && len(e.Raw) > most {
			refusal = eventTooLarge
		}
		refusals = append(refusals, refusal)
		switch {
		case refusal != nil:
			h.runtime.counters.event(eventRefused, 1)
		case e.Ignored:
			h.runtime.counters.event(eventIgnored, 1)
		default:
			// While nobody can say whether there is such an app, its events are kept, in a part of their own.
			accepted = append(accepted, event{app: e.AppID, device: e.DeviceID, action: e.Action, confirmed: confirmed, raw: e.Raw})
		}
	}
	return refusals, accepted, nil
}

// errNotAdmitted says that nothing is known of an app, and that the upstream must not be asked about one more.
var errNotAdmitted = errors.New("too many unknown apps asked for")

// appOf returns what this site knows of an app: its release, if it has a manifest, and whether it is known to exist. The error
// is cache.ErrNotFound for one that does not.
func (h *Handler) appOf(r *http.Request, appID string) (app *release, confirmed bool, err error) {
	switch {
	case !h.serves(appID):
		return nil, false, errForeignApp
	case h.relayOnly:
		err = cache.ErrNotFound
	default:
		app, _, err = h.library.get(r.Context(), appID)
	}
	if h.relays(err) {
		confirmed, _ = h.relay.knows(appID)
		return nil, confirmed, h.admitEvents(r, appID)
	}
	return app, err == nil, err
}

// eventTooLarge refuses an event that no spool takes: it would be sent again for ever.
var eventTooLarge = &resolver.Refusal{
	Status: http.StatusRequestEntityTooLarge, Code: codeTooLarge, Message: "The event is larger than this edge keeps",
}

func (h *Handler) refuseEvents(w http.ResponseWriter, n int, err error) {
	if errors.Is(err, stats.ErrTooLarge) { // by what cannot be seen before: a bound that a reload changes, or a long app id
		h.runtime.counters.event(eventRefused, n)
		refuse(w, eventTooLarge.Status, eventTooLarge.Code, eventTooLarge.Message)
		return
	}
	h.runtime.counters.event(eventUnavailable, n)
	if c := h.log.Check(zap.DebugLevel, "statistics refused"); c != nil {
		c.Write(zap.Int("events", n), zap.Error(err))
	}
	refuse(w, http.StatusServiceUnavailable, codeUnavailable, "Statistics cannot be kept just now, send them again later")
}

func (h *Handler) answerEvents(w http.ResponseWriter, s *scratch, batch bool) {
	if batch {
		s.answer = resolver.AppendBatchAnswer(s.answer[:0], s.refusals)
		if len(s.answer) > smallAnswer {
			h.keepAnswer(s)
		}
		writeJSON(w, http.StatusOK, s.answer)
		return
	}
	refusal, status := s.refusals[0], http.StatusOK
	if refusal != nil {
		status = refusal.Status
	}
	s.answer = resolver.AppendEventAnswer(s.answer[:0], refusal)
	writeJSON(w, status, s.answer)
}

// keepAnswer gives up all that s holds, but for the answer.
func (h *Handler) keepAnswer(s *scratch) {
	h.giveLarge(s, s.large-int64(cap(s.answer)))
	*s = scratch{answer: s.answer, large: s.large, network: s.network}
}

// looped reports whether a request is a delivery of this site's own events: a collector's address leads back here.
func (s *statistics) looped(header http.Header) bool {
	if len(header["Cdn-Loop"]) == 0 {
		return false
	}
	for _, d := range s.destinations {
		if open := d.outlet.open.Load(); open != nil && open.forwarder.Looped(header) {
			return true
		}
	}
	return false
}
