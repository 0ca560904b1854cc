package stats_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
	"github.com/capgo-edge/capgo-edge/origin/stats"
)

func TestSpoolKeepsAndDelivers(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.wantStats(0, nil)
	b.add("a", "d1", "1", "2")
	b.add("b", "d1", "3")
	b.add("a", "d1", "4")
	b.wantStats(4, nil)
	b.reopen()
	b.wantStats(4, nil)
	got := b.drain()
	if fmt.Sprint(got["a"], got["b"]) != "[1 2 4] [3]" {
		t.Errorf("delivered %v", got)
	}
	b.wantStats(0, nil)
	if lanes := b.lanes(); len(lanes) > 0 {
		t.Errorf("lanes %v of an empty spool", lanes)
	}
}

func TestBatchLimits(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", "11", "22", "33", "4444444444", "5")
	l := b.lanes()[0]
	first := b.claim(l, stats.BatchLimits{Events: 2, Bytes: 100})
	wantTexts(t, first, "11", "22")
	second := b.settle(first, stats.BatchLimits{Events: 100, Bytes: 5})
	wantTexts(t, second, "33")
	third := b.settle(second, stats.BatchLimits{Events: 100, Bytes: 5}) // larger than allowed, so it goes alone
	wantTexts(t, third, "4444444444")
	wantTexts(t, b.settle(third, stats.BatchLimits{}), "5")
}

// TestClaimComesBack looks at what is on its way when a process ends.
func TestClaimComesBack(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", "1", "2", "3", "4", "5")
	l := b.lanes()[0]
	first := b.claim(l, stats.BatchLimits{Events: 3, Bytes: mib})
	keys := map[string]bool{first.Key: true}
	for range 3 {
		b.add("a", "d", "6") // what comes later does not join
		again := b.claim(l, all, "d")
		if again.Key != first.Key {
			t.Errorf("key %s, then %s", first.Key, again.Key)
		}
		wantTexts(t, again, "1", "2", "3")
		b.reopen()
	}
	second := b.settle(b.claim(l, all), stats.BatchLimits{Events: 2, Bytes: mib})
	wantTexts(t, second, "4", "5")
	if keys[second.Key] {
		t.Errorf("key %s twice", second.Key)
	}
	if next := b.settle(first, all); next == nil || next.Key != second.Key { // its answer came twice
		t.Errorf("a batch that is settled twice gives %v", next)
	}
	b.reopen()
	wantTexts(t, b.settle(b.claim(l, all), all), "6", "6", "6")
	b.wantStats(3, nil)
}

func TestVerdicts(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", `"1"`, `"2"`, `"3"`)
	first := b.claim(b.lanes()[0], all)
	next := b.settle(first, all, stats.Verdict{Fate: stats.Keep}, stats.Verdict{Fate: stats.Dead, Code: "bad", Message: "why"})
	wantTexts(t, next, `"1"`)
	if next.Key == first.Key {
		t.Error("the key of a batch that is another one is the same")
	}
	b.wantStats(1, nil)
	if st := b.Stats(); st.Dead != 1 || st.DeadEvents != 1 || st.DeadBytes == 0 {
		t.Errorf("dead: %+v", st)
	}
	if _, err := b.Settle(t.Context(), next, nil, all, nil); err == nil {
		t.Error("a batch was settled without verdicts")
	}
}

func TestSplit(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", "1", "2", "3")
	l := b.lanes()[0]
	whole := b.claim(l, all)
	first, err := b.Split(t.Context(), whole)
	if err != nil {
		t.Fatal(err)
	}
	wantTexts(t, first, "1")
	b.reopen()
	if again := b.claim(l, all); again.Key != first.Key {
		t.Errorf("key %s, then %s", first.Key, again.Key)
	}
	if again, err := b.Split(t.Context(), whole); err != nil || again.Key != first.Key { // the answer of the first got lost
		t.Errorf("a second split gives %v, %v", again, err)
	}
	second := b.settle(first, all)
	wantTexts(t, second, "2", "3")
	if keys := []string{whole.Key, first.Key, second.Key}; len(slices.Compact(slices.Sorted(slices.Values(keys)))) != 3 {
		t.Errorf("keys %v", keys)
	}
	if _, err := b.Split(t.Context(), first); err == nil {
		t.Error("a batch of one event was split")
	}
	if next := b.settle(second, all); next != nil {
		t.Errorf("%v comes after the last", texts(next))
	}
	if none, err := b.Split(t.Context(), whole); err != nil || none != nil {
		t.Errorf("a batch that is gone is split into %v, %v", none, err)
	}
}

