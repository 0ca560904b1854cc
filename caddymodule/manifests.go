package caddymodule

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
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
	// MaxSize is the size in bytes beyond which a manifest is refused. Default: 67108864 (64 MiB).
	MaxSize int64 `json:"max_size,omitempty"`
}

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
	case m.Fresh < 0 || m.StaleWhile < 0 || m.Negative < 0 || m.MaxSize < 0:
		return errors.New("manifests: ages and sizes must be positive")
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
	manifest *resolver.Manifest
	retired  []retiredKeys // newest first
}

// retiredKeys are keys a revision took away. Phones that were told of them may still be downloading.
type retiredKeys struct {
	keys  *resolver.Keys
	until time.Time
}

// Retired keys stay served for an hour (contract section 3), of so many revisions at the most.
const (
	retiredFor  = time.Hour
	maxRetired  = 32
	maxAppIDLen = 128
)

// find returns the first of the keys that the manifest names, or that an earlier revision named of late, and what is known
// of that object.
func (r *release) find(keys ...string) (string, resolver.Object, bool) {
	for _, key := range keys {
		if o, ok := r.manifest.Keys.Find(key); ok {
			return key, o, true
		}
	}
	for _, old := range r.retired {
		if !time.Now().Before(old.until) {
			continue
		}
		for _, key := range keys {
			if o, ok := old.keys.Find(key); ok {
				return key, o, true
			}
		}
	}
	return "", resolver.Object{}, false
}

// retire notes in next what it takes away from old, and returns that in a form decodeRetired reads.
func retire(old, next *release) []byte {
	now := time.Now()
	gone := old.manifest.Keys.Without(&next.manifest.Keys)
	if gone.Len() > 0 {
		next.retired = append(next.retired, retiredKeys{gone, now.Add(retiredFor)})
	}
	for _, r := range old.retired {
		if now.Before(r.until) && len(next.retired) < maxRetired {
			next.retired = append(next.retired, r)
		}
	}
	var memo []byte
	for _, r := range next.retired {
		keys := r.keys.AppendBinary(nil)
		memo = binary.AppendVarint(memo, r.until.Unix())
		memo = binary.AppendUvarint(memo, uint64(len(keys)))
		memo = append(memo, keys...)
	}
	return memo
}

// decodeRetired reads what retire wrote. What cannot be read is left out: such keys are only a courtesy.
func decodeRetired(memo []byte) []retiredKeys {
	var retired []retiredKeys
	for len(memo) > 0 {
		until, n := binary.Varint(memo)
		if n <= 0 {
			return retired
		}
		memo = memo[n:]
		size, n := binary.Uvarint(memo)
		if n <= 0 || size > uint64(len(memo)-n) {
			return retired
		}
		keys, ok := resolver.ParseKeys(memo[n : n+int(size)])
		if !ok {
			return retired
		}
		retired = append(retired, retiredKeys{keys, time.Unix(until, 0)})
		memo = memo[n+int(size):]
	}
	return retired
}

// library gives the release of an app, from the runtime's memory or the site's origin.
type library struct {
	runtime *runtime
	store   origin.Store
	config  *Manifests
	source  cache.Source[*release]
}

func newLibrary(r *runtime, store origin.Store, config *Manifests) *library {
	l := &library{runtime: r, store: store, config: config}
	l.source = cache.Source[*release]{
		Scope: store.Identity() + " " + config.Key,
		Ages: cache.Ages{
			Fresh: time.Duration(config.Fresh), StaleWhile: time.Duration(config.StaleWhile),
			Stale: time.Duration(config.Stale), Negative: time.Duration(config.Negative),
		},
		Fetch:      l.fetch,
		Decode:     l.decode,
		Replace:    retire,
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
	r := &release{manifest: m, retired: decodeRetired(memo)}
	size := m.MemorySize()
	for _, old := range r.retired {
		size += int64(old.keys.Len()) * 80
	}
	return r, size, nil
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
