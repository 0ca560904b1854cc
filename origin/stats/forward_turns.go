package stats

import (
	"container/heap"
	"container/list"
	"slices"
	"time"
)

// turns says whose turn it is: apps one after another, and within an app its lanes. It knows only lanes that have events, and
// is guarded by the forwarder's mutex.
type turns struct {
	began     time.Time // what shared times are counted from
	collector gate
	apps      map[uint64]*appTurn
	lanes     map[Lane]*laneTurn
	ready     list.List // apps with ready lanes, if their gate lets one through
	waiting   waiters
	held      int // devices, in all lanes
	maxHeld   int
}

func newTurns() turns {
	return turns{began: time.Now(), collector: gate{longest: maxWait}, apps: map[uint64]*appTurn{}, lanes: map[Lane]*laneTurn{}, maxHeld: maxHeld}
}

// appTurn is an app with events.
type appTurn struct {
	gate  gate
	id    uint64
	ready []*laneTurn
	lanes int           // in turns
	place *list.Element // in turns.ready; nil: not there
}

// laneState is where a lane stands.
type laneState uint8

const (
	laneReady   laneState = iota // in its app's ready
	laneBusy                     // a worker has it
	laneWaiting                  // for a time, or for new events
)

// laneTurn is a lane with events.
type laneTurn struct {
	lane  Lane
	app   *appTurn
	state laneState
	woken bool // events came while it was busy

	waiter                 waiter
	collectorPass, appPass pass
	held                   map[uint64]*heldDevice // only the worker that has the lane looks at it, and changes it
	claimed                time.Time              // when the spool was asked last
	rest                   time.Time              // until when the whole lane waits
	suspicion              suspicion
}

// waiter is something that waits for a time.
type waiter struct {
	at    time.Time
	index int // in waiters, from 1; 0: it does not wait
	lane  *laneTurn
	app   *appTurn // both nil: the collector
}

// waiters is a heap by time.
type waiters []*waiter

func (w waiters) Len() int           { return len(w) }
func (w waiters) Less(i, j int) bool { return w[i].at.Before(w[j].at) }
func (w waiters) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].index, w[j].index = i+1, j+1
}

// Push implements heap.Interface.
func (w *waiters) Push(x any) {
	added := x.(*waiter)
	*w = append(*w, added)
	added.index = len(*w)
}

// Pop implements heap.Interface.
func (w *waiters) Pop() any {
	last := len(*w) - 1
	removed := (*w)[last]
	(*w)[last] = nil
	*w = (*w)[:last]
	removed.index = 0
	return removed
}

// wait has a waiter wait until a time. The zero time ends its wait.
func (t *turns) wait(w *waiter, until time.Time) {
	w.at = until
	switch {
	case until.IsZero() && w.index > 0:
		heap.Remove(&t.waiting, w.index-1)
	case until.IsZero():
	case w.index > 0:
		heap.Fix(&t.waiting, w.index-1)
	default:
		heap.Push(&t.waiting, w)
	}
}

// due ends the waits whose time has come, and tells when the next one ends.
func (t *turns) due(now time.Time) (time.Time, bool) {
	for len(t.waiting) > 0 {
		w := t.waiting[0]
		if now.Before(w.at) {
			return w.at, true
		}
		heap.Pop(&t.waiting)
		switch {
		case w.lane != nil:
			t.makeReady(w.lane, now)
		case w.app != nil:
			t.queue(w.app, now)
		}
	}
	return time.Time{}, false
}

// wake notes that a lane has events.
func (t *turns) wake(id Lane, now time.Time) {
	l := t.lanes[id]
	if l == nil {
		l = t.add(id)
	}
	switch {
	case l.state == laneBusy:
		l.woken = true
	case l.state == laneWaiting && !now.Before(l.rest): // events of devices that are not held, maybe
		t.makeReady(l, now)
	}
}

// add adds a lane that waits for nothing.
func (t *turns) add(id Lane) *laneTurn {
	a := t.apps[id.app]
	if a == nil {
		a = &appTurn{id: id.app, gate: gate{longest: maxAppWait}}
		a.gate.waiter.app = a
		t.apps[id.app] = a
	}
	a.lanes++
	l := &laneTurn{lane: id, app: a, state: laneWaiting}
	l.waiter.lane = l
	t.lanes[id] = l
	return l
}

func (t *turns) makeReady(l *laneTurn, now time.Time) {
	t.wait(&l.waiter, time.Time{})
	l.state = laneReady
	l.app.ready = append(l.app.ready, l)
	t.queue(l.app, now)
}

// queue puts an app where it belongs: among those whose turn comes, or not.
func (t *turns) queue(a *appTurn, now time.Time) {
	belongs := len(a.ready) > 0 && a.gate.lets(now)
	switch {
	case belongs && a.place == nil:
		a.place = t.ready.PushBack(a)
	case !belongs && a.place != nil:
		t.ready.Remove(a.place)
		a.place = nil
	}
}

// next gives the lane whose turn it is; nil if there is none. It has gone through both gates.
func (t *turns) next(now time.Time) *laneTurn {
	if t.ready.Len() == 0 || !t.collector.lets(now) {
		return nil
	}
	a := t.ready.Remove(t.ready.Front()).(*appTurn)
	a.place = nil
	l := a.ready[0]
	a.ready = slices.Delete(a.ready, 0, 1)
	l.state = laneBusy
	t.enter(l)
	t.queue(a, now)
	return l
}

func (t *turns) enter(l *laneTurn) {
	l.collectorPass, l.appPass = t.collector.enter(), l.app.gate.enter()
}

// again takes a busy lane through the gates a second time, if nobody else is waiting for a turn.
func (t *turns) again(l *laneTurn, now time.Time) bool {
	if t.ready.Len() > 0 || now.Before(l.rest) || !t.collector.lets(now) || !l.app.gate.lets(now) {
		return false
	}
	t.enter(l)
	return true
}

// release ends a lane's turn. more: the spool has more for it, whatever devices are held.
func (t *turns) release(l *laneTurn, more bool, now time.Time) {
	t.collector.leave(l.collectorPass)
	l.app.gate.leave(l.appPass)
	more = more || l.woken
	l.state, l.woken = laneWaiting, false
	t.forgetHeld(l, more, now)
	switch until := l.heldUntil(); {
	case now.Before(l.rest):
		t.wait(&l.waiter, l.rest)
	case more:
		t.makeReady(l, now)
	case !until.IsZero():
		t.wait(&l.waiter, until)
	default:
		t.remove(l)
	}
	t.queue(l.app, now)
}

// remove forgets a lane without events, and with the last one its app.
func (t *turns) remove(l *laneTurn) {
	delete(t.lanes, l.lane)
	if l.app.lanes--; l.app.lanes == 0 {
		t.wait(&l.app.gate.waiter, time.Time{})
		delete(t.apps, l.app.id)
	}
}

// fail closes a gate, or has it closed for longer.
func (t *turns) fail(g *gate, p pass, failure *Failure, now time.Time) {
	g.fail(p, now, failure)
	if g.closed() {
		t.wait(&g.waiter, g.until)
	}
}

// succeed opens a gate.
func (t *turns) succeed(g *gate, p pass) {
	if g.succeed(p) {
		t.wait(&g.waiter, time.Time{})
	}
}

// retry has everything that waits for a gate try again now.
func (t *turns) retry(now time.Time) {
	t.collector.retry(now)
	t.wait(&t.collector.waiter, time.Time{})
	for _, a := range t.apps {
		a.gate.retry(now)
		t.wait(&a.gate.waiter, time.Time{})
		t.queue(a, now)
	}
}
