package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"
)

// One goroutine, the committer, does all that is done to the file. It takes what waits and writes it in one transaction, so
// that a disk which syncs a hundred times a second takes thousands of events in one; then it answers all who wait.
const (
	maxQueued    = 64 << 20 // bytes of events that wait for the disk
	maxOffered   = 4 << 20  // bytes that nobody waits for and that are not on disk yet
	offeredDelay = time.Second
	maxGroup     = 8 << 20 // bytes that one transaction adds
	groupLanes   = 16_384
	opLanes      = 6   // as many pages as adding to so many lanes an operation writes
	entryMemory  = 160 // what an entry takes beside its data
)

// request is what one call has done: events are added, or op runs.
type request struct {
	events  []entry
	op      func(*store) error // its error fails the transaction: it is one of the file
	size    int                // bytes
	lanes   int                // that events go to, at most
	offered bool
	answer  chan error // nil if nobody waits
}

// groupBytes is how much one transaction adds to a spool of so many bytes.
func groupBytes(maxBytes int64) int { return int(min(maxBytes/16, maxGroup)) }

// append has entries written, in as many transactions as they need.
func (s *Spool) append(ctx context.Context, entries []entry) error {
	requests := s.requests(entries)
	size := 0
	for _, r := range requests {
		size += r.size
	}
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return ErrClosed
	case s.queued+size > maxQueued && s.queued > 0:
		s.mu.Unlock()
		return ErrBusy
	}
	s.queue = append(s.queue, requests...)
	s.queued += size
	s.mu.Unlock()
	s.poke()
	var failure error
	for _, r := range requests {
		if err := await(ctx, r); err != nil && failure == nil {
			failure = err
		}
	}
	return failure
}

// requests divides entries into pieces that a transaction has room for, even when the spool is full.
func (s *Spool) requests(entries []entry) (all []*request) {
	s.mu.Lock()
	t := s.tuning
	s.mu.Unlock()
	bytes, lanes := groupBytes(t.maxBytes)/2, reserveOf(int(t.maxBytes)/os.Getpagesize())/3
	type lane struct {
		app string
		n   uint64
	}
	var r *request
	var seen map[lane]struct{}
	for i, e := range entries {
		size := len(e.data) + entryMemory
		if r == nil || r.size+size > bytes || r.lanes >= lanes {
			r = &request{answer: make(chan error, 1), events: entries[i:i]}
			all = append(all, r)
			seen = map[lane]struct{}{}
		}
		r.events = r.events[:len(r.events)+1]
		r.size += size
		seen[lane{e.app, e.device % Lanes}] = struct{}{}
		r.lanes = len(seen)
	}
	return all
}

