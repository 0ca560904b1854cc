package caddymodule_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// download reads an object to its end, a piece whenever pace lets it, and compares it with content as it goes.
func download(ctx context.Context, c *edgetest.Client, path string, content []byte, pace func(sofar int)) error {
	resp, err := c.Open(ctx, http.MethodGet, path, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	buf, at := make([]byte, 64<<10), 0
	for {
		n, err := resp.Body.Read(buf)
		if at+n > len(content) || !bytes.Equal(buf[:n], content[at:at+n]) {
			return fmt.Errorf("wrong bytes behind byte %d", at)
		}
		at += n
		switch {
		case errors.Is(err, io.EOF) && at == len(content):
			return nil
		case err != nil:
			return fmt.Errorf("after %d bytes: %w", at, err)
		}
		pace(at)
	}
}

// steps are passed one after the other by whoever goes in step with the reloads.
type steps []chan struct{}

func newSteps(n int) steps {
	s := make(steps, n)
	for i := range s {
		s[i] = make(chan struct{})
	}
	return s
}

// await returns once as many of the steps were taken as at is a part of size.
func (s steps) await(at, size int) {
	if i := at * len(s) / size; i > 0 {
		<-s[min(i, len(s))-1]
	}
}

// TestReloadsDuringDownloads: downloads that go on while the configuration is replaced again and again, of objects that
// come in and of stored ones, all end well, and no object is fetched twice.
func TestReloadsDuringDownloads(t *testing.T) {
	reloads, downloads := 200, 200
	if testing.Short() {
		reloads, downloads = 20, 40
	}
	const objects = 10 // a fifth of them stored; these are larger than what the kernel buffers
	taken := newSteps(reloads)
	d := newDepot(t)
	contents, paths := make([][]byte, objects), make([]string, objects)
	for i := range contents {
		name := fmt.Sprintf("object %d", i)
		if i%5 == 0 {
			contents[i] = randomBytes(8<<20 + i)
			paths[i] = d.add(name, contents[i], whole(contents[i]))
			continue
		}
		contents[i] = randomBytes(1<<20 + i)
		paths[i] = d.add(name, contents[i], slowly(contents[i], taken, i%2 == 0))
	}
	d.announceAll()
	config := func(i int) edgetest.Config { // all that a reload can change
		c := d.config(fmt.Sprintf("apps %s x%d", appID, i))
		c.Storage = fmt.Sprintf("memory %dMiB\nmax_size %dMiB\nmin_free %dMiB", 64+i, 2000+i, 1+i)
		return c
	}
	e := edgetest.New(t)
	load(t, e, config(0))
	for i := 0; i < objects; i += 5 {
		if r := e.Client(t).Get(paths[i]); outcome(r, contents[i]) != "whole" {
			t.Fatal(outcome(r, contents[i]))
		}
	}
	before := openedSoFar(e)
	errs := make(chan error, downloads)
	protocols := []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2}
	for i := range downloads {
		c, object := e.Over(t, protocols[i%len(protocols)]), i%objects
		pace := func(int) {}
		if object%5 == 0 {
			pace = func(at int) { taken.await(at, len(contents[object])) }
		}
		go func() {
			err := download(t.Context(), c, paths[object], contents[object], pace)
			if err != nil {
				err = fmt.Errorf("object %d over %s: %w", object, c.Protocol, err)
			}
			errs <- err
		}()
	}
	opened(t, e, before+uint64(downloads))
	for i := range reloads {
		load(t, e, config(i+1))
		close(taken[i])
	}
	for range downloads {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for i, path := range paths {
		edgetest.Eventually(t, fmt.Sprint("stored is object ", i), func() bool { // its last reader may be done before it is
			r := e.Client(t).Get(path)
			if outcome(r, contents[i]) != "whole" {
				t.Fatalf("object %d afterwards: %s, %s", i, outcome(r, contents[i]), cacheStatus(r))
			}
			return strings.HasPrefix(cacheStatus(r), statusHit)
		})
		if n := d.asked(path); n != 1 {
			t.Errorf("object %d was fetched %d times", i, n)
		}
	}
	t.Logf("%d reloads during %d downloads of %d objects", reloads, downloads, objects)
}

// slowly answers in step with the reloads.
func slowly(content []byte, taken steps, sized bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if sized {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		}
		w.Header().Set("ETag", `"v1"`)
		from := 0
		for _, step := range taken {
			to := min(len(content), from+len(content)/len(taken))
			send(w, content[from:to])
			from = to
			select {
			case <-step:
			case <-r.Context().Done():
				return
			}
		}
		send(w, content[from:])
	}
}

