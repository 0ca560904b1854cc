package caddymodule_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestObject is what contract section 3 asks of an answer with an object, over both kinds of origin and both protocols.
func TestObject(t *testing.T) {
	s := newSite(t)
	bundle := s.publish("1.0.1", 100_000)
	files := httptest.NewServer(http.FileServer(http.Dir(s.dir)))
	defer files.Close()
	for kind, handler := range map[string]string{
		"file": s.handler(),
		"http": "capgo_edge {\n origin http " + files.URL + "\n}\n",
	} {
		t.Run(kind, func(t *testing.T) {
			edgetest.Start(t, edgetest.Config{Site: handler}).Protocols(t, func(t *testing.T, c *edgetest.Client) {
				_, address := offered(t, c)
				objectCases(t, c, address, bundle)
			})
		})
	}
}

func objectCases(t *testing.T, c *edgetest.Client, address string, bundle []byte) {
	size := len(bundle)
	etag := `"` + digest(bundle) + `"`
	sum := sha256.Sum256(bundle)
	for _, test := range []struct {
		name         string
		method       string
		header       []string
		status       int
		from, to     int // of the bundle, what the body must be
		contentRange string
	}{
		{"whole", "GET", nil, 200, 0, size, ""},
		{"head", "HEAD", nil, 200, 0, 0, ""},
		{"from the middle", "GET", []string{"Range", "bytes=50000-"}, 206, 50000, size, fmt.Sprintf("bytes 50000-%d/%d", size-1, size)},
		{"from the start", "GET", []string{"Range", "bytes=0-"}, 206, 0, size, fmt.Sprintf("bytes 0-%d/%d", size-1, size)},
		{"a part", "GET", []string{"Range", "bytes=10-19"}, 206, 10, 20, fmt.Sprintf("bytes 10-19/%d", size)},
		{"one byte", "GET", []string{"Range", "bytes=0-0"}, 206, 0, 1, fmt.Sprintf("bytes 0-0/%d", size)},
		{"beyond the end", "GET", []string{"Range", "bytes=99990-200000"}, 206, 99990, size, fmt.Sprintf("bytes 99990-%d/%d", size-1, size)},
		{"the last", "GET", []string{"Range", "bytes=-100"}, 206, size - 100, size, fmt.Sprintf("bytes %d-%d/%d", size-100, size-1, size)},
		{"behind the end", "GET", []string{"Range", "bytes=100000-"}, 416, 0, 0, fmt.Sprintf("bytes */%d", size)},
		{"several ranges", "GET", []string{"Range", "bytes=0-1,5-6"}, 200, 0, size, ""},
		{"another unit", "GET", []string{"Range", "rows=1-2"}, 416, 0, 0, ""},
		{"known etag", "GET", []string{"If-None-Match", etag}, 304, 0, 0, ""},
		{"another etag", "GET", []string{"If-None-Match", `"x"`}, 200, 0, size, ""},
		{"if-range holds", "GET", []string{"Range", "bytes=5-", "If-Range", etag}, 206, 5, size, fmt.Sprintf("bytes 5-%d/%d", size-1, size)},
		{"if-range fails", "GET", []string{"Range", "bytes=5-", "If-Range", `"x"`}, 200, 0, size, ""},
		{"if-match fails", "GET", []string{"If-Match", `"x"`}, 412, 0, 0, ""},
		{"head of a part", "HEAD", []string{"Range", "bytes=10-19"}, 206, 0, 0, fmt.Sprintf("bytes 10-19/%d", size)},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := c.Do(test.method, address, "", test.header...)
			if r.Status != test.status || r.Err != nil {
				t.Fatalf("status %d, want %d (%v)", r.Status, test.status, r.Err)
			}
			if got := r.Header.Get("Content-Range"); got != test.contentRange && test.contentRange != "" {
				t.Errorf("Content-Range %q, want %q", got, test.contentRange)
			}
			if test.status >= 400 {
				return
			}
			if !bytes.Equal(r.Body, bundle[test.from:test.to]) {
				t.Errorf("body of %d bytes is not bytes %d to %d", len(r.Body), test.from, test.to)
			}
			if got := r.Header.Get("ETag"); got != etag {
				t.Errorf("ETag %q, want %q", got, etag)
			}
			if test.status == 304 {
				return
			}
			if length := r.Header.Get("Content-Length"); test.method == "GET" && length != strconv.Itoa(test.to-test.from) {
				t.Errorf("Content-Length %q", length)
			}
			for name, want := range map[string]string{
				"Cache-Control":          "public, max-age=31536000, immutable, no-transform",
				"Content-Type":           "application/zip",
				"Content-Disposition":    "attachment",
				"X-Content-Type-Options": "nosniff",
				"Accept-Ranges":          "bytes",
				"Repr-Digest":            "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":",
			} {
				if got := r.Header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			for _, name := range []string{"Content-Security-Policy", "Cache-Status"} {
				if r.Header.Get(name) == "" {
					t.Errorf("%s is missing", name)
				}
			}
		})
	}
}

