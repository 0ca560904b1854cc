package caddymodule_test

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// originFault is a way in which an origin fails to give an object, and what must come of it.
type originFault struct {
	name string
	// answer makes how the origin answers: n counts its GETs of the object, from 1.
	answer func(content []byte) func(n int, w http.ResponseWriter, r *http.Request)
	clients
	gets  int    // GETs of the object that the origin has to answer at most, in one try
	after string // what a client sees who comes when the origin is dead
}

// clients is what any one of them may see. A client that comes when the try is over is told of its failure.
type clients int

const (
	seeAll     clients = iota // the whole object
	seeCut                    // a right beginning and a broken connection or stream; or what comes after
	seeWrong                  // likewise, but for the bytes, which nobody can judge before the end
	seeFailed                 // 503
	seeMissing                // 404
)

// resets breaks the connection, with what was written before still getting through.
func resets(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// cut breaks off before byte at of the object, the first times of all GETs, counted by n.
func cut(at, times int, good func([]byte) http.HandlerFunc) func([]byte) func(int, http.ResponseWriter, *http.Request) {
	return func(content []byte) func(int, http.ResponseWriter, *http.Request) {
		return func(n int, w http.ResponseWriter, r *http.Request) {
			if n > times {
				good(content)(w, r)
				return
			}
			from := 0
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			upTo := max(from, at)
			if from > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(content)-from))
			w.Header().Set("ETag", `"v1"`)
			if from > 0 {
				w.WriteHeader(http.StatusPartialContent)
			}
			_, _ = w.Write(content[from:upTo])
			resets(w)
		}
	}
}

// every has all GETs answered alike.
func every(answer func(content []byte) http.HandlerFunc) func([]byte) func(int, http.ResponseWriter, *http.Request) {
	return func(content []byte) func(int, http.ResponseWriter, *http.Request) {
		handler := answer(content)
		return func(_ int, w http.ResponseWriter, r *http.Request) { handler(w, r) }
	}
}

// then answers the first GET so, and all further ones otherwise.
func then(first, later func(content []byte) http.HandlerFunc) func([]byte) func(int, http.ResponseWriter, *http.Request) {
	return func(content []byte) func(int, http.ResponseWriter, *http.Request) {
		return func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				first(content)(w, r)
			} else {
				later(content)(w, r)
			}
		}
	}
}

func status(code int) func([]byte) http.HandlerFunc {
	return func([]byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, "an error page of the origin")
		}
	}
}

// flipped is whole with byte at inverted.
func flipped(at int, good func([]byte) http.HandlerFunc) func([]byte) http.HandlerFunc {
	return func(content []byte) http.HandlerFunc {
		wrong := bytes.Clone(content)
		wrong[at] = ^wrong[at]
		return good(wrong)
	}
}

// unsizedCut breaks off at half, without having told how long it would be.
func unsizedCut(etag string) func(content []byte) http.HandlerFunc {
	return func(content []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if etag != "" {
				w.Header().Set("ETag", etag)
			}
			send(w, content[:len(content)/2])
			resets(w)
		}
	}
}

// tells is an origin whose Content-Length is wrong by so much. It ignores ranges.
func tells(more int) func(content []byte) http.HandlerFunc {
	return func(content []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			_, _ = fmt.Fprintf(buf, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: \"v1\"\r\n\r\n", len(content)+more)
			_, _ = buf.Write(content)
			_ = buf.Flush()
		}
	}
}

// plain answers without ETag and Last-Modified, and without ranges.
func plain(content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content)
	}
}

// deaf is another version of the object, told of by a server that does not look at If-Match.
func deaf(content []byte) http.HandlerFunc {
	handler := tagged(randomBytes(len(content)-1), `"v2"`)
	return func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("If-Match")
		handler(w, r)
	}
}

// hangsUp closes the connection without an answer, for which Go's client has io.EOF: that must never look like the end of
// an object. The client may ask once more by itself.
func hangsUp([]byte) http.HandlerFunc {
	return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
}

func other(content []byte) http.HandlerFunc { return tagged(randomBytes(len(content)-1), `"v2"`) }

const half, last = onDiskSize / 2, onDiskSize - 1

// cutThen is a cut of one GET, followed by what later says.
func cutThen(at int, later func([]byte) http.HandlerFunc) func([]byte) func(int, http.ResponseWriter, *http.Request) {
	return cut(at, 1, later)
}

const always = 1 << 30

