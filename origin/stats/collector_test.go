package stats_test

import (
	"compress/gzip"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

func batchOf(data ...string) *stats.Batch {
	b := &stats.Batch{Key: "key", App: "a"}
	for i, d := range data {
		b.Events = append(b.Events, stats.Record{Seq: uint64(i + 1), Device: uint64(i + 1), Data: []byte(d)})
	}
	return b
}

func TestHTTPCollectorSends(t *testing.T) {
	var got *http.Request
	var body, connections []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		got = r
		body = append(body, string(raw))
		connections = append(connections, r.RemoteAddr)
		w.Header().Set("Content-Encoding", "gzip")
		zipped := gzip.NewWriter(w)
		_, _ = io.WriteString(zipped, `{"status":"ok","results":[{"status":"ok","index":0},{"status":"error","error":"semver_error","message":"m","index":1}]}`)
		_ = zipped.Close()
	}))
	defer server.Close()
	c, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{
		URL:    strings.Replace(server.URL, "http://", "http://user:pass@", 1) + "/stats?q=1#fragment",
		Header: http.Header{"x-token": {"t"}, "Host": {"stats.example"}, "accept-encoding": {"br"}, "cdn-loop": {"x"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdleConnections()
	for range 2 {
		verdicts, err := c.Deliver(t.Context(), batchOf(`{"n":1}`, `{"n":2}`))
		if err != nil || len(verdicts) != 2 || verdicts[0].Fate != stats.Delivered ||
			verdicts[1] != (stats.Verdict{Fate: stats.Dead, Code: "semver_error", Message: "m"}) {
			t.Fatalf("%v, %v", verdicts, err)
		}
	}
	user, password, _ := got.BasicAuth()
	if got.Method != "POST" || got.RequestURI != "/stats?q=1" || got.Host != "stats.example" || user != "user" || password != "pass" {
		t.Errorf("%s %s at %s by %s:%s", got.Method, got.RequestURI, got.Host, user, password)
	}
	for name, want := range map[string]string{
		"X-Token": "t", "Content-Type": "application/json", "Idempotency-Key": "key", "User-Agent": "capgo-edge",
		"Accept-Encoding": "gzip", "CDN-Loop": "capgo-edge-key",
	} {
		if got.Header.Get(name) != want {
			t.Errorf("%s is %q", name, got.Header.Get(name))
		}
	}
	if body[0] != `[{"n":1},{"n":2}]` || connections[0] != connections[1] {
		t.Errorf("bodies %q over %q", body, connections)
	}
}

func TestHTTPCollectorOptions(t *testing.T) {
	for _, address := range []string{"", "stats", "ftp://h/x", "http://", "http://:80", "http://user:secret@h:port/", "ht tp://secret"} {
		_, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{URL: address})
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// TestObjectForm: an operator who knows that a collector takes no arrays can say so.
func TestObjectForm(t *testing.T) {
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		got = append(got, r.Header.Get("Idempotency-Key")+" "+string(raw))
		if strings.Contains(string(raw), "3") {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	c, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{URL: server.URL, ObjectForm: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdleConnections()
	verdicts, err := c.Deliver(t.Context(), batchOf(`{"n":1}`, `{"n":2}`, `{"n":3}`, `{"n":4}`))
	for i, want := range []string{`key-e1-* {"n":1}`, `key-e2-* {"n":2}`, `key-e3-* {"n":3}`} {
		if matches, _ := path.Match(want, got[i]); !matches || len(got) != 3 {
			t.Errorf("sent %q", got)
		}
	}
	if err == nil || len(verdicts) != 4 || verdicts[1].Fate != stats.Delivered || verdicts[2] != (stats.Verdict{}) || verdicts[3] != (stats.Verdict{}) {
		t.Errorf("%v, %v", verdicts, err)
	}
}

// TestDeadConnection: a connection that died without a word is left within seconds, whatever is sent over it.
func TestDeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, proto := newPipeNetwork(), ""
		server := &httptest.Server{Listener: network, EnableHTTP2: true, Config: &http.Server{
			Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { proto = r.Proto }),
		}}
		server.StartTLS()
		c, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{
			URL: "https://collector.example/stats", Timeout: 2 * time.Second,
			WrapTransport: func(rt http.RoundTripper) http.RoundTripper {
				transport := rt.(*http.Transport)
				transport.DialContext = network.dial
				transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // the network has one host
				return transport
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Deliver(t.Context(), batchOf(`{"n":1}`)); err != nil || proto != "HTTP/2.0" {
			t.Fatalf("%s: %v", proto, err)
		}
		network.silence()
		began := time.Now()
		for err = io.EOF; err != nil && time.Since(began) < time.Minute; {
			_, err = c.Deliver(t.Context(), batchOf(`{"n":1}`))
		}
		if passed := time.Since(began); err != nil || passed > 15*time.Second {
			t.Errorf("after %s: %v", passed, err)
		}
		network.Close()
		server.CloseClientConnections()
		c.CloseIdleConnections()
	})
}

// TestSwitchingProtocols: a status 101 is a failure at once. Its body is the connection, which stays open and says nothing.
func TestSwitchingProtocols(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { c.Close() })
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	}))
	defer server.Close()
	c, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{URL: server.URL, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdleConnections()
	done := make(chan struct{})
	go func() {
		defer close(done)
		verdicts, err := c.Deliver(t.Context(), batchOf(`{"n":1}`, `{"n":2}`))
		if failure, ok := errors.AsType[*stats.Failure](err); verdicts != nil || !ok || failure.Code != "status_101" || failure.Suspect {
			t.Errorf("%v, %v", verdicts, err)
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for the end of a connection that was switched")
	}
}

// TestReadAnswer: what an answer to two events means, and to one where that differs.
func TestReadAnswer(t *testing.T) {
	const (
		all, split, app, collector = "all delivered", "content", "app", "collector"
		unclear                    = collector + " suspect"
	)
	tests := []struct {
		name, body string
		status     int
		want, one  string
	}{
		{"ok", `{"status":"ok"}`, 200, all, ""},
		{"no body", ``, 204, all, ""},
		{"status error", `{"status":"Error","message":"m"}`, 200, split, "dead:error"},
		{"status error and no results", `{"status":"error","results":[]}`, 200, split, "dead:error"},
		{"another status", `{"status":7}`, 200, all, ""},
		{"status failed", `{"status":"failed","results":"none"}`, 200, split, "dead:error"},
		{"errors and no status", `{"errors":["bad"]}`, 200, split, "dead:error"},
		{"errors by name and no status", `{"errors":{"app_id":"bad"}}`, 200, split, "dead:error"},
		{"errors and a status", `{"status":"ok","errors":["slow"]}`, 200, all, ""},
		{"no errors", `{"errors":[],"message":"m"}`, 200, all, ""},
		{"none of errors", `{"errors":0}`, 200, all, ""},
		{"ok false", `{"ok":false}`, 200, split, "dead:error"},
		{"success false", `{"success":false,"error":null}`, 200, split, "dead:error"},
		{"ok true", `{"ok":true,"success":true,"error":false}`, 200, all, ""},
		{"empty object", `{}`, 202, all, ""},
		{"error null", `{"error":null}`, 200, all, ""},
		{"no results", `{"results":[]}`, 200, all, ""},
		{"results of another type", `{"results":{"0":"ok"}}`, 200, all, ""},
		{"an item", `{"results":[{"index":1,"status":"error","error":"invalid_app_id"}]}`, 200, "delivered dead:invalid_app_id", "dead:invalid_app_id"},
		{"an item that went well", `{"results":[{"index":1,"status":"ok"}]}`, 200, all, ""},
		{"an item to retry", `{"results":[{"index":0,"error":"processing_error"}]}`, 200, "keep:processing_error delivered", "keep:processing_error"},
		{"by position", `{"results":[{},{"error":"x"}]}`, 200, "delivered dead:x", "dead:x"},
		{"by position, too few", `{"results":[{"error":"x"}]}`, 200, unclear, "dead:x"},
		{"by position, too many", `{"results":[{"error":"x"},{"error":"x"},{"error":"x"}]}`, 200, unclear, "dead:x"},
		{"by position, too many and well", `{"results":[{},{},{}]}`, 200, all, ""},
		{"one result for all", `{"status":"ok","results":[{"status":"ok"}]}`, 200, all, ""},
		{"a count for all", `{"results":[{"inserted":2}]}`, 200, all, ""},
		{"an array of one for all", `[{"ok":true}]`, 200, all, ""},
		{"no code", `{"results":[{"index":0,"status":"error"}]}`, 200, "dead:error delivered", "dead:error"},
		{"an array", `[{"index":1,"status":"error","error":"invalid_app_id"}]`, 200, "delivered dead:invalid_app_id", "dead:invalid_app_id"},
		{"an array by position", `[{"status":"ok"},{"status":"fail"}]`, 200, "delivered dead:error", "dead:error"},
		{"an array of one", `[{"status":"error","error":"x"}]`, 200, unclear, "dead:x"},
		{"a byte order mark", "\xef\xbb\xbf" + `{"results":[{"index":0,"error":"x"}]}`, 200, "dead:x delivered", "dead:x"},
		{"an array, refused", `[{"status":"ok"}]`, 400, split, "content"},
		{"out of range", `{"results":[{"index":7,"error":"x"},{"index":0}]}`, 200, unclear, "dead:x"},
		{"below the range", `{"results":[{"index":-1,"error":"x"},{"index":0}]}`, 200, unclear, "dead:x"},
		{"counted from one, an error in range", `{"results":[{"index":1,"error":"x"},{"index":2}]}`, 200, unclear, "dead:x"},
		{"counted from one, all well", `{"results":[{"index":1},{"index":2}]}`, 200, all, ""},
		{"twice, the error last", `{"results":[{"index":0},{"index":0,"error":"x"}]}`, 200, "dead:x delivered", "dead:x"},
		{"twice", `{"results":[{"index":0,"error":"x"},{"index":0}]}`, 200, "dead:x delivered", "dead:x"},
		{"unknown app for all", `{"results":[{"index":0,"error":"on_premise_app"},{"index":1,"error":"on_premise_app"}]}`, 200, app, ""},
		{"unknown app for one", `{"results":[{"index":0,"error":"on_premise_app"}]}`, 200, "keep:on_premise_app delivered", app},
		{"a batch refused", `{"error":"mixed_app_ids"}`, 200, split, "dead:mixed_app_ids"},
		{"a text for a code", `{"error":"not a code"}`, 200, split, "dead:error"},
		{"a batch fails", `{"error":"processing_error"}`, 200, app + " suspect", "keep:processing_error"},
		{"an app unknown", `{"error":"on_premise_app"}`, 200, app, ""},
		{"400", ``, 400, split, ""},
		{"400 with a code to retry", `{"error":"on_premise_app"}`, 400, app, ""},
		{"409", ``, 409, collector + " suspect", ""},
		{"413", ``, 413, split, ""},
		{"415", ``, 415, collector, ""},
		{"422", ``, 422, split, ""},
		{"401", `{"error":"invalid_apikey"}`, 401, collector, ""},
		{"403", ``, 403, collector, ""},
		{"404", ``, 404, collector, ""},
		{"405", ``, 405, collector, ""},
		{"408", ``, 408, collector, ""},
		{"410", ``, 410, collector, ""},
		{"421", ``, 421, collector, ""},
		{"425", ``, 425, collector, ""},
		{"426", ``, 426, collector, ""},
		{"101", ``, 101, collector, ""},
		{"429", ``, 429, collector, ""},
		{"429 of an app", `{"error":"too_many_requests","moreInfo":{"app_id":"a"}}`, 429, app, ""},
		{"429 unknown app", `{"error":"on_premise_app"}`, 429, app, ""},
		{"429 data centre", `{"error":"provider_infrastructure_request_blocked"}`, 429, collector, ""},
		{"451", ``, 451, collector, ""},
		{"301", ``, 301, collector, ""},
		{"500", `{"error":"unknown_error"}`, 500, collector + " suspect", ""},
		{"500 misconfigured", `{"error":"server_misconfigured"}`, 500, collector, ""},
		{"503", ``, 503, collector + " suspect", ""},
		{"599", ``, 599, collector + " suspect", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := shown(stats.ReadAnswer(test.status, nil, []byte(test.body), 2, time.Now())); got != test.want {
				t.Errorf("two events: %s, not %s", got, test.want)
			}
			if test.one == "" {
				test.one = test.want
			}
			if got := shown(stats.ReadAnswer(test.status, nil, []byte(test.body), 1, time.Now())); got != test.one {
				t.Errorf("one event: %s, not %s", got, test.one)
			}
		})
	}
}

