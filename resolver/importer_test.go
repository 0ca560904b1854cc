package resolver

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the management API tells of an app with the common cases: a stable channel, a rollout, a deleted bundle, the
// native one.
var (
	apiApp      = `{"app_id":"com.demo.app","expose_metadata":true,"name":"Demo","block_provider_infra_requests":null}`
	apiChannels = []string{
		`{"id":11,"name":"production","app_id":"com.demo.app","public":true,"disableAutoUpdate":"minor",
			"disableAutoUpdateUnderNative":false,"allow_emulator":false,"version":{"id":1,"name":"1.0.0"},"rollout_version":2,
			"rollout_id":"r","rollout_version_info":{"id":2,"name":"1.1.0"},"rolloutPercentageBps":2500,"rolloutEnabled":true,
			"rolloutPausedAt":null,"autoPauseEnabled":true,"autoPauseWindowMinutes":30}`,
		`{"id":12,"name":"beta","allow_device_self_set":true,"version":{"id":2,"name":"1.1.0"}}`,
		`{"id":13,"name":"old","version":{"id":3,"name":"0.9.0"}}`,
		`{"id":14,"name":"native","version":null}`,
	}
	apiBundles = []string{
		`{"id":2,"name":"1.1.0","r2_path":"orgs/o/apps/com.demo.app/1.1.0.zip","checksum":"c2","session_key":"s","key_id":"k","link":"https://x.test","manifest_count":2,"deleted":false}`,
		`{"id":1,"name":"1.0.0","external_url":"https://cdn.test/a.zip?b=c&d","checksum":null,"min_update_version":"1.0.0"}`,
	}
	apiDevices = []string{
		`{"device_id":"AAAAAAAA-0000-4000-8000-000000000001","channel":"beta"}`,
		`{"device_id":"aaaaaaaa-0000-4000-8000-000000000002","channel":null}`,
		`{"device_id":"aaaaaaaa-0000-4000-8000-000000000003","channel":"gone"}`,
	}
)

