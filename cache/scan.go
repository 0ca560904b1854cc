package cache

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
)

// scannedObject is what the scan learns of an object: it opens none.
type scannedObject struct {
	id   objectID
	size int64 // as charged
	used int64
}

// scanBatch is how many objects are added under one hold of the index.
const scanBatch = 256

// scan fills the index with what is on disk, oldest first. Requests are served while it runs: what they ask for and the
// index does not know yet is found by its path.
func (d *Disk) scan(ctx context.Context) {
	began := d.now()
	found, err := d.list(ctx)
	if err != nil {
		d.diskFailed(err)
	}
	slices.SortFunc(found, func(a, b scannedObject) int { return cmp.Compare(a.used, b.used) })
	for batch := range slices.Chunk(found, scanBatch) {
		if ctx.Err() != nil {
			return
		}
		d.index.addScanned(batch)
	}
	d.index.endScan()
	d.discard(d.index.shrink())
	d.scanTook.Store(int64(d.now().Sub(began)))
	close(d.scanDone)
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
	for range max(2, runtime.GOMAXPROCS(0)) { // reading a directory waits for the disk most of the time
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
		d.listScope(ctx, scope.Name(), dirs)
	}
	close(dirs)
	workers.Wait()
	return found, errors.Join(failures...)
}

// scanDir is a directory that holds objects of one scope.
type scanDir struct {
	path  string
	scope uint32
}

func (d *Disk) listScope(ctx context.Context, name string, dirs chan<- scanDir) {
	path := filepath.Join(d.objects, name)
	parts, err := d.files.ReadDir(path)
	if err != nil {
		d.diskFailed(err)
		return
	}
	scope := d.scopeByDir(name)
	for _, part := range parts {
		if ctx.Err() != nil {
			return
		}
		dirs <- scanDir{filepath.Join(path, part.Name()), scope}
	}
}

// listDir lists one directory. What is no object there is left alone.
func (d *Disk) listDir(dir scanDir) ([]scannedObject, error) {
	files, err := d.files.ReadDir(dir.path)
	if errors.Is(err, fs.ErrNotExist) { // purged meanwhile
		return nil, nil
	}
	found := make([]scannedObject, 0, len(files))
	for _, file := range files {
		o := scannedObject{id: objectID{scope: dir.scope}}
		if len(file.Name()) != hex.EncodedLen(len(o.id.name)) {
			continue
		}
		if _, err := hex.Decode(o.id.name[:], []byte(file.Name())); err != nil {
			continue
		}
		info, err := file.Info()
		if err != nil { // evicted meanwhile
			continue
		}
		o.size, o.used = charge(info.Size()), info.ModTime().Unix()
		found = append(found, o)
	}
	return found, err
}
