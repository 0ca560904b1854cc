package origin_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/faulty"
)

const alphabet = "abcdefghijklmnopqrstuvwxyz"

// serveContent answers a request with the object "a" of s, as the edge does.
func serveContent(t *testing.T, s origin.Store, hint faulty.Hint, method string, header http.Header) (*httptest.ResponseRecorder, *faulty.Reader) {
	t.Helper()
	reader, err := faulty.OpenReader(t.Context(), s, "a", hint)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), method, "/a", nil)
	r.Header = header
	w := httptest.NewRecorder()
	w.Header().Set("ETag", `"edge"`)
	w.Header().Set("Content-Type", "application/zip")
	http.ServeContent(w, r, "", time.Time{}, reader)
	if err := reader.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	return w, reader
}

func TestReaderServesContent(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a"), alphabet)
	stores := map[string]origin.Store{"file": newFile(t, dir)}
	for name, character := range map[string]objects{"full": {}, "no ranges": {noRanges: true}, "no ETag": {noETag: true}} {
		character.content = map[string][]byte{"a": []byte(alphabet)}
		server := httptest.NewServer(character)
		t.Cleanup(server.Close)
		stores[name] = newHTTP(t, server.URL+"/base", origin.HTTPOptions{})
	}
	h := func(pairs ...string) http.Header {
		header := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			header.Set(pairs[i], pairs[i+1])
		}
		return header
	}
	tests := []struct {
		name   string
		hint   faulty.Hint
		method string
		header http.Header
		status int
		want   string
		gets   int
	}{
		{"whole", faulty.Hint{}, "GET", h(), 200, alphabet, 1},
		{"head", faulty.Hint{None: true}, "HEAD", h(), 200, "", 1},
		{"head without hint", faulty.Hint{}, "HEAD", h(), 200, "", 1},
		{"part", faulty.Hint{Offset: 2, Length: 3}, "GET", h("Range", "bytes=2-4"), 206, "cde", 1},
		{"first part", faulty.Hint{Length: 3}, "GET", h("Range", "bytes=0-2"), 206, "abc", 1},
		{"rest", faulty.Hint{Offset: 20}, "GET", h("Range", "bytes=20-"), 206, alphabet[20:], 1},
		{"past the end", faulty.Hint{Offset: 20, Length: 100}, "GET", h("Range", "bytes=20-119"), 206, alphabet[20:], 1},
		{"suffix", faulty.Hint{None: true}, "GET", h("Range", "bytes=-4"), 206, "wxyz", 2},
		{"suffix without hint", faulty.Hint{}, "GET", h("Range", "bytes=-4"), 206, "wxyz", 2},
		{"behind the end", faulty.Hint{Offset: 26}, "GET", h("Range", "bytes=26-"), 416, "invalid range: failed to overlap\n", 2},
		{"unmodified", faulty.Hint{None: true}, "GET", h("If-None-Match", `"edge"`), 304, "", 1},
		{"modified", faulty.Hint{None: true}, "GET", h("If-None-Match", `"old"`), 200, alphabet, 2},
		{"precondition", faulty.Hint{None: true}, "GET", h("If-Match", `"old"`), 412, "", 1},
		{"same for a range", faulty.Hint{Offset: 2, Length: 3}, "GET", h("Range", "bytes=2-4", "If-Range", `"edge"`), 206, "cde", 1},
		{"another for a range", faulty.Hint{Offset: 2, Length: 3}, "GET", h("Range", "bytes=2-4", "If-Range", `"old"`), 200, alphabet, 2},
		{"hinted at too little", faulty.Hint{Length: 3}, "GET", h(), 200, alphabet, 2},
		{"hinted at another place", faulty.Hint{Offset: 9}, "GET", h("Range", "bytes=2-4"), 206, "cde", 2},
	}
	for storeName, store := range stores {
		for _, tt := range tests {
			t.Run(storeName+"/"+tt.name, func(t *testing.T) {
				counted := faulty.New(store)
				w, reader := serveContent(t, counted, tt.hint, tt.method, tt.header)
				if w.Code != tt.status || w.Body.String() != tt.want {
					t.Errorf("got %d %q, want %d %q", w.Code, w.Body, tt.status, tt.want)
				}
				if err := reader.Err(); err != nil {
					t.Errorf("error %v", err)
				}
				if gets := counted.Gets(); len(gets) != tt.gets {
					t.Errorf("asked the store %d times, want %d: %+v", len(gets), tt.gets, gets)
				}
				if info := reader.Info(); info.Size != 26 || info.Body != nil {
					t.Errorf("info %+v", info)
				}
			})
		}
	}
}

func TestReaderEmpty(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a"), "")
	for _, hint := range []faulty.Hint{{}, {None: true}, {Offset: 5}} {
		w, reader := serveContent(t, newFile(t, dir), hint, "GET", http.Header{})
		if w.Code != 200 || w.Body.Len() != 0 || reader.Err() != nil {
			t.Errorf("%+v: %d %q, %v", hint, w.Code, w.Body, reader.Err())
		}
	}
}

func TestReaderMissing(t *testing.T) {
	s := newFile(t, t.TempDir())
	for _, hint := range []faulty.Hint{{}, {None: true}, {Offset: 5}} {
		if r, err := faulty.OpenReader(t.Context(), s, "a", hint); !errors.Is(err, origin.ErrNotFound) || r != nil {
			t.Errorf("%+v: got %v", hint, err)
		}
	}
}

