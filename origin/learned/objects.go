package learned

import (
	"bytes"
	"context"
	"hash/maphash"
	"time"
)

// Covers says which bytes an object's digest is of.
type Covers uint8

const (
	// Nothing: no digest is known.
	Nothing Covers = iota
	// StoredBytes: those that travel.
	StoredBytes
	// DecodedBytes: those of a ".br" delta file after decoding (protocol 3.4).
	DecodedBytes
)

// Object is what an address of this edge stands for.
type Object struct {
	// Key is the object's name in that address, behind /files/read/attachments/.
	Key string
	// URL is where it is fetched from, as far as known now.
	URL string
	// SHA256 is the digest of what Covers says, in bytes.
	SHA256 [32]byte
	Covers Covers
	// Size is how many bytes travel; 0 if that is unknown.
	Size int64
	// Immutable says that the key never stands for another content.
	Immutable bool
}

// Put notes what an app's objects are. When it returns nil, it is on disk what each key stands for; what was known already
// costs nothing. Where only the URL is another one, such as one with a fresh signature, Find has it at once and it is written
// behind. If ctx ends first, the objects may be kept or not.
func (c *Scope) Put(ctx context.Context, app string, all []Object) error {
	w := write{}
	today := dayOf(time.Now())
	for i := range all {
		o := &all[i]
		k, err := c.keyOf(objects, app, o.Key)
		if err != nil || len(o.URL) > maxURL {
			return ErrTooLarge
		}
		value := o.encode(today)
		switch c.store.compare(k, value) {
		case unlike:
			w.rows = append(w.rows, row{k, seal(k, value)})
		case like:
			c.store.later(k, seal(k, value))
		case same:
		}
	}
	if len(w.rows) == 0 {
		return nil
	}
	return c.store.writes.Commit(ctx, w)
}

// Find returns what an app's key stands for.
func (c *Scope) Find(app, key string) (Object, bool) {
	k, err := c.keyOf(objects, app, key)
	if err != nil {
		return Object{}, false
	}
	o, day, ok := decodeObject(key, c.store.get(k))
	if !ok {
		return Object{}, false
	}
	if today := dayOf(time.Now()); day != today {
		c.store.later(k, seal(k, o.encode(today)))
	}
	return o, true
}

// likeness is how a value compares with the row there is.
type likeness uint8

const (
	unlike likeness = iota // there is none, or it stands for something else
	like                   // it stands for the same, which is at another address, or was not used today
	same
)

// compare compares an object's value with the row there is: the one that waits, else the one on disk, which memory knows if
// it was seen lately.
func (s *Store) compare(k rowKey, value []byte) likeness {
	s.mu.RLock()
	waiting, waits := s.waitingLocked(k)
	seen, known := s.recent.find(k)
	commits := s.recent.commits
	s.mu.RUnlock()
	switch {
	case waits:
		return compareValues(waiting, value)
	case known && seen.whole == s.recent.digest(value):
		return same
	case known && seen.identity == s.recent.identity(value):
		return like
	case known:
		return unlike
	}
	found := compareValues(s.get(k), value)
	if found == same {
		s.mu.Lock()
		if commits == s.recent.commits { // or it may have been written since it was read
			s.recent.note(k, value)
		}
		s.mu.Unlock()
	}
	return found
}

func compareValues(there, value []byte) likeness {
	switch {
	case !sameObject(there, value):
		return unlike
	case bytes.Equal(there, value):
		return same
	}
	return like
}

// sameObject reports that two values stand for the same, wherever it is and whenever it was used. They may be sealed.
func sameObject(a, b []byte) bool {
	return len(a) >= addressAt && len(b) >= addressAt && a[0] == b[0] && bytes.Equal(a[sizeAt:addressAt], b[sizeAt:addressAt])
}

// recent remembers which rows are on disk, by digests: of those used lately, at least recentRows. It forgets the others in
// bulk, which costs less than keeping an order and does as well.
type recent struct {
	seed     maphash.Seed
	new, old map[uint64]seenRow // by the digest of the key
	commits  uint64
}

type seenRow struct{ whole, identity uint64 }

// recentRows take about 4 MB, and so may as many older ones.
const recentRows = 64 << 10

func (r *recent) digest(b []byte) uint64 { return maphash.Bytes(r.seed, b) }

// identity is the digest of what an object is, without where it is and when it was used.
func (r *recent) identity(value []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(r.seed)
	_ = h.WriteByte(value[0])
	_, _ = h.Write(value[sizeAt:addressAt])
	return h.Sum64()
}

func (r *recent) find(k rowKey) (seenRow, bool) {
	id := maphash.String(r.seed, string(k))
	if row, ok := r.new[id]; ok {
		return row, true
	}
	row, ok := r.old[id]
	return row, ok
}

// note remembers that a row is on disk.
func (r *recent) note(k rowKey, value []byte) {
	if r.new == nil || len(r.new) >= recentRows {
		r.new, r.old = map[uint64]seenRow{}, r.new
	}
	r.new[maphash.String(r.seed, string(k))] = seenRow{r.digest(value), r.identity(value)}
}

// forget forgets a row that has changed on disk, or may have.
func (r *recent) forget(k rowKey) {
	id := maphash.String(r.seed, string(k))
	delete(r.new, id)
	delete(r.old, id)
}

// forgetAll forgets all rows.
func (r *recent) forgetAll() { r.new, r.old = nil, nil }
