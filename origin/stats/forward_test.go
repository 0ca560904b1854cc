package stats_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// taken lists the events that a collector which answers whole batches took, in order.
func taken(arrivals []arrival) []string {
	var names []string
	for _, a := range arrivals {
		if a.status == 200 {
			for _, e := range a.events {
				names = append(names, e.App+e.String())
			}
		}
	}
	return names
}

// TestKeyAfterRestart: a batch that was on its way when the process ended has its key and its events after the next start.
func TestKeyAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			if a.n == 1 {
				return reply{hang: true}
			}
			return ok
		})
		s.add("d1 d2")
		s.pass(0)
		s.add("d3")
		s.pass(0)
		s.stop()
		s.start()
		s.pass(time.Minute)
		got := s.seen()
		if fmt.Sprint(got) != "[a[d1 d2] - a[d1 d2] 200 a[d3] 200]" {
			t.Fatal(got)
		}
		if got[0].key != got[1].key || got[1].key == got[2].key || len(got[0].key) < 8 {
			t.Errorf("keys %q, %q, %q", got[0].key, got[1].key, got[2].key)
		}
	})
}

// TestOrder: whatever the collector does, and whenever the process ends, each device's events arrive in order, and all of them.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random, faults := rand.New(rand.NewPCG(1, 2)), rand.New(rand.NewPCG(3, 4))
		s := newSite(t, nil)
		s.now(func(a arrival) reply {
			switch faults.IntN(8) {
			case 0:
				return reply{hang: true}
			case 1:
				return reply{cut: 1}
			case 2:
				return reply{status: 503}
			case 3:
				if len(a.events) > 1 {
					return reply{status: 400}
				}
			case 4:
				return reply{status: 429, header: map[string]string{"Retry-After": "5"}}
			case 5:
				return refusal(429, "on_premise_app")
			}
			return ok
		})
		s.stop()
		s.startWith(4)
		const devices, events = 6, 60
		for n := 1; n <= events; n++ {
			for device := range devices {
				s.addTo([]string{"a", "b", "c"}[device%3], fmt.Sprintf("%c%d", 'd'+device, n))
			}
			s.pass(time.Duration(random.IntN(20)) * time.Second)
			if n%20 == 0 {
				s.stop()
				s.startWith(4)
			}
		}
		s.now(func(arrival) reply { return ok })
		s.pass(2 * time.Hour)
		if left := s.spool.Stats().Events; left > 0 {
			t.Errorf("%d events are left", left)
		}
		arrivals := s.seen()
		checkOrder(t, arrivals)
		got := taken(arrivals)
		slices.Sort(got)
		if got = slices.Compact(got); len(got) != devices*events {
			t.Errorf("%d of %d events arrived; dead are %q", len(got), devices*events, s.dead())
		}
	})
}

// TestFairness: an app with many events does not hold up one with few.
func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(arrival) reply { return ok })
		s.network.setDown(true)
		var many []string
		for n := range 10_000 {
			many = append(many, fmt.Sprintf("%c%d", 'a'+n%26, n+1))
		}
		s.add(strings.Join(many, " "))
		for n := range 5 {
			s.addTo(fmt.Sprint("small", n), "d1 d2")
		}
		s.pass(time.Minute)
		s.network.setDown(false)
		s.pass(time.Hour)
		last := 0
		for i, a := range s.seen() {
			if a.app != "a" {
				last = i
			}
		}
		if last > 10 {
			t.Errorf("the last of five small apps came with request %d", last)
		}
		if n := s.forwarder.Remembered(); n != 0 {
			t.Errorf("%d things are in memory though nothing is to do", n)
		}
	})
}