// TestOnlyNamedKeys: an edge is no open proxy to its origin's storage.
func TestOnlyNamedKeys(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	edgetest.WriteFile(t, s.dir, "orgs/o/apps/"+appID+"/secret.zip", []byte("not named by the manifest"))
	edgetest.WriteFile(t, s.dir, "secret.txt", []byte("not in any app"))
	e := edgetest.Start(t, edgetest.Config{Site: s.handler(quick)})
	e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
		for _, test := range []struct {
			path   string
			status int
		}{
			{"orgs/o/apps/" + appID + "/1.0.1.zip", 200},
			{"orgs%2Fo%2Fapps%2F" + appID + "%2F1.0.1.zip?nocache=1", 200}, // as upload tools probe
			{"orgs/o/apps/" + appID + "/1.0.1.zip?app_id=" + appID, 200},
			{"orgs/o/apps/" + appID + "/1.0.1.zip?app_id=other.app", 404},
			{"orgs/o/apps/" + appID + "/secret.zip", 404},
			{"manifests/" + appID + ".json", 404},
			{"manifests/" + appID + ".json?app_id=" + appID, 404},
			{"secret.txt", 404},
			{"secret.txt?app_id=" + appID, 404},
			{"orgs/o/apps/no.such.app/1.0.1.zip", 404},
			{"orgs/o/apps/" + strings.Repeat("a", 130) + ".app/1.zip", 404},
			{"orgs/o/apps/" + appID + "/%2e%2e/secret.zip", 400},
			{"orgs/o/apps/" + appID + "/..%2f..%2fsecret.zip", 400},
			{"orgs/o/apps/" + appID + "//1.0.1.zip", 400},
			{"orgs/o/apps/" + appID + "/1.0.1.zip%00", 400},
			{"orgs/o/apps/" + appID + "%5C1.0.1.zip", 400},
			{"", 400},
		} {
			r := c.Get("/files/read/attachments/" + test.path)
			if r.Status != test.status {
				t.Errorf("%s: status %d, want %d", test.path, r.Status, test.status)
			}
			if r.Status != 200 {
				if r.JSON(t)["error"] == nil || r.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s: %v %s", test.path, r.Header, r.Body)
				}
				if bytes.Contains(r.Body, []byte(s.dir)) {
					t.Errorf("%s: the answer shows a path: %s", test.path, r.Body)
				}
			}
		}
	})
}

// TestMissingObject: the log says once, and in one phrase, that an object is not there.
func TestMissingObject(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	if err := os.Remove(filepath.Join(s.dir, s.zipKey("1.0.1"))); err != nil {
		t.Fatal(err)
	}
	e := edgetest.Start(t, edgetest.Config{Site: s.handler()})
	c := e.Client(t)
	_, address := offered(t, c)
	for range 2 {
		if r := c.Get(address); r.Status != 404 {
			t.Errorf("status %d", r.Status)
		}
	}
	lines := e.Log("a manifest names an object that the origin does not have")
	if len(lines) != 1 || !strings.Contains(lines[0], `"no such object"`) {
		t.Errorf("%q", lines)
	}
}

// TestOriginBreaksOff: a body that the origin cuts is a broken connection or stream for the client, never a short success.
func TestOriginBreaksOff(t *testing.T) {
	s := newSite(t)
	bundle := s.publish("1.0.1", 300_000)
	for _, at := range []int{0, 1, len(bundle) / 2, len(bundle) - 1} {
		t.Run(fmt.Sprintf("at byte %d", at), func(t *testing.T) {
			origin, _ := s.serve(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(len(bundle)))
				_, _ = w.Write(bundle[:at])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})
			e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n origin http " + origin + "\n}\n"})
			e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
				_, address := offered(t, c)
				r := c.Get(address)
				if r.Status == 200 && r.Err == nil {
					t.Errorf("%d bytes came as a success", len(r.Body))
				}
				if r.Status == 200 && !bytes.Equal(r.Body, bundle[:len(r.Body)]) {
					t.Error("what came is not the beginning of the bundle")
				}
			})
		})
	}
}

