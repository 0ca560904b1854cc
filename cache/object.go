package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Object is an open object: an io.ReadSeekCloser over memory, a stored file, a fill, or the origin itself. What it reads
// from may change on the way, for example when the disk fails, without its reader seeing more than a pause.
//
// It is for one goroutine and one request.
type Object struct {
	d       *Disk
	ctx     context.Context //nolint:containedctx // an Object lives within one request, as a request's body does
	request Request
	id      objectID
	info    Info
	offset  int64
	start   int64 // where the reading began: what is between it and offset was handed out
	err     error

	// One of these is what it reads from.
	mem    []byte
	file   File
	entry  *storedObject // of file
	fill   *fill
	direct *directRead

	own   *os.File // its own descriptor of file or of the fill's file, whose position is ownAt, -1 if not known; nil until needed
	ownAt int64
	noOwn bool
	far   bool  // direct counts as a far read of fill
	noFar bool  // a far read has failed, so that the fill is waited for
	pace  int   // fast or slow: that of the client
	piece int64 // how much is sent to it at once
}

// directRead is a body read from the origin for this object alone.
type directRead struct {
	body    io.ReadCloser
	at      int64
	limited bool // it ends where the request is known to
}

// sizeWait is how long a range waits for the size of an object whose origin does not tell it.
const sizeWait = 30 * time.Second

// Info tells what the object is. Its Size is -1 while it is not known.
func (o *Object) Info() Info { return o.info }

// Bytes is the whole object if it is small and in memory, else nil. It must not be changed.
func (o *Object) Bytes() []byte { return o.mem }

// Err says why a Read ended before the end of the object; nil if none did. It is never the fault of the reader.
func (o *Object) Err() error { return o.err }

// openBypass opens an object that cannot be kept, for one reader.
func (d *Disk) openBypass(ctx context.Context, id objectID, r *Request) (*Object, Access, error) {
	part, err := r.Origin.Get(ctx, r.Offset, r.Length, Info{})
	if err != nil {
		return nil, Bypassed, noEOF(err)
	}
	o := &Object{d: d, ctx: ctx, request: *r, id: id, info: part.Info}
	o.setDirect(part, r.Offset)
	return o, Bypassed, nil
}

// setDirect reads on from part. A whole object is verified on the way.
func (o *Object) setDirect(part *Part, at int64) {
	body := part.Body
	if at == 0 && o.isVerified() {
		body = newHeldBody(body, part.Size, &o.request.Expect)
	}
	o.direct = &directRead{body, at, o.lengthFrom(at) > 0}
}

// isVerified reports whether what the origin gives to this object alone must be verified: a part of an object cannot be,
// and of what is far ahead of the fill the end is not read.
func (o *Object) isVerified() bool {
	return o.start == 0 && o.request.Length == 0 && o.request.Expect.Covers != NoDigest && !o.far
}

// AwaitSize returns once the size is known. It waits for a while if the origin does not tell it.
func (o *Object) AwaitSize() error {
	if o.info.Size >= 0 || o.fill == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(o.ctx, sizeWait)
	defer cancel()
	err := o.fill.awaitBytes(ctx)
	o.info.Size = o.fill.total.Load()
	return err
}

// Await returns once the byte at offset can be read, or with the reason why it never will. It lets a request be answered
// with an error while nothing else was said yet.
func (o *Object) Await(offset int64) error {
	if o.direct != nil {
		if held, ok := o.direct.body.(*heldBody); ok && offset == o.direct.at {
			return o.fail(held.await())
		}
		return nil
	}
	if o.fill == nil || o.info.Size > 0 && offset >= o.info.Size {
		return nil
	}
	o.moveTo(offset)
	_, err := o.next(1)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Seek implements io.Seeker. It costs nothing until the next Read.
func (o *Object) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.offset
	case io.SeekEnd:
		if o.info.Size < 0 {
			return 0, errors.New("the size of the object is not known yet")
		}
		offset += o.info.Size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of the object")
	}
	o.moveTo(offset)
	return offset, nil
}

func (o *Object) moveTo(offset int64) {
	if offset != o.offset {
		o.offset, o.start = offset, offset
	}
}

// Close implements io.Closer.
func (o *Object) Close() error {
	var errs []error
	if o.own != nil {
		errs = append(errs, o.own.Close())
	}
	o.closeDirect()
	if o.file != nil {
		errs = append(errs, o.file.Close())
	}
	if o.fill != nil {
		o.fill.leave()
	}
	o.own, o.file, o.fill = nil, nil, nil
	if o.err == nil {
		o.err = os.ErrClosed
	}
	return errors.Join(errs...)
}

// source says where the next bytes are.
type source int

const (
	inMemory source = iota // chunk.data
	inFile                 // at the object's offset
	inBody                 // o.direct
)

