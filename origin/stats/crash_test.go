package stats_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

const (
	killDirEnv     = "CAPGO_EDGE_SPOOL_DIR"
	killURLEnv     = "CAPGO_EDGE_SPOOL_URL"
	killRoundEnv   = "CAPGO_EDGE_SPOOL_ROUND"
	killWriters    = 64
	killApps       = 3
	killSpoolBytes = 256 * mib // nothing is dropped
)

// TestKillChild is the process that TestKill kills: phones send events to its spool, and it delivers them, until then.
func TestKillChild(t *testing.T) {
	dir := os.Getenv(killDirEnv)
	if dir == "" {
		t.Skip("it is run by TestKill")
	}
	s, forwarder := openKilled(t, dir, os.Getenv(killURLEnv))
	forwarder.Start()
	fmt.Println("opened")
	var mu sync.Mutex // of the output
	for w := range killWriters {
		go func() {
			for i := 1; ; i++ {
				e := killEvent{App: fmt.Sprint("app", w%killApps), Device: fmt.Sprint("d", w), Round: os.Getenv(killRoundEnv), N: i, Fill: fill(rand.IntN(400))}
				if rand.IntN(100) == 0 {
					e.Fill = fill(5000)
				}
				data, _ := json.Marshal(e)
				if err := s.Append(t.Context(), stats.Event{App: e.App, Device: e.Device, Confirmed: true, Data: data}); err != nil {
					fmt.Println("wrong", err)
				}
				mu.Lock()
				fmt.Println("ack", e.id())
				mu.Unlock()
				if rand.IntN(10) == 0 { // not all are as busy
					time.Sleep(rand.N(10 * time.Millisecond))
				}
			}
		}()
	}
	select {}
}

type killEvent struct {
	App    string `json:"app_id"`
	Device string `json:"device_id"`
	Round  string `json:"round"`
	N      int    `json:"n"`
	Fill   string `json:"fill"`
}

func (e *killEvent) id() string { return fmt.Sprint(e.Device, "/", e.Round, "/", e.N) }

func openKilled(t *testing.T, dir, url string) (*stats.Spool, *stats.Forwarder) {
	s, err := stats.OpenSpool(stats.SpoolOptions{Path: dir + "/s.db", MaxBytes: killSpoolBytes, Report: func(err error) { fmt.Println("wrong", err) }})
	if err != nil {
		t.Fatal(err)
	}
	collector, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	return s, stats.NewForwarder(stats.ForwarderOptions{Spool: s, Collector: collector})
}

// killCollector is a collector that remembers what it got, and looks at it.
type killCollector struct {
	mu       sync.Mutex
	keys     map[string]string // events of each batch, by its key
	first    map[string]string // key of the batch that an event came with first
	last     map[string][2]int // round and number of the newest event of each device
	requests int
	again    int // events that came more than once
	wrong    []string
}

func (c *killCollector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the sender was killed meanwhile, and is to send it again
	}
	var events []killEvent
	if err := json.Unmarshal(body, &events); err != nil {
		c.complain("%v", err)
	}
	c.mu.Lock()
	c.takeLocked(r.Header.Get("Idempotency-Key"), events)
	c.mu.Unlock()
	_, _ = io.WriteString(w, `{"status":"ok"}`)
}

func (c *killCollector) complain(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.complainLocked(format, args...)
}

func (c *killCollector) complainLocked(format string, args ...any) {
	c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
}

