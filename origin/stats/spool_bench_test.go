package stats_test

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// BenchmarkAppend has many phones send an event each and wait for the disk.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 64, 512} {
		b.Run(strconv.Itoa(writers), func(b *testing.B) {
			s, err := stats.OpenSpool(stats.SpoolOptions{Path: b.TempDir() + "/s.db", MaxBytes: 1 << 30})
			if err != nil {
				b.Fatal(err)
			}
			data := []byte(`{"x":"` + strings.Repeat("e", 390) + `"}`)
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for i := range writers {
				wg.Go(func() {
					e := stats.Event{App: "com.example.app", Device: fmt.Sprint("device", i), Confirmed: true, Data: data}
					for left.Add(-1) >= 0 {
						if err := s.Append(b.Context(), e); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			s.Close()
		})
	}
}
