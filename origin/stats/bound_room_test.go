package stats

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"
)

// TestMakeRoomInAFullFile: a file that is full nearly to its last page, as one that was lowered and written anew may be, drops
// events in steps that fit into what it has.
func TestMakeRoomInAFullFile(t *testing.T) {
	if os.Getpagesize() != 4096 || runtime.GOOS == "windows" {
		t.Skip("it counts the pages of a file that grows step by step")
	}
	const maxBytes = 4 << 20
	for free, seed := range map[int]uint64{12: 1, 14: 0, 16: 2} {
		st, err := openStore(t.TempDir()+"/s.db", maxBytes)
		if err != nil {
			t.Fatal(err)
		}
		st.db.NoSync = true
		dice := rand.New(rand.NewPCG(seed, uint64(free)))
		for st.fits() > free || st.size < maxBytes {
			n := dice.IntN(20_000)
			if st.size == maxBytes && st.fits() < 150 {
				n = pieceLen
			}
			e := entry{app: fmt.Sprint(dice.IntN(3)), confirmed: true, device: dice.Uint64N(60), time: time.Now(), data: make([]byte, n)}
			if err := st.update(0, func() error { return st.append(&e) }); err != nil {
				t.Fatal(err)
			}
			if err := st.grow(maxBytes); err != nil {
				t.Fatal(err)
			}
		}
		s := &Spool{path: st.path, store: st}
		left := st.fits()
		if err := s.makeRoom(tuning{maxBytes: maxBytes}, 177); err != nil {
			t.Errorf("seed %d, with %d pages left: %v", seed, left, err)
		}
		if err := s.store.close(); err != nil {
			t.Error(err)
		}
	}
}