var originFaults = []originFault{
	{"none", every(whole), seeAll, 1, "whole"},
	{"cut once at 0", cut(0, 1, whole), seeAll, 2, "whole"},
	{"cut once at 1", cut(1, 1, whole), seeAll, 2, "whole"},
	{"cut once at half", cut(half, 1, whole), seeAll, 2, "whole"},
	{"cut once at the last byte", cut(last, 1, whole), seeAll, 2, "whole"},
	{"cut twice at half", cut(half, 2, whole), seeCut, 2, "503"},
	{"cut always at 0", cut(0, always, whole), seeFailed, 2, "503"},
	{"cut always at 1", cut(1, always, whole), seeCut, 2, "503"},
	{"cut always at half", cut(half, always, whole), seeCut, 2, "503"},
	{"cut always at the last byte", cut(last, always, whole), seeCut, 2, "503"},
	{"cut once at half, no ranges, no ETag", then(func(c []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(c)))
			_, _ = w.Write(c[:half])
			resets(w)
		}
	}, plain), seeAll, 2, "whole"},
	{"unsized", every(unsized), seeAll, 1, "whole"},
	{"unsized, cut once at half", then(unsizedCut(`"v1"`), whole), seeAll, 2, "whole"},
	{"unsized, cut once, no ranges", then(unsizedCut(""), unsized), seeCut, 2, "503"},
	{"unsized, cut always at half", every(unsizedCut(`"v1"`)), seeCut, 2, "503"},
	{"length told 10 too large", every(tells(10)), seeCut, 2, "503"},
	{"length told 10 too small", every(tells(-10)), seeCut, 1, "503"},
	{"wrong digest, first byte", every(flipped(0, whole)), seeWrong, 1, "503"},
	{"wrong digest, last byte", every(flipped(last, whole)), seeWrong, 1, "503"},
	{"wrong digest, unsized", every(flipped(half, unsized)), seeWrong, 1, "503"},
	{"cut at half, then another ETag", cutThen(half, other), seeCut, 2, "503"},
	{"cut at half, then another ETag, no If-Match", cutThen(half, deaf), seeCut, 2, "503"},
	{"cut at half, then 404", cutThen(half, status(404)), seeCut, 2, "404"},
	{"cut at half, then 500", cutThen(half, status(500)), seeCut, 2, "503"},
	{"cut at half, then hangs up", cutThen(half, hangsUp), seeCut, 3, "503"},
	{"unsized, cut at half, then hangs up", then(unsizedCut(`"v1"`), hangsUp), seeCut, 3, "503"},
	{"hangs up", every(hangsUp), seeFailed, 2, "503"},
	{"status 403", every(status(403)), seeFailed, 1, "503"},
	{"status 404", every(status(404)), seeMissing, 1, "404"},
	{"status 410", every(status(410)), seeMissing, 1, "404"},
	{"status 500", every(status(500)), seeFailed, 1, "503"},
	{"status 503", every(status(503)), seeFailed, 1, "503"},
	{"status 302 to another host", every(func([]byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://other.invalid/x.zip", http.StatusFound)
		}
	}), seeFailed, 1, "503"},
	{"gzip although asked not to", every(func(c []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			plain(c)(w, r)
		}
	}), seeFailed, 1, "503"},
}

// TestFaults is the table of what goes wrong at an origin, by how many ask and over what. A client may get the whole
// object, or a part of it with a broken connection or stream, or a refusal; never a wrong body that looks whole. The
// last column is what a client gets after that, from an edge whose origin is dead.
func TestFaults(t *testing.T) {
	d := newDepot(t)
	content := randomBytes(onDiskSize)
	paths := map[string]string{}
	each := func(do func(f originFault, protocol string, n int, name string)) {
		for _, f := range originFaults {
			for _, protocol := range []string{edgetest.HTTP1, edgetest.HTTP2} {
				for _, n := range []int{1, 50} {
					do(f, protocol, n, fmt.Sprintf("%s/%s/%d", f.name, protocol, n))
				}
			}
		}
	}
	each(func(f originFault, _ string, _ int, name string) {
		answer := f.answer(content)
		var gets atomic.Int32
		paths[name] = d.add(name, content, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				gets.Add(1)
			}
			answer(int(gets.Load()), w, r)
		})
	})
	d.announceAll()
	e := edgetest.Start(t, d.config())
	table := newReport("fault", "protocol", "clients", "what they see", "GETs", "then, origin dead")
	each(func(f originFault, protocol string, n int, name string) {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			seen := askAll(e.Over(t, protocol), paths[name], n)
			tries := 1 + int(time.Since(began)/time.Second) // a failure is remembered for a second, more or less
			for _, r := range seen {
				f.judge(t, r, content)
			}
			gets := d.asked(paths[name])
			if gets > f.gets*tries || f.clients == seeAll && gets != f.gets {
				t.Errorf("%d GETs, want %d", gets, f.gets)
			}
			after := f.afterwards(t, e.Over(t, protocol), d, paths[name], content)
			table.row(f.name, protocol, n, outcomes(seen, content), gets, outcome(after, content)+" "+cacheStatus(after))
		})
	})
	t.Logf("what clients see of an origin's faults, for an object of %d bytes:\n%s", len(content), table)
}

