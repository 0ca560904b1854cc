package caddymodule_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest/upstreams"
)

// TestRelayStatsFirst: statistics that come before the first check take nothing from the checks, and those of one app are taken
// however many there are.
func TestRelayStatsFirst(t *testing.T) {
	s := standIns(t)["official"]
	client := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + s.server.URL}).Client(t)
	for i := range 20 {
		if r := client.Post("/stats", "["+statsEvent("device_id", numbered(i))+"]"); r.Status != 200 {
			t.Fatalf("statistics %d: status %d, %s", i, r.Status, r.Body)
		}
	}
	if r := client.Post("/updates", check()); r.Status != 200 {
		t.Errorf("a check: status %d, %s", r.Status, r.Body)
	}
	for i := range 10 {
		client.Post("/stats", statsEvent("app_id", fmt.Sprint("com.made.up", i)))
	}
	if r := client.Post("/stats", statsEvent("app_id", "com.made.more")); r.Status != 503 {
		t.Errorf("one app too many: status %d, %s", r.Status, r.Body)
	}
	if r := client.Post("/stats", statsEvent()); r.Status != 200 {
		t.Errorf("the app that is there: status %d, %s", r.Status, r.Body)
	}
}

// TestRelayManyApps: apps that the upstream knows count against nobody, however many there are behind one address; nor do those that
// the operator has named, before their first check.
func TestRelayManyApps(t *testing.T) {
	server := answering(t, func(*asking) string { return "1.0.1" })
	client := edgetest.Start(t, edgetest.Config{Site: relaying(server)}).Client(t)
	for i := range 20 {
		wantOffered(t, client.Post("/updates", check("app_id", fmt.Sprint("com.real.app", i))), "1.0.1", "a real app")
	}
	named := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + server + " {\n apps com.named.* com.named.app\n }"}).Client(t)
	for i := range 10 {
		if r := named.Post("/stats", statsEvent("app_id", "com.named.app", "device_id", numbered(i))); r.Status != 200 {
			t.Errorf("statistics of a named app: status %d, %s", r.Status, r.Body)
		}
		named.Do("PUT", "/channel_self", check("app_id", "com.named.app"))
	}
	wantOffered(t, named.Post("/updates", check("app_id", "com.named.app")), "1.0.1", "a named app")
}

// TestRelayUnconfirmedRefusals: with one of two servers down, the other one still counts what it refuses.
func TestRelayUnconfirmedRefusals(t *testing.T) {
	var asked atomic.Int64
	refusing := serving(t, func(w http.ResponseWriter, _ *asking) {
		asked.Add(1)
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, `{"error":"on_premise_app","message":"On-premise app detected"}`)
	})
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	client := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n upstream " + dead.URL + "\n upstream " + refusing + "\n }"}).Client(t)
	for i := range 30 {
		client.Post("/updates", check("app_id", fmt.Sprint("com.made.up", i)))
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("the server was asked about %d unknown apps", n)
	}
}

// TestRelayServersOfSites: a server counts what it is asked, whatever other servers the sites have beside it.
func TestRelayServersOfSites(t *testing.T) {
	var asked atomic.Int64
	refuse := func(w http.ResponseWriter, _ *asking) {
		asked.Add(1)
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, `{"error":"on_premise_app","message":"On-premise app detected"}`)
	}
	first := serving(t, refuse)
	second := serving(t, func(w http.ResponseWriter, q *asking) { refuse(w, q); asked.Add(-1) })
	client := edgetest.Start(t, edgetest.Config{
		Site: "@a header X-Site a\n handle @a {\n capgo_edge " + first + "\n }\n handle {\n capgo_edge {\n upstream " + second + "\n upstream " + first + "\n }\n }",
	}).Client(t)
	for i := range 10 {
		client.Post("/updates", check("app_id", fmt.Sprint("com.made.up", i)), "X-Site", "a")
		client.Post("/updates", check("app_id", fmt.Sprint("com.made.too", i)))
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("the server was asked about %d unknown apps", n)
	}
}

