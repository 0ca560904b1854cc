package cache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/cache/storetest"
)

// deafOrigin has bodies that do not end with their context, as some libraries' do not at once.
type deafOrigin struct {
	*storetest.Origin
	gate chan struct{}
}

func (o *deafOrigin) Get(ctx context.Context, offset, length int64, pin cache.Info) (*cache.Part, error) {
	part, err := o.Origin.Get(ctx, offset, length, pin)
	if err == nil {
		part.Body = &deafBody{part.Body, o.gate}
	}
	return part, err
}

type deafBody struct {
	io.ReadCloser
	gate chan struct{}
}

func (b *deafBody) Read(p []byte) (int, error) {
	<-b.gate
	return b.ReadCloser.Read(p)
}

// TestFillAbandoned: who comes while an abandoned fill still ends has the object fetched anew.
func TestFillAbandoned(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := reopenStore(t, dir)
		body := content(1, mib)
		deaf := &deafOrigin{storetest.NewOrigin(body), make(chan struct{})}
		object, _, err := s.Open(t.Context(), request("a", deaf, body))
		if err != nil {
			t.Fatal(err)
		}
		if err := object.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(9 * time.Second)
		if n := s.Stats().Filling; n != 1 {
			t.Errorf("%d fills run for the next phone", n)
		}
		time.Sleep(2 * time.Second)
		s.want(request("a", storetest.NewOrigin(body), body), 0, body, cache.Filled)
		close(deaf.gate)
		s.close()
	})
}

// TestFillAlmostThere: a fill of which half has come goes on without readers.
func TestFillAlmostThere(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := reopenStore(t, dir)
		body := content(1, mib)
		o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Pace(time.Second, 64*kib) })
		object, _, err := s.Open(t.Context(), request("a", o, body))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // it will be at 12 of 16 s when it is looked at
		if err := object.Close(); err != nil {
			t.Error(err)
		}
		s.Wait()
		s.want(request("a", o, body), 0, body, cache.Hit)
		s.close()
	})
}

// TestFillPurged: a fill that is purged and that nobody reads ends.
func TestFillPurged(t *testing.T) {
	s := openStore(t)
	body := content(1, mib)
	o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Gate(make(chan struct{}), 64*kib) })
	object, _, err := s.Open(t.Context(), request("a", o, body))
	if err != nil {
		t.Fatal(err)
	}
	if err := object.Close(); err != nil {
		t.Error(err)
	}
	began := time.Now()
	s.Purge("test", "a")
	s.Wait()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it went on for %s", took)
	}
}

// TestFillPurgeForgetsFailures: an operator who purges an object wants it to be asked for now.
func TestFillPurgeForgetsFailures(t *testing.T) {
	for _, name := range []string{"", "a"} {
		s := openStore(t)
		body := content(1, kib)
		o := storetest.NewOrigin(content(2, kib))
		if _, _, err := s.read(request("a", o, body), 0); !errors.Is(err, cache.ErrMismatch) {
			t.Error(err)
		}
		o.Set(func(o *storetest.Origin) { o.Replace(body, `"2"`) })
		s.Wait()
		s.Purge("test", name)
		s.want(request("a", o, body), 0, body, cache.Filled)
		s.Wait()
	}
}

// TestFillFailures: for whom a failure counts.
func TestFillFailures(t *testing.T) {
	one, two := content(1, kib), content(2, kib)
	for _, tt := range []struct {
		name  string
		err   error
		again []byte // what the second request expects
		gets  int
	}{
		{"a mismatch of the same", nil, one, 1},
		{"a mismatch of another", nil, two, 2},
		{"missing", cache.ErrNotFound, two, 1},
		{"down", storetest.ErrDown, two, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			o := storetest.NewOrigin(two).Set(func(o *storetest.Origin) { o.Fail(tt.err) })
			if _, _, err := s.read(request("a", o, one), 0); err == nil {
				t.Error("it did not fail")
			}
			s.Wait()
			_, _, _ = s.read(request("a", o, tt.again), 0)
			if n := len(o.Gets()); n != tt.gets {
				t.Errorf("%d requests to the origin", n)
			}
			s.Wait()
		})
	}
}

