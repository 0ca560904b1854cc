package caddymodule_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// An update by delta files, as a phone gets it that is 50 ms away: 300 files of 4 to 40 KiB over one HTTP/2 connection
// with TLS, 16 at a time. 300 / 16 = 18.75, so there are files that 18 others must come before: the files take at least 19
// round trips, and the check that names them one more. 20 round trips of 50 ms are 1.0 s; the connection is open before,
// and bandwidth is not limited. What is beyond 1.0 s the edge has added, the phone, and the machine they share.
const (
	deltaFiles    = 300
	deltaAtOnce   = 16
	deltaOneWay   = 25 * time.Millisecond
	deltaSmallest = 4 << 10
	deltaLargest  = 40 << 10
)

// TestDeltaSet: all files of a delta update are right, cold and warm, and a warm set does not take longer than the way and
// a slow machine with the race detector explain.
func TestDeltaSet(t *testing.T) {
	o := newDeltaOrigin(t, 1)
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n origin http " + o.address + "\n}\n"})
	phone := newDeltaPhone(t, e.HTTPS)
	phone.update(t, 0) // cold
	const most = 3 * time.Second
	best := time.Hour
	for range 3 { // something else may run on this machine
		if best = min(best, phone.update(t, 0)); best <= most {
			return
		}
	}
	t.Errorf("a warm set takes %s", best)
}

// TestDeltaBench is no test but .ci/bench-delta. It runs the edge from the binary at CAPGO_EDGE_DELTA in a process of its
// own; the origin, the way and the phone are in this one.
func TestDeltaBench(t *testing.T) {
	binary := os.Getenv("CAPGO_EDGE_DELTA")
	if binary == "" {
		t.Skip("CAPGO_EDGE_DELTA is not set: this runs only in .ci/bench-delta")
	}
	rounds := number(t, "CAPGO_EDGE_DELTA_ROUNDS")
	o := newDeltaOrigin(t, rounds)
	edge := startProcess(t, binary, "capgo_edge {\n origin http "+o.address+"\n}\n")
	phone := newDeltaPhone(t, edge.https)
	var cold, warm []float64
	for round := range rounds { // by turns; each round has files of its own
		for range 2 {
			took := seconds(phone.update(t, round))
			if len(cold) == len(warm) {
				cold = append(cold, took)
			} else {
				warm = append(warm, took)
			}
		}
		fmt.Printf("round %d: cold %.3f s, warm %.3f s\n", round+1, cold[round], warm[round])
	}
	slices.Sort(cold)
	slices.Sort(warm)
	least := 20 * 2 * seconds(deltaOneWay)
	var m musts
	m.most(fmt.Sprintf("warm set, s (%.3f to %.3f; the way takes %.1f)", at(warm, 0), at(warm, 1), least), at(warm, 0.5), 1.3)
	fmt.Printf("cold set, origin on this machine: median %.3f s (%.3f to %.3f)\n%s", at(cold, 0.5), at(cold, 0), at(cold, 1), m.table.String())
	if m.missed {
		t.Error("not all that must be is")
	}
}

// deltaOrigin is a web server with some apps, each of which has a set of its own.
type deltaOrigin struct {
	address string
	objects map[string][]byte // by path
}

func deltaApp(i int) string { return fmt.Sprintf("%s%d", appID, i) }

