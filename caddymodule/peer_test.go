package caddymodule_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestFirstClientLeaves: the client whose request began a fill leaves in its middle. Who came later gets all, and the
// object is stored though nobody else is there.
func TestFirstClientLeaves(t *testing.T) {
	d := newDepot(t)
	content := randomBytes(onDiskSize)
	holds, paths := map[string]*hold{}, map[string]string{}
	for _, protocol := range []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2, edgetest.HTTP3} {
		for _, alone := range []bool{false, true} {
			name := fmt.Sprint(protocol, alone)
			holds[name] = newHold()
			paths[name] = d.add(name, content, holds[name].at(content, heldAt, true))
		}
	}
	d.announceAll()
	e := edgetest.Start(t, d.config())
	e.AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
		for _, alone := range []bool{false, true} {
			t.Run(fmt.Sprintf("alone %t", alone), func(t *testing.T) {
				h, path := holds[fmt.Sprint(c.Protocol, alone)], paths[fmt.Sprint(c.Protocol, alone)]
				defer h.let()
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				first, err := c.Open(ctx, http.MethodGet, path, "")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(first.Body, make([]byte, 1000)); err != nil {
					t.Fatal(err)
				}
				rest := make(chan *edgetest.Response, 1)
				if !alone {
					before := openedSoFar(e)
					go func() { rest <- c.Try(http.MethodGet, path, "") }()
					opened(t, e, before+1)
				}
				leave()
				_ = first.Body.Close()
				h.let()
				if !alone {
					if r := <-rest; outcome(r, content) != "whole" || cacheStatus(r) != statusCollapsed {
						t.Errorf("who came later: %s (%v), %s", outcome(r, content), r.Err, cacheStatus(r))
					}
				}
				edgetest.Eventually(t, "the object is stored", func() bool {
					return cacheStatus(c.Do(http.MethodHead, path, "")) == statusHit
				})
				if n := d.asked(path); n != 1 {
					t.Errorf("the origin was asked %d times", n)
				}
			})
		}
	})
}

// TestHalfLeave: of 100 clients of a cold object half leave, some before and some after the origin goes on.
func TestHalfLeave(t *testing.T) {
	const all = 100
	d := newDepot(t)
	content := randomBytes(1 << 20)
	holds, paths := map[string]*hold{}, map[string]string{}
	protocols := []string{edgetest.HTTP1, edgetest.HTTP2, edgetest.HTTP3}
	for _, protocol := range protocols {
		holds[protocol] = newHold()
		paths[protocol] = d.add(protocol, content, holds[protocol].at(content, 512<<10, true))
	}
	d.announceAll()
	e := edgetest.Start(t, d.config())
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			c, h, path := e.Over(t, protocol), holds[protocol], paths[protocol]
			defer h.let()
			before := openedSoFar(e)
			var leavers, stayers sync.WaitGroup
			for i := range all {
				switch i % 4 {
				case 0: // leaves while the origin is held
					leavers.Go(func() { leaveAt(t, c, path, 100<<10) })
				case 1: // leaves behind that
					stayers.Go(func() { leaveAt(t, c, path, 700<<10) })
				default:
					stayers.Go(func() {
						if err := download(t.Context(), c, path, content, func(int) {}); err != nil {
							t.Error(err)
						}
					})
				}
			}
			leavers.Wait()
			opened(t, e, before+all)
			h.let()
			stayers.Wait()
			if n := d.asked(path); n != 1 {
				t.Errorf("the origin was asked %d times", n)
			}
			edgetest.Eventually(t, "the object is stored", func() bool {
				return cacheStatus(c.Do(http.MethodHead, path, "")) == statusHit
			})
		})
	}
}

// leaveAt reads so many bytes of an object and hangs up.
func leaveAt(t *testing.T, c *edgetest.Client, path string, n int) {
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	resp, err := c.Open(ctx, http.MethodGet, path, "")
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, n)); err != nil {
		t.Error(err)
	}
	leave()
	_ = resp.Body.Close()
}

