package management

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"
)

// Options configure a Client.
type Options struct {
	// URL is the address that /channel, /bundle, /device and /app are below.
	URL string
	// Key is the API key. It is sent in the header capgkey, and is part of no error.
	Key string
	// Waiting, if set, is told why the client waits before it asks again, and for how long.
	Waiting func(why error, wait time.Duration)
	// WrapTransport, if set, wraps the transport, for tracing.
	WrapTransport func(http.RoundTripper) http.RoundTripper
}

// Client reads from a management API. Several goroutines may use it.
type Client struct {
	base    *url.URL
	key     string
	waiting func(error, time.Duration)
	http    *http.Client
	pace    *rate.Limiter
}

const (
	// perSecond keeps below the API's limit of 2000 requests a minute and key, of which others want some too.
	perSecond = 20

	// A page that is not to be had is asked for again, so often and so long.
	maxTries = 8
	maxWait  = 5 * time.Minute

	maxAnswer      = 64 << 20
	requestTimeout = time.Minute
)

// New returns a client. It asks nothing yet.
func New(o Options) (*Client, error) {
	base, err := url.Parse(o.URL)
	switch {
	case err != nil:
		return nil, errors.New("the address of the upstream is not a URL") // the parse error repeats it
	case base.Scheme != "http" && base.Scheme != "https" || base.Host == "":
		return nil, errors.New("the address of the upstream must be http(s)://host, perhaps with a path, as https://capgo.example.com/functions/v1")
	case base.RawQuery != "" || base.Fragment != "" || base.User != nil:
		return nil, errors.New("the address of the upstream must have no user, query or fragment")
	case o.Key == "":
		return nil, errors.New("there is no API key")
	case strings.ContainsFunc(o.Key, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("the API key holds blanks or other characters that no key has; perhaps it was not copied whole")
	}
	c := &Client{base: base.JoinPath(), key: o.Key, waiting: o.Waiting, pace: rate.NewLimiter(perSecond, 1)}
	var transport http.RoundTripper = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		ForceAttemptHTTP2:     true,
		IdleConnTimeout:       90 * time.Second,
	}
	if o.WrapTransport != nil {
		transport = o.WrapTransport(transport)
	}
	c.http = &http.Client{Transport: transport, Timeout: requestTimeout, CheckRedirect: c.checkRedirect}
	return c, nil
}

// CloseIdleConnections closes connections that no request uses.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// checkRedirect keeps the key to the server it is meant for.
func (c *Client) checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > 3:
		return errors.New("it redirects more than 3 times")
	case req.URL.Scheme != c.base.Scheme || !strings.EqualFold(req.URL.Host, c.base.Host):
		return fmt.Errorf("it redirects to another host, %s://%s, which must not see the key; name that one as the upstream if it is meant",
			req.URL.Scheme, req.URL.Host)
	}
	return nil
}

// StatusError is an answer other than 200.
type StatusError struct {
	Path    string // as "/channel"
	Status  int
	Code    string // "error" in the answer
	Message string // "message" in the answer
}

// Error implements error. It says what to do, where that is known.
func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s is answered with status %d", e.Path, e.Status)
	if said := strings.TrimSpace(e.Code + " " + e.Message); said != "" {
		text += fmt.Sprintf(" (%.200s)", said)
	}
	switch e.Status {
	case http.StatusBadRequest:
		if e.Code == "cannot_access_app" { // for an app that does not exist, too
			text += "; check --app, and that the key may read it"
		}
	case http.StatusUnauthorized, http.StatusForbidden:
		text += "; check that the API key is right and may read this app"
	case http.StatusNotFound:
		text += "; check the address of the upstream: the management API must be right below it"
	case http.StatusTooManyRequests:
		text += "; the key has used up its requests, try again later"
	}
	return text
}

// get reads one answer. What may pass is tried again.
func (c *Client) get(ctx context.Context, path string, query url.Values) (json.RawMessage, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = time.Second, time.Minute
	raw, err := backoff.Retry(ctx, func() (json.RawMessage, error) { return c.try(ctx, path, query) },
		backoff.WithBackOff(wait), backoff.WithMaxTries(maxTries), backoff.WithMaxElapsedTime(maxWait),
		backoff.WithNotify(func(err error, wait time.Duration) {
			if c.waiting != nil {
				c.waiting(plain(err), wait)
			}
		}))
	if err != nil {
		return nil, plain(err)
	}
	return raw, nil
}

// plain takes away what is said to the backoff only.
func plain(err error) error {
	if status, ok := errors.AsType[*StatusError](err); ok {
		return status
	}
	return err
}

func (c *Client) try(ctx context.Context, path string, query url.Values) (json.RawMessage, error) {
	if err := c.pace.Wait(ctx); err != nil {
		return nil, backoff.Permanent(err)
	}
	address := *c.base.JoinPath(path)
	address.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return nil, backoff.Permanent(err)
	}
	req.Header.Set("Capgkey", c.key)
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s of %s cannot be had: %w", path, c.base.Host, reason(err))
	}
	defer resp.Body.Close() //nolint:errcheck // it was read as far as it is of use
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s of %s broke off: %w", path, c.base.Host, reason(err))
	case len(raw) > maxAnswer:
		return nil, backoff.Permanent(fmt.Errorf("%s of %s is larger than %d bytes", path, c.base.Host, maxAnswer))
	case resp.StatusCode != http.StatusOK:
		return nil, judge(path, resp, raw)
	case !json.Valid(raw):
		return nil, backoff.Permanent(fmt.Errorf("%s of %s is no JSON; check the address of the upstream", path, c.base.Host))
	}
	return raw, nil
}

// reason takes the address out of a client error, which is long and named already.
func reason(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// judge turns an answer into an error, and tells the backoff whether to ask again, and when.
func judge(path string, resp *http.Response, raw []byte) error {
	failed := &StatusError{Path: path, Status: resp.StatusCode}
	var said struct{ Error, Message string }
	if json.Unmarshal(raw, &said) == nil {
		failed.Code, failed.Message = said.Error, said.Message
	}
	switch {
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusServiceUnavailable:
		if wait := retryAfter(resp.Header); wait > 0 {
			return errors.Join(failed, &backoff.RetryAfterError{Duration: wait})
		}
		return failed
	case resp.StatusCode == http.StatusRequestTimeout, resp.StatusCode >= 500:
		return failed
	}
	return backoff.Permanent(failed)
}

// retryAfter is how long the server asks to be left alone, or 0.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil && seconds > 0 {
		return time.Duration(min(seconds, 1<<20)) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	date, err := http.ParseTime(cmp.Or(h.Get("Date"), text))
	if err != nil {
		return 0
	}
	return max(at.Sub(date), 0)
}
