package cache

import (
	"context"
	"errors"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// What an Asker's error may be, and what Get answers besides an Asker's own error.
var (
	// ErrNotAsked is what the error of an Asker wraps if it sent no request, because the upstream is known to fail. It
	// delays the next try as any failure does, but is counted apart.
	ErrNotAsked = errors.New("the upstream is not asked while it fails")
	// ErrRefused says that the upstream refuses a group it used to answer, and that nothing is known to answer instead.
	ErrRefused = errors.New("the upstream refuses what it used to answer")
	// ErrAnswered is what the error of an Asker wraps if the upstream has answered, with nothing that is of use: it has counted
	// the request.
	ErrAnswered = errors.New("the upstream's answer is of no use")
	errNoReply  = errors.New("the upstream has not answered in time")
)

// PerDevice says whether an upstream's answers may differ between devices that ask the same.
type PerDevice uint8

// The modes.
const (
	PerDeviceAuto PerDevice = iota // found out, see Answers
	PerDeviceOn                    // they may: nothing is shared
	PerDeviceOff                   // they do not: everything is shared, and never checked
)

// Verdict says what may be done with an answer of an upstream.
type Verdict uint8

// The verdicts.
const (
	Keep        Verdict = iota // by the ages
	Pass                       // it is for the one device that asked, this once; the upstream knows the group
	PassUnknown                // likewise, but it says nothing of the group, which stays a stranger if it is one
	PassAlone                  // likewise, but it says nothing of what others that ask the same are answered
	// Refused says that the upstream knows nothing of the whole group. It is believed of a group of which nothing was ever
	// known, for Ages.Negative; of any other it is an outage.
	Refused
)

// Reply is an upstream's answer to one question.
type Reply[V any] struct {
	Value   V
	Verdict Verdict
	Offer   string    // what it offers; empty if it offers nothing
	Until   time.Time // when it ceases to be usable whatever the ages say; zero if never
	// Shareable is false if it names the device, so that no other one may ever be given it.
	Shareable bool
}

// Asker asks the upstream a question as the given device, by one request. An error means that there is no answer: it
// failed, or it was not asked (ErrNotAsked). The context is not that of a client, and the call may come after the Get
// it was made for has returned, as another device, and beside others of its kind: an Asker owns all that it needs.
//
// For another device, like is what the upstream answered to one that asked the same: a request as that device must look
// like the one that brought it. What the asking device says besides, beyond the question's key, is its own.
type Asker[V any] func(ctx context.Context, device string, like V) (Reply[V], error)

// Terms say how the answers of one upstream are kept. They must not be changed once in use.
type Terms struct {
	Mode PerDevice
	Ages Ages
	// Admit is asked before a group of which nothing is known costs the upstream a request. What it grants is meant for groups
	// that the upstream does not know. So Dismiss is called, which may be nil, if the request was for nothing of the kind: if it
	// brought no answer, not even one of no use (ErrAnswered), or one that shows that the upstream knows the group (Keep, Pass),
	// as known tells.
	Admit   func() bool
	Dismiss func(known bool)
}

// Question is what a device asks. It must not be used by two calls of Get at once.
type Question[V any] struct {
	Group  Key    // questions that are purged, marked and forgotten together
	Key    string // all that the answer depends on, but for the device
	Device string
	// Asker makes what asks the upstream. It is called only if the upstream must be asked, while Get runs. Nothing else of
	// the question is kept without being copied: the strings may lie in a buffer that is used again.
	Asker func() Asker[V]

	// Asked is set by Get. It tells that the Asker was called as this very device for this Get, or is about to be: by a request
	// that Get began, also if it goes on behind the answer, or by one of the same key and device that it waited for. It is false
	// if the upstream has not seen the question: the answer is from memory, from a copy, or from a request made as another device,
	// or the Asker has sent none (ErrNotAsked). Only of a request that still goes on it is not known yet whether it will be sent.
	Asked bool
}

// AnswerKey names a kept answer. Its Device is empty if the answer is shared.
type AnswerKey struct {
	Group       Key
	Key, Device string
}

// Kept is an answer as it is kept.
type Kept[V any] struct {
	Value     V
	Offer     string
	Validated time.Time // when the upstream last gave it
	Until     time.Time // as in Reply
}

// AnswersOptions are what Answers needs of the outside. The functions that may be nil are never called under a lock, nor, but
// for SaveDiffers, on a client's time.
type AnswersOptions[V any] struct {
	MaxBytes int64                    // of all that is kept, with its bookkeeping
	Size     func(V) int64            // of an answer, in bytes
	Same     func(a, b V) bool        // whether two answers say the same to any device
	Report   func(Key, Event, string) // told of what an operator should know of a group, with a detail; may be nil

	Restore func(AnswerKey) (Kept[V], bool) // the last good copy, if there is one; may be nil
	Save    func(AnswerKey, Kept[V])        // asks for a copy to be kept; must not block; may be nil
	Drop    func(Key)                       // asks for the group's copies to be removed; must not block; may be nil

	// Recall returns what outlasted the group's last time in memory. It is asked once before the group's first request, as long
	// as the group stays in memory, and may block. May be nil: then a group is unknown until a copy is restored or the upstream
	// answers.
	Recall func(group Key) Recalled
	// SaveDiffers asks for it to be kept that the device differs, also beyond a Drop. Each Differs calls it; it must not block;
	// may be nil.
	SaveDiffers func(group Key, device string)
	// SaveMark asks for it to be kept that the group's devices were found to differ, also beyond a Drop, or not to, in place of
	// what was found before. It must not block; may be nil.
	SaveMark func(group Key, m Mark)
}

// Recalled is what was kept of a group.
type Recalled struct {
	// Known: a copy of an answer is kept, or about to be. Then the upstream has answered for the group, so a refusal is an outage,
	// whatever question comes first.
	Known     bool
	Differing []Differing // the devices that SaveDiffers was given, the oldest first
	Mark      Mark        // the newest that SaveMark was given
}

// Differing is a device that is asked for by itself, as it may be answered otherwise since a time.
type Differing struct {
	Device string
	Since  time.Time
}

// Mark says how often in a row the devices of a group were found to differ, and when they are to be compared again. The zero
// Mark says that they were not.
type Mark struct {
	Rounds    int
	ExamineAt time.Time
}

// Event is what an operator should know of a group.
type Event uint8

// The events.
const (
	Marked      Event = iota // answers differ, between devices or each time, so each device is asked for by itself from now on
	StillMarked              // that was found out before the group was forgotten, or the edge restarted
	Unmarked                 // they have not differed for long, so they are shared again
	OutageBegan              // the upstream fails for this group, or refuses it; last good answers are given
	OutageEnded
)

func (e Event) String() string {
	return [...]string{"marked", "still marked", "unmarked", "outage began", "outage ended"}[e]
}

// Answers keeps what upstreams answered, and shares an answer among those who ask the same.
//
// An answer is used by the rules of Ages, as a document of Memory is, and equal questions that come while one is being
// asked wait for its answer. What is special here is that an upstream may answer each device differently, for reasons
// an edge cannot see: a device may be pinned to a version, or belong to the tenth of all devices that try one out. See
// answersauto.go for how this is found out.
//
// A client's request asks the upstream at most once. What else is to be asked, is asked behind.
type Answers[V any] struct {
	options AnswersOptions[V]
	start   time.Time
	seed    maphash.Seed
	ctx     context.Context // of the requests to upstreams; ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup // requests to upstreams

	shards   [groupShards]groupShard[V]
	max      atomic.Int64
	bytes    atomic.Int64
	sweeping sync.Mutex

	states [states]atomic.Uint64
	counts answerCounters
}

// NewAnswers returns an empty Answers.
func NewAnswers[V any](o AnswersOptions[V]) *Answers[V] {
	a := &Answers[V]{options: o, start: time.Now(), seed: maphash.MakeSeed()}
	a.max.Store(o.MaxBytes)
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// Close ends all requests to upstreams and waits for them. No other method may run beside it or after it.
func (a *Answers[V]) Close() {
	a.cancel()
	a.running.Wait()
}

// Get returns the answer to a question. In the state Negative it is the refusal of a group of which nothing is known. In the
// state Unavailable there is none, and the error is ErrBusy, ErrRefused, the upstream's, or that of ctx.
func (a *Answers[V]) Get(ctx context.Context, t *Terms, q *Question[V]) (V, State, error) {
	v, state, err := a.get(ctx, t, q)
	a.states[state].Add(1)
	return v, state, err
}

func (a *Answers[V]) get(ctx context.Context, t *Terms, q *Question[V]) (V, State, error) {
	q.Asked = false
	check := t.Mode == PerDeviceAuto && rand.Uint32N(checkEvery) == 0
	if g := a.find(q.Group); g != nil {
		g.mu.Lock()
		next := g.decideLocked(t, q, a.now(), never, check)
		g.mu.Unlock()
		if next.decided && !next.ask {
			return next.value, next.state, next.err
		}
	}
	w := &inquiry[V]{
		group: Key{strings.Clone(q.Group.Scope), strings.Clone(q.Group.Name)},
		key:   strings.Clone(q.Key), device: strings.Clone(q.Device), terms: t, asker: q.Asker(),
	}
	v, state, err := a.inquire(ctx, w, check)
	q.Asked = w.asked
	return v, state, err
}

// inquiry is a question of which the upstream may be asked, in memory of its own.
type inquiry[V any] struct {
	group       Key
	key, device string
	terms       *Terms
	asker       Asker[V]
	asked       bool // as in Question; of the Get alone, not of the requests it began
}

// inquire asks the upstream, or waits until somebody else's request has brought what answers the question.
func (a *Answers[V]) inquire(ctx context.Context, w *inquiry[V], check bool) (V, State, error) {
	t, q := w.terms, &Question[V]{Group: w.group, Key: w.key, Device: w.device}
	began := a.now()
	whenFresh, since := Fresh, never
	for {
		g := a.enter(q.Group)
		next := g.decideLocked(t, q, a.now(), since, check)
		if next.ask {
			next.asking = a.beginLocked(g, q, w)
		}
		g.mu.Unlock()
		c := next.asking
		own := c != nil && c.of == slotID{q.Key, q.Device}
		if next.decided {
			w.asked = w.asked || own // behind the answer
			if next.state == Fresh {
				next.state = whenFresh
			}
			return next.value, next.state, next.err
		}
		if err := c.wait(ctx, next.patience-time.Duration(a.now()-began)); err != nil {
			w.asked = w.asked || own // it goes on
			return a.giveUp(t, q, err)
		}
		w.asked = w.asked || own && c.sent
		switch {
		case c.replied && own:
			return c.reply.Value, c.state, nil
		case errors.Is(c.err, ErrBusy) || a.ctx.Err() != nil: // asking again would end the same way
			return a.giveUp(t, q, c.err)
		}
		whenFresh, since, check = Loaded, began, false
	}
}

// giveUp returns the best that there is without waiting.
func (a *Answers[V]) giveUp(t *Terms, q *Question[V], err error) (V, State, error) {
	if g := a.find(q.Group); g != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		now := a.now()
		if _, s := g.slotLocked(t, q, now); !g.servesLocked(t, s, q) {
			if last, ok := g.lastGoodLocked(t, q, now); ok {
				return last, Stale, nil
			}
		} else if s.usable(t, now) {
			return s.value, Stale, nil
		}
	}
	var none V
	return none, Unavailable, err
}

// never is a time that does not come.
const never = int64(math.MaxInt64)

// now is the clock of Answers: monotonic, so that a step of the wall clock ages nothing.
func (a *Answers[V]) now() int64 { return int64(time.Since(a.start)) }

// clock turns a time of the wall into one of Answers' clock. The zero time stays zero.
func (a *Answers[V]) clock(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return a.now() + int64(time.Until(t))
}
