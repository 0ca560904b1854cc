package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
	"github.com/capgo-edge/capgo-edge/origin/stats"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// newOutlets makes a site with so many collectors, none of which listens.
func newOutlets(t *testing.T, n int) *statistics {
	t.Helper()
	storage, err := cache.Claim(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &runtime{dir: t.TempDir(), storage: storage, faults: newFaultLog(), outlets: map[string]*outlet{}}
	t.Cleanup(func() {
		r.closeOutlets()
		if err := storage.Release(); err != nil {
			t.Error(err)
		}
	})
	all := []*Stats{{Collectors: []string{"http://127.0.0.1:1/a", "http://127.0.0.1:1/b", "http://127.0.0.1:1/c"}[:n]}}
	s, err := newStatistics(&App{runtime: r}, "origin", all)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func someEvents() []event {
	return []event{{app: watchedApp, device: "d", action: "set", confirmed: true, raw: []byte(`{"action":"set"}`)}}
}

// waiting is how many events wait at each outlet, -1 where the spool is not open.
func (s *statistics) waiting() []int64 {
	var n []int64
	for _, d := range s.destinations {
		open := d.outlet.open.Load()
		if open == nil {
			n = append(n, -1)
		} else {
			n = append(n, open.spool.Stats().Events)
		}
	}
	return n
}

// TestSlowSpool: while a spool is being opened a check does not wait, and events do so for two seconds at the most; no other
// collector gets them meanwhile.
func TestSlowSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newOutlets(t, 2)
		slow, ready := s.destinations[1].outlet, make(chan struct{})
		slow.after = ready
		began := time.Now()
		for range 3 {
			s.sawCheck(&resolver.Check{AppID: watchedApp}, []byte("{}"), "get")
		}
		if missed := slow.missed.Load(); missed != 3 || time.Since(began) > 0 {
			t.Errorf("%d reports were dropped, after %s", missed, time.Since(began))
		}
		if err := s.keep(t.Context(), someEvents()); !errors.Is(err, errOpening) || time.Since(began) != outletWait {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if n := s.waiting(); n[0] != 0 || n[1] != -1 {
			t.Errorf("waiting: %d", n)
		}
		if got := slow.status(slow.open.Load()); got.Healthy || got.Error != errOpening.Error() || got.Dropped[droppedNotOpen] != 3 {
			t.Errorf("status %+v", got)
		}
		time.AfterFunc(time.Second, func() { close(ready) })
		if err := s.keep(t.Context(), someEvents()); err != nil {
			t.Error(err)
		}
		if n := s.waiting(); n[0] != 1 || n[1] != 1 || slow.health() != nil {
			t.Errorf("waiting: %d, %v", n, slow.health())
		}
	})
}

// TestFailingSpool: what is refused because one spool fails is not kept in the others again and again.
func TestFailingSpool(t *testing.T) {
	s := newOutlets(t, 3)
	if err := s.keep(t.Context(), someEvents()); err != nil {
		t.Fatal(err)
	}
	broken := s.destinations[2].outlet
	if err := broken.open.Load().spool.Close(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := s.keep(t.Context(), someEvents()); err == nil {
			t.Fatal("kept by a spool that is closed")
		}
	}
	if n := s.waiting(); n[0] != 2 || n[1] != 2 { // with the first of the ten
		t.Errorf("waiting: %d", n)
	}
}

// TestOutletTuning: settings that are the same again leave the wait for a collector that is down as it is.
func TestOutletTuning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newOutlets(t, 1)
		d := s.destinations[0]
		if err := s.keep(t.Context(), someEvents()); err != nil {
			t.Fatal(err)
		}
		until := func() time.Time {
			for d.outlet.open.Load().forwarder.Stats().Failing == nil {
				time.Sleep(time.Millisecond)
			}
			synctest.Wait()
			return d.outlet.open.Load().forwarder.Stats().Until
		}
		first := until()
		again, err := newDestination(d.config, d.tuning.address, 0)
		if err != nil {
			t.Fatal(err)
		}
		d.outlet.use(again.tuning)
		if got := until(); !got.Equal(first) {
			t.Errorf("waits until %s, not %s", got, first)
		}
		again.tuning.headers = http.Header{"X-Key": {"new"}}
		d.outlet.use(again.tuning)
		synctest.Wait()
		if d.outlet.served.headers.Get("X-Key") != "new" {
			t.Error("the new header is not in use")
		}
	})
}

