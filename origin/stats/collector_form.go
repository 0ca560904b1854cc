package stats

import (
	"encoding/binary"
	"hash/fnv"
	"net/http"
	"sync"
	"time"
)

const (
	formMemory   = 24 * time.Hour  // how long it is believed that a collector takes arrays, or refuses objects
	objectMemory = time.Hour       // and that it takes objects alone; the next try of an array is one request
	tryOneEvery  = 5 * time.Minute // after a status that may be an outage, which would have more requests
	// A status that may be an outage has to come for so many batches, and so often for the one of which an event is then tried as
	// an object, as that is not sent again under its key: it may have been taken.
	tryOneAfter = 3
)

// form remembers which form of body the collector takes.
type form struct {
	mu      sync.Mutex
	array   time.Time // when it last took an array; guarded by mu, as the others
	object  time.Time // since when it takes objects where it refuses arrays
	refused time.Time // when it last refused an object too
	failed  int       // batches that failed by such a status
	tried   time.Time // when tryOne last said so, without success since
	// first is a hash of the device and the data of an event that it took as an object where it had refused an array; 0: none. It
	// takes another event, and no array between them, to believe that the arrays were to blame: one event can be such that only
	// its array is refused, as that nests one level deeper, and anyone can send it.
	first uint64
}

// refusesForm reports whether a refusal may be of the array rather than of what is in it. What is too large is too large as an
// object as well, give or take two bytes.
func (f *Failure) refusesForm() bool { return f.Scope == ScopeContent && !f.TooLarge }

// failsOnForm reports whether a failure may be one that a server comes to by arrays, as it reads members of an object from them. It
// may be an outage as well, unlike a 502, 503 or 504, which always is one.
func (f *Failure) failsOnForm() bool {
	return f != nil && f.Suspect && (f.status == http.StatusInternalServerError || f.status == http.StatusNotImplemented)
}

// wantsObjects reports that arrays need not be tried.
func (f *form) wantsObjects(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return within(objectMemory, f.object, now)
}

// tryObjects reports whether n events refused as an array should be tried as objects: several only where objects are known
// to be taken, a single one unless both forms have been seen to work and to be refused, so that the event is to blame.
func (f *form) tryObjects(now time.Time, n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n > 1 {
		return !f.object.IsZero()
	}
	return !within(formMemory, f.array, now) || !within(formMemory, f.refused, now)
}

// knowsObjects reports that objects were taken where arrays were not, and no array since: one that fails is no news.
func (f *form) knowsObjects() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.object.IsZero()
}

// tryOne reports whether, as an array failed, one object should be tried: now and then, while no array was ever taken.
func (f *form) tryOne(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed++; f.failed < tryOneAfter || !f.array.IsZero() || !f.object.IsZero() || within(tryOneEvery, f.tried, now) {
		return false
	}
	f.tried = now
	return true
}

func within(memory time.Duration, t, now time.Time) bool { return !t.IsZero() && now.Sub(t) < memory }

func (f *form) tookArray(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.array, f.object, f.first = now, time.Time{}, 0
}

// tookObject notes an event that was read as an object, whatever became of it. It counts the hour from the first object, so that an
// array is tried once an hour.
func (f *form) tookObject(now time.Time, event *Record) {
	h := fnv.New64a()
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, event.Device)) // it never fails
	_, _ = h.Write(event.Data)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tried = time.Time{}
	switch {
	case within(objectMemory, f.object, now):
	case f.object.IsZero() && (f.first == 0 || f.first == h.Sum64()):
		f.first = h.Sum64()
	default:
		f.object = now
	}
}

func (f *form) refusedObject(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = now
}
