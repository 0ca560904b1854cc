package caddymodule_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

func compressed(content []byte) []byte {
	var b bytes.Buffer
	w := brotli.NewWriterLevel(&b, 5)
	_, _ = w.Write(content) // to memory
	_ = w.Close()
	return b.Bytes()
}

// TestDeltaFiles: a delta file is verified by the digest of its content, which for ".br" files is that after decoding, and
// handed out as it is, without Content-Encoding (protocol 3.1, 9 trap 8). What is wrong is neither handed out nor stored.
func TestDeltaFiles(t *testing.T) {
	text := bytes.Repeat([]byte("some text of a web app, "), 2000)
	noise := randomBytes(onDiskSize)
	d := newDepot(t)
	tests := []struct {
		name string
		file string
		hash []byte // of what
		size int    // file_size
		body []byte // what the origin has
		want string // what all clients see
	}{
		{"compressed", "a.js.br", text, len(text), compressed(text), "whole"},
		{"compressed, size not told", "b.js.br", text, 0, compressed(text), "whole"},
		{"compressed, large", "c.js.br", noise, len(noise), compressed(noise), "whole"},
		{"compressed, empty", "d.js.br", nil, 0, compressed(nil), "whole"},
		{"plain", "e.js", text, len(text), text, "whole"},
		{"plain, empty", "f.js", nil, 0, nil, "whole"},
		{"other content", "g.js.br", text, len(text), compressed(text[1:]), "503"},
		{"of another file_size", "h.js.br", text, len(text) - 1, compressed(text), "whole"}, // exporters write either size there
		{"a bomb", "i.js.br", text, len(text), compressed(make([]byte, 50<<20)), "503"},
		{"not brotli", "j.js.br", text, len(text), text, "503"},
		{"gzip magic", "k.js.br", text, len(text), []byte("\x1f\x8b\x08\x00 no brotli either"), "503"},
		{"compressed, broken off", "l.js.br", text, len(text), compressed(text)[:40], "503"},
		{"compressed, with more behind", "m.js.br", text, len(text), append(compressed(text), make([]byte, 70_000)...), "cut"},
		{"nothing where something is named", "n.js.br", text, len(text), nil, "503"},
		{"plain, other content", "o.js", text, len(text), text[1:], "503"},
		{"plain, compressed in the origin", "p.js", text, len(text), compressed(text), "503"},
		{"large, other content", "q.js.br", noise, len(noise), compressed(noise[1:]), "cut"},
		{"large, not brotli", "r.js.br", noise, len(noise), noise, "cut"},
	}
	paths := map[string]string{}
	for _, test := range tests {
		paths[test.file] = d.addFile(test.file, digest(test.hash), test.size, whole(test.body))
	}
	d.announceAll()
	e := edgetest.Start(t, d.config())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := paths[test.file]
			tags := map[string]bool{}
			e.Protocols(t, func(t *testing.T, c *edgetest.Client) {
				for _, state := range []string{"cold", "stored"} { // for the second protocol both are the latter
					r := c.Get(path, "Accept-Encoding", "br, gzip")
					got := outcome(r, test.body)
					if test.want == "cut" && !strings.HasPrefix(got, "cut") && got != "503" || test.want != "cut" && got != test.want {
						t.Fatalf("%s: %s (%v), want %s", state, got, r.Err, test.want)
					}
					for _, name := range []string{"Content-Encoding", "Repr-Digest"} {
						if got := r.Header.Get(name); got != "" && (name != "Repr-Digest" || strings.HasSuffix(test.file, ".br")) {
							t.Errorf("%s: %q", name, got)
						}
					}
					if test.want == "whole" {
						tags[r.Header.Get("ETag")] = true
						deltaHeaders(t, r, len(test.body))
					}
				}
			})
			if test.want != "whole" {
				d.die(true)
				defer d.die(false)
				if r := e.Client(t).Get(path); r.Status != 503 {
					t.Errorf("it was stored: status %d, %s", r.Status, cacheStatus(r))
				}
				return
			}
			if n := d.asked(path); n != 1 || len(tags) != 1 || tags[""] {
				t.Errorf("%d GETs, ETags %v", n, tags)
			}
		})
	}
}

func deltaHeaders(t *testing.T, r *edgetest.Response, size int) {
	t.Helper()
	for name, want := range map[string]string{
		"Content-Type": "application/octet-stream", "Content-Length": fmt.Sprint(size), "Accept-Ranges": "bytes",
		"Cache-Control": "public, max-age=31536000, immutable, no-transform",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestDeltaFilePutRight: an object that is not the one named is asked for again after a while.
func TestDeltaFilePutRight(t *testing.T) {
	if testing.Short() {
		t.Skip("takes up to 3 s, for which a wrong object is not asked for again")
	}
	d := newDepot(t)
	text := []byte("what the manifest names")
	path := d.addFile("a.js", digest(text), len(text), whole(text[1:]))
	d.announceAll()
	c := edgetest.Start(t, d.config()).Client(t)
	if r := c.Get(path); r.Status != 503 {
		t.Fatalf("status %d", r.Status)
	}
	d.answer(path, whole(text))
	edgetest.Eventually(t, "the right object is served", func() bool {
		return outcome(c.Try(http.MethodGet, path, ""), text) == "whole"
	})
}
