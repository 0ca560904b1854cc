package stats

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Collector takes batches of events. Several goroutines use it at once.
type Collector interface {
	// Deliver sends a batch and returns the fate of each of its events, in their order.
	//
	// An event to Keep with a Code is one that the collector could not take for now: it is sent again later, and its
	// device waits. Without a Code it was not sent yet, or it waits for the app or the collector: if that is so of all, the same
	// batch is sent again, with another key.
	//
	// An error says why a batch, or the rest of it, was not taken: a *[Failure], or any other, which is taken for one of
	// ScopeCollector. Without verdicts nothing is known of any event; the batch is sent again as it is, with the same key.
	Deliver(ctx context.Context, b *Batch) ([]Verdict, error)
}

// Scope says whom a failure stops.
type Scope uint8

const (
	// ScopeCollector stops everything: whatever is sent now would fail too.
	ScopeCollector Scope = iota
	// ScopeApp stops the app of the batch.
	ScopeApp
	// ScopeContent stops nothing: the collector refuses what is in this batch. A batch of several is split, to find out
	// which of them it means. A single event is dead.
	ScopeContent
)

// Failure is a batch that a collector did not take.
type Failure struct {
	Scope Scope
	// Suspect says that the batch itself may be what the collector fails on: a status 5xx, a cut connection, no answer. If
	// that happens to it again and again while other batches are taken, it is treated like ScopeContent, though its events
	// are kept. With the code "broken_answer" a batch of several is, whether others are taken or not.
	Suspect bool
	// Whole says, of ScopeContent, that the request was refused as a whole and nothing was said of an event: any server does
	// that at a wrong address. Too many in a row stop everything.
	Whole bool
	// TooLarge says that the collector takes smaller batches only.
	TooLarge bool
	// Code names the failure: the collector's own code, or "status_503", "timeout", "no_answer", "broken_answer",
	// "foreign_answer".
	Code string
	// Message is what the collector says about it. It may be anything, so it stands in dead letters only.
	Message string
	// RetryAfter is how long the collector asks to be left alone; 0: it does not say.
	RetryAfter time.Duration
	// Err says what happened and what to do about it.
	Err error

	status int // of an answer that refuses
}

// Error implements error.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns Err.
func (f *Failure) Unwrap() error { return f.Err }

// HTTPCollector is a Collector that events are posted to, as plugins do it: a JSON array of events, all of one app.
type HTTPCollector struct {
	address     *url.URL // without user and password
	shown       string   // how errors name it: no user, no password, no query
	user        *url.Userinfo
	header      http.Header
	timeout     time.Duration
	client      *http.Client
	form        form
	onlyObjects bool
}

// HTTPCollectorOptions configure an HTTPCollector.
type HTTPCollectorOptions struct {
	// URL is where events are posted to. A user and password in it are sent as basic authentication, a query is sent as it
	// is; errors show neither.
	URL string
	// Header is sent with each request, for example an authorization. "Host" names another host to the server. Left out are
	// "Accept-Encoding", as answers in a compression that was asked for here would not be unpacked, and "CDN-Loop", which is
	// not to be configured (RFC 8586): it names the spool, see [Forwarder.Looped].
	Header http.Header
	// ObjectForm sends each event by itself, as an object. Default: arrays, and objects only where arrays are refused, or where
	// none was ever taken and they fail again and again with status 500 or 501.
	ObjectForm bool
	// Timeout is how long a request may take, its answer included. Default: 30 s.
	Timeout time.Duration
	// WrapTransport, if set, wraps the transport, for tracing.
	WrapTransport func(http.RoundTripper) http.RoundTripper
}

const (
	maxAnswer    = 1 << 20          // bytes of an answer that are read
	maxRedirects = 5                // on the way to one answer
	objectsFor   = 10 * time.Second // one Deliver in object form; what it does not get to is left for the next
	userAgent    = "capgo-edge"
)

// errTimeout is why a request was given up.
var errTimeout = errors.New("no answer in time")

