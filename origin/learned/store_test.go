package learned

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("CAPGO_EDGE_LEARNED_CHILD"); path != "" {
		child(path)
	}
	goleak.VerifyTestMain(m)
}

const (
	app   = "com.demo.app"
	scope = "upstream https://capgo.example.com"
)

// reports notes what a store reports.
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

func openAt(t testing.TB, path string, o Options) *Store {
	t.Helper()
	o.Path = path
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func closed(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, c *Scope, all ...Object) {
	t.Helper()
	if err := c.Put(t.Context(), app, all); err != nil {
		t.Fatal(err)
	}
}

func wantObject(t testing.TB, c *Scope, want Object) {
	t.Helper()
	if got, ok := c.Find(app, want.Key); !ok || got != want {
		t.Errorf("%v, %s", ok, cmp.Diff(got, want))
	}
}

func wantAnswer(t testing.TB, c *Scope, key, want string) {
	t.Helper()
	got, _, ok := c.Load(app, key)
	if string(got) != want || ok != (want != "") {
		t.Errorf("%s: %q, %v; want %q", key, got, ok, want)
	}
}

var (
	zip   = Object{Key: "ext/com.demo.app/1", URL: "https://a/1.zip?sig=1", SHA256: [32]byte{1, 2}, Covers: StoredBytes, Size: 1 << 40, Immutable: true}
	delta = Object{Key: "orgs/o/apps/com.demo.app/delta/x_index.html.br", URL: "https://a/x", SHA256: [32]byte{3}, Covers: DecodedBytes}
	bare  = Object{Key: "", URL: ""}
)

func TestRestartKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learned.db")
	s := openAt(t, path, Options{})
	c := s.Scope(scope)
	put(t, c, zip, delta, bare)
	at := time.UnixMilli(1_790_000_000_123)
	c.Save(app, "k1", []byte("answer 1"), at)
	c.Save(app, "k2", []byte("answer 2"), at)
	c.Save(app, "k2", []byte("answer 2, newer"), at.Add(time.Second))
	for range 2 {
		for _, o := range []Object{zip, delta, bare} {
			wantObject(t, c, o)
		}
		wantAnswer(t, c, "k2", "answer 2, newer")
		if got, when, ok := c.Load(app, "k1"); string(got) != "answer 1" || !when.Equal(at) || !ok {
			t.Errorf("%q %s %v", got, when, ok)
		}
		wantAnswer(t, c, "k3", "")
		if _, ok := c.Find(app, "k1"); ok {
			t.Error("an answer is taken for an object")
		}
		closed(t, s)
		if err := c.Put(t.Context(), app, []Object{{Key: "new"}}); !errors.Is(err, ErrClosed) {
			t.Errorf("a write after the end: %v", err)
		}
		if _, ok := c.Find(app, zip.Key); ok {
			t.Error("read after the end")
		}
		s = openAt(t, path, Options{})
		c = s.Scope(scope)
	}
	if got := s.Stats(); got.Objects != 3 || got.Answers != 2 || got.Failures+got.Dropped+got.Swept+got.Damaged != 0 || got.Bytes == 0 {
		t.Errorf("%+v", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestScopesAndAppsDoNotMix(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "learned.db"), Options{})
	a, b := s.Scope("a"), s.Scope("b")
	put(t, a, zip)
	a.Save(app, "k", []byte("a's"), time.Now())
	wantAnswer(t, b, "k", "")
	if _, ok := b.Find(app, zip.Key); ok {
		t.Error("another scope's")
	}
	if _, ok := a.Find(app+".x", zip.Key); ok {
		t.Error("another app's")
	}
	if err := b.DropApp(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	if err := a.DropApp(t.Context(), "com.demo"); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, a, "k", "a's")
	for name, err := range map[string]error{
		"an app with a NUL": a.Put(t.Context(), app+"\x00k", []Object{zip}),
		"a long app":        a.Put(t.Context(), strings.Repeat("a", maxApp+1), []Object{zip}),
		"a long key":        a.Put(t.Context(), app, []Object{{Key: strings.Repeat("a", maxKey+1)}}),
		"a long URL":        a.Put(t.Context(), app, []Object{{URL: strings.Repeat("a", maxURL+1)}}),
		"dropping it":       a.DropApp(t.Context(), "\x00"),
		"reading it":        a.Each(t.Context(), "\x00", nil),
	} {
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a.Save("\x00", "k", nil, time.Now())
	if s.Stats().Dropped != 1 {
		t.Error("it is not counted as dropped")
	}
}

// TestWhatCosts: what is known costs no commit, a fresh signature does not wait for one, and what changes does.
func TestWhatCosts(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(dir, "learned.db")
		s := openAt(t, path, Options{})
		c := s.Scope(scope)
		commits := func(want uint64) {
			t.Helper()
			if got := s.Stats().Commits; got != want {
				t.Errorf("%d commits, want %d", got, want)
			}
		}
		put(t, c, zip, delta)
		commits(1)
		put(t, c, zip, delta)
		commits(1)
		fresh := zip
		fresh.URL = "https://a/1.zip?sig=2"
		put(t, c, fresh, delta)
		wantObject(t, c, fresh)
		commits(1)
		time.Sleep(flushEvery)
		synctest.Wait()
		wantObject(t, c, fresh)
		commits(2)
		put(t, c, fresh)
		time.Sleep(flushEvery)
		synctest.Wait()
		commits(2)
		closed(t, s)
		s = openAt(t, path, Options{})
		c = s.Scope(scope)
		put(t, c, fresh, delta) // from disk
		commits(0)
		fresh.URL = "https://a/1.zip?sig=3"
		put(t, c, fresh)
		commits(0)
		other := fresh
		other.Size++
		put(t, c, other)
		commits(1)
		wantObject(t, c, other)
		time.Sleep(24 * time.Hour) // seen on another day: it is noted once, and behind
		wantObject(t, c, delta)
		wantObject(t, c, delta)
		put(t, c, other)
		commits(1)
		time.Sleep(flushEvery)
		synctest.Wait()
		commits(2)
		wantObject(t, c, delta)
		time.Sleep(flushEvery)
		synctest.Wait()
		commits(2)
		closed(t, s)
	})
}

