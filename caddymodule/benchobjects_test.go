package caddymodule_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestBareObjects is no test but one side of .ci/bench-objects: the least a Go server can do to hand out an object. It says
// what the edge at CAPGO_EDGE_BARE_OBJECTS says, the same headers and the same bytes, from memory. It listens in clear text
// and with TLS at the two addresses in CAPGO_EDGE_BARE_LISTEN, with cert.pem and key.pem from the working directory of the
// script in CAPGO_EDGE_BARE_DIR, until it is ended.
func TestBareObjects(t *testing.T) {
	edge := os.Getenv("CAPGO_EDGE_BARE_OBJECTS")
	if edge == "" {
		t.Skip("CAPGO_EDGE_BARE_OBJECTS is not set: this runs only in .ci/bench-objects")
	}
	plain, secure, _ := strings.Cut(os.Getenv("CAPGO_EDGE_BARE_LISTEN"), " ")
	dir := os.Getenv("CAPGO_EDGE_BARE_DIR")
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler:           &bareObjects{edge: edge},
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13},
	}
	ended := make(chan error)
	for address, serve := range map[string]func(net.Listener) error{
		plain:  server.Serve,
		secure: func(l net.Listener) error { return server.ServeTLS(l, "", "") },
	} {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- serve(listener) }()
	}
	t.Fatal(<-ended)
}

// bareObjects answers with what the edge said when it was first asked.
type bareObjects struct {
	edge    string
	answers sync.Map // of *bareAnswer, by path
}

type bareAnswer struct {
	header http.Header
	body   []byte
}

func (b *bareObjects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	value, ok := b.answers.Load(r.URL.Path)
	if !ok {
		answer, err := b.ask(r.URL.Path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		value, _ = b.answers.LoadOrStore(r.URL.Path, answer)
	}
	answer := value.(*bareAnswer)
	maps.Copy(w.Header(), answer.header)
	_, _ = w.Write(answer.body)
}

// ask gets the answer the edge gives from its store.
func (b *bareObjects) ask(path string) (*bareAnswer, error) {
	for range 50 {
		resp, err := http.Get(b.edge + path)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("the edge says %s", resp.Status)
		}
		if strings.Contains(resp.Header.Get("Cache-Status"), "; hit") {
			resp.Header.Del("Date") // net/http writes its own, as it does for the edge
			return &bareAnswer{resp.Header, body}, nil
		}
		time.Sleep(100 * time.Millisecond) // it is still being stored
	}
	return nil, errors.New("the edge does not store the object")
}
