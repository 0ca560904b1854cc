package caddymodule_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestHerd: many phones ask for the same new bundle while it comes in; the origin is asked once, and every phone gets the
// right bytes. TestHerdOfAThousand is its long form.
func TestHerd(t *testing.T) {
	o := newHerdOrigin(t, 2, 2<<20)
	o.pace = 300 * time.Millisecond
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n origin http " + o.address + "\n}\n"})
	for i, base := range []string{e.HTTP, e.HTTPS} { // over HTTP/1.1 and HTTP/2
		h := herd{base: base, key: herdKey(i), want: o.body, phones: 100, over: o.pace}
		for _, p := range h.run(t) {
			if p.err != nil {
				t.Errorf("%s: %v", base, p.err)
			}
		}
		if n := o.askedFor(herdKey(i)); n != 1 {
			t.Errorf("%s: the origin was asked %d times", base, n)
		}
	}
}

// TestHerdOfAThousand is no test but .ci/herd, which says what it measures. It runs the edge from the binary at
// CAPGO_EDGE_HERD in a process of its own, whose memory it reads; the phones and the origin are in this one.
func TestHerdOfAThousand(t *testing.T) {
	binary := os.Getenv("CAPGO_EDGE_HERD")
	if binary == "" {
		t.Skip("CAPGO_EDGE_HERD is not set: this runs only in .ci/herd")
	}
	phones, rounds := number(t, "CAPGO_EDGE_HERD_PHONES"), number(t, "CAPGO_EDGE_HERD_ROUNDS")
	const size, rate, takes = 20 << 20, 1 << 20, 3 * time.Second
	o := newHerdOrigin(t, rounds+2, size)
	edge := startProcess(t, binary, "capgo_edge {\n origin http "+o.address+"\n}\n")
	base := edge.http
	if os.Getenv("CAPGO_EDGE_HERD_SCHEME") == "https" {
		base = edge.https
	}
	fmt.Printf("%d phones, a bundle of %d MiB, %s\n\n", phones, size>>20, base)
	var m musts

	// (a) The bundle is new, the origin slow, and so are the phones.
	o.pace = takes
	direct := o.firstByte(t, herdKey(rounds+1))
	(&herd{base: base, key: "none", phones: 1}).open(t, 0) // so that what a first connection takes counts as idle
	idle := edge.anonymous(t)
	peak := edge.watch(t)
	h := herd{base: base, key: herdKey(rounds), want: o.body, phones: phones, over: takes, rate: rate}
	began := time.Now()
	all := h.run(t)
	took := time.Since(began)
	top := peak()
	var firsts, rates []float64
	broken := 0
	for _, p := range all {
		if p.err != nil {
			broken++
			t.Error(p.err)
			continue
		}
		firsts = append(firsts, seconds(p.first))
		rates = append(rates, size/seconds(p.took)/(1<<20))
	}
	slices.Sort(firsts)
	slices.Sort(rates)
	fmt.Printf("(a) a cold bundle from an origin that takes %s, asked for over %s, at most %d MiB/s a phone\n", takes, takes, rate>>20)
	fmt.Printf("    %.1f s in all, %.0f MB/s; a phone %.3f MiB/s (median; %.3f to %.3f); first byte of the origin itself %.1f ms\n",
		seconds(took), float64(phones)*size/1e6/seconds(took), at(rates, 0.5), at(rates, 0), at(rates, 1), 1e3*seconds(direct))
	m.exactly("(a) requests to the origin", o.askedFor(herdKey(rounds)), 1)
	m.exactly("(a) phones whose body is not right", broken, 0)
	m.most("(a) first byte, median, ms behind the origin's", 1e3*(at(firsts, 0.5)-seconds(direct)), 20)
	m.most("(a) first byte, p99, ms behind the origin's", 1e3*(at(firsts, 0.99)-seconds(direct)), 250)
	m.most("(a) anonymous memory, KiB a phone", float64(top-idle)/float64(phones), 96)
	fmt.Printf("    first byte: median %.1f, p99 %.1f, last %.1f ms; anonymous memory %d KiB idle, %d KiB at the peak\n\n",
		1e3*at(firsts, 0.5), 1e3*at(firsts, 0.99), 1e3*at(firsts, 1), idle, top)

	// (b) All at once, as fast as they can.
	o.pace = 0
	var ratios []float64
	fmt.Printf("(b) all at once, as fast as they can, by turns\n")
	for i := range rounds {
		var speeds [2]float64
		for stored := range 2 { // cold, then from the store
			h := herd{base: base, key: herdKey(i), want: o.body, phones: phones}
			broken, speed := 0, 0.0
			peak := edge.watch(t)
			slowest := 0.0
			for _, p := range h.run(t) {
				if p.err != nil {
					broken++
					t.Error(p.err)
				}
				slowest = max(slowest, seconds(p.took))
			}
			speed = float64(phones) * size / 1e6 / slowest
			speeds[stored] = speed
			what := [...]string{"cold", "stored"}[stored]
			fmt.Printf("    round %d, %-6s %6.0f MB/s, %6.2f s, anonymous memory %d KiB\n", i+1, what, speed, slowest, peak())
			if broken > 0 || i == rounds-1 {
				m.exactly("(b) phones whose body is not right, "+what, broken, 0)
			}
			edge.stored(t, herdKey(i))
		}
		ratios = append(ratios, speeds[0]/speeds[1])
		if n := o.askedFor(herdKey(i)); n != 1 || i == rounds-1 {
			m.exactly("(b) requests to the origin, a bundle", n, 1)
		}
	}
	slices.Sort(ratios)
	m.least(fmt.Sprintf("(b) cold / stored, median (%.2f to %.2f)", at(ratios, 0), at(ratios, 1)), at(ratios, 0.5), 0.8)
	fmt.Printf("\n%s", m.table.String())
	if m.missed {
		t.Error("not all that must be is")
	}
}

