package learned

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

func wantNote(t testing.TB, c *Scope, key, want string) {
	t.Helper()
	got, ok := c.FindNote(app, key)
	if string(got) != want || ok != (want != "") {
		t.Errorf("%s: %q, %v; want %q", key, got, ok, want)
	}
}

func notesOf(t testing.TB, c *Scope, app string) (all []string) {
	t.Helper()
	err := c.Notes(app, func(key string, value []byte) bool {
		if again, ok := c.FindNote(app, key); !ok || string(again) != string(value) { // f may use the store
			t.Errorf("%s: %q, then %q", key, value, again)
		}
		all = append(all, key+"="+string(value))
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return all
}

func answersOf(t testing.TB, c *Scope) (keys string) {
	t.Helper()
	err := c.Each(t.Context(), app, func(key string, _ []byte, _ time.Time) bool {
		keys += key
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return keys
}

func TestNotes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learned.db")
	s := openAt(t, path, Options{})
	c := s.Scope(scope)
	for _, key := range []string{"b", "a", "gone", ""} {
		c.Note(app, key, []byte("1"))
	}
	c.Note(app+"x", "a", []byte("another app's"))
	s.Scope("other").Note(app, "a", []byte("another upstream's"))
	c.Save(app, "a", []byte("an answer"), time.Now())
	want := []string{"=1", "a=1", "b=1", "gone=1"}
	for range 2 {
		if got := notesOf(t, c, app); !slices.Equal(got, want) {
			t.Error(cmp.Diff(got, want))
		}
		closed(t, s)
		s = openAt(t, path, Options{})
		c = s.Scope(scope)
	}
	value := []byte("2")
	c.Note(app, "b", value)
	value[0] = 'x'
	c.Note(app, "gone", nil)
	c.Note(app, "never there", nil)
	c.Note(app, "c", []byte("1"))
	want = []string{"=1", "a=1", "b=2", "c=1"} // those on disk and those that wait
	for range 2 {
		if got := notesOf(t, c, app); !slices.Equal(got, want) {
			t.Error(cmp.Diff(got, want))
		}
		wantNote(t, c, "gone", "")
		wantNote(t, c, "never there", "")
		closed(t, s)
		s = openAt(t, path, Options{})
		c = s.Scope(scope)
	}
	if err := c.DropApp(t.Context(), app); err != nil {
		t.Error(err)
	}
	wantAnswer(t, c, "a", "")
	wantNote(t, c, "a", "1") // of the app's answers only
	if got := s.Stats(); got.Notes != 6 || got.Dropped+got.Failures != 0 {
		t.Errorf("%+v", got)
	}
	calls := 0
	if err := c.Notes(app, func(string, []byte) bool { calls++; return false }); err != nil || calls != 1 {
		t.Errorf("%v, %d calls", err, calls)
	}
	c.Note(app, "a", make([]byte, maxNote+1))
	c.Note("a\x00b", "a", []byte("1"))
	if got := s.Stats(); got.Dropped != 2 {
		t.Errorf("%+v", got)
	}
	if err := c.Notes("a\x00b", nil); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

// TestNotesBound: of one note too many the oldest goes, whether it is on disk or came just before.
func TestNotesBound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learned.db")
	synctest.Test(t, func(t *testing.T) {
		s := openAt(t, path, Options{})
		defer func() { closed(t, s) }()
		c := s.Scope(scope)
		c.Note(app+"x", "a", []byte("1"))
		c.Note(app, "first", []byte("1"))
		c.Note(app, "second", []byte("1"))
		c.Note(app, "third", []byte("1"))
		for i := range MaxNotes - 3 {
			time.Sleep(time.Millisecond)
			c.Note(app, fmt.Sprint(i), []byte("1"))
		}
		time.Sleep(flushEvery)
		c.Note(app, "second", []byte("2")) // not the oldest any more
		time.Sleep(flushEvery)
		synctest.Wait()
		if got := s.Stats(); got.Notes != MaxNotes+1 {
			t.Errorf("%+v", got)
		}
		c.Note(app, "one more", []byte("1"))
		c.Note(app, "and another", []byte("1"))
		time.Sleep(flushEvery)
		synctest.Wait()
		if got := s.Stats(); got.Notes != MaxNotes+1 || len(notesOf(t, c, app)) != MaxNotes {
			t.Errorf("%+v", got)
		}
		wantNote(t, c, "first", "")
		wantNote(t, c, "third", "")
		wantNote(t, c, "second", "2")
		wantNote(t, c, "0", "1")
		wantNote(t, c, "one more", "1")
		if got := notesOf(t, c, app+"x"); len(got) != 1 {
			t.Errorf("another app has %q", got)
		}
	})
}

// TestSweepLeavesNotes: notes outlast any number of answers, however old they are. Only what goes beyond their own share of
// the file goes, the oldest first.
func TestSweepLeavesNotes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learned.db")
	synctest.Test(t, func(t *testing.T) {
		const most = 4 << 20
		s := openAt(t, path, Options{MaxBytes: most})
		defer func() { closed(t, s) }()
		c := s.Scope(scope)
		c.Note(app, "old", []byte("1"))
		fill := func(from, n int) {
			for i := range n {
				c.Save(app, fmt.Sprint(from+i), make([]byte, 10_000), time.Now())
				time.Sleep(flushEvery / 5)
			}
			synctest.Wait()
		}
		time.Sleep(1000 * time.Hour)
		fill(0, 1500)
		if got := s.Stats(); got.Swept < 100 || got.Dropped != 0 {
			t.Errorf("%+v", got)
		}
		wantNote(t, c, "old", "1")

		for i := range 1000 { // 4 MB of them
			c.Note(fmt.Sprint("app", i), "a", make([]byte, 4000))
			time.Sleep(30 * time.Minute)
		}
		fill(2000, 500)
		got := s.Stats()
		if left := int64(got.Notes) * 4000; left > most/2 || left < most/8 || got.Dropped != 0 || got.FileBytes > most*5/4 {
			t.Errorf("%+v", got)
		}
		wantNote(t, c, "old", "")
		if _, ok := c.FindNote("app999", "a"); !ok {
			t.Error("the newest note went")
		}
		if got.Answers < 50 {
			t.Errorf("notes leave no room for answers: %+v", got)
		}
	})
}

// TestNotesAreWrittenAgain: what the disk refused is written once it works, unless there is something newer by then.
func TestNotesAreWrittenAgain(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("here a file that is open cannot be taken away")
	}
	path := filepath.Join(t.TempDir(), "learned.db")
	synctest.Test(t, func(t *testing.T) {
		r := new(reports)
		s := openAt(t, path, Options{Report: r.add})
		c := s.Scope(scope)
		c.Note(app, "removed", []byte("1"))
		c.Note(app, "changed", []byte("1"))
		c.Save(app, "kept", []byte("answer"), time.Now())
		time.Sleep(flushEvery)
		synctest.Wait()
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		c.Note(app, "new", []byte("1"))
		c.Note(app, "changed", []byte("2"))
		c.Note(app, "removed", nil)
		c.Save(app, "an answer", []byte("lost"), time.Now())
		time.Sleep(5 * flushEvery)
		if got := answersOf(t, c); got != "kept" { // what is on disk is known while nothing can be written
			t.Errorf("answers: %q", got)
		}
		c.Note(app, "new", []byte("2"))
		time.Sleep(5 * flushEvery)
		synctest.Wait()
		if errs := r.take(); len(errs) != 1 || !errors.Is(errs[0], boltfile.ErrReplaced) {
			t.Errorf("reported %v", errs)
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * flushEvery)
		synctest.Wait()
		if errs := r.take(); len(errs) != 1 || errs[0] != nil {
			t.Errorf("reported %v", errs)
		}
		if got := s.Stats(); got.Dropped != 1 || got.Waiting != 0 || got.Notes != 2 {
			t.Errorf("%+v", got)
		}
		closed(t, s)
		s = openAt(t, path, Options{})
		c = s.Scope(scope)
		if got, want := strings.Join(notesOf(t, c, app), " "), "changed=2 new=2"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		closed(t, s)
	})
}

// TestFileWithoutNotes: a release before the notes wrote the file, and may have it again.
func TestFileWithoutNotes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learned.db")
	s := openAt(t, path, Options{})
	s.Scope(scope).Save(app, "k", []byte("answer"), time.Now())
	closed(t, s)
	f, err := boltfile.Open(boltfile.Options{Path: path, Format: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket(buckets[notes]) }); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path, Options{})
	c := s.Scope(scope)
	wantAnswer(t, c, "k", "answer")
	wantNote(t, c, "k", "")
	c.Note(app, "k", []byte("1"))
	wantNote(t, c, "k", "1")
}
