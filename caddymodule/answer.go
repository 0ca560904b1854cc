package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// scratch is what one request needs and the next can use again.
type scratch struct {
	parser resolver.CheckParser
	check  resolver.Check
	body   []byte
	answer []byte
}

// maxScratch is the largest buffer that is kept for the next request.
const maxScratch = 256 << 10

func (h *Handler) takeScratch() *scratch { return h.scratch.Get().(*scratch) }

func (h *Handler) giveScratch(s *scratch) {
	if cap(s.body) > maxScratch || cap(s.answer) > maxScratch {
		return
	}
	h.scratch.Put(s)
}

// The values of headers that never change. They are shared between requests and must not be written to.
var (
	jsonType    = []string{"application/json"}
	strictCSP   = []string{"default-src 'none'; frame-ancestors 'none'; sandbox"}
	noSniff     = []string{"nosniff"}
	noStore     = []string{"no-store"}
	varyOrigin  = []string{"Origin"}
	attachment  = []string{"attachment"}
	acceptBytes = []string{"bytes"}
)

// writeJSON answers with a JSON body. It sets no header that phones have no use for: each costs the hot path.
func writeJSON(w http.ResponseWriter, status int, body []byte) {
	header := w.Header()
	header["Content-Type"] = jsonType
	if len(body) > 2048 { // below that net/http counts by itself
		header["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that went away is no fault
}

// refuse answers with an error in the form clients read. Message is for people: it says what to do, and nothing of the
// machine.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header()["Cache-Control"] = noStore
	w.Header()["X-Content-Type-Options"] = noSniff
	writeJSON(w, status, resolver.AppendRefusal(nil, &resolver.Refusal{Status: status, Code: code, Message: message}))
}

// The refusals that several endpoints give.
const (
	codeUnavailable = "service_unavailable"
	codeTooLarge    = "payload_too_large"
	codeMethod      = "method_not_allowed"
)

// refuseMethod answers a method the path does not have.
func refuseMethod(w http.ResponseWriter, allowed ...string) {
	allow := strings.Join(allowed, ", ")
	w.Header().Set("Allow", allow)
	refuse(w, http.StatusMethodNotAllowed, codeMethod, "This path takes "+allow)
}

// refuseLookup answers a request whose app could not be had. Only what the origin itself denies is called unknown: a 429
// silences a phone (protocol 9, trap 2).
func refuseLookup(w http.ResponseWriter, err error) {
	if errors.Is(err, cache.ErrNotFound) {
		writeJSON(w, http.StatusTooManyRequests, []byte(`{"error":"on_premise_app","message":"On-premise app detected"}`))
		return
	}
	refuse(w, http.StatusServiceUnavailable, codeUnavailable, "This app's updates cannot be told just now, try again later")
}

var statusOK = []byte(`{"status":"ok"}`)

// serveOK answers health checks.
func (h *Handler) serveOK(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
		writeJSON(w, http.StatusOK, statusOK)
	default:
		refuseMethod(w, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodOptions)
	}
}

// readBody reads a body of at most limit bytes into buf. If it reports false, the request was answered.
func readBody(w http.ResponseWriter, r *http.Request, buf []byte, limit int64) ([]byte, bool) {
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
	} else if want := int(r.ContentLength) + 1; cap(buf) < want { // one more, to see the end without growing
		buf = make([]byte, 0, want)
	}
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
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

func refuseTooLarge(w http.ResponseWriter, limit int64) {
	w.Header().Set("Connection", "close") // the rest of the body is not worth reading
	refuse(w, http.StatusRequestEntityTooLarge, codeTooLarge, "The request body is larger than "+strconv.FormatInt(limit, 10)+" bytes")
}