// TestProbe: after an outage one request tries whether the collector is back, however many wait, and then no more than
// Concurrency at once.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, nil)
		s.stop()
		s.startWith(4)
		outage := true
		s.now(func(a arrival) reply {
			if outage {
				return reply{status: 503}
			}
			return ok
		})
		for n := range 200 {
			s.addTo(fmt.Sprint("app", n), "d1")
		}
		s.pass(0)
		if n := len(s.seen()); n > 4 {
			t.Errorf("%d requests met the outage", n)
		}
		s.pass(time.Hour)
		seen := s.seen()
		apps := map[string]bool{}
		for i, a := range seen {
			apps[a.app] = true
			if i > 4 && a.at-seen[i-1].at < 400*time.Millisecond {
				t.Errorf("two probes within %s", a.at-seen[i-1].at)
			}
		}
		if len(apps) < 10 {
			t.Errorf("only %d apps were tried in %d requests", len(apps), len(seen))
		}
		s.mu.Lock()
		outage = false
		s.mu.Unlock()
		s.pass(10 * time.Minute)
		if left := s.spool.Stats().Events; left > 0 || s.forwarder.Stats().Failing != nil {
			t.Errorf("%d events are left, %v", left, s.forwarder.Stats().Failing)
		}
	})
}

// TestUse: another collector is tried at once, however long the old one was to be left alone.
func TestUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, fails(1, reply{status: 401, header: map[string]string{"Retry-After": "3600"}}))
		s.add("d1")
		s.addTo("b", "d1")
		s.pass(time.Minute)
		if n := len(s.seen()); n != 1 {
			t.Fatalf("%d requests", n)
		}
		s.forwarder.Use(s.collector("second"))
		s.pass(0)
		if got := taken(s.seen()); len(got) != 2 || s.forwarder.Stats().Failing != nil {
			t.Errorf("%q, %v", got, s.forwarder.Stats().Failing)
		}
	})
}

// TestUseWhileARequestHangs: the old collector's failure says nothing about the new one.
func TestUseWhileARequestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, fails(1, reply{hang: true}))
		s.add("d1")
		s.pass(time.Second)
		s.forwarder.Use(s.collector("second"))
		s.addTo("b", "d2") // waits for the only worker
		s.pass(30 * time.Second)
		if got := fmt.Sprint(s.seen()); got != "[a[d1] - b[d2] 200 a[d1] 200]" || s.reported() != "" {
			t.Error(got, s.reported())
		}
	})
}

// TestClose: in every state it ends all that the forwarder does, and loses nothing.
func TestClose(t *testing.T) {
	tests := []struct {
		name   string
		answer reply
		down   bool
		wait   time.Duration // that Close is given
		took   time.Duration
		err    error
		left   int64
	}{
		{name: "idle", answer: ok},
		{name: "waiting for the collector", answer: reply{status: 500}, left: 2},
		{name: "waiting for an app", answer: refusal(429, "on_premise_app"), left: 2},
		{name: "waiting for a device", answer: refusal(400, "processing_error"), left: 2},
		{name: "down", down: true, left: 2},
		{name: "request on its way, enough time", answer: reply{hang: true}, wait: time.Minute, took: 30 * time.Second, left: 2},
		{name: "request on its way, little time", answer: reply{hang: true}, wait: time.Second, took: time.Second, err: context.DeadlineExceeded, left: 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, func(arrival) reply { return test.answer })
				s.network.setDown(test.down)
				s.add("d1 d2")
				s.pass(0)
				ctx, cancel := context.WithTimeout(t.Context(), max(test.wait, time.Millisecond))
				defer cancel()
				began := time.Now()
				err := s.forwarder.Close(ctx)
				if took := time.Since(began); took != test.took || !errors.Is(err, test.err) || test.err == nil && err != nil {
					t.Errorf("it took %s, %v", took, err)
				}
				seen := len(s.seen())
				s.addTo("late", "d3")
				s.pass(time.Hour)
				if n := len(s.seen()); n > seen {
					t.Errorf("%d requests after Close", n-seen)
				}
				if left := s.spool.Stats().Events; left != test.left+1 {
					t.Errorf("%d events are left, not %d", left, test.left+1)
				}
				if err := s.forwarder.Close(t.Context()); err != nil { // again
					t.Error(err)
				}
			})
		})
	}
}

