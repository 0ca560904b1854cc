package stats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

var (
	// ErrNoSpace says that an event was not taken, as the disk is full or has less than MinFree left.
	ErrNoSpace = errors.New("there is no space for statistics: free some on the disk of the storage directory")
	// ErrBusy says that too many events wait for the disk already.
	ErrBusy = errors.New("the disk does not keep up with the statistics")
	// ErrTooLarge says that an event, or its app id, is larger than the spool takes. It is of no use to send it again.
	ErrTooLarge = errors.New("the event is too large for the spool")
	// ErrClosed says that the spool is closed.
	ErrClosed = errors.New("the spool is closed")
	// ErrLocked says that another process has the file open.
	ErrLocked = errors.New("another process uses the file; give each a storage directory of its own")
	// ErrStillTaking says that what is reported keeps no event from being taken: dead letters that cannot be written, a file
	// that cannot be made smaller.
	ErrStillTaking = errors.New("events are taken nonetheless")
	// ErrFormat says that the file was written by a newer release.
	ErrFormat = errors.New("the file was written by a newer release; use that one, or move the file away, with the events in it")
)

// SpoolOptions configure a Spool.
type SpoolOptions struct {
	// Path is the file's. Dead letters stand beside it.
	Path string
	// MaxBytes bounds the file. At the bound the oldest events go; where that, or a delivery, needs more room than there is, the
	// file has up to 384 KiB more until it is written anew. At least 1 MiB. Default: 1 GiB.
	MaxBytes int64
	// Free is how many bytes the disk has left; below MinFree the file does not grow. It is asked once a second at most.
	// Nil: not asked.
	Free    func() (int64, error)
	MinFree int64
	// DeadBytes bounds the dead letters. Default: 64 MiB.
	DeadBytes int64
	// Report is told when the disk fails or the file was found damaged, and with nil when it works again. An error that is
	// [ErrStillTaking] is a lesser one: events are taken, and delivered. It is called by one goroutine at a time, and must not
	// block, nor call the spool. Nil: nobody is told.
	Report func(error)
}

const (
	defaultMaxBytes  = 1 << 30
	minMaxBytes      = 1 << 20
	defaultDeadBytes = 64 << 20
)

// The reasons for which events are dropped.
type reason int

const (
	reasonFull reason = iota
	reasonUnconfirmed
	reasonDamaged
	reasonDeadLettersFull
	reasonOfferedOverflow
)

// reasons are their names, in the order of the file's format.
var reasons = [...]string{
	reasonFull:            "full",              // the oldest events of the app that has most, at MaxBytes
	reasonUnconfirmed:     "unconfirmed",       // of an app that is not known to exist, as those had their share
	reasonDamaged:         "damaged",           // the disk did not give back what was written
	reasonDeadLettersFull: "dead_letters_full", // the oldest dead letters, at DeadBytes
	reasonOfferedOverflow: "offered_overflow",  // Offer found no room in memory
}

// Spool is a queue of events on disk.
type Spool struct {
	path    string
	faults  *faults
	dead    *letters
	done    chan struct{} // closed when the committer has ended
	wake    chan struct{} // holds one token when the committer has something to do
	closing chan struct{}

	measuring sync.WaitGroup // dead letters that could not be read
	// Of the committer.
	store     *store    // nil while the file cannot be opened
	repairs   int       // times that the file was found damaged lately
	repaired  time.Time // the last time
	compacted time.Time // when it failed last
	grown     time.Time // when the file could not grow last
	growth    error     // why
	disk      diskSpace

	mu       sync.Mutex
	closed   bool
	closeErr error // set before done is closed
	tuning   tuning
	queue    []*request
	queued   int         // bytes
	offered  int         // bytes that were offered and are not on disk, those of the transaction that runs included
	timer    *time.Timer // ends the wait of what was offered; nil: nothing waits
	overflow uint64      // events that were offered and found no room, since the file was begun
	watcher  func(Lane)
	stats    SpoolStats
}

type tuning struct{ maxBytes, minFree int64 }

// SpoolStats count what a spool did and holds.
type SpoolStats struct {
	Events    int64     // in the spool
	Bytes     int64     // what they take, with what the file needs around them
	FileBytes int64     // of the file
	Oldest    time.Time // of the events in the spool; zero if there are none
	// Dropped are events that were lost since the file was begun, by reason: full, unconfirmed, damaged, dead_letters_full
	// and offered_overflow.
	Dropped    map[string]uint64
	Dead       uint64 // moved to the dead-letter file since the start
	DeadEvents int64  // in it now
	DeadBytes  int64
}

