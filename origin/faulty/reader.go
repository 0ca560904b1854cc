package faulty

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/capgo-edge/capgo-edge/origin"
)

// Reader reads one object of a store from any offset. It is an io.ReadSeekCloser for http.ServeContent: it opens the
// object where it is first told a read will begin, and opens it again, pinned to the same content, if another place is
// read.
//
// It is for one goroutine.
type Reader struct {
	ctx   context.Context //nolint:containedctx // a Reader lives within one request, as a request's body does
	store origin.Store
	key   string

	info   origin.Object // as first opened, without Body
	body   io.ReadCloser
	at     int64 // where body stands
	until  int64 // where body ends
	offset int64 // where the next Read is to begin
	err    error
}

// Hint says which part of an object is going to be read, as far as that is known before its size is.
type Hint struct {
	Offset int64
	Length int64 // 0 for all to the end
	None   bool  // nothing is going to be read
}

// OpenReader opens the object at key. What the hint promises costs one request to the store and no more.
func OpenReader(ctx context.Context, store origin.Store, key string, hint Hint) (*Reader, error) {
	r := &Reader{ctx: ctx, store: store, key: key}
	opts := origin.GetOptions{Offset: hint.Offset, Length: hint.Length, HeadOnly: hint.None}
	o, err := store.Get(ctx, key, opts)
	if errors.Is(err, origin.ErrRange) { // nothing to read, but its size is to be told
		opts = origin.GetOptions{HeadOnly: true}
		o, err = store.Get(ctx, key, opts)
	}
	if err != nil {
		return nil, err
	}
	r.info = *o
	r.info.Body = nil
	r.take(o, opts)
	return r, nil
}

// Info is what the store tells of the object. Its Body is nil.
func (r *Reader) Info() origin.Object { return r.info }

// Err says why a Read ended before the end of the object; nil if none did.
func (r *Reader) Err() error { return r.err }

func (r *Reader) take(o *origin.Object, opts origin.GetOptions) {
	r.body, r.at, r.until = o.Body, opts.Offset, r.info.Size
	switch {
	case opts.HeadOnly:
		r.until = r.at
	case opts.Length > 0:
		r.until = min(r.until, opts.Offset+opts.Length)
	}
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.info.Size >= 0 && r.offset >= r.info.Size {
		return 0, io.EOF
	}
	if r.info.Size >= 0 && (r.offset != r.at || r.at >= r.until) {
		if err := r.reopen(); err != nil {
			r.err = err
			return 0, err
		}
	}
	n, err := r.body.Read(p)
	r.at += int64(n)
	r.offset = r.at
	switch {
	case errors.Is(err, io.EOF) && r.info.Size >= 0 && r.at < r.until:
		err = fmt.Errorf("%w: the object ends %d bytes early", origin.ErrUnavailable, r.until-r.at)
	case errors.Is(err, io.EOF) && r.info.Size >= 0 && r.at < r.info.Size:
		err = nil // the end of the part that was hinted at
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// reopen opens the object at the current offset, if it is still the same.
func (r *Reader) reopen() error {
	if err := r.body.Close(); err != nil {
		return err
	}
	r.body = http.NoBody
	opts := origin.GetOptions{Offset: r.offset, IfMatch: r.info.ETag}
	o, err := r.store.Get(r.ctx, r.key, opts)
	if err != nil {
		return err
	}
	if o.Size != r.info.Size || o.ETag != r.info.ETag || o.ETag == "" && !o.Modified.Equal(r.info.Modified) {
		return errors.Join(origin.ErrChanged, o.Body.Close())
	}
	r.take(o, opts)
	return nil
}

// Seek implements io.Seeker. Seeking costs nothing until the next Read.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.offset
	case io.SeekEnd:
		if r.info.Size < 0 {
			return 0, errors.New("the size of the object is not known")
		}
		offset += r.info.Size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of the object")
	}
	r.offset = offset
	return offset, nil
}

// Close implements io.Closer.
func (r *Reader) Close() error { return r.body.Close() }
