package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// What a Source's Fetch may answer besides a document, and what Get answers when there is none. Any other error means
// that the origin could not be asked.
var (
	// ErrNotModified says the document is still the one the validators describe.
	ErrNotModified = errors.New("document is unchanged")
	// ErrNotFound says the origin has no such document. It is believed for Ages.Negative, and never of a document that is
	// known: that one may have been deleted by mistake, or the origin replaced by an empty one.
	ErrNotFound = errors.New("no such document")
	// ErrBusy says that too many unknown names were asked for of late, so the origin was not asked for this one.
	ErrBusy = errors.New("too many unknown documents asked for")
)

// Key names a document: equal names in different scopes are different documents.
type Key struct{ Scope, Name string }

// Document is what an origin holds, with what it said to recognise it by.
type Document struct {
	Raw      []byte
	ETag     string
	Modified time.Time
}

// Ages say how long a document is used, counted from when the origin last confirmed it.
type Ages struct {
	Fresh      time.Duration // answered from memory
	StaleWhile time.Duration // so much longer: answered at once, refreshed behind the answer
	Stale      time.Duration // the end, while the origin fails
	Negative   time.Duration // how long an unknown name is remembered as unknown
}

// Source says where the documents of one scope come from and what they mean. It must not be changed once in use.
type Source[V any] struct {
	Scope string
	Ages  Ages

	// Fetch asks the origin for a document, unless prev still describes it. Its context is not that of a request.
	Fetch func(ctx context.Context, name string, prev Document) (Document, error)
	// Decode compiles a document and says how many bytes the result takes. memo is what Replace returned when the
	// document was fetched. Decode may keep neither slice.
	Decode func(name string, raw, memo []byte) (V, int64, error)
	// Replace is called when next takes the place of old, before anyone else sees next; raw is the document that next was
	// compiled from, and not to be kept. What it returns is kept on disk with the document. It may be nil.
	Replace func(old, next V, raw []byte) (memo []byte)
	// Publish is told of each value that takes its place in memory, once others can see it; sum is the SHA-256 of its
	// document. A document that memory has no room for is published each time it is compiled. It may be nil.
	Publish func(name string, v V, sum [sha256.Size]byte)
	// Admit is asked before a name of which nothing is known costs the origin a request.
	Admit func() bool
	// Report is told how each request to the origin ended, nil for well, and whether the document was known before.
	Report func(name string, known bool, err error)
	// ReportDisk is told of a last good copy that could not be read or written.
	ReportDisk func(name string, err error)
}

// State says how an answer of Get came about.
type State uint8

// The states.
const (
	Fresh       State = iota // from memory, young enough
	Stale                    // older; a refresh goes on, or has failed
	Loaded                   // the caller waited for disk or origin
	Negative                 // known to be unknown
	Unavailable              // nothing known, and the origin could not be asked
	states                   // how many there are
)

func (s State) String() string {
	return [...]string{"fresh", "stale", "loaded", "negative", "unavailable"}[s]
}

// The bounds of waiting and retrying.
const (
	loadTimeout = 30 * time.Second // one request to the origin, with its body
	// firstWait is how long a caller waits for a document of which nothing is known. Clients give up after 10 to 20 s
	// (protocol 1.7), and an answer they read beats a time-out.
	firstWait = 8 * time.Second
	// staleWait is how long a caller waits rather than take a document older than Ages allow.
	staleWait = 2 * time.Second
	// After a failed request the next one waits, longer each time: half to one and a half of these.
	retryFirst, retryMost = 2 * time.Second, 30 * time.Second
	// forcedEvery is the least time between two requests that callers force for one document.
	forcedEvery = time.Second
	// maxOutcomes bounds how many unknown and failing names are remembered.
	maxOutcomes = 1 << 16
)

// Memory keeps compiled documents within a budget of bytes, in front of their last good copies on disk.
//
// Ristretto, below it, is a hint and not a store: it may refuse a document, or show it late. So a loader hands its result
// back by itself, and a document that memory has no room for is compiled from its copy on disk, by the same rules.
type Memory[V any] struct {
	lastGood *LastGood
	cache    *ristretto.Cache[uint64, *entry[V]]
	seed     maphash.Seed
	start    time.Time
	ctx      context.Context // of the requests to origins; ends with Close
	cancel   context.CancelFunc

	loading    flight[Key, *entry[V]] // from disk, else the first request to the origin
	refreshing flight[Key, *entry[V]] // requests to the origin for documents that are known

	mu       sync.Mutex
	outcomes *simplelru.LRU[Key, outcome] // guarded by mu

	states [states]atomic.Uint64
}

