package caddymodule_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// statsEvent is an event of the demo app, with changes: names and values by turns, nil takes a member away.
func statsEvent(changes ...any) string {
	return check(append([]any{"action", "set", "old_version_name", ""}, changes...)...)
}

// unknownActions are cases of the official list of actions, which this edge does not hold events to (protocol 4.4).
var unknownActions = []string{
	"stats.single-unknown-action", "stats.single-action-newer-than-enum", "stats.batch-one-unknown-action",
}

// TestStatsVectors runs the conformance table of /stats through the real handler over HTTP, and sees that the collector gets
// those events that were answered with ok, byte for byte, and no others.
func TestStatsVectors(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "resolver", "testdata", "vectors", "stats.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []eventCase }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var site strings.Builder
	collectors := make([]*collector, len(file.Cases))
	for i, c := range file.Cases {
		origin := filepath.Join(dir, fmt.Sprint(i))
		edgetest.WriteFile(t, origin, "manifests/"+appID+".json", c.Manifest)
		collectors[i] = newCollector(t)
		fmt.Fprintf(&site, "handle_path /case%d/* {\n capgo_edge {\n origin file %s\n stats %s\n }\n }\n", i, origin, collectors[i].URL)
	}
	client := edgetest.Start(t, edgetest.Config{Site: site.String()}).Client(t)

	ran, accepted := 0, 0
	for i, c := range file.Cases {
		switch {
		case c.Feature == "cloud":
			t.Logf("left out: %s (billing and throttles are known to an upstream only)", c.Name)
			continue
		case slices.Contains(unknownActions, c.Name):
			t.Logf("answered otherwise: %s (this edge takes any action)", c.Name)
			c.Expect.Status, c.Expect.Body = 200, map[string]any{"status": "ok"}
			c.Expect.Absent = []string{"error", "kind"}
		default:
			ran++
		}
		t.Run(c.Name, func(t *testing.T) {
			for _, path := range []string{"/stats", "/plugin/stats"} {
				runEventVector(t, client, fmt.Sprintf("/case%d%s", i, path), &c)
			}
			want := append(c.accepted(), c.accepted()...) // once for each path
			accepted += len(want)
			edgetest.Eventually(t, "the accepted events arrive", func() bool { return len(collectors[i].events()) >= len(want) })
			got := []string{}
			for _, e := range collectors[i].events() {
				got = append(got, e.raw)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("what the collector got (-want +got):\n%s", diff)
			}
		})
	}
	t.Logf("%d of %d cases ran as they are, %d with any action; %d events arrived", ran, len(file.Cases), len(unknownActions), accepted)
	if ran != len(file.Cases)-3-len(unknownActions) {
		t.Errorf("only %d cases ran", ran)
	}
}

// eventCase is one case of the table for /stats.
type eventCase struct {
	vectorCase
	Method string
}

// accepted are the events of the case that are to be kept, as they stand in the request.
func (c *eventCase) accepted() []string {
	accepted := []string{}
	if strings.Contains(c.Name, "legacy-download-fail") {
		return accepted // the official server says ok and keeps nothing of it
	}
	var batch []json.RawMessage
	if json.Unmarshal(c.Request, &batch) != nil {
		if c.Expect.Body["status"] == "ok" && len(c.Request) > 0 {
			accepted = append(accepted, string(c.Request))
		}
		return accepted
	}
	results, _ := c.Expect.Body["results"].([]any)
	for i, item := range batch {
		ok := len(results) == 0 && c.Expect.Body["status"] == "ok"
		if i < len(results) {
			ok = results[i].(map[string]any)["status"] == "ok"
		}
		if ok {
			accepted = append(accepted, string(item))
		}
	}
	return accepted
}

