package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest/upstreams"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// runImport runs the command against a server, in fake time: the client paces itself.
func runImport(t *testing.T, o *upstreams.Official, i manifestImport) (code int, stdout, stderr string, err error) {
	t.Helper()
	t.Setenv("CAPGO_KEY", o.Key)
	var out, said bytes.Buffer
	i.stdout, i.stderr = &out, &said
	i.wrap = func(http.RoundTripper) http.RoundTripper { return o.Transport() }
	set := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	set(&i.upstream, o.URL)
	set(&i.key, "{env.CAPGO_KEY}")
	set(&i.app, "com.demo.app")
	set(&i.out, "-")
	synctest.Test(t, func(t *testing.T) { code, err = i.run(t.Context()) })
	if strings.Contains(said.String()+out.String()+fmt.Sprint(err), o.Key) {
		t.Errorf("the key is shown:\n%s\n%v", said.String(), err)
	}
	return code, out.String(), said.String(), err
}

const smallApp = `{"app":{"app_id":"com.demo.app"},"versions":[{"id":1,"name":"1.0.1","r2_path":"orgs/o/apps/com.demo.app/1.0.1.zip","checksum":"c"}],
	"channels":[{"id":1,"name":"production","public":true,"version":1},{"id":2,"name":"a=b","electron":false}]}`

