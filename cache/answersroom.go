package cache

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

const groupShards = 64

// groupShard holds some of the groups. It is locked for writing only when a group comes or goes.
type groupShard[V any] struct {
	mu     sync.RWMutex
	groups map[Key]*group[V] // guarded by mu
}

func (a *Answers[V]) shard(key Key) *groupShard[V] {
	return &a.shards[maphash.Comparable(a.seed, key)%groupShards]
}

func (a *Answers[V]) find(key Key) *group[V] {
	s := a.shard(key)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.groups[key]
}

// enter returns the group, a new one if there is none, with its mutex locked.
func (a *Answers[V]) enter(key Key) *group[V] {
	for {
		g := a.find(key)
		if g == nil {
			g = a.add(key)
		}
		g.mu.Lock()
		if !g.gone {
			return g
		}
		g.mu.Unlock() // it was removed between the two
	}
}

func (a *Answers[V]) add(key Key) *group[V] {
	s := a.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.groups[key]; g != nil {
		return g
	}
	if s.groups == nil {
		s.groups = make(map[Key]*group[V])
	}
	key = Key{strings.Clone(key.Scope), strings.Clone(key.Name)}
	g := newGroup[V](key, a.now())
	a.accountLocked(g)
	s.groups[key] = g
	return g
}

