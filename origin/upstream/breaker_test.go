package upstream

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// flaky is a server that can be made to fail, and counts what it is asked.
type flaky struct {
	down  atomic.Bool
	delay time.Duration
	asked atomic.Int64
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.asked.Add(1)
	down := f.down.Load() // as it was when it was asked
	time.Sleep(f.delay)
	if down {
		says(503, "")(w, r)
		return
	}
	says(200, upToDate)(w, r)
}

func wantState(t *testing.T, g *Group, want State) Health {
	t.Helper()
	h := g.Health()[0]
	if h.State != want {
		t.Errorf("%s, want %s: %+v", h.State, want, h)
	}
	return h
}

// TestBreaker follows one through an outage: it opens, is left alone for ever longer, and closes.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := &flaky{delay: 10 * time.Millisecond}, new(reports)
		g := inProcessGroup(t, Options{Report: r.add}, f)
		if _, err := check(t, g); err != nil {
			t.Fatal(err)
		}
		f.down.Store(true)
		for range tolerated - 1 {
			if _, err := check(t, g); errors.Is(err, ErrOpen) || err == nil {
				t.Fatal(err)
			}
		}
		f.down.Store(false) // an answer between failures: they are not in a row
		if _, err := check(t, g); err != nil {
			t.Fatal(err)
		}
		f.down.Store(true)
		for range tolerated {
			wantState(t, g, Closed)
			_, _ = check(t, g)
		}
		if h := wantState(t, g, Open); h.Error != "it answers status 503" || !h.Since.Equal(time.Now()) {
			t.Errorf("%+v", h)
		}
		if got := r.take(); got != "http://a it answers status 503" {
			t.Errorf("reported %q", got)
		}
		for pause := firstPause; pause < longPause*4; pause *= 2 { // the last ones are longPause
			h := wantState(t, g, Open)
			expect := min(pause, longPause)
			if wait := time.Until(h.Next); wait < expect*8/10 || wait > expect*12/10 {
				t.Errorf("waits %s, want about %s", wait, expect)
			}
			time.Sleep(time.Until(h.Next) - 1)
			asked, began := f.asked.Load(), time.Now()
			if _, err := check(t, g); !errors.Is(err, ErrOpen) || !strings.Contains(err.Error(), "status 503") {
				t.Error(err)
			}
			if f.asked.Load() != asked || !time.Now().Equal(began) {
				t.Error("it is asked while it is left alone")
			}
			time.Sleep(time.Nanosecond)
			wantState(t, g, HalfOpen)
			if got := together(t, g, 50); got != 0 || f.asked.Load() != asked+1 {
				t.Errorf("%d answers, %d probes", got, f.asked.Load()-asked)
			}
		}
		f.down.Store(false)
		time.Sleep(longPause * 12 / 10)
		asked := f.asked.Load()
		if got := together(t, g, 50); got != 1 || f.asked.Load() != asked+1 {
			t.Errorf("%d answers, %d probes", got, f.asked.Load()-asked)
		}
		if h := wantState(t, g, Closed); h.Error != "" || !h.Next.IsZero() || !h.Since.Equal(time.Now()) {
			t.Errorf("%+v", h)
		}
		if got := r.take(); got != "http://a <nil>" {
			t.Errorf("reported %q", got)
		}
		if got := together(t, g, 50); got != 50 {
			t.Errorf("%d answers of 50", got)
		}
		f.down.Store(true) // the next outage begins with a short pause
		together(t, g, tolerated)
		if h := wantState(t, g, Open); time.Until(h.Next) > firstPause*12/10 {
			t.Errorf("waits %s", time.Until(h.Next))
		}
	})
}

