package upstreams

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// Official stands in for the official server: plugin worker, files worker and management API under one address. The column
// "Official" of protocol 7:
//
//	Endpoints                  all
//	Status for errors          200/400/429, in the order of protocol 1.5
//	kind                       yes
//	Error form                 error, message
//	Up to date                 no_new_version_available
//	Channel                    protocol section 2: overrides, self-assignment and rollouts per device
//	Level compared with        version_build
//	checksum                   SHA-256
//	manifest                   yes
//	URL lifetime               stable, with key and device_id (protocol 3.2)
//	Depends on device_id       override, rollout
//	/stats answer              4.2, 4.3, per item
//	Headers                    X-Request-Id, X-Worker-Source and others; none about caching
//
// What it decides comes from resolver, which the conformance vectors hold to the real server. Around it are what an edge
// has no part in: throttles, plan, unknown apps and their memory, data-centre addresses, and the 500 for a version name
// that is not semver. The draws of rollouts are not those an edge would make, see DrawLikeEdge.
type Official struct {
	Server

	// Providers are the client addresses in a data centre, with its name, for apps with block_provider_infra_requests.
	Providers map[string]string
	// NoLimits switches the limits of /channel_self off (protocol 5.1).
	NoLimits bool
	// DrawLikeEdge has rollouts draw devices as an edge with the same manifest does. Otherwise the draws are the server's
	// own, made anew by each server and remembered (protocol 2.3). Set it before Publish.
	DrawLikeEdge bool
	// Key is the API key of the management API. KeyLimit is how many of its requests a minute may have.
	Key      string
	KeyLimit int

	salt    string
	state   sync.Mutex
	apps    map[string]*officialApp         // guarded by state, as all below
	status  map[string]appStatus            // what was last read of an app, for 60 s
	probes  map[string]map[string]time.Time // unknown apps that an address asked for
	choices map[[2]string]int64             // of app and device, by /channel_self
	calls   map[string][]time.Time          // of what is limited
	objects map[string][]byte               // by key
	events  []json.RawMessage
}

// appStatus is what the plugin worker remembers of an app.
type appStatus struct {
	known bool // and paid
	until time.Time
}

const (
	statusAge       = time.Minute      // protocol 1.5, 5a
	probeAge        = 15 * time.Minute // 5b
	probesAllowed   = 5
	officialPrefix  = "/functions/v1"
	officialKey     = "00000000-test-key"
	officialPerMin  = 2000
	maxSelfPerMin   = 1000
	maxSelfPerSec   = 5
	sameChannelWait = time.Minute
)

// NewOfficial returns an official server without apps, at /functions/v1.
func NewOfficial() *Official {
	o := &Official{
		Providers: map[string]string{}, Key: officialKey, KeyLimit: officialPerMin, salt: rand.Text(),
		apps: map[string]*officialApp{}, status: map[string]appStatus{}, probes: map[string]map[string]time.Time{},
		choices: map[[2]string]int64{}, calls: map[string][]time.Time{}, objects: map[string][]byte{},
	}
	o.init(officialPrefix, o.route)
	return o
}

// Events are the statistics that were accepted, oldest first.
func (o *Official) Events() []json.RawMessage {
	o.state.Lock()
	defer o.state.Unlock()
	return append([]json.RawMessage(nil), o.events...)
}

func (o *Official) route(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, resolver.FilesPath) {
		o.serveFile(w, r)
		return
	}
	if o.routeManagement(w, r) {
		return
	}
	pluginHeaders(w, r)
	switch path := strings.TrimPrefix(r.URL.Path, "/plugin"); {
	case path == "/updates" && r.Method == http.MethodPost:
		o.updates(w, r)
	case path == "/updates/manifest_size" && r.Method == http.MethodPost:
		o.sizes(w, r)
	case path == "/stats" && r.Method == http.MethodPost:
		o.stats(w, r)
	case path == "/channel_self":
		o.channelSelf(w, r)
	case (path == "/updates" || path == "/stats") && r.Method == http.MethodGet, r.URL.Path == "/ok", r.URL.Path == "/latency":
		writeJSON(w, http.StatusOK, object{"status": "ok"})
	default:
		notFound(w)
	}
}

// pluginHeaders are those of every plugin answer (protocol 1.1). None says anything about caching.
func pluginHeaders(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Vary", "Origin")
	h.Set("X-Request-Id", rand.Text())
	h.Set("X-Worker-Source", "standin_plugin-eu-prod")
	h.Set("X-Database-Source", "replica_eu")
	h.Set("X-Replication-Lag", "0")
	for _, web := range []string{"capacitor://localhost", "ionic://localhost", "http://localhost", "https://localhost"} {
		if r.Header.Get("Origin") == web {
			h.Set("Access-Control-Allow-Origin", web)
		}
	}
}

