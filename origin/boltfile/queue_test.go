package boltfile

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

// TestQueue: what waits while a commit runs goes into the next one, up to the bound, and each caller is told of its own change.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, due := NewQueue[int](), make(chan struct{}, 1)
		var commits []int
		gate := make(chan struct{})
		odd := errors.New("odd")
		go q.Serve(3, due, func(batch []*Change[int]) {
			<-gate
			commits = append(commits, len(batch))
			for _, c := range batch {
				if c.What%2 == 1 {
					c.Done(odd)
				} else {
					c.Done(nil)
				}
			}
		})
		due <- struct{}{}
		synctest.Wait() // it commits nothing
		for i := range 4 {
			go func() {
				if err := q.Commit(t.Context(), i); errors.Is(err, odd) != (i%2 == 1) {
					t.Errorf("%d: %v", i, err)
				}
			}()
		}
		synctest.Wait()
		close(gate)
		synctest.Wait()
		q.Close()
		q.Close() // twice is no harm
		if want := []int{0, 3, 1, 0}; !slices.Equal(commits, want) {
			t.Errorf("commits of %v changes, want %v", commits, want)
		}
		if err := q.Commit(t.Context(), 0); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// TestQueueLeft: who does not wait any more gets its context's error, before the change is taken and after.
func TestQueueLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue[int]()
		gate := make(chan struct{})
		go q.Serve(1, nil, func(batch []*Change[int]) {
			<-gate
			for _, c := range batch {
				c.Done(nil)
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 2 {
			go func() {
				if err := q.Commit(ctx, i); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}()
		}
		synctest.Wait() // one is being committed, one waits
		cancel()
		synctest.Wait()
		close(gate)
		q.Close()
	})
}
