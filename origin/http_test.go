package origin_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/faulty"
	"github.com/capgo-edge/capgo-edge/origin/storetest"
)

// protocols runs f over each protocol an origin may speak.
func protocols(t *testing.T, f func(t *testing.T, serve serveFunc)) {
	t.Run("h1", func(t *testing.T) {
		f(t, func(t *testing.T, h http.Handler, o origin.HTTPOptions) *origin.HTTP {
			t.Helper()
			server := httptest.NewServer(h)
			t.Cleanup(server.Close)
			return newHTTP(t, server.URL, o)
		})
	})
	t.Run("h2", func(t *testing.T) {
		f(t, func(t *testing.T, h http.Handler, o origin.HTTPOptions) *origin.HTTP {
			t.Helper()
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != 2 {
					t.Errorf("asked by %s", r.Proto)
				}
				h.ServeHTTP(w, r)
			}))
			server.EnableHTTP2 = true
			server.StartTLS()
			t.Cleanup(server.Close)
			o.WrapTransport = trust(server)
			return newHTTP(t, server.URL, o)
		})
	})
}

// serveFunc returns a store over a server that h answers for. The options need no BaseURL, but may have the path of one.
type serveFunc func(t *testing.T, h http.Handler, o origin.HTTPOptions) *origin.HTTP

func trust(server *httptest.Server) func(http.RoundTripper) http.RoundTripper {
	return func(rt http.RoundTripper) http.RoundTripper {
		roots := x509.NewCertPool()
		roots.AddCert(server.Certificate())
		rt.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		return rt
	}
}

