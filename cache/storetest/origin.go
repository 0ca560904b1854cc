package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
)

// ErrDown is what an Origin fails with.
var ErrDown = errors.New("connection refused")

// Origin is an origin of one object, which fails as it is told.
type Origin struct {
	mu      sync.Mutex
	content []byte // guarded by mu, as all below
	etag    string
	unsized bool
	blind   bool
	pace    time.Duration
	err     error
	cutAt   int64 // the body of the next cuts Gets breaks off there
	cuts    int
	gate    chan struct{} // if set, each piece of a body waits for it
	piece   int
	gets    []Get
	reports []error
}

// Get is a call of Origin.Get.
type Get struct {
	Offset, Length int64
	Pin            cache.Info
}

// NewOrigin returns an Origin of the given content.
func NewOrigin(content []byte) *Origin {
	return &Origin{content: content, etag: `"1"`, piece: 32 << 10}
}

// Set changes the origin under its lock.
func (o *Origin) Set(change func(o *Origin)) *Origin {
	o.mu.Lock()
	defer o.mu.Unlock()
	change(o)
	return o
}

// Replace puts other content in the place of the object.
func (o *Origin) Replace(content []byte, etag string) { o.content, o.etag = content, etag }

// Fail has all Gets fail with err; nil ends that.
func (o *Origin) Fail(err error) { o.err = err }

// Cut breaks the bodies of the next n Gets off before byte at of the object.
func (o *Origin) Cut(n int, at int64) { o.cuts, o.cutAt = n, at }

// Unsized hides the size of the object.
func (o *Origin) Unsized() { o.unsized = true }

// Hide hides the size of the object, or what tells it from others, or both.
func (o *Origin) Hide(size, validators bool) { o.unsized, o.blind = size, validators }

// Pace has each piece of a body take so long.
func (o *Origin) Pace(each time.Duration, piece int) { o.pace, o.piece = each, piece }

// Gate has each piece of a body wait for a value from the channel, or for its end.
func (o *Origin) Gate(gate chan struct{}, piece int) { o.gate, o.piece = gate, piece }

// Gets returns the calls of Get so far.
func (o *Origin) Gets() []Get {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Get(nil), o.gets...)
}

// Reports returns what Report was told so far.
func (o *Origin) Reports() []error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]error(nil), o.reports...)
}

// Report implements cache.Origin.
func (o *Origin) Report(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reports = append(o.reports, err)
}

// Get implements cache.Origin.
func (o *Origin) Get(ctx context.Context, offset, length int64, pin cache.Info) (*cache.Part, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gets = append(o.gets, Get{offset, length, pin})
	switch {
	case o.err != nil:
		return nil, o.err
	case pin.ETag != "" && pin.ETag != o.etag && !o.blind:
		return nil, cache.ErrChanged
	}
	info := cache.Info{Size: int64(len(o.content)), ETag: o.etag, Modified: time.Unix(1e9, 0)}
	if o.unsized {
		info.Size = -1
	}
	if o.blind {
		info.ETag, info.Modified = "", time.Time{}
	}
	body := &body{ctx: ctx, gate: o.gate, pace: o.pace, piece: o.piece, left: -1}
	rest := o.content[min(offset, int64(len(o.content))):]
	if length > 0 {
		rest = rest[:min(length, int64(len(rest)))]
	}
	body.reader = bytes.NewReader(rest)
	if o.cuts > 0 && o.cutAt >= offset {
		o.cuts--
		body.left = o.cutAt - offset
	}
	return &cache.Part{Info: info, Body: body}, nil
}

type body struct {
	ctx    context.Context //nolint:containedctx // a body lives within its request
	reader io.Reader
	gate   chan struct{}
	pace   time.Duration
	piece  int
	left   int64 // bytes before the cut; negative for none
}

func (b *body) Read(p []byte) (int, error) {
	if b.gate != nil {
		select {
		case <-b.gate:
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	if b.pace > 0 {
		select {
		case <-time.After(b.pace):
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	if b.left == 0 {
		return 0, ErrDown
	}
	p = p[:min(len(p), b.piece)]
	if b.left > 0 {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.reader.Read(p)
	if b.left > 0 {
		b.left -= int64(n)
	}
	return n, err
}

func (b *body) Close() error { return nil }
