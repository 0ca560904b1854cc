package state

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	app    = "com.demo.app"
	device = "00009a6b-eefe-490a-9c60-8e965132ae51"
)

// reports notes what a state reports.
type reports struct {
	mu   sync.Mutex
	errs []error
}

func (r *reports) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

func (r *reports) take() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	errs := r.errs
	r.errs = nil
	return errs
}

func openAt(t testing.TB, path string, r *reports) *State {
	t.Helper()
	s, err := Open(Options{Path: path, Report: r.add})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func closed(t testing.TB, s *State) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func assign(t testing.TB, c *Scope, app, device string, channel int64) {
	t.Helper()
	if err := c.Assign(t.Context(), app, device, channel); err != nil {
		t.Fatal(err)
	}
}

func wantAssigned(t testing.TB, c *Scope, app, device string, want int64, wantOK bool) {
	t.Helper()
	if got, ok := c.Assigned(app, device); got != want || ok != wantOK {
		t.Errorf("%s of %s is assigned to %d, %v; want %d, %v", device, app, got, ok, want, wantOK)
	}
}

func TestRestartKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openAt(t, path, new(reports))
	c := s.Scope("file /srv")
	wantAssigned(t, c, app, device, 0, false)
	assign(t, c, app, device, 0) // an id may be 0
	assign(t, c, app, "other", 7)
	assign(t, c, app, "third", 1<<53-1)
	if err := c.Unassign(t.Context(), app, "other"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetPauses(t.Context(), app, []byte(`{"12":{}}`)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wantAssigned(t, c, app, device, 0, true)
		wantAssigned(t, c, app, "other", 0, false)
		wantAssigned(t, c, app, "third", 1<<53-1, true)
		wantAssigned(t, c, "com.demo.other", device, 0, false)
		if got := string(c.Pauses(app)); got != `{"12":{}}` {
			t.Errorf("pauses %q", got)
		}
		if got := s.Stats(); got.Assignments != 2 || got.Pauses != 1 || got.Failures != 0 {
			t.Errorf("%+v", got)
		}
		closed(t, s)
		wantAssigned(t, c, app, device, 0, true) // reads go on
		if err := c.Assign(t.Context(), app, device, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("a write after the end: %v", err)
		}
		s = openAt(t, path, new(reports))
		c = s.Scope("file /srv")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestScopesDoNotMix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openAt(t, path, new(reports))
	a, b := s.Scope("s3 a"), s.Scope("s3 b")
	assign(t, a, app, device, 1)
	if s.Scope("s3 a") != a || b.assignedCount.Load() != 0 {
		t.Error("the scope that nobody wrote to is not known to be empty")
	}
	wantAssigned(t, b, app, device, 0, false)
	assign(t, b, app, device, 2)
	if err := b.Unassign(t.Context(), app, device); err != nil {
		t.Fatal(err)
	}
	wantAssigned(t, a, app, device, 1, true)
	if err := a.SetPauses(t.Context(), app, []byte("{}")); err != nil || b.Pauses(app) != nil || len(b.AllPauses()) != 0 {
		t.Errorf("%v, %q", err, b.Pauses(app))
	}
}

func TestBounds(t *testing.T) {
	r := new(reports)
	s, err := Open(Options{Path: filepath.Join(t.TempDir(), "state.db"), Report: r.add, maxAssignments: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, s)
	c := s.Scope("x")
	assign(t, c, app, "a", 1)
	assign(t, c, app+"x", "b", 1)
	if err := c.Assign(t.Context(), app, "c", 1); !errors.Is(err, ErrFull) {
		t.Errorf("beyond the bound: %v", err)
	}
	if errs := r.take(); len(errs) != 1 || !errors.Is(errs[0], ErrFull) {
		t.Errorf("reported %v", errs)
	}
	wantAssigned(t, c, app, "c", 0, false)
	assign(t, c, app+"x", "b", 2) // what is there can be changed
	assign(t, c, app+"x", "b", 2)
	if err := c.SetPauses(t.Context(), app, []byte("1")); err != nil {
		t.Fatal(err)
	}
	if errs := r.take(); len(errs) != 0 { // there is no more room than before
		t.Errorf("reported %v", errs)
	}
	if err := c.Unassign(t.Context(), app, "a"); err != nil {
		t.Fatal(err)
	}
	assign(t, c, app, "c", 1)
	if errs := r.take(); len(errs) != 1 || errs[0] != nil {
		t.Errorf("reported %v", errs)
	}
	if err := c.SetPauses(t.Context(), app, nil); err != nil {
		t.Fatal(err)
	}

	if err := c.SetPauses(t.Context(), app, make([]byte, MaxPause+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a document of more than MaxPause: %v", err)
	}
	if err := c.Assign(t.Context(), string(make([]byte, 1000)), "a", 1); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a name of 1000 bytes: %v", err)
	}
	var all sync.WaitGroup
	for i := range MaxPauses / MaxPause {
		all.Go(func() {
			if err := c.SetPauses(t.Context(), fmt.Sprint(i), make([]byte, MaxPause)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := c.SetPauses(t.Context(), "more", []byte("1")); !errors.Is(err, ErrFull) {
		t.Errorf("beyond MaxPauses: %v", err)
	}
	if err := c.SetPauses(t.Context(), "0", nil); err != nil || c.Pauses("0") != nil {
		t.Errorf("removing: %v", err)
	}
}

// TestUnassignAll: all choices of an app are forgotten, on disk too, and those of no other.
func TestUnassignAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openAt(t, path, new(reports))
	c, other := s.Scope("x"), s.Scope("y")
	var all sync.WaitGroup
	for n := range 100 {
		all.Go(func() { assign(t, c, app, fmt.Sprint("kept", n), 1) })
	}
	all.Wait()
	for _, near := range []string{app + "x", app[:len(app)-1]} {
		assign(t, c, near, "a", 1)
	}
	assign(t, other, app, "a", 1)
	if n, err := c.UnassignAll(t.Context(), app); n != 100 || err != nil {
		t.Errorf("%d forgotten, %v", n, err)
	}
	if n, err := c.UnassignAll(t.Context(), "com.nobody"); n != 0 || err != nil {
		t.Errorf("of an app without choices %d forgotten, %v", n, err)
	}
	wantAssigned(t, c, app, "kept0", 0, false)
	closed(t, s)
	s = openAt(t, path, new(reports))
	defer closed(t, s)
	c, other = s.Scope("x"), s.Scope("y")
	wantAssigned(t, c, app, "kept0", 0, false)
	wantAssigned(t, c, app+"x", "a", 1, true)
	wantAssigned(t, c, app[:len(app)-1], "a", 1, true)
	wantAssigned(t, other, app, "a", 1, true)
	if got := s.Stats().Assignments; got != 3 {
		t.Errorf("%d choices are left", got)
	}
}

// TestAppShare: the devices of one app, which can be made up, leave room for those of others.
func TestAppShare(t *testing.T) {
	const most, share = 32, 4
	path := filepath.Join(t.TempDir(), "state.db")
	open := func() (*State, *Scope) {
		s, err := Open(Options{Path: path, maxAssignments: most})
		if err != nil {
			t.Fatal(err)
		}
		return s, s.Scope("x")
	}
	s, c := open()
	for i := range most / 2 {
		assign(t, c, app, fmt.Sprint(i), 1) // as long as there is plenty
	}
	refused := func(app string) {
		t.Helper()
		if err := c.Assign(t.Context(), app, "one more", 1); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), app) {
			t.Errorf("beyond the share: %v", err)
		}
	}
	refused(app)
	assign(t, s.Scope("y"), app, "of another origin", 1)
	for i := range share {
		assign(t, c, "com.other.app", fmt.Sprint(i), 1)
	}
	refused("com.other.app")
	for range 2 {
		refused(app)
		assign(t, c, app, "0", 2) // what is there can be changed
		closed(t, s)
		s, c = open()
	}
	for i := range most/2 - share + 1 {
		if err := c.Unassign(t.Context(), app, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	assign(t, c, app, "one more", 1) // more than half is free
	if got := s.Stats().Assignments; got != 1+share+share {
		t.Errorf("%d assignments", got)
	}
	// The changes of one commit count, too.
	var all sync.WaitGroup
	var kept atomic.Int64
	for i := range 2 * most {
		all.Go(func() {
			if c.Assign(t.Context(), "com.third.app", fmt.Sprint(i), 1) == nil {
				kept.Add(1)
			}
		})
	}
	all.Wait()
	if got := kept.Load(); got < share || got > most/2 || s.Stats().Assignments > most/2 {
		t.Errorf("%d of the third app, %d in all", got, s.Stats().Assignments)
	}
	closed(t, s)
}

// TestConcurrent: each write is durable when it returns, and many share one commit.
func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openAt(t, path, new(reports))
	const writers, each = 64, 20
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			c := s.Scope(fmt.Sprint("scope", w%2))
			for i := range each {
				name := fmt.Sprint(w, "-", i)
				if err := c.Assign(t.Context(), app, name, int64(i)); err != nil {
					t.Error(err)
				}
				if got, ok := c.Assigned(app, name); !ok || got != int64(i) {
					t.Errorf("%s: %d, %v right after the write", name, got, ok)
				}
			}
		})
	}
	all.Wait()
	commits := s.Stats().Commits
	t.Logf("%d writes in %d commits", writers*each, commits)
	if commits > writers*each/2 {
		t.Errorf("%d commits: the writes did not share them", commits)
	}
	closed(t, s)
	s = openAt(t, path, new(reports))
	for w := range writers {
		for i := range each {
			wantAssigned(t, s.Scope(fmt.Sprint("scope", w%2)), app, fmt.Sprint(w, "-", i), int64(i), true)
		}
	}
}

// TestSameAgain: what is kept already costs no write.
func TestSameAgain(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "state.db"), new(reports))
	c := s.Scope("x")
	assign(t, c, app, device, 1)
	before := s.Stats().Commits
	assign(t, c, app, device, 1)
	if err := c.Unassign(t.Context(), app, "nobody"); err != nil || s.Stats().Commits != before {
		t.Errorf("%v, %d commits more", err, s.Stats().Commits-before)
	}
}

