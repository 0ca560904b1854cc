package resolver

import (
	"bytes"
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

// heapMeter reads how many bytes objects take on the heap, those that are dead but not yet swept included.
type heapMeter [1]metrics.Sample

func newHeapMeter() *heapMeter {
	return &heapMeter{{Name: "/memory/classes/heap/objects:bytes"}}
}

func (h *heapMeter) bytes() int64 {
	metrics.Read(h[:])
	return int64(h[0].Value.Uint64())
}

// peakWhile runs f and returns the highest reading of the heap meanwhile. Between two readings a compilation cannot
// allocate more than a few megabytes.
func peakWhile(f func()) int64 {
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		meter, highest := newHeapMeter(), int64(0)
		often := time.NewTicker(100 * time.Microsecond)
		defer often.Stop()
		for {
			highest = max(highest, meter.bytes())
			select {
			case <-stop:
				peak <- highest
				return
			case <-often.C:
			}
		}
	}()
	f()
	close(stop)
	return <-peak
}

const largeDocument = 40_000_000

// appOfFiles is an app whose versions, of so many files each, are in use by a channel each, but for those beyond channels.
func appOfFiles(versions, files, channels int) []byte {
	b := bytes.NewBuffer(make([]byte, 0, largeDocument+largeDocument/8))
	b.WriteString(`{"app":{"app_id":"com.demo.app"},"versions":[`)
	for i := range versions {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, `{"id":%d,"name":"1.0.%d","checksum":"%064x","r2_path":"orgs/o/apps/com.demo.app/1.0.%d.zip","manifest":[`, i+1, i, i, i)
		for j := range files {
			if j > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(b, `{"file_name":"assets/chunk-%d.js","file_hash":"%064x","s3_path":"orgs/o/apps/com.demo.app/delta/%064x_assets/chunk-%d.js","file_size":%d}`,
				j, i*files+j, i*files+j, j, 1000+j)
		}
		b.WriteString(`]}`)
	}
	b.WriteString(`],"channels":[`)
	for i := range channels {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, `{"id":%d,"name":"channel-%d","version":%d,"public":%t}`, i+1, i, i+1, i == 0)
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

// manyVersions is an app with 800,000 versions that have nothing but a name and a zip.
func manyVersions() []byte {
	b := bytes.NewBuffer(make([]byte, 0, largeDocument+largeDocument/8))
	b.WriteString(`{"app":{"app_id":"com.demo.app"},"versions":[`)
	for i := range 800_000 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, `{"id":%d,"name":"%d","r2_path":"%d.zip"}`, i, i, i)
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

// manyOverrides is an app with 400,000 device overrides, in rows as the upstream's table has them.
func manyOverrides() []byte {
	b := bytes.NewBuffer(make([]byte, 0, largeDocument+largeDocument/8))
	b.WriteString(`{"app":{"app_id":"com.demo.app"},"channels":[{"id":1,"name":"production","public":true}],"channel_devices":[`)
	for i := range 400_000 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, `{"device_id":"%08x-eefe-490a-9c60-8e965132ae51","channel_id":1,"updated_at":"2026-11-20T12:00:00Z"}`, i)
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

// Loading a 40 MB manifest peaks below 4 times its size, the document itself included: an operator who allows documents
// of max_size must know what they cost. The race detector slows this down, but its shadow memory is not on the heap that
// is measured, so the budget holds there too.
func TestPeakMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles documents of 40 MB")
	}
	// The peak depends on when the collector runs; GOGC of the environment must not decide the test.
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	tests := []struct {
		name  string
		doc   func() []byte
		check func(m *Manifest) bool
	}{
		{"10,000 lists, 3 in use", func() []byte { return appOfFiles(10_000, 15, 3) }, func(m *Manifest) bool { return m.Keys.Len() == 160_000 && len(m.channels) == 3 }},
		{"10,000 lists, all in use", func() []byte { return appOfFiles(10_000, 14, 10_000) }, func(m *Manifest) bool { return m.Keys.Len() == 150_000 && len(m.channels) == 10_000 }},
		{"one list in use", func() []byte { return appOfFiles(1, 155_000, 1) }, func(m *Manifest) bool { return m.Keys.Len() == 155_001 && len(m.channels) == 1 }},
		{"versions", manyVersions, func(m *Manifest) bool { return m.Keys.Len() == 800_000 }},
		{"overrides", manyOverrides, func(m *Manifest) bool { return len(m.overrides) == 400_000 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			runtime.GC()
			baseline := newHeapMeter().bytes()
			doc := tt.doc()
			runtime.GC() // what the making of the document left behind is not the compiler's
			var m *Manifest
			start := time.Now()
			peak := peakWhile(func() { m = mustParse(t, doc) }) - baseline
			took := time.Since(start)

			size := int64(len(doc))
			if size < largeDocument*9/10 || !tt.check(m) {
				t.Fatalf("the document of %d bytes is not what the test needs", size)
			}
			runtime.GC()
			kept := newHeapMeter().bytes() - baseline - int64(cap(doc))
			t.Logf("document %.1f MB, peak %.1f MB (%.2f times), keeps %.1f MB, estimate %.1f MB, %v",
				mb(size), mb(peak), float64(peak)/float64(size), mb(kept), mb(m.MemorySize()), took.Round(time.Millisecond))
			if peak < size {
				t.Errorf("a peak of %d bytes leaves out the document: nothing was measured", peak)
			}
			if peak >= 4*size {
				t.Errorf("the peak is %.2f times the document, want less than 4", float64(peak)/float64(size))
			}
			// The estimate steers a cache's budget, so it must not promise much less than is kept. It may say up to twice as
			// much: that is how far a hash table's room jumps when it grows.
			if estimate := m.MemorySize(); estimate < kept*2/3 || estimate > kept*2 {
				t.Errorf("MemorySize says %d, the manifest keeps %d", estimate, kept)
			}
			runtime.KeepAlive(doc)
		})
	}
}

func mb(n int64) float64 { return float64(n) / 1e6 }
