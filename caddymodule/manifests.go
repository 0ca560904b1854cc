package caddymodule

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// Manifests says where channel manifests are and how long they are used.
type Manifests struct {
	// Key is the object key of an app's manifest; {app_id} stands for the app. Default: manifests/{app_id}.json
	Key string `json:"key,omitempty"`
	// Fresh is how long a manifest answers from memory after the origin confirmed it. Default: 10s.
	Fresh caddy.Duration `json:"fresh,omitempty"`
	// StaleWhile is how much longer it answers at once, while it is refreshed behind the answer. Default: 60s.
	StaleWhile caddy.Duration `json:"stale_while,omitempty"`
	// Stale is how long the last good manifest answers while the origin fails. Default: 168h (7 days).
	Stale caddy.Duration `json:"stale,omitempty"`
	// Negative is how long an unknown app is remembered as unknown. Default: 10s.
	Negative caddy.Duration `json:"negative,omitempty"`
	// MaxSize is the size in bytes beyond which a manifest is refused, at least 1048576 (1 MiB). Default: 67108864 (64 MiB).
	MaxSize int64 `json:"max_size,omitempty"`
}

// minManifestSize is the least Manifests.MaxSize: less has no use, and is a unit forgotten most of the time.
const minManifestSize = 1 << 20

// appIDPlaceholder stands for the app in Manifests.Key.
const appIDPlaceholder = "{app_id}"

func (m *Manifests) provision() error {
	m.setDefaults()
	var err error
	if m.Key, err = expand("manifests", m.Key); err != nil {
		return err
	}
	return m.check()
}

func (m *Manifests) setDefaults() {
	setDefault(&m.Key, "manifests/"+appIDPlaceholder+".json")
	setDefault(&m.Fresh, caddy.Duration(10*time.Second))
	setDefault(&m.StaleWhile, caddy.Duration(time.Minute))
	setDefault(&m.Stale, caddy.Duration(7*24*time.Hour))
	setDefault(&m.Negative, caddy.Duration(10*time.Second))
	setDefault(&m.MaxSize, 64<<20)
}

