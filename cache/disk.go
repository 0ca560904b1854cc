package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Disk is the object store: whole objects in files, verified before they get a name, within a budget of bytes. What it
// does not hold it fetches once, however many ask, and hands out while it comes in.
type Disk struct {
	files     Files
	objects   string // directory of stored objects
	fillsPath string // directory of unfinished ones
	index     *index
	small     *smallObjects
	minFree   atomic.Int64
	report    func(error)

	reportDamage func(Key, error)
	now          func() time.Time

	ctx     context.Context // of the store's own work; ends with Close
	cancel  context.CancelFunc
	work    sync.WaitGroup
	running sync.WaitGroup // fills

	scanDone chan struct{}

	scopesMu sync.RWMutex
	scopes   map[string]uint32 // guarded by scopesMu, as the next; by directory name
	dirs     []string          // directory names, by number

	// publishing is held while a file gets its name or loses it, so that the index and the directory change together. It is
	// taken before mu, index.mu and fill.mu; mu before fill.mu.
	publishing sync.Mutex

	mu       sync.Mutex
	fills    map[objectID]*fill                      // guarded by mu, as all below
	failures *simplelru.LRU[objectID, objectFailure] // why an object is not asked for again just now
	closed   bool

	fillNumber atomic.Uint64
	leftovers  leftovers
	health     health
	counts     diskCounters
}

// DiskOptions configure a Disk.
type DiskOptions struct {
	Dir *Dir
	// MaxBytes is the budget of stored objects and running fills.
	MaxBytes int64
	// MinFree is how many bytes of the disk are left to others. A fill that would go below is not stored.
	MinFree int64
	// Memory is the budget of small objects in memory.
	Memory int64
	// Report is told when the disk fails and, with nil, when it works again. It may be nil.
	Report func(error)
	// ReportDamage is told of a stored object that cannot be read, or is not what was stored. It is dropped and fetched
	// anew. It may be nil.
	ReportDamage func(key Key, err error)
	// Files stands for the file system in tests. Default: that of the machine.
	Files Files
}

// DigestOf says what a digest covers.
type DigestOf uint8

// What a digest covers.
const (
	NoDigest      DigestOf = iota // nothing is known of the content
	StoredDigest                  // the object's bytes
	DecodedDigest                 // what Expect.New's verifier makes of them
)

// Expect says what an object must be. A stored object that was verified as another content is not served, but fetched
// anew; where nothing is known, whatever is stored is right.
type Expect struct {
	Covers DigestOf
	SHA256 [sha256.Size]byte
	// Size is for New, which may need to know what size was told; 0 if none was.
	Size int64
	// New makes what verifies a DecodedDigest.
	New func(e *Expect) Verifier
}

// Verifier judges an object.
type Verifier interface {
	Write(p []byte) (int, error)
	// Verify says why the object is not the one expected. It is called once, at the end, whatever came before.
	Verify() error
}

// same reports whether two expectations are of the same content.
func (e *Expect) same(other *Expect) bool {
	return e.Covers == other.Covers && e.SHA256 == other.SHA256
}

// admits reports whether content that was verified as v may be served.
func (e *Expect) admits(v *Expect) bool { return e.Covers == NoDigest || e.same(v) }

// verifier is what judges the decoded content, or nil.
func (e *Expect) verifier() Verifier {
	if e.Covers != DecodedDigest {
		return nil
	}
	return e.New(e)
}

// judge says why the bytes with the given digest are not the ones expected.
func (e *Expect) judge(digest []byte, v Verifier) error {
	if e.Covers == StoredDigest && !bytes.Equal(digest, e.SHA256[:]) {
		return fmt.Errorf("%w: its SHA-256 is %x, not %x", ErrMismatch, digest, e.SHA256)
	}
	if v != nil {
		if err := v.Verify(); err != nil {
			return fmt.Errorf("%w: %w", ErrMismatch, err)
		}
	}
	return nil
}

// Origin is where an object is fetched from. Its methods outlive the request it was made for.
type Origin interface {
	// Get opens the object from offset on, for length bytes at the most; 0 for all. With a pin it must still be the object
	// described there. The error is ErrNotFound if there is none. At or behind the end it is no error, but no bytes.
	Get(ctx context.Context, offset, length int64, pin Info) (*Part, error)
	// Report is told how a fill ended, nil for well. ErrNotStorable is no fault of the origin.
	Report(err error)
}

// Part is an open object, from some offset on.
type Part struct {
	Info
	Body io.ReadCloser
}