func await(ctx context.Context, r *request) error {
	select {
	case err := <-r.answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// offer queues entries that nobody waits for.
func (s *Spool) offer(entries []entry) bool {
	size := len(entries[0].data) + entryMemory
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.offered+size > maxOffered {
		return false
	}
	s.queue = append(s.queue, &request{events: entries, size: size, lanes: 1, offered: true})
	s.queued += size
	if s.offered += size; s.offered >= maxOffered/2 && s.offered-size < maxOffered/2 { // once: a disk that is full is tried each second
		s.poke()
	}
	s.alarmLocked()
	return true
}

// alarmLocked wakes the committer in a second.
func (s *Spool) alarmLocked() {
	if s.timer == nil && !s.closed {
		s.timer = time.AfterFunc(offeredDelay, s.poke)
	}
}

// do runs op in a transaction of the committer, which writes as many pages as if it added to so many lanes.
func (s *Spool) do(ctx context.Context, lanes int, op func(*store) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	r := &request{op: op, lanes: lanes, answer: make(chan error, 1)}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.queue = append(s.queue, r)
	s.mu.Unlock()
	s.poke()
	return <-r.answer // not cut off by ctx: op has variables of the caller
}

// poke wakes the committer.
func (s *Spool) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run is the committer.
func (s *Spool) run(opened chan<- error) {
	defer close(s.done)
	debug.SetPanicOnFault(true) // for this goroutine; see guard
	err := s.open(false)
	opened <- err
	if err != nil {
		return
	}
	for open := true; open; {
		select {
		case <-s.wake:
		case <-s.closing:
			open = false
		}
		s.drain()
	}
	s.discard()
	if s.store == nil {
		return
	}
	if err := s.store.close(); err != nil {
		s.closeErr = fmt.Errorf("close spool %s: %w", s.path, err)
	}
}

// drain commits until nothing waits. What was offered and could not be written waits for the end of it, or a second.
func (s *Spool) drain() {
	var again []*request
	tried := time.Now()
	for {
		tuning, group := s.take()
		if len(group) > 0 {
			failed := s.commit(tuning, group)
			s.endOffered(group, failed)
			again = append(again, failed...)
		}
		s.maintain(tuning)
		if len(group) == 0 {
			break
		}
		if len(again) > 0 && time.Since(tried) >= offeredDelay {
			s.putBack(again)
			again, tried = nil, time.Now()
		}
		runtime.Gosched() // those who were answered have more, as a rule: it goes into one commit rather than into two
	}
	if len(again) > 0 {
		s.putBack(again)
	}
}

// take takes what the next transaction does from the queue.
func (s *Spool) take() (tuning, []*request) {
	room := 0
	if s.store != nil {
		room = s.store.roomNow()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	size, lanes, n := 0, 0, 0
	most := groupBytes(s.tuning.maxBytes)
	for ; n < len(s.queue); n++ {
		r := s.queue[n]
		size += r.size
		lanes += r.lanes
		if n > 0 && (size > most || lanes > groupLanes || s.store != nil && s.store.pagesFor(int64(size), lanes) > room) {
			break
		}
		s.queued -= r.size
	}
	group := s.queue[:n:n]
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil
		if s.timer != nil {
			s.timer.Stop()
			s.timer = nil
		}
	}
	return s.tuning, group
}

// endOffered makes room for others in the place of what was offered and is on disk.
func (s *Spool) endOffered(group, failed []*request) {
	size := 0
	for _, r := range group {
		if r.offered {
			size += r.size
		}
	}
	for _, r := range failed {
		size -= r.size
	}
	if size == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offered -= size
}

// putBack queues again what was offered and could not be written.
func (s *Spool) putBack(group []*request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		s.overflow += uint64(len(group))
		return
	}
	s.queue = append(group, s.queue...)
	for _, r := range group {
		s.queued += r.size
	}
	s.alarmLocked()
}

// discard counts what was offered and cannot be written any more.
func (s *Spool) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overflow += uint64(len(s.queue))
	s.queue = nil
}

// commit writes a group and answers those who wait. It returns what was offered and is to be tried again.
func (s *Spool) commit(t tuning, group []*request) (again []*request) {
	if err := s.ready(); err != nil {
		err = commitError(s.path, err)
		s.fail(err)
		return s.answer(group, err)
	}
	s.store.limit(t.maxBytes)
	if err := s.space(t, group); err != nil {
		group, again = s.refuse(group, err)
	}
	if err := s.store.place.Check(); err != nil {
		group, again = s.refuseNew(group, again, commitError(s.path, err))
	}
	if len(group) == 0 {
		return again
	}
	return append(again, s.write(t, group)...)
}

// space has the file grow as a group needs it, and says why it cannot.
func (s *Spool) space(t tuning, group []*request) (err error) {
	st := s.store
	st.frozen = s.disk.low(t.minFree)
	switch {
	case st.frozen:
		return errMinFree
	case time.Since(s.grown) < growEvery:
		err = s.growth
	default:
		if err = st.grow(2*st.pagesOf(group) + minReserve); err != nil {
			err = commitError(s.path, err)
			s.grown, s.growth = time.Now(), err
		}
	}
	st.frozen = err != nil
	return err
}

// growEvery is how often a file is tried to grow on a disk that is full.
const growEvery = time.Second

// pagesOf is how many pages a group writes.
func (s *store) pagesOf(group []*request) int {
	size, lanes := int64(0), 0
	for _, r := range group {
		size, lanes = size+int64(r.size), lanes+r.lanes
	}
	return s.pagesFor(size, lanes)
}

