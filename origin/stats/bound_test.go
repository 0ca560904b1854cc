package stats_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// wantSize looks that the file is within its bound.
func (b *box) wantSize(most int64) {
	b.t.Helper()
	info, err := os.Stat(b.options.Path)
	if err != nil {
		b.t.Fatal(err)
	}
	if info.Size() > most {
		b.t.Fatalf("the file has %d bytes, of at most %d; reported: %v", info.Size(), most, b.reports.list())
	}
}

// dropped are the events that were lost.
func (b *box) dropped() (n int64) {
	for _, count := range b.Stats().Dropped {
		n += int64(count)
	}
	return n
}

// TestBound appends many times what a spool may hold, CAPGO_EDGE_SPOOL_FILLS times.
func TestBound(t *testing.T) {
	some := func(n int) func() string { return func() string { return fmt.Sprint("app", rand.IntN(n)) } }
	for _, c := range []struct {
		name    string
		max     int64
		app     func() string
		devices int
		size    func() int
		deliver bool
	}{
		{"one app", 4 * mib, some(1), 1, func() int { return 300 }, false},
		{"one app, delivered", 4 * mib, some(1), 100, func() int { return 300 }, true},
		{"small events", 4 * mib, some(3), 1000, func() int { return 2 }, false},
		{"many apps", 4 * mib, some(100), 10_000, func() int { return 100 + rand.IntN(700) }, false},
		{"many apps, delivered", 4 * mib, some(100), 10_000, func() int { return 100 + rand.IntN(700) }, true},
		{"all sizes", 4 * mib, some(5), 50, func() int { return 1 << rand.IntN(16) }, false},
		{"all sizes, delivered", 4 * mib, some(5), 50, func() int { return 1 << rand.IntN(16) }, true},
		{"large events", 16 * mib, some(5), 50, func() int { return 200*kib + rand.IntN(50*kib) }, false},
		{"smallest spool", mib, some(20), 50, func() int { return rand.IntN(1000) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t, stats.SpoolOptions{MaxBytes: c.max})
			total := int64(rounds(t, "CAPGO_EDGE_SPOOL_FILLS", 2)) * c.max
			added, delivered := int64(0), int64(0)
			for written := int64(0); written < total; {
				var events []stats.Event
				for range 1 + rand.IntN(100) {
					data := []byte(fill(c.size()))
					written += int64(len(data)) + 60
					events = append(events, stats.Event{App: c.app(), Device: fmt.Sprint(rand.IntN(c.devices)), Confirmed: true, Data: data})
				}
				if err := b.Append(t.Context(), events...); err != nil {
					t.Fatal(err)
				}
				added += int64(len(events))
				b.wantSize(c.max)
				if c.deliver && rand.IntN(20) == 0 {
					delivered += b.deliverSome()
				}
			}
			st := b.Stats()
			if lost := b.dropped(); added-delivered != st.Events+lost || lost == 0 && !c.deliver {
				t.Errorf("%d added, %d delivered, %d in the spool, %d counted as lost", added, delivered, st.Events, lost)
			}
			t.Logf("%d events added, %d delivered, %d held in %d of %d bytes, %d dropped", added, delivered, st.Events, st.Bytes, st.FileBytes, st.Dropped["full"])
			b.reopen()
			if st = b.Stats(); added-delivered != st.Events+b.dropped() {
				t.Errorf("%d added, %d delivered, %d in the spool after a restart, %d counted as lost", added, delivered, st.Events, b.dropped())
			}
			n := int64(0)
			for _, data := range b.drain() {
				n += int64(len(data))
			}
			if n != st.Events {
				t.Errorf("%d of %d events come out", n, st.Events)
			}
			b.wantSize(c.max)
		})
	}
}

// deliverSome delivers a few batches, and leaves others on their way.
func (b *box) deliverSome() (n int64) {
	for _, l := range b.lanes() {
		if rand.IntN(3) > 0 {
			continue
		}
		batch := b.claim(l, stats.BatchLimits{Events: 50, Bytes: mib})
		for range rand.IntN(6) {
			if batch == nil {
				break
			}
			before := b.Stats().Events
			n += int64(len(batch.Events))
			batch = b.settle(batch, stats.BatchLimits{Events: 50, Bytes: mib})
			if b.Stats().Events > before {
				b.t.Fatal("more events after a delivery")
			}
		}
	}
	return n
}

