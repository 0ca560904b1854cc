package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// edge serves what the group passes through, as a handler of Caddy would, and tells what Forward returned.
func edge(t testing.TB, g *Group) (address string, result func() (int, error)) {
	t.Helper()
	type outcome struct {
		status int
		err    error
	}
	outcomes := make(chan outcome, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "edge")
		status, err := g.Forward(w, r, Passage{
			Path: strings.TrimPrefix(r.URL.Path, "/prefix"), Address: netip.MustParseAddr("::ffff:203.0.113.7"), Proto: "https",
			Host: "updates.example.com", MaxBody: 1 << 20,
		})
		outcomes <- outcome{status, err}
		switch {
		case err != nil && status != 0:
			panic(http.ErrAbortHandler)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL + "/prefix", func() (int, error) {
		o := <-outcomes
		return o.status, o.err
	}
}

// got is an answer that was read.
type got struct {
	StatusCode int
	Header     http.Header
}

func send(t testing.TB, method, url string, header http.Header, body io.Reader) (got, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	transport := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return got{}, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return got{resp.StatusCode, resp.Header}, string(text), err
}

// TestForwardOnTheWire: request and answer stay as they are, save what tells whom the request is from.
func TestForwardOnTheWire(t *testing.T) {
	var seen, body string
	g := group(t, Options{URLs: []string{strings.Replace(serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		user, password, _ := r.BasicAuth()
		r.Header.Del("Authorization")
		seen = fmt.Sprintln(r.Method, r.RequestURI, user, password, r.ContentLength, r.TransferEncoding, r.Header)
		body = string(text)
		w.Header().Set("Server", "origin")
		w.Header()["X-Twice"] = []string{"a", "b"}
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, onPrem)
	})), "http://", "http://u:hunter2@", 1)}})
	address, result := edge(t, g)
	large := strings.Repeat("0123456789abcdef", 10_000)
	for _, c := range []struct {
		name, method, path string
		body               io.Reader
		want, wantBody     string
	}{
		{"GET", "GET", "/channel_self?app_id=a%20b;c&x=%zz", nil, "GET /functions/v1/channel_self?app_id=a%20b;c&x=%zz u hunter2 0 []", ""},
		{"DELETE", "DELETE", "/channel_self?a", nil, "DELETE /functions/v1/channel_self?a u hunter2 0 []", ""},
		{"DELETE with a body", "DELETE", "/channel_self", strings.NewReader(question), fmt.Sprintf("DELETE /functions/v1/channel_self u hunter2 %d []", len(question)), question},
		{"POST", "POST", "/channel_self", strings.NewReader(question), fmt.Sprintf("POST /functions/v1/channel_self u hunter2 %d []", len(question)), question},
		{"PUT, chunked", "PUT", "/channel_self", io.MultiReader(strings.NewReader(question)), fmt.Sprintf("PUT /functions/v1/channel_self u hunter2 %d []", len(question)), question},
		{"POST, large", "POST", "/updates/manifest_size", strings.NewReader(large), fmt.Sprintf("POST /functions/v1/updates/manifest_size u hunter2 %d []", len(large)), large},
		{"POST, large, chunked", "POST", "/updates/manifest_size", io.MultiReader(strings.NewReader(large)), "POST /functions/v1/updates/manifest_size u hunter2 -1 [chunked]", large},
		{"POST of nothing", "POST", "/channel_self", nil, "POST /functions/v1/channel_self u hunter2 0 []", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, text, err := send(t, c.method, address+c.path, http.Header{
				"User-Agent": {"phone"}, "X-Custom": {"1", "2"}, "Origin": {"capacitor://localhost"},
				"X-Forwarded-For": {"198.51.100.1"}, "Cf-Connecting-Ip": {"198.51.100.1"}, "X-Real-Ip": {"198.51.100.1"}, "Forwarded": {"for=198.51.100.1"},
				"Connection": {"X-Hop, Upgrade"}, "X-Hop": {"1"}, "Upgrade": {"websocket"}, "Authorization": {"Bearer x"},
			}, c.body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != 429 || text != onPrem || resp.Header.Get("Retry-After") != "7" ||
				fmt.Sprint(resp.Header["Server"], resp.Header["X-Twice"]) != "[origin] [a b]" {
				t.Errorf("%d %q %v", resp.StatusCode, text, resp.Header)
			}
			if status, err := result(); status != 429 || err != nil {
				t.Error(status, err)
			}
			header := "map[Accept-Encoding:[identity] "
			if c.wantBody != "" && !strings.Contains(c.want, "chunked") || c.method == "POST" && c.wantBody == "" {
				header += fmt.Sprintf("Content-Length:[%d] ", len(c.wantBody))
			}
			header += "Origin:[capacitor://localhost] User-Agent:[phone] X-Custom:[1 2] X-Forwarded-For:[203.0.113.7] " +
				"X-Forwarded-Host:[updates.example.com] X-Forwarded-Proto:[https] X-Real-Ip:[203.0.113.7]]"
			if seen != fmt.Sprintln(c.want, header) || body != c.wantBody {
				t.Errorf("the server sees\n%swant\n%s %s\n%d bytes", seen, c.want, header, len(body))
			}
		})
	}
}

