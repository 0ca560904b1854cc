package upstreams

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"sync"
	"time"
)

// GoServer stands in for capgo-server, the one in Go. Its column of protocol 7:
//
//	Endpoints                  /updates, /stats, POST and DELETE /channel_self
//	Status for errors          429 with empty body when throttled, else JSON with status
//	kind                       never
//	Error form                 {"error": text}
//	Up to date                 none: always returns the newest, even if equal, or builtin with a url
//	Channel                    platform + app only
//	Order of versions          one per (platform, app, version_build, version_code)
//	checksum, session_key      CRC32; sessionKey, plus signature
//	manifest                   no
//	URL lifetime               stable
//	Depends on version_code    yes
//	/stats answer              {}
//	Headers                    origin-side cache 10 min
//
// That cache keeps the bodies of errors like those of answers, and gives both back with status 200.
type GoServer struct {
	Server

	state     sync.Mutex
	throttled bool // guarded by state, as all below
	bundles   map[GoKey]GoBundle
	cached    map[GoKey]cachedBody
}

// GoKey is what an answer depends on.
type GoKey struct{ Platform, AppID, VersionBuild, VersionCode string }

// GoBundle is the version that is published under a key.
type GoBundle struct {
	Version    string
	SessionKey string
	Signature  string
	Content    []byte
}

// cachedBody is an answer in the server's cache, whatever its status was.
type cachedBody struct {
	body  object
	until time.Time
}

const goServerCache = 10 * time.Minute

// NewGoServer returns a server without apps.
func NewGoServer() *GoServer {
	g := &GoServer{bundles: map[GoKey]GoBundle{}, cached: map[GoKey]cachedBody{}}
	g.init("", g.route)
	return g
}

// Publish makes a version the newest of a key. What the cache knows of it stays for a while.
func (g *GoServer) Publish(key GoKey, b GoBundle) {
	g.state.Lock()
	defer g.state.Unlock()
	g.bundles[key] = b
}

// Throttle has all requests answered 429 without a body, or no more.
func (g *GoServer) Throttle(on bool) {
	g.state.Lock()
	defer g.state.Unlock()
	g.throttled = on
}

func (g *GoServer) route(w http.ResponseWriter, r *http.Request) {
	g.state.Lock()
	defer g.state.Unlock()
	path := r.URL.Path
	switch {
	case g.throttled:
		w.WriteHeader(http.StatusTooManyRequests)
	case path == "/updates" && r.Method == http.MethodPost:
		status, answer := g.answerLocked(body(r))
		writeJSON(w, status, answer)
	case path == "/stats" && r.Method == http.MethodPost:
		writeJSON(w, http.StatusOK, object{})
	case path == "/channel_self" && (r.Method == http.MethodPost || r.Method == http.MethodDelete):
		writeJSON(w, http.StatusOK, object{"status": "ok"})
	case strings.HasPrefix(path, "/bundles/"):
		g.sendLocked(w, r)
	default:
		writeJSON(w, http.StatusNotFound, object{"error": "not found"})
	}
}

func (g *GoServer) answerLocked(raw []byte) (int, object) {
	var c check
	if json.Unmarshal(raw, &c) != nil || c.AppID == "" {
		return http.StatusBadRequest, object{"error": "invalid request body"}
	}
	key := GoKey{c.Platform, c.AppID, c.VersionBuild, c.VersionCode}
	now := g.now()
	if old, ok := g.cached[key]; ok && now.Before(old.until) {
		return http.StatusOK, old.body
	}
	status, answer := g.decideLocked(key)
	g.cached[key] = cachedBody{answer, now.Add(goServerCache)}
	return status, answer
}

// decideLocked answers the newest version of the key, or for an app that has others the native one.
func (g *GoServer) decideLocked(key GoKey) (int, object) {
	if b, ok := g.bundles[key]; ok {
		return http.StatusOK, object{
			"version": b.Version, "url": g.address(key, b), "checksum": fmt.Sprintf("%08x", crc32.ChecksumIEEE(b.Content)),
			"sessionKey": b.SessionKey, "signature": b.Signature,
		}
	}
	for other := range g.bundles {
		if other.AppID == key.AppID && other.Platform == key.Platform {
			return http.StatusOK, object{"version": "builtin", "url": g.URL + "/bundles/builtin.zip"}
		}
	}
	return http.StatusNotFound, object{"error": "app not found"}
}

func (g *GoServer) address(key GoKey, b GoBundle) string {
	return g.URL + "/bundles/" + key.Platform + "/" + key.AppID + "/" + key.VersionBuild + "/" + key.VersionCode + "/" + b.Version + ".zip"
}

func (g *GoServer) sendLocked(w http.ResponseWriter, r *http.Request) {
	for key, b := range g.bundles {
		if strings.HasSuffix(g.address(key, b), r.URL.Path) {
			sendObject(w, r, b.Version+".zip", b.Content)
			return
		}
	}
	writeJSON(w, http.StatusNotFound, object{"error": "not found"})
}
