package caddymodule_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestRelayUnknownAppsOfSites: an upstream counts what a client asks about unknown apps, whatever site of the edge it came through
// and however often that was reloaded; a fifth would shut the client out (protocol 1.5, row 5b).
func TestRelayUnknownAppsOfSites(t *testing.T) {
	var asked atomic.Int64
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, `{"error":"on_premise_app","message":"On-premise app detected"}`)
	}))
	t.Cleanup(up.Close)
	config := edgetest.Config{Site: "@a header X-Site a\n handle @a {\n capgo_edge " + up.URL + "\n }\n handle {\n capgo_edge " + up.URL + "\n }"}
	e := edgetest.Start(t, config)
	flood := func(round string) {
		client := e.Over(t, edgetest.HTTP2)
		for i := range 10 {
			client.Post("/updates", check("app_id", fmt.Sprintf("com.made.up%s%d", round, i)), "X-Site", "a")
			client.Post("/updates", check("app_id", fmt.Sprintf("com.made.too%s%d", round, i)))
		}
	}
	flood("a")
	load(t, e, config)
	flood("b")
	if n := asked.Load(); n != 4 {
		t.Errorf("one client had the upstream asked about %d unknown apps", n)
	}
}
