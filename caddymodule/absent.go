package caddymodule

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// absentVersions are versions that events spoke of and that the origin, asked again, did not have. Phones go on to run bundles
// that were deleted, and need not have it asked each time. The zero value has none.
type absentVersions struct {
	mu    sync.Mutex
	names *simplelru.LRU[string, time.Time] // when the origin was asked; guarded by mu; nil until there is one
}

const (
	// maxAbsent bounds the versions that are remembered of a release, and bytes of each. Versions can be made up.
	maxAbsent, maxAbsentLen = 256, 256
	// absentFor is how long that is believed: the question may have been under way when the version was published.
	absentFor = 10 * time.Second
	// renewWait is how long a phone waits for the origin's answer.
	renewWait = 2 * time.Second
)

func (a *absentVersions) has(version string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.names == nil {
		return false
	}
	at, known := a.names.Peek(version)
	return known && time.Since(at) < absentFor
}

func (a *absentVersions) add(version string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.names == nil {
		a.names, _ = simplelru.NewLRU[string, time.Time](maxAbsent, nil) // fails only for a size below 1
	}
	a.names.Add(version, time.Now())
}

// judgeOf is the release that judges events: the newest, if one of them speaks of a version that the one at hand does not have.
// Another edge may have offered that already, and a phone does not send an event again whose refusal it does not read. It is
// nil if the origin cannot be asked; then the collector judges.
func (h *Handler) judgeOf(ctx context.Context, app *release, events []resolver.Event) *release {
	if app == nil || !slices.ContainsFunc(events, func(e resolver.Event) bool { return app.mayLack(&e) }) {
		return app
	}
	ctx, cancel := context.WithTimeout(ctx, renewWait)
	defer cancel()
	newest, err := h.library.renew(ctx, app.manifest.AppID)
	if err != nil {
		return nil
	}
	newest.noteAbsent(events)
	return newest
}

// mayLack reports whether an event speaks of a bundle that the release does not have, and a newer one may. Native versions were
// often never uploaded, and tell nothing.
func (r *release) mayLack(e *resolver.Event) bool {
	return e.Refusal == nil && !e.Native && len(e.Version) <= maxAbsentLen && r.manifest.JudgeEvent(e) != nil && !r.absent.has(e.Version)
}

func (r *release) noteAbsent(events []resolver.Event) {
	for i := range events {
		if r.mayLack(&events[i]) {
			r.absent.add(strings.Clone(events[i].Version)) // a copy: it is a part of the body
		}
	}
}
