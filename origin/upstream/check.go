package upstream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"
)

// Budget is how long a check may take, over all servers together (protocol 8: 3 s). Clients give up after 10 s or 20 s.
const Budget = 3 * time.Second

// leastShare is the time without which a server is not asked: too little to blame it for not answering in.
const leastShare = 50 * time.Millisecond

// maxAnswer is the size of the largest answer to a check: a delta list has some 300 bytes a file.
const maxAnswer = 8 << 20

// smallBody is how much of an error page is read: to see its code, and to keep the connection.
const smallBody = 16 << 10

// Question is a check that a server is asked. It is not changed, and not to be changed before the answer is there.
type Question struct {
	// Body is the check, as the client sent it or would have.
	Body []byte
	// Query is the raw query of the client's request. It is appended to the server's /updates address; mostly empty.
	Query string
	// Client is who asks.
	Client Client
	// Stranger says that nothing is known of the app. Anybody can make one up, and some servers fail for each that they do not
	// have; so an answer of no use is no sign of an outage then. See ErrAnswered.
	Stranger bool
}

// Client is who sent a check.
type Client struct {
	// Address is the client's, as far as Caddy trusts the proxies before it. It is told to the server, which counts
	// unknown apps by it (protocol 1.5, row 5b); without one, it counts the edge's own.
	Address netip.Addr
	// UserAgent is the client's, as it sent it. Empty: none is sent.
	UserAgent string
}

// Answer is what a server says to a check. It is not to be changed.
type Answer struct {
	Status int         // below 500
	Header http.Header // Content-Type, Retry-After, X-RateLimit-Reset and X-Worker-Source, if they are there
	Body   []byte      // a JSON document if Status is 200; else anything, also nothing
	// Upstream is the base address of the server that said it.
	Upstream string
	// Refused says that the server does not know the app: on_premise_app with any status, or a 429 with nothing in it. Of an
	// Answer that a Group returns, that all its servers said so just now. A failed database read looks the same (protocol 1.5,
	// row 5c).
	Refused bool

	blocked bool // it refuses the address that asks, the edge's own (protocol 1.5, rows 4 and 6)
}

// throttled reports an answer that says nothing of the app: it speaks of this moment, or of the address that asks.
func (a *Answer) throttled() bool {
	return a.blocked || a.Status == http.StatusTooManyRequests && !a.Refused
}

// answerHeader are the headers that an answer keeps.
var answerHeader = []string{"Content-Type", "Retry-After", "X-Ratelimit-Reset", "X-Worker-Source"}

// Check asks for an update. The servers are asked in order, until one answers; one that closes a kept connection meanwhile is
// asked again, for a check changes nothing there. A refusal holds if all of them refuse; it is contradicted by any other
// answer. Any other 429, and a refusal of the edge's own address, is returned if no server says more than that, or than an
// unconfirmed refusal.
//
// An error is an outage: no server gave an answer that can be believed. It wraps what went wrong with each, so ErrOpen,
// ErrBusy, ErrAnswered, ErrUnknown or ErrUnconfirmed among others, also several of them; if ctx ended, it is the cause of that.
func (g *Group) Check(ctx context.Context, q *Question) (*Answer, error) {
	deadline := time.Now().Add(Budget)
	var refusal, throttled *Answer
	var failures error
	for i, s := range g.servers {
		answer, err := s.check(ctx, g.share(i, deadline), q)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			failures = join(failures, s.failure(err))
		case answer.throttled():
			throttled = cmp.Or(throttled, answer)
		case answer.Refused:
			refusal = cmp.Or(refusal, answer)
		default:
			return answer, nil
		}
	}
	switch {
	case throttled != nil:
		return throttled, nil
	case failures == nil:
		return refusal, nil
	case refusal != nil:
		return nil, fmt.Errorf("%w: %s refuses the app, but %w", ErrUnconfirmed, refusal.Upstream, failures)
	}
	return nil, failures
}

// share is the time for server i: what is left, divided by the servers that remain to be asked. So one that hangs leaves
// time for those behind it.
func (g *Group) share(i int, deadline time.Time) time.Duration {
	remaining, now := 1, time.Now()
	for _, s := range g.servers[i+1:] {
		if s.breaker.answers(now) {
			remaining++
		}
	}
	return deadline.Sub(now) / time.Duration(remaining)
}

func (s *server) check(ctx context.Context, share time.Duration, q *Question) (*Answer, error) {
	if share < leastShare {
		return nil, errNoTime
	}
	within, cancel := context.WithTimeoutCause(ctx, share, errTimeout)
	defer cancel()
	v, err := s.enter(within, s.checks, share)
	if err != nil {
		return nil, err
	}
	defer v.leave()
	answer, err := s.ask(within, q)
	switch {
	case err == nil:
		v.answered()
	case ctx.Err() != nil: // the caller's doing
		v.abandoned()
	case errors.Is(err, ErrUnknown), q.Stranger && errors.Is(err, ErrAnswered):
		v.undecided()
	default:
		if errors.Is(context.Cause(within), errTimeout) {
			err = fmt.Errorf("no answer within %s", share.Round(time.Millisecond))
		}
		v.failed(err)
	}
	return answer, err
}

