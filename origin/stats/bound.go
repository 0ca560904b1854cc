package stats

import (
	"bytes"
	"math/bits"
	"runtime"

	"go.etcd.io/bbolt"
)

// The file of bbolt grows and never shrinks, and a transaction writes its pages beside those it replaces. So the bound is
// kept in pages: a commit that finds fewer than the reserve free drops the oldest records, whose pages serve the next one.
const (
	minReserve = 16       // pages
	minGrowth  = 64 << 10 // bytes that the file grows by
	maxGrowth  = 16 << 20
	// unconfirmedShare is the part of the file that the apps which are not known to exist get together, and
	// unconfirmedApps how many of them there are at most.
	unconfirmedShare = 16
	unconfirmedApps  = 10_000
)

// limit sets what the file may grow to.
func (s *store) limit(maxBytes int64, frozen bool) {
	s.frozen = frozen
	growth := min(max(maxBytes/64, minGrowth), maxGrowth)
	if frozen {
		if info, err := s.file.Stat(); err == nil {
			maxBytes, growth = min(maxBytes, info.Size()), 0
		}
	}
	s.db.AllocSize, s.db.MaxSize = int(growth), int(maxBytes)
	if runtime.GOOS == "windows" && maxBytes < 1<<30 { // the file has the size of its map, a power of two
		maxBytes, growth = 1<<(bits.Len64(uint64(maxBytes))-1), 0
	}
	s.high = int((maxBytes-growth)/s.pageSize()) - 1
}

func (s *store) pageSize() int64 { return int64(s.db.Info().PageSize) }

// pages are how many of the file are in use, and how many it has, as of the last transaction.
func (s *store) pages(txSize int64) (used, all int) {
	st := s.db.Stats()
	all = int(txSize / s.pageSize())
	return all - st.FreePageN - st.PendingPageN, all
}

// room is how many pages this transaction may write.
func (s *store) room() int {
	used, _ := s.pages(s.tx.Size())
	return s.high - used
}

// reserve is how many pages are to be free for the next transaction: a quarter more than one took lately.
func (s *store) reserve() int { return s.usual + s.usual/4 + minReserve }

// noteUsual notes how many pages the last transaction wrote.
func (s *store) noteUsual() {
	st := s.db.Stats()
	written := st.TxStats.GetPageCount()
	s.usual = max(s.usual-s.usual/16, int(written-s.written))
	s.written = written
}

// pagesFor is how many pages records of so many bytes take.
func (s *store) pagesFor(bytes int64) int { return int(bytes*5/4/s.pageSize()) + 1 }

// trim drops what is above the bounds, after so many bytes were added.
func (s *store) trim(appended int64) error {
	if err := s.trimUnconfirmed(); err != nil || s.frozen {
		return err
	}
	short := s.pagesFor(appended) + s.reserve() - s.room()
	if short <= 0 {
		return nil
	}
	return s.dropBytes(int64(short+s.high/64) * s.pageSize()) // a little more, so that not each commit has to
}

// dropBytes makes room for events whose app exists.
func (s *store) dropBytes(n int64) error {
	for _, confirmed := range []bool{true, false} {
		dropped, err := s.dropLargest(confirmed, n, reasonFull)
		if err != nil {
			return err
		}
		n -= dropped
	}
	return nil
}

func (s *store) trimUnconfirmed() error {
	share := int64(s.high) * s.pageSize() / unconfirmedShare
	if over := s.apps.unconfirmedBytes - share; over > 0 {
		if _, err := s.dropLargest(false, over+share/16, reasonUnconfirmed); err != nil {
			return err
		}
	}
	if s.apps.unconfirmed <= unconfirmedApps {
		return nil
	}
	for _, a := range s.apps.oldestUnconfirmed(s.apps.unconfirmed - unconfirmedApps + unconfirmedApps/16) {
		if _, err := s.dropOldest(a, a.bytes, true, reasonUnconfirmed); err != nil {
			return err
		}
	}
	return nil
}

// dropLargest takes records of so many bytes from the apps that have most, the oldest first, so that all keep the same at
// last. Batches that are on their way stay, if anything else can go.
func (s *store) dropLargest(confirmed bool, n int64, why reason) (dropped int64, err error) {
	for _, claimed := range []bool{false, true} {
		v := s.apps.victims(confirmed)
		for dropped < n {
			a, lead := v.largest()
			if a == nil {
				break
			}
			got, err := s.dropOldest(a, max(min(lead, n-dropped), 1), claimed, why)
			if err != nil {
				return dropped, err
			}
			if dropped += got; got > 0 {
				v.settle()
			} else {
				v.skip()
			}
		}
	}
	return dropped, nil
}

// dropChunk bounds what is collected before it is removed.
const dropChunk = 4096

// dropOldest takes records of so many bytes from an app, the oldest first.
func (s *store) dropOldest(a *app, n int64, claimed bool, why reason) (dropped int64, err error) {
	for dropped < n {
		before := a.bytes
		for _, key := range s.oldest(a, n-dropped, claimed) {
			l, _, _ := splitEventKey(key)
			if err := s.drop(a, l, key, why); err != nil {
				return dropped, err
			}
		}
		if a.bytes == before {
			break
		}
		dropped += before - a.bytes
	}
	return dropped, nil
}

// oldest returns the keys of the oldest records of an app, of so many bytes together.
func (s *store) oldest(a *app, n int64, claimed bool) (keys [][]byte) {
	lanes := make([]*laneCursor, 0, Lanes)
	for i, records := range a.records {
		if records == 0 {
			continue
		}
		c := &laneCursor{prefix: Lane{app: a.number, n: uint8(i)}.key(), cursor: s.events.Cursor()}
		if !claimed {
			c.skip = s.claimed(c.prefix)
		}
		if c.seek(); c.key != nil {
			lanes = append(lanes, c)
		}
	}
	for n > 0 && len(keys) < dropChunk {
		var first *laneCursor
		for _, c := range lanes {
			if c.key != nil && (first == nil || bytes.Compare(c.key[laneKeyLen:], first.key[laneKeyLen:]) < 0) {
				first = c
			}
		}
		if first == nil {
			break
		}
		keys = append(keys, bytes.Clone(first.key))
		n -= recordSize(first.key, first.value)
		if h, err := decodeHead(first.key, first.value); err == nil {
			n -= int64(h.length - len(h.data))
		}
		first.next()
	}
	return keys
}

// laneCursor walks over the records of a lane.
type laneCursor struct {
	cursor     *bbolt.Cursor
	prefix     []byte
	skip       map[uint64]struct{} // seqs
	key, value []byte              // nil at the end
}

func (c *laneCursor) seek() { c.take(c.cursor.Seek(c.prefix)) }
func (c *laneCursor) next() { c.take(c.cursor.Next()) }

func (c *laneCursor) take(key, value []byte) {
	for ; bytes.HasPrefix(key, c.prefix); key, value = c.cursor.Next() {
		_, seq, ok := splitEventKey(key)
		if _, skip := c.skip[seq]; ok && !skip && isHead(key) {
			c.key, c.value = key, value
			return
		}
	}
	c.key, c.value = nil, nil
}
