package caddymodule_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestBadRequests: each has its status and a JSON body that clients read, and shows nothing of the machine.
func TestBadRequests(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	e := edgetest.Start(t, edgetest.Config{Site: s.handler() + "respond elsewhere 418"})
	e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
		for _, test := range []struct {
			name, method, path, body string
			status                   int
			code                     string
		}{
			{"too large", "POST", "/updates", `{"a":"` + strings.Repeat("x", 65<<10) + `"}`, 413, "payload_too_large"},
			{"too large for sizes", "POST", "/updates/manifest_size", `{"a":"` + strings.Repeat("x", 4<<20) + `"}`, 413, "payload_too_large"},
			{"not JSON", "POST", "/updates", "hello", 400, "invalid_json_parse_body"},
			{"no body", "POST", "/updates", "", 400, "invalid_json_parse_body"},
			{"an array", "POST", "/updates", "[]", 400, "invalid_json_body"},
			{"wrong method", "PUT", "/updates", "{}", 405, "method_not_allowed"},
			{"wrong method, alias", "DELETE", "/plugin/updates", "", 405, "method_not_allowed"},
			{"wrong method for sizes", "GET", "/updates/manifest_size", "", 405, "method_not_allowed"},
			{"wrong method for stats", "PUT", "/stats", "{}", 405, "method_not_allowed"},
			{"wrong method for channels", "PATCH", "/channel_self", "{}", 405, "method_not_allowed"},
			{"wrong method for health", "DELETE", "/ok", "", 405, "method_not_allowed"},
			{"wrong method for an object", "POST", "/files/read/attachments/x", "{}", 405, "method_not_allowed"},
			{"unknown app", "POST", "/updates", check("app_id", "no.such.app"), 429, "on_premise_app"},
			{"long app id", "POST", "/updates", check("app_id", "a."+strings.Repeat("b", 128)), 429, "on_premise_app"},
			{"an event without a device", "POST", "/stats", `{"app_id":"com.demo.app"}`, 400, "missing_device_id"},
			{"an event of no app", "POST", "/stats", `5`, 400, "invalid_app_id"},
			{"events that are too large", "POST", "/stats", `["` + strings.Repeat("x", 16<<20) + `"]`, 413, "payload_too_large"},
			{"an empty channel call", "PUT", "/channel_self", `{}`, 400, "invalid_json_body"},
		} {
			t.Run(test.name, func(t *testing.T) {
				r := c.Do(test.method, test.path, test.body)
				body := r.JSON(t)
				if r.Status != test.status || body["error"] != test.code || body["message"] == "" {
					t.Errorf("status %d, %s; want %d %s", r.Status, r.Body, test.status, test.code)
				}
				if test.status == 405 && r.Header.Get("Allow") == "" {
					t.Error("Allow is missing")
				}
				if r.Header.Get("Retry-After") != "" {
					t.Error("Retry-After silences a phone")
				}
				for _, leak := range []string{s.dir, e.Storage, "github.com", ".go:", "json:", "open "} {
					if strings.Contains(string(r.Body), leak) {
						t.Errorf("the answer shows %q: %s", leak, r.Body)
					}
				}
			})
		}
		for path, want := range map[string]int{
			"/ok": 200, "/updates": 200, "/stats": 200, "/plugin/updates": 200, "/plugin/stats": 200,
			"/": 418, "/other": 418, "/plugin/ok": 418, "/updates/": 418, "/files/": 418, "/updatesx": 418,
		} {
			if r := c.Get(path); r.Status != want {
				t.Errorf("GET %s: status %d, want %d", path, r.Status, want)
			}
		}
	})
}

// TestChunkedTooLarge: a body that tells no length is cut off at the limit too.
func TestChunkedTooLarge(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	e := edgetest.Start(t, edgetest.Config{Site: s.handler()})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.HTTP+"/updates",
		struct{ *strings.Reader }{strings.NewReader(strings.Repeat(" ", 70<<10))})
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = -1
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 413 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestPublicAddress(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	e := edgetest.Start(t, edgetest.Config{
		Global: "servers {\n trusted_proxies static 127.0.0.1/32\n}",
		Site: "handle_path /a/* {\n" + s.handler() + "}\nhandle /b/* {\n uri strip_prefix /b\n" + s.handler() + "}\n" +
			"handle_path /c/* {\n" + s.handler("public_url https://cdn.example.com/mobile/") + "}\n" + s.handler(),
	})
	c := e.Client(t)
	for _, test := range []struct {
		name, path string
		header     []string
		want       string
	}{
		{"request", "/updates", nil, c.Base},
		{"handle_path", "/a/updates", nil, c.Base + "/a"},
		{"strip_prefix", "/b/updates", nil, c.Base + "/b"},
		{"alias below a prefix", "/a/plugin/updates", nil, c.Base + "/a"},
		{"public_url", "/c/updates", nil, "https://cdn.example.com/mobile"},
		{"trusted proxy", "/updates", []string{"X-Forwarded-Proto", "https", "X-Forwarded-Host", "cdn.example.com"}, "https://cdn.example.com"},
		{"first proxy", "/updates", []string{"X-Forwarded-Proto", "https, http", "X-Forwarded-Host", "cdn.example.com, inner"}, "https://cdn.example.com"},
		{"hostile host", "/updates", []string{"X-Forwarded-Host", `x","evil":"`}, c.Base},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := c.Post(test.path, check(), test.header...)
			url, _ := r.JSON(t)["url"].(string)
			if !strings.HasPrefix(url, test.want+"/files/read/attachments/orgs/") {
				t.Errorf("url %q, want it below %q", url, test.want)
			}
		})
	}
}