// TestFairShare has a busy app and quiet ones share a spool.
func TestFairShare(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	for i := range 20 {
		b.add(fmt.Sprint("quiet", i), "d", "first", "second")
	}
	for i := range 60_000 / 100 {
		var events []stats.Event
		for j := range 100 {
			events = append(events, confirmed("busy", fmt.Sprint("d", j), numbered{N: i*100 + j, Fill: fill(300)}.json())...)
		}
		if err := b.Append(t.Context(), events...); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 60_000 / 100 { // a second one gets as much
		var events []stats.Event
		for j := range 100 {
			events = append(events, confirmed("busy, too", fmt.Sprint("d", j), numbered{N: i*100 + j, Fill: fill(300)}.json())...)
		}
		if err := b.Append(t.Context(), events...); err != nil {
			t.Fatal(err)
		}
	}
	got := b.drain()
	for i := range 20 {
		if data := got[fmt.Sprint("quiet", i)]; fmt.Sprint(data) != "[first second]" {
			t.Errorf("of the quiet app %d there is %v", i, data)
		}
	}
	one, two := len(got["busy"]), len(got["busy, too"])
	if one == 0 || two == 0 || one > 2*two || two > 2*one {
		t.Errorf("%d events of one busy app, %d of the other", one, two)
	}
	// What is left of an app is the newest.
	seen := map[int]bool{}
	for _, text := range got["busy, too"] {
		var n numbered
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			t.Fatal(err)
		}
		seen[n.N] = true
	}
	for i := 60_000 - two; i < 60_000; i++ {
		if !seen[i] {
			t.Fatalf("event %d of the newest %d is gone", i, two)
		}
	}
}

// TestUnconfirmedShare floods a spool with made-up apps.
func TestUnconfirmedShare(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	for i := range 1000 {
		b.add("real", fmt.Sprint("d", i%7), numbered{N: i, Fill: fill(1500)}.json())
	}
	before := b.Stats().Dropped["full"]
	for i := range 300 {
		var events []stats.Event
		for j := range 100 {
			events = append(events, stats.Event{App: fmt.Sprint("made up ", i*100+j), Device: "d", Data: []byte(fill(300))})
		}
		if err := b.Append(t.Context(), events...); err != nil {
			t.Fatal(err)
		}
		b.wantSize(4 * mib)
	}
	for i := range 300 { // and with one
		var events []stats.Event
		for range 100 {
			events = append(events, stats.Event{App: "made up", Device: fmt.Sprint(i), Data: []byte(fill(300))})
		}
		if err := b.Append(t.Context(), events...); err != nil {
			t.Fatal(err)
		}
	}
	st := b.Stats()
	if st.Dropped["full"] != before || st.Dropped["unconfirmed"] == 0 {
		t.Errorf("dropped %v, %d before the flood", st.Dropped, before)
	}
	if got := b.drain(); len(got["real"]) != 1000-int(before) {
		t.Errorf("%d real events left", len(got["real"]))
	}
}

// TestUnconfirmedApps makes up more apps than the spool keeps.
func TestUnconfirmedApps(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{MaxBytes: 256 * mib})
	const apps = 12_000
	var events []stats.Event
	for i := range apps {
		events = append(events, stats.Event{App: fmt.Sprint("made up ", i), Device: "d", Data: []byte(fmt.Sprint(i))})
	}
	if err := b.Append(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	b.add("made up 11999", "d", "now it is known") // with its oldest event
	got := b.drain()
	if len(got) > 10_000 || len(got) < 9_000 || got["made up 0"] != nil || len(got["made up 11999"]) != 2 {
		t.Errorf("%d apps are left", len(got))
	}
	b.wantStats(0, map[string]uint64{"unconfirmed": uint64(apps - len(got))})
}

// TestRetune makes a spool smaller, and larger again.
func TestRetune(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{MaxBytes: 16 * mib})
	added := int64(0)
	write := func(n int) {
		for range n {
			var events []string
			for range 50 {
				events = append(events, fill(500))
			}
			b.add("a", fmt.Sprint(rand.IntN(100)), events...)
			added += 50
		}
	}
	write(600)
	held := b.Stats().Events
	for _, most := range []int64{8 * mib, 2 * mib, 16 * mib} {
		b.Retune(most, 0)
		b.add("a", "d", "{}") // it is answered once the new bound holds
		b.add("a", "d", "{}")
		added += 2
		b.wantSize(most)
		if st := b.Stats(); st.Events+b.dropped() != added {
			t.Errorf("%d events, %d dropped of %d", st.Events, b.dropped(), added)
		}
		b.options.MaxBytes = most
		b.reopen()
		b.wantSize(most)
		write(20)
	}
	write(600)
	if now := b.Stats().Events; now < held*9/10 {
		t.Errorf("%d events are held, %d were at first", now, held)
	}
	b.options.MaxBytes = 2 * mib
	b.reopen()
	b.wantSize(2 * mib)
	if st := b.Stats(); st.Events+b.dropped() != added || st.Events == 0 {
		t.Errorf("%d events, %d dropped of %d", st.Events, b.dropped(), added)
	}
	if reports := b.reports.list(); len(reports) > 0 {
		t.Errorf("reported: %v", reports)
	}
}