// askAll has n clients ask at once.
func askAll(c *edgetest.Client, path string, n int) []*edgetest.Response {
	seen := make([]*edgetest.Response, n)
	var wg sync.WaitGroup
	for i := range seen {
		wg.Go(func() { seen[i] = c.Try(http.MethodGet, path, "") })
	}
	wg.Wait()
	return seen
}

func (f *originFault) judge(t *testing.T, r *edgetest.Response, content []byte) {
	t.Helper()
	if r.Status == 200 && f.clients != seeWrong && !bytes.HasPrefix(content, r.Body) {
		t.Errorf("%d bytes that are no beginning of the object", len(r.Body))
	}
	got := outcome(r, content)
	ok := false
	switch f.clients {
	case seeAll:
		ok = got == "whole"
	case seeCut, seeWrong:
		ok = got == f.after || strings.HasPrefix(got, "cut")
	case seeFailed:
		ok = got == "503"
	case seeMissing:
		ok = got == "404"
	}
	if !ok {
		t.Errorf("a client sees %s (%v)", got, r.Err)
	}
	if r.Status >= 400 && (r.Header.Get("Cache-Control") != "no-store" || r.JSON(t)["error"] == nil || r.Header.Get("ETag") != "") {
		t.Errorf("status %d with %v %s", r.Status, r.Header, r.Body)
	}
}

// afterwards is what one client gets from an edge whose origin is dead.
func (f *originFault) afterwards(t *testing.T, c *edgetest.Client, d *depot, path string, content []byte) *edgetest.Response {
	t.Helper()
	if f.after == "whole" { // which is stored a moment after its last byte was read
		edgetest.Eventually(t, "the object is stored", func() bool {
			return cacheStatus(c.Do(http.MethodHead, path, "")) == statusHit
		})
	}
	d.die(true)
	defer d.die(false)
	var r *edgetest.Response
	edgetest.Eventually(t, "from an edge whose origin is dead comes "+f.after, func() bool {
		r = c.Get(path) // which may at first join the try that has just failed, and is cut like the others then
		got := outcome(r, content)
		if got != f.after && !strings.HasPrefix(got, "cut") {
			t.Errorf("from an edge whose origin is dead: %s, want %s", got, f.after)
		}
		return got == f.after || t.Failed()
	})
	return r
}

// outcome says in a word what a client sees.
func outcome(r *edgetest.Response, content []byte) string {
	switch {
	case r.Status == 0:
		return "no answer"
	case r.Status == 200 && r.Err == nil && bytes.Equal(r.Body, content):
		return "whole"
	case r.Status == 200 && r.Err != nil:
		return fmt.Sprintf("cut at %d", len(r.Body))
	case r.Status == 200:
		return fmt.Sprintf("WRONG, %d bytes", len(r.Body))
	}
	return fmt.Sprint(r.Status)
}

func cacheStatus(r *edgetest.Response) string { return r.Header.Get("Cache-Status") }

