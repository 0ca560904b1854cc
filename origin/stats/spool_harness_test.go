package stats_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// scratch is a directory in memory where there is one, for tests that commit thousands of times.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "spool")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// box is a spool under test. When the test ends, its file is checked.
type box struct {
	*stats.Spool
	t       *testing.T
	options stats.SpoolOptions
	reports reports
}

// reports are what a spool reported.
type reports struct {
	mu  sync.Mutex
	all []error
}

func (r *reports) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, err)
}

func (r *reports) list() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.all...)
}

func newBox(t *testing.T, o stats.SpoolOptions) *box {
	t.Helper()
	if o.Path == "" {
		o.Path = scratch(t) + "/s.db"
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 4 * mib
	}
	b := &box{t: t, options: o}
	b.options.Report = b.reports.add
	b.open()
	t.Cleanup(func() { b.close() })
	return b
}

func (b *box) open() {
	b.t.Helper()
	var err error
	if b.Spool, err = stats.OpenSpool(b.options); err != nil {
		b.t.Fatal(err)
	}
}

// close closes the spool and looks at its file.
func (b *box) close() {
	b.t.Helper()
	if b.Spool == nil {
		return
	}
	if err := b.Close(); err != nil {
		b.t.Error(err)
	}
	b.Spool = nil
	if err := stats.CheckSpool(b.options.Path); err != nil {
		b.t.Error(err)
	}
}

func (b *box) reopen() {
	b.t.Helper()
	b.close()
	b.open()
}

// add appends events, each of a confirmed app.
func (b *box) add(app, device string, data ...string) {
	b.t.Helper()
	if err := b.Append(b.t.Context(), confirmed(app, device, data...)...); err != nil {
		b.t.Fatal(err)
	}
}

func confirmed(app, device string, data ...string) (events []stats.Event) {
	for _, d := range data {
		events = append(events, stats.Event{App: app, Device: device, Confirmed: true, Data: []byte(d)})
	}
	return events
}

// lanes are those that have events.
func (b *box) lanes() (lanes []stats.Lane) {
	b.Watch(func(l stats.Lane) { lanes = append(lanes, l) })
	b.Watch(nil)
	return lanes
}

var all = stats.BatchLimits{Events: 100, Bytes: mib}

func (b *box) claim(l stats.Lane, limits stats.BatchLimits, held ...string) *stats.Batch {
	b.t.Helper()
	batch, err := b.Claim(b.t.Context(), l, limits, holds(held))
	if err != nil {
		b.t.Fatal(err)
	}
	return batch
}

func (b *box) settle(batch *stats.Batch, limits stats.BatchLimits, fates ...stats.Verdict) *stats.Batch {
	b.t.Helper()
	next, err := b.Settle(b.t.Context(), batch, verdicts(batch, fates), limits, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return next
}

func (b *box) split(batch *stats.Batch) *stats.Batch {
	b.t.Helper()
	first, err := b.Split(b.t.Context(), batch)
	if err != nil {
		b.t.Fatal(err)
	}
	return first
}

// verdicts are those given, and Delivered for the rest.
func verdicts(batch *stats.Batch, fates []stats.Verdict) []stats.Verdict {
	all := make([]stats.Verdict, len(batch.Events))
	for i := range all {
		all[i].Fate = stats.Delivered
	}
	copy(all, fates)
	return all
}

func holds(devices []string) func(uint64) bool {
	if devices == nil {
		return nil
	}
	return func(hash uint64) bool {
		for _, d := range devices {
			if stats.HashDevice(d) == hash {
				return true
			}
		}
		return false
	}
}

// drain delivers all there is and returns the data by app, in order of lanes.
func (b *box) drain() map[string][]string {
	b.t.Helper()
	got := map[string][]string{}
	for _, l := range b.lanes() {
		for batch := b.claim(l, all); batch != nil; batch = b.settle(batch, all) {
			got[batch.App] = append(got[batch.App], texts(batch)...)
		}
	}
	return got
}

func texts(batch *stats.Batch) (data []string) {
	if batch == nil {
		return nil
	}
	for _, r := range batch.Events {
		data = append(data, string(r.Data))
	}
	return data
}

func wantTexts(t *testing.T, batch *stats.Batch, want ...string) {
	t.Helper()
	if got := texts(batch); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("a batch of %v, want %v", got, want)
	}
}

// numbered are events of n bytes that carry a number each.
type numbered struct {
	Device string `json:"device"`
	N      int    `json:"n"`
	Fill   string `json:"fill,omitempty"`
}

func (n numbered) json() string {
	text, err := json.Marshal(n)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func fill(n int) string { return strings.Repeat("x", n) }

func (b *box) wantStats(events int64, dropped map[string]uint64) {
	b.t.Helper()
	st := b.Stats()
	if st.Events != events {
		b.t.Errorf("%d events, want %d", st.Events, events)
	}
	for why, n := range st.Dropped {
		if n != dropped[why] {
			b.t.Errorf("%d dropped as %s, want %d", n, why, dropped[why])
		}
	}
	if (events == 0) != st.Oldest.IsZero() {
		b.t.Errorf("%d events, the oldest is of %v", events, st.Oldest)
	}
}
