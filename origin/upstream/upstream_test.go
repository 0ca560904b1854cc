package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	question = `{"app_id":"com.demo.app","device_id":"00009a6b-eefe-490a-9c60-8e965132ae51"}`
	upToDate = `{"error":"no_new_version_available","message":"No new version available","kind":"up_to_date"}`
	onPrem   = `{"error":"on_premise_app","message":"On-premise app detected"}`
)

var phone = Client{Address: netip.MustParseAddr("203.0.113.7"), UserAgent: "CapacitorUpdater/8.51.14 (com.demo.app) android/14"}

var (
	known    = &Question{Body: []byte(question), Client: phone}
	stranger = &Question{Body: []byte(question), Client: phone, Stranger: true}
)

// says answers each request so.
func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// serve starts a server and returns its base address.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL + "/functions/v1"
}

// nowhere is an address where nothing listens: that of a client, so that no server is given it meanwhile.
func nowhere(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return "http://" + client.LocalAddr().String()
}

func group(t testing.TB, o Options) *Group {
	t.Helper()
	g, err := NewGroup(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.CloseIdleConnections)
	return g
}

// inProcess is a transport that calls the handler of a host: no socket, so that time can be the test's.
type inProcess map[string]http.Handler

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := make(chan *http.Response, 1)
	go func() {
		w := httptest.NewRecorder()
		p[r.URL.Host].ServeHTTP(w, r)
		answer <- w.Result()
	}()
	select {
	case resp := <-answer:
		return resp, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// inProcessGroup is a group of handlers, whose hosts are "a", "b" and so on.
func inProcessGroup(t testing.TB, o Options, handlers ...http.Handler) *Group {
	t.Helper()
	p := inProcess{}
	for i, h := range handlers {
		host := string(rune('a' + i))
		p[host] = h
		o.URLs = append(o.URLs, "http://"+host)
	}
	o.WrapTransport = func(http.RoundTripper) http.RoundTripper { return p }
	return group(t, o)
}

// hang answers when the caller has given up, which net/http notices only behind the body.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func check(t testing.TB, g *Group) (*Answer, error) {
	t.Helper()
	return g.Check(t.Context(), known)
}

func TestNewGroup(t *testing.T) {
	for _, c := range []struct {
		name string
		urls []string
		want string
	}{
		{"none", nil, "no upstream"},
		{"no URL", []string{"http://user:hunter2@a b/"}, "not a URL"},
		{"another scheme", []string{"ftp://a"}, `not "ftp"`},
		{"no scheme", []string{"capgo.example.com"}, "http:// or https://"},
		{"no host", []string{"https:///functions"}, "names no host"},
		{"only a port", []string{"https://:8080"}, "names no host"},
		{"query", []string{"https://a/?token=hunter2"}, "no query"},
		{"the check's own path", []string{"https://u:hunter2@a/updates"}, "without the /updates"},
		{"another path that is added", []string{"https://a", "https://a/functions/v1/channel_self/"}, "not end in /channel_self"},
		{"statistics", []string{"https://a/%73tats"}, "not end in /stats"},
		{"twice", []string{"https://a/x", "https://b", "https://u:hunter2@A/x/"}, "https://a/x is named twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := NewGroup(Options{URLs: c.urls})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	g := group(t, Options{URLs: []string{"https://user:hunter2@Capgo.example.com/functions/v1/", "http://10.0.0.5:8080"}})
	if got, want := g.Identity(), "upstream https://capgo.example.com/functions/v1 http://10.0.0.5:8080"; got != want {
		t.Errorf("identity %q", got)
	}
	if got, want := fmt.Sprint(g.Hosts()), "[capgo.example.com http://10.0.0.5:8080]"; got != want {
		t.Errorf("hosts %s", got)
	}
}

// TestCheckOnTheWire: what the server is sent, and what becomes of its answer.
func TestCheckOnTheWire(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			query := "" // as the server sees it
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				user, password, _ := r.BasicAuth()
				h := r.Header
				got := fmt.Sprintln(r.Proto, r.Method, r.RequestURI, string(body), user, password, h.Get("Content-Type"),
					h.Get("User-Agent"), h["X-Forwarded-For"], h["X-Real-Ip"], h["X-Forwarded-Host"], h["X-Forwarded-Proto"],
					h["Idempotency-Key"])
				want := fmt.Sprintln(proto, "POST", "/functions%2Fv1/updates"+query, question, "u", "hunter2", "application/json",
					phone.UserAgent, "[203.0.113.7] [203.0.113.7] [] [] []")
				if got != want {
					t.Errorf("the server sees\n%s want\n%s", got, want)
				}
				w.Header().Set("Content-Type", "application/json; charset=utf-8")
				w.Header().Set("X-Worker-Source", "eu")
				w.Header().Set("Set-Cookie", "a=b")
				_, _ = io.WriteString(w, upToDate)
			}))
			server.EnableHTTP2 = proto == "HTTP/2.0"
			server.StartTLS()
			defer server.Close()
			roots := x509.NewCertPool()
			roots.AddCert(server.Certificate())
			g := group(t, Options{
				URLs: []string{strings.Replace(server.URL, "https://", "https://u:hunter2@", 1) + "/functions%2Fv1/"},
				WrapTransport: func(rt http.RoundTripper) http.RoundTripper {
					transport := rt.(*http.Transport)
					transport.TLSClientConfig = &tls.Config{RootCAs: roots}
					transport.ForceAttemptHTTP2 = server.EnableHTTP2
					return transport
				},
			})
			for rawQuery, seen := range map[string]string{
				"": "", "token=a%20b;c&x=%zz": "?token=a%20b;c&x=%zz", "a b?#%zz": "?a%20b?#%zz",
			} {
				query = seen
				q := *known
				q.Query = rawQuery
				a, err := g.Check(t.Context(), &q)
				if err != nil {
					t.Fatal(err)
				}
				if a.Status != 200 || string(a.Body) != upToDate || a.Refused || a.Upstream != server.URL+"/functions%2Fv1" {
					t.Errorf("%+v", a)
				}
				if got := fmt.Sprint(a.Header); got != "map[Content-Type:[application/json; charset=utf-8] X-Worker-Source:[eu]]" {
					t.Errorf("header %s", got)
				}
			}
		})
	}
}

