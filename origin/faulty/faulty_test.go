package faulty_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/faulty"
)

const content = "0123456789"

func newStore(t *testing.T) *faulty.Store {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := origin.NewFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	return faulty.New(file)
}

// read gets all that comes of the object, and why it ended.
func read(ctx context.Context, s origin.Store, opts origin.GetOptions) (string, error) {
	o, err := s.Get(ctx, "a", opts)
	if err != nil {
		return "", err
	}
	defer o.Body.Close()
	got, err := io.ReadAll(o.Body)
	return string(got), err
}

func TestFaults(t *testing.T) {
	refused := errors.New("refused")
	tests := []struct {
		name  string
		fault faulty.Fault
		opts  origin.GetOptions
		want  string
		err   error
	}{
		{name: "none", want: content},
		{name: "refuse", fault: faulty.Refuse(refused), err: refused},
		{name: "down", fault: faulty.Refuse(nil), err: origin.ErrUnavailable},
		{name: "hang", fault: faulty.Hang(), err: origin.ErrUnavailable},
		{name: "slow", fault: faulty.Slow(time.Millisecond), want: content},
		{name: "cut at first", fault: faulty.CutAt(0), err: origin.ErrUnavailable},
		{name: "cut", fault: faulty.CutAt(4), want: "0123", err: origin.ErrUnavailable},
		{name: "cut behind an offset", fault: faulty.CutAt(4), opts: origin.GetOptions{Offset: 2}, want: "23", err: origin.ErrUnavailable},
		{name: "cut before an offset", fault: faulty.CutAt(4), opts: origin.GetOptions{Offset: 5}, want: "56789"},
		{name: "cut behind the end", fault: faulty.CutAt(10), want: content},
		{name: "stall", fault: faulty.StallAt(3), want: "012", err: origin.ErrUnavailable},
		{name: "flip", fault: faulty.FlipAt(1), want: "0\xce23456789"},
		{name: "pinned to an earlier content", fault: faulty.ChangeETag(), opts: origin.GetOptions{IfMatch: `"x"`}, err: origin.ErrChanged},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			s.Set(tt.fault)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			got, err := read(ctx, s, tt.opts)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, tt.want, tt.err)
			}
			if n := len(s.Gets()); n != 1 {
				t.Errorf("counted %d gets, want 1", n)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	s := newStore(t)
	s.SetTimes(1, faulty.Refuse(nil))
	if _, err := read(t.Context(), s, origin.GetOptions{}); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("first: %v", err)
	}
	if got, err := read(t.Context(), s, origin.GetOptions{}); got != content || err != nil {
		t.Errorf("second: %q, %v", got, err)
	}
	s.Set(faulty.ChangeETag())
	tags := map[string]bool{}
	for range 3 {
		o, err := s.Get(t.Context(), "a", origin.GetOptions{HeadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		tags[o.ETag] = true
	}
	if len(tags) != 3 {
		t.Errorf("3 gets gave the ETags %v", tags)
	}
}

// TestHandler has the faults arrive over the wire as what they are.
func TestHandler(t *testing.T) {
	s := newStore(t)
	server := httptest.NewServer(faulty.Handler(s))
	defer server.Close()
	remote, err := origin.NewHTTP(origin.HTTPOptions{BaseURL: server.URL, StallTimeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(t.Context(), remote, origin.GetOptions{Offset: 3}); got != content[3:] || err != nil {
		t.Errorf("sound: %q, %v", got, err)
	}
	for _, fault := range []faulty.Fault{faulty.CutAt(4), faulty.StallAt(4), faulty.Refuse(nil)} {
		s.Set(fault)
		got, err := read(t.Context(), remote, origin.GetOptions{})
		if !bytes.HasPrefix([]byte("0123"), []byte(got)) || !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("got %q, %v", got, err)
		}
	}
}
