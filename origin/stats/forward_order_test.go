package stats_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// collectorFunc is a Collector of events whose data is "A1", the first of device A.
type collectorFunc func(names []string) ([]stats.Verdict, error)

func (f collectorFunc) Deliver(_ context.Context, b *stats.Batch) ([]stats.Verdict, error) {
	return f(texts(b))
}

// TestOrderBehindASplit: an event that the collector cannot process for now is not overtaken by what a split left, neither by
// later events of its device, nor are others by those of theirs. Nor is it after a restart, which forgets who waits.
func TestOrderBehindASplit(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBox(t, stats.SpoolOptions{})
				b.addLane("A1 C1 C2 C3 A2 B1 C4 P1 B2 B3 C5 C6 C7 C8 C9 D1")
				var taken []string
				var first *stats.Forwarder
				kept := false
				collector := collectorFunc(func(names []string) ([]stats.Verdict, error) {
					if slices.Contains(names, "P1") { // one has it refuse the request as a whole
						return nil, &stats.Failure{Scope: stats.ScopeContent, Whole: true, Code: "status_400", Err: errors.New("status 400")}
					}
					verdicts := make([]stats.Verdict, len(names))
					for i, name := range names {
						if name == "A1" && !kept {
							verdicts[i] = stats.Verdict{Fate: stats.Keep, Code: "processing_error"}
							continue
						}
						verdicts[i].Fate = stats.Delivered
						taken = append(taken, name)
					}
					if !kept && restart {
						go func() { _ = first.Close(context.Background()) }()
						time.Sleep(time.Millisecond) // it is being closed
					}
					kept = true
					return verdicts, nil
				})
				run := func() *stats.Forwarder {
					return stats.NewForwarder(stats.ForwarderOptions{Spool: b.Spool, Collector: collector})
				}
				first = run()
				first.Start()
				time.Sleep(10 * time.Millisecond)
				if restart {
					_ = first.Close(t.Context())
					b.reopen()
					first = run()
					first.Start()
				}
				time.Sleep(time.Hour)
				_ = first.Close(t.Context())
				if b.Stats().Events > 0 || len(taken) != 15 {
					t.Errorf("taken are %q, %d are left", taken, b.Stats().Events)
				}
				inOrder := slices.Clone(taken)
				slices.SortStableFunc(inOrder, func(a, b string) int { return strings.Compare(a[:1], b[:1]) })
				if !slices.IsSorted(inOrder) {
					t.Errorf("taken in the order %q", taken)
				}
			})
		})
	}
}

// addLane appends events in one go, those of "A1 B1" of two devices, all of one lane.
func (b *box) addLane(names string) {
	b.t.Helper()
	devices := map[string]string{}
	var events []stats.Event
	for i, name := range strings.Fields(names) {
		for n := i; devices[name[:1]] == ""; n += 1000 {
			if id := fmt.Sprint(name[:1], n); stats.HashDevice(id)%stats.Lanes == 0 {
				devices[name[:1]] = id
			}
		}
		events = append(events, confirmed("a", devices[name[:1]], name)...)
	}
	if err := b.Append(b.t.Context(), events...); err != nil {
		b.t.Fatal(err)
	}
}

// TestGiveUp: what a split left keeps its key until an event of a device is kept of which it has a later one. From there on it is
// composed anew.
func TestGiveUp(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.addLane("A1 B1 C1 D1 A2 B2 C2 D2")
	keep := stats.Verdict{Fate: stats.Keep, Code: "processing_error"}
	batch := b.claim(b.lanes()[0], all)
	for len(batch.Events) > 2 { // [A1 B1] [C1 D1] [A2 B2 C2 D2]
		batch = b.split(batch)
	}
	second := b.settle(batch, all, keep)
	wantTexts(t, second, "C1", "D1")
	b.reopen()
	again := b.claim(b.lanes()[0], all)
	if again.Key != second.Key {
		t.Errorf("key %s became %s", second.Key, again.Key)
	}
	wantTexts(t, b.settle(again, all), "A1", "A2", "B2", "C2", "D2")
}

