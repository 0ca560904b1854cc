package caddymodule

import (
	"context"
	"errors"
	"strings"
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

// shelves are where a site's objects are.
type shelves struct {
	own      *shelf
	external *shelf // nil if external bundles do not come through this edge
	learned  *shelf // nil without an upstream
	proxies  func(url string) bool
}

func newShelves(r *runtime, store origin.Store, a *readdresser) *shelves {
	s := &shelves{own: newShelf(r, store), proxies: func(string) bool { return false }}
	if a != nil && a.external != nil {
		s.external, s.proxies = newShelf(r, a.external), a.proxies
	}
	return s
}

// request asks the object store for what an address stands for; nil if that does not come through this edge.
func (s *shelves) request(t target) *cache.Request {
	switch {
	case t.learnedOf != "":
		return s.learned.request(learnedName(t.learnedOf, t.key), t.known)
	case t.url == "":
		return s.own.request(t.key, t.known)
	case s.proxies(t.url):
		return s.external.request(t.url, t.known)
	}
	return nil
}

// requests are those for all objects of a bundle that come through this edge.
func (s *shelves) requests(m *resolver.Manifest, b *resolver.Bundle) []*cache.Request {
	var requests []*cache.Request
	if url, known, ok := b.External(); ok && s.proxies(url) {
		requests = append(requests, s.external.request(url, known))
	}
	for key, known := range b.Objects(m) {
		requests = append(requests, s.own.request(key, known))
	}
	return requests
}

// has reports whether all objects of a bundle are stored here, as far as they come through this edge.
func (s *shelves) has(m *resolver.Manifest, b *resolver.Bundle) bool {
	for _, request := range s.requests(m, b) {
		if !s.own.runtime.disk.Stored(request) {
			return false
		}
	}
	return true
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
		return nil, missingObject{err}
	case errors.Is(err, origin.ErrChanged):
		return nil, cache.ErrChanged
	case err != nil:
		return nil, err
	}
	info := cache.Info{Size: object.Size, ETag: object.ETag, Modified: object.Modified}
	return &cache.Part{Info: info, Body: object.Body}, nil
}

// missingObject is an origin's ErrNotFound that is the store's as well. It says so once.
type missingObject struct{ error }

// Unwrap returns both.
func (m missingObject) Unwrap() []error { return []error{cache.ErrNotFound, m.error} }

// withoutQuery takes the query off the key of an external object, its URL: it may hold a secret.
func withoutQuery(key string) string {
	before, _, _ := strings.Cut(key, "?")
	return before
}

// Report implements cache.Origin: it logs a change in how the object can be had.
func (o *objectOrigin) Report(err error) {
	faults := o.runtime.faults
	fields := []zap.Field{zap.String(fieldOrigin, o.scope), zap.String(fieldKey, withoutQuery(o.key)), zap.Error(err)}
	missing, changed, objects := "object "+o.scope+" "+o.key, "content "+o.scope+" "+o.key, "objects "+o.scope
	link, isLink := errors.AsType[*origin.LinkError](err)
	_, isRedirect := errors.AsType[*origin.RedirectError](err)
	a, the := "a manifest", "the manifest"
	_, isLearned := o.store.(*learnedObjects)
	if isLearned {
		a, the = "an answer of the upstream", "the upstream's answer"
	}
	switch {
	case err == nil:
		faults.well(objects, "objects can be read again", fields[0])
		faults.well("keeping "+o.scope, "objects are kept again", fields[0])
		faults.well(missing, "object can be read again", fields[:2]...)
		faults.well(changed, "object is the one "+the+" names again", fields[:2]...)
	case isLearned && isRedirect: // see sendOn
	case isLink:
		faults.fault("link "+o.scope+" "+link.Link, "leads out", "origin refuses a link", fields...)
	case errors.Is(err, cache.ErrNotStorable):
		faults.fault("keeping "+o.scope, "not kept", "object is passed on from the origin for each phone and not kept", fields...)
	case errors.Is(err, cache.ErrNotFound):
		faults.fault(missing, "missing", a+" names an object that the origin does not have", fields...)
	case errors.Is(err, cache.ErrMismatch):
		faults.fault(changed, "wrong", "origin's object is not the one "+the+" names; it is neither stored nor served", fields...)
	case errors.Is(err, cache.ErrChanged):
		faults.fault(changed, "changed", "origin's object changed while it was read; publish under a new key instead", fields...)
	default:
		faults.fault(objects, "unavailable", "objects cannot be read", fields...)
	}
}
