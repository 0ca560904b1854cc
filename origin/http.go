package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// HTTP is a Store over a web server: an object's key is its path below a base address.
type HTTP struct {
	base   *url.URL
	header http.Header
	client *http.Client
	stall  time.Duration
}

// HTTPOptions configure an HTTP store.
type HTTPOptions struct {
	// BaseURL is the http or https address keys are appended to. A user and password in it are sent as basic
	// authentication.
	BaseURL string
	// Header is sent with each request, for example an authorization. "Host" names another host to the server.
	Header http.Header
	// StallTimeout ends a request whose body brings nothing for so long. Default: 30 s.
	StallTimeout time.Duration
	// WrapTransport, if set, wraps the transport, for tracing.
	WrapTransport func(http.RoundTripper) http.RoundTripper
}

const (
	maxRedirects = 5
	smallBody    = 16 << 10
)

// settleTime is how much older than the answer a Last-Modified must be to be trusted as a validator.
const settleTime = 2 * time.Second

// NewHTTP returns the store at a base address.
func NewHTTP(o HTTPOptions) (*HTTP, error) {
	base, err := url.Parse(o.BaseURL)
	if err != nil {
		return nil, errors.New("the base address is not a URL") // the parse error repeats it, password and all
	}
	switch {
	case base.Scheme != "http" && base.Scheme != "https":
		return nil, errors.New("the base address must begin with http:// or https://")
	case base.Host == "":
		return nil, errors.New("the base address names no host")
	case base.RawQuery != "" || base.Fragment != "":
		return nil, errors.New("the base address must have no query and no fragment")
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	base.RawPath = strings.TrimSuffix(base.RawPath, "/")
	h := &HTTP{base: base, header: o.Header, stall: o.StallTimeout}
	if h.stall <= 0 {
		h.stall = 30 * time.Second
	}
	var transport http.RoundTripper = newTransport(http.ProxyFromEnvironment, newDialer().DialContext)
	if o.WrapTransport != nil {
		transport = o.WrapTransport(transport)
	}
	h.client = &http.Client{Transport: transport, CheckRedirect: h.checkRedirect}
	return h, nil
}

func newDialer() *net.Dialer {
	return &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
}

func newTransport(
	proxy func(*http.Request) (*url.URL, error), dial func(ctx context.Context, network, address string) (net.Conn, error),
) *http.Transport {
	return &http.Transport{
		Proxy:                  proxy,
		DialContext:            dial,
		TLSHandshakeTimeout:    5 * time.Second,
		ResponseHeaderTimeout:  10 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		DisableCompression:     true, // objects are passed on as they are
		MaxResponseHeaderBytes: 64 << 10,
		// A connection that died without a word would fail all requests over it until the system gives it up.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 3 * time.Second},
	}
}

// Identity implements Store.
func (h *HTTP) Identity() string {
	public := *h.base
	public.User = nil
	identity := "http " + public.String()
	if host := h.host(); host != "" { // one address may serve many hosts
		identity += " host " + host
	}
	return identity
}

// host is the host the operator has the server told, if not that of the address.
func (h *HTTP) host() string {
	for name, values := range h.header {
		if http.CanonicalHeaderKey(name) == "Host" && len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// CloseIdleConnections closes connections that no request uses. The store stays usable.
func (h *HTTP) CloseIdleConnections() { h.client.CloseIdleConnections() }

// checkRedirect follows a redirect only on the same server: the headers sent may hold secrets, and what another host
// answers is not this origin's storage.
func (h *HTTP) checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	case req.URL.Scheme != h.base.Scheme || !strings.EqualFold(req.URL.Host, h.base.Host):
		return fmt.Errorf("it redirects to another host, %s://%s; name that one as the origin if it is meant",
			req.URL.Scheme, req.URL.Host)
	}
	return nil
}

// Get implements Store.
func (h *HTTP) Get(ctx context.Context, key string, opts GetOptions) (*Object, error) {
	if !isPath(key) {
		return nil, ErrNotFound
	}
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := h.request(ctx, key, opts)
	if err != nil {
		cancel(nil)
		return nil, unavailable("%w", err)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		cancel(nil)
		return nil, unavailable("%w", publicError(err))
	}
	return open(resp, h.stall, cancel, opts)
}

// open turns a response into an Object that ends the request when it stalls or is closed.
func open(resp *http.Response, stall time.Duration, cancel context.CancelCauseFunc, opts GetOptions) (*Object, error) {
	resp.Body = newWatchedBody(resp.Body, stall, cancel)
	object, err := newObject(resp, opts)
	if err != nil {
		if 0 < resp.ContentLength && resp.ContentLength <= smallBody { // an error page: read, it leaves the connection usable
			_, _ = io.Copy(io.Discard, resp.Body)
		}
		return nil, errors.Join(err, resp.Body.Close())
	}
	if opts.HeadOnly {
		object.Body = emptyBody{}
		return object, resp.Body.Close()
	}
	return object, nil
}

// isPath reports that a URL can say key: "." and ".." mean something else there, and an empty one the server's index.
func isPath(key string) bool {
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "." || segment == ".." {
			return false
		}
	}
	return key != ""
}

