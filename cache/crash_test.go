package cache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/cache/storetest"
)

// The names of the objects that the child of TestCrash fills, and a budget that does not hold them all.
const (
	crashNames  = 24
	crashBudget = 12 * mib
	crashDirEnv = "CAPGO_EDGE_CRASH_DIR"
)

// crashContent is what the origin has under a name.
var crashContent = func() func(name int) []byte {
	var mu sync.Mutex
	all := map[int][]byte{}
	sizes := []int{0, 1, 1000, 64 * kib, 64*kib + 1, 256 * kib, 256*kib + 1, 700 * kib, mib, 3 * mib}
	return func(name int) []byte {
		mu.Lock()
		defer mu.Unlock()
		if all[name] == nil {
			all[name] = content(byte(100+name), sizes[name%len(sizes)])
		}
		return all[name]
	}
}()

func crashRequest(name int, o cache.Origin, known bool) *cache.Request {
	body := crashContent(name)
	if !known {
		return request(fmt.Sprint("object", name), o, nil)
	}
	r := request(fmt.Sprint("object", name), o, body)
	r.Expect = cache.Expect{Covers: cache.StoredDigest, SHA256: sha256.Sum256(body)}
	return r
}

// crashDisk opens the store that dies.
func crashDisk(dir string) (*cache.Disk, *cache.Dir, error) {
	owner, err := cache.Claim(dir)
	if err != nil {
		return nil, nil, err
	}
	d, err := cache.OpenDisk(cache.DiskOptions{Dir: owner, MaxBytes: crashBudget, Memory: mib})
	return d, owner, err
}

// TestCrashChild is the process that TestCrash kills: it fills, reads and evicts until then.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDirEnv)
	if dir == "" {
		t.Skip("it is run by TestCrash")
	}
	d, _, err := crashDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("opened")
	for range 4 {
		go crashWork(d)
	}
	for {
		fmt.Println("filling", d.Stats().Filling)
		time.Sleep(time.Millisecond)
	}
}

func crashWork(d *cache.Disk) {
	for {
		name := rand.IntN(crashNames)
		o := storetest.NewOrigin(crashContent(name)).Set(func(o *storetest.Origin) {
			o.Pace(time.Duration(rand.IntN(300))*time.Microsecond, 64*kib)
			o.Hide(rand.IntN(2) == 0, false)
		})
		got, err := crashRead(d, crashRequest(name, o, rand.IntN(2) == 0))
		if err != nil || !bytes.Equal(got, crashContent(name)) {
			fmt.Println("wrong", name, len(got), err)
		}
		if rand.IntN(50) == 0 {
			d.Purge("test", "")
		}
	}
}

func crashRead(d *cache.Disk, r *cache.Request) ([]byte, error) {
	o, _, err := d.Open(context.Background(), r)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	got, err := io.ReadAll(o)
	return got, errors.Join(err, o.Err())
}

type crashCounts struct{ kills, filling, verified, kept int }

// TestCrash kills a process again and again while it fills and evicts, and looks at what it leaves behind. With
// CAPGO_EDGE_KILLS it does so that many times.
func TestCrash(t *testing.T) {
	kills := 20
	if text := os.Getenv("CAPGO_EDGE_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	var counts crashCounts
	for i := range kills {
		if crashOnce(t, dir) {
			counts.filling++
		}
		counts.kills++
		crashInspect(t, dir, &counts)
		if t.Failed() {
			t.Fatalf("after kill %d", i+1)
		}
	}
	t.Logf("%d kills, %d of them during fills; %d objects found and verified, %d reads of them without the origin, wrong bytes: 0",
		counts.kills, counts.filling, counts.verified, counts.kept)
}

// crashOnce runs the child for a moment and kills it. It reports whether fills ran then.
func crashOnce(t *testing.T, dir string) (filling bool) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashChild$")
	child.Env = append(os.Environ(), crashDirEnv+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	opened, read := make(chan struct{}), make(chan error)
	go func() {
		first := make([]byte, len("opened\n"))
		n, _ := io.ReadFull(out, first)
		text.Write(first[:n])
		close(opened)
		_, err := io.Copy(&text, out)
		read <- err
	}()
	<-opened
	time.Sleep(time.Millisecond + rand.N(80*time.Millisecond))
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil { // the pipe ends with the child
		t.Error(err)
	}
	_ = child.Wait() // it was killed
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	if lines[0] != "opened" || strings.Contains(text.String(), "wrong") {
		t.Fatalf("the child says %s", text.String())
	}
	return !strings.HasSuffix(lines[len(lines)-1], " 0")
}

// crashInspect opens the directory that the child has left.
func crashInspect(t *testing.T, dir string, counts *crashCounts) {
	t.Helper()
	storetest.CheckFiles(t, dir, nil)
	d, owner, err := crashDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	stored := map[cache.Key]bool{}
	if rand.IntN(2) == 0 { // else it is read while the scan runs
		d.AwaitScan()
	}
	for _, path := range objectFiles(t, dir) {
		key, _, _, err := cache.RecordOf(path)
		if err != nil {
			continue // it was evicted: the child may have been above its budget
		}
		stored[key] = true
		counts.verified++
	}
	for name := range crashNames {
		for _, known := range []bool{true, false} {
			o := storetest.NewOrigin(crashContent(name))
			r := crashRequest(name, o, known)
			if !stored[r.Key] {
				continue
			}
			got, err := crashRead(d, r)
			if err != nil || !bytes.Equal(got, crashContent(name)) {
				t.Errorf("%s, digest known: %v: %d bytes, %v", r.Key.Name, known, len(got), err)
			}
			if n := len(o.Gets()); n > 0 && d.Stats().Evicted == 0 {
				t.Errorf("%s was stored, and fetched again %d times", r.Key.Name, n)
			} else if n == 0 {
				counts.kept++
			}
		}
	}
	storetest.Check(t, d, dir)
	d.Close()
	if err := owner.Release(); err != nil {
		t.Error(err)
	}
}

func objectFiles(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "objects", "*", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}
