package caddymodule_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// depot is a web origin whose answer for each object a test chooses. Its manifest comes from its site's directory.
type depot struct {
	*site
	URL string

	mu      sync.Mutex
	answers map[string]http.HandlerFunc // guarded by mu, as all below; by key
	gets    map[string]int              // GETs of objects, by key
	dead    bool
	rows    []map[string]any // of the manifest
}

func newDepot(t testing.TB) *depot {
	d := &depot{site: newSite(t), answers: map[string]http.HandlerFunc{}, gets: map[string]int{}}
	server := httptest.NewServer(d)
	t.Cleanup(func() {
		server.CloseClientConnections() // a test that failed may have left an answer hanging
		server.Close()
	})
	d.URL = server.URL
	return d
}

// config is a site over this origin. Its manifest is read once.
func (d *depot) config(options ...string) edgetest.Config {
	return edgetest.Config{Site: fmt.Sprintf("capgo_edge {\n origin http %s\n manifests {\n fresh 10m\n}\n %s\n}\n",
		d.URL, strings.Join(options, "\n"))}
}

// add names an object in the manifest, with the digest of content, and says how the origin answers for it. It returns the
// path to ask the edge for. announceAll must follow.
func (d *depot) add(name string, content []byte, answer http.HandlerFunc) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := d.zipKey(strings.NewReplacer(" ", "-", "/", "-").Replace(name))
	d.answers[key] = answer
	d.rows = append(d.rows, map[string]any{
		"id": len(d.rows) + 1, "name": fmt.Sprintf("1.0.%d", len(d.rows)+1), "r2_path": key, "checksum": digest(content),
	})
	return "/files/read/attachments/" + key
}

// addFile is add for a delta file.
func (d *depot) addFile(key, hash string, size int, answer http.HandlerFunc) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	key = "orgs/o/apps/" + appID + "/delta/" + key
	d.answers[key] = answer
	d.rows = append(d.rows, map[string]any{
		"id": len(d.rows) + 1, "name": fmt.Sprintf("1.0.%d", len(d.rows)+1), "checksum": digest([]byte(key)),
		"manifest": []any{map[string]any{"file_name": key, "file_hash": hash, "s3_path": key, "file_size": size}},
	})
	return "/files/read/attachments/" + key
}

// announceAll writes the manifest. The channel points at a bundle that no test asks for, since that one is prefetched.
func (d *depot) announceAll() {
	d.t.Helper()
	d.add("prefetched", []byte("a bundle"), whole([]byte("a bundle")))
	doc, err := json.Marshal(map[string]any{
		"app":      map[string]any{"app_id": appID},
		"versions": d.rows,
		"channels": []any{map[string]any{"id": 1, "name": "production", "public": true, "version": len(d.rows)}},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	edgetest.WriteFile(d.t, d.dir, "manifests/"+appID+".json", doc)
}

// answer changes how the origin answers for an object.
func (d *depot) answer(path string, answer http.HandlerFunc) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers[strings.TrimPrefix(path, "/files/read/attachments/")] = answer
}

// asked tells how often the object was fetched, in whole or in part.
func (d *depot) asked(path string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gets[strings.TrimPrefix(path, "/files/read/attachments/")]
}

// die has the origin hang up on every request.
func (d *depot) die(dead bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = dead
}

func (d *depot) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := strings.TrimPrefix(r.URL.Path, "/")
	d.mu.Lock()
	answer, dead := d.answers[key], d.dead
	if r.Method == http.MethodGet && answer != nil && !dead {
		d.gets[key]++
	}
	d.mu.Unlock()
	switch {
	case dead:
		panic(http.ErrAbortHandler)
	case answer != nil:
		answer(w, r)
	default:
		http.FileServer(http.Dir(d.dir)).ServeHTTP(w, r)
	}
}

// The ways an origin answers for an object.

// whole answers as a good origin does: ranges, conditions, ETag.
func whole(content []byte) http.HandlerFunc { return tagged(content, `"v1"`) }

func tagged(content []byte, etag string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}

// unsized answers without telling the size, and without ranges.
func unsized(content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		send(w, content[:len(content)/2])
		send(w, content[len(content)/2:])
	}
}

func send(w http.ResponseWriter, content []byte) {
	_, _ = w.Write(content)
	_ = http.NewResponseController(w).Flush()
}

// hold is an answer that stops in its middle until it is told to go on.
type hold struct {
	held, release chan struct{}
	once          sync.Once
}

func newHold() *hold { return &hold{held: make(chan struct{}), release: make(chan struct{})} }

func (h *hold) let() { h.once.Do(func() { close(h.release) }) }

// at answers up to byte n, and with the rest once released.
func (h *hold) at(content []byte, n int, sized bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if sized {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Header().Set("ETag", `"v1"`)
		}
		send(w, content[:n])
		close(h.held)
		select {
		case <-h.release:
			send(w, content[n:])
		case <-r.Context().Done():
		}
	}
}

// opened waits until so many requests for objects in all have been let in to the store.
func opened(t testing.TB, e *edgetest.Edge, n uint64) {
	t.Helper()
	edgetest.Eventually(t, fmt.Sprintf("%d requests have opened their object", n), func() bool {
		return openedSoFar(e) >= n
	})
}

func openedSoFar(e *edgetest.Edge) (n uint64) {
	for _, count := range caddymodule.ObjectStats(e.Storage).Access {
		n += count
	}
	return n
}
