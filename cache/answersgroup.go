package cache

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// group is what is known of the questions that belong together. Everything but its key is guarded by mu.
//
// A mutex and a plain LRU for each group, rather than one Ristretto for all: what was just learned must be found by the
// next of a thousand phones, one group's traffic must not delay another's, and each must give way by itself when memory runs out.
type group[V any] struct {
	key Key

	mu    sync.Mutex
	gone  bool // no longer the group of that key
	slots *simplelru.LRU[slotID, *slot[V]]
	bytes int64 // of the slots, the refusal and the group itself
	total int64 // what of bytes Answers has counted
	used  int64 // when it was last asked for
	asks  int   // requests that run

	recalled bool  // what is kept of it was looked for, or is just now
	known    bool  // the upstream has answered for it, in this run or one before
	answered int64 // when it last did
	outage   bool
	outageAt int64 // when the last one began

	meeting      *asking[V] // the first request for a group of which nothing is known, or its recall; further ones wait for it
	refusal      V
	refusedUntil int64
	refusalSize  int64

	notBefore int64 // answers from before are outdated: a soft purge
	forgotten int64 // copies from before are not to be restored: a hard purge, or a mark
	epoch     int   // what was asked in an earlier one is not kept: a hard purge
	differs   *simplelru.LRU[string, int64]

	differing
}

// slotID names an answer within its group. The device is empty if the answer is not that of one device.
type slotID struct{ key, device string }

// slot is the place of one answer.
type slot[V any] struct {
	id  slotID
	has bool // there is an answer: the next four
	content[V]
	shared  bool     // it is for all devices
	devices []string // some that were given it by the upstream itself; none if the answer is that of one device
	saved   int64    // when a copy was last asked for, or neverSaved

	last *content[V] // what was shared before, while the answer is not: see lastGoodLocked
	cost int64       // what the slot takes of memory

	asking   []*asking[V] // the requests that run for it
	settling bool         // the last of them compares devices
	sought   bool         // its copy was looked for
	alone    int64        // until then devices ask one by one if there is nothing young to share
	retryAt  int64        // not asked for before
	failures int
	err      error // why the last request brought nothing
}

// content is what the upstream gave.
type content[V any] struct {
	value     V
	offer     string
	validated int64 // when the upstream last gave it
	until     int64 // 0, or when it ceases to be usable
	size      int64 // of the value and the offer, in bytes
}

// What is counted for the bookkeeping of a slot, of a last good answer and of a group, in bytes.
const (
	slotCost  = 512
	lastCost  = 64
	groupCost = 1536
)

const neverSaved = math.MinInt64

// saveEvery is how often a copy of an answer that does not change is asked for, so that the copy tells its age.
const saveEvery = int64(time.Hour)

// maxDiffers bounds how many devices of a group are remembered to differ.
const maxDiffers = 4096

func newGroup[V any](key Key, now int64) *group[V] {
	g := &group[V]{
		key: key, bytes: groupCost, used: now,
		outageAt: now - outageEvery, notBefore: math.MinInt64, forgotten: math.MinInt64,
	}
	g.slots, _ = simplelru.NewLRU(math.MaxInt, func(_ slotID, s *slot[V]) { g.bytes -= s.cost }) // fails only below 1
	g.left = checkBurst
	return g
}

// step is what is to be done next about a question. It holds nothing of the question: what it holds is returned to the client's
// handler, and then all of the question would have to be on the heap.
type step[V any] struct {
	decided bool // the next three answer it
	value   V
	state   State
	err     error

	ask bool // a request is to be begun; to be waited for unless decided

	asking   *asking[V] // the request to wait for, else
	patience time.Duration
}

// decideLocked says what to do about a question. An answer that was given since the asker began to wait is fresh to it,
// however short the ages are; else those who wait for one would ask one after the other. It changes nothing but the order of the LRU.
func (g *group[V]) decideLocked(t *Terms, q *Question[V], now, since int64, check bool) step[V] {
	g.used = now
	if !g.knownLocked(t, now) {
		switch {
		case now < g.refusedUntil:
			return step[V]{decided: true, value: g.refusal, state: Negative}
		case g.meeting != nil:
			return step[V]{asking: g.meeting, patience: firstWait}
		}
	}
	_, s := g.slotLocked(t, q, now)
	if g.servesLocked(t, s, q) {
		return g.byAgeLocked(t, s, q, now, since, check)
	}
	return g.askOwnLocked(t, s, q, now)
}

