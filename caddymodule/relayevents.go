package caddymodule

import (
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// forwardEvents passes statistics through of which no event is one by the protocol of the official server: the upstream, where they
// would go anyway, may take them. It reports false if that was not done. It is done only for apps that are no strangers.
func (h *Handler) forwardEvents(w http.ResponseWriter, r *http.Request, s *scratch, events []resolver.Event) bool {
	if !h.relayOnly || len(h.Stats) > 0 || len(events) == 0 || !h.serves(events[0].AppID) {
		return false
	}
	if slices.ContainsFunc(events, func(e resolver.Event) bool { return e.Refusal == nil || e.Refusal == twoApps }) {
		return false
	}
	if known, _ := h.relay.knows(events[0].AppID); !known && !h.names(events[0].AppID) {
		return false
	}
	result := eventRefused
	switch became := h.forwardRead(w, r, s.body, pathStats, maxEventsBody); {
	case became.status/100 == 2:
		result = eventAccepted
	case became.status == 0 || became.status >= http.StatusInternalServerError:
		result = eventUnavailable
	}
	h.runtime.counters.event(result, len(events))
	return true
}

// twoApps refuses an event that other servers may read as one of another app.
var twoApps = &resolver.Refusal{Status: http.StatusBadRequest, Code: codeInvalidBody, Message: messageTwoApps}

// refuseTwins refuses events that name more than one app.
func (l *relay) refuseTwins(events []resolver.Event) {
	for i := range events {
		if _, app := l.foreign.Ambiguous(events[i].Raw); app {
			events[i].Refusal = twoApps
		}
	}
}

// admitEvents returns errNotAdmitted for statistics of an app of which nothing is known, if there are too many such apps.
func (h *Handler) admitEvents(r *http.Request, appID string) error {
	known, err := h.relay.knows(appID)
	if known || err != nil || h.names(appID) || !h.statistics.delivers() || h.relay.knew(r.Context(), appID) {
		return err
	}
	if !h.relay.eventApps.allowApp(clientOf(r).Address, appID) {
		return errNotAdmitted
	}
	return nil
}

// eventAdmission holds down of how many apps statistics are taken that the upstream never knew: each costs it requests. It is no
// part of the admission to checks. Phones send events that were refused again each second, which would leave nothing for those.
type eventAdmission struct {
	seed maphash.Seed
	*admission

	mu   sync.Mutex
	apps *simplelru.LRU[uint64, time.Duration] // guarded by mu; when an app was let through
}

// maxEventApps bounds the apps that are remembered, far above what the trickle lets through within askWindow.
const maxEventApps = 1 << 14

func newEventAdmission(perMinute int) *eventAdmission {
	apps, _ := simplelru.NewLRU[uint64, time.Duration](maxEventApps, nil) // fails only for a size below 1
	return &eventAdmission{seed: maphash.MakeSeed(), admission: newAdmission(perMinute), apps: apps}
}

// allowApp reports whether events of an app may be taken from a client. An app that was let through takes no more for askWindow,
// whoever sends its events.
func (a *eventAdmission) allowApp(client netip.Addr, appID string) bool {
	app, now := maphash.String(a.seed, appID), time.Since(a.began)
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, known := a.apps.Get(app); known && now-at < askWindow {
		return true
	}
	if _, ok := a.allow(client); !ok {
		return false
	}
	a.apps.Add(app, now)
	return true
}