func officialWith(t *testing.T, docs ...string) *upstreams.Official {
	t.Helper()
	o := upstreams.NewOfficial()
	o.DrawLikeEdge = true
	for _, doc := range docs {
		if err := o.Publish([]byte(doc)); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func TestManifestImport(t *testing.T) {
	o := officialWith(t, smallApp)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	out := filepath.Join(dir, "com.demo.app.json")
	code, stdout, stderr, err := runImport(t, o, manifestImport{
		out: out, platforms: []string{"production=ios,android", "a=b=electron"},
		overrides: file("overrides", `[{"device_id":"AAAAAAAA-0000-4000-8000-000000000001","channel":"a=b"}]`),
	})
	if code != 0 || err != nil || stdout != "" {
		t.Fatalf("code %d, %v, %q", code, err, stdout)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		`"electron":false,"id":1,"ios":true,"name":"production"`, `"electron":true,"id":2,"ios":false,"name":"a=b"`,
		`"device_id":"aaaaaaaa-0000-4000-8000-000000000001"`,
	} {
		if !strings.Contains(string(raw), text) {
			t.Errorf("no %s in\n%s", text, raw)
		}
	}
	for _, text := range []string{"2 channels and 1 bundles read", "note: not told at all", "written"} {
		if !strings.Contains(stderr, text) {
			t.Errorf("no %q in\n%s", text, stderr)
		}
	}
	if o.Count("/device") != 0 {
		t.Error("devices are read although their overrides are given")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v, %v", left, err)
	}
	if _, stdout, _, err := runImport(t, o, manifestImport{}); err != nil || !strings.HasPrefix(stdout, `{"app":`) {
		t.Errorf("to standard output: %v, %q", err, stdout)
	}
}

func TestManifestImportFails(t *testing.T) {
	two := strings.Replace(smallApp, `"name":"a=b","electron":false`, `"name":"other","public":true,"ios":false,"android":false,"electron":false`, 1)
	dir := t.TempDir()
	bad, numbers := filepath.Join(dir, "bad"), filepath.Join(dir, "numbers")
	if err := errors.Join(os.WriteFile(bad, []byte(`{"x":`), 0o600), os.WriteFile(numbers, []byte(`[1]`), 0o600)); err != nil {
		t.Fatal(err)
	}
	byID, nobody := filepath.Join(dir, "by id"), filepath.Join(dir, "nobody")
	if err := errors.Join(
		os.WriteFile(byID, []byte(`[{"device_id":"a","channel":"production"},{"device_id":"b","channel_id":7}]`), 0o600),
		os.WriteFile(nobody, []byte(`[{"channel":"production"}]`), 0o600)); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(dir, "none")
	for _, c := range []struct {
		name  string
		app   string
		fault upstreams.Fault
		run   manifestImport
		code  int
		text  string
		asks  bool // the server is asked first
	}{
		{"no key in the environment", smallApp, 0, manifestImport{key: "{env.NO_SUCH_KEY}"}, exitUsage, "NO_SUCH_KEY", false},
		{"no app id", smallApp, 0, manifestImport{app: "demo"}, exitUsage, "--app", false},
		{"no address", smallApp, 0, manifestImport{upstream: "capgo"}, exitUsage, "http(s)://host", false},
		{"platforms of an unknown channel", smallApp, 0, manifestImport{platforms: []string{"prod=ios"}}, exitUsage, `no channel "prod"; it has "a=b", "production"`, true},
		{"platforms without a channel", smallApp, 0, manifestImport{platforms: []string{"ios"}}, exitUsage, "<channel>=<platforms>", false},
		{"platforms that are none", smallApp, 0, manifestImport{platforms: []string{"production=ios,beos"}}, exitUsage, `"beos" is none of`, false},
		{"no file of overrides", smallApp, 0, manifestImport{overrides: none}, exitUsage, "--overrides: open " + none, false},
		{"overrides that are none", smallApp, 0, manifestImport{overrides: bad}, exitUsage, "JSON array", false},
		{"an override that is none", smallApp, 0, manifestImport{overrides: numbers}, exitUsage, "item 0", false},
		{"an override by the channel's id", smallApp, 0, manifestImport{overrides: byID}, exitUsage, `item 1: it has no "channel"`, false},
		{"an override of no device", smallApp, 0, manifestImport{overrides: nobody}, exitUsage, `item 0: it has no "device_id"`, false},
		{"platforms of which none is named", smallApp, 0, manifestImport{platforms: []string{"production="}}, exitUsage, `names no platform`, false},
		{"no file of learned answers", smallApp, 0, manifestImport{learned: none}, exitUsage, "--learned: open " + none, false},
		{"learned answers that are none", smallApp, 0, manifestImport{learned: bad}, exitUsage, "item 1", true},
		{"another app's key", smallApp, 0, manifestImport{app: "com.other.app"}, exitUpstream, "check --app", true},
		{"the server fails", smallApp, upstreams.Error500, manifestImport{}, exitUpstream, "status 500", true},
		{"it is no such server", smallApp, upstreams.Garbage, manifestImport{}, exitUpstream, "no JSON", true},
		{"several public channels", two, 0, manifestImport{}, exitRefused, "--platforms <channel>=ios,android,electron", true},
		{"no such directory", smallApp, 0, manifestImport{out: filepath.Join(none, "x.json")}, exitOutput, "writing the manifest", false},
		{"a directory", smallApp, 0, manifestImport{out: dir}, exitOutput, "is a directory", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := officialWith(t, c.app)
			o.Break(c.fault)
			code, stdout, _, err := runImport(t, o, c.run)
			if code != c.code || err == nil || !strings.Contains(err.Error(), c.text) || stdout != "" || o.Count("") > 0 != c.asks {
				t.Errorf("code %d, %v, %q, %d requests", code, err, stdout, o.Count(""))
			}
		})
	}
	t.Run("the file that is there stays", func(t *testing.T) {
		out := filepath.Join(dir, "old.json")
		if err := os.WriteFile(out, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, _, err := runImport(t, officialWith(t, smallApp), manifestImport{app: "com.other.app", out: out})
		if raw, readErr := os.ReadFile(out); code != exitUpstream || readErr != nil || string(raw) != "old" {
			t.Errorf("code %d, %v, %q, %v", code, err, raw, readErr)
		}
		if left, err := filepath.Glob(out + "?*"); err != nil || len(left) > 0 {
			t.Errorf("%q, %v", left, err)
		}
	})
	t.Run("a key on the command line", func(t *testing.T) {
		code, _, stderr, err := runImport(t, officialWith(t, smallApp), manifestImport{key: "some-other-key"})
		if code != exitUpstream || !strings.Contains(err.Error(), "invalid_apikey") || !strings.Contains(stderr, "other users") || strings.Contains(stderr, "some-other-key") {
			t.Errorf("code %d, %v\n%s", code, err, stderr)
		}
	})
}

// changing changes a channel while its rows are read, for a while.
type changing struct {
	http.RoundTripper
	o    *upstreams.Official
	left int
	errs []error
}

func (c *changing) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/bundle") && c.left > 0 {
		c.left--
		c.errs = append(c.errs, c.o.Change("com.demo.app", func(_, versions, channels, _ *[]map[string]any) {
			id := 10 + c.left
			*versions = append(*versions, map[string]any{"id": id, "name": fmt.Sprintf("1.1.%d", c.left), "r2_path": "a.zip"})
			(*channels)[0]["version"] = id
		}))
	}
	return c.RoundTripper.RoundTrip(r)
}

// TestManifestImportWhileItChanges: what is written was true at one moment.
func TestManifestImportWhileItChanges(t *testing.T) {
	for changes, want := range map[int]int{2: 0, 30: exitUpstream} {
		o := officialWith(t, smallApp)
		c := &changing{RoundTripper: o.Transport(), o: o, left: changes}
		var out, said bytes.Buffer
		i := manifestImport{
			upstream: o.URL, key: o.Key, app: "com.demo.app", out: "-", stdout: &out, stderr: &said,
			wrap: func(http.RoundTripper) http.RoundTripper { return c },
		}
		synctest.Test(t, func(t *testing.T) {
			code, err := i.run(t.Context())
			if code != want || errors.Join(c.errs...) != nil {
				t.Errorf("%d changes: code %d, %v, %v", changes, code, err, c.errs)
			}
		})
		if want == 0 && !strings.Contains(out.String(), `"version":10`) {
			t.Errorf("%s\n%s", out.String(), said.String())
		}
	}
}

