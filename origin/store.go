package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Store is one place objects are read from.
type Store interface {
	// Get opens the object at key, which is taken literally.
	//
	// The error wraps ErrNotFound if the origin says there is no such object, ErrNotModified if IfNoneMatch or
	// IfModifiedSince holds, ErrChanged if IfMatch does not, ErrRange if Offset lies at or behind the end; anything else
	// wraps ErrUnavailable. The caller closes Body. A Body that ends early reports an error, never io.EOF.
	Get(ctx context.Context, key string, opts GetOptions) (*Object, error)
	// Identity names what the store reads, without secrets: things kept from stores of one identity may be shared.
	Identity() string
}

// GetOptions narrow a Get. The zero value asks for the whole object.
type GetOptions struct {
	Offset int64 // first byte
	Length int64 // how many bytes at the most; 0 for all to the end

	HeadOnly bool // no body: Object.Body is empty

	IfMatch         string    // an ETag this store gave
	IfNoneMatch     string    // an ETag this store gave
	IfModifiedSince time.Time // looked at where the object has no ETag
}

// Object is an open object.
type Object struct {
	Body     io.ReadCloser
	Size     int64  // of the whole object, also for a part of it; -1 if unknown
	ETag     string // as the origin gave it; opaque, and only meant for the same store; "" if it gives none
	Modified time.Time
	// Unsettled says that the object was modified within the last seconds of the origin's own clock. Times on the wire
	// have whole seconds, so Modified would not tell the next change (RFC 9110, section 8.8.2.2).
	Unsettled bool
}

// The ways a Get fails; callers tell them apart with errors.Is.
var (
	ErrNotFound    = errors.New("no such object")
	ErrNotModified = errors.New("object is unchanged")
	ErrChanged     = errors.New("object has changed")
	ErrRange       = errors.New("range begins behind the end of the object")
	ErrUnavailable = errors.New("origin unavailable")
)

// unavailable says that the origin could not be asked, or gave no usable answer, and why.
func unavailable(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrUnavailable, fmt.Errorf(format, args...))
}

// readCloser joins a reader with what is to be closed after it.
type readCloser struct {
	io.Reader
	io.Closer
}

// emptyBody is the body of a HeadOnly answer.
type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error) { return 0, io.EOF }
func (emptyBody) Close() error             { return nil }

// exactly returns a body that fails unless it yields n bytes: an origin that breaks off must never look like the end.
func exactly(body io.ReadCloser, n int64) io.ReadCloser {
	return &exactBody{body: body, left: n}
}

type exactBody struct {
	body io.ReadCloser
	left int64
}

func (b *exactBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.body.Read(p)
	b.left -= int64(n)
	switch {
	case b.left == 0:
		return n, nil
	case errors.Is(err, io.EOF):
		return n, unavailable("the object ends %d bytes early", b.left)
	}
	return n, err
}

func (b *exactBody) Close() error { return b.body.Close() }