// TestNobodyAsks: without an address and an agent, none is made up.
func TestNobodyAsks(t *testing.T) {
	g := group(t, Options{URLs: []string{serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := r.Header; h["User-Agent"] != nil || h["X-Forwarded-For"] != nil || h["X-Real-Ip"] != nil {
			t.Errorf("%v", h)
		}
		says(200, upToDate)(w, r)
	}))}})
	if _, err := g.Check(t.Context(), &Question{Body: []byte(question)}); err != nil {
		t.Error(err)
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name    string
		status  int
		body    string
		refused bool
	}{
		{"update", 200, `{"version":"1.0.1","url":"https://a/b.zip"}`, false},
		{"blocked", 200, `{"error":"disable_auto_update_to_major"}`, false},
		{"refused in a 200", 200, onPrem, true},
		{"refused in a 404", 404, onPrem, true},
		{"the word, but not as the code", 200, `{"version":"on_premise_app","url":"https://a/b.zip"}`, false},
		{"bad request", 400, `{"error":"semver_error"}`, false},
		{"not found", 404, "<html>", false},
		{"forbidden", 403, "", false},
		{"no content", 204, "", false},
		{"throttled", 429, `{"error":"too_many_requests"}`, false},
		{"throttled, another form", 429, `{"error":{"code":7}}`, false},
		{"throttled, no JSON", 429, "slow down", false},
		{"on premise", 429, onPrem, true},
		{"on premise, without a message", 429, `{"error":"on_premise_app"}`, true},
		{"429 and nothing else", 429, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			handler := says(c.status, c.body)
			if c.status == 204 {
				handler = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }
			}
			g := group(t, Options{URLs: []string{serve(t, handler)}})
			for range tolerated + 1 { // all of them are healthy
				a, err := check(t, g)
				if err != nil {
					t.Fatal(err)
				}
				if a.Status != c.status || string(a.Body) != c.body || a.Refused != c.refused {
					t.Errorf("%+v", a)
				}
			}
		})
	}
}