// chunk is some bytes that can be had now.
type chunk struct {
	from source
	data []byte
	size int64
}

// next waits for the bytes at the object's offset and says where they are: at least one, at most most.
func (o *Object) next(most int64) (chunk, error) {
	if o.err != nil {
		return chunk{}, o.err
	}
	c, err := o.find(most)
	if err != nil && !errors.Is(err, io.EOF) && o.ctx.Err() == nil {
		o.err = err
	}
	return c, err
}

func (o *Object) find(most int64) (chunk, error) {
	left := most
	if o.info.Size >= 0 {
		if left = min(most, o.info.Size-o.offset); left <= 0 {
			return chunk{}, o.atEnd()
		}
	}
	switch {
	case o.mem != nil:
		return chunk{inMemory, o.mem[o.offset : o.offset+left], left}, nil
	case o.file != nil:
		return chunk{from: inFile, size: left}, nil
	case o.fill != nil:
		return o.findInFill(left)
	default:
		return o.findDirect(left)
	}
}

// atEnd is what a read at the end of the object gets. Where there are no bytes to hold back, the end itself waits until the
// object was verified.
func (o *Object) atEnd() (err error) {
	switch {
	case o.info.Size > 0:
	case o.fill != nil:
		err = o.fill.awaitBytes(o.ctx)
	case o.direct != nil:
		_, err = o.direct.body.Read(make([]byte, 1))
	}
	if err == nil {
		err = io.EOF
	}
	return err
}

func (o *Object) findInFill(left int64) (chunk, error) {
	f := o.fill
	if o.offset >= f.visible.Load() {
		if c, ok, err := o.findFar(left); ok || err != nil {
			return c, err
		}
		o.closeDirect() // it waits from here on, and others may have its place
		err := f.awaitByte(o.ctx, o.offset)
		if errors.Is(err, ErrNotStorable) {
			o.fill = nil
			f.leave()
			return o.findDirect(left)
		}
		if err != nil {
			return chunk{}, err
		}
	}
	o.closeDirect()
	size := min(left, f.visible.Load()-o.offset)
	if mem := f.mem; mem != nil {
		return chunk{inMemory, mem[o.offset : o.offset+size], size}, nil
	}
	return chunk{from: inFile, size: size}, nil
}

// findFar reads from the origin what is far ahead of the fill. Not so the end of the object: that is held back until the
// whole was verified, from everybody. If the origin does not give it, or cannot tell whether it is still the same object,
// the fill is waited for.
func (o *Object) findFar(left int64) (c chunk, ok bool, err error) {
	f := o.fill
	ahead := o.offset - f.visible.Load()
	left = min(left, o.info.Size-heldBack-o.offset)
	if o.noFar || !o.info.pinned() || o.info.Size < 0 || left <= 0 || o.direct == nil && ahead < farAhead {
		return chunk{}, false, nil
	}
	if o.direct == nil {
		if !f.enterFar() {
			return chunk{}, false, nil
		}
		o.far = true
	}
	if c, err = o.findDirect(left); err != nil && o.ctx.Err() == nil {
		o.endFar()
		return chunk{}, false, nil
	}
	return c, err == nil, err
}

// endFar gives up reading from the origin besides the fill.
func (o *Object) endFar() {
	o.closeDirect()
	o.noFar = true
}

// findDirect opens the origin at the object's offset, unless it stands there. To be verified an object is read from its
// start, and what was handed out already is passed over.
func (o *Object) findDirect(left int64) (chunk, error) {
	if o.direct != nil && o.direct.at == o.offset {
		return chunk{from: inBody, size: left}, nil
	}
	far := o.far
	o.far = false // closing must not give it back
	o.closeDirect()
	o.far = far
	at := o.offset
	if o.isVerified() {
		at = 0
	}
	part, err := o.request.Origin.Get(o.ctx, at, o.lengthFrom(at), o.info)
	if err != nil {
		return chunk{}, noEOF(err)
	}
	if err := o.continues(part.Info); err != nil {
		return chunk{}, errors.Join(err, part.Body.Close())
	}
	o.setDirect(part, at)
	if _, err := io.CopyN(io.Discard, o.direct.body, o.offset-at); err != nil {
		return chunk{}, fmt.Errorf("reading the object again: %w", noEOF(err))
	}
	o.direct.at = o.offset
	return chunk{from: inBody, size: left}, nil
}

// continues says why bytes of the object described by info must not follow those that were handed out.
func (o *Object) continues(info Info) error {
	verified := o.entry != nil && o.request.Expect.Covers != NoDigest
	if o.offset > o.start && !verified && !info.pinned() {
		return fmt.Errorf("%w, or not: the origin gives neither ETag nor Last-Modified", ErrChanged)
	}
	return samePart(info, o.info)
}

