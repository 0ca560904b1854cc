package origin_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/storetest"
)

func TestFileConformance(t *testing.T) {
	storetest.Run(t, storetest.Harness{New: func(t *testing.T, objects map[string][]byte) origin.Store {
		dir := t.TempDir()
		for key, content := range objects {
			writeFile(t, filepath.Join(dir, key), string(content))
		}
		return newFile(t, dir)
	}})
}

func newFile(t *testing.T, dir string) *origin.File {
	t.Helper()
	f, err := origin.NewFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Skip(err) // Windows, without the right to
	}
}

// wantFile checks what is at key, for a reader that knows nothing yet.
func wantFile(t *testing.T, s origin.Store, key, want string) *origin.Object {
	t.Helper()
	o, got, err := storetest.Read(t, s, key, origin.GetOptions{})
	if err != nil || string(got) != want {
		t.Errorf("%s: got %q, %v, want %q", key, got, err, want)
	}
	return o
}

func TestFileLinks(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "origin")
	writeFile(t, filepath.Join(base, "secret/file"), "secret")
	writeFile(t, filepath.Join(dir, "real/file"), "inside")
	symlink(t, "real/file", filepath.Join(dir, "file-in"))
	symlink(t, "real", filepath.Join(dir, "dir-in"))
	symlink(t, "../real/../real/file", filepath.Join(dir, "sub/up-and-in"))
	symlink(t, "nowhere", filepath.Join(dir, "dangling"))
	symlink(t, "loop", filepath.Join(dir, "loop"))
	symlink(t, "../secret/file", filepath.Join(dir, "file-out"))
	symlink(t, filepath.Join(base, "secret/file"), filepath.Join(dir, "file-out-abs"))
	symlink(t, "../secret", filepath.Join(dir, "dir-out"))
	symlink(t, "../../secret", filepath.Join(dir, "real/nested-out"))
	symlink(t, "../nowhere", filepath.Join(dir, "dangling-out"))
	s := newFile(t, dir)

	for _, key := range []string{"file-in", "dir-in/file", "sub/up-and-in"} {
		wantFile(t, s, key, "inside")
	}
	for _, key := range []string{"dangling", "dangling/x", "dir-in", "file-in/x", "dir-in/nothing"} {
		if _, _, err := storetest.Read(t, s, key, origin.GetOptions{}); !errors.Is(err, origin.ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", key, err)
		}
	}
	for key, link := range map[string]string{
		"file-out": "file-out", "file-out-abs": "file-out-abs", "dir-out/file": "dir-out", "dir-out/no": "dir-out",
		"real/nested-out/file": "real/nested-out", "dir-in/nested-out/file": "dir-in/nested-out", "dangling-out": "dangling-out",
	} {
		_, got, err := storetest.Read(t, s, key, origin.GetOptions{})
		linkErr, ok := errors.AsType[*origin.LinkError](err)
		if !ok || !errors.Is(err, origin.ErrUnavailable) || linkErr.Link != link {
			t.Errorf("%s: got %q, %v, want a LinkError of %s", key, got, err, link)
			continue
		}
		if !strings.Contains(err.Error(), linkErr.Target) || !strings.Contains(err.Error(), link) {
			t.Errorf("%s: the error names neither link nor target: %v", key, err)
		}
	}
	_, _, err := storetest.Read(t, s, "loop", origin.GetOptions{})
	if _, ok := errors.AsType[*origin.LinkError](err); ok || !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("loop: got %v, want an error that does not claim it leads out", err)
	}
}

