package caddymodule_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// adminGet asks the admin endpoint, with a query.
func adminGet(t *testing.T, target string) (string, error) {
	t.Helper()
	path, _, _ := strings.Cut(target, "?")
	for _, route := range (caddymodule.Admin{}).Routes() {
		if route.Pattern == path {
			w := httptest.NewRecorder()
			err := route.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", target, nil))
			return w.Body.String(), err
		}
	}
	t.Fatalf("there is no route %s", path)
	return "", nil
}

// TestDeadLetters: what two collectors refuse for good can be looked at and sent again, and neither by mistake.
func TestDeadLetters(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 100)
	refusing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"status":"ok","results":[{"status":"error","error":"invalid_action","message":"no","index":0}]}`))
	})
	first, second := httptest.NewServer(refusing), httptest.NewServer(refusing)
	t.Cleanup(first.Close)
	t.Cleanup(second.Close)
	e := edgetest.Start(t, edgetest.Config{Site: s.handler("stats " + first.URL + " " + second.URL)})
	if r := e.Client(t).Post("/stats", statsEvent("version_name", "1.0.1")); r.Status != 200 {
		t.Fatalf("status %d, %s", r.Status, r.Body)
	}
	count := func(query string) int {
		t.Helper()
		body, err := adminGet(t, "/capgo_edge/dead_letters"+query)
		var answer struct {
			Letters []struct{ Code string } `json:"dead_letters"`
		}
		if err == nil {
			err = json.Unmarshal([]byte(body), &answer)
		}
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		return len(answer.Letters)
	}
	edgetest.Eventually(t, "both are dead", func() bool { return count("") == 2 })
	for query, want := range map[string]int{
		"?limit=1": 1, "?limit=2": 2, "?code=invalid_action": 2, "?app_id=com.other.app": 0, "?app_id=" + appID + "&limit=1": 1,
	} {
		if got := count(query); got != want {
			t.Errorf("%s: %d dead letters, want %d", query, got, want)
		}
	}
	for query, want := range map[string]string{"?app=x": `not "app"`, "?limit=0": "limit", "?spool=x": "no spool"} {
		if _, err := adminGet(t, "/capgo_edge/dead_letters"+query); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
	for _, tt := range []struct{ path, body, err string }{
		{"replay", `{}`, "say which"},
		{"replay", `{"all":true,"code":"x"}`, "say which"},
		{"replay", `null`, "must be JSON"},
		{"replay", ` [{"all":true}]`, "must be JSON"},
		{"replay", `{"all":true}{}`, "nothing behind it"},
		{"replay", `{"all":true,"apps":"x"}`, "must be JSON"},
		{"replay", `{"spool":"x"}`, "no spool"},
		{"resume", `{"app_id":"` + appID + `","channel":"beta"}`, "no rollout of the channel beta of the app " + appID},
		{"resume", `{"app_id":"com.other.app"}`, "no rollout of the app com.other.app"},
		{"resume", `null`, "must be JSON"},
	} {
		if _, err := admin(t, "POST", "/capgo_edge/"+tt.path, tt.body); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s %s: %v, want %q", tt.path, tt.body, err, tt.err)
		}
	}
	w, err := admin(t, "POST", "/capgo_edge/replay", ` {"all":true} `)
	if err != nil || strings.TrimSpace(w.Body.String()) != `{"replayed":2}` {
		t.Errorf("%v, %s", err, w.Body)
	}
}
