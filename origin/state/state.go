// Package state keeps what an edge knows by itself and must not forget: which channel the device of an old plugin chose
// (protocol 5), and which rollouts this edge has paused.
//
// All of it is in memory, and in one file. Reads take memory alone; a write returns once it is on disk, together with all
// others that came meanwhile. A failing disk therefore costs writes, never answers.
//
// Everything belongs to a scope, the identity of the origin that an app comes from, so that two sites with different
// origins and the same app never mix. The file is this site's own: nothing of it is told to other edges.
package state

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

// The errors callers tell apart. Any other says that the disk or the file failed.
var (
	// ErrFull: what is kept, or what is kept of an app, has reached its bound, and the new thing was refused. What is there can
	// be changed and removed.
	ErrFull = errors.New("no more can be kept")
	// ErrTooLarge: a name or a document is longer than what is kept.
	ErrTooLarge = errors.New("too large to be kept")
	// ErrLost is reported, never returned: the file was damaged, and what it held is not known any more, or not all of it.
	ErrLost = errors.New("what was kept is lost")
	// ErrClosed: the state was closed.
	ErrClosed = boltfile.ErrClosed
)

// The bounds. A million assignments take about 50 MiB of memory and 200 MiB of disk. Device ids can be made up, so once half of
// them are there, an app gets no further ones beyond its share, and leaves room for all others.
const (
	MaxAssignments = 1_000_000
	appShare       = 8        // an app has one in so many of MaxAssignments
	MaxPause       = 64 << 10 // bytes of one document
	MaxPauses      = 64 << 20 // bytes of all documents together

	maxName    = 256 // bytes of an app id, or a device id
	choiceSize = 8   // bytes of a channel's id
)

// format is the layout of the file: see write.key.
const format = 1

// Options configure a State.
type Options struct {
	// Path is the file's. Its directory must be there.
	Path string
	// Report is told what is wrong: the file was damaged, the disk fails, a bound was reached. It is told nil when writes
	// work again. Nil: nobody is told.
	Report func(error)

	maxAssignments int // instead of MaxAssignments, for tests
}

// State is the content of one file. Its methods may be called from any goroutine.
type State struct {
	file    *boltfile.File
	report  func(error)
	most    int // assignments
	writes  *boltfile.Queue[*write]
	failing bool // the writer's, as trouble: a fault is reported, and not yet that it is over
	trouble trouble

	commits, failures atomic.Uint64

	mu         sync.RWMutex
	scopes     map[scopeKey]*Scope // guarded by mu, as all below and the maps of the scopes
	assigned   int                 // devices, in all scopes
	pauseBytes int                 // of all documents
}

// Stats count what a State holds and did.
type Stats struct {
	Assignments, Pauses int
	Commits             uint64 // writes to disk, each of any number of changes
	Failures            uint64 // those that failed
}

// Scope is what belongs to one origin.
type Scope struct {
	state *State
	key   scopeKey

	assigned map[deviceKey]int64 // guarded by state.mu
	apps     map[string]int      // likewise; how many of assigned are of each app
	pauses   map[string][]byte   // likewise; documents are never changed

	// How many there are, for those who need not look.
	assignedCount, pausesCount atomic.Int64
}

// scopeKey and deviceKey are digests, of a scope's identity and of an app with a device.
type (
	scopeKey  [16]byte
	deviceKey [16]byte
)

// table is what a row of the file belongs to.
type table uint8

const (
	assignments table = iota
	pauses
	tables
)

// buckets are the tables' names in the file.
var buckets = [tables][]byte{assignments: []byte("assignments"), pauses: []byte("pauses")}

// Open reads the file, or begins one. A damaged one is moved aside and reported, and rows that are not what was written are
// left out; boltfile.ErrLocked and boltfile.ErrNewer are refusals.
func Open(o Options) (*State, error) {
	s := &State{
		report: o.Report, most: o.maxAssignments,
		writes: boltfile.NewQueue[*write](),
		scopes: map[scopeKey]*Scope{},
	}
	if s.report == nil {
		s.report = func(error) {}
	}
	if s.most == 0 {
		s.most = MaxAssignments
	}
	var err error
	s.file, err = boltfile.Open(boltfile.Options{
		Path: o.Path, Format: format, Bolt: bbolt.Options{FreelistType: bbolt.FreelistMapType},
		Report: func(err error) { s.report(fmt.Errorf("%w: %w", ErrLost, err)) },
	})
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("state: reading %s: %w", o.Path, err), s.file.Close())
	}
	go s.writes.Serve(maxBatch, nil, s.commit)
	return s, nil
}

