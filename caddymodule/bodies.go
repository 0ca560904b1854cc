package caddymodule

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// budget is what all requests together may take of something: bytes of memory, or places.
type budget struct {
	free atomic.Int64
}

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

// Bounds of what large requests take: bodies above maxScratch, and what comes of batches beyond ordinary ones.
const (
	// maxLargeBodies is for all together: a few hundred of the largest batches that phones send, and no more when somebody
	// sends batches of 16 MiB for the sake of it.
	maxLargeBodies = 128 << 20
	// maxNetworkBodies is for the clients of one network, a sixth of that: the most that one request can take.
	maxNetworkBodies = maxEventsBody + resolver.MaxBatch*eventMemory
)

// largeBodies is the memory that large requests take, together and by the networks they come from, as networkOf has it.
type largeBodies struct {
	mu        sync.Mutex
	taken     int64            // guarded by mu
	byNetwork map[uint64]int64 // guarded by mu
}

func newLargeBodies() *largeBodies { return &largeBodies{byNetwork: map[uint64]int64{}} }

func (l *largeBodies) take(network uint64, bytes int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.taken+bytes > maxLargeBodies || l.byNetwork[network]+bytes > maxNetworkBodies {
		return false
	}
	l.taken += bytes
	l.byNetwork[network] += bytes
	return true
}

func (l *largeBodies) give(network uint64, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken -= bytes
	if l.byNetwork[network] -= bytes; l.byNetwork[network] == 0 {
		delete(l.byNetwork, network)
	}
}

// takeLarge takes memory for a large request. If it reports false, there is none.
func (h *Handler) takeLarge(r *http.Request, s *scratch, bytes int64) bool {
	if s.large == 0 {
		s.network = networkOf(r)
	}
	if !h.runtime.largeBodies.take(s.network, bytes) {
		return false
	}
	s.large += bytes
	return true
}

// giveLarge gives back some of the memory that s took.
func (h *Handler) giveLarge(s *scratch, bytes int64) {
	if bytes > 0 {
		h.runtime.largeBodies.give(s.network, bytes)
		s.large -= bytes
	}
}

func refuseBusy(w http.ResponseWriter) {
	refuse(w, http.StatusServiceUnavailable, codeUnavailable, "Too many large requests at once, send it again later")
}

// readLarge reads a body of at most limit bytes into s. Memory is taken as bytes arrive, not as they are announced. If it
// reports false, the request was answered.
func (h *Handler) readLarge(w http.ResponseWriter, r *http.Request, s *scratch, limit int64) bool {
	var ok bool
	s.body, ok = readBodyWithin(w, r, s.body, limit, func(bytes int64) bool { return h.takeLarge(r, s, bytes) })
	return ok
}

// readBody reads a body of at most limit bytes into buf, where limit is small. If it reports false, the request was answered.
func readBody(w http.ResponseWriter, r *http.Request, buf []byte, limit int64) ([]byte, bool) {
	return readBodyWithin(w, r, buf, limit, nil)
}

// firstBody is how much memory a body gets before its bytes arrive: more than a check has, and little for one that is announced
// and never sent.
const firstBody = 8 << 10

// A body for which memory grows beyond firstBody must arrive at this pace, as otherwise a few that trickle could hold all that
// there is for large ones: it has minBodyTime, and a second for each slowestBody bytes of the memory it got.
const (
	minBodyTime = 30 * time.Second
	slowestBody = 64 << 10
)

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
	pace := bodyPace{writer: w, request: r}
	for {
		if len(buf) == cap(buf) {
			var ok bool
			if buf, ok = grow(buf, limit, take); !ok {
				refuseBusy(w)
				return buf, false
			}
			pace.allow(cap(buf))
		}
		n, err := body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) || int64(len(buf)) == r.ContentLength {
			pace.end()
			return buf, true
		}
		if err != nil {
			refuseBody(w, limit, err)
			return buf, false
		}
	}
}

// bodyPace sets the time by which a body must have arrived. Caddy's own timeouts end it sooner where they do.
type bodyPace struct {
	writer  http.ResponseWriter
	request *http.Request
	began   time.Time // when memory grew beyond firstBody; zero if it did not
}

// allow gives a body the time that it may take to fill so much memory.
func (p *bodyPace) allow(memory int) {
	if memory <= firstBody {
		return
	}
	if p.began.IsZero() {
		p.began = time.Now()
	}
	most := minBodyTime + time.Duration(memory/slowestBody)*time.Second
	server, _ := p.request.Context().Value(http.ServerContextKey).(*http.Server)
	if server != nil && server.ReadTimeout > 0 {
		most = min(most, server.ReadTimeout)
	}
	_ = http.NewResponseController(p.writer).SetReadDeadline(p.began.Add(most)) // every connection of Caddy's has it
}

// end takes the deadline away: one that passes while the answer is made would look as if the client had left. A body that was
// not read to its end keeps it, since the server may read on.
func (p *bodyPace) end() {
	if !p.began.IsZero() {
		_ = http.NewResponseController(p.writer).SetReadDeadline(time.Time{})
	}
}

// refuseBody answers a request whose body could not be read. A phone drops what it gets a 400 for, and sends again after 408.
func refuseBody(w http.ResponseWriter, limit int64, err error) {
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	slow, isNet := errors.AsType[net.Error](err)
	switch {
	case tooLarge:
		refuseTooLarge(w, limit)
	case isNet && slow.Timeout():
		w.Header().Set("Connection", "close")
		refuse(w, http.StatusRequestTimeout, "request_timeout", "The request body took too long to arrive, send it again")
	default:
		refuse(w, http.StatusBadRequest, resolver.ErrNotJSON.Code, "The request body could not be read")
	}
}

// grow doubles the room of buf, if take allows it, up to one byte more than limit, by which the end is seen.
func grow(buf []byte, limit int64, take func(bytes int64) bool) ([]byte, bool) {
	size := max(2*cap(buf), 512)
	if int64(size) > limit && int64(cap(buf)) <= limit {
		size = int(limit) + 1
	}
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
