package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestFreshAnswersWithoutAsking(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		wantAsked(t, o, 1)
		o.put(app, "two")
		time.Sleep(fresh - 1)
		want(t, answer(t, m, s, app), "fresh one")
		synctest.Wait()
		wantAsked(t, o, 0)
		if counts := m.Counts(); counts[Loaded] != 1 || counts[Fresh] != 1 || len(counts) != int(states) {
			t.Errorf("counts %v", counts)
		}
	})
}

func TestStaleWhileAnswersAtOnce(t *testing.T) {
	for _, age := range []time.Duration{fresh, fresh + staleWhile - 1} {
		o := newOrigin(app, "one")
		bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
			want(t, answer(t, m, s, app), "loaded one")
			time.Sleep(age)
			o.do(func() { o.docs[app], o.delay, o.requests = "two", time.Second, nil })
			began := time.Now()
			for range 100 {
				want(t, answer(t, m, s, app), "stale one")
			}
			if time.Since(began) != 0 {
				t.Error("the answer waited")
			}
			time.Sleep(time.Second + 1)
			want(t, answer(t, m, s, app), "fresh two")
			wantAsked(t, o, 1)
		})
	}
}

func TestOlderWaits(t *testing.T) {
	for delay, answers := range map[time.Duration][2]string{
		time.Millisecond:  {"loaded two", "fresh two"},
		staleWait - 1:     {"loaded two", "fresh two"},
		staleWait + 1:     {"stale one", "fresh two"},
		loadTimeout + 1:   {"stale one", "stale one"},
		loadTimeout * 100: {"stale one", "stale one"},
	} {
		o := newOrigin(app, "one")
		bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
			want(t, answer(t, m, s, app), "loaded one")
			time.Sleep(fresh + staleWhile)
			o.do(func() { o.docs[app], o.delay, o.requests = "two", delay, nil })
			began := time.Now()
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() { want(t, answer(t, m, s, app), answers[0]) })
			}
			all.Wait()
			if waited := time.Since(began); waited != min(delay, staleWait) {
				t.Errorf("delay %v: waited %v", delay, waited)
			}
			wantAsked(t, o, 1)
			time.Sleep(min(delay, loadTimeout))
			synctest.Wait()
			want(t, answer(t, m, s, app), answers[1])
		})
	}
}

// TestOriginFails takes the origin away for longer than documents may be used.
func TestOriginFails(t *testing.T) {
	for _, delay := range []time.Duration{0, 5 * time.Second} { // it refuses at once, or after a while
		o := newOrigin(app, "one")
		bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
			want(t, answer(t, m, s, app), "loaded one")
			confirmed := time.Now()
			o.do(func() { o.err, o.delay = errDown, delay })
			time.Sleep(fresh)
			for time.Since(confirmed) < stale {
				want(t, answer(t, m, s, app), "stale one")
				time.Sleep(9*time.Minute + 59*time.Second)
			}
			want(t, answer(t, m, s, app), "unavailable: connection refused")
			o.do(func() { o.err, o.docs[app] = nil, "two" })
			time.Sleep(retryMost * 2)
			want(t, answer(t, m, s, app), "loaded two") // nothing better to say, so it waits for longer than staleWait
		})
	}
}

func TestRetriesAreSpaced(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		o.fail(errDown)
		time.Sleep(fresh)
		o.asked()
		for range 36_000 {
			for range 10 {
				if got := answer(t, m, s, app); got != "stale one" {
					t.Fatalf("got %q", got)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		at := o.askedAt()
		if len(at) < 80 || len(at) > 240 {
			t.Errorf("asked %d times in an hour", len(at))
		}
		waits := map[time.Duration]bool{}
		for i, when := range at[1:] {
			wait := when.Sub(at[i])
			waits[wait] = true
			if least := min(retryFirst<<min(i, 10), retryMost) / 2; wait < least || wait > 3*least+time.Second {
				t.Errorf("retry %d came after %v", i+1, wait)
			}
		}
		if len(waits) < len(at)/4 {
			t.Errorf("retries are not jittered: %v", waits)
		}

		o.do(func() { o.err, o.docs[app] = nil, "two" })
		time.Sleep(retryMost * 3 / 2)
		want(t, answer(t, m, s, app), "stale one")
		synctest.Wait()
		want(t, answer(t, m, s, app), "fresh two")
		o.fail(errDown) // what failed before is forgotten
		time.Sleep(fresh)
		o.asked()
		answer(t, m, s, app)
		time.Sleep(retryFirst*3/2 + 1)
		answer(t, m, s, app)
		synctest.Wait()
		wantAsked(t, o, 2)
	})
}

func TestUnknownIsRemembered(t *testing.T) {
	o := newOrigin()
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		for range 3 {
			for range 100 {
				want(t, answer(t, m, s, app), "negative: asking for com.example.app: no such document")
				time.Sleep(negative / 100)
			}
			wantAsked(t, o, 1)
		}
		o.put(app, "one")
		want(t, answer(t, m, s, app), "loaded one")
		want(t, answer(t, m, s, app), "fresh one")
	})
}