// load takes the file into memory.
func (s *State) load() error {
	var damaged [tables][][]byte // keys
	err := s.file.View(func(tx *bbolt.Tx) error {
		for t := range tables {
			b := tx.Bucket(buckets[t])
			if b == nil {
				continue
			}
			err := b.ForEach(func(k, v []byte) error {
				if value, ok := boltfile.Unseal(k, v); !ok || !s.put(t, k, value) {
					damaged[t] = append(damaged[t], bytes.Clone(k))
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if n := len(damaged[assignments]) + len(damaged[pauses]); n > 0 && err == nil {
		s.report(errors.Join(fmt.Errorf("%w: %d rows are not what was written, and are removed", ErrLost, n), s.remove(damaged)))
	}
	return err
}

func (s *State) remove(keys [tables][][]byte) error {
	return s.file.Update(func(tx *bbolt.Tx) error {
		for t := range tables {
			for _, key := range keys[t] {
				if err := tx.Bucket(buckets[t]).Delete(key); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// put takes a row into memory. It reports false for one that cannot be: no release wrote it.
func (s *State) put(t table, key, value []byte) bool {
	const prefix = len(scopeKey{})
	if len(key) <= prefix || t == assignments && len(value) != choiceSize || len(value) == 0 {
		return false
	}
	scope, name := s.scopeLocked(scopeKey(key[:prefix])), key[prefix:]
	if t == pauses {
		scope.putPause(string(name), value)
	} else {
		scope.putAssigned(name, int64(binary.BigEndian.Uint64(value)))
	}
	return true
}

func (c *Scope) putAssigned(name []byte, channel int64) {
	device := digest16(name)
	if _, known := c.assigned[device]; !known {
		c.countAssigned(name, 1)
	}
	c.assigned[device] = channel
}

func (c *Scope) dropAssigned(name []byte) {
	device := digest16(name)
	if _, known := c.assigned[device]; known {
		c.countAssigned(name, -1)
		delete(c.assigned, device)
	}
}

func (c *Scope) countAssigned(name []byte, n int) {
	c.state.assigned += n
	c.assignedCount.Add(int64(n))
	app := appOf(name)
	if c.apps[app] += n; c.apps[app] == 0 {
		delete(c.apps, app)
	}
}

// putPause replaces an app's document; an empty one removes it.
func (c *Scope) putPause(app string, doc []byte) {
	old, known := c.pauses[app]
	c.state.pauseBytes += len(doc) - len(old)
	switch {
	case len(doc) > 0:
		c.pauses[app] = bytes.Clone(doc)
		if !known {
			c.pausesCount.Add(1)
		}
	case known:
		delete(c.pauses, app)
		c.pausesCount.Add(-1)
	}
}

// Scope is the part of the state that belongs to an origin.
func (s *State) Scope(identity string) *Scope {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scopeLocked(scopeKey(digest16([]byte(identity))))
}

func (s *State) scopeLocked(key scopeKey) *Scope {
	c := s.scopes[key]
	if c == nil {
		c = &Scope{state: s, key: key, assigned: map[deviceKey]int64{}, apps: map[string]int{}, pauses: map[string][]byte{}}
		s.scopes[key] = c
	}
	return c
}

// Assigned returns the channel that the device chose, by its id. device is in lower case. It costs nothing while no device
// of the scope has chosen one.
func (c *Scope) Assigned(app, device string) (channel int64, ok bool) {
	if c.assignedCount.Load() == 0 {
		return 0, false
	}
	var room [2*maxName + 1]byte
	key := digest16(appendName(room[:0], app, device))
	c.state.mu.RLock()
	defer c.state.mu.RUnlock()
	channel, ok = c.assigned[key]
	return channel, ok
}

// Pauses returns the document kept for the app, or nil. It must not be changed.
func (c *Scope) Pauses(app string) []byte {
	if c.pausesCount.Load() == 0 {
		return nil
	}
	c.state.mu.RLock()
	defer c.state.mu.RUnlock()
	return c.pauses[app]
}

// AllPauses returns the documents of the scope by app. They must not be changed.
func (c *Scope) AllPauses() map[string][]byte {
	c.state.mu.RLock()
	defer c.state.mu.RUnlock()
	return maps.Clone(c.pauses)
}

// Stats tells what the state holds.
func (s *State) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	stats := Stats{Assignments: s.assigned, Commits: s.commits.Load(), Failures: s.failures.Load()}
	for _, c := range s.scopes {
		stats.Pauses += len(c.pauses)
	}
	return stats
}

// Assign notes that the device chose a channel. If ctx ends first, the choice may be kept or not.
func (c *Scope) Assign(ctx context.Context, app, device string, channel int64) error {
	value := binary.BigEndian.AppendUint64(nil, uint64(channel))
	return c.write(ctx, assignments, appendName(nil, app, device), value)
}

// UnassignAll forgets the choices of all devices of an app, and returns how many those were. If ctx ends first, they may be
// forgotten or not.
func (c *Scope) UnassignAll(ctx context.Context, app string) (int, error) {
	w := &write{scope: c, table: assignments, name: appendName(nil, app, ""), all: true}
	if err := c.commit(ctx, w); err != nil {
		return 0, err
	}
	return len(w.gone), nil
}

// Unassign forgets the device's choice.
func (c *Scope) Unassign(ctx context.Context, app, device string) error {
	return c.write(ctx, assignments, appendName(nil, app, device), nil)
}

// SetPauses keeps a document for the app, in place of the one before. An empty one removes that.
func (c *Scope) SetPauses(ctx context.Context, app string, doc []byte) error {
	if len(doc) > MaxPause {
		return ErrTooLarge
	}
	return c.write(ctx, pauses, []byte(app), doc)
}

// appendName appends an app and a device. Neither contains a NUL.
func appendName(dst []byte, app, device string) []byte {
	return append(append(append(dst, app...), 0), device...)
}

// appOf is the app of a name.
func appOf(name []byte) string {
	app, _, _ := bytes.Cut(name, []byte{0})
	return string(app)
}

func digest16(b []byte) [16]byte {
	sum := sha256.Sum256(b)
	return [16]byte(sum[:16])
}