func runEventVector(t *testing.T, client *edgetest.Client, path string, c *eventCase) {
	t.Helper()
	method, body := c.Method, string(c.Request)
	if method == "" {
		method = http.MethodPost
	}
	if c.RawBody != nil {
		body = *c.RawBody
	}
	r := client.Do(method, path, body, "Content-Type", "application/json")
	got := r.JSON(t)
	if c.Feature == "quirk" && c.Expect.Status == 500 { // the official server breaks here
		if r.Status/100 != 4 || r.Status == 429 || got["error"] == "" || got["message"] == "" {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
		return
	}
	if r.Status != c.Expect.Status {
		t.Errorf("status %d, want %d: %s", r.Status, c.Expect.Status, r.Body)
	}
	expectMembers(t, got, c.Expect.Body, c.Expect.Absent, c.Expect.Nonempty)
}

// TestStatsAcrossRestart: what was acknowledged while the collector was down arrives after a restart, once, in the order of
// each device, and byte for byte.
func TestStatsAcrossRestart(t *testing.T) {
	s, c := newSite(t), newCollector(t)
	s.publish("1.0.1", 100)
	c.setDown(true)
	config := edgetest.Config{Site: s.handler("stats " + c.URL + " {\n header X-Key secret\n checks off\n }")}
	c.want = http.Header{"X-Key": {"secret"}}
	e := edgetest.New(t)
	load(t, e, config)
	var want []string
	for i := range 20 {
		// Unknown members, odd numbers and spaces are kept as they came.
		raw := strings.TrimSuffix(statsEvent("version_name", "1.0.1", "action", fmt.Sprint("step_", i)), "}") + `, "new": [1E+2, "\u00e9"] }`
		if r := e.Client(t).Post("/stats", raw); r.Status != 200 || string(r.Body) != `{"status":"ok"}` {
			t.Fatalf("status %d, %s", r.Status, r.Body)
		}
		want = append(want, raw)
	}
	e.Stop()
	c.setDown(false)
	load(t, e, config)
	edgetest.Eventually(t, "all events arrive", func() bool { return len(c.events()) >= len(want) })
	var got []string
	for _, d := range c.events() {
		got = append(got, d.raw)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestStatsOff: without a collector, or with "stats off", phones get the same answers.
func TestStatsOff(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	e := edgetest.New(t)
	for _, options := range [][]string{nil, {"stats off"}} {
		load(t, e, edgetest.Config{Site: s.handler(options...)})
		e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
			c.Redials = 3 // the reload may just have closed the connection
			r := c.Post("/stats", "["+statsEvent("version_name", "1.0.1")+","+statsEvent("version_name", "9.9.9")+"]")
			if r.Status != 200 || !strings.HasPrefix(string(r.Body), `{"status":"ok","results":[{"status":"ok","index":0},{"status":"error","error":"version_not_found"`) {
				t.Errorf("status %d, %s", r.Status, r.Body)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(e.Storage, "spool")); !os.IsNotExist(err) {
		t.Errorf("a spool was made for nobody: %v", err)
	}
}

// TestStatsPrivacy: each collector gets what its own block says.
func TestStatsPrivacy(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	all, dropped, hashed, other := newCollector(t), newCollector(t), newCollector(t), newCollector(t)
	client := edgetest.Start(t, edgetest.Config{Site: s.handler(
		"stats "+all.URL+" {\n checks on\n }",
		"stats "+dropped.URL+" {\n custom_id drop\n drop ping set_next\n sample never 0\n sample always 1\n }",
		"stats "+hashed.URL+" {\n custom_id hash\n checks off\n }",
		"stats "+other.URL+" {\n apps org.*\n }",
	)}).Client(t)
	for _, action := range []string{"ping", "set", "never", "always"} {
		if r := client.Post("/stats", statsEvent("version_name", "1.0.1", "action", action, "custom_id", "jane@example.com")); r.Status != 200 {
			t.Fatalf("status %d, %s", r.Status, r.Body)
		}
	}
	if r := client.Post("/updates", check("version_name", "1.0.1", "custom_id", "jane@example.com")); r.Status != 200 {
		t.Fatalf("status %d, %s", r.Status, r.Body)
	}
	hidden := statsEvent("version_name", "1.0.1", "action", "last", "custom_id", "jane@example.com")
	hidden = `{"custom_id":{"mail":"jane@example.com"},"custom\u005fid":"jane@example.com",` + hidden[1:]
	if r := client.Post("/stats", hidden); r.Status != 200 {
		t.Fatalf("status %d, %s", r.Status, r.Body)
	}
	for name, test := range map[string]struct {
		c    *collector
		want []string
		id   any
	}{
		"all":     {all, []string{"ping", "set", "never", "always", "noNew", "last"}, "jane@example.com"},
		"dropped": {dropped, []string{"set", "always", "noNew", "last"}, nil},
		"hashed":  {hashed, []string{"ping", "set", "never", "always", "last"}, hashedID},
		"other":   {other, nil, nil},
	} {
		edgetest.Eventually(t, name+": all events arrive", func() bool { return len(test.c.events()) >= len(test.want) })
		if diff := cmp.Diff(test.want, test.c.values("action")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for _, e := range test.c.events() {
			if e.fields["custom_id"] != test.id || name != "all" && strings.Contains(e.raw, "jane") {
				t.Errorf("%s: custom_id is %v, in %s", name, e.fields["custom_id"], e.raw)
			}
		}
	}
}

// hashedID is half of: printf 'com.demo.app\\0jane@example.com' | sha256sum
const hashedID = "96243145d3f775a5e4eab1bcb2e9ef55"

// TestChecksReported: the collector learns of each decision, in the words of the official server, and of each device, whatever
// version that has.
func TestChecksReported(t *testing.T) {
	s, c := newSite(t), newCollector(t)
	s.publish("1.0.1", 100)
	client := edgetest.Start(t, edgetest.Config{Site: s.handler("stats " + c.URL)}).Client(t)
	edgetest.Eventually(t, "the spool is open", func() bool { return strings.Contains(statusPage(t), `"healthy":true,"waiting"`) })
	for _, body := range []string{
		check("version_name", "1.0.0"), check("version_name", "1.0.1"), check("defaultChannel", "none", "custom_id", nil, "version_os", nil),
		check("version_name", "builtin", "version_build", "1.0.1"), check("version_name", "builtin", "version_build", "1.0.0"),
	} {
		if r := client.Post("/updates", body); r.Status != 200 {
			t.Fatalf("status %d, %s", r.Status, r.Body)
		}
	}
	edgetest.Eventually(t, "the reports arrive", func() bool { return len(c.events()) >= 5 })
	if diff := cmp.Diff([]string{"get", "noNew", "NoChannelOrOverride", "noNew", "get"}, c.values("action")); diff != "" {
		t.Errorf("actions (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"unknown", "1.0.1", "unknown", "builtin", "unknown"}, c.values("version_name")); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}
	for _, e := range c.events() { // what this edge reports, it would take itself
		if r := client.Post("/stats", e.raw); string(r.Body) != `{"status":"ok"}` {
			t.Errorf("%s of %s", r.Body, e.raw)
		}
	}
}

// TestStatsTooLarge: an event that a spool does not take costs the others of its batch nothing.
func TestStatsTooLarge(t *testing.T) {
	s, small, large := newSite(t), newCollector(t), newCollector(t)
	s.publish("1.0.1", 100)
	const most = 4 << 20 / 8
	client := edgetest.Start(t, edgetest.Config{Site: s.handler(
		"stats "+small.URL+" {\n max_spool 4MiB\n custom_id hash\n checks off\n }", "stats "+large.URL+" {\n checks off\n }",
	)}).Client(t)
	sized := func(action string, size int) string {
		e := statsEvent("version_name", "1.0.1", "action", action, "custom_id", "a", "x", "")
		return strings.Replace(e, `"x":""`, `"x":"`+strings.Repeat("x", size-len(e))+`"`, 1)
	}
	over := sized("over", most-31) // the hash in place of its id would make it too large
	r := client.Post("/stats", "["+sized("first", 1000)+","+over+","+sized("most", most-32)+","+sized("last", 1000)+"]")
	want := `{"status":"ok","results":[{"status":"ok","index":0},` +
		`{"status":"error","error":"payload_too_large","message":"The event is larger than this edge keeps","index":1},` +
		`{"status":"ok","index":2},{"status":"ok","index":3}]}`
	if r.Status != 200 || string(r.Body) != want {
		t.Errorf("status %d, %s", r.Status, r.Body)
	}
	if r := client.Post("/stats", over); r.Status != 413 || r.JSON(t)["error"] != "payload_too_large" {
		t.Errorf("alone: status %d, %s", r.Status, r.Body)
	}
	for _, c := range []*collector{small, large} {
		edgetest.Eventually(t, "the others arrive", func() bool { return len(c.events()) >= 3 })
		if diff := cmp.Diff([]string{"first", "most", "last"}, c.values("action")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// TestStatsReload: events across reloads with the same collector, changed settings and a rejected configuration arrive, each
// once.
func TestStatsReload(t *testing.T) {
	s, c := newSite(t), newCollector(t)
	s.publish("1.0.1", 100)
	config := func(i int) edgetest.Config {
		return edgetest.Config{Site: s.handler(fmt.Sprintf("stats %s {\n header X-Generation %d\n checks off\n max_spool %dMiB\n }", c.URL, i, 8+i))}
	}
	e := edgetest.New(t)
	load(t, e, config(0))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	acknowledged := map[string]int{}
	for writer := range 4 {
		wg.Go(func() {
			client := e.Client(t)
			client.Redials, client.Redialed = 0, nil
			for i := 0; open(stop); i++ {
				id := fmt.Sprintf("w%d_%d", writer, i)
				if r := client.Try(http.MethodPost, "/stats", statsEvent("version_name", "1.0.1", "action", id)); r.Status == 200 {
					mu.Lock()
					acknowledged[id] = 0
					mu.Unlock()
				} else if r.Status != 0 {
					t.Errorf("status %d, %s", r.Status, r.Body)
				}
			}
		})
	}
	for i := range 20 {
		load(t, e, config(i+1))
		if err := e.Load(edgetest.Config{Site: s.handler("stats " + c.URL), Global: "servers {\n listener_wrappers {\n nonsense\n }\n }"}); err == nil {
			t.Fatal("nonsense was taken")
		}
	}
	close(stop)
	wg.Wait()
	edgetest.Eventually(t, "all events arrive", func() bool { return len(c.events()) >= len(acknowledged) })
	for _, action := range c.values("action") {
		if _, known := acknowledged[action]; known { // an answer that a reload cut off was no acknowledgement
			acknowledged[action]++
		}
	}
	for id, n := range acknowledged {
		if n != 1 {
			t.Errorf("%s arrived %d times", id, n)
		}
	}
	t.Logf("%d events across 20 reloads and 20 rejected ones, %d batches", len(acknowledged), len(slices.Collect(maps.Keys(c.keys))))
}

// TestStatsUnavailable: a spool that cannot be kept is a 503 that phones read, never a 429, and update checks go on.
func TestStatsUnavailable(t *testing.T) {
	s, c := newSite(t), newCollector(t)
	s.publish("1.0.1", 100)
	e := edgetest.New(t)
	// A file where the folder belongs: nothing can be kept, whoever runs this.
	edgetest.WriteFile(t, e.Storage, "spool", []byte("in the way"))
	load(t, e, edgetest.Config{Site: "metrics /metrics\n" + s.handler("stats "+c.URL)})
	e.Protocols(t, func(t *testing.T, client *edgetest.Client) {
		r := client.Post("/stats", statsEvent("version_name", "1.0.1"))
		if r.Status != 503 || r.JSON(t)["error"] != "service_unavailable" || r.Header.Get("Retry-After") != "" {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
		if r := client.Post("/updates", check("version_name", "1.0.0")); r.Status != 200 {
			t.Errorf("a check: status %d, %s", r.Status, r.Body)
		}
	})
	if got := statusPage(t); !strings.Contains(got, `"healthy":false,"error":"the spool cannot be opened: `) || !strings.Contains(got, `"not_open":`) {
		t.Errorf("status %s", got)
	}
	if r := e.Client(t).Get("/metrics"); !strings.Contains(string(r.Body), "caddy_capgo_edge_spool_healthy{") ||
		!strings.Contains(string(r.Body), `reason="not_open"`) {
		t.Errorf("metrics %d %s", r.Status, r.Body)
	}
	if err := os.Remove(filepath.Join(e.Storage, "spool")); err != nil {
		t.Fatal(err)
	}
	edgetest.Eventually(t, "events are kept again", func() bool {
		return e.Client(t).Post("/stats", statsEvent("version_name", "1.0.1")).Status == 200
	})
	edgetest.Eventually(t, "and delivered", func() bool { return c.has(`"set"`) })
	if got := statusPage(t); strings.Contains(got, `"healthy":false`) || len(e.Log("statistics can be kept again")) != 1 {
		t.Errorf("status %s, log %q", got, e.Log("statistics"))
	}
}

// TestStatsWithoutOrigin: while nobody can say whether an app exists, its events are kept, and delivered in the end.
func TestStatsWithoutOrigin(t *testing.T) {
	s, c := newSite(t), newCollector(t)
	s.publish("1.0.1", 100)
	client := edgetest.Start(t, edgetest.Config{Site: fmt.Sprintf(
		"capgo_edge {\n origin http http://127.0.0.1:%s\n stats %s\n }", edgetest.FreePort(t), c.URL)}).Client(t)
	for _, body := range []string{statsEvent(), "[" + statsEvent() + "]"} {
		if r := client.Post("/stats", body); r.Status != 200 || !strings.HasPrefix(string(r.Body), `{"status":"ok"`) {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
	}
	edgetest.Eventually(t, "the events arrive", func() bool { return len(c.events()) == 2 })
}

// TestStatsForeignApp: an app this site does not serve reaches neither origin nor spool.
func TestStatsForeignApp(t *testing.T) {
	s, c := newSite(t), newCollector(t)
	s.publish("1.0.1", 100)
	client := edgetest.Start(t, edgetest.Config{Site: s.handler("apps org.example.*", "stats "+c.URL)}).Client(t)
	if r := client.Post("/stats", statsEvent()); r.Status != 429 || r.JSON(t)["error"] != "on_premise_app" || r.Header.Get("Retry-After") != "" {
		t.Errorf("status %d, %s", r.Status, r.Body)
	}
	r := client.Post("/stats", "["+statsEvent()+"]")
	if r.Status != 200 || !strings.Contains(string(r.Body), `"error":"on_premise_app"`) {
		t.Errorf("status %d, %s", r.Status, r.Body)
	}
	if got := c.events(); len(got) > 0 {
		t.Errorf("the collector got %v", got)
	}
}

// TestStatsLoop: a collector that leads back to the edge gets each event once, and is told to be wrong.
func TestStatsLoop(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	e := edgetest.New(t)
	load(t, e, edgetest.Config{Site: s.handler("stats " + e.HTTP + "/stats {\n checks off\n }")})
	client := e.Client(t)
	if r := client.Post("/stats", statsEvent("version_name", "1.0.1")); r.Status != 200 {
		t.Fatalf("status %d, %s", r.Status, r.Body)
	}
	edgetest.Eventually(t, "the log says so", func() bool { return len(e.Log("leads back to an edge")) > 0 })
}

// statusPage is what the admin endpoint tells.
func statusPage(t *testing.T) string {
	t.Helper()
	w, err := admin(t, "GET", "/capgo_edge/status", "")
	if err != nil {
		t.Fatal(err)
	}
	return w.Body.String()
}

// TestStatsConfiguration: what can be seen only when a configuration is loaded.
func TestStatsConfiguration(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	t.Setenv("COLLECTOR", "http://A.example.com:80/stats")
	t.Setenv("PASSWORD", "hunter2")
	t.Setenv("LINES", "hunter2\nX: y")
	mount := func(path, options string) string {
		return fmt.Sprintf("handle_path /%s/* {\n %s\n }\n", path, s.handler("stats "+options))
	}
	const address = "http://a.example.com/stats"
	tests := []struct{ name, site, err string }{
		{"twice", s.handler("stats "+address, "stats {$COLLECTOR}"), "is there twice"},
		{"twice by a placeholder", s.handler("stats "+address, "stats {env.COLLECTOR}"), "the collector {env.COLLECTOR} is there twice"},
		{"a password", s.handler("stats https://me:{env.PASSWORD}@a.example.com"), `"https://xxxxx@a.example.com" must be`},
		{"a header", s.handler("stats " + address + " {\n header X-Key {env.LINES}\n }"), "header X-Key: its value holds a control character"},
		{
			"a query", mount("a", address+"?token=hunter2 {\n max_spool 8MiB\n }") + mount("b", address+"?token=hunter2"),
			"two sites with the same origin send to http://a.example.com/stats, through one spool",
		},
		{"max_spool", mount("a", address+" {\n max_spool 8MiB\n }") + mount("b", address), "max_spool: 8388608 and 1073741824 bytes"},
		{
			"headers", mount("a", address+" {\n header X-Key {env.PASSWORD}\n }") + mount("b", address+" {\n header X-Key other\n }"),
			"different header: X-Key",
		},
		{"the same", mount("a", address+" {\n header X-Key a\n }") + mount("b", address+" {\n header x-key a\n drop ping\n }"), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := edgetest.New(t).Load(edgetest.Config{Site: tt.site})
			switch {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "hunter2")):
				t.Errorf("%v, want %q", err, tt.err)
			}
		})
	}
}

// TestStatsOfNewVersion: an event about a version that another edge has offered already is not refused by an older manifest, nor in an
// outage; one about a version that there is not is refused, and does not cost the origin a request each time.
func TestStatsOfNewVersion(t *testing.T) {
	s, c := newSite(t), newCollector(t)
	var manifests atomic.Int64
	var down atomic.Bool
	files := http.FileServer(http.Dir(s.dir))
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		manifests.Add(1)
		if down.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(origin.Close)
	s.publish("1.0.1", 100)
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n origin http " + origin.URL + "\n bundles {\n prefetch off\n }\n" +
		"manifests {\n fresh 10m\n }\n stats " + c.URL + " {\n checks off\n }\n}"})
	client := e.Client(t)
	report := func(version, want string) {
		t.Helper()
		r := client.Post("/stats", "["+statsEvent("version_name", version)+"]")
		if r.Status != 200 || !strings.Contains(string(r.Body), want) {
			t.Errorf("an event of %s: status %d, %s, want %s", version, r.Status, r.Body, want)
		}
	}
	client.Post("/updates", check())
	s.publish("1.0.2", 100)
	report("1.0.2", `"status":"ok"`)
	before := manifests.Load()
	for range 5 {
		report("7.7.7", "version_not_found")
	}
	if n := manifests.Load() - before; n > 1 {
		t.Errorf("the origin was asked %d times about a version that there is not", n)
	}
	report("1.0.0", "version_not_found") // a native version that was never uploaded
	if n := manifests.Load() - before; n > 1 {
		t.Errorf("the origin was asked %d times", n)
	}
	down.Store(true)
	time.Sleep(time.Second) // between two questions that are not due by the manifest's age
	report("1.0.3", `"status":"ok"`)
	report("1.0.1", `"status":"ok"`)
	edgetest.Eventually(t, "what was accepted arrives", func() bool { return len(c.events()) == 3 })
}

// TestStatsOrphan: the reload that removes a collector says that its spool stays, and a stop of the edge does not.
func TestStatsOrphan(t *testing.T) {
	s, c, other := newSite(t), newCollector(t), newCollector(t)
	s.publish("1.0.1", 100)
	e := edgetest.New(t)
	load(t, e, edgetest.Config{Site: s.handler("stats " + c.URL)})
	if r := e.Client(t).Post("/stats", statsEvent("version_name", "1.0.1")); r.Status != 200 {
		t.Fatalf("status %d, %s", r.Status, r.Body)
	}
	const orphan = "a collector that no site names any more"
	load(t, e, edgetest.Config{Site: s.handler("stats " + other.URL)})
	edgetest.Eventually(t, "the orphan is named", func() bool { return len(e.Log(orphan)) == 1 })
	load(t, e, edgetest.Config{Site: s.handler("stats "+c.URL, "stats "+other.URL)})
	if got := e.Log("a site names the collector of a spool again"); len(got) != 1 {
		t.Errorf("log %q", got)
	}
	e.Stop()
	if got := e.Log(orphan); len(got) != 1 {
		t.Errorf("log %q", got)
	}
}
