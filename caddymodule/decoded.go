package caddymodule

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/andybalholm/brotli"

	"github.com/capgo-edge/capgo-edge/cache"
)

// decodedVerifier decodes a ".br" delta file while it comes in: the manifest knows the digest of its content after decoding
// (protocol 3.1). Nothing is kept of what it decodes, and no more is decoded than the file may have.
type decodedVerifier struct {
	expect *cache.Expect
	in     *io.PipeWriter
	done   chan struct{}
	digest hash.Hash
	size   int64
	err    error // set before done is closed, as digest and size are
}

// The bounds of decoding, which keep a small file from costing a lot of time. Exporters write either size as file_size, that
// of the file and that of the object as it is stored; the digest is what proves the content. So the bound is what no file of
// either size decodes to in earnest.
const (
	maxRatio     = 64
	leastDecoded = 16 << 20 // some files are very regular
	mostDecoded  = 1 << 30
)

// decodedLimit is how much a file with this file_size may decode to; 0 stands for an unknown one.
func decodedLimit(fileSize int64) int64 {
	if fileSize == 0 || fileSize > mostDecoded/maxRatio {
		return mostDecoded
	}
	return max(fileSize*maxRatio, leastDecoded)
}

func newDecodedVerifier(e *cache.Expect) cache.Verifier {
	out, in := io.Pipe()
	v := &decodedVerifier{expect: e, in: in, done: make(chan struct{}), digest: sha256.New()}
	go func() {
		defer close(v.done)
		v.err = v.decode(out)
		_ = out.CloseWithError(v.err) // ends Write, too; it never fails
	}()
	return v
}

func (v *decodedVerifier) decode(in io.Reader) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decoding: %v", p)
		}
	}()
	limit := decodedLimit(v.expect.Size)
	v.size, err = io.Copy(v.digest, io.LimitReader(brotli.NewReader(in), limit+1))
	switch {
	case err != nil:
		return fmt.Errorf("it is not brotli: %w", err)
	case v.size > limit:
		return fmt.Errorf("it decodes to more than %d bytes, far more than its file_size, %d", limit, v.expect.Size)
	}
	if n, _ := io.Copy(io.Discard, in); n > 0 {
		return fmt.Errorf("%d bytes stand behind the end of the brotli stream", n)
	}
	return nil
}

// Write implements cache.Verifier.
func (v *decodedVerifier) Write(p []byte) (int, error) { return v.in.Write(p) }

// Verify implements cache.Verifier.
func (v *decodedVerifier) Verify() error {
	_ = v.in.Close() // the end of the stream; it never fails
	<-v.done
	if v.err != nil {
		return v.err
	}
	if got := v.digest.Sum(nil); !bytes.Equal(got, v.expect.SHA256[:]) {
		return fmt.Errorf("decoded, its SHA-256 is %x, not %x", got, v.expect.SHA256)
	}
	return nil
}