func TestKnownThenNotFound(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		confirmed := time.Now()
		o.do(func() { delete(o.docs, app) })
		time.Sleep(fresh)
		o.asked()
		for range 600 {
			want(t, answer(t, m, s, app), "stale one")
			time.Sleep(100 * time.Millisecond)
		}
		if n := o.asked(); n < 6 || n > 7 {
			t.Errorf("asked %d times in a minute", n)
		}
		for time.Since(confirmed) < stale {
			want(t, answer(t, m, s, app), "stale one")
			time.Sleep(time.Hour)
		}
		want(t, answer(t, m, s, app), "negative: asking for com.example.app: no such document")
		if _, err := m.lastGood.load(Key{scope, app}); err == nil {
			t.Error("the copy on disk is still there")
		}
		time.Sleep(negative)
		o.fail(errDown)
		want(t, answer(t, m, s, app), "unavailable: connection refused")
	})
}

func TestNothingKnownAndOriginFails(t *testing.T) {
	o := newOrigin(app, "one")
	o.fail(errDown)
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		for range 6000 {
			want(t, answer(t, m, s, app), "unavailable: connection refused")
			time.Sleep(100 * time.Millisecond)
		}
		if n := o.asked(); n < 15 || n > 60 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		o.fail(nil)
		time.Sleep(retryMost * 3 / 2)
		want(t, answer(t, m, s, app), "loaded one")
	})
}

func TestFirstWaitEnds(t *testing.T) {
	o := newOrigin(app, "one")
	o.delay = firstWait + time.Second
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		began := time.Now()
		_, state, err := m.Get(t.Context(), s, app)
		if state != Unavailable || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != firstWait {
			t.Errorf("got %v, %v after %v", state, err, time.Since(began))
		}
		time.Sleep(2 * time.Second)
		want(t, answer(t, m, s, app), "fresh one")
		wantAsked(t, o, 1)
	})
}

func TestBusy(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		o.do(func() { o.busy, o.requests = true, nil })
		_, state, err := m.Get(t.Context(), s, "made.up")
		if state != Unavailable || !errors.Is(err, ErrBusy) {
			t.Errorf("got %v, %v", state, err)
		}
		wantAsked(t, o, 0)
		time.Sleep(fresh)
		want(t, answer(t, m, s, app), "stale one") // what is known needs no admission
		synctest.Wait()
		wantAsked(t, o, 1)
		o.do(func() { o.busy = false })
		_, _, err = m.Get(t.Context(), s, "made.up")
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("being busy is remembered: %v", err)
		}
	})
}

func TestMadeUpNames(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		for i := range maxOutcomes { // as Get does it, only faster
			_ = m.failed(s, Key{s.Scope, fmt.Sprintf("made.up.%d", i)}, nil, ErrNotFound)
		}
		for i := range 5000 {
			if _, state, _ := m.Get(t.Context(), s, fmt.Sprintf("made.up.too.%d", i)); state != Negative {
				t.Fatalf("got %v", state)
			}
		}
		want(t, answer(t, m, s, app), "fresh one")
		if n := m.outcomes.Len(); n != maxOutcomes {
			t.Errorf("remembers %d outcomes", n)
		}
	})
}