// entry is one document in memory.
type entry[V any] struct {
	key       Key
	value     V
	size      int64
	doc       Document // without Raw
	sum       [sha256.Size]byte
	memo      []byte
	validated atomic.Int64           // when the origin last confirmed it, on Memory's clock
	unsaved   atomic.Pointer[[]byte] // its text, while that could not be written to disk
}

// cost is what e takes of memory.
func (e *entry[V]) cost() int64 {
	cost := e.size + int64(len(e.memo))
	if raw := e.unsaved.Load(); raw != nil {
		cost += int64(len(*raw))
	}
	return cost
}

// outcome remembers why the origin is not to be asked again for a while.
type outcome struct {
	until    int64
	failures int
	known    bool // there is a last good document
	err      error
}

// NewMemory returns a Memory of maxBytes in front of lastGood.
func NewMemory[V any](maxBytes int64, lastGood *LastGood) (*Memory[V], error) {
	store, err := ristretto.NewCache(&ristretto.Config[uint64, *entry[V]]{
		NumCounters: 1 << 20, MaxCost: maxBytes, BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, err
	}
	outcomes, err := simplelru.NewLRU[Key, outcome](maxOutcomes, nil)
	if err != nil {
		return nil, err
	}
	m := &Memory[V]{
		lastGood: lastGood, cache: store, seed: maphash.MakeSeed(), start: time.Now(), outcomes: outcomes,
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

// Retune changes the budget of bytes.
func (m *Memory[V]) Retune(maxBytes int64) { m.cache.UpdateMaxCost(maxBytes) }

// Close ends all requests to origins and waits for them. No other method may run beside it or after it: Ristretto's Close
// panics beside a Set.
func (m *Memory[V]) Close() {
	m.cancel()
	m.loading.wg.Wait()
	m.refreshing.wg.Wait()
	m.cache.Close()
}

// Counts returns how often Get answered in each state.
func (m *Memory[V]) Counts() map[State]uint64 {
	counts := make(map[State]uint64, states)
	for s := range states {
		counts[s] = m.states[s].Load()
	}
	return counts
}

// Get returns the document called name, by the ages of the source. The error is ErrNotFound, ErrBusy, or why the origin
// could not be asked.
func (m *Memory[V]) Get(ctx context.Context, s *Source[V], name string) (V, State, error) {
	v, state, err := m.get(ctx, s, Key{s.Scope, name})
	m.states[state].Add(1)
	return v, state, err
}

func (m *Memory[V]) get(ctx context.Context, s *Source[V], key Key) (V, State, error) {
	if e := m.lookup(key); e != nil {
		return m.answer(ctx, s, e, Fresh)
	}
	e, err := m.load(ctx, s, key)
	if err != nil {
		return m.nothing(err)
	}
	return m.answer(ctx, s, e, Loaded)
}

func (m *Memory[V]) nothing(err error) (V, State, error) {
	var none V
	if errors.Is(err, ErrNotFound) {
		return none, Negative, err
	}
	return none, Unavailable, err
}

// answer decides by age whether e answers at once, or after a refresh. whenFresh is the state to tell if it does.
func (m *Memory[V]) answer(ctx context.Context, s *Source[V], e *entry[V], whenFresh State) (V, State, error) {
	age := m.age(e)
	if age < s.Ages.Fresh {
		return e.value, whenFresh, nil
	}
	last, failed := m.outcome(e.key)
	usable := age < s.Ages.Stale
	if failed && last.until > m.now() {
		if usable {
			return e.value, Stale, nil
		}
		return m.nothing(last.err)
	}
	c := m.refreshing.start(e.key, func() (*entry[V], error) { return m.refresh(s, e) })
	if usable && (failed || age < s.Ages.Fresh+s.Ages.StaleWhile) {
		return e.value, Stale, nil
	}
	patience := staleWait
	if !usable {
		patience = firstWait // there is nothing better to say
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	switch refreshed, err := c.wait(wait); {
	case err == nil:
		return refreshed.value, Loaded, nil
	case usable:
		return e.value, Stale, nil
	default:
		return m.nothing(err)
	}
}

// Revalidate has the origin confirm the document, however young it is, because something outside suggests that there is
// a newer one. It does so at most once a second for one document; callers in between wait for the next time together.
// An error means the origin could not be asked.
func (m *Memory[V]) Revalidate(ctx context.Context, s *Source[V], name string) (V, error) {
	key := Key{s.Scope, name}
	var none V
	e := m.lookup(key)
	if e == nil {
		var err error
		if e, err = m.load(ctx, s, key); err != nil {
			return none, err
		}
	}
	if last, failed := m.outcome(key); failed && last.until > m.now() {
		return none, last.err
	}
	c := m.refreshing.start(key, func() (*entry[V], error) {
		e := m.current(s, e)
		if err := m.sleep(forcedEvery - m.age(e)); err != nil {
			return nil, err
		}
		return m.fetch(s, key, e)
	})
	wait, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	e, err := c.wait(wait)
	if err != nil {
		return none, err
	}
	return e.value, nil
}

func (m *Memory[V]) sleep(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-m.ctx.Done():
		return m.ctx.Err()
	}
}

// load gets a document that memory does not hold.
func (m *Memory[V]) load(ctx context.Context, s *Source[V], key Key) (*entry[V], error) {
	if last, ok := m.outcome(key); ok && !last.known && last.until > m.now() {
		return nil, last.err
	}
	c := m.loading.start(key, func() (*entry[V], error) {
		if e := m.lookup(key); e != nil { // a load that ended between our lookup and this flight
			return e, nil
		}
		if e := m.restore(s, key); e != nil {
			return e, nil
		}
		if !s.Admit() {
			return nil, ErrBusy
		}
		return m.fetch(s, key, nil)
	})
	wait, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	return c.wait(wait)
}

// restore compiles the last good copy on disk. It returns nil if there is none that can be used.
func (m *Memory[V]) restore(s *Source[V], key Key) *entry[V] {
	c, err := m.lastGood.load(key)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.ReportDisk(key.Name, err)
		}
		return nil
	}
	e := m.newEntry(key, c.Document)
	e.memo = bytes.Clone(c.Memo) // else it would hold on to the text behind it
	err = safely(func() (err error) {
		e.value, e.size, err = s.Decode(key.Name, c.Raw, c.Memo)
		return err
	})
	if err != nil {
		s.ReportDisk(key.Name, err)
		return nil
	}
	age := time.Since(c.Validated)
	if age < 0 { // the clock was set back, or somebody copied the directory
		age = s.Ages.Fresh
	}
	e.validated.Store(m.now() - int64(age))
	if now := m.lookup(key); now != nil { // a request ended meanwhile, and what it brought must not be undone
		return now
	}
	m.keep(s, e)
	return e
}

// refresh has the origin confirm a document that was found too old. It looks again first: between the finding and this
// flight another one may have ended, whose result must not be asked for twice.
func (m *Memory[V]) refresh(s *Source[V], e *entry[V]) (*entry[V], error) {
	e = m.current(s, e)
	if m.age(e) < s.Ages.Fresh {
		return e, nil
	}
	if last, failed := m.outcome(e.key); failed && last.until > m.now() {
		return nil, last.err
	}
	return m.fetch(s, e.key, e)
}

// current returns what has taken the place of e, or e. Where memory has no room for it, the copy on disk tells.
func (m *Memory[V]) current(s *Source[V], e *entry[V]) *entry[V] {
	if now := m.lookup(e.key); now != nil {
		return now
	}
	if now := m.restore(s, e.key); now != nil && m.age(now) < m.age(e) {
		return now
	}
	return e
}

// fetch asks the origin for the document and publishes what it says. prev is what is known of it, or nil.
func (m *Memory[V]) fetch(s *Source[V], key Key, prev *entry[V]) (*entry[V], error) {
	ctx, cancel := context.WithTimeout(m.ctx, loadTimeout)
	defer cancel()
	var next *entry[V]
	err := safely(func() (err error) {
		next, err = m.ask(ctx, s, key, prev)
		return err
	})
	if m.ctx.Err() != nil {
		return prev, m.ctx.Err() // closing: this says nothing about the origin
	}
	s.Report(key.Name, prev != nil, err)
	if err != nil {
		return nil, m.failed(s, key, prev, err)
	}
	m.confirmed(s, next)
	return next, nil
}

func (m *Memory[V]) ask(ctx context.Context, s *Source[V], key Key, prev *entry[V]) (*entry[V], error) {
	var known Document
	if prev != nil {
		known = prev.doc
	}
	doc, err := s.Fetch(ctx, key.Name, known)
	switch {
	case err == nil:
		return m.publish(s, key, prev, doc)
	case prev == nil || !errors.Is(err, ErrNotModified):
		return nil, err
	}
	if raw := prev.unsaved.Load(); raw != nil {
		m.save(s, prev, *raw)
	}
	return prev, nil
}

// safely returns a panic of do as an error. What a document does to its Source is to be retried as if it were invalid,
// not by each caller anew.
func safely(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic while loading: %v", p)
		}
	}()
	return do()
}

