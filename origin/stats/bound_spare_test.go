package stats

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"
)

// fillTo writes events of many pieces to a file until it is at its bound and has so few pages free.
func fillTo(t *testing.T, path string, maxBytes int64, free int) *store {
	t.Helper()
	if os.Getpagesize() != 4096 || runtime.GOOS == "windows" {
		t.Skip("it counts the pages of a file that grows step by step")
	}
	st, err := openStore(path, maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	st.db.NoSync = true
	dice := rand.New(rand.NewPCG(uint64(free), 1))
	for n := 60_000; st.fits() > free || st.size < maxBytes; {
		if st.size == maxBytes && st.fits() < 60 {
			n = 2 * pieceLen
		}
		e := entry{app: fmt.Sprint(dice.IntN(3)), confirmed: true, device: dice.Uint64N(60), time: time.Now(), data: make([]byte, n)}
		if err := errors.Join(st.grow(int(maxBytes)), st.update(0, func() error { return st.append(&e) })); err != nil {
			t.Fatal(err)
		}
	}
	return st
}

// TestSpare: in a file that is at its bound, with fewer pages free than any transaction writes, events are claimed and
// delivered, and dropped, also after a restart. It is within its bound again after that.
func TestSpare(t *testing.T) {
	const maxBytes = 4 << 20
	for _, free := range []int{7, 5, 4} {
		path := t.TempDir() + "/s.db"
		st := fillTo(t, path, maxBytes, free)
		held := st.apps.records
		s := &Spool{path: path, store: st, faults: newFaults(func(err error) { t.Error(err) }), dead: &letters{}}
		tune := tuning{maxBytes: maxBytes}
		run := func(op func(*store) error) {
			r := &request{op: op, lanes: opLanes, answer: make(chan error, 1)}
			s.commit(tune, []*request{r})
			if err := <-r.answer; err != nil {
				t.Errorf("with %d pages left: %v", free, err)
			}
		}
		var b *Batch
		run(func(st *store) (err error) {
			for n := range uint8(Lanes) {
				if b == nil && err == nil {
					b, _, err = st.claim(Lane{app: 1, n: n}, conditions{limits: BatchLimits{Events: 1, Bytes: 1}})
				}
			}
			return err
		})
		if b == nil {
			t.Fatalf("with %d pages left nothing can be claimed", free)
		}
		run(func(st *store) error { return st.settle(b, []Verdict{{Fate: Delivered}}) })
		if n := s.store.apps.records; n != held-1 {
			t.Errorf("with %d pages left %d of %d events are there once one is delivered", free, n, held)
		}
		if most := int64(maxBytes + spare*4096); s.store.size > most {
			t.Errorf("the file has %d bytes, of at most %d", s.store.size, most)
		}
		s.maintain(tune)
		if s.store.size > maxBytes || s.store.apps.records < held/2 {
			t.Errorf("the file has %d bytes, of at most %d, and %d events of %d", s.store.size, maxBytes, s.store.apps.records, held)
		}
		if err := s.store.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSpareAtTheStart opens a file that was left with too few pages to drop anything.
func TestSpareAtTheStart(t *testing.T) {
	const maxBytes = 4 << 20
	for _, free := range []int{7, 5, 4} {
		path := t.TempDir() + "/s.db"
		st := fillTo(t, path, maxBytes, free)
		held := st.apps.records
		if err := st.close(); err != nil {
			t.Fatal(err)
		}
		s, err := OpenSpool(SpoolOptions{Path: path, MaxBytes: maxBytes, Report: func(err error) { t.Errorf("with %d pages left: %v", free, err) }})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Append(t.Context(), Event{App: "0", Device: "d", Confirmed: true, Data: []byte("1")}); err != nil {
			t.Errorf("with %d pages left: %v", free, err)
		}
		if n := s.Stats(); n.FileBytes > maxBytes || n.Events < held/2 {
			t.Errorf("the file has %d bytes, and %d events of %d", n.FileBytes, n.Events, held)
		}
		if err := errors.Join(s.Close(), CheckSpool(path)); err != nil {
			t.Error(err)
		}
	}
}

// TestNeverJams writes events of all sizes to small spools: they always take, and deliver. The first three seeds are some
// that came to a file in which nothing could be dropped.
func TestNeverJams(t *testing.T) {
	for seed, maxBytes := range map[uint64]int64{11: 1 << 20, 15: 1 << 20, 17: 1 << 20, 1: 4 << 20, 2: 4 << 20} {
		dice := rand.New(rand.NewPCG(seed, 7))
		path := t.TempDir() + "/s.db"
		s, err := OpenSpool(SpoolOptions{Path: path, MaxBytes: maxBytes, Report: func(err error) { t.Errorf("seed %d: %v", seed, err) }})
		if err != nil {
			t.Fatal(err)
		}
		var last Lane
		s.Watch(func(l Lane) { last = l })
		for written := int64(0); written < 6*maxBytes; {
			var batch []Event
			for range 1 + dice.IntN(40) {
				n := 20
				if dice.IntN(4) == 0 {
					n = dice.IntN(min(100_000, MaxEvent(maxBytes)))
				}
				written += int64(n)
				batch = append(batch, Event{App: fmt.Sprint(dice.IntN(2)), Device: fmt.Sprint(dice.IntN(20)), Confirmed: true, Data: make([]byte, n)})
			}
			if err := s.Append(t.Context(), batch...); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if info, err := os.Stat(path); err != nil || info.Size() > maxBytes+int64(spare*os.Getpagesize()) {
				t.Fatalf("seed %d: %v, %d bytes", seed, err, info.Size())
			}
		}
		if b, err := s.Claim(t.Context(), last, BatchLimits{Events: 10, Bytes: 1 << 20}, nil); err != nil || b == nil {
			t.Errorf("seed %d: nothing is delivered: %v", seed, err)
		}
		if err := errors.Join(s.Close(), CheckSpool(path)); err != nil {
			t.Error(err)
		}
	}
}

// TestBoundIsNotTheDisk: an error of the bound names the option, not the disk, and one of the disk the disk.
func TestBoundIsNotTheDisk(t *testing.T) {
	bound := commitError("s.db", bolterrors.ErrMaxSizeReached)
	if errors.Is(bound, ErrNoSpace) || !strings.Contains(bound.Error(), "max_spool") || strings.Contains(bound.Error(), "disk") {
		t.Error(bound)
	}
	refused := &os.PathError{Op: "write", Path: "s.db", Err: os.ErrPermission}
	if disk := commitError("s.db", errors.Join(bolterrors.ErrMaxSizeReached, refused)); strings.Contains(disk.Error(), "max_spool") {
		t.Error(disk)
	}
}