func TestScopesDoNotMix(t *testing.T) {
	a, b := newOrigin(app, "a"), newOrigin(app, "b")
	bubble(t, a, func(t *testing.T, m *Memory[*value], sa *Source[*value]) {
		sb := b.source()
		sb.Scope = "file /srv/b"
		for range 3 {
			want(t, strings.Fields(answer(t, m, sa, app))[1], "a")
			want(t, strings.Fields(answer(t, m, sb, app))[1], "b")
			time.Sleep(fresh)
		}
		restarted, _ := newMemory(t, m.lastGood.dir, room)
		b.fail(errDown)
		want(t, answer(t, restarted, sb, app), "stale b")
	})
}

func TestColdNamesAreCoalesced(t *testing.T) {
	o := newOrigin(app, "one")
	o.delay = time.Second
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		ctx, cancel := context.WithCancelCause(t.Context())
		gaveUp := errors.New("gave up")
		var all sync.WaitGroup
		for i := range 200 {
			all.Go(func() {
				if i == 0 {
					if _, state, err := m.Get(ctx, s, app); !errors.Is(err, gaveUp) || state != Unavailable {
						t.Errorf("cancelled: %v, %v", state, err)
					}
					return
				}
				want(t, answer(t, m, s, app), "loaded one")
			})
			if i == 0 {
				synctest.Wait() // so that the one who gives up came first
			}
		}
		synctest.Wait()
		cancel(gaveUp)
		all.Wait()
		wantAsked(t, o, 1)
	})
}

// TestPanics has a Source panic: each is an error, and retried no more often than one.
func TestPanics(t *testing.T) {
	t.Run("nothing known", func(t *testing.T) {
		for name, breakIt := range map[string]func(o *fakeOrigin){
			"fetch":  func(o *fakeOrigin) { o.panics = "boom" },
			"decode": func(o *fakeOrigin) { o.docs[app] = "panic" },
		} {
			o := newOrigin()
			breakIt(o)
			bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
				for range 100 {
					if got := answer(t, m, s, app); !strings.HasPrefix(got, "unavailable: panic while loading") {
						t.Errorf("%s: got %q", name, got)
					}
				}
				wantAsked(t, o, 1)
				if len(o.reports) != 1 || o.reports[0] == nil {
					t.Errorf("%s: reports %v", name, o.reports)
				}
			})
		}
	})
	t.Run("known", func(t *testing.T) {
		o := newOrigin(app, "one")
		bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
			want(t, answer(t, m, s, app), "loaded one")
			o.put(app, "panic")
			time.Sleep(fresh)
			o.asked()
			for range 100 {
				want(t, answer(t, m, s, app), "stale one")
				synctest.Wait()
			}
			wantAsked(t, o, 1)
		})
	})
	t.Run("copy on disk", func(t *testing.T) {
		o := newOrigin(app, "one")
		bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
			if err := m.lastGood.save(Key{scope, app}, Document{Raw: []byte("panic")}, nil); err != nil {
				t.Fatal(err)
			}
			want(t, answer(t, m, s, app), "loaded one")
			if errs := o.diskErrors(); len(errs) != 1 {
				t.Errorf("told of %v", errs)
			}
		})
	})
}

func TestUnchangedIsNotDecodedAgain(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		first, _, err := m.Get(t.Context(), s, app)
		if err != nil {
			t.Fatal(err)
		}
		for _, etag := range []string{"", `"new"`, `"newer"`, ""} {
			o.do(func() { o.etags[app] = etag })
			time.Sleep(fresh)
			answer(t, m, s, app)
			synctest.Wait()
			again, state, err := m.Get(t.Context(), s, app)
			if again != first || state != Fresh || err != nil {
				t.Errorf("ETag %q: got %v %v %v, want the same value, fresh", etag, again, state, err)
			}
			if copied, err := m.lastGood.load(Key{scope, app}); err != nil || etag != "" && copied.ETag != etag {
				t.Errorf("ETag %q: the copy on disk has %+v, %v", etag, copied, err)
			}
		}
		if o.decoded != 1 {
			t.Errorf("decoded %d times", o.decoded)
		}
	})
}