func (m *Manifests) check() error {
	switch {
	case !strings.Contains(m.Key, appIDPlaceholder):
		return fmt.Errorf("manifests: the key %q must contain %s", m.Key, appIDPlaceholder)
	case resolver.KeyFault(m.Key) != "":
		return fmt.Errorf("manifests: the key %q %s", m.Key, resolver.KeyFault(m.Key))
	case m.Fresh < 0 || m.StaleWhile < 0 || m.Negative < 0:
		return errors.New("manifests: ages must be positive")
	case m.MaxSize < minManifestSize:
		return fmt.Errorf("manifests: max_size: %d bytes are too little, give at least 1MiB", m.MaxSize)
	case m.Stale < m.Fresh+m.StaleWhile:
		return fmt.Errorf("manifests: stale (%s) must not be shorter than fresh and stale_while together (%s)",
			time.Duration(m.Stale), time.Duration(m.Fresh+m.StaleWhile))
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// release is what is known of one app: its manifest, and the keys that earlier revisions of it named.
type release struct {
	manifest  *resolver.Manifest
	externals map[string]externalObject // by key
	retired   []retiredKeys             // newest first
	hold      atomic.Pointer[hold]      // nil if nothing is held back
	news      []string                  // keys that the revision before did not name, if they are to be fetched
	guard     *guardedApp               // nil if no rollout of the app is guarded
	variants  [2]atomic.Pointer[pausedVariant]
	absent    absentVersions
}

// retiredKeys are keys a revision took away. Phones that were told of them may still be downloading.
type retiredKeys struct {
	keys      *resolver.Keys
	externals map[string]externalObject
	until     time.Time
}

// externalObject is the zip of a bundle that lies outside the origin's storage.
type externalObject struct {
	url   string
	known resolver.Object
}

// externalsOf are the external objects that the channels of a manifest lead to.
func externalsOf(m *resolver.Manifest) map[string]externalObject {
	externals := map[string]externalObject{}
	for b := range offeredBy(m) {
		if url, known, ok := b.External(); ok {
			externals[resolver.ExternalKey(m.AppID, url)] = externalObject{url, known}
		}
	}
	return externals
}

// offeredBy yields the bundles that the channels of a manifest offer, those of public channels first.
func offeredBy(m *resolver.Manifest) iter.Seq2[*resolver.Bundle, bool] {
	return func(yield func(b *resolver.Bundle, public bool) bool) {
		for _, public := range []bool{true, false} {
			for ch := range m.Channels() {
				for _, b := range []*resolver.Bundle{ch.Stable, ch.Target} {
					if b != nil && ch.Public == public && !yield(b, public) {
						return
					}
				}
			}
		}
	}
}

// target is an object that a manifest names.
type target struct {
	key   string // as its address has it
	url   string // where it is, if not in the origin's storage
	known resolver.Object

	learnedOf string // the app whose answers from an upstream led to it, if no manifest did
}

// Retired keys stay served for an hour (contract section 3), of so many revisions at the most.
const (
	retiredFor  = time.Hour
	maxRetired  = 32
	maxAppIDLen = 128
)

// find returns what the first of the keys stands for that the manifest names, or that an earlier revision named of late.
func (r *release) find(keys ...string) (target, bool) {
	if t, ok := findIn(&r.manifest.Keys, r.externals, keys); ok {
		return t, true
	}
	for i := range r.retired {
		old := &r.retired[i]
		if !time.Now().Before(old.until) {
			continue
		}
		if t, ok := findIn(old.keys, old.externals, keys); ok {
			return t, true
		}
	}
	return target{}, false
}

func findIn(named *resolver.Keys, externals map[string]externalObject, keys []string) (target, bool) {
	for _, key := range keys {
		if o, ok := named.Find(key); ok {
			return target{key: key, known: o}, true
		}
		if e, ok := externals[key]; ok {
			return target{key: key, url: e.url, known: e.known}, true
		}
	}
	return target{}, false
}

// retire notes in next what it takes away from old, and returns that in a form decodeRetired reads.
func retire(old, next *release) []byte {
	now := time.Now()
	gone := retiredKeys{keys: old.manifest.Keys.Without(&next.manifest.Keys), until: now.Add(retiredFor)}
	for key, e := range old.externals {
		if _, ok := next.externals[key]; !ok {
			if gone.externals == nil {
				gone.externals = map[string]externalObject{}
			}
			gone.externals[key] = e
		}
	}
	if gone.keys.Len()+len(gone.externals) > 0 {
		next.retired = append(next.retired, gone)
	}
	for _, r := range old.retired {
		if now.Before(r.until) && len(next.retired) < maxRetired {
			next.retired = append(next.retired, r)
		}
	}
	return encodeRetired(next.retired)
}

// library gives the release of an app, from the runtime's memory or the site's origin.
type library struct {
	runtime *runtime
	store   origin.Store
	config  *Manifests
	source  cache.Source[*release]
	shelves *shelves
	bundles *Bundles
}

func newLibrary(r *runtime, store origin.Store, config *Manifests, bundles *Bundles, s *shelves) *library {
	l := &library{runtime: r, store: store, config: config, bundles: bundles, shelves: s}
	l.source = cache.Source[*release]{
		Scope: store.Identity() + " " + config.Key,
		Ages: cache.Ages{
			Fresh: time.Duration(config.Fresh), StaleWhile: time.Duration(config.StaleWhile),
			Stale: time.Duration(config.Stale), Negative: time.Duration(config.Negative),
		},
		Fetch:      l.fetch,
		Decode:     l.decode,
		Replace:    l.replace,
		Publish:    l.publish,
		Admit:      r.misses.Allow,
		Report:     l.report,
		ReportDisk: l.reportDisk,
	}
	return l
}

// get returns the release of an app, which must be an app id. The error is cache.ErrNotFound for an unknown app.
func (l *library) get(ctx context.Context, appID string) (*release, cache.State, error) {
	if len(appID) > maxAppIDLen {
		return nil, cache.Negative, cache.ErrNotFound
	}
	if !l.runtime.users.enter() {
		return nil, cache.Unavailable, errClosed
	}
	defer l.runtime.users.leave()
	return l.runtime.memory.Get(ctx, &l.source, appID)
}

// renew is get, after the origin confirmed the manifest.
func (l *library) renew(ctx context.Context, appID string) (*release, error) {
	if !l.runtime.users.enter() {
		return nil, errClosed
	}
	defer l.runtime.users.leave()
	return l.runtime.memory.Revalidate(ctx, &l.source, appID)
}

func (l *library) fetch(ctx context.Context, appID string, prev cache.Document) (cache.Document, error) {
	began := time.Now()
	doc, err := l.read(ctx, strings.ReplaceAll(l.config.Key, appIDPlaceholder, appID), prev)
	l.runtime.counters.origin(originManifest, time.Since(began), err)
	switch {
	case errors.Is(err, origin.ErrNotModified):
		return doc, cache.ErrNotModified
	case errors.Is(err, origin.ErrNotFound):
		return doc, cache.ErrNotFound
	}
	return doc, err
}

func (l *library) read(ctx context.Context, key string, prev cache.Document) (doc cache.Document, err error) {
	opts := origin.GetOptions{IfNoneMatch: prev.ETag}
	if prev.ETag == "" {
		opts.IfModifiedSince = prev.Modified
	}
	o, err := l.store.Get(ctx, key, opts)
	if err != nil {
		return doc, err
	}
	defer func() { err = errors.Join(err, o.Body.Close()) }()
	doc = cache.Document{ETag: o.ETag}
	if !o.Unsettled {
		doc.Modified = o.Modified
	}
	tooLarge := fmt.Errorf("the manifest is larger than max_size, %d bytes", l.config.MaxSize)
	switch {
	case o.Size > l.config.MaxSize:
		return doc, tooLarge
	case o.Size >= 0: // in one piece: growing a buffer would cost a large manifest twice
		doc.Raw = make([]byte, o.Size)
		_, err = io.ReadFull(o.Body, doc.Raw)
		return doc, err
	}
	doc.Raw, err = io.ReadAll(io.LimitReader(o.Body, l.config.MaxSize+1))
	if int64(len(doc.Raw)) > l.config.MaxSize {
		return doc, tooLarge
	}
	return doc, err
}

func (l *library) decode(appID string, raw, memo []byte) (*release, int64, error) {
	m, err := resolver.ParseManifest(raw)
	if err != nil {
		return nil, 0, err
	}
	if m.AppID != appID {
		return nil, 0, &resolver.Faults{List: []resolver.Fault{{
			Path: "$.app.app_id", Message: fmt.Sprintf("is %q, but the document was read for %q", m.AppID, appID),
		}}}
	}
	l.logWarnings(m)
	r := &release{
		manifest: m, externals: externalsOf(m), retired: decodeRetired(memo), guard: l.runtime.guard.appOf(l.source.Scope, m),
	}
	size := m.MemorySize() + int64(len(r.externals))*512
	for _, old := range r.retired {
		size += int64(old.keys.Len())*80 + int64(len(old.externals))*512
	}
	return r, size, nil
}

// replace prepares next to take the place of old.
func (l *library) replace(old, next *release, raw []byte) []byte {
	if l.bundles.AnnounceWarm > 0 {
		next.holdBack(old, time.Duration(l.bundles.AnnounceWarm), l.shelves)
	}
	if l.bundles.Prefetch == prefetchOn {
		next.news = resolver.NewKeys(raw, &old.manifest.Keys)
	}
	return retire(old, next)
}

// wake loads the apps that are known from before, so that what is missing of them is fetched before it is asked for: after
// a restart, and when prefetching was switched on.
func (l *library) wake(ctx context.Context) {
	for _, appID := range l.runtime.lastGood.Names(l.source.Scope) {
		if ctx.Err() != nil {
			return
		}
		if r, _, err := l.get(ctx, appID); err == nil { // what fails is reported where it does
			l.runtime.warmer.fetch(l, r)
		}
	}
}

// publish has the store keep what the release's channels point at, and fetch what it does not have. Pauses of rollouts that
// the release says something else about end.
func (l *library) publish(_ string, r *release, sum [sha256.Size]byte) {
	r.guard.follow(context.Background(), r.manifests()...)
	l.runtime.warmer.warm(l, r, sum)
}

func (l *library) logWarnings(m *resolver.Manifest) {
	subject := "warnings " + l.source.Scope + " " + m.AppID
	if len(m.Warnings) == 0 {
		l.runtime.faults.well(subject, "manifest has no warnings any more", zap.String(fieldAppID, m.AppID))
		return
	}
	texts := make([]string, len(m.Warnings))
	for i, w := range m.Warnings {
		texts[i] = w.String()
	}
	l.runtime.faults.fault(subject, strings.Join(texts, "\n"), "manifest has warnings",
		zap.String(fieldAppID, m.AppID), zap.Strings(fieldWarnings, texts))
}

// report logs a change in how an app's manifest can be had. Names nobody knows are not logged one by one: they are made up
// by whoever likes, so the origin as a whole is their subject.
func (l *library) report(appID string, known bool, err error) {
	faults, subject := l.runtime.faults, "manifest "+l.source.Scope+" "+appID
	invalid, isInvalid := errors.AsType[*resolver.Faults](err)
	fields := []zap.Field{zap.String(fieldAppID, appID), zap.String(fieldOrigin, l.store.Identity())}
	switch {
	case err == nil:
		faults.well(subject, "manifest can be read again", fields...)
		faults.well("origin "+l.source.Scope, "origin answers again", fields[1:]...)
	case isInvalid:
		faults.fault(subject, "invalid", "manifest refused; the last good one stays in force", append(fields, zap.Error(invalid))...)
	case errors.Is(err, cache.ErrNotFound) && known:
		faults.fault(subject, "missing", "manifest is gone from the origin; the last good one stays in force", fields...)
	case errors.Is(err, cache.ErrNotFound):
		faults.well("origin "+l.source.Scope, "origin answers again", fields[1:]...)
	case known:
		faults.fault(subject, "unavailable", "manifest cannot be refreshed; the last good one stays in force",
			append(fields, zap.Error(err))...)
	default:
		faults.fault("origin "+l.source.Scope, "unavailable", "origin cannot be asked for a manifest", append(fields, zap.Error(err))...)
	}
}

func (l *library) reportDisk(appID string, err error) {
	l.runtime.counters.diskErrors.Add(1)
	l.runtime.faults.fault("disk", "failing", "last good manifest cannot be kept or read; check space and permissions",
		zap.String(fieldAppID, appID), zap.String(fieldStorage, l.runtime.dir), zap.Error(err))
}
