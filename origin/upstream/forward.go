package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"
)

// How long what is passed through may take.
const (
	// forwardTime is until an answer begins; clients give up after 20 s.
	forwardTime = 20 * time.Second
	// uploadTime is that for a body that is passed on while it comes in.
	uploadTime = time.Minute
	// answerTime is until the answer is with the client.
	answerTime = time.Minute
)

// bufferedBody is how much of a body is read before it is passed on: all of any channel call (contract 3). It can be sent
// again, and a slow phone holds no place at the server meanwhile.
const bufferedBody = 64 << 10

// Passage is how a request is passed through.
type Passage struct {
	// Path is where it goes, below the base address, such as "/channel_self".
	Path string
	// Address is the client's, as in [Client].
	Address netip.Addr
	// Proto and Host are how the client reached the edge ("https", "updates.example.com"), for X-Forwarded-Proto and -Host.
	// Empty: none is sent.
	Proto, Host string
	// MaxBody is the size of the largest body, in bytes; 0: there must be none.
	MaxBody int64
}

// Forward passes a request to the first server that can be reached, and its answer, whatever it is, to the client. Query,
// headers and body stay as they are, save hop-by-hop headers and those that tell whom the request is from. A redirect is
// the client's to follow.
//
// Another server is tried only if this one did not begin to answer, and either saw nothing of the request or the method is
// idempotent (RFC 9110, section 9.2.2).
//
// status is that of the answer; 0: nothing was written, and err says why. A body larger than MaxBody is an
// *http.MaxBytesError; ErrNotSent is among what is wrapped if no server can have seen anything of the request. An err beside
// a status says that the answer broke off: then the handler must end with
// panic(http.ErrAbortHandler), or the client would take it for whole.
func (g *Group) Forward(w http.ResponseWriter, r *http.Request, p Passage) (status int, err error) {
	body, err := readBody(w, r, p.MaxBody)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	f := &forward{group: g, passage: &p, body: body}
	proxy := g.proxy
	proxy.Rewrite, proxy.Transport = f.rewrite, f
	proxy.ModifyResponse = func(resp *http.Response) error {
		for name := range resp.Header { // in place of what the edge would say of itself
			w.Header().Del(name)
		}
		status = resp.StatusCode
		if status == http.StatusNoContent { // some servers send one; it must not be there (RFC 9110, section 8.6)
			resp.Header.Del("Content-Length")
		}
		return nil
	}
	proxy.ErrorHandler = func(_ http.ResponseWriter, _ *http.Request, failure error) { err = failure }
	defer func() {
		switch cut := recover(); cut {
		case nil:
		case http.ErrAbortHandler:
			err = errors.New("the answer broke off, or the client hung up")
		default:
			panic(cut)
		}
	}()
	proxy.ServeHTTP(w, r)
	return status, err
}

// forward is one request that is passed through. It is the transport of its proxy.
type forward struct {
	group   *Group
	passage *Passage
	body    *requestBody
}

// rewrite makes the request to servers of that to the edge. The proxy has taken off hop-by-hop headers.
func (f *forward) rewrite(pr *httputil.ProxyRequest) {
	out := pr.Out
	out.URL.RawQuery = pr.In.URL.RawQuery // the proxy drops what it cannot read of it
	for _, name := range []string{
		"Connection", "Upgrade", // no protocol but HTTP
		"Expect", // was answered
	} {
		out.Header.Del(name)
	}
	maps.DeleteFunc(out.Header, func(name string, _ []string) bool { return isForProxies(name) })
	setAddress(out.Header, f.passage.Address)
	if f.passage.Proto != "" {
		out.Header.Set("X-Forwarded-Proto", f.passage.Proto)
	}
	if f.passage.Host != "" {
		out.Header.Set("X-Forwarded-Host", f.passage.Host)
	}
	if out.Header.Get("Accept-Encoding") == "" { // or net/http would ask for gzip, and unpack it
		out.Header.Set("Accept-Encoding", "identity")
	}
}