func TestUntrustedProxyIsNotBelieved(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	c := edgetest.Start(t, edgetest.Config{Site: s.handler()}).Client(t)
	r := c.Post("/updates", check(), "X-Forwarded-Proto", "https", "X-Forwarded-Host", "cdn.example.com")
	if url, _ := r.JSON(t)["url"].(string); !strings.HasPrefix(url, c.Base) {
		t.Errorf("url %q", url)
	}
}

func TestManifestSize(t *testing.T) {
	s := newSite(t)
	edgetest.WriteFile(t, s.dir, "manifests/"+appID+".json", []byte(`{"app":{"app_id":"com.demo.app"},
		"versions":[{"id":7,"name":"1.0.1","checksum":"x","manifest":[
			{"file_name":"a b.js","file_hash":"h1","s3_path":"orgs/o/apps/com.demo.app/delta/h1_a b.js","file_size":120},
			{"file_name":"c.js","file_hash":"h2","s3_path":"orgs/o/apps/com.demo.app/delta/h2_c.js"}]}],
		"channels":[{"id":1,"name":"production","public":true,"version":7}]}`))
	c := edgetest.Start(t, edgetest.Config{Site: s.handler()}).Client(t)
	files := c.Post("/updates", check()).JSON(t)["manifest"]
	r := c.Post("/plugin/updates/manifest_size", check("version", "1.0.1", "manifest", files))
	body := r.JSON(t)
	if r.Status != 200 || body["totalSize"] != 120.0 || body["knownFiles"] != 1.0 || body["unknownFiles"] != 1.0 {
		t.Errorf("status %d, %s", r.Status, r.Body)
	}
	list := body["files"].([]any)
	if list[0].(map[string]any)["size"] != 120.0 || list[1].(map[string]any)["error"] != "size_unknown" {
		t.Errorf("files: %v", list)
	}
}

func TestAllowList(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	e := edgetest.Start(t, edgetest.Config{Site: "handle_path /in/* {\n" + s.handler("apps com.demo.* x.y") + "}\n" +
		"handle_path /out/* {\n" + s.handler("apps Com.Demo.* com.demo") + "}\n"})
	c := e.Client(t)
	if r := c.Post("/in/updates", check()); r.Status != 200 {
		t.Errorf("an app on the list: status %d", r.Status)
	}
	if r := c.Post("/out/updates", check()); r.Status != 429 {
		t.Errorf("an app that is not: status %d", r.Status)
	}
	if r := c.Get("/out/files/read/attachments/" + s.zipKey("1.0.1")); r.Status != 404 {
		t.Errorf("an object of an app that is not: status %d", r.Status)
	}
}

// TestLastGood: the last good manifest answers while the origin fails, after a restart too, and a fault is one log line.
func TestLastGood(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	e := edgetest.New(t)
	config := edgetest.Config{Site: s.handler(quick)}
	load(t, e, config)
	c := e.Client(t)
	offered(t, c)

	edgetest.WriteFile(t, s.dir, "manifests/"+appID+".json", []byte(`{"app":{"app_id":"other.app"},"channels":[{"id":1}]}`))
	const refused = "manifest refused"
	edgetest.Eventually(t, "the fault is logged", func() bool { offered(t, c); return len(e.Log(refused)) > 0 })
	for range 50 {
		offered(t, c)
		time.Sleep(5 * time.Millisecond) // time must pass for refreshes to fall due
	}
	if lines := e.Log(refused); len(lines) != 1 || !strings.Contains(lines[0], "$.channels[0].name") {
		t.Errorf("%d lines for one fault: %q", len(lines), lines)
	}

	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	e.Stop()
	load(t, e, config)
	if version, _ := offered(t, c); version != "1.0.1" {
		t.Errorf("after a restart with a dead origin %s is offered", version)
	}
	if r := c.Post("/updates", check("app_id", "never.seen")); r.Status != 503 || r.JSON(t)["error"] != "service_unavailable" {
		t.Errorf("an app nothing is known of: status %d, %s", r.Status, r.Body)
	}

	s.publish("1.0.2", 100)
	edgetest.Eventually(t, "the repaired origin is followed", func() bool { v, _ := offered(t, c); return v == "1.0.2" })
}

