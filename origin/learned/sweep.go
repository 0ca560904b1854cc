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

// oldest returns the keys of rows of so many bytes, and whether objects that were used today are among them. First it adds up
// how much there is of each hour, so that only keys that go are held.
func (s *Store) oldest(excess int64) (keys []rowKey, current bool, err error) {
	today := int64(dayOf(time.Now())) * 24
	err = s.file.View(func(tx *bbolt.Tx) error {
		hours := map[int64]int64{}
		if err := eachRow(tx, func(_ table, _ []byte, hour, size int64) { hours[hour] += size }); err != nil {
			return err
		}
		newest, left := int64(0), excess // left: what is taken of the newest hour that goes
		for _, hour := range slices.Sorted(maps.Keys(hours)) {
			if newest = hour; hours[hour] >= left {
				break
			}
			left -= hours[hour]
		}
		return eachRow(tx, func(t table, key []byte, hour, size int64) {
			switch {
			case hour > newest, hour == newest && left <= 0:
				return
			case hour == newest:
				left -= size
			}
			keys = append(keys, rowKey(append([]byte{byte(t)}, key...)))
			current = current || t == objects && hour >= today
		})
	})
	return keys, current, err
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
