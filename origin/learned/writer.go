package learned

import (
	"bytes"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

// row is a row on its way to disk, with its value sealed.
type row struct {
	key   rowKey
	value []byte
}

// write is what goes to disk together.
type write struct {
	rows []row
	drop rowKey // answers whose keys begin with it go; empty: none
}

// change is a write that somebody waits for.
type change = boltfile.Change[write]

// maxBatch bounds the changes of one commit, and with them how long the first of them waits for the others.
const maxBatch = 256

// later leaves a row to be written behind. Reads have it at once.
func (s *Store) later(k rowKey, sealed []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.laterLocked(k, sealed)
}

func (s *Store) laterLocked(k rowKey, sealed []byte) {
	total := s.bytes + len(k) + len(sealed)
	if old, ok := s.behind[k]; ok {
		total -= len(k) + len(old)
	}
	if total > int(min(maxWaiting, s.most/16)) {
		s.dropped.Add(1)
		return
	}
	if len(s.behind) == 0 {
		time.AfterFunc(flushEvery, s.flush)
	}
	s.behind[k], s.bytes = sealed, total
}

// flush has what waits written.
func (s *Store) flush() {
	select {
	case s.due <- struct{}{}:
	default:
	}
}

// commit writes what waits, then the changes of a batch, then tells those who wait for them.
func (s *Store) commit(batch []*change) {
	s.mu.Lock()
	s.going, s.behind, s.bytes = s.behind, map[rowKey][]byte{}, 0
	s.mu.Unlock()
	idle := len(s.going) == 0 && !changes(batch)
	var err error
	if !idle {
		err = s.store(batch)
	}
	s.mu.Lock()
	if err == nil {
		s.noteLocked(batch)
	} else {
		s.unwrittenLocked()
	}
	s.going = nil
	s.mu.Unlock()
	for _, c := range batch {
		c.Done(err)
	}
	if idle {
		return
	}
	if err == nil {
		err = s.sweep()
	}
	s.judge(err)
}

// unwrittenLocked drops what was to be written behind and could not be. Notes wait again: nobody comes to write them anew.
func (s *Store) unwrittenLocked() {
	for k, sealed := range s.going {
		if k.table() != notes {
			s.dropped.Add(1)
		} else if _, newer := s.behind[k]; !newer {
			s.laterLocked(k, sealed)
		}
	}
}

// store is the transaction of a commit.
func (s *Store) store(batch []*change) error {
	s.commits.Add(1)
	err := s.file.Update(func(tx *bbolt.Tx) error {
		l := openLedger(tx)
		for k, value := range s.going { // only the writer changes it
			if err := l.putBehind(k, value); err != nil {
				return err
			}
		}
		for _, c := range batch {
			w := &c.What
			for _, r := range w.rows {
				if err := l.put(r.key, r.value); err != nil {
					return err
				}
			}
			if w.drop != "" {
				if err := l.drop(w.drop); err != nil {
					return err
				}
			}
		}
		return l.close()
	})
	if err != nil {
		return fmt.Errorf("learned: writing: %w", err)
	}
	return nil
}

func changes(batch []*change) bool {
	for _, c := range batch {
		if len(c.What.rows) > 0 || c.What.drop != "" {
			return true
		}
	}
	return false
}

// noteLocked remembers the objects of a batch that was written, in its order, and forgets those written behind, which have changed.
func (s *Store) noteLocked(batch []*change) {
	s.recent.commits++
	for k := range s.going {
		s.recent.forget(k)
	}
	for _, c := range batch {
		for _, r := range c.What.rows {
			s.recent.note(r.key, r.value[:len(r.value)-boltfile.SealSize])
			if old, ok := s.behind[r.key]; ok && !sameObject(old, r.value) { // it came while this was being written
				s.bytes -= len(r.key) + len(old)
				delete(s.behind, r.key)
			}
		}
	}
}

// judge counts failures, and reports when writes begin to fail or work again.
func (s *Store) judge(err error) {
	switch {
	case err != nil:
		s.failures.Add(1)
		if !s.failing {
			s.report(err)
		}
	case s.failing:
		s.report(nil)
	}
	s.failing = err != nil
}

// ledger writes rows in a transaction, and counts them in the buckets' sequences.
type ledger struct {
	buckets [tables]*bbolt.Bucket
	rows    [tables]uint64
	noted   map[rowKey]bool // the apps that have new notes, by what their keys begin with
}

func openLedger(tx *bbolt.Tx) *ledger {
	l := &ledger{noted: map[rowKey]bool{}}
	for t, name := range buckets {
		l.buckets[t] = tx.Bucket(name)
		l.rows[t] = l.buckets[t].Sequence()
	}
	return l
}

func (l *ledger) put(k rowKey, value []byte) error {
	b, key := l.buckets[k.table()], k.inTable()
	if b.Get(key) == nil {
		l.rows[k.table()]++
	}
	return b.Put(key, value)
}

// putBehind puts a row that nobody waited for. It never changes what an object's key stands for: if that is something else
// now, somebody waited for it.
func (l *ledger) putBehind(k rowKey, value []byte) error {
	switch t, there := k.table(), l.buckets[k.table()].Get(k.inTable()); {
	case t == objects && there != nil && !sameObject(there, value):
		return nil
	case t == notes && isRemoval(value):
		return l.delete(k)
	case t == notes:
		l.noted[k.app()] = true
	}
	return l.put(k, value)
}

func (l *ledger) delete(k rowKey) error {
	b, key := l.buckets[k.table()], k.inTable()
	if b.Get(key) == nil {
		return nil
	}
	l.rows[k.table()]--
	return b.Delete(key)
}

// drop deletes the rows whose keys begin with a prefix. They are found first: a cursor loses its place when rows go.
func (l *ledger) drop(prefix rowKey) error {
	var keys []rowKey
	cursor := l.buckets[prefix.table()].Cursor()
	for k, _ := cursor.Seek(prefix.inTable()); bytes.HasPrefix(k, prefix.inTable()); k, _ = cursor.Next() {
		keys = append(keys, rowKey(append([]byte{byte(prefix.table())}, k...)))
	}
	for _, k := range keys {
		if err := l.delete(k); err != nil {
			return err
		}
	}
	return nil
}

// close ends the ledger. It bounds the notes of apps, and writes how many rows there are.
func (l *ledger) close() error {
	for app := range l.noted {
		if err := l.trimNotes(app); err != nil {
			return err
		}
	}
	for t, b := range l.buckets {
		if b.Sequence() != l.rows[t] {
			if err := b.SetSequence(l.rows[t]); err != nil {
				return err
			}
		}
	}
	return nil
}
