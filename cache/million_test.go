//go:build linux

package cache_test

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/cache/storetest"
)

// What a store of a million objects may take from its start until it serves, and until it knows them all.
const (
	servesWithin = time.Second
	scansWithin  = 10 * time.Second
)

// TestMillion opens a store of CAPGO_EDGE_OBJECTS small objects. .ci/million runs it.
func TestMillion(t *testing.T) {
	text := os.Getenv("CAPGO_EDGE_OBJECTS")
	if text == "" {
		t.Skip("CAPGO_EDGE_OBJECTS is not set")
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	stock(t, dir, n)
	t.Logf("%d objects; the page cache is %s", n, dropCaches())

	before := memory()
	began := time.Now()
	owner, err := cache.Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := cache.OpenDisk(cache.DiskOptions{Dir: owner, MaxBytes: 1 << 50, Memory: mib})
	if err != nil {
		t.Fatal(err)
	}
	opened := time.Since(began)
	o := storetest.NewOrigin(nil)
	got, err := crashRead(d, request(fmt.Sprint(n/2), o, nil))
	served := time.Since(began)
	if err != nil || !bytes.Equal(got, millionth(n/2)) || len(o.Gets()) > 0 {
		t.Errorf("%q, %v", got, err)
	}
	d.AwaitScan()
	scanned := time.Since(began)
	stats := d.Stats()
	used := memory() - before
	t.Logf("opened after %s, served after %s, scanned after %s; %d objects in the index take %d MiB, %d bytes each",
		opened.Round(time.Microsecond), served.Round(time.Microsecond), scanned.Round(time.Millisecond),
		stats.Objects, used>>20, used/int64(max(1, stats.Objects)))
	if stats.Objects != n || served > servesWithin || scanned > scansWithin {
		t.Errorf("%d of %d objects; at most %s to serve, %s to scan", stats.Objects, n, servesWithin, scansWithin)
	}
	runtime.KeepAlive(d)
	d.Close()
	if err := owner.Release(); err != nil {
		t.Error(err)
	}
}

func millionth(i int) []byte { return fmt.Appendf(nil, "object %d", i) }

// stock writes n objects of scope "test".
func stock(t *testing.T, dir string, n int) {
	t.Helper()
	owner, err := cache.Claim(dir) // which makes the directory one of ours
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Release(); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	const parts = 8
	for part := range parts {
		writers.Go(func() {
			for i := part; i < n; i += parts {
				if err := cache.WriteObject(dir, cache.Key{Scope: "test", Name: fmt.Sprint(i)}, millionth(i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
}

// dropCaches has the kernel forget what it knows of the disk, and tells whether it did.
func dropCaches() string {
	syscall.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200); err != nil {
		return "warm: " + err.Error()
	}
	return "dropped"
}

// memory is the live heap.
func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
