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

// row is a version or a channel of a manifest.
type row = map[string]any

// write publishes a manifest of these rows.
func (s *site) write(versions, channels []row) {
	s.t.Helper()
	doc, err := json.Marshal(row{"app": row{"app_id": appID}, "versions": versions, "channels": channels})
	if err != nil {
		s.t.Fatal(err)
	}
	edgetest.WriteFile(s.t, s.dir, "manifests/"+appID+".json", doc)
}

// bundle stores a zip and returns its row.
func (s *site) bundle(id int, version string, size int) row {
	s.t.Helper()
	content := append([]byte(version), randomBytes(size)...)
	edgetest.WriteFile(s.t, s.dir, s.zipKey(version), content)
	return row{"id": id, "name": version, "r2_path": s.zipKey(version), "checksum": digest(content)}
}

func production(version int) row {
	return row{"id": 1, "name": "production", "public": true, "version": version}
}

// slowZips is an origin whose zips wait until they are let through, and which counts the requests for each.
type slowZips struct {
	mu    sync.Mutex
	asked map[string]int // guarded by mu
	open  map[string]chan struct{}
	dir   string
}

func newSlowZips(dir string, held ...string) *slowZips {
	z := &slowZips{asked: map[string]int{}, open: map[string]chan struct{}{}, dir: dir}
	for _, version := range held {
		z.open[version] = make(chan struct{})
	}
	return z
}

func (z *slowZips) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	version := strings.TrimSuffix(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:], ".zip")
	z.mu.Lock()
	z.asked[version]++
	gate := z.open[version]
	z.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
	}
	http.FileServer(http.Dir(z.dir)).ServeHTTP(w, r)
}

func (z *slowZips) count(version string) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked[version]
}

// TestPrefetch: what channels point at is fetched before a phone asks, after a restart too, and what is new with "on".
func TestPrefetch(t *testing.T) {
	for _, tt := range []struct {
		mode                    string
		current, unlinked, next bool // whether these are fetched ahead
	}{
		{"on", true, true, true},
		{"channels", true, false, true},
		{"off", false, false, false},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			s := newSite(t)
			zips := newSlowZips(s.dir)
			address, _ := s.serve(zips.ServeHTTP)
			first := s.bundle(1, "1.0.1", 300_000)
			s.write([]row{first}, []row{production(1)})
			site := fmt.Sprintf("capgo_edge {\n origin http %s\n %s\n bundles {\n prefetch %s\n}\n}\n", address, quick, tt.mode)
			e := edgetest.Start(t, edgetest.Config{Site: site})
			c := e.Client(t)
			offered(t, c)
			expectFetched(t, zips, "1.0.1", tt.current)

			unlinked := s.bundle(2, "1.0.2", 1000)
			next := s.bundle(3, "1.0.3", 1000)
			s.write([]row{first, unlinked, next}, []row{production(3)})
			edgetest.Eventually(t, "1.0.3 is offered", func() bool {
				version, _ := offered(t, c)
				return version == "1.0.3"
			})
			expectFetched(t, zips, "1.0.3", tt.next)
			expectFetched(t, zips, "1.0.2", tt.unlinked)
		})
	}
}

// expectFetched waits until the origin was asked for a zip once, or a while to see that it is not.
func expectFetched(t *testing.T, zips *slowZips, version string, want bool) {
	t.Helper()
	if !want {
		time.Sleep(20 * time.Millisecond)
		if n := zips.count(version); n != 0 {
			t.Errorf("%s was fetched %d times", version, n)
		}
		return
	}
	edgetest.Eventually(t, version+" is fetched", func() bool { return zips.count(version) == 1 })
}

// TestPrefetchAfterRestart: an edge that starts anew fetches what it misses of the apps it knows.
func TestPrefetchAfterRestart(t *testing.T) {
	s := newSite(t)
	zips := newSlowZips(s.dir)
	address, _ := s.serve(zips.ServeHTTP)
	s.write([]row{s.bundle(1, "1.0.1", 1000)}, []row{production(1)})
	site := func(prefetch string) edgetest.Config {
		return edgetest.Config{Site: fmt.Sprintf("capgo_edge {\n origin http %s\n bundles {\n prefetch %s\n}\n}\n", address, prefetch)}
	}
	e := edgetest.New(t)
	load(t, e, site("off"))
	offered(t, e.Client(t))
	e.Stop()
	load(t, e, site("on"))
	edgetest.Eventually(t, "the bundle is fetched without anyone asking", func() bool { return zips.count("1.0.1") == 1 })
}

