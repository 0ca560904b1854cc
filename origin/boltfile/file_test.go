package boltfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openAt(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(Options{Path: path, Format: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func update(t testing.TB, f *File, write func(b *bbolt.Bucket) error) {
	t.Helper()
	err := f.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("rows"))
		if err != nil {
			return err
		}
		return write(b)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fill makes a file with all there is: branches, large values, buckets in buckets, small ones, and free pages.
func fill(t testing.TB, path string) []byte {
	t.Helper()
	f := openAt(t, path)
	for round := range 8 {
		update(t, f, func(b *bbolt.Bucket) error {
			for i := range 120 {
				key := fmt.Appendf(nil, "%d-%03d", round%4, i)
				if round > 5 && i%3 > 0 {
					if err := b.Delete(key); err != nil {
						return err
					}
				} else if err := b.Put(key, bytes.Repeat([]byte{byte(round)}, i*20)); err != nil {
					return err
				}
			}
			for i := range 4 {
				child, err := b.CreateBucketIfNotExists(fmt.Appendf(nil, "child%d", i))
				if err != nil {
					return err
				}
				for j := range i * i * 20 {
					if err := child.Put(fmt.Appendf(nil, "%d", j), []byte("some value")); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestSound: a file that bbolt wrote is taken for what it is, after each of many changes.
func TestSound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	random := rand.New(rand.NewPCG(1, 2))
	f := openAt(t, path)
	for range 150 {
		update(t, f, func(b *bbolt.Bucket) error {
			for range random.IntN(60) {
				key := fmt.Appendf(nil, "%d", random.IntN(500))
				var err error
				if random.IntN(3) == 0 {
					err = b.Delete(key)
				} else {
					err = b.Put(key, make([]byte, random.IntN(9000)))
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(bytes.NewReader(raw), int64(os.Getpagesize())); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamage: whatever is done to a file, it opens, and all of it can be read and written to.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	raw := fill(t, filepath.Join(dir, "sound"))
	random := rand.New(rand.NewPCG(3, 4))
	moved := 0
	const rounds = 150
	for round := range rounds {
		path := filepath.Join(dir, "db")
		if err := os.WriteFile(path, spoil(random, raw, round), 0o600); err != nil {
			t.Fatal(err)
		}
		var reported []error
		f, err := Open(Options{Path: path, Format: 1, Report: func(err error) { reported = append(reported, err) }})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if moved += len(reported); len(reported) > 0 && !errors.Is(reported[0], ErrDamaged) {
			t.Errorf("round %d: %v", round, reported)
		}
		use(t, f)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d were moved aside", moved, rounds)
}

func spoil(random *rand.Rand, raw []byte, round int) []byte {
	raw = bytes.Clone(raw)
	page := os.Getpagesize()
	at := random.IntN(len(raw))
	switch round % 5 {
	case 0:
		return raw[:at]
	case 1: // the beginning of a page says what it is
		raw[at/page*page+random.IntN(80)] ^= byte(1 + random.IntN(255))
	case 2:
		clear(raw[at/page*page : min(len(raw), at/page*page+page)])
	case 3:
		copy(raw[at/page*page:], raw[random.IntN(len(raw)/page)*page:][:page]) // a page in another's place
	case 4:
		for range 30 {
			raw[random.IntN(len(raw))] = byte(random.Uint32())
		}
	}
	return raw
}

// use reads all there is and writes something.
func use(t testing.TB, f *File) {
	t.Helper()
	err := f.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return readAll(b) })
	})
	if err != nil {
		t.Fatal(err)
	}
	update(t, f, func(b *bbolt.Bucket) error {
		for i := range 50 {
			if err := b.Put(fmt.Appendf(nil, "more%d", i), make([]byte, 2000)); err != nil {
				return err
			}
		}
		return nil
	})
}

func readAll(b *bbolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		if v == nil {
			if child := b.Bucket(k); child != nil {
				return readAll(child)
			}
		}
		_ = bytes.Clone(v)
		return nil
	})
}

// FuzzVerify changes bytes of a sound file. What is taken for sound can be read and written to.
func FuzzVerify(f *testing.F) {
	dir := f.TempDir()
	raw := fill(f, filepath.Join(dir, "sound"))
	f.Add(uint32(4096), uint64(0xff))
	f.Add(uint32(40), uint64(1<<40))
	f.Fuzz(func(t *testing.T, at uint32, change uint64) {
		spoilt := bytes.Clone(raw)
		for i := range 8 {
			spoilt[(int(at)+i)%len(spoilt)] ^= byte(change >> (8 * i))
		}
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		use(t, openAt(t, path))
	})
}

func TestRefusals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	f := openAt(t, path)
	if _, err := Open(Options{Path: path, Format: 1}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("open elsewhere: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: path, Format: 0}); !errors.Is(err, ErrNewer) {
		t.Errorf("of a later release: %v", err)
	}
	if _, err := Open(Options{Path: filepath.Join(path, "below")}); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("no directory: %v", err)
	}
	newer, err := Open(Options{Path: path, Format: 2}) // an older file
	if err != nil {
		t.Fatal(err)
	}
	if err := newer.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: path, Format: 1}); !errors.Is(err, ErrNewer) {
		t.Errorf("the older file bears the new stamp no more: %v", err)
	}
}

// TestPanic: a panic in a transaction ends the use of the file, not the process, and frees it for the next.
func TestPanic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	f := openAt(t, path)
	update(t, f, func(b *bbolt.Bucket) error { return b.Put([]byte("a"), []byte("1")) })
	if err := f.Update(func(*bbolt.Tx) error { panic("page 7 is not itself") }); !errors.Is(err, ErrDamaged) {
		t.Errorf("a panic: %v", err)
	}
	if err := f.View(func(*bbolt.Tx) error { return nil }); !errors.Is(err, ErrDamaged) {
		t.Errorf("after a panic: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	f = openAt(t, path)
	err := f.View(func(tx *bbolt.Tx) error {
		if got := tx.Bucket([]byte("rows")).Get([]byte("a")); string(got) != "1" {
			t.Errorf("%q", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	refused := errors.New("refused")
	if err := f.Update(func(*bbolt.Tx) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("an error of the transaction's own: %v", err)
	}
	use(t, f) // goes on
}

// TestReplaced: what was written into a file that has lost its name would be gone after a restart.
func TestReplaced(t *testing.T) {
	tests := []struct {
		name string
		do   func(path string) error
	}{
		{"removed", os.Remove},
		{"replaced", func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, nil, 0o600))
		}},
		{"its directory is another", func(path string) error {
			dir := filepath.Dir(path)
			return errors.Join(os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o700))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if runtime.GOOS == "windows" {
				t.Skip("here an open file keeps its name")
			}
			dir := filepath.Join(t.TempDir(), "storage")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "file.db")
			f := openAt(t, path)
			put := func(value string) error {
				return f.Update(func(tx *bbolt.Tx) error {
					b, err := tx.CreateBucketIfNotExists([]byte("rows"))
					return cmp.Or(err, b.Put([]byte("k"), []byte(value)))
				})
			}
			if err := put("before"); err != nil {
				t.Fatal(err)
			}
			if err := tt.do(path); err != nil {
				t.Fatal(err)
			}
			if err := put("after"); !errors.Is(err, ErrReplaced) || !strings.Contains(err.Error(), path) {
				t.Errorf("written to a file that is gone: %v", err)
			}
			err := f.View(func(tx *bbolt.Tx) error { // reads go on
				if got := string(tx.Bucket([]byte("rows")).Get([]byte("k"))); got != "before" {
					t.Errorf("%q", got)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPutBack: a file that is where it was again is written to.
func TestPutBack(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("here an open file keeps its name")
	}
	path := filepath.Join(t.TempDir(), "file.db")
	f := openAt(t, path)
	nothing := func(*bbolt.Tx) error { return nil }
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := f.Update(nothing); !errors.Is(err, ErrReplaced) {
		t.Errorf("%v", err)
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	if err := f.Update(nothing); err != nil {
		t.Errorf("it is back: %v", err)
	}
}