// TestCloseHalfway: of a batch that is sent event by event, what was taken is not sent again.
func TestCloseHalfway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			if a.n == 3 {
				return reply{hang: true}
			}
			return ok
		})
		s.objectForm = true
		s.forwarder.Use(s.collector("second"))
		s.add("d1 d2 d3 d4")
		s.pass(time.Second)
		s.stop()
		s.start()
		s.pass(time.Second)
		got := s.seen()
		if fmt.Sprint(got) != "[a{d1} 200 a{d2} 200 a{d3} - a{d3} 200 a{d4} 200]" || s.reported() != "" {
			t.Fatal(got, s.reported())
		}
		if got[2].key != got[3].key || got[3].key == got[4].key {
			t.Errorf("keys %q, %q, %q", got[2].key, got[3].key, got[4].key)
		}
	})
}

// TestCloseBeforeStart: what never ran ends too.
func TestCloseBeforeStart(t *testing.T) {
	if err := stats.NewForwarder(stats.ForwarderOptions{}).Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestPoison: a batch that has the collector fail as a whole is found out while others are taken, its other events are
// delivered, and its own event is dead at last.
func TestPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			if a.app == "a" && a.has(3) {
				return reply{cut: 1}
			}
			return ok
		})
		s.add("d1 d2 d3 d4")
		for n := range 15 * 60 { // others come every two minutes for 30 hours
			s.addTo("b", fmt.Sprintf("d%d", n+1))
			s.pass(2 * time.Minute)
			if n == 30 {
				if got := s.spool.Stats().Events; got != 2 { // d3, and d4 behind it
					t.Errorf("%d events are left after an hour: %v", got, s.seen()[:20])
				}
			}
		}
		if got := s.dead(); !slices.Equal(got, []string{"d3:no_answer"}) {
			t.Errorf("dead are %q", got)
		}
		if left := s.spool.Stats().Events; left != 0 {
			t.Errorf("%d events are left", left)
		}
		arrivals := s.seen()
		checkOrder(t, arrivals)
		t.Logf("%d requests, %d with the poison; %s", len(arrivals), len(arrivals)-len(taken(arrivals)), s.reported())
	})
}

// TestWornOut: an event that is never processed, while others are, is dead after many tries and a day, not earlier.
func TestWornOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			return itemErrors(a, func(e event) string {
				if e.Device == "d" && e.N < 3 {
					return "processing_error"
				}
				return ""
			})
		})
		s.add("d1 d2 d3 e4")
		pass := func(d time.Duration) {
			for range d / (10 * time.Minute) { // others come
				s.n++
				s.add(fmt.Sprintf("f%d", s.n))
				s.pass(10 * time.Minute)
			}
		}
		pass(23 * time.Hour)
		if got := s.dead(); len(got) > 0 || s.forwarder.Stats().HeldDevices != 1 {
			t.Errorf("dead within a day: %q", got)
		}
		pass(2 * time.Hour)
		if got := s.dead(); !slices.Equal(got, []string{"d1:processing_error", "d2:processing_error"}) {
			t.Errorf("dead are %q", got)
		}
		if s.spool.Stats().Events != 0 || s.forwarder.Stats().HeldDevices != 0 {
			t.Errorf("%+v", s.forwarder.Stats())
		}
		checkOrder(t, s.seen())
	})
}