// TestRestoredCopy: a spool that is put back from a copy gives other events no keys that were used since, and their dead
// letters other ids.
func TestRestoredCopy(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", `0`)
	b.close()
	copied, err := os.ReadFile(b.options.Path)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]string{} // events by key
	for _, name := range []string{`1`, `2`} {
		if err := os.WriteFile(b.options.Path, copied, 0o600); err != nil {
			t.Fatal(err)
		}
		b.open()
		b.add("a", "d", name, name)
		b.settle(b.claim(b.lanes()[0], stats.BatchLimits{Events: 1, Bytes: mib}), all) // those of the copy
		whole := b.claim(b.lanes()[0], all)
		first, err := b.Split(t.Context(), whole)
		if err != nil {
			t.Fatal(err)
		}
		for _, batch := range []*stats.Batch{whole, first, b.settle(first, all, dead)} {
			if was := used[batch.Key]; was != "" {
				t.Errorf("key %s of %s again, for %v", batch.Key, was, texts(batch))
			}
			used[batch.Key] = name
		}
		b.close()
	}
	b.open()
	if got := events(b.letters()); fmt.Sprint(got) != `[1 2]` { // one whose id was known would be passed over
		t.Errorf("dead letters %v", got)
	}
}

// sameLane are n devices whose events share a lane.
func sameLane(n int) (devices []string) {
	for i := 0; len(devices) < n; i++ {
		if d := fmt.Sprint("device", i); stats.LaneOf(1, d) == stats.LaneOf(1, "device0") {
			devices = append(devices, d)
		}
	}
	return devices
}

func TestHeldDevices(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	d := sameLane(3)
	for i := range 4 {
		for _, device := range d {
			b.add("a", device, fmt.Sprint(device, ":", i))
		}
	}
	l := b.lanes()[0]
	one := stats.BatchLimits{Events: 1, Bytes: mib}
	if batch := b.claim(l, all, d...); batch != nil {
		t.Errorf("all are held, and %v is claimed", texts(batch))
	}
	b.add("a", d[2], d[2]+":4")
	batch := b.claim(l, one, d[0], d[1])
	wantTexts(t, batch, d[2]+":0")
	next, err := b.Settle(t.Context(), batch, verdicts(batch, nil), all, holds(d[:1]))
	if err != nil {
		t.Fatal(err)
	}
	got := texts(next)
	for _, device := range d[1:] {
		mine := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return !strings.HasPrefix(s, device+":") })
		if !slices.IsSorted(mine) || len(mine) != 4 {
			t.Errorf("of %s: %v", device, mine)
		}
	}
	wantTexts(t, b.settle(next, all), d[0]+":0", d[0]+":1", d[0]+":2", d[0]+":3")
}

// TestHeldChangesMeanwhile has a device become free while a batch is looked for: its later events must not overtake.
func TestHeldChangesMeanwhile(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", "1", "2", "3")
	asked := 0
	batch, err := b.Claim(t.Context(), b.lanes()[0], all, func(uint64) bool { asked++; return asked == 1 })
	if err != nil || batch != nil {
		t.Errorf("%v, %v is claimed of a device that was held at first", texts(batch), err)
	}
	wantTexts(t, b.claim(b.lanes()[0], all), "1", "2", "3")
}

// TestHeldMany has a device that is held with more events than one transaction looks at.
func TestHeldMany(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{MaxBytes: 64 * mib})
	d := sameLane(2)
	many := make([]stats.Event, 120_000)
	for i := range many {
		many[i] = stats.Event{App: "a", Device: d[0], Confirmed: true, Data: []byte("{}")}
	}
	if err := b.Append(t.Context(), many...); err != nil {
		t.Fatal(err)
	}
	b.add("a", d[1], "mine")
	l := b.lanes()[0]
	wantTexts(t, b.claim(l, all, d[0]), "mine")
	b.add("a", d[1], "mine, too")
	began := time.Now()
	next, err := b.Settle(t.Context(), b.claim(l, all), []stats.Verdict{{Code: "processing_error"}}, all, holds(d[:1])) // kept
	if err != nil {
		t.Fatal(err)
	}
	wantTexts(t, next, "mine", "mine, too")
	t.Logf("the second look takes %v", time.Since(began))
	if batch := b.settle(next, stats.BatchLimits{Events: 3, Bytes: mib}); len(texts(batch)) != 3 {
		t.Errorf("the device is free, and %v is claimed", texts(batch))
	}
}