func TestReaderCut(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a"), alphabet)
	for _, n := range []int64{0, 1, 13, 25} {
		s := faulty.New(newFile(t, dir))
		s.Set(faulty.CutAt(n))
		w, reader := serveContent(t, s, faulty.Hint{}, "GET", http.Header{})
		if w.Body.String() != alphabet[:n] || !errors.Is(reader.Err(), origin.ErrUnavailable) {
			t.Errorf("cut at %d: got %q, %v", n, w.Body, reader.Err())
		}
		if _, err := reader.Read(make([]byte, 1)); !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("cut at %d: the next read gives %v", n, err)
		}
		if len(s.Gets()) != 1 {
			t.Error("a Reader tries again, which is for its caller to decide")
		}
	}
}

// TestReaderEarlyEnd has a store that breaks its promise and ends a body early without an error.
func TestReaderEarlyEnd(t *testing.T) {
	for _, hint := range []faulty.Hint{{}, {Length: 20}} {
		reader, err := faulty.OpenReader(t.Context(), shortStore{}, "a", hint)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(reader)
		if string(got) != alphabet[:10] || !errors.Is(err, origin.ErrUnavailable) || reader.Err() == nil {
			t.Errorf("%+v: got %q, %v", hint, got, err)
		}
	}
}

type shortStore struct{ origin.Store }

func (shortStore) Get(ctx context.Context, _ string, _ origin.GetOptions) (*origin.Object, error) {
	return &origin.Object{Size: 26, ETag: `"1"`, Body: io.NopCloser(bytes.NewReader([]byte(alphabet[:10])))}, ctx.Err()
}

// TestReaderChanged changes the object between the opening of a Reader and its reading elsewhere.
func TestReaderChanged(t *testing.T) {
	t.Run("file", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "a")
		for _, content := range []string{"ABCDEFGHIJKLMNOPQRSTUVWXYZ", alphabet + "more", "", "gone"} {
			writeFile(t, path, alphabet)
			reader, err := faulty.OpenReader(t.Context(), newFile(t, dir), "a", faulty.Hint{None: true})
			if err != nil {
				t.Fatal(err)
			}
			want := origin.ErrChanged
			if content == "gone" {
				want = origin.ErrNotFound
				err = os.Remove(path)
			} else {
				writeFile(t, path, content)
				err = os.Chtimes(path, modified, modified)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(reader); len(got) != 0 || !errors.Is(err, want) || !errors.Is(reader.Err(), want) {
				t.Errorf("%q: got %q, %v", content, got, err)
			}
			if err := reader.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	for name, header := range map[string][2]http.Header{
		"ETag":        {{"Etag": {`"1"`}}, {"Etag": {`"2"`}}},
		"weak ETag":   {{"Etag": {`W/"1"`}}, {"Etag": {`W/"2"`}}},
		"ETag gone":   {{"Etag": {`"1"`}}, {}},
		"ETag is new": {{}, {"Etag": {`"1"`}}},
		"time":        {{"Last-Modified": {"Sun, 01 Nov 2026 12:00:00 GMT"}}, {"Last-Modified": {"Sun, 01 Nov 2026 12:00:01 GMT"}}},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				maps.Copy(w.Header(), header[min(asked, 1)])
				asked++
				w.Header().Set("Content-Length", "26")
				_, _ = io.WriteString(w, alphabet)
			}))
			defer server.Close()
			reader, err := faulty.OpenReader(t.Context(), newHTTP(t, server.URL, origin.HTTPOptions{}), "a", faulty.Hint{None: true})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(reader); len(got) != 0 || !errors.Is(err, origin.ErrChanged) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestReaderSeek(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a"), alphabet)
	s := faulty.New(newFile(t, dir))
	reader, err := faulty.OpenReader(t.Context(), s, "a", faulty.Hint{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, step := range []struct {
		offset int64
		whence int
		at     int64
		want   string
	}{
		{0, io.SeekEnd, 26, ""}, {0, io.SeekStart, 0, "ab"}, {3, io.SeekCurrent, 5, "fg"}, {-2, io.SeekEnd, 24, "yz"}, {40, io.SeekStart, 40, ""},
	} {
		at, err := reader.Seek(step.offset, step.whence)
		if at != step.at || err != nil {
			t.Errorf("seek: %d, %v, want %d", at, err, step.at)
		}
		p := make([]byte, len(step.want))
		if _, err := io.ReadFull(reader, p); err != nil || string(p) != step.want {
			t.Errorf("at %d: got %q, %v, want %q", at, p, err, step.want)
		}
	}
	if _, err := reader.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("behind the end: %v", err)
	}
	if _, err := reader.Seek(-1, io.SeekStart); err == nil {
		t.Error("seeks before the start")
	}
	if n := s.Count(); n != 3 {
		t.Errorf("asked the store %d times, want 3", n)
	}
}

// TestReaderUnsized reads an object whose size the origin does not tell.
func TestReaderUnsized(t *testing.T) {
	server := httptest.NewServer(objects{content: map[string][]byte{"a": []byte(alphabet)}, noSize: true})
	defer server.Close()
	reader, err := faulty.OpenReader(t.Context(), newHTTP(t, server.URL+"/base", origin.HTTPOptions{}), "a", faulty.Hint{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := reader.Seek(0, io.SeekEnd); err == nil {
		t.Error("seeks from an end nobody knows")
	}
	if got, err := io.ReadAll(reader); err != nil || string(got) != alphabet || reader.Info().Size != -1 {
		t.Errorf("got %q, %v", got, err)
	}
}
