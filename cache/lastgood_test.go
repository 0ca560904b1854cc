package cache

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var key = Key{scope, app}

// restart returns a Memory over the directory of m, as after a restart.
func restart(t *testing.T, m *Memory[*value]) *Memory[*value] {
	t.Helper()
	again, _ := newMemory(t, m.lastGood.dir, room)
	return again
}

func TestRestart(t *testing.T) {
	for _, tt := range []struct {
		name string
		away time.Duration // between the last confirmation and the restart
		err  error
		want string
	}{
		{"young", fresh - time.Second, errDown, "loaded one"},
		{"older", fresh + time.Second, errDown, "stale one"},
		{"much older", fresh + staleWhile + time.Second, errDown, "stale one"},
		{"just usable", stale - time.Second, errDown, "stale one"},
		{"too old", stale + time.Second, errDown, "unavailable: connection refused"},
		{"too old, and gone", stale + time.Second, ErrNotFound, "negative: no such document"},
		{"too old, but still there", stale + time.Second, nil, "loaded one"},
		{"confirmed in the future", -time.Hour, errDown, "stale one"},
		{"confirmed in the future, and there", -time.Hour, nil, "stale one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOrigin(app, "one")
			bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
				want(t, answer(t, m, s, app), "loaded one")
				confirmed := time.Now().Add(-tt.away)
				if err := os.Chtimes(m.lastGood.path(key), confirmed, confirmed); err != nil {
					t.Fatal(err)
				}
				o.fail(tt.err)
				whole := o.whole
				m = restart(t, m)
				want(t, answer(t, m, s, app), tt.want)
				synctest.Wait()
				if o.whole != whole {
					t.Error("an unchanged document was fetched whole")
				}
				if tt.err == nil {
					want(t, answer(t, m, s, app), "fresh one")
				}
				if _, err := m.lastGood.load(key); errors.Is(err, fs.ErrNotExist) != errors.Is(tt.err, ErrNotFound) {
					t.Errorf("the copy on disk: %v", err)
				}
			})
		})
	}
}

// TestRestartKeepsTheMemo takes what Replace returned through two revisions and a restart.
func TestRestartKeepsTheMemo(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		wantMemo := func(memo string) {
			t.Helper()
			if v, _, err := m.Get(t.Context(), s, app); err != nil || v.memo != memo {
				t.Errorf("got %+v, %v, want the memo %q", v, err, memo)
			}
		}
		refresh := func() {
			time.Sleep(fresh)
			answer(t, m, s, app)
			synctest.Wait()
		}
		wantMemo("")
		o.put(app, "two")
		refresh()
		wantMemo("one ")
		m = restart(t, m)
		wantMemo("one ")
		o.do(func() { o.etags[app] = `"the same again"` })
		refresh()
		m = restart(t, m)
		wantMemo("one ")
		o.put(app, "three")
		o.do(func() { delete(o.etags, app) })
		refresh()
		m = restart(t, m)
		wantMemo("two one ")
	})
}

