package caddymodule_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/capgo-edge/capgo-edge/caddymodule"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest/upstreams"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// standIn is an upstream of one make with something published, and checks that it answers in different ways.
type standIn struct {
	server *upstreams.Server
	checks []string
}

const otherDevice = "11119a6b-eefe-490a-9c60-8e965132ae51"

func standIns(t *testing.T) map[string]*standIn {
	t.Helper()
	zip1, zip2 := randomBytes(70<<10), randomBytes(300<<10)
	official := upstreams.NewOfficial()
	official.Start(t)
	manifest := fmt.Sprintf(`{"app":{"app_id":%q},"versions":[
		{"id":1,"name":"1.0.1","r2_path":"orgs/o/apps/%[1]s/1.zip","checksum":%q,"manifest":[
			{"file_name":"index.html","file_hash":%q,"s3_path":"orgs/o/apps/%[1]s/delta/index.html"}]},
		{"id":2,"name":"2.0.0","r2_path":"orgs/o/apps/%[1]s/2.zip","checksum":%q}],
		"channels":[{"id":1,"name":"production","public":true,"version":1},{"id":2,"name":"beta","version":2,"allow_device_self_set":true}]}`,
		appID, digest(zip1), digest([]byte("<html>")), digest(zip2))
	if err := official.Publish([]byte(manifest)); err != nil {
		t.Fatal(err)
	}
	official.Put("orgs/o/apps/"+appID+"/1.zip", zip1)
	official.Put("orgs/o/apps/"+appID+"/2.zip", zip2)
	official.Put("orgs/o/apps/"+appID+"/delta/index.html", []byte("<html>"))

	lite := upstreams.NewLite()
	lite.Start(t)
	lite.Publish(upstreams.LiteBundle{AppID: appID, Channel: "production", Version: "1.0.1", Content: zip1})

	goServer := upstreams.NewGoServer()
	goServer.Start(t)
	for code, version := range map[string]string{"10": "1.0.1", "11": "1.0.2"} {
		goServer.Publish(upstreams.GoKey{Platform: "android", AppID: appID, VersionBuild: "1.0.0", VersionCode: code},
			upstreams.GoBundle{Version: version, Content: zip2, Signature: "sig"})
	}
	minimal := upstreams.NewMinimal()
	minimal.Start(t)
	minimal.Publish(appID, upstreams.MinimalVersion{Version: "1.0.1", Content: zip1, Checksum: true})
	plugin := upstreams.NewPluginTest()
	plugin.Start(t)
	plugin.Play(upstreams.Scenario{Version: "1.0.1", Zip: zip1, Files: map[string][]byte{"index.html": []byte("<html>")}})

	common := []string{
		check(), check("version_name", "1.0.0"), check("version_name", "1.0.1"), check("device_id", otherDevice),
		check("version_name", "1.0.1", "device_id", otherDevice), check("version_code", "11"), check("platform", "ios"),
		check("app_id", "no.such.app"), check("defaultChannel", "beta"), check("defaultChannel", "none"), check("is_prod", nil),
		check("plugin_version", "6.0.0"), check("device_id", nil), check("version_build", "1.2.3.4"), `{}`, `[]`, `{"app_id":"` + appID + `"}`,
	}
	return map[string]*standIn{
		"official":           {&official.Server, common},
		"capgo-update-lite":  {&lite.Server, common},
		"capgo-server":       {&goServer.Server, common},
		"minimal":            {&minimal.Server, common},
		"plugin test server": {&plugin.Server, common},
	}
}

