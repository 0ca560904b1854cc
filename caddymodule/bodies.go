package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// budget is what all requests together may take of something: bytes of memory, or places.
type budget struct {
	free atomic.Int64
}

// maxLargeBodies is what bodies above maxScratch may take together: a few hundred of the largest batches that phones send,
// and no more when somebody sends batches of 16 MiB for the sake of it.
const maxLargeBodies = 128 << 20

func newBudget(n int64) *budget {
	b := new(budget)
	b.free.Store(n)
	return b
}

func (b *budget) take(n int64) bool {
	if b.free.Add(-n) >= 0 {
		return true
	}
	b.free.Add(n)
	return false
}

func (b *budget) give(n int64) { b.free.Add(n) }

// readLarge reads a body of at most limit bytes into s. Memory is taken as bytes arrive, not as they are announced. If it
// reports false, the request was answered.
func (h *Handler) readLarge(w http.ResponseWriter, r *http.Request, s *scratch, limit int64) bool {
	var ok bool
	s.body, ok = readBodyWithin(w, r, s.body, limit, func(bytes int64) bool {
		if !h.runtime.largeBodies.take(bytes) {
			return false
		}
		s.large += bytes
		return true
	})
	return ok
}

// readBody reads a body of at most limit bytes into buf, where limit is small. If it reports false, the request was answered.
func readBody(w http.ResponseWriter, r *http.Request, buf []byte, limit int64) ([]byte, bool) {
	return readBodyWithin(w, r, buf, limit, nil)
}

// firstBody is how much memory a body gets before its bytes arrive: more than a check has, and little for one that is announced
// and never sent.
const firstBody = 8 << 10

// readBodyWithin is readBody, with take asked for each further piece of memory beyond maxScratch.
func readBodyWithin(w http.ResponseWriter, r *http.Request, buf []byte, limit int64, take func(bytes int64) bool) ([]byte, bool) {
	buf = buf[:0]
	if r.ContentLength > limit {
		// A client that is still sending may miss an answer behind which the connection breaks.
		_, _ = io.CopyN(io.Discard, r.Body, limit+limit/8)
		refuseTooLarge(w, limit)
		return buf, false
	}
	body := r.Body
	if r.ContentLength < 0 {
		body = http.MaxBytesReader(w, body, limit)
	} else if want := int(min(r.ContentLength, firstBody-1)) + 1; cap(buf) < want { // one more, to see the end without growing
		buf = make([]byte, 0, want)
	}
	for {
		if len(buf) == cap(buf) {
			var ok bool
			if buf, ok = grow(buf, take); !ok {
				refuse(w, http.StatusServiceUnavailable, codeUnavailable, "Too many large requests at once, send it again later")
				return buf, false
			}
		}
		n, err := body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) || int64(len(buf)) == r.ContentLength {
			return buf, true
		}
		if err == nil {
			continue
		}
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			refuseTooLarge(w, limit)
		} else {
			refuse(w, http.StatusBadRequest, resolver.ErrNotJSON.Code, "The request body could not be read")
		}
		return buf, false
	}
}

// grow doubles the room of buf, if take allows it.
func grow(buf []byte, take func(bytes int64) bool) ([]byte, bool) {
	size := max(2*cap(buf), 512)
	if take != nil && size > maxScratch && !take(int64(size-cap(buf))) {
		return buf, false
	}
	larger := make([]byte, len(buf), size)
	copy(larger, buf)
	return larger, true
}

func refuseTooLarge(w http.ResponseWriter, limit int64) {
	w.Header().Set("Connection", "close") // the rest of the body is not worth reading
	refuse(w, http.StatusRequestEntityTooLarge, codeTooLarge, "The request body is larger than "+strconv.FormatInt(limit, 10)+" bytes")
}
