package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin/upstream"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// inquiry is one check on its way to the upstream, with copies of all that it needs: the request may be over by then.
type inquiry struct {
	*relay
	body   []byte
	check  resolver.Check
	query  string // of the request
	client upstream.Client
	named  bool                                  // the operator has named the app
	reply  atomic.Pointer[cache.Reply[*relayed]] // what the upstream said to the device itself

	derived  atomic.Pointer[relayed] // the device's answer, if it follows from another one; given once
	derives  bool                    // there is one
	customID bool                    // custom_id is in the key

	ambiguous bool // the upstream may read the body otherwise than this edge
}

// inquire makes the inquiry of a request whose answer is kept under the fields of an official server, or of another.
func (l *relay) inquire(r *http.Request, s *scratch, official, named bool) *inquiry {
	i := &inquiry{
		relay: l, body: bytes.Clone(s.body), check: s.check, query: r.URL.RawQuery, client: clientOf(r), named: named,
		customID: l.keyHasCustomID(official),
	}
	i.ambiguous, _ = l.foreign.Ambiguous(i.body)
	return i
}

// clientOf is who a request is from, as far as Caddy trusts the proxies before it.
func clientOf(r *http.Request) upstream.Client {
	text, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	address, _ := netip.ParseAddr(text)
	return upstream.Client{Address: address, UserAgent: r.UserAgent()}
}

// bodyOf is the question as the given device asks it, or would: what the one that asked says of itself besides is not that
// device's, and the upstream might go by it.
func (i *inquiry) bodyOf(device string, like *relayed) []byte {
	switch {
	case device == i.check.DeviceID:
		return i.body
	case like != nil && like.request != nil:
		return resolver.AppendWithDeviceID(nil, like.request, device)
	}
	return resolver.AppendWithDeviceID(nil, i.common(i.body), device)
}

// common is a check without what only the device that sent it has.
func (i *inquiry) common(body []byte) []byte {
	if i.customID {
		return body
	}
	return withoutCustomID(body)
}

func withoutCustomID(body []byte) []byte {
	return resolver.AppendWithCustomID(nil, body, func(string) (string, bool) { return "", false })
}

// ask asks the upstream as the given device. It is a cache.Asker.
func (i *inquiry) ask(ctx context.Context, device string, like *relayed) (cache.Reply[*relayed], error) {
	own := device == i.check.DeviceID
	if own {
		if derived := i.derived.Swap(nil); derived != nil {
			return cache.Reply[*relayed]{Value: derived, Shareable: true}, nil
		}
	}
	body := i.bodyOf(device, like)
	began := time.Now()
	known, _ := i.knows(i.check.AppID)
	answer, err := i.group.Check(ctx, &upstream.Question{Body: body, Query: i.query, Client: i.client, Stranger: !known && !i.named})
	i.runtime.counters.origin(originCheck, time.Since(began), err)
	if err != nil {
		err = outcomeOf(err)
		i.notMet(strings.Join(i.names, " "), err)
		return cache.Reply[*relayed]{}, err
	}
	reply, err := i.read(ctx, answer, device)
	reply.Value.request, reply.Value.queried = i.common(body), i.query != ""
	if i.ambiguous && (reply.Verdict == cache.Keep || reply.Verdict == cache.Pass) {
		reply.Verdict, reply.Shareable = cache.PassAlone, false
	}
	if err == nil && own {
		i.reply.Store(&reply)
	}
	if reply.Value.learned != nil { // what comes from before the server tells nothing of it
		i.sawServer(answer.Upstream, answer.Header.Get("X-Worker-Source") != "")
	}
	return reply, err
}

// outcomeOf says of a failed check whether any server has seen it.
func outcomeOf(err error) error {
	switch {
	case errors.Is(err, upstream.ErrAnswered), errors.Is(err, upstream.ErrUnknown), errors.Is(err, upstream.ErrUnconfirmed):
		return fmt.Errorf("%w: %w", cache.ErrAnswered, err)
	case errors.Is(err, upstream.ErrOpen), errors.Is(err, upstream.ErrBusy):
		return fmt.Errorf("%w: %w", cache.ErrNotAsked, err)
	}
	return err
}

// answered is the error of an upstream that has answered in vain.
func answered(text string) error { return fmt.Errorf("%w: %s", cache.ErrAnswered, text) }

// read says what may be done with an answer.
func (i *inquiry) read(ctx context.Context, answer *upstream.Answer, device string) (cache.Reply[*relayed], error) {
	a := &relayed{
		status: answer.Status, body: answer.Body, server: answer.Upstream,
		kind: answer.Header.Get("Content-Type"), retryAfter: answer.Header.Get("Retry-After"),
	}
	reply := cache.Reply[*relayed]{Value: a, Verdict: cache.PassUnknown}
	parsed := resolver.ParseAnswer(answer.Status, answer.Body)
	switch parsed.Class {
	case resolver.AnswerUnknown:
		if answer.Status/100 == 2 { // some servers say "nothing new" in a way of their own
			reply.Verdict = cache.Pass
		} else {
			i.notMet(a.server, fmt.Errorf("it answers a check with status %d", a.status))
		}
	case resolver.AnswerClientError, resolver.AnswerClasses:
	case resolver.AnswerOutage:
		err := answered("it answers with something that is no answer")
		i.notMet(a.server, err)
		return reply, err
	case resolver.AnswerThrottled: // this edge, or this moment; a phone would fall silent for as long as it is told
		return reply, answered("it has too many requests")
	case resolver.AnswerRefused:
		reply.Verdict, reply.Shareable = cache.Refused, true
	case resolver.AnswerOwnAddress:
		i.runtime.faults.fault("own address "+i.scope, "blocked", "the upstream refuses this edge's own address, as one of a data centre; "+
			"switch block_provider_infra_requests off for the app, or run the edge elsewhere",
			zap.String(fieldAppID, i.check.AppID), zap.String(fieldUpstream, a.server))
		if answer.Status != http.StatusOK { // a phone would take a 429 for its own
			return reply, answered("it refuses this edge's own address")
		}
	case resolver.AnswerOffer, resolver.AnswerNoUpdate:
		i.learn(ctx, a, parsed, i.check.AppID, device)
		if reply = replyOf(a, parsed); device == i.check.DeviceID && !i.ambiguous {
			i.note(a)
		}
	}
	return reply, nil
}

func replyOf(a *relayed, parsed *resolver.Answer) cache.Reply[*relayed] {
	reply := cache.Reply[*relayed]{Value: a, Verdict: cache.Keep, Shareable: !a.learned.NamesDevice}
	if !a.learned.Keep {
		reply.Verdict = cache.Pass
	}
	if parsed.Class == resolver.AnswerOffer {
		reply.Offer = parsed.Version + " " + parsed.Checksum
	}
	if a.learned.Expires > 0 {
		reply.Until = time.Unix(a.learned.Expires, 0)
	}
	return reply
}