// TestForwardTellsNoLies: only the edge says who the client is; servers count unknown apps by it (protocol 1.5, row 5b).
func TestForwardTellsNoLies(t *testing.T) {
	const lie = "198.51.100.1"
	var seen http.Header
	g := group(t, Options{URLs: []string{serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.Header }))}})
	address, _ := edge(t, g)
	header := http.Header{"X-App-Ip-Policy": {lie}}
	for _, name := range []string{
		"Forwarded", "X-Forwarded", "X-Forwarded-For", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Client-Cert", "X_Forwarded_For",
		"X-Original-Forwarded-For", "X-Vercel-Forwarded-For", "X-Real-Ip", "X_real_ip", "X-Client-Ip", "Client-Ip", "X-Cluster-Client-Ip",
		"True-Client-Ip", "Fastly-Client-Ip", "Fly-Client-Ip", "X-Azure-Clientip", "X-Azure-Socketip", "Cf-Connecting-Ip",
		"Cf-Connecting-Ipv6", "Do-Connecting-Ip", "X-Envoy-External-Address", "X-Remote-Ip", "X-Original-Url", "X-Rewrite-Url",
	} {
		header[name] = []string{lie}
	}
	if _, _, err := send(t, "POST", address+"/channel_self", header, strings.NewReader(question)); err != nil {
		t.Fatal(err)
	}
	for name, values := range seen {
		if slices.Contains(values, lie) != (name == "X-App-Ip-Policy") {
			t.Errorf("%s: %s", name, values)
		}
	}
}

// TestForwardGoesOn: when another server is tried, and when not.
func TestForwardGoesOn(t *testing.T) {
	var cutSeen, nextSeen atomic.Int64
	next := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nextSeen.Add(1)
		text, _ := io.ReadAll(r.Body)
		_, _ = w.Write(text)
	}))
	cut := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cutSeen.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	}))
	small, large := "small", strings.Repeat("0123456789abcdef", 10_000)
	for _, c := range []struct {
		name, first, method, body string
		status                    int
		next                      bool
	}{
		{"nobody there, POST", nowhere(t), "POST", small, 200, true},
		{"nobody there, a body that is passed on", nowhere(t), "POST", large, 200, true},
		{"cut, POST: it may have been done", cut, "POST", small, 0, false},
		{"cut, PUT", cut, "PUT", small, 200, true},
		{"cut, GET", cut, "GET", "", 200, true},
		{"cut, a PUT that cannot be sent again", cut, "PUT", large, 0, false},
		{"an answer is an answer", serve(t, says(503, small)), "GET", "", 503, false},
		{"a redirect is the client's", serve(t, http.RedirectHandler("https://elsewhere.example/", http.StatusFound)), "GET", "", 302, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			address, result := edge(t, group(t, Options{URLs: []string{c.first, next}}))
			before := nextSeen.Load()
			resp, text, err := send(t, c.method, address+"/x", nil, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			status, err := result()
			if status != c.status || (err != nil) != (status == 0) || c.next != (nextSeen.Load() > before) {
				t.Errorf("%d, %v, next: %v", status, err, nextSeen.Load() > before)
			}
			if c.next && text != c.body {
				t.Errorf("%d bytes came back", len(text))
			}
			if status == 0 && resp.StatusCode != 503 {
				t.Errorf("the client gets %d", resp.StatusCode)
			}
		})
	}
}

func TestForwardTooLarge(t *testing.T) {
	g := group(t, Options{URLs: []string{serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		_, _ = w.Write(text)
	}))}})
	for name, body := range map[string]io.Reader{
		"of a known length":    bytes.NewReader(make([]byte, 1<<20+1)),
		"of an unknown length": io.MultiReader(bytes.NewReader(make([]byte, 1<<20+1))),
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/updates/manifest_size", body)
			if _, unknown := body.(*bytes.Reader); !unknown {
				r.ContentLength = -1
			}
			status, err := g.Forward(httptest.NewRecorder(), r, Passage{Path: "/updates/manifest_size", MaxBody: 1 << 20})
			if _, ok := errors.AsType[*http.MaxBytesError](err); !ok || status != 0 {
				t.Error(status, err)
			}
		})
	}
	if h := wantState(t, g, Closed); h.Failures != 0 || h.InFlight != 0 {
		t.Errorf("the client's fault counts against the server: %+v", h)
	}
}

// TestForwardNoContent: a 204 has no Content-Length (RFC 9110, section 8.6), also where the server sends one.
func TestForwardNoContent(t *testing.T) {
	g := group(t, Options{URLs: []string{serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX-Custom: 1\r\n\r\n")
			_ = conn.Close()
		}
	}))}})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status, err := g.Forward(w, r, Passage{Path: "/channel_self"}); status != 204 || err != nil {
			t.Error(status, err)
		}
	}))
	server.EnableHTTP2 = true // net/http itself takes it away in HTTP/1.1 alone
	server.StartTLS()
	t.Cleanup(server.Close)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if h := resp.Header; resp.ProtoMajor != 2 || resp.StatusCode != 204 || h["Content-Length"] != nil || h.Get("X-Custom") != "1" {
		t.Errorf("%s %d %v", resp.Proto, resp.StatusCode, h)
	}
}

