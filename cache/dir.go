package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The files of a storage directory. What else stands in it belongs to other rooms and is left alone.
const (
	formatFile   = "FORMAT"    // the version of the layout
	lockName     = "LOCK"      // locked while a process uses the directory
	manifestsDir = "manifests" // last good copies
	objectsDir   = "objects"   // stored objects, <scope>/<two digits>/<name>
	fillsDir     = "fills"     // what is being written; worth nothing after a crash
)

// layout is the version of the storage layout this code writes.
//
//	1  manifests
//	2  manifests, objects, fills
const layout = 2

// lockPatience is how long Claim waits for a directory that is in use: the process before may be about to end.
const lockPatience = 3 * time.Second

var errLocked = errors.New("it is in use by another process; give each its own storage directory")

// Dir is a storage directory that this process has to itself.
type Dir struct {
	path string
	lock *os.File
}

// Claim makes a storage directory usable: it creates it, readable by its owner alone, locks it against other processes and
// brings it to the layout of this version. Of a directory with an older layout only stored objects are dropped, which can
// be fetched again. One that a newer version wrote is refused, so that a downgrade damages nothing.
func Claim(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	lock, err := waitForLock(filepath.Join(path, lockName))
	if err != nil {
		return nil, err
	}
	if err := migrate(path); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Dir{path, lock}, nil
}

func waitForLock(path string) (*os.File, error) {
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		lock, err := lockFile(path)
		if !errors.Is(err, errLocked) || time.Since(began) > lockPatience {
			return lock, err
		}
	}
}

// Path is the directory's path.
func (d *Dir) Path() string { return d.path }

// Manifests is where last good copies are kept.
func (d *Dir) Manifests() string { return filepath.Join(d.path, manifestsDir) }

// Free is how many bytes may still be written to the disk that the directory is on.
func (d *Dir) Free() (int64, error) { return freeBytes(d.path) }

// Release lets others use the directory.
func (d *Dir) Release() error { return d.lock.Close() }

func migrate(path string) error {
	found, err := readLayout(path)
	switch {
	case err != nil:
		return err
	case found == layout:
		return nil
	case found > layout:
		return fmt.Errorf("%s was written by a newer version (layout %d, this one knows %d); upgrade, or use another directory",
			path, found, layout)
	}
	for _, dir := range []string{objectsDir, fillsDir} {
		if err := os.RemoveAll(filepath.Join(path, dir)); err != nil {
			return err
		}
	}
	return stampLayout(path)
}

// readLayout returns the layout of the directory, 0 for a new one.
func readLayout(path string) (int, error) {
	path = filepath.Join(path, formatFile)
	stamp, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(stamp) == 0 { // version 1 could crash between making and writing it
		return 0, nil
	}
	found, err := strconv.Atoi(strings.TrimSpace(string(stamp)))
	if err != nil || found < 1 {
		return 0, fmt.Errorf("%s does not hold a layout version; use an empty directory, or one that this program made", path)
	}
	return found, nil
}

// stampLayout writes the stamp in one step: a directory without one counts as new, one with half of it as none of ours.
func stampLayout(path string) error {
	stamp := filepath.Join(path, formatFile)
	if err := os.WriteFile(stamp+".tmp", []byte(strconv.Itoa(layout)+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(stamp+".tmp", stamp)
}
