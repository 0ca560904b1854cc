// Package edgetest runs the real edge for tests: Caddy in this process, on loopback, from a Caddyfile.
//
// Caddy has one configuration per process, so tests that use this package must not run in parallel with each other.
package edgetest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard" // what users run has them all
)

// Config is a Caddyfile in parts.
type Config struct {
	Global string // further global options
	Site   string // what stands in the site's block
}

// Edge is a running Caddy with one site, reachable in clear text and with TLS.
type Edge struct {
	HTTP, HTTPS string // addresses of the site, without a slash at the end
	Storage     string // the module's storage directory

	t       testing.TB
	dir     string
	ports   [2]string
	clients map[string]*http.Client
}

// Start runs c until the test ends.
func Start(t testing.TB, c Config) *Edge {
	t.Helper()
	e := New(t)
	if err := e.Load(c); err != nil {
		t.Fatalf("loading the configuration: %v", err)
	}
	return e
}

// New prepares an edge that Load starts. It is stopped when the test ends.
func New(t testing.TB) *Edge {
	t.Helper()
	dir := t.TempDir()
	e := &Edge{t: t, dir: dir, Storage: filepath.Join(dir, "edge"), ports: [2]string{FreePort(t), FreePort(t)}}
	e.HTTP, e.HTTPS = "http://127.0.0.1:"+e.ports[0], "https://127.0.0.1:"+e.ports[1]
	writeCertificate(t, dir)
	e.clients = map[string]*http.Client{
		"HTTP/1.1": {Transport: &http.Transport{DisableCompression: true}},
		"HTTP/2": {Transport: &http.Transport{
			DisableCompression: true, ForceAttemptHTTP2: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}},
	}
	t.Cleanup(e.Stop)
	return e
}

// Stop stops Caddy.
func (e *Edge) Stop() {
	for _, c := range e.clients {
		c.CloseIdleConnections()
	}
	if err := caddy.Stop(); err != nil {
		e.t.Errorf("stopping: %v", err)
	}
}

// Load replaces the running configuration, as "caddy reload" does.
func (e *Edge) Load(c Config) error {
	adapted, err := Adapt(e.caddyfile(c))
	if err != nil {
		return err
	}
	return caddy.Load(adapted, true)
}

func (e *Edge) caddyfile(c Config) string {
	return fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	skip_install_trust
	grace_period 5s
	storage file_system %[1]s/caddy
	log {
		output file %[1]s/log
		level DEBUG
	}
	capgo_edge {
		storage %[2]s
	}
	%[3]s
}
(site) {
	bind 127.0.0.1
	%[6]s
}
http://127.0.0.1:%[4]s {
	import site
}
https://127.0.0.1:%[5]s {
	tls %[1]s/cert.pem %[1]s/key.pem
	import site
}
`, e.dir, e.Storage, c.Global, e.ports[0], e.ports[1], c.Site)
}

// Adapt turns a Caddyfile into JSON.
func Adapt(text string) ([]byte, error) {
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	return adapted, err
}

// Log returns the lines that were logged with this text.
func (e *Edge) Log(text string) []string {
	e.t.Helper()
	raw, err := os.ReadFile(filepath.Join(e.dir, "log"))
	if err != nil {
		e.t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, text) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// Response is an answer that was read to its end.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
	Err    error // why the body ended early
}

// JSON is the body as an object.
func (r *Response) JSON(t testing.TB) map[string]any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal(r.Body, &object); err != nil {
		t.Fatalf("status %d, and the body is not a JSON object: %v: %q", r.Status, err, r.Body)
	}
	return object
}

// Protocols runs a test over HTTP/1.1 in clear text and over HTTP/2 with TLS. base is the site's address there.
func (e *Edge) Protocols(t *testing.T, test func(t *testing.T, c *Client)) {
	t.Helper()
	t.Run("HTTP/1.1", func(t *testing.T) { test(t, newClient(t, e.clients["HTTP/1.1"], e.HTTP)) })
	t.Run("HTTP/2", func(t *testing.T) { test(t, newClient(t, e.clients["HTTP/2"], e.HTTPS)) })
}

// Client returns a client of the site over HTTP/1.1.
func (e *Edge) Client(t testing.TB) *Client {
	return newClient(t, e.clients["HTTP/1.1"], e.HTTP)
}

func newClient(t testing.TB, c *http.Client, base string) *Client {
	return &Client{t: t, http: c, Base: base, Redialed: new(atomic.Int64)}
}

// Client asks a site over one protocol.
type Client struct {
	t    testing.TB
	http *http.Client
	Base string

	// Redials is how often a request is sent again that got no answer at all. Caddy opens a new socket for each reload,
	// and the kernel resets connections that still waited in the old one: they reached no handler, ours or another.
	Redials  int
	Redialed *atomic.Int64
}

// Post sends a JSON body.
func (c *Client) Post(path, body string, header ...string) *Response {
	c.t.Helper()
	return c.Do(http.MethodPost, path, body, append([]string{"Content-Type", "application/json"}, header...)...)
}

// Get asks for a path, or for a whole address.
func (c *Client) Get(path string, header ...string) *Response {
	c.t.Helper()
	return c.Do(http.MethodGet, path, "", header...)
}

// Do sends a request; header holds names and values by turns.
func (c *Client) Do(method, path, body string, header ...string) *Response {
	c.t.Helper()
	if strings.HasPrefix(path, "/") {
		path = c.Base + path
	}
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, path, reader)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Add(header[i], header[i+1])
		}
	}
	resp, err := c.http.Do(req)
	for range c.Redials { // a request is read anew from its start by GetBody
		if err == nil {
			break
		}
		c.Redialed.Add(1)
		if req.GetBody != nil {
			req.Body, _ = req.GetBody() // a strings.Reader's never fails
		}
		resp, err = c.http.Do(req)
	}
	if err != nil {
		c.t.Errorf("%s %s: %v", method, path, err)
		return &Response{Err: err}
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end already
	r := &Response{Status: resp.StatusCode, Header: resp.Header}
	r.Body, r.Err = io.ReadAll(resp.Body)
	return r
}

// WriteFile writes a file of an origin's directory, as a tool that publishes well does: under another name, then renamed.
func WriteFile(t testing.TB, dir, key string, content []byte) {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(key))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// Eventually waits until ok holds, for ten seconds at the most.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("after 10 s still not: %s", what)
		case <-tick.C:
		}
	}
}

// FreePort returns a port of loopback that nobody listens at.
func FreePort(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it only held the port
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func writeCertificate(t testing.TB, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: private},
	} {
		var b bytes.Buffer
		if err := pem.Encode(&b, block); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
