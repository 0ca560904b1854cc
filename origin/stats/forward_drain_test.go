package stats_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// drainRate is what a spool must be emptied with, in events per second.
const drainRate = 20_000

// TestDrain measures how fast a full spool is delivered to a collector on loopback that parses what it gets. It takes
// CAPGO_EDGE_EVENTS events, 50,000 if that is not set; .ci/drain runs a million.
func TestDrain(t *testing.T) {
	switch {
	case testing.Short():
		t.Skip("a measurement; -short asks for none")
	case raceEnabled:
		t.Skip("a measurement; the race detector makes everything slow")
	}
	n, err := strconv.Atoi(os.Getenv("CAPGO_EDGE_EVENTS"))
	if err != nil {
		n = 50_000
	}
	var arrived atomic.Int64
	done := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var events []struct {
			App    string `json:"app_id"`
			Device string `json:"device_id"`
			Action string `json:"action"`
		}
		if err := json.NewDecoder(r.Body).Decode(&events); err != nil || events[0].Action != "set" {
			t.Errorf("%v, %v", events, err)
		}
		_, _ = w.Write([]byte(`{"status":"ok"}`))
		if arrived.Add(int64(len(events))) == int64(n) {
			close(done)
		}
	}))
	defer server.Close()
	spool, err := stats.OpenSpool(stats.SpoolOptions{Path: t.TempDir() + "/spool", MaxBytes: 8 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	stocked := stockSpool(t, spool, n)
	collector, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{URL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	forwarder := stats.NewForwarder(stats.ForwarderOptions{Spool: spool, Collector: collector})
	began := time.Now()
	forwarder.Start()
	select {
	case <-done:
	case <-time.After(10 * time.Minute):
		t.Errorf("only %d of %d events arrived: %+v", arrived.Load(), n, forwarder.Stats())
	}
	took := time.Since(began)
	if err := forwarder.Close(t.Context()); err != nil {
		t.Error(err)
	}
	rate := float64(n) / took.Seconds()
	t.Logf("%d events on %d cores: stored in %s (%.0f/s), delivered in %s (%.0f/s); %d batches, %d MiB of file",
		n, runtime.GOMAXPROCS(0), stocked.Round(time.Millisecond), float64(n)/stocked.Seconds(), took.Round(time.Millisecond), rate,
		forwarder.Stats().Batches, spool.Stats().FileBytes>>20)
	if left := spool.Stats().Events; left != 0 || arrived.Load() != int64(n) {
		t.Errorf("%d arrived, %d are left", arrived.Load(), left)
	}
	if os.Getenv("CAPGO_EDGE_EVENTS") != "" && rate < drainRate { // elsewhere the machine may be busy with other tests
		t.Errorf("%.0f events per second are less than %d", rate, drainRate)
	}
}

// stockSpool fills a spool with n events as plugins send them: of ten apps and many devices.
func stockSpool(t *testing.T, spool *stats.Spool, n int) time.Duration {
	t.Helper()
	began := time.Now()
	var writers sync.WaitGroup
	const parts, each = 4, 500
	for part := range parts {
		writers.Go(func() {
			for first := part * each; first < n; first += parts * each {
				var batch []stats.Event
				for i := first; i < min(first+each, n); i++ {
					app, device := fmt.Sprintf("com.example.app%d", i%10), fmt.Sprintf("00000000-0000-4000-8000-%012d", i%50_000)
					batch = append(batch, stats.Event{App: app, Device: device, Confirmed: true, Data: fmt.Appendf(nil,
						`{"app_id":"%s","device_id":"%s","action":"set","version_name":"1.0.%d","version_build":"1.0.0","version_os":"17",`+
							`"version_code":"1","plugin_version":"8.51.23","platform":"ios","is_emulator":false,"is_prod":true,"custom_id":"",`+
							`"old_version_name":"","defaultChannel":"","timestamp":%d}`, app, device, i%100, 1_795_000_000_000+i)})
				}
				if err := spool.Append(t.Context(), batch...); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	return time.Since(began)
}