// NewHTTPCollector returns the collector at an address.
func NewHTTPCollector(o HTTPCollectorOptions) (*HTTPCollector, error) {
	address, err := url.Parse(o.URL)
	if err != nil {
		return nil, errors.New("the collector's address is not a URL") // the parse error repeats it, password and all
	}
	switch {
	case address.Scheme != "http" && address.Scheme != "https":
		return nil, fmt.Errorf("the collector's address must begin with http:// or https://, not %q", address.Scheme)
	case address.Hostname() == "":
		return nil, errors.New("the collector's address names no host")
	}
	c := &HTTPCollector{address: address, user: address.User, header: http.Header{}, timeout: o.Timeout, onlyObjects: o.ObjectForm}
	for name, values := range o.Header {
		c.header[http.CanonicalHeaderKey(name)] = values
	}
	c.header.Del("Accept-Encoding")
	c.header.Del(headerLoop)
	address.User, address.Fragment, address.RawFragment = nil, "", ""
	shown := *address
	shown.RawQuery, shown.ForceQuery = "", false
	c.shown = shown.String()
	if c.timeout <= 0 {
		c.timeout = 30 * time.Second
	}
	var transport http.RoundTripper = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    5 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		// A connection that died without a word would fail all requests over it until the system gives it up.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 3 * time.Second},
	}
	if o.WrapTransport != nil {
		transport = o.WrapTransport(transport)
	}
	c.client = &http.Client{Transport: transport, CheckRedirect: c.checkRedirect}
	return c, nil
}

// CloseIdleConnections closes connections that no request uses. The collector stays usable.
func (c *HTTPCollector) CloseIdleConnections() { c.client.CloseIdleConnections() }

// checkRedirect follows what keeps method and body, and stays on the server: the headers may hold secrets, and a 301, 302 or
// 303 would turn the POST into a GET, whose success means nothing.
func (c *HTTPCollector) checkRedirect(req *http.Request, via []*http.Request) error {
	status := req.Response.StatusCode
	keeps := status == http.StatusTemporaryRedirect || status == http.StatusPermanentRedirect
	same := req.URL.Scheme == c.address.Scheme && strings.EqualFold(req.URL.Host, c.address.Host)
	if !keeps || !same || len(via) > maxRedirects {
		return http.ErrUseLastResponse // judged by its status
	}
	return nil
}

// Deliver implements Collector.
func (c *HTTPCollector) Deliver(ctx context.Context, b *Batch) ([]Verdict, error) {
	if c.onlyObjects || c.form.wantsObjects(time.Now()) {
		return c.public(c.deliverObjects(ctx, b))
	}
	array := arrayOf(b.Events)
	verdicts, failure := c.post(ctx, b.Key, array, len(b.Events))
	tryOne := failure.failsOnForm() && c.form.tryOne(time.Now())
	for n := 1; tryOne && failure.failsOnForm() && n < tryOneAfter; n++ {
		verdicts, failure = c.post(ctx, b.Key, array, len(b.Events))
	}
	switch {
	case failure == nil:
		c.form.tookArray(time.Now())
	case failure.failsOnForm() && c.form.knowsObjects(), failure.refusesForm() && c.form.tryObjects(time.Now(), len(b.Events)):
		return c.public(c.deliverObjects(ctx, b))
	case failure.failsOnForm() && tryOne:
		return c.public(c.deliverOne(ctx, b, failure))
	case failure.Scope == ScopeContent && len(b.Events) == 1:
		return []Verdict{failure.verdict()}, nil
	}
	return c.public(verdicts, failure)
}

// public names the collector in a failure. It also keeps a nil *Failure from becoming an error.
func (c *HTTPCollector) public(verdicts []Verdict, failure *Failure) ([]Verdict, error) {
	if failure == nil {
		return verdicts, nil
	}
	failure.Err = fmt.Errorf("collector %s: %w", c.shown, failure.Err)
	return verdicts, failure
}

// deliverObjects sends the events one by one, each under a key of its own. It ends at the first request that is refused as a
// whole, so that a collector which refuses everything is noticed before it has refused a whole batch.
func (c *HTTPCollector) deliverObjects(ctx context.Context, b *Batch) ([]Verdict, *Failure) {
	verdicts := make([]Verdict, len(b.Events))
	waiting := map[uint64]bool{} // devices with an event that was not taken; the later ones do not overtake it
	began := time.Now()
	for i, e := range b.Events {
		if waiting[e.Device] {
			continue
		}
		if i > 0 && time.Since(began) > objectsFor {
			break
		}
		taken, failure := c.post(ctx, objectKey(b, i), e.Data, 1)
		switch {
		case failure == nil:
			c.form.tookObject(time.Now(), &e)
			verdicts[i] = taken[0]
		case failure.Scope == ScopeContent:
			c.form.refusedObject(time.Now())
			verdicts[i] = failure.verdict()
		default:
			if failure.Scope == ScopeApp {
				c.form.tookObject(time.Now(), &e)
			}
			if i == 0 && taken == nil {
				return nil, failure
			}
			return verdicts, failure
		}
		if verdicts[i].Whole {
			break
		}
		if verdicts[i].Fate == Keep {
			waiting[e.Device] = true
		}
	}
	return verdicts, nil
}

