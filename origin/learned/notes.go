package learned

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

// MaxNotes is how many notes an app may have. With one more, that which was noted the longest time ago goes.
const MaxNotes = 4096

// maxNote bounds the bytes of a note.
const maxNote = 4 << 10

// Note keeps something small that was found out, and that is to stay when room is made for answers; an empty value removes it.
// It copies the value, never blocks, and is best effort: on disk within about a second, or as soon as the disk works again; it
// is dropped and counted if it is too large, or too much waits.
func (c *Scope) Note(app, key string, value []byte) {
	k, err := c.keyOf(notes, app, key)
	if err != nil || len(value) > maxNote {
		c.store.dropped.Add(1)
		return
	}
	c.store.later(k, seal(k, encodeAnswer(value, time.Now())))
}

// FindNote returns what was noted last, which must not be changed.
func (c *Scope) FindNote(app, key string) (value []byte, ok bool) {
	k, err := c.keyOf(notes, app, key)
	if err != nil {
		return nil, false
	}
	value, _, _ = decodeAnswer(c.store.get(k))
	return value, len(value) > 0
}

// isRemoval reports that a sealed value says that a note is no more.
func isRemoval(sealed []byte) bool { return len(sealed) == answerAt+boltfile.SealSize }

// Notes calls f with the notes of an app, in the order of their keys, until it returns false. What was noted before is among
// them. f may use the store; the values are its own.
func (c *Scope) Notes(app string, f func(key string, value []byte) bool) error {
	prefix, err := c.keyOf(notes, app, "")
	if err != nil {
		return err
	}
	all, err := c.store.notesOf(prefix)
	if err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		value, _, _ := decodeAnswer(all[k])
		if len(value) > 0 && !f(string(k[len(prefix):]), value) {
			return nil
		}
	}
	return nil
}

// notesOf returns the values of an app's notes. Those that wait are looked for first: what is written to disk meanwhile is
// then found in one place at least.
func (s *Store) notesOf(prefix rowKey) (map[rowKey][]byte, error) {
	waiting := map[rowKey][]byte{}
	s.mu.RLock()
	for _, rows := range []map[rowKey][]byte{s.going, s.behind} { // the newer ones last
		for k, sealed := range rows {
			if strings.HasPrefix(string(k), string(prefix)) {
				waiting[k] = bytes.Clone(sealed[:len(sealed)-boltfile.SealSize])
			}
		}
	}
	s.mu.RUnlock()
	all := map[rowKey][]byte{}
	err := s.file.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(buckets[notes]).Cursor()
		for k, v := cursor.Seek(prefix.inTable()); bytes.HasPrefix(k, prefix.inTable()); k, v = cursor.Next() {
			if value, ok := unseal(k, v); ok {
				all[rowKey(append([]byte{byte(notes)}, k...))] = value
			} else {
				s.damaged.Add(1)
			}
		}
		return nil
	})
	maps.Copy(all, waiting)
	return all, err
}

// trimNotes deletes the oldest notes of an app that has too many.
func (l *ledger) trimNotes(app rowKey) error {
	type aged struct {
		key rowKey
		at  time.Time
	}
	var all []aged
	cursor := l.buckets[notes].Cursor()
	for k, v := cursor.Seek(app.inTable()); bytes.HasPrefix(k, app.inTable()); k, v = cursor.Next() {
		_, at, _ := decodeAnswer(v)
		all = append(all, aged{rowKey(append([]byte{byte(notes)}, k...)), at})
	}
	if len(all) <= MaxNotes {
		return nil
	}
	slices.SortFunc(all, func(a, b aged) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.key, b.key)) })
	for _, note := range all[:len(all)-MaxNotes] {
		if err := l.delete(note.key); err != nil {
			return err
		}
	}
	return nil
}