// TestProcessesNothing: a collector that answers, and can process nothing for more than a day, is reported and costs no event.
func TestProcessesNothing(t *testing.T) {
	tests := []struct {
		name   string
		answer func(arrival) reply
	}{
		{"errors for items", func(a arrival) reply { return itemErrors(a, func(event) string { return "processing_error" }) }},
		{"an error for the batch", func(arrival) reply { return refusal(200, "processing_error") }},
		{"some are refused all the same", func(a arrival) reply {
			return itemErrors(a, func(e event) string {
				if e.N%7 == 0 {
					return "semver_error"
				}
				return "unknown_error"
			})
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, test.answer)
				for hour := range 30 {
					s.add(fmt.Sprintf("d%d e%d", 2*hour+1, 2*hour+2))
					s.pass(time.Hour)
				}
				st := s.forwarder.Stats()
				if got := s.reported(); !strings.HasPrefix(got, "the collector answers, and has processed no event of the last 20 batches") {
					t.Errorf("reported %q", got)
				}
				if st.Failing == nil || st.Since.Sub(s.began) > 2*time.Hour || !st.Until.IsZero() || st.Requests["retry"] < 100 {
					t.Errorf("%+v", st)
				}
				for _, letter := range s.dead() {
					if !strings.HasSuffix(letter, ":semver_error") {
						t.Errorf("%s is dead", letter)
					}
				}
				s.now(func(arrival) reply { return ok })
				s.pass(time.Hour)
				if left := s.spool.Stats().Events; left > 0 || s.forwarder.Stats().Failing != nil || !strings.HasSuffix(s.reported(), "| works") {
					t.Errorf("%d events are left, %q", left, s.reported())
				}
				checkOrder(t, s.seen())
			})
		})
	}
}

// TestTooLarge: what a 413 teaches is remembered for a day.
func TestTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := 0
		s := newSite(t, func(a arrival) reply {
			if a.bytes > 20_000 {
				refused++
				return reply{status: 413}
			}
			return ok
		})
		for range 20 {
			var events []string
			for range 200 {
				s.n++
				events = append(events, fmt.Sprintf("d%d", s.n))
			}
			s.padding = strings.Repeat("x", 300)
			s.add(strings.Join(events, " "))
			s.pass(time.Minute)
		}
		if refused == 0 || refused > 5 || s.spool.Stats().Events > 0 {
			t.Errorf("%d of %d batches were too large, %d events are left", refused, len(s.seen()), s.spool.Stats().Events)
		}
		checkOrder(t, s.seen())
	})
}

// TestManyHeldDevices: more devices wait than are remembered. The lanes of the others wait, and all is delivered in the end.
func TestManyHeldDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			return itemErrors(a, func(event) string {
				if a.at < 20*time.Minute {
					return "unknown_error"
				}
				return ""
			})
		})
		const devices, remembered = 1200, 1000
		s.forwarder.SetMaxHeld(remembered)
		var events []event
		for n := range devices {
			events = append(events, event{App: "a", Device: fmt.Sprint("device", n), N: 1})
		}
		s.addEvents(events...)
		s.pass(10 * time.Minute)
		if held := s.forwarder.Stats().HeldDevices; held > remembered || held < remembered*9/10 {
			t.Errorf("%d devices are held", held)
		}
		t.Logf("%d requests in ten minutes for %d devices that wait", len(s.seen()), devices)
		s.pass(time.Hour)
		if left := s.spool.Stats().Events; left > 0 || len(s.dead()) > 0 {
			t.Errorf("%d events are left", left)
		}
		if n := s.forwarder.Remembered(); n != 0 {
			t.Errorf("%d things are in memory though nothing is to do", n)
		}
		checkOrder(t, s.seen())
	})
}

// TestRefusesEverything: a collector that by mistake, or at a wrong address, refuses all for an hour costs a bounded number of
// events.
func TestRefusesEverything(t *testing.T) {
	t.Run("with a status", func(t *testing.T) { testRefusesEverything(t, reply{status: 400}) })
	t.Run("with an error that is about no event", func(t *testing.T) { testRefusesEverything(t, refusal(200, "invalid_request")) })
}

func testRefusesEverything(t *testing.T, no reply) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			if a.at < time.Hour {
				return no
			}
			return ok
		})
		var events []string
		for n := range 5000 {
			events = append(events, fmt.Sprintf("%c%d", 'a'+n%26, n+1))
		}
		s.add(strings.Join(events, " "))
		s.pass(3 * time.Hour)
		dead := len(s.dead())
		if dead < 100 || dead > 130 || s.spool.Stats().Events != 0 {
			t.Errorf("%d are dead, %d are left", dead, s.spool.Stats().Events)
		}
		if got := s.reported(); !strings.Contains(got, "refused more than 100 events in a row") || !strings.HasSuffix(got, "| works") {
			t.Error(got)
		}
		checkOrder(t, s.seen())
		t.Logf("%d requests, %d of 5000 dead", len(s.seen()), dead)
	})
}