func (c *killCollector) takeLocked(key string, events []killEvent) {
	c.requests++
	ids := make([]string, len(events))
	for i := range events {
		ids[i] = events[i].id()
	}
	all := strings.Join(ids, " ")
	if before, twice := c.keys[key]; twice && before != all {
		c.complainLocked("the key %s came with %s, then with %s", key, before, all)
	}
	c.keys[key] = all
	for i, e := range events {
		if first, twice := c.first[ids[i]]; twice {
			c.again++
			if first != key {
				c.complainLocked("%s came with the key %s, then with %s", ids[i], first, key)
			}
			continue
		}
		c.first[ids[i]] = key
		var round int
		if _, err := fmt.Sscan(e.Round, &round); err != nil {
			c.complainLocked("the round of %s: %v", ids[i], err)
		}
		if last, now := c.last[e.Device], [2]int{round, e.N}; now[0] < last[0] || now[0] == last[0] && now[1] <= last[1] {
			c.complainLocked("of %s %v comes after %v", e.Device, now, last)
		} else {
			c.last[e.Device] = now
		}
	}
}

// TestKill kills a process again and again while it takes events and delivers them. Not one that it acknowledged may be lost;
// the events of a device come in order; what comes twice does so within a batch that has the same key. The number of kills is
// CAPGO_EDGE_SPOOL_KILLS.
func TestKill(t *testing.T) {
	kills := rounds(t, "CAPGO_EDGE_SPOOL_KILLS", 8)
	dir := t.TempDir()
	c := &killCollector{keys: map[string]string{}, first: map[string]string{}, last: map[string][2]int{}}
	server := httptest.NewServer(c)
	defer server.Close()
	acked := map[string]bool{}
	for i := range kills {
		killOnce(t, dir, server.URL, i, acked)
		if i%20 == 0 {
			if err := stats.CheckSpool(dir + "/s.db"); err != nil {
				t.Fatalf("after kill %d: %v", i+1, err)
			}
		}
	}
	s, forwarder := openKilled(t, dir, server.URL)
	if dropped := s.Stats().Dropped; dropped["full"]+dropped["damaged"] > 0 {
		t.Errorf("dropped: %v", dropped)
	}
	forwarder.Start()
	for began := time.Now(); s.Stats().Events > 0 && time.Since(began) < time.Minute; time.Sleep(10 * time.Millisecond) {
		continue // until all is delivered
	}
	if err := forwarder.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if n := s.Stats().Events; n > 0 {
		t.Errorf("%d events are never delivered", n)
	}
	s.Close()
	if err := stats.CheckSpool(dir + "/s.db"); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, wrong := range c.wrong {
		if t.Error(wrong); i > 10 {
			break
		}
	}
	lost := 0
	for id := range acked {
		if c.first[id] == "" {
			if lost++; lost < 10 {
				t.Errorf("%s was acknowledged and is lost", id)
			}
		}
	}
	t.Logf("%d kills: %d events acknowledged, %d lost; %d events delivered in %d requests, %d of them again, with the same key",
		kills, len(acked), lost, len(c.first), c.requests, c.again)
}

// killOnce runs the child for a moment, kills it, and notes what it acknowledged.
func killOnce(t *testing.T, dir, url string, round int, acked map[string]bool) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKillChild$")
	child.Env = append(os.Environ(), killDirEnv+"="+dir, killURLEnv+"="+url, killRoundEnv+"="+fmt.Sprint(round))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	opened, read := make(chan struct{}), make(chan []string)
	go func() {
		var lines []string
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			if lines = append(lines, scanner.Text()); len(lines) == 1 {
				close(opened)
			}
		}
		if len(lines) == 0 {
			close(opened)
		}
		read <- lines
	}()
	<-opened
	time.Sleep(time.Millisecond + rand.N(400*time.Millisecond))
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	lines := <-read
	_ = child.Wait() // it was killed
	if len(lines) == 0 || lines[0] != "opened" {
		t.Fatalf("round %d: the child says %v", round, lines)
	}
	for _, line := range lines[1:] {
		id, ok := strings.CutPrefix(line, "ack ")
		switch {
		case ok && strings.Count(id, "/") == 2:
			acked[id] = true
		case strings.HasPrefix(line, "wrong"):
			t.Fatalf("round %d: the child says %s", round, line)
		}
	}
}
