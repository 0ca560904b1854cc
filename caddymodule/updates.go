package caddymodule

import (
	"errors"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// The largest bodies that are read (contract section 3).
const (
	maxCheckBody = 64 << 10
	maxSizesBody = 4 << 20
)

// serveUpdates answers POST /updates, the update check (protocol 1), and GET, which only asks whether we live.
func (h *Handler) serveUpdates(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
	case http.MethodGet, http.MethodHead:
		writeJSON(w, http.StatusOK, statusOK)
		return
	default:
		refuseMethod(w, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodOptions)
		return
	}
	s := h.takeScratch()
	defer h.giveScratch(s)
	app, ok := h.readCheck(w, r, s, maxCheckBody)
	if !ok {
		return
	}
	h.assign(&s.check)
	d, manifest := app.decide(&s.check)
	h.runtime.counters.decided(&d)
	if d.Guard != nil {
		app.guard.offered(d.Guard, s.check.DeviceID, networkOf(r))
	}
	if c := h.log.Check(zap.DebugLevel, "update check decided"); c != nil {
		c.Write(zap.String(fieldAppID, s.check.AppID), zap.String("device_id", s.check.DeviceID),
			zap.String("rule", d.Rule), zap.String("channel", d.Channel))
	}
	h.statistics.sawCheck(&s.check, s.body, d.Event) //nolint:contextcheck // what it may open outlives the request
	if h.address != nil && d.Outcome == resolver.Offer {
		d.Bundle = h.address.bundle(manifest, d.Bundle, time.Now())
	}
	s.answer = resolver.AppendResponse(s.answer[:0], &d, h.publicBase(r))
	writeJSON(w, http.StatusOK, s.answer)
}

// readCheck reads the device's fields from the body into s and finds the app's release. If it reports false, the request
// was answered.
func (h *Handler) readCheck(w http.ResponseWriter, r *http.Request, s *scratch, limit int64) (*release, bool) {
	var ok bool
	if ok = h.readLarge(w, r, s, limit); !ok {
		h.runtime.counters.refused(codeTooLarge)
		return nil, false
	}
	var err error
	if s.check, err = s.parser.Parse(s.body); err != nil {
		refusal, _ := errors.AsType[*resolver.Refusal](err) // there is no other kind
		h.runtime.counters.refused(refusal.Code)
		s.answer = resolver.AppendRefusal(s.answer[:0], refusal)
		writeJSON(w, refusal.Status, s.answer)
		return nil, false
	}
	if !h.serves(s.check.AppID) {
		refuseLookup(w, cache.ErrNotFound)
		return nil, false
	}
	app, state, err := h.library.get(r.Context(), s.check.AppID)
	if h.Debug {
		w.Header().Set("Cache-Status", manifestStatus(state))
	}
	if err != nil {
		refuseLookup(w, err)
		return nil, false
	}
	return app, true
}

// manifestStatus tells in the terms of RFC 9211 how a manifest was had.
func manifestStatus(state cache.State) string {
	switch state {
	case cache.Fresh:
		return "capgo-edge; hit"
	case cache.Stale:
		return "capgo-edge; hit; detail=stale"
	case cache.Negative:
		return "capgo-edge; hit; detail=negative"
	case cache.Loaded:
		return "capgo-edge; fwd=miss; stored"
	default:
		return "capgo-edge; fwd=miss; detail=unavailable"
	}
}

// serveSizes answers POST /updates/manifest_size (protocol 1.9) from the manifest's file_size.
func (h *Handler) serveSizes(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		refuseMethod(w, http.MethodPost, http.MethodOptions)
		return
	}
	s := h.takeScratch()
	defer h.giveScratch(s)
	app, ok := h.readCheck(w, r, s, maxSizesBody)
	if !ok {
		return
	}
	files, err := resolver.ParseSizeQuery(s.body)
	if err != nil {
		refusal, _ := errors.AsType[*resolver.Refusal](err) // there is no other kind
		writeJSON(w, refusal.Status, resolver.AppendRefusal(s.answer[:0], refusal))
		return
	}
	s.answer = resolver.AppendSizes(s.answer[:0], files, func(key string) (resolver.Object, bool) {
		t, ok := app.find(key)
		return t.known, ok
	})
	writeJSON(w, http.StatusOK, s.answer)
}
