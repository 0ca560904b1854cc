package learned

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// Save notes an answer and when it was given. It copies the answer, never blocks, and is best effort: on disk within about a
// second, or dropped and counted if too much waits or the disk fails.
func (c *Scope) Save(app, key string, answer []byte, at time.Time) {
	k, err := c.keyOf(answers, app, key)
	if err != nil || len(answer) > maxAnswer {
		c.store.dropped.Add(1)
		return
	}
	c.store.later(k, seal(k, encodeAnswer(answer, at)))
}

// Load returns an answer, which must not be changed, and when it was given, to the millisecond.
func (c *Scope) Load(app, key string) (answer []byte, at time.Time, ok bool) {
	k, err := c.keyOf(answers, app, key)
	if err != nil {
		return nil, time.Time{}, false
	}
	return decodeAnswer(c.store.get(k))
}

// DropApp forgets the answers of an app, on disk too when it returns nil. Addresses that were given out stay known.
func (c *Scope) DropApp(ctx context.Context, app string) error {
	prefix, err := c.keyOf(answers, app, "")
	if err != nil {
		return err
	}
	c.store.mu.Lock()
	for k, sealed := range c.store.behind {
		if strings.HasPrefix(string(k), string(prefix)) {
			c.store.bytes -= len(k) + len(sealed)
			delete(c.store.behind, k)
		}
	}
	c.store.mu.Unlock()
	return c.store.writes.Commit(ctx, write{drop: prefix})
}

// eachAtOnce is how many answers Each reads at once.
const eachAtOnce = 64

// Each calls f with the answers of an app, in the order of their keys, until it returns false. What was saved before is
// among them. f may use the store; the answers are its own.
func (c *Scope) Each(ctx context.Context, app string, f func(key string, answer []byte, at time.Time) bool) error {
	prefix, err := c.keyOf(answers, app, "")
	if err != nil {
		return err
	}
	// With it goes what waits. If the disk takes nothing, what is on it is told.
	if err := c.store.writes.Commit(ctx, write{}); errors.Is(err, ErrClosed) || ctx.Err() != nil {
		return err
	}
	for from := prefix.inTable(); from != nil; {
		var page []row
		if page, from, err = c.store.page(from, prefix.inTable()); err != nil {
			return err
		}
		for _, r := range page {
			answer, at, ok := decodeAnswer(r.value)
			if ok && !f(string(r.key[len(prefix):]), answer, at) {
				return nil
			}
		}
	}
	return ctx.Err()
}

// page reads some of the answers whose keys begin with prefix, and tells where the next ones begin: nil if there are none.
func (s *Store) page(from, prefix []byte) (page []row, next []byte, err error) {
	err = s.file.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(buckets[answers]).Cursor()
		for k, v := cursor.Seek(from); bytes.HasPrefix(k, prefix); k, v = cursor.Next() {
			if len(page) == eachAtOnce {
				next = bytes.Clone(k)
				return nil
			}
			if value, ok := unseal(k, v); ok {
				page = append(page, row{rowKey(append([]byte{byte(answers)}, k...)), value})
			} else {
				s.damaged.Add(1)
			}
		}
		return nil
	})
	return page, next, err
}
