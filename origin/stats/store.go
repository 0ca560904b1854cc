package stats

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

// The buckets of the file, and the only key of the first.
var (
	bucketMeta   = []byte("meta")
	bucketApps   = []byte("apps")
	bucketEvents = []byte("events")
	bucketClaims = []byte("claims")
	keyState     = []byte("state")
)

// errDamaged says that the file is not what was written.
var errDamaged = errors.New("the file is damaged")

// errUnchanged ends a transaction that has nothing to write.
var errUnchanged = errors.New("nothing changed")

// store is the file, and what is known of it. It is used by one goroutine, which has bbolt to itself: there are no read
// transactions that would hold free pages or wait for the file to grow, and the file can be exchanged at any time.
type store struct {
	path     string
	db       *bbolt.DB
	file     *os.File // bbolt's, for when bbolt can no longer close it
	place    boltfile.Place
	maxBytes int64
	size     int64 // of the file
	high     int   // page that the file may grow up to, see limit
	// frozen says that the file may not grow, as the disk is nearly full, or the file has no name any more.
	frozen bool

	state  state
	apps   apps
	hints  map[Lane]*hint
	stale  bool // a transaction failed, so state and apps may not be those of the file
	broken bool // the file was found damaged
	stuck  bool // bbolt panicked, and may hold its own locks

	// Of the transaction that runs.
	tx                         *bbolt.Tx
	meta, rows, events, claims *bbolt.Bucket
	touched                    map[*app]struct{} // whose rows are to be written
	heads                      map[Lane]struct{} // whose first record may be another
	added                      map[Lane]struct{} // that got records
	changed                    bool
}

// openStore opens or creates the file, which is known to be sound. The goroutine that calls it must be the one that
// uses it, see guard.
func openStore(path string, maxBytes int64) (s *store, err error) {
	s = &store{path: path}
	defer func() {
		if err != nil {
			_ = s.close() // err says more
		}
	}()
	o := &bbolt.Options{
		Timeout:      lockTimeout,
		FreelistType: bbolt.FreelistMapType,
		// The list of free pages is written by close alone. With each commit it would take up to a five-hundredth of the
		// file, in pages that follow one another. After a crash bbolt goes through the file to find them.
		NoFreelistSync: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, mode)
			s.file = f
			return f, err
		},
	}
	if runtime.GOOS != "windows" { // where a map is as large as the file
		o.InitialMmapSize = int(min(maxBytes, maxMap))
	}
	err = guard(func() (err error) {
		s.db, err = bbolt.Open(path, 0o600, o)
		return err
	})
	if err != nil {
		return s, openError(path, err)
	}
	s.place = boltfile.PlaceOf(path, s.file)
	if err := boltfile.SyncName(path); err != nil {
		return s, fmt.Errorf("open spool: %w", err)
	}
	s.limit(maxBytes)
	return s, s.load()
}

const (
	lockTimeout = time.Second
	maxMap      = 1 << 40 // of address space, above which the file is mapped again as it grows
)

// openError says what to do about a file that cannot be opened.
func openError(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("open spool %s: %w", path, ErrLocked)
	case isFileError(err):
		return fmt.Errorf("open spool: %w", err)
	default:
		return fmt.Errorf("open spool %s: %w: %w", path, errDamaged, err)
	}
}

// isFileError reports that the system refused something, which says nothing about what the file holds.
func isFileError(err error) bool {
	_, is := errors.AsType[*fs.PathError](err)
	return is
}

// guard runs f, and makes an error of the panics with which bbolt answers pages that are not what it wrote, and of the
// faults of memory that a file which became shorter leaves behind it (debug.SetPanicOnFault is on for this goroutine).
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	return f()
}

// close closes the file. When bbolt has panicked it may hold its own locks, and Close would wait for ever; then the file is
// taken from under it, and the map of it stays until the process ends.
func (s *store) close() error {
	if s.db == nil || s.stuck {
		if s.file != nil {
			unlock(s.file)
			_ = s.file.Close() // bbolt may have closed it
		}
		return nil
	}
	return guard(func() error {
		s.db.NoFreelistSync = false
		list := s.db.Stats().FreelistInuse/int(s.pageSize()) + 1
		_ = s.update(2*list+txPages, func() error { s.changed = true; return nil }) // without it the next start takes longer
		return s.db.Close()
	})
}

