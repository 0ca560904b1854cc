package stats_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// spoiled is a file that is damaged on purpose, and what was in it.
type spoiled struct {
	file  []byte
	known map[string]bool // app and data
}

// spoolFile returns the file of a spool that was closed, or of one that was not.
func spoolFile(t *testing.T, closed bool) spoiled {
	t.Helper()
	b := newBox(t, stats.SpoolOptions{})
	s := spoiled{known: map[string]bool{}}
	for i := range 12 {
		app := fmt.Sprint("app", i%5)
		var data []string
		for j := range 60 {
			text := numbered{Device: app, N: i*1000 + j, Fill: fill(rand.IntN(300))}.json()
			if j == 7 {
				text = numbered{Device: app, N: i*1000 + j, Fill: fill(5000)}.json()
			}
			data = append(data, text)
			s.known[app+text] = true
		}
		b.add(app, fmt.Sprint("device", i), data...)
	}
	for i, l := range b.lanes() {
		batch := b.claim(l, stats.BatchLimits{Events: 10, Bytes: mib})
		if i%2 == 0 {
			b.settle(batch, stats.BatchLimits{Events: 10, Bytes: mib}) // and the next is on its way
		}
	}
	if closed {
		b.close()
	}
	var err error
	if s.file, err = os.ReadFile(b.options.Path); err != nil {
		t.Fatal(err)
	}
	return s
}