// TestBehindNeverReplaces: what is written behind changes where an object is, never what it is.
func TestBehindNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := openAt(t, filepath.Join(dir, "learned.db"), Options{})
		defer func() { closed(t, s) }()
		c := s.Scope(scope)
		fresh, other := zip, zip
		fresh.URL, other.Size = "https://a/fresh", 7
		put(t, c, zip)
		put(t, c, fresh) // waits
		put(t, c, other)
		wantObject(t, c, other)
		k, err := c.keyOf(objects, app, zip.Key)
		if err != nil {
			t.Fatal(err)
		}
		late := seal(k, fresh.encode(dayOf(time.Now()))) // of a Put that had seen zip
		s.mu.Lock()
		s.behind[k], s.bytes = late, s.bytes+len(k)+len(late)
		s.noteLocked([]*change{{What: write{rows: []row{{k, seal(k, other.encode(dayOf(time.Now())))}}}}}) // while this was written
		s.mu.Unlock()
		wantObject(t, c, other)
		if waiting := s.Stats().Waiting; waiting != 0 {
			t.Errorf("%d bytes wait", waiting)
		}
		s.later(k, late) // after it was
		time.Sleep(flushEvery)
		synctest.Wait()
		wantObject(t, c, other)
	})
}

// TestGroupCommit: many writers share commits.
func TestGroupCommit(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "learned.db"), Options{})
	c := s.Scope(scope)
	var all sync.WaitGroup
	const writers, each = 50, 10
	for w := range writers {
		all.Go(func() {
			for i := range each {
				put(t, c, Object{Key: fmt.Sprint(w, "/", i), URL: "https://a"}, Object{Key: "common", URL: fmt.Sprint(w, i)})
			}
		})
	}
	all.Wait()
	if got := s.Stats(); got.Objects != writers*each+1 || got.Commits > writers*each/2 {
		t.Errorf("%+v", got)
	}
}

