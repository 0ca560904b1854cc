package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeUpstream answers questions, and counts them.
type fakeUpstream struct {
	mu     sync.Mutex
	answer func(key, device string) Reply[string] // guarded by mu, as all below
	err    error
	delay  time.Duration
	asks   []ask
	busy   bool
	events []string
	saved  map[AnswerKey]Kept[string]
	drops  int
}

type ask struct {
	at          time.Time
	key, device string
}

func newUpstream(answer func(key, device string) Reply[string]) *fakeUpstream {
	return &fakeUpstream{answer: answer, saved: map[AnswerKey]Kept[string]{}}
}

// offering answers everybody with the same offer.
func offering(version string) func(key, device string) Reply[string] {
	return func(key, _ string) Reply[string] { return offer(key, version) }
}

// refusing knows nothing of the group.
func refusing(_, _ string) Reply[string] {
	return Reply[string]{Value: "refused", Verdict: Refused, Shareable: true}
}

// offer is what a question is answered with: an offer, unless it is empty.
func offer(key, version string) Reply[string] {
	return Reply[string]{Value: strings.TrimSuffix(key+" "+version, " "), Offer: version, Shareable: true}
}

func (u *fakeUpstream) do(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

func (u *fakeUpstream) asker(key string) Asker[string] {
	return func(ctx context.Context, device, _ string) (Reply[string], error) {
		u.mu.Lock()
		u.asks = append(u.asks, ask{time.Now(), key, device})
		answer, delay, err := u.answer, u.delay, u.err
		u.mu.Unlock()
		var reply Reply[string]
		if err == nil {
			reply = answer(key, device) // as it is when the request arrives
		}
		select {
		case <-time.After(delay):
			return reply, err
		case <-ctx.Done():
			return reply, ctx.Err()
		}
	}
}

// asked returns what was asked since it was last called.
func (u *fakeUpstream) asked() []ask {
	u.mu.Lock()
	defer u.mu.Unlock()
	asks := u.asks
	u.asks = nil
	return asks
}

func (u *fakeUpstream) options(maxBytes int64) AnswersOptions[string] {
	return AnswersOptions[string]{
		MaxBytes: maxBytes,
		Size:     func(v string) int64 { return int64(len(v)) },
		Same:     func(a, b string) bool { return a == b },
		Report: func(_ Key, e Event, detail string) {
			u.do(func() { u.events = append(u.events, e.String()+": "+detail) })
		},
		Save: func(k AnswerKey, kept Kept[string]) { u.do(func() { u.saved[k] = kept }) },
		Restore: func(k AnswerKey) (Kept[string], bool) {
			u.mu.Lock()
			defer u.mu.Unlock()
			kept, ok := u.saved[k]
			return kept, ok
		},
		Drop: func(Key) { u.do(func() { u.drops++ }) }, // the copies are removed some time later
	}
}

// reported returns the events since it was last called, each up to its detail. They are told behind the answer.
func (u *fakeUpstream) reported() string {
	synctest.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	var events []string
	for _, e := range u.events {
		kind, _, _ := strings.Cut(e, ":")
		events = append(events, kind)
	}
	u.events = nil
	return strings.Join(events, ", ")
}

// site asks Answers on behalf of devices.
type site struct {
	*Answers[string]
	u     *fakeUpstream
	terms Terms
}

func newSite(t testing.TB, u *fakeUpstream, mode PerDevice, maxBytes int64) *site {
	t.Helper()
	s := &site{Answers: NewAnswers(u.options(maxBytes)), u: u, terms: Terms{
		Mode: mode, Ages: Ages{Fresh: fresh, StaleWhile: staleWhile, Stale: stale, Negative: negative},
		Admit: func() bool { u.mu.Lock(); defer u.mu.Unlock(); return !u.busy },
	}}
	t.Cleanup(s.Close)
	return s
}

// tick is the shortest time.
const tick = time.Nanosecond

var appKey = Key{scope, app}

func (s *site) question(group Key, key, device string) *Question[string] {
	return &Question[string]{
		Group: group, Key: key, Device: device,
		Asker: func() Asker[string] { return s.u.asker(key) },
	}
}

// get is what a device is answered, as text, and the state.
func (s *site) get(t testing.TB, key, device string) string {
	t.Helper()
	v, state, err := s.Get(t.Context(), &s.terms, s.question(appKey, key, device))
	if err != nil {
		if v != "" {
			t.Errorf("a value comes with the error %v", err)
		}
		return state.String() + ": " + err.Error()
	}
	return state.String() + " " + v
}

// relay runs f in fake time.
func relay(t *testing.T, mode PerDevice, answer func(key, device string) Reply[string], f func(t *testing.T, s *site, u *fakeUpstream)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		u := newUpstream(answer)
		f(t, newSite(t, u, mode, 64<<20), u)
	})
}