// musts is a table of what must be and what is.
type musts struct {
	table  strings.Builder
	missed bool
}

func (m *musts) exactly(what string, is, must int) {
	m.row(what, strconv.Itoa(is), strconv.Itoa(must), is == must)
}

func (m *musts) most(what string, is, must float64) {
	m.row(what, fmt.Sprintf("%.2f", is), fmt.Sprintf("<= %g", must), is <= must)
}

func (m *musts) least(what string, is, must float64) {
	m.row(what, fmt.Sprintf("%.2f", is), fmt.Sprintf(">= %g", must), is >= must)
}

func (m *musts) row(what, is, must string, ok bool) {
	verdict := "pass"
	if !ok {
		verdict, m.missed = "MISS", true
	}
	fmt.Fprintf(&m.table, "%-58s %10s  must be %-8s %s\n", what, is, must, verdict)
}

func seconds(d time.Duration) float64 { return d.Seconds() }

// at is a quantile of sorted values.
func at(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

func number(t *testing.T, name string) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil || n < 1 {
		t.Fatalf("%s must be a number: %q", name, os.Getenv(name))
	}
	return n
}

// herdOrigin is a web server with one app and some bundles, all of the same bytes, which it sends at its own pace.
type herdOrigin struct {
	address string
	body    []byte
	pace    time.Duration // how long a bundle takes

	mu    sync.Mutex
	asked map[string]int // guarded by mu
}

func herdKey(i int) string { return fmt.Sprintf("orgs/o/apps/%s/1.0.%d.zip", appID, i) }

