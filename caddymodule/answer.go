package caddymodule

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// scratch is what one request needs and the next can use again.
type scratch struct {
	parser  resolver.CheckParser
	check   resolver.Check
	body    []byte
	answer  []byte
	key     []byte
	large   int64  // bytes that count against largeBodies
	network uint64 // that they count against, too

	events   resolver.EventParser
	channels resolver.ChannelParser
	refusals []*resolver.Refusal
	accepted []event
}

// maxScratch is the largest buffer that is kept for the next request.
const maxScratch = 256 << 10

func (h *Handler) takeScratch() *scratch { return h.scratch.Get().(*scratch) }

func (h *Handler) giveScratch(s *scratch) {
	h.giveLarge(s, s.large)
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
	codeInvalidBody = "invalid_json_body"

	messageTwoApps = "The body names more than one app_id, in one spelling or several"
)

// refuseMethod answers a method the path does not have.
func refuseMethod(w http.ResponseWriter, allowed ...string) {
	allow := strings.Join(allowed, ", ")
	w.Header().Set("Allow", allow)
	refuse(w, http.StatusMethodNotAllowed, codeMethod, "This path takes "+allow)
}

// unknownApp is the official answer for an app that does not exist.
var unknownApp = &resolver.Refusal{
	Status: http.StatusTooManyRequests, Code: "on_premise_app", Message: "On-premise app detected",
}

// refuseLookup answers a request whose app could not be had. Only what the origin itself denies is called unknown: a 429
// silences a phone (protocol 9, trap 2).
func refuseLookup(w http.ResponseWriter, err error) {
	if errors.Is(err, cache.ErrNotFound) {
		writeJSON(w, unknownApp.Status, resolver.AppendRefusal(nil, unknownApp))
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
