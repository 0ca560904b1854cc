package caddymodule_test

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestReloadUnderLoad: reloads lose no request, cut no download and keep the manifests.
func TestReloadUnderLoad(t *testing.T) {
	s := newSite(t)
	bundle := s.publish("1.0.1", 2<<20)
	origin, asked := s.serve(nil)
	config := func(i int) edgetest.Config {
		// The settings change with each reload, so that Caddy really replaces everything.
		return edgetest.Config{Site: fmt.Sprintf("capgo_edge {\n origin http %s\n manifests {\n fresh 10m\n negative %ds\n}\n}\n", origin, i+1)}
	}
	e := edgetest.New(t)
	load(t, e, config(0))
	reloads := 200
	if testing.Short() {
		reloads = 20
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var checks, downloads, redialed atomic.Int64
	e.Protocols(t, func(t *testing.T, c *edgetest.Client) { offered(t, c) })
	for range 2 {
		wg.Go(func() {
			c := e.Client(t)
			c.Redials, c.Redialed = 20, &redialed
			for open(stop) {
				if r := c.Post("/updates", check()); r.Status != 200 || r.Err != nil || !bytes.Contains(r.Body, []byte(`"version":"1.0.1"`)) {
					t.Errorf("a check across a reload: status %d, %v, %s", r.Status, r.Err, r.Body)
					return
				}
				checks.Add(1)
			}
		})
		wg.Go(func() {
			c := e.Client(t)
			c.Redials, c.Redialed = 20, &redialed
			for open(stop) {
				r := c.Get("/files/read/attachments/" + s.zipKey("1.0.1"))
				if r.Status != 200 || r.Err != nil || !bytes.Equal(r.Body, bundle) {
					t.Errorf("a download across a reload: status %d, %d bytes, %v", r.Status, len(r.Body), r.Err)
					return
				}
				downloads.Add(1)
			}
		})
	}
	for i := range reloads {
		load(t, e, config(i+1))
		time.Sleep(10 * time.Millisecond) // requests must come in under each configuration
	}
	close(stop)
	wg.Wait()
	t.Logf("%d reloads, %d checks, %d downloads; %d connections were reset before a handler saw a request",
		reloads, checks.Load(), downloads.Load(), redialed.Load())
	if asked.Load() != 1 {
		t.Errorf("the manifest was asked for %d times; a reload must keep it", asked.Load())
	}
	if checks.Load() < int64(reloads) || downloads.Load() == 0 {
		t.Error("there was no load to speak of")
	}
}

func open(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return false
	default:
		return true
	}
}

// TestSlowDownloadAcrossReloads: a download that began under an old configuration goes on under a new one, under one that
// was rejected, and after the site is gone.
func TestSlowDownloadAcrossReloads(t *testing.T) {
	s := newSite(t)
	bundle := s.publish("1.0.1", 4<<20)
	started, release := make(chan struct{}), make(chan struct{})
	origin, _ := s.serve(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(bundle)))
		_, _ = w.Write(bundle[:1<<20])
		_ = http.NewResponseController(w).Flush()
		close(started)
		<-release
		_, _ = w.Write(bundle[1<<20:])
	})
	site := "capgo_edge {\n origin http " + origin + "\n}\n"
	e := edgetest.New(t)
	load(t, e, edgetest.Config{Site: site})
	c := e.Client(t)
	c.Redials = 20
	_, address := offered(t, c)
	done := make(chan *edgetest.Response)
	go func() { done <- c.Get(address) }()
	<-started

	load(t, e, edgetest.Config{Site: site + "respond other 404\n"})
	if err := e.Load(edgetest.Config{Site: site, Global: "servers {\n listener_wrappers {\n no_such_wrapper\n}\n}"}); err == nil {
		t.Error("a wrong configuration was taken")
	}
	load(t, e, edgetest.Config{Site: "respond gone 404\n"})
	close(release)
	if r := <-done; r.Status != 200 || r.Err != nil || !bytes.Equal(r.Body, bundle) {
		t.Errorf("status %d, %d bytes, %v", r.Status, len(r.Body), r.Err)
	}
	load(t, e, edgetest.Config{Site: site})
	edgetest.Eventually(t, "the site is there again", func() bool {
		c.Reconnect()
		return c.Post("/updates", check()).Status == 200
	})
	offered(t, c)
}

// TestNothingIsLeftRunning: when Caddy stops, no goroutine of ours goes on.
func TestNothingIsLeftRunning(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", 1000)
	e := edgetest.New(t)
	for range 3 {
		load(t, e, edgetest.Config{Site: s.handler(quick)})
		offered(t, e.Client(t))
		e.Stop()
	}
	edgetest.Eventually(t, "all goroutines of this module have ended", func() bool {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for stack := range bytes.SplitSeq(stacks, []byte("\n\n")) {
			if bytes.Contains(stack, []byte("dgraph-io/ristretto")) ||
				bytes.Contains(stack, []byte("capgo-edge/cache.")) || bytes.Contains(stack, []byte("capgo-edge/origin.")) {
				return false
			}
		}
		return true
	})
}

// TestUnusableStorage: a storage directory that cannot be used is an error at start, which says where and what to do.
func TestUnusableStorage(t *testing.T) {
	s := newSite(t)
	e := edgetest.New(t)
	edgetest.WriteFile(t, e.Storage, "FORMAT", []byte("999\n"))
	err := e.Load(edgetest.Config{Site: s.handler()})
	if err == nil || !strings.Contains(err.Error(), e.Storage) || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("the error is: %v", err)
	}
}