func wantAsks(t *testing.T, u *fakeUpstream, n int) {
	t.Helper()
	synctest.Wait()
	if asks := u.asked(); len(asks) != n {
		t.Errorf("the upstream was asked %d times, want %d: %v", len(asks), n, asks)
	}
}

func TestAnswersAges(t *testing.T) {
	for _, mode := range []PerDevice{PerDeviceAuto, PerDeviceOn, PerDeviceOff} {
		relay(t, mode, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
			want(t, s.get(t, "k", "d"), "loaded k 1")
			want(t, s.get(t, "k", "d"), "fresh k 1")
			time.Sleep(fresh - tick)
			want(t, s.get(t, "k", "d"), "fresh k 1")
			wantAsks(t, u, 1)
			u.do(func() { u.answer, u.delay = offering("2"), time.Second })
			time.Sleep(tick)
			want(t, s.get(t, "k", "d"), "stale k 1")
			want(t, s.get(t, "k", "d"), "stale k 1")
			time.Sleep(time.Second + 1)
			want(t, s.get(t, "k", "d"), "fresh k 2")
			wantAsks(t, u, 1)

			u.do(func() { u.answer = offering("3") })
			time.Sleep(fresh + staleWhile)
			want(t, s.get(t, "k", "d"), "loaded k 3")
			wantAsks(t, u, 1)
			u.do(func() { u.answer, u.delay = offering("4"), staleWait+tick })
			time.Sleep(fresh + staleWhile)
			began := time.Now()
			want(t, s.get(t, "k", "d"), "stale k 3")
			if waited := time.Since(began); waited != staleWait {
				t.Errorf("waited %v", waited)
			}
			time.Sleep(2 * tick)
			want(t, s.get(t, "k", "d"), "fresh k 4")
			wantAsks(t, u, 1)
		})
	}
}

func TestAnswersOutage(t *testing.T) {
	for _, kind := range []string{"error", "not asked", "refusal", "panic"} {
		relay(t, PerDeviceAuto, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
			want(t, s.get(t, "k", "d"), "loaded k 1")
			kept := time.Now()
			reason := "connection refused"
			u.do(func() {
				switch kind {
				case "error":
					u.err = errDown
				case "not asked":
					u.err = fmt.Errorf("circuit open: %w", ErrNotAsked)
					reason = u.err.Error()
				case "refusal":
					u.answer = refusing
					reason = ErrRefused.Error()
				case "panic":
					u.answer = func(string, string) Reply[string] { panic("boom") }
					reason = "panic while loading: boom"
				}
			})
			time.Sleep(fresh)
			for time.Since(kept) < stale {
				want(t, s.get(t, "k", "d"), "stale k 1")
				want(t, s.get(t, "unknown", "d"), "unavailable: "+reason)
				// Not every few minutes: thousands of requests in one bubble can end the race detector (go.dev/issue/78156).
				time.Sleep(3*time.Hour - time.Second)
			}
			if kind == "refusal" {
				want(t, s.get(t, "k", "d"), "negative refused") // gone for longer than a fault lasts
			} else {
				want(t, s.get(t, "k", "d"), "unavailable: "+reason)
			}
			u.do(func() { u.answer, u.err = offering("2"), nil })
			time.Sleep(retryMost * 2)
			want(t, s.get(t, "k", "d"), "loaded k 2")
			want(t, s.get(t, "unknown", "d"), "loaded unknown 2")
			events := "outage began, outage ended"
			if kind == "not asked" {
				events = ""
			}
			want(t, u.reported(), events)
		})
	}
}

