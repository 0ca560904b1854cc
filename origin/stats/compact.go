package stats

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

const (
	// A file is written anew when it could be far smaller, so that the disk gets back what an outage of the collector took:
	// when it has more than wasteAbove bytes, of which less than one in wasteShare, and at most compactAtMost, is in use.
	wasteAbove    = 32 << 20
	wasteShare    = 8
	compactAtMost = 16 << 20
	// compactEvery is how often it is tried.
	compactEvery = time.Minute
)

// maintain keeps the reserve, and brings a file that is too large, for its bound or for what is in it, to its size.
func (s *Spool) maintain(t tuning) {
	st := s.store
	if st == nil || st.stale || st.broken || st.frozen {
		return
	}
	st.limit(t.maxBytes)
	if st.roomNow() < st.reserve() {
		err := s.makeRoom(t, st.reserve())
		s.publish()
		if err != nil {
			s.fail(commitError(s.path, err))
			return
		}
	}
	used := st.usedBytes()
	over := st.size > t.maxBytes
	wasteful := st.size > wasteAbove && used < st.size/wasteShare && used < compactAtMost
	switch {
	case !over && !wasteful:
		s.faults.set(faultSize, nil)
		return
	case time.Since(s.compacted) < compactEvery:
		return
	}
	s.compacted = time.Now() // before, as compact may open the file again, which comes here
	if err := s.compact(t); err != nil {
		s.sizeFailed(fmt.Errorf("make spool %s smaller, which is tried again in a minute: %w", s.path, err))
		return
	}
	if s.store.size <= t.maxBytes { // else it would be written anew after each commit
		s.compacted = time.Time{}
	}
	s.faults.set(faultSize, nil)
}

// sizeFailed tells that the file could not be made smaller: no harm, unless there is no file any more.
func (s *Spool) sizeFailed(err error) {
	if s.store == nil {
		s.fail(err)
		return
	}
	s.faults.set(faultSize, stillTaking(err))
}

const leftoverSuffix = ".new"

func removeLeftover(path string) { _ = os.Remove(path + leftoverSuffix) } // it is not there, as a rule

// compact writes what is in the file into a new one that takes its place.
func (s *Spool) compact(t tuning) error {
	st := s.store
	if left, ok := s.disk.ask(); ok && left < st.usedBytes()*5/4+minGrowth {
		return fmt.Errorf("%w: it takes %d bytes for a moment, and %d are left", ErrNoSpace, st.usedBytes()*5/4+minGrowth, left)
	}
	next := s.path + leftoverSuffix
	removeLeftover(s.path)
	if err := guard(func() error { return st.copyTo(next, t.maxBytes) }); err != nil {
		removeLeftover(s.path)
		return err
	}
	// From here on the spool has no file for a moment. One that cannot be opened again is tried again with the next commit.
	err := st.close()
	s.store = nil
	if err = errors.Join(err, os.Rename(next, s.path), boltfile.SyncDir(filepath.Dir(s.path))); err != nil {
		return errors.Join(err, s.open(true))
	}
	if s.store, err = openStore(s.path, t.maxBytes); err != nil {
		s.store = nil
	}
	return err
}

// copyTo writes what is in the file into another one, and syncs it.
func (s *store) copyTo(path string, maxBytes int64) error {
	dst, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, NoSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	dst.AllocSize = minGrowth
	if err := bbolt.Compact(dst, s.db, salvageChunk); err != nil {
		return errors.Join(err, dst.Close())
	}
	if err := dst.Sync(); err != nil {
		return errors.Join(err, dst.Close())
	}
	return dst.Close()
}

// usedBytes are those of the pages that are in use.
func (s *store) usedBytes() int64 {
	used, _ := s.pages(s.fileSize())
	return int64(used) * s.pageSize()
}

// roomNow is how many pages the next transaction could write in a file of the size of its bound.
func (s *store) roomNow() int {
	used, _ := s.pages(s.fileSize())
	return s.high - used
}

// fileSize is that of the part of the file that was ever in use.
func (s *store) fileSize() (size int64) {
	err := guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			size = tx.Size()
			return nil
		})
	})
	if err != nil {
		s.broken = true
	}
	return size
}