// TestUnknownAppBehindASplit: an app that turns out to be unknown after a batch was split is left alone like any other, and what the
// split found out is not forgotten: no event is overtaken, and none is sent with the one that has the batch refused.
func TestUnknownAppBehindASplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			switch {
			case a.has(9) && len(a.events) > 1:
				return refusal(400, "invalid_json_body")
			case a.at < 24*time.Hour:
				return itemErrors(a, func(event) string { return "on_premise_app" })
			}
			return ok
		})
		s.add("d1 d2 d3 d9 d10 d11")
		s.pass(24 * time.Hour)
		if n := len(s.seen()); n > 80 { // at 30 minutes
			t.Errorf("%d requests in a day", n)
		}
		s.pass(time.Hour)
		if left := s.spool.Stats().Events; left > 0 || len(s.dead()) > 0 {
			t.Errorf("%d events are left, dead are %q", left, s.dead())
		}
		inOrder(t, s.seen())
		checkOrder(t, s.seen())
		checkKeys(t, s.seen())
	})
}

// TestKeyOfASuspect: a single event that has the collector fail is sent again under its key, also after a restart, until it is
// answered. Others are sent meanwhile, its device's after it.
func TestKeyOfASuspect(t *testing.T) {
	t.Run("500", func(t *testing.T) { testKeyOfASuspect(t, reply{status: 500}) })
	t.Run("no answer", func(t *testing.T) { testKeyOfASuspect(t, reply{cut: 1}) })
}

func testKeyOfASuspect(t *testing.T, bad reply) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			switch {
			case !a.has(1) || a.at > 5*time.Hour:
				return ok
			case a.at > 4*time.Hour: // an answer
				return itemErrors(a, func(e event) string { return map[string]string{"d": "processing_error"}[e.Device] })
			}
			return bad
		})
		mate := ""
		for n := 0; mate == "" || stats.LaneOf(1, mate) != stats.LaneOf(1, "d"); n++ {
			mate = fmt.Sprint("mate", n)
		}
		s.add("e2") // an array is taken
		s.pass(time.Second)
		s.add("d1")
		s.pass(time.Second)
		for n := 10; n < 6*60; n++ {
			s.add(fmt.Sprintf("d%d f%d", n, n))
			s.addEvents(event{App: "a", Device: mate, N: n})
			if s.pass(time.Minute); n%100 == 50 {
				s.stop()
				s.start()
			}
			if n == 200 && !slices.Contains(taken(s.seen()), "a"+mate+"190") {
				t.Error("the other device of its lane waits")
			}
		}
		s.pass(time.Hour)
		tries, keys, answered := 0, map[string]bool{}, map[string]bool{}
		for _, a := range s.seen() {
			switch {
			case a.has(1) && a.status == 200:
				answered[a.key] = true
			case a.has(1):
				tries, keys[a.key] = tries+1, true
			}
		}
		if len(keys) != 1 || tries < 40 || len(answered) < 3 {
			t.Errorf("%d requests had %d keys, then %d", tries, len(keys), len(answered))
		}
		if left := s.spool.Stats().Events; left > 0 || len(s.dead()) > 0 {
			t.Errorf("%d events are left, dead are %q", left, s.dead())
		}
		inOrder(t, s.seen())
	})
}

// inOrder: the events of a device are taken in their order.
func inOrder(t *testing.T, arrivals []arrival) {
	t.Helper()
	latest := map[string]int{}
	for _, a := range arrivals {
		for i, e := range a.events {
			if a.status != 200 || a.codes != nil && a.codes[i] != "" {
				continue
			}
			if e.N < latest[e.Device] {
				t.Errorf("%s is taken after %d", e, latest[e.Device])
			}
			latest[e.Device] = max(latest[e.Device], e.N)
		}
	}
}