func TestWatch(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", "1")
	var mu sync.Mutex
	seen := map[stats.Lane]int{}
	b.Watch(func(l stats.Lane) {
		mu.Lock()
		defer mu.Unlock()
		seen[l]++
	})
	b.add("a", "d", "2")
	b.add("b", "d", "3")
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 2 || seen[stats.LaneOf(1, "d")] != 2 || seen[stats.LaneOf(2, "d")] != 1 {
		t.Errorf("told of %v", seen)
	}
}

// TestOffered looks at events that nobody waits for.
func TestOffered(t *testing.T) {
	path := scratch(t) + "/s.db"
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, stats.SpoolOptions{Path: path, MaxBytes: 64 * mib})
		data := []byte(`"1"`)
		event := stats.Event{App: "a", Device: "d", Confirmed: true, Data: data}
		if !b.Offer(event) {
			t.Error("refused")
		}
		copy(data, "xxx") // it is the caller's
		b.wantStats(0, nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		b.wantStats(1, nil)

		b.Offer(stats.Event{App: "a", Device: "d", Confirmed: true, Data: []byte(`"2"`)})
		b.add("a", "d", `"3"`)
		b.wantStats(3, nil)

		b.Offer(stats.Event{App: "a", Device: "d", Confirmed: true, Data: []byte(`"4"`)})
		b.reopen()
		if got := b.drain(); fmt.Sprint(got["a"]) != `["1" "2" "3" "4"]` {
			t.Errorf("delivered %v", got)
		}

		event.Data = make([]byte, 64*kib)
		synctest.Wait()
		taken := 0
		for b.Offer(event) {
			taken++
		}
		if taken < 50 || taken > 64 {
			t.Errorf("%d events of 64 KiB wait", taken)
		}
		if n := b.Stats().Dropped["offered_overflow"]; n != 1 {
			t.Errorf("%d are counted", n)
		}
		b.reopen()
		if n := b.Stats().Dropped["offered_overflow"]; n != 1 {
			t.Errorf("%d are counted after a restart", n)
		}
		b.close()
	})
}

// TestOfferedMuch: what is offered is written once much of it waits, and none of it is refused while the disk keeps up.
func TestOfferedMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, stats.SpoolOptions{MaxBytes: 64 * mib})
		data := []byte(`"` + fill(8*kib) + `"`)
		for i := range 1000 { // twice as much as may wait, in half of the time after which all is written
			if !b.Offer(stats.Event{App: "a", Device: fmt.Sprint(i), Confirmed: true, Data: data}) {
				t.Fatalf("the event %d is refused", i)
			}
			time.Sleep(500 * time.Microsecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		b.wantStats(1000, nil)
	})
}