// TestReadUnclear: what an answer with status 200 means that is not one of this protocol.
func TestReadUnclear(t *testing.T) {
	const taken, broken, foreign = "taken", "broken_answer", "foreign_answer"
	tests := []struct{ name, kind, body, want string }{
		{"nothing", "", "", taken},
		{"nothing, as HTML", "text/html", "\r\n", taken},
		{"text", "text/plain; charset=utf-8", "OK\n", taken},
		{"text of no type", "", "events received", taken},
		{"ok, as HTML", "text/html; charset=utf-8", "ok", taken},
		{"JSON, as HTML", "text/html", `{"status":"ok"}`, taken},
		{"JSON text", "application/json", `"ok"`, taken},
		{"JSON array", "application/json", `[]`, taken},
		{"JSON null", "application/json", `null`, taken},
		{"JSON true", "application/json", `true`, taken},
		{"JSON object", "application/json", `{}`, taken},
		{"JSON behind a byte order mark", "application/json", "\xef\xbb\xbf" + `{"status":"ok"}`, taken},
		{"a byte order mark alone", "text/plain", "\xef\xbb\xbf", taken},
		{"JSON text like any other", "application/json", `"events received"`, taken},
		{"JSON text of nothing", "application/json", `""`, taken},
		{"JSON number", "application/json", `1`, taken},
		{"success, and errors of some events", "application/json", `{"success":true,"errors":[{"message":"x"}]}`, taken},
		{"ok, and errors", "application/json", `{"ok":true,"errors":["x"]}`, taken},
		{"how many, and errors", "application/json", `{"accepted":1,"errors":[{"index":1,"message":"x"}]}`, taken},
		{"data, and errors", "application/json", `{"data":{"n":1},"errors":[{"message":"x"}]}`, taken},
		{"JSON zero", "application/json", `0`, foreign},
		{"JSON false", "application/json", `false`, foreign},
		{"JSON text with markup", "application/json", `"<p>Log in</p>"`, foreign},
		{"long JSON text", "application/json", `"` + strings.Repeat("log in ", 20) + `"`, foreign},
		{"JSON array of texts", "application/json", `["ok","ok"]`, foreign},
		{"JSON array of nothing", "application/json", `[null,null]`, foreign},
		{"page", "text/html; charset=utf-8", "<!doctype html><p>Log in</p>", foreign},
		{"page of no type", "", "<html>", foreign},
		{"page of another type", "application/json", "<html>", foreign},
		{"text, as HTML", "text/html", "Log in first", foreign},
		{"long text", "text/plain", strings.Repeat("log in ", 20), foreign},
		{"lines", "text/plain", "log in\nhere", foreign},
		{"binary", "application/octet-stream", "\x1f\x8b\x08", foreign},
		{"cut", "application/json", `{"status":"ok"`, broken},
		{"cut results", "application/json", `{"status":"ok","results":[{"status":"ok","ind`, broken},
		{"cut array", "application/json", `[{"status":`, broken},
		{"results of texts", "application/json", `{"results":["ok","ok"]}`, broken},
		{"more results than events", "application/json", `{"status":"ok","results":[{"error":"x"},{"error":"x"},{"error":"x"}]}`, broken},
		{"a result of another event", "application/json", `{"status":"ok","results":[{"index":7,"error":"x"}]}`, broken},
		{"array of nobody's results", "application/json", `[{"status":"error"}]`, broken},
		{"array and more", "application/json", `[{"status":"ok"},{"status":"ok"}]]`, broken},
		{"index of another type", "application/json", `{"results":[{"index":"1","error":"x"}]}`, broken},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			header := http.Header{"Content-Type": {test.kind}}
			verdicts, failure := stats.ReadAnswer(200, header, []byte(test.body), 2, time.Now())
			if test.want == taken {
				if got := shown(verdicts, failure); got != "all delivered" {
					t.Error(got)
				}
				return
			}
			// No verdicts: the batch keeps its key.
			if verdicts != nil || shown(nil, failure) != "collector suspect" || failure.Code != test.want {
				t.Errorf("%v, %+v", verdicts, failure)
			}
		})
	}
}

