package stats

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

const (
	// deepCheck is the size of a file, in bytes, up to which all of it is checked when it is opened. Of a larger one the pages of
	// records are read when they are wanted.
	deepCheck = 64 << 20
	// keptDamaged is how many damaged files are kept for inspection.
	keptDamaged = 2
	// repairEvery is how often a file is set aside that bbolt fails with again and again.
	repairEvery = time.Minute
)

// open opens the file, or begins a new one if it is damaged. With deep all of it is checked.
func (s *Spool) open(deep bool) error {
	removeLeftover(s.path)
	return s.begin(func(t tuning) (*store, error) {
		st, err := openSound(s.path, t.maxBytes, deep)
		if errors.Is(err, errDamaged) {
			return s.replace(t, err)
		}
		return st, err
	})
}

// begin makes the store that open returns the spool's.
func (s *Spool) begin(open func(tuning) (*store, error)) (err error) {
	s.mu.Lock()
	t := s.tuning
	s.mu.Unlock()
	if s.store, err = open(t); err != nil {
		s.store = nil
		return err
	}
	s.adopt()
	s.maintain(t)
	s.publish()
	return nil
}

// openSound opens a file if nothing is found to be wrong with it. With deep all of it is read.
func openSound(path string, maxBytes int64, deep bool) (*store, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		if err := checkFile(path, deep || info.Size() <= deepCheck); err != nil {
			return nil, err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	return openStore(path, maxBytes)
}

// checkFile looks at a file that no other process has open.
func checkFile(path string, deep bool) (err error) {
	var db *bbolt.DB
	err = guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout}) // for its lock
		return err
	})
	if err != nil {
		return openError(path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open spool: %w", err)
	}
	defer f.Close() //nolint:errcheck // it is only read
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open spool: %w", err)
	}
	t, err := openTree(f, info.Size())
	if err == nil {
		t.deep = deep
		if t.free == noFreelist && !deep { // it was not closed: bbolt will go through all of it, without being careful
			t.deep = true
			_, _ = io.Copy(io.Discard, f) // a cold disk takes a tenth of the time for it in this order
		}
		err = t.check()
	}
	if err != nil {
		return fmt.Errorf("open spool %s: %w", path, err)
	}
	return nil
}

// ready makes the store fit for a transaction, after one that failed.
func (s *Spool) ready() error {
	if s.store != nil && s.store.stale && !s.store.broken {
		if err := s.store.load(); errors.Is(err, errDamaged) {
			s.store.broken = true
		} else if err != nil {
			return err
		}
	}
	if s.store != nil && !s.store.broken {
		return nil
	}
	return s.reopen()
}

// reopen opens a file again that was found damaged while it was in use. If that finds nothing wrong with it, and it is
// found damaged again within a minute, it is set aside.
func (s *Spool) reopen() error {
	broken := s.store
	if broken != nil {
		_ = broken.close() // what matters of it is on disk
		s.store = nil
		if time.Since(s.repaired) > repairEvery {
			s.repairs = 0
		}
		s.repairs, s.repaired = s.repairs+1, time.Now()
	}
	var err error
	switch {
	case s.repairs > 2 && time.Since(s.repaired) < repairEvery:
		return fmt.Errorf("%w again and again; it is tried again in a minute", errDamaged)
	case s.repairs == 2 && broken != nil:
		err = s.begin(func(t tuning) (*store, error) { return s.replace(t, errDamaged) })
	default:
		err = s.open(true)
	}
	if err == nil {
		s.tellAll(s.store)
	}
	return err
}

// adopt takes over what a file counts.
func (s *Spool) adopt() {
	st := s.store
	s.mu.Lock()
	s.overflow = max(s.overflow, st.state.dropped[reasonOfferedOverflow])
	s.mu.Unlock()
	s.dead.adopt(st.state.dropped[reasonDeadLettersFull])
}

// replace sets a damaged file aside and puts into a new one what can be read of it.
func (s *Spool) replace(t tuning, cause error) (*store, error) {
	aside := fmt.Sprintf("%s.damaged-%s", s.path, time.Now().UTC().Format("20060102T150405.000Z"))
	if err := os.Rename(s.path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("set a damaged spool aside: %w", err)
	}
	if err := boltfile.SyncDir(filepath.Dir(s.path)); err != nil {
		return nil, fmt.Errorf("set a damaged spool aside: %w", err)
	}
	forgetDamaged(s.path)
	st, err := openStore(s.path, t.maxBytes)
	if err != nil {
		return nil, err
	}
	saved, lost, err := st.salvage(aside)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("save what is in %s: %w", aside, err), st.close())
	}
	s.fail(fmt.Errorf("%w; it is %s now, %d events of it were saved and %d are lost", cause, aside, saved, lost))
	return st, nil
}