// TestRefusedEvents: a collector that says of each event what is wrong with it works, however many there are. Anyone can make
// such events up.
func TestRefusedEvents(t *testing.T) {
	tests := []struct {
		name    string
		objects bool
		refuse  func(a arrival) reply
	}{
		{"version_not_found of each", false, func(a arrival) reply {
			return itemErrors(a, func(event) string { return "version_not_found" })
		}},
		{"a code of its own of each", false, func(a arrival) reply { return itemErrors(a, func(event) string { return "too_old" }) }},
		{"mixed_app_ids, in the end semver_error", false, func(a arrival) reply {
			if len(a.events) > 1 {
				return refusal(200, "mixed_app_ids")
			}
			return itemErrors(a, func(event) string { return "semver_error" })
		}},
		{"invalid_app_id for the batch", false, func(arrival) reply { return refusal(200, "invalid_app_id") }},
		{"version_not_found of single events", true, func(arrival) reply { return refusal(200, "version_not_found") }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, func(a arrival) reply {
					if a.app == "a" {
						return ok
					}
					return test.refuse(a)
				})
				s.objectForm = test.objects
				s.forwarder.Use(s.collector("second"))
				var made []event
				for n := range 250 {
					made = append(made, event{App: "x", Device: fmt.Sprint("made up ", n), N: n})
				}
				s.addEvents(made...)
				s.pass(0)
				s.add("d1")
				s.pass(0)
				if got := taken(s.seen()); !slices.Contains(got, "ad1") || s.reported() != "" || s.forwarder.Stats().Failing != nil {
					t.Errorf("the real event waits: %s", s.reported())
				}
				if dead := len(s.dead()); dead != len(made) {
					t.Errorf("%d are dead", dead)
				}
			})
		})
	}
}

// TestDeadLettersUnwritable: dead letters that cannot be written hold nothing else up, are reported, and are written later.
func TestDeadLettersUnwritable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			return itemErrors(a, func(e event) string {
				if e.App == "bad" && e.N%2 == 1 {
					return "version_not_found"
				}
				return ""
			})
		})
		s.stop()
		var reports reports
		s.options.Report = reports.add
		s.startWith(2)
		file := filepath.Join(filepath.Dir(s.options.Path), "spool.dead.jsonl")
		if err := os.Mkdir(file, 0o700); err != nil {
			t.Fatal(err)
		}
		const bad = 40
		for n := range bad { // in all lanes
			s.addEvents(event{App: "bad", Device: fmt.Sprint("device", n), N: n})
		}
		s.pass(0)
		s.addTo("good", "d1")
		s.pass(0)
		if got := taken(s.seen()); !slices.Contains(got, "goodd1") {
			t.Error("the events of another app wait")
		}
		s.pass(time.Hour)
		if got := reports.list(); len(got) != 1 || !errors.Is(got[0], stats.ErrStillTaking) || !strings.Contains(got[0].Error(), file) {
			t.Errorf("reported %v", got)
		}
		st := s.forwarder.Stats()
		if left := s.spool.Stats().Events; left != bad/2 || st.Dead != 0 || st.Delivered != bad/2+1 {
			t.Errorf("%d events are left, %+v", left, st)
		}
		if n := len(s.seen()); n > 10*60 {
			t.Errorf("%d requests in an hour", n)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		s.pass(2 * time.Minute)
		if got := reports.list(); len(got) != 2 || got[1] != nil {
			t.Errorf("reported %v", got)
		}
		if left, dead := s.spool.Stats().Events, len(s.dead()); left != 0 || dead != bad/2 || s.forwarder.Stats().Dead != bad/2 {
			t.Errorf("%d events are left, %d are dead, %+v", left, dead, s.forwarder.Stats())
		}
	})
}

