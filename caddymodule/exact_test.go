package caddymodule_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// An object that goes to a file, one that is kept in memory, and how far a held origin has come with the former: a known
// size lets readers have all of that, an unknown one all but the last 64 KiB.
const (
	onDiskSize = 300_000
	smallSize  = 100_000
	bypassSize = 1_500_000
	heldAt     = 200_000
)

// question is a request for an object and what its answer must be, in whatever state the object is.
type question struct {
	name     string
	method   string
	header   []string
	status   int
	from, to int    // of the object, what the body must be
	span     string // what Content-Range must be

	early   bool // can be answered while the origin is held at heldAt
	unsized bool // can be answered although the size is not known
}

func questions(size int, etag string) []question {
	span := func(from, to int) string { return fmt.Sprintf("bytes %d-%d/%d", from, to-1, size) }
	none := fmt.Sprintf("bytes */%d", size)
	get, head := http.MethodGet, http.MethodHead
	ranged := func(spec string, more ...string) []string { return append([]string{"Range", "bytes=" + spec}, more...) }
	return []question{
		{"whole", get, nil, 200, 0, size, "", false, false},
		{"head", head, nil, 200, 0, size, "", true, true},
		{"from the start", get, ranged("0-"), 206, 0, size, span(0, size), false, false},
		{"from the middle", get, ranged("50000-"), 206, 50000, size, span(50000, size), false, false},
		{"a part", get, ranged("10-1009"), 206, 10, 1010, span(10, 1010), true, false},
		{"first byte", get, ranged("0-0"), 206, 0, 1, span(0, 1), true, false},
		{"a part near the end", get, ranged(fmt.Sprintf("%d-%d", size-70_000, size-100)), 206, size - 70_000, size - 99, span(size-70_000, size-99), false, false},
		{"last byte", get, ranged(strconv.Itoa(size-1) + "-"), 206, size - 1, size, span(size-1, size), false, false},
		{"beyond the end", get, ranged(fmt.Sprintf("%d-%d", size-10, size+500)), 206, size - 10, size, span(size-10, size), false, false},
		{"suffix", get, ranged("-100"), 206, size - 100, size, span(size-100, size), false, false},
		{"suffix of one", get, ranged("-1"), 206, size - 1, size, span(size-1, size), false, false},
		{"suffix larger than all", get, ranged("-9999999"), 206, 0, size, span(0, size), false, false},
		{"at the end", get, ranged(strconv.Itoa(size) + "-"), 416, 0, 0, none, true, false},
		{"behind the end", get, ranged(fmt.Sprintf("%d-%d", size+5, size+9)), 416, 0, 0, none, true, false},
		{"backwards", get, ranged("9-5"), 416, 0, 0, "", true, false},
		{"several ranges", get, ranged("0-1,5-6"), 200, 0, size, "", false, false},
		{"if-range holds", get, ranged("5-", "If-Range", etag), 206, 5, size, span(5, size), false, false},
		{"if-range fails", get, ranged("5-", "If-Range", `"x"`), 200, 0, size, "", false, false},
		{"if-range is weak", get, ranged("5-", "If-Range", "W/"+etag), 200, 0, size, "", false, false},
		{"etag known", get, []string{"If-None-Match", etag}, 304, 0, 0, "", true, false},
		{"etag known, with others", get, []string{"If-None-Match", `"x", W/` + etag}, 304, 0, 0, "", true, false},
		{"head, etag known", head, []string{"If-None-Match", etag}, 304, 0, 0, "", true, false},
		{"another etag known", get, []string{"If-None-Match", `"x"`}, 200, 0, size, "", false, false},
		{"if-match holds", get, []string{"If-Match", etag}, 200, 0, size, "", false, false},
		{"if-match fails", get, []string{"If-Match", `"x"`}, 412, 0, 0, "", true, false},
		{"head of a part", head, ranged("10-19"), 206, 10, 20, span(10, 20), true, false},
		{"with compression", get, []string{"Accept-Encoding", "gzip, br, zstd, deflate"}, 200, 0, size, "", false, false},
		{"with nothing but compression", get, []string{"Accept-Encoding", "br;q=1, identity;q=0"}, 200, 0, size, "", false, false},
		{"a part, with compression", get, ranged("7-", "Accept-Encoding", "gzip"), 206, 7, size, span(7, size), false, false},
	}
}