func newHTTP(t *testing.T, address string, o origin.HTTPOptions) *origin.HTTP {
	t.Helper()
	o.BaseURL = address + o.BaseURL
	s, err := origin.NewHTTP(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var modified = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// objects answers as web servers do. Its fields take abilities away.
type objects struct {
	content     map[string][]byte
	noRanges    bool
	noSize      bool
	noETag      bool
	noCondition bool
}

func (o objects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := strings.TrimPrefix(r.URL.Path, "/base/")
	content, ok := o.content[key]
	if !ok || !strings.HasPrefix(r.URL.Path, "/base/") {
		http.NotFound(w, r)
		return
	}
	r = r.Clone(r.Context())
	if o.noRanges || o.noSize {
		r.Header.Del("Range")
	}
	if o.noCondition {
		for _, name := range []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Range"} {
			r.Header.Del(name)
		}
	}
	if !o.noETag {
		w.Header().Set("ETag", fmt.Sprintf(`"%x"`, bytes.Clone(content[:min(4, len(content))])))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if o.noSize {
		w = unsized{w}
	}
	http.ServeContent(w, r, "", modified, bytes.NewReader(content))
}

// unsized is an answer that does not tell its length.
type unsized struct{ http.ResponseWriter }

func (u unsized) WriteHeader(status int) {
	u.Header().Del("Content-Length")
	u.ResponseWriter.WriteHeader(status)
	_ = http.NewResponseController(u.ResponseWriter).Flush()
}

func (u unsized) Write(p []byte) (int, error) { return u.ResponseWriter.Write(p) }

func TestHTTPConformance(t *testing.T) {
	for name, character := range map[string]objects{
		"full":          {},
		"no ranges":     {noRanges: true},
		"no size":       {noSize: true},
		"no ETag":       {noETag: true},
		"no conditions": {noCondition: true},
		"nothing":       {noRanges: true, noCondition: true},
	} {
		t.Run(name, func(t *testing.T) {
			protocols(t, func(t *testing.T, serve serveFunc) {
				storetest.Run(t, storetest.Harness{
					NoSize: character.noSize, NoETag: character.noETag,
					New: func(t *testing.T, content map[string][]byte) origin.Store {
						server := character
						server.content = content
						return serve(t, server, origin.HTTPOptions{BaseURL: "/base/"})
					},
				})
			})
		})
	}
}

// TestHTTPFaultyConformance has the double answer as a real origin does, and File behind HTTP as File.
func TestHTTPFaultyConformance(t *testing.T) {
	storetest.Run(t, storetest.Harness{New: func(t *testing.T, content map[string][]byte) origin.Store {
		server := httptest.NewServer(objects{content: content})
		t.Cleanup(server.Close)
		return faulty.New(newHTTP(t, server.URL+"/base", origin.HTTPOptions{}))
	}})
}

// cut sends n bytes of the content, then breaks off, in each way lengths are told.
func cut(content []byte, n int, sized, partial bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		if sized {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		}
		if partial {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 10-%d/%d", 9+len(content), 10+len(content)))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(content[:n])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
}

func TestHTTPCut(t *testing.T) {
	content := bytes.Repeat([]byte("capgo"), 20_000)
	protocols(t, func(t *testing.T, serve serveFunc) {
		for _, n := range []int{0, 1, len(content) / 2, len(content) - 1} {
			for _, sized := range []bool{true, false} {
				for _, opts := range []origin.GetOptions{{}, {Offset: 10}, {Length: int64(len(content))}} {
					s := serve(t, cut(content, n, sized, opts.Offset > 0), origin.HTTPOptions{})
					_, got, err := storetest.Read(t, s, "a", opts)
					if !errors.Is(err, origin.ErrUnavailable) || errors.Is(err, io.EOF) {
						t.Errorf("cut at %d, sized %v, %+v: got %d bytes, %v", n, sized, opts, len(got), err)
					}
					if len(got) > n {
						t.Errorf("cut at %d: got %d bytes", n, len(got))
					}
				}
			}
		}
	})
}

// TestHTTPHangUp has a server end a body by hanging up, as HTTP/1.0 did: nobody can tell whether it is whole.
func TestHTTPHangUp(t *testing.T) {
	for _, header := range []string{"HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"} {
		s := newHTTP(t, rawServer(t, header+"abc"), origin.HTTPOptions{})
		if _, got, err := storetest.Read(t, s, "a", origin.GetOptions{}); !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("got %q, %v", got, err)
		}
	}
	s := newHTTP(t, rawServer(t, "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc"), origin.HTTPOptions{})
	if _, got, err := storetest.Read(t, s, "a", origin.GetOptions{}); err != nil || string(got) != "abc" {
		t.Errorf("with a length: got %q, %v", got, err)
	}
}

// rawServer answers each connection with the text, whatever it asks.
func rawServer(t *testing.T, answer string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	}()
	return "http://" + listener.Addr().String()
}

func TestHTTPStall(t *testing.T) {
	content := bytes.Repeat([]byte("x"), 1000)
	protocols(t, func(t *testing.T, serve serveFunc) {
		stall := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(content[:500])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		s := serve(t, stall, origin.HTTPOptions{StallTimeout: 50 * time.Millisecond})
		for name, opts := range map[string]origin.GetOptions{
			"whole":                       {},
			"while skipping to an offset": {Offset: 900}, // the server does no ranges
		} {
			done := make(chan error, 1)
			go func() {
				_, _, err := storetest.Read(t, s, "a", opts)
				done <- err
			}()
			select {
			case err := <-done:
				if !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), "stopped sending") {
					t.Errorf("%s: got %v", name, err)
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("%s: hangs", name)
			}
		}
	})
}

func TestHTTPCancelled(t *testing.T) {
	protocols(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "abc")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}), origin.HTTPOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		o, err := s.Get(ctx, "a", origin.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(o.Body, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := o.Body.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) || !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("body: got %v", err)
		}
		if err := o.Body.Close(); err != nil {
			t.Error(err)
		}
		if _, err := s.Get(ctx, "a", origin.GetOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("get: got %v", err)
		}
	})
}

