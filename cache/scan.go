package cache

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// scannedObject is what the scan learns of an object: it opens none.
type scannedObject struct {
	id   objectID
	size int64 // as charged
	used int64
}

// scanWorkers is how many directories are read at a time. On a cold disk that is waiting most of the time, in which the disk
// serves many as soon as one.
const scanWorkers = 16

// scanBatch is how many objects are added under one hold of the index.
const scanBatch = 256

// A directory that cannot be listed is tried again: what it holds would take room that no budget knows of. The faults of
// a start go away, as too many open files do; after so many tries it is left to the next start.
const scanTries = 5

// scan fills the index with what is on disk, oldest first. Requests are served while it runs: what they ask for and the
// index does not know yet is found by its path.
func (d *Disk) scan(ctx context.Context, stale []fs.DirEntry) {
	var cleaning sync.WaitGroup
	cleaning.Go(func() { d.removeStale(ctx, stale) })
	defer cleaning.Wait()
	for try := 1; !d.scanOnce(ctx) && try < scanTries; try++ {
		select {
		case <-time.After(probeEvery):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return
	}
	d.index.endScan()
	d.discard(d.index.shrink())
	cleaning.Wait()
	close(d.scanDone)
}

// scanOnce reports whether all could be listed.
func (d *Disk) scanOnce(ctx context.Context) bool {
	found, err := d.list(ctx)
	if err != nil {
		d.diskFailed(fmt.Errorf("listing stored objects: %w", err))
	}
	slices.SortFunc(found, func(a, b scannedObject) int { return cmp.Compare(a.used, b.used) })
	for batch := range slices.Chunk(found, scanBatch) {
		if ctx.Err() != nil {
			return true
		}
		d.index.addScanned(batch)
	}
	return err == nil
}

// removeStale removes what the process before has left of its fills and purges: that may be much, and nobody waits for it.
func (d *Disk) removeStale(ctx context.Context, stale []fs.DirEntry) {
	for _, entry := range stale {
		if ctx.Err() != nil {
			return
		}
		d.removeAll(filepath.Join(d.fillsPath, entry.Name()))
	}
}

// list reads the names, sizes and times of all objects.
func (d *Disk) list(ctx context.Context) ([]scannedObject, error) {
	scopes, err := d.files.ReadDir(d.objects)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var mu sync.Mutex
	var found []scannedObject
	var failures []error
	dirs := make(chan scanDir)
	var workers sync.WaitGroup
	for range scanWorkers {
		workers.Go(func() {
			for dir := range dirs {
				part, err := d.listDir(dir)
				mu.Lock()
				found = append(found, part...)
				failures = append(failures, err)
				mu.Unlock()
			}
		})
	}
	for _, scope := range scopes {
		if scope.IsDir() {
			err := d.listScope(ctx, scope.Name(), dirs)
			mu.Lock()
			failures = append(failures, err)
			mu.Unlock()
		}
	}
	close(dirs)
	workers.Wait()
	return found, errors.Join(failures...)
}

// scanDir is a directory that holds objects of one scope, whose names begin alike.
type scanDir struct {
	path  string
	name  string
	scope uint32
}

func (d *Disk) listScope(ctx context.Context, name string, dirs chan<- scanDir) error {
	path := filepath.Join(d.objects, name)
	parts, err := d.files.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) { // purged meanwhile
		return nil
	}
	scope := d.scopeByDir(name)
	for _, part := range parts {
		if ctx.Err() != nil {
			break
		}
		if part.IsDir() {
			dirs <- scanDir{filepath.Join(path, part.Name()), part.Name(), scope}
		}
	}
	return err
}

// listDir lists one directory. What is no object there is left alone.
func (d *Disk) listDir(dir scanDir) ([]scannedObject, error) {
	files, err := d.files.ReadDir(dir.path)
	if errors.Is(err, fs.ErrNotExist) { // purged meanwhile
		return nil, nil
	}
	found := make([]scannedObject, 0, len(files))
	for _, file := range files {
		name, ok := parseObjectName(file.Name())
		if !ok || !strings.HasPrefix(file.Name(), dir.name) {
			continue
		}
		info, err := file.Info()
		if err != nil || !info.Mode().IsRegular() { // evicted meanwhile, or none of ours
			continue
		}
		found = append(found, scannedObject{objectID{dir.scope, name}, charge(info.Size()), info.ModTime().Unix()})
	}
	return found, err
}

// parseObjectName is the reverse of objectID.String.
func parseObjectName(s string) (name [16]byte, ok bool) {
	if len(s) != hex.EncodedLen(len(name)) || strings.ToLower(s) != s {
		return name, false
	}
	_, err := hex.Decode(name[:], []byte(s))
	return name, err == nil
}
