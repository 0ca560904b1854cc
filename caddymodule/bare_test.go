package caddymodule_test

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// TestBareHandler is no test but one side of .ci/bench-wire: the least a Go server can do to answer a check. It listens
// where CAPGO_EDGE_BARE says, until it is ended.
func TestBareHandler(t *testing.T) {
	address := os.Getenv("CAPGO_EDGE_BARE")
	if address == "" {
		t.Skip("CAPGO_EDGE_BARE is not set: this runs only in .ci/bench-wire")
	}
	doc, err := os.ReadFile(filepath.Join("..", "origin", "demo", "manifests", "com.example.demo.json"))
	if os.IsNotExist(err) { // started from the repository's root
		doc, err = os.ReadFile(filepath.Join("origin", "demo", "manifests", "com.example.demo.json"))
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := resolver.ParseManifest(doc)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var p resolver.CheckParser
		c, err := p.Parse(body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		d := m.Decide(&c)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(resolver.AppendResponse(nil, &d, "http://"+r.Host))
	})}
	t.Fatal(server.Serve(listener))
}