// deliverOne sends the first event of a batch by itself that failed as an array. If that is read, the others are left for the next
// batch, or the failure of the app or the collector that it met is theirs. If not, nothing is known of the batch but its failure, and
// it is sent again as it was. A status that refuses the event, and does not say why, is not enough: it may be the object that is
// refused, by a collector that takes arrays and is down.
func (c *HTTPCollector) deliverOne(ctx context.Context, b *Batch, failure *Failure) ([]Verdict, *Failure) {
	taken, other := c.post(ctx, objectKey(b, 0), b.Events[0].Data, 1)
	verdicts := make([]Verdict, len(b.Events))
	switch {
	case other == nil:
		verdicts[0] = taken[0]
	case other.Suspect, other.Scope == ScopeContent && other.Whole && !namesEvent(other.Code):
		return nil, failure
	case other.Scope == ScopeContent:
		verdicts[0], other = other.verdict(), nil
	case other.Scope == ScopeCollector: // such as a limit of requests, which is not about their form
		return nil, other
	default:
		verdicts = nil
	}
	c.form.tookObject(time.Now(), &b.Events[0])
	return verdicts, other
}

// objectKey is the Idempotency-Key of an event that is sent by itself, and its id if it becomes a dead letter. It is not that of
// the batch: what is left of a batch is composed anew. It has a hash of the event, as a spool that is put back from a copy
// gives its numbers to other events.
func objectKey(b *Batch, i int) string {
	instance, _, _ := strings.Cut(b.Key, "-")
	e := &b.Events[i]
	h := fnv.New64a()
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, e.Device)) // it never fails
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(e.Time.UnixMilli())))
	_, _ = h.Write(e.Data)
	return fmt.Sprintf("%s-e%d-%016x", instance, e.Seq, h.Sum64())
}

// post makes one request with n events.
func (c *HTTPCollector) post(ctx context.Context, key string, body []byte, n int) ([]Verdict, *Failure) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errTimeout)
	defer cancel()
	req, err := c.request(ctx, key, body)
	if err != nil {
		return nil, &Failure{Code: "no_answer", Err: publicError(err)}
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, c.unanswered(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusSwitchingProtocols { // its body is the connection, which no deadline ends
		return readAnswer(resp.StatusCode, resp.Header, nil, n, time.Now())
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // to its end, or the connection cannot be used again
	if err != nil && resp.StatusCode/100 == 2 {
		return nil, c.unanswered(ctx, err) // what became of each event was in the part that is missing
	}
	return readAnswer(resp.StatusCode, resp.Header, text, n, time.Now())
}

func (c *HTTPCollector) request(ctx context.Context, key string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.address.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", userAgent)
	maps.Copy(req.Header, c.header)
	if host := req.Header.Get("Host"); host != "" {
		req.Header.Del("Host")
		req.Host = host
	}
	if c.user != nil && req.Header.Get("Authorization") == "" {
		password, _ := c.user.Password()
		req.SetBasicAuth(c.user.Username(), password)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	req.Header.Set(headerLoop, loopID(key))
	return req, nil
}

// unanswered is the failure of a request without a whole answer.
func (c *HTTPCollector) unanswered(ctx context.Context, err error) *Failure {
	if errors.Is(context.Cause(ctx), errTimeout) {
		return &Failure{Suspect: true, Code: "timeout", Err: fmt.Errorf("no answer within %s", c.timeout)}
	}
	return &Failure{Suspect: true, Code: "no_answer", Err: publicError(err)}
}

// publicError takes the address out of a client error: it may hold what only the operator should read.
func publicError(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it hung up in the middle of a request")
	}
	return err
}

func arrayOf(events []Record) []byte {
	size := 1 + len(events)
	for i := range events {
		size += len(events[i].Data)
	}
	array := append(make([]byte, 0, size), '[')
	for i := range events {
		if i > 0 {
			array = append(array, ',')
		}
		array = append(array, events[i].Data...)
	}
	return append(array, ']')
}