func shown(verdicts []stats.Verdict, f *stats.Failure) string {
	if f != nil {
		text := map[stats.Scope]string{stats.ScopeApp: "app", stats.ScopeCollector: "collector", stats.ScopeContent: "content"}[f.Scope]
		if f.Suspect {
			text += " suspect"
		}
		return text
	}
	var all []string
	delivered := 0
	for _, v := range verdicts {
		text := map[stats.Fate]string{stats.Keep: "keep", stats.Delivered: "delivered", stats.Dead: "dead"}[v.Fate]
		if v.Code != "" {
			text += ":" + v.Code
		}
		if v.Fate == stats.Delivered {
			delivered++
		}
		all = append(all, text)
	}
	if delivered == len(verdicts) {
		return "all delivered"
	}
	return strings.Join(all, " ")
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		name, header, body string
		want               time.Duration
	}{
		{"none", "", "", 0},
		{"seconds", "17", "", 17 * time.Second},
		{"date", "Sat, 21 Nov 2026 12:05:00 GMT", "", 5 * time.Minute},
		{"past", "Sat, 21 Nov 2026 11:05:00 GMT", "", 0},
		{"negative", "-3", "", 0},
		{"milliseconds", "120000", "", time.Hour},
		{"no number", "NaN", "", 0},
		{"infinite", "Inf", "", time.Hour},
		{"nonsense", "soon", `{"retryAfterSeconds":3}`, 3 * time.Second},
		{"in moreInfo", "", `{"moreInfo":{"retryAfterSeconds":1.5},"retryAfterSeconds":3}`, 1500 * time.Millisecond},
		{"reset", "", `{"rateLimitResetAt":1795262460000}`, time.Minute},
		{"reset far away", "", `{"rateLimitResetAt":1e300}`, time.Hour},
		{"of another type", "", `{"moreInfo":[],"retryAfterSeconds":"7"}`, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			header := http.Header{}
			if test.header != "" {
				header.Set("Retry-After", test.header)
			}
			_, failure := stats.ReadAnswer(429, header, []byte(test.body), 1, now)
			if failure.RetryAfter != test.want {
				t.Errorf("%s, not %s", failure.RetryAfter, test.want)
			}
		})
	}
}