// TestAnswersRetriesAreSpaced has a hot question during an outage.
func TestAnswersRetriesAreSpaced(t *testing.T) {
	relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		s.get(t, "k", "d")
		u.do(func() { u.err = errDown })
		time.Sleep(fresh)
		u.asked()
		for range 36_000 {
			if got := s.get(t, "k", "d"); got != "stale k 1" {
				t.Fatal(got)
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		asks := u.asked()
		if len(asks) < 80 || len(asks) > 240 {
			t.Errorf("asked %d times in an hour", len(asks))
		}
		waits := map[time.Duration]bool{}
		for i := range asks[1:] {
			wait := asks[i+1].at.Sub(asks[i].at)
			waits[wait] = true
			if wait < fresh/2 || wait > retryMost*3/2+time.Second {
				t.Errorf("retry %d came after %v", i+1, wait)
			}
		}
		if len(waits) < len(asks)/4 {
			t.Errorf("retries are not jittered: %v", waits)
		}
	})
}

// TestAnswersFlapping has an upstream that fails every other second: a log needs no more of it than a line a minute.
func TestAnswersFlapping(t *testing.T) {
	relay(t, PerDeviceOn, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		s.get(t, "k", "d")
		for i := range 60 {
			u.do(func() {
				if u.err = nil; i%2 == 0 {
					u.err = errDown
				}
			})
			s.get(t, "k", fmt.Sprint("d", i))
			time.Sleep(time.Second)
		}
		want(t, u.reported(), "outage began, outage ended")
	})
}

func TestAnswersRefusals(t *testing.T) {
	relay(t, PerDeviceAuto, refusing, func(t *testing.T, s *site, u *fakeUpstream) {
		u.do(func() { u.delay = time.Second })
		var all sync.WaitGroup
		for i := range 100 { // of many keys and devices
			all.Go(func() { want(t, s.get(t, fmt.Sprint("k", i%7), fmt.Sprint("d", i)), "negative refused") })
		}
		all.Wait()
		wantAsks(t, u, 1)
		time.Sleep(negative - tick)
		want(t, s.get(t, "k", "d"), "negative refused")
		wantAsks(t, u, 0)
		time.Sleep(tick)
		want(t, s.get(t, "k", "d"), "negative refused")
		wantAsks(t, u, 1)
		time.Sleep(negative)
		u.do(func() { u.answer = offering("1") })
		want(t, s.get(t, "k", "d"), "loaded k 1")
		want(t, u.reported(), "")
	})
}

// TestAnswersStrangers floods a site with groups that do not exist.
func TestAnswersStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUpstream(refusing)
		s := newSite(t, u, PerDeviceAuto, 1<<20)
		admitted := 0
		s.terms.Admit = func() bool { admitted++; return admitted%10 == 1 }
		var busy, refusals int
		for i := range 20_000 {
			switch _, state, err := s.Get(t.Context(), &s.terms, s.question(Key{scope, fmt.Sprint("made.up.", i)}, "k", "d")); {
			case errors.Is(err, ErrBusy) && state == Unavailable:
				busy++
			case err == nil && state == Negative:
				refusals++
			default:
				t.Fatal(state, err)
			}
			synctest.Wait()
		}
		stats := s.Stats()
		if busy != 18_000 || refusals != 2000 || len(u.asked()) != 2000 || stats.Busy != 18_000 || stats.Asks != 2000 {
			t.Errorf("busy %d, refused %d, %+v", busy, refusals, stats)
		}
		if stats.Bytes > 1<<20 || stats.Groups > 2000 {
			t.Errorf("%+v", stats)
		}
		time.Sleep(negative) // what is known of them is of no use any more, and goes first
		s.Retune(1 << 10)
		if stats := s.Stats(); stats.Bytes != 0 || stats.Groups != 0 {
			t.Errorf("%+v", stats)
		}
	})
}

