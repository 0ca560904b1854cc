package cache

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestFlightCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flight[string, int]
		gate := make(chan struct{})
		var runs atomic.Int32
		do := func() (int, error) {
			runs.Add(1)
			<-gate
			return 42, nil
		}
		first := f.start("a", do)
		for range 100 {
			if f.start("a", do) != first {
				t.Fatal("a second call was started")
			}
		}
		if f.start("b", do) == first {
			t.Fatal("two keys share a call")
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("left")
		cancel(cause)
		if got, err := first.wait(ctx); got != 0 || !errors.Is(err, cause) {
			t.Errorf("a caller that left got %v, %v", got, err)
		}
		close(gate)
		if got, err := first.wait(t.Context()); got != 42 || err != nil {
			t.Errorf("got %v, %v", got, err)
		}
		f.wg.Wait()
		if runs.Load() != 2 || len(f.calls) != 0 {
			t.Errorf("%d runs, %d calls left", runs.Load(), len(f.calls))
		}
		if f.start("a", do) == first {
			t.Error("an ended call is handed out")
		}
		f.wg.Wait()
	})
}

func TestFlightPanics(t *testing.T) {
	var f flight[string, int]
	for _, p := range []any{"boom", errors.New("boom"), nil} {
		_, err := f.start("a", func() (int, error) { panic(p) }).wait(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), "panic while loading: ") {
			t.Errorf("got %v", err)
		}
	}
	f.wg.Wait()
	if len(f.calls) != 0 {
		t.Error("a panic leaves its call behind")
	}
}

// TestFlightRace has many callers of few keys; the race detector does the rest. No two calls of one key may overlap.
func TestFlightRace(t *testing.T) {
	var f flight[int, int]
	var running [4]atomic.Int32
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			for n := range 2000 {
				key := (i + n) % len(running)
				got, err := f.start(key, func() (int, error) {
					if running[key].Add(1) != 1 {
						t.Error("two calls of one key run at once")
					}
					running[key].Add(-1)
					return key, nil
				}).wait(t.Context())
				if got != key || err != nil {
					t.Errorf("got %v, %v, want %d", got, err, key)
				}
			}
		})
	}
	all.Wait()
	f.wg.Wait()
	if len(f.calls) != 0 {
		t.Error("calls are left")
	}
}

// TestMemoryRace mixes all methods in real time, with ages so small that each path is taken.
func TestMemoryRace(t *testing.T) {
	o := newOrigin("a", "one", "b", "one", "c", "one")
	o.size = room / 2 // there is room for two of the three
	m, _ := newMemory(t, t.TempDir(), room)
	s := o.source()
	s.Ages = Ages{Fresh: 1000, StaleWhile: 1000, Stale: stale, Negative: 1000}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 100 {
				name := []string{"a", "b", "c", "unknown"}[(i+n)%4]
				if _, _, err := m.Get(t.Context(), s, name); err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
				if n%50 == 0 {
					o.put(name, strings.Repeat("x", n+1))
					m.Retune(room - int64(n))
					m.Counts()
				}
			}
		})
	}
	all.Wait()
}