func TestDropAppAndEach(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "learned.db"), Options{})
	c := s.Scope(scope)
	put(t, c, zip)
	var want []string
	for i := range 3*eachAtOnce + 1 {
		key := fmt.Sprintf("%04d", i)
		want = append(want, key)
		c.Save(app, key, []byte("answer "+key), time.Now())
		c.Save(app+"x", key, []byte("another app's"), time.Now())
	}
	each := func(stopAt int) (got []string) {
		err := c.Each(t.Context(), app, func(key string, answer []byte, _ time.Time) bool {
			if string(answer) != "answer "+key {
				t.Errorf("%s: %q", key, answer)
			}
			put(t, c, Object{Key: key}) // f may use the store
			got = append(got, key)
			return len(got) != stopAt
		})
		if err != nil {
			t.Error(err)
		}
		return got
	}
	if got := each(0); !slices.Equal(got, want) {
		t.Error(cmp.Diff(got, want))
	}
	if got := each(70); !slices.Equal(got, want[:70]) {
		t.Error(cmp.Diff(got, want[:70]))
	}
	c.Save(app, "late", []byte("it waits"), time.Now())
	if err := c.DropApp(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, c, "0001", "")
	wantAnswer(t, c, "late", "")
	if got := each(0); len(got) != 0 {
		t.Errorf("%d are left", len(got))
	}
	wantObject(t, c, zip)
	if got := s.Stats(); got.Answers != len(want) {
		t.Errorf("%+v", got)
	}
}

// TestBound: the file keeps to it, what was used lately stays, and answers go before objects of the same day.
func TestBound(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const most = 4 << 20
		r := new(reports)
		s := openAt(t, filepath.Join(dir, "learned.db"), Options{MaxBytes: most, Report: r.add})
		defer func() { closed(t, s) }()
		c := s.Scope(scope)
		put(t, c, zip)
		put(t, c, delta)
		padding := strings.Repeat("x", 2000)
		for day := range 10 {
			for i := range 40 {
				all := make([]Object, 10)
				for j := range all {
					all[j] = Object{Key: fmt.Sprint(day, " ", i, " ", j), URL: padding}
				}
				put(t, c, all...)
				c.Save(app, fmt.Sprint(day, " ", i), []byte(padding), time.Now())
				if got := s.Stats(); got.Bytes > most {
					t.Fatalf("%+v", got)
				}
			}
			wantObject(t, c, zip) // used each day
			time.Sleep(24 * time.Hour)
		}
		got := s.Stats()
		if got.FileBytes > most*5/4 || got.Swept < 2000 || got.Dropped != 0 {
			t.Errorf("%+v", got)
		}
		if _, ok := c.Find(app, delta.Key); ok {
			t.Error("what was not used for 10 days is still there")
		}
		wantObject(t, c, Object{Key: "9 39 9", URL: padding})
		wantAnswer(t, c, "9 39", padding)
		if errs := r.take(); len(errs) != 0 {
			t.Error(errs)
		}
		for i := range 300 { // of one day: answers go first, and then it is told
			put(t, c, Object{Key: fmt.Sprint("today ", i), URL: padding})
			c.Save(app, fmt.Sprint("today ", i), []byte(strings.Repeat("x", 10_000)), time.Now())
		}
		for i := range 300 {
			wantObject(t, c, Object{Key: fmt.Sprint("today ", i), URL: padding})
		}
		if errs := r.take(); len(errs) != 0 {
			t.Error(errs)
		}
		for i := range 60 {
			all := make([]Object, 50)
			for j := range all {
				all[j] = Object{Key: fmt.Sprint("too many ", i, " ", j), URL: padding}
			}
			put(t, c, all...)
		}
		if errs := r.take(); len(errs) == 0 || !errors.Is(errs[0], errSmall) {
			t.Error(errs)
		}
		if got := s.Stats(); got.FileBytes > most*5/4 {
			t.Errorf("%+v", got)
		}
	})
}

