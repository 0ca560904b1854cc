package boltfile

import (
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"testing"
)

// TestSyncName: what can be wrong with the directories of a file is told, where they can be synced at all.
func TestSyncName(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "file"), "file"} {
		if err := SyncName(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := SyncName(filepath.Join(dir, "missing", "file")); !errors.Is(err, fs.ErrNotExist) && runtime.GOOS != "windows" {
		t.Errorf("a missing directory: %v", err)
	}
}
