package cache

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
)

// leftovers are files that are nobody's any more and could not be removed. They take room that no budget knows of, so they
// are tried again once the disk works.
type leftovers struct {
	mu      sync.Mutex
	objects map[objectID]struct{} // guarded by mu, as all below
	scopes  map[uint32]struct{}   // purged, with objects that the scan had not come to
	paths   []string
}

func (l *leftovers) addObjects(ids ...objectID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.objects == nil {
		l.objects = map[objectID]struct{}{}
	}
	for _, id := range ids {
		l.objects[id] = struct{}{}
	}
}

func (l *leftovers) addScope(scope uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.scopes == nil {
		l.scopes = map[uint32]struct{}{}
	}
	l.scopes[scope] = struct{}{}
}

func (l *leftovers) addPath(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paths = append(l.paths, path)
}

// take empties the list.
func (l *leftovers) take() (objects map[objectID]struct{}, scopes map[uint32]struct{}, paths []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	objects, scopes, paths = l.objects, l.scopes, l.paths
	l.objects, l.scopes, l.paths = nil, nil, nil
	return objects, scopes, paths
}

// removeFile removes the file of an object. d.publishing is held.
func (d *Disk) removeFile(id objectID) {
	if err := d.files.Remove(d.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.diskFailed(err)
		d.leftovers.addObjects(id)
	}
}

// removeTemp removes the file of a fill.
func (d *Disk) removeTemp(path string) {
	if err := d.files.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.leftovers.addPath(path)
	}
}

// removeAll removes what is unfinished, or was purged.
func (d *Disk) removeAll(path string) {
	if err := d.files.RemoveAll(path); err != nil {
		d.diskFailed(err)
		d.leftovers.addPath(path)
	}
}

// removeLeftovers tries again to remove what could not be removed. What still cannot is for the next time.
func (d *Disk) removeLeftovers() {
	objects, scopes, paths := d.leftovers.take()
	for _, path := range paths {
		if d.files.RemoveAll(path) != nil {
			d.leftovers.addPath(path)
		}
	}
	for id := range objects {
		d.removeLeftover(id)
	}
	for scope := range scopes {
		if err := d.sweep(scope); err != nil {
			d.leftovers.addScope(scope)
		}
	}
}

// removeLeftover removes the file of an object, unless it was stored again.
func (d *Disk) removeLeftover(id objectID) {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	if d.isClosed() || d.index.has(id) {
		return
	}
	if err := d.files.Remove(d.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.leftovers.addObjects(id)
	}
}

// sweep removes the files of a purged scope that the index does not know.
func (d *Disk) sweep(scope uint32) error {
	path := d.scopePath(scope)
	parts, err := d.files.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, part := range parts {
		found, err := d.listDir(scanDir{filepath.Join(path, part.Name()), part.Name(), scope})
		errs = append(errs, err)
		for _, o := range found {
			d.removeLeftover(o.id)
		}
	}
	return errors.Join(errs...)
}
