package storetest

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
)

// Operation is something done to a file system.
type Operation string

// The operations that can be made to fail.
const (
	Create Operation = "create"
	Open   Operation = "open"
	ReadAt Operation = "read"
	Write  Operation = "write"
	Sync   Operation = "sync"
	Rename Operation = "rename"
	Remove Operation = "remove"
	Mkdir  Operation = "mkdir"
	Touch  Operation = "touch"
	List   Operation = "list"
)

// What disks fail with.
var (
	Full     error = syscall.ENOSPC
	ReadOnly error = syscall.EROFS
	Broken   error = syscall.EIO
)

// Files is the file system of the machine, with faults.
type Files struct {
	mu     sync.Mutex
	faults map[Operation]error // guarded by mu, as all below
	after  map[Operation]int
	free   int64
	quick  bool
}

// NewFiles returns a Files without faults.
func NewFiles() *Files {
	return &Files{faults: map[Operation]error{}, after: map[Operation]int{}, free: 1 << 50}
}

// Fail has the operations fail with err; nil has them work again.
func (f *Files) Fail(err error, operations ...Operation) { f.FailAfter(0, err, operations...) }

// FailAfter has each of the operations fail after it went right n times.
func (f *Files) FailAfter(n int, err error, operations ...Operation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, op := range operations {
		f.faults[op], f.after[op] = err, n
	}
}

// Hurry leaves syncs out, for tests that do not cut the power.
func (f *Files) Hurry() *Files {
	f.quick = true
	return f
}

// SetFree sets how many bytes the disk says are free.
func (f *Files) SetFree(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = n
}

func (f *Files) fault(op Operation, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.faults[op]
	if err == nil {
		return nil
	}
	if f.after[op] > 0 {
		f.after[op]--
		return nil
	}
	return &os.PathError{Op: string(op), Path: path, Err: err}
}

// MkdirAll implements cache.Files.
func (f *Files) MkdirAll(path string) error {
	return errors.Join(f.fault(Mkdir, path), os.MkdirAll(path, 0o700))
}

// Create implements cache.Files.
func (f *Files) Create(path string) (cache.File, error) {
	if err := f.fault(Create, path); err != nil {
		return nil, err
	}
	return f.wrap(os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600))
}

// Open implements cache.Files.
func (f *Files) Open(path string) (cache.File, error) {
	if err := f.fault(Open, path); err != nil {
		return nil, err
	}
	return f.wrap(os.Open(path))
}

func (f *Files) wrap(opened *os.File, err error) (cache.File, error) {
	if err != nil {
		return nil, err
	}
	return &file{opened, f}, nil
}

// Rename implements cache.Files.
func (f *Files) Rename(from, to string) error {
	if err := f.fault(Rename, from); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// Remove implements cache.Files.
func (f *Files) Remove(path string) error {
	if err := f.fault(Remove, path); err != nil {
		return err
	}
	return os.Remove(path)
}

// RemoveAll implements cache.Files.
func (f *Files) RemoveAll(path string) error {
	if err := f.fault(Remove, path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// ReadDir implements cache.Files.
func (f *Files) ReadDir(path string) ([]fs.DirEntry, error) {
	if err := f.fault(List, path); err != nil {
		return nil, err
	}
	return os.ReadDir(path)
}

// Touch implements cache.Files.
func (f *Files) Touch(path string, t time.Time) error {
	if err := f.fault(Touch, path); err != nil {
		return err
	}
	return os.Chtimes(path, t, t)
}

// Free implements cache.Files.
func (f *Files) Free(string) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.free, nil
}

type file struct {
	file  *os.File
	files *Files
}

func (f *file) ReadAt(p []byte, at int64) (int, error) {
	if err := f.files.fault(ReadAt, f.file.Name()); err != nil {
		return 0, err
	}
	return f.file.ReadAt(p, at)
}

func (f *file) Write(p []byte) (int, error) {
	if err := f.files.fault(Write, f.file.Name()); err != nil {
		n, _ := f.file.Write(p[:len(p)/2]) // a disk that fills up takes part of it
		return n, err
	}
	return f.file.Write(p)
}

func (f *file) Sync() error {
	if err := f.files.fault(Sync, f.file.Name()); err != nil {
		return err
	}
	if f.files.quick {
		return nil
	}
	return f.file.Sync()
}

func (f *file) Stat() (fs.FileInfo, error) { return f.file.Stat() }
func (f *file) Close() error               { return f.file.Close() }