func TestHTTPAnswers(t *testing.T) {
	tests := []struct {
		name   string
		status int
		header http.Header
		opts   origin.GetOptions
		want   error
		text   string // part of the message
	}{
		{name: "unauthorized", status: 401, want: origin.ErrUnavailable, text: "401"},
		{name: "forbidden", status: 403, want: origin.ErrUnavailable, text: "403"},
		{name: "not found", status: 404, want: origin.ErrNotFound},
		{name: "gone", status: 410, want: origin.ErrNotFound},
		{name: "precondition", status: 412, want: origin.ErrChanged},
		{name: "range", status: 416, want: origin.ErrRange},
		{name: "teapot", status: 418, want: origin.ErrUnavailable, text: "418"},
		{name: "too many", status: 429, want: origin.ErrUnavailable, text: "429"},
		{name: "broken", status: 500, want: origin.ErrUnavailable, text: "500"},
		{name: "down", status: 503, want: origin.ErrUnavailable, text: "503"},
		{name: "no content", status: 204, want: origin.ErrUnavailable, text: "204"},
		{name: "unmodified", status: 304, want: origin.ErrNotModified},
		{name: "redirect to nowhere", status: 302, want: origin.ErrUnavailable},
		{name: "gzip", status: 200, header: http.Header{"Content-Encoding": {"gzip"}}, want: origin.ErrUnavailable, text: "compression"},
		{name: "brotli of head", status: 200, header: http.Header{"Content-Encoding": {"br"}}, opts: origin.GetOptions{HeadOnly: true}, want: origin.ErrUnavailable, text: "br"},
		{name: "identity", status: 200, header: http.Header{"Content-Encoding": {"identity"}}},
		{
			name: "another range", status: 206, header: http.Header{"Content-Range": {"bytes 3-5/100"}},
			opts: origin.GetOptions{Offset: 2, Length: 3}, want: origin.ErrUnavailable, text: "bytes 3-5/100",
		},
		{
			name: "too little", status: 206, header: http.Header{"Content-Range": {"bytes 2-4/100"}},
			opts: origin.GetOptions{Offset: 2}, want: origin.ErrUnavailable, text: "bytes 2-4/100",
		},
		{
			name: "a part not asked for", status: 206, header: http.Header{"Content-Range": {"bytes 0-2/100"}},
			want: origin.ErrUnavailable, text: "bytes 0-2/100",
		},
		{
			name: "no total", status: 206, header: http.Header{"Content-Range": {"bytes 2-4/*"}},
			opts: origin.GetOptions{Offset: 2, Length: 3}, want: origin.ErrUnavailable, text: "bytes 2-4/*",
		},
		{name: "no Content-Range", status: 206, opts: origin.GetOptions{Offset: 2, Length: 3}, want: origin.ErrUnavailable},
		{
			name: "less than it says", status: 206, header: http.Header{"Content-Range": {"bytes 2-5/6"}},
			opts: origin.GetOptions{Offset: 2}, want: origin.ErrUnavailable, text: "early",
		},
	}
	protocols(t, func(t *testing.T, serve serveFunc) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					maps.Copy(w.Header(), tt.header)
					w.WriteHeader(tt.status)
					if tt.status != 204 && tt.status != 304 {
						_, _ = io.WriteString(w, "abc")
					}
				}), origin.HTTPOptions{})
				_, got, err := storetest.Read(t, s, "a", tt.opts)
				if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %q, %v, want %v with %q", got, err, tt.want, tt.text)
				}
			})
		}
	})
}

func TestHTTPWeakETag(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `W/"1"`)
		if r.Header.Get("If-Match") != "" {
			w.WriteHeader(http.StatusPreconditionFailed) // a weak one never matches strongly
			return
		}
		http.ServeContent(w, r, "a.zip", time.Time{}, strings.NewReader("abc"))
	}))
	defer server.Close()
	s := newHTTP(t, server.URL, origin.HTTPOptions{})
	if _, got, err := storetest.Read(t, s, "a", origin.GetOptions{IfMatch: `W/"1"`}); err != nil || string(got) != "abc" {
		t.Errorf("same: %q, %v", got, err)
	}
	if _, _, err := storetest.Read(t, s, "a", origin.GetOptions{IfMatch: `W/"2"`}); !errors.Is(err, origin.ErrChanged) {
		t.Errorf("other: %v", err)
	}
}

const secret = "hunter2secret"

