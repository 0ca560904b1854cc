package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// heldBody passes a whole object on while it verifies it, and keeps its last chunk back until that is done.
type heldBody struct {
	body     io.ReadCloser
	size     int64 // -1 if not known
	digest   hash.Hash
	expect   *Expect
	verifier Verifier

	buf  []byte // what was read and not passed on yet
	read int64
	over bool
	err  error
}

func newHeldBody(body io.ReadCloser, size int64, expect *Expect) *heldBody {
	return &heldBody{body: body, size: size, expect: expect, digest: sha256.New(), verifier: expect.verifier()}
}

func (h *heldBody) Read(p []byte) (int, error) {
	for {
		if n := h.passable(); n > 0 {
			n = copy(p, h.buf[:n])
			h.buf = append(h.buf[:0], h.buf[n:]...)
			return n, nil
		}
		if h.err != nil {
			return 0, h.err
		}
		h.more()
	}
}

// await returns once something may be passed on, or with the reason why nothing ever will be.
func (h *heldBody) await() error {
	for h.passable() <= 0 && h.err == nil {
		h.more()
	}
	if h.passable() > 0 || errors.Is(h.err, io.EOF) {
		return nil
	}
	return h.err
}

// passable is how much of buf may be passed on.
func (h *heldBody) passable() int {
	if h.over {
		return len(h.buf)
	}
	held := heldBack
	if h.size >= 0 {
		held = int(max(0, heldBack-(h.size-h.read)))
	}
	return len(h.buf) - held
}

func (h *heldBody) more() {
	at := len(h.buf)
	h.buf = append(h.buf, make([]byte, 32<<10)...)
	n, err := h.body.Read(h.buf[at:])
	h.buf = h.buf[:at+n]
	h.read += int64(n)
	h.digest.Write(h.buf[at:])
	if h.verifier != nil {
		if _, verr := h.verifier.Write(h.buf[at:]); verr != nil {
			h.err = fmt.Errorf("%w: %w", ErrMismatch, verr)
			return
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		h.err = h.verify()
		h.over = errors.Is(h.err, io.EOF)
	case err != nil:
		h.err = err
	}
}

// verify returns io.EOF if the object is the one expected.
func (h *heldBody) verify() error {
	v := h.verifier
	h.verifier = nil
	if err := h.expect.judge(h.digest.Sum(nil), v); err != nil {
		return err
	}
	return io.EOF
}

func (h *heldBody) Close() error {
	if h.verifier != nil {
		_ = h.verifier.Verify() // it is told of the end in any case
		h.verifier = nil
	}
	return h.body.Close()
}