// publish compiles a new revision and puts it in the place of prev.
func (m *Memory[V]) publish(s *Source[V], key Key, prev *entry[V], doc Document) (*entry[V], error) {
	next := m.newEntry(key, doc)
	if prev != nil && next.sum == prev.sum { // the same content under new validators
		next.value, next.size, next.memo = prev.value, prev.size, prev.memo
	} else {
		var err error
		if next.value, next.size, err = s.Decode(key.Name, doc.Raw, nil); err != nil {
			return nil, err
		}
		if prev != nil && s.Replace != nil {
			next.memo = s.Replace(prev.value, next.value, doc.Raw)
		}
	}
	m.save(s, next, doc.Raw)
	m.keep(s, next)
	return next, nil
}

// save writes the last good copy of e. If that fails e keeps the text, to be written when the origin next confirms it;
// the copy on disk, if any, is of an earlier revision then.
func (m *Memory[V]) save(s *Source[V], e *entry[V], raw []byte) {
	doc := e.doc
	doc.Raw = raw
	if err := m.lastGood.save(e.key, doc, e.memo); err != nil {
		s.ReportDisk(e.key.Name, err)
		e.unsaved.Store(&raw)
		return
	}
	e.unsaved.Store(nil)
}

// confirmed notes that the origin stands by e just now.
func (m *Memory[V]) confirmed(s *Source[V], e *entry[V]) {
	e.validated.Store(m.now())
	if e.unsaved.Load() == nil {
		if err := m.lastGood.touch(e.key); err != nil {
			s.ReportDisk(e.key.Name, err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.outcomes.Remove(e.key)
}

// failed notes when the origin may be asked again, and returns err.
func (m *Memory[V]) failed(s *Source[V], key Key, prev *entry[V], err error) error {
	known := prev != nil
	if known && errors.Is(err, ErrNotFound) && m.age(prev) >= s.Ages.Stale {
		known = false // gone for longer than a mistake lasts
		m.cache.Del(m.hash(key))
		if err := m.lastGood.remove(key); err != nil {
			s.ReportDisk(key.Name, err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	last, _ := m.outcomes.Get(key)
	next := outcome{failures: last.failures + 1, known: known, err: err}
	wait := min(retryFirst<<min(last.failures, 10), retryMost)
	wait = wait/2 + rand.N(wait) // sites and documents must not ask in step
	if errors.Is(err, ErrNotFound) {
		wait = max(s.Ages.Negative, forcedEvery)
	}
	next.until = m.now() + int64(wait)
	m.outcomes.Add(key, next)
	return err
}

func (m *Memory[V]) outcome(key Key) (outcome, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.outcomes.Get(key)
}

// newEntry makes an entry, without its value, that the origin confirmed just now. It does not keep the document's text.
func (m *Memory[V]) newEntry(key Key, doc Document) *entry[V] {
	e := &entry[V]{key: key, doc: doc, sum: sha256.Sum256(doc.Raw)}
	e.doc.Raw = nil
	e.validated.Store(m.now())
	return e
}

// keep offers e to the memory, and returns once a lookup would show it unless there is no room for it.
func (m *Memory[V]) keep(s *Source[V], e *entry[V]) {
	m.cache.Set(m.hash(e.key), e, e.cost())
	m.cache.Wait()
	if s.Publish != nil {
		s.Publish(e.key.Name, e.value, e.sum)
	}
}

func (m *Memory[V]) lookup(key Key) *entry[V] {
	if e, ok := m.cache.Get(m.hash(key)); ok && e.key == key {
		return e
	}
	return nil
}

func (m *Memory[V]) hash(key Key) uint64 { return maphash.Comparable(m.seed, key) }

// now is Memory's clock: monotonic, so that a step of the wall clock ages nothing.
func (m *Memory[V]) now() int64 { return int64(time.Since(m.start)) }

func (m *Memory[V]) age(e *entry[V]) time.Duration {
	return time.Duration(m.now() - e.validated.Load())
}