// ask sends the check. The answer must not depend on how this client reached the edge, for it is given to others too: hence
// no X-Forwarded-Host and no X-Forwarded-Proto, from which some servers make download addresses.
func (s *server) ask(ctx context.Context, q *Question) (*Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.name, bytes.NewReader(q.Body))
	if err != nil {
		return nil, publicError(err)
	}
	req.URL = s.address("/updates", q.Query) // which is not parsed again: a query may be anything
	// net/http then sends it again if a kept connection turns out to be closed, as it would a GET. It does not send the header.
	req.Header["Idempotency-Key"] = []string{}
	repeatSeldom(req)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", q.Client.UserAgent) // net/http sends none if it is empty
	setAddress(req.Header, q.Client.Address)
	s.authorize(req)
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, publicError(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	if resp.StatusCode >= http.StatusInternalServerError {
		return nil, failedAnswer(resp)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, publicError(err)
	}
	return s.judge(resp, text)
}

// repeatSeldom lets net/http send a request again for each redirect and once more, but not over each kept connection: the server
// may be hanging up on this very request.
func repeatSeldom(req *http.Request) {
	body, left := req.GetBody, maxRedirects+1
	req.GetBody = func() (io.ReadCloser, error) {
		if left--; left < 0 {
			return nil, errHungUp
		}
		return body()
	}
}

var errHungUp = errors.New("it hung up without an answer, each time it was asked")

// judge makes an Answer of what came. Whatever has a status below 500 is one (protocol 8), save what no client can read: a
// 200 that is not JSON is a gateway's page, not the server's answer.
func (s *server) judge(resp *http.Response, text []byte) (*Answer, error) {
	switch {
	case len(text) > maxAnswer:
		return nil, fmt.Errorf("%w: it is larger than %d MiB", ErrAnswered, maxAnswer>>20)
	case resp.StatusCode == http.StatusOK && len(bytes.TrimSpace(text)) == 0:
		return nil, fmt.Errorf("%w: status 200 with nothing in it", ErrAnswered)
	case resp.StatusCode == http.StatusOK && !json.Valid(text):
		return nil, fmt.Errorf("%w: status 200 with what is not JSON; is the address that of a Capgo-compatible server?", ErrAnswered)
	}
	a := &Answer{Status: resp.StatusCode, Header: http.Header{}, Body: text, Upstream: s.name}
	for _, name := range answerHeader {
		if values := resp.Header[name]; len(values) > 0 {
			a.Header[name] = values
		}
	}
	nothing := len(bytes.TrimSpace(text)) == 0
	a.Refused = hasCode(text, "on_premise_app") || nothing && a.Status == http.StatusTooManyRequests
	a.blocked = hasCode(text, "provider_infrastructure_request_blocked")
	return a, nil
}

// hasCode reports whether an answer has a code, with whatever status: servers of another make have one for all errors
// (protocol 7). An offer is not parsed for it: hardly any has the word in it.
func hasCode(text []byte, code string) bool {
	return bytes.Contains(text, []byte(code)) && codeOf(text) == code
}

// codeOf is the "error" of a JSON object; nil if there is none.
func codeOf(text []byte) any {
	var said struct {
		Error any `json:"error"`
	}
	if json.Unmarshal(text, &said) != nil {
		return nil
	}
	return said.Error
}

// failedAnswer is what a status of 500 and above comes to. A 500 is what a server says whose code fails for a request (RFC
// 9110, section 15.6.1); whatever stands above it speaks of the server: those of gateways whose server is down (502, 503, 504,
// Cloudflare's 520 to 530), and those that a server has for a state of its own (507 and others).
func failedAnswer(resp *http.Response) error {
	err := fmt.Errorf("it answers status %d", resp.StatusCode)
	if resp.StatusCode == http.StatusInternalServerError {
		err = fmt.Errorf("%w: %w", err, ErrAnswered)
	}
	if resp.ContentLength > smallBody {
		return err
	}
	text, unread := io.ReadAll(io.LimitReader(resp.Body, smallBody))
	if unread == nil && codeOf(text) == "unknown_error" {
		return fmt.Errorf("%w, %w", err, ErrUnknown)
	}
	return err
}

// ErrAnswered: the server itself has answered, so that it has seen and counted the check, but nothing in it is of use: it
// failed with status 500, or sent a 200 that no client can read, or too much. For a Stranger's [Question] this is no sign of an
// outage; for any other it is, save with ErrUnknown.
var ErrAnswered = errors.New("an answer of no use")

// ErrUnknown: the official server answers so where its code for this body or app fails, such as for a bundle whose name is
// not semver (protocol 1.5). The caller has no answer, but the server works, and may well have one for everybody else. With
// the 500 that the official server sends, the error is ErrAnswered, too.
var ErrUnknown = errors.New("unknown_error: it may be this app or request alone that it fails for")

// errNoTime: the servers before it took all there was.
var errNoTime = errors.New("no time was left to ask it")
