package stats

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// ForwarderOptions configure a Forwarder.
type ForwarderOptions struct {
	Spool     *Spool
	Collector Collector
	// Concurrency is how many requests are on their way at most. Default: 8.
	Concurrency int
	// Limits bound a batch. Default: 200 events, which is what phones send at most, so that a collector of phones takes
	// it, and 1 MiB.
	Limits BatchLimits
	// Report is told why delivery fails, when it begins to and when the reason changes, and with nil when it works again. It
	// is called by one goroutine at a time, and holds up a worker meanwhile; it must not call Close. Nil: nobody is told.
	Report func(error)
}

// Forwarder delivers what is in a spool to a collector.
//
// The lanes of all apps take turns, app by app, so that an app with a million events holds no other up. A lane has one request
// on its way at a time. Batches grow by themselves: while a lane waits for an answer, the events for its next request gather.
//
// What fails waits, alone where it can. The collector as a whole (no connection, 429, 5xx, a refused key) stops everything, and
// then one request at a time tries whether it is back, each from another lane. An app that it does not know stops that app. A
// single event that it cannot process stops that device.
type Forwarder struct {
	spool       *Spool
	limits      BatchLimits
	concurrency int
	report      func(error)
	ctx         context.Context // of the requests; ends when Close has waited long enough
	cancel      context.CancelFunc
	closing     chan struct{} // closed when Close begins
	workers     sync.WaitGroup

	telling sync.Mutex // held while Report runs
	told    string     // code of the failure that Report knows; guarded by telling

	mu          sync.Mutex
	collector   Collector // guarded by mu, as all that follows
	loopID      string    // of the spool, as the last batch had it; empty: none was sent yet
	turns       turns
	timer       *time.Timer
	running     int // workers
	closed      bool
	accepted    uint64 // batches that the collector took
	refusals    int    // events refused with their request as a whole, since it said anything else of one
	idle        idleness
	shrunk      int // bytes of a batch, until shrunkUntil
	shrunkUntil time.Time
	counts      forwardCounts
}

type forwardCounts struct {
	delivered, retried, dead, batches uint64
	ok, retry, split, refused         uint64
}

// ForwarderStats tell what a forwarder did since its start, and how it is.
type ForwarderStats struct {
	Delivered uint64 // events
	Retried   uint64 // events that were not taken and are sent again, each time
	Dead      uint64 // events that went to the dead letters
	Batches   uint64 // batches that ended
	// Requests are batches that were sent, by result: "ok", "retry" (to be sent again), "split" (refused, and sent again in
	// halves), "refused" (a single event, or too many events in a row).
	Requests map[string]uint64

	// Failing says why nothing is delivered; nil: it works, as far as anyone knows.
	Failing error
	Since   time.Time // when it began to fail
	Until   time.Time // when the next request tries whether it works again; zero where each does, as the collector answers
	// WaitingApps are the apps that the collector does not take for now, HeldDevices the devices.
	WaitingApps, HeldDevices int
}