// TestRelayIsTransparent: for each make of upstream, a client sees with the edge what it sees without, except the addresses,
// which lead to the same bytes. The edge is asked thrice: the second time it answers from memory.
func TestRelayIsTransparent(t *testing.T) {
	for name, s := range standIns(t) {
		t.Run(name, func(t *testing.T) {
			e := edgetest.Start(t, edgetest.Config{
				Global: "servers {\n trusted_proxies static private_ranges\n }",
				Site:   fmt.Sprintf("capgo_edge %s {\n relay {\n unknown 1000\n }\n }", s.server.URL),
			})
			client, direct := e.Client(t), &edgetestDirect{t: t, base: s.server.URL}
			for i, body := range s.checks {
				want, again := direct.post("/updates", body), direct.post("/updates", body)
				for round := range 3 {
					// What is none by the protocol, and unknown apps, are passed on a few times for one client only.
					got := client.Post("/updates", body, "X-Forwarded-For", fmt.Sprintf("192.0.2.%d", 3*i+round))
					diff := s.compare(t, client, direct, body, want, got)
					if diff != "" && s.compare(t, client, direct, body, again, got) != "" { // some say the same thing in two ways
						t.Errorf("check %d %s, round %d:\n%s", i, body, round, diff)
					}
				}
			}
			asked := s.server.Count("/updates")
			t.Logf("%d checks, each once without and three times with the edge: %d requests to the upstream", len(s.checks), asked)
			e.Stop()
		})
	}
}

// edgetestDirect asks an upstream without the edge.
type edgetestDirect struct {
	t    *testing.T
	base string
}

func (d *edgetestDirect) post(path, body string) *edgetest.Response {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodPost, d.base+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return d.do(req)
}

func (d *edgetestDirect) get(address string) *edgetest.Response {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, address, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return d.do(req)
}

func (d *edgetestDirect) do(req *http.Request) *edgetest.Response {
	d.t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return &edgetest.Response{Status: resp.StatusCode, Header: resp.Header, Body: body, Err: err}
}

// compare says how two answers differ to a client, beyond their addresses.
func (s *standIn) compare(t *testing.T, edge *edgetest.Client, direct *edgetestDirect, body string, want, got *edgetest.Response) string {
	t.Helper()
	if got.Status != want.Status {
		return fmt.Sprintf("status %d, without the edge %d: %s", got.Status, want.Status, got.Body)
	}
	var w, g map[string]any
	if json.Unmarshal(want.Body, &w) != nil {
		if !bytes.Equal(got.Body, want.Body) {
			return fmt.Sprintf("body %q, without the edge %q", got.Body, want.Body)
		}
		return ""
	}
	if err := json.Unmarshal(got.Body, &g); err != nil {
		return fmt.Sprintf("body %q is no object", got.Body)
	}
	if _, ok := w["kind"]; !ok && w["error"] != nil {
		delete(g, "kind") // the edge adds it
	}
	wantFiles, gotFiles := takeAddresses(w), takeAddresses(g)
	if len(wantFiles) != len(gotFiles) {
		return fmt.Sprintf("%d addresses, without the edge %d", len(gotFiles), len(wantFiles))
	}
	for i := range wantFiles {
		content, through := direct.get(wantFiles[i]), edge.Get(gotFiles[i])
		if content.Status != through.Status || !bytes.Equal(content.Body, through.Body) {
			return fmt.Sprintf("%s: status %d, %d bytes; without the edge %s: %d, %d bytes",
				gotFiles[i], through.Status, len(through.Body), wantFiles[i], content.Status, len(content.Body))
		}
		if content.Status == http.StatusOK && s.isCheck(body) && !strings.HasPrefix(gotFiles[i], edge.Base) {
			return gotFiles[i] + " does not come through the edge"
		}
	}
	return cmp.Diff(w, g)
}

// isCheck reports whether a body is a check by the protocol. What is none is passed through with its answer as it came.
func (s *standIn) isCheck(body string) bool {
	_, err := new(resolver.CheckParser).Parse([]byte(body))
	return err == nil
}

// takeAddresses takes all addresses out of an answer.
func takeAddresses(answer map[string]any) (addresses []string) {
	if address, ok := answer["url"].(string); ok && strings.HasPrefix(address, "http") {
		addresses = append(addresses, address)
		answer["url"] = "address"
	}
	files, _ := answer["manifest"].([]any)
	for _, f := range files {
		file := f.(map[string]any)
		addresses = append(addresses, file["download_url"].(string))
		file["download_url"] = "address"
	}
	return addresses
}

