package cache

import (
	"io"
	"io/fs"
	"os"
	"time"
)

// Files is the file system as the store uses it. Tests put one in its place that fails as disks do.
type Files interface {
	// MkdirAll makes a directory, readable by its owner alone, and those above it.
	MkdirAll(path string) error
	// Create makes a file to read and write. It must not exist.
	Create(path string) (File, error)
	// Open opens a file to read.
	Open(path string) (File, error)
	Rename(from, to string) error
	Remove(path string) error
	RemoveAll(path string) error
	ReadDir(path string) ([]fs.DirEntry, error)
	// Touch sets the time a file was last used.
	Touch(path string, t time.Time) error
	// Free is how many bytes may still be written where path is.
	Free(path string) (int64, error)
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.Writer
	io.Closer
	Stat() (fs.FileInfo, error)
	Sync() error
}

// osFiles is the file system of the machine.
type osFiles struct{}

func (osFiles) MkdirAll(path string) error { return os.MkdirAll(path, 0o700) }

func (osFiles) Create(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err // not f: a nil *os.File would not be a nil File
	}
	return f, nil
}

func (osFiles) Open(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osFiles) Rename(from, to string) error               { return os.Rename(from, to) }
func (osFiles) Remove(path string) error                   { return os.Remove(path) }
func (osFiles) RemoveAll(path string) error                { return os.RemoveAll(path) }
func (osFiles) ReadDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }
func (osFiles) Touch(path string, t time.Time) error       { return os.Chtimes(path, t, t) }
func (osFiles) Free(path string) (int64, error)            { return freeBytes(path) }