func TestHTTPRedirects(t *testing.T) {
	protocols(t, func(t *testing.T, serve serveFunc) {
		var leaked atomic.Bool
		other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Store(true) }))
		defer other.Close()
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Token") != secret {
				t.Errorf("%s came without the header", r.URL)
			}
			switch r.URL.Path {
			case "/out":
				http.Redirect(w, r, other.URL+"/there", http.StatusFound)
			case "/scheme":
				w.Header().Set("Location", "ftp://"+r.Host+"/there")
				w.WriteHeader(http.StatusFound)
			case "/endless":
				http.Redirect(w, r, "/endless", http.StatusFound)
			case "/in":
				http.Redirect(w, r, "/target", http.StatusTemporaryRedirect)
			case "/target":
				http.ServeContent(w, r, "a.zip", modified, strings.NewReader("abcdef"))
			}
		}), origin.HTTPOptions{Header: http.Header{"x-token": {secret}}})
		if _, got, err := storetest.Read(t, s, "in", origin.GetOptions{Offset: 2, Length: 2}); err != nil || string(got) != "cd" {
			t.Errorf("same host: %q, %v", got, err)
		}
		for key, text := range map[string]string{
			"out": strings.TrimPrefix(other.URL, "http://"), "scheme": "ftp://", "endless": "5 redirects",
		} {
			_, _, err := storetest.Read(t, s, key, origin.GetOptions{})
			if !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), secret) {
				t.Errorf("%s: got %v", key, err)
			}
		}
		if leaked.Load() {
			t.Error("the other host was asked")
		}
	})
}

func TestHTTPSecrets(t *testing.T) {
	var host atomic.Value
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host.Store(r.Host)
		if user, password, _ := r.BasicAuth(); user != "joe" || password != secret {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch r.URL.Path {
		case "/cut":
			w.Header().Set("Content-Length", "10")
			panic(http.ErrAbortHandler)
		case "/redirect":
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		default:
			_, _ = io.WriteString(w, "welcome")
		}
	}))
	defer server.Close()
	address := strings.Replace(server.URL, "://", "://joe:"+secret+"@", 1)
	s := newHTTP(t, address, origin.HTTPOptions{})
	if _, got, err := storetest.Read(t, s, "a", origin.GetOptions{}); err != nil || string(got) != "welcome" {
		t.Errorf("got %q, %v", got, err)
	}
	down := newHTTP(t, strings.Replace("http://127.0.0.1:1", "://", "://joe:"+secret+"@", 1), origin.HTTPOptions{})
	for _, test := range []struct {
		store *origin.HTTP
		key   string
	}{{s, "cut"}, {s, "redirect"}, {down, "a"}} {
		_, _, err := storetest.Read(t, test.store, test.key, origin.GetOptions{})
		if !errors.Is(err, origin.ErrUnavailable) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: got %v", test.key, err)
		}
	}
	if got, want := s.Identity(), "http "+server.URL; got != want {
		t.Errorf("identity %q, want %q", got, want)
	}

	virtual := newHTTP(t, address, origin.HTTPOptions{Header: http.Header{"host": {"storage.internal"}}})
	if _, _, err := storetest.Read(t, virtual, "a", origin.GetOptions{}); err != nil || host.Load() != "storage.internal" {
		t.Errorf("got %v from host %v", err, host.Load())
	}
	if virtual.Identity() == s.Identity() {
		t.Error("two hosts at one address have one identity")
	}
	mine := newHTTP(t, address, origin.HTTPOptions{Header: http.Header{"Authorization": {"Bearer x"}}})
	if _, _, err := storetest.Read(t, mine, "a", origin.GetOptions{}); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("an Authorization header does not go before the user in the address: %v", err)
	}
}

func TestNewHTTPRefuses(t *testing.T) {
	for _, address := range []string{
		"", "example.com", "ftp://joe:" + secret + "@example.com", "http://", "https://joe:" + secret + "@", "http://a/?q=1", "http://a/#f",
		"http://joe:" + secret + "@exa mple.com", "http://a:b:c/", "http://a/%zz",
	} {
		s, err := origin.NewHTTP(origin.HTTPOptions{BaseURL: address})
		if err == nil || s != nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: got %v", address, err)
		}
	}
}

