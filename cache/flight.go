package cache

import (
	"context"
	"fmt"
	"sync"
)

// flight coalesces calls: while one for a key runs, further callers wait for its result instead of starting another.
//
// The work runs in a goroutine and under a context of its own, so no caller's disconnect can cancel it for the others
// (golang.org/x/sync/singleflight runs it on the first caller's fate). It is not cancelled when all have left either:
// what it fetches is wanted by the next caller.
type flight[K comparable, R any] struct {
	mu    sync.Mutex
	calls map[K]*call[R] // guarded by mu
	wg    sync.WaitGroup
}

type call[R any] struct {
	done   chan struct{}
	result R
	err    error
}

// start returns the running call for key, or starts do.
func (f *flight[K, R]) start(key K, do func() (R, error)) *call[R] {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.calls[key]; c != nil {
		return c
	}
	if f.calls == nil {
		f.calls = make(map[K]*call[R])
	}
	c := &call[R]{done: make(chan struct{})}
	f.calls[key] = c
	f.wg.Add(1)
	go f.run(key, c, do)
	return c
}

func (f *flight[K, R]) run(key K, c *call[R], do func() (R, error)) {
	defer f.wg.Done()
	defer func() {
		if p := recover(); p != nil {
			c.err = fmt.Errorf("panic while loading: %v", p)
		}
		f.mu.Lock()
		delete(f.calls, key)
		f.mu.Unlock()
		close(c.done)
	}()
	c.result, c.err = do()
}

// wait returns the call's result, or ctx's error if that comes first; the call goes on.
func (c *call[R]) wait(ctx context.Context) (R, error) {
	select {
	case <-c.done:
		return c.result, c.err
	case <-ctx.Done():
		var none R
		return none, context.Cause(ctx)
	}
}
