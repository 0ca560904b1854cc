package cache_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/cache/storetest"
)

// heldFiles is a file system whose scan waits, and which counts what is opened.
type heldFiles struct {
	*storetest.Files
	holds   func(path string) bool // listing this directory waits, with what was listed
	gate    chan struct{}          // until this is closed
	met     sync.Once
	held    chan struct{} // closed once something waits
	opens   atomic.Int64
	between atomic.Pointer[func()] // runs before the next file is opened
	after   atomic.Pointer[func()] // and this behind
}

func newHeldFiles(holds func(path string) bool) *heldFiles {
	return &heldFiles{Files: storetest.NewFiles(), holds: holds, gate: make(chan struct{}), held: make(chan struct{})}
}

func (f *heldFiles) ReadDir(path string) ([]fs.DirEntry, error) {
	entries, err := f.Files.ReadDir(path)
	if !f.holds(path) {
		return entries, err
	}
	for i, entry := range entries { // what is listed may be gone when the scan goes on
		if info, err := entry.Info(); err == nil {
			entries[i] = fs.FileInfoToDirEntry(info)
		}
	}
	f.met.Do(func() { close(f.held) })
	<-f.gate
	return entries, err
}

func (f *heldFiles) Open(path string) (cache.File, error) {
	f.opens.Add(1)
	if between := f.between.Swap(nil); between != nil {
		(*between)()
	}
	file, err := f.Files.Open(path)
	if after := f.after.Swap(nil); after != nil {
		(*after)()
	}
	return file, err
}

// release lets the scan go on.
func (f *heldFiles) release() {
	select {
	case <-f.gate:
	default:
		close(f.gate)
	}
}

// stocked is a directory with some stored objects: small ones in scope "test" by the name of their number.
func stocked(t *testing.T, n, size int) string {
	t.Helper()
	s := openStore(t)
	for i := range n {
		body := content(byte(i), size)
		s.want(request(fmt.Sprint(i), storetest.NewOrigin(body), body), 0, body, cache.Filled)
	}
	s.Wait()
	s.close()
	return s.dir
}

// scanning opens a store whose scan stands after it has listed something: the topmost directory, or the one that holds the
// object of that name.
func scanning(t *testing.T, dir, at string, change ...func(o *cache.DiskOptions)) (*store, *heldFiles) {
	t.Helper()
	last := "objects"
	if at != "" {
		last = fmt.Sprintf("%x", sha256.Sum256([]byte(at)))[:2]
	}
	files := newHeldFiles(func(path string) bool { return filepath.Base(path) == last })
	s := reopenStore(t, dir, append(change, func(o *cache.DiskOptions) { o.Files = files })...)
	t.Cleanup(files.release) // before the store closes
	<-files.held
	return s, files
}

// TestScanFindsByPath: what is stored and not scanned yet is served, and not fetched again.
func TestScanFindsByPath(t *testing.T) {
	for _, at := range []string{"", "3"} {
		dir := stocked(t, 20, 5000)
		s, files := scanning(t, dir, at, func(o *cache.DiskOptions) { o.Memory = 1 })
		if !s.Stats().Scanning {
			t.Error("it does not scan")
		}
		for i := range 20 {
			o := storetest.NewOrigin(content(byte(i), 5000))
			known := content(byte(i), 5000)
			if i%2 == 0 {
				known = nil
			}
			for range 2 {
				got, how, err := s.read(request(fmt.Sprint(i), o, known), 0)
				if err != nil || how != cache.Hit || !bytes.Equal(got, content(byte(i), 5000)) {
					t.Errorf("%d: %d bytes by %v, %v", i, len(got), how, err)
				}
			}
			if n := len(o.Gets()); n > 0 {
				t.Errorf("%d was fetched again", i)
			}
		}
		opens := files.opens.Load()
		files.release()
		s.AwaitScan()
		if n := files.opens.Load(); n != opens {
			t.Errorf("the scan opened %d objects", n-opens)
		}
		if stats := s.Stats(); stats.Objects != 20 || stats.Bytes != 20*8192 {
			t.Errorf("%+v", stats)
		}
		s.close()
	}
}

// TestScanOpensNothing of what it finds.
func TestScanOpensNothing(t *testing.T) {
	s, files := scanning(t, stocked(t, 20, 100), "")
	files.release()
	s.AwaitScan()
	if n := files.opens.Load(); n != 0 || s.Stats().Objects != 20 {
		t.Errorf("%d objects were opened, %d found", n, s.Stats().Objects)
	}
}

// TestScanAndChanges: what is purged, replaced, evicted and stored while the scan has listed, but not told of it.
func TestScanAndChanges(t *testing.T) {
	for _, at := range []string{"", "3"} {
		for _, tt := range []struct {
			name    string
			change  func(s *store)
			objects int
		}{
			{"one purged", func(s *store) { s.Purge("test", "3") }, 19},
			{"one purged that was read", func(s *store) {
				s.want(request("3", nil, nil), 0, content(3, 5000), cache.Hit)
				s.Purge("test", "3")
			}, 19},
			{"all purged", func(s *store) { s.Purge("test", "") }, 0},
			{"all purged, one stored again", func(s *store) {
				s.Purge("test", "")
				s.want(request("3", storetest.NewOrigin(content(3, 5000)), nil), 0, content(3, 5000), cache.Filled)
			}, 1},
			{"one stored", func(s *store) {
				s.want(request("new", storetest.NewOrigin(content(99, 5000)), nil), 0, content(99, 5000), cache.Filled)
			}, 21},
			{"one replaced", func(s *store) {
				body := content(98, 70000)
				s.want(request("3", storetest.NewOrigin(body), body), 0, body, cache.Filled)
			}, 20},
			{"one replaced and evicted", func(s *store) {
				body := content(98, 70000)
				s.want(request("3", storetest.NewOrigin(body), body), 0, body, cache.Filled)
				s.Wait()
				s.Retune(1, 0, 1)
				s.Retune(1<<30, 0, 1)
			}, 19},
		} {
			t.Run(fmt.Sprint(tt.name, " ", at), func(t *testing.T) {
				s, files := scanning(t, stocked(t, 20, 5000), at)
				tt.change(s)
				s.Wait()
				files.release()
				s.AwaitScan()
				if n := s.Stats().Objects; n != tt.objects {
					t.Errorf("%d objects", n)
				}
			})
		}
	}
}