func TestContextEnds(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "state.db"), new(reports))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Scope("x").Assign(ctx, app, device, 1); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	openAt(t, path, new(reports))
	if _, err := Open(Options{Path: path}); !errors.Is(err, boltfile.ErrLocked) {
		t.Errorf("a second opening: %v", err)
	}
}

func TestNewerFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	f, err := boltfile.Open(boltfile.Options{Path: path, Format: format + 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: path}); !errors.Is(err, boltfile.ErrNewer) {
		t.Errorf("a file of a later release: %v", err)
	}
}

// filled writes a file of n assignments and one document, and returns its bytes. Device i chose channel i.
func filled(t testing.TB, path string, n int) []byte {
	t.Helper()
	s := openAt(t, path, new(reports))
	c := s.Scope("x")
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { assign(t, c, app, fmt.Sprint(i), int64(i)) })
	}
	all.Wait()
	if err := c.SetPauses(t.Context(), app, []byte(`{"reason":"failures"}`)); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestDamage opens files that a crash, a full disk or a bad one left behind: cut, with bytes changed, with pages of zeros.
// Each must open, tell nothing that was not written, and take writes.
func TestDamage(t *testing.T) {
	raw := filled(t, filepath.Join(t.TempDir(), "state.db"), 500)
	random := rand.New(rand.NewPCG(1, 2))
	rounds := 400
	if testing.Short() {
		rounds = 60
	}
	moved, lost := 0, 0
	for round := range rounds {
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, damage(random, raw, round), 0o600); err != nil {
			t.Fatal(err)
		}
		r := new(reports)
		s := openAt(t, path, r)
		c := s.Scope("x")
		found := 0
		for i := range 500 {
			if got, ok := c.Assigned(app, fmt.Sprint(i)); ok {
				found++
				if got != int64(i) {
					t.Fatalf("round %d: device %d is told %d", round, i, got)
				}
			}
		}
		if doc := string(c.Pauses(app)); doc != "" && doc != `{"reason":"failures"}` {
			t.Fatalf("round %d: %q", round, doc)
		}
		if found < 500 {
			lost++
		}
		if _, err := os.Stat(path + boltfile.DamagedSuffix); err == nil {
			moved++
			if errs := r.take(); len(errs) != 1 || !errors.Is(errs[0], ErrLost) {
				t.Errorf("round %d: moved aside, and reported %v", round, errs)
			}
			if found > 0 {
				t.Errorf("round %d: a new file has %d rows", round, found)
			}
		}
		assign(t, c, app, "new", 9)
		closed(t, s)
		s = openAt(t, path, new(reports))
		wantAssigned(t, s.Scope("x"), app, "new", 9, true)
		closed(t, s)
	}
	t.Logf("of %d damaged files %d were moved aside, %d had lost rows", rounds, moved, lost)
}