func unknownError(w http.ResponseWriter) {
	writeJSON(w, http.StatusInternalServerError, object{"error": "unknown_error", "message": "Unknown error", "moreInfo": object{}})
}

func refusal(w http.ResponseWriter, r *resolver.Refusal) {
	writeJSON(w, r.Status, resolver.AppendRefusal(nil, r))
}

func body(r *http.Request) []byte {
	raw, err := io.ReadAll(r.Body)
	if err != nil { // it is in memory already
		panic(err)
	}
	return raw
}

// updates answers a check, in the order of protocol 1.5.
func (o *Official) updates(w http.ResponseWriter, r *http.Request) {
	raw := body(r)
	var parser resolver.CheckParser
	c, err := parser.Parse(raw)
	if errors.Is(err, resolver.ErrNotJSON) { // row 1
		refusal(w, resolver.ErrNotJSON)
		return
	}
	if breaksOfficial(raw) {
		unknownError(w)
		return
	}
	if o.throttled(w, appIDOf(raw)) { // row 2
		return
	}
	if refused, ok := errors.AsType[*resolver.Refusal](err); ok { // rows 3a to 3e
		refusal(w, refused)
		return
	}
	app := o.admit(w, r, c.AppID, http.StatusOK) // rows 4 to 7
	if app == nil {
		return
	}
	o.state.Lock()
	choice, chose := o.choices[[2]string{c.AppID, c.DeviceID}]
	o.state.Unlock()
	if chose && c.AsksAssignment() {
		c.Assign(choice)
	}
	d := app.manifest.Decide(&c)
	switch {
	case d.Rule == "bundle_name_not_semver":
		unknownError(w)
	case d.Outcome != resolver.Offer:
		writeJSON(w, http.StatusOK, resolver.AppendResponse(nil, &d, o.URL))
	default:
		writeJSON(w, http.StatusOK, withDevice(resolver.AppendResponse(nil, &d, o.URL), o.URL, c.DeviceID))
	}
}

// breaksOfficial reports a body that the official server fails over, instead of refusing it (protocol 1.5, notes).
func breaksOfficial(raw []byte) bool {
	var members map[string]any
	if json.Unmarshal(raw, &members) != nil {
		return false
	}
	_, device := members["device_id"].(float64)
	_, build := members["version_build"].(float64)
	return members == nil || device || build
}

func appIDOf(raw []byte) string {
	var c struct {
		AppID string `json:"app_id"`
	}
	_ = json.Unmarshal(raw, &c) // what has no app id has none
	return c.AppID
}

// withDevice turns the addresses of an offer into the official ones, which name the device and never the app.
func withDevice(answer []byte, base, device string) any {
	var offer object
	if err := json.Unmarshal(answer, &offer); err != nil {
		panic(err)
	}
	address := func(value any) any {
		text := value.(string)
		if !strings.HasPrefix(text, base+resolver.FilesPath) {
			return text
		}
		text, _, _ = strings.Cut(text, "&app_id=")
		return text + "&device_id=" + device
	}
	offer["url"] = address(offer["url"])
	if files, ok := offer["manifest"].([]any); ok {
		for _, file := range files {
			file := file.(object)
			file["download_url"] = address(file["download_url"])
		}
	}
	return offer
}

// throttled answers for apps that the operator throttles.
func (o *Official) throttled(w http.ResponseWriter, appID string) bool {
	app := o.app(appID)
	if app == nil || mathrand.Float64() >= app.rateLimited {
		return false
	}
	writeJSON(w, http.StatusTooManyRequests, object{
		"error": "too_many_requests", "message": "Too many requests", "moreInfo": object{"app_id": appID},
	})
	return true
}

// admit is rows 4 to 7 of protocol 1.5. It returns the app, or answers and returns nil. blocked is the status for addresses
// of data centres, which the endpoints do not agree on.
func (o *Official) admit(w http.ResponseWriter, r *http.Request, appID string, blocked int) *officialApp {
	client := ClientOf(r)
	known, remembered := o.remembered(appID)
	if remembered && known && o.blocks(w, client, appID, blocked) { // row 4
		return nil
	}
	if remembered && !known { // row 5a
		onPremise(w, true)
		return nil
	}
	if o.probesTooMuch(client) { // row 5b
		onPremise(w, false)
		return nil
	}
	app := o.app(appID)
	if o.broken(r.URL.Path, NoDatabase) { // row 5c, a failed look-up, which nothing remembers
		onPremise(w, true)
		return nil
	}
	o.remember(client, appID, app)
	switch {
	case app == nil: // row 5c
		onPremise(w, true)
		return nil
	case o.blocks(w, client, appID, blocked): // row 6
		return nil
	case !app.planValid: // row 7
		onPremise(w, true)
		return nil
	}
	return app
}

