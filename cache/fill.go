package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// fill fetches one object and hands it out while it comes in. It belongs to no client: it runs under a context of its own,
// and its readers come and go.
//
// What readers see ends before the last chunk until the whole object has been verified, so nobody ever gets a complete
// body that is wrong. A small object is held in memory and written in one go afterwards: a failing disk does not concern
// those who wait for it.
type fill struct {
	d       *Disk
	id      objectID
	key     Key
	expect  Expect
	origin  Origin
	ctx     context.Context //nolint:containedctx // of the fetch, which outlives any call
	cancel  context.CancelCauseFunc
	ended   chan struct{} // closed when all is over
	visible atomic.Int64  // how much readers may have
	total   atomic.Int64  // -1 until known

	outdated atomic.Bool // purged, or the store was closed: not to be stored

	mu        sync.Mutex
	changed   chan struct{} // guarded by mu, as all below; closed and replaced at each change somebody waits for
	waiting   bool
	info      Info
	known     bool // info is
	err       error
	over      bool // no more bytes will come
	finished  bool // the goroutine that runs the fill needs nothing any more
	isStored  bool
	readers   int
	far       int
	mem       []byte // the object, if it is small; like the next set before known is, and then only read
	file      File   // else; closed when the fill is over and nobody reads it
	path      string
	abandonAt *time.Timer

	// Of the goroutine that runs the fill.
	written  int64
	reserved int64
	digest   hash.Hash
	verifier Verifier
}

const (
	// heldBack is how much of an object readers get only after it was verified.
	heldBack = 64 << 10
	// fillBuffer is how much is read from the origin at once.
	fillBuffer = 64 << 10
	// reserveStep is the room that is taken at once for an object of unknown size: most bundles fit, so that what cannot be
	// kept is passed on from the start. Where that shows later, and neither digest nor validators tell that the origin's
	// object is still the same, readers are cut.
	reserveStep = 8 << 20
	// abandonAfter is how long a fill goes on that nobody waits for. One of which half has come is ended.
	abandonAfter = 10 * time.Second
	// farAhead is how far behind a fill's reach a range must begin to be read from the origin by itself, and maxFarReads
	// how many such reads one object may have.
	farAhead    = 4 << 20
	maxFarReads = 4
)

func newFill(d *Disk, id objectID, r *Request) *fill {
	f := &fill{
		d: d, id: id, key: r.Key, expect: r.Expect, origin: r.Origin,
		ended: make(chan struct{}), changed: make(chan struct{}), digest: sha256.New(),
	}
	f.total.Store(-1)
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	f.verifier = r.Expect.verifier()
	return f
}

// run fetches, verifies and stores the object.
func (f *fill) run() {
	defer close(f.ended)
	err := noEOF(safely(f.fetch))
	if err != nil && f.verifier != nil {
		_ = f.verifier.Verify() // it is told of the end in any case
	}
	if cause := context.Cause(f.ctx); err != nil && cause != nil {
		err = cause
	}
	f.release(err)
	if err == nil {
		err = f.store()
	}
	f.d.index.unreserve(f.reserved)
	f.d.ended(f, err)
	f.tell(err)
	f.finish()
	f.cancel(nil)
}

// tell reports how the fill ended.
func (f *fill) tell(err error) {
	switch {
	case err == nil:
		f.origin.Report(nil)
	case errors.Is(err, ErrNotStorable):
		f.origin.Report(err)
	case errors.Is(err, errAbandoned), errors.Is(err, ErrClosed):
	default:
		f.d.counts.failed.Add(1) // first: the others are told apart by what is left
		if errors.Is(err, ErrMismatch) {
			f.d.counts.mismatches.Add(1)
		}
		f.origin.Report(err)
	}
}

// fetch reads the object from the origin. A read that breaks off is resumed once, where the origin's object is the same.
func (f *fill) fetch() error {
	part, err := f.origin.Get(f.ctx, 0, 0, Info{})
	if err != nil {
		return err
	}
	if err := f.begin(part.Info); err != nil {
		return errors.Join(err, part.Body.Close())
	}
	err = f.copy(part)
	if isCut(err) && f.ctx.Err() == nil {
		err = f.resume(err)
	}
	if err != nil {
		return err
	}
	return f.verify()
}

// cutError is a body that broke off.
type cutError struct{ error }

func (e cutError) Unwrap() error { return e.error }