// TestHTTP3AcrossReloads: a reload keeps connections of HTTP/3, too, as long as the grace period lasts.
func TestHTTP3AcrossReloads(t *testing.T) {
	d := newDepot(t)
	content := randomBytes(onDiskSize)
	h := newHold()
	path := d.add("held", content, h.at(content, heldAt, true))
	d.announceAll()
	e := edgetest.New(t)
	load(t, e, d.config())
	done := make(chan error)
	go func() { done <- download(t.Context(), e.Over(t, edgetest.HTTP3), path, content, func(int) {}) }()
	opened(t, e, 1)
	for i := range 5 {
		load(t, e, d.config(fmt.Sprintf("apps %s x%d", appID, i)))
	}
	h.let()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if r := e.Over(t, edgetest.HTTP3).Get(path); outcome(r, content) != "whole" {
		t.Errorf("afterwards: %s (%v)", outcome(r, content), r.Err)
	}
}

// TestAppRemovedDuringDownloads: a configuration without the app gives the storage directory up at once, for another
// process to have, while downloads go on; one with the app takes it again, with all that is stored there.
func TestAppRemovedDuringDownloads(t *testing.T) {
	cycles := 10
	if testing.Short() {
		cycles = 2
	}
	d := newDepot(t)
	stored := randomBytes(8 << 20)
	storedPath := d.add("stored", stored, whole(stored))
	filling := make([][]byte, cycles)
	holds, paths := make([]*hold, cycles), make([]string, cycles)
	for i := range cycles {
		holds[i], filling[i] = newHold(), randomBytes(onDiskSize+i)
		var again sync.Once
		paths[i] = d.add(fmt.Sprintf("filling %d", i), filling[i], func(w http.ResponseWriter, r *http.Request) {
			answer := whole(filling[i])
			again.Do(func() { answer = holds[i].at(filling[i], heldAt, i%2 == 0) })
			answer(w, r)
		})
	}
	d.announceAll()
	e := edgetest.New(t)
	load(t, e, d.config())
	e.Client(t).Get(storedPath)
	released := make(chan struct{})
	errs := make(chan error, 4*cycles)
	running := 0
	start := func(protocol, path string, content []byte, pace func(int)) {
		running++
		c := e.Over(t, protocol)
		c.Redials = 20
		go func() {
			err := download(t.Context(), c, path, content, pace)
			for range 5 { // the connection's last request may reach the configuration that goes, whose storage has gone
				if err == nil || !strings.HasPrefix(err.Error(), "status ") {
					break
				}
				t.Logf("a request is sent again after %v", err)
				err = download(t.Context(), c, path, content, pace)
			}
			errs <- err
		}()
	}
	for i := range cycles {
		before := openedSoFar(e)
		for _, protocol := range []string{edgetest.HTTP1, edgetest.HTTP2} {
			start(protocol, paths[i], filling[i], func(int) {})
			start(protocol, storedPath, stored, func(int) { <-released })
		}
		opened(t, e, before+4)
		load(t, e, edgetest.Config{Site: "respond gone 404\n", NoApp: true})
		dir, err := cache.Claim(e.Storage)
		if err != nil {
			t.Fatalf("cycle %d: the directory was not given up: %v", i, err)
		}
		if err := dir.Release(); err != nil {
			t.Fatal(err)
		}
		load(t, e, d.config())
		c := e.Client(t)
		c.Redials = 20
		if r := c.Get(paths[i]); outcome(r, filling[i]) != "whole" { // fetched anew, beside the fill that goes on
			t.Errorf("cycle %d: after the app is back: %s (%v)", i, outcome(r, filling[i]), r.Err)
		}
		if r := c.Do(http.MethodHead, storedPath, ""); cacheStatus(r) != statusHit {
			t.Errorf("cycle %d: what was stored is %s", i, cacheStatus(r))
		}
	}
	close(released)
	for _, h := range holds {
		h.let()
	}
	for range running {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := d.asked(storedPath); n != 1 {
		t.Errorf("the stored object was fetched %d times", n)
	}
	for i, path := range paths {
		if n := d.asked(path); n != 2 {
			t.Errorf("object %d was fetched %d times", i, n)
		}
	}
}

// processConfig tells TestProcess what to run.
const processConfig = "CAPGO_EDGE_TEST_CONFIG"

// TestProcess is Caddy in a process of its own, for tests that end it.
func TestProcess(t *testing.T) {
	path := os.Getenv(processConfig)
	if path == "" {
		t.Skip("runs for other tests, in a process of its own")
	}
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	caddy.TrapSignals()
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	select {} // until a signal
}

// TestStopDrains: Caddy that is told to end lets downloads end that can within its grace period, breaks off the others so
// that they are not taken for whole, and leaves the storage directory to the next process.
func TestStopDrains(t *testing.T) {
	for _, test := range []struct {
		name  string
		drain bool
	}{{"in time", true}, {"too slow", false}} {
		t.Run(test.name, func(t *testing.T) {
			if !test.drain && testing.Short() {
				t.Skip("takes the grace period")
			}
			d := newDepot(t)
			content := randomBytes(onDiskSize)
			h := newHold()
			path := d.add("held", content, h.at(content, heldAt, true))
			d.announceAll()
			e := edgetest.New(t)
			config := d.config()
			if !test.drain {
				config.Global = "grace_period 1s"
			}
			process := startCaddy(t, e, config)
			seen := make(chan *edgetest.Response)
			protocols := []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2}
			for _, protocol := range protocols {
				resp, err := e.Over(t, protocol).Open(t.Context(), http.MethodGet, path, "") //nolint:bodyclose // closed below
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					defer resp.Body.Close()
					body, err := io.ReadAll(resp.Body)
					seen <- &edgetest.Response{Status: resp.StatusCode, Body: body, Err: err}
				}()
			}
			<-h.held
			if err := process.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			edgetest.Eventually(t, "it stops", func() bool { return len(e.Log("grace period initiated")) > 0 })
			if test.drain {
				h.let()
			}
			for range protocols {
				r := <-seen
				if got := outcome(r, content); test.drain && got != "whole" || !test.drain && !strings.HasPrefix(got, "cut") {
					t.Errorf("%s (%v)", got, r.Err)
				}
			}
			if err := process.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
			h.let()
			dir, err := cache.Claim(e.Storage)
			if err != nil {
				t.Fatalf("the next process: %v", err)
			}
			_ = dir.Release()
		})
	}
}

// startCaddy runs Caddy in a process of its own and returns once it answers.
func startCaddy(t *testing.T, e *edgetest.Edge, c edgetest.Config) *exec.Cmd {
	t.Helper()
	config, err := e.JSON(c)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	process := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProcess$")
	process.Env = append(os.Environ(), processConfig+"="+path)
	var output bytes.Buffer
	process.Stdout, process.Stderr = &output, &output
	process.WaitDelay = time.Second
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the process said: %.5000s", output.Bytes())
		}
	})
	edgetest.Eventually(t, "the process answers", func() bool {
		return e.Client(t).Try(http.MethodGet, "/ok", "").Status == http.StatusOK
	})
	return process
}