// TestRelayObjectsOnce: the upstream hands out each object once, however many devices are told of it, with an address that
// is signed anew for each check.
func TestRelayObjectsOnce(t *testing.T) {
	lite := upstreams.NewLite()
	lite.Start(t)
	content := randomBytes(200 << 10)
	lite.Publish(upstreams.LiteBundle{AppID: appID, Channel: "production", Version: "1.0.1", Content: content})
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + lite.URL + " {\n relay {\n per_device on\n }\n }"})
	addresses := map[string]bool{}
	for i := range 20 {
		r := e.Client(t).Post("/updates", check("device_id", numbered(i), "version_name", "1.0.0"))
		address, _ := r.JSON(t)["url"].(string)
		addresses[address] = true
		if got := e.Client(t).Get(address); got.Status != 200 || !bytes.Equal(got.Body, content) {
			t.Fatalf("%s: status %d, %d bytes", address, got.Status, len(got.Body))
		}
	}
	downloads := 0
	for path, n := range lite.Counts() {
		if path != "/updates" && path != "/stats" {
			downloads += n
		}
	}
	if len(addresses) != 1 || downloads != 1 || lite.Count("/updates") != 20 {
		t.Errorf("%d addresses, %d downloads, %d checks at the upstream", len(addresses), downloads, lite.Count("/updates"))
	}
}

// TestRelayOutage: while the upstream is down, last good answers and stored objects go on, also after a restart; what was
// never asked is a 503 that clients read, and never a 429. Statistics are delivered when it is back.
func TestRelayOutage(t *testing.T) {
	for _, fault := range []upstreams.Fault{upstreams.Down, upstreams.Error500, upstreams.Empty, upstreams.Garbage, upstreams.NoDatabase} {
		t.Run(fmt.Sprint(fault), func(t *testing.T) {
			s := standIns(t)["official"]
			config := edgetest.Config{Site: "capgo_edge " + s.server.URL + " {\n relay {\n fresh 50ms\n stale_while 50ms\n }\n }"}
			e := edgetest.New(t)
			load(t, e, config)
			client := e.Client(t)
			for i := range 3 { // an answer is everybody's, and kept over a restart, once three devices got it
				client.Post("/updates", check("device_id", numbered(i)))
			}
			before := client.Post("/updates", check())
			address := before.JSON(t)["url"].(string)
			bundle := client.Get(address)
			if bundle.Status != 200 {
				t.Fatalf("status %d", bundle.Status)
			}
			time.Sleep(1500 * time.Millisecond) // until what was learned is on disk
			s.server.Break(fault)
			for start := range 2 {
				for i := range 10 {
					if r := client.Post("/updates", check()); r.Status != 200 || !bytes.Equal(r.Body, before.Body) {
						t.Fatalf("start %d, check %d: status %d, %s", start, i, r.Status, r.Body)
					}
					time.Sleep(20 * time.Millisecond)
				}
				if r := client.Get(address); r.Status != 200 || !bytes.Equal(r.Body, bundle.Body) {
					t.Errorf("status %d, %d bytes", r.Status, len(r.Body))
				}
				r := client.Post("/updates", check("app_id", "org.never.asked"))
				if fault != upstreams.NoDatabase && (r.Status != 503 || r.JSON(t)["error"] != "service_unavailable") {
					t.Errorf("never asked: status %d, %s", r.Status, r.Body)
				}
				if r := client.Post("/stats", statsEvent("version_name", "1.0.1")); r.Status != 200 {
					t.Errorf("an event: status %d, %s", r.Status, r.Body)
				}
				e.Stop()
				load(t, e, config)
			}
			s.server.Heal()
			edgetest.Eventually(t, "the events arrive", func() bool { return s.server.Count("/functions/v1/stats")+s.server.Count("/stats") > 0 })
		})
	}
}

// TestRelayWebhook: a signed delivery has the next check ask the upstream, and another does not.
func TestRelayWebhook(t *testing.T) {
	s := standIns(t)["official"]
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + s.server.URL + " {\n relay {\n fresh 10m\n webhook_secret secret\n }\n }"})
	client := e.Client(t)
	client.Post("/updates", check())
	asked := s.server.Count("/updates")
	body := fmt.Sprintf(`{"event":"channels.UPDATE","event_id":"1","data":{"table":"channels","operation":"UPDATE","new_record":{"app_id":%q}}}`, appID)
	if r := client.Post("/webhooks/capgo", body, "X-Capgo-Signature", "v1=1.00"); r.Status != 401 {
		t.Errorf("a wrong signature: status %d, %s", r.Status, r.Body)
	}
	client.Post("/updates", check())
	if n := s.server.Count("/updates"); n != asked {
		t.Errorf("%d requests for a check that was fresh", n-asked)
	}
	if r := client.Post("/webhooks/capgo", body, "X-Capgo-Signature", signedWebhook("secret", body)); r.Status != 200 {
		t.Errorf("status %d, %s", r.Status, r.Body)
	}
	client.Post("/updates", check())
	if n := s.server.Count("/updates"); n != asked+1 {
		t.Errorf("%d requests after the webhook", n-asked)
	}
}