// faults are servers that give no usable answer, and what is said of it.
func faults(t testing.TB) map[string]struct {
	url  string
	want string
} {
	hangUp := func(w http.ResponseWriter) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	}
	type fault = struct {
		url  string
		want string
	}
	table := map[string]fault{
		"nobody there":    {nowhere(t), "connection refused"},
		"500":             {serve(t, says(500, `{"error":"sql: no rows"}`)), "it answers status 500"},
		"503 with a page": {serve(t, says(503, strings.Repeat("x", 1<<20))), "it answers status 503"},
		"empty 200":       {serve(t, says(200, "")), "nothing in it"},
		"blank 200":       {serve(t, says(200, "\r\n")), "nothing in it"},
		"a page":          {serve(t, says(200, "<html>")), "not JSON"},
		"half an answer":  {serve(t, says(200, upToDate[:30])), "not JSON"},
		"too large":       {serve(t, says(200, `"`+strings.Repeat("x", maxAnswer)+`"`)), "larger than 8 MiB"},
		"another host":    {serve(t, http.RedirectHandler("https://elsewhere.example/x?token=hunter2", http.StatusTemporaryRedirect)), "another host, https://elsewhere.example;"},
		"a GET":           {serve(t, http.RedirectHandler("/other?token=hunter2", http.StatusFound)), "status 302"},
		"round and round": {serve(t, http.RedirectHandler("/functions/v1/updates?token=hunter2", http.StatusTemporaryRedirect)), "more than 5 redirects"},
		"hangs up":        {serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { hangUp(w) })), "hung up"},
		"hangs":           {serve(t, http.HandlerFunc(hang)), "no answer within"},
		"slow body":       {serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { drip(w, r) })), "no answer within"},
		"no HTTP":         {serve(t, http.HandlerFunc(garbage)), "malformed HTTP"},
		"cut in the body": {serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, upToDate)
			w.(http.Flusher).Flush()
			hangUp(w)
		})), "hung up"},
	}
	return table
}

