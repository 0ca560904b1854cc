package cache

import (
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// wantAccounts fails unless the bytes that are counted are those that the groups hold.
func wantAccounts(t testing.TB, s *site) {
	t.Helper()
	var sum int64
	for g := range s.all() {
		g.mu.Lock()
		bytes := groupCost + g.refusalSize
		for _, p := range g.slots.Values() {
			bytes += p.cost
			if g.asks == 0 && len(p.asking) > 0 {
				t.Errorf("%v: requests are left in %v", g.key, p.id)
			}
		}
		if g.differs != nil {
			for _, device := range g.differs.Keys() {
				bytes += differsCost(device)
			}
		}
		if bytes != g.bytes || g.bytes != g.total {
			t.Errorf("%v holds %d bytes, but has %d, of which %d are counted", g.key, bytes, g.bytes, g.total)
		}
		sum += g.total
		g.mu.Unlock()
	}
	if got := s.bytes.Load(); got != sum {
		t.Errorf("%d bytes are counted, but groups have %d", got, sum)
	}
}

// TestAnswersRoom has one group of fifty thousand devices, and many small ones.
func TestAnswersRoom(t *testing.T) {
	const room = 4 << 20
	synctest.Test(t, func(t *testing.T) {
		u := newUpstream(offering("1"))
		s := newSite(t, u, PerDeviceOn, room)
		s.terms.Ages.Fresh = time.Hour
		get := func(group Key, device string) State {
			_, state, err := s.Get(t.Context(), &s.terms, s.question(group, "k", device))
			if err != nil {
				t.Error(err)
			}
			return state
		}
		small := func(i int) Key { return Key{scope, fmt.Sprint("small", i)} }
		for i := range 300 {
			get(small(i), "d")
		}
		for i := range 50_000 {
			get(appKey, fmt.Sprint("d", i))
		}
		synctest.Wait()
		if stats := s.Stats(); stats.Bytes > room || stats.Evicted == 0 || stats.Answers < 5000 {
			t.Errorf("%+v", stats)
		}
		for i := range 300 {
			if state := get(small(i), "d"); state != Fresh {
				t.Fatalf("the answer of a small group was pushed out: %v", state)
			}
		}
		if state := get(appKey, "d49999"); state != Fresh {
			t.Errorf("the latest answer is %v", state)
		}
		time.Sleep(tick)
		for i := range 5000 { // so many groups that the longest unused go
			time.Sleep(tick)
			get(small(1000+i), "d")
			if i%100 == 0 {
				get(appKey, "d49999")
			}
		}
		synctest.Wait()
		if stats := s.Stats(); stats.Bytes > room || stats.Groups > room/groupCost {
			t.Errorf("%+v", stats)
		}
		if get(appKey, "d49999") != Fresh || get(small(5999), "d") != Fresh {
			t.Error("what is in use was pushed out")
		}
		if get(small(0), "d") != Loaded {
			t.Error("what was not used for longest is still there")
		}
		synctest.Wait()
		wantAccounts(t, s)
		s.Retune(1)
		if stats := s.Stats(); stats.Bytes > 1 {
			t.Errorf("%+v", stats)
		}
		wantAccounts(t, s)
	})
}

// TestAnswersRace mixes all methods in real time, with ages so small that each path is taken.
func TestAnswersRace(t *testing.T) {
	u := newUpstream(func(key, device string) Reply[string] {
		switch r := offer(key, strconv.Itoa(time.Now().Nanosecond()/1e6%3)); {
		case device == "7":
			return Reply[string]{Value: "pass", Verdict: Pass}
		case device == "6":
			return Reply[string]{Value: key, Offer: "mine"}
		case device == "5" && time.Now().Nanosecond()%2 == 0:
			return Reply[string]{Value: "refused", Verdict: Refused, Shareable: true}
		default:
			return r
		}
	})
	s := newSite(t, u, PerDeviceAuto, 64<<10)
	s.terms.Ages = Ages{Fresh: 100 * time.Microsecond, StaleWhile: 100 * time.Microsecond, Stale: stale, Negative: 1}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 1500 {
				group := Key{scope, strconv.Itoa(n % 5)}
				switch {
				case n%97 == 0:
					s.Purge(group, n%2 == 0)
				case n%89 == 0:
					s.Differs(group, strconv.Itoa(i))
				case n%61 == 0:
					s.Retune(int64(16+n%64) << 10)
				case n%59 == 0:
					s.Stats()
				}
				_, _, _ = s.Get(t.Context(), &s.terms, s.question(group, strconv.Itoa(n%7), strconv.Itoa((i+n)%8)))
			}
		})
	}
	all.Wait()
	s.running.Wait()
	wantAccounts(t, s)
}

// hot returns a site that answers one question from memory, and that question in a buffer as a handler has it.
func hot(tb testing.TB, mode PerDevice) (*site, *Question[string]) {
	tb.Helper()
	s := newSite(tb, newUpstream(offering("1")), mode, 64<<20)
	s.terms.Ages.Fresh = time.Hour
	q := s.question(appKey, "com.example.app ios 1.0.0 1.2.3 8.51.14 production", "00009a6b-eefe-490a-9c60-8e965132ae51")
	for _, device := range []string{"a", "b", "c", q.Device} {
		if _, _, err := s.Get(tb.Context(), &s.terms, s.question(q.Group, q.Key, device)); err != nil {
			tb.Fatal(err)
		}
	}
	return s, q
}

// TestAnswersHitAllocs holds a hit to its budget: nothing is allocated, not even for what would ask the upstream.
func TestAnswersHitAllocs(t *testing.T) {
	for _, mode := range []PerDevice{PerDeviceAuto, PerDeviceOn, PerDeviceOff} {
		s, q := hot(t, mode)
		key, device := []byte(q.Key), []byte(q.Device)
		ctx := t.Context()
		hit := func() {
			q := Question[string]{
				Group: appKey,
				Key:   unsafe.String(&key[0], len(key)), Device: unsafe.String(&device[0], len(device)),
			}
			q.Asker = func() Asker[string] { return s.u.asker(string(key)) }
			if v, state, err := s.Get(ctx, &s.terms, &q); v == "" || state != Fresh || err != nil {
				t.Error(v, state, err)
			}
		}
		for range 10_000 { // until the checks are used up
			hit()
		}
		s.running.Wait()
		if n := testing.AllocsPerRun(1000, hit); n != 0 {
			t.Errorf("mode %d: %v allocations", mode, n)
		}
	}
}

func BenchmarkAnswersHit(b *testing.B) {
	for name, mode := range map[string]PerDevice{"auto": PerDeviceAuto, "on": PerDeviceOn} {
		b.Run(name, func(b *testing.B) {
			s, q := hot(b, mode)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := s.Get(b.Context(), &s.terms, q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("parallel", func(b *testing.B) {
		s, q := hot(b, PerDeviceAuto)
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			mine := *q
			for p.Next() {
				if _, _, err := s.Get(b.Context(), &s.terms, &mine); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