// load reads state and apps, and begins them in a new file.
func (s *store) load() error {
	s.apps, s.hints, s.stale = newApps(), map[Lane]*hint{}, false
	pages := 0 // as a rule there is nothing to write, and a full disk does not matter
	if s.size <= 4*s.pageSize() {
		pages = txPages // the file is new
	}
	return s.update(pages, func() error {
		value := s.meta.Get(keyState)
		if value == nil {
			s.changed = true
			s.state = state{instance: newInstance()}
			return nil
		}
		var err error
		if s.state, err = decodeState(keyState, value); err != nil {
			return asDamage(err)
		}
		c := s.rows.Cursor()
		for key, value := c.First(); key != nil; key, value = c.Next() {
			a, err := decodeApp(key, value)
			if err != nil {
				return asDamage(err)
			}
			s.apps.put(a)
			for n, records := range a.records {
				if l := (Lane{app: a.number, n: uint8(n)}); records > 0 {
					s.heads[l] = struct{}{}
				}
			}
		}
		return nil
	})
}

// asDamage makes a damaged record, where that is not an event, damage of the file.
func asDamage(err error) error {
	if errors.Is(err, errRecord) {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return err
}

func newInstance() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return binary.BigEndian.Uint64(b[:])
}

// update runs f in a transaction that writes so many pages in all likelihood, and commits if it changed anything. After an
// error nothing has changed, and what memory knows is read from the file again before the next one.
func (s *store) update(pages int, f func() error) error {
	if err := s.grow(2 * pages); s.fits() < pages {
		return errors.Join(bolterrors.ErrMaxSizeReached, err)
	}
	s.touched, s.heads, s.added = map[*app]struct{}{}, map[Lane]struct{}{}, map[Lane]struct{}{}
	s.changed = false
	s.stuck = true
	err := guard(func() error {
		err := s.transact(f)
		s.stuck = false
		return err
	})
	s.tx = nil
	if errors.Is(err, errUnchanged) {
		return nil
	}
	s.stale = err != nil
	s.broken = s.broken || errors.Is(err, errDamaged) // after a panic, bbolt may hold its locks for ever
	return err
}

// isTooFew reports that a transaction failed as it needed more pages than the file may have.
func isTooFew(err error) bool { return errors.Is(err, bolterrors.ErrMaxSizeReached) }

// transact is bbolt's Update, but for what that does when f panics: it would go through the whole file to find the free
// pages, in a goroutine whose own panic nobody can recover from. Here the file is given up instead.
func (s *store) transact(f func() error) (err error) {
	if s.tx, err = s.db.Begin(true); err != nil {
		return err
	}
	if err = s.openBuckets(); err == nil {
		if err = f(); err == nil {
			err = s.flush()
		}
	}
	if err != nil {
		_ = s.tx.Rollback() // it says only that there is no transaction
		return err
	}
	return s.tx.Commit()
}

func (s *store) openBuckets() (err error) {
	for _, b := range []struct {
		bucket **bbolt.Bucket
		name   []byte
	}{{&s.meta, bucketMeta}, {&s.rows, bucketApps}, {&s.events, bucketEvents}, {&s.claims, bucketClaims}} {
		if *b.bucket = s.tx.Bucket(b.name); *b.bucket == nil {
			if *b.bucket, err = s.tx.CreateBucket(b.name); err != nil {
				return err
			}
			s.changed = true
		}
	}
	// Records come at the end of their lane, and go at its beginning: pages are filled nearly to the brim.
	s.events.FillPercent = 0.9
	return nil
}

// flush writes what the transaction changed of state and apps.
func (s *store) flush() error {
	s.findHeads()
	for a := range s.touched {
		if err := s.flushApp(a); err != nil {
			return err
		}
	}
	if !s.changed {
		return errUnchanged
	}
	return s.meta.Put(keyState, encodeState(keyState, &s.state))
}

func (s *store) flushApp(a *app) error {
	if a.total() > 0 {
		return s.rows.Put(a.key(), encodeApp(a.key(), a))
	}
	for n := range uint8(Lanes) {
		l := Lane{app: a.number, n: n}
		delete(s.hints, l)
		if err := s.claims.Delete(l.key()); err != nil {
			return err
		}
	}
	s.apps.remove(a)
	return s.rows.Delete(a.key())
}