func drip(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	for r.Context().Err() == nil {
		_, _ = io.WriteString(w, " ")
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func garbage(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH\r\n\r\n")
		_ = conn.Close()
	}
}

// TestFaults: each is a failure that names the server and no secret, and another server answers instead, within the budget.
func TestFaults(t *testing.T) {
	sound := serve(t, says(200, upToDate))
	for name, fault := range faults(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			withSecret := strings.Replace(fault.url, "http://", "http://u:hunter2@", 1)
			g := group(t, Options{URLs: []string{withSecret}})
			_, err := check(t, g)
			if err == nil || !strings.Contains(err.Error(), fault.want) || !strings.Contains(err.Error(), fault.url) ||
				strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v, want %q", err, fault.want)
			}
			if h := g.Health()[0]; h.Failures != 1 || h.Error == "" || strings.Contains(h.Error, "hunter2") || h.State != Closed {
				t.Errorf("%+v", h)
			}
			g = group(t, Options{URLs: []string{withSecret, sound}})
			began := time.Now()
			a, err := check(t, g)
			if err != nil || a.Upstream != sound {
				t.Errorf("%+v, %v", a, err)
			}
			if took := time.Since(began); took > Budget {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	refuses, alsoRefuses, answers, fails := says(429, onPrem), says(429, ""), says(200, upToDate), says(500, "")
	throttles, blocks := says(429, "<html>"), says(200, `{"error":"provider_infrastructure_request_blocked","kind":"blocked"}`)
	for _, c := range []struct {
		name    string
		servers []http.Handler
		want    string // the server that answered; or none
		refused bool
		err     error
	}{
		{"all refuse", []http.Handler{refuses, alsoRefuses, refuses}, "http://a", true, nil},
		{"the last contradicts", []http.Handler{refuses, refuses, answers}, "http://c", false, nil},
		{"refused with 200, and the next contradicts", []http.Handler{says(200, onPrem), answers}, "http://b", false, nil},
		{"refused with 200, and confirmed", []http.Handler{says(200, onPrem), refuses}, "http://a", true, nil},
		{"the first answers", []http.Handler{answers, refuses}, "http://a", false, nil},
		{"a bad request contradicts", []http.Handler{refuses, says(400, "{}")}, "http://b", false, nil},
		{"throttled, and the next answers", []http.Handler{throttles, answers}, "http://b", false, nil},
		{"the edge's own address is refused, and the next answers", []http.Handler{blocks, answers}, "http://b", false, nil},
		{"the edge's own address is refused everywhere", []http.Handler{fails, blocks}, "http://b", false, nil},
		{"all throttle", []http.Handler{throttles, says(429, `{"error":"too_many_requests"}`)}, "http://a", false, nil},
		{"throttled, and the rest fails", []http.Handler{fails, throttles}, "http://b", false, nil},
		{"a throttled one might contradict", []http.Handler{refuses, throttles, refuses}, "http://b", false, nil},
		{"a failed one might contradict", []http.Handler{refuses, fails}, "", false, ErrUnconfirmed},
		{"in any order", []http.Handler{fails, refuses}, "", false, ErrUnconfirmed},
		{"a hung one", []http.Handler{http.HandlerFunc(hang), refuses}, "", false, ErrUnconfirmed},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := inProcessGroup(t, Options{}, c.servers...)
			a, err := check(t, g)
			if c.err != nil {
				if !errors.Is(err, c.err) || a != nil {
					t.Errorf("%+v, %v", a, err)
				}
				return
			}
			if err != nil || a.Upstream != c.want || a.Refused != c.refused {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
	t.Run("one that is left alone might contradict", func(t *testing.T) {
		g := inProcessGroup(t, Options{}, refuses, fails)
		for range tolerated {
			_, _ = check(t, g)
		}
		if a, err := check(t, g); !errors.Is(err, ErrUnconfirmed) || !errors.Is(err, ErrOpen) {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

// TestKeptConnection: a server that closes a connection just when the next check comes over it is asked again, over a new one.
func TestKeptConnection(t *testing.T) {
	type perConnection struct{}
	var cut atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		if string(text) != question {
			t.Errorf("the server sees %q", text)
		}
		if r.Context().Value(perConnection{}).(*atomic.Int64).Add(1) > 1 {
			cut.Add(1)
			panic(http.ErrAbortHandler)
		}
		says(200, upToDate)(w, r)
	}))
	server.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, perConnection{}, new(atomic.Int64))
	}
	server.Start()
	t.Cleanup(server.Close)
	g := group(t, Options{URLs: []string{server.URL}})
	for range 2 * tolerated {
		if _, err := check(t, g); err != nil {
			t.Error(err)
		}
	}
	if h := g.Health()[0]; h.Failures != 0 || cut.Load() != 2*tolerated-1 {
		t.Errorf("%d connections were closed; %+v", cut.Load(), h)
	}
}

// TestPoison: a check that the server hangs up on is not sent over each connection that is kept.
func TestPoison(t *testing.T) {
	const connections = 40
	var poisoned, asked atomic.Int64
	all := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text, _ := io.ReadAll(r.Body); strings.Contains(string(text), "poison") {
			poisoned.Add(1)
			panic(http.ErrAbortHandler)
		}
		if asked.Add(1) == connections {
			close(all)
		}
		<-all
		says(200, upToDate)(w, r)
	}))
	t.Cleanup(server.Close)
	g := group(t, Options{URLs: []string{server.URL}})
	var checks sync.WaitGroup
	for range connections {
		checks.Go(func() { _, _ = check(t, g) })
	}
	checks.Wait()
	q := *known
	q.Body = []byte(`{"x":"poison"}`)
	if a, err := g.Check(t.Context(), &q); err == nil {
		t.Errorf("%+v", a)
	}
	if n := poisoned.Load(); n < 2 || n > maxRedirects+2 {
		t.Errorf("it reached the server %d times", n)
	}
}

// TestNotTheServersFault: a client that goes away says nothing about the server.
func TestNotTheServersFault(t *testing.T) {
	g := inProcessGroup(t, Options{}, http.HandlerFunc(hang), says(200, upToDate))
	gone := errors.New("gone")
	for range tolerated + 1 {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Millisecond, func() { cancel(gone) })
		if a, err := g.Check(ctx, known); !errors.Is(err, gone) {
			t.Errorf("%+v, %v", a, err)
		}
	}
	for _, h := range g.Health() {
		if h.Failures != 0 || h.State != Closed || h.InFlight != 0 {
			t.Errorf("%+v", h)
		}
	}
}

// reports notes what a group reports.
type reports struct {
	mu    sync.Mutex
	texts []string
}

func (r *reports) add(upstream string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.texts = append(r.texts, fmt.Sprint(upstream, " ", err))
}

func (r *reports) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	texts := strings.Join(r.texts, ", ")
	r.texts = nil
	return texts
}
