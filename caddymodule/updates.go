package caddymodule

import (
	"errors"
	"fmt"
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
		h.refuseOrForward(w, r, "/updates", http.MethodGet, http.MethodHead, http.MethodPost, http.MethodOptions)
		return
	}
	s := h.takeScratch()
	defer h.giveScratch(s)
	if !h.readCheck(w, r, s, "/updates", maxCheckBody) {
		return
	}
	app, err := h.releaseFor(w, r, s.check.AppID)
	switch {
	case err == nil:
		h.answerCheck(w, r, s, app)
	case h.relays(err):
		h.relayCheck(w, r, s)
	default:
		refuseLookup(w, err)
	}
}

// answerCheck decides a check by the app's manifest.
func (h *Handler) answerCheck(w http.ResponseWriter, r *http.Request, s *scratch, app *release) {
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
	h.statistics.sawDecision(&s.check, s.body, d.Event, app.manifest)
	if h.address != nil && d.Outcome == resolver.Offer {
		d.Bundle = h.address.bundle(manifest, d.Bundle, time.Now())
	}
	s.answer = resolver.AppendResponse(s.answer[:0], &d, h.publicBase(r))
	writeJSON(w, http.StatusOK, s.answer)
}

// readCheck reads the device's fields from the body into s. If it reports false, the request was answered.
func (h *Handler) readCheck(w http.ResponseWriter, r *http.Request, s *scratch, path string, limit int64) bool {
	if !h.readLarge(w, r, s, limit) {
		h.runtime.counters.refused(codeTooLarge)
		return false
	}
	var err error
	if s.check, err = s.parser.Parse(s.body); err == nil {
		return true
	}
	refusal, _ := errors.AsType[*resolver.Refusal](err) // there is no other kind
	h.runtime.counters.refused(refusal.Code)
	if h.forwardOdd(w, r, s, path, limit) {
		return false
	}
	s.answer = resolver.AppendRefusal(s.answer[:0], refusal)
	writeJSON(w, refusal.Status, s.answer)
	return false
}

// releaseFor returns what this site knows of an app by its manifest. The error is cache.ErrNotFound for one that has none.
func (h *Handler) releaseFor(w http.ResponseWriter, r *http.Request, appID string) (*release, error) {
	switch {
	case !h.serves(appID):
		return nil, errForeignApp
	case h.relayOnly:
		return nil, cache.ErrNotFound
	}
	app, state, err := h.library.get(r.Context(), appID)
	if h.Debug {
		w.Header().Set("Cache-Status", manifestStatus(state))
	}
	return app, err
}

// errForeignApp says that an app is none that this site serves: it is unknown, and nobody is asked about it.
var errForeignApp = fmt.Errorf("%w: this site does not serve it", cache.ErrNotFound)

// manifestStatus tells in the terms of RFC 9211 how a manifest was had.
func manifestStatus(state cache.State) string {
	switch state {
	case cache.Fresh:
		return "capgo-edge; hit"
	case cache.Stale:
		return "capgo-edge; hit; detail=stale"
	case cache.Negative:
		return "capgo-edge; detail=negative" // just asked, or remembered
	case cache.Loaded:
		return "capgo-edge; fwd=miss; stored"
	default:
		return "capgo-edge; fwd=miss; detail=unavailable"
	}
}

// serveSizes answers POST /updates/manifest_size (protocol 1.9) from the manifest's file_size.
func (h *Handler) serveSizes(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		h.refuseOrForward(w, r, pathSizes, http.MethodPost, http.MethodOptions)
		return
	}
	s := h.takeScratch()
	defer h.giveScratch(s)
	if !h.readCheck(w, r, s, pathSizes, maxSizesBody) {
		return
	}
	app, err := h.releaseFor(w, r, s.check.AppID)
	switch {
	case err == nil:
		answerSizes(w, s, app)
	case h.relays(err):
		if h.refuseAmbiguous(w, s.body) {
			return
		}
		if p, ok := h.admitForward(w, r, s.check.AppID); ok {
			p.used(h.forwardRead(w, r, s.body, pathSizes, maxSizesBody))
		}
	default:
		refuseLookup(w, err)
	}
}

const pathSizes = "/updates/manifest_size"

func answerSizes(w http.ResponseWriter, s *scratch, app *release) {
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