// Request asks for an object.
type Request struct {
	Key    Key
	Expect Expect
	Origin Origin
	// Offset and Length tell which part is going to be read, as far as is known. Length 0 is all to the end.
	Offset, Length int64
}

// Access says how an object was had.
type Access uint8

// The ways.
const (
	Hit       Access = iota // stored
	HitMemory               // small, and in memory
	Filled                  // this request had it fetched
	Collapsed               // another one did, just before
	Bypassed                // read from the origin for this request alone: the disk cannot take it
	accesses
)

func (a Access) String() string {
	return [...]string{"hit", "memory", "miss", "collapsed", "bypass"}[a]
}

// What Open answers besides ErrNotFound; any other error means that the origin could not be asked.
var (
	// ErrMismatch says that the origin's object is not the one expected.
	ErrMismatch = errors.New("object is not the one expected")
	// ErrChanged says that the origin's object changed while it was read.
	ErrChanged = errors.New("object changed while it was read")
	// ErrClosed says that the store is closed.
	ErrClosed = errors.New("the object store is closed")

	// ErrNotStorable says that an object can be had, but not kept. Origin.Report is told of it; readers get the object.
	ErrNotStorable = errors.New("the object cannot be kept")
	errAbandoned   = errors.New("nobody waits for the object any more")
)

// objectFailure remembers why the last fill failed.
type objectFailure struct {
	until  time.Time
	count  int
	expect Expect
	err    error
}

// tells reports whether a fill for expect would fail likewise. That the object is not the one expected says nothing of
// another expectation: a release that was made again has a new digest, and a mismatch in between.
func (f *objectFailure) tells(expect *Expect, now time.Time) bool {
	return now.Before(f.until) && (!errors.Is(f.err, ErrMismatch) || f.expect.same(expect))
}

// How long an object that could not be had is not asked for again. A mismatch is somebody's mistake, which takes its time
// to be put right; half to one and a half of the time, doubled with each failure.
const (
	notFoundFor    = 2 * time.Second
	failedFor      = time.Second
	mismatchFor    = 2 * time.Second
	mismatchAtMost = 2 * time.Minute
	notStorableFor = time.Second
	maxFailures    = 1 << 16
	touchEvery     = time.Hour // how often a file that is used is marked so
	smallObject    = 256 << 10 // up to this size objects are kept in memory too
)