// refuse answers the requests of a group for which a file that cannot grow has no room.
func (s *Spool) refuse(group []*request, err error) (rest, again []*request) {
	room, size, lanes := s.store.fits()-minReserve, int64(0), 0
	for _, r := range group {
		if len(r.events) > 0 && s.store.pagesFor(size+int64(r.size), lanes+r.lanes) > room {
			s.fail(err)
			again = append(again, s.answer([]*request{r}, err)...)
			continue
		}
		size, lanes = size+int64(r.size), lanes+r.lanes
		rest = append(rest, r)
	}
	return rest, again
}

// refuseNew answers the requests of a group that add events to a file which has no name any more: what is written to it is gone
// when it is closed. What it holds goes on being delivered.
func (s *Spool) refuseNew(group, before []*request, err error) (rest, again []*request) {
	s.store.frozen = true
	s.fail(err)
	again = before
	for _, r := range group {
		if r.op != nil {
			rest = append(rest, r)
		} else {
			again = append(again, s.answer([]*request{r}, err)...)
		}
	}
	return rest, again
}

var errMinFree = fmt.Errorf("%w: less than min_free is left", ErrNoSpace)

// write commits a group, in smaller ones if it needs more pages at once than there are.
func (s *Spool) write(t tuning, group []*request) (again []*request) {
	err := bolterrors.ErrMaxSizeReached
	if pages := s.store.pagesOf(group); !addsEvents(group) || !s.store.over(pages) { // the spare is not for events
		err = s.store.update(pages, func() error { return s.apply(group) })
	}
	if isTooFew(err) {
		if half := len(group) / 2; half > 0 {
			again = s.commit(t, group[:half])
			return append(again, s.commit(t, group[half:])...)
		}
		err = s.squeeze(t, group[0])
	}
	if err == nil {
		s.committed()
	} else {
		err = commitError(s.path, err)
		s.fail(err)
	}
	return s.answer(group, err)
}

// apply does what the requests of a group are about, in a transaction.
func (s *Spool) apply(group []*request) error {
	st := s.store
	appended, lanes := int64(0), 0
	for _, r := range group {
		for i := range r.events {
			if err := st.append(&r.events[i]); err != nil {
				return err
			}
		}
		appended += int64(r.size)
		lanes += r.lanes
		if r.op == nil {
			continue
		}
		if err := r.op(st); err != nil {
			return err
		}
	}
	s.mu.Lock()
	st.state.dropped[reasonOfferedOverflow] = s.overflow
	s.mu.Unlock()
	st.state.dropped[reasonDeadLettersFull] = s.dead.dropped.Load()
	return st.trim(appended, st.pagesFor(appended, lanes))
}

func addsEvents(group []*request) bool {
	return slices.ContainsFunc(group, func(r *request) bool { return len(r.events) > 0 })
}

// squeeze commits a single request that found too few pages, or seemed to.
func (s *Spool) squeeze(t tuning, r *request) error {
	frozen := s.store.frozen
	if frozen && len(r.events) > 0 {
		return errMinFree
	}
	apply := func() error { return s.apply([]*request{r}) }
	if r.op != nil { // what is delivered makes room: it may have what there is, and if that is too little, the spare
		err := s.store.update(0, apply)
		if isTooFew(err) {
			if err = s.readyAgain(t); err == nil {
				err = s.store.beyond(apply)
			}
		}
		if !isTooFew(err) {
			return err
		}
	}
	pages := 2 * s.store.pagesOf([]*request{r})
	if err := s.readyAgain(t); err != nil {
		return err
	}
	s.store.frozen = false
	if !frozen {
		if err := s.makeRoom(t, pages+s.store.reserve()); err != nil {
			return err
		}
	}
	err := s.store.update(pages, apply)
	s.store.frozen = frozen
	return err
}

// readyAgain makes the store fit for a transaction, within the bound, after one that needed too many pages.
func (s *Spool) readyAgain(t tuning) error {
	if err := s.ready(); err != nil {
		return err
	}
	s.store.limit(t.maxBytes)
	return nil
}