// signedWebhook is the signature of a delivery (protocol 6.2).
func signedWebhook(secret, body string) string {
	at := fmt.Sprint(time.Now().Unix())
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(at + "." + body))
	return "v1=" + at + "." + hex.EncodeToString(mac.Sum(nil))
}

// TestRelayBesideManifests: with both, the manifest decides, and the upstream is asked only for apps that have none.
func TestRelayBesideManifests(t *testing.T) {
	own := newSite(t)
	own.publish("1.3.0", 100)
	s := standIns(t)["minimal"]
	e := edgetest.Start(t, edgetest.Config{Site: fmt.Sprintf("capgo_edge {\n origin file %s\n upstream %s\n stats off\n }", own.dir, s.server.URL)})
	client := e.Client(t)
	if version, _ := offered(t, client); version != "1.3.0" {
		t.Errorf("version %s", version)
	}
	if n := s.server.Count("/updates"); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
	client.Post("/updates", check("app_id", "org.other.app"))
	if n := s.server.Count("/updates"); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// TestRelayApps: an app outside the list never reaches the upstream, by no path.
func TestRelayApps(t *testing.T) {
	s := standIns(t)["official"]
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + s.server.URL + " {\n apps org.example.*\n }"})
	client := e.Client(t)
	for _, test := range [][3]string{
		{"POST", "/updates", check()},
		{"POST", "/updates/manifest_size", check()},
		{"POST", "/stats", statsEvent()},
		{"POST", "/channel_self", check("channel", "beta")},
		{"PUT", "/channel_self", check()},
		{"POST", "/updates", `{"app_id":"com.demo.app"}`},
		{"GET", "/channel_self?platform=ios&app_id=" + appID, ""},
		{"GET", "/files/read/attachments/orgs/o/apps/" + appID + "/1.zip", ""},
	} {
		if r := client.Do(test[0], test[1], test[2]); r.Status/100 == 2 {
			t.Errorf("%s %s: status %d, %s", test[0], test[1], r.Status, r.Body)
		}
	}
	if counts := s.server.Counts(); len(counts) > 0 {
		t.Errorf("the upstream was asked for %v", slices.Collect(maps.Keys(counts)))
	}
	if _, err := os.Stat(e.Storage); err != nil {
		t.Error(err)
	}
}

// TestRelayFirstHerd: many phones that ask for an app of which nothing is known yet get its answer, all of them, while the
// upstream takes its time.
func TestRelayFirstHerd(t *testing.T) {
	s := standIns(t)["official"]
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + s.server.URL + " {\n relay {\n unknown 1\n }\n }"})
	s.server.Slow(200 * time.Millisecond)
	var wg sync.WaitGroup
	for i := range 100 {
		client := e.Client(t)
		wg.Go(func() {
			r := client.Post("/updates", check("version_name", "1.0.0", "device_id", numbered(i)))
			if r.Status != 200 {
				t.Errorf("status %d, %s", r.Status, r.Body)
			}
		})
	}
	wg.Wait()
	if n := s.server.Count("/updates"); n > 20 {
		t.Errorf("%d requests to the upstream", n)
	}
}

