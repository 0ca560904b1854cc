package stats

import (
	"bytes"
	"errors"
	"math/bits"
	"runtime"

	"go.etcd.io/bbolt"
)

// The file of bbolt grows and never shrinks, and a transaction writes its pages beside those it replaces. So the bound is
// kept in pages: a commit that finds fewer than the reserve free drops the oldest records, whose pages serve the next one.
const (
	minReserve = 24 // pages
	maxReserve = 4096
	txPages    = 12       // that each transaction writes beside the data
	minGrowth  = 64 << 10 // bytes that the file grows by
	maxGrowth  = 4 << 20
	// spare is how many pages beyond its bound the file may have, of 4 KiB each as a rule: 384 KiB. They are for what makes room,
	// a drop or a delivery, and for claims; what adds events has no part in them. The file is written anew once it has used them.
	spare = 96
	// unconfirmedShare is the part of the file that the apps which are not known to exist get together, and
	// unconfirmedApps how many of them there are at most.
	unconfirmedShare = 16
	unconfirmedApps  = 10_000
)

// limit sets what the file may grow to.
func (s *store) limit(maxBytes int64) {
	s.maxBytes = maxBytes
	if runtime.GOOS == "windows" && maxBytes < 1<<30 { // there the file has the size of its map, a power of two
		maxBytes = 1 << (bits.Len64(uint64(maxBytes)) - 1)
	}
	s.high = int(maxBytes/s.pageSize()) - 1
	s.measure()
}

// measure notes the size of the file, and that bbolt is not to grow it.
func (s *store) measure() {
	if info, err := s.file.Stat(); err == nil {
		s.size = info.Size()
	}
	s.db.AllocSize, s.db.MaxSize = 0, int(s.size)
	if runtime.GOOS == "windows" {
		s.db.MaxSize = int(s.maxBytes)
	}
}

// grow has the file have so many pages free, as far as its bound allows.
func (s *store) grow(pages int) error {
	missing := int64(pages-s.fits()) * s.pageSize()
	if missing <= 0 || s.frozen || runtime.GOOS == "windows" {
		return nil
	}
	step := min(max(s.maxBytes/64, minGrowth), maxGrowth)
	return s.growTo(min(s.size+(missing+step-1)/step*step, s.maxBytes))
}

// growTo writes zeros, so that a full disk is met here, and not in the middle of a commit: after one that fails bbolt goes
// through the whole file to find the free pages again.
func (s *store) growTo(size int64) error {
	if size <= s.size {
		return nil
	}
	defer s.measure()
	for chunk := make([]byte, min(size-s.size, maxGrowth)); s.size < size; s.measure() {
		if _, err := s.file.WriteAt(chunk[:min(int64(len(chunk)), size-s.size)], s.size); err != nil {
			return errors.Join(err, s.file.Truncate(s.size))
		}
	}
	return s.file.Sync()
}

// beyond is update with the spare: the file has as many pages free for it, whether it is at its bound, above it, as that was
// lowered, or frozen. The file keeps them until it is written anew, so that it is never larger than its bound, or what was in
// use when that was lowered, and the spare. On Windows it is twice as large meanwhile.
func (s *store) beyond(f func() error) error {
	defer s.measure()
	var full error
	if runtime.GOOS == "windows" {
		s.db.MaxSize = 2 * int(max(s.size, s.maxBytes))
	} else {
		full = s.growTo(s.size + int64(spare-s.fits())*s.pageSize())
	}
	err := s.update(0, f)
	if isTooFew(err) {
		err = errors.Join(err, full)
	}
	return err
}

// over reports that the file is above its bound, and would use what it has there if so many pages of events were added.
func (s *store) over(pages int) bool { return s.size > s.maxBytes && s.roomNow() < pages }

