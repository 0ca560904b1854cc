package stats_test

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// TestGigabyte fills a spool of the default size, goes on for half as much again, and looks at memory and at how long it takes
// to open: after it was closed, and after a crash. It runs with CAPGO_EDGE_SPOOL_GIGABYTE=1.
func TestGigabyte(t *testing.T) {
	if os.Getenv("CAPGO_EDGE_SPOOL_GIGABYTE") == "" {
		t.Skip("CAPGO_EDGE_SPOOL_GIGABYTE=1 runs it")
	}
	b := newBox(t, stats.SpoolOptions{Path: t.TempDir() + "/s.db", MaxBytes: 1 << 30})
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc) / kib
	}
	empty := heap()
	began, slowest, n := time.Now(), time.Duration(0), 0
	write := func(total int) {
		events := make([]stats.Event, 1000)
		for ; n < total; n += len(events) {
			for i := range events {
				text := numbered{Device: fmt.Sprint(i), N: n + i, Fill: fill(300)}.json()
				events[i] = stats.Event{App: fmt.Sprint("app", (n+i)%20), Device: fmt.Sprint(i * 7), Confirmed: true, Data: []byte(text)}
			}
			at := time.Now()
			if err := b.Append(t.Context(), events...); err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, time.Since(at))
		}
	}
	write(2_000_000)
	t.Logf("%d events in %.1f s, heap %d KiB, %d KiB when it was empty: %+v", n, time.Since(began).Seconds(), heap(), empty, b.Stats())
	began, slowest = time.Now(), 0
	write(4_000_000)
	st := b.Stats()
	t.Logf("up to %d in %.1f s, the slowest 1000 in %v, heap %d KiB: %+v", n, time.Since(began).Seconds(), slowest, heap(), st)
	b.wantSize(1 << 30)
	if st.Events+int64(st.Dropped["full"]) != int64(n) {
		t.Errorf("%d events are counted", st.Events+int64(st.Dropped["full"]))
	}
	// What a crash leaves is what is there now.
	crashed := b.options.Path + ".crashed"
	copyFile(t, b.options.Path, crashed)
	began = time.Now()
	b.Close()
	t.Logf("closed in %v", time.Since(began))
	began = time.Now()
	b.open()
	t.Logf("opened in %v after it was closed, heap %d KiB", time.Since(began), heap())
	b.Close()
	path := b.options.Path
	b.options.Path = crashed
	began = time.Now()
	b.open()
	t.Logf("opened in %v after a crash, heap %d KiB", time.Since(began), heap())
	b.Close()
	b.options.Path = path
	b.open()
	began, n = time.Now(), 0
	for _, data := range b.drain() {
		n += len(data)
	}
	t.Logf("%d events taken out in %.1f s, heap %d KiB: %+v", n, time.Since(began).Seconds(), heap(), b.Stats())
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	out.Close()
}