// TestOfferedBound has the disk take nothing while others append without end: what is offered does not pile up in memory.
func TestOfferedBound(t *testing.T) {
	var left atomic.Int64
	b := newBox(t, stats.SpoolOptions{MaxBytes: 64 * mib, MinFree: 1, Free: func() (int64, error) { return left.Load(), nil }})
	event := stats.Event{App: "a", Device: "d", Confirmed: true, Data: make([]byte, 4*kib)}
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for ctx.Err() == nil {
				_ = b.Append(ctx, event) // ErrNoSpace
			}
		})
	}
	taken := 0
	for range 20_000 {
		if b.Offer(event) {
			taken++
		}
		runtime.Gosched()
	}
	if waiting := taken - int(b.Stats().Events); waiting > 4*mib/len(event.Data) {
		t.Errorf("%d events of %d bytes wait", waiting, len(event.Data))
	}
	stop()
	work.Wait()
	left.Store(mib)                                                                // there is space, and a second later the events are on disk
	for began := time.Now(); b.Stats().Events < int64(taken) || !b.Offer(event); { // some of those on disk may be appended ones
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%d of %d events are on disk, and there is no room for another", b.Stats().Events, taken)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestRefusals(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{MaxBytes: 64 * mib})
	for _, c := range []struct {
		name  string
		event stats.Event
		want  error
	}{
		{"as large as an event may be", stats.Event{Data: make([]byte, 8*mib), Confirmed: true}, nil},
		{"too large", stats.Event{Data: make([]byte, 8*mib+1)}, stats.ErrTooLarge},
		{"app id too long", stats.Event{App: fill(513)}, stats.ErrTooLarge},
		{"empty", stats.Event{}, nil},
	} {
		if err := b.Append(t.Context(), c.event); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := b.Append(t.Context()); err != nil {
		t.Error(err)
	}
	s := b.Spool
	b.close()
	if err := s.Append(t.Context(), stats.Event{}); !errors.Is(err, stats.ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Claim(t.Context(), stats.LaneOf(1, "d"), all, nil); !errors.Is(err, stats.ErrClosed) {
		t.Error(err)
	}
	if s.Offer(stats.Event{}) {
		t.Error("a closed spool takes events")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestLargeAppend has one call bring more than a transaction takes.
func TestLargeAppend(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{MaxBytes: 64 * mib})
	events := make([]stats.Event, 200)
	for i := range events {
		events[i] = stats.Event{App: "a", Device: "d", Confirmed: true, Data: []byte(numbered{N: i, Fill: fill(100 * kib)}.json())}
	}
	if err := b.Append(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	got := b.drain()["a"]
	for i, text := range got {
		if !strings.HasPrefix(text, fmt.Sprintf(`{"device":"","n":%d,`, i)) {
			t.Fatalf("event %d is %.40s", i, text)
		}
	}
	if len(got) != len(events) {
		t.Errorf("%d events", len(got))
	}
}

// TestOrderOfDevices has many devices append at the same time.
func TestOrderOfDevices(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{MaxBytes: 64 * mib})
	const devices, each = 40, 50
	var wg sync.WaitGroup
	for d := range devices {
		wg.Go(func() {
			for i := range each {
				b.add("a", fmt.Sprint("d", d), fmt.Sprintf("%02d:%03d", d, i))
			}
		})
	}
	wg.Wait()
	last := map[string]string{}
	for _, text := range b.drain()["a"] {
		device, n, _ := strings.Cut(text, ":")
		if last[device] >= n {
			t.Errorf("of %s: %s after %s", device, n, last[device])
		}
		last[device] = n
	}
	for d := range devices {
		if n := last[fmt.Sprintf("%02d", d)]; n != fmt.Sprintf("%03d", each-1) {
			t.Errorf("the last of device %d is %s", d, n)
		}
	}
}

func TestLocked(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	if _, err := stats.OpenSpool(b.options); !errors.Is(err, stats.ErrLocked) {
		t.Errorf("a second process gets %v", err)
	}
	if stats.Damaged(b.options.Path) != 0 {
		t.Error("a file in use was set aside")
	}
}

func TestOldest(t *testing.T) {
	path := scratch(t) + "/s.db"
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, stats.SpoolOptions{Path: path})
		began := time.Now()
		for i := range 5 {
			b.add(fmt.Sprint("app", i), "d", "{}")
			time.Sleep(time.Hour)
		}
		want := func(age time.Duration) {
			t.Helper()
			if got := b.Stats().Oldest; !got.Equal(began.Add(age)) {
				t.Errorf("the oldest came at %v, want %v", got.Sub(began), age)
			}
		}
		want(0)
		b.settle(b.claim(stats.LaneOf(1, "d"), all), all)
		want(time.Hour)
		b.settle(b.claim(stats.LaneOf(3, "d"), all), all)
		want(time.Hour)
		b.reopen()
		want(time.Hour)
		b.settle(b.claim(stats.LaneOf(2, "d"), all), all)
		want(3 * time.Hour)
		b.close()
	})
}

// TestRemovedFile takes the file away under a running spool: what would be written to it were gone with the next restart, so
// nothing is acknowledged until it is back. What was acknowledged before is delivered meanwhile.
func TestRemovedFile(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", `1`)
	aside := b.options.Path + ".aside"
	if err := os.Rename(b.options.Path, aside); err != nil {
		t.Fatal(err)
	}
	if err := b.Append(t.Context(), confirmed("a", "d", `2`)...); !errors.Is(err, boltfile.ErrReplaced) {
		t.Errorf("taken: %v", err)
	}
	if got := b.drain(); fmt.Sprint(got) != "map[a:[1]]" {
		t.Errorf("delivered: %v", got)
	}
	if got := b.reports.list(); len(got) != 1 || !errors.Is(got[0], boltfile.ErrReplaced) {
		t.Errorf("reported: %v", got)
	}
	if err := os.Rename(aside, b.options.Path); err != nil {
		t.Fatal(err)
	}
	b.add("a", "d", `3`)
	b.reopen()
	b.wantStats(1, nil)
}
