package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin/state"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// Admin adds routes to Caddy's admin endpoint (contract section 7). It keeps no state: Caddy's admin server may hold one of
// a configuration that was rejected, so each request looks at the runtimes there are.
type Admin struct{}

// CaddyModule implements caddy.Module.
func (Admin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api." + moduleName, New: func() caddy.Module { return new(Admin) }}
}

// Routes implements caddy.AdminRouter.
func (Admin) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: "/capgo_edge/status", Handler: adminRoute(http.MethodGet, serveStatus)},
		{Pattern: "/capgo_edge/prefetch", Handler: adminRoute(http.MethodPost, servePrefetch)},
		{Pattern: "/capgo_edge/learned", Handler: caddy.AdminHandlerFunc(serveLearned)},
		{Pattern: "/capgo_edge/resume", Handler: adminRoute(http.MethodPost, serveResume)},
		{Pattern: "/capgo_edge/forget_choices", Handler: adminRoute(http.MethodPost, serveForgetChoices)},
		{Pattern: "/capgo_edge/dead_letters", Handler: adminRoute(http.MethodGet, serveDeadLetters)},
		{Pattern: "/capgo_edge/replay", Handler: adminRoute(http.MethodPost, serveReplay)},
	}
}

// adminRoute lets one method through and writes what serve returns as JSON.
func adminRoute(method string, serve func(r *http.Request) (any, error)) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.Method != method {
			return adminMethod(w, method)
		}
		answer, err := serve(r)
		if err != nil {
			return err
		}
		w.Header()["Content-Type"] = jsonType
		return json.NewEncoder(w).Encode(answer)
	}
}

func adminMethod(w http.ResponseWriter, method string) error {
	w.Header().Set("Allow", method)
	return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("this path takes %s", method)}
}

var errNoAppID = errors.New("app_id: name the app, such as com.example.app")

// eachRuntime calls do for every storage directory in use.
func eachRuntime(do func(r *runtime)) {
	runtimes.Range(func(_, value any) bool {
		do(value.(*runtime))
		return true
	})
}

// storageStatus is what GET /capgo_edge/status tells of one storage directory.
type storageStatus struct {
	Storage string `json:"storage"`
	// Healthy is false while the disk does not take objects; Error says why, and Since when that began.
	Healthy bool       `json:"healthy"`
	Error   string     `json:"error,omitempty"`
	Since   *time.Time `json:"since,omitempty"`

	Objects  int   `json:"objects"`
	Bytes    int64 `json:"bytes"`
	MaxSize  int64 `json:"max_size"`
	Filling  int   `json:"filling"`  // objects being fetched
	Warming  int   `json:"warming"`  // of them and those that are to be fetched ahead
	Scanning bool  `json:"scanning"` // the index is still being built

	Collectors []collectorStatus `json:"collectors,omitempty"`
	Upstreams  []upstreamStatus  `json:"upstreams,omitempty"`
	Paused     []rolloutPause    `json:"paused,omitempty"` // rollouts that the release guard stopped
}

func serveStatus(*http.Request) (any, error) {
	storages := []storageStatus{}
	eachRuntime(func(r *runtime) {
		if disk := r.openedDisk.Load(); disk != nil {
			storages = append(storages, r.status(disk))
		}
	})
	return map[string]any{"storages": storages}, nil
}

func (r *runtime) status(disk *cache.Disk) storageStatus {
	stats := disk.Stats()
	s := storageStatus{
		Storage: r.dir, Healthy: true, Objects: stats.Objects, Bytes: stats.Bytes, MaxSize: r.settings().maxSize,
		Filling: stats.Filling, Warming: r.warmer.waiting(), Scanning: stats.Scanning,
	}
	s.Paused = r.guard.pauses()
	s.Upstreams = r.upstreamStatus()
	r.eachOutlet(func(o *outlet, open *openOutlet) { s.Collectors = append(s.Collectors, o.status(open)) })
	if err, since := disk.Health(); err != nil {
		s.Healthy, s.Error, s.Since = false, err.Error(), &since
	}
	return s
}

// scopes are what the sites answer from, of all configurations.
func (r *runtime) scopes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := map[string]struct{}{}
	for site := range r.sites {
		seen[site.library.source.Scope] = struct{}{}
	}
	return slices.Sorted(maps.Keys(seen))
}

// prefetchRequest is the body of POST /capgo_edge/prefetch.
type prefetchRequest struct {
	AppID string `json:"app_id"`
}

// prefetchTimeout is how long the manifest of an app may take that is not known yet.
const prefetchTimeout = 30 * time.Second

