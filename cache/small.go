package cache

import (
	"math"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// smallObjects keeps small objects in memory: an update by delta files is hundreds of small requests, whose time is that
// to the first byte. What it does not hold is read from disk.
//
// It is a plain LRU under a mutex, not a Ristretto: what was just put in must be found by the next of a thousand phones,
// and an exact budget matters more here than a lock of some 20 ns per request.
type smallObjects struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[objectID, *smallEntry] // guarded by mu, as all below
	bytes int64
	max   int64
}

type smallEntry struct {
	id      objectID
	record  *objectRecord
	data    []byte
	touched int64 // when the object was last marked as used on disk, unix seconds; guarded by mu
}

// cost is what an entry takes: its data and some for the bookkeeping.
func (e *smallEntry) cost() int64 { return int64(len(e.data)) + 512 }

func newSmallObjects(maxBytes int64) *smallObjects {
	s := &smallObjects{max: maxBytes}
	s.lru, _ = simplelru.NewLRU(math.MaxInt, func(_ objectID, e *smallEntry) { s.bytes -= e.cost() }) // fails only below 1
	return s
}

// get returns the object if it is in memory, and the one expected. Now and then it is due to be
// marked as used on disk, too.
func (s *smallObjects) get(id objectID, expect *Expect, now time.Time) (e *smallEntry, due bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.lru.Get(id)
	if !ok || !e.record.admitted(expect) {
		return nil, false
	}
	const every = int64(time.Minute / time.Second)
	if due = now.Unix()-e.touched > every; due {
		e.touched = now.Unix()
	}
	return e, due
}

func (s *smallObjects) add(e *smallEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.Remove(e.id)
	s.lru.Add(e.id, e)
	s.bytes += e.cost()
	s.shrinkLocked()
}

func (s *smallObjects) shrinkLocked() {
	for s.bytes > s.max && s.lru.Len() > 0 {
		s.lru.RemoveOldest()
	}
}

func (s *smallObjects) remove(id objectID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.Remove(id)
}

func (s *smallObjects) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.Purge()
}

func (s *smallObjects) retune(maxBytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.max = maxBytes
	s.shrinkLocked()
}

// addSmall puts an object in memory that was read from disk, unless it was purged or replaced meanwhile.
func (d *Disk) addSmall(e *smallEntry, of *storedObject) {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	if d.index.is(e.id, of) {
		d.small.add(e)
	}
}

// touchSmall marks an object that is served from memory as used in the index, so that it is not evicted from there as one
// nobody asks for.
func (d *Disk) touchSmall(id objectID) {
	if stored, _ := d.index.lookup(id); stored != nil {
		d.touch(id, stored, d.path(id))
	}
}
