package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSeenFilesIsBounded(t *testing.T) {
	info, err := os.Stat(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var s seenFiles
	for i := range 3 * maxSeenFiles {
		key := fmt.Sprint(i)
		if s.same(key, info) {
			t.Fatal("a key is known that was never seen")
		}
		if !s.same(key, info) {
			t.Fatal("a key is not known that was just seen")
		}
		if len(s.files) > maxSeenFiles {
			t.Fatalf("remembers %d keys", len(s.files))
		}
	}
}

// pipeBody is a response body: reads wait for the other end, and end with the request's context.
func pipeBody(ctx context.Context) (io.ReadCloser, *io.PipeWriter) {
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) })
	return r, w
}

func TestWatchedBodyStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r, w := pipeBody(ctx)
		body := newWatchedBody(r, time.Second, cancel)
		go func() {
			_, _ = io.WriteString(w, "abc")
			time.Sleep(900 * time.Millisecond) // slow, yet not stalled
			_, _ = io.WriteString(w, "def")
		}()
		began := time.Now()
		got, err := io.ReadAll(body)
		if string(got) != "abcdef" || !errors.Is(err, ErrUnavailable) || !errors.Is(err, errStalled) {
			t.Errorf("got %q, %v", got, err)
		}
		if d := time.Since(began); d != 1900*time.Millisecond {
			t.Errorf("gave up after %v, want a second after the last byte", d)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestWatchedBodySlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		body := newWatchedBody(io.NopCloser(strings.NewReader("abc")), time.Second, cancel)
		for _, want := range []string{"a", "b", "c"} {
			time.Sleep(time.Hour)
			var p [1]byte
			if _, err := body.Read(p[:]); err != nil || string(p[:]) != want {
				t.Fatalf("got %q, %v", p, err)
			}
		}
		time.Sleep(time.Hour)
		if _, err := body.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v, want EOF", err)
		}
		if ctx.Err() != nil {
			t.Error("a slow reader ended the request")
		}
		if err := body.Close(); err != nil || ctx.Err() == nil {
			t.Errorf("close: %v, context %v", err, ctx.Err())
		}
	})
}

func TestExactly(t *testing.T) {
	for _, tt := range []struct {
		body string
		n    int64
		want string
		cut  bool
	}{
		{"", 0, "", false},
		{"abc", 0, "", false},
		{"abc", 3, "abc", false},
		{"abcdef", 3, "abc", false},
		{"abc", 4, "abc", true},
		{"", 1, "", true},
	} {
		got, err := io.ReadAll(exactly(io.NopCloser(strings.NewReader(tt.body)), tt.n))
		if string(got) != tt.want || errors.Is(err, ErrUnavailable) != tt.cut || errors.Is(err, io.EOF) {
			t.Errorf("%d of %q: got %q, %v", tt.n, tt.body, got, err)
		}
	}
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]string{
		"bytes 0-9/10":                    "0 9 10 true",
		"bytes 5-9/100":                   "5 9 100 true",
		"bytes 5-4/100":                   "false",
		"bytes 5-100/100":                 "false",
		"bytes -5-9/100":                  "false",
		"bytes 0-9/*":                     "false",
		"bytes */100":                     "false",
		"items 0-9/10":                    "false",
		"0-9/10":                          "false",
		"bytes 0-9":                       "false",
		"":                                "false",
		"bytes 0-9/99999999999999999999":  "false",
		"bytes 0-99999999999999999999/10": "false",
	} {
		first, last, size, ok := parseContentRange(s)
		got := "false"
		if ok {
			got = fmt.Sprint(first, last, size, ok)
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	}
}