func TestAnswersUntil(t *testing.T) {
	relay(t, PerDeviceOff, nil, func(t *testing.T, s *site, u *fakeUpstream) {
		u.answer = func(key, _ string) Reply[string] {
			return Reply[string]{Value: key + " signed", Offer: "1", Shareable: true, Until: time.Now().Add(5 * time.Second)}
		}
		want(t, s.get(t, "k", "d"), "loaded k signed")
		time.Sleep(5*time.Second - tick)
		want(t, s.get(t, "k", "d"), "fresh k signed")
		wantAsks(t, u, 1)
		time.Sleep(tick)
		want(t, s.get(t, "k", "d"), "loaded k signed")
		wantAsks(t, u, 1)
		u.do(func() { u.err = errDown })
		time.Sleep(5 * time.Second)
		want(t, s.get(t, "k", "d"), "unavailable: connection refused")
		u.do(func() {
			u.answer = func(key, _ string) Reply[string] {
				return Reply[string]{Value: key + " expired", Offer: "1", Shareable: true, Until: time.Now().Add(-1)}
			}
			u.err, u.delay = nil, time.Millisecond
		})
		time.Sleep(time.Hour)
		wantAsks(t, u, 1)
		began := time.Now()
		var all sync.WaitGroup
		for i := range 10 { // as it is of no use to anybody else, each asks for itself, and not one after the other
			all.Go(func() { want(t, s.get(t, "k", fmt.Sprint("d", i)), "loaded k expired") })
		}
		all.Wait()
		if waited := time.Since(began); waited > 2*u.delay {
			t.Errorf("waited %v", waited)
		}
		wantAsks(t, u, 10)
	})
}

// TestAnswersPass has answers that are for one device only.
func TestAnswersPass(t *testing.T) {
	for _, mode := range []PerDevice{PerDeviceAuto, PerDeviceOff, PerDeviceOn} {
		pass := func(key, device string) Reply[string] {
			return Reply[string]{Value: key + " for " + device, Verdict: Pass}
		}
		relay(t, mode, pass, func(t *testing.T, s *site, u *fakeUpstream) {
			u.delay = time.Second
			for range 3 {
				began := time.Now()
				var all sync.WaitGroup
				for i := range 50 {
					device := fmt.Sprint("d", i%25) // two requests of each device at once
					all.Go(func() { want(t, s.get(t, "k", device), "loaded k for "+device) })
				}
				all.Wait()
				wantAsks(t, u, 25)
				if waited := time.Since(began); waited > 2*time.Second {
					t.Errorf("waited %v", waited)
				}
			}
			if stats := s.Stats(); stats.Answers != 0 {
				t.Errorf("%+v", stats)
			}
			u.do(func() { u.answer = offering("1") })
			want(t, s.get(t, "k", "d"), "loaded k 1")
			want(t, s.get(t, "k", "d"), "fresh k 1")
			u.do(func() { u.answer = pass }) // what cannot be classified does not end what is known
			time.Sleep(fresh)
			want(t, s.get(t, "k", "d"), "stale k 1")
			time.Sleep(staleWhile)
			want(t, s.get(t, "k", "d"), "loaded k for d")
		})
	}
}

// TestAnswersPassUnknown has an upstream that says what tells nothing of the group: it stays a stranger, which must be admitted each
// time, until there is an answer; then that is not given up for it.
func TestAnswersPassUnknown(t *testing.T) {
	for _, mode := range []PerDevice{PerDeviceAuto, PerDeviceOff, PerDeviceOn} {
		odd := func(key, device string) Reply[string] {
			return Reply[string]{Value: key + " for " + device, Verdict: PassUnknown}
		}
		relay(t, mode, odd, func(t *testing.T, s *site, u *fakeUpstream) {
			var all sync.WaitGroup
			for i := range 5 {
				device := fmt.Sprint("d", i)
				all.Go(func() { want(t, s.get(t, "k", device), "loaded k for "+device) })
			}
			all.Wait()
			wantAsks(t, u, 5)
			u.do(func() { u.busy = true })
			for _, key := range []string{"k", "other"} {
				want(t, s.get(t, key, "d"), "unavailable: "+ErrBusy.Error())
			}
			wantAsks(t, u, 0)
			u.do(func() { u.busy, u.answer = false, offering("1") })
			want(t, s.get(t, "k", "d"), "loaded k 1")
			u.do(func() { u.answer = odd })
			time.Sleep(fresh + staleWhile)
			want(t, s.get(t, "k", "d"), "loaded k for d")
			u.do(func() { u.err = errDown })
			time.Sleep(fresh + staleWhile)
			want(t, s.get(t, "k", "d"), "stale k 1")
			wantAccounts(t, s)
		})
	}
}