// TestScanKeepsTheOrder: after a restart the budget takes what was not used for longest.
func TestScanKeepsTheOrder(t *testing.T) {
	dir := stocked(t, 20, 5000)
	s := reopenStore(t, dir)
	s.AwaitScan()
	paths := map[string]string{}
	for path := range s.Inventory() {
		key, _, _, err := cache.RecordOf(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		paths[key.Name] = filepath.Join(dir, path)
	}
	s.close()
	for i := range 20 { // the higher the number, the longer ago
		at := time.Now().Add(-time.Duration(i+2) * time.Hour)
		if err := os.Chtimes(paths[fmt.Sprint(i)], at, at); err != nil {
			t.Fatal(err)
		}
	}
	s = reopenStore(t, dir)
	s.AwaitScan()
	s.want(request("19", nil, nil), 0, content(19, 5000), cache.Hit) // used now, on disk too
	s.Prefer(cache.Key{Name: "app"}, []cache.Key{{Scope: "test", Name: "18"}})
	s.close()
	s = reopenStore(t, dir, func(o *cache.DiskOptions) { o.MaxBytes = 10 * 8192 })
	s.AwaitScan()
	for i := range 20 {
		want := i < 9 || i == 19
		if stored := s.Stored(request(fmt.Sprint(i), nil, nil)); stored != want {
			t.Errorf("%d is stored: %v", i, stored)
		}
	}
}

// TestScanLeavesOthersAlone: files that are none of ours.
func TestScanLeavesOthersAlone(t *testing.T) {
	dir := stocked(t, 3, 100)
	name := strings.Repeat("ab", 16)
	scopes, err := filepath.Glob(filepath.Join(dir, "objects", "*"))
	if err != nil || len(scopes) != 1 {
		t.Fatal(err)
	}
	others := []string{
		filepath.Join(dir, "objects", "note"),
		filepath.Join(scopes[0], "note"),
		filepath.Join(scopes[0], "ab", "note"),
		filepath.Join(scopes[0], "cd", name),
		filepath.Join(scopes[0], "ab", strings.ToUpper(name)),
	}
	for _, path := range others {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := reopenStore(t, dir)
	s.AwaitScan()
	if stats := s.Stats(); stats.Objects != 3 {
		t.Errorf("%d objects", stats.Objects)
	}
	if err, _ := s.Health(); err != nil {
		t.Errorf("the disk is well: %v", err)
	}
	for _, path := range others {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// TestScanTriesAgain: a directory that cannot be listed just now.
func TestScanTriesAgain(t *testing.T) {
	dir := stocked(t, 3, 100)
	synctest.Test(t, func(t *testing.T) {
		files := storetest.NewFiles()
		files.FailAfter(1, storetest.Broken, storetest.List) // the first lists what fills left
		s := reopenStore(t, dir, func(o *cache.DiskOptions) { o.Files = files })
		time.Sleep(time.Second)
		if err, _ := s.Health(); err == nil || !s.Stats().Scanning {
			t.Error("nobody noticed")
		}
		s.want(request("1", nil, nil), 0, content(1, 100), cache.Hit)
		files.Fail(nil, storetest.List)
		s.AwaitScan()
		time.Sleep(10 * time.Second)
		if err, _ := s.Health(); err != nil || s.Stats().Objects != 3 {
			t.Errorf("%d objects, %v", s.Stats().Objects, err)
		}
		s.close()
	})
}

// TestScanOfStale: what earlier processes left of their fills goes, and nobody waits for it.
func TestScanOfStale(t *testing.T) {
	dir := stocked(t, 1, 100)
	for _, path := range []string{"fills/old", "fills/purged-1/ab/old"} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reopenStore(t, dir).close() // which checks
}

// TestScanPurgeFails: objects that the scan had not come to when their scope was purged, on a disk that would not let go of
// them, are removed once it does.
func TestScanPurgeFails(t *testing.T) {
	s, files := scanning(t, stocked(t, 20, 5000), "")
	s.want(request("3", nil, nil), 0, content(3, 5000), cache.Hit)
	files.Fail(storetest.ReadOnly, storetest.Rename)
	s.Purge("test", "")
	files.Fail(nil, storetest.Rename)
	files.release()
	s.AwaitScan()
	s.want(request("3", storetest.NewOrigin(content(3, 5000)), nil), 0, content(3, 5000), cache.Filled)
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if err, _ := s.Health(); err == nil {
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatal("the disk does not recover")
		}
	}
	time.Sleep(100 * time.Millisecond) // what is left over goes right after
	if n := s.Stats().Objects; n > 1 {
		t.Errorf("%d objects", n)
	}
}
