package stats_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// TestFullDisk runs out of space on a small file system, for which it must be root.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Skip("no file system of its own: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, stats.SpoolOptions{Path: dir + "/s.db", MaxBytes: 64 * mib})
		added := int64(0)
		write := func() error {
			err := b.Append(t.Context(), confirmed("a", fmt.Sprint(added), fill(800), fill(800), fill(800), fill(800), fill(800))...)
			if err == nil {
				added += 5
			}
			return err
		}
		var err error
		for range 10_000 {
			if err = write(); err != nil {
				break
			}
		}
		if !errors.Is(err, stats.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		held := b.Stats().Events
		if held != added || b.dropped() > 0 {
			t.Errorf("%d events of %d", held, added)
		}
		if reports := b.reports.list(); len(reports) != 1 || !errors.Is(reports[0], stats.ErrNoSpace) {
			t.Errorf("reported: %v", reports)
		}
		// Delivery goes on, and makes room.
		out := int64(0)
		for _, l := range b.lanes() {
			for batch := b.claim(l, all); batch != nil && out < added/2; batch = b.settle(batch, all) {
				out += int64(len(batch.Events))
			}
		}
		time.Sleep(2 * time.Second)
		for range 50 {
			if err := write(); err != nil {
				t.Fatal(err)
			}
		}
		if reports := b.reports.list(); len(reports) != 2 || reports[1] != nil {
			t.Errorf("reported: %v", reports)
		}
		for err = nil; err == nil; {
			err = write()
		}
		// Something else goes away, or comes.
		if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		b.reopen()
		if n := b.Stats().Events; n != added-out {
			t.Errorf("%d events after a restart, want %d", n, added-out)
		}
		if got := len(b.drain()["a"]); int64(got) != added-out {
			t.Errorf("%d events come out, want %d", got, added-out)
		}
		b.close()
	})
}