func FuzzReadAnswer(f *testing.F) {
	for _, body := range []string{
		``, `{}`, `[]`, `[null]`, `[{"status":"error"},{"index":1}]`, "\xef\xbb\xbf\"ok\"", `{"errors":{"a":[]}}`, `{"status":"ok","results":[{"status":"error","error":"semver_error","message":"m","index":1}]}`,
		`{"error":"too_many_requests","moreInfo":{"app_id":"a","rateLimitResetAt":1e99}}`, `{"error":{"a":1},"results":[1,null,{"index":1e9}]}`,
	} {
		f.Add(200, "", []byte(body), 3)
		f.Add(429, "3", []byte(body), 1)
	}
	f.Fuzz(func(t *testing.T, status int, after string, body []byte, n int) {
		if status < 100 || status > 999 || n < 1 || n > 1000 {
			return
		}
		verdicts, failure := stats.ReadAnswer(status, http.Header{"Retry-After": {after}}, body, n, time.Now())
		if verdicts != nil && len(verdicts) != n || verdicts == nil && failure == nil {
			t.Fatalf("%d verdicts, %v", len(verdicts), failure)
		}
		if failure == nil && status/100 != 2 {
			t.Fatalf("status %d is a success", status)
		}
		if failure != nil && (failure.Err == nil || failure.Code == "" || failure.RetryAfter < 0 || failure.RetryAfter > time.Hour) {
			t.Fatalf("%+v", failure)
		}
		for _, v := range verdicts {
			if _, err := json.Marshal(v); err != nil || v.Fate == stats.Dead && v.Code == "" || len(v.Code) > 64 || len(v.Message) > 300 {
				t.Fatalf("%+v, %v", v, err)
			}
		}
	})
}