// exactState is a state an object can be in when it is asked for.
type exactState struct {
	name    string
	size    int
	status  string // what Cache-Status must be
	unsized bool   // the size is not known before the object has come in
	ask     func(x *exactSite, c *edgetest.Client, q question, content []byte, name string) *edgetest.Response
}

// exactSite is an edge, its origin, and the paths that were announced for it.
type exactSite struct {
	t *testing.T
	e *edgetest.Edge
	d *depot

	paths map[string]string
}

// ask sends the question.
func (q question) ask(c *edgetest.Client, path string) *edgetest.Response {
	return c.Try(q.method, path, "", q.header...)
}

func askCold(x *exactSite, c *edgetest.Client, q question, content []byte, name string) *edgetest.Response {
	x.d.answer(x.paths[name], whole(content))
	return q.ask(c, x.paths[name])
}

func askColdUnsized(x *exactSite, c *edgetest.Client, q question, content []byte, name string) *edgetest.Response {
	x.d.answer(x.paths[name], unsized(content))
	return q.ask(c, x.paths[name])
}

func askStored(x *exactSite, c *edgetest.Client, q question, content []byte, name string) *edgetest.Response {
	x.d.answer(x.paths[name], whole(content))
	if r := c.Get(x.paths[name]); r.Status != 200 || r.Err != nil || !bytes.Equal(r.Body, content) {
		x.t.Fatalf("to have it stored: status %d, %d bytes, %v", r.Status, len(r.Body), r.Err)
	}
	x.storedBy(c, x.paths[name])
	return q.ask(c, x.paths[name])
}

// storedBy waits until an object that was read to its end has got its place: that follows after its last byte.
func (x *exactSite) storedBy(c *edgetest.Client, path string) {
	edgetest.Eventually(x.t, "the object is stored", func() bool {
		return strings.HasPrefix(c.Do("HEAD", path, "").Header.Get("Cache-Status"), "capgo-edge; hit")
	})
}

func askStoredOriginDead(x *exactSite, c *edgetest.Client, q question, content []byte, name string) *edgetest.Response {
	x.d.answer(x.paths[name], whole(content))
	c.Get(x.paths[name])
	x.storedBy(c, x.paths[name])
	x.d.die(true)
	defer x.d.die(false)
	return q.ask(c, x.paths[name])
}

func askFilling(sized bool) func(*exactSite, *edgetest.Client, question, []byte, string) *edgetest.Response {
	return func(x *exactSite, c *edgetest.Client, q question, content []byte, name string) *edgetest.Response {
		h := newHold()
		defer h.let()
		path := x.paths[name]
		x.d.answer(path, h.at(content, heldAt, sized))
		before := openedSoFar(x.e)
		first := make(chan *edgetest.Response, 1)
		go func() { first <- x.e.Client(x.t).Try(http.MethodGet, path, "") }()
		<-h.held
		answer := make(chan *edgetest.Response, 1)
		go func() { answer <- q.ask(c, path) }()
		opened(x.t, x.e, before+2)
		var r *edgetest.Response
		if q.early && (sized || q.unsized) {
			select {
			case r = <-answer:
			case <-time.After(10 * time.Second):
				x.t.Error("not answered before the origin goes on, though all that it takes is there")
			}
		}
		h.let()
		if r == nil {
			r = <-answer
		}
		if f := <-first; f.Status != 200 || f.Err != nil || !bytes.Equal(f.Body, content) {
			x.t.Errorf("who came first got status %d, %d bytes, %v", f.Status, len(f.Body), f.Err)
		}
		if n := x.d.asked(path); n != 1 {
			x.t.Errorf("the origin was asked %d times", n)
		}
		return r
	}
}

