package upstream

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// State is what a breaker lets through.
type State uint8

const (
	// Closed lets everything through.
	Closed State = iota
	// Open lets nothing through until it is time for the next probe.
	Open
	// HalfOpen waits for, or has under way, the one request that finds out whether the server works again.
	HalfOpen
)

// String is the state as status pages show it.
func (s State) String() string { return [...]string{"closed", "open", "half-open"}[s] }

// When a breaker opens, and for how long. The official edge opens for 5 minutes at the first 5xx, timeout or network error
// (protocol 8), and has other servers to turn to. Here there may be none. So it takes three failures with no success between
// them, and the first pause is short; it doubles, up to those 5 minutes. Each is 20 % longer or shorter, by chance, or all
// edges would come back at once. A failure that one app or one odd request is enough for does not count: see ErrUnknown,
// Question.Stranger and forward.settle.
const (
	tolerated  = 3
	firstPause = 5 * time.Second
	longPause  = 5 * time.Minute
	pauseBy    = 0.2
	// probeTime is longer than any probe takes. After it there is another, whatever became of the one before.
	probeTime = Budget + time.Second
)

// breaker decides whether a server is asked, by how it answered before.
type breaker struct {
	changed func(error) // told why it opens, and nil when it closes; never under mu

	mu       sync.Mutex
	open     bool // guarded by mu, as all below
	probing  bool // open, and a request is under way that finds out
	failures int  // in a row, while closed
	// epoch counts openings and closings. What was begun in one says nothing about another: a request that fails when the
	// server already works again must not shut it out, nor an old success let everyone in.
	epoch uint64
	since time.Time // of the state; zero: from the beginning
	next  time.Time // probe, while open
	err   error     // the last failure; nil once an answer came
	pause backoff.ExponentialBackOff

	sent, failed, refused uint64
}

func newBreaker(changed func(error)) *breaker {
	b := &breaker{changed: changed}
	b.pause.InitialInterval, b.pause.MaxInterval = firstPause, longPause
	b.pause.Multiplier, b.pause.RandomizationFactor = 2, pauseBy
	return b
}

// permit is the leave to send one request. Its holder ends it by exactly one of its methods.
type permit struct {
	*breaker
	epoch uint64
	probe bool
}

// ready says why a request would not be let through now.
func (b *breaker) ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.readyLocked(time.Now())
	if err != nil {
		b.refused++
	}
	return err
}

func (b *breaker) readyLocked(now time.Time) error {
	if b.open && now.Before(b.next) {
		return fmt.Errorf("%w: %w", ErrOpen, b.err)
	}
	return nil
}

// answers reports that a request would be let through at a time.
func (b *breaker) answers(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.readyLocked(now) == nil
}

// allow lets a request through, or says why not.
func (b *breaker) allow() (permit, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if err := b.readyLocked(now); err != nil {
		b.refused++
		return permit{}, err
	}
	b.sent++
	if b.open {
		b.probing, b.next = true, now.Add(probeTime)
	}
	return permit{b, b.epoch, b.open}, nil
}

// answered says that the server works.
func (p permit) answered() {
	if p.take(nil, time.Now()) {
		p.changed(nil)
	}
}

// failed says that it does not, and why.
func (p permit) failed(err error) {
	if p.take(err, time.Now()) {
		p.changed(err)
	}
}

// abandoned says that nothing was found out.
func (p permit) abandoned() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.abandonLocked()
}

// undecided says that the request failed, and that the request itself may be why: one that anybody can make must neither
// shut the server out for all others, nor let them in.
func (p permit) undecided() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.breaker.failed++
	p.abandonLocked()
}

func (p permit) abandonLocked() {
	if p.probe && p.epoch == p.breaker.epoch {
		p.probing, p.next = false, time.Now()
	}
}

// take notes how a request went, and reports whether the breaker opened or closed.
func (p permit) take(err error, now time.Time) bool {
	b := p.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.failed++
	}
	if p.epoch != b.epoch {
		return false
	}
	if err == nil {
		b.failures, b.err = 0, nil
		return b.closeLocked(now)
	}
	b.failures, b.err = b.failures+1, err
	b.probing = false
	if b.open {
		b.next = now.Add(b.pause.NextBackOff())
		return false
	}
	if b.failures < tolerated {
		return false
	}
	b.open, b.since, b.next = true, now, now.Add(b.pause.NextBackOff())
	b.epoch++
	return true
}

// closeLocked closes the breaker if it is open, and reports that it was.
func (b *breaker) closeLocked(now time.Time) bool {
	if !b.open {
		return false
	}
	b.open, b.probing, b.since = false, false, now
	b.pause.Reset()
	b.epoch++
	return true
}

// health tells how the breaker stands.
func (b *breaker) health() Health {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := Health{Since: b.since, Requests: b.sent, Failures: b.failed, Refused: b.refused}
	if b.err != nil {
		h.Error = b.err.Error()
	}
	if b.open {
		h.State, h.Next = Open, b.next
		if b.probing || !time.Now().Before(b.next) {
			h.State = HalfOpen
		}
	}
	return h
}

// The errors that say why a server was not asked, or not believed.
var (
	// ErrNotSent: no server can have seen anything of the request.
	ErrNotSent = errors.New("it was not sent")
	// ErrOpen: it failed just now, and is left alone.
	ErrOpen = errors.New("left alone after failures")
	// ErrBusy: too many requests are under way there, and none of them ended in time.
	ErrBusy = errors.New("too many requests are under way")
	// ErrUnconfirmed: one server refuses the app, and not all others could be asked whether they do too. So one has answered.
	ErrUnconfirmed = errors.New("a refusal that not every upstream confirms")
)