// OpenDisk opens the store in a directory. It returns at once and finds out behind the answers what is stored.
func OpenDisk(o DiskOptions) (*Disk, error) {
	d := &Disk{
		files: o.Files, objects: filepath.Join(o.Dir.path, objectsDir), fillsPath: filepath.Join(o.Dir.path, fillsDir),
		index: newIndex(o.MaxBytes), small: newSmallObjects(o.Memory), report: o.Report, reportDamage: o.ReportDamage, now: time.Now,
		scanDone: make(chan struct{}), scopes: map[string]uint32{}, fills: map[objectID]*fill{},
	}
	if d.files == nil {
		d.files = osFiles{}
	}
	if d.report == nil {
		d.report = func(error) {}
	}
	if d.reportDamage == nil {
		d.reportDamage = func(Key, error) {}
	}
	d.minFree.Store(o.MinFree)
	var err error
	if d.failures, err = simplelru.NewLRU[objectID, objectFailure](maxFailures, nil); err != nil {
		return nil, err
	}
	stale, err := d.files.ReadDir(d.fillsPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := d.makeDirs(); err != nil {
		return nil, err
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.work.Go(func() { d.scan(d.ctx, stale) })
	d.work.Go(func() { d.watchHealth(d.ctx) })
	return d, nil
}

func (d *Disk) makeDirs() error {
	return errors.Join(d.files.MkdirAll(d.objects), d.files.MkdirAll(d.fillsPath))
}

// Retune changes the budgets.
func (d *Disk) Retune(maxBytes, minFree, memory int64) {
	d.minFree.Store(minFree)
	d.small.retune(memory)
	d.discard(d.index.retune(maxBytes))
}

// Close ends the store. Fills that somebody reads go on until the reader leaves, without being stored; everything else has
// ended when it returns, so that the directory may be opened by another.
func (d *Disk) Close() {
	d.mu.Lock()
	d.closed = true
	fills := make([]*fill, 0, len(d.fills))
	for _, f := range d.fills {
		fills = append(fills, f)
	}
	d.mu.Unlock()
	for _, f := range fills {
		f.orphan()
	}
	d.publishing.Lock() // whoever publishes now has done so
	d.cancel()
	d.publishing.Unlock()
	d.work.Wait()
}

// Wait returns when no fill runs any more.
func (d *Disk) Wait() { d.running.Wait() }

// id returns what stands for a key.
func (d *Disk) id(key Key) objectID {
	sum := sha256.Sum256([]byte(key.Name))
	return objectID{d.scopeNumber(key.Scope), [16]byte(sum[:16])}
}

func (d *Disk) scopeNumber(scope string) uint32 { return d.scopeByDir(hashName(scope)) }

func (d *Disk) scopeByDir(dir string) uint32 {
	d.scopesMu.RLock()
	n, ok := d.scopes[dir]
	d.scopesMu.RUnlock()
	if ok {
		return n
	}
	d.scopesMu.Lock()
	defer d.scopesMu.Unlock()
	if n, ok := d.scopes[dir]; ok {
		return n
	}
	n = uint32(len(d.dirs))
	d.scopes[dir] = n
	d.dirs = append(d.dirs, dir)
	return n
}

// scopePath is where the objects of a scope are stored.
func (d *Disk) scopePath(scope uint32) string {
	d.scopesMu.RLock()
	defer d.scopesMu.RUnlock()
	return filepath.Join(d.objects, d.dirs[scope])
}

// path is where the object is stored.
func (d *Disk) path(id objectID) string { return objectPath(d.scopePath(id.scope), id) }

// Open opens an object: from memory, from disk, or from a fill that it joins or starts. The context is that of the reader
// alone; a fill goes on without it.
func (d *Disk) Open(ctx context.Context, r *Request) (*Object, Access, error) {
	o, access, err := d.open(ctx, r)
	if err == nil {
		d.counts.access[access].Add(1)
	}
	return o, access, err
}

func (d *Disk) open(ctx context.Context, r *Request) (*Object, Access, error) {
	id := d.id(r.Key)
	for {
		if d.isClosed() {
			return nil, 0, ErrClosed
		}
		if b, due := d.small.get(id, &r.Expect, d.now()); b != nil {
			if due {
				d.touchSmall(id)
			}
			return &Object{d: d, ctx: ctx, request: *r, id: id, info: b.record.info(), mem: b.data}, HitMemory, nil
		}
		o, err := d.openStored(ctx, id, r)
		if o != nil || err != nil {
			return o, Hit, err
		}
		f, access, err := d.join(ctx, id, r)
		switch {
		case errors.Is(err, ErrNotStorable):
			return d.openBypass(ctx, id, r)
		case err != nil:
			return nil, access, err
		case f == nil: // it was stored meanwhile
			continue
		}
		o = &Object{d: d, ctx: ctx, request: *r, id: id, fill: f}
		if o.info, err = f.awaitInfo(ctx); err == nil {
			return o, access, nil
		}
		_ = o.Close() // closes nothing yet
		if errors.Is(err, ErrNotStorable) {
			return d.openBypass(ctx, id, r)
		}
		return nil, access, err
	}
}

// openStored opens the object if it is stored. It returns nil if it is not, or cannot be read: then it is fetched.
func (d *Disk) openStored(ctx context.Context, id objectID, r *Request) (*Object, error) {
	e, file, err := d.openEntry(id)
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, ErrClosed) {
		return nil, err // which says nothing about the object
	}
	if err != nil {
		d.missing(r, id, e, err)
	}
	if file == nil {
		return nil, nil //nolint:nilnil // neither stored nor failed
	}
	record, err := e.recordIn(file, r.Key)
	if err != nil || !record.admitted(&r.Expect) {
		d.drop(r, id, e, err)
		return nil, file.Close()
	}
	o := &Object{d: d, ctx: ctx, request: *r, id: id, info: record.info(), file: file, entry: e}
	if o.info.Size <= smallObject {
		if err := o.loadSmall(record); err != nil {
			d.drop(r, id, e, err)
			return nil, file.Close()
		}
	}
	d.touch(id, e, d.path(id))
	return o, nil
}

// openEntry opens the file of an object with the entry that is of this file and no other. An object may be replaced
// between the two, but leaves the index before its file does: an entry that is still there is that of the file.
func (d *Disk) openEntry(id objectID) (*storedObject, File, error) {
	for {
		e, maybe := d.index.lookup(id)
		if e == nil && !maybe {
			return nil, nil, nil
		}
		file, err := d.files.Open(d.path(id))
		if err != nil {
			return e, nil, err
		}
		if d.isClosed() { // the directory may be another's by now
			return nil, nil, errors.Join(ErrClosed, file.Close())
		}
		if e == nil {
			e, err = d.adopt(id, file)
		}
		if err != nil {
			return nil, nil, errors.Join(err, file.Close())
		}
		if e != nil && d.index.is(id, e) {
			return e, file, nil
		}
		_ = file.Close() // only read from
	}
}

// adopt makes the entry of a file that the scan has not come to. It returns nil if the file is none any more.
func (d *Disk) adopt(id objectID, file File) (*storedObject, error) {
	stat, err := file.Stat()
	if err != nil {
		return nil, err
	}
	e := &storedObject{size: charge(stat.Size()), used: stat.ModTime().Unix()}
	d.publishing.Lock()
	defer d.publishing.Unlock()
	if !d.index.adopt(id, e) {
		return nil, nil //nolint:nilnil // the scan, or another request, was quicker
	}
	return e, nil
}

// missing notes that a file could not be opened. One that the index knows and is gone was taken away by somebody else.
func (d *Disk) missing(r *Request, id objectID, e *storedObject, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		if e != nil {
			d.index.removeEntry(id, e)
		}
		return
	}
	d.drop(r, id, e, err)
}