// noEOF has an end that comes too early not look like one that is right. What else the error is, it stays.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return earlyEnd{err}
	}
	return err
}

// earlyEnd is an error that wraps io.EOF, and is none.
type earlyEnd struct{ cause error }

func (e earlyEnd) Error() string        { return "it ended too early: " + e.cause.Error() }
func (e earlyEnd) Is(target error) bool { return target != io.EOF && errors.Is(e.cause, target) }
func (e earlyEnd) As(target any) bool   { return errors.As(e.cause, target) }

// lengthFrom is how much the request will read from offset on, as far as is known.
func (o *Object) lengthFrom(offset int64) int64 {
	end := o.request.Offset + o.request.Length
	if o.request.Length == 0 || offset < o.request.Offset || offset >= end {
		return 0
	}
	return end - offset
}

func (o *Object) closeDirect() {
	if o.direct != nil {
		_ = o.direct.body.Close() // only read from
		o.direct = nil
	}
	if o.far {
		o.far = false
		o.fill.leaveFar()
	}
}

// Read implements io.Reader.
func (o *Object) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		c, err := o.next(int64(len(p)))
		if err != nil {
			return 0, err
		}
		n, again, err := o.readChunk(c, p)
		o.offset += int64(n)
		if n > 0 || err != nil || !again {
			return n, err
		}
	}
}

// readChunk reads some of c. again is true if it failed in a way that something else makes good.
func (o *Object) readChunk(c chunk, p []byte) (n int, again bool, err error) {
	switch c.from {
	case inMemory:
		return copy(p, c.data), false, nil
	case inBody:
		n, err = o.direct.body.Read(p[:min(int64(len(p)), c.size)])
		o.direct.at += int64(n)
		if errors.Is(err, io.EOF) {
			err = o.endOfBody(n)
		}
		if err != nil && o.far && o.ctx.Err() == nil {
			o.endFar()
			err = nil
		}
		return n, n == 0, o.fail(err)
	default:
		n, err = o.readerAt().ReadAt(p[:min(int64(len(p)), c.size)], o.offset)
		if err != nil && n == 0 {
			return 0, true, o.fail(o.fallBack(err))
		}
		return n, false, nil
	}
}

// endOfBody judges the end of a body from the origin.
func (o *Object) endOfBody(n int) error {
	at := o.offset + int64(n)
	switch {
	case o.direct.limited && at == o.request.Offset+o.request.Length && at != o.info.Size:
		o.closeDirect() // who reads on all the same asks anew
		return nil
	case o.info.Size < 0: // which is known now
		o.info.Size = at
		return nil
	case at >= o.info.Size:
		return nil
	}
	return fmt.Errorf("the object ends %d bytes early", o.info.Size-at)
}

func (o *Object) fail(err error) error {
	if err != nil && o.ctx.Err() == nil {
		o.err = err
	}
	return err
}

func (o *Object) readerAt() io.ReaderAt {
	if o.file != nil {
		return o.file
	}
	return o.fill.file
}

// fallBack goes on elsewhere after the disk failed to give what it holds: a stored object is fetched anew, and what a fill
// holds is read from the origin.
func (o *Object) fallBack(cause error) error {
	if o.own != nil {
		_ = o.own.Close()
		o.own = nil
	}
	o.noOwn = true
	if o.fill != nil {
		o.d.diskFailed(fmt.Errorf("reading an object that is being stored: %w", cause))
		o.fill.leave()
		o.fill = nil
		return nil
	}
	o.d.drop(&o.request, o.id, o.entry, cause)
	_ = o.file.Close() // only read from
	o.file = nil
	f, _, err := o.d.join(o.ctx, o.id, &o.request)
	if err != nil || f == nil { // the origin is asked for the rest
		return nil //nolint:nilerr // it may well answer
	}
	o.fill = f
	info, err := f.awaitInfo(o.ctx)
	if errors.Is(err, ErrNotStorable) {
		o.fill = nil
		f.leave()
		return nil
	}
	if err != nil {
		return err
	}
	return o.continues(info)
}

// Sink takes the bytes of an object.
type Sink interface {
	io.Writer
	// FilePiece is the least that is worth sending by SendFile, which is called for multiples of it; 0 if nothing is.
	FilePiece() int64
	// SendFile sends n bytes of f from its current position on, and may leave that anywhere.
	SendFile(f *os.File, n int64) (sent int64, err error)
}

// copyBuffers are held while bytes are on their way: a phone that waits for a fill holds none, one that takes its time to
// read a small one. A thousand of them must not cost what the fast ones gain.
var copyBuffers = [2]sync.Pool{fast: newBuffers(64 << 10), slow: newBuffers(16 << 10)}