// findHeads looks at the first records of the lanes that may have others than before.
func (s *store) findHeads() {
	c := s.events.Cursor()
	for l := range s.heads {
		a := s.apps.byNumber[l.app]
		if a == nil {
			continue
		}
		prefix := l.key()
		key, value := c.Seek(prefix)
		if !bytes.HasPrefix(key, prefix) {
			a.oldest[l.n] = 0
		} else if h, err := decodeHead(key, value); err == nil {
			a.oldest[l.n] = h.time.UnixMilli()
		}
		s.apps.lookAgain(a)
	}
}

// entry is an event on its way into the store.
type entry struct {
	app       string
	confirmed bool
	device    uint64
	time      time.Time
	data      []byte
}

func (s *store) append(e *entry) error {
	a := s.apps.byID[e.app]
	if a == nil {
		s.state.apps++
		a = &app{number: s.state.apps, id: e.app, confirmed: e.confirmed}
		s.apps.put(a)
	}
	if e.confirmed {
		s.apps.confirm(a)
	}
	s.state.events++
	l := laneOf(a.number, e.device)
	key := eventKey(l, s.state.events)
	if a.records[l.n] == 0 {
		s.heads[l] = struct{}{}
	}
	s.apps.count(a, l.n, 1, 0)
	s.touched[a], s.added[l], s.changed = struct{}{}, struct{}{}, true
	if err := s.put(a, l, key, encodeHead(key, e)); err != nil {
		return err
	}
	for part, rest := 1, e.data; len(rest) > pieceLen; part++ {
		rest = rest[pieceLen:]
		key := partKey(key, part)
		if err := s.put(a, l, key, encodePart(key, rest[:min(len(rest), pieceLen)])); err != nil {
			return err
		}
	}
	return nil
}

// put writes a piece of an event.
func (s *store) put(a *app, l Lane, key, value []byte) error {
	s.apps.count(a, l.n, 0, recordSize(key, value))
	return s.events.Put(key, value)
}

// remove takes an event out, if it is there.
func (s *store) remove(a *app, l Lane, key []byte) (found bool, err error) {
	var keys [][]byte
	size := int64(0)
	c := s.events.Cursor()
	for k, v := c.Seek(key); bytes.HasPrefix(k, key); k, v = c.Next() {
		keys = append(keys, bytes.Clone(k))
		size += recordSize(k, v)
	}
	if len(keys) == 0 {
		return false, nil
	}
	s.apps.count(a, l.n, -1, -size)
	if a.records[l.n] < 0 || a.bytes < 0 {
		return false, fmt.Errorf("%w: lane %d of the app %q holds more than was counted", errDamaged, l.n, a.id)
	}
	s.touched[a], s.heads[l], s.changed = struct{}{}, struct{}{}, true
	for _, k := range keys {
		if err := s.events.Delete(k); err != nil {
			return true, err
		}
	}
	return true, nil
}

// read returns a copy of an event that c stands at, and leaves c where the next one begins.
func (s *store) read(c *bbolt.Cursor, key, value []byte) (r Record, nextKey, nextValue []byte, err error) {
	head := bytes.Clone(key)
	h, err := decodeHead(key, value)
	if err == nil {
		_, r.Seq, _ = splitEventKey(key)
		r.Device, r.Time, r.Data = h.device, h.time, append(make([]byte, 0, h.length), h.data...)
	}
	nextKey, nextValue = c.Next()
	for part := 1; bytes.HasPrefix(nextKey, head); part++ {
		if err == nil && len(nextValue) > crcLen && bytes.Equal(nextKey, partKey(head, part)) && unseal(nextKey, nextValue) != nil {
			r.Data = append(r.Data, nextValue[crcLen:]...)
		} else {
			err = errRecord
		}
		nextKey, nextValue = c.Next()
	}
	if len(r.Data) != h.length {
		err = errRecord
	}
	return r, nextKey, nextValue, err
}

// drop takes a record out, and counts why.
func (s *store) drop(a *app, l Lane, key []byte, why reason) error {
	found, err := s.remove(a, l, key)
	if found {
		s.count(why, 1)
	}
	return err
}

func (s *store) count(why reason, n uint64) {
	s.state.dropped[why] += n
	s.changed = true
}
