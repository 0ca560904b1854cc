// Package faulty is a test double: an origin that fails in the ways origins do.
//
// Store decorates any origin.Store. Handler serves a store over HTTP, faults and all, so that the same fault can be tried
// through a Store and over the wire.
package faulty

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
)

// Store is an origin.Store whose Gets can be made to fail. It counts them. The zero value of all but its embedded Store
// is ready to use; it is safe for concurrent use.
type Store struct {
	origin.Store

	mu    sync.Mutex
	fault Fault // guarded by mu
	times int   // guarded by mu; how many Gets it is still for; negative for all
	gets  []Get // guarded by mu
}

// Get is a call of Store.Get.
type Get struct {
	Key  string
	Opts origin.GetOptions
}

// Fault is what goes wrong with one Get; next is that Get as it would be without the fault.
type Fault func(ctx context.Context, opts origin.GetOptions, next Next) (*origin.Object, error)

// Next is a Get that goes right.
type Next func(ctx context.Context, opts origin.GetOptions) (*origin.Object, error)

// New returns a Store over store, without a fault.
func New(store origin.Store) *Store { return &Store{Store: store} }

// Set has all further Gets fail so; nil ends the fault.
func (s *Store) Set(f Fault) { s.SetTimes(-1, f) }

// SetTimes has the next n Gets fail so.
func (s *Store) SetTimes(n int, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.times = f, n
}

// Gets returns the calls of Get so far, and forgets them.
func (s *Store) Gets() []Get {
	s.mu.Lock()
	defer s.mu.Unlock()
	gets := s.gets
	s.gets = nil
	return gets
}

// Count returns how many calls of Get there were since Gets.
func (s *Store) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.gets)
}

// Get implements origin.Store.
func (s *Store) Get(ctx context.Context, key string, opts origin.GetOptions) (*origin.Object, error) {
	next := func(ctx context.Context, opts origin.GetOptions) (*origin.Object, error) {
		return s.Store.Get(ctx, key, opts)
	}
	fault := s.note(Get{key, opts})
	if fault == nil {
		return next(ctx, opts)
	}
	return fault(ctx, opts, next)
}

func (s *Store) note(g Get) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets = append(s.gets, g)
	if s.times == 0 {
		return nil
	}
	s.times--
	return s.fault
}

// Refuse fails with err; nil stands for an origin that is down.
func Refuse(err error) Fault {
	if err == nil {
		err = down("connection refused")
	}
	return func(context.Context, origin.GetOptions, Next) (*origin.Object, error) { return nil, err }
}

// Hang answers nothing until the caller gives up.
func Hang() Fault {
	return func(ctx context.Context, _ origin.GetOptions, _ Next) (*origin.Object, error) {
		<-ctx.Done()
		return nil, down("%w", context.Cause(ctx))
	}
}

// Slow answers after d.
func Slow(d time.Duration) Fault {
	return func(ctx context.Context, opts origin.GetOptions, next Next) (*origin.Object, error) {
		select {
		case <-time.After(d):
			return next(ctx, opts)
		case <-ctx.Done():
			return nil, down("%w", context.Cause(ctx))
		}
	}
}

// CutAt breaks bodies off before byte n of the object. A body that begins behind it is whole.
func CutAt(n int64) Fault {
	return body(n, func(context.Context, []byte) error { return down("connection reset") })
}

// StallAt brings nothing from byte n of the object on, until the caller gives up.
func StallAt(n int64) Fault {
	return body(n, func(ctx context.Context, _ []byte) error {
		<-ctx.Done()
		return down("%w", context.Cause(ctx))
	})
}

// FlipAt inverts byte n of the object.
func FlipAt(n int64) Fault {
	return body(n, func(_ context.Context, b []byte) error {
		b[0] = ^b[0]
		return nil
	})
}

// ChangeETag gives the object another ETag with each Get, as if it was written to in between: what is pinned to an earlier
// one fails. The first Get is left as it is.
func ChangeETag() Fault {
	var mu sync.Mutex
	versions := 0
	return func(ctx context.Context, opts origin.GetOptions, next Next) (*origin.Object, error) {
		mu.Lock()
		versions++
		version := versions
		mu.Unlock()
		if opts.IfMatch != "" {
			return nil, origin.ErrChanged
		}
		opts.IfNoneMatch, opts.IfModifiedSince = "", time.Time{}
		o, err := next(ctx, opts)
		if err == nil && version > 1 {
			o.ETag = fmt.Sprintf(`"changed-%d"`, version)
		}
		return o, err
	}
}

func down(format string, args ...any) error {
	return fmt.Errorf("%w: %w", origin.ErrUnavailable, fmt.Errorf(format, args...))
}

// body has do spoil byte n of the object, which it is handed, or fail in its place.
func body(n int64, do func(ctx context.Context, b []byte) error) Fault {
	return func(ctx context.Context, opts origin.GetOptions, next Next) (*origin.Object, error) {
		o, err := next(ctx, opts)
		if err == nil && !opts.HeadOnly && n >= opts.Offset {
			o.Body = &spoiled{ReadCloser: o.Body, ctx: ctx, left: n - opts.Offset, do: do}
		}
		return o, err
	}
}

type spoiled struct {
	io.ReadCloser
	ctx  context.Context //nolint:containedctx // a body lives within its request
	left int64           // bytes before the one to spoil; negative behind it
	do   func(ctx context.Context, b []byte) error
}

func (s *spoiled) Read(p []byte) (int, error) {
	if s.left < 0 || len(p) == 0 {
		return s.ReadCloser.Read(p)
	}
	if s.left == 0 {
		n, err := s.ReadCloser.Read(p[:1])
		if n == 0 {
			return 0, err
		}
		if err := s.do(s.ctx, p[:1]); err != nil {
			return 0, err // and so will be the next Read
		}
		s.left--
		return n, err
	}
	n, err := s.ReadCloser.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	return n, err
}

// Handler serves store as an HTTP origin does: ranges, conditions, ETag. The path is the key. A body that fails breaks the
// connection; what cannot be asked is a 503.
func Handler(store origin.Store) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hint := Hint{None: r.Method == http.MethodHead}
		o, err := OpenReader(r.Context(), store, strings.TrimPrefix(r.URL.Path, "/"), hint)
		if err != nil {
			w.WriteHeader(status(err))
			return
		}
		defer o.Close() //nolint:errcheck // only read from
		if etag := o.Info().ETag; etag != "" {
			w.Header().Set("ETag", etag)
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(flushing{w}, r, "", o.Info().Modified, o)
		if o.Err() != nil {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
}

// flushing sends each piece at once, so that a client has what came before a fault.
type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	return n, errors.Join(err, http.NewResponseController(f.ResponseWriter).Flush())
}

func status(err error) int {
	switch {
	case errors.Is(err, origin.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, origin.ErrChanged):
		return http.StatusPreconditionFailed
	default:
		return http.StatusServiceUnavailable
	}
}