// knownLocked reports whether the upstream answered for the group within living memory, so that a refusal is an outage.
func (g *group[V]) knownLocked(t *Terms, now int64) bool {
	return g.known && time.Duration(now-g.answered) < t.Ages.Stale
}

// slotLocked finds the slot that a question is to be answered from. There may be nothing at that place yet.
func (g *group[V]) slotLocked(t *Terms, q *Question[V], now int64) (slotID, *slot[V]) {
	id := slotID{key: q.Key}
	if !g.individualLocked(t.Mode, q.Device) {
		s, _ := g.slots.Get(id)
		if s == nil || now >= s.alone || g.servesLocked(t, s, q) && time.Duration(now-s.validated) < t.Ages.young() {
			return id, s
		}
	}
	id.device = q.Device
	s, _ := g.slots.Get(id)
	return id, s
}

// individualLocked reports whether the device is answered only with what it was given itself.
func (g *group[V]) individualLocked(mode PerDevice, device string) bool {
	return mode == PerDeviceOn || mode == PerDeviceAuto && g.marked || g.differs != nil && g.differs.Contains(device)
}

// servesLocked reports whether s holds an answer that the asking device may be given.
func (g *group[V]) servesLocked(t *Terms, s *slot[V], q *Question[V]) bool {
	switch {
	case s == nil || !s.has:
		return false
	case s.id.device != "" && s.validated < g.wroteLocked(s.id.device):
		return false
	case s.id.device != "" || s.shared || t.Mode == PerDeviceOff || slices.Contains(s.devices, q.Device):
		return true
	}
	s.shared = g.lacksLocked(s.offer) == 0 // devices that asked other questions may have shown it since
	return s.shared
}

// byAgeLocked decides by age whether the answer in s is used at once, or after the upstream was asked.
func (g *group[V]) byAgeLocked(t *Terms, s *slot[V], q *Question[V], now, since int64, check bool) step[V] {
	ages, age := &t.Ages, time.Duration(now-s.validated)
	usable := s.usable(t, now)
	current := usable && s.validated >= g.notBefore
	next := step[V]{decided: true, value: s.value, state: Stale}
	if current && (age < ages.Fresh || s.validated >= since) {
		next.state = Fresh
		next.ask = check && g.mayCheckLocked(s, q.Device, now)
		return next
	}
	delayed := now < s.retryAt
	if delayed && !usable && s.err != nil {
		return unavailable[V](s.err)
	}
	delayed = delayed && usable
	next.ask = !delayed && len(s.asking) == 0
	if usable && (delayed || s.err != nil || current && age < ages.young()) {
		return next
	}
	next.decided, next.patience = false, staleWait
	if !usable {
		next.patience = firstWait // there is nothing better to say
	}
	if !next.ask {
		next.asking = s.asking[len(s.asking)-1]
	}
	return next
}

// askOwnLocked decides about a question to which there is nothing that the device may be given: it asks the upstream, or waits
// for those who do. There is one of them if nothing is known. If an offer is known that too few devices
// got to share it, there are as many as it lacks: a thousand phones at a release make three requests, not a thousand.
func (g *group[V]) askOwnLocked(t *Terms, s *slot[V], q *Question[V], now int64) step[V] {
	next := step[V]{patience: firstWait}
	if s == nil {
		next.ask = true
		return next
	}
	if now < s.retryAt && s.err != nil {
		if last, ok := g.lastGoodLocked(t, q, now); ok {
			return step[V]{decided: true, value: last, state: Stale}
		}
		return unavailable[V](s.err)
	}
	for _, c := range s.asking {
		if c.of.device == q.Device {
			next.asking = c
			return next
		}
	}
	room := 1
	if s.has {
		room = max(room, g.lacksLocked(s.offer))
	}
	next.ask = len(s.asking) < room && !s.settling
	if !next.ask {
		next.asking = s.asking[len(s.asking)-1]
	}
	return next
}