// TestSlowReader: a client that does not read holds up neither the fill nor other clients, and gets all in the end.
func TestSlowReader(t *testing.T) {
	d := newDepot(t)
	content := randomBytes(10 << 20) // more than the kernel and HTTP/2 buffer
	paths := map[string]string{}
	protocols := []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2, edgetest.HTTP3}
	for _, protocol := range protocols {
		paths[protocol] = d.add(protocol, content, whole(content))
	}
	d.announceAll()
	edgetest.Start(t, d.config()).AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
		path := paths[c.Protocol]
		slow, err := c.Open(t.Context(), http.MethodGet, path, "")
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Body.Close()
		for _, r := range askAll(c, path, 2) {
			if outcome(r, content) != "whole" {
				t.Errorf("beside it: %s (%v)", outcome(r, content), r.Err)
			}
		}
		edgetest.Eventually(t, "the object is stored", func() bool {
			return cacheStatus(c.Do(http.MethodHead, path, "")) == statusHit
		})
		body, err := io.ReadAll(slow.Body)
		if err != nil || !bytes.Equal(body, content) {
			t.Errorf("the slow one has %d bytes, %v", len(body), err)
		}
		if n := d.asked(path); n != 1 {
			t.Errorf("the origin was asked %d times", n)
		}
	})
}

// TestEncodeLeavesObjectsAlone: a compressed zip hides its length from Android and breaks resuming (protocol 9, trap 17),
// so Caddy's encode directive must pass objects on as they are, even where it is told to compress everything.
func TestEncodeLeavesObjectsAlone(t *testing.T) {
	for _, encode := range []string{
		"encode gzip zstd",
		"encode {\n gzip\n zstd\n match {\n header Content-Type *\n}\n}",
	} {
		t.Run(strings.Fields(encode)[1], func(t *testing.T) {
			d := newDepot(t)
			contents := map[string][]byte{
				"small": bytes.Repeat([]byte("compressible "), 5000), "large": bytes.Repeat([]byte("compressible "), 50_000),
			}
			paths := map[string]string{}
			for name, content := range contents {
				for _, protocol := range []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2, edgetest.HTTP3} {
					paths[protocol+name] = d.add(protocol+name, content, whole(content))
				}
			}
			d.announceAll()
			c := d.config()
			c.Site = "route {\n" + encode + "\n" + c.Site + "}\n"
			edgetest.Start(t, c).AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
				for name, content := range contents {
					for _, state := range []string{"cold", "stored"} {
						t.Run(name+", "+state, func(t *testing.T) { notEncoded(t, c, paths[c.Protocol+name], content) })
					}
				}
			})
		})
	}
}

func notEncoded(t *testing.T, c *edgetest.Client, path string, content []byte) {
	t.Helper()
	size, etag := len(content), `"`+digest(content)+`"`
	for _, test := range []struct {
		method, spec string
		status, from int
	}{
		{"GET", "", 200, 0}, {"GET", "bytes=0-", 206, 0}, {"GET", "bytes=1000-", 206, 1000}, {"GET", "bytes=-10", 206, size - 10}, {"HEAD", "", 200, 0},
	} {
		header := []string{"Accept-Encoding", "gzip, zstd"}
		if test.spec != "" {
			header = append(header, "Range", test.spec)
		}
		r := c.Do(test.method, path, "", header...)
		if r.Status != test.status || r.Err != nil || r.Header.Get("Content-Encoding") != "" || r.Header.Get("ETag") != etag {
			t.Errorf("%s %s: status %d, %v, %v", test.method, test.spec, r.Status, r.Err, r.Header)
		}
		if got := r.Header.Get("Content-Length"); got != strconv.Itoa(size-test.from) {
			t.Errorf("%s %s: Content-Length %q", test.method, test.spec, got)
		}
		if test.method == "GET" && !bytes.Equal(r.Body, content[test.from:]) {
			t.Errorf("%s %s: %d bytes that are not the object's", test.method, test.spec, len(r.Body))
		}
	}
	if r := c.Get(path, "Accept-Encoding", "gzip", "If-None-Match", etag); r.Status != 304 {
		t.Errorf("if-none-match: status %d", r.Status)
	}
}
