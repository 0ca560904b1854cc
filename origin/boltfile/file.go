// Package boltfile keeps a bbolt database in a file that may be damaged.
//
// bbolt maps its file into memory and trusts it: a page that is not what it should be is a panic, and one beyond the end
// of a torn file a memory fault that ends the process. An edge must start whatever a crash or a full disk left behind. So
// the structure of a file is verified before bbolt works with it, a damaged file is moved aside, and what goes wrong later
// comes back as an error.
package boltfile

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// The errors callers tell apart.
var (
	// ErrLocked: another process has the file open.
	ErrLocked = errors.New("the file is in use by another process")
	// ErrNewer: a later release of this program wrote the file.
	ErrNewer = errors.New("the file was written by a later release; use that release, or remove the file")
	// ErrDamaged: the file's content is not what was written.
	ErrDamaged = errors.New("the file is damaged")
)

// Options say which file to open, and how.
type Options struct {
	// Path is the file's. It is made, with mode 0600, if it is not there; its directory must be.
	Path string
	// Format is the layout of what the caller keeps, which reads all lower ones. It is stamped on the file; a file with a
	// higher one is refused.
	Format int
	// Report is told that a damaged file was moved aside. Nil: nobody is.
	Report func(error)
	// Bolt are further options of bbolt. OpenFile is not used, and Timeout is one second if it is zero.
	Bolt bbolt.Options
}

// File is an open database. Its methods may be called from any goroutine.
type File struct {
	db     *bbolt.DB
	file   *os.File
	place  Place
	broken atomic.Pointer[error]
}

// Where the format is stamped.
var (
	stampBucket = []byte("capgo-edge")
	stampKey    = []byte("format")
)

// DamagedSuffix is appended to the name of a damaged file that was moved aside. One is kept, the newest.
const DamagedSuffix = ".damaged"

// lockTimeout is how long Open waits for another process to let go of the file. A restart may overlap a little.
const lockTimeout = time.Second

// Open opens the file. If it is damaged, it is moved aside and a new one begun.
func Open(o Options) (*File, error) {
	if o.Bolt.Timeout == 0 {
		o.Bolt.Timeout = lockTimeout
	}
	f, err := openSound(&o)
	if !errors.Is(err, ErrDamaged) {
		return f, err
	}
	aside := o.Path + DamagedSuffix
	if rename := os.Rename(o.Path, aside); rename != nil {
		return nil, fmt.Errorf("%w, and it cannot be moved aside: %w", err, rename)
	}
	if o.Report != nil {
		o.Report(fmt.Errorf("%w; moved to %s, and a new one begun", err, aside))
	}
	return openSound(&o)
}

func openSound(o *Options) (*File, error) {
	err := examine(o)
	if err == nil {
		var f *File
		if f, err = open(o); err == nil {
			return f, nil
		}
	}
	return nil, fmt.Errorf("opening %s: %w", o.Path, classify(err))
}

// examine looks for damage before bbolt works with the file. The shared lock, which bbolt takes for readers, keeps writers
// of other processes away meanwhile: their work in progress would look like damage.
func examine(o *Options) (err error) {
	if info, err := os.Stat(o.Path); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil
	}
	var file *os.File
	var db *bbolt.DB
	defer func() {
		if db != nil {
			err = errors.Join(err, db.Close())
		} else if file != nil {
			unlock(file)
			_ = file.Close() // twice is no harm
		}
	}()
	options := bbolt.Options{ReadOnly: true, Timeout: o.Bolt.Timeout}
	options.OpenFile = func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
		file, err = os.OpenFile(name, flag, mode)
		return file, err
	}
	err = guard(func() (err error) {
		db, err = bbolt.Open(o.Path, 0o600, &options)
		return err
	})
	if err != nil {
		return err
	}
	return verify(file, int64(db.Info().PageSize))
}

func open(o *Options) (*File, error) {
	f := new(File)
	bolt := o.Bolt
	bolt.OpenFile = func(name string, flag int, mode os.FileMode) (file *os.File, err error) {
		f.file, err = os.OpenFile(name, flag, mode)
		return f.file, err
	}
	err := guard(func() (err error) {
		f.db, err = bbolt.Open(o.Path, 0o600, &bolt)
		return err
	})
	if err == nil {
		f.place = PlaceOf(o.Path, f.file)
		err = f.stamp(o.Format)
	}
	if err == nil {
		err = SyncName(o.Path)
	}
	if err != nil {
		f.abandon()
		return nil, err
	}
	return f, nil
}

// classify makes ErrDamaged of what the system did not refuse: then it was the content that bbolt stumbled over.
func classify(err error) error {
	if errors.Is(err, berrors.ErrTimeout) {
		return ErrLocked
	}
	if errors.Is(err, berrors.ErrVersionMismatch) {
		return ErrNewer
	}
	_, isPath := errors.AsType[*fs.PathError](err)
	_, isCall := errors.AsType[*os.SyscallError](err)
	_, isErrno := errors.AsType[syscall.Errno](err)
	if isPath || isCall || isErrno || errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// stamp writes the format into a new file, and refuses one with a higher.
func (f *File) stamp(format int) error {
	written, others := "", false
	err := f.View(func(tx *bbolt.Tx) (err error) {
		if b := tx.Bucket(stampBucket); b != nil {
			written = string(b.Get(stampKey))
		}
		return tx.ForEach(func([]byte, *bbolt.Bucket) error { others = true; return nil })
	})
	switch {
	case err != nil || written == stampOf(format):
		return err
	case others:
		n := 0
		if _, err := fmt.Sscanf(written, "%d ", &n); err != nil || written != stampOf(n) {
			return fmt.Errorf("the stamp of its format is %q", written)
		}
		if n > format {
			return ErrNewer
		}
	}
	return f.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(stampBucket)
		if err != nil {
			return err
		}
		return b.Put(stampKey, []byte(stampOf(format)))
	})
}

// stampOf is the stamp of a format. Its checksum tells a later release's from a damaged one.
func stampOf(format int) string {
	text := strconv.Itoa(format)
	return fmt.Sprintf("%s %08x", text, crc32.ChecksumIEEE([]byte(text)))
}

// Update runs a transaction that writes. When it returns nil, all of it is on disk; else nothing is, or all. A file that is no
// longer where it was opened is not written to: it returns ErrReplaced.
func (f *File) Update(write func(*bbolt.Tx) error) error {
	if err := f.place.Check(); err != nil {
		return err
	}
	return f.run(func() error { return f.db.Update(write) })
}

// View runs a transaction that reads.
func (f *File) View(read func(*bbolt.Tx) error) error {
	return f.run(func() error { return f.db.View(read) })
}

// run lets no panic out. Behind one, bbolt's locks may be held for good, so the database is not touched again.
func (f *File) run(transaction func() error) error {
	if broken := f.broken.Load(); broken != nil {
		return *broken
	}
	err := guard(transaction)
	if errors.Is(err, ErrDamaged) {
		f.broken.Store(&err)
	}
	return err
}

// Close closes the file, behind the transactions that run.
func (f *File) Close() error {
	if f.broken.Load() == nil {
		return guard(f.db.Close)
	}
	f.abandon()
	return nil
}

// abandon gives the file up, without bbolt's help if that is stuck. Then its mapping stays, for pages may be in use.
func (f *File) abandon() {
	if f.db != nil && f.broken.Load() == nil {
		_ = guard(f.db.Close)
	}
	if f.file != nil {
		unlock(f.file)
		_ = f.file.Close() // twice is no harm
	}
}

// guard runs f and turns a panic or a memory fault in it into an error.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return f()
}