// NewForwarder returns a forwarder that does nothing until Start.
func NewForwarder(o ForwarderOptions) *Forwarder {
	if o.Concurrency <= 0 {
		o.Concurrency = 8
	}
	if o.Limits.Events <= 0 {
		o.Limits.Events = 200
	}
	if o.Limits.Bytes <= 0 {
		o.Limits.Bytes = 1 << 20
	}
	if o.Report == nil {
		o.Report = func(error) {}
	}
	f := &Forwarder{
		spool: o.Spool, collector: o.Collector, concurrency: o.Concurrency, limits: o.Limits, report: o.Report,
		closing: make(chan struct{}), turns: newTurns(),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Start begins to deliver. It is called once.
func (f *Forwarder) Start() { f.spool.Watch(f.wake) }

// wake is told by the spool that a lane has events.
func (f *Forwarder) wake(l Lane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.turns.wake(l, time.Now())
		f.dispatchLocked()
	}
}

// Use has everything go to another collector from now on, or to the same with other headers, and tries at once what waits.
func (f *Forwarder) Use(c Collector) {
	f.mu.Lock()
	old := f.collector
	f.collector = c
	f.refusals, f.shrunkUntil, f.idle = 0, time.Time{}, idleness{}
	if !f.closed {
		f.turns.retry(time.Now())
		f.dispatchLocked()
	}
	f.mu.Unlock()
	closeIdle(old)
}

func closeIdle(c Collector) {
	if c, ok := c.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Close begins no more requests and waits for those on their way. When ctx ends it cuts them off; their batches stay in the
// spool, and are sent again after the next start with the keys they have. It returns ctx's cause if it came to that.
func (f *Forwarder) Close(ctx context.Context) error {
	f.mu.Lock()
	if !f.closed {
		f.closed = true
		close(f.closing)
		if f.timer != nil {
			f.timer.Stop()
		}
	}
	f.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.workers.Wait()
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		f.mu.Lock()
		if f.running > 0 {
			err = context.Cause(ctx)
		}
		f.mu.Unlock()
		f.cancel()
		<-done
	}
	f.cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	closeIdle(f.collector)
	return err
}

// dispatchLocked starts workers for the lanes whose turn it is, and has the timer tell of the next that is waited for.
func (f *Forwarder) dispatchLocked() {
	if f.closed {
		return
	}
	now := time.Now()
	next, waits := f.turns.due(now)
	for f.running < f.concurrency {
		l := f.turns.next(now)
		if l == nil {
			break
		}
		f.running++
		f.workers.Go(func() { f.work(l) })
	}
	switch {
	case !waits:
		if f.timer != nil {
			f.timer.Stop()
		}
	case f.timer == nil:
		f.timer = time.AfterFunc(next.Sub(now), f.tick)
	default:
		f.timer.Reset(next.Sub(now))
	}
}

func (f *Forwarder) tick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dispatchLocked()
}

// work serves one lane after another, as long as there is one whose turn it is.
func (f *Forwarder) work(l *laneTurn) {
	for l != nil {
		more := f.serve(l)
		f.mu.Lock()
		now := time.Now()
		f.turns.release(l, more, now)
		if l = nil; !f.closed {
			l = f.turns.next(now)
		}
		if l == nil {
			f.running--
		}
		f.dispatchLocked()
		f.mu.Unlock()
		f.tell() // nothing may wait any more
	}
}

// serve delivers batches of a lane until it is another's turn. It reports whether the spool has more for it.
func (f *Forwarder) serve(l *laneTurn) (more bool) {
	b, ok := f.claim(l)
	for b != nil {
		f.mu.Lock()
		collector := f.collector
		f.loopID = loopID(b.Key) // a spool that was damaged and begun anew has another
		f.mu.Unlock()
		verdicts, err := collector.Deliver(f.ctx, b)
		if err != nil && f.ctx.Err() != nil { // cut off by Close, which says nothing about the collector
			if verdicts == nil {
				return true
			}
			err = nil
		}
		next, ok := f.conclude(l, b, verdicts, err)
		if !ok || !f.again(l) {
			return next != nil || !ok
		}
		b = next
	}
	return !ok
}

// claim takes the next batch of a lane from the spool.
func (f *Forwarder) claim(l *laneTurn) (b *Batch, ok bool) {
	limits, alone := f.limitsOf(l)
	b, ok = f.persist(func() (*Batch, error) { return f.spool.Claim(f.ctx, l.lane, limits, l.isHeld(l.claimed)) })
	if ok && alone {
		f.forgetAbsent(l, b)
	}
	return b, ok
}

// conclude does with a batch what its answer asks for, and gives the next one.
func (f *Forwarder) conclude(l *laneTurn, b *Batch, verdicts []Verdict, err error) (next *Batch, ok bool) {
	verdicts, failure := asFailure(b, verdicts, err)
	f.mu.Lock()
	todo, verdicts := f.judgeLocked(l, b, verdicts, failure, time.Now())
	f.dispatchLocked()
	f.mu.Unlock()
	f.tell()
	switch todo {
	case stepSplit:
		first, ok := f.persist(func() (*Batch, error) { return f.spool.Split(context.WithoutCancel(f.ctx), b) })
		if ok && first == nil { // the spool was full and has dropped its events
			return f.claim(l)
		}
		return first, ok
	case stepSettle:
		return f.settle(l, b, verdicts)
	default:
		return b, true
	}
}

