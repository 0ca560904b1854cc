package caddymodule

import (
	"maps"
	"time"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// hold is what a release offers while objects of it are not here yet ("announce warm"). It is immutable: when a bundle has
// got warm, another takes its place.
type hold struct {
	until   time.Time // the end in any case
	prev    *resolver.Manifest
	waiting map[*resolver.Bundle]bool // bundles whose objects are not all here
	variant *resolver.Manifest        // what goes on being offered in their place
}

// decide answers a check, and tells which manifest the bundle it offers belongs to.
func (r *release) decide(c *resolver.Check) (resolver.Decision, *resolver.Manifest) {
	m := r.lessPauses(r.manifest, ofManifest)
	d := m.Decide(c)
	h := r.hold.Load()
	if h == nil || d.Outcome != resolver.Offer || !h.waiting[d.Bundle] {
		return d, m
	}
	if !time.Now().Before(h.until) {
		r.hold.CompareAndSwap(h, nil)
		return d, m
	}
	m = r.lessPauses(h.variant, ofHold)
	return m.Decide(c), m
}

// offered is the manifest that is in effect.
func (r *release) offered() *resolver.Manifest {
	if h := r.hold.Load(); h != nil && time.Now().Before(h.until) {
		return r.lessPauses(h.variant, ofHold)
	}
	return r.lessPauses(r.manifest, ofManifest)
}

// manifests are all that r answers from, without pauses.
func (r *release) manifests() []*resolver.Manifest {
	if h := r.hold.Load(); h != nil {
		return []*resolver.Manifest{r.manifest, h.variant}
	}
	return []*resolver.Manifest{r.manifest}
}

// pausedVariant is a manifest with the rollouts paused that the guard has stopped.
type pausedVariant struct {
	of      *resolver.Manifest
	by      *pauseSet
	variant *resolver.Manifest
}

// Where release.variants has the variant of the manifest, and that of what is offered in place of it.
const (
	ofManifest = iota
	ofHold
)

// lessPauses is m with the rollouts paused that the guard has stopped: m itself as long as there are none. The variant is
// made by the first who needs it. Two who do so at once make the same, and one who replaces it by that of an older set or
// of another hold costs the next no more than making it again, for what it was made of is compared.
func (r *release) lessPauses(m *resolver.Manifest, at int) *resolver.Manifest {
	if r.guard == nil {
		return m
	}
	set := r.guard.paused.Load()
	if set == nil {
		return m
	}
	if v := r.variants[at].Load(); v != nil && v.of == m && v.by == set {
		return v.variant
	}
	variant := m.Pause(set.has)
	r.variants[at].Store(&pausedVariant{m, set, variant})
	return variant
}

// holdBack has r go on offering what old does in place of bundles whose objects are not here, for so long at the most.
// It is called before anyone sees r.
func (r *release) holdBack(old *release, wait time.Duration, s *shelves) {
	waiting := map[*resolver.Bundle]bool{}
	for b := range offeredBy(r.manifest) {
		if !s.has(r.manifest, b) {
			waiting[b] = true
		}
	}
	until := time.Now().Add(wait)
	if h := old.hold.Load(); h != nil && h.awaitsSome(waiting) {
		until = h.until // an edit of the manifest must not start the time anew
	}
	r.setHold(&hold{until: until, prev: old.offered(), waiting: waiting})
}

// awaitsSome reports whether h waits for one of these versions already.
func (h *hold) awaitsSome(bundles map[*resolver.Bundle]bool) bool {
	for b := range h.waiting {
		for other := range bundles {
			if b.ID == other.ID && b.Name == other.Name {
				return true
			}
		}
	}
	return false
}

// setHold puts h in force, if it holds anything back.
func (r *release) setHold(h *hold) {
	h.variant = r.manifest.Hold(h.prev, func(b *resolver.Bundle) bool { return h.waiting[b] })
	if h.variant == r.manifest {
		h = nil
	}
	r.hold.Store(h)
}

// warmed notes that all objects of a bundle are here. The warmer calls it, one call at a time.
func (r *release) warmed(b *resolver.Bundle) {
	h := r.hold.Load()
	if h == nil || !h.waiting[b] {
		return
	}
	waiting := maps.Clone(h.waiting)
	delete(waiting, b)
	r.setHold(&hold{until: h.until, prev: h.prev, waiting: waiting})
}