const (
	fast = iota
	slow
	// slowChunk is how long a chunk takes to a client that is slow. The buffers of the system take what a fast one needs.
	slowChunk = 20 * time.Millisecond
)

func newBuffers(size int) sync.Pool {
	return sync.Pool{New: func() any { b := make([]byte, size); return &b }}
}

// CopyN copies n bytes to w, as io.CopyN does, without passing them through this process where the system can.
func (o *Object) CopyN(w Sink, n int64) (int64, error) {
	var sent int64
	for sent < n {
		c, err := o.next(n - sent)
		if err != nil {
			return sent, err
		}
		m, err := o.deliver(w, c)
		sent += m
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

func (o *Object) deliver(w Sink, c chunk) (int64, error) {
	if c.from == inMemory {
		n, err := w.Write(c.data)
		o.offset += int64(n)
		return int64(n), err
	}
	size := o.atOnce(c.size)
	defer o.judge(time.Now(), size)
	buffers := &copyBuffers[o.pace]
	if piece := w.FilePiece(); piece > 0 {
		if c.from == inFile && o.pace == fast && size >= piece { // net/http holds 32 KiB of its own while it sends a file
			if f := o.descriptor(); f != nil {
				return o.sendFile(w, f, size-size%piece)
			}
		}
		buffers = &copyBuffers[slow] // what is left to copy is little
	}
	buf, _ := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var sent int64
	for sent < size {
		n, err := o.Read((*buf)[:min(int64(len(*buf)), size-sent)])
		if err != nil {
			return sent, err
		}
		m, err := w.Write((*buf)[:n])
		sent += int64(m)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// The least and the most that is sent before the pace of a client is judged anew: the longer it has been fast, the more.
const (
	leastAtOnce = 256 << 10
	mostAtOnce  = 8 << 20
)

// atOnce is how much is to be sent next of what is there.
func (o *Object) atOnce(size int64) int64 { return min(size, max(o.piece, leastAtOnce)) }

// judge notes how fast the client took what was begun then. One that was slow does not become fast again.
func (o *Object) judge(began time.Time, size int64) {
	due := time.Duration(size/(64<<10)+1) * slowChunk
	switch took := time.Since(began); {
	case took > due:
		o.pace = slow
	case took < due/4 && size >= o.piece:
		o.piece = min(2*max(o.piece, leastAtOnce), mostAtOnce)
	}
}

// sendFile sends from a file. Whether it was the file or the client that failed only reading it again tells.
func (o *Object) sendFile(w Sink, f *os.File, size int64) (int64, error) {
	n, err := w.SendFile(f, size)
	o.offset += n
	o.ownAt = -1
	if n == size || err == nil && n > 0 { // what is left of it comes next
		return n, err
	}
	var probe [1]byte
	if _, readErr := o.readerAt().ReadAt(probe[:], o.offset); readErr != nil {
		return n, o.fail(o.fallBack(readErr))
	}
	if err == nil {
		err = io.ErrShortWrite
	}
	return n, err
}

// descriptor returns a file of its own at the object's offset, or nil if there is none to be had.
func (o *Object) descriptor() *os.File {
	if o.noOwn {
		return nil
	}
	if o.own == nil {
		if f, ok := o.file.(*os.File); ok {
			return o.positioned(f)
		}
		o.own = o.fill.open()
		if o.own == nil {
			o.noOwn = true
			return nil
		}
		o.ownAt = 0
	}
	return o.positioned(o.own)
}

func (o *Object) positioned(f *os.File) *os.File {
	if o.ownAt == o.offset {
		return f
	}
	if _, err := f.Seek(o.offset, io.SeekStart); err != nil {
		o.noOwn = true
		return nil
	}
	o.ownAt = o.offset
	return f
}

// open opens the file of the fill for one reader, if it is one of the system's.
func (f *fill) open() *os.File {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path := f.path
	if f.isStored {
		path = f.d.path(f.id)
	}
	own, ok := f.file.(*os.File)
	if !ok || path == "" {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	if !isSameFile(own, file) { // the object was dropped, and stored anew
		_ = file.Close() // not even read from
		return nil
	}
	return file
}

func isSameFile(a, b *os.File) bool {
	statA, errA := a.Stat()
	statB, errB := b.Stat()
	return errA == nil && errB == nil && os.SameFile(statA, statB)
}

// loadSmall reads a small stored object into memory, if it is what its record says.
func (o *Object) loadSmall(record *objectRecord) error {
	data := make([]byte, o.info.Size)
	if _, err := o.file.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != record.SHA256 {
		return fmt.Errorf("%w: its SHA-256 differs", errDamaged)
	}
	o.d.addSmall(&smallEntry{id: o.id, record: record, data: data, touched: o.d.now().Unix()}, o.entry)
	o.mem = data
	return nil
}
