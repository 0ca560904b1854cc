package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/state"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// Handler is the edge of one site: it answers update checks from channel manifests and hands out bundles. Requests that
// are not for it go to the next handler.
type Handler struct {
	// Origin is the storage that holds manifests and bundles.
	OriginRaw json.RawMessage `json:"origin,omitempty" caddy:"namespace=capgo_edge.origins inline_key=kind"`

	// Upstreams are existing Capgo-compatible servers that know the apps without a manifest, in the order in which they are
	// asked: what phones had as updateUrl, without "/updates" at its end.
	Upstreams []string `json:"upstreams,omitempty"`

	// Relay says how the upstreams' answers are kept and shared.
	Relay *Relay `json:"relay,omitempty"`

	// Manifests says where channel manifests are, and how long they are used.
	Manifests *Manifests `json:"manifests,omitempty"`

	// Apps are the apps this site serves; * matches any text. All others are unknown and cost the origin nothing. Letter
	// case matters. Default: all.
	Apps []string `json:"apps,omitempty"`

	// PublicURL is the address phones reach this site at, with the path prefix it is mounted at, if any. Default: scheme
	// and host of each request, as trusted proxies report them.
	PublicURL string `json:"public_url,omitempty"`

	// Stats say where the statistics of phones go. Default: to "/stats" of the first upstream; without one events are answered,
	// and end here.
	Stats []*Stats `json:"stats,omitempty"`

	// ChannelSelf says how devices choose their channel.
	ChannelSelf *ChannelSelf `json:"channel_self,omitempty"`

	// Bundles says how bundles are handed out.
	Bundles *Bundles `json:"bundles,omitempty"`

	// Debug adds Cache-Status to answers that are not objects, telling how the manifest was had. Default: off.
	Debug bool `json:"debug,omitempty"`

	runtime    *runtime
	settings   settings // of the app, for a request that comes before its start
	log        *zap.Logger
	store      origin.Store
	library    *library
	app        *App
	shelves    *shelves
	statistics *statistics
	relay      *relay       // nil without an upstream
	relayOnly  bool         // there is no origin, so no app has a manifest
	webhook    *webhook     // nil without a secret
	address    *readdresser // nil if prepared addresses are right as they are
	scratch    *sync.Pool   // of *scratch

	channelLimits *channelLimits // nil if there are none

	// ownState is what this edge knows by itself of the apps of this site's origin. The storage must be open.
	ownState func() *state.Scope
}

// CaddyModule implements caddy.Module.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.capgo_edge", New: func() caddy.Module { return new(Handler) }}
}

// Provision reads the configuration. It touches neither disk nor network.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.log = ctx.Logger()
	err := h.provisionOrigin(ctx)
	if err != nil {
		return err
	}
	if h.Manifests == nil {
		h.Manifests = new(Manifests)
	}
	if err = h.Manifests.provision(); err != nil {
		return err
	}
	if h.ChannelSelf == nil {
		h.ChannelSelf = new(ChannelSelf)
	}
	if h.channelLimits, err = h.ChannelSelf.provision(); err != nil {
		return err
	}
	if h.Bundles == nil {
		h.Bundles = new(Bundles)
	}
	if h.address, err = h.Bundles.provision(); err != nil {
		return err
	}
	if h.address != nil && h.address.signer != nil && h.address.signer.isWeak() {
		h.log.Warn("the secret that signs addresses is short enough to be guessed; make one with: openssl rand -hex 32")
	}
	if err = h.checkAddresses(); err != nil {
		return err
	}
	module, err := ctx.App(moduleName)
	if err != nil {
		return err
	}
	app := module.(*App)
	h.app, h.runtime, h.settings = app, app.runtime, app.settings
	if err = h.provisionRelay(); err != nil {
		return err
	}
	h.shelves = newShelves(h.runtime, h.store, h.address)
	if h.relay != nil {
		h.shelves.learned = h.relay.shelf
	}
	h.library = newLibrary(h.runtime, h.store, h.Manifests, h.Bundles, h.shelves)
	if h.statistics, err = newStatistics(app, h.scope(), h.statsConfig()); err != nil {
		return err
	}
	h.ownState = sync.OnceValue(func() *state.Scope { return h.runtime.state.Scope(h.library.source.Scope) })
	h.runtime.enroll(h)
	h.scratch = &sync.Pool{New: func() any { return new(scratch) }}
	return nil
}

var errNoOrigin = errors.New("neither origin nor upstream: say where manifests and bundles are, for example with \"origin file <dir>\", " +
	"or which Capgo server knows the apps, with \"upstream <url>\"")