func load(t *testing.T, e *edgetest.Edge, c edgetest.Config) {
	t.Helper()
	if err := e.Load(c); err != nil {
		t.Fatal(err)
	}
}

// TestMadeUpApps: a flood of made-up app ids neither reaches the origin without bound nor pushes out a real app.
func TestMadeUpApps(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	var asked, known atomic.Int64
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.HasPrefix(r.URL.Path, "/manifests/"): // the bundle, which is prefetched
		case strings.Contains(r.URL.Path, appID):
			known.Add(1)
		default:
			asked.Add(1)
		}
		http.FileServer(http.Dir(s.dir)).ServeHTTP(w, r)
	}))
	defer origin.Close()
	c := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n origin http " + origin.URL + "\n}\n"}).Client(t)
	offered(t, c)
	const flood, workers = 3000, 8
	statuses := [600]atomic.Int64{}
	var wg sync.WaitGroup
	began := time.Now()
	for w := range workers {
		wg.Go(func() {
			for i := range flood / workers {
				statuses[c.Post("/updates", check("app_id", fmt.Sprintf("made.up%d-%d", w, i))).Status].Add(1)
			}
		})
	}
	wg.Wait()
	if statuses[429].Load()+statuses[503].Load() != flood {
		t.Errorf("429: %d, 503: %d, of %d", statuses[429].Load(), statuses[503].Load(), flood)
	}
	most := 1000 + int64(50*time.Since(began).Seconds()) + 1
	if asked.Load() > most {
		t.Errorf("%d made-up apps cost the origin %d requests, at most %d are due", flood, asked.Load(), most)
	}
	if offered(t, c); known.Load() != 1 {
		t.Errorf("the real app was asked for %d times", known.Load())
	}
}

// TestSharedStorage: sites with one app id and different origins, in one storage directory, never mix.
func TestSharedStorage(t *testing.T) {
	a, b := newSite(t), newSite(t)
	a.publish("1.0.1", 100)
	b.publish("1.0.2", 200)
	c := edgetest.Start(t, edgetest.Config{
		Site: "handle_path /a/* {\n" + a.handler() + "}\nhandle_path /b/* {\n" + b.handler() + "}\n",
	}).Client(t)
	for range 3 {
		for path, want := range map[string]string{"/a": "1.0.1", "/b": "1.0.2"} {
			if got := c.Post(path+"/updates", check()).JSON(t)["version"]; got != want {
				t.Errorf("%s offers %v, want %s", path, got, want)
			}
		}
	}
	if r := c.Get("/a/files/read/attachments/" + b.zipKey("1.0.2")); r.Status != 404 {
		t.Errorf("site a hands out an object of site b: status %d", r.Status)
	}
}

// TestSwitchedLink: a link that is switched to another folder is followed, even if nothing but the content tells them apart.
func TestSwitchedLink(t *testing.T) {
	old, next := newSite(t), newSite(t)
	old.announce("1.0.1", "x")
	next.announce("1.0.2", "x")
	epoch := time.Unix(0, 0)
	for _, dir := range []string{old.dir, next.dir} {
		if err := os.Chtimes(filepath.Join(dir, "manifests", appID+".json"), epoch, epoch); err != nil {
			t.Fatal(err)
		}
	}
	current := filepath.Join(t.TempDir(), "current")
	if err := os.Symlink(old.dir, current); err != nil {
		t.Fatal(err)
	}
	c := edgetest.Start(t, edgetest.Config{Site: (&site{t, current}).handler(quick)}).Client(t)
	if version, _ := offered(t, c); version != "1.0.1" {
		t.Fatalf("%s is offered", version)
	}
	if err := os.Symlink(next.dir, current+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(current+".new", current); err != nil {
		t.Fatal(err)
	}
	edgetest.Eventually(t, "the switch is noticed", func() bool { v, _ := offered(t, c); return v == "1.0.2" })
}

// TestEscapingLink: a link that leaves the origin's folder is not followed, and the log names it once.
func TestEscapingLink(t *testing.T) {
	s, outside := newSite(t), newSite(t)
	outside.publish("9.9.9", 100)
	if err := os.Symlink(filepath.Join(outside.dir, "manifests"), filepath.Join(s.dir, "manifests")); err != nil {
		t.Fatal(err)
	}
	e := edgetest.Start(t, edgetest.Config{Site: s.handler()})
	c := e.Client(t)
	for range 5 {
		if r := c.Post("/updates", check()); r.Status != 503 {
			t.Fatalf("status %d, %s", r.Status, r.Body)
		}
	}
	edgetest.Eventually(t, "the link is named", func() bool { return len(e.Log("link manifests leads out")) > 0 })
	if n := len(e.Log("link manifests leads out")); n != 1 {
		t.Errorf("%d log lines", n)
	}
}