// TestOutletsAreForgotten: a collector that no configuration names any more leaves nothing behind in memory.
func TestOutletsAreForgotten(t *testing.T) {
	s := newOutlets(t, 2)
	if err := s.keep(context.Background(), someEvents()); err != nil {
		t.Fatal(err)
	}
	r := s.destinations[0].outlet.runtime
	again := r.outlet("origin", s.destinations[0].tuning.address) // of the next configuration
	s.release()
	<-s.destinations[1].outlet.gone
	next := r.outlet("origin", s.destinations[1].tuning.address)
	if _, err := next.opened(t.Context(), s.destinations[1].tuning, time.Now().Add(time.Minute)); err != nil {
		t.Error(err)
	}
	again.release()
	next.release()
	edgetest.Eventually(t, "both are forgotten", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.outlets) == 0
	})
}

// TestHeirOf: what a site sends goes to the one that is most like it, and to none if two are that differ.
func TestHeirOf(t *testing.T) {
	site := func(scope, query, key string) labelledTuning {
		u := tuning{address: "https://Capgo.example.com:443/stats" + query, headers: http.Header{"X-Key": {key}}}
		return labelledTuning{labelOf(scope, &u), u}
	}
	elsewhere := site("origin", "", "k")
	elsewhere.Collector = "https://capgo.example.com/other"
	tests := []struct {
		name  string
		sites []labelledTuning
		want  int // of those; -1: none
	}{
		{"nobody", nil, -1},
		{"another collector", []labelledTuning{elsewhere}, -1},
		{"another origin", []labelledTuning{site("other", "", "k")}, 0},
		{"another query", []labelledTuning{site("origin", "?t=2", "k")}, 0},
		{"another header", []labelledTuning{site("origin", "", "l")}, 0},
		{"another origin and header", []labelledTuning{site("other", "", "l")}, -1},
		{"two origins that send the same", []labelledTuning{site("other", "", "k"), site("third", "", "k")}, 0},
		{"two queries", []labelledTuning{site("origin", "?t=2", "k"), site("origin", "?t=3", "k")}, -1},
		{"the same, and two queries", []labelledTuning{site("origin", "?t=2", "k"), site("origin", "", "k"), site("origin", "?t=3", "k")}, 1},
		{"one of somebody else, and its own", []labelledTuning{site("other", "", "l"), site("other", "", "k")}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := site("origin", "", "k")
			got := heirOf(&before.spoolLabel, tt.sites)
			switch {
			case tt.want < 0 && got != nil:
				t.Errorf("it is %+v", got)
			case tt.want >= 0 && (got == nil || got.spoolLabel != tt.sites[tt.want].spoolLabel):
				t.Errorf("it is %+v, want %+v", got, tt.sites[tt.want])
			}
		})
	}
	if got := site("origin", "", "k").Collector; got != "https://capgo.example.com/stats" {
		t.Errorf("a label names %s", got)
	}
}

// TestLesserFault: dead letters that cannot be read are told of, and neither the spool nor its collector counts as failing. An
// orphan of which they are not known is not taken for empty.
func TestLesserFault(t *testing.T) {
	o := newOutlets(t, 1).destinations[0].outlet
	if _, err := o.opened(t.Context(), o.tuning, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	spent := func() bool {
		o.checkSpent()
		o.runtime.mu.Lock()
		defer o.runtime.mu.Unlock()
		return o.spent
	}
	o.runtime.mu.Lock()
	o.orphan = true
	o.runtime.mu.Unlock()
	lesser := fmt.Errorf("letters: %w", stats.ErrStillTaking)
	o.reportSpool(lesser)
	if got := o.status(o.open.Load()); o.health() != nil || !got.Healthy || got.Error != lesser.Error() || got.Since == nil {
		t.Errorf("%v, %+v", o.health(), got)
	}
	if spent() {
		t.Error("it is taken for empty")
	}
	o.reportSpool(nil)
	if got := o.status(o.open.Load()); !got.Healthy || got.Error != "" || !spent() {
		t.Errorf("%+v", got)
	}
}

// TestLabelIsWrittenAgain: an orphan that is closed late takes the label away with its files, after the site is back; the label is
// the site's, and is written again.
func TestLabelIsWrittenAgain(t *testing.T) {
	s := newOutlets(t, 1)
	d := s.destinations[0]
	r, app := d.outlet.runtime, new(App)
	r.mu.Lock()
	r.apps, r.sites = []*App{app}, map[*Handler]struct{}{{app: app, statistics: s}: {}}
	r.mu.Unlock()
	late := &outlet{runtime: r, name: d.outlet.name, orphan: true, spent: true, gone: make(chan struct{})}
	late.close()
	if got := r.readLabel(d.outlet.name); got != labelOf("origin", &d.tuning) {
		t.Errorf("the label is %+v", got)
	}
}