func (h *Handler) provisionOrigin(ctx caddy.Context) error {
	if h.OriginRaw == nil && len(h.Upstreams) > 0 {
		h.store, h.relayOnly = origin.Nowhere{}, true
		return nil
	}
	if h.OriginRaw == nil {
		return errNoOrigin
	}
	module, err := ctx.LoadModule(h, "OriginRaw")
	if err != nil {
		return fmt.Errorf("loading the origin: %w", err)
	}
	h.store, err = module.(Origin).Store()
	return err
}

// checkAddresses judges and normalizes what names addresses and apps.
func (h *Handler) checkAddresses() error {
	public, err := expand("public_url", h.PublicURL)
	if err != nil {
		return err
	}
	if public != "" {
		if err := checkPublicURL(public); err != nil {
			return err
		}
	}
	h.PublicURL = strings.TrimSuffix(public, "/")
	if err := checkApps(h.Apps); err != nil {
		return err
	}
	return nil
}

func checkPublicURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || !isWebScheme(u.Scheme) || !isHost(u.Host) || u.RawQuery != "" || u.Fragment != "" || u.User != nil ||
		strings.ContainsAny(s, `"\<> `) {
		return fmt.Errorf("public_url: %q must be http(s)://host, with a path at the most, and no query", withoutSecrets(s))
	}
	return nil
}

func isWebScheme(scheme string) bool { return scheme == "http" || scheme == "https" }

func checkApps(patterns []string) error {
	for _, pattern := range patterns {
		switch {
		case strings.ContainsAny(pattern, "{}"):
			return fmt.Errorf("apps: %q is not replaced here; in a Caddyfile, {$NAME} takes the value of a variable", pattern)
		case pattern == "" || strings.ContainsFunc(pattern, func(c rune) bool { return !isAppIDChar(c) && c != '*' }):
			return fmt.Errorf("apps: %q is not an app id, nor one with *", pattern)
		}
	}
	return nil
}

func isAppIDChar(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c)
}

func checkCORS(origins []string) error {
	for _, o := range origins {
		u, err := url.Parse(o)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" {
			return fmt.Errorf("cors: %q must be an origin as browsers send it, such as https://app.example.com", o)
		}
	}
	return nil
}

// Cleanup gives up the handler. Requests may still run in it, so only what they do not use is taken away.
func (h *Handler) Cleanup() error {
	if h.relay != nil {
		h.relay.close()
	}
	if store, ok := h.store.(interface{ CloseIdleConnections() }); ok {
		store.CloseIdleConnections()
	}
	if h.address != nil && h.address.external != nil {
		h.address.external.CloseIdleConnections()
	}
	if h.library != nil {
		h.runtime.dismiss(h)
	}
	if h.statistics != nil {
		h.statistics.release()
	}
	return nil
}

// names reports whether the operator has named the app itself, so that it is none that somebody has made up.
func (h *Handler) names(appID string) bool { return slices.Contains(h.Apps, appID) }

// serves reports whether this site serves the app.
func (h *Handler) serves(appID string) bool { return matchesApp(h.Apps, appID) }

// ServeHTTP routes a request (contract section 3).
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if strings.HasPrefix(r.URL.Path, resolver.FilesPath) {
		return h.open(w, r, h.serveObject)
	}
	switch strings.TrimPrefix(r.URL.Path, "/plugin") {
	case "/updates":
		return h.open(w, r, h.serveUpdates)
	case "/updates/manifest_size":
		return h.open(w, r, h.serveSizes)
	case pathStats:
		return h.open(w, r, h.serveStats)
	case "/channel_self":
		return h.open(w, r, h.serveChannelSelf)
	case "/webhooks/capgo":
		if h.webhook != nil && r.URL.Path == "/webhooks/capgo" {
			return h.open(w, r, h.webhook.serve)
		}
	case "/ok":
		if r.URL.Path == "/ok" {
			return h.open(w, r, h.serveOK)
		}
	}
	return next.ServeHTTP(w, r)
}

// open serves a request once the storage is open. A request may come before the app was started.
func (h *Handler) open(w http.ResponseWriter, r *http.Request, serve func(http.ResponseWriter, *http.Request)) error {
	if err := h.runtime.open(h.settings, h.log); err != nil {
		return caddyhttp.Error(http.StatusServiceUnavailable, err)
	}
	h.allowOrigin(w, r)
	if r.Method == http.MethodOptions {
		h.servePreflight(w, r)
		return nil
	}
	serve(w, r)
	return nil
}
