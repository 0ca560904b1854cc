package caddymodule_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// redirecting is an upstream whose answers name a bundle and a delta file at its own host, which redirects to a bucket at
// another one, with an address that is signed anew each time.
type redirecting struct {
	url, bucket string
	content     map[string][]byte
	asked       sync.Map     // *atomic.Int64, by path: at the upstream
	fetched     atomic.Int64 // at the bucket

	redirect atomic.Pointer[http.HandlerFunc] // in place of the bucket's addresses, if set
}

const signature = "X-Amz-Signature=hunter2"

func newRedirecting(t *testing.T) *redirecting {
	t.Helper()
	u := &redirecting{content: map[string][]byte{"/zip/1.zip": randomBytes(300 << 10), "/delta/index.html": []byte("<html>")}}
	bucket := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.fetched.Add(1)
		if !strings.HasPrefix(r.URL.RawQuery, signature) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(u.content[r.URL.Path]))
	}))
	t.Cleanup(bucket.Close)
	u.bucket = strings.Replace(bucket.URL, "127.0.0.1", "localhost", 1)
	server := httptest.NewServer(u)
	t.Cleanup(server.Close)
	u.url = server.URL
	return u
}

// ServeHTTP answers checks, and redirects twice: at the same host first.
func (u *redirecting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := u.count(r.URL.Path).Add(1)
	path, second := strings.CutPrefix(r.URL.Path, "/second")
	switch redirect := u.redirect.Load(); {
	case r.URL.Path == "/updates":
		_ = json.NewEncoder(w).Encode(row{
			"version": "1.0.1", "url": u.url + "/zip/1.zip", "checksum": digest(u.content["/zip/1.zip"]),
			"manifest": []row{{
				"file_name": "index.html", "file_hash": digest(u.content["/delta/index.html"]), "download_url": u.url + "/delta/index.html",
			}},
		})
	case redirect != nil:
		(*redirect)(w, r)
	case second:
		http.Redirect(w, r, fmt.Sprintf("%s%s?%s&n=%d", u.bucket, path, signature, n), http.StatusTemporaryRedirect)
	default:
		http.Redirect(w, r, "/second"+r.URL.Path, http.StatusMovedPermanently)
	}
}

func (u *redirecting) count(path string) *atomic.Int64 {
	n, _ := u.asked.LoadOrStore(path, new(atomic.Int64))
	return n.(*atomic.Int64)
}

// instead has downloads answered otherwise.
func (u *redirecting) instead(answer http.HandlerFunc) { u.redirect.Store(&answer) }

func (u *redirecting) site(options string) edgetest.Config {
	return edgetest.Config{Site: "capgo_edge " + u.url + " {\n stats off\n relay {\n fresh 10m\n " + options + "\n }\n }"}
}

// addresses are those that a phone is told, by the path at the upstream.
func (u *redirecting) addresses(t *testing.T, c *edgetest.Client) map[string]string {
	t.Helper()
	found := takeAddresses(c.Post("/updates", check()).JSON(t))
	if len(found) != 2 || !strings.HasPrefix(found[0], c.Base) || !strings.HasPrefix(found[1], c.Base) {
		t.Fatalf("told of %v", found)
	}
	return map[string]string{"/zip/1.zip": found[0], "/delta/index.html": found[1]}
}

// notFollowing asks as a phone does, but does not go where it is redirected to.
func notFollowing(t *testing.T, method, address string, header ...string) *edgetest.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return &edgetest.Response{Status: resp.StatusCode, Header: resp.Header, Body: body, Err: err}
}

