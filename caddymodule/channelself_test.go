package caddymodule_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
	"github.com/capgo-edge/capgo-edge/origin/boltfile"
	"github.com/capgo-edge/capgo-edge/origin/state"
)

// channelCase is one case of resolver/testdata/vectors/channel_self.json; see the README there.
type channelCase struct {
	Name, Feature, Method string
	Manifest              json.RawMessage
	Request               json.RawMessage
	RawBody               *string `json:"raw_body"`
	Query                 map[string]any
	Expect                struct {
		Status   int
		Body     any
		Absent   []string
		Nonempty []string
	}
}

// choicesOf are the choices that devices have stored before a case.
func choicesOf(t testing.TB, manifest []byte) (app string, choices map[string]int64) {
	t.Helper()
	var m struct {
		App struct {
			ID string `json:"app_id"`
		}
		Choices []struct {
			Device  string `json:"device_id"`
			Channel int64  `json:"channel_id"`
		} `json:"channel_self_overrides"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	choices = map[string]int64{}
	for _, c := range m.Choices {
		choices[c.Device] = c.Channel
	}
	return m.App.ID, choices
}

// storeChoices puts the choices of a case into the state of an edge that does not run. Most of them no call could store:
// their channels do not allow it.
func storeChoices(t testing.TB, e *edgetest.Edge, originDir string, manifest []byte) {
	t.Helper()
	app, choices := choicesOf(t, manifest)
	if len(choices) == 0 {
		return
	}
	if err := os.MkdirAll(e.Storage, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := state.Open(state.Options{Path: stateFile(e)})
	if err != nil {
		t.Fatal(err)
	}
	for device, channel := range choices {
		if err := s.Scope("file "+originDir+" manifests/{app_id}.json").Assign(t.Context(), app, device, channel); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func stateFile(e *edgetest.Edge) string { return filepath.Join(e.Storage, "state.db") }

// TestChannelVectors runs the conformance table through the real handler over HTTP, each case as a site of its own below a
// path prefix.
func TestChannelVectors(t *testing.T) {
	var file struct{ Cases []channelCase }
	if err := json.Unmarshal(readFile(t, "resolver/testdata/vectors/channel_self.json"), &file); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	e := edgetest.New(t)
	var site strings.Builder
	for i, c := range file.Cases {
		origin := filepath.Join(dir, fmt.Sprint(i))
		app, _ := choicesOf(t, c.Manifest)
		edgetest.WriteFile(t, origin, "manifests/"+app+".json", c.Manifest)
		storeChoices(t, e, origin, c.Manifest)
		fmt.Fprintf(&site, "handle_path /case%d/* {\n capgo_edge {\n origin file %s\n }\n }\n", i, origin)
	}
	load(t, e, edgetest.Config{Site: site.String()})
	client := e.Client(t)
	features := map[string]int{}
	for i, c := range file.Cases {
		features[c.Feature]++
		t.Run(c.Name, func(t *testing.T) { c.run(t, client, fmt.Sprintf("/case%d/channel_self", i)) })
	}
	t.Logf("%d of %d cases ran: %v", features["core"]+features["legacy_override"], len(file.Cases), features)
	if len(file.Cases) != 45 || features["core"] != 37 || features["legacy_override"] != 8 {
		t.Errorf("%d cases: %v", len(file.Cases), features)
	}
}

func (c *channelCase) run(t *testing.T, client *edgetest.Client, path string) {
	body := string(c.Request)
	if c.RawBody != nil {
		body = *c.RawBody
	}
	if c.Query != nil {
		query := url.Values{}
		for name, value := range c.Query {
			query.Set(name, fmt.Sprint(value))
		}
		path += "?" + query.Encode()
	}
	r := client.Do(c.Method, path, body, "Content-Type", "application/json")
	if r.Status != c.Expect.Status || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("status %d, want %d: %s, %v", r.Status, c.Expect.Status, r.Body, r.Header)
	}
	if want, ok := c.Expect.Body.([]any); ok {
		var got []any
		if err := json.Unmarshal(r.Body, &got); err != nil {
			t.Fatalf("%v: %s", err, r.Body)
		}
		name := func(v any) string { return v.(map[string]any)["name"].(string) }
		slices.SortFunc(want, func(a, b any) int { return strings.Compare(name(a), name(b)) })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("channels (-want +got):\n%s", diff)
		}
		return
	}
	got := r.JSON(t)
	expectMembers(t, got, c.Expect.Body.(map[string]any), c.Expect.Absent, c.Expect.Nonempty)
}

// newChannelSite is a site whose app has a public channel at 1.0.1, and "beta" at 1.0.2, which devices may choose.
func newChannelSite(t testing.TB) *site {
	t.Helper()
	s := newSite(t)
	s.channels("production", "beta")
	return s
}

// channels publishes a manifest: the first channel is public, at 1.0.1, the others may be chosen, and are at 1.0.2.
func (s *site) channels(names ...string) {
	s.t.Helper()
	var channels []map[string]any
	for i, name := range names {
		channels = append(channels, map[string]any{
			"id": i + 1, "name": name, "version": min(i+1, 2), "public": i == 0, "allow_device_self_set": i > 0,
		})
	}
	manifest, err := json.Marshal(map[string]any{
		"app": map[string]any{"app_id": appID},
		"versions": []any{
			map[string]any{"id": 1, "name": "1.0.1", "r2_path": s.zipKey("1.0.1"), "checksum": strings.Repeat("a", 64)},
			map[string]any{"id": 2, "name": "1.0.2", "r2_path": s.zipKey("1.0.2"), "checksum": strings.Repeat("b", 64)},
		},
		"channels": channels,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	edgetest.WriteFile(s.t, s.dir, "manifests/"+appID+".json", manifest)
}

// old makes a body of a plugin that does not keep its choice.
func old(changes ...any) string {
	return check(append([]any{"plugin_version", "7.33.9"}, changes...)...)
}

// oldQuery is the query of old's fields.
func oldQuery(device string) string {
	return url.Values{
		"app_id": {appID}, "device_id": {device}, "platform": {"android"}, "version_name": {"1.0.0"}, "version_build": {"1.0.0"},
		"plugin_version": {"7.33.9"},
	}.Encode()
}

func wantVersion(t testing.TB, c *edgetest.Client, prefix, body, want string) {
	t.Helper()
	if r := c.Post(prefix+"/updates", body); r.JSON(t)["version"] != want {
		t.Errorf("offered %s, want %s", r.Body, want)
	}
}

func wantBody(t testing.TB, r *edgetest.Response, status int, want string) {
	t.Helper()
	if r.Status != status || string(r.Body) != want {
		t.Errorf("status %d, %s; want %d, %s", r.Status, r.Body, status, want)
	}
}

const ok = `{"status":"ok"}`

// TestChoiceLasts: what an old plugin chose decides about its updates, over restarts, until it takes it back.
func TestChoiceLasts(t *testing.T) {
	s, e := newChannelSite(t), edgetest.New(t)
	config := edgetest.Config{Site: s.handler("bundles {\n prefetch off\n}")}
	load(t, e, config)
	e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
		wantVersion(t, c, "", old(), "1.0.1")
		wantBody(t, c.Post("/plugin/channel_self", old("channel", "beta")), 200, ok)
		wantVersion(t, c, "", old(), "1.0.2")
		wantVersion(t, c, "", old("defaultChannel", "production"), "1.0.2")
		wantVersion(t, c, "", check(), "1.0.1") // a new plugin of the same device
		wantVersion(t, c, "", old("device_id", strings.ToUpper(deviceID)), "1.0.2")
		wantVersion(t, c, "", old("device_id", "11119a6b-eefe-490a-9c60-8e965132ae51"), "1.0.1")
		wantBody(t, c.Do("PUT", "/channel_self", old()), 200, `{"channel":"beta","status":"override","allowSet":true}`)

		e.Stop()
		load(t, e, config)
		wantVersion(t, c, "", old(), "1.0.2")
		wantBody(t, c.Do("DELETE", "/channel_self?"+oldQuery(deviceID), ""), 200, ok)
		wantVersion(t, c, "", old(), "1.0.1")
		wantBody(t, c.Post("/channel_self", old("channel", "beta")), 200, ok)
		wantBody(t, c.Post("/channel_self", old("action", "unset")), 200, ok)
		wantVersion(t, c, "", old(), "1.0.1")

		e.Stop()
		load(t, e, config)
		wantVersion(t, c, "", old(), "1.0.1")
	})
}

// TestForgetChoices: an operator removes what devices chose, one by one or all of an app.
func TestForgetChoices(t *testing.T) {
	s := newChannelSite(t)
	c := edgetest.Start(t, edgetest.Config{Site: s.handler("bundles {\n prefetch off\n}")}).Client(t)
	for i := range 3 {
		wantBody(t, c.Post("/channel_self", old("device_id", numbered(i), "channel", "beta")), 200, ok)
	}
	for _, tt := range []struct{ body, want string }{
		{`{"app_id":"com.other.app","all":true}`, `{"forgotten":0}`},
		{`{"app_id":"` + appID + `","device_id":"` + strings.ToUpper(numbered(0)) + `"}`, `{"forgotten":1}`},
		{`{"app_id":"` + appID + `","device_id":"` + numbered(0) + `"}`, `{"forgotten":0}`},
	} {
		w, err := admin(t, "POST", "/capgo_edge/forget_choices", tt.body)
		if err != nil || strings.TrimSpace(w.Body.String()) != tt.want {
			t.Errorf("%s: %v, %s", tt.body, err, w.Body)
		}
	}
	wantVersion(t, c, "", old("device_id", numbered(0)), "1.0.1")
	wantVersion(t, c, "", old("device_id", numbered(1)), "1.0.2")
	w, err := admin(t, "POST", "/capgo_edge/forget_choices", `{"app_id":"`+appID+`","all":true}`)
	if err != nil || strings.TrimSpace(w.Body.String()) != `{"forgotten":2}` {
		t.Errorf("%v, %s", err, w.Body)
	}
	wantVersion(t, c, "", old("device_id", numbered(1)), "1.0.1")
	for body, want := range map[string]string{
		`{}`:                         "app_id",
		`{"app_id":"` + appID + `"}`: "which device",
		`{"app_id":"*","all":true}`:  "not an app id",
		`{"app_id":"` + appID + `","device_id":""}`:             "which device",
		`{"app_id":"` + appID + `","device_id":null}`:           "which device",
		`{"app_id":"` + appID + `","device_id":"a","all":true}`: "which device",
	} {
		if _, err := admin(t, "POST", "/capgo_edge/forget_choices", body); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// TestChoicesAreOfAnOrigin: sites with different origins and the same app share nothing, those with the same one do.
func TestChoicesAreOfAnOrigin(t *testing.T) {
	a, b, e := newChannelSite(t), newChannelSite(t), edgetest.New(t)
	load(t, e, edgetest.Config{Site: "handle_path /a/* {\n" + a.handler() + "}\nhandle_path /b/* {\n" + b.handler() + "}\nhandle_path /again/* {\n" + a.handler() + "}\n"})
	c := e.Client(t)
	wantBody(t, c.Post("/a/channel_self", old("channel", "beta")), 200, ok)
	wantVersion(t, c, "/a", old(), "1.0.2")
	wantVersion(t, c, "/again", old(), "1.0.2")
	wantVersion(t, c, "/b", old(), "1.0.1")
	wantBody(t, c.Do("DELETE", "/b/channel_self?"+oldQuery(deviceID), ""), 200,
		`{"error":"cannot_override","message":"Cannot change device override current channel don't allow it"}`)
	wantVersion(t, c, "/a", old(), "1.0.2")
}

// TestManyDevicesChoose at once, and a reload comes between.
func TestManyDevicesChoose(t *testing.T) {
	s, e := newChannelSite(t), edgetest.New(t)
	s.channels("production", "beta", "gamma")
	config := edgetest.Config{Site: s.handler()}
	load(t, e, config)
	const devices = 64
	device := func(i int) string { return fmt.Sprintf("%08x-eefe-490a-9c60-8e965132ae51", i) }
	c := e.Client(t)
	c.Redials = 20
	var all sync.WaitGroup
	for i := range devices {
		all.Go(func() {
			for _, channel := range []string{"beta", "gamma", "beta"} {
				wantBody(t, c.Post("/channel_self", old("device_id", device(i), "channel", channel)), 200, ok)
			}
			if i%2 == 0 {
				wantBody(t, c.Do("DELETE", "/channel_self?"+oldQuery(device(i)), ""), 200, ok)
			}
		})
	}
	load(t, e, config)
	all.Wait()
	for i := range devices {
		wantVersion(t, c, "", old("device_id", device(i)), []string{"1.0.1", "1.0.2"}[i%2])
	}
}

// TestStateFileDies: a file that was destroyed while the edge stood still costs the choices, and no more.
func TestStateFileDies(t *testing.T) {
	for name, destroy := range map[string]func(path string) error{
		"removed": os.Remove,
		"cut":     func(path string) error { return os.Truncate(path, 9000) },
		"garbage": func(path string) error { return os.WriteFile(path, randomBytes(40_000), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			s, e := newChannelSite(t), edgetest.New(t)
			config := edgetest.Config{Site: s.handler()}
			load(t, e, config)
			c := e.Client(t)
			wantBody(t, c.Post("/channel_self", old("channel", "beta")), 200, ok)
			e.Stop()
			if err := destroy(stateFile(e)); err != nil {
				t.Fatal(err)
			}
			load(t, e, config)
			wantVersion(t, c, "", old(), "1.0.1")
			wantBody(t, c.Post("/channel_self", old("channel", "beta")), 200, ok)
			wantVersion(t, c, "", old(), "1.0.2")
			if told := len(e.Log("state.db is damaged")); told != 1 && name != "removed" {
				t.Errorf("it was told %d times", told)
			}
			if _, err := os.Stat(stateFile(e) + boltfile.DamagedSuffix); err != nil && name != "removed" {
				t.Error(err)
			}
		})
	}
}

// TestStateFileDiesBeneath: while the edge runs, what cannot be kept is said so, and what is known goes on.
func TestStateFileDiesBeneath(t *testing.T) {
	s, e := newChannelSite(t), edgetest.New(t)
	load(t, e, edgetest.Config{Site: s.handler()})
	c := e.Client(t)
	wantBody(t, c.Post("/channel_self", old("channel", "beta")), 200, ok)
	if err := os.Truncate(stateFile(e), 0); err != nil {
		t.Fatal(err)
	}
	unavailable := `{"error":"channel_self_server_storage_unavailable","message":"The channel of this device cannot be stored now, try again later"}`
	wantBody(t, c.Do("DELETE", "/channel_self?"+oldQuery(deviceID), ""), 200, unavailable)
	wantVersion(t, c, "", old(), "1.0.2")
	wantBody(t, c.Post("/channel_self", check("channel", "beta")), 200, `{"status":"ok","allowSet":true}`) // new plugins
	if len(e.Log("choices of devices and pauses cannot be kept")) != 1 {
		t.Error("it was not told")
	}
}

// TestChannelCallLimits: off as a matter of course, and as the official server's on demand.
func TestChannelCallLimits(t *testing.T) {
	s, e := newChannelSite(t), edgetest.New(t)
	load(t, e, edgetest.Config{Site: "handle_path /off/* {\n" + s.handler() + "}\nhandle_path /on/* {\n" + s.handler("channel_self {\n limits official\n}") + "}\n"})
	c := e.Client(t)
	var limited *edgetest.Response
	for range 100 {
		if r := c.Do("PUT", "/off/channel_self", check()); r.Status != 200 {
			t.Fatalf("without limits: status %d", r.Status)
		}
		if r := c.Post("/on/channel_self", check("channel", "beta")); r.Status != 200 {
			t.Fatalf("the same set again: status %d, %s", r.Status, r.Body)
		}
		if r := c.Do("PUT", "/on/channel_self", check()); r.Status == 429 {
			limited = r
		}
	}
	if limited == nil {
		t.Fatal("with limits 100 calls pass")
	}
	body := limited.JSON(t)
	info, _ := body["moreInfo"].(map[string]any)
	if body["error"] != "too_many_requests" || info["app_id"] != appID || info["device_id"] != deviceID ||
		info["retryAfterSeconds"] != 1.0 || info["rateLimitResetAt"].(float64) < 1.7e12 {
		t.Errorf("%s", limited.Body)
	}
	if limited.Header.Get("Retry-After") != "1" || len(limited.Header.Get("X-RateLimit-Reset")) != 10 {
		t.Errorf("%v", limited.Header)
	}
}

// TestChannelCallFaults: a 429 comes only of an app that the origin denies.
func TestChannelCallFaults(t *testing.T) {
	s := newChannelSite(t)
	address, _ := s.serve(nil)
	e := edgetest.Start(t, edgetest.Config{Site: "handle_path /here/* {\n capgo_edge {\n origin http " + address + "\n apps com.demo.*\n }\n}\n" +
		"handle_path /down/* {\n capgo_edge {\n origin http http://127.0.0.1:1\n }\n}\n"})
	c := e.Client(t)
	for name, tt := range map[string]struct {
		method, path, body string
		status             int
		code               string
	}{
		"origin down":       {"POST", "/down/channel_self", check("channel", "beta"), 503, "service_unavailable"},
		"origin down, list": {"GET", "/down/channel_self?app_id=a.b&platform=ios", "", 503, "service_unavailable"},
		"unknown app":       {"PUT", "/here/channel_self", check("app_id", "com.demo.none"), 429, "on_premise_app"},
		"foreign app":       {"PUT", "/here/channel_self", check("app_id", "org.demo.none"), 429, "on_premise_app"},
		"too large":         {"POST", "/here/channel_self", check("channel", strings.Repeat("x", 70_000)), 413, "payload_too_large"},
		"method":            {"PATCH", "/here/channel_self", "", 405, "method_not_allowed"},
		"body":              {"POST", "/here/channel_self", "[]", 400, "invalid_json_body"},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.Do(tt.method, tt.path, tt.body)
			if got := r.JSON(t); r.Status != tt.status || got["error"] != tt.code || r.Header.Get("Retry-After") != "" {
				t.Errorf("status %d, %s", r.Status, r.Body)
			}
		})
	}
	if r := c.Do(http.MethodHead, "/here/channel_self?app_id="+appID+"&platform=ios", ""); r.Status != 200 || len(r.Body) != 0 {
		t.Errorf("HEAD: status %d, %q", r.Status, r.Body)
	}
}