func damage(random *rand.Rand, raw []byte, round int) []byte {
	raw = append([]byte(nil), raw...)
	at := random.IntN(len(raw))
	switch round % 4 {
	case 0:
		return raw[:at]
	case 1:
		raw[at] ^= byte(1 + random.IntN(255))
	case 2:
		clear(raw[at&^4095 : min(at&^4095+4096, len(raw))])
	case 3:
		for range 50 {
			raw[random.IntN(len(raw))] = byte(random.Uint32())
		}
	}
	return raw
}

// TestCutWhileOpen takes the file away beneath the running state: writes fail or not, reads go on, nothing crashes.
func TestCutWhileOpen(t *testing.T) {
	for _, size := range []int64{0, 4096, 20_000} {
		path := filepath.Join(t.TempDir(), "state.db")
		filled(t, path, 2000)
		r := new(reports)
		s := openAt(t, path, r)
		c := s.Scope("x")
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		for i := range 2000 {
			if i%100 == 0 {
				err := c.Assign(t.Context(), app, fmt.Sprint("late", i), 1)
				t.Logf("cut to %d: %v", size, err)
			}
			wantAssigned(t, c, app, fmt.Sprint(i), int64(i), true)
		}
		if s.Stats().Failures == 0 || len(r.take()) == 0 {
			t.Error("no write failed, or none was reported")
		}
		closed(t, s)
		s = openAt(t, path, r)
		assign(t, s.Scope("x"), app, "new", 9)
		closed(t, s)
	}
}