func TestInvalidRevision(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		o.put(app, "invalid two")
		for range 10 {
			time.Sleep(time.Minute)
			want(t, answer(t, m, s, app), "stale one")
		}
		synctest.Wait()
		if last := o.reports[len(o.reports)-1]; !errors.Is(last, errInvalid) {
			t.Errorf("reported %v", last)
		}
		if copied, err := m.lastGood.load(Key{scope, app}); err != nil || string(copied.Raw) != "one" {
			t.Errorf("on disk: %+v, %v", copied, err)
		}
		o.put(app, "three")
		time.Sleep(time.Minute)
		want(t, answer(t, m, s, app), "stale one")
		synctest.Wait()
		want(t, answer(t, m, s, app), "fresh three")
		if _, _, err := m.Get(t.Context(), s, "unknown"); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		o.put("bad", "invalid")
		if _, state, err := m.Get(t.Context(), s, "bad"); !errors.Is(err, errInvalid) || state != Unavailable {
			t.Errorf("nothing known: %v, %v", state, err)
		}
	})
}

func TestRevalidate(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		revalidate := func() string {
			v, err := m.Revalidate(t.Context(), s, app)
			if err != nil {
				return err.Error()
			}
			return v.text
		}
		want(t, revalidate(), "one") // cold: the load alone would do, but what matters is that it ends
		time.Sleep(2 * time.Second)
		o.put(app, "two")
		o.asked()
		want(t, revalidate(), "two")
		wantAsked(t, o, 1)

		// Right after that, callers wait for the next time together.
		o.put(app, "three")
		began := time.Now()
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { want(t, revalidate(), "three") })
		}
		all.Wait()
		if d := time.Since(began); d != forcedEvery {
			t.Errorf("waited %v", d)
		}
		wantAsked(t, o, 1)
		want(t, answer(t, m, s, app), "fresh three")

		// A storm of them.
		began = time.Now()
		for time.Since(began) < time.Minute {
			want(t, revalidate(), "three")
		}
		if n := o.asked(); n > 61 {
			t.Errorf("asked %d times in a minute", n)
		}

		// A failing origin gives its error, and is asked no more often than once a second.
		for _, err := range []error{errDown, ErrNotFound} {
			o.fail(err)
			time.Sleep(time.Minute)
			o.asked()
			for range 600 {
				want(t, revalidate(), err.Error())
				time.Sleep(100 * time.Millisecond)
			}
			at := o.askedAt()
			for i, when := range at[1:] {
				if d := when.Sub(at[i]); d < forcedEvery {
					t.Errorf("%v: asked again after %v", err, d)
				}
			}
			want(t, answer(t, m, s, app), "stale three")
		}
		if _, err := m.Revalidate(t.Context(), s, "unknown"); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown: %v", err)
		}
	})
}

func TestRevalidateIsShared(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		time.Sleep(time.Minute)
		o.do(func() { o.docs[app], o.delay, o.requests = "two", time.Second, nil })
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if v, err := m.Revalidate(t.Context(), s, app); err != nil || v.text != "two" {
					t.Errorf("got %v, %v", v, err)
				}
			})
			all.Go(func() { want(t, answer(t, m, s, app), "stale one") })
		}
		all.Wait()
		wantAsked(t, o, 1)
	})
}

// TestNoRoom has documents that memory has no room for: they answer from their copies on disk by the same rules, and cost
// the origin no more requests than others.
func TestNoRoom(t *testing.T) {
	many := make([]string, 0, 2*64)
	for i := range 64 {
		many = append(many, fmt.Sprintf("app.%d", i), "one")
	}
	for name, test := range map[string]struct {
		docs []string
		size int64
	}{
		"a document larger than memory":             {[]string{app, "one"}, 2 * room},
		"ten times the documents there is room for": {many, room / 6},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(test.docs...)
			o.size = test.size
			names := make([]string, 0, len(o.docs))
			for name := range o.docs {
				names = append(names, name)
			}
			slices.Sort(names)
			bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
				check := func(text string, seconds int) int {
					t.Helper()
					o.asked()
					for range seconds * 2 {
						for _, name := range names {
							v, _, err := m.Get(t.Context(), s, name)
							if err != nil || v.text != text {
								t.Fatalf("got %v, %v", v, err)
							}
						}
						time.Sleep(500 * time.Millisecond)
					}
					return o.asked()
				}
				if n, most := check("one", 60), 8*len(names); n > most {
					t.Errorf("asked %d times in a minute, want %d at the most", n, most)
				}
				o.fail(errDown)
				time.Sleep(fresh)
				if n, most := check("one", 60), 9*len(names); n > most {
					t.Errorf("failing: asked %d times in a minute, want %d at the most", n, most)
				}
				o.do(func() {
					o.err = nil
					for _, name := range names {
						o.docs[name] = "two"
					}
				})
				time.Sleep(retryMost * 3 / 2)
				for _, name := range names {
					answer(t, m, s, name)
				}
				synctest.Wait()
				whole := o.whole
				if n, most := check("two", 30), 5*len(names); n > most {
					t.Errorf("recovered: asked %d times in half a minute, want %d at the most", n, most)
				}
				if o.whole != whole {
					t.Errorf("%d documents were fetched although they are unchanged", o.whole-whole)
				}
				if v, _, err := m.Get(t.Context(), s, names[0]); err != nil || v.memo != "one " {
					t.Errorf("memo: %+v, %v", v, err)
				}
				for _, err := range o.diskErrors() {
					t.Error(err)
				}
			})
		})
	}
}