// TestShrinksWhenDrained looks at the file after a long outage of the collector.
func TestShrinksWhenDrained(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{MaxBytes: 64 * mib})
	var events []string
	for range 100 {
		events = append(events, fill(1000))
	}
	for i := range 450 {
		b.add("a", fmt.Sprint(i), events...)
	}
	if size := b.Stats().FileBytes; size < 40*mib {
		t.Fatalf("the file has %d bytes", size)
	}
	b.drain()
	b.add("a", "d", "last")
	if size := b.Stats().FileBytes; size > 16*mib {
		t.Errorf("the file of an empty spool has %d bytes", size)
	}
	if got := b.drain(); fmt.Sprint(got["a"]) != "[last]" {
		t.Error(got)
	}
}

// TestNoSpaceToShrink has the disk lack the space to write a file anew: that is reported as what it is, once, and events are taken.
func TestNoSpaceToShrink(t *testing.T) {
	var left atomic.Int64
	left.Store(mib / 16)
	path := scratch(t) + "/s.db"
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, stats.SpoolOptions{Path: path, MaxBytes: 64 * mib, Free: func() (int64, error) { return left.Load(), nil }})
		for i := range 450 {
			b.add("a", fmt.Sprint(i), strings.Split(strings.Repeat(fill(1000)+" ", 100), " ")[:100]...)
		}
		b.drain()
		for range 5 {
			b.add("a", "d", "{}")
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		if got := b.reports.list(); len(got) != 1 || !errors.Is(got[0], stats.ErrStillTaking) || !errors.Is(got[0], stats.ErrNoSpace) {
			t.Errorf("reported: %v", got)
		}
		left.Store(100 * mib)
		time.Sleep(time.Minute)
		b.add("a", "d", "{}")
		b.add("a", "d", "{}") // it is answered once the file is smaller
		if got := b.reports.list(); len(got) != 2 || got[1] != nil {
			t.Errorf("reported: %v", got)
		}
		b.wantSize(16 * mib)
		b.close()
	})
}

// TestMinFree lets the disk run full, as far as the spool is told.
func TestMinFree(t *testing.T) {
	var left atomic.Int64
	left.Store(100 * mib)
	path := scratch(t) + "/s.db"
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, stats.SpoolOptions{Path: path, MaxBytes: 64 * mib, MinFree: 10 * mib, Free: func() (int64, error) { return left.Load(), nil }})
		many := func() error {
			return b.Append(t.Context(), confirmed("a", "d", strings.Split(strings.Repeat(fill(1000)+" ", 200), " ")[:200]...)...)
		}
		for range 20 {
			if err := many(); err != nil {
				t.Fatal(err)
			}
		}
		size := b.Stats().FileBytes
		left.Store(mib)
		time.Sleep(time.Second)
		var err error
		taken := 0
		for err == nil && taken < 100 {
			if err = many(); err == nil {
				taken++
			}
		}
		if !errors.Is(err, stats.ErrNoSpace) {
			t.Fatal(err)
		}
		if now := b.Stats().FileBytes; now != size {
			t.Errorf("the file grew from %d to %d bytes", size, now)
		}
		if reports := b.reports.list(); len(reports) != 1 || !errors.Is(reports[0], stats.ErrNoSpace) {
			t.Errorf("reported: %v", reports)
		}
		if b.dropped() > 0 {
			t.Error("events were dropped for want of space on the disk")
		}
		// What is delivered makes room.
		batch := b.claim(b.lanes()[0], stats.BatchLimits{Events: 1000, Bytes: 10 * mib})
		for range 2 {
			batch = b.settle(batch, stats.BatchLimits{Events: 1000, Bytes: 10 * mib})
		}
		if err := many(); err != nil {
			t.Error(err)
		}
		if now := b.Stats().FileBytes; now > size {
			t.Errorf("the file grew from %d to %d bytes", size, now)
		}
		left.Store(100 * mib)
		time.Sleep(time.Second)
		for range 40 {
			if err := many(); err != nil {
				t.Fatal(err)
			}
		}
		if reports := b.reports.list(); reports[len(reports)-1] != nil {
			t.Errorf("reported: %v", reports)
		}
		b.close()
	})
}