// together makes n checks at once, and returns how many were answered.
func together(t *testing.T, g *Group, n int) int {
	t.Helper()
	var all sync.WaitGroup
	var answered atomic.Int64
	for range n {
		all.Go(func() {
			if _, err := check(t, g); err == nil {
				answered.Add(1)
			} else if !errors.Is(err, ErrOpen) && !strings.Contains(err.Error(), "status 503") {
				t.Error(err)
			}
		})
	}
	all.Wait()
	return int(answered.Load())
}

// TestProbeIsAbandoned: a probe whose client goes away leaves the next one to the next request, at once.
func TestProbeIsAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flaky{}
		f.down.Store(true)
		g := inProcessGroup(t, Options{}, f)
		together(t, g, tolerated)
		f.down.Store(false)
		time.Sleep(firstPause * 12 / 10)
		f.delay = time.Second
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := g.Check(ctx, known); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		wantState(t, g, HalfOpen)
		if _, err := check(t, g); err != nil {
			t.Error(err)
		}
		wantState(t, g, Closed)
	})
}

// TestLateResults: what was asked before the breaker opened neither closes nor opens it.
func TestLateResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flaky{delay: 2 * time.Second}
		g := inProcessGroup(t, Options{}, f)
		var all sync.WaitGroup
		defer all.Wait()
		all.Go(func() { _, _ = check(t, g) }) // a good one
		time.Sleep(time.Millisecond)
		f.down.Store(true)
		for range tolerated {
			all.Go(func() { _, _ = check(t, g) })
		}
		time.Sleep(time.Second)
		for range tolerated { // bad ones that end later
			all.Go(func() { _, _ = check(t, g) })
		}
		time.Sleep(time.Second + 1)
		h := wantState(t, g, Open)
		time.Sleep(time.Second)
		if late := wantState(t, g, Open); !late.Next.Equal(h.Next) || late.Failures != 2*tolerated {
			t.Errorf("%+v, then %+v", h, late)
		}
	})
}

// TestHungServers: three requests find out that a server hangs; a hung first one leaves time for the second.
func TestHungServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := inProcessGroup(t, Options{}, http.HandlerFunc(hang), http.HandlerFunc(hang), says(200, upToDate))
		for i := range tolerated + 1 {
			began := time.Now()
			a, err := check(t, g)
			if err != nil || a.Upstream != "http://c" {
				t.Errorf("%+v, %v", a, err)
			}
			want := 2 * time.Second
			if i == tolerated {
				want = 0
			}
			if took := time.Since(began); took != want {
				t.Errorf("check %d took %s, want %s", i, took, want)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		g := inProcessGroup(t, Options{}, http.HandlerFunc(hang))
		began := time.Now()
		if _, err := check(t, g); err == nil || time.Since(began) != Budget {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// TestPlaces: no more requests are under way than there are places, those who wait get one, or ErrBusy when their time is up.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		g := inProcessGroup(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(time.Second)
			now.Add(-1)
			says(200, upToDate)(w, r)
		}))
		var all sync.WaitGroup
		var answered, busy atomic.Int64
		for range 3 * maxChecks {
			all.Go(func() {
				switch _, err := check(t, g); {
				case err == nil:
					answered.Add(1)
				case errors.Is(err, ErrBusy):
					busy.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := g.Check(ctx, known); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		all.Wait()
		if most.Load() != maxChecks || answered.Load() != 2*maxChecks || busy.Load() != maxChecks {
			t.Errorf("%d at once; %d answered, %d busy", most.Load(), answered.Load(), busy.Load())
		}
		if h := wantState(t, g, Closed); h.InFlight != 0 || h.Failures != 0 {
			t.Errorf("%+v", h)
		}
	})
}

// TestPlacesSuffice: each of 400 phones a second is asked for by itself, at a server that takes 300 ms.
func TestPlacesSuffice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := inProcessGroup(t, Options{}, &flaky{delay: 300 * time.Millisecond})
		var all sync.WaitGroup
		for range 2000 {
			all.Go(func() {
				began := time.Now()
				if _, err := check(t, g); err != nil || time.Since(began) != 300*time.Millisecond {
					t.Errorf("%v after %s", err, time.Since(began))
				}
			})
			time.Sleep(time.Second / 400)
		}
		all.Wait()
	})
}