// settle ends a batch, and gives the next one. An answer that is here is noted, whether Close cuts requests off or not. Dead
// letters that cannot be written hold neither a worker nor the rest of the batch.
func (f *Forwarder) settle(l *laneTurn, b *Batch, verdicts []Verdict) (next *Batch, ok bool) {
	limits, alone := f.limitsOf(l)
	ask := func() (*Batch, error) {
		return f.spool.Settle(context.WithoutCancel(f.ctx), b, verdicts, limits, l.isHeld(l.claimed))
	}
	next, ok = f.persist(func() (*Batch, error) {
		next, err := ask()
		if errors.Is(err, ErrStillTaking) {
			verdicts = f.keepDead(l, b, verdicts)
			next, err = ask()
		}
		return next, err
	})
	if ok && alone {
		f.forgetAbsent(l, next)
	}
	return next, ok
}

// keepDead leaves the dead of a batch in the spool, and has their devices wait, as they are sent and refused again after it.
func (f *Forwarder) keepDead(l *laneTurn, b *Batch, verdicts []Verdict) []Verdict {
	kept := slices.Clone(verdicts)
	n := uint64(0)
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for i := range kept {
		if kept[i].Fate == Dead {
			kept[i].Fate = Keep
			f.turns.restDevice(l, b.Events[i].Device, now)
			n++
		}
	}
	f.counts.dead -= n
	f.counts.retried += n
	whole, _ := wholeRefusals(verdicts)
	f.refusals -= min(whole, f.refusals)
	return kept
}

// limitsOf are those of the next batch of a lane. It marks the time the spool is asked.
func (f *Forwarder) limitsOf(l *laneTurn) (limits BatchLimits, alone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	l.claimed, l.woken = now, false
	limits = f.limits
	if now.Before(f.shrunkUntil) {
		limits.Bytes = min(limits.Bytes, f.shrunk)
	}
	if alone = l.wantsAlone(now); alone {
		limits.Events = 1
	}
	return limits, alone
}

func (f *Forwarder) forgetAbsent(l *laneTurn, b *Batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turns.forgetAbsent(l, b)
}

// again reports that a worker may go on with its lane.
func (f *Forwarder) again(l *laneTurn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.closed && f.turns.again(l, time.Now())
}

// persist asks the spool until the disk does its part: an answer that is not noted would be asked for again. The spool itself
// reports what is wrong. Not ok: the forwarder is being closed.
func (f *Forwarder) persist(ask func() (*Batch, error)) (b *Batch, ok bool) {
	wait := newBackoff(maxWait)
	for {
		b, err := ask()
		if err == nil {
			return b, true
		}
		timer := time.NewTimer(wait.NextBackOff())
		select {
		case <-timer.C:
		case <-f.closing:
			timer.Stop()
			return nil, false
		}
	}
}

// tell reports how it stands if Report does not know it yet.
func (f *Forwarder) tell() {
	f.telling.Lock()
	defer f.telling.Unlock()
	f.mu.Lock()
	failure, _ := f.failureLocked()
	f.mu.Unlock()
	switch {
	case failure == nil && f.told != "":
		f.told = ""
		f.report(nil)
	case failure != nil && f.told != failure.Code:
		f.told = failure.Code
		f.report(failure)
	}
}

// Stats tells what happened so far.
func (f *Forwarder) Stats() ForwarderStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &f.counts
	s := ForwarderStats{
		Delivered: c.delivered, Retried: c.retried, Dead: c.dead, Batches: c.batches,
		Requests:    map[string]uint64{"ok": c.ok, "retry": c.retry, "split": c.split, "refused": c.refused},
		Until:       f.turns.collector.until,
		HeldDevices: f.turns.held,
	}
	if failure, since := f.failureLocked(); failure != nil { // a nil *Failure is no nil error
		s.Failing, s.Since = failure, since
	}
	for _, a := range f.turns.apps {
		if a.gate.closed() {
			s.WaitingApps++
		}
	}
	return s
}
