package boltfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrReplaced: the file's name is no more that of the file which is open. What is written to that one is gone when it is closed.
var ErrReplaced = errors.New("the file was removed or replaced while it is in use; put it back, or restart to go on with what is there now")

// Place is the name of an open file. Whoever has the file open need not notice that its name is gone, or another file's.
type Place struct {
	path string
	file *os.File
}

// SyncName makes the name of a file survive a power cut, and that of its directory, which may be as new. Of what is acknowledged
// before that, nothing need be found again.
func SyncName(path string) error {
	dir := filepath.Dir(path)
	return errors.Join(SyncDir(dir), SyncDir(filepath.Dir(dir)))
}

// PlaceOf notes that a file is open under a name.
func PlaceOf(path string, file *os.File) Place { return Place{path, file} }

// Check returns ErrReplaced if the name is another file's by now, or nobody's. It takes two system calls.
func (p Place) Check() error {
	named, err := os.Stat(p.path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrReplaced, err)
	}
	open, err := p.file.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(named, open) {
		return fmt.Errorf("%w: %s", ErrReplaced, p.path)
	}
	return nil
}