func (h *HTTP) request(ctx context.Context, key string, opts GetOptions) (*http.Request, error) {
	method := http.MethodGet
	if opts.HeadOnly {
		method = http.MethodHead
	}
	address := *h.base
	address.User = nil
	address.Path = h.base.Path + "/" + key
	address.RawPath = h.base.EscapedPath() + "/" + escapeKey(key)
	req, err := http.NewRequestWithContext(ctx, method, address.String(), nil)
	if err != nil {
		return nil, err
	}
	for name, values := range h.header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	if host := h.host(); host != "" {
		req.Header.Del("Host")
		req.Host = host
	}
	if user := h.base.User; user != nil && req.Header.Get("Authorization") == "" {
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
	}
	req.Header.Set("Accept-Encoding", "identity")
	setConditions(req.Header, opts)
	return req, nil
}

func setConditions(h http.Header, opts GetOptions) {
	switch {
	case opts.HeadOnly: // the size is to be that of the whole
	case opts.Length > 0:
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", opts.Offset, opts.Offset+opts.Length-1))
	case opts.Offset > 0:
		h.Set("Range", fmt.Sprintf("bytes=%d-", opts.Offset))
	}
	if opts.IfMatch != "" && !strings.HasPrefix(opts.IfMatch, "W/") {
		h.Set("If-Match", opts.IfMatch)
	}
	if opts.IfNoneMatch != "" {
		h.Set("If-None-Match", opts.IfNoneMatch)
	}
	if !opts.IfModifiedSince.IsZero() {
		h.Set("If-Modified-Since", opts.IfModifiedSince.UTC().Format(http.TimeFormat))
	}
}

// escapeKey escapes a key as a URL path. A "+" is escaped too, because some object stores take it for a blank.
func escapeKey(key string) string {
	segments := strings.Split(key, "/")
	for i, s := range segments {
		segments[i] = strings.ReplaceAll(url.PathEscape(s), "+", "%2B")
	}
	return strings.Join(segments, "/")
}

// newObject turns a response into an Object whose body begins at the offset asked for.
func newObject(resp *http.Response, opts GetOptions) (*Object, error) {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusNotModified:
		return nil, ErrNotModified
	case http.StatusNotFound, http.StatusGone:
		return nil, ErrNotFound
	case http.StatusPreconditionFailed:
		return nil, ErrChanged
	case http.StatusRequestedRangeNotSatisfiable:
		return nil, ErrRange
	default:
		return nil, unavailable("it answers status %d", resp.StatusCode)
	}
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, unavailable("it answers with Content-Encoding %s although asked not to; switch compression off there", encoding)
	}
	o := &Object{Body: resp.Body, Size: resp.ContentLength, ETag: resp.Header.Get("ETag")}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		o.Modified = t
		date, err := http.ParseTime(resp.Header.Get("Date"))
		o.Unsettled = err != nil || date.Sub(t) < settleTime
	}
	switch { // not every server looks at conditions
	case opts.IfMatch != "" && o.ETag != opts.IfMatch:
		return nil, ErrChanged
	case opts.IfNoneMatch != "" && o.ETag == opts.IfNoneMatch:
		return nil, ErrNotModified
	case opts.HeadOnly && opts.Offset > 0 && o.Size >= 0 && opts.Offset >= o.Size:
		return nil, ErrRange
	case opts.HeadOnly:
		return o, nil
	case o.Size < 0 && resp.ProtoMajor == 1 && !slices.Contains(resp.TransferEncoding, "chunked"):
		return nil, unavailable("it tells no Content-Length, and ends bodies by hanging up; a cut one would look like a whole one")
	}
	if resp.StatusCode == http.StatusPartialContent {
		return o, partial(o, resp.Header.Get("Content-Range"), opts)
	}
	return o, whole(o, opts)
}

