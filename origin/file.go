package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// File is a Store over a directory: manifests and bundles that some other tool puts there, and sites without a network.
//
// Nothing outside the directory can be read, whatever the key and whatever links lie in it (os.Root). The path may be a
// link that is switched to another directory: every Get looks where it leads.
type File struct {
	dir string // absolute

	mu   sync.Mutex
	root *os.Root    // guarded by mu; the directory as it was last seen
	info fs.FileInfo // guarded by mu; of that directory
	seen seenFiles
}

// NewFile returns the store over dir. It does not look at dir yet: a directory that is not there is an origin that is
// down.
func NewFile(dir string) (*File, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &File{dir: abs}, nil
}

// Identity implements Store.
func (f *File) Identity() string { return "file " + f.dir }

// LinkError names a link that leads out of the store's directory.
type LinkError struct {
	Link   string // relative to the directory
	Target string
}

func (e *LinkError) Error() string {
	return fmt.Sprintf("link %s leads out of the origin's directory, to %s; put the file itself there, or a relative link that stays inside", e.Link, e.Target)
}

// Get implements Store.
func (f *File) Get(ctx context.Context, key string, opts GetOptions) (*Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, unavailable("%w", err)
	}
	if !filepath.IsLocal(filepath.FromSlash(key)) || path.Clean(key) != key || strings.IndexByte(key, 0) >= 0 {
		return nil, ErrNotFound // no file is called so
	}
	root, err := f.open()
	if err != nil {
		return nil, unavailable("%w", err)
	}
	file, err := root.OpenFile(filepath.FromSlash(key), os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, f.openError(root, key, err)
	}
	object, err := f.object(file, key, opts)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if opts.HeadOnly {
		object.Body = emptyBody{}
		return object, file.Close()
	}
	return object, nil
}

// open returns the directory the store's path leads to now. A root that is no longer used is closed by its finalizer, as
// other calls may still be reading through it.
func (f *File) open() (*os.Root, error) {
	info, err := os.Stat(f.dir)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.root != nil && os.SameFile(info, f.info) {
		return f.root, nil
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return nil, err
	}
	if info, err = root.Stat("."); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	f.root, f.info = root, info
	return root, nil
}

func (f *File) openError(root *os.Root, key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || isNoFile(err) {
		return ErrNotFound
	}
	if link := escapingLink(root, key); link != nil {
		return unavailable("%w", link)
	}
	return unavailable("%w", err)
}

// isSystemError reports that err came from the operating system.
func isSystemError(err error) bool {
	_, is := errors.AsType[syscall.Errno](err)
	return is
}

// escapingLink finds the link along key that leaves root, which os.Root refuses without naming it.
func escapingLink(root *os.Root, key string) *LinkError {
	for end := 0; end <= len(key); end++ {
		if end < len(key) && key[end] != '/' {
			continue
		}
		part := key[:end]
		info, err := root.Lstat(filepath.FromSlash(part))
		if err != nil {
			return nil
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if _, err := root.Stat(filepath.FromSlash(part)); err == nil || isSystemError(err) {
			continue // os.Root says by itself that a link escapes; what the system says is another matter
		}
		target, err := root.Readlink(filepath.FromSlash(part))
		if err != nil {
			return nil
		}
		return &LinkError{Link: path.Clean(part), Target: target}
	}
	return nil
}

// object judges the conditions and positions the file.
func (f *File) object(file *os.File, key string, opts GetOptions) (*Object, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, unavailable("%w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, ErrNotFound
	}
	o := &Object{Body: file, Size: info.Size(), ETag: fileETag(info), Modified: info.ModTime()}
	unchanged := f.seen.same(key, info)
	switch {
	case opts.IfMatch != "" && opts.IfMatch != o.ETag:
		return nil, ErrChanged
	case opts.IfNoneMatch == o.ETag && unchanged:
		return nil, ErrNotModified
	case opts.Offset > 0 && opts.Offset >= o.Size:
		return nil, ErrRange
	}
	if opts.Offset > 0 {
		if _, err := file.Seek(opts.Offset, io.SeekStart); err != nil {
			return nil, unavailable("%w", err)
		}
	}
	length := o.Size - opts.Offset
	if opts.Length > 0 {
		length = min(length, opts.Length)
	}
	o.Body = exactly(file, length)
	return o, nil
}

// fileETag tells contents apart as web servers do for files, by size and time. It is the same at every site whose copies
// keep their times.
func fileETag(info fs.FileInfo) string {
	return fmt.Sprintf(`"%x-%x"`, info.Size(), info.ModTime().UnixNano())
}

// seenFiles remembers which file a key was last, for a bounded number of keys.
//
// Size and time alone do not prove that a manifest is unchanged: reproducible builds give all files one time, and
// "1.0.1" is as long as "1.0.2". A file that was not seen before is therefore always read again, and so is one that was
// written to since, whatever its time was set to (isSameFile).
type seenFiles struct {
	mu    sync.Mutex
	files map[string]fs.FileInfo // guarded by mu
}

const maxSeenFiles = 4096

// same reports whether key is the very file it was at the last call.
func (s *seenFiles) same(key string, info fs.FileInfo) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.files[key]
	if before == nil && len(s.files) >= maxSeenFiles || s.files == nil {
		s.files = make(map[string]fs.FileInfo)
	}
	s.files[key] = info
	return before != nil && isSameFile(before, info)
}
