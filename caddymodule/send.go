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
	chunk  int64         // how much Caddy sends at once, its idle timeout is one per chunk; 0 for all
	files  io.ReaderFrom // sends from files by the kernel; nil if the connection is not in clear text
}

func newBodyWriter(w http.ResponseWriter, r *http.Request, object *cache.Object) *bodyWriter {
	b := &bodyWriter{ResponseWriter: w, object: object}
	if r.TLS == nil && r.ProtoMajor == 1 {
		b.files, _ = w.(io.ReaderFrom)
	}
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

// FilePiece implements cache.Sink. What is left below a chunk of Caddy's would go through a buffer that net allocates anew
// each time.
func (b *bodyWriter) FilePiece() int64 {
	if b.files == nil {
		return 0
	}
	return max(b.chunk, 1)
}

// SendFile implements cache.Sink. A file reaches the kernel's sendfile only if it comes to net/http as itself or in one
// io.LimitedReader, and Caddy adds one of its own around each chunk. So it gets a fileChunk, which ends by itself.
func (b *bodyWriter) SendFile(f *os.File, n int64) (int64, error) {
	if b.chunk == 0 { // no idle timeout
		return b.files.ReadFrom(&io.LimitedReader{R: f, N: n})
	}
	return b.files.ReadFrom(&fileChunk{file: f, left: n, chunk: b.chunk})
}

// fileChunk is the next left bytes of a file, some whole chunks. It hands out the file's descriptor only while the rest of
// a chunk may be sent from it, since the kernel is not told where to end.
type fileChunk struct {
	file  *os.File
	left  int64
	chunk int64
	begun int64 // of the chunk that is being sent: net/http reads the first bytes of an answer by itself
}

// Read implements io.Reader.
func (c *fileChunk) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.EOF
	}
	n, err := c.file.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	c.begun += int64(n)
	return n, err
}

var errNoWholeChunk = errors.New("less than a chunk is left")

// farBehind is where no file of ours reaches, and any file system can seek.
const farBehind = 1 << 40

// SyscallConn implements syscall.Conn, by which net finds what it can send from. Behind the last chunk it is asked once
// more; an error would have net allocate a buffer to find that there is nothing to read, so it is sent there by the kernel.
func (c *fileChunk) SyscallConn() (syscall.RawConn, error) {
	rest := c.chunk - c.begun
	switch {
	case c.left == 0:
		if _, err := c.file.Seek(farBehind, io.SeekStart); err != nil {
			return nil, err
		}
	case c.left < rest:
		return nil, errNoWholeChunk
	default:
		c.left, c.begun = c.left-rest, 0 // if less is sent, the copy ends anyway
	}
	return c.file.SyscallConn()
}