// TestOneBrokenApp: what may be this app's or this request's alone is an outage for who asks, and neither opens nor closes the
// breaker.
func TestOneBrokenApp(t *testing.T) {
	for _, c := range []struct {
		name   string
		q      *Question
		broken http.HandlerFunc
		err    error
	}{
		{"unknown_error", known, says(500, `{"error":"unknown_error","message":"Unknown error","moreInfo":{}}`), ErrUnknown},
		{"a stranger's", stranger, says(500, `{"error":"internal"}`), ErrAnswered},
	} {
		t.Run(c.name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testBrokenApp(t, c.q, c.broken, c.err) }) })
	}
}

func testBrokenApp(t *testing.T, q *Question, broken http.HandlerFunc, want error) {
	var answer atomic.Pointer[http.HandlerFunc]
	turn := func(h http.HandlerFunc) { answer.Store(&h) }
	g := inProcessGroup(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*answer.Load())(w, r) }))
	turn(broken)
	for range 2 * tolerated {
		if a, err := g.Check(t.Context(), q); !errors.Is(err, want) {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	if h := wantState(t, g, Closed); h.Failures != 2*tolerated || h.InFlight != 0 {
		t.Errorf("%+v", h)
	}
	down := says(500, `{"error":"out of order"}`)
	for range tolerated { // between real failures, it is no success
		wantState(t, g, Closed)
		turn(broken)
		_, _ = g.Check(t.Context(), q)
		turn(down)
		_, _ = check(t, g)
	}
	wantState(t, g, Open)
	time.Sleep(firstPause * 12 / 10)
	turn(broken)
	if _, err := g.Check(t.Context(), q); !errors.Is(err, want) {
		t.Error(err)
	}
	wantState(t, g, HalfOpen)
	turn(says(200, upToDate))
	if _, err := check(t, g); err != nil { // at once: the probe before found nothing out
		t.Error(err)
	}
	wantState(t, g, Closed)
}

// TestStrangers: made-up apps that a server has no answer for do not shut it out for the others; that it is down does, whoever
// asks. ErrAnswered tells the two apart.
func TestStrangers(t *testing.T) {
	for _, c := range []struct {
		name     string
		server   http.Handler
		answered bool
	}{
		{"500", says(500, `{"error":"internal"}`), true},
		{"500 with a page", says(500, strings.Repeat("x", 2*smallBody)), true},
		{"500, unknown_error", says(500, `{"error":"unknown_error"}`), true},
		{"empty 200", says(200, ""), true},
		{"a page with status 200", says(200, "<b>Fatal error</b>"), true},
		{"a gateway's 502", says(502, "<html>"), false},
		{"a gateway's 503", says(503, `{"error":"unavailable"}`), false},
		{"a gateway's 504", says(504, ""), false},
		{"Cloudflare's 521", says(521, "error code: 521"), false},
		{"hangs", http.HandlerFunc(hang), false},
		{"nobody there", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.server == nil {
				testStrangers(t, group(t, Options{URLs: []string{nowhere(t)}}), c.answered)
				return
			}
			synctest.Test(t, func(t *testing.T) { testStrangers(t, inProcessGroup(t, Options{}, c.server), c.answered) })
		})
	}
}

func testStrangers(t *testing.T, g *Group, answered bool) {
	for range tolerated {
		if a, err := g.Check(t.Context(), stranger); err == nil || errors.Is(err, ErrAnswered) != answered {
			t.Errorf("%+v, %v", a, err)
		}
	}
	want := Open
	if answered {
		want = Closed
	}
	if h := wantState(t, g, want); h.Failures != tolerated || h.InFlight != 0 {
		t.Errorf("%+v", h)
	}
}