func isCut(err error) bool { return errors.As(err, new(cutError)) }

func (f *fill) resume(cut error) error {
	pin := f.pin()
	if !pin.pinned() && f.expect.Covers == NoDigest {
		return fmt.Errorf("%w; the origin gives neither ETag nor Last-Modified, so it cannot be resumed", cut)
	}
	part, err := f.origin.Get(f.ctx, f.written, 0, pin)
	if err != nil {
		return fmt.Errorf("%w; resuming: %w", cut, err)
	}
	if err := samePart(part.Info, pin); err != nil {
		return errors.Join(fmt.Errorf("%w; resuming: %w", cut, err), part.Body.Close())
	}
	return f.copy(part)
}

func (f *fill) pin() Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.info
}

// samePart says why a further part is not of the object described by pin.
func samePart(info, pin Info) error {
	switch {
	case pin.Size >= 0 && info.Size >= 0 && info.Size != pin.Size,
		info.ETag != pin.ETag,
		pin.ETag == "" && !info.Modified.Equal(pin.Modified):
		return ErrChanged
	}
	return nil
}

// begin makes room for the object and lets readers know what it is.
func (f *fill) begin(info Info) error {
	var mem []byte
	var file File
	if info.Size >= 0 && info.Size <= smallObject {
		mem = make([]byte, info.Size)
	} else {
		var err error
		if file, err = f.create(info.Size); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.info, f.known, f.mem, f.file = info, true, mem, file
	f.total.Store(info.Size)
	f.wakeLocked()
	return nil
}

// create makes the file of the fill, for so many bytes; negative if their number is not known.
func (f *fill) create(size int64) (File, error) {
	if !f.d.healthy() {
		return nil, fmt.Errorf("%w: the disk fails", ErrNotStorable)
	}
	if size < 0 {
		size = reserveStep
	}
	if err := f.reserve(size); err != nil {
		return nil, err
	}
	f.d.publishing.Lock() // so that a store that is closed makes no file
	defer f.d.publishing.Unlock()
	if f.d.isClosed() {
		return nil, fmt.Errorf("%w: %w", ErrNotStorable, ErrClosed)
	}
	path := f.d.newFillPath(f.id.String())
	file, err := f.d.files.Create(path)
	if err != nil {
		return nil, f.diskFailed(err)
	}
	f.mu.Lock()
	f.path = path
	f.mu.Unlock()
	return file, nil
}

func (f *fill) diskFailed(err error) error {
	f.d.diskFailed(fmt.Errorf("storing an object: %w", err))
	return fmt.Errorf("%w: %w", ErrNotStorable, err)
}

// reserve takes n more bytes of the budget, evicting what is dearest least.
func (f *fill) reserve(n int64) error {
	n = charge(n)
	victims, ok := f.d.index.reserve(n)
	if !ok {
		return fmt.Errorf("%w: it is larger than what max_size leaves beside the objects that are being fetched", ErrNotStorable)
	}
	f.reserved += n
	f.d.discard(victims)
	return f.keepFree(n)
}

// keepFree sees to it that min_free bytes stay free on the disk after n more, and evicts stored objects for it. Disks that
// cannot tell are trusted.
func (f *fill) keepFree(n int64) error {
	d := f.d
	free, err := d.files.Free(d.fillsPath)
	if err != nil {
		return nil //nolint:nilerr // the next write will tell
	}
	missing := d.minFree.Load() + n - free
	if missing <= 0 {
		return nil
	}
	if _, bytes, _ := d.index.count(); bytes < missing {
		return fmt.Errorf("%w: %d bytes are free on the disk, and min_free keeps %d of them", ErrNotStorable, free, d.minFree.Load())
	}
	d.discard(d.index.free(missing))
	return nil
}

// copy takes over a body to its end.
func (f *fill) copy(part *Part) (err error) {
	defer func() { _ = part.Body.Close() }()
	buf := make([]byte, fillBuffer)
	for {
		n, err := part.Body.Read(buf)
		if n > 0 {
			if err := f.append(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return f.complete()
		case err != nil:
			return cutError{err}
		}
	}
}

// complete judges the length at the end of a body.
func (f *fill) complete() error {
	total := f.total.Load()
	if total < 0 {
		return nil
	}
	if f.written < total {
		return cutError{fmt.Errorf("the object ends %d bytes early", total-f.written)}
	}
	return nil
}

// append takes over some bytes.
func (f *fill) append(p []byte) error {
	total := f.total.Load()
	if total >= 0 && f.written+int64(len(p)) > total {
		return fmt.Errorf("%w: the origin sends more than the %d bytes it told", ErrMismatch, total)
	}
	f.digest.Write(p)
	if f.verifier != nil {
		if _, err := f.verifier.Write(p); err != nil {
			return fmt.Errorf("%w: %w", ErrMismatch, err)
		}
	}
	if err := f.keep(p); err != nil {
		return err
	}
	f.written += int64(len(p))
	f.d.counts.filled.Add(int64(len(p)))
	end := f.written
	if total >= 0 {
		end = total
	}
	if visible := min(f.written, end-heldBack); visible > f.visible.Load() {
		f.visible.Store(visible)
		f.wake()
	}
	return nil
}

func (f *fill) keep(p []byte) error {
	if f.file == nil {
		copy(f.mem[f.written:], p)
		return nil
	}
	if f.total.Load() < 0 && f.written+int64(len(p)) > f.reserved {
		if err := f.reserve(reserveStep); err != nil {
			return err
		}
	}
	if _, err := f.file.Write(p); err != nil {
		return f.diskFailed(err)
	}
	return nil
}

// verify judges the whole object.
func (f *fill) verify() error {
	v := f.verifier
	f.verifier = nil
	return f.expect.judge(f.digest.Sum(nil), v)
}

// release lets readers have the end of the object, or tells them why there is none.
func (f *fill) release(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over, f.err = true, err
	if err == nil {
		f.info.Size = f.written
		f.total.Store(f.written)
		f.visible.Store(f.written)
	}
	f.wakeLocked()
}

// store writes the object's record and gives it its name.
func (f *fill) store() error {
	if f.outdated.Load() {
		return nil
	}
	record := &objectRecord{
		Format: objectFormat, Scope: f.key.Scope, Name: f.key.Name, Size: f.written,
		ETag: f.info.ETag, Modified: f.info.Modified, SHA256: hex.EncodeToString(f.digest.Sum(nil)), Verified: f.expect.text(), verified: f.expect,
	}
	tail, err := record.encode()
	if err != nil {
		return err
	}
	size := charge(f.written + int64(len(tail)))
	if more := size - f.reserved; more > 0 {
		if err := f.reserve(more); err != nil {
			return f.storeInMemory(record, err)
		}
	}
	if f.mem != nil {
		if err := f.writeSmall(); err != nil {
			return f.storeInMemory(record, err)
		}
	}
	if _, err := f.file.Write(tail); err != nil {
		return f.storeInMemory(record, f.diskFailed(err))
	}
	if err := f.file.Sync(); err != nil {
		return f.storeInMemory(record, f.diskFailed(err))
	}
	victims, err := f.publish(record, size)
	if err != nil {
		return f.storeInMemory(record, f.diskFailed(err))
	}
	f.d.discard(victims)
	return nil
}

// storeInMemory keeps a small object at least there while the disk cannot take it.
func (f *fill) storeInMemory(record *objectRecord, err error) error {
	if f.mem == nil {
		return err
	}
	f.d.publishing.Lock()
	defer f.d.publishing.Unlock()
	if !f.outdated.Load() {
		f.d.small.add(&smallEntry{id: f.id, record: record, data: f.mem})
	}
	return nil
}

// writeSmall writes an object that was held in memory.
func (f *fill) writeSmall() error {
	file, err := f.create(0)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.file = file
	f.mu.Unlock()
	if _, err := file.Write(f.mem); err != nil {
		return f.diskFailed(err)
	}
	return nil
}

// publish gives the file its name, and the object its place in the index. It returns what has to go for it.
func (f *fill) publish(record *objectRecord, size int64) (victims []objectID, err error) {
	d := f.d
	d.publishing.Lock()
	defer d.publishing.Unlock()
	if f.outdated.Load() || d.isClosed() {
		return nil, nil
	}
	d.index.remove(f.id) // before its file is another's; see openEntry
	if err := d.rename(f.path, d.path(f.id)); err != nil {
		d.removeFile(f.id)
		return nil, err
	}
	e := &storedObject{size: size, used: d.now().Unix()}
	e.record.Store(record)
	victims = d.index.settle(f.id, e, f.reserved)
	f.reserved = 0
	if f.mem != nil {
		d.small.add(&smallEntry{id: f.id, record: record, data: f.mem})
	}
	f.mu.Lock()
	f.isStored, f.path = true, ""
	f.mu.Unlock()
	d.counts.stored.Add(1)
	return victims, nil
}

// rename gives a file its name, of which most often only the directory may be missing: it is the first object there.
func (d *Disk) rename(from, to string) error {
	err := d.files.Rename(from, to)
	if err == nil {
		return nil
	}
	if err := d.files.MkdirAll(filepath.Dir(to)); err != nil {
		return err
	}
	return d.files.Rename(from, to)
}

// orphan takes the fill away from the store, which is closed, or wants nothing of it any more.
func (f *fill) orphan() {
	f.outdated.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers == 0 {
		f.cancel(ErrClosed)
	}
}

func (f *fill) stored() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.isStored
}

// enter counts a reader.
func (f *fill) enter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers++
	if f.abandonAt != nil {
		f.abandonAt.Stop()
		f.abandonAt = nil
	}
}

