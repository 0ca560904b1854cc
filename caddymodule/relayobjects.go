package caddymodule

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/learned"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// learnedObjects is the storage of a relay: the objects that the upstream's answers lead to, wherever they are just now. A
// key is the app and the object's key, and stays the same while addresses come and go.
type learnedObjects struct{ relay *relay }

func learnedName(appID, key string) string { return appID + " " + key }

// Identity implements origin.Store.
func (o *learnedObjects) Identity() string { return o.relay.scope }

// Get implements origin.Store.
func (o *learnedObjects) Get(ctx context.Context, name string, opts origin.GetOptions) (*origin.Object, error) {
	appID, key, _ := strings.Cut(name, " ")
	kept := o.relay.kept()
	if kept == nil {
		return nil, fmt.Errorf("%w: learned.db cannot be used", origin.ErrUnavailable)
	}
	object, ok := kept.Find(appID, key)
	if !ok {
		return nil, origin.ErrNotFound
	}
	return o.relay.external.Get(ctx, object.URL, opts)
}

// find returns what the first of the keys stands for that an answer of the upstream led to.
func (l *relay) find(appID string, keys []string) (target, bool) {
	kept := l.kept()
	if kept == nil {
		return target{}, false
	}
	for _, key := range keys {
		if o, ok := kept.Find(appID, key); ok {
			return target{key: key, known: knownObject(&o), learnedOf: appID}, true
		}
	}
	return target{}, false
}

// passedOn is the Cache-Status of a request whose client is sent on.
var passedOn = []string{"capgo-edge; fwd=bypass; detail=redirect"}

// passRedirect sends a client on to where the upstream redirects to, a host that this edge does not fetch from: that is where
// the client would have gone without this edge. No one may keep the answer: what is signed in the address ends soon.
func passRedirect(w http.ResponseWriter, to *url.URL) {
	header := w.Header()
	header["Location"] = []string{to.String()}
	header["Cache-Control"] = noStore
	header["Cache-Status"] = passedOn
	header["X-Content-Type-Options"] = noSniff
	w.WriteHeader(http.StatusFound)
}

// leadsBack reports whether a redirect leads to the very path here that was asked for, so that its client would come back
// for ever: the upstream takes the address of this edge for its own.
func (h *Handler) leadsBack(r *http.Request, to *url.URL) bool {
	here, err := url.Parse(h.publicBase(r) + r.URL.EscapedPath())
	return err == nil && strings.EqualFold(to.Host, here.Host) && to.Path == here.Path
}

func knownObject(o *learned.Object) resolver.Object {
	known := resolver.Object{SHA256: o.SHA256, Size: o.Size}
	switch o.Covers {
	case learned.StoredBytes:
		known.Covers = resolver.DigestStored
	case learned.DecodedBytes:
		known.Covers = resolver.DigestDecoded
	case learned.Nothing:
	}
	return known
}