// TestForwardCut: an answer that breaks off does so for the client too, and the caller learns both.
func TestForwardCut(t *testing.T) {
	g := group(t, Options{URLs: []string{serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
		panic(http.ErrAbortHandler)
	}))}})
	address, result := edge(t, g)
	if _, text, err := send(t, "GET", address+"/channel_self", nil, nil); err == nil {
		t.Errorf("the client takes %d bytes for the whole", len(text))
	}
	if status, err := result(); status != 200 || err == nil {
		t.Error(status, err)
	}
	if h := g.Health()[0]; h.InFlight != 0 {
		t.Errorf("%+v", h)
	}
}

// TestForwardTime: who hangs is given up after 20 s, as a probe after 3 s; a client that goes away says nothing about a server.
func TestForwardTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := inProcessGroup(t, Options{}, http.HandlerFunc(hang))
		pass := func(ctx context.Context) (time.Duration, error) {
			began := time.Now()
			r := httptest.NewRequest("POST", "/channel_self", strings.NewReader(question)).WithContext(ctx)
			status, err := g.Forward(httptest.NewRecorder(), r, Passage{Path: "/channel_self", MaxBody: 64 << 10})
			if status != 0 || err == nil {
				t.Error(status, err)
			}
			return time.Since(began), err
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if took, err := pass(ctx); took != time.Second || !errors.Is(err, context.DeadlineExceeded) || g.Health()[0].Failures != 0 {
			t.Error(took, err, g.Health())
		}
		for range tolerated {
			if took, err := pass(t.Context()); took != forwardTime || !strings.Contains(err.Error(), "no answer within 20s") {
				t.Error(took, err)
			}
		}
		if took, err := pass(t.Context()); took != 0 || !errors.Is(err, ErrOpen) {
			t.Error(took, err)
		}
		time.Sleep(firstPause * 12 / 10)
		if took, _ := pass(t.Context()); took != Budget {
			t.Errorf("a probe took %s", took)
		}
		wantState(t, g, Open)
	})
}

// TestForwardOddRequests: what anybody can send does not shut the server out for the others; that nobody is there does.
func TestForwardOddRequests(t *testing.T) {
	for _, c := range []struct {
		name   string
		server string
		want   State
	}{
		{"status 500", serve(t, says(500, "")), Closed},
		{"status 503", serve(t, says(503, upToDate)), Closed},
		{"hangs up", serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })), Closed},
		{"no HTTP", serve(t, http.HandlerFunc(garbage)), Closed},
		{"nobody there", nowhere(t), Open},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := group(t, Options{URLs: []string{c.server}})
			for range tolerated {
				r := httptest.NewRequest("POST", "/channel_self", strings.NewReader("odd"))
				_, _ = g.Forward(httptest.NewRecorder(), r, Passage{Path: "/channel_self", MaxBody: 64 << 10})
			}
			if h := wantState(t, g, c.want); h.Failures != tolerated || h.InFlight != 0 {
				t.Errorf("%+v", h)
			}
		})
	}
}

// TestForwardSlowClient: a body that does not come is the client's fault.
func TestForwardSlowClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := inProcessGroup(t, Options{}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		never, w := net.Pipe()
		defer w.Close()
		r := httptest.NewRequest("POST", "/", io.MultiReader(bytes.NewReader(make([]byte, bufferedBody+1)), never))
		r.ContentLength = 1 << 20
		began := time.Now()
		status, err := g.Forward(httptest.NewRecorder(), r, Passage{Path: "/updates/manifest_size", MaxBody: 1 << 20})
		if status != 0 || err == nil || time.Since(began) != uploadTime {
			t.Error(status, err, time.Since(began))
		}
		if h := wantState(t, g, Closed); h.Failures != 0 || h.InFlight != 0 {
			t.Errorf("%+v", h)
		}
	})
}

// TestEverythingAtOnce is for the race detector.
func TestEverythingAtOnce(t *testing.T) {
	var n atomic.Int64
	sometimes := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%4 == 0 {
			panic(http.ErrAbortHandler)
		}
		says(200, upToDate)(w, r)
	}))
	g := group(t, Options{URLs: []string{sometimes, serve(t, says(200, upToDate))}, Report: new(reports).add})
	address, _ := edge(t, g)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			for range 3 {
				switch i % 3 {
				case 0:
					if _, err := check(t, g); err != nil {
						t.Error(err)
					}
				case 1:
					_, _, _ = send(t, "GET", address+"/channel_self", nil, nil)
				default:
					_ = g.Health()
				}
			}
		})
	}
	all.Wait()
	for _, h := range g.Health() {
		if h.InFlight != 0 {
			t.Errorf("%+v", h)
		}
	}
}
