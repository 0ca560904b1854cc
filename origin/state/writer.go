package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// write is one change on its way to disk.
type write struct {
	scope *Scope
	table table
	name  []byte // of the row within its scope
	value []byte // empty: the row goes
	err   error
	done  chan struct{}
}

// key is where the row stands in its bucket: the scope, then its name.
func (w *write) key() []byte { return append(append([]byte(nil), w.scope.key[:]...), w.name...) }

// maxBatch bounds the changes of one commit, and with them how long the first of them waits for the others.
const maxBatch = 4096

func (c *Scope) write(ctx context.Context, t table, name, value []byte) error {
	if len(name) > 2*maxName+1 || len(name) == 0 {
		return ErrTooLarge
	}
	w := &write{scope: c, table: t, name: name, value: value, done: make(chan struct{})}
	select {
	case c.state.writes <- w:
	case <-c.state.closing:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write commits changes until the state is closed. All that wait when a commit ends go into the next one, so that many
// writers share one sync of the disk.
func (s *State) write() {
	defer close(s.closed)
	var batch []*write
	for {
		select {
		case w := <-s.writes:
			batch = append(batch[:0], w)
		case <-s.closing:
			return
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case w := <-s.writes:
				batch = append(batch, w)
			default:
				more = false
			}
		}
		s.commit(batch)
		clear(batch)
	}
}

// errNothing ends a transaction that would change nothing.
var errNothing = errors.New("nothing to write")

// commit writes a batch, then takes it into memory, then tells those who wait: whoever was told reads what it wrote.
func (s *State) commit(batch []*write) {
	err := s.file.Update(func(tx *bbolt.Tx) error {
		l := ledger{tx: tx, assigned: s.assigned, pauseBytes: s.pauseBytes, most: s.most}
		for _, w := range batch {
			if w.err = l.apply(w); w.err != nil && !errors.Is(w.err, ErrFull) {
				return w.err
			}
		}
		if !l.changed {
			return errNothing
		}
		return nil
	})
	s.judge(batch, err)
	if errors.Is(err, errNothing) {
		err = nil
	}
	s.mu.Lock()
	for _, w := range batch {
		if err != nil {
			w.err = fmt.Errorf("state: writing: %w", err)
		} else if w.err == nil {
			w.take()
		}
	}
	s.mu.Unlock()
	for _, w := range batch {
		close(w.done)
	}
}

// judge counts a commit, and reports when writes begin to fail or work again.
func (s *State) judge(batch []*write, err error) {
	if errors.Is(err, errNothing) {
		err = nil
	} else {
		s.commits.Add(1)
	}
	if err != nil {
		s.failures.Add(1)
	}
	for _, w := range batch {
		if err == nil {
			err = w.err // a bound
		}
	}
	if err != nil {
		s.report(fmt.Errorf("state: writing: %w", err))
	} else if s.failing {
		s.report(nil)
	}
	s.failing = err != nil
}

// take does in memory what was done on disk.
func (w *write) take() {
	switch {
	case w.table == pauses:
		w.scope.putPause(string(w.name), w.value)
	case len(w.value) == 0:
		w.scope.dropAssigned(digest16(w.name))
	default:
		w.scope.state.put(w.table, w.key(), w.value)
	}
}

// ledger is the state of one transaction: the sums as its changes make them.
type ledger struct {
	tx                         *bbolt.Tx
	assigned, pauseBytes, most int
	changed                    bool
}

// apply does one change in the transaction, which shows it to the later ones.
func (l *ledger) apply(w *write) error {
	b, err := l.tx.CreateBucketIfNotExists(buckets[w.table])
	if err != nil {
		return err
	}
	key := w.key()
	old, _ := unseal(key, b.Get(key))
	if bytes.Equal(old, w.value) {
		return nil
	}
	assigned, pauseBytes := l.assigned, l.pauseBytes
	if w.table == pauses {
		pauseBytes += len(w.value) - len(old)
	} else {
		assigned += min(len(w.value), 1) - min(len(old), 1)
	}
	switch {
	case assigned > max(l.most, l.assigned):
		return fmt.Errorf("%w: %d devices have chosen a channel", ErrFull, l.assigned)
	case pauseBytes > max(MaxPauses, l.pauseBytes):
		return fmt.Errorf("%w: pauses take %d bytes", ErrFull, l.pauseBytes)
	}
	l.assigned, l.pauseBytes, l.changed = assigned, pauseBytes, true
	if len(w.value) == 0 {
		return b.Delete(key)
	}
	return b.Put(key, seal(key, w.value))
}

// Close closes the file. Writes on their way end first; later ones get ErrClosed, and reads go on.
func (s *State) Close() error {
	s.once.Do(func() { close(s.closing) })
	<-s.closed
	return s.file.Close()
}