func newHerdOrigin(t testing.TB, bundles, size int) *herdOrigin {
	t.Helper()
	o := &herdOrigin{body: randomBytes(size), asked: map[string]int{}}
	versions := make([]any, bundles)
	for i := range versions {
		versions[i] = map[string]any{
			"id": i + 1, "name": fmt.Sprintf("1.0.%d", i), "r2_path": herdKey(i), "checksum": digest(o.body),
		}
	}
	manifest, err := json.Marshal(map[string]any{
		"app": map[string]any{"app_id": appID}, "versions": versions,
		"channels": []any{map[string]any{"id": 1, "name": "production", "public": true, "version": 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := strings.TrimPrefix(r.URL.Path, "/")
		if strings.HasPrefix(key, "manifests/") {
			_, _ = w.Write(manifest)
			return
		}
		o.mu.Lock()
		o.asked[key]++
		o.mu.Unlock()
		o.send(w)
	}))
	t.Cleanup(server.Close)
	o.address = server.URL
	return o
}

// send writes the bundle in steps, the first of them at once.
func (o *herdOrigin) send(w http.ResponseWriter) {
	w.Header().Set("Content-Length", strconv.Itoa(len(o.body)))
	w.Header().Set("ETag", `"herd"`)
	const steps = 300
	began, step := time.Now(), len(o.body)/steps+1
	for i := 0; i*step < len(o.body); i++ {
		time.Sleep(time.Until(began.Add(o.pace * time.Duration(i) / steps)))
		if _, err := w.Write(o.body[i*step : min((i+1)*step, len(o.body))]); err != nil {
			return
		}
		if o.pace > 0 {
			_ = http.NewResponseController(w).Flush() // a client that left is seen at the next write
		}
	}
}

func (o *herdOrigin) askedFor(key string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[key]
}

// firstByte is how long the origin itself takes to its first byte: the median of some requests.
func (o *herdOrigin) firstByte(t *testing.T, key string) time.Duration {
	t.Helper()
	var took []float64
	for range 9 {
		began := time.Now()
		resp, err := http.Get(o.address + "/" + key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadFull(resp.Body, make([]byte, 1))
		took = append(took, seconds(time.Since(began)))
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(took)
	return time.Duration(at(took, 0.5) * float64(time.Second))
}

// herd is phones that want the same object.
type herd struct {
	base, key string
	want      []byte
	phones    int
	over      time.Duration // from the first request to the last
	rate      int           // bytes a second that a phone reads at the most; 0: as fast as it can
}

// phone is what one of them saw, from its request on.
type phone struct {
	first, took time.Duration // to the first byte of the body, and to the last
	err         error
}

// run sends them. Each has a connection of its own, which is open before: a phone has asked for an update over it.
func (h *herd) run(t testing.TB) []phone {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	clients := make([]*http.Client, h.phones)
	var wg sync.WaitGroup
	limit := make(chan struct{}, 50) // a thousand handshakes at once are another test
	for i := range clients {
		limit <- struct{}{}
		wg.Go(func() {
			clients[i] = h.open(t, i)
			<-limit
		})
	}
	wg.Wait()
	seen := make([]phone, h.phones)
	began := time.Now()
	for i := range seen {
		due := began.Add(h.over * time.Duration(i) / time.Duration(h.phones))
		wg.Go(func() {
			time.Sleep(time.Until(due))
			seen[i] = h.download(ctx, clients[i])
		})
	}
	wg.Wait()
	for _, c := range clients {
		c.CloseIdleConnections()
	}
	return seen
}

// open returns a client with an open connection, whose buffers in the kernel are those of a phone: else they would hold
// whole bundles, and no server would ever wait for a client.
func (h *herd) open(t testing.TB, i int) *http.Client {
	t.Helper()
	dialer := &net.Dialer{}
	transport := &http.Transport{
		DisableCompression: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 512 << 10},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return conn, conn.(*net.TCPConn).SetReadBuffer(256 << 10)
		},
	}
	client := &http.Client{Transport: transport}
	resp, err := client.Get(h.base + "/ok")
	if err != nil {
		t.Errorf("phone %d: %v", i, err)
		return client
	}
	_, _ = io.Copy(io.Discard, resp.Body) // so that the connection is kept
	_ = resp.Body.Close()
	return client
}

// download compares what comes with the bundle byte by byte, which takes less of the machine than a digest.
func (h *herd) download(ctx context.Context, client *http.Client) (p phone) {
	began := time.Now()
	fail := func(at int, err error) phone {
		p.err = fmt.Errorf("after %d bytes and %s: %w", at, time.Since(began).Round(time.Millisecond), err)
		return p
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.base+"/files/read/attachments/"+h.key, nil)
	if err != nil {
		return fail(0, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fail(0, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fail(0, errors.New(resp.Status))
	}
	buf := make([]byte, 64<<10)
	for have := 0; ; {
		n, err := resp.Body.Read(buf)
		if have == 0 && n > 0 {
			p.first = time.Since(began)
		}
		if have+n > len(h.want) || !bytes.Equal(buf[:n], h.want[have:have+n]) {
			return fail(have, errors.New("the bytes are not those of the bundle"))
		}
		have += n
		switch {
		case errors.Is(err, io.EOF) && have < len(h.want):
			return fail(have, io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF):
			p.took = time.Since(began)
			return p
		case err != nil:
			return fail(have, err)
		}
		if h.rate > 0 {
			time.Sleep(time.Until(began.Add(time.Duration(have) * time.Second / time.Duration(h.rate))))
		}
	}
}

// process is Caddy in a process of its own.
type process struct {
	http, https string
	pid         int
}

// startProcess runs Caddy from a binary with one site, until the test ends.
func startProcess(t testing.TB, binary, site string) *process {
	t.Helper()
	dir := t.TempDir()
	plain, secure := edgetest.FreePort(t), edgetest.FreePort(t)
	config := fmt.Sprintf(`{
	admin off
	persist_config off
	skip_install_trust
	auto_https disable_redirects
	storage file_system %[1]s/caddy
	capgo_edge {
		storage %[1]s/edge
	}
}
(site) {
	bind 127.0.0.1
	%[4]s
}
http://127.0.0.1:%[2]s {
	import site
}
https://127.0.0.1:%[3]s {
	tls internal
	import site
}
`, dir, plain, secure, site)
	path := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(binary, "run", "--config", path, "--adapter", "caddyfile")
	command.Stderr = log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Signal(os.Interrupt)
		kill := time.AfterFunc(20*time.Second, func() { _ = command.Process.Kill() })
		_ = command.Wait() // how it ends is no matter here
		kill.Stop()
		_ = log.Close()
		text, _ := os.ReadFile(log.Name())
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, `"level":"error"`) {
				t.Logf("the edge's log: %.500s", line)
			}
		}
	})
	p := &process{http: "http://127.0.0.1:" + plain, https: "https://127.0.0.1:" + secure, pid: command.Process.Pid}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	edgetest.Eventually(t, "the edge answers", func() bool {
		for _, base := range []string{p.http, p.https} {
			resp, err := client.Get(base + "/ok")
			if err != nil {
				return false
			}
			_ = resp.Body.Close()
		}
		// And has the manifest.
		resp, err := client.Post(p.http+"/updates", "application/json", strings.NewReader(check()))
		return err == nil && resp.Body.Close() == nil
	})
	return p
}

// stored returns once an object is stored.
func (p *process) stored(t testing.TB, key string) {
	t.Helper()
	edgetest.Eventually(t, "the object is stored", func() bool {
		resp, err := http.Head(p.http + (&url.URL{Path: "/files/read/attachments/" + key}).EscapedPath())
		return err == nil && resp.Body.Close() == nil && strings.Contains(resp.Header.Get("Cache-Status"), "; hit")
	})
}

// anonymous is the process's memory that is neither file nor shared, in KiB.
func (p *process) anonymous(t testing.TB) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(raw), "\nRssAnon:")
	digits, _, _ := strings.Cut(strings.TrimSpace(after), " ")
	n, err := strconv.Atoi(digits)
	if err != nil {
		t.Fatalf("RssAnon: %v", err)
	}
	return n
}

// watch looks at the memory often, until the function it returns is called, which tells the most there was.
func (p *process) watch(t testing.TB) (peak func() int) {
	t.Helper()
	stop, most := make(chan struct{}), make(chan int)
	go func() {
		top := 0
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				most <- top
				return
			case <-tick.C:
				top = max(top, p.anonymous(t))
			}
		}
	}()
	return func() int {
		close(stop)
		return <-most
	}
}