// lastGoodLocked returns what a device is given if the upstream fails and nothing else is there for it: what is shared, although
// devices ask one by one just now, or what was shared until the upstream gave one device something that may not be shared yet.
func (g *group[V]) lastGoodLocked(t *Terms, q *Question[V], now int64) (v V, ok bool) {
	if g.individualLocked(t.Mode, q.Device) {
		return v, false
	}
	s, _ := g.slots.Peek(slotID{key: q.Key})
	switch {
	case g.servesLocked(t, s, q):
		return s.value, s.usable(t, now)
	case s != nil && s.last != nil:
		return s.last.value, s.last.usable(t, now)
	}
	return v, false
}

func unavailable[V any](err error) step[V] {
	return step[V]{decided: true, state: Unavailable, err: err}
}

// wroteLocked is since when a device may be answered otherwise: by what it was given before it would undo its own write.
func (g *group[V]) wroteLocked(device string) int64 {
	if g.differs != nil {
		if wrote, ok := g.differs.Peek(device); ok {
			return wrote
		}
	}
	return math.MinInt64
}

// young is the age up to which an answer is given without waiting.
func (a *Ages) young() time.Duration { return a.Fresh + a.StaleWhile }

// usable reports whether c may be given at all.
func (c *content[V]) usable(t *Terms, now int64) bool {
	return time.Duration(now-c.validated) < t.Ages.Stale && (c.until == 0 || now < c.until)
}

// placeLocked returns the slot called id, an empty one if there is none.
func (g *group[V]) placeLocked(id slotID) *slot[V] {
	s, ok := g.slots.Get(id)
	if !ok {
		s = &slot[V]{id: id, saved: neverSaved, cost: slotCost + int64(len(id.key)+len(id.device))}
		g.slots.Add(id, s)
		g.bytes += s.cost
	}
	return s
}

// putLocked stores an answer in s, with a value of the given size. Once that is shared, it is the last good one itself.
func (g *group[V]) putLocked(s *slot[V], kept *Reply[V], size, validated, until int64) {
	s.has, s.content = true, content[V]{kept.Value, kept.Offer, validated, until, int64(len(kept.Offer)) + size}
	if s.shared {
		s.last = nil
	}
	g.weighLocked(s)
}

// clearLocked empties s of its answer. If that was shared, it stays as the last good one.
func (g *group[V]) clearLocked(s *slot[V]) {
	if s.has && s.shared {
		last := s.content
		s.last = &last
	}
	s.has, s.content, s.shared, s.devices, s.saved = false, content[V]{}, false, nil, neverSaved
	g.weighLocked(s)
}

// weighLocked counts what s holds.
func (g *group[V]) weighLocked(s *slot[V]) {
	cost := slotCost + int64(len(s.id.key)+len(s.id.device)) + s.size
	if s.last != nil {
		cost += lastCost + s.last.size
	}
	if now, ok := g.slots.Peek(s.id); ok && now == s { // it may have been evicted
		g.bytes += cost - s.cost
	}
	s.cost = cost
}

// delay notes when the upstream may be asked again after a failure: later each time, and not in step with other slots. What
// can be answered meanwhile waits for at least about as long as it would be fresh: when the upstream
// is back it is asked no more often than before.
func (s *slot[V]) delay(ages *Ages, now int64, err error) {
	wait := min(retryFirst<<min(s.failures, 10), retryMost)
	if s.has && (s.shared || s.id.device != "") {
		wait = max(wait, ages.Fresh)
	}
	s.failures++
	s.err, s.retryAt = err, now+int64(jitter(max(wait, time.Second)))
}

// asking is one request to the upstream.
type asking[V any] struct {
	of      slotID // the question and the device that it is asked as
	epoch   int
	began   int64
	restore bool // the copy is to be looked for first
	meets   bool // nothing is known of the group

	done    chan struct{} // closed when the next are there
	sent    bool          // the upstream was asked
	replied bool
	reply   Reply[V]
	state   State
	err     error
}

// wait returns nil once the request has ended, or why it is not waited for any longer.
func (c *asking[V]) wait(ctx context.Context, patience time.Duration) error {
	timer := time.NewTimer(max(patience, 0))
	defer timer.Stop()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return errNoReply
	}
}