// TestRelayMakes: answers are shared between devices of different version_code only where all servers are official ones, also
// after a restart.
func TestRelayMakes(t *testing.T) {
	official, second, foreign := standIns(t)["official"], standIns(t)["official"], standIns(t)["minimal"]
	for _, test := range []struct {
		name   string
		other  *standIn
		shares bool
	}{{"two official servers", second, true}, {"an official server and another", foreign, false}} {
		t.Run(test.name, func(t *testing.T) {
			config := edgetest.Config{Site: fmt.Sprintf("capgo_edge {\n upstream %s\n upstream %s\n stats off\n relay {\n fresh 10m\n }\n }",
				strings.Replace(official.server.URL, "http://127", "HTTP://127", 1)+"/", test.other.server.URL)}
			e := edgetest.New(t)
			load(t, e, config)
			ask := func(code int) int {
				t.Helper()
				before := official.server.Count("/updates")
				r := e.Client(t).Post("/updates", check("version_name", "0.9.0", "version_code", fmt.Sprint(code)))
				if address, _ := r.JSON(t)["url"].(string); !strings.HasPrefix(address, e.HTTP) {
					t.Fatalf("status %d, %s", r.Status, r.Body)
				}
				return official.server.Count("/updates") - before
			}
			ask(1)
			official.server.Break(upstreams.Down) // the other one answers
			ask(2)
			official.server.Heal()
			for code := range 3 {
				ask(10 + code)
			}
			if n := ask(20); (n == 0) != test.shares {
				t.Errorf("%d requests for another version_code", n)
			}
			time.Sleep(1500 * time.Millisecond) // until what was learned is on disk
			e.Stop()
			load(t, e, config)
			ask(10)
			if n := ask(21); (n == 0) != test.shares {
				t.Errorf("%d requests for another version_code after a restart", n)
			}
			e.Stop()
		})
	}
}

// TestRelayLearned: what an edge has learned tells the importer delta lists.
func TestRelayLearned(t *testing.T) {
	s := standIns(t)["official"]
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + s.server.URL + " {\n relay {\n fresh 10m\n }\n }"})
	for i := range 3 {
		e.Client(t).Post("/updates", check("device_id", numbered(i), "custom_id", "jane"))
	}
	var lines string
	edgetest.Eventually(t, "it is kept", func() bool {
		lines = caddymodule.LearnedLines(t.Context(), appID)
		return lines != ""
	})
	m := resolver.NewImporter(appID)
	for line := range strings.Lines(lines) {
		var pair struct{ Request, Answer json.RawMessage }
		if err := json.Unmarshal([]byte(line), &pair); err != nil {
			t.Fatal(err)
		}
		if err := m.Observe(pair.Request, pair.Answer); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(lines, `"file_name":"index.html"`) || strings.Contains(lines, "jane") {
		t.Error(lines)
	}
}