// forgetDamaged removes all but the newest damaged files.
func forgetDamaged(path string) {
	all, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*.damaged-*"))
	if err != nil {
		return
	}
	prefix := path + ".damaged-"
	all = slices.DeleteFunc(all, func(p string) bool { return len(p) < len(prefix) || p[:len(prefix)] != prefix })
	slices.Sort(all)
	for _, old := range all[:max(0, len(all)-keptDamaged)] {
		_ = os.Remove(old) // it is tried again when the next one is set aside
	}
}

// salvageChunk is how many bytes of a damaged file one transaction puts into the new one.
const salvageChunk = 8 << 20

// salvage puts into an empty store what can be read of a damaged file. Its batches are forgotten, and with them their keys.
func (s *store) salvage(path string) (saved, lost int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close() //nolint:errcheck // it is only read
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	t, err := openTree(f, info.Size())
	if errors.Is(err, errDamaged) {
		return 0, 0, nil // nothing of it can be read
	} else if err != nil {
		return 0, 0, err
	}
	w := wreck{tree: t, apps: map[uint64]*app{}}
	if err := w.readApps(); err != nil {
		return 0, 0, err
	}
	if err := w.readEvents(s); err != nil {
		return 0, 0, err
	}
	for _, a := range w.apps {
		lost += a.total()
	}
	lost = max(lost-w.saved, w.damaged)
	return w.saved, lost, s.update(txPages, func() error {
		for i, n := range w.state.dropped {
			s.state.dropped[i] += n
		}
		s.count(reasonDamaged, uint64(lost))
		return nil
	})
}

// wreck is a damaged file.
type wreck struct {
	tree  *tree
	state state
	apps  map[uint64]*app // as the file counted them

	head           []byte // key of the event whose pieces follow
	chunk          []found
	size           int64
	saved, damaged int64
}

type found struct{ key, value []byte }

// walk goes through what can be read.
func (w *wreck) walk(visit func(bucket string, key, value []byte) error) error {
	clear(w.tree.seen)
	w.tree.deep, w.tree.visit = true, visit
	w.tree.bad = func(error) error { return nil }
	return w.tree.walk()
}

func (w *wreck) readApps() error {
	return w.walk(func(bucket string, key, value []byte) error {
		switch bucket {
		case string(bucketApps):
			if a, err := decodeApp(key, value); err == nil {
				w.apps[a.number] = a
			}
		case string(bucketMeta):
			if st, err := decodeState(key, value); err == nil {
				w.state = st
			}
		}
		return nil
	})
}

func (w *wreck) readEvents(s *store) error {
	err := w.walk(func(bucket string, key, value []byte) error {
		if bucket != string(bucketEvents) {
			return nil
		}
		l, _, ok := splitEventKey(key)
		_, err := decodeHead(key, value)
		switch {
		case !ok || w.apps[l.app] == nil || isHead(key) && err != nil:
			w.damaged++
			w.head = nil
			return nil
		case isHead(key):
			w.head = key
		case w.head == nil || !bytes.HasPrefix(key, w.head): // a piece of nothing
			return nil
		}
		w.chunk = append(w.chunk, found{key: key, value: value})
		if w.size += recordSize(key, value); w.size < salvageChunk || !isHead(key) {
			return nil
		}
		return w.flush(s)
	})
	if err != nil {
		return err
	}
	return w.flush(s)
}

func (w *wreck) flush(s *store) error {
	err := s.update(s.pagesFor(w.size, len(s.apps.byNumber)), func() error {
		for _, r := range w.chunk {
			if err := s.restore(w.apps, r); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, bolterrors.ErrMaxSizeReached) { // the bound was lowered at the same time: what has no room is lost
		w.chunk = nil
		return s.load()
	}
	for _, r := range w.chunk {
		if isHead(r.key) {
			w.saved++
		}
	}
	w.chunk, w.size = nil, 0
	return err
}

// restore puts a record back under the number it had, so that the order stays.
func (s *store) restore(apps map[uint64]*app, r found) error {
	l, seq, _ := splitEventKey(r.key)
	a := s.apps.byNumber[l.app]
	if a == nil {
		old := apps[l.app]
		a = &app{number: old.number, id: old.id, confirmed: old.confirmed}
		s.apps.put(a)
	}
	s.state.apps = max(s.state.apps, l.app)
	s.state.events = max(s.state.events, seq)
	s.touched[a], s.heads[l], s.changed = struct{}{}, struct{}{}, true
	if isHead(r.key) {
		s.apps.count(a, l.n, 1, 0)
	}
	return s.put(a, l, r.key, r.value)
}