const (
	statusMiss      = "capgo-edge; fwd=miss; stored"
	statusCollapsed = "capgo-edge; fwd=miss; collapsed"
	statusHit       = "capgo-edge; hit"
	statusMemory    = statusHit
	statusBypass    = "capgo-edge; fwd=bypass; detail=not-stored"
)

// TestExact: whatever state an object is in and whatever it is asked over, the same question has the same answer.
func TestExact(t *testing.T) {
	testExact(t, "", []exactState{
		{"cold", onDiskSize, statusMiss, false, askCold},
		{"cold, small", smallSize, statusMiss, false, askCold},
		{"cold, size unknown", onDiskSize, statusMiss, true, askColdUnsized},
		{"filling", onDiskSize, statusCollapsed, false, askFilling(true)},
		{"filling, size unknown", onDiskSize, statusCollapsed, true, askFilling(false)},
		{"on disk", onDiskSize, statusHit, false, askStored},
		{"in memory", smallSize, statusMemory, false, askStored},
		{"on disk, origin dead", onDiskSize, statusHit, false, askStoredOriginDead},
		{"in memory, origin dead", smallSize, statusMemory, false, askStoredOriginDead},
	})
}

// TestExactBypass is TestExact for objects that the disk cannot take.
func TestExactBypass(t *testing.T) {
	testExact(t, "max_size 1MiB", []exactState{
		{"bypass", bypassSize, statusBypass, false, askCold},
		{"bypass, small", smallSize, statusMiss, false, askCold},
	})
}

func testExact(t *testing.T, global string, states []exactState) {
	x := &exactSite{d: newDepot(t), paths: map[string]string{}}
	contents := map[int][]byte{}
	protocols := []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2, edgetest.HTTP3}
	name := func(protocol string, s exactState, i int) string { return fmt.Sprintf("%s %s %d", protocol, s.name, i) }
	for _, s := range states { // each question meets an object of its own, so that none changes another's state
		contents[s.size] = randomBytes(s.size)
		for _, protocol := range protocols {
			for i := range questions(s.size, "") {
				x.paths[name(protocol, s, i)] = x.d.add(name(protocol, s, i), contents[s.size], nil)
			}
		}
	}
	stuckContent := randomBytes(onDiskSize)
	stuck := addStuck(x.d, stuckContent)
	x.d.announceAll()
	c := x.d.config()
	c.Storage = global
	x.e = edgetest.Start(t, c)
	if global == "" && !testing.Short() { // it goes on beside all else, since it takes its time
		judge := askStuck(t, x.e, stuck, stuckContent)
		defer t.Run("a size that never comes", judge)
	}
	x.e.AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
		for _, s := range states {
			t.Run(s.name, func(t *testing.T) {
				content := contents[s.size]
				for i, q := range questions(s.size, `"`+digest(content)+`"`) {
					t.Run(q.name, func(t *testing.T) {
						x := &exactSite{t, x.e, x.d, x.paths}
						r := s.ask(x, c, q, content, name(c.Protocol, s, i))
						q.judge(t, r, content, s)
						if want := map[string]string{edgetest.HTTP2: "HTTP/2.0", edgetest.HTTP3: "HTTP/3.0"}[c.Protocol]; want != "" && r.Proto != want {
							t.Errorf("it came over %s", r.Proto)
						}
					})
				}
			})
		}
	})
}