// leave takes a reader off. A fill that all have left goes on for a while, as the next phone may be near.
func (f *fill) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	if f.readers == 0 && !f.over {
		if f.outdated.Load() {
			f.cancel(ErrClosed)
		} else {
			f.abandonAt = time.AfterFunc(abandonAfter, f.abandon)
		}
	}
	f.closeFileLocked()
}

// abandon ends the fill if still nobody waits for it and less than half of it has come. It is out of the store first, so
// that nobody joins it who would be told that nobody waits.
func (f *fill) abandon() {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	total := f.total.Load()
	if f.readers > 0 || f.over || total >= 0 && f.visible.Load() >= total/2 {
		return
	}
	if f.d.fills[f.id] == f {
		delete(f.d.fills, f.id)
	}
	f.cancel(errAbandoned)
}

// finish ends the life of the fill but for its readers.
func (f *fill) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finished = true
	if f.abandonAt != nil {
		f.abandonAt.Stop()
		f.abandonAt = nil
	}
	f.closeFileLocked()
}

// isDead reports whether the fill has failed, so that a new reader would get nothing of it.
func (f *fill) isDead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over && f.err != nil
}

// closeFileLocked closes the fill's file once nobody needs it, and removes it unless it was stored.
func (f *fill) closeFileLocked() {
	if !f.finished || f.readers > 0 {
		return
	}
	if f.file != nil {
		_ = f.file.Close() // all that matters was synced
		f.file = nil
	}
	if f.path != "" {
		f.d.removeTemp(f.path)
		f.path = ""
	}
}