// makeRoom drops events until the file could have so many pages free. It does so in steps that fit into what there is, and
// those that are too large still, the smallest, in the spare.
func (s *Spool) makeRoom(t tuning, pages int) error {
	for touch := s.store.reserve(); s.store.roomNow() < pages && s.store.apps.records > 0; {
		before := s.store.apps.records
		if err := s.store.grow(touch + txPages); err == nil {
			touch = max(min(touch, s.store.fits()-txPages), 1)
		}
		n := int64(pages-s.store.roomNow()) * s.store.pageSize()
		drop := func() error { return s.store.dropBytes(min(n, salvageChunk), touch) }
		err := s.store.update(0, drop)
		if isTooFew(err) {
			smallest := touch == 1
			touch = max(touch/2, 1)
			if err = s.readyAgain(t); err == nil && !smallest {
				continue
			}
			if err == nil {
				err = s.store.beyond(drop)
			}
		}
		switch {
		case err != nil:
			return err
		case s.store.apps.records == before:
			s.store.broken = true
			return fmt.Errorf("%w: of %d events none can be dropped", errDamaged, before)
		}
		touch = min(2*touch, s.store.reserve())
	}
	return nil
}

// committed tells what a commit did.
func (s *Spool) committed() {
	st := s.store
	s.mu.Lock()
	watcher := s.watcher
	s.mu.Unlock()
	if watcher != nil {
		for l := range st.added {
			watcher(l)
		}
	}
	s.publish()
	if !st.frozen {
		s.fail(nil)
	}
}

// tellAll tells the watcher of all lanes that have records.
func (s *Spool) tellAll(st *store) {
	s.mu.Lock()
	watcher := s.watcher
	s.mu.Unlock()
	if watcher == nil {
		return
	}
	for _, a := range st.apps.byNumber {
		for n, records := range a.records {
			if records > 0 {
				watcher(Lane{app: a.number, n: uint8(n)})
			}
		}
	}
}

// publish makes the numbers of the store those of Stats.
func (s *Spool) publish() {
	st := s.store
	n := SpoolStats{Events: st.apps.records, Bytes: st.usedBytes(), Dropped: map[string]uint64{}}
	if oldest := st.apps.oldest(); oldest != 0 {
		n.Oldest = time.UnixMilli(oldest)
	}
	for why, count := range st.state.dropped {
		n.Dropped[reasons[why]] = count
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats = n
}

// answer answers those who wait, and returns those of a group that failed that nobody waits for.
func (s *Spool) answer(group []*request, err error) (again []*request) {
	for _, r := range group {
		switch {
		case r.answer != nil:
			r.answer <- err
		case err != nil:
			again = append(again, r)
		}
	}
	return again
}

// fail notes that events cannot be taken or, with nil, that they can.
func (s *Spool) fail(err error) { s.faults.set(faultFile, err) }

// errBound says that what was to be written does not fit into the file, whatever the disk has left.
var errBound = errors.New("the events do not fit into max_spool: raise it")

// commitError says what a transaction failed of.
func commitError(path string, err error) error {
	switch {
	case errors.Is(err, ErrNoSpace):
	case isNoSpace(err):
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	case isTooFew(err) && !isFileError(err):
		err = fmt.Errorf("%w: %w", errBound, err)
	}
	return fmt.Errorf("write spool %s: %w", path, err)
}

// diskSpace asks how much the disk has left, once a second at most.
type diskSpace struct {
	free  func() (int64, error)
	left  int64
	known bool
	asked time.Time
}

// low reports that less than least is left. A disk that does not say is not low.
func (d *diskSpace) low(least int64) bool {
	if least <= 0 {
		return false
	}
	left, known := d.ask()
	return known && left < least
}

func (d *diskSpace) ask() (left int64, known bool) {
	if d.free == nil {
		return 0, false
	}
	if now := time.Now(); d.asked.IsZero() || now.Sub(d.asked) >= time.Second {
		left, err := d.free()
		d.left, d.known, d.asked = left, err == nil, now
	}
	return d.left, d.known
}