// drop takes an object out of the store; err says why, unless it is only outdated.
func (d *Disk) drop(r *Request, id objectID, e *storedObject, err error) {
	if err != nil {
		d.counts.damaged.Add(1)
		d.reportDamage(r.Key, err)
	}
	if err != nil && !errors.Is(err, errDamaged) {
		d.diskFailed(fmt.Errorf("reading a stored object: %w", err))
	}
	d.publishing.Lock()
	defer d.publishing.Unlock()
	if d.isClosed() || !d.index.removeEntry(id, e) {
		return // it was replaced already
	}
	d.small.remove(id)
	d.removeFile(id)
}

// discard removes the files of what has fallen out of the index.
func (d *Disk) discard(victims []objectID) {
	for _, id := range victims {
		d.publishing.Lock()
		if !d.index.has(id) && !d.isClosed() { // it may have been stored again
			d.small.remove(id)
			d.removeFile(id)
			d.counts.evicted.Add(1)
		}
		d.publishing.Unlock()
	}
}

func (d *Disk) isClosed() bool { return d.ctx.Err() != nil }

// touch marks a stored object as used, on disk now and then, so that a restart knows what is old.
func (d *Disk) touch(id objectID, e *storedObject, path string) {
	now := d.now()
	d.index.mu.Lock()
	due := now.Sub(time.Unix(e.used, 0)) > touchEvery
	if due {
		e.used = now.Unix()
	}
	d.index.mu.Unlock()
	if due {
		if err := d.files.Touch(path, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.diskFailed(err)
		}
	}
}

// Stored reports whether the object is stored, and the one expected.
func (d *Disk) Stored(r *Request) bool {
	id := d.id(r.Key)
	o, err := d.openStored(context.Background(), id, r)
	if o == nil || err != nil {
		return false
	}
	return o.Close() == nil
}

// Fetch has the object stored, without reading it. It returns when that is done.
func (d *Disk) Fetch(ctx context.Context, r *Request) error {
	id := d.id(r.Key)
	for {
		o, err := d.openStored(ctx, id, r)
		if err != nil {
			return err
		}
		if o != nil {
			return o.Close()
		}
		f, _, err := d.join(ctx, id, r)
		if err != nil {
			return err
		}
		if f == nil { // it was stored meanwhile
			continue
		}
		err = f.awaitEnd(ctx)
		f.leave()
		if err == nil && !f.stored() {
			err = ErrNotStorable
		}
		return err
	}
}

// Prefer has the store keep these objects in preference to others. It replaces what was said for the group before.
func (d *Disk) Prefer(group Key, keys []Key) {
	ids := make([]objectID, len(keys))
	for i, key := range keys {
		ids[i] = d.id(key)
	}
	d.index.prefer(group, ids)
}