// TestRelayUnknownApps: a flood of made-up app ids, by any path, costs the upstream a few requests for each client and the
// configured trickle in all; the phone gets no 429 that the upstream did not say.
func TestRelayUnknownApps(t *testing.T) {
	s := standIns(t)["official"]
	e := edgetest.Start(t, edgetest.Config{
		Global: "servers {\n trusted_proxies static private_ranges\n }",
		Site:   "capgo_edge " + s.server.URL + " {\n relay {\n unknown 10\n }\n }",
	})
	client := e.Client(t)
	if r := client.Post("/updates", check("version_name", "1.0.0"), "X-Forwarded-For", "198.51.100.1"); r.Status != 200 {
		t.Fatalf("a real app: status %d, %s", r.Status, r.Body)
	}
	before := len(s.server.Requests("/updates"))
	for i := range 100 {
		app := fmt.Sprintf("com.made.up%d", i)
		for _, request := range [][3]string{
			{"POST", "/updates", check("app_id", app)},
			{"POST", "/updates/manifest_size", check("app_id", app)},
			{"POST", "/channel_self", check("app_id", app, "channel", "beta")},
			{"PUT", "/channel_self", check("app_id", app)},
			{"DELETE", "/channel_self?platform=ios&version_build=1.0.0&device_id=" + deviceID + "&app_id=" + app, ""},
			{"GET", "/channel_self?platform=ios&app_id=" + app, ""},
			{"POST", "/stats", statsEvent("app_id", app)},
			{"POST", "/updates", `{"app_id":"` + app + `"}`},
			{"PUT", "/updates", check("app_id", app)},
			{"GET", "/files/read/attachments/orgs/o/apps/" + app + "/1.zip", ""},
		} {
			client.Do(request[0], request[1], request[2], "X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i%5))
		}
	}
	statistics := len(s.server.Requests("/stats"))
	total := -before - statistics
	for _, n := range s.server.Counts() {
		total += n
	}
	if total > 10+1 || statistics > 10+1 { // one more comes back to the trickle within the seconds that this takes
		t.Errorf("%d requests reached the upstream, and %d with statistics: %v", total, statistics, s.server.Counts())
	}
	if r := client.Post("/updates", check("version_name", "1.0.0", "device_id", otherDevice), "X-Forwarded-For", "192.0.2.1"); r.Status != 200 {
		t.Errorf("a real app after the flood: status %d, %s", r.Status, r.Body)
	}
}

// TestRelayWrongAddress: an upstream that has never answered a check is told of in the log, once, and its 404 for any app makes
// none known: further checks share the trickle of unknown apps.
func TestRelayWrongAddress(t *testing.T) {
	var asked atomic.Int64
	var right atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		if right.Load() {
			_, _ = io.WriteString(w, `{"version":"1.0.1","url":"https://cdn.example.net/1.zip","checksum":"`+digest([]byte("zip"))+`"}`)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":"no such route"}`)
	}))
	t.Cleanup(server.Close)
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + server.URL})
	client := e.Client(t)
	for i := range 30 {
		r := client.Post("/updates", check("device_id", numbered(i)))
		if want := "no such route"; r.Status != 404 && r.Status != 503 || r.Status == 404 && !strings.Contains(string(r.Body), want) {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("asked %d times, want 4", n)
	}
	if lines := e.Log("the upstream has never answered a check so far"); len(lines) != 1 || !strings.Contains(lines[0], "status 404") {
		t.Errorf("logged %v", lines)
	}
	right.Store(true)
	again := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + server.URL})
	for range 2 {
		if r := again.Client(t).Post("/updates", check()); r.JSON(t)["url"] != "https://cdn.example.net/1.zip" {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
	}
	if lines := again.Log("downloads are on a host that this edge does not fetch from"); len(lines) != 1 || !strings.Contains(lines[0], "https://cdn.example.net") {
		t.Errorf("logged %v", lines)
	}
}

// TestRelayKnownAfterRestart: an app that the upstream knew stays known over a restart, so that its refusals are an outage, also
// for questions that were never asked; and a device that chose a channel there is asked for by itself.
func TestRelayKnownAfterRestart(t *testing.T) {
	s := standIns(t)["official"]
	config := edgetest.Config{Site: "capgo_edge " + s.server.URL + " {\n relay {\n fresh 50ms\n stale_while 50ms\n }\n }"}
	e := edgetest.New(t)
	load(t, e, config)
	old := []any{"plugin_version", "7.33.0", "version_name", "1.0.0"}
	for i := range 3 {
		e.Client(t).Post("/updates", check(append(old, "device_id", numbered(i))...))
	}
	if r := e.Client(t).Post("/channel_self", check(append(old, "channel", "beta")...)); r.Status != 200 || r.JSON(t)["status"] != "ok" {
		t.Fatalf("status %d, %s", r.Status, r.Body)
	}
	time.Sleep(1500 * time.Millisecond) // until what was learned is on disk
	e.Stop()
	load(t, e, config)
	client := e.Client(t)
	client.Redials, client.Redialed = 3, new(atomic.Int64)
	if r := client.Post("/updates", check(append(old, "device_id", otherDevice)...)); r.JSON(t)["version"] != "1.0.1" {
		t.Errorf("a device of the many: %s", r.Body)
	}
	if r := client.Post("/updates", check(old...)); r.JSON(t)["error"] != "disable_auto_update_to_major" { // 2.0.0, which is in beta
		t.Errorf("the device in beta: %s", r.Body)
	}
	e.Stop()
	s.server.Break(upstreams.NoDatabase)
	load(t, e, config)
	if r := client.Post("/updates", check("version_name", "0.9.9", "is_emulator", true)); r.Status != 503 {
		t.Errorf("a question of a known app: status %d, %s", r.Status, r.Body)
	}
	if r := client.Post("/updates", check(append(old, "device_id", otherDevice)...)); r.JSON(t)["version"] != "1.0.1" {
		t.Errorf("last good: status %d, %s", r.Status, r.Body)
	}
}
