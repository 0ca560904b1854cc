package stats

import (
	"maps"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// maxHeld bounds the devices that are remembered as held. Beyond it the lane of a device waits as a whole.
	maxHeld  = 10_000
	laneRest = time.Minute
	// An event that fails so often, for at least so long, is dead: a poisoned one would live for ever otherwise. Both are
	// asked, so that neither an outage of a night nor a burst of tries kills it. A try counts only if the collector took
	// anything since the one before, or with it: while it takes nothing at all, the event is not to blame. The count is kept in
	// memory; a restart begins it anew.
	wornOutTries = 50
	wornOutAfter = 24 * time.Hour
	// heldMemory is how long a device is remembered that could be sent again but does not show up: the spool has dropped
	// its events.
	heldMemory = time.Hour
)

// heldDevice is a device with an event that the collector could not take. All its events wait, so that they keep their order.
type heldDevice struct {
	until   time.Time
	backoff backoff.ExponentialBackOff
	since   time.Time // of the first try that is counted
	tries   int
	through uint64 // the tries were for its events up to this one
	// alone says that the collector fails as a whole on the event, so that it is sent in a batch of its own.
	alone    bool
	accepted uint64 // batches that the collector had taken at the last try, with that one
}

// isHeld answers what the spool asks when it claims a batch. It is a copy: a spool that is asked until Close gives up waiting
// may still be at it.
func (l *laneTurn) isHeld(now time.Time) func(device uint64) bool {
	var devices map[uint64]struct{}
	for device, h := range l.held {
		if now.Before(h.until) {
			if devices == nil {
				devices = make(map[uint64]struct{}, len(l.held))
			}
			devices[device] = struct{}{}
		}
	}
	return func(device uint64) bool {
		_, held := devices[device]
		return held
	}
}

// heldUntil is when the first of the held devices may be sent again; zero if none is held.
func (l *laneTurn) heldUntil() time.Time {
	var first time.Time
	for _, h := range l.held {
		if first.IsZero() || h.until.Before(first) {
			first = h.until
		}
	}
	return first
}

// wantsAlone reports that a device is due whose event must be sent by itself.
func (l *laneTurn) wantsAlone(now time.Time) bool {
	for _, h := range l.held {
		if h.alone && !now.Before(h.until) {
			return true
		}
	}
	return false
}

// hold notes what the verdicts say about devices, and turns worn out events into dead ones.
func (t *turns) hold(l *laneTurn, b *Batch, verdicts []Verdict, alone bool, accepted uint64, now time.Time) {
	failed := map[uint64][]int{}
	for i, v := range verdicts {
		if v.Fate == Keep && v.Code != "" {
			failed[b.Events[i].Device] = append(failed[b.Events[i].Device], i)
		}
	}
	if len(failed) == 0 && len(l.held) == 0 {
		return
	}
	for i, v := range verdicts {
		if device := b.Events[i].Device; v.Fate != Keep && failed[device] == nil {
			t.unhold(l, device)
		}
	}
	for device, events := range failed {
		h := t.holdDevice(l, device)
		if h == nil {
			l.rest = now.Add(laneRest)
			continue
		}
		if first, last := b.Events[events[0]].Seq, b.Events[events[len(events)-1]].Seq; h.tries == 0 || first > h.through { // of other events
			*h = heldDevice{backoff: newBackoff(maxWait), since: now, through: last}
		}
		counts := h.tries == 0 || accepted > h.accepted
		if counts {
			h.tries++
		}
		h.until, h.alone, h.accepted = t.sharedTime(now.Add(h.backoff.NextBackOff()), now), alone, accepted
		if !counts || h.tries < wornOutTries || now.Sub(h.since) < wornOutAfter {
			continue
		}
		left := false
		for _, i := range events {
			if b.Events[i].Seq <= h.through {
				verdicts[i].Fate = Dead
			} else {
				left = true
			}
		}
		if !left {
			t.unhold(l, device)
		}
	}
}

// sharedTime rounds a time up, so that the devices of a lane that wait share batches. It does so on the monotonic clock, where
// Truncate would leave the wall clock alone, which may be set back.
func (t *turns) sharedTime(until, now time.Time) time.Time {
	grid := time.Second
	if until.Sub(now) > 10*grid {
		grid *= 10
	}
	return t.began.Add((until.Sub(t.began) + grid - 1).Truncate(grid))
}

// holdDevice gives what is known of a device; nil if no more can be remembered.
func (t *turns) holdDevice(l *laneTurn, device uint64) *heldDevice {
	h := l.held[device]
	if h != nil || t.held >= t.maxHeld {
		return h
	}
	if l.held == nil {
		l.held = map[uint64]*heldDevice{}
	}
	h = &heldDevice{}
	l.held[device] = h
	t.held++
	return h
}

// restDevice has the events of a device wait for a minute, whatever becomes of those of others; with too many devices its lane.
func (t *turns) restDevice(l *laneTurn, device uint64, now time.Time) {
	until := now.Add(laneRest)
	if h := t.holdDevice(l, device); h != nil {
		h.until = t.sharedTime(until, now)
	} else {
		l.rest = until
	}
}

func (t *turns) unhold(l *laneTurn, device uint64) {
	if l.held[device] != nil {
		delete(l.held, device)
		t.held--
	}
}

// forgetHeld forgets devices that could be sent but have no events any more: those that were not held when the spool said that
// there is nothing else, and those that do not show up.
func (t *turns) forgetHeld(l *laneTurn, more bool, now time.Time) {
	before := now.Add(-heldMemory)
	if !more {
		before = l.claimed
	}
	t.forgetIf(l, func(h *heldDevice) bool { return !h.until.After(before) })
}

// forgetAbsent forgets the devices that must be sent alone if the one event that was claimed is of none of them.
func (t *turns) forgetAbsent(l *laneTurn, b *Batch) {
	if b != nil && (len(b.Events) > 1 || l.held[b.Events[0].Device] != nil) {
		return
	}
	t.forgetIf(l, func(h *heldDevice) bool { return h.alone && !l.claimed.Before(h.until) })
}

func (t *turns) forgetIf(l *laneTurn, gone func(*heldDevice) bool) {
	before := len(l.held)
	maps.DeleteFunc(l.held, func(_ uint64, h *heldDevice) bool { return gone(h) })
	t.held -= before - len(l.held)
}