// TestRelayBreakerAndStrangers: a server that fails for apps it does not have goes on to be asked for those that it has.
func TestRelayBreakerAndStrangers(t *testing.T) {
	server := serving(t, func(w http.ResponseWriter, q *asking) {
		if q.AppID != appID {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"error":"app not found"}`)
			return
		}
		_, _ = io.WriteString(w, `{"version":"1.0.1","url":"http://cdn.example/1.zip","checksum":"1"}`)
	})
	e := edgetest.Start(t, edgetest.Config{Global: "servers {\n trusted_proxies static private_ranges\n }", Site: relaying(server)})
	client := e.Client(t)
	for i := range 10 {
		client.Post("/updates", check("app_id", fmt.Sprint("com.made.up", i)), "X-Forwarded-For", fmt.Sprint("192.0.2.", i))
	}
	wantOffered(t, client.Post("/updates", check()), "1.0.1", "a real app")
}

// TestRelayOddVersions: what is none by the official protocol is the upstream's to judge, with "apps" and without, also of an app
// that is known, and statistics, too.
func TestRelayOddVersions(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		if !strings.Contains(string(body), "1.2.3.4") || !strings.Contains(string(body), appID) {
			t.Errorf("the upstream got %s", body)
		}
		if r.URL.Path == "/updates" {
			_, _ = io.WriteString(w, `{"version":"1.0.1","url":"http://cdn.example/1.zip","checksum":"1"}`)
		} else {
			_, _ = io.WriteString(w, `{"status":"odd"}`)
		}
	}))
	t.Cleanup(server.Close)
	for name, apps := range map[string]string{"all apps": "", "listed": "apps " + appID} {
		t.Run(name, func(t *testing.T) {
			client := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + server.URL + " {\n " + apps + "\n }"}).Client(t)
			for range 4 {
				wantOffered(t, client.Post("/updates", check("version_build", "1.2.3.4")), "1.0.1", "an odd version")
			}
			if apps == "" { // nothing is known of the app
				if r := client.Post("/stats", statsEvent("version_build", "1.2.3.4")); r.Status != 400 {
					t.Errorf("statistics of a stranger: status %d, %s", r.Status, r.Body)
				}
				return
			}
			if r := client.Post("/stats", statsEvent("version_build", "1.2.3.4")); r.JSON(t)["status"] != "odd" {
				t.Errorf("statistics: status %d, %s", r.Status, r.Body)
			}
			r := client.Post("/stats", "["+statsEvent("version_build", "1.2.3.4")+","+statsEvent("device_id", nil, "metadata", map[string]any{"a": "1.2.3.4"})+"]")
			if r.JSON(t)["status"] != "odd" {
				t.Errorf("a batch of them: status %d, %s", r.Status, r.Body)
			}
			r = client.Post("/stats", "["+statsEvent("version_build", "1.2.3.4")+","+statsEvent("metadata", map[string]any{"a": "1.2.3.4"})+"]")
			if r.Status != 200 || r.JSON(t)["status"] == "odd" || !strings.Contains(string(r.Body), "semver_error") {
				t.Errorf("a batch with a good one: status %d, %s", r.Status, r.Body)
			}
			if r := client.Post("/updates", check("version_build", "1.2.3.4", "app_id", "com.other.app")); r.Status != 400 {
				t.Errorf("an app that is not served: status %d, %s", r.Status, r.Body)
			}
		})
	}
}

// TestRelayAnswersToAll: a server that has an answer to any app is asked about no more made-up ones than "unknown" says.
func TestRelayAnswersToAll(t *testing.T) {
	var asked atomic.Int64
	server := serving(t, func(w http.ResponseWriter, _ *asking) {
		asked.Add(1)
		_, _ = io.WriteString(w, `{"error":"no_app","message":"no such app"}`)
	})
	client := edgetest.Start(t, edgetest.Config{Site: relaying(server, "unknown 10")}).Client(t)
	for i := range 50 {
		client.Post("/updates", check("app_id", fmt.Sprint("com.made.up", i)))
	}
	if n := asked.Load(); n < 5 || n > 11 {
		t.Errorf("the server was asked about %d apps", n)
	}
}

// TestRelayTwinEvents: "apps" holds for events, too, that servers may read as those of another app.
func TestRelayTwinEvents(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); strings.Contains(string(body), "com.evil.app") {
			t.Errorf("%s got %s", r.URL.Path, body)
		}
		_, _ = io.WriteString(w, `{"status":"ok"}`)
	}))
	t.Cleanup(server.Close)
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + server.URL + " {\n apps " + appID + "\n }"})
	client := e.Client(t)
	for _, build := range []string{"1.0.0", "1.2.3.4"} {
		twin := strings.TrimSuffix(statsEvent("version_build", build), "}") + `,"APP_ID":"com.evil.app"}`
		if r := client.Post("/stats", twin); r.Status != 400 {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
		if r := client.Post("/stats", "["+twin+","+statsEvent()+"]"); r.Status != 200 || !strings.Contains(string(r.Body), "more than one app_id") {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
	}
	time.Sleep(1500 * time.Millisecond) // longer than a delivery waits
}

// TestRelayQuery: what stands behind updateUrl as its query is the upstream's to read, and answers are shared by it.
func TestRelayQuery(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		version := "1.0.1"
		if r.URL.Query().Get("env") == "staging" {
			version = "2.0.0"
		}
		_, _ = fmt.Fprintf(w, `{"version":%q,"url":"http://cdn.example/1.zip","checksum":"1"}`, version)
	}))
	t.Cleanup(server.Close)
	client := edgetest.Start(t, edgetest.Config{Site: relaying(server.URL)}).Client(t)
	for i := range 6 {
		wantOffered(t, client.Post("/updates", check("device_id", numbered(i))), "1.0.1", "without a query")
		wantOffered(t, client.Post("/updates?env=staging", check("device_id", numbered(i))), "2.0.0", "with a query")
	}
	for i := range 6 { // what one of them is up to date with is not what the other is
		client.Post("/updates", check("device_id", numbered(i), "version_name", "1.0.1"))
		r := client.Post("/updates?env=staging", check("device_id", numbered(i), "version_name", "1.0.1"))
		wantOffered(t, r, "2.0.0", "with a query, running what is offered without")
	}
	time.Sleep(1500 * time.Millisecond) // longer than an answer waits to be kept
	got, err := adminGet(t, "/capgo_edge/learned?app_id="+appID)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got, "1.0.1") || strings.Contains(got, "2.0.0") {
		t.Errorf("learned: %s", got)
	}
}

// TestRelayChecksReported: each check is counted once, by the upstream that saw it or by a report of this edge.
func TestRelayChecksReported(t *testing.T) {
	official := upstreams.NewOfficial()
	official.Start(t)
	zip := randomBytes(1000)
	if err := official.Publish(fmt.Appendf(nil, `{"app":{"app_id":%q},"versions":[{"id":1,"name":"1.0.1","r2_path":"orgs/o/apps/%[1]s/1.zip","checksum":%q}],
		"channels":[{"id":1,"name":"production","public":true,"version":1}]}`, appID, digest(zip))); err != nil {
		t.Fatal(err)
	}
	c := newCollector(t)
	client := edgetest.Start(t, edgetest.Config{
		Site: "capgo_edge " + official.URL + " {\n relay {\n fresh 300ms\n stale_while 10s\n }\n stats " + c.URL + "\n }",
	}).Client(t)
	const checks = 60
	for i := range checks { // offers, and answers that follow from them
		version := "1.0.0"
		if i%3 == 2 {
			version = "1.0.1"
		}
		if r := client.Post("/updates", check("device_id", numbered(i), "version_name", version)); r.Status != 200 {
			t.Fatalf("status %d, %s", r.Status, r.Body)
		}
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(2 * time.Second) // more than a report waits
	counted := map[string]int{}
	for _, r := range official.Requests("/updates") {
		var q asking
		if err := json.Unmarshal(r.Body, &q); err != nil {
			t.Fatal(err)
		}
		counted[q.Device]++
	}
	for _, e := range c.events() {
		counted[fmt.Sprint(e.fields["device_id"])]++
	}
	twice := 0
	for i := range checks {
		switch counted[numbered(i)] {
		case 0:
			t.Errorf("check %d is not counted", i)
		case 1:
		default:
			twice++
		}
	}
	if twice > 3 { // devices that others are compared with are asked for again
		t.Errorf("%d of %d checks are counted twice", twice, checks)
	}
}