// judge holds an answer to what was asked. s says what may differ between the states of an object.
func (q question) judge(t *testing.T, r *edgetest.Response, content []byte, s exactState) {
	t.Helper()
	if r.Status != q.status || r.Err != nil {
		t.Fatalf("status %d, want %d; %d bytes, %v, %v", r.Status, q.status, len(r.Body), r.Err, r.Header)
	}
	if got := r.Header.Get("Cache-Status"); got != s.status {
		t.Errorf("Cache-Status %q, want %q", got, s.status)
	}
	if got := r.Header.Get("Content-Encoding"); got != "" {
		t.Errorf("Content-Encoding %q", got)
	}
	if got := r.Header.Get("Content-Range"); got != q.span {
		t.Errorf("Content-Range %q, want %q", got, q.span)
	}
	etag := `"` + digest(content) + `"`
	if got := r.Header.Get("ETag"); got != etag && q.status != 416 {
		t.Errorf("ETag %q, want %q", got, etag)
	}
	if q.status >= 300 {
		if bytes.Contains(r.Body, content[:20]) {
			t.Error("the body holds the object")
		}
		return
	}
	body := content[q.from:q.to]
	length := strconv.Itoa(len(body))
	if waits := strings.Contains(fmt.Sprint(q.header), "Range") || strings.Contains(fmt.Sprint(q.header), "If-"); s.unsized && !waits {
		length = "" // nobody knew it when the answer began, unless all had come by then
	}
	if got := r.Header.Get("Content-Length"); got != length && (s.status != statusMiss || got != strconv.Itoa(len(body))) {
		t.Errorf("Content-Length %q, want %q", got, length)
	}
	if q.method == http.MethodHead {
		body = nil
	}
	if !bytes.Equal(r.Body, body) {
		t.Errorf("body of %d bytes is not bytes %d to %d", len(r.Body), q.from, q.to)
	}
	sum := sha256.Sum256(content)
	for name, want := range map[string]string{
		"Cache-Control":           "public, max-age=31536000, immutable, no-transform",
		"Content-Type":            "application/zip",
		"Content-Disposition":     "attachment",
		"X-Content-Type-Options":  "nosniff",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
		"Accept-Ranges":           "bytes",
		"Repr-Digest":             "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestBypassUnsized: where an object's size is not known, and never will be because the disk cannot take it, a range is
// refused: a 200 would be glued to what an old phone has, and a part would look like the whole.
func TestBypassUnsized(t *testing.T) {
	d := newDepot(t)
	content := randomBytes(onDiskSize)
	path := d.add("bypass", content, unsized(content))
	d.announceAll()
	c := d.config()
	c.Storage = "min_free 1PiB" // no disk has as much, so nothing is kept
	edgetest.Start(t, c).AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
		if r := c.Get(path); outcome(r, content) != "whole" || cacheStatus(r) != statusBypass {
			t.Errorf("whole: %s, %v, %v", outcome(r, content), r.Err, r.Header)
		}
		if r := c.Do(http.MethodHead, path, ""); r.Status != 200 || r.Header.Get("Content-Length") != "" {
			t.Errorf("head: status %d, %v", r.Status, r.Header)
		}
		for _, spec := range []string{"0-99", "0-", "50-", "50-99", "-1"} {
			r := c.Get(path, "Range", "bytes="+spec)
			if r.Status != 503 || r.Err != nil || bytes.Contains(r.Body, content[:20]) {
				t.Errorf("bytes=%s: status %d, %d bytes, %v, %v", spec, r.Status, len(r.Body), r.Err, r.Header)
			}
		}
	})
}