// TestKill copies the file while it is in use, as a killed process leaves it: what a call returned for is there.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	s := openAt(t, path, new(reports))
	c := s.Scope("x")
	for i := range 50 {
		assign(t, c, app, fmt.Sprint(i%20), int64(i))
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		left := filepath.Join(dir, fmt.Sprint("left", i))
		if err := os.WriteFile(left, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		again := openAt(t, left, new(reports))
		wantAssigned(t, again.Scope("x"), app, fmt.Sprint(i%20), int64(i), true)
		if n := again.Stats().Assignments; n != min(i+1, 20) {
			t.Errorf("%d assignments after %d writes", n, i+1)
		}
		closed(t, again)
	}
}

// TestReports: it is told that commits fail, and once that they work again.
func TestReports(t *testing.T) {
	r := new(reports)
	s := openAt(t, filepath.Join(t.TempDir(), "state.db"), r)
	failure := errors.New("no space left on device")
	s.judge(nil, failure)
	s.judge(nil, nil)
	s.judge(nil, nil)
	if errs := r.take(); len(errs) != 2 || !errors.Is(errs[0], failure) || errs[1] != nil {
		t.Errorf("reported %v", errs)
	}
}

// TestModel holds a state to a map, over restarts.
func TestModel(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		path := filepath.Join(dir, fmt.Sprint(runs))
		s := openAt(t, path, new(reports))
		defer func() { _ = s.Close() }()
		type key struct{ scope, app, device string }
		assigned, paused := map[key]int64{}, map[key]string{}
		draw := func() key {
			return key{
				rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "scope"), rapid.SampledFrom([]string{"x.y", "x.z"}).Draw(rt, "app"),
				rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "device"),
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"assign": func(*rapid.T) {
				k, channel := draw(), rapid.Int64Range(0, 3).Draw(rt, "channel")
				assign(t, s.Scope(k.scope), k.app, k.device, channel)
				assigned[k] = channel
			},
			"unassign": func(*rapid.T) {
				k := draw()
				if err := s.Scope(k.scope).Unassign(t.Context(), k.app, k.device); err != nil {
					rt.Fatal(err)
				}
				delete(assigned, k)
			},
			"unassign all": func(*rapid.T) {
				k, want := draw(), 0
				for other := range assigned {
					if other.scope == k.scope && other.app == k.app {
						delete(assigned, other)
						want++
					}
				}
				if n, err := s.Scope(k.scope).UnassignAll(t.Context(), k.app); n != want || err != nil {
					rt.Fatalf("%d forgotten, want %d: %v", n, want, err)
				}
			},
			"pause": func(*rapid.T) {
				k, doc := draw(), rapid.StringN(0, 5, -1).Draw(rt, "doc")
				k.device = ""
				if err := s.Scope(k.scope).SetPauses(t.Context(), k.app, []byte(doc)); err != nil {
					rt.Fatal(err)
				}
				if paused[k] = doc; doc == "" {
					delete(paused, k)
				}
			},
			"restart": func(*rapid.T) {
				closed(t, s)
				s = openAt(t, path, new(reports))
			},
			"": func(*rapid.T) {
				for _, scope := range []string{"a", "b"} {
					c, docs := s.Scope(scope), map[string]string{}
					for _, app := range []string{"x.y", "x.z"} {
						for _, device := range []string{"1", "2", "3"} {
							want, ok := assigned[key{scope, app, device}]
							wantAssigned(t, c, app, device, want, ok)
						}
						if doc := c.Pauses(app); doc != nil {
							docs[app] = string(doc)
						}
						if docs[app] != paused[key{scope, app, ""}] {
							rt.Fatalf("%s %s: %q", scope, app, docs[app])
						}
					}
					if len(c.AllPauses()) != len(docs) {
						rt.Fatal(cmp.Diff(c.AllPauses(), docs))
					}
				}
				if got := s.Stats(); got.Assignments != len(assigned) || got.Pauses != len(paused) {
					rt.Fatalf("%+v, want %d and %d", got, len(assigned), len(paused))
				}
			},
		})
	})
}

