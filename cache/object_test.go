package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/cache/storetest"
)

// TestObjectEmpty: of an object without bytes the end waits until it was verified.
func TestObjectEmpty(t *testing.T) {
	for _, bypass := range []bool{false, true} {
		for _, awaits := range []bool{false, true} {
			s := openStore(t)
			body := content(1, 10)
			o := storetest.NewOrigin(nil)
			if bypass {
				s.files.Fail(storetest.Full, storetest.Write)
				s.Retune(1, 0, 0)
				s.want(request("a", o, nil), 0, []byte{}, cache.Filled)
				s.Wait()
			}
			object, how, err := s.Open(t.Context(), request("a", o, body))
			if err == nil && awaits {
				err = object.Await(0)
			}
			if err == nil {
				_, err = io.ReadAll(object)
			}
			if !errors.Is(err, cache.ErrMismatch) {
				t.Errorf("bypass %v: by %v: %v", bypass, how, err)
			}
			if object != nil {
				_ = object.Close()
			}
			s.files.Fail(nil, storetest.Write)
		}
	}
}

// TestObjectVerifiedWhenTheDiskFails: what a reader gets from the origin after the disk failed is verified too.
func TestObjectVerifiedWhenTheDiskFails(t *testing.T) {
	right, wrong := content(1, 2*mib), content(2, 2*mib)
	for _, tt := range []struct {
		name   string
		served []byte
		blind  bool
		err    error
	}{
		{"right", right, false, nil},
		{"wrong", wrong, false, cache.ErrMismatch},
		{"nothing tells it from others", right, true, cache.ErrChanged},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			s.files.FailAfter(20, storetest.Full, storetest.Write)
			gate := make(chan struct{})
			o := storetest.NewOrigin(tt.served).Set(func(o *storetest.Origin) {
				o.Gate(gate, 64*kib)
				o.Hide(false, tt.blind)
			})
			object, _, err := s.Open(t.Context(), request("a", o, right))
			if err != nil {
				t.Fatal(err)
			}
			defer object.Close()
			gate <- struct{}{}
			gate <- struct{}{}
			first := make([]byte, 64*kib)
			if _, err := io.ReadFull(object, first); err != nil {
				t.Fatal(err)
			}
			close(gate)
			rest, err := io.ReadAll(object)
			switch got := append(first, rest...); {
			case !errors.Is(err, tt.err):
				t.Errorf("got %v", err)
			case err == nil && !bytes.Equal(got, right):
				t.Error("wrong bytes")
			case err != nil && len(got) > 2*mib-64*kib:
				t.Errorf("%d bytes", len(got))
			}
			s.files.Fail(nil, storetest.Write)
		})
	}
}