// TestTooMuchWaits: what is written behind is bounded in memory.
func TestTooMuchWaits(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := openAt(t, filepath.Join(dir, "learned.db"), Options{MaxBytes: 16 << 20})
		defer func() { closed(t, s) }()
		c := s.Scope(scope)
		for i := range 100 {
			c.Save(app, fmt.Sprint(i), make([]byte, 100_000), time.Now())
		}
		c.Save(app, "0", make([]byte, 100_000), time.Now()) // in place of the one that waits
		if got := s.Stats(); got.Dropped != 90 || got.Waiting > 1<<20 {
			t.Errorf("%+v", got)
		}
		time.Sleep(flushEvery)
		synctest.Wait()
		if got := s.Stats(); got.Waiting != 0 || got.Answers != 10 {
			t.Errorf("%+v", got)
		}
	})
}

// TestDiskFails: a Put says so, answers are dropped, and it is reported once.
func TestDiskFails(t *testing.T) {
	r := new(reports)
	s := openAt(t, filepath.Join(t.TempDir(), "learned.db"), Options{Report: r.add})
	c := s.Scope(scope)
	put(t, c, zip)
	if err := c.Each(t.Context(), app, nil); err != nil { // the writer has done with it
		t.Fatal(err)
	}
	if err := s.file.Close(); err != nil {
		t.Fatal(err)
	}
	fresh := zip
	fresh.URL = "https://a/other"
	for range 3 {
		if err := c.Put(t.Context(), app, []Object{fresh, {Key: "new"}}); err == nil {
			t.Error("it is said to be on disk")
		}
		c.Save(app, "k", []byte("lost"), time.Now())
	}
	_ = s.Close() // ends the writer
	if got := s.Stats(); got.Failures < 3 || got.Dropped == 0 {
		t.Errorf("%+v", got)
	}
	if errs := r.take(); len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "learned: writing: ") {
		t.Error(errs)
	}
	s.judge(nil)
	s.judge(nil)
	if errs := r.take(); len(errs) != 1 || errs[0] != nil {
		t.Error(errs)
	}
}

// TestDamage: a damaged file is moved aside; a damaged row is as if it were not there, until it is put again.
func TestDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learned.db")
	s := openAt(t, path, Options{})
	c := s.Scope(scope)
	put(t, c, zip, delta)
	c.Save(app, "k", []byte("answer"), time.Now())
	c.Note(app, "k", []byte("note"))
	closed(t, s)
	f, err := boltfile.Open(boltfile.Options{Path: path, Format: format})
	if err != nil {
		t.Fatal(err)
	}
	err = f.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			b := tx.Bucket(name)
			k, v := b.Cursor().First()
			changed := slices.Clone(v)
			changed[len(changed)-5] ^= 1
			if err := b.Put(slices.Clone(k), changed); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path, Options{})
	c = s.Scope(scope)
	if o, ok := c.Find(app, zip.Key); ok {
		t.Errorf("%+v", o)
	}
	wantObject(t, c, delta)
	wantAnswer(t, c, "k", "")
	wantNote(t, c, "k", "")
	if err := c.Each(t.Context(), app, func(string, []byte, time.Time) bool { t.Error("it is read"); return true }); err != nil {
		t.Error(err)
	}
	if err := c.Notes(app, func(string, []byte) bool { t.Error("it is read"); return true }); err != nil {
		t.Error(err)
	}
	put(t, c, zip)
	wantObject(t, c, zip)
	if got := s.Stats(); got.Damaged == 0 || got.Objects != 2 {
		t.Errorf("%+v", got)
	}
	closed(t, s)
	for name, damage := range map[string]func([]byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"garbage": func(b []byte) []byte { return slices.Repeat([]byte("x"), len(b)) },
		"zeroes":  func(b []byte) []byte { clear(b[4096:]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			path, r := filepath.Join(t.TempDir(), "learned.db"), new(reports)
			s := openAt(t, path, Options{})
			put(t, s.Scope(scope), zip)
			closed(t, s)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(whole), 0o600); err != nil {
				t.Fatal(err)
			}
			s = openAt(t, path, Options{Report: r.add})
			if errs := r.take(); len(errs) != 1 || !errors.Is(errs[0], boltfile.ErrDamaged) {
				t.Error(errs)
			}
			if _, err := os.Stat(path + boltfile.DamagedSuffix); err != nil {
				t.Error(err)
			}
			put(t, s.Scope(scope), zip)
			wantObject(t, s.Scope(scope), zip)
		})
	}
}