func newDeltaOrigin(t testing.TB, sets int) *deltaOrigin {
	t.Helper()
	o := &deltaOrigin{objects: map[string][]byte{}}
	for set := range sets {
		files := make([]any, deltaFiles)
		for i := range files {
			content := randomBytes(deltaSmallest + i*(deltaLargest-deltaSmallest)/(deltaFiles-1))
			copy(content, fmt.Sprintf("%d %d ", set, i))
			sum := digest(content)
			name := fmt.Sprintf("assets/%d.js", i)
			key := fmt.Sprintf("orgs/o/apps/%s/delta/%s_%s", deltaApp(set), sum, name)
			o.objects["/"+key] = content
			files[i] = map[string]any{"file_name": name, "file_hash": sum, "s3_path": key, "file_size": len(content)}
		}
		manifest, err := json.Marshal(map[string]any{
			"app":      map[string]any{"app_id": deltaApp(set)},
			"versions": []any{map[string]any{"id": 7, "name": "1.0.1", "checksum": "x", "manifest": files}},
			"channels": []any{map[string]any{"id": 1, "name": "production", "public": true, "version": 7}},
		})
		if err != nil {
			t.Fatal(err)
		}
		o.objects["/manifests/"+deltaApp(set)+".json"] = manifest
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := o.objects[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(server.Close)
	o.address = server.URL
	return o
}

// deltaPhone is a client at the other end of a long way, with a connection that is open.
type deltaPhone struct {
	base   string
	client *http.Client
	dials  atomic.Int32
}

func newDeltaPhone(t testing.TB, base string) *deltaPhone {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	way := newLongWay(t, u.Host, deltaOneWay)
	p := &deltaPhone{base: "https://" + way}
	transport := &http.Transport{
		DisableCompression: true, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: u.Hostname()},
	}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		p.dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	p.client = &http.Client{Transport: transport}
	t.Cleanup(p.client.CloseIdleConnections)
	resp, err := p.client.Get(p.base + "/ok")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.ProtoMajor != 2 {
		t.Fatalf("%s: %v", resp.Proto, err)
	}
	_ = resp.Body.Close()
	return p
}

// update checks for an update and gets its files. It tells how long both took together.
func (p *deltaPhone) update(t testing.TB, set int) time.Duration {
	t.Helper()
	began := time.Now()
	resp, err := p.client.Post(p.base+"/updates", "application/json", strings.NewReader(check("app_id", deltaApp(set))))
	if err != nil {
		t.Fatal(err)
	}
	var offer struct {
		Manifest []struct {
			Hash string `json:"file_hash"`
			URL  string `json:"download_url"`
		}
	}
	err = json.NewDecoder(resp.Body).Decode(&offer)
	if err := errors.Join(err, resp.Body.Close()); err != nil || len(offer.Manifest) != deltaFiles {
		t.Fatalf("status %d, %d files, %v", resp.StatusCode, len(offer.Manifest), err)
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range deltaAtOnce {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < deltaFiles; i = next.Add(1) - 1 {
				if err := p.get(offer.Manifest[i].URL, offer.Manifest[i].Hash); err != nil {
					t.Errorf("%s: %v", offer.Manifest[i].URL, err)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	if n := p.dials.Load(); n != 1 {
		t.Errorf("it took %d connections", n)
	}
	return took
}

func (p *deltaPhone) get(address, hash string) error {
	resp, err := p.client.Get(address)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, resp.Body); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); resp.StatusCode != http.StatusOK || got != hash {
		return fmt.Errorf("status %d, SHA-256 %s, not %s", resp.StatusCode, got, hash)
	}
	return nil
}

// newLongWay passes connections on to target, and every byte as much later as the way is long. It returns its address.
func newLongWay(t testing.TB, target string, oneWay time.Duration) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return // the test has ended
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				_ = near.Close()
				continue
			}
			wg.Go(func() { delay(far, near, oneWay) })
			wg.Go(func() { delay(near, far, oneWay) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait() // the client's connections are closed by now
	})
	return listener.Addr().String()
}

// delay copies until either end closes, and closes the other then. What is under way is held in memory, so that a byte is
// late but bandwidth is not limited.
func delay(to, from net.Conn, by time.Duration) {
	type late struct {
		due  time.Time
		data []byte
	}
	way := make(chan late, 1<<14)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer to.Close()
		for l := range way {
			time.Sleep(time.Until(l.due))
			if _, err := to.Write(l.data); err != nil {
				_ = from.Close()
			}
		}
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			way <- late{time.Now().Add(by), bytes.Clone(buf[:n])}
		}
		if err != nil {
			close(way)
			wg.Wait()
			return
		}
	}
}
