// Package storetest says what every origin.Store does, as a test suite.
package storetest

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
)

// Harness makes the stores under test, and says what their origin is not able to do.
type Harness struct {
	// New returns a store that holds the objects and no others.
	New func(t *testing.T, objects map[string][]byte) origin.Store

	NoSize bool // the origin does not tell sizes, and cannot begin at an offset
	NoETag bool // the origin gives no ETags
}

const (
	content = "The quick brown fox jumps over the lazy dog."
	size    = int64(len(content))
)

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	t.Helper()
	t.Run("parts", h.parts)
	t.Run("head", h.head)
	t.Run("conditions", h.conditions)
	t.Run("keys", h.keys)
	t.Run("large", h.large)
	t.Run("identity", func(t *testing.T) {
		s := h.New(t, nil)
		if first, again := s.Identity(), s.Identity(); first == "" || again != first {
			t.Errorf("identity %q, then %q", first, again)
		}
	})
}

// Read gets an object and all of its body.
func Read(t *testing.T, s origin.Store, key string, opts origin.GetOptions) (*origin.Object, []byte, error) {
	t.Helper()
	o, err := s.Get(t.Context(), key, opts)
	if err != nil {
		if o != nil {
			t.Errorf("an object comes with the error %v", err)
		}
		return nil, nil, err
	}
	got, err := io.ReadAll(o.Body)
	if err := o.Body.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	return o, got, err
}

func (h Harness) parts(t *testing.T) {
	s := h.New(t, map[string][]byte{"a": []byte(content), "empty": {}})
	tests := []struct {
		name string
		key  string
		opts origin.GetOptions
		want string
		err  error
	}{
		{"whole", "a", origin.GetOptions{}, content, nil},
		{"from an offset", "a", origin.GetOptions{Offset: 4}, content[4:], nil},
		{"part", "a", origin.GetOptions{Offset: 4, Length: 5}, content[4:9], nil},
		{"first part", "a", origin.GetOptions{Length: 3}, content[:3], nil},
		{"last byte", "a", origin.GetOptions{Offset: size - 1}, ".", nil},
		{"past the end", "a", origin.GetOptions{Offset: size - 2, Length: 100}, "g.", nil},
		{"whole by length", "a", origin.GetOptions{Length: size}, content, nil},
		{"more than whole", "a", origin.GetOptions{Length: size + 1}, content, nil},
		{"at the end", "a", origin.GetOptions{Offset: size}, "", origin.ErrRange},
		{"part at the end", "a", origin.GetOptions{Offset: size, Length: 1}, "", origin.ErrRange},
		{"beyond the end", "a", origin.GetOptions{Offset: size + 1000}, "", origin.ErrRange},
		{"empty", "empty", origin.GetOptions{}, "", nil},
		{"beyond empty", "empty", origin.GetOptions{Offset: 1}, "", origin.ErrRange},
		{"missing", "b", origin.GetOptions{}, "", origin.ErrNotFound},
		{"part of missing", "b", origin.GetOptions{Offset: 4, Length: 5}, "", origin.ErrNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if h.NoSize && tt.opts.Offset > 0 && !errors.Is(tt.err, origin.ErrNotFound) {
				tt.err = origin.ErrUnavailable
			}
			o, got, err := Read(t, s, tt.key, tt.opts)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got error %v, want %v", err, tt.err)
			}
			if tt.err != nil {
				return
			}
			if string(got) != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.key == "a" {
				h.info(t, o, size)
			} else {
				h.info(t, o, 0)
			}
		})
	}
}

func (h Harness) info(t *testing.T, o *origin.Object, want int64) {
	t.Helper()
	if h.NoSize {
		want = -1
	}
	if o.Size != want {
		t.Errorf("got size %d, want that of the whole, %d", o.Size, want)
	}
	if (o.ETag == "") != h.NoETag {
		t.Errorf("got ETag %q", o.ETag)
	}
	if o.Modified.IsZero() && o.ETag == "" {
		t.Error("nothing to recognise the object by")
	}
}