// servePrefetch has every site that has a manifest of an app fetch what its channels point at. It answers once that is queued;
// status tells how far it is.
func servePrefetch(r *http.Request) (any, error) {
	var body prefetchRequest
	if err := readAdminBody(r, &body); err != nil {
		return nil, err
	}
	if err := checkAppID(body.AppID); err != nil {
		return nil, err
	}
	var sites []*Handler
	eachRuntime(func(r *runtime) { sites = append(sites, r.sitesOf(body.AppID)...) })
	ctx, cancel := context.WithTimeout(r.Context(), prefetchTimeout)
	defer cancel()
	found, queued := 0, 0
	var failure error
	asked := map[string]bool{}
	for _, site := range sites {
		scope := site.library.source.Scope
		if asked[scope] { // one site over http and https is two handlers
			continue
		}
		asked[scope] = true
		n, err := site.prefetch(ctx, body.AppID)
		switch {
		case err == nil:
			found, queued = found+1, queued+n
		case !errors.Is(err, cache.ErrNotFound):
			failure = err
		}
	}
	if found == 0 && failure != nil {
		return nil, caddy.APIError{HTTPStatus: http.StatusBadGateway, Err: fmt.Errorf("the manifest cannot be read: %w", failure)}
	}
	if found == 0 {
		return nil, caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("no site here has a manifest of the app %s", body.AppID)}
	}
	return map[string]any{"app_id": body.AppID, "sites": found, "queued": queued}, nil
}

func checkAppID(appID string) error {
	if !resolver.IsAppID(appID) || len(appID) > maxAppIDLen {
		return badRequest(fmt.Errorf("app_id: %q is not an app id, such as com.example.app", appID))
	}
	return nil
}

// readAdminBody reads a JSON object.
func readAdminBody(r *http.Request, into any) error {
	const limit = 64 << 10
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, limit))
	if err != nil {
		return badRequest(fmt.Errorf("the body cannot be read: %w", err))
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	const form = `the body must be JSON: one object such as {"app_id":"com.example.app"}`
	if !bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("{")) { // null would be taken for an empty one
		return badRequest(errors.New(form))
	}
	if err := decoder.Decode(into); err != nil {
		return badRequest(fmt.Errorf(form+": %w", err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return badRequest(errors.New(form + ", with nothing behind it"))
	}
	return nil
}

// prefetch fetches what an app's channels point at, whatever the site's setting. It returns how many objects that are.
func (h *Handler) prefetch(ctx context.Context, appID string) (int, error) {
	if err := h.runtime.open(h.settings, h.log); err != nil {
		return 0, err
	}
	app, err := h.library.renew(ctx, appID)
	if err != nil {
		return 0, err
	}
	return h.runtime.warmer.fetch(h.library, app), nil
}

// resumeRequest is the body of POST /capgo_edge/resume. Without a channel all of the app are meant.
type resumeRequest struct {
	AppID   string `json:"app_id"`
	Channel string `json:"channel"`
}

// serveResume has rollouts go on that the release guard stopped.
func serveResume(r *http.Request) (any, error) {
	var body resumeRequest
	if err := readAdminBody(r, &body); err != nil {
		return nil, err
	}
	if body.AppID == "" {
		return nil, badRequest(errors.New("app_id: which app's rollouts are to go on?"))
	}
	resumed := []rolloutPause{}
	eachRuntime(func(run *runtime) {
		if run.openedDisk.Load() != nil {
			resumed = append(resumed, run.guard.resume(r.Context(), body.AppID, body.Channel)...)
		}
	})
	if len(resumed) == 0 {
		what := "the app " + body.AppID
		if body.Channel != "" {
			what = "the channel " + body.Channel + " of " + what
		}
		return nil, caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf(
			"the release guard has stopped no rollout of %s here; GET /capgo_edge/status lists those that it has", what)}
	}
	return map[string]any{"resumed": resumed}, nil
}

// forgetChoicesRequest is the body of POST /capgo_edge/forget_choices. Nothing is forgotten by mistake: whoever means all devices of
// the app says so.
type forgetChoicesRequest struct {
	AppID    string `json:"app_id"`
	DeviceID string `json:"device_id"`
	All      bool   `json:"all"`
}

// serveForgetChoices removes channels that devices with old plugins have chosen here: those of made-up devices take up room.
func serveForgetChoices(r *http.Request) (any, error) {
	var body forgetChoicesRequest
	if err := readAdminBody(r, &body); err != nil {
		return nil, err
	}
	if err := checkAppID(body.AppID); err != nil {
		return nil, err
	}
	if (body.DeviceID == "") != body.All {
		return nil, badRequest(errors.New(`say which device, by device_id, or {"app_id":...,"all":true} for all of the app`))
	}
	forgotten, errs := 0, []error(nil)
	eachRuntime(func(run *runtime) {
		own := run.openedState.Load()
		if own == nil {
			return
		}
		for _, scope := range run.scopes() {
			n, err := forgetChoices(r.Context(), own.Scope(scope), &body)
			forgotten += n
			errs = append(errs, err)
		}
	})
	return map[string]any{"forgotten": forgotten}, errors.Join(errs...)
}

func forgetChoices(ctx context.Context, own *state.Scope, body *forgetChoicesRequest) (int, error) {
	if body.All {
		return own.UnassignAll(ctx, body.AppID)
	}
	device := strings.ToLower(body.DeviceID)
	if _, chosen := own.Assigned(body.AppID, device); !chosen {
		return 0, nil
	}
	return 1, own.Unassign(ctx, body.AppID, device)
}
