package caddymodule_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestStatsLoad is no test but the load of .ci/bench-stats: events at a steady rate, whether or not the server keeps up, and
// what their answers took. CAPGO_EDGE_STATS_LOAD is the address, CAPGO_EDGE_STATS_RATE the events per second,
// CAPGO_EDGE_STATS_TIME how long; CAPGO_EDGE_STATS_PID is the process whose memory is printed, ten times.
func TestStatsLoad(t *testing.T) {
	address := os.Getenv("CAPGO_EDGE_STATS_LOAD")
	if address == "" {
		t.Skip("CAPGO_EDGE_STATS_LOAD is not set: this runs only in .ci/bench-stats")
	}
	rate, err := strconv.Atoi(os.Getenv("CAPGO_EDGE_STATS_RATE"))
	if err != nil {
		t.Fatal(err)
	}
	long, err := time.ParseDuration(os.Getenv("CAPGO_EDGE_STATS_TIME"))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512}}
	var mu sync.Mutex
	var took []time.Duration // guarded by mu, as failed
	failed := 0
	send := func(i int, due time.Time) {
		body := statsEvent("app_id", "com.example.demo", "device_id", fmt.Sprintf("%08x-0000-4000-8000-000000000000", i%50_000))
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		resp, err := client.Do(req)
		ok := err == nil && resp.StatusCode == http.StatusOK
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		mu.Lock()
		defer mu.Unlock()
		if took = append(took, time.Since(due)); !ok { // from when it was due: a server that stalls must not slow its own test
			failed++
		}
	}
	var wg sync.WaitGroup
	began := time.Now()
	tenth := long / 10
	for i, next := 0, began.Add(tenth); time.Since(began) < long; i++ {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		wg.Go(func() { send(i, due) })
		if due.After(next) {
			next = next.Add(tenth)
			fmt.Printf("after %s: resident %s\n", due.Sub(began).Round(time.Second), residentOf(t, os.Getenv("CAPGO_EDGE_STATS_PID")))
		}
	}
	wg.Wait()
	slices.Sort(took)
	at := func(share float64) time.Duration {
		return took[int(share*float64(len(took)-1))].Round(10 * time.Microsecond)
	}
	fmt.Printf("%d events in %s, %d failed; answered after %s (median), %s (p99), %s (p99.9), %s (slowest)\n",
		len(took), time.Since(began).Round(time.Millisecond), failed, at(0.5), at(0.99), at(0.999), at(1))
	if failed > 0 {
		t.Errorf("%d of %d failed", failed, len(took))
	}
}

// residentOf is the memory of a process: all of it, and the part that is no file.
func residentOf(t *testing.T, pid string) string {
	t.Helper()
	if pid == "" {
		return "unknown"
	}
	raw, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	var all, anonymous string
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			all = strings.TrimSpace(v)
		}
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			anonymous = strings.TrimSpace(v)
		}
	}
	return all + ", without files " + anonymous
}
