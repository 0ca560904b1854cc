package caddymodule_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

const (
	appID    = "com.demo.app"
	deviceID = "00009a6b-eefe-490a-9c60-8e965132ae51"
)

// site is an origin directory with one app, and what publishing to it takes.
type site struct {
	t   testing.TB
	dir string
}

func newSite(t testing.TB) *site { return &site{t, t.TempDir()} }

func (s *site) zipKey(version string) string { return "orgs/o/apps/" + appID + "/" + version + ".zip" }

// publish stores a bundle of random bytes as the app's current version and returns them.
func (s *site) publish(version string, size int) []byte {
	s.t.Helper()
	bundle := randomBytes(size)
	edgetest.WriteFile(s.t, s.dir, s.zipKey(version), bundle)
	s.announce(version, digest(bundle))
	return bundle
}

// announce writes the app's manifest.
func (s *site) announce(version, checksum string) {
	s.t.Helper()
	edgetest.WriteFile(s.t, s.dir, "manifests/"+appID+".json", manifestOf(appID, version, s.zipKey(version), checksum))
}

func manifestOf(app, version, key, checksum string) []byte {
	doc, err := json.Marshal(map[string]any{
		"app":      map[string]any{"app_id": app},
		"versions": []any{map[string]any{"id": 7, "name": version, "r2_path": key, "checksum": checksum}},
		"channels": []any{map[string]any{"id": 1, "name": "production", "public": true, "version": 7}},
	})
	if err != nil {
		panic(err) // it holds nothing that could fail
	}
	return doc
}

// serve runs a web server over the directory until the test ends, and counts the manifests it is asked for. zip answers
// for bundles, if it is set.
func (s *site) serve(zip http.HandlerFunc) (address string, asked *atomic.Int64) {
	asked = new(atomic.Int64)
	files := http.FileServer(http.Dir(s.dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/manifests/") {
			asked.Add(1)
		}
		if zip != nil && strings.HasSuffix(r.URL.Path, ".zip") {
			zip(w, r)
			return
		}
		files.ServeHTTP(w, r)
	}))
	s.t.Cleanup(server.Close)
	return server.URL, asked
}

// handler is a site's directive over the directory, with further options.
func (s *site) handler(options ...string) string {
	return fmt.Sprintf("capgo_edge {\n origin file %s\n %s\n}\n", s.dir, strings.Join(options, "\n"))
}

// quick are ages short enough to wait for.
const quick = "manifests {\n fresh 50ms\n stale_while 50ms\n negative 50ms\n}"

// check is the body of a check by the one device there is; changes are "name", value pairs.
func check(changes ...any) string {
	fields := map[string]any{
		"app_id": appID, "device_id": deviceID, "custom_id": "", "platform": "android", "version_build": "1.0.0",
		"version_code": "10", "version_os": "14", "version_name": "builtin", "plugin_version": "8.51.14",
		"is_emulator": false, "is_prod": true,
	}
	for i := 0; i+1 < len(changes); i += 2 {
		fields[changes[i].(string)] = changes[i+1]
	}
	body, err := json.Marshal(fields)
	if err != nil {
		panic(err) // it holds nothing that could fail
	}
	return string(body)
}

// offered asks for an update and returns its version and address.
func offered(t testing.TB, c *edgetest.Client) (version, address string) {
	t.Helper()
	r := c.Post("/updates", check())
	body := r.JSON(t)
	version, _ = body["version"].(string)
	address, _ = body["url"].(string)
	if r.Status != 200 || address == "" {
		t.Fatalf("no update was offered: status %d, %s", r.Status, r.Body)
	}
	return version, address
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	random := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = random.Read(b) // never fails
	return b
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