func TestDamagedCopies(t *testing.T) {
	for name, damage := range map[string]func(raw []byte) []byte{
		"empty":           func([]byte) []byte { return nil },
		"record only":     func(raw []byte) []byte { return raw[:bytes.IndexByte(raw, '\n')] },
		"no document":     func(raw []byte) []byte { return raw[:bytes.IndexByte(raw, '\n')+1] },
		"cut":             func(raw []byte) []byte { return raw[:len(raw)-1] },
		"longer":          func(raw []byte) []byte { return append(raw, 'x') },
		"flipped bit":     func(raw []byte) []byte { raw[len(raw)-1] ^= 1; return raw },
		"no record":       func([]byte) []byte { return []byte("garbage\ngarbage") },
		"zeros":           func(raw []byte) []byte { return make([]byte, len(raw)) },
		"another format":  func(raw []byte) []byte { return bytes.Replace(raw, []byte(`"format":1`), []byte(`"format":2`), 1) },
		"another name":    func(raw []byte) []byte { return bytes.Replace(raw, []byte(app), []byte("com.example.foe"), 1) },
		"another scope":   func(raw []byte) []byte { return bytes.Replace(raw, []byte(scope), []byte("file /srv/b"), 1) },
		"memo too long":   func(raw []byte) []byte { return bytes.Replace(raw, []byte(`"memo":0`), []byte(`"memo":9`), 1) },
		"memo of minus 1": func(raw []byte) []byte { return bytes.Replace(raw, []byte(`"memo":0`), []byte(`"memo":-1`), 1) },
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(app, "one")
			bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
				want(t, answer(t, m, s, app), "loaded one")
				path := m.lastGood.path(key)
				raw, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, damage(raw), 0o600); err != nil {
					t.Fatal(err)
				}
				o.fail(errDown)
				m = restart(t, m)
				want(t, answer(t, m, s, app), "unavailable: connection refused")
				if errs := o.diskErrors(); len(errs) != 1 || !strings.Contains(errs[0].Error(), path) {
					t.Errorf("told of %v", errs)
				}
				if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the damaged copy was kept: %v", err)
				}
				o.fail(nil)
				time.Sleep(retryMost)
				want(t, answer(t, m, s, app), "loaded one")
				o.fail(errDown)
				want(t, answer(t, restart(t, m), s, app), "loaded one")
			})
		})
	}
}

// TestCopyThatDoesNotDecode restarts as a version that refuses what the one before accepted.
func TestCopyThatDoesNotDecode(t *testing.T) {
	o := newOrigin(app, "two")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		if err := m.lastGood.save(key, Document{Raw: []byte("invalid one")}, nil); err != nil {
			t.Fatal(err)
		}
		want(t, answer(t, m, s, app), "loaded two")
		if errs := o.diskErrors(); len(errs) != 1 || !errors.Is(errs[0], errInvalid) {
			t.Errorf("told of %v", errs)
		}
	})
}

// TestDiskFails has a disk that takes nothing: answers go on, and the copy is written once it does again.
func TestDiskFails(t *testing.T) {
	o := newOrigin(app, "one")
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		refresh := func() {
			time.Sleep(fresh)
			answer(t, m, s, app)
			synctest.Wait()
		}
		mend := breakDisk(t, m)
		want(t, answer(t, m, s, app), "loaded one")
		want(t, answer(t, m, s, app), "fresh one")
		if errs := o.diskErrors(); len(errs) == 0 {
			t.Error("ReportDisk was not called")
		}
		mend()
		whole := o.whole
		refresh()
		if copied, err := m.lastGood.load(key); err != nil || string(copied.Raw) != "one" || o.whole != whole {
			t.Errorf("after the disk came back: %+v, %v", copied, err)
		}

		// The next revision cannot be written. The copy of the one before must not seem to be confirmed.
		mend = breakDisk(t, m)
		o.put(app, "two")
		refresh()
		want(t, answer(t, m, s, app), "fresh two")
		mend()
		o.put(app, "three")
		mend = breakDisk(t, m)
		refresh()
		mend()
		if copied, err := m.lastGood.load(key); err != nil || string(copied.Raw) != "one" || time.Since(copied.Validated) < 2*fresh {
			t.Errorf("the copy on disk: %+v, %v", copied, err)
		}
		refresh() // answered with 304
		if v, _, err := m.Get(t.Context(), s, app); err != nil || v.text != "three" {
			t.Errorf("got %v, %v", v, err)
		}
		o.diskErrors()
		o.fail(errDown)
		v, state, err := restart(t, m).Get(t.Context(), s, app)
		if err != nil || state != Loaded || v.text != "three" || v.memo != "two one " {
			t.Errorf("after a restart: %+v %v %v", v, state, err)
		}
		if errs := o.diskErrors(); len(errs) != 0 {
			t.Errorf("told of %v", errs)
		}
	})
}