// TestFarRange: a range far ahead of what has come in is read from the origin by itself, but for the end of the object,
// which nobody gets before the whole was verified. Where the origin does not give it, the range waits for the fill.
func TestFarRange(t *testing.T) {
	const size, far = 6 << 20, 5 << 20
	content := randomBytes(size)
	for _, origin := range []struct {
		name   string
		answer http.HandlerFunc
		early  bool // a range far ahead comes before the origin goes on
	}{
		{"good", whole(content), true},
		{"without ranges", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			plain(content)(w, r)
		}, true},
		{"busy", status(503)(nil), false},
		{"changed", tagged(randomBytes(size), `"v2"`), false},
	} {
		t.Run(origin.name, func(t *testing.T) {
			d := newDepot(t)
			holds, paths := map[string]*hold{}, map[string]string{}
			for _, protocol := range []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2, edgetest.HTTP3} {
				h := newHold()
				var first sync.Once
				holds[protocol] = h
				paths[protocol] = d.add(protocol, content, func(w http.ResponseWriter, r *http.Request) {
					answer := origin.answer
					first.Do(func() { answer = h.at(content, heldAt, true) })
					answer(w, r)
				})
			}
			d.announceAll()
			e := edgetest.Start(t, d.config())
			e.AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
				h, path := holds[c.Protocol], paths[c.Protocol]
				defer h.let()
				before := openedSoFar(e)
				all := make(chan *edgetest.Response, 1)
				go func() { all <- c.Try(http.MethodGet, path, "") }()
				<-h.held
				parts := make(chan *edgetest.Response, 3)
				ranges := map[string][]byte{ // by what Content-Range must be
					fmt.Sprintf("%d-%d", far, far+999):   content[far : far+1000],
					fmt.Sprintf("%d-%d", far, size-1):    content[far:],
					fmt.Sprintf("%d-%d", far+5, size-10): content[far+5 : size-9],
				}
				for spec := range ranges {
					go func() { parts <- c.Try(http.MethodGet, path, "", "Range", "bytes="+spec) }()
				}
				opened(t, e, before+4)
				left := len(ranges)
				judge := func(r *edgetest.Response) {
					left--
					span := strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes "), fmt.Sprintf("/%d", size))
					want, ok := ranges[span]
					if r.Status != 206 || r.Err != nil || !ok || !bytes.Equal(r.Body, want) {
						t.Errorf("status %d, %q, %d bytes, %v", r.Status, span, len(r.Body), r.Err)
					}
				}
				if origin.early {
					judge(<-parts) // this is the one that needs nothing of the end
				}
				h.let()
				for left > 0 {
					judge(<-parts)
				}
				if r := <-all; outcome(r, content) != "whole" {
					t.Errorf("who reads all: %s (%v)", outcome(r, content), r.Err)
				}
				if n := d.asked(path); n > 4 || origin.early && n < 2 {
					t.Errorf("%d GETs, of which one is the fill's and one each range's at the most", n)
				}
			})
		})
	}
}

// TestOpaqueObjects: of an encrypted object the manifest knows no digest. Its ETag is made of what the origin tells, and is
// the same in every state, and at another edge.
func TestOpaqueObjects(t *testing.T) {
	d := newDepot(t)
	content := randomBytes(bypassSize)
	path := d.add("opaque", content, whole(content))
	d.rows[0]["session_key"] = "aXY=:a2V5"
	d.announceAll()
	tags := map[string]bool{}
	for _, global := range []string{"", "max_size 1MiB"} {
		c := d.config()
		c.Storage = global
		edgetest.Start(t, c).AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
			for _, header := range [][]string{nil, {"Range", "bytes=100-199"}, {"Range", "bytes=-1"}} {
				r := c.Get(path, header...)
				tags[r.Header.Get("ETag")] = true
				if r.Header.Get("Repr-Digest") != "" || r.Header.Get("Cache-Control") != "public, max-age=31536000, immutable, no-transform" {
					t.Errorf("%v", r.Header)
				}
				if header == nil && outcome(r, content) != "whole" || header != nil && r.Status != 206 {
					t.Errorf("%v: status %d, %d bytes, %v", header, r.Status, len(r.Body), r.Err)
				}
			}
		})
	}
	if len(tags) != 1 || tags[""] {
		t.Errorf("ETags: %v", tags)
	}
}