// try opens a damaged file and delivers what is in it. Only what was written may come out. It returns how much did.
func (s *spoiled) try(t *testing.T, what string, file []byte) (delivered int) {
	t.Helper()
	dir := scratch(t)
	b := &box{t: t, options: stats.SpoolOptions{Path: dir + "/s.db", MaxBytes: 4 * mib}}
	b.options.Report = b.reports.add
	if err := os.WriteFile(b.options.Path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b.open()
	defer func() { b.Close() }()
	deliver := func() {
		for _, l := range b.lanes() {
			batch, err := b.Claim(t.Context(), l, all, nil)
			for ; batch != nil && err == nil; batch, err = b.Settle(t.Context(), batch, verdicts(batch, nil), all, nil) {
				for _, text := range texts(batch) {
					delivered++
					if !s.known[batch.App+text] && text != "new" {
						t.Fatalf("%s: delivered %.80s of %q", what, text, batch.App)
					}
				}
			}
		}
	}
	deliver()
	if err := b.Append(t.Context(), confirmed("app0", "device0", "new")...); err != nil {
		// What was found only now makes this one fail, and the next one work.
		if err := b.Append(t.Context(), confirmed("app0", "device0", "new")...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for range 3 { // what is found only now takes a second look
		deliver()
	}
	if n := b.Stats().Events; n != 0 {
		t.Fatalf("%s: %d events stay", what, n)
	}
	return delivered
}

// rounds is how often a random test is repeated: n times, or as often as the environment says.
func rounds(t *testing.T, env string, n int) int {
	t.Helper()
	text := os.Getenv(env)
	if text == "" {
		return n
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestTornFile cuts the file of a spool off, and spoils bytes of it. CAPGO_EDGE_SPOOL_TEARS says how often.
func TestTornFile(t *testing.T) {
	n := rounds(t, "CAPGO_EDGE_SPOOL_TEARS", 40)
	for _, closed := range []bool{true, false} {
		s := spoolFile(t, closed)
		whole := s.try(t, "the whole file", s.file)
		if whole < 500 {
			t.Fatalf("%d events come out of the whole file", whole)
		}
		sum, none := 0, 0
		one := func(what string, file []byte) {
			got := s.try(t, what, file)
			if sum += got; got <= 1 {
				none++
			}
		}
		for i := range n {
			cut := len(s.file) * i / n
			if i%2 == 0 {
				cut = cut &^ 4095
			}
			one(fmt.Sprint("cut off at ", cut), s.file[:cut])
		}
		for range n {
			file := append([]byte(nil), s.file...)
			at := rand.IntN(len(file))
			file[at] ^= 1 << rand.IntN(8)
			one(fmt.Sprint("a bit at ", at), file)
		}
		for range n {
			file := append([]byte(nil), s.file...)
			at := rand.IntN(len(file)/16) * 16 // the elements of pages
			file[at+rand.IntN(16)] = byte(rand.Uint32())
			one(fmt.Sprint("a byte at ", at), file)
		}
		for range n {
			file := append([]byte(nil), s.file...)
			page := rand.IntN(len(file)/4096) * 4096
			if rand.IntN(2) == 0 {
				clear(file[page:][:4096])
			} else {
				copy(file[page:], file[rand.IntN(len(file)/4096)*4096:][:4096])
			}
			one(fmt.Sprint("the page at ", page), file)
		}
		t.Logf("%d damaged files; of %d events %.1f %% were saved on average, nothing of %d files, wrong bytes: 0",
			4*n, whole, float64(sum)*100/float64(4*n*whole), none)
	}
}

// TestSetAside looks at what is left of a file that is damaged.
func TestSetAside(t *testing.T) {
	s := spoolFile(t, true)
	b := newBox(t, stats.SpoolOptions{})
	path := b.options.Path
	for range 4 {
		b.close()
		if err := os.WriteFile(path, append(append([]byte(nil), s.file[:len(s.file)/2]...), make([]byte, len(s.file)/8)...), 0o600); err != nil {
			t.Fatal(err)
		}
		b.open()
		b.add("a", "d", "1")
	}
	kept, err := filepath.Glob(path + ".damaged-*")
	if err != nil || len(kept) != 2 {
		t.Errorf("kept are %v, %v", kept, err)
	}
	reports := b.reports.list()
	if len(reports) != 8 || reports[0] == nil || reports[1] != nil || !strings.Contains(reports[0].Error(), ".damaged-") {
		t.Errorf("reported: %v", reports)
	}
}

// TestForeignFile has something else stand in the place of a spool.
func TestForeignFile(t *testing.T) {
	path := scratch(t) + "/s.db"
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := stats.OpenSpool(stats.SpoolOptions{Path: path}); err == nil {
		s.Close()
		t.Error("a directory is opened")
	}
	if s, err := stats.OpenSpool(stats.SpoolOptions{Path: filepath.Join(path, "no", "s.db")}); err == nil {
		s.Close()
		t.Error("a directory that is not there is opened")
	}
	if s, err := stats.OpenSpool(stats.SpoolOptions{Path: path, MaxBytes: 1000}); err == nil {
		s.Close()
		t.Error("1000 bytes are enough")
	}
}

// TestNewerFormat has a newer release begin the file.
func TestNewerFormat(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", "1")
	b.close()
	if err := stats.SetFormat(b.options.Path, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := stats.OpenSpool(b.options); !errors.Is(err, stats.ErrFormat) {
		t.Fatal(err)
	}
	if err := stats.SetFormat(b.options.Path, 1); err != nil {
		t.Fatal(err)
	}
	b.open()
	if got := b.drain(); fmt.Sprint(got["a"]) != "[1]" {
		t.Error(got)
	}
}

// TestCutWhileOpen has the file cut off under a spool that is in use.
func TestCutWhileOpen(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	for i := range 50 {
		b.add("a", fmt.Sprint(i), fill(2000), fill(2000), fill(2000))
	}
	if err := os.Truncate(b.options.Path, 20_000); err != nil {
		t.Fatal(err)
	}
	for _, l := range b.lanes() {
		for range 3 {
			_, _ = b.Claim(t.Context(), l, all, nil)
		}
	}
	var err error
	for range 3 {
		if err = b.Append(t.Context(), confirmed("a", "d", "new")...); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if stats.Damaged(b.options.Path) == 0 {
		t.Error("the file was not set aside")
	}
}