// TestObjectReadAgainBlind: of an origin that does not tell an object from its next, two are not glued together.
func TestObjectReadAgainBlind(t *testing.T) {
	s := openStore(t)
	s.files.FailAfter(20, storetest.Full, storetest.Write)
	gate := make(chan struct{})
	o := storetest.NewOrigin(content(1, 2*mib)).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib); o.Hide(false, true) })
	object, _, err := s.Open(t.Context(), request("a", o, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	gate <- struct{}{}
	gate <- struct{}{}
	if _, err := io.ReadFull(object, make([]byte, 64*kib)); err != nil {
		t.Fatal(err)
	}
	o.Set(func(o *storetest.Origin) { o.Replace(content(2, 2*mib), "") })
	close(gate)
	if _, err := io.ReadAll(object); !errors.Is(err, cache.ErrChanged) {
		t.Errorf("got %v", err)
	}
	s.files.Fail(nil, storetest.Write)
}

// farOrigin fails what is read besides the fill, or cuts it.
type farOrigin struct {
	*storetest.Origin
	cut atomic.Int64 // bytes a read from an offset gives; negative for none at all
}

func (o *farOrigin) Get(ctx context.Context, offset, length int64, pin cache.Info) (*cache.Part, error) {
	if offset > 0 && o.cut.Load() < 0 {
		return nil, storetest.ErrDown
	}
	part, err := o.Origin.Get(ctx, offset, length, pin)
	if err == nil && offset > 0 {
		part.Body = io.NopCloser(io.LimitReader(part.Body, o.cut.Load()))
	}
	return part, err
}

// TestObjectFarFails: a read besides the fill that fails costs time, not the answer.
func TestObjectFarFails(t *testing.T) {
	for _, cut := range []int64{-1, 0, 100 * kib} {
		s := openStore(t)
		body := content(1, 12*mib)
		gate := make(chan struct{})
		o := &farOrigin{Origin: storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })}
		o.cut.Store(cut)
		fill, _, err := s.Open(t.Context(), request("a", o, body))
		if err != nil {
			t.Fatal(err)
		}
		o.Set(func(o *storetest.Origin) { o.Gate(nil, 64*kib) })
		read := make(chan error)
		go func() {
			got, _, err := s.read(request("a", o, body), 8*mib)
			if err == nil && !bytes.Equal(got, body[8*mib:]) {
				err = errors.New("wrong bytes")
			}
			read <- err
		}()
		select {
		case err := <-read:
			t.Errorf("before the fill came there: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		close(gate)
		if err := <-read; err != nil {
			t.Error(err)
		}
		if n := len(o.Gets()); n > 2 {
			t.Errorf("%d requests to the origin", n)
		}
		if err := fill.Close(); err != nil {
			t.Error(err)
		}
		s.Wait()
	}
}

// TestObjectFarGivesItsPlace: who waits for the end of the object does not keep others from reading ahead.
func TestObjectFarGivesItsPlace(t *testing.T) {
	s := openStore(t)
	body := content(1, 8*mib)
	gate := make(chan struct{})
	o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	fill, _, err := s.Open(t.Context(), request("a", o, body))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	o.Set(func(o *storetest.Origin) { o.Gate(nil, 64*kib) })
	tails := make(chan error, 4)
	for range 4 {
		go func() {
			got, _, err := s.read(request("a", o, body), 7*mib)
			if err == nil && !bytes.Equal(got, body[7*mib:]) {
				err = errors.New("wrong bytes")
			}
			tails <- err
		}()
	}
	time.Sleep(50 * time.Millisecond) // they read to the last chunk
	another, _, err := s.Open(t.Context(), request("a", o, body))
	if err != nil {
		t.Fatal(err)
	}
	defer another.Close()
	awaited := make(chan error, 1)
	go func() { awaited <- another.Await(6 * mib) }()
	select {
	case err := <-awaited:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("four that wait keep the fifth waiting")
	}
	close(gate)
	for range 4 {
		if err := <-tails; err != nil {
			t.Error(err)
		}
	}
}

// TestObjectReadsOn: who reads more than was announced gets it.
func TestObjectReadsOn(t *testing.T) {
	for _, unsized := range []bool{false, true} {
		s := openStore(t, func(o *cache.DiskOptions) { o.MaxBytes = mib })
		body := content(1, 2*mib)
		o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Hide(unsized, false) })
		_, _, _ = s.read(request("a", o, body), 0) // which tells that it is too large
		s.Wait()
		r := request("a", o, body)
		r.Offset, r.Length = 100*kib, 300*kib
		read := make(chan error)
		go func() {
			got, how, err := s.read(r, 100*kib)
			if err == nil && (how != cache.Bypassed || !bytes.Equal(got, body[100*kib:])) {
				err = errors.New("wrong bytes by " + how.String())
			}
			read <- err
		}()
		select {
		case err := <-read:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it never ends")
		}
	}
}

// TestObjectBypassAwaits: an object that is not the one expected is refused before its answer begins, if it is small.
func TestObjectBypassAwaits(t *testing.T) {
	s := openStore(t, func(o *cache.DiskOptions) { o.MaxBytes = 1; o.Memory = 0 })
	for _, size := range []int{1, 60 * kib, 300 * kib} {
		o := storetest.NewOrigin(content(1, size))
		_, _, _ = s.read(request("a", o, nil), 0) // cannot be kept
		s.Wait()
		r := request("a", o, content(2, size))
		var object *cache.Object
		var err error
		for range 2 { // the first may be a fill that learns it
			if object != nil {
				_ = object.Close()
			}
			s.Wait()
			object, _, err = s.Open(t.Context(), r)
		}
		if err == nil {
			err = object.Await(0)
			_ = object.Close()
		}
		if mismatch := errors.Is(err, cache.ErrMismatch); mismatch != (size <= 64*kib) {
			t.Errorf("%d bytes: %v", size, err)
		}
		s.Purge("test", "a")
	}
}