// TestFillOfAnother: a request for other content waits for the fill before, but not longer than its client does; one that
// takes any content joins.
func TestFillOfAnother(t *testing.T) {
	s := openStore(t)
	one, two := content(1, mib), content(2, mib)
	gate := make(chan struct{})
	o := storetest.NewOrigin(one).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	object, _, err := s.Open(t.Context(), request("a", o, one))
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	any, how, err := s.Open(t.Context(), request("a", o, nil))
	if err != nil || how != cache.Collapsed {
		t.Fatalf("%v, %v", how, err)
	}
	defer any.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := s.readWith(ctx, request("a", o, two), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(gate)
	if got, err := io.ReadAll(any); err != nil || !bytes.Equal(got, one) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestFillAndSmallerBudget: what was promised to a fill before the budget became smaller is not kept beyond it.
func TestFillAndSmallerBudget(t *testing.T) {
	s := openStore(t)
	s.AwaitScan()
	body := content(1, 2*mib-2*kib) // with its record no more blocks than without
	gate := make(chan struct{})
	o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	object, _, err := s.Open(t.Context(), request("a", o, body))
	if err != nil {
		t.Fatal(err)
	}
	s.Retune(mib, 0, mib)
	close(gate)
	if got, err := io.ReadAll(object); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := object.Close(); err != nil {
		t.Error(err)
	}
	s.Wait()
	if stats := s.Stats(); stats.Bytes > mib {
		t.Errorf("%d bytes are stored", stats.Bytes)
	}
}

// hugeOrigin tells a size that no budget holds.
type hugeOrigin struct{ *storetest.Origin }

func (o hugeOrigin) Get(ctx context.Context, offset, length int64, pin cache.Info) (*cache.Part, error) {
	part, err := o.Origin.Get(ctx, offset, length, cache.Info{})
	if err == nil {
		part.Size = math.MaxInt64
	}
	return part, err
}

func TestFillHuge(t *testing.T) {
	s := openStore(t)
	object, how, err := s.Open(t.Context(), request("a", hugeOrigin{storetest.NewOrigin(content(1, mib))}, nil))
	if err != nil || how != cache.Bypassed {
		t.Fatalf("%v, %v", how, err)
	}
	if stats := s.Stats(); stats.Reserved != 0 {
		t.Errorf("%d bytes are reserved", stats.Reserved)
	}
	if err := object.Close(); err != nil {
		t.Error(err)
	}
}

// TestFillAfterClose: a fill that learns of its object only after the store was closed makes no file there.
func TestFillAfterClose(t *testing.T) {
	s := openStore(t)
	body := content(1, mib)
	o := &slowOrigin{storetest.NewOrigin(body), make(chan struct{}, 1), make(chan struct{})}
	type result struct {
		got []byte
		how cache.Access
		err error
	}
	read := make(chan result)
	go func() {
		got, how, err := s.read(request("a", o, body), 0)
		read <- result{got, how, err}
	}()
	<-o.asked
	s.Close()
	if err := s.owner.Release(); err != nil {
		t.Error(err)
	}
	s.owner = nil
	again := reopenStore(t, s.dir)
	close(o.gate)
	r := <-read
	if r.err != nil || !bytes.Equal(r.got, body) || r.how != cache.Bypassed {
		t.Errorf("%d bytes by %v, %v", len(r.got), r.how, r.err)
	}
	s.Wait()
	again.close()
}

// slowOrigin answers once its gate is open.
type slowOrigin struct {
	*storetest.Origin
	asked chan struct{}
	gate  chan struct{}
}

func (o *slowOrigin) Get(ctx context.Context, offset, length int64, pin cache.Info) (*cache.Part, error) {
	select {
	case o.asked <- struct{}{}:
	default:
	}
	<-o.gate
	return o.Origin.Get(ctx, offset, length, pin)
}

// TestDiskClosedServesNothing: the directory may be another's.
func TestDiskClosedServesNothing(t *testing.T) {
	s := openStore(t)
	for _, size := range []int{kib, mib} {
		body := content(1, size)
		s.want(request("a", storetest.NewOrigin(body), body), 0, body, cache.Filled)
		s.Wait()
		s.Purge("other", "a")
	}
	s.Close()
	if _, _, err := s.read(request("a", nil, nil), 0); !errors.Is(err, cache.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if err := s.Fetch(t.Context(), request("a", nil, content(1, mib))); !errors.Is(err, cache.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if n, _ := s.Purge("test", ""); n != 0 {
		t.Error("it purged what may be another's")
	}
	if n, _ := s.Purge("test", "a"); n != 0 {
		t.Error("it purged what may be another's")
	}
	if err := s.owner.Release(); err != nil {
		t.Error(err)
	}
	s.owner = nil
}

// TestDiskTooManyFiles says nothing about the object, and nobody tries again and again.
func TestDiskTooManyFiles(t *testing.T) {
	s := openStore(t)
	s.AwaitScan()
	body := content(1, mib)
	r := request("a", storetest.NewOrigin(body), body)
	if err := s.Fetch(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	s.files.Fail(syscall.EMFILE, storetest.Open)
	if err := s.Fetch(t.Context(), r); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("got %v", err)
	}
	if _, _, err := s.read(r, 0); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("got %v", err)
	}
	s.files.Fail(nil, storetest.Open)
	s.want(r, 0, body, cache.Hit)
}

// TestDiskLeftovers: what could not be removed is, once the disk works.
func TestDiskLeftovers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := reopenStore(t, dir)
		s.AwaitScan()
		for name, change := range map[string]func(){
			"purge":   func() { s.Purge("test", "purge") },
			"evict":   func() { s.Retune(1, 0, mib); s.Retune(1<<30, 0, mib) },
			"replace": func() { s.Purge("test", "") },
		} {
			body := content(1, mib)
			s.want(request(name, storetest.NewOrigin(body), body), 0, body, cache.Filled)
			s.Wait()
			s.files.Fail(storetest.Broken, storetest.Remove)
			if name == "replace" {
				s.files.Fail(storetest.Broken, storetest.Rename)
			}
			change()
			if err, _ := s.Health(); err == nil {
				t.Errorf("%s: nobody noticed", name)
			}
			s.files.Fail(nil, storetest.Remove, storetest.Rename)
			time.Sleep(time.Minute)
			storetest.Check(t, s.Disk, dir)
		}
		s.close()
	})
}

