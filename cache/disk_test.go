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
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/cache/storetest"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// content returns n bytes that differ with seed.
func content(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b) //nolint:errcheck // never fails
	return b
}

// store is a Disk in a directory of its own.
type store struct {
	*cache.Disk
	t     testing.TB
	dir   string
	files *storetest.Files
	owner *cache.Dir

	mu     sync.Mutex
	health []error
}

func openStore(t testing.TB, change ...func(o *cache.DiskOptions)) *store {
	t.Helper()
	return reopenStore(t, t.TempDir(), change...)
}

func reopenStore(t testing.TB, dir string, change ...func(o *cache.DiskOptions)) *store {
	t.Helper()
	s := &store{t: t, dir: dir, files: storetest.NewFiles()}
	var err error
	if s.owner, err = cache.Claim(dir); err != nil {
		t.Fatal(err)
	}
	options := cache.DiskOptions{Dir: s.owner, MaxBytes: 1 << 30, Memory: 16 * mib, Files: s.files, Report: s.note}
	for _, c := range change {
		c(&options)
	}
	if s.Disk, err = cache.OpenDisk(options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func (s *store) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = append(s.health, err)
}

func (s *store) close() {
	if s.owner == nil {
		return
	}
	storetest.Check(s.t, s.Disk, s.dir)
	s.Close()
	if err := s.owner.Release(); err != nil {
		s.t.Error(err)
	}
	s.owner = nil
}

// request asks for the object of that name; a nil body makes no promise of its content.
func request(name string, o cache.Origin, body []byte) *cache.Request {
	r := &cache.Request{Key: cache.Key{Scope: "test", Name: name}, Origin: o}
	if body != nil {
		r.Expect = cache.Expect{Covers: cache.StoredDigest, SHA256: sha256.Sum256(body)}
	}
	return r
}

// read opens an object and reads it from offset to its end.
func (s *store) read(r *cache.Request, offset int64) ([]byte, cache.Access, error) {
	return s.readWith(s.t.Context(), r, offset)
}

func (s *store) readWith(ctx context.Context, r *cache.Request, offset int64) ([]byte, cache.Access, error) {
	o, access, err := s.Open(ctx, r)
	if err != nil {
		return nil, access, err
	}
	defer o.Close()
	if err := o.Await(offset); err != nil {
		return nil, access, err
	}
	if _, err := o.Seek(offset, io.SeekStart); err != nil {
		return nil, access, err
	}
	got, err := io.ReadAll(o)
	return got, access, errors.Join(err, o.Err())
}

// want reads an object and holds it to what it must be.
func (s *store) want(r *cache.Request, offset int64, body []byte, access cache.Access) {
	s.t.Helper()
	got, how, err := s.read(r, offset)
	if err != nil || !bytes.Equal(got, body[offset:]) {
		s.t.Errorf("got %d bytes, right: %v, %v; want %d", len(got), bytes.Equal(got, body[offset:]), err, len(body)-int(offset))
	}
	if how != access {
		s.t.Errorf("access %v, want %v", how, access)
	}
}

func TestDiskStoresAndServes(t *testing.T) {
	for _, size := range []int{0, 1, 4 * kib, 64 * kib, 64*kib + 1, 256 * kib, 256*kib + 1, 3 * mib} {
		for _, sized := range []string{"sized", "unsized"} {
			t.Run(fmt.Sprintf("%d %s", size, sized), func(t *testing.T) {
				s := openStore(t)
				body := content(1, size)
				o := storetest.NewOrigin(body)
				if sized == "unsized" {
					o.Set((*storetest.Origin).Unsized)
				}
				r := request("a", o, body)
				s.want(r, 0, body, cache.Filled)
				s.Wait()
				for _, offset := range []int{0, size / 3, size} {
					got, how, err := s.read(r, int64(offset))
					if err != nil || !bytes.Equal(got, body[offset:]) {
						t.Errorf("from %d: %d bytes, %v", offset, len(got), err)
					}
					if how != cache.Hit && (how != cache.HitMemory || size > 256*kib) {
						t.Errorf("from %d: access %v", offset, how)
					}
				}
				s.close()

				s = reopenStore(t, s.dir)
				s.want(r, int64(size/2), body, cache.Hit)
				if n := len(o.Gets()); n != 1 {
					t.Errorf("%d requests to the origin", n)
				}
				if got := o.Reports(); len(got) != 1 || got[0] != nil {
					t.Errorf("reports %v", got)
				}
			})
		}
	}
}

func TestDiskCoalesces(t *testing.T) {
	s := openStore(t)
	body := content(2, 2*mib)
	gate := make(chan struct{})
	o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	var readers sync.WaitGroup
	for i := range 50 {
		readers.Go(func() {
			from := int64(i) * mib / 40
			got, _, err := s.read(request("a", o, body), from)
			if err != nil || !bytes.Equal(got, body[from:]) {
				t.Errorf("reader %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	time.Sleep(10 * time.Millisecond)
	close(gate)
	readers.Wait()
	if n := len(o.Gets()); n != 1 {
		t.Errorf("%d requests to the origin", n)
	}
	s.Wait()
	s.want(request("a", o, body), 0, body, cache.Hit)
}

// TestDiskServesWhileFilling: bytes go out as they come, all but the last 64 KiB, which wait for the digest.
func TestDiskServesWhileFilling(t *testing.T) {
	s := openStore(t)
	body := content(3, mib)
	gate := make(chan struct{})
	o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Gate(gate, 128*kib) })
	object, _, err := s.Open(t.Context(), request("a", o, body))
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	if info := object.Info(); info.Size != mib || info.ETag != `"1"` {
		t.Errorf("info before the first byte: %+v", info)
	}
	for i := range 8 {
		gate <- struct{}{} // a read takes 64 KiB of a piece at the most
		gate <- struct{}{}
		want := 128 * kib
		if i == 7 {
			want = 64 * kib
		}
		got := make([]byte, want)
		if _, err := io.ReadFull(object, got); err != nil || !bytes.Equal(got, body[i*128*kib:][:want]) {
			t.Fatalf("piece %d: %v", i, err)
		}
	}
	last := make(chan error)
	go func() {
		got, err := io.ReadAll(object)
		if err == nil && !bytes.Equal(got, body[mib-64*kib:]) {
			err = errors.New("the last chunk is wrong")
		}
		last <- err
	}()
	select {
	case err := <-last:
		t.Fatalf("the last chunk came before the end: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(gate)
	if err := <-last; err != nil {
		t.Error(err)
	}
}

// TestDiskFaultsOfTheOrigin: what readers see, what is stored, and what it costs the origin.
func TestDiskFaultsOfTheOrigin(t *testing.T) {
	const size = mib
	body, other := content(4, size), content(5, size)
	for _, tt := range []struct {
		name  string
		fault func(o *storetest.Origin)
		err   error // what readers see; nil if the object is whole
		gets  int
	}{
		{"cut at the start", func(o *storetest.Origin) { o.Cut(1, 0) }, nil, 2},
		{"cut at the first byte", func(o *storetest.Origin) { o.Cut(1, 1) }, nil, 2},
		{"cut in the middle", func(o *storetest.Origin) { o.Cut(1, size/2) }, nil, 2},
		{"cut at the last byte", func(o *storetest.Origin) { o.Cut(1, size-1) }, nil, 2},
		{"cut twice", func(o *storetest.Origin) { o.Cut(2, size/2) }, storetest.ErrDown, 2},
		{"down", func(o *storetest.Origin) { o.Fail(storetest.ErrDown) }, storetest.ErrDown, 1},
		{"missing", func(o *storetest.Origin) { o.Fail(cache.ErrNotFound) }, cache.ErrNotFound, 1},
		{"wrong digest", func(o *storetest.Origin) { o.Replace(other, `"2"`) }, cache.ErrMismatch, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			o := storetest.NewOrigin(body).Set(tt.fault)
			var readers sync.WaitGroup
			for range 20 {
				readers.Go(func() {
					got, _, err := s.read(request("a", o, body), 0)
					switch {
					case !errors.Is(err, tt.err):
						t.Errorf("got %v, want %v", err, tt.err)
					case err == nil && !bytes.Equal(got, body):
						t.Error("wrong bytes")
					case err != nil && len(got) > size-64*kib:
						t.Errorf("%d bytes of an object that failed", len(got))
					}
				})
			}
			readers.Wait()
			s.Wait()
			if n := len(o.Gets()); n != tt.gets {
				t.Errorf("%d requests to the origin, want %d", n, tt.gets)
			}
			if stored := s.Stored(request("a", o, body)); stored != (tt.err == nil) {
				t.Errorf("stored: %v", stored)
			}
		})
	}
}

// TestDiskChangedMidway: an object that changed at the origin is not glued together.
func TestDiskChangedMidway(t *testing.T) {
	s := openStore(t)
	body := content(6, mib)
	gate := make(chan struct{})
	o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Cut(1, mib/2); o.Gate(gate, 64*kib) })
	object, _, err := s.Open(t.Context(), request("a", o, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	o.Set(func(o *storetest.Origin) { o.Replace(content(7, mib), `"2"`) })
	close(gate)
	if _, err := io.ReadAll(object); !errors.Is(err, cache.ErrChanged) {
		t.Errorf("got %v", err)
	}
}

// TestDiskRetries: what failed is not asked for again at once, and a mismatch less and less often.
func TestDiskRetries(t *testing.T) {
	s := openStore(t)
	body := content(8, kib)
	o := storetest.NewOrigin(content(9, kib))
	r := request("a", o, body)
	for range 10 {
		if _, _, err := s.read(r, 0); !errors.Is(err, cache.ErrMismatch) {
			t.Errorf("got %v", err)
		}
	}
	if n := len(o.Gets()); n != 1 {
		t.Errorf("%d requests to the origin", n)
	}
	o.Set(func(o *storetest.Origin) { o.Replace(body, `"2"`) })
	began := time.Now()
	for {
		if got, _, err := s.read(r, 0); err == nil && bytes.Equal(got, body) {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal("it never recovers")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestDiskForgetsFailures: why an object could not be had is not kept for longer than that tells something.
func TestDiskForgetsFailures(t *testing.T) {
	s := openStore(t)
	o := storetest.NewOrigin(nil)
	o.Set(func(o *storetest.Origin) { o.Fail(errors.New("it fails")) })
	for i := range 200 {
		_, _, _ = s.read(request(fmt.Sprint("a", i), o, content(8, kib)), 0)
	}
	if n := s.Failures(); n < 100 {
		t.Errorf("%d failures are remembered", n)
	}
	time.Sleep(1200 * time.Millisecond) // a failure is believed for a second
	_, _, _ = s.read(request("b", o, content(8, kib)), 0)
	if n := s.Failures(); n != 1 {
		t.Errorf("%d failures are remembered after they are over", n)
	}
}

// TestDiskReplaced: a version name that was given away again leads to the new content.
func TestDiskReplaced(t *testing.T) {
	s := openStore(t)
	for _, size := range []int{kib, mib} {
		name := fmt.Sprint(size)
		first, second := content(10, size), content(11, size)
		o := storetest.NewOrigin(first)
		s.want(request(name, o, first), 0, first, cache.Filled)
		s.Wait()
		o.Set(func(o *storetest.Origin) { o.Replace(second, `"2"`) })
		s.want(request(name, o, second), 0, second, cache.Filled)
		s.Wait()
	}
}

func TestDiskFarRanges(t *testing.T) {
	s := openStore(t)
	body := content(12, 32*mib)
	gate := make(chan struct{})
	o := storetest.NewOrigin(body)
	o.Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	fill, _, err := s.Open(t.Context(), request("a", o, body))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	o.Set(func(o *storetest.Origin) { o.Gate(nil, 64*kib) }) // further reads are not held up
	objects := make([]*cache.Object, 6)
	for i := range objects {
		if objects[i], _, err = s.Open(t.Context(), request("a", o, body)); err != nil {
			t.Fatal(err)
		}
		defer objects[i].Close()
		if i >= 4 {
			continue
		}
		from := int64(16+i) * mib
		if _, err := objects[i].Seek(from, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, mib)
		if _, err := io.ReadFull(objects[i], got); err != nil || !bytes.Equal(got, body[from:from+mib]) {
			t.Errorf("range %d: %v", i, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := s.readWith(ctx, request("a", o, body), 20*mib); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a fifth read besides the fill: %v", err)
	}
	if n := len(o.Gets()); n != 5 {
		t.Errorf("%d requests to the origin", n)
	}
	if err := objects[0].Close(); err != nil { // which makes room for another
		t.Error(err)
	}
	if err := objects[4].Await(20 * mib); err != nil {
		t.Error(err)
	}
	// The end of the object waits for the digest.
	tail := make(chan error, 1)
	go func() {
		got, err := io.ReadAll(objects[1])
		if err == nil && !bytes.Equal(got, body[18*mib:]) {
			err = errors.New("wrong bytes")
		}
		tail <- err
	}()
	select {
	case err := <-tail:
		t.Fatalf("the end came before the fill was verified: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if err := <-tail; err != nil {
		t.Error(err)
	}
}

// TestDiskReadersLeave: the first reader's leaving does not end the fill.
func TestDiskReadersLeave(t *testing.T) {
	s := openStore(t)
	body := content(13, mib)
	gate := make(chan struct{})
	o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	ctx, cancel := context.WithCancel(t.Context())
	object, _, err := s.Open(ctx, request("a", o, body))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := object.Close(); err != nil {
		t.Error(err)
	}
	close(gate)
	s.Wait()
	s.want(request("a", o, body), 0, body, cache.Hit)
}

func TestDiskEvicts(t *testing.T) {
	s := openStore(t, func(o *cache.DiskOptions) { o.MaxBytes = 10*mib + 64*kib; o.Memory = 1 })
	s.AwaitScan()
	bodies := map[string][]byte{}
	get := func(name string, want cache.Access) {
		t.Helper()
		if bodies[name] == nil {
			bodies[name] = content(name[0], mib-8*kib)
		}
		s.want(request(name, storetest.NewOrigin(bodies[name]), bodies[name]), 0, bodies[name], want)
		s.Wait()
	}
	for name := range strings.SplitSeq("abcdefghij", "") {
		get(name, cache.Filled)
	}
	s.Prefer(cache.Key{Scope: "test", Name: "app"}, []cache.Key{{Scope: "test", Name: "b"}, {Scope: "test", Name: "z"}})
	get("a", cache.Hit)
	for name := range strings.SplitSeq("klmnopqr", "") {
		get(name, cache.Filled)
	}
	get("b", cache.Hit) // preferred
	get("a", cache.Hit) // used
	get("c", cache.Filled)
	s.Prefer(cache.Key{Scope: "test", Name: "app"}, nil)
	for name := range strings.SplitSeq("0123456789", "") {
		get(name, cache.Filled)
	}
	get("b", cache.Filled)
	if stats := s.Stats(); stats.Bytes > 10*mib+64*kib || stats.Evicted == 0 {
		t.Errorf("%+v", stats)
	}
	s.Retune(3*mib, 0, 1)
	if stats := s.Stats(); stats.Bytes > 3*mib {
		t.Errorf("after a smaller budget: %+v", stats)
	}
}

// TestDiskTooLarge: what does not fit is passed on, not stored, and costs nothing that is.
func TestDiskTooLarge(t *testing.T) {
	s := openStore(t, func(o *cache.DiskOptions) { o.MaxBytes = 2 * mib })
	small := content(1, mib)
	s.want(request("small", storetest.NewOrigin(small), small), 0, small, cache.Filled)
	s.Wait()
	body := content(2, 3*mib)
	o := storetest.NewOrigin(body)
	s.want(request("a", o, body), 0, body, cache.Bypassed)
	s.want(request("a", o, body), mib, body, cache.Bypassed)
	s.Wait()
	s.want(request("small", nil, small), 0, small, cache.Hit)
	if err, _ := s.Health(); err != nil {
		t.Errorf("the disk is well: %v", err)
	}
	wrong := storetest.NewOrigin(content(3, 3*mib))
	if got, _, err := s.read(request("b", wrong, body), 0); !errors.Is(err, cache.ErrMismatch) || len(got) > 3*mib-64*kib {
		t.Errorf("%d bytes of the wrong object, %v", len(got), err)
	}
}

func TestDiskMinFree(t *testing.T) {
	s := openStore(t, func(o *cache.DiskOptions) { o.MinFree = 100 * mib })
	body := content(1, 2*mib)
	o := storetest.NewOrigin(body)
	s.files.SetFree(101 * mib)
	s.want(request("a", o, body), 0, body, cache.Bypassed)
	s.Wait()
	if s.Stored(request("a", o, body)) {
		t.Error("stored below min_free")
	}
	s.files.SetFree(1000 * mib)
	time.Sleep(1100 * time.Millisecond)
	s.want(request("a", o, body), 0, body, cache.Filled)
	s.Wait()
	s.files.SetFree(101 * mib) // what is stored already can make room
	other := content(2, 2*mib)
	s.want(request("b", storetest.NewOrigin(other), other), 0, other, cache.Filled)
	s.Wait()
	if s.Stored(request("a", o, body)) {
		t.Error("nothing was evicted to keep min_free")
	}
}

// TestDiskFails: a disk that fails costs the copy, never the answer, and is used again once it works.
func TestDiskFails(t *testing.T) {
	for _, tt := range []struct {
		name       string
		err        error
		after      int
		operations []storetest.Operation
	}{
		{"full", storetest.Full, 0, []storetest.Operation{storetest.Write}},
		{"full on the way", storetest.Full, 5, []storetest.Operation{storetest.Write}},
		{"full at the sync", storetest.Full, 0, []storetest.Operation{storetest.Sync}},
		{"read-only", storetest.ReadOnly, 0, []storetest.Operation{
			storetest.Create, storetest.Write, storetest.Rename, storetest.Remove, storetest.Mkdir, storetest.Touch,
		}},
		{"broken to write", storetest.Broken, 0, []storetest.Operation{storetest.Write, storetest.Sync}},
		{"broken to name", storetest.Broken, 0, []storetest.Operation{storetest.Rename}},
		{"broken to read", storetest.Broken, 0, []storetest.Operation{storetest.ReadAt}},
		{"broken to read on the way", storetest.Broken, 4, []storetest.Operation{storetest.ReadAt}},
		{"broken to open", storetest.Broken, 0, []storetest.Operation{storetest.Open}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			s.AwaitScan()
			stored, fresh, small := content(1, mib), content(2, 2*mib), content(3, 10*kib)
			old := storetest.NewOrigin(stored)
			s.want(request("stored", old, stored), 0, stored, cache.Filled)
			s.Wait()
			s.files.FailAfter(tt.after, tt.err, tt.operations...)
			for range 3 {
				for name, body := range map[string][]byte{"stored": stored, "fresh": fresh, "small": small} {
					got, how, err := s.read(request(name, storetest.NewOrigin(body), body), 0)
					if err != nil || !bytes.Equal(got, body) {
						t.Errorf("%s by %v: %d bytes, right: %v, %v", name, how, len(got), bytes.Equal(got, body), err)
					}
				}
			}
			if err, _ := s.Health(); err == nil {
				t.Error("the disk is said to be well")
			}
			s.files.Fail(nil, tt.operations...)
			s.Wait()
			recovered := func() bool { err, _ := s.Health(); return err == nil }
			for began := time.Now(); !recovered(); time.Sleep(50 * time.Millisecond) {
				if time.Since(began) > 20*time.Second {
					t.Fatal("it does not recover")
				}
			}
			time.Sleep(1100 * time.Millisecond) // what could not be kept is asked for again after a second
			for name, body := range map[string][]byte{"stored": stored, "fresh": fresh} {
				o := storetest.NewOrigin(body)
				if _, _, err := s.read(request(name, o, body), 0); err != nil {
					t.Error(err)
				}
				s.Wait()
				if !s.Stored(request(name, o, body)) {
					t.Errorf("%s is not stored after the disk recovered", name)
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.health) != 2 || !errors.Is(s.health[0], tt.err) || s.health[1] != nil {
				t.Errorf("reports of the disk: %v", s.health)
			}
		})
	}
}

// TestDiskDirectoryRemoved: somebody removes the directory under a running store.
func TestDiskDirectoryRemoved(t *testing.T) {
	s := openStore(t)
	s.AwaitScan()
	body := content(1, mib)
	o := storetest.NewOrigin(body)
	s.want(request("a", o, body), 0, body, cache.Filled)
	s.Wait()
	for _, dir := range []string{"objects", "fills"} {
		if err := os.RemoveAll(filepath.Join(s.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, err := s.read(request("a", o, body), 0); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	s.Wait()
	for began := time.Now(); !s.Stored(request("a", o, body)); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("it does not recover")
		}
		_, _, _ = s.read(request("a", o, body), 0)
		s.Wait()
	}
}

func TestDiskPurge(t *testing.T) {
	s := openStore(t)
	small, large := content(1, kib), content(2, mib)
	origins := map[string]*storetest.Origin{"small": storetest.NewOrigin(small), "large": storetest.NewOrigin(large)}
	bodies := map[string][]byte{"small": small, "large": large}
	for name, o := range origins {
		s.want(request(name, o, bodies[name]), 0, bodies[name], cache.Filled)
	}
	s.Wait()
	if n, bytes := s.Purge("test", "small"); n != 1 || bytes != 4096 {
		t.Errorf("purged %d objects, %d bytes", n, bytes)
	}
	s.want(request("small", origins["small"], small), 0, small, cache.Filled)
	s.want(request("large", origins["large"], large), 0, large, cache.Hit)
	s.Wait()
	if n, _ := s.Purge("other", ""); n != 0 {
		t.Errorf("purged %d objects of another scope", n)
	}
	if n, bytes := s.Purge("test", ""); n != 2 || bytes < mib {
		t.Errorf("purged %d objects, %d bytes", n, bytes)
	}
	// A fill that runs goes on for its readers, and is not stored.
	gate := make(chan struct{})
	o := storetest.NewOrigin(large).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	object, _, err := s.Open(t.Context(), request("large", o, large))
	if err != nil {
		t.Fatal(err)
	}
	s.Purge("test", "")
	close(gate)
	if got, err := io.ReadAll(object); err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := object.Close(); err != nil {
		t.Error(err)
	}
	s.Wait()
	if s.Stored(request("large", o, large)) {
		t.Error("a fill was stored that began before the purge")
	}
}

// TestDiskCloses: what readers have open goes on; the directory is free at once.
func TestDiskCloses(t *testing.T) {
	s := openStore(t)
	stored, filling := content(1, mib), content(2, mib)
	s.want(request("stored", storetest.NewOrigin(stored), stored), 0, stored, cache.Filled)
	s.Wait()
	one, _, err := s.Open(t.Context(), request("stored", nil, stored))
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	o := storetest.NewOrigin(filling).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	two, _, err := s.Open(t.Context(), request("filling", o, filling))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := s.owner.Release(); err != nil {
		t.Fatal(err)
	}
	s.owner = nil
	again := reopenStore(t, s.dir)
	if _, _, err := s.read(request("filling", o, filling), 0); !errors.Is(err, cache.ErrClosed) {
		t.Errorf("opened after the end: %v", err)
	}
	close(gate)
	for object, body := range map[*cache.Object][]byte{one: stored, two: filling} {
		if got, err := io.ReadAll(object); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := object.Close(); err != nil {
			t.Error(err)
		}
	}
	s.Wait()
	if again.Stored(request("filling", o, filling)) {
		t.Error("a closed store has stored something")
	}
	again.want(request("stored", nil, stored), 0, stored, cache.Hit)
}

// TestDiskFetch: prefetching stores without reading.
func TestDiskFetch(t *testing.T) {
	s := openStore(t)
	body := content(1, mib)
	o := storetest.NewOrigin(body)
	r := request("a", o, body)
	for range 2 {
		if err := s.Fetch(t.Context(), r); err != nil || !s.Stored(r) {
			t.Errorf("%v", err)
		}
	}
	if n := len(o.Gets()); n != 1 {
		t.Errorf("%d requests to the origin", n)
	}
	down := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Fail(storetest.ErrDown) })
	if err := s.Fetch(t.Context(), request("b", down, body)); !errors.Is(err, storetest.ErrDown) {
		t.Errorf("got %v", err)
	}
}

// TestDiskDamagedOnDisk: what a crash or the disk spoiled is noticed, dropped and fetched anew.
func TestDiskDamagedOnDisk(t *testing.T) {
	for _, tt := range []struct {
		name   string
		size   int
		damage func(t *testing.T, path string)
	}{
		{"no record", mib, func(t *testing.T, path string) { truncate(t, path, mib) }},
		{"empty", mib, func(t *testing.T, path string) { truncate(t, path, 0) }},
		{"short", mib, func(t *testing.T, path string) { truncate(t, path, 5000) }},
		{"a bit of a small object", 10 * kib, func(t *testing.T, path string) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			raw[5000] ^= 1
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			body := content(1, tt.size)
			o := storetest.NewOrigin(body)
			s.want(request("a", o, body), 0, body, cache.Filled)
			s.Wait()
			var path string
			for p := range s.Inventory() {
				path = filepath.Join(s.dir, p)
			}
			s.close()
			tt.damage(t, path)
			s = reopenStore(t, s.dir)
			if got, _, err := s.read(request("a", o, body), 0); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if n := len(o.Gets()); n != 2 {
				t.Errorf("%d requests to the origin", n)
			}
			s.Wait()
			if err, _ := s.Health(); err != nil || !s.Stored(request("a", o, body)) {
				t.Errorf("it is not stored again; the disk: %v", err)
			}
		})
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}