func (f *fill) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakeLocked()
}

func (f *fill) wakeLocked() {
	if f.waiting {
		close(f.changed)
		f.changed, f.waiting = make(chan struct{}), false
	}
}

// await returns once ready holds, or with the error of the context. ready is called under f.mu.
func (f *fill) await(ctx context.Context, ready func() bool) error {
	for {
		f.mu.Lock()
		if ready() {
			f.mu.Unlock()
			return nil
		}
		f.waiting = true
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// awaitInfo returns what the object is, as soon as that is known.
func (f *fill) awaitInfo(ctx context.Context) (Info, error) {
	err := f.await(ctx, func() bool { return f.known || f.over })
	if err != nil {
		return Info{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known {
		return Info{}, f.err
	}
	return f.info, nil
}

// awaitByte returns once readers may have the byte at offset, or nothing more comes.
func (f *fill) awaitByte(ctx context.Context, offset int64) error {
	err := f.await(ctx, func() bool { return f.visible.Load() > offset || f.over })
	if err != nil {
		return err
	}
	if f.visible.Load() > offset {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	return io.EOF
}

// awaitBytes returns when no more bytes will come, with the fill's error.
func (f *fill) awaitBytes(ctx context.Context) error {
	if err := f.await(ctx, func() bool { return f.over }); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// awaitEnd returns when the fill has ended, with its error.
func (f *fill) awaitEnd(ctx context.Context) error {
	select {
	case <-f.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// enterFar takes one of the few reads the origin is asked for besides the fill.
func (f *fill) enterFar() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.far >= maxFarReads {
		return false
	}
	f.far++
	f.d.counts.farReads.Add(1)
	return true
}

func (f *fill) leaveFar() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.far--
}