// TestHTTPConnections counts connections: each new one to a distant origin costs several round trips.
func TestHTTPConnections(t *testing.T) {
	var opened atomic.Int32
	server := httptest.NewUnstartedServer(objects{content: map[string][]byte{"a": bytes.Repeat([]byte("x"), 100_000)}})
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	s := newHTTP(t, server.URL+"/base", origin.HTTPOptions{})
	o, _, err := storetest.Read(t, s, "a", origin.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		for _, opts := range []origin.GetOptions{{}, {Offset: 5}, {Length: 10}, {HeadOnly: true}, {IfNoneMatch: o.ETag}, {IfMatch: `"x"`}, {Offset: 1 << 20}} {
			_, _, _ = storetest.Read(t, s, "a", opts)
		}
		_, _, _ = storetest.Read(t, s, "missing", origin.GetOptions{})
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("opened %d connections, want 1", n)
	}
}

// TestHTTPUnsettled tells apart a time that proves an object unchanged from one that may hide a second change.
func TestHTTPUnsettled(t *testing.T) {
	stamp := func(d time.Duration) string { return modified.Add(d).Format(http.TimeFormat) }
	for _, tt := range []struct {
		name           string
		modified, date string
		want           bool
	}{
		{"just written", stamp(0), stamp(0), true},
		{"written long ago", stamp(0), stamp(time.Hour), false},
		{"written in the future", stamp(time.Hour), stamp(0), true},
		{"by a server without a clock", stamp(0), "", true},
		{"without a time", "", stamp(0), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Date"] = nil // else the server sets it
				if tt.date != "" {
					w.Header().Set("Date", tt.date)
				}
				if tt.modified != "" {
					w.Header().Set("Last-Modified", tt.modified)
				}
				_, _ = io.WriteString(w, "abc")
			}))
			defer server.Close()
			o, _, err := storetest.Read(t, newHTTP(t, server.URL, origin.HTTPOptions{}), "a", origin.GetOptions{})
			if err != nil || o.Unsettled != tt.want {
				t.Errorf("got %+v, %v, want Unsettled %v", o, err, tt.want)
			}
		})
	}
}

// TestHTTPDeadConnection: a connection that died without a word is left within seconds, whatever is sent over it.
func TestHTTPDeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &mutedNetwork{conns: make(chan net.Conn)}
		server := &httptest.Server{Listener: network, EnableHTTP2: true, Config: &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }),
		}}
		server.StartTLS()
		s := newHTTP(t, "https://origin.example", origin.HTTPOptions{WrapTransport: func(rt http.RoundTripper) http.RoundTripper {
			transport := rt.(*http.Transport)
			transport.DialContext = network.dial
			transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // the network has one host
			return transport
		}})
		get := func() (string, error) {
			o, err := s.Get(t.Context(), "manifest.json", origin.GetOptions{})
			if err != nil {
				return "", err
			}
			proto, err := io.ReadAll(o.Body)
			return string(proto), errors.Join(err, o.Body.Close())
		}
		if proto, err := get(); err != nil || proto != "HTTP/2.0" {
			t.Fatalf("%s: %v", proto, err)
		}
		network.dialed.dead.Store(true)
		began, err := time.Now(), io.EOF
		for err != nil && time.Since(began) < time.Minute {
			_, err = get()
		}
		if passed := time.Since(began); err != nil || passed > 15*time.Second {
			t.Errorf("after %s: %v", passed, err)
		}
		s.CloseIdleConnections()
		close(network.conns)
		server.CloseClientConnections()
	})
}

// mutedNetwork is a network with one host.
type mutedNetwork struct {
	conns  chan net.Conn
	dialed *mutedConn // the last
}

// mutedConn is a connection that sends nothing any more once it is dead, and does not say so.
type mutedConn struct {
	net.Conn
	dead atomic.Bool
}

func (c *mutedConn) Write(p []byte) (int, error) {
	if c.dead.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (n *mutedNetwork) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	n.dialed = &mutedConn{Conn: client}
	n.conns <- server
	return n.dialed, nil
}

func (n *mutedNetwork) Accept() (net.Conn, error) {
	if c, ok := <-n.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (n *mutedNetwork) Close() error   { return nil }
func (n *mutedNetwork) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
