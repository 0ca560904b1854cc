package origin_test

import (
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
)

const changeTimes = true

// TestFileSpecial asks for what is no file; opening a named pipe nobody writes to must not wait for a writer.
func TestFileSpecial(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := newFile(t, dir)
	for _, key := range []string{"fifo", "socket", "."} {
		done := make(chan error, 1)
		go func() {
			_, err := s.Get(t.Context(), key, origin.GetOptions{})
			done <- err
		}()
		select {
		case err := <-done:
			if !errors.Is(err, origin.ErrNotFound) {
				t.Errorf("%s: got %v, want ErrNotFound", key, err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: opening it hangs", key)
		}
	}
}