// child puts objects until it is killed, and tells of each that it was told is on disk.
func child(path string) {
	s, err := Open(Options{Path: path})
	if err != nil {
		panic(err)
	}
	c := s.Scope(scope)
	start := time.Now().UnixNano()
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d/%d/%d", start, w, i)
				if err := c.Put(context.Background(), app, []Object{{Key: key, URL: "https://a/" + key}}); err != nil {
					panic(err)
				}
				c.Save(app, key, []byte(key), time.Now())
				_, _ = os.Stdout.WriteString(key + "\n")
			}
		}()
	}
	select {}
}

// TestKill: what was acknowledged before a kill -9 is there after it.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learned.db")
	acknowledged := map[string]bool{}
	for range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "CAPGO_EDGE_LEARNED_CHILD="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n, last := 0, 100+rand.IntN(200); lines.Scan(); n++ {
			acknowledged[lines.Text()] = true
			if n == last {
				_ = cmd.Process.Kill() // and read what it still wrote
			}
		}
		_ = cmd.Wait()
		r := new(reports)
		s := openAt(t, path, Options{Report: r.add})
		for key := range acknowledged {
			if strings.Count(key, "/") == 2 { // the last line may be cut
				wantObject(t, s.Scope(scope), Object{Key: key, URL: "https://a/" + key})
			}
		}
		if got := s.Stats(); len(r.take()) != 0 || got.Objects < len(acknowledged)-3 || got.Damaged != 0 {
			t.Errorf("%+v, %d acknowledged", got, len(acknowledged))
		}
		closed(t, s)
	}
	t.Logf("%d acknowledged over 3 kills", len(acknowledged))
}