// TestBytesComeAtOnce: an object that comes in is handed on without delay: iOS gives a whole bundle 25 s (protocol 9, trap
// 5). All that the origin has sent is with the client while the origin is held, but for what is kept back to be verified,
// and small change in buffers.
func TestBytesComeAtOnce(t *testing.T) {
	const buffers = 32 << 10
	d := newDepot(t)
	content := randomBytes(onDiskSize)
	holds, paths := map[string]*hold{}, map[string]string{}
	protocols := []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2, edgetest.HTTP3}
	for _, protocol := range protocols {
		for _, sized := range []bool{true, false} {
			name := fmt.Sprint(protocol, sized)
			holds[name] = newHold()
			paths[name] = d.add(name, content, holds[name].at(content, heldAt, sized))
		}
	}
	d.announceAll()
	e := edgetest.Start(t, d.config())
	e.AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
		for sized, visible := range map[bool]int{true: heldAt, false: heldAt - 64<<10} {
			t.Run(fmt.Sprintf("size known %t", sized), func(t *testing.T) {
				name := fmt.Sprint(c.Protocol, sized)
				defer holds[name].let()
				resp, err := c.Open(t.Context(), http.MethodGet, paths[name], "")
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body := make([]byte, onDiskSize)
				late := time.AfterFunc(10*time.Second, holds[name].let)
				n, err := io.ReadFull(resp.Body, body[:visible-buffers])
				if !late.Stop() || err != nil {
					t.Fatalf("%d bytes came while the origin was held, want %d at least: %v", n, visible-buffers, err)
				}
				holds[name].let()
				rest, err := io.ReadAll(resp.Body)
				if !bytes.Equal(append(body[:n], rest...), content) || err != nil {
					t.Errorf("%d bytes in all, %v", n+len(rest), err)
				}
			})
		}
	})
}

// addStuck adds an object whose origin neither tells its size nor sends its end, and cannot resume it.
func addStuck(d *depot, content []byte) string {
	h := newHold() // which nobody lets go
	var first sync.Once
	return d.add("stuck", content, func(w http.ResponseWriter, r *http.Request) {
		answer := hangsUp(nil)
		first.Do(func() { answer = h.at(content, heldAt, false) })
		answer(w, r)
	})
}

// askStuck asks for a stuck object over all protocols. While an origin does not tell the size, a range is not answered at
// all, since a 200 in its place would be glued to what an old phone already has. After 30 s it is told to come again. An
// origin that has stopped sending altogether ends the whole downloads then, too, and never as a success.
func askStuck(t *testing.T, e *edgetest.Edge, path string, content []byte) (judge func(t *testing.T)) {
	type result struct {
		name string
		r    *edgetest.Response
		took time.Duration
	}
	specs := []string{"", "bytes=0-", "bytes=10-", "bytes=-1"}
	protocols := []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2, edgetest.HTTP3}
	results := make(chan result, len(specs)*len(protocols))
	began := time.Now()
	for _, protocol := range protocols {
		for _, spec := range specs {
			c := e.Over(t, protocol)
			var header []string
			if spec != "" {
				header = []string{"Range", spec}
			}
			go func() {
				r := c.Try(http.MethodGet, path, "", header...)
				results <- result{protocol + " " + spec, r, time.Since(began)}
			}()
		}
	}
	opened(t, e, uint64(cap(results)))
	return func(t *testing.T) {
		for range cap(results) {
			got := <-results
			t.Logf("%-21s status %d, %6d bytes, %v after %.1f s", got.name, got.r.Status, len(got.r.Body), got.r.Err, got.took.Seconds())
			switch {
			case !strings.Contains(got.name, "bytes="):
				if got.r.Err == nil || got.r.Status != 200 || !bytes.HasPrefix(content, got.r.Body) {
					t.Errorf("%s: status %d, %d bytes, %v", got.name, got.r.Status, len(got.r.Body), got.r.Err)
				}
			case got.r.Status != 503 || got.r.Err != nil || got.took < 29*time.Second || got.took > time.Minute:
				t.Errorf("%s: status %d, %v, after %s", got.name, got.r.Status, got.r.Err, got.took)
			}
		}
	}
}