// TestDeadLettersUnwritableInLane: a device whose dead letter cannot be written does not hold up those that share its lane, and
// its own events keep their order.
func TestDeadLettersUnwritableInLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			return itemErrors(a, func(e event) string {
				if e.N == 1 {
					return "version_not_found"
				}
				return ""
			})
		})
		file := filepath.Join(filepath.Dir(s.options.Path), "spool.dead.jsonl")
		if err := os.Mkdir(file, 0o700); err != nil {
			t.Fatal(err)
		}
		mate := ""
		for n := 0; mate == "" || stats.LaneOf(1, mate) != stats.LaneOf(1, "d"); n++ {
			mate = fmt.Sprint("mate", n)
		}
		s.addEvents(event{App: "a", Device: "d", N: 1})
		s.pass(0)
		s.addEvents(event{App: "a", Device: "d", N: 2}, event{App: "a", Device: mate, N: 3})
		s.pass(time.Second)
		if got := taken(s.seen()); !slices.Equal(got, []string{"ad1", "a" + mate + "3"}) { // and not d2
			t.Errorf("answered: %q", got)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		s.pass(2 * time.Minute)
		if got := s.dead(); !slices.Equal(got, []string{"d1:version_not_found"}) || s.spool.Stats().Events != 0 {
			t.Errorf("dead are %q", got)
		}
		checkOrder(t, s.seen())
	})
}

// TestPoisonInSmallApp: an event that has the answer to its batch be an error is found out though the app has no other batches.
func TestPoisonInSmallApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			if a.has(3) {
				return refusal(200, "processing_error")
			}
			return ok
		})
		s.add("d1 e2 d3 e4")
		s.add("f5")
		s.pass(time.Hour)
		if got := s.spool.Stats().Events; got != 1 || s.forwarder.Stats().WaitingApps != 0 {
			t.Errorf("%d events are left: %v", got, s.seen())
		}
	})
}

// TestIdleEnds: a collector that could process nothing is no longer reported once another is used, or nothing waits.
func TestIdleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply { return itemErrors(a, func(event) string { return "processing_error" }) })
		failing := func() bool { return s.forwarder.Stats().Failing != nil }
		s.add("d1")
		s.pass(3 * time.Hour)
		if !failing() {
			t.Error("it is not reported")
		}
		s.forwarder.Use(s.collector("second"))
		if failing() {
			t.Error("the other collector is blamed")
		}
		s.pass(3 * time.Hour)
		s.now(func(a arrival) reply { return itemErrors(a, func(event) string { return "version_not_found" }) })
		before := failing()
		s.pass(time.Hour)
		if !before || failing() || !strings.HasSuffix(s.reported(), "| works") {
			t.Errorf("%t, %+v, %s", before, s.forwarder.Stats(), s.reported())
		}
	})
}

// TestManyUnknownApps: hundreds of made-up apps cost little, and a real one gets its turn.
func TestManyUnknownApps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, func(a arrival) reply {
			if a.app != "a" {
				return refusal(429, "on_premise_app")
			}
			return ok
		})
		const apps = 200
		for n := range apps {
			s.addTo(fmt.Sprint("made-up", n), "d1")
		}
		s.pass(time.Hour)
		before := len(s.seen())
		s.add("d1")
		s.pass(time.Second)
		if got := taken(s.seen()); !slices.Equal(got, []string{"ad1"}) {
			t.Errorf("%q", got)
		}
		s.pass(time.Hour)
		if rate := float64(len(s.seen())-before) / 3600; rate > apps/900. {
			t.Errorf("%.1f requests a second", rate)
		}
		if s.reported() != "" || s.forwarder.Stats().WaitingApps != apps {
			t.Errorf("%s; %+v", s.reported(), s.forwarder.Stats())
		}
	})
}
