package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"os"
	"syscall"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/capgo-edge/capgo-edge/cache"
)

// bodyWriter lets http.ServeContent send an object in the cheapest way there is: from memory in one write, from a file by
// sendfile, else through a small buffer that is held only while bytes are on their way.
type bodyWriter struct {
	http.ResponseWriter
	object *cache.Object
	chunk  int64 // how much Caddy sends at once: its idle timeout is one per chunk
	plain  bool  // the connection is in clear text, so that the kernel can send from a file
}

func newBodyWriter(w http.ResponseWriter, r *http.Request, object *cache.Object) *bodyWriter {
	b := &bodyWriter{ResponseWriter: w, object: object, plain: r.TLS == nil && r.ProtoMajor == 1}
	if _, idle := caddyhttp.IdleTimeoutsFromContext(r.Context()); idle != nil {
		b.chunk = caddyhttp.DefaultMaxWriteChunk
		if idle.MaxChunk > 0 {
			b.chunk = int64(idle.MaxChunk)
		}
	}
	return b
}

// Unwrap lets http.ResponseController through.
func (b *bodyWriter) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// ReadFrom implements io.ReaderFrom for io.CopyN, which is what ServeContent calls with the object.
func (b *bodyWriter) ReadFrom(src io.Reader) (int64, error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok || limited.R != io.Reader(b.object) {
		return io.Copy(onlyWriter{b.ResponseWriter}, src)
	}
	n, err := b.object.CopyN(b, limited.N)
	limited.N -= n
	if errors.Is(err, io.EOF) {
		err = nil // as io.Copy has it
	}
	return n, err
}

// onlyWriter hides what else a writer can.
type onlyWriter struct{ io.Writer }

// SendFile implements cache.Sink. A file reaches the kernel's sendfile only if it comes to net/http as itself or in one
// io.LimitedReader, and Caddy adds one of its own around each chunk. So it gets a fileChunk, which ends by itself.
func (b *bodyWriter) SendFile(f *os.File, n int64) (int64, bool, error) {
	rf, ok := b.ResponseWriter.(io.ReaderFrom)
	if !ok || !b.plain {
		return 0, false, nil
	}
	if b.chunk == 0 { // no idle timeout
		sent, err := rf.ReadFrom(&io.LimitedReader{R: f, N: n})
		return sent, true, err
	}
	sent, err := rf.ReadFrom(&fileChunk{file: f, left: n, chunk: b.chunk})
	return sent, true, err
}

// fileChunk is the next left bytes of a file, to be read in chunks. It hands out the file's descriptor only while a whole
// chunk may still be sent from it, since the kernel is not told where to end; the rest goes through Read.
type fileChunk struct {
	file  *os.File
	left  int64
	chunk int64
}

// Read implements io.Reader.
func (c *fileChunk) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.EOF
	}
	n, err := c.file.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

var errNoWholeChunk = errors.New("less than a chunk is left")

// SyscallConn implements syscall.Conn, by which net finds what it can send from.
func (c *fileChunk) SyscallConn() (syscall.RawConn, error) {
	if c.left < c.chunk {
		return nil, errNoWholeChunk
	}
	c.left -= c.chunk // if less is sent, the copy ends anyway
	return c.file.SyscallConn()
}