// TestNoRoomLateCallers has callers who found a document too old in their own copy of it, after the refresh they would
// have shared has ended.
func TestNoRoomLateCallers(t *testing.T) {
	o := newOrigin(app, "one")
	o.size = 2 * room
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		time.Sleep(fresh)
		key := Key{scope, app}
		var late []*entry[*value]
		for range 5 {
			late = append(late, m.restore(s, key))
		}
		o.put(app, "two")
		o.asked()
		for _, e := range late {
			if _, _, err := m.answer(t.Context(), s, e, Loaded); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
		wantAsked(t, o, 1)
	})
}

func TestCloseEndsRequests(t *testing.T) {
	o := newOrigin(app, "one")
	synctest.Test(t, func(t *testing.T) {
		m, closeMemory := newMemory(t, t.TempDir(), room)
		s := o.source()
		want(t, answer(t, m, s, app), "loaded one")
		o.do(func() { o.delay, o.reports = time.Hour, nil })
		time.Sleep(fresh)
		want(t, answer(t, m, s, app), "stale one")
		began := time.Now()
		closeMemory()
		if time.Since(began) != 0 || len(o.reports) != 0 {
			t.Errorf("closed after %v, reports %v", time.Since(began), o.reports)
		}
	})
}

func TestRetune(t *testing.T) {
	o := newOrigin(app, "one")
	o.size = 2 * room
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		want(t, answer(t, m, s, app), "loaded one")
		m.Retune(4 * room)
		want(t, answer(t, m, s, app), "loaded one")
		want(t, answer(t, m, s, app), "fresh one")
	})
}

func TestNewMemoryRefuses(t *testing.T) {
	if m, err := NewMemory[*value](0, nil); err == nil || m != nil {
		t.Error("makes a Memory of no bytes")
	}
}

func TestStateNames(t *testing.T) {
	seen := map[string]bool{}
	for s := range states {
		seen[s.String()] = true
	}
	if len(seen) != int(states) {
		t.Errorf("names %v", seen)
	}
}

// TestGetAllocates is the budget of the hot path.
func TestGetAllocates(t *testing.T) {
	o := newOrigin(app, "one")
	m, _ := newMemory(t, t.TempDir(), room)
	s := o.source()
	s.Ages.Fresh = time.Hour
	want(t, answer(t, m, s, app), "loaded one")
	ctx := t.Context()
	allocs := testing.AllocsPerRun(10_000, func() {
		if _, state, err := m.Get(ctx, s, app); state != Fresh || err != nil {
			t.Errorf("got %v, %v", state, err)
		}
	})
	if allocs != 0 {
		t.Errorf("a fresh answer allocates %v times, want 0", allocs)
	}
}

func BenchmarkGetFresh(b *testing.B) {
	o := newOrigin(app, "one")
	m, _ := newMemory(b, b.TempDir(), room)
	s := o.source()
	s.Ages.Fresh = time.Hour
	if _, _, err := m.Get(b.Context(), s, app); err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := m.Get(ctx, s, app); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkGetUnknown(b *testing.B) {
	o := newOrigin()
	m, _ := newMemory(b, b.TempDir(), room)
	s := o.source()
	s.Ages.Negative = time.Hour
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := m.Get(ctx, s, app); !errors.Is(err, ErrNotFound) {
			b.Error(err)
		}
	}
}