// TestAnnounceWarm: a new version is offered once it is stored here, or the time is up; a step back at once.
func TestAnnounceWarm(t *testing.T) {
	start := func(t *testing.T, wait string, held ...string) (*site, *slowZips, *edgetest.Client, row) {
		s := newSite(t)
		zips := newSlowZips(s.dir, held...)
		address, _ := s.serve(zips.ServeHTTP)
		first := s.bundle(1, "1.0.1", 1000)
		s.write([]row{first}, []row{production(1)})
		site := fmt.Sprintf("capgo_edge {\n origin http %s\n %s\n bundles {\n announce warm %s\n}\n}\n", address, quick, wait)
		c := edgetest.Start(t, edgetest.Config{Site: site}).Client(t)
		offered(t, c)
		return s, zips, c, first
	}
	// asked waits until the edge has read the new manifest: it fetches the new bundle then.
	asked := func(t *testing.T, zips *slowZips, c *edgetest.Client, version string) {
		edgetest.Eventually(t, version+" is asked for", func() bool {
			offered(t, c)
			return zips.count(version) > 0
		})
	}
	expect := func(t *testing.T, c *edgetest.Client, want string) {
		t.Helper()
		if version, _ := offered(t, c); version != want {
			t.Errorf("%s is offered, want %s", version, want)
		}
	}

	t.Run("held until stored", func(t *testing.T) {
		s, zips, c, first := start(t, "1h", "1.0.2")
		s.write([]row{first, s.bundle(2, "1.0.2", 1000)}, []row{production(2)})
		asked(t, zips, c, "1.0.2")
		expect(t, c, "1.0.1")
		// A phone that has it already, from another site, is not sent back.
		if r := c.Post("/updates", check("version_name", "1.0.2")).JSON(t); r["error"] != "no_new_version_available" {
			t.Errorf("a phone that runs the new version is told %v", r)
		}
		close(zips.open["1.0.2"])
		edgetest.Eventually(t, "1.0.2 is offered", func() bool {
			version, _ := offered(t, c)
			return version == "1.0.2"
		})
	})
	t.Run("the time is up", func(t *testing.T) {
		s, zips, c, first := start(t, "300ms", "1.0.2")
		s.write([]row{first, s.bundle(2, "1.0.2", 1000)}, []row{production(2)})
		asked(t, zips, c, "1.0.2")
		edgetest.Eventually(t, "1.0.2 is offered", func() bool {
			version, _ := offered(t, c)
			return version == "1.0.2"
		})
	})
	t.Run("the version before is deleted", func(t *testing.T) {
		s, zips, c, first := start(t, "1h", "1.0.2")
		first["deleted"] = true
		s.write([]row{first, s.bundle(2, "1.0.2", 1000)}, []row{production(2)})
		asked(t, zips, c, "1.0.2")
		expect(t, c, "1.0.2")
	})
	t.Run("a step back", func(t *testing.T) {
		s, zips, c, first := start(t, "1h", "1.0.2") // ids tell which came first, as names may be anything
		s.write([]row{s.bundle(0, "1.0.2", 1000), first}, []row{production(0)})
		asked(t, zips, c, "1.0.2")
		expect(t, c, "1.0.2")
	})
}

// admin asks one of the routes that the module adds to Caddy's admin endpoint.
func admin(t *testing.T, method, path, body string) (*httptest.ResponseRecorder, error) {
	t.Helper()
	for _, route := range (caddymodule.Admin{}).Routes() {
		if route.Pattern == path {
			w := httptest.NewRecorder()
			err := route.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
			return w, err
		}
	}
	t.Fatalf("there is no route %s", path)
	return nil, nil
}