// TestObjectSendsItsOwnFile: a reader whose object was dropped and stored anew under the same name goes on with its own.
func TestObjectSendsItsOwnFile(t *testing.T) {
	s := openStore(t, func(o *cache.DiskOptions) { o.Files = nil })
	one, two := content(1, 2*mib), content(2, 2*mib)
	gate := make(chan struct{})
	o := storetest.NewOrigin(one).Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	object, _, err := s.Open(t.Context(), request("a", o, one))
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	close(gate)
	s.Wait()
	s.Purge("test", "a")
	s.want(request("a", storetest.NewOrigin(two), two), 0, two, cache.Filled)
	s.Wait()
	var got collector
	if _, err := object.CopyN(&got, 2*mib); err != nil || !bytes.Equal(got.Bytes(), one) {
		t.Errorf("%d bytes, right: %v, %v", got.Len(), bytes.Equal(got.Bytes(), one), err)
	}
}

// brokenSink takes some bytes and fails.
type brokenSink struct {
	collector
	takes int64
}

func (b *brokenSink) SendFile(f *os.File, n int64) (int64, error) {
	sent, _ := io.CopyN(&b.Buffer, f, min(n, b.takes-int64(b.Len())))
	if int64(b.Len()) < b.takes {
		return sent, nil
	}
	return sent, os.ErrDeadlineExceeded
}

// TestObjectClientFails: a client that goes is no fault of the disk, wherever it does.
func TestObjectClientFails(t *testing.T) {
	s := openStore(t, func(o *cache.DiskOptions) { o.Files = nil })
	body := content(1, mib)
	o := storetest.NewOrigin(body)
	for _, takes := range []int64{0, 1, mib - 1, mib} {
		for _, name := range []string{"fresh", "stored"} {
			if name == "fresh" {
				s.Purge("test", "a")
			}
			object, _, err := s.Open(t.Context(), request("a", o, body))
			if err != nil {
				t.Fatal(err)
			}
			if err := object.Await(mib - 1); err != nil {
				t.Error(err)
			}
			if _, err := object.Seek(0, io.SeekStart); err != nil {
				t.Error(err)
			}
			n, err := object.CopyN(&brokenSink{takes: takes}, mib)
			if n != takes || !errors.Is(err, os.ErrDeadlineExceeded) || object.Err() != nil {
				t.Errorf("%s: %d of %d bytes, %v, %v", name, n, takes, err, object.Err())
			}
			if err := object.Close(); err != nil {
				t.Error(err)
			}
			s.Wait()
			if err, _ := s.Health(); err != nil {
				t.Errorf("%s, %d: the disk is well: %v", name, takes, err)
			}
		}
	}
}

func TestObjectSeeks(t *testing.T) {
	s := openStore(t)
	body := content(1, 300*kib)
	o := storetest.NewOrigin(body).Set((*storetest.Origin).Unsized)
	gate := make(chan struct{})
	o.Set(func(o *storetest.Origin) { o.Gate(gate, 64*kib) })
	object, _, err := s.Open(t.Context(), request("a", o, body))
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	if _, err := object.Seek(0, io.SeekEnd); err == nil {
		t.Error("it knows an end that nobody told")
	}
	if _, err := object.Seek(-1, io.SeekStart); err == nil {
		t.Error("it stands before its start")
	}
	close(gate)
	if err := object.AwaitSize(); err != nil || object.Info().Size != 300*kib {
		t.Errorf("%+v, %v", object.Info(), err)
	}
	for _, step := range [][3]int64{{-10, io.SeekEnd, 300*kib - 10}, {5, io.SeekCurrent, 300*kib - 5}, {7, io.SeekStart, 7}} {
		if at, err := object.Seek(step[0], int(step[1])); err != nil || at != step[2] {
			t.Errorf("%v: %d, %v", step, at, err)
		}
	}
	if n, err := object.Read(nil); n != 0 || err != nil {
		t.Errorf("reading nothing: %d, %v", n, err)
	}
	if got, err := io.ReadAll(object); err != nil || !slices.Equal(got, body[7:]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestObjectEarlyEnd: an origin whose error wraps io.EOF has not come to the end of the object, and its error stays what
// else it is.
func TestObjectEarlyEnd(t *testing.T) {
	s := openStore(t)
	body := content(1, mib)
	for name, cause := range map[string]error{"down": storetest.ErrDown, "mismatch": cache.ErrMismatch, "missing": cache.ErrNotFound} {
		o := storetest.NewOrigin(body).Set(func(o *storetest.Origin) { o.Fail(fmt.Errorf("%w: %w", cause, io.EOF)) })
		got, _, err := s.read(request(name, o, body), 0)
		if !errors.Is(err, cause) || errors.Is(err, io.EOF) || len(got) != 0 {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if stats := s.Stats(); stats.Failed != 3 || stats.Mismatches != 1 {
		t.Errorf("%d failed, %d of them mismatches", stats.Failed, stats.Mismatches)
	}
}
