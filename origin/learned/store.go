// Package learned keeps what an edge has learned from an upstream and must still know after a restart: what the addresses
// that it gave out stand for, the answers it got, and notes of what it found out.
//
// There are two promises. What an object's address stands for is on disk before Put returns, because it is answered then
// and clients come back with it (contract 3). Answers and notes are kept as well as it goes: they are written behind, in
// batches, and nobody waits for them.
//
// Everything belongs to a scope, the identity of the upstream it was learned from. The file has a bound; of objects and
// answers what was not used for the longest time goes first. Notes are small and few, and stay.
package learned

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

// The errors callers tell apart. Any other says that the disk or the file failed.
var (
	// ErrTooLarge: an app id, a key or an address is longer than what is kept, or has a NUL in it.
	ErrTooLarge = errors.New("too large to be kept")
	// ErrClosed: the store was closed.
	ErrClosed = boltfile.ErrClosed
)

// DefaultMaxBytes is the bound of the file. An object takes some 500 bytes of it, an answer what it is long.
const DefaultMaxBytes = 256 << 20

const (
	leastMaxBytes = 1 << 20
	maxApp        = 256      // bytes of an app id
	maxKey        = 4 << 10  // bytes of a key
	maxURL        = 16 << 10 // bytes of an address
	maxAnswer     = 8 << 20  // bytes of an answer
	maxWaiting    = 16 << 20 // bytes that wait for being written behind

	flushEvery = time.Second // how long they wait
)

// format is the layout of the file: see keyOf, Object.encode and encodeAnswer. Releases before the notes know nothing of
// their table, and let it be.
const format = 1

// Options configure a Store.
type Options struct {
	// Path is the file's. Its directory must be there.
	Path string
	// MaxBytes bounds the file, roughly: it may be exceeded by what one commit writes. Default: DefaultMaxBytes; at least
	// 1 MiB.
	MaxBytes int64
	// Report is told what is wrong: the file was damaged, the disk fails, the bound is too small. It is told nil when writes
	// work again. Nil: nobody is told.
	Report func(error)
}

// Store is the content of one file. Its methods may be called from any goroutine.
type Store struct {
	file    *boltfile.File
	report  func(error)
	most    int64
	writes  *boltfile.Queue[write]
	due     chan struct{} // what waits for being written behind has waited for long enough
	failing bool          // the writer's: the last commit failed

	commits, failures, dropped, swept, damaged atomic.Uint64

	mu     sync.RWMutex
	behind map[rowKey][]byte // rows that wait; guarded by mu, as all below
	going  map[rowKey][]byte // those being written now
	bytes  int               // of behind
	recent recent
}

// Stats count what a Store holds and did.
type Stats struct {
	Objects, Answers, Notes int    // on disk
	Bytes                   int64  // of the file, in use
	FileBytes               int64  // of the file
	Waiting                 int    // bytes that wait for being written behind
	Commits                 uint64 // writes to disk, each of any number of rows
	Failures                uint64 // those that failed
	Dropped                 uint64 // rows that were to be written behind and were not
	Swept                   uint64 // rows that went because of the bound
	Damaged                 uint64 // rows that were read and were not what was written
}

// Scope is what was learned from one upstream.
type Scope struct {
	store *Store
	key   [16]byte
}

// table is what a row of the file belongs to.
type table uint8

const (
	objects table = iota
	answers
	notes
	tables
)

// buckets are the tables' names in the file.
var buckets = [tables][]byte{objects: []byte("objects"), answers: []byte("answers"), notes: []byte("notes")}

// rowKey is a table, then the row's key in it.
type rowKey string

