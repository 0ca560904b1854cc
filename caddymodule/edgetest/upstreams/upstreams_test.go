package upstreams_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest/upstreams"
)

// reply is an answer that was read to its end.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r *reply) json(t *testing.T) map[string]any {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(r.body, &members); err != nil {
		t.Fatalf("status %d: %v: %q", r.status, err, r.body)
	}
	return members
}

func send(ctx context.Context, s *upstreams.Server, method, path, body string, header ...string) (*reply, error) {
	if !strings.Contains(path, "://") {
		path = s.URL + path
	}
	req, err := http.NewRequestWithContext(ctx, method, path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := http.DefaultClient
	if strings.Contains(s.URL, "upstream.test") {
		client = &http.Client{Transport: s.Transport()}
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return &reply{resp.StatusCode, resp.Header, raw}, err
}

func ask(t *testing.T, s *upstreams.Server, method, path, body string, header ...string) *reply {
	t.Helper()
	r, err := send(t.Context(), s, method, path, body, header...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// device is a check of the device with the given number; further members are given as JSON.
func device(n int, members string) string {
	return fmt.Sprintf(`{"app_id":"com.demo.app","device_id":"00000000-0000-4000-8000-%012d","platform":"ios","version_name":"1.0.0",
		"version_build":"1.0.0","version_code":"1","version_os":"18","plugin_version":"8.51.14","is_prod":true%s}`, n, members)
}

const demo = `{"app":{"app_id":"com.demo.app"},"versions":[
	{"id":1,"name":"1.0.1","r2_path":"orgs/o/apps/com.demo.app/1.0.1.zip","checksum":"abc"},
	{"id":2,"name":"1.0.2","r2_path":"orgs/o/apps/com.demo.app/1.0.2.zip","checksum":"def"}],
	"channels":[{"id":1,"name":"production","public":true,"version":1},{"id":2,"name":"beta","version":2,"allow_device_self_set":true}]}`

func official(t *testing.T) *upstreams.Official {
	t.Helper()
	o := upstreams.NewOfficial()
	if err := o.Publish([]byte(demo)); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestFaults(t *testing.T) {
	o := official(t)
	o.Start(t)
	post := func(ctx context.Context) (*reply, error) {
		return send(ctx, &o.Server, http.MethodPost, "/updates", device(1, ""))
	}
	if r, err := post(t.Context()); err != nil || r.status != 200 || r.json(t)["version"] != "1.0.1" {
		t.Fatalf("%+v, %v", r, err)
	}
	o.Break(upstreams.Down)
	if r, err := post(t.Context()); err == nil {
		t.Errorf("down, and it answers %d", r.status)
	}
	for fault, want := range map[upstreams.Fault]string{
		upstreams.Error500: "500 {", upstreams.Error503: "503 <html>", upstreams.Empty: "200 ", upstreams.Garbage: `200 {"version":"1.`,
		upstreams.NoDatabase: `429 {"error":"on_premise_app"`,
	} {
		o.Break(fault, "/updates")
		r, err := post(t.Context())
		if err != nil || !strings.HasPrefix(fmt.Sprintf("%d %s", r.status, r.body), want) {
			t.Errorf("fault %d: %v, %v", fault, r, err)
		}
	}
	o.Break(upstreams.Hang, "/updates")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := post(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hangs, and gives %v", err)
	}
	o.Heal()
	if r, err := post(t.Context()); err != nil || r.status != 200 {
		t.Errorf("healed, and gives %v, %v", r, err)
	}
	if o.Count("/updates") < 9 || o.Count("/stats") != 0 || o.Clients()["127.0.0.1"] != o.Count("") {
		t.Errorf("%v, %v", o.Counts(), o.Clients())
	}
}

// TestHangAndSlowInFakeTime goes through Transport, which a bubble can wait for.
func TestHangAndSlowInFakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := official(t)
		start := time.Now()
		o.Slow(3 * time.Second)
		if r, err := send(t.Context(), &o.Server, http.MethodPost, "/updates", device(1, "")); err != nil || r.status != 200 || time.Since(start) != 3*time.Second {
			t.Errorf("%v, %v after %v", r, err, time.Since(start))
		}
		o.Break(upstreams.Hang)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := send(ctx, &o.Server, http.MethodPost, "/updates", device(1, "")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hangs, and gives %v", err)
		}
		o.Heal()
		o.Break(upstreams.Down)
		if _, err := send(t.Context(), &o.Server, http.MethodPost, "/updates", device(1, "")); !errors.Is(err, upstreams.ErrDown) {
			t.Errorf("down, and gives %v", err)
		}
	})
}

func TestRecord(t *testing.T) {
	o := official(t)
	ask(t, &o.Server, http.MethodPost, "/updates?a=b", device(1, ""), "X-Forwarded-For", "203.0.113.7, 10.0.0.1")
	got := o.Requests("/updates")
	if len(got) != 1 || got[0].Client != "203.0.113.7" || got[0].Query.Get("a") != "b" || string(got[0].Body) != device(1, "") {
		t.Errorf("%+v", got)
	}
	o.Forget()
	if o.Count("") != 0 || len(o.Requests("")) != 0 {
		t.Error("it remembers")
	}
}

// TestOfficialUnknownApps: what the server thinks of an app is remembered for a minute, and an address that asks for five
// unknown ones is told nothing about any for a quarter of an hour (protocol 1.5, rows 5a to 5c).
func TestOfficialUnknownApps(t *testing.T) {
	o := official(t)
	check := func(app, client string) *reply {
		return ask(t, &o.Server, http.MethodPost, "/updates", strings.Replace(device(1, ""), "com.demo.app", app, 1), "X-Forwarded-For", client)
	}
	if r := check("com.late.app", "192.0.2.1"); r.status != 429 || r.json(t)["message"] == nil || r.header.Get("Retry-After") != "" {
		t.Errorf("%d %s %v", r.status, r.body, r.header)
	}
	if err := o.Publish([]byte(strings.ReplaceAll(demo, "com.demo.app", "com.late.app"))); err != nil {
		t.Fatal(err)
	}
	if r := check("com.late.app", "192.0.2.2"); r.status != 429 {
		t.Errorf("remembered, and it answers %d %s", r.status, r.body)
	}
	o.Advance(61 * time.Second)
	if r := check("com.late.app", "192.0.2.2"); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	for i := range 5 {
		check(fmt.Sprintf("com.made.up%d", i), "192.0.2.9")
	}
	o.Advance(61 * time.Second) // or what it remembers of the app would let it through
	if r := check("com.demo.app", "192.0.2.9"); r.status != 429 || r.json(t)["message"] != nil {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := check("com.demo.app", "192.0.2.8"); r.status != 200 {
		t.Errorf("another address: %d %s", r.status, r.body)
	}
	o.Advance(16 * time.Minute)
	if r := check("com.demo.app", "192.0.2.9"); r.status != 200 {
		t.Errorf("later: %d %s", r.status, r.body)
	}
}

// TestOfficialDevices: overrides, self-assignments of old plugins and draws make answers differ by device, and only those.
func TestOfficialDevices(t *testing.T) {
	o := official(t)
	version := func(n int, members string) any {
		return ask(t, &o.Server, http.MethodPost, "/updates", device(n, members)).json(t)["version"]
	}
	err := o.Change("com.demo.app", func(_, _, _, devices *[]map[string]any) {
		*devices = append(*devices, map[string]any{"device_id": "00000000-0000-4000-8000-000000000007", "channel_id": 2})
	})
	if err != nil {
		t.Fatal(err)
	}
	if version(7, "") != "1.0.2" || version(8, "") != "1.0.1" {
		t.Errorf("override: %v, others %v", version(7, ""), version(8, ""))
	}
	old := func(body string) string { return strings.Replace(body, "8.51.14", "7.1.0", 1) }
	set := ask(t, &o.Server, http.MethodPost, "/channel_self", old(device(9, `,"channel":"beta"`)))
	if set.status != 200 || string(set.body) != `{"status":"ok"}` {
		t.Errorf("%d %s", set.status, set.body)
	}
	asOld := func(n int) any {
		return ask(t, &o.Server, http.MethodPost, "/updates", old(device(n, ""))).json(t)["version"]
	}
	if asOld(9) != "1.0.2" || asOld(10) != "1.0.1" {
		t.Errorf("self-assigned: %v, others %v", asOld(9), asOld(10))
	}
	err = o.Change("com.demo.app", func(_, _, channels, _ *[]map[string]any) {
		c := (*channels)[0]
		c["rollout_enabled"], c["rollout_version"], c["rollout_percentage_bps"], c["rollout_id"] = true, 2, 5000, "r"
	})
	if err != nil {
		t.Fatal(err)
	}
	drawn := 0
	for n := range 400 {
		if first := version(100+n, ""); first == "1.0.2" {
			drawn++
		} else if version(100+n, "") != first {
			t.Error("a draw is not remembered")
		}
	}
	if drawn < 140 || drawn > 260 {
		t.Errorf("%d of 400 at 50 %%", drawn)
	}
}

func TestOfficialAddresses(t *testing.T) {
	o := official(t)
	o.Start(t)
	o.Put("orgs/o/apps/com.demo.app/1.0.1.zip", []byte("a zip of some bytes"))
	r := ask(t, &o.Server, http.MethodPost, "/updates", strings.Replace(device(1, ""), "0000-4000-8000", "ABCD-4000-8000", 1))
	address, _ := r.json(t)["url"].(string)
	if want := o.URL + "/files/read/attachments/orgs/o/apps/com.demo.app/1.0.1.zip?key=abc&device_id=00000000-abcd-4000-8000-000000000001"; address != want {
		t.Fatalf("%s\n%s", address, want)
	}
	for name := range map[string]bool{"X-Request-Id": true, "X-Worker-Source": true, "Content-Security-Policy": true} {
		if r.header.Get(name) == "" {
			t.Errorf("no %s", name)
		}
	}
	for _, name := range []string{"Cache-Control", "ETag", "Expires"} {
		if r.header.Get(name) != "" {
			t.Errorf("%s is set", name)
		}
	}
	for _, c := range []struct{ ranges, body, contentRange string }{
		{"", "a zip of some bytes", ""},
		{"bytes=2-4", "zip", "bytes 2-4/19"},
		{"bytes=14-", "bytes", "bytes 14-18/19"},
		{"bytes=-5", "bytes", "bytes 14-18/19"},
		{"bytes=19-", "", "bytes */19"},
		{"bytes=5-2", "a zip of some bytes", ""},
	} {
		r := ask(t, &o.Server, http.MethodGet, address, "", "Range", c.ranges)
		if string(r.body) != c.body || r.header.Get("Content-Range") != c.contentRange || (r.status == 206) != (c.contentRange != "") {
			t.Errorf("%q: %d %q %q", c.ranges, r.status, r.body, r.header.Get("Content-Range"))
		}
		if r.header.Get("Cache-Control") != "public, max-age=31536000, immutable, no-transform" || r.header.Get("ETag") == "" {
			t.Errorf("%v", r.header)
		}
	}
	if r := ask(t, &o.Server, http.MethodGet, "/files/read/attachments/none.zip", ""); r.status != 404 || r.json(t)["error"] != "not_found" {
		t.Errorf("%d %s", r.status, r.body)
	}
	o.Put("a%2Fb", []byte("x"))
	for _, path := range []string{"a%2Fb", "a%252Fb"} {
		if r := ask(t, &o.Server, http.MethodGet, "/files/read/attachments/"+path, ""); r.status != 200 {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
	}
}

func TestOfficialSizes(t *testing.T) {
	o := upstreams.NewOfficial()
	err := o.Publish([]byte(`{"app":{"app_id":"com.demo.app"},"versions":[{"id":7,"name":"1.0.1","manifest":[
		{"file_name":"a.js","file_hash":"h1","s3_path":"orgs/o/apps/com.demo.app/delta/h1_a.js","file_size":12}]}],
		"channels":[{"id":1,"name":"production","public":true,"version":7}]}`))
	if err != nil {
		t.Fatal(err)
	}
	query := func(key string) map[string]any {
		return ask(t, &o.Server, http.MethodPost, "/updates/manifest_size", device(1,
			`,"manifest":[{"file_name":"a.js","file_hash":"h1","download_url":"https://any.test/x?key=`+key+`"}]`)).json(t)
	}
	if got := query("7"); got["totalSize"] != 12.0 || got["knownFiles"] != 1.0 || got["unknownFiles"] != 0.0 {
		t.Errorf("%v", got)
	}
	if got := query("8"); got["unknownFiles"] != 1.0 || got["files"].([]any)[0].(map[string]any)["error"] != "size_unknown" {
		t.Errorf("%v", got)
	}
}

func TestOfficialLimits(t *testing.T) {
	o := official(t)
	set := func(channel string) *reply {
		return ask(t, &o.Server, http.MethodPost, "/channel_self", device(1, `,"channel":"`+channel+`"`))
	}
	if r := set("beta"); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if r := set("beta"); r.status != 429 || r.header.Get("Retry-After") == "" || r.json(t)["moreInfo"].(map[string]any)["retryAfterSeconds"] == nil {
		t.Errorf("again: %d %s", r.status, r.body)
	}
	o.Advance(time.Minute)
	if r := set("beta"); r.status != 200 {
		t.Errorf("later: %d %s", r.status, r.body)
	}
}

func TestLite(t *testing.T) {
	l := upstreams.NewLite()
	l.Start(t)
	for _, v := range []string{"1.1.0", "1.2.0", "1.10.0", "1.10.0-rc.1"} {
		l.Publish(upstreams.LiteBundle{AppID: "com.demo.app", Channel: "production", Version: v, Content: []byte("zip " + v)})
	}
	check := func(members string) map[string]any {
		r := ask(t, &l.Server, http.MethodPost, "/updates", device(1, members))
		if r.status != 200 || r.json(t)["kind"] != nil {
			t.Errorf("%d %s", r.status, r.body)
		}
		return r.json(t)
	}
	first, second := check(""), check("")
	if first["version"] != "1.10.0" || first["url"] == second["url"] || first["checksum"] != second["checksum"] {
		t.Errorf("%v\n%v", first, second)
	}
	address := first["url"].(string)
	if r := ask(t, &l.Server, http.MethodGet, address, ""); r.status != 200 || string(r.body) != "zip 1.10.0" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := ask(t, &l.Server, http.MethodGet, strings.Replace(address, "1.10.0.zip", "1.2.0.zip", 1), ""); r.status != 403 {
		t.Errorf("another object: %d", r.status)
	}
	if r := ask(t, &l.Server, http.MethodPost, "/stats", device(1, `,"action":"set_fail","version_name":"1.10.0"`)); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if got := check(""); got["version"] != "1.10.0-rc.1" {
		t.Errorf("after it failed: %v", got)
	}
	if r := ask(t, &l.Server, http.MethodPost, "/updates", device(2, "")); r.json(t)["version"] != "1.10.0" {
		t.Errorf("on another device: %s", r.body)
	}
	l.Advance(time.Hour)
	if r := ask(t, &l.Server, http.MethodGet, address, ""); r.status != 403 {
		t.Errorf("expired: %d", r.status)
	}
	for members, want := range map[string]string{
		`,"version_name":"1.10.0"`:  "no_new_version_available",
		`,"defaultChannel":"none"`:  "no_new_version_available",
		`,"version_build":"one"`:    "invalid_version_build",
		`,"app_id":"com.other.app"`: "no_app",
		`,"device_id":""`:           "invalid_request",
	} {
		if got := check(members)["error"]; got != want {
			t.Errorf("%s: %v, want %s", members, got, want)
		}
	}
	l.Publish(upstreams.LiteBundle{AppID: "com.demo.app", Channel: "floor", Version: "1.3.0", MinNative: "2.0.0"})
	if got := check(`,"defaultChannel":"floor"`); got["error"] != "below_min_native_build" || got["min_required"] != "2.0.0" || got["current"] != "1.0.0" {
		t.Errorf("%v", got)
	}
	l.Publish(upstreams.LiteBundle{AppID: "com.demo.app", Channel: "major", Version: "2.0.0", Policy: "major"})
	if got := check(`,"defaultChannel":"major"`); got["error"] != "disable_auto_update_to_major" {
		t.Errorf("%v", got)
	}
}

func TestGoServer(t *testing.T) {
	g := upstreams.NewGoServer()
	g.Start(t)
	check := func(members string) *reply { return ask(t, &g.Server, http.MethodPost, "/updates", device(1, members)) }
	if r := check(""); r.status != 404 || string(r.body) != `{"error":"app not found"}` {
		t.Errorf("%d %s", r.status, r.body)
	}
	key := upstreams.GoKey{Platform: "ios", AppID: "com.demo.app", VersionBuild: "1.0.0", VersionCode: "1"}
	g.Publish(key, upstreams.GoBundle{Version: "1.0.0", SessionKey: "s", Signature: "sig", Content: []byte("zip")})
	if r := check(""); r.status != 200 || string(r.body) != `{"error":"app not found"}` {
		t.Errorf("an error out of the cache: %d %s", r.status, r.body)
	}
	g.Advance(10 * time.Minute)
	got := check("").json(t)
	if got["version"] != "1.0.0" || got["sessionKey"] != "s" || got["signature"] != "sig" || len(got["checksum"].(string)) != 8 {
		t.Errorf("the version it runs: %v", got)
	}
	if r := ask(t, &g.Server, http.MethodGet, got["url"].(string), ""); r.status != 200 || string(r.body) != "zip" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if got := check(`,"version_code":"2"`).json(t); got["version"] != "builtin" || got["url"] == nil {
		t.Errorf("another version_code: %v", got)
	}
	if r := ask(t, &g.Server, http.MethodPost, "/stats", "[]"); string(r.body) != "{}" {
		t.Errorf("%s", r.body)
	}
	g.Throttle(true)
	if r := check(""); r.status != 429 || len(r.body) != 0 || r.header.Get("Retry-After") != "" {
		t.Errorf("%d %q", r.status, r.body)
	}
}

func TestMinimal(t *testing.T) {
	m := upstreams.NewMinimal()
	m.Start(t)
	m.Publish("com.demo.app", upstreams.MinimalVersion{Version: "1.0.1", Content: []byte("zip")})
	got := ask(t, &m.Server, http.MethodPost, "/updates", device(1, "")).json(t)
	if _, has := got["checksum"]; has || got["version"] != "1.0.1" || len(got) != 2 {
		t.Errorf("%v", got)
	}
	if r := ask(t, &m.Server, http.MethodGet, got["url"].(string), ""); string(r.body) != "zip" {
		t.Errorf("%d %s", r.status, r.body)
	}
	r := ask(t, &m.Server, http.MethodPost, "/updates", device(1, `,"version_name":"1.0.1"`))
	if got := r.json(t); r.status != 200 || got["error"] != "no_new_version_available" || got["kind"] != nil {
		t.Errorf("%d %v", r.status, got)
	}
	if r := ask(t, &m.Server, http.MethodPost, "/stats", "[]"); r.status != 404 {
		t.Errorf("%d", r.status)
	}
}

func TestPluginTest(t *testing.T) {
	p := upstreams.NewPluginTest()
	p.Start(t)
	p.Play(upstreams.Scenario{Version: "1.0.1", Zip: []byte("zip"), Files: map[string][]byte{"a.js": []byte("a")}})
	r := ask(t, &p.Server, http.MethodPost, "/updates", device(1, ""))
	got := r.json(t)
	if _, has := got["checksum"]; has || got["session_key"] != "" || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%v %v", got, r.header)
	}
	file := got["manifest"].([]any)[0].(map[string]any)
	for address, want := range map[string]string{got["url"].(string): "zip", file["download_url"].(string): "a"} {
		if r := ask(t, &p.Server, http.MethodGet, address, ""); string(r.body) != want {
			t.Errorf("%s: %d %s", address, r.status, r.body)
		}
	}
	p.Play(upstreams.Scenario{Error: "disable_auto_update_to_major"})
	if got := ask(t, &p.Server, http.MethodPost, "/updates", device(1, "")).json(t); got["error"] != "disable_auto_update_to_major" || got["kind"] != nil {
		t.Errorf("%v", got)
	}
}

func TestManagement(t *testing.T) {
	o := official(t)
	get := func(path string) *reply { return ask(t, &o.Server, http.MethodGet, path, "", "capgkey", o.Key) }
	if r := ask(t, &o.Server, http.MethodGet, "/channel?app_id=com.demo.app", ""); r.status != 401 {
		t.Errorf("without a key: %d", r.status)
	}
	var channels []map[string]any
	if err := json.Unmarshal(get("/channel?app_id=com.demo.app&page=0").body, &channels); err != nil || len(channels) != 2 {
		t.Fatalf("%v, %v", channels, err)
	}
	if _, has := channels[0]["ios"]; has || channels[0]["disableAutoUpdate"] != "major" || channels[0]["version"].(map[string]any)["name"] != "1.0.1" {
		t.Errorf("%v", channels[0])
	}
	if r := get("/bundle?app_id=com.demo.app&page=1"); r.status != 400 || r.json(t)["error"] != "cannot_get_bundle" {
		t.Errorf("an empty page: %d %s", r.status, r.body)
	}
	o.KeyLimit = 1
	if r := get("/app/com.demo.app"); r.status != 429 || r.header.Get("Retry-After") == "" {
		t.Errorf("too often: %d %s", r.status, r.body)
	}
}