// TestDiskFailsRevision has one revision fail to be written while others before it are; nothing may answer for longer
// with the older one because its copy was touched.
func TestDiskFailsRevision(t *testing.T) {
	o := newOrigin(app, "one")
	o.size = 2 * room // so that the copy on disk answers
	bubble(t, o, func(t *testing.T, m *Memory[*value], s *Source[*value]) {
		want(t, answer(t, m, s, app), "loaded one")
		time.Sleep(fresh)
		o.put(app, "two")
		// Only the save fails, not the touch: the copy's directory takes no new file.
		path := m.lastGood.path(key)
		s.Replace = func(old, next *value, _ []byte) []byte {
			if err := errors.Join(os.Rename(filepath.Dir(path), filepath.Dir(path)+".away"), os.WriteFile(filepath.Dir(path), nil, 0o600)); err != nil {
				t.Error(err)
			}
			return replace(old, next, nil)
		}
		s.ReportDisk = func(string, error) {
			_ = os.Remove(filepath.Dir(path))
			_ = os.Rename(filepath.Dir(path)+".away", filepath.Dir(path))
		}
		want(t, answer(t, m, s, app), "stale one")
		synctest.Wait()
		s.Replace = replace
		want(t, answer(t, m, s, app), "stale one")
		synctest.Wait()
		want(t, answer(t, m, s, app), "loaded two")
	})
}

func TestLastGoodPermissions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	l, err := OpenLastGood(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.save(key, Document{Raw: []byte("one")}, nil); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		filepath.Dir(dir): 0o700, dir: 0o700, filepath.Dir(l.path(key)): 0o700, l.path(key): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(l.path(key))); err != nil || len(entries) != 1 {
		t.Errorf("entries %v, %v", entries, err)
	}
}

// TestLastGoodAfterAKill leaves behind what a process leaves that is killed while it writes.
func TestLastGoodAfterAKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "[odd *name") // what a directory is called is no pattern
	l, err := OpenLastGood(dir)
	if err != nil {
		t.Fatal(err)
	}
	doc := Document{Raw: []byte("one"), ETag: `"1"`, Modified: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}
	if err := l.save(key, doc, []byte("memo")); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(l.path(key))
	if err != nil {
		t.Fatal(err)
	}
	unfinished := l.path(key) + "-123.tmp"
	for _, n := range []int{0, 1, len(whole) / 2, len(whole)} {
		if err := os.WriteFile(unfinished, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err = OpenLastGood(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(unfinished); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("cut at %d: the unfinished file is still there", n)
		}
		got, err := l.load(key)
		if err != nil || string(got.Raw) != "one" || string(got.Memo) != "memo" || got.ETag != doc.ETag || !got.Modified.Equal(doc.Modified) {
			t.Errorf("cut at %d: got %+v, %v", n, got, err)
		}
	}
}

func TestLastGoodWithoutACopy(t *testing.T) {
	l, err := OpenLastGood(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.load(key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load: %v", err)
	}
	if err := l.touch(key); err != nil {
		t.Errorf("touch: %v", err)
	}
	if err := l.remove(key); err != nil {
		t.Errorf("remove: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLastGood(file); err == nil {
		t.Error("a file is taken for a directory")
	}
}

// TestLastGoodNames keeps names apart that file systems may not, or not be able to hold.
func TestLastGoodNames(t *testing.T) {
	l, err := OpenLastGood(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	keys := []Key{
		{"a", "x"}, {"a", "X"}, {"A", "x"}, {"ax", ""}, {"", "ax"}, {"a", "../x"}, {"a", "é\x00\n"}, {"a", strings.Repeat("long", 1000)},
	}
	for _, k := range keys {
		if err := l.save(k, Document{Raw: []byte(k.Scope + "|" + k.Name)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range keys {
		if c, err := l.load(k); err != nil || string(c.Raw) != k.Scope+"|"+k.Name {
			t.Errorf("%q: %+v, %v", k, c, err)
		}
	}
}

// TestLastGoodLists the names of a scope, and nothing that is damaged.
func TestLastGoodLists(t *testing.T) {
	l, err := OpenLastGood(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if names := l.Names(scope); len(names) != 0 {
		t.Errorf("of nothing: %q", names)
	}
	for _, name := range []string{"b", "a"} {
		if err := l.save(Key{scope, name}, Document{Raw: []byte("text of " + name)}, []byte("memo")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.save(Key{"other", "c"}, Document{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(l.path(Key{scope, "a"})), "damaged"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	names := l.Names(scope)
	slices.Sort(names)
	if !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("names %q", names)
	}
}