// TestAnswersPassAlone has one device be answered in a way that says nothing of others: they are asked for as if it were not there.
func TestAnswersPassAlone(t *testing.T) {
	relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		want(t, s.get(t, "k", "d"), "loaded k 1")
		time.Sleep(fresh + staleWhile)
		u.do(func() {
			u.answer = func(key, device string) Reply[string] {
				if device == "alone" {
					return Reply[string]{Value: "alone", Verdict: PassAlone}
				}
				return offer(key, "2")
			}
		})
		want(t, s.get(t, "k", "alone"), "loaded alone")
		want(t, s.get(t, "k", "d"), "loaded k 2")
		want(t, s.get(t, "k", "e"), "fresh k 2")
		wantAccounts(t, s)
	})
}

// TestAnswersNamingDevice has answers that name the device, and must not be shared in any mode.
func TestAnswersNamingDevice(t *testing.T) {
	for _, mode := range []PerDevice{PerDeviceAuto, PerDeviceOff, PerDeviceOn} {
		naming := func(key, device string) Reply[string] {
			return Reply[string]{Value: key + " for " + device, Offer: "1"}
		}
		relay(t, mode, naming, func(t *testing.T, s *site, u *fakeUpstream) {
			u.delay = time.Millisecond
			var all sync.WaitGroup
			for i := range 20 {
				device := fmt.Sprint("d", i)
				all.Go(func() {
					want(t, s.get(t, "k", device), "loaded k for "+device)
					want(t, s.get(t, "k", device), "fresh k for "+device)
				})
			}
			all.Wait()
			wantAsks(t, u, 20)
			if s.Marked(appKey) {
				t.Error("marked, but nothing can be compared")
			}
		})
	}
}

func TestAnswersPurge(t *testing.T) {
	for _, soft := range []bool{true, false} {
		relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
			s.get(t, "a", "d")
			s.get(t, "b", "d")
			u.do(func() { u.answer = offering("2") })
			time.Sleep(tick)
			if n := s.Purge(appKey, soft); n != 2 {
				t.Errorf("%d purged", n)
			}
			if n := s.Purge(Key{scope, "other"}, soft); n != 0 {
				t.Errorf("%d purged of nothing", n)
			}
			time.Sleep(tick)
			want(t, s.get(t, "a", "d"), "loaded a 2")
			u.do(func() { u.err = errDown })
			if soft {
				want(t, s.get(t, "b", "d"), "stale b 1")
			} else {
				want(t, s.get(t, "b", "d"), "unavailable: connection refused") // nor from its copy
			}
		})
	}
}

// TestAnswersPurgeDuringRequest purges while a request is under way that saw the upstream as it was before.
func TestAnswersPurgeDuringRequest(t *testing.T) {
	for _, soft := range []bool{true, false} {
		relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
			u.delay = time.Second
			var all sync.WaitGroup
			all.Go(func() { want(t, s.get(t, "k", "d"), "loaded k 1") })
			time.Sleep(time.Millisecond)
			s.Purge(appKey, soft)
			u.do(func() { u.answer = offering("2") })
			time.Sleep(time.Millisecond)
			all.Go(func() { want(t, s.get(t, "k", "e"), "loaded k 2") })
			all.Wait()
			want(t, s.get(t, "k", "d"), "fresh k 2")
			wantAsks(t, u, 2)

			all.Go(func() { want(t, s.get(t, "other", "d"), "loaded other 2") })
			time.Sleep(time.Millisecond)
			s.Purge(appKey, soft)
			all.Wait()
			u.do(func() { u.err = errDown })
			if soft { // what was under way is used if there is nothing better
				want(t, s.get(t, "other", "d"), "stale other 2")
			} else {
				want(t, s.get(t, "other", "d"), "unavailable: connection refused")
			}
		})
	}
}