func (h Harness) head(t *testing.T) {
	s := h.New(t, map[string][]byte{"a": []byte(content), "empty": {}})
	for _, opts := range []origin.GetOptions{{HeadOnly: true}, {HeadOnly: true, Offset: 4, Length: 5}} {
		o, got, err := Read(t, s, "a", opts)
		if err != nil || len(got) != 0 {
			t.Fatalf("got %q, %v", got, err)
		}
		h.info(t, o, size)
	}
	if o, _, err := Read(t, s, "empty", origin.GetOptions{HeadOnly: true}); err != nil {
		t.Errorf("empty: %v", err)
	} else {
		h.info(t, o, 0)
	}
	if _, _, err := Read(t, s, "b", origin.GetOptions{HeadOnly: true}); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

func (h Harness) conditions(t *testing.T) {
	s := h.New(t, map[string][]byte{"a": []byte(content)})
	o, _, err := Read(t, s, "a", origin.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	type test struct {
		name string
		opts origin.GetOptions
		err  error
	}
	var tests []test
	if h.NoETag {
		tests = []test{
			{"not modified since", origin.GetOptions{IfModifiedSince: o.Modified}, origin.ErrNotModified},
			{"modified since", origin.GetOptions{IfModifiedSince: o.Modified.Add(-time.Hour)}, nil},
			{"pinned", origin.GetOptions{IfMatch: `"other"`}, origin.ErrChanged},
		}
	} else {
		tests = []test{
			{"match", origin.GetOptions{IfMatch: o.ETag}, nil},
			{"match in part", origin.GetOptions{IfMatch: o.ETag, Length: 5}, nil},
			{"match of head", origin.GetOptions{IfMatch: o.ETag, HeadOnly: true}, nil},
			{"changed", origin.GetOptions{IfMatch: `"other"`}, origin.ErrChanged},
			{"changed part", origin.GetOptions{IfMatch: `"other"`, Length: 5}, origin.ErrChanged},
			{"changed head", origin.GetOptions{IfMatch: `"other"`, HeadOnly: true}, origin.ErrChanged},
			{"none match", origin.GetOptions{IfNoneMatch: o.ETag}, origin.ErrNotModified},
			{"none match of head", origin.GetOptions{IfNoneMatch: o.ETag, HeadOnly: true}, origin.ErrNotModified},
			{"some other", origin.GetOptions{IfNoneMatch: `"other"`}, nil},
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, got, err := Read(t, s, "a", tt.opts)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got error %v, want %v", err, tt.err)
			}
			if want := content[:5]; err == nil && !tt.opts.HeadOnly && !bytes.HasPrefix(got, []byte(want)) {
				t.Errorf("got %q", got)
			}
		})
	}
}

// keys are taken literally.
func (h Harness) keys(t *testing.T) {
	objects := map[string][]byte{}
	for _, key := range []string{
		"plain", "a/b/c.txt", "a blank", "a+plus", "100%", "literal%20blank", "what?", "what?a=b", "a#b", "é", "日本.zip", "a&b=c;d,e",
		"colon:d", "(bracket)[s]", "quote'\"", "at@", "star*", "tilde~", "...", "a/...b", "back\\slash", "per%2Fcent", "dir.d/x",
	} {
		objects[key] = []byte("this is " + key)
	}
	s := h.New(t, objects)
	for key, want := range objects {
		if _, got, err := Read(t, s, key, origin.GetOptions{}); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: got %q, %v", key, got, err)
		}
	}
	for _, key := range []string{
		"", ".", "..", "../a", "a/..", "a/../plain", "a/../../plain", "./plain", "a", "a/b", "a/b/", "plain/x", "Plain", "literal blank", "per/cent",
		strings.Repeat("long", 100),
	} {
		if _, got, err := Read(t, s, key, origin.GetOptions{}); !errors.Is(err, origin.ErrNotFound) {
			t.Errorf("%q: got %q, %v, want ErrNotFound", key, got, err)
		}
	}
}

func (h Harness) large(t *testing.T) {
	want := make([]byte, 3<<20+1)
	for i := range want {
		want[i] = byte(i ^ i>>8 ^ i>>16)
	}
	s := h.New(t, map[string][]byte{"large": want})
	if _, got, err := Read(t, s, "large", origin.GetOptions{}); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if h.NoSize {
		return
	}
	const offset = 2<<20 + 7
	if _, got, err := Read(t, s, "large", origin.GetOptions{Offset: offset}); err != nil || !bytes.Equal(got, want[offset:]) {
		t.Errorf("from an offset: got %d bytes, %v", len(got), err)
	}
	// Who closes early leaves the store usable.
	for range 3 {
		o, err := s.Get(t.Context(), "large", origin.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(o.Body, make([]byte, 10)); err != nil {
			t.Error(err)
		}
		if err := o.Body.Close(); err != nil {
			t.Error(err)
		}
	}
}
