package cache

import (
	"errors"
	"io/fs"
	"sync"
)

// leftovers are files that are nobody's any more and could not be removed. They take room that no budget knows of, so they
// are tried again once the disk works.
type leftovers struct {
	mu      sync.Mutex
	objects map[objectID]struct{} // guarded by mu, as the next
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

func (l *leftovers) addPath(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paths = append(l.paths, path)
}

// take empties the list.
func (l *leftovers) take() (objects map[objectID]struct{}, paths []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	objects, paths = l.objects, l.paths
	l.objects, l.paths = nil, nil
	return objects, paths
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
	objects, paths := d.leftovers.take()
	for _, path := range paths {
		if d.files.RemoveAll(path) != nil {
			d.leftovers.addPath(path)
		}
	}
	for id := range objects {
		d.publishing.Lock()
		if !d.index.has(id) {
			if err := d.files.Remove(d.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				d.leftovers.addObjects(id)
			}
		}
		d.publishing.Unlock()
	}
}
