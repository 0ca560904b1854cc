package upstreams

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is what all stand-ins have in common: an address, faults, a clock, and a record of what was asked.
type Server struct {
	// URL is the address by which a configuration names the server, without a slash at its end. Until Start it is one
	// that nothing listens at, for tests that go through Transport.
	URL string

	prefix  string // the path of URL
	serve   http.HandlerFunc
	mu      sync.Mutex
	faults  map[string]Fault // by path, "" for all; guarded by mu, as all below
	slow    time.Duration
	skew    time.Duration
	healed  chan struct{} // closed when hanging requests are to end
	asked   []Request
	counts  map[string]int
	clients map[string]int
}

// Request is one request that reached the server, whatever became of it.
type Request struct {
	Method string
	Path   string // below URL
	Query  url.Values
	Header http.Header
	Client string // whom it came from, see ClientOf
	Body   []byte
}

// Fault is a way in which a server may fail.
type Fault uint8

// The faults.
const (
	None       Fault = iota
	Down             // the connection ends without an answer
	Hang             // there is no answer until the fault is taken away, or the client gives up
	Error500         // 500, as the official server says it
	Error503         // 503 with a page of HTML, as a proxy before the server says it
	Empty            // 200 without a body
	Garbage          // 200 with a body that is no JSON
	NoDatabase       // the official server cannot read its database: every app is answered 429 on_premise_app
)

func (s *Server) init(prefix string, serve http.HandlerFunc) {
	s.prefix, s.serve = prefix, serve
	s.URL = "http://upstream.test" + prefix
	s.faults, s.counts, s.clients = map[string]Fault{}, map[string]int{}, map[string]int{}
	s.healed = make(chan struct{})
}

// Start has the server listen on loopback until the test ends.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	listening := httptest.NewServer(s)
	s.URL = listening.URL + s.prefix
	t.Cleanup(func() {
		s.Heal()
		listening.CloseClientConnections()
		listening.Close()
	})
}

// Transport reaches the server without a network, which testing/synctest cannot wait for.
func (s *Server) Transport() http.RoundTripper { return direct{s} }

// Break has requests fail, those for the given paths below URL or else all, until Heal.
func (s *Server) Break(f Fault, paths ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(paths) == 0 {
		paths = []string{""}
	}
	for _, path := range paths {
		s.faults[path] = f
	}
}

// Heal takes all faults away. Requests that hang are answered.
func (s *Server) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.faults)
	s.slow = 0
	close(s.healed)
	s.healed = make(chan struct{})
}

// Slow delays each answer, until Heal.
func (s *Server) Slow(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slow = d
}

// Advance sets the server's clock forward. Addresses and what it caches age by it.
func (s *Server) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew += d
}

func (s *Server) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.skew)
}

// Count is how many requests came for a path below URL; for all paths if it is "".
func (s *Server) Count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if path == "" {
		return len(s.asked)
	}
	return s.counts[path]
}

// Counts is how many requests came, by path below URL.
func (s *Server) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// Clients is how many requests came, by whom they came from.
func (s *Server) Clients() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.clients)
}

// Requests are all requests that came for a path below URL, oldest first; for all paths if it is "".
func (s *Server) Requests(path string) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if path == "" {
		return slices.Clone(s.asked)
	}
	var some []Request
	for _, r := range s.asked {
		if r.Path == path {
			some = append(some, r)
		}
	}
	return some
}

// Forget begins a new record.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = nil
	clear(s.counts)
	clear(s.clients)
}

// ClientOf is the address a request came from: the first of X-Forwarded-For, which these servers trust, else the peer's.
func ClientOf(r *http.Request) string {
	if first, _, _ := strings.Cut(r.Header.Get("X-Forwarded-For"), ","); first != "" {
		return strings.TrimSpace(first)
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	below, ok := strings.CutPrefix(r.URL.EscapedPath(), s.prefix)
	if !ok {
		below = r.URL.EscapedPath()
	}
	fault, slow, healed := s.record(r, below, body)
	if slow > 0 && !wait(r, time.After(slow)) {
		panic(http.ErrAbortHandler)
	}
	if fault == Hang && !wait(r, healed) {
		panic(http.ErrAbortHandler)
	}
	switch fault {
	case None, Hang, NoDatabase:
	case Down:
		panic(http.ErrAbortHandler)
	case Error500:
		writeJSON(w, http.StatusInternalServerError, object{"error": "unknown_error", "message": "Unknown error", "moreInfo": object{}})
		return
	case Error503:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "<html><h1>503 Service Unavailable</h1></html>")
		return
	case Empty:
		w.WriteHeader(http.StatusOK)
		return
	case Garbage:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"version":"1.`)
		return
	}
	if !ok {
		notFound(w)
		return
	}
	u := *r.URL
	u.Path, u.RawPath = strings.TrimPrefix(u.Path, s.prefix), below
	r.URL = &u
	s.serve(w, r)
}

// wait reports false if the client gave up first.
func wait[T any](r *http.Request, until <-chan T) bool {
	select {
	case <-until:
		return true
	case <-r.Context().Done():
		return false
	}
}

// record notes the request, and tells what is to become of it.
func (s *Server) record(r *http.Request, below string, body []byte) (Fault, time.Duration, chan struct{}) {
	client := ClientOf(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, Request{r.Method, below, r.URL.Query(), r.Header.Clone(), client, body})
	s.counts[below]++
	s.clients[client]++
	return s.faultLocked(below), s.slow, s.healed
}

func (s *Server) faultLocked(path string) Fault {
	if f, ok := s.faults[path]; ok {
		return f
	}
	return s.faults[""]
}

// broken reports whether a path has a fault that the stand-in brings about itself.
func (s *Server) broken(path string, f Fault) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faultLocked(path) == f
}

// direct is a transport that calls the server.
type direct struct{ s *Server }

// ErrDown is what Transport returns where a network would have lost the connection.
var ErrDown = errors.New("upstreams: the server hung up")

func (d direct) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	defer func() {
		if what := recover(); what != nil {
			if what != http.ErrAbortHandler { //nolint:errorlint // it is a value that was thrown, not an error that was returned
				panic(what)
			}
			if resp, err = nil, r.Context().Err(); err == nil {
				err = ErrDown
			}
		}
	}()
	in := r.Clone(r.Context())
	in.RemoteAddr = "192.0.2.1:1234"
	if in.Body == nil {
		in.Body = http.NoBody
	}
	defer in.Body.Close() //nolint:errcheck // a transport closes the body, and nobody hears of the error
	recorder := httptest.NewRecorder()
	d.s.ServeHTTP(recorder, in)
	resp = recorder.Result()
	resp.Request = r
	return resp, nil
}

// object is a JSON object that is made up on the spot.
type object = map[string]any

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	raw, ok := body.([]byte)
	if !ok {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			panic(err)
		}
	}
	w.WriteHeader(status)
	_, _ = w.Write(raw)
}

func notFound(w http.ResponseWriter) {
	writeJSON(w, http.StatusNotFound, object{"error": "not_found", "message": "Not found"})
}

// check is a request for an update, as far as the stand-ins other than the official one look at it.
type check struct {
	AppID          string `json:"app_id"`
	DeviceID       string `json:"device_id"`
	Platform       string `json:"platform"`
	VersionName    string `json:"version_name"`
	VersionBuild   string `json:"version_build"`
	VersionCode    string `json:"version_code"`
	DefaultChannel string `json:"defaultChannel"`
}
