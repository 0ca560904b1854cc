package caddymodule_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest/upstreams"
)

// TestStandIn is no test but the upstream of .ci/bench-relay: an official server that knows the demo app, at the address that
// CAPGO_EDGE_STAND_IN says, until it is ended.
func TestStandIn(t *testing.T) {
	address := os.Getenv("CAPGO_EDGE_STAND_IN")
	if address == "" {
		t.Skip("CAPGO_EDGE_STAND_IN is not set: this runs only in .ci/bench-relay")
	}
	doc, err := os.ReadFile(filepath.Join("origin", "demo", "manifests", "com.example.demo.json")) // started from the repository's root
	if err != nil {
		t.Fatal(err)
	}
	official := upstreams.NewOfficial()
	official.URL = "http://" + address + "/functions/v1"
	if err := official.Publish(doc); err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		official.ServeHTTP(w, r)
	})}
	fmt.Println("listening")
	t.Fatal(server.Serve(listener))
}