// OpenSpool opens the spool at o.Path, or begins one. A file that is damaged is set aside, its name ending in .damaged and a
// time, and what can be read of it goes into a new one; Report is told. So it is of dead letters that cannot be read.
func OpenSpool(o SpoolOptions) (*Spool, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.MaxBytes < minMaxBytes {
		return nil, fmt.Errorf("open spool %s: %d bytes are too little, give it at least 1 MiB", o.Path, o.MaxBytes)
	}
	if o.DeadBytes == 0 {
		o.DeadBytes = defaultDeadBytes
	}
	if o.Report == nil {
		o.Report = func(error) {}
	}
	dead, err := openLetters(strings.TrimSuffix(o.Path, filepath.Ext(o.Path)), o.DeadBytes)
	s := &Spool{
		path: o.Path, faults: newFaults(o.Report), dead: dead, tuning: tuning{o.MaxBytes, o.MinFree}, disk: diskSpace{free: o.Free},
		done: make(chan struct{}), wake: make(chan struct{}, 1), closing: make(chan struct{}),
	}
	opened := make(chan error)
	go s.run(opened)
	if err := <-opened; err != nil {
		return nil, err
	}
	if err != nil { // the file stays where it is; events that die stay in the spool meanwhile, as nothing is added to it
		s.lettersUnread(err)
		s.measuring.Go(s.measureLetters)
	}
	return s, nil
}

func (s *Spool) lettersUnread(err error) {
	s.faults.set(faultLetters, stillTaking(fmt.Errorf("%w; correct it, or move the file away with the letters in it", err)))
}

// measureEvery is how often dead letters that could not be read at the start are tried.
const measureEvery = time.Minute

// measureLetters counts the dead letters once they can be read.
func (s *Spool) measureLetters() {
	for {
		select {
		case <-s.closing:
			return
		case <-time.After(measureEvery):
		}
		err := s.dead.measureAll()
		if err == nil {
			s.faults.set(faultLetters, nil)
			return
		}
		s.lettersUnread(err)
	}
}

// Retune changes the bounds of an open spool. Where the file is larger than it may be now, the oldest events go, and the
// file is written anew.
func (s *Spool) Retune(maxBytes, minFree int64) {
	s.mu.Lock()
	s.tuning = tuning{max(maxBytes, minMaxBytes), minFree}
	s.mu.Unlock()
	s.poke()
}

// MaxEvent is how many bytes of data one event may have in a spool of maxBytes, so that it pushes out a small part of the
// others at most.
func MaxEvent(maxBytes int64) int { return int(min(max(maxBytes, minMaxBytes)/8, maxEventLen)) }

const maxAppID = 512 // bytes

// Append returns nil once the events are on disk. After an error some of them may be, and come twice when they are appended
// again. The errors are ErrNoSpace, ErrBusy, ErrTooLarge, ErrClosed, ctx's, and those of the disk.
func (s *Spool) Append(ctx context.Context, events ...Event) error {
	entries, err := s.entries(events)
	if err != nil {
		return err
	}
	return s.append(ctx, entries)
}

func (s *Spool) entries(events []Event) ([]entry, error) {
	s.mu.Lock()
	most := MaxEvent(s.tuning.maxBytes)
	s.mu.Unlock()
	now := time.Now()
	entries := make([]entry, len(events))
	for i, e := range events {
		if len(e.Data) > most {
			return nil, fmt.Errorf("%w: it has %d bytes, of at most %d", ErrTooLarge, len(e.Data), most)
		}
		if len(e.App) > maxAppID {
			return nil, fmt.Errorf("%w: the app id has %d bytes, of at most %d", ErrTooLarge, len(e.App), maxAppID)
		}
		entries[i] = entry{app: e.App, confirmed: e.Confirmed, device: hashDevice(e.Device), time: now, data: bytes.Clone(e.Data)}
	}
	return entries, nil
}

// Offer takes an event that nobody waits for. It is on disk with the next commit, within a second at most; a crash may lose it. It
// returns false, and counts, if it finds no room in memory.
func (s *Spool) Offer(e Event) bool {
	entries, err := s.entries([]Event{e})
	if err == nil && s.offer(entries) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overflow++
	return false
}

// Watch has f called for each lane that holds events, before it returns, and whenever events are added to a lane. f must
// not block, and must not call the spool. It takes the place of the one before it; nil ends that.
func (s *Spool) Watch(f func(Lane)) {
	s.mu.Lock()
	s.watcher = f
	s.mu.Unlock()
	_ = s.do(context.Background(), 0, func(st *store) error { // only a closed spool fails, which has nothing to tell
		s.tellAll(st)
		return nil
	})
}