// storedFiles counts what the object store has on disk.
func storedFiles(t *testing.T, e *edgetest.Edge) (files int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(e.Storage, "objects"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files++
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return files
}

// TestRelayRedirectElsewhere: an upstream that redirects its downloads to a host which this edge does not fetch from serves
// phones as it does without the edge. The operator is told once, and with the host listed the bytes come through here.
func TestRelayRedirectElsewhere(t *testing.T) {
	u := newRedirecting(t)
	e := edgetest.Start(t, u.site(""))
	e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
		for path, address := range u.addresses(t, c) {
			if c.Protocol != edgetest.HTTP1 { // by https: the bucket has http:// alone
				if r := c.Get(address); r.Status != 503 {
					t.Errorf("%s: status %d, %d bytes", path, r.Status, len(r.Body))
				}
				continue
			}
			content := u.content[path]
			if r := c.Get(address); r.Status != 200 || !bytes.Equal(r.Body, content) {
				t.Errorf("%s: status %d, %d bytes", path, r.Status, len(r.Body))
			}
			if r := c.Get(address, "Range", "bytes=2-"); r.Status != 206 || !bytes.Equal(r.Body, content[2:]) {
				t.Errorf("%s: a range: status %d, %d bytes", path, r.Status, len(r.Body))
			}
			if r := c.Do("HEAD", address, ""); r.Status != 200 || r.Header.Get("Content-Length") != fmt.Sprint(len(content)) {
				t.Errorf("%s: HEAD: status %d, %v", path, r.Status, r.Header)
			}
		}
	})
	if n := u.fetched.Load(); n != 2*3 {
		t.Errorf("the bucket was asked %d times, want once for each request of a phone", n)
	}
	if n := storedFiles(t, e); n != 0 {
		t.Errorf("%d files are stored", n)
	}
	lines := e.Log("on a host that this edge does not fetch from")
	if len(lines) != 1 || !strings.Contains(lines[0], `"`+u.bucket+`"`) || !strings.Contains(lines[0], "allow_host") {
		t.Errorf("logged %q", lines)
	}
	if lines := append(e.Log("hunter2"), e.Log("objects cannot be read")...); len(lines) > 0 {
		t.Errorf("logged %q", lines)
	}

	load(t, e, u.site("allow_host "+u.bucket))
	c := e.Client(t)
	c.Redials = 2
	edgetest.Eventually(t, "the bytes come through the edge", func() bool { // the last failure is believed for a second
		return notFollowing(t, "GET", u.addresses(t, c)["/zip/1.zip"]).Status == 200
	})
	edgetest.Eventually(t, "they are stored", func() bool { return storedFiles(t, e) == 1 })
}

// TestRelayRedirectAnswer: the answer is a redirect that nobody keeps, for each kind of request.
func TestRelayRedirectAnswer(t *testing.T) {
	u := newRedirecting(t)
	e := edgetest.Start(t, u.site(""))
	for path, address := range u.addresses(t, e.Client(t)) {
		for _, header := range [][]string{nil, {"Range", "bytes=2-3"}, {"Range", "bytes=-1"}, {"If-None-Match", `"e"`}} {
			for _, method := range []string{"GET", "HEAD"} {
				r := notFollowing(t, method, address, append(header, "Origin", "capacitor://localhost")...)
				if location := r.Header.Get("Location"); r.Status != 302 || !strings.HasPrefix(location, u.bucket+path+"?"+signature+"&n=") {
					t.Errorf("%s %v: status %d to %q", method, header, r.Status, location)
				}
				for name, want := range map[string]string{
					"Cache-Control": "no-store", "Access-Control-Allow-Origin": "capacitor://localhost", "Vary": "Origin",
					"Cache-Status": "capgo-edge; fwd=bypass; detail=redirect", "X-Content-Type-Options": "nosniff",
					"Content-Disposition": "", "Etag": "", "Repr-Digest": "",
				} {
					if got := r.Header.Get(name); got != want {
						t.Errorf("%s %v: %s is %q, want %q", method, header, name, got, want)
					}
				}
				if len(r.Body) > 0 || r.Err != nil {
					t.Errorf("%s %v: a body of %d bytes, %v", method, header, len(r.Body), r.Err)
				}
			}
		}
	}
	if n := u.fetched.Load(); n != 0 {
		t.Errorf("the edge asked the bucket %d times", n)
	}
}

// TestRelayRedirectOnce: who waits for one answer of the upstream is sent where that leads to; soon after that, it is asked
// anew, because what it signs ends.
func TestRelayRedirectOnce(t *testing.T) {
	const phones = 20
	u := newRedirecting(t)
	e := edgetest.Start(t, u.site(""))
	address := u.addresses(t, e.Client(t))["/zip/1.zip"]
	release := make(chan struct{})
	var asked atomic.Int64
	u.instead(func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		<-release
		http.Redirect(w, r, fmt.Sprintf("%s%s?%s&n=%d", u.bucket, r.URL.Path, signature, n), http.StatusFound)
	})
	var locations sync.Map
	var group sync.WaitGroup
	var begun atomic.Int64
	for range phones {
		group.Go(func() {
			begun.Add(1)
			locations.Store(notFollowing(t, "GET", address).Header.Get("Location"), true)
		})
	}
	within(t, "the upstream is asked", func() bool { return begun.Load() == phones && asked.Load() == 1 })
	close(release)
	group.Wait()
	first := u.bucket + "/zip/1.zip?" + signature + "&n=1"
	locations.Range(func(location, _ any) bool {
		if location != first {
			t.Errorf("sent to %s", location)
		}
		return true
	})
	if n := asked.Load(); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
	within(t, "the next phone is sent to a new address", func() bool {
		return notFollowing(t, "GET", address).Header.Get("Location") == strings.Replace(first, "n=1", "n=2", 1)
	})
}

