package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// server is one upstream.
type server struct {
	base      *url.URL // without user and password, and without a slash at its end
	user      *url.Userinfo
	name      string // base as text: how errors and status pages call it
	breaker   *breaker
	transport http.RoundTripper
	client    *http.Client // over transport, for checks
	idle      func()       // closes connections that no request uses

	// Places for requests under way. What is passed through has its own: a slow phone may hold one for a minute, and must not
	// keep checks from being answered.
	checks, forwards places
}

// maxChecks is how many checks a server may have under way. At 300 ms each, 512 are 1700 a second. An edge that asks for each
// device by itself needs as many; else equal checks are one request, and some dozens do.
//
// One costs the edge some 50 KB, and a file descriptor where the server has no HTTP/2, besides its answer, which is mostly
// below 1 KB (were all as large as maxAnswer, it would be 4 GiB). With 1024, all of them at once with no connection open were
// so many TLS handshakes that the 3 s went by, and the breaker opened. And a server that is slow must not collect any number.
const maxChecks = 512

// maxForwards is how many other requests may be under way there. Each holds up to bufferedBody of its client's.
const maxForwards = 256

// maxIdle is how many connections are kept that no request uses. Requests come and go evenly enough that this does for
// maxChecks; what a burst needs besides is opened for it, and closed behind it.
const maxIdle = 128

type places chan struct{}

const maxRedirects = 5

func newServer(rawURL string, o *Options) (*server, error) {
	base, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("an upstream's address is not a URL") // the parse error repeats it, password and all
	}
	switch {
	case base.Scheme != "http" && base.Scheme != "https":
		return nil, fmt.Errorf("an upstream's address must begin with http:// or https://, not %q", base.Scheme)
	case base.Hostname() == "":
		return nil, errors.New("an upstream's address names no host")
	case base.RawQuery != "" || base.ForceQuery || base.Fragment != "":
		return nil, errors.New("an upstream's address must have no query and no fragment")
	}
	base.Path, base.RawPath = strings.TrimRight(base.Path, "/"), strings.TrimRight(base.RawPath, "/")
	for _, end := range []string{"/updates", "/stats", "/channel_self"} {
		if strings.HasSuffix(base.Path, end) {
			return nil, fmt.Errorf("an upstream's address must not end in %s, which is added to it; "+
				"name what phones had as updateUrl, without the /updates at its end", end)
		}
	}
	s := &server{base: base, user: base.User, checks: make(places, maxChecks), forwards: make(places, maxForwards)}
	base.User = nil
	base.Host = strings.ToLower(base.Host)
	s.name = base.String()
	transport := newTransport()
	s.transport, s.idle = transport, transport.CloseIdleConnections
	if o.WrapTransport != nil {
		s.transport = o.WrapTransport(transport)
	}
	s.client = &http.Client{Transport: s.transport, CheckRedirect: s.checkRedirect}
	s.breaker = newBreaker(func(err error) {
		if err != nil {
			s.idle() // the probe is to take the way that a name leads to then
		}
		if o.Report != nil {
			o.Report(s.name, err)
		}
	})
	return s, nil
}

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    5 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		// A connection that died without a word would fail all requests over it until the system gives it up.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 3 * time.Second},
	}
}

// checkRedirect follows what keeps method and body, and stays on the server: another host is not what the operator named,
// and the headers tell who asks. A 301, 302 or 303 would turn the POST into a GET.
func (s *server) checkRedirect(req *http.Request, via []*http.Request) error {
	status := req.Response.StatusCode
	keeps := status == http.StatusTemporaryRedirect || status == http.StatusPermanentRedirect
	same := req.URL.Scheme == s.base.Scheme && strings.EqualFold(req.URL.Host, s.base.Host)
	switch {
	case !same:
		return fmt.Errorf("it redirects to another host, %s://%s; name that one as the upstream if it is meant", req.URL.Scheme, req.URL.Host)
	case !keeps:
		return fmt.Errorf("it redirects with status %d, which would turn the check into a GET; name the address it redirects to as the upstream", status)
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	return nil
}

// address is that of a path below the base. A space in the query, which HTTP/2 lets through, would end the request's target
// in HTTP/1.1 (RFC 9112, section 3).
func (s *server) address(path, query string) *url.URL {
	u := *s.base
	u.Path += path
	if u.RawPath != "" {
		u.RawPath += path
	}
	u.RawQuery = strings.ReplaceAll(query, " ", "%20")
	return &u
}

// authorize adds what the operator wrote before the host.
func (s *server) authorize(req *http.Request) {
	if s.user != nil {
		password, _ := s.user.Password()
		req.SetBasicAuth(s.user.Username(), password)
	}
}

// listed is the server's host as origin.ExternalOptions.Hosts takes it.
func (s *server) listed() string {
	if s.base.Scheme == "http" {
		return "http://" + s.base.Host
	}
	return s.base.Host
}

// visit is a request that is let through, and has a place.
type visit struct {
	permit
	places places
}

// enter waits for a place, up to half of the time that a request has: with less than the other half left, the server would be
// blamed for not answering. Nobody waits for one that is shut, and nobody who waited goes to one that was shut meanwhile.
func (s *server) enter(ctx context.Context, p places, share time.Duration) (*visit, error) {
	if err := s.breaker.ready(); err != nil {
		return nil, err
	}
	if err := p.take(ctx, share/2); err != nil {
		return nil, err
	}
	permit, err := s.breaker.allow()
	if err != nil {
		<-p
		return nil, err
	}
	return &visit{permit, p}, nil
}

// take waits for a place.
func (p places) take(ctx context.Context, patience time.Duration) error {
	select {
	case p <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case p <- struct{}{}:
		return nil
	case <-timer.C:
		return ErrBusy
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leave gives the place back.
func (v *visit) leave() { <-v.places }

// errTimeout is why a request was given up.
var errTimeout = errors.New("no answer in time")

// failure names the server in what went wrong with it.
func (s *server) failure(err error) error { return fmt.Errorf("upstream %s: %w", s.name, err) }

// join adds a server's failure to those before.
func join(err, next error) error {
	if err == nil {
		return next
	}
	return fmt.Errorf("%w; %w", err, next)
}

// publicError takes the address out of a client error: a redirect's query may hold what only the operator should read.
func publicError(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it hung up in the middle of an answer")
	}
	return err
}
