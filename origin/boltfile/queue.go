package boltfile

import (
	"context"
	"errors"
	"sync"
)

// ErrClosed: the queue was closed before the change was taken.
var ErrClosed = errors.New("the file is closed")

// Queue brings changes to one writer. All that wait when a commit ends go into the next one, so that any number of callers
// share one sync of the disk.
type Queue[T any] struct {
	changes chan *Change[T]
	closing chan struct{}
	closed  chan struct{} // when Serve has ended
	once    sync.Once
}

// Change is a change that somebody waits for.
type Change[T any] struct {
	What T
	err  error
	done chan struct{}
}

// Done tells the one who waits what became of the change. The writer calls it once for each.
func (c *Change[T]) Done(err error) {
	c.err = err
	close(c.done)
}

// NewQueue returns a queue. Serve must run for it.
func NewQueue[T any]() *Queue[T] {
	return &Queue[T]{make(chan *Change[T]), make(chan struct{}), make(chan struct{}), sync.Once{}}
}

// Commit returns when the change is committed, or why it is not. If ctx ends first, it may be committed or not.
func (q *Queue[T]) Commit(ctx context.Context, what T) error {
	c := &Change[T]{What: what, done: make(chan struct{})}
	select {
	case q.changes <- c:
	case <-q.closing:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Serve is the writer. It calls commit with up to most changes, each of which that ends with Done; with none when due says
// that there is something else to write; and a last time with none at Close. due may be nil.
func (q *Queue[T]) Serve(most int, due <-chan struct{}, commit func([]*Change[T])) {
	defer close(q.closed)
	var batch []*Change[T]
	for {
		batch = batch[:0]
		select {
		case c := <-q.changes:
			batch = append(batch, c)
		case <-due:
		case <-q.closing:
			commit(nil)
			return
		}
		for more := true; more && len(batch) < most; {
			select {
			case c := <-q.changes:
				batch = append(batch, c)
			default:
				more = false
			}
		}
		commit(batch)
		clear(batch)
	}
}

// Close waits until the writer has ended. Changes that were taken are committed before.
func (q *Queue[T]) Close() {
	q.once.Do(func() { close(q.closing) })
	<-q.closed
}