func importer(t *testing.T, channels, bundles, devices []string) *Importer {
	t.Helper()
	m := NewImporter("com.demo.app")
	errs := []error{m.AddApp([]byte(apiApp))}
	for _, row := range channels {
		errs = append(errs, m.AddChannel([]byte(row)))
	}
	for _, row := range bundles {
		errs = append(errs, m.AddBundle([]byte(row)))
	}
	for _, row := range devices {
		errs = append(errs, m.AddDevice([]byte(row)))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestImport(t *testing.T) {
	m := importer(t, slices.Concat(apiChannels, apiChannels[:1]), slices.Concat(apiBundles, apiBundles), slices.Concat(apiDevices, apiDevices))
	if err := m.SetPlatforms("beta", []string{"ios"}); err != nil {
		t.Fatal(err)
	}
	if !m.Missing() {
		t.Error("0.9.0 is not listed, and not missed")
	}
	doc, notes, err := m.Document()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"app":{"app_id":"com.demo.app","expose_metadata":true},
"versions":[
{"id":2,"name":"1.1.0","r2_path":"orgs/o/apps/com.demo.app/1.1.0.zip","checksum":"c2","session_key":"s","key_id":"k","link":"https://x.test","manifest_count":2},
{"id":1,"name":"1.0.0","external_url":"https://cdn.test/a.zip?b=c&d","min_update_version":"1.0.0"},
{"id":3,"name":"0.9.0","deleted":true}],
"channels":[
{"allow_emulator":false,"android":true,"auto_pause_enabled":true,"auto_pause_window_minutes":30,"disable_auto_update":"minor","disable_auto_update_under_native":false,"electron":true,"id":11,"ios":true,"name":"production","public":true,"rollout_enabled":true,"rollout_id":"r","rollout_percentage_bps":2500,"rollout_version":2,"version":1},
{"allow_device_self_set":true,"android":false,"electron":false,"id":12,"ios":true,"name":"beta","version":2},
{"android":true,"electron":true,"id":13,"ios":true,"name":"old","version":3},
{"android":true,"electron":true,"id":14,"ios":true,"name":"native"}],
"channel_devices":[
{"channel_id":12,"device_id":"aaaaaaaa-0000-4000-8000-000000000001"}]}
`
	if diff := cmp.Diff(want, string(doc)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	all := strings.Join(notes, "\n")
	for _, text := range []string{
		`"old" points at the bundle "0.9.0", which was deleted`, `"gone"`, `assumed: "production" for ios`, "delta lists", "1.1.0",
		"drawn", "2 overrides of devices", "updatePackage",
	} {
		if !strings.Contains(all, text) {
			t.Errorf("no note of %s in\n%s", text, all)
		}
	}
	if strings.Contains(all, `"beta" for`) {
		t.Error("what was told is said to be assumed")
	}
}

// learnedCheck is a check of a device with a new plugin.
func learnedCheck(platform, defaultChannel, versionName string) []byte {
	return []byte(fmt.Sprintf(`{"app_id":"com.demo.app","device_id":"bbbbbbbb-0000-4000-8000-000000000001","platform":%q,"defaultChannel":%q,
		"version_name":%q,"version_build":"1.0.0","plugin_version":"8.51.14"}`, platform, defaultChannel, versionName))
}

// TestImportLearns: which platforms channels serve, and delta lists, out of answers.
func TestImportLearns(t *testing.T) {
	two := []string{
		`{"id":1,"name":"phones","public":true,"version":{"id":1,"name":"1.0.0"}}`,
		`{"id":2,"name":"desks","public":true,"version":{"id":2,"name":"1.1.0"}}`,
		`{"id":3,"name":"beta","allow_device_self_set":true,"version":{"id":2,"name":"1.1.0"}}`,
		`{"id":4,"name":"bare","public":true}`,
	}
	const offer = `{"version":%q,"url":"https://up.test/files/read/attachments/a.zip?key=c"}`
	const base = "https://up.test/f/files/read/attachments/orgs/o/apps/com.demo.app/delta/"
	withFiles := `{"version":"1.1.0","url":"https://404.capgo.app/no.zip","manifest":[
		{"file_name":"a b.js","file_hash":"h1","download_url":"` + base + `h1_a%20b.js?key=2&device_id=x"},
		{"file_name":"c.js.br","file_hash":"h2","download_url":"` + base + `h2_c.js.br?key=2&device_id=x"}]}`
	m := importer(t, two, apiBundles, apiDevices[:1])
	if _, _, err := m.Document(); err == nil {
		t.Fatal("several public channels, and no word on which serves what")
	} else if ambiguous, ok := errors.AsType[*AmbiguousPlatforms](err); !ok || len(ambiguous.Channels) != 3 || !strings.Contains(err.Error(), "--platforms") {
		t.Errorf("%v", err)
	}

	m = importer(t, two, apiBundles, apiDevices[:1])
	again := importer(t, two, apiBundles, apiDevices[:1])
	forced := func(check []byte) string {
		return strings.Replace(string(check), "bbbbbbbb-0000", "aaaaaaaa-0000", 1) // is in beta, whatever it asks for
	}
	for _, o := range []struct{ request, answer string }{
		{string(learnedCheck("ios", "", "0.1.0")), fmt.Sprintf(offer, "1.1.0")}, // outdated by the next
		{string(learnedCheck("ios", "", "0.1.0")), fmt.Sprintf(offer, "1.0.0")},
		{string(learnedCheck("android", "", "1.0.0")), `{"error":"no_new_version_available","kind":"up_to_date"}`},
		{string(learnedCheck("electron", "", "0.1.0")), withFiles},
		{string(learnedCheck("ios", "beta", "0.1.0")), `{"error":"disable_auto_update_to_major","version":"1.1.0"}`},
		{string(learnedCheck("android", "beta", "0.1.0")), `{"error":"no_channel"}`},
		{strings.Replace(string(learnedCheck("electron", "beta", "0.1.0")), "8.51.14", "7.1.0", 1), `{"error":"no_channel"}`}, // its own choice, perhaps
		{forced(learnedCheck("electron", "phones", "0.1.0")), `{"error":"disabled_platform_electron","version":"1.1.0"}`},
		{forced(learnedCheck("ios", "phones", "0.1.0")), fmt.Sprintf(offer, "1.1.0")},
		{string(learnedCheck("tv", "", "0.1.0")), fmt.Sprintf(offer, "1.0.0")},
	} {
		if err := m.Observe([]byte(o.request), []byte(o.answer)); err != nil {
			t.Fatal(err)
		}
		request, answer := observed(t, o.request, o.answer)
		if err := again.Observe(request, answer); err != nil {
			t.Fatal(err)
		}
	}
	doc, _, err := m.Document()
	if same, _, _ := again.Document(); string(same) != string(doc) {
		t.Errorf("observations tell %s, and the answers themselves %s", same, doc)
	}
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Versions []struct {
			Name  string
			Files []map[string]string `json:"manifest"`
		}
		Channels []struct {
			Name                   string
			IOS, Android, Electron bool
		}
	}
	if err := json.Unmarshal(doc, &got); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"{phones true true false}", "{desks false false true}", "{beta true false false}", "{bare false false false}"} {
		if text := fmt.Sprint(got.Channels[i]); text != want {
			t.Errorf("%s, want %s", text, want)
		}
	}
	want := []map[string]string{
		{"file_name": "a b.js", "file_hash": "h1", "s3_path": "orgs/o/apps/com.demo.app/delta/h1_a%20b.js"},
		{"file_name": "c.js.br", "file_hash": "h2", "s3_path": "orgs/o/apps/com.demo.app/delta/h2_c.js.br"},
	}
	if diff := cmp.Diff(want, got.Versions[0].Files); diff != "" {
		t.Error(diff)
	}
}

// TestImportKeys: a key is the text in the address. The first two are as the official upload tool makes them, and as the official
// server answers them (protocol 3.1; vector bundle.manifest-legacy-encoded-name).
func TestImportKeys(t *testing.T) {
	const delta = "orgs/o/apps/com.demo.app/delta/"
	for _, tt := range []struct{ name, path, want string }{
		{"escaped by the upload tool", delta + "h_img/a%20b%2Bc.png", delta + "h_img/a%20b%2Bc.png"},
		{"of another name", delta + "h_js/%C3%A9t%C3%A9.js", delta + "h_js/%C3%A9t%C3%A9.js"},
		{"not escaped", delta + "h_100%.txt", delta + "h_100%.txt"},
		{"no key may be so", delta + "../h.js", ""},
		{"stand-in of an edge", "ext/com.demo.app/00", ""},
		{"stand-in of an edge, in escapes", "%65xt/com.demo.app/00", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := importer(t, apiChannels[1:2], apiBundles, nil)
			answer := `{"version":"1.1.0","url":"https://404.capgo.app/no.zip","manifest":[
				{"file_name":"a","file_hash":"h","download_url":"https://up.test/f/files/read/attachments/` + tt.path + `?key=2"}]}`
			if err := m.Observe(learnedCheck("ios", "beta", "0.1.0"), []byte(answer)); err != nil {
				t.Fatal(err)
			}
			doc, _, err := m.Document()
			if err != nil {
				t.Fatal(err)
			}
			if has := strings.Contains(string(doc), `"s3_path"`); has != (tt.want != "") || has && !strings.Contains(string(doc), `"s3_path":"`+tt.want+`"`) {
				t.Errorf("%s", doc)
			}
		})
	}
}

// TestImportOptionsBeatAnswers: what the operator says counts more than what was learned.
func TestImportOptionsBeatAnswers(t *testing.T) {
	m := importer(t, apiChannels, apiBundles, nil)
	if err := m.SetPlatforms("production", []string{"android"}); err != nil {
		t.Fatal(err)
	}
	if err := m.Observe(learnedCheck("ios", "", "0.1"), []byte(`{"version":"1.0.0"}`)); err != nil {
		t.Fatal(err)
	}
	doc, _, err := m.Document()
	if err != nil || !strings.Contains(string(doc), `"ios":false,"name":"production"`) {
		t.Errorf("%v\n%s", err, doc)
	}
}

func TestImportRefuses(t *testing.T) {
	m := importer(t, apiChannels, apiBundles, nil)
	for name, err := range map[string]error{
		"another app":         m.AddApp([]byte(`{"app_id":"com.other"}`)),
		"a channel of text":   m.AddChannel([]byte(`"production"`)),
		"a nameless channel":  m.AddChannel([]byte(`{"id":9}`)),
		"a channel of no id":  m.AddChannel([]byte(`{"name":"x"}`)),
		"a bundle of text":    m.AddBundle([]byte(`{"id":"one","name":"x"}`)),
		"a nameless bundle":   m.AddBundle([]byte(`{"id":1}`)),
		"a device of numbers": m.AddDevice([]byte(`{"device_id":1}`)),
		"an unknown channel":  m.SetPlatforms("prod", []string{"ios"}),
		"an unknown platform": m.SetPlatforms("production", []string{"tv"}),
		"an answer of text":   m.Observe([]byte(`{}`), []byte(`x`)),
	} {
		if err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	bad := importer(t, []string{`{"id":1,"name":"a","disableAutoUpdate":"sometimes"}`}, nil, nil)
	if _, _, err := bad.Document(); err == nil || !strings.Contains(err.Error(), "$.channels[0].disable_auto_update") {
		t.Errorf("%v", err)
	}
}

// FuzzImport: whatever rows hold, what comes out validates.
func FuzzImport(f *testing.F) {
	f.Add(apiChannels[0], apiBundles[0], apiDevices[0], string(learnedCheck("ios", "", "1.0.0")), `{"version":"1.0.0"}`)
	f.Add(apiChannels[1], apiBundles[1], apiDevices[2], string(learnedCheck("ios", "beta", "1.0.0")), `{"error":"no_channel"}`)
	f.Fuzz(func(t *testing.T, channel, bundle, device, request, answer string) {
		m := NewImporter("com.demo.app")
		_ = m.AddChannel([]byte(channel))
		_ = m.AddBundle([]byte(bundle))
		_ = m.AddDevice([]byte(device))
		_ = m.Observe([]byte(request), []byte(answer))
		doc, _, err := m.Document()
		if err != nil {
			return
		}
		if _, err := ParseManifest(doc); err != nil {
			t.Errorf("%v\n%s", err, doc)
		}
	})
}