// Open opens the file, or begins one. A damaged one is moved aside and reported; boltfile.ErrLocked and boltfile.ErrNewer
// are refusals.
func Open(o Options) (*Store, error) {
	s := &Store{
		report: o.Report, most: o.MaxBytes,
		writes: boltfile.NewQueue[write](), due: make(chan struct{}, 1),
		behind: map[rowKey][]byte{}, recent: recent{seed: maphash.MakeSeed()},
	}
	if s.report == nil {
		s.report = func(error) {}
	}
	if s.most == 0 {
		s.most = DefaultMaxBytes
	}
	s.most = max(s.most, leastMaxBytes)
	var err error
	s.file, err = boltfile.Open(boltfile.Options{
		Path: o.Path, Format: format, Report: s.report, Bolt: bbolt.Options{FreelistType: bbolt.FreelistMapType},
	})
	if err != nil {
		return nil, fmt.Errorf("learned: %w", err)
	}
	err = s.file.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("learned: writing %s: %w", o.Path, err), s.file.Close())
	}
	go s.writes.Serve(maxBatch, s.due, s.commit)
	return s, nil
}

// Close writes what waits, and closes the file. Later writes get ErrClosed, later reads find nothing.
func (s *Store) Close() error {
	s.writes.Close()
	return s.file.Close()
}

// Scope is the part of the store that was learned from an upstream. The identity is that of the group of upstreams.
func (s *Store) Scope(identity string) *Scope {
	sum := sha256.Sum256([]byte(identity))
	return &Scope{s, [16]byte(sum[:16])}
}

// Stats tells what the store holds and did.
func (s *Store) Stats() Stats {
	stats := Stats{
		Commits: s.commits.Load(), Failures: s.failures.Load(), Dropped: s.dropped.Load(), Swept: s.swept.Load(),
		Damaged: s.damaged.Load(),
	}
	_ = s.file.View(func(tx *bbolt.Tx) error {
		rows := openLedger(tx).rows
		stats.Objects, stats.Answers, stats.Notes = int(rows[objects]), int(rows[answers]), int(rows[notes])
		stats.Bytes, stats.FileBytes = inUse(tx), tx.Size()
		return nil
	})
	s.mu.RLock()
	defer s.mu.RUnlock()
	stats.Waiting = s.bytes
	return stats
}

// inUse is the part of the file that holds rows. bbolt tells what is free behind a write; Open makes one.
func inUse(tx *bbolt.Tx) int64 { return tx.Size() - int64(tx.DB().Stats().FreeAlloc) }

// keyOf is where a row stands: the table, the scope, the app, a NUL, then the key.
func (c *Scope) keyOf(t table, app, key string) (rowKey, error) {
	if len(app) > maxApp || len(key) > maxKey || strings.IndexByte(app, 0) >= 0 {
		return "", ErrTooLarge
	}
	var room [512]byte
	row := append(append(append(append(append(room[:0], byte(t)), c.key[:]...), app...), 0), key...)
	return rowKey(row), nil
}

func (k rowKey) table() table { return table(k[0]) }

// app is the part of the key that all rows of its app in its table begin with.
func (k rowKey) app() rowKey {
	const before = 1 + len(Scope{}.key)
	return k[:before+strings.IndexByte(string(k[before:]), 0)+1]
}

// inTable is the key within its table.
func (k rowKey) inTable() []byte { return []byte(k[1:]) }

// get returns a row's value, from what waits or from disk, or nil.
func (s *Store) get(k rowKey) (value []byte) {
	s.mu.RLock()
	value, ok := s.waitingLocked(k)
	s.mu.RUnlock()
	if ok {
		return value
	}
	_ = s.file.View(func(tx *bbolt.Tx) error { // reported where it is written to
		key := k.inTable()
		sealed := tx.Bucket(buckets[k.table()]).Get(key)
		if sealed == nil {
			return nil
		}
		var ok bool
		if value, ok = unseal(key, sealed); !ok {
			s.damaged.Add(1)
		}
		return nil
	})
	return value
}

// waitingLocked returns the value of a row that waits, or is being written now.
func (s *Store) waitingLocked(k rowKey) ([]byte, bool) {
	sealed, ok := s.behind[k]
	if !ok {
		sealed, ok = s.going[k]
	}
	if !ok {
		return nil, false
	}
	return sealed[:len(sealed)-boltfile.SealSize], true
}
