package learned

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// The file grows up to its bound with room for a commit, and is swept well below that, so that it is not swept all the time.
const (
	fullAt  = 0.85 // of the bound
	sweepTo = 0.75
)

// rowRoom is what a row takes beside its key and value, roughly: its place in a page, and what pages leave empty.
const rowRoom = 48

// sweep makes room when the file is about to reach its bound. It runs between commits: it takes below a second, and there
// are many thousands of new rows between one and the next.
func (s *Store) sweep() error {
	excess := int64(0)
	err := s.file.View(func(tx *bbolt.Tx) error {
		if used := inUse(tx); used > int64(fullAt*float64(s.most)) {
			excess = used - int64(sweepTo*float64(s.most))
		}
		return nil
	})
	if err == nil && excess > 0 {
		err = s.remove(excess)
	}
	if err != nil {
		return fmt.Errorf("learned: making room: %w", err)
	}
	return nil
}

// errSmall: the bound does not hold what is in use.
var errSmall = errors.New("objects that were used today had to go, so that downloads may fail until their app is asked for again; " +
	"what is learned needs more room than it may have")

// remove deletes rows of so many bytes, those that were not used for the longest time.
func (s *Store) remove(excess int64) error {
	keys, current, err := s.oldest(excess)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.recent.forgetAll()
	s.mu.Unlock()
	for chunk := range slices.Chunk(keys, 8192) {
		err := s.file.Update(func(tx *bbolt.Tx) error {
			l := openLedger(tx)
			for _, k := range chunk {
				if err := l.delete(k); err != nil {
					return err
				}
			}
			return l.close()
		})
		if err != nil {
			return err
		}
		s.swept.Add(uint64(len(chunk)))
	}
	if current {
		return errSmall
	}
	return nil
}

// notesShare is the part of the bound that notes may take. Only what is beyond it goes.
const notesShare = 0.25

// oldest returns the keys of rows of so many bytes, and whether objects that were used today are among them. First it adds up
// how much there is of each hour, so that only keys that go are held.
func (s *Store) oldest(excess int64) (keys []rowKey, current bool, err error) {
	today := int64(dayOf(time.Now())) * 24
	err = s.file.View(func(tx *bbolt.Tx) error {
		used, noted, notesSize := hours{}, hours{}, int64(0)
		err := eachRow(tx, func(t table, _ []byte, hour, size int64) {
			if t == notes {
				noted[hour] += size
				notesSize += size
			} else {
				used[hour] += size
			}
		})
		if err != nil {
			return err
		}
		notesExcess := max(0, notesSize-int64(notesShare*float64(s.most)))
		cutNotes, cutOthers := noted.cut(notesExcess), used.cut(excess-notesExcess)
		return eachRow(tx, func(t table, key []byte, hour, size int64) {
			cut := cutOthers
			if t == notes {
				cut = cutNotes
			}
			if cut.takes(hour, size) {
				keys = append(keys, rowKey(append([]byte{byte(t)}, key...)))
				current = current || t == objects && hour >= today
			}
		})
	})
	return keys, current, err
}

// hours are the bytes of rows, by the hour in which they were used last.
type hours map[int64]int64

// cut is where the oldest rows of so many bytes end.
func (h hours) cut(excess int64) *cut {
	c := &cut{left: excess}
	for _, hour := range slices.Sorted(maps.Keys(h)) {
		if c.newest = hour; h[hour] >= c.left {
			break
		}
		c.left -= h[hour]
	}
	return c
}

type cut struct {
	newest int64 // hour that is taken of
	left   int64 // bytes that are taken of it
}

// takes reports whether a row goes. It is asked once for each.
func (c *cut) takes(hour, size int64) bool {
	switch {
	case hour > c.newest, hour == c.newest && c.left <= 0:
		return false
	case hour == c.newest:
		c.left -= size
	}
	return true
}

func eachRow(tx *bbolt.Tx, f func(t table, key []byte, hour, size int64)) error {
	for t, name := range buckets {
		err := tx.Bucket(name).ForEach(func(k, v []byte) error {
			f(table(t), k, hourOf(table(t), v), int64(len(k)+len(v)+rowRoom))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