// TestFileSwitch switches a link as releases are switched: the store's own path, and one inside it.
func TestFileSwitch(t *testing.T) {
	sameTime := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, inside := range []bool{false, true} {
		base := t.TempDir()
		for release, content := range map[string]string{"r1": "1.0.1", "r2": "1.0.2"} {
			path := filepath.Join(base, release, "manifest")
			writeFile(t, path, content)
			if err := os.Chtimes(path, sameTime, sameTime); err != nil {
				t.Fatal(err)
			}
		}
		current := filepath.Join(base, "current")
		symlink(t, "r1", current)
		s, key := newFile(t, current), "manifest"
		if inside {
			s, key = newFile(t, base), "current/manifest"
		}
		old := wantFile(t, s, key, "1.0.1")
		if _, _, err := storetest.Read(t, s, key, origin.GetOptions{IfNoneMatch: old.ETag}); !errors.Is(err, origin.ErrNotModified) {
			t.Errorf("inside=%v: before the switch: %v", inside, err)
		}
		symlink(t, "r2", current+".new")
		if err := os.Rename(current+".new", current); err != nil {
			t.Fatal(err)
		}
		o, got, err := storetest.Read(t, s, key, origin.GetOptions{IfNoneMatch: old.ETag})
		if err != nil || string(got) != "1.0.2" || o.ETag != old.ETag {
			t.Errorf("inside=%v: after the switch: %q, %v", inside, got, err)
		}
		if _, _, err := storetest.Read(t, s, key, origin.GetOptions{IfNoneMatch: old.ETag}); !errors.Is(err, origin.ErrNotModified) {
			t.Errorf("inside=%v: after that: %v", inside, err)
		}
		// A new store, after a restart, does not know which of the two its caller has.
		fresh := newFile(t, filepath.Join(base, "current"))
		if _, got, err := storetest.Read(t, fresh, "manifest", origin.GetOptions{IfNoneMatch: old.ETag}); string(got) != "1.0.2" {
			t.Errorf("inside=%v: new store: %q, %v", inside, got, err)
		}
	}
}

// TestFileRewritten writes other content of the same size and time, in place and as a new file that gets the number of
// the old one.
func TestFileRewritten(t *testing.T) {
	if !changeTimes {
		t.Skip("files do not tell here when they were last written to")
	}
	sameTime := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	path := filepath.Join(dir, "manifest")
	s := newFile(t, dir)
	var etag string
	for i, content := range []string{"1.0.1", "1.0.2", "1.0.3", "1.0.4"} {
		if i%2 == 0 {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		writeFile(t, path, content)
		if err := os.Chtimes(path, sameTime, sameTime); err != nil {
			t.Fatal(err)
		}
		o, got, err := storetest.Read(t, s, "manifest", origin.GetOptions{IfNoneMatch: etag})
		if err != nil || string(got) != content {
			t.Fatalf("got %q, %v, want %q", got, err, content)
		}
		etag = o.ETag
	}
}

func TestFileDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	s := newFile(t, dir)
	if _, _, err := storetest.Read(t, s, "a", origin.GetOptions{}); !errors.Is(err, origin.ErrUnavailable) || errors.Is(err, origin.ErrNotFound) {
		t.Errorf("no directory: %v", err)
	}
	writeFile(t, filepath.Join(dir, "a"), "one")
	wantFile(t, s, "a", "one")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, _, err := storetest.Read(t, s, "a", origin.GetOptions{}); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("directory removed: %v", err)
	}
	writeFile(t, filepath.Join(dir, "a"), "two")
	wantFile(t, s, "a", "two")

	writeFile(t, filepath.Join(dir, "file"), "no directory")
	if _, _, err := storetest.Read(t, newFile(t, filepath.Join(dir, "file")), "a", origin.GetOptions{}); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("the directory is a file: %v", err)
	}
	if _, _, err := storetest.Read(t, s, "a\x00b", origin.GetOptions{}); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("NUL: %v", err)
	}
	if got, want := s.Identity(), "file "+dir; got != want {
		t.Errorf("identity %q, want %q", got, want)
	}
}

func TestFileCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newFile(t, t.TempDir()).Get(ctx, "a", origin.GetOptions{}); !errors.Is(err, context.Canceled) || !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// TestFileTruncated cuts a file while it is read.
func TestFileTruncated(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	writeFile(t, path, strings.Repeat("x", 1000))
	o, err := newFile(t, dir).Get(t.Context(), "a", origin.GetOptions{Offset: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Body.Close()
	if err := os.Truncate(path, 500); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if n, err := got.ReadFrom(o.Body); n != 490 || !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("got %d bytes, %v", n, err)
	}
}