func TestAdmin(t *testing.T) {
	s := newSite(t)
	zips := newSlowZips(s.dir)
	address, _ := s.serve(zips.ServeHTTP)
	s.write([]row{s.bundle(1, "1.0.1", 300_000)}, []row{production(1)})
	e := edgetest.Start(t, edgetest.Config{Site: fmt.Sprintf("capgo_edge {\n origin http %s\n apps com.*\n bundles {\n prefetch off\n}\n}\n", address)})
	offered(t, e.Client(t))
	if zips.count("1.0.1") != 0 {
		t.Error("it was fetched although prefetch is off")
	}
	w, err := admin(t, "POST", "/capgo_edge/prefetch", `{"app_id":"`+appID+`"}`)
	if err != nil || !strings.Contains(w.Body.String(), `"queued":1`) || !strings.Contains(w.Body.String(), `"sites":1`) {
		t.Errorf("prefetch: %v, %s", err, w.Body)
	}
	edgetest.Eventually(t, "status tells of the object", func() bool {
		w, err := admin(t, "GET", "/capgo_edge/status", "")
		var status struct{ Storages []map[string]any }
		if err == nil {
			err = json.Unmarshal(w.Body.Bytes(), &status)
		}
		if err != nil || len(status.Storages) != 1 {
			t.Fatalf("status: %v, %s", err, w.Body)
		}
		got := status.Storages[0]
		return got["storage"] == e.Storage && got["healthy"] == true && got["objects"] == 1.0 && got["bytes"].(float64) > 300_000
	})
	for _, tt := range []struct{ method, path, body, err string }{
		{"GET", "/capgo_edge/prefetch", "", "takes POST"},
		{"POST", "/capgo_edge/status", "", "takes GET"},
		{"POST", "/capgo_edge/prefetch", "", "must be JSON"},
		{"POST", "/capgo_edge/prefetch", `{"app":"x"}`, "must be JSON"},
		{"POST", "/capgo_edge/prefetch", `{"app_id":"no"}`, "not an app id"},
		{"POST", "/capgo_edge/prefetch", `{"app_id":"com.unknown"}`, "no site here has a manifest of the app"},
		{"POST", "/capgo_edge/prefetch", `{"app_id":"org.not.served"}`, "no site here has a manifest of the app"},
	} {
		if _, err := admin(t, tt.method, tt.path, tt.body); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s %s %s: %v, want %q", tt.method, tt.path, tt.body, err, tt.err)
		}
	}
}

// TestExternalProxy: external bundles of listed hosts come through the edge, all others are handed out untouched.
func TestExternalProxy(t *testing.T) {
	content := randomBytes(100_000)
	var asked sync.Map
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := asked.LoadOrStore(r.URL.RequestURI(), 0)
		asked.Store(r.URL.RequestURI(), n.(int)+1)
		if r.URL.Query().Get("token") != "t" {
			w.WriteHeader(403)
			return
		}
		http.ServeContent(w, r, "b.zip", time.Unix(1e9, 0), bytes.NewReader(content))
	}))
	defer cdn.Close()
	s := newSite(t)
	version := row{"id": 1, "name": "1.0.1", "external_url": cdn.URL + "/b.zip?token=t", "checksum": digest(content)}
	s.write([]row{version}, []row{production(1)})

	t.Run("pass", func(t *testing.T) {
		c := edgetest.Start(t, edgetest.Config{Site: s.handler()}).Client(t)
		if _, address := offered(t, c); address != cdn.URL+"/b.zip?token=t" {
			t.Errorf("handed out %s", address)
		}
	})
	t.Run("another host", func(t *testing.T) {
		c := edgetest.Start(t, edgetest.Config{Site: s.handler("bundles {\n external proxy cdn.example.com\n}")}).Client(t)
		if _, address := offered(t, c); address != cdn.URL+"/b.zip?token=t" {
			t.Errorf("handed out %s", address)
		}
	})
	t.Run("proxy", func(t *testing.T) {
		e := edgetest.Start(t, edgetest.Config{Site: s.handler(quick, "bundles {\n external proxy "+cdn.URL+"\n}")})
		e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
			version, address := offered(t, c)
			if !strings.HasPrefix(address, c.Base+"/files/read/attachments/ext/"+appID+"/") || version != "1.0.1" {
				t.Fatalf("handed out %s", address)
			}
			r := c.Get(address)
			if r.Status != 200 || !bytes.Equal(r.Body, content) || r.Header.Get("Content-Type") != "application/zip" {
				t.Errorf("status %d, %d bytes, %v", r.Status, len(r.Body), r.Header)
			}
			if r := c.Get(address, "Range", "bytes=5-"); r.Status != 206 || !bytes.Equal(r.Body, content[5:]) {
				t.Errorf("a range: status %d, %d bytes", r.Status, len(r.Body))
			}
			made := c.Base + "/files/read/attachments/ext/" + appID + "/0123456789abcdef0123456789abcdef"
			if r := c.Get(made); r.Status != 404 || r.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("a made-up one: status %d", r.Status)
			}
		})
		if n, _ := asked.Load("/b.zip?token=t"); n != 1 {
			t.Errorf("the host was asked %v times", n)
		}
		// What an earlier revision named stays served, after a restart too.
		_, address := offered(t, e.Client(t))
		s.write([]row{s.bundle(2, "1.0.2", 1000)}, []row{production(2)})
		edgetest.Eventually(t, "1.0.2 is offered", func() bool {
			version, _ := offered(t, e.Client(t))
			return version == "1.0.2"
		})
		e.Stop()
		load(t, e, edgetest.Config{Site: s.handler(quick, "bundles {\n external proxy "+cdn.URL+"\n}")})
		if r := e.Client(t).Get(address); r.Status != 200 || !bytes.Equal(r.Body, content) {
			t.Errorf("the address of the revision before: status %d", r.Status)
		}
	})
}