// remove takes a group away if it is idle and may tells so.
func (a *Answers[V]) remove(g *group[V], may func() bool) {
	s := a.shard(g.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone || g.asks > 0 || !may() {
		return
	}
	g.gone = true
	a.bytes.Add(-g.total)
	a.counts.evicted.Add(uint64(g.slots.Len()))
	delete(s.groups, g.key)
}

// accountLocked adds to the sum of all groups what has changed in g.
func (a *Answers[V]) accountLocked(g *group[V]) {
	if !g.gone {
		a.bytes.Add(g.bytes - g.total)
		g.total = g.bytes
	}
}

// forgetStranger removes a group that the upstream was not even asked about: names that anybody may make up take no memory.
func (a *Answers[V]) forgetStranger(g *group[V]) {
	a.remove(g, func() bool { return g.strangerLocked(a.now()) })
}

// strangerLocked reports whether nothing worth keeping is known of the group.
func (g *group[V]) strangerLocked(now int64) bool {
	return !g.known && now >= g.refusedUntil && g.differs == nil
}

// assuredShare is what part of all memory a group keeps as long as it is in use, however much others want.
const assuredShare = 1024

// sweep makes room. What goes first are groups of which nothing is known. Then those that hold most give, each its answers
// that were not used for longest, down to one level for all: one group with a million devices cannot push out
// the others. If groups are so many that this would not leave them much, whole groups go that were not used for longest.
func (a *Answers[V]) sweep() {
	if !a.sweeping.TryLock() {
		return
	}
	defer a.sweeping.Unlock()
	now, limit := a.now(), a.max.Load()
	target := limit - limit/32 // so that it is not done again at once
	for g := range a.all() {
		a.remove(g, func() bool { return g.strangerLocked(now) })
	}
	holders := a.holders()
	fair, least := fairLevel(holders, target), max(limit/assuredShare, groupCost)
	for i := range holders {
		if level := max(fair, least); holders[i].bytes > level {
			a.trim(holders[i].group, level)
		}
	}
	if fair < least {
		a.removeIdle(target)
	}
}

// holder is a group with what matters of it to make room.
type holder[V any] struct {
	group   *group[V]
	bytes   int64
	used    int64
	special bool // it is marked, or some of its devices differ: to be forgotten last
}

// holders returns all groups, those that hold most first.
func (a *Answers[V]) holders() []holder[V] {
	var all []holder[V]
	for g := range a.all() {
		g.mu.Lock()
		all = append(all, holder[V]{g, g.bytes, g.used, g.marked || g.differs != nil})
		g.mu.Unlock()
	}
	slices.SortFunc(all, func(x, y holder[V]) int { return cmp.Compare(y.bytes, x.bytes) })
	return all
}

// fairLevel is the level at which what is below it sums up to target.
func fairLevel[V any](holders []holder[V], target int64) int64 {
	var rest int64 // of those below the level
	for i := range holders {
		rest += holders[i].bytes
	}
	for i := range holders {
		rest -= holders[i].bytes
		level := (target - rest) / int64(i+1)
		if i+1 == len(holders) || level >= holders[i+1].bytes {
			return level
		}
	}
	return 0
}

// trim has a group give its oldest answers, down to a level.
func (a *Answers[V]) trim(g *group[V], level int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.bytes > level && g.slots.Len() > 0 {
		g.slots.RemoveOldest()
		a.counts.evicted.Add(1)
	}
	a.accountLocked(g)
}

func (a *Answers[V]) removeIdle(target int64) {
	holders := a.holders()
	slices.SortFunc(holders, func(x, y holder[V]) int {
		if x.special != y.special {
			if y.special {
				return -1
			}
			return 1
		}
		return cmp.Compare(x.used, y.used)
	})
	for i := range holders {
		if a.bytes.Load() <= target {
			return
		}
		a.remove(holders[i].group, func() bool { return true })
	}
}

// all yields the groups. They may be changed meanwhile.
func (a *Answers[V]) all() func(yield func(*group[V]) bool) {
	return func(yield func(*group[V]) bool) {
		for i := range a.shards {
			a.shards[i].mu.RLock()
			groups := make([]*group[V], 0, len(a.shards[i].groups))
			for _, g := range a.shards[i].groups {
				groups = append(groups, g)
			}
			a.shards[i].mu.RUnlock()
			for _, g := range groups {
				if !yield(g) {
					return
				}
			}
		}
	}
}

// Groups returns the groups of which anything is known.
func (a *Answers[V]) Groups() []Key {
	var keys []Key
	for g := range a.all() {
		keys = append(keys, g.key)
	}
	return keys
}

// Purge has the group's questions asked anew. Returned is how many answers this concerns. After a soft purge the answers of
// before are used if the upstream does not answer; else they are forgotten, and all that was
// learned of the group but which devices differ.
func (a *Answers[V]) Purge(key Key, soft bool) int {
	g := a.enter(key) // there may be copies of what memory has forgotten
	n := a.purgeLocked(g, soft)
	g.mu.Unlock()
	if !soft {
		a.tell(g, &news[V]{drop: true, mark: true})
	}
	return n
}

func (a *Answers[V]) purgeLocked(g *group[V], soft bool) int {
	n := 0
	for _, s := range g.slots.Values() {
		if s.has {
			n++
		}
		s.failures, s.err, s.retryAt, s.alone = 0, nil, 0, 0 // what was purged may be mended, too
	}
	g.forgetRefusalLocked()
	g.notBefore = a.now()
	if !soft {
		g.epoch++
		g.forgotten = a.now()
		g.slots.Purge()
		g.known = false
		g.differing = differing{auto: g.auto, left: checkBurst, refilledAt: a.now()}
	}
	a.accountLocked(g)
	return n
}

// Retune changes the budget of bytes.
func (a *Answers[V]) Retune(maxBytes int64) {
	a.max.Store(maxBytes)
	if a.bytes.Load() > maxBytes {
		a.sweep()
	}
}

// answerCounters count what Answers does.
type answerCounters struct {
	asks, notAsked, failures, refusals, busy, checks, marks, unmarks, evicted atomic.Uint64
}

// AnswersStats says what Answers holds and has done.
type AnswersStats struct {
	Groups, Marked, Answers int
	Bytes                   int64
	States                  map[State]uint64 // how often Get answered in each

	Asks     uint64 // requests to upstreams
	Failures uint64 // of those, without an answer
	Refusals uint64 // of those, with a refusal
	NotAsked uint64 // requests that were not made, as the upstream was known to fail
	Busy     uint64 // requests that were not made, for too many unknown groups
	Checks   uint64 // requests that checked whether a shared answer is right for a device
	Marks    uint64 // groups that were found to differ between devices
	Unmarks  uint64 // groups that were found not to differ any longer
	Evicted  uint64 // answers that were forgotten for want of memory
}

// Stats returns what Answers holds and has done.
func (a *Answers[V]) Stats() AnswersStats {
	s := AnswersStats{
		Bytes: a.bytes.Load(), States: make(map[State]uint64, states),
		Asks: a.counts.asks.Load(), Failures: a.counts.failures.Load(), Refusals: a.counts.refusals.Load(),
		NotAsked: a.counts.notAsked.Load(), Busy: a.counts.busy.Load(), Checks: a.counts.checks.Load(),
		Marks: a.counts.marks.Load(), Unmarks: a.counts.unmarks.Load(), Evicted: a.counts.evicted.Load(),
	}
	for i := range states {
		s.States[i] = a.states[i].Load()
	}
	for g := range a.all() {
		g.mu.Lock()
		s.Groups++
		if g.auto && g.marked {
			s.Marked++
		}
		for _, p := range g.slots.Values() {
			if p.has {
				s.Answers++
			}
		}
		g.mu.Unlock()
	}
	return s
}