func onPremise(w http.ResponseWriter, message bool) {
	answer := object{"error": "on_premise_app"}
	if message {
		answer["message"] = "On-premise app detected"
	}
	writeJSON(w, http.StatusTooManyRequests, answer)
}

func (o *Official) remembered(appID string) (known, remembered bool) {
	now := o.now()
	o.state.Lock()
	defer o.state.Unlock()
	status, ok := o.status[appID]
	return status.known, ok && now.Before(status.until)
}

// remember notes what is known of an app, and that an address asked for one that nobody knows.
func (o *Official) remember(client, appID string, app *officialApp) {
	now := o.now()
	o.state.Lock()
	defer o.state.Unlock()
	o.status[appID] = appStatus{app != nil && app.planValid, now.Add(statusAge)}
	if app != nil {
		return
	}
	if o.probes[client] == nil {
		o.probes[client] = map[string]time.Time{}
	}
	o.probes[client][appID] = now.Add(probeAge)
}

func (o *Official) probesTooMuch(client string) bool {
	now := o.now()
	o.state.Lock()
	defer o.state.Unlock()
	n := 0
	for _, until := range o.probes[client] {
		if now.Before(until) {
			n++
		}
	}
	return n >= probesAllowed
}

// blocks answers for addresses in the data centres of Google and Apple, if the app wants them refused.
func (o *Official) blocks(w http.ResponseWriter, client, appID string, status int) bool {
	app, provider := o.app(appID), o.Providers[client]
	if app == nil || !app.blockProviders || provider == "" {
		return false
	}
	writeJSON(w, status, object{
		"error": "provider_infrastructure_request_blocked", "kind": "blocked", "provider": provider,
		"message": "Requests from the infrastructure of " + provider + " are not answered for this app",
	})
	return true
}

// stats takes events (protocol 4.2, 4.3).
func (o *Official) stats(w http.ResponseWriter, r *http.Request) {
	raw := body(r)
	var parser resolver.EventParser
	events, batch, err := parser.Parse(raw)
	if refused, ok := errors.AsType[*resolver.Refusal](err); ok {
		refusal(w, refused)
		return
	}
	if len(events) == 0 {
		writeJSON(w, http.StatusOK, object{"status": "ok", "results": []any{}})
		return
	}
	if o.throttled(w, events[0].AppID) {
		return
	}
	app := o.app(events[0].AppID)
	if app != nil || !batch { // a batch hears of an unknown app item by item
		if app = o.admit(w, r, events[0].AppID, http.StatusTooManyRequests); app == nil {
			return
		}
	}
	refusals := make([]*resolver.Refusal, len(events))
	for i := range events {
		refusals[i] = o.take(app, &events[i])
	}
	if batch {
		writeJSON(w, http.StatusOK, resolver.AppendBatchAnswer(nil, refusals))
		return
	}
	status, refused := http.StatusOK, refusals[0]
	if refused != nil {
		status = refused.Status
		if len(refused.Issues) == 1 && refused.Issues[0].Field == "action" && refused != unknownAction { // it is absent
			unknownError(w)
			return
		}
	}
	writeJSON(w, status, resolver.AppendEventAnswer(nil, refused))
}

// unknownAction refuses an event for an action that is not on the server's list.
var unknownAction = &resolver.Refusal{
	Status: http.StatusBadRequest, Code: "invalid_json_body", Message: "Cannot parse body",
	Issues: []resolver.Issue{{Field: "action", Code: "invalid_enum_value", Message: "Invalid option"}},
}

// take keeps one event, or tells why not.
func (o *Official) take(app *officialApp, e *resolver.Event) *resolver.Refusal {
	switch {
	case e.Refusal != nil:
		return e.Refusal
	case app == nil:
		return &resolver.Refusal{Status: http.StatusTooManyRequests, Code: "on_premise_app", Message: "On-premise app detected"}
	case !actions[e.Action]:
		return unknownAction
	}
	if refused := app.manifest.JudgeEvent(e); refused != nil || e.Ignored {
		return refused
	}
	o.state.Lock()
	defer o.state.Unlock()
	o.events = append(o.events, append(json.RawMessage(nil), e.Raw...))
	return nil
}
