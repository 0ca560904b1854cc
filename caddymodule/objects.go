package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// shelf is where the objects of one origin are: stored here, or in the origin. It outlives the handler, as the fills do
// that read through it.
type shelf struct {
	runtime *runtime
	store   origin.Store
	scope   string
}

func newShelf(r *runtime, store origin.Store) *shelf {
	return &shelf{runtime: r, store: store, scope: store.Identity()}
}

// request asks the object store for an object of which the manifest knows this much.
func (s *shelf) request(key string, known resolver.Object) *cache.Request {
	return &cache.Request{
		Key:    cache.Key{Scope: s.scope, Name: key},
		Expect: expectation(known),
		Origin: &objectOrigin{s, key},
	}
}

func expectation(known resolver.Object) cache.Expect {
	switch known.Covers {
	case resolver.DigestStored:
		return cache.Expect{Covers: cache.StoredDigest, SHA256: known.SHA256}
	case resolver.DigestDecoded:
		return cache.Expect{
			Covers: cache.DecodedDigest, SHA256: known.SHA256, Size: known.Size, New: newDecodedVerifier,
		}
	default:
		return cache.Expect{}
	}
}

// objectOrigin is one object of a shelf's origin.
type objectOrigin struct {
	*shelf
	key string
}

// Get implements cache.Origin.
func (o *objectOrigin) Get(ctx context.Context, offset, length int64, pin cache.Info) (*cache.Part, error) {
	began := time.Now()
	opts := origin.GetOptions{Offset: offset, Length: length, IfMatch: pin.ETag}
	object, err := o.store.Get(ctx, o.key, opts)
	if errors.Is(err, origin.ErrRange) { // nothing to read, but what the object is can be told
		opts.Offset, opts.Length, opts.HeadOnly = 0, 0, true
		object, err = o.store.Get(ctx, o.key, opts)
	}
	o.runtime.counters.origin(originObject, time.Since(began), err)
	switch {
	case errors.Is(err, origin.ErrNotFound):
		return nil, fmt.Errorf("%w: %w", cache.ErrNotFound, err)
	case errors.Is(err, origin.ErrChanged):
		return nil, cache.ErrChanged
	case err != nil:
		return nil, err
	}
	info := cache.Info{Size: object.Size, ETag: object.ETag, Modified: object.Modified}
	return &cache.Part{Info: info, Body: object.Body}, nil
}

// Report implements cache.Origin: it logs a change in how the object can be had.
func (o *objectOrigin) Report(err error) {
	faults := o.runtime.faults
	fields := []zap.Field{zap.String(fieldOrigin, o.scope), zap.String(fieldKey, o.key), zap.Error(err)}
	missing, changed, objects := "object "+o.scope+" "+o.key, "content "+o.scope+" "+o.key, "objects "+o.scope
	link, isLink := errors.AsType[*origin.LinkError](err)
	switch {
	case err == nil:
		faults.well(objects, "objects can be read again", fields[0])
		faults.well(missing, "object can be read again", fields[:2]...)
		faults.well(changed, "object is the one the manifest names again", fields[:2]...)
	case isLink:
		faults.fault("link "+o.scope+" "+link.Link, "leads out", "origin refuses a link", fields...)
	case errors.Is(err, cache.ErrNotFound):
		faults.fault(missing, "missing", "a manifest names an object that the origin does not have", fields...)
	case errors.Is(err, cache.ErrMismatch):
		faults.fault(changed, "wrong", "origin's object is not the one the manifest names; it is neither stored nor served", fields...)
	case errors.Is(err, cache.ErrChanged):
		faults.fault(changed, "changed", "origin's object changed while it was read; publish under a new key instead", fields...)
	default:
		faults.fault(objects, "unavailable", "objects cannot be read", fields...)
	}
}