// join returns the running fill of an object, or starts one. The caller must leave it. It returns no fill if the object
// was stored meanwhile.
func (d *Disk) join(ctx context.Context, id objectID, r *Request) (*fill, Access, error) {
	for {
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			return nil, 0, ErrClosed
		}
		f := d.fills[id]
		switch {
		case f != nil && r.Expect.admits(&f.expect) && !f.isDead():
			f.enter()
			d.mu.Unlock()
			return f, Collapsed, nil
		case f != nil: // of another content under the same name, or about to be gone: one after the other
			d.mu.Unlock()
			select {
			case <-f.ended:
			case <-ctx.Done():
				return nil, 0, context.Cause(ctx)
			}
			continue
		case d.index.has(id):
			d.mu.Unlock()
			return nil, Hit, nil
		}
		if last, ok := d.failures.Get(id); ok && last.tells(&r.Expect, d.now()) {
			d.mu.Unlock()
			return nil, 0, last.err
		}
		f = newFill(d, id, r)
		f.enter()
		d.fills[id] = f
		d.counts.fills.Add(1)
		d.running.Go(f.run)
		d.mu.Unlock()
		return f, Filled, nil
	}
}

// ended notes how a fill ended. From now on the object is found in the index, or asked for anew.
func (d *Disk) ended(f *fill, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fills[f.id] != f { // purged, or abandoned
		return
	}
	delete(d.fills, f.id)
	switch {
	case err == nil:
		d.failures.Remove(f.id)
	case errors.Is(err, errAbandoned), errors.Is(err, ErrClosed):
	default:
		last, _ := d.failures.Get(f.id)
		next := objectFailure{count: last.count + 1, expect: f.expect, err: err}
		next.until = d.now().Add(retryAfter(err, last.count))
		d.dropFailuresLocked()
		d.failures.Add(f.id, next)
	}
}

// dropFailuresLocked forgets those that tell nothing any more, as far as they were not asked for of late: an error may hold a
// long text. How often an object was not the right one counts for the next time.
func (d *Disk) dropFailuresLocked() {
	for {
		id, f, ok := d.failures.GetOldest()
		until := f.until
		if errors.Is(f.err, ErrMismatch) {
			until = until.Add(mismatchAtMost)
		}
		if !ok || d.now().Before(until) {
			return
		}
		d.failures.Remove(id)
	}
}

func retryAfter(err error, failures int) time.Duration {
	switch {
	case errors.Is(err, ErrNotFound):
		return notFoundFor
	case errors.Is(err, ErrNotStorable):
		return notStorableFor
	case errors.Is(err, ErrMismatch):
		return jitter(min(mismatchFor<<min(failures, 10), mismatchAtMost))
	default:
		return failedFor
	}
}

// Purge drops what is stored of a scope, or one object of it if name is not empty. Fills that run go on for those who
// read them, but are not stored. What failed is asked for again at once.
func (d *Disk) Purge(scope, name string) (objects int, bytes int64) {
	number, id := d.scopeNumber(scope), d.id(Key{scope, name})
	d.forget(func(other objectID) bool { return other.scope == number && (name == "" || other == id) })
	if name != "" {
		return d.purgeOne(id)
	}
	objects, bytes, trash := d.purgeScope(number)
	if trash != "" {
		d.removeAll(trash)
	}
	return objects, bytes
}

// forget takes away the fills and failures of some objects.
func (d *Disk) forget(of func(id objectID) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, f := range d.fills {
		if of(id) {
			f.orphan()
			delete(d.fills, id)
		}
	}
	for _, id := range d.failures.Keys() {
		if of(id) {
			d.failures.Remove(id)
		}
	}
}

func (d *Disk) purgeOne(id objectID) (objects int, bytes int64) {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	if d.isClosed() {
		return 0, 0
	}
	d.small.remove(id)
	if e := d.index.remove(id); e != nil {
		objects, bytes = 1, e.size
	}
	d.removeFile(id)
	return objects, bytes
}

// purgeScope moves the directory of a scope away, however many files it has, and returns where to.
func (d *Disk) purgeScope(number uint32) (objects int, bytes int64, trash string) {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	if d.isClosed() {
		return 0, 0, ""
	}
	d.small.clear()
	removed, bytes := d.index.removeScope(number)
	trash = d.newFillPath("purged")
	err := d.files.Rename(d.scopePath(number), trash)
	if err == nil {
		return len(removed), bytes, trash
	}
	if !errors.Is(err, fs.ErrNotExist) {
		d.leftovers.addScope(number)
		d.diskFailed(err)
	}
	return len(removed), bytes, ""
}

// newFillPath returns the path of something unfinished, which no other store has used in this directory.
func (d *Disk) newFillPath(name string) string {
	return filepath.Join(d.fillsPath, fmt.Sprintf("%s-%d-%d", name, d.now().UnixNano(), d.fillNumber.Add(1)))
}