// outcomes counts what clients see, the same together.
func outcomes(seen []*edgetest.Response, content []byte) string {
	counts := map[string]int{}
	for _, r := range seen {
		counts[outcome(r, content)]++
	}
	var parts []string
	for what, n := range counts {
		parts = append(parts, fmt.Sprintf("%d x %s", n, what))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// report is a table for people.
type report struct {
	text strings.Builder
	tab  *tabwriter.Writer
}

func newReport(columns ...any) *report {
	r := new(report)
	r.tab = tabwriter.NewWriter(&r.text, 0, 0, 2, ' ', 0)
	r.row(columns...)
	return r
}

func (r *report) row(cells ...any) {
	for _, cell := range cells {
		_, _ = fmt.Fprintf(r.tab, "%v\t", cell)
	}
	_, _ = fmt.Fprintln(r.tab)
}

func (r *report) String() string {
	_ = r.tab.Flush() // it writes to memory
	return r.text.String()
}

// TestStall: while an origin stalls, clients have what came and wait; once it goes on, they get all. That an origin is
// given up after 30 s is TestRangeWaitsForSize.
func TestStall(t *testing.T) {
	const buffers = 32 << 10
	d := newDepot(t)
	content := randomBytes(onDiskSize)
	holds, paths := map[string]*hold{}, map[string]string{}
	each := func(do func(protocol string, n, at int, name string)) {
		for _, protocol := range []string{edgetest.HTTP1, edgetest.HTTP2} {
			for _, n := range []int{1, 50} {
				for _, at := range []int{0, 1, half, last} {
					do(protocol, n, at, fmt.Sprintf("stall at %d/%s/%d", at, protocol, n))
				}
			}
		}
	}
	each(func(_ string, _, at int, name string) {
		holds[name] = newHold()
		paths[name] = d.add(name, content, holds[name].at(content, at, true))
	})
	d.announceAll()
	e := edgetest.Start(t, d.config())
	table := newReport("stall at", "protocol", "clients", "each has meanwhile", "and then", "GETs")
	each(func(protocol string, n, at int, name string) {
		t.Run(name, func(t *testing.T) {
			defer holds[name].let()
			c := e.Over(t, protocol)
			visible := min(at, len(content)-64<<10) // the rest is kept back until it was verified
			before := openedSoFar(e)
			var progress []*atomic.Int64
			seen := make([]*edgetest.Response, n)
			var wg sync.WaitGroup
			for i := range seen {
				got := new(atomic.Int64)
				progress = append(progress, got)
				wg.Go(func() { seen[i] = watch(t, c, paths[name], got) })
			}
			opened(t, e, before+uint64(n))
			low, high := int64(0), int64(0)
			edgetest.Eventually(t, "all have what came", func() bool {
				low, high = bounds(progress)
				return low >= int64(visible-buffers)
			})
			if high > int64(visible) {
				t.Errorf("a client has %d bytes, of which not more than %d may be seen", high, visible)
			}
			holds[name].let()
			wg.Wait()
			if got := outcomes(seen, content); got != fmt.Sprintf("%d x whole", n) {
				t.Error(got)
			}
			if gets := d.asked(paths[name]); gets != 1 {
				t.Errorf("%d GETs", gets)
			}
			table.row(at, protocol, n, fmt.Sprintf("%d to %d bytes", low, high), outcomes(seen, content), d.asked(paths[name]))
		})
	})
	t.Logf("an origin that stalls, and then goes on:\n%s", table)
}

// watch reads an object and tells how far it is.
func watch(t *testing.T, c *edgetest.Client, path string, got *atomic.Int64) *edgetest.Response {
	resp, err := c.Open(t.Context(), http.MethodGet, path, "")
	if err != nil {
		return &edgetest.Response{Err: err}
	}
	defer resp.Body.Close()
	r := &edgetest.Response{Status: resp.StatusCode, Header: resp.Header}
	buf := make([]byte, 16<<10)
	for r.Err == nil {
		n, err := resp.Body.Read(buf)
		r.Body, r.Err = append(r.Body, buf[:n]...), err
		got.Add(int64(n))
	}
	if r.Err == io.EOF {
		r.Err = nil
	}
	return r
}

func bounds(progress []*atomic.Int64) (low, high int64) {
	low = 1 << 60
	for _, p := range progress {
		low, high = min(low, p.Load()), max(high, p.Load())
	}
	return low, high
}

// TestUntrustedOrigin: an origin whose certificate is not trusted is asked for nothing, not even for its manifest.
func TestUntrustedOrigin(t *testing.T) {
	s := newSite(t)
	s.publish("1.0.1", onDiskSize)
	var asked atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.FileServer(http.Dir(s.dir)).ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes, which are to fail
	server.StartTLS()
	defer server.Close()
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n origin http " + server.URL + "\n}\n"})
	e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
		for _, n := range []int{1, 50} {
			for _, r := range askAll(c, "/files/read/attachments/"+s.zipKey("1.0.1"), n) {
				if r.Status != 503 || r.JSON(t)["error"] == nil || r.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("status %d, %v, %s", r.Status, r.Header, r.Body)
				}
			}
		}
	})
	if asked.Load() != 0 {
		t.Errorf("the origin was asked %d times", asked.Load())
	}
}

// TestCutIsSeen: a body that the origin breaks off is a broken connection or stream over every protocol, whether its length
// was told or not.
func TestCutIsSeen(t *testing.T) {
	d := newDepot(t)
	content := randomBytes(onDiskSize)
	paths := map[string]string{}
	for _, protocol := range []string{edgetest.HTTP1, edgetest.HTTP1TLS, edgetest.HTTP2, edgetest.HTTP3} {
		paths[protocol+" sized"] = d.add(protocol+" sized", content, func(w http.ResponseWriter, r *http.Request) {
			cut(half, always, whole)(content)(1, w, r)
		})
		paths[protocol+" unsized"] = d.add(protocol+" unsized", content, unsizedCut(`"v1"`)(content))
	}
	d.announceAll()
	edgetest.Start(t, d.config()).AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
		for _, kind := range []string{" sized", " unsized"} {
			r := c.Try("GET", paths[c.Protocol+kind], "")
			t.Logf("%s: %s, %v", kind, outcome(r, content), r.Err)
			if c.Protocol == edgetest.HTTP3 && r.Status == 0 { // the reset of a stream may overtake its headers (RFC 9000, section 2.4)
				continue
			}
			if got := outcome(r, content); !strings.HasPrefix(got, "cut") || !bytes.HasPrefix(content, r.Body) {
				t.Errorf("%s: %s", kind, got)
			}
		}
	})
}