// TestUnsizedOrigin: an origin that tells no size can be downloaded from, and a resume waits until the size is known.
func TestUnsizedOrigin(t *testing.T) {
	s := newSite(t)
	bundle := s.publish("1.0.1", 100_000)
	origin, _ := s.serve(func(w http.ResponseWriter, _ *http.Request) {
		for part := bundle; len(part) > 0; part = part[10_000:] {
			_, _ = w.Write(part[:10_000])
			_ = http.NewResponseController(w).Flush()
		}
	})
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n origin http " + origin + "\n}\n"})
	e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
		_, address := offered(t, c)
		if r := c.Get(address); r.Status != 200 || r.Err != nil || !bytes.Equal(r.Body, bundle) {
			t.Errorf("status %d, %d bytes, %v", r.Status, len(r.Body), r.Err)
		}
		if r := c.Get(address, "Range", "bytes=10-"); r.Status != 206 || !bytes.Equal(r.Body, bundle[10:]) {
			t.Errorf("a range: status %d, %v, %.100s", r.Status, r.Header, r.Body)
		}
	})
}

// TestNewKeyAsksTheOriginOnce: a key another site has just told of is found before the manifest is due, and made-up keys
// cost the origin at most one request a second.
func TestNewKeyAsksTheOriginOnce(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	origin, asked := s.serve(nil)
	c := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n origin http " + origin + "\n}\n"}).Client(t)
	_, old := offered(t, c)
	bundle := s.publish("1.0.2", 200)
	if version, _ := offered(t, c); version != "1.0.1" {
		t.Fatalf("the manifest is fresh for 10 s, yet %s is offered", version)
	}
	r := c.Get("/files/read/attachments/" + s.zipKey("1.0.2"))
	if r.Status != 200 || !bytes.Equal(r.Body, bundle) {
		t.Fatalf("the new key: status %d", r.Status)
	}
	if version, _ := offered(t, c); version != "1.0.2" {
		t.Errorf("after the renewal %s is offered", version)
	}
	if r := c.Get(old); r.Status != 200 {
		t.Errorf("the key of the previous revision: status %d", r.Status)
	}
	before := asked.Load()
	done := make(chan int)
	for i := range 40 {
		go func() {
			done <- c.Get(fmt.Sprintf("/files/read/attachments/orgs/o/apps/%s/made-up-%d.zip", appID, i)).Status
		}()
	}
	for range 40 {
		if status := <-done; status != 404 {
			t.Errorf("a made-up key: status %d", status)
		}
	}
	if n := asked.Load() - before; n > 3 {
		t.Errorf("40 made-up keys cost the origin %d requests", n)
	}
}

func TestCORS(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	e := edgetest.Start(t, edgetest.Config{Site: s.handler("bundles {\n cors https://app.example.com\n}")})
	e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
		_, address := offered(t, c)
		for origin, allowed := range map[string]bool{
			"capacitor://localhost": true, "ionic://localhost": true, "http://localhost": true, "https://localhost": true,
			"http://localhost:8100": true, "https://app.example.com": true,
			"https://evil.example": false, "https://localhost.evil.example": false, "null": false, "file://": false,
		} {
			want := ""
			if allowed {
				want = origin
			}
			for _, r := range []*edgetest.Response{
				c.Get(address, "Origin", origin),
				c.Post("/updates", check(), "Origin", origin),
				c.Do("OPTIONS", "/updates", "", "Origin", origin, "Access-Control-Request-Method", "POST"),
				c.Get("/files/read/attachments/none", "Origin", origin),
			} {
				if got := r.Header.Get("Access-Control-Allow-Origin"); got != want {
					t.Errorf("%s: allowed origin %q, want %q (status %d)", origin, got, want, r.Status)
				}
				if !strings.Contains(strings.Join(r.Header.Values("Vary"), ","), "Origin") {
					t.Errorf("%s: Vary %q", origin, r.Header.Values("Vary"))
				}
			}
		}
		r := c.Do("OPTIONS", address, "", "Origin", "capacitor://localhost", "Access-Control-Request-Method", "GET",
			"Access-Control-Request-Headers", "range")
		if r.Status != 204 || !strings.Contains(r.Header.Get("Access-Control-Allow-Headers"), "Range") ||
			!strings.Contains(r.Header.Get("Access-Control-Allow-Methods"), "GET") {
			t.Errorf("preflight: status %d, %v", r.Status, r.Header)
		}
		exposed := c.Get(address, "Origin", "capacitor://localhost").Header.Get("Access-Control-Expose-Headers")
		for _, name := range []string{"Content-Range", "Repr-Digest", "ETag"} {
			if !strings.Contains(exposed, name) {
				t.Errorf("%s is not exposed: %s", name, exposed)
			}
		}
	})
}