func TestAnswersDiffers(t *testing.T) {
	for _, mode := range []PerDevice{PerDeviceAuto, PerDeviceOn, PerDeviceOff} {
		relay(t, mode, offering(""), func(t *testing.T, s *site, u *fakeUpstream) {
			want(t, s.get(t, "k", "self"), "loaded k")
			u.do(func() {
				u.answer = func(key, device string) Reply[string] {
					if device == "self" {
						return offer(key, "beta")
					}
					return offer(key, "")
				}
			})
			time.Sleep(tick)
			s.Differs(appKey, "self")
			time.Sleep(tick)
			for range 3 {
				if got := s.get(t, "k", "self"); !strings.HasSuffix(got, " k beta") {
					t.Error(got)
				}
				time.Sleep(fresh)
			}
			for i := range 200 {
				if got := s.get(t, "k", fmt.Sprint("d", i)); !strings.HasSuffix(got, " k") {
					t.Error(got)
				}
			}
			if s.Marked(appKey) {
				t.Error("a device that is known to differ marks the group")
			}
			if mode != PerDeviceAuto {
				return
			}
			for i := range maxDiffers + 1 {
				s.Differs(appKey, fmt.Sprint("d", i))
			}
			if !s.Marked(appKey) {
				t.Error("a device was forgotten")
			}
		})
	}
}

// TestAnswersClientLeaves has the client leave that caused a request for many.
func TestAnswersClientLeaves(t *testing.T) {
	relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		u.delay = time.Second
		ctx, cancel := context.WithCancelCause(t.Context())
		left := errors.New("left")
		var all sync.WaitGroup
		all.Go(func() {
			if _, state, err := s.Get(ctx, &s.terms, s.question(appKey, "k", "first")); state != Unavailable || !errors.Is(err, left) {
				t.Error(state, err)
			}
		})
		synctest.Wait()
		for i := range 100 {
			all.Go(func() { want(t, s.get(t, "k", fmt.Sprint("d", i)), "loaded k 1") })
		}
		time.Sleep(time.Millisecond)
		cancel(left)
		all.Wait()
		wantAsks(t, u, 1)
	})
}

func TestAnswersNoReply(t *testing.T) {
	relay(t, PerDeviceAuto, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		u.delay = time.Minute
		began := time.Now()
		want(t, s.get(t, "k", "d"), "unavailable: "+errNoReply.Error())
		if waited := time.Since(began); waited != firstWait {
			t.Errorf("waited %v", waited)
		}
	})
}

// TestAnswersRestore starts anew with the copies of before.
func TestAnswersRestore(t *testing.T) {
	relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		s.get(t, "k", "d")
		synctest.Wait()
		time.Sleep(time.Hour)
		u.do(func() { u.err = errDown })
		after := newSite(t, u, PerDeviceAuto, 1<<20)
		want(t, after.get(t, "k", "e"), "stale k 1")
		want(t, after.get(t, "other", "e"), "unavailable: connection refused")
		u.do(func() {
			u.err, u.answer = nil, refusing
		})
		time.Sleep(retryMost * 2)
		want(t, after.get(t, "k", "e"), "stale k 1") // a group with a copy was known
		time.Sleep(stale)
		late := newSite(t, u, PerDeviceAuto, 1<<20)
		want(t, late.get(t, "k", "e"), "negative refused")
	})
}

// TestAnswersSave follows when a copy is asked for.
func TestAnswersSave(t *testing.T) {
	relay(t, PerDeviceAuto, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		saved := func() (n int) {
			synctest.Wait()
			u.do(func() { n = len(u.saved); clear(u.saved) })
			return n
		}
		s.get(t, "k", "a")
		s.get(t, "k", "b")
		if saved() != 0 {
			t.Error("saved what is not shared")
		}
		s.get(t, "k", "c")
		if saved() != 1 {
			t.Error("not saved")
		}
		n := 0
		for range 360 { // an hour
			time.Sleep(fresh)
			s.get(t, "k", "a")
			n += saved()
		}
		if n != 1 {
			t.Errorf("saved %d times in an hour", n)
		}
	})
}