// isForProxies reports whether a header is one by which proxies tell servers who the client is, how it came and where it wants
// to go. Only the edge says so. Many servers take an underscore for a dash.
func isForProxies(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	for _, part := range [...]string{"forwarded", "client-ip", "clientip", "connecting-ip", "real-ip"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	switch name {
	case "cf-pseudo-ipv4", "x-appengine-user-ip", "x-azure-socketip", "x-cluster-ip", "x-coming-from", "x-envoy-external-address",
		"x-nf-client-connection-ip", "x-originating-ip", "x-remote-addr", "x-remote-ip", "x-source-ip", "x-true-ip",
		"x-host", "x-original-host", "x-original-url", "x-rewrite-url":
		return true
	}
	return false
}

// RoundTrip implements http.RoundTripper over the servers of the group.
func (f *forward) RoundTrip(out *http.Request) (*http.Response, error) {
	limit, again := forwardTime, isIdempotent(out.Method) && f.body.whole
	if !f.body.whole {
		limit = uploadTime
	}
	deadline := time.Now().Add(limit)
	anySent := false
	notSent := func(err error) error {
		if anySent {
			return err
		}
		return fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	var failures error
	for i, s := range f.group.servers {
		share := time.Until(deadline)
		if again {
			share = f.group.share(i, deadline)
		}
		if share < leastShare {
			failures = join(failures, s.failure(errNoTime))
			break
		}
		resp, sent, err := f.attempt(s, out, share)
		if err == nil {
			return resp, nil
		}
		anySent = anySent || sent
		if ctx := out.Context(); ctx.Err() != nil {
			return nil, notSent(context.Cause(ctx))
		}
		if f.body.failure() != nil {
			return nil, notSent(f.body.failure())
		}
		failures = join(failures, s.failure(err))
		if sent && !again {
			break
		}
	}
	return nil, notSent(failures)
}

// isIdempotent reports that a request may be made twice (RFC 9110, section 9.2.2).
func isIdempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// attempt passes the request to one server. sent says that this one may have seen something of it.
func (f *forward) attempt(s *server, out *http.Request, limit time.Duration) (_ *http.Response, sent bool, _ error) {
	ctx, cancel := context.WithCancelCause(out.Context())
	timer := time.AfterFunc(limit, func() { cancel(errTimeout) })
	v, err := s.enter(ctx, s.forwards, limit)
	if err != nil {
		timer.Stop()
		cancel(nil)
		return nil, false, err
	}
	if v.probe && limit > Budget { // checks wait for what it finds out
		limit = Budget
		timer.Reset(limit)
	}
	end := func() {
		timer.Stop()
		cancel(nil)
		v.leave()
	}
	var connecting atomic.Bool // also again, for a connection that turned out to be closed
	trace := &httptrace.ClientTrace{
		GetConn:          func(string) { connecting.Store(true) },
		WroteHeaderField: func(string, []string) { connecting.Store(false) },
	}
	resp, err := s.transport.RoundTrip(f.request(httptrace.WithClientTrace(ctx, trace), s, out))
	if err == nil && resp.StatusCode < http.StatusOK {
		err = fmt.Errorf("it answers status %d unasked", resp.StatusCode)
		_ = resp.Body.Close()
	}
	if err != nil {
		late := errors.Is(context.Cause(ctx), errTimeout)
		if late {
			err = fmt.Errorf("no answer within %s", limit.Round(time.Millisecond))
		}
		err = publicError(err)
		f.settle(v, out, err, late || connecting.Load())
		end()
		return nil, !connecting.Load() || f.body.touched(), err
	}
	if resp.StatusCode >= http.StatusInternalServerError {
		v.undecided()
	} else {
		v.answered()
	}
	timer.Reset(answerTime)
	resp.Body = &answerBody{ReadCloser: resp.Body, end: end}
	return resp, true, nil
}

// settle ends the visit of a request that got no answer. What is passed through is whatever anybody sends, so that it counts
// against the server only where the server cannot be reached, or is silent; as with a 5xx, a server that hangs up may do so
// because of this request.
func (f *forward) settle(v *visit, out *http.Request, err error, unreachable bool) {
	switch {
	case out.Context().Err() != nil || f.body.failure() != nil || !f.body.ended(): // the client's doing
		v.abandoned()
	case unreachable:
		v.failed(err)
	default:
		v.undecided()
	}
}

func (f *forward) request(ctx context.Context, s *server, out *http.Request) *http.Request {
	req := out.Clone(ctx)
	req.URL, req.Host = s.address(f.passage.Path, out.URL.RawQuery), s.base.Host
	s.authorize(req)
	f.body.attach(req)
	return req
}

// answerBody is the body of an answer, and ends the visit when it is closed.
type answerBody struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer.
func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	if b.end != nil {
		b.end()
		b.end = nil
	}
	return err
}

// requestBody is the body of a request: whole in memory if it is small, else its beginning and a reader.
type requestBody struct {
	start  []byte
	whole  bool
	length int64 // as the client tells it
	rest   io.Reader

	read, done atomic.Bool
	err        atomic.Pointer[error] // that the client's side failed with
}

// readBody reads the body as far as it is buffered.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) (*requestBody, error) {
	b := &requestBody{length: r.ContentLength}
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		b.whole = true
		return b, nil
	}
	if r.ContentLength > limit {
		return nil, &http.MaxBytesError{Limit: limit}
	}
	b.rest = http.MaxBytesReader(w, r.Body, limit)
	var start bytes.Buffer
	n, err := start.ReadFrom(io.LimitReader(b.rest, bufferedBody+1))
	if err != nil {
		return nil, fmt.Errorf("reading the client's request: %w", err)
	}
	b.start, b.whole = start.Bytes(), n <= bufferedBody
	return b, nil
}

// attach gives the body to a request.
func (b *requestBody) attach(req *http.Request) {
	switch {
	case len(b.start) == 0:
		req.Body, req.ContentLength = nil, 0
	case b.whole:
		req.ContentLength, req.TransferEncoding = int64(len(b.start)), nil
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.start)), nil }
		req.Body, _ = req.GetBody()
	default:
		req.ContentLength, req.GetBody = b.length, nil
		req.Body = io.NopCloser(b)
	}
}

// Read implements io.Reader for a body that is not whole.
func (b *requestBody) Read(p []byte) (int, error) {
	b.read.Store(true)
	if len(b.start) > 0 {
		n := copy(p, b.start)
		b.start = b.start[n:]
		return n, nil
	}
	n, err := b.rest.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		b.done.Store(true)
	case err != nil:
		failure := fmt.Errorf("reading the client's request: %w", err)
		b.err.Store(&failure)
	}
	return n, err
}

// touched reports that the body cannot be sent from its beginning any more.
func (b *requestBody) touched() bool { return !b.whole && b.read.Load() }

// ended reports that the client has sent all of it.
func (b *requestBody) ended() bool { return b.whole || b.done.Load() }

// failure is what the client's side failed with, or nil.
func (b *requestBody) failure() error {
	if err := b.err.Load(); err != nil {
		return *err
	}
	return nil
}
