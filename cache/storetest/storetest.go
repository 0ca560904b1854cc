// Package storetest holds what tests of the object store need: the checker of its invariants, an origin and a file system
// that fail as told.
package storetest

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/cache"
)

// Check waits until the store rests and holds it to its invariants: what the index knows is what is on disk, to the byte;
// every object there is whole; nothing is left of fills; no budget is promised to anyone.
func Check(t testing.TB, d *cache.Disk, dir string) {
	t.Helper()
	d.AwaitScan()
	d.Wait()
	stats := d.Stats()
	if stats.Reserved != 0 || stats.Filling != 0 || stats.Scanning {
		t.Errorf("at rest, but %d bytes are reserved, %d fills run, scanning is %v", stats.Reserved, stats.Filling, stats.Scanning)
	}
	inventory := d.Inventory()
	var bytes int64
	for path, size := range inventory {
		bytes += size
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Errorf("the index has what the disk has not: %v", err)
		} else if want := (info.Size() + 4095) / 4096 * 4096; want != size {
			t.Errorf("%s: the index says %d bytes, the disk %d", path, size, want)
		}
	}
	if stats.Bytes != bytes || stats.Objects != len(inventory) {
		t.Errorf("the index counts %d objects, %d bytes; it lists %d, %d", stats.Objects, stats.Bytes, len(inventory), bytes)
	}
	CheckFiles(t, dir, func(path string) bool { _, ok := inventory[path]; return ok })
}

// CheckFiles holds the files of a storage directory to what must be true of them whatever happened: those with a name are
// whole. known tells which the index knows; nil if there is none.
func CheckFiles(t testing.TB, dir string, known func(path string) bool) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil || entry.IsDir():
			return err
		case strings.HasPrefix(path, "fills/") && known != nil:
			t.Errorf("a fill left %s", path)
		case strings.HasPrefix(path, "objects/"):
			if known != nil && !known(filepath.FromSlash(path)) {
				t.Errorf("the disk has what the index has not: %s", path)
			}
			if err := cache.VerifyFile(filepath.Join(dir, path)); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