// maxBatch is how many events a batch has at most, so that what is noted of it fits into a page.
const maxBatch = 256

// Claim takes the next batch of a lane: the one that was on its way when the process died, or what a Split left, with its
// key and its events as they were; otherwise the oldest events whose device held does not report, under a new key. It returns
// nil if there is none. held is called before Claim returns, and must not block, nor call the spool; it may be nil.
//
// A batch that lost events meanwhile, as the spool was full, comes with what is left of it, under a new key. One of a single event
// that was kept as its request was not answered comes when its device is no longer held.
func (s *Spool) Claim(ctx context.Context, l Lane, limits BatchLimits, held func(device uint64) bool) (*Batch, error) {
	c := conditions{limits: BatchLimits{Events: min(max(limits.Events, 1), maxBatch), Bytes: max(limits.Bytes, 1)}, held: held}
	for {
		var b *Batch
		var more bool
		err := s.do(ctx, opLanes, func(st *store) (err error) {
			b, more, err = st.claim(l, c)
			return err
		})
		if err != nil || b != nil || !more {
			return b, err
		}
	}
}

// Settle ends a batch, with one verdict for each of its events, and claims the lane's next one in the same commit. The dead
// are in the dead-letter file before that; where they cannot be written, nothing is settled, and the error is [ErrStillTaking].
// After an error it can be called again with the same batch. One of which all events are kept, and none has a code, is the next.
func (s *Spool) Settle(ctx context.Context, b *Batch, verdicts []Verdict, limits BatchLimits, held func(device uint64) bool) (*Batch, error) {
	if len(verdicts) != len(b.Events) {
		return nil, fmt.Errorf("settle batch %s: %d verdicts for %d events", b.Key, len(verdicts), len(b.Events))
	}
	if err := s.bury(b, verdicts); err != nil {
		return nil, err
	}
	c := conditions{limits: BatchLimits{Events: min(max(limits.Events, 1), maxBatch), Bytes: max(limits.Bytes, 1)}, held: held}
	var next *Batch
	var more bool
	err := s.do(ctx, opLanes+len(b.Events)/4, func(st *store) (err error) {
		if err = st.settle(b, verdicts); err == nil {
			next, more, err = st.claim(b.Lane, c)
		}
		return err
	})
	if err == nil && next == nil && more {
		return s.Claim(ctx, b.Lane, limits, held)
	}
	return next, err
}

// bury writes the dead letters of a batch, and tells whether that works.
func (s *Spool) bury(b *Batch, verdicts []Verdict) error {
	n, err := s.dead.bury(b, verdicts)
	switch {
	case err != nil:
		err = stillTaking(fmt.Errorf("write dead letters, which stay in the spool and are tried again every minute: %w", err))
		s.faults.set(faultLetters, err)
	case n > 0:
		s.faults.set(faultLetters, nil)
	}
	return err
}

// Split puts two batches in place of one of several events, each half of it with a key of its own. It returns the first;
// Settle or Claim gives the second. It returns nil if the events are no longer there.
func (s *Spool) Split(ctx context.Context, b *Batch) (first *Batch, err error) {
	if len(b.Events) < 2 {
		return nil, fmt.Errorf("split batch %s: it has one event", b.Key)
	}
	err = s.do(ctx, opLanes, func(st *store) (err error) {
		first, err = st.split(b)
		return err
	})
	return first, err
}

// DeadLetters calls f for each dead letter, the oldest first, until it returns false.
func (s *Spool) DeadLetters(f func(DeadLetter) bool) error { return s.dead.each(f) }

// Replay puts the dead letters that match back into the spool, as events of apps that exist, and returns how many. A crash
// meanwhile may leave them in both places; it loses none.
func (s *Spool) Replay(ctx context.Context, match func(DeadLetter) bool) (int, error) {
	return s.dead.replay(match, func(entries []entry) error { return s.append(ctx, entries) })
}

// Stats returns what the spool counts.
func (s *Spool) Stats() SpoolStats {
	s.mu.Lock()
	st := s.stats
	dropped := map[string]uint64{}
	maps.Copy(dropped, st.Dropped)
	dropped[reasons[reasonOfferedOverflow]] = s.overflow
	s.mu.Unlock()
	if now := time.Now(); st.Oldest.After(now) { // the clock was set back
		st.Oldest = now
	}
	st.Dropped = dropped
	s.dead.addTo(&st)
	if info, err := os.Stat(s.path); err == nil {
		st.FileBytes = info.Size()
	}
	return st
}

// Close writes what was offered, waits for what is being written and closes the file. Calls that come later return ErrClosed.
func (s *Spool) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	<-s.done
	s.measuring.Wait()
	return s.closeErr
}