func TestAllocations(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "state.db"), new(reports))
	c := s.Scope("x")
	assign(t, c, app, device, 1)
	if n := testing.AllocsPerRun(100, func() { c.Assigned(app, device) }); n > 0 {
		t.Errorf("%v allocations for an assignment", n)
	}
}

func BenchmarkAssigned(b *testing.B) {
	s := openAt(b, filepath.Join(b.TempDir(), "state.db"), new(reports))
	for name, c := range map[string]*Scope{"none": s.Scope("empty"), "some": s.Scope("x")} {
		if name == "some" {
			assign(b, c, app, device, 1)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.Assigned(app, device)
			}
		})
	}
}

// TestMillion fills the state to its bound and opens it again. It takes a while: CAPGO_EDGE_MILLION=1.
func TestMillion(t *testing.T) {
	if os.Getenv("CAPGO_EDGE_MILLION") == "" {
		t.Skip("set CAPGO_EDGE_MILLION to measure")
	}
	path := filepath.Join(t.TempDir(), "state.db")
	s := openAt(t, path, new(reports))
	c := s.Scope("x")
	start := time.Now()
	var all sync.WaitGroup
	for w := range 1000 {
		all.Go(func() {
			for i := range MaxAssignments / 1000 {
				assign(t, c, app, fmt.Sprintf("%08x-eefe-490a-9c60-8e965132ae51", w*1000+i), int64(i))
			}
		})
	}
	all.Wait()
	took := time.Since(start)
	if err := c.Assign(t.Context(), app, "one more", 1); !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v", err)
	}
	closed(t, s)
	s, c = nil, nil
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	start = time.Now()
	s = openAt(t, path, new(reports))
	opened := time.Since(start)
	t.Logf("written in %v, %d MiB of disk; opened in %v, %d MiB of memory", took, info.Size()>>20, opened, (heap()-before)>>20)
	runtime.KeepAlive(s)
}