// TestModel holds a store to a map, over restarts.
func TestModel(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		path := filepath.Join(dir, strconv.Itoa(runs))
		s := openAt(t, path, Options{})
		defer func() { _ = s.Close() }()
		type key struct{ scope, app, key string }
		known, saved, noted := map[key]Object{}, map[key]string{}, map[key]string{}
		draw := func() key {
			return key{
				rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "scope"), rapid.SampledFrom([]string{"x.y", "x.z"}).Draw(rt, "app"),
				rapid.SampledFrom([]string{"", "1", "2"}).Draw(rt, "key"),
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(*rapid.T) {
				k := draw()
				o := Object{Key: k.key, URL: rapid.SampledFrom([]string{"", "u", "v"}).Draw(rt, "url"), Size: rapid.Int64Range(0, 1).Draw(rt, "size")}
				if err := s.Scope(k.scope).Put(t.Context(), k.app, []Object{o}); err != nil {
					rt.Fatal(err)
				}
				known[k] = o
			},
			"save": func(*rapid.T) {
				k, answer := draw(), rapid.StringN(0, 5, -1).Draw(rt, "answer")
				s.Scope(k.scope).Save(k.app, k.key, []byte(answer), time.Now())
				saved[k] = answer
			},
			"note": func(*rapid.T) {
				k, note := draw(), rapid.StringN(0, 2, -1).Draw(rt, "note") // none removes it
				s.Scope(k.scope).Note(k.app, k.key, []byte(note))
				noted[k] = note
			},
			"drop": func(*rapid.T) {
				d := draw()
				if err := s.Scope(d.scope).DropApp(t.Context(), d.app); err != nil {
					rt.Fatal(err)
				}
				for k := range saved {
					if k.scope == d.scope && k.app == d.app {
						delete(saved, k)
					}
				}
			},
			"each": func(*rapid.T) {
				k := draw()
				err := s.Scope(k.scope).Each(t.Context(), k.app, func(name string, answer []byte, _ time.Time) bool {
					if want, ok := saved[key{k.scope, k.app, name}]; !ok || want != string(answer) {
						rt.Fatalf("%q: %q, want %q", name, answer, want)
					}
					return true
				})
				if err != nil {
					rt.Fatal(err)
				}
				if got := s.Stats(); got.Answers != len(saved) || got.Objects != len(known) {
					rt.Fatalf("%+v, want %d and %d", got, len(saved), len(known))
				}
			},
			"restart": func(*rapid.T) {
				closed(t, s)
				s = openAt(t, path, Options{})
			},
			"": func(*rapid.T) {
				for _, scope := range []string{"a", "b"} {
					c := s.Scope(scope)
					for _, app := range []string{"x.y", "x.z"} {
						for _, name := range []string{"", "1", "2"} {
							k := key{scope, app, name}
							want, ok := known[k]
							if got, found := c.Find(app, name); found != ok || got != want {
								rt.Fatalf("%v: %+v, want %+v", k, got, want)
							}
							if got, found := c.FindNote(app, name); found != (noted[k] != "") || string(got) != noted[k] {
								rt.Fatalf("%v: note %q, want %q", k, got, noted[k])
							}
							answer, ok := saved[k]
							if got, _, found := c.Load(app, name); found != ok || string(got) != answer {
								rt.Fatalf("%v: %q, want %q", k, got, answer)
							}
						}
					}
				}
			},
		})
	})
}

func BenchmarkFind(b *testing.B) {
	s := openAt(b, filepath.Join(b.TempDir(), "learned.db"), Options{})
	c := s.Scope(scope)
	all := make([]Object, 100_000)
	for i := range all {
		all[i] = Object{Key: fmt.Sprintf("orgs/o/apps/com.demo.app/delta/%064x_index.html", i), URL: zip.URL, Covers: StoredBytes}
	}
	put(b, c, all...)
	b.Run("known", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok := c.Find(app, all[i%len(all)].Key); !ok {
				b.Fatal("not found")
			}
		}
	})
	b.Run("unknown", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Find(app, "orgs/o/apps/com.demo.app/none")
		}
	})
	b.Run("put of 1000 that are known", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			put(b, c, all[:1000]...)
		}
	})
}

// BenchmarkSweep makes room in a full file.
func BenchmarkSweep(b *testing.B) {
	s := openAt(b, filepath.Join(b.TempDir(), "learned.db"), Options{})
	c := s.Scope(scope)
	for n := 0; s.Stats().Bytes < DefaultMaxBytes/5*4; n++ {
		all := make([]Object, 20_000)
		for i := range all {
			all[i] = Object{Key: fmt.Sprintf("orgs/o/apps/com.demo.app/delta/%060x_%d", n, i), URL: strings.Repeat("u", 200), Covers: StoredBytes}
		}
		put(b, c, all...)
	}
	b.Logf("%+v", s.Stats())
	for b.Loop() {
		if err := s.remove(1 << 20); err != nil && !errors.Is(err, errSmall) {
			b.Fatal(err)
		}
	}
}