// TestSign: addresses end, and only those the edge gave out are taken.
func TestSign(t *testing.T) {
	const secret, old = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
	s := newSite(t)
	bundle := s.publish("1.0.1", 1000)
	signed := func(args string) edgetest.Config {
		return edgetest.Config{Site: s.handler("bundles {\n sign " + args + "\n}")}
	}
	e := edgetest.New(t)
	load(t, e, signed(old+" 1h"))
	_, before := offered(t, e.Client(t))
	load(t, e, signed(secret+" "+old+" 1h"))
	e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
		c.Redials = 20
		_, address := offered(t, c)
		if _, again := offered(t, c); again != address {
			t.Errorf("two answers have two addresses: %s, %s", address, again)
		}
		plain, query, _ := strings.Cut(address, "?")
		for name, tt := range map[string]struct {
			address string
			status  int
			code    string
		}{
			"as given":            {address, 200, ""},
			"by the old secret":   {c.Base + before[strings.Index(before, "/files/"):], 200, ""},
			"more parameters":     {address + "&device_id=1", 200, ""},
			"unsigned":            {plain, 403, "invalid_signature"},
			"another key":         {strings.Replace(plain, "1.0.1", "1.0.2", 1) + "?" + query, 404, "not_found"},
			"a later expiry":      {strings.Replace(address, "expires=1", "expires=2", 1), 403, "invalid_signature"},
			"a cut signature":     {address[:len(address)-1], 403, "invalid_signature"},
			"no number as expiry": {strings.Replace(address, "expires=", "expires=x", 1), 403, "invalid_signature"},
		} {
			r := c.Get(tt.address)
			if r.Status != tt.status || tt.status == 200 && !bytes.Equal(r.Body, bundle) {
				t.Errorf("%s: status %d, want %d", name, r.Status, tt.status)
			}
			if tt.code != "" && r.JSON(t)["error"] != tt.code {
				t.Errorf("%s: %s", name, r.Body)
			}
		}
		if r := c.Get(address, "Range", "bytes=10-"); r.Status != 206 || !bytes.Equal(r.Body, bundle[10:]) {
			t.Errorf("a range: status %d", r.Status)
		}
	})
	load(t, e, signed(secret+" 1h"))
	c := e.Client(t)
	c.Redials = 20
	if r := c.Get(before); r.Status != 403 {
		t.Errorf("an address signed with a secret that was dropped: status %d", r.Status)
	}
}