// TestAnswersRefusalNamingDevice has a refusal that is for one device only.
func TestAnswersRefusalNamingDevice(t *testing.T) {
	naming := func(_, device string) Reply[string] {
		return Reply[string]{Value: "refused " + device, Verdict: Refused}
	}
	relay(t, PerDeviceAuto, naming, func(t *testing.T, s *site, _ *fakeUpstream) {
		want(t, s.get(t, "k", "d"), "negative refused d")
		want(t, s.get(t, "k", "e"), "negative refused e")
	})
}

// TestAnswersPurgeAfterPass purges after an answer that could not be classified: the next question is asked at once, and what it is
// answered is shared.
func TestAnswersPurgeAfterPass(t *testing.T) {
	for _, mode := range []PerDevice{PerDeviceAuto, PerDeviceOff, PerDeviceOn} {
		relay(t, mode, offering(""), func(t *testing.T, s *site, u *fakeUpstream) {
			want(t, s.get(t, "k", "d"), "loaded k")
			time.Sleep(fresh)
			u.do(func() {
				u.answer = func(string, string) Reply[string] { return Reply[string]{Value: "odd", Verdict: PassUnknown} }
			})
			want(t, s.get(t, "k", "d"), "stale k")
			synctest.Wait()
			u.do(func() {
				u.answer = func(key, _ string) Reply[string] { return Reply[string]{Value: key + " new", Shareable: true} }
			})
			u.asked()
			s.Purge(appKey, true)
			time.Sleep(tick)
			want(t, s.get(t, "k", "d"), "loaded k new")
			wantAsks(t, u, 1)
			if mode == PerDeviceOn {
				return
			}
			time.Sleep(tick)
			want(t, valueOf(s.get(t, "k", "e")), "k new")
			synctest.Wait()
			if asks, checks := len(u.asked()), int(s.Stats().Checks); asks != checks {
				t.Errorf("%d asks, %d of them checks", asks, checks)
			}
		})
	}
}

// TestAnswersPurgeTogether purges after an answer that was for one device only: devices that come together ask once, no longer one
// by one.
func TestAnswersPurgeTogether(t *testing.T) {
	relay(t, PerDeviceOff, func(string, string) Reply[string] { return Reply[string]{Value: "pass", Verdict: Pass} },
		func(t *testing.T, s *site, u *fakeUpstream) {
			want(t, s.get(t, "k", "d"), "loaded pass")
			s.Purge(appKey, true)
			u.do(func() { u.answer, u.delay = offering("1"), time.Second })
			u.asked()
			var all sync.WaitGroup
			for i := range 5 {
				all.Go(func() { want(t, s.get(t, "k", fmt.Sprint("d", i)), "loaded k 1") })
			}
			all.Wait()
			wantAsks(t, u, 1)
		})
}

// TestAnswersLastGoodAlone has the upstream fail while devices ask one by one: what all share is still there for them.
func TestAnswersLastGoodAlone(t *testing.T) {
	relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		want(t, s.get(t, "k", "d"), "loaded k 1")
		time.Sleep(fresh + staleWhile)
		u.do(func() {
			u.answer = func(_, device string) Reply[string] { return Reply[string]{Value: "for " + device, Verdict: Pass} }
		})
		want(t, s.get(t, "k", "d"), "loaded for d")
		u.do(func() { u.err = errDown })
		want(t, s.get(t, "k", "e"), "stale k 1")
		s.Differs(appKey, "f")
		want(t, s.get(t, "k", "f"), "unavailable: "+errDown.Error())
	})
}