// TestDiskReplacedWhileOpened: the file that is opened is the one that the index told of, or the object is looked for again.
func TestDiskReplacedWhileOpened(t *testing.T) {
	one, two := content(1, mib), content(2, mib)
	for _, scanned := range []bool{true, false} {
		for _, after := range []bool{true, false} {
			for _, want := range [][]byte{one, two} {
				first := openStore(t)
				first.want(request("a", storetest.NewOrigin(one), one), 0, one, cache.Filled)
				first.Wait()
				first.close()
				s, files := scanning(t, first.dir, "")
				if scanned {
					files.release()
					s.AwaitScan()
					s.want(request("a", nil, nil), 0, one, cache.Hit) // so that its record is known
				}
				swap := func() {
					s.want(request("a", storetest.NewOrigin(two), two), 0, two, cache.Filled)
					s.Wait()
				}
				if after {
					files.after.Store(&swap)
				} else {
					files.between.Store(&swap)
				}
				got, how, err := s.read(request("a", storetest.NewOrigin(two), want), 0)
				right := err == nil && bytes.Equal(got, want)
				failed := errors.Is(err, cache.ErrMismatch) && len(got) <= mib-64*kib
				if !right && !failed {
					t.Errorf("scanned %v, after %v: %d bytes by %v that are not what was asked for", scanned, after, len(got), how)
				}
				s.Wait()
				files.release()
				s.close()
			}
		}
	}
}