func TestManifestImportCommand(t *testing.T) {
	cmd := newImportCommand()
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	cmd.SetArgs([]string{"--upstream", "https://capgo.test", "--app", "com.demo.app"})
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "--api-key is missing") {
		t.Errorf("%v", err)
	}
	cmd.SetArgs([]string{"--secret", "x"})
	if err := cmd.Execute(); err == nil {
		t.Error("an unknown flag is taken")
	}
}

// world makes up an app, and checks of its devices.
type world struct {
	*rand.Rand
	channels []string
	devices  []string
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func (w *world) flag() bool { return w.IntN(6) > 0 }

// app is a manifest of five channels. No two public ones serve a platform, which the server's own trigger sees to.
func (w *world) app() string {
	var versions, channels, devices []map[string]any
	for id := 1; id <= 8; id++ {
		v := map[string]any{"id": id, "name": pick(w.Rand, "1", "1", "2") + fmt.Sprintf(".%d.%d", w.IntN(3), id), "checksum": fmt.Sprint("sum", id)}
		switch w.IntN(6) {
		case 0:
			v["external_url"] = "https://cdn.test/x.zip?v=" + fmt.Sprint(id)
		case 1: // neither
		default:
			v["r2_path"] = fmt.Sprintf("orgs/o/apps/com.demo.app/%d.zip", id)
		}
		if w.IntN(2) == 0 {
			v["manifest"] = []map[string]any{{"file_name": "a.js", "file_hash": fmt.Sprint("h", id), "s3_path": fmt.Sprintf("orgs/o/apps/com.demo.app/delta/h%d_a%%20b.js", id)}}
		}
		if w.IntN(3) == 0 {
			v["min_update_version"], v["key_id"], v["session_key"] = "1.1.0", "key", "iv:key"
			v["link"], v["comment"] = "https://x.test", "<new> & shiny"
		}
		v["deleted"] = w.IntN(8) == 0
		versions = append(versions, v)
	}
	platforms := []string{"ios", "android", "electron"}
	public := map[string]int{}
	for _, p := range platforms {
		public[p] = w.IntN(7) % 3 // of channels 0 and 1; 2 for none
	}
	for i, name := range []string{"production", "desktop", "beta", "dev", "ünï"} {
		ch := map[string]any{
			"id": 10 + i, "name": name, "public": i < 2, "allow_device_self_set": i == 2 || i == 4,
			"disable_auto_update":              pick(w.Rand, "none", "none", "none", "none", "patch", "minor", "major", "version_number"),
			"disable_auto_update_under_native": w.IntN(3) == 0,
			"allow_emulator":                   w.flag(), "allow_device": w.flag(), "allow_dev": w.flag(), "allow_prod": w.IntN(5) > 0,
		}
		for _, p := range platforms {
			ch[p] = i < 2 && public[p] == i || i >= 2 && w.flag()
		}
		if w.IntN(6) > 0 {
			ch["version"] = 1 + w.IntN(8)
		}
		if w.IntN(3) == 0 {
			ch["rollout_version"], ch["rollout_enabled"], ch["rollout_percentage_bps"], ch["rollout_id"] = 1+w.IntN(8), w.flag(), w.IntN(10001), fmt.Sprint("r", w.Int())
			if w.IntN(4) == 0 {
				ch["rollout_paused_at"] = "2026-01-01T00:00:00Z"
			}
		}
		channels = append(channels, ch)
		w.channels = append(w.channels, name)
	}
	for i := range 30 {
		w.devices = append(w.devices, fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012d", i))
		if i < 10 {
			devices = append(devices, map[string]any{"device_id": w.devices[i], "channel_id": 10 + i%5})
		}
	}
	doc, err := json.Marshal(map[string]any{
		"app":      map[string]any{"app_id": "com.demo.app", "expose_metadata": w.flag()},
		"versions": versions, "channels": channels, "channel_devices": devices,
	})
	if err != nil {
		panic(err)
	}
	return string(doc)
}

func (w *world) check(plugins ...string) string {
	c := map[string]any{
		"app_id": "com.demo.app", "device_id": pick(w.Rand, w.devices...), "platform": pick(w.Rand, "ios", "android", "electron"),
		"version_name":   pick(w.Rand, "builtin", "0.9.0", "1.0.1", "1.1.2", "1.2.3", "2.1.4"),
		"version_build":  pick(w.Rand, "1.0.0", "1.1.0", "1", "2.0.0", "0.9.0"),
		"plugin_version": pick(w.Rand, plugins...), "is_prod": w.IntN(4) > 0, "is_emulator": w.IntN(4) == 0,
	}
	if w.IntN(2) == 0 {
		c["defaultChannel"] = pick(w.Rand, append(w.channels, "nope")...)
	}
	if w.IntN(4) == 0 {
		c["key_id"] = pick(w.Rand, "key", "other")
	}
	raw, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// ask asks the server itself.
func ask(t *testing.T, o *upstreams.Official, check string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, o.URL+"/updates", strings.NewReader(check))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := o.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v: %s", check, resp.StatusCode, err, raw)
	}
	return string(raw)
}

// unaddressed is an answer as an object, with the parts of addresses left out in which an edge differs.
func unaddressed(t *testing.T, answer, base, device string) map[string]any {
	t.Helper()
	answer = strings.NewReplacer(base, "", `\u0026`, "&", `\u003c`, "<", `\u003e`, ">").Replace(answer)
	answer = strings.NewReplacer("&device_id="+device, "", "&app_id=com.demo.app", "").Replace(answer)
	var members map[string]any
	if err := json.Unmarshal([]byte(answer), &members); err != nil {
		t.Fatal(err)
	}
	return members
}

// TestImportedManifestAnswersAlike: an edge with the imported manifest answers what the server does, whether the platforms
// of channels come from options or, like delta lists, from learned answers.
func TestImportedManifestAnswersAlike(t *testing.T) {
	asked, offers, lists, untold := 0, 0, 0, 0
	for seed := range uint64(12) {
		w := &world{Rand: rand.New(rand.NewPCG(seed, 7))}
		doc := w.app()
		o := officialWith(t, doc)
		var learned strings.Builder
		for range 2500 {
			check := w.check("8.51.14")
			fmt.Fprintf(&learned, "{\"request\":%s,\"answer\":%s}\n", check, ask(t, o, check))
		}
		run := manifestImport{learned: "-", stdin: strings.NewReader(learned.String())}
		if seed%2 == 0 {
			run.platforms = platformsOf(t, doc)
		}
		code, imported, stderr, err := runImport(t, o, run)
		if code != 0 {
			t.Fatalf("seed %d: %v\n%s", seed, err, stderr)
		}
		m, err := resolver.ParseManifest([]byte(imported))
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			check := w.check("8.51.14", "8.51.14", "7.50.0", "6.40.0", "6.0.0", "5.9.0", "4.0.0", "0.0.1", "10.0.0")
			var p resolver.CheckParser
			c, err := p.Parse([]byte(check))
			if err != nil {
				t.Fatal(err)
			}
			d := m.Decide(&c)
			got := unaddressed(t, string(resolver.AppendResponse(nil, &d, "https://edge.test")), "https://edge.test", c.DeviceID)
			want := unaddressed(t, ask(t, o, check), o.URL, c.DeviceID)
			diff := cmp.Diff(want, got)
			switch lacks := got["error"] == "no_bundle" || want["manifest"] != nil && got["manifest"] == nil; {
			case diff == "":
			case lacks && strings.Contains(stderr, "the delta lists of these bundles are not told"):
				untold++ // of a bundle that no device was offered while the edge learned
			default:
				t.Errorf("seed %d, %s (-server +edge):\n%s", seed, check, diff)
			}
			asked++
			if d.Outcome == resolver.Offer {
				offers++
			}
			if want["manifest"] != nil {
				lists++
			}
		}
	}
	t.Logf("%d checks, %d offers, %d with delta lists, %d of bundles that were not told", asked, offers, lists, untold)
	if offers < asked/10 || lists == 0 || untold > asked/50 {
		t.Errorf("of %d checks %d are offers, %d with delta lists: too few to tell anything", asked, offers, lists)
	}
}

// platformsOf are the options that say what the API does not.
func platformsOf(t *testing.T, doc string) (options []string) {
	t.Helper()
	var m struct {
		Channels []struct {
			Name                   string
			IOS, Android, Electron bool
		}
	}
	if err := json.Unmarshal([]byte(doc), &m); err != nil {
		t.Fatal(err)
	}
	for _, ch := range m.Channels {
		text, none := ch.Name+"=", "none"
		for name, serves := range map[string]bool{"ios": ch.IOS, "android": ch.Android, "electron": ch.Electron} {
			if serves {
				text, none = text+name+",", ""
			}
		}
		options = append(options, strings.TrimSuffix(text, ",")+none)
	}
	return options
}