// TestAnswersDismiss has all that a request for a group of which nothing is known may end in: what the upstream knows costs none of
// the requests for what it does not.
func TestAnswersDismiss(t *testing.T) {
	reply := func(v Verdict) func(string, string) Reply[string] {
		return func(string, string) Reply[string] { return Reply[string]{Value: "v", Verdict: v, Shareable: true} }
	}
	for _, test := range []struct {
		name      string
		answer    func(key, device string) Reply[string]
		err       error
		dismissed int
	}{
		{"an answer", reply(Keep), nil, 1},
		{"an answer that is not kept", reply(Pass), nil, 1},
		{"an answer that says nothing of the group", reply(PassUnknown), nil, 0},
		{"an answer that may be to another question", reply(PassAlone), nil, 0},
		{"a refusal", reply(Refused), nil, 0},
		{"a failure", reply(Keep), errDown, 1},
		{"not asked", reply(Keep), ErrNotAsked, 1},
		{"an answer of no use", reply(Keep), fmt.Errorf("%w: status 500", ErrAnswered), 0},
	} {
		relay(t, PerDeviceOff, test.answer, func(t *testing.T, s *site, u *fakeUpstream) {
			u.err = test.err
			admitted, dismissed := 0, 0
			s.terms.Admit = func() bool { admitted++; return true }
			s.terms.Dismiss = func(known bool) {
				dismissed++
				if known != (test.err == nil) {
					t.Errorf("%s: the group is known: %t", test.name, known)
				}
			}
			s.get(t, "k", "d")
			synctest.Wait()
			if admitted != 1 || dismissed != test.dismissed {
				t.Errorf("%s: admitted %d times, dismissed %d times, want %d", test.name, admitted, dismissed, test.dismissed)
			}
			s.terms.Dismiss = nil
			_, _, _ = s.Get(t.Context(), &s.terms, s.question(Key{scope, "other"}, "k", "d"))
		})
	}
}

// TestAnswersAsked follows which questions the upstream sees.
func TestAnswersAsked(t *testing.T) {
	relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		u.delay = time.Second
		get := func(key, device, answer string, asked bool) {
			t.Helper()
			q := s.question(appKey, key, device)
			q.Asked = !asked // of the time before
			v, state, err := s.Get(t.Context(), &s.terms, q)
			got := state.String() + " " + v
			if err != nil {
				got = state.String() + ": " + err.Error()
			}
			want(t, got, answer)
			if q.Asked != asked {
				t.Errorf("%s of %s: asked %v, answered %q", key, device, q.Asked, got)
			}
		}
		var all sync.WaitGroup
		all.Go(func() { get("k", "d", "loaded k 1", true) })
		synctest.Wait()
		all.Go(func() { get("k", "d", "loaded k 1", true) }) // joined
		all.Go(func() { get("k", "e", "loaded k 1", false) })
		all.Wait()
		get("k", "d", "fresh k 1", false)
		time.Sleep(fresh)
		get("k", "e", "stale k 1", true) // behind
		get("k", "d", "stale k 1", false)
		time.Sleep(2 * time.Second)
		u.do(func() { u.delay = time.Minute })
		get("other", "d", "unavailable: "+errNoReply.Error(), true)
		time.Sleep(time.Minute)
		u.do(func() { u.delay, u.err = 0, errDown })
		get("down", "d", "unavailable: "+errDown.Error(), true)
		get("down", "d", "unavailable: "+errDown.Error(), false)
		u.do(func() { u.err = ErrNotAsked })
		get("open", "d", "unavailable: "+ErrNotAsked.Error(), false)

		u.do(func() { u.err = nil })
		s.Answers = newSite(t, u, PerDeviceOff, 1<<20).Answers
		u.asked()
		u.do(func() { u.saved[AnswerKey{appKey, "k", ""}] = Kept[string]{Value: "k copy", Validated: time.Now()} })
		get("k", "d", "loaded k copy", false)
		wantAsks(t, u, 0)
		u.do(func() { u.busy = true })
		time.Sleep(tick)
		s.Purge(appKey, false)
		get("k", "d", "unavailable: "+ErrBusy.Error(), false)
	})
}

// TestAnswersAskedCheck has a shared answer checked behind: the upstream sees that question.
func TestAnswersAskedCheck(t *testing.T) {
	relay(t, PerDeviceAuto, offering(""), func(t *testing.T, s *site, u *fakeUpstream) {
		s.get(t, "k", "first")
		for i := range 100 {
			synctest.Wait()
			u.asked()
			q := s.question(appKey, "k", fmt.Sprint("d", i))
			if _, state, err := s.Get(t.Context(), &s.terms, q); state != Fresh || err != nil {
				t.Fatal(state, err)
			}
			synctest.Wait()
			if asks := u.asked(); (len(asks) == 1) != q.Asked {
				t.Errorf("asked %v, and the upstream %v", q.Asked, asks)
			}
		}
		if s.Stats().Checks == 0 {
			t.Error("nothing was checked")
		}
	})
}
