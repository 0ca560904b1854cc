package caddymodule

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"

	"go.uber.org/zap"

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

// sendOn sends a client on to where the upstream redirects to, a host that this edge does not fetch from: that is where the
// client would have gone without this edge. It reports false if the client must not go there.
func (h *Handler) sendOn(w http.ResponseWriter, r *http.Request, to *url.URL) bool {
	base := h.publicBase(r)
	subject, host := "redirects of "+h.relay.scope, zap.String("host", to.Scheme+"://"+to.Host)
	switch {
	case leadsBack(to, base+r.URL.EscapedPath()):
		h.runtime.faults.fault(subject, "here", "the upstream redirects downloads to this edge, which asks it for them; "+
			"it must have an address of its own for what phones download", host)
		return false
	case to.Scheme == "http" && strings.HasPrefix(base, "https://"):
		h.runtime.faults.fault(subject, "unsafe", "the upstream redirects downloads to http://, where no phone that came by https is sent; "+
			"have it redirect to https, or list the host in relay { allow_host ... } to have them come through here", host)
		return false
	}
	h.relay.elsewhere(to.String())
	passRedirect(w, to)
	return true
}

// passRedirect answers with a redirect. No one may keep the answer: what is signed in the address ends soon.
func passRedirect(w http.ResponseWriter, to *url.URL) {
	header := w.Header()
	header["Location"] = []string{to.String()}
	header["Cache-Control"] = noStore
	header["Cache-Status"] = passedOn
	header["X-Content-Type-Options"] = noSniff
	w.WriteHeader(http.StatusFound)
}

// leadsBack reports whether a redirect leads to the very address here that was asked for, so that its client would come back for
// ever: the upstream takes the address of this edge for its own.
func leadsBack(to *url.URL, asked string) bool {
	here, err := url.Parse(asked)
	return err == nil && hostOf(to) == hostOf(here) && path.Clean("/"+to.Path) == path.Clean("/"+here.Path)
}

// hostOf is the host of an address, in one form for all ways to write it, without a port that either scheme has anyway: a server
// that has both redirects from one to the other.
func hostOf(u *url.URL) string {
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if port := u.Port(); port != "" && port != "80" && port != "443" {
		host += ":" + port
	}
	return host
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