// TestRelayRedirectRefused: what no client could follow to the object stays a 503, and what is not there a 404.
func TestRelayRedirectRefused(t *testing.T) {
	u := newRedirecting(t)
	e := edgetest.Start(t, u.site(""))
	c := e.Client(t)
	address := u.addresses(t, c)["/zip/1.zip"]
	for name, location := range map[string]string{
		"back here":  strings.Replace(address, "key=", "other=", 1),
		"a password": "https://joe:hunter2@cdn.example/1.zip",
		"no server":  "file:///etc/passwd",
		"a loop":     "/zip/1.zip",
	} {
		u.instead(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusFound)
		})
		asked := u.count("/zip/1.zip").Load()
		within(t, name+": the upstream is asked", func() bool {
			r := notFollowing(t, "GET", address)
			if to := r.Header.Get("Location"); r.Status != 503 || to != "" {
				t.Fatalf("%s: status %d, %q", name, r.Status, to)
			}
			return u.count("/zip/1.zip").Load() > asked
		})
	}
	u.instead(http.NotFound)
	within(t, "the object is missing", func() bool { return c.Get(address).Status == 404 })
	if lines := e.Log("names an object that the origin does not have"); len(lines) != 1 || !strings.Contains(lines[0], "an answer of the upstream") {
		t.Errorf("logged %q", lines)
	}
	if lines := e.Log("hunter2"); len(lines) > 0 {
		t.Errorf("logged %q", lines)
	}
}

// TestExternalProxyRedirect: a bundle that a manifest names comes through the hosts that the operator lists, or not at all.
func TestExternalProxyRedirect(t *testing.T) {
	u := newRedirecting(t)
	s := newSite(t)
	version := row{"id": 1, "name": "1.0.1", "external_url": u.url + "/zip/1.zip", "checksum": digest(u.content["/zip/1.zip"])}
	s.write([]row{version}, []row{production(1)})
	e := edgetest.Start(t, edgetest.Config{Site: s.handler("bundles {\n external proxy " + u.url + "\n}")})
	_, address := offered(t, e.Client(t))
	if r := notFollowing(t, "GET", address); r.Status != 503 || r.Header.Get("Location") != "" {
		t.Errorf("status %d, %v", r.Status, r.Header)
	}
	edgetest.Eventually(t, "it is logged", func() bool { return len(e.Log("add "+u.bucket+" to external proxy")) == 1 })
	if lines := e.Log("hunter2"); len(lines) > 0 {
		t.Errorf("logged %q", lines)
	}
}

// TestRelayRedirectHTTPS: a phone that comes by https is sent on to https, and to nothing less.
func TestRelayRedirectHTTPS(t *testing.T) {
	u := newRedirecting(t)
	config := u.site("")
	config.Global = "servers {\n trusted_proxies static private_ranges\n }"
	e := edgetest.Start(t, config)
	address := u.addresses(t, e.Client(t))["/zip/1.zip"]
	get := func(scheme, to string) *edgetest.Response {
		u.instead(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
		})
		time.Sleep(1100 * time.Millisecond) // the last failure is believed for a second
		return notFollowing(t, "GET", address, "X-Forwarded-Proto", scheme)
	}
	if r := get("https", "https://bucket.example/1.zip?s=hunter2"); r.Status != 302 || r.Header.Get("Location") != "https://bucket.example/1.zip?s=hunter2" {
		t.Errorf("status %d, %v", r.Status, r.Header)
	}
	if r := get("https", "http://bucket.example/1.zip?s=hunter2"); r.Status != 503 || r.Header.Get("Location") != "" {
		t.Errorf("status %d, %v", r.Status, r.Header)
	}
	if lines := e.Log("redirects downloads to http://"); len(lines) != 1 || strings.Contains(lines[0], "hunter2") {
		t.Errorf("logged %q", lines)
	}
}

// TestRelayRedirectLong: an address that no client takes is passed to none.
func TestRelayRedirectLong(t *testing.T) {
	u := newRedirecting(t)
	e := edgetest.Start(t, u.site(""))
	address := u.addresses(t, e.Client(t))["/zip/1.zip"]
	u.instead(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://bucket.example/1.zip?s="+strings.Repeat("s", 9<<10))
		w.WriteHeader(http.StatusFound)
	})
	if r := notFollowing(t, "GET", address); r.Status != 503 {
		t.Errorf("status %d", r.Status)
	}
}