// fits is how many pages a transaction may write with the file as it is.
func (s *store) fits() int {
	used, _ := s.pages(s.fileSize())
	if runtime.GOOS == "windows" {
		return int(int64(s.db.MaxSize)/s.pageSize()) - 1 - used
	}
	return int(s.size/s.pageSize()) - 1 - used
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

// reserveOf is how many pages are to be free for the next transaction of a file of so many.
func reserveOf(pages int) int { return min(max(pages/16, minReserve), maxReserve) }

func (s *store) reserve() int { return reserveOf(s.high) }

// pagesFor is how many pages a transaction writes that adds so many bytes to so many lanes, at most in all likelihood: the
// data, the last page of each lane, those above it, and those of the other buckets.
func (s *store) pagesFor(bytes int64, lanes int) int {
	return int(bytes*5/4/s.pageSize()) + lanes*5/4 + txPages
}

// trim drops what is above the bounds, after so many bytes were added by a transaction that writes so many pages.
func (s *store) trim(appended int64, pages int) error {
	if err := s.trimUnconfirmed(); err != nil || s.frozen {
		return err
	}
	room := s.room()
	short := int(appended*5/4/s.pageSize()) + s.reserve() - room
	if short <= 0 {
		return nil
	}
	// A little more, so that not each commit has to.
	return s.dropBytes(int64(short+s.reserve()/4)*s.pageSize(), room-pages)
}

// dropBytes drops events of so many bytes, in a transaction that has so many pages left for it. Those of apps that are not
// known to exist have their own bound, and go only when there are no others.
func (s *store) dropBytes(n int64, pages int) error {
	if over := s.apps.unconfirmedBytes - s.unconfirmedMost(); over > 0 { // their share is for when there is room
		dropped, used, err := s.dropLargest(false, min(n, over), pages, reasonUnconfirmed)
		if err != nil {
			return err
		}
		n, pages = n-dropped, pages-used
	}
	for _, confirmed := range []bool{true, false} {
		dropped, used, err := s.dropLargest(confirmed, n, pages, reasonFull)
		if err != nil {
			return err
		}
		n, pages = n-dropped, pages-used
	}
	return nil
}

// unconfirmedMost is how many bytes the apps get together that are not known to exist.
func (s *store) unconfirmedMost() int64 { return int64(s.high) * s.pageSize() / unconfirmedShare }

func (s *store) trimUnconfirmed() error {
	share := s.unconfirmedMost()
	if over := s.apps.unconfirmedBytes - share; over > 0 { // what is left of it goes with the next commit
		if _, _, err := s.dropLargest(false, over+share/64, s.reserve()/4+2*len(s.added), reasonUnconfirmed); err != nil {
			return err
		}
	}
	if s.apps.unconfirmed <= unconfirmedApps {
		return nil
	}
	for _, a := range s.apps.oldestUnconfirmed(s.apps.unconfirmed - unconfirmedApps + min(unconfirmedApps/16, s.reserve()/4)) {
		if _, err := s.dropOldest(a, a.bytes, true, reasonUnconfirmed); err != nil {
			return err
		}
	}
	return nil
}

// dropLargest takes records of so many bytes from the apps that have most, the oldest first, so that all keep the same at
// last. It ends when so many pages are touched. Batches that are on their way stay, if anything else can go.
func (s *store) dropLargest(confirmed bool, n int64, pages int, why reason) (dropped int64, used int, err error) {
	for _, claimed := range []bool{false, true} {
		v := s.apps.victims(confirmed)
		for dropped < n && used < pages {
			a, lead := v.largest()
			if a == nil {
				break
			}
			// Not one by one from apps that have the same: an eighth of one is near enough. But no more than the pages allow,
			// as a file that is full to the last of them could drop nothing any more.
			before := a.total()
			most := int64(pages-used) * s.pageSize()
			got, err := s.dropOldest(a, min(max(min(lead, n-dropped), min(a.bytes/8, dropStep), 1), most), claimed, why)
			if err != nil {
				return dropped, used, err
			}
			if got == 0 {
				v.skip()
				continue
			}
			v.settle()
			dropped += got
			used += int(min(Lanes, before-a.total()) + got/s.pageSize())
		}
	}
	return dropped, used, nil
}

// dropStep is how many bytes an app loses beyond its fair share at most.
const dropStep = 64 << 10

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