// partial judges a 206: it must begin where it was asked to, and tell the size of the whole.
func partial(o *Object, contentRange string, opts GetOptions) error {
	first, last, size, ok := parseContentRange(contentRange)
	length := size - opts.Offset
	if opts.Length > 0 {
		length = min(length, opts.Length)
	}
	if !ok || first != opts.Offset || last-first+1 < length {
		return unavailable("it answers a range with Content-Range %q", contentRange)
	}
	o.Size = size
	o.Body = exactly(o.Body, length)
	return nil
}

// whole judges a 200: where a range was asked for, the origin does not do ranges, and what comes before it is read past.
func whole(o *Object, opts GetOptions) error {
	if o.Size < 0 {
		if opts.Offset > 0 {
			return unavailable("it knows neither ranges nor Content-Length, so a download cannot be resumed")
		}
		if opts.Length > 0 {
			o.Body = readCloser{io.LimitReader(o.Body, opts.Length), o.Body}
		}
		return nil
	}
	if opts.Offset > 0 && opts.Offset >= o.Size {
		return ErrRange
	}
	if _, err := io.CopyN(io.Discard, o.Body, opts.Offset); err != nil {
		return unavailable("%w", publicError(err))
	}
	length := o.Size - opts.Offset
	if opts.Length > 0 {
		length = min(length, opts.Length)
	}
	o.Body = exactly(o.Body, length)
	return nil
}

// parseContentRange reads "bytes first-last/size".
func parseContentRange(s string) (first, last, size int64, ok bool) {
	s, isBytes := strings.CutPrefix(s, "bytes ")
	span, total, hasTotal := strings.Cut(s, "/")
	from, to, hasTo := strings.Cut(span, "-")
	if !isBytes || !hasTotal || !hasTo {
		return 0, 0, 0, false
	}
	var errs [3]error
	first, errs[0] = strconv.ParseInt(from, 10, 64)
	last, errs[1] = strconv.ParseInt(to, 10, 64)
	size, errs[2] = strconv.ParseInt(total, 10, 64)
	return first, last, size, errors.Join(errs[:]...) == nil && 0 <= first && first <= last && last < size
}

// publicError takes the address out of a client error: it is long, and may hold what only the operator should read. A server
// that hangs up without an answer must not look like the end of an object.
func publicError(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the server hung up")
	}
	return err
}

// errStalled ends a body that brings nothing any more.
var errStalled = errors.New("the origin stopped sending")

// watchedBody ends the request when the body stalls, and frees its context when closed.
type watchedBody struct {
	body   io.ReadCloser
	stall  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func newWatchedBody(body io.ReadCloser, stall time.Duration, cancel context.CancelCauseFunc) *watchedBody {
	timer := time.AfterFunc(stall, func() { cancel(errStalled) })
	timer.Stop()
	return &watchedBody{body, stall, timer, cancel}
}

// Read arms the timer only while it waits for the origin, so that a slow reader does not look like a slow origin.
func (b *watchedBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.body.Read(p)
	if !b.timer.Stop() && err != nil && !errors.Is(err, io.EOF) {
		return n, unavailable("%w", errStalled)
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, ErrUnavailable) {
		err = unavailable("%w", publicError(err))
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}
