package cache

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestClaim(t *testing.T) {
	for _, tt := range []struct {
		name, stamp, want, err string
	}{
		{name: "new", stamp: "none", want: "2\n"},
		{name: "older", stamp: "1\n", want: "2\n"},
		{name: "without a line's end", stamp: "2", want: "2"},
		{name: "after a crash", stamp: "", want: "2\n"},
		{name: "newer", stamp: "3\n", want: "3\n", err: "newer version (layout 3"},
		{name: "garbage", stamp: "hello\n", want: "hello\n", err: "does not hold a layout version"},
		{name: "zero", stamp: "0\n", want: "0\n", err: "does not hold a layout version"},
		{name: "negative", stamp: "-1\n", want: "-1\n", err: "does not hold a layout version"},
		{name: "huge", stamp: "99999999999999999999", want: "99999999999999999999", err: "does not hold a layout version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a", "b")
			path := filepath.Join(dir, formatFile)
			if tt.stamp != "none" {
				if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(path, []byte(tt.stamp), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				d, err := Claim(dir)
				if err == nil {
					err = d.Release()
				}
				if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
					t.Errorf("got %v, want %q", err, tt.err)
				}
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != tt.want {
				t.Errorf("stamp %q, %v, want %q", got, err, tt.want)
			}
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%v, %v", info, err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
		})
	}
	t.Run("a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Claim(file); err == nil {
			t.Error("takes a file for a directory")
		}
	})
	t.Run("the stamp is a directory", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, formatFile), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Claim(dir); err == nil {
			t.Error("takes a directory for a stamp")
		}
	})
}

// TestClaimMigrates: an older layout loses its objects, which can be fetched again, and nothing else.
func TestClaimMigrates(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		formatFile: "1\n", "manifests/a/b": "last good", "spool.db": "events", "objects/a/b/c": "object", "fills/x": "half",
	} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Release() //nolint:errcheck // a test
	for name, want := range map[string]bool{"manifests/a/b": true, "spool.db": true, "objects/a/b/c": false, "fills/x": false} {
		if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name))); (err == nil) != want {
			t.Errorf("%s: %v, kept is to be %v", name, err, want)
		}
	}
}

// TestClaimLocks: a directory has one owner at a time.
func TestClaimLocks(t *testing.T) {
	dir := t.TempDir()
	d, err := Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir); !errors.Is(err, errLocked) {
		t.Errorf("a second claim: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = d.Release() })
	again, err := Claim(dir) // waits for the one before
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
}
