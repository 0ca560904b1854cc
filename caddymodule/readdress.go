package caddymodule

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// readdresser puts a site's own addresses into prepared answers: signed ones, and those of external bundles that come
// through this edge. What it makes of a bundle is kept for as long as its signature is given out.
type readdresser struct {
	signer   *signer          // nil: addresses are not signed
	external *origin.External // nil: external addresses are handed out as they are
	window   atomic.Pointer[signingWindow]
}

// signingWindow holds the bundles whose addresses end at one time.
type signingWindow struct {
	expiry  int64
	bundles sync.Map // *resolver.Bundle -> *resolver.Bundle
}

// unsignedWindow is how long rewritten bundles are kept that are not signed: those of old releases must go some time.
const unsignedWindow = time.Hour

// bundle returns b as this site hands it out. m is the manifest it belongs to.
func (a *readdresser) bundle(m *resolver.Manifest, b *resolver.Bundle, now time.Time) *resolver.Bundle {
	w := a.windowAt(now)
	if kept, ok := w.bundles.Load(b); ok {
		return kept.(*resolver.Bundle)
	}
	var r resolver.Addresses
	if a.signer != nil {
		r.Suffix = func(dst []byte, key string) []byte { return a.signer.suffix(dst, key, w.expiry) }
	}
	if address, _, ok := b.External(); ok && a.proxies(address) {
		r.ExternalKey = resolver.ExternalKey(m.AppID, address)
	}
	made := b.Readdress(m, r)
	w.bundles.Store(b, made)
	return made
}

// learned returns an answer of an upstream as this site hands it out.
func (a *readdresser) learned(l *resolver.Learned, now time.Time) *resolver.Learned {
	expiry := a.signer.expiry(now)
	return l.Suffixed(func(dst []byte, key string) []byte { return a.signer.suffix(dst, key, expiry) })
}

func (a *readdresser) windowAt(now time.Time) *signingWindow {
	expiry := now.Truncate(unsignedWindow).Unix()
	if a.signer != nil {
		expiry = a.signer.expiry(now)
	}
	w := a.window.Load()
	if w == nil || w.expiry != expiry {
		w = &signingWindow{expiry: expiry}
		a.window.Store(w)
	}
	return w
}

// proxies reports whether an external address comes through this edge.
func (a *readdresser) proxies(address string) bool {
	return a.external != nil && a.external.Allows(address)
}
