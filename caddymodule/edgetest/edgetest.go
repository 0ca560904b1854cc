// Package edgetest runs the real edge for tests: Caddy in this process, on loopback, from a Caddyfile.
//
// Caddy has one configuration per process, so tests that use this package must not run in parallel with each other.
package edgetest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard" // what users run has them all
	"github.com/quic-go/quic-go/http3"
)

// Config is a Caddyfile in parts.
type Config struct {
	Global  string // further global options
	Storage string // further options of the module's app, which all sites share
	Site    string // what stands in the site's block
	NoApp   bool   // leaves the module's app out
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
	e.clients = map[string]*http.Client{}
	for name, newTransport := range transports {
		transport := newTransport()
		e.clients[name] = &http.Client{Transport: transport}
		if c, ok := transport.(io.Closer); ok { // that of HTTP/3 holds a socket
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	t.Cleanup(e.Stop)
	return e
}

// The protocols a site can be asked over.
const (
	HTTP1    = "HTTP/1.1"
	HTTP1TLS = "HTTP/1.1 TLS"
	HTTP2    = "HTTP/2"
	HTTP3    = "HTTP/3"
)

// transports make what a client of each protocol sends its requests through. None of them asks for compression, which
// would hide a body's length, nor falls back to another protocol.
var transports = map[string]func() http.RoundTripper{
	HTTP1: func() http.RoundTripper { return &http.Transport{DisableCompression: true} },
	HTTP1TLS: func() http.RoundTripper {
		return &http.Transport{DisableCompression: true, TLSClientConfig: trusting()}
	},
	HTTP2: func() http.RoundTripper {
		return &http.Transport{DisableCompression: true, TLSClientConfig: trusting(), ForceAttemptHTTP2: true}
	},
	HTTP3: func() http.RoundTripper {
		return &http3.Transport{DisableCompression: true, TLSClientConfig: trusting()}
	},
}

func trusting() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

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
	adapted, err := e.JSON(c)
	if err != nil {
		return err
	}
	if err := caddy.Load(adapted, true); err != nil {
		return err
	}
	return e.settle()
}

// settle lets connections of HTTP/3 know of all that Load did. Caddy starts its apps in any order, the one that serves
// perhaps before the one that has the certificates, and the race detector cannot tell that a packet comes later: it knows
// of no order between the two ends of a UDP socket. Sharing the listener takes a lock that each handshake takes, too.
func (e *Edge) settle() error {
	port, err := strconv.ParseUint(e.ports[1], 10, 16)
	if err != nil {
		return err
	}
	addr := caddy.NetworkAddress{Network: "udp", Host: "127.0.0.1", StartPort: uint(port), EndPort: uint(port)}
	l, err := addr.ListenQUIC(e.t.Context(), 0, net.ListenConfig{}, &tls.Config{MinVersion: tls.VersionTLS13}, nil, nil)
	if err != nil {
		return err
	}
	return errors.Join(l.Close(), l.Close()) // the first takes its settings away, the second its share
}

// JSON is the whole configuration that Load loads for c, for a process of its own.
func (e *Edge) JSON(c Config) ([]byte, error) { return Adapt(e.caddyfile(c)) }

func (e *Edge) caddyfile(c Config) string {
	app := fmt.Sprintf("capgo_edge {\nstorage %s\n%s\n}", e.Storage, c.Storage)
	if c.NoApp {
		app = ""
	}
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
	%[2]s
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
`, e.dir, app, c.Global, e.ports[0], e.ports[1], c.Site)
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
	Proto  string // as HTTP/1.1, HTTP/2.0 or HTTP/3.0
	Header http.Header
	Body   []byte
	Err    error // why the body ended early, or why there was no answer
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

// Protocols runs a test over HTTP/1.1 in clear text and over HTTP/2 with TLS.
func (e *Edge) Protocols(t *testing.T, test func(t *testing.T, c *Client)) {
	t.Helper()
	e.over(t, test, HTTP1, HTTP2)
}

// AllProtocols runs a test over everything phones and web views speak: HTTP/1.1 in clear text and with TLS, HTTP/2 and
// HTTP/3.
func (e *Edge) AllProtocols(t *testing.T, test func(t *testing.T, c *Client)) {
	t.Helper()
	e.over(t, test, HTTP1, HTTP1TLS, HTTP2, HTTP3)
}

func (e *Edge) over(t *testing.T, test func(t *testing.T, c *Client), protocols ...string) {
	t.Helper()
	for _, name := range protocols {
		t.Run(name, func(t *testing.T) { test(t, e.Over(t, name)) })
	}
}

// Over returns a client of the site over one of the protocols. All clients of a protocol share their connections.
func (e *Edge) Over(t testing.TB, protocol string) *Client {
	base := e.HTTPS
	if protocol == HTTP1 {
		base = e.HTTP
	}
	return &Client{t: t, http: e.clients[protocol], Base: base, Protocol: protocol, Redialed: new(atomic.Int64)}
}

// Reconnect has the next request come over a connection of its own. One that the server before a reload took in its last moment
// is served by that until the client closes it: net/http tells only those that it knew when it began to shut down.
func (c *Client) Reconnect() { c.http.CloseIdleConnections() }

// Client returns a client of the site over HTTP/1.1.
func (e *Edge) Client(t testing.TB) *Client { return e.Over(t, HTTP1) }

// Client asks a site over one protocol.
type Client struct {
	t        testing.TB
	http     *http.Client
	Base     string
	Protocol string

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

// Do sends a request; header holds names and values by turns. No answer at all fails the test.
func (c *Client) Do(method, path, body string, header ...string) *Response {
	c.t.Helper()
	r := c.Try(method, path, body, header...)
	if r.Status == 0 {
		c.t.Errorf("%s %s: %v", method, path, r.Err)
	}
	return r
}

// Try is Do where no answer may be one: its Status is 0.
func (c *Client) Try(method, path, body string, header ...string) *Response {
	c.t.Helper()
	resp, err := c.Open(c.t.Context(), method, path, body, header...)
	if err != nil {
		return &Response{Err: err}
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end already
	r := &Response{Status: resp.StatusCode, Proto: resp.Proto, Header: resp.Header}
	r.Body, r.Err = io.ReadAll(resp.Body)
	return r
}

// Open sends a request and returns as soon as its answer begins. The caller reads the body as it likes, and closes it.
func (c *Client) Open(ctx context.Context, method, path, body string, header ...string) (*http.Response, error) {
	c.t.Helper()
	if strings.HasPrefix(path, "/") {
		path = c.Base + path
	}
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, path, reader)
	if err != nil {
		return nil, err
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
		if err == nil || ctx.Err() != nil {
			break
		}
		c.Redialed.Add(1)
		if req.GetBody != nil {
			req.Body, _ = req.GetBody() // a strings.Reader's never fails
		}
		resp, err = c.http.Do(req)
	}
	return resp, err
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

// FreePort returns a port of loopback that nobody listens at, neither over TCP nor over UDP, which HTTP/3 needs.
func FreePort(t testing.TB) string {
	t.Helper()
	for {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // it only held the port
		packets, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", l.Addr().String())
		if err != nil { // somebody has it
			continue
		}
		defer packets.Close() //nolint:errcheck // likewise
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
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
