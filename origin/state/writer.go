package state

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

// write is one change on its way to disk.
type write struct {
	scope *Scope
	table table
	name  []byte // of the row within its scope
	value []byte // empty: the row goes
	all   bool   // name is an app's: all of its rows go

	err  error    // of this change alone, whatever becomes of the others
	more bool     // it takes up more room than there was taken
	gone [][]byte // the names of all that went
}

// change is a write that somebody waits for.
type change = boltfile.Change[*write]

// key is where the row stands in its bucket: the scope, then its name.
func (w *write) key() []byte { return append(append([]byte(nil), w.scope.key[:]...), w.name...) }

// maxBatch bounds the changes of one commit, and with them how long the first of them waits for the others.
const maxBatch = 4096

func (c *Scope) write(ctx context.Context, t table, name, value []byte) error {
	return c.commit(ctx, &write{scope: c, table: t, name: name, value: value})
}

func (c *Scope) commit(ctx context.Context, w *write) error {
	if len(w.name) > 2*maxName+1 || len(w.name) == 0 {
		return ErrTooLarge
	}
	return c.state.writes.Commit(ctx, w)
}

// errNothing ends a transaction that would change nothing.
var errNothing = errors.New("nothing to write")

// commit writes a batch, then takes it into memory, then tells those who wait: whoever was told reads what it wrote.
func (s *State) commit(batch []*change) {
	if len(batch) == 0 {
		return
	}
	err := s.file.Update(func(tx *bbolt.Tx) error {
		l := ledger{tx: tx, assigned: s.assigned, pauseBytes: s.pauseBytes, most: s.most, apps: map[scopedApp]int{}}
		for _, c := range batch {
			w := c.What
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
	if err != nil {
		err = fmt.Errorf("state: writing: %w", err)
	} else {
		s.take(batch)
	}
	for _, c := range batch {
		c.Done(cmp.Or(err, c.What.err))
	}
}

// trouble is what keeps a State from taking everything.
type trouble struct {
	disk bool
	full [tables]bool
}

// judge counts a commit, and reports when writes begin to fail or work again. A disk works again once it has written, and a
// table has room again once it has taken more.
func (s *State) judge(batch []*change, err error) {
	if errors.Is(err, errNothing) {
		err = nil
	} else {
		s.commits.Add(1)
		s.trouble.disk = err != nil
	}
	if err != nil {
		s.failures.Add(1)
	}
	for _, c := range batch {
		if w := c.What; w.err != nil {
			s.trouble.full[w.table] = s.trouble.full[w.table] || errors.Is(w.err, ErrFull)
			err = cmp.Or(err, w.err)
		} else if w.more && !s.trouble.disk {
			s.trouble.full[w.table] = false
		}
	}
	switch {
	case err != nil:
		s.failing = true
		s.report(fmt.Errorf("state: writing: %w", err))
	case s.failing && s.trouble == trouble{}:
		s.failing = false
		s.report(nil)
	}
}

func (s *State) take(batch []*change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range batch {
		if c.What.err == nil {
			c.What.take()
		}
	}
}

// take does in memory what was done on disk.
func (w *write) take() {
	switch {
	case w.table == pauses:
		w.scope.putPause(string(w.name), w.value)
	case w.all:
		for _, name := range w.gone {
			w.scope.dropAssigned(name)
		}
	case len(w.value) == 0:
		w.scope.dropAssigned(w.name)
	default:
		w.scope.state.put(w.table, w.key(), w.value)
	}
}

// ledger is the state of one transaction: the sums as its changes make them.
type ledger struct {
	tx                         *bbolt.Tx
	assigned, pauseBytes, most int
	apps                       map[scopedApp]int // what assigned has more by this transaction, of each app
	changed                    bool
}

type scopedApp struct {
	scope *Scope
	name  string
}

// apply does one change in the transaction, which shows it to the later ones.
func (l *ledger) apply(w *write) error {
	b, err := l.tx.CreateBucketIfNotExists(buckets[w.table])
	if err != nil {
		return err
	}
	if w.all {
		return l.removeAll(b, w)
	}
	key := w.key()
	old, _ := boltfile.Unseal(key, b.Get(key))
	if bytes.Equal(old, w.value) {
		return nil
	}
	more := len(w.value) - len(old)
	if w.table == pauses {
		err = l.addPause(more)
	} else {
		err = l.addAssigned(w, more/choiceSize)
	}
	if err != nil {
		return err
	}
	l.changed, w.more = true, more > 0
	if len(w.value) == 0 {
		return b.Delete(key)
	}
	return b.Put(key, boltfile.Seal(key, bytes.Clone(w.value)))
}

// removeAll removes the choices of all devices of an app.
func (l *ledger) removeAll(b *bbolt.Bucket, w *write) error {
	prefix := w.key()
	rows := b.Cursor()
	for k, _ := rows.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = rows.Next() {
		w.gone = append(w.gone, bytes.Clone(k[len(w.scope.key):]))
	}
	for _, name := range w.gone {
		if err := b.Delete(append(w.scope.key[:], name...)); err != nil {
			return err
		}
	}
	l.changed = l.changed || len(w.gone) > 0
	return l.addAssigned(w, -len(w.gone))
}

func (l *ledger) addPause(bytes int) error {
	if bytes > 0 && l.pauseBytes+bytes > MaxPauses {
		return fmt.Errorf("%w: pauses take %d bytes", ErrFull, l.pauseBytes)
	}
	l.pauseBytes += bytes
	return nil
}

// addAssigned counts devices that have a choice from now on, n of them, or have none any more, as many as n is below 0.
func (l *ledger) addAssigned(w *write, n int) error {
	app := scopedApp{w.scope, appOf(w.name)}
	ofApp := w.scope.apps[app.name] + l.apps[app]
	switch {
	case n <= 0:
	case l.assigned >= l.most:
		return fmt.Errorf("%w: %d devices have chosen a channel", ErrFull, l.assigned)
	case l.assigned >= l.most/2 && ofApp >= max(l.most/appShare, 1):
		return fmt.Errorf("%w of the app %s: %d of its devices have chosen a channel, which is the share of an app while there are %d or more in all",
			ErrFull, app.name, ofApp, l.most/2)
	}
	l.assigned += n
	l.apps[app] += n
	return nil
}

// Close closes the file. Writes on their way end first; later ones get ErrClosed, and reads go on.
func (s *State) Close() error {
	s.writes.Close()
	return s.file.Close()
}
