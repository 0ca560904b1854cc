package stats

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Codes of collectors that are looked for (protocol 4.2, 4.3).
const (
	codeUnknownApp    = "on_premise_app" // or its plan is unpaid, or the collector could not look it up
	codeProcessing    = "processing_error"
	codeUnknown       = "unknown_error"
	codeBlocked       = "provider_infrastructure_request_blocked" // our address is one of a data centre
	codeRateLimited   = "too_many_requests"
	codeMisconfigured = "server_misconfigured" // of capgo-update-lite
	codeError         = "error"                // ours, where a collector gives none
	codeBroken        = "broken_answer"        // ours
)

// maxRetryAfter bounds what is obeyed of a Retry-After. A mistaken one (a date in another year, milliseconds for seconds)
// would end delivery for good, while a collector that means more than an hour pays with one request an hour.
const maxRetryAfter = time.Hour

// maxMessage bounds what is kept of a collector's message, in bytes.
const maxMessage = 300

// collectorAnswer is the body of an answer. What has another type than expected is left out.
type collectorAnswer struct {
	Error    any           `json:"error"`
	Message  any           `json:"message"`
	Status   any           `json:"status"`
	OK       any           `json:"ok"`
	Success  any           `json:"success"`
	Errors   any           `json:"errors"`
	Results  resultsAnswer `json:"results"`
	MoreInfo struct {
		AppID any `json:"app_id"`
		waitAnswer
	} `json:"moreInfo"`
	waitAnswer
}

type resultAnswer struct {
	Status  any  `json:"status"`
	Error   any  `json:"error"`
	Message any  `json:"message"`
	Index   *int `json:"index"`
}

// waitAnswer is how a body tells to wait (protocol 1.8).
type waitAnswer struct {
	RetryAfterSeconds float64 `json:"retryAfterSeconds"`
	RateLimitResetAt  float64 `json:"rateLimitResetAt"` // milliseconds since 1970
}

// readAnswer judges the answer to a request with n events.
func readAnswer(status int, header http.Header, body []byte, n int, now time.Time) ([]Verdict, *Failure) {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))) // a byte order mark (RFC 8259, section 8.1)
	var answer collectorAnswer
	isJSON := answer.read(body)
	code, message := codeOf(answer.Error, answer.Message)
	taken := status/100 == 2
	if taken {
		if failure := unread(header, body, isJSON, &answer); failure != nil {
			return nil, failure
		}
		if len(answer.Results.items) > 0 {
			return readResults(&answer.Results, n)
		}
		if code == "" && answer.denies(body) {
			code = codeError
		}
		if code == "" {
			return allOf(n, Verdict{Fate: Delivered}), nil
		}
	}
	return refusalOf(status, header, &answer, code, message, n, now)
}

// refusalOf judges an answer that says no.
func refusalOf(
	status int, header http.Header, answer *collectorAnswer, code, message string, n int, now time.Time,
) ([]Verdict, *Failure) {
	taken := status/100 == 2
	failure := judgeStatus(status)
	if taken {
		failure = &Failure{Scope: ScopeContent, Whole: !namesEvent(code), Err: errors.New("it refuses the batch")}
	}
	judgeCode(failure, code, answer.MoreInfo.AppID != nil, taken && n > 1)
	if failure.Code = code; code == "" {
		failure.Code = "status_" + strconv.Itoa(status)
	} else {
		failure.Err = fmt.Errorf("%w (code %s)", failure.Err, code)
	}
	failure.Message, failure.status = message, status
	failure.RetryAfter = retryAfter(header, answer, now)
	if failure.RetryAfter > 0 {
		failure.Suspect = false // it knows what it does
	}
	switch {
	case taken && failure.Scope == ScopeContent && n == 1:
		return []Verdict{failure.verdict()}, nil
	case taken && failure.Scope != ScopeContent:
		// It was answered, so the same events are another request, with another key: a collector that keeps answers by
		// their key would give the same answer for ever.
		return make([]Verdict, n), failure
	}
	return nil, failure
}

// judgeStatus is what a status means when the body says nothing.
func judgeStatus(status int) *Failure {
	said := fmt.Sprintf("it answers status %d", status)
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return &Failure{Err: errors.New(said + ": it does not accept this edge; correct the header with its key, or its address")}
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone, http.StatusNotAcceptable,
		http.StatusUnsupportedMediaType, http.StatusLengthRequired, http.StatusRequestURITooLong,
		http.StatusMisdirectedRequest, http.StatusUpgradeRequired:
		return &Failure{Err: errors.New(said + ": no collector takes events there; correct its address")}
	case http.StatusTooManyRequests:
		return &Failure{Err: errors.New(said + ": it limits the rate of requests")}
	case http.StatusPaymentRequired, http.StatusRequestTimeout, http.StatusPreconditionFailed, http.StatusLocked,
		http.StatusFailedDependency, http.StatusTooEarly, http.StatusPreconditionRequired,
		http.StatusRequestHeaderFieldsTooLarge, http.StatusUnavailableForLegalReasons:
		return &Failure{Err: errors.New(said + ", which is not about the events; ask its operator, or correct header and address")}
	case http.StatusLoopDetected: // see Forwarder.Looped
		return &Failure{Err: errors.New(said + ": its address leads back to an edge, which has these events already; " +
			"set it to the collector itself")}
	case http.StatusConflict: // what a collector says to a key whose first request it still works on
		return &Failure{Suspect: true, Err: errors.New(said)}
	case http.StatusRequestEntityTooLarge:
		return &Failure{Scope: ScopeContent, Whole: true, TooLarge: true, Err: errors.New(said)}
	}
	switch status / 100 {
	case 1:
		return &Failure{Err: errors.New(said + ", which speaks another protocol; correct its address")}
	case 3:
		return &Failure{Err: errors.New(said + ": it redirects elsewhere, or with a status that drops the events; " +
			"set its address to where it redirects to")}
	case 4:
		return &Failure{Scope: ScopeContent, Whole: true, Err: errors.New(said)}
	}
	return &Failure{Suspect: true, Err: errors.New(said)}
}

// judgeCode corrects by the code of a body what the status said. several: more than one event, under a status 2xx.
func judgeCode(f *Failure, code string, namesApp, several bool) {
	switch code {
	case codeUnknownApp:
		f.Scope, f.Suspect = ScopeApp, false
	case codeBlocked:
		f.Scope, f.Suspect = ScopeCollector, false
		f.Err = errors.New("it refuses requests from data centres; have its operator allow this edge's address")
	case codeMisconfigured:
		f.Scope, f.Suspect = ScopeCollector, false
	case codeRateLimited:
		if f.Scope, f.Suspect = ScopeCollector, false; namesApp {
			f.Scope = ScopeApp
		}
	case codeProcessing, codeUnknown:
		if several { // one event may be the cause, or the collector's database
			f.Scope, f.Suspect = ScopeApp, true
		}
	}
}

// verdict is that of a single event whose request failed by its content.
func (f *Failure) verdict() Verdict {
	v := verdictOf(f.Code, f.Message)
	v.Whole = f.Whole && v.Fate == Dead
	return v
}

// namesEvent reports that a code says what is wrong with an event, so that whoever answers has read it and is a collector, even
// if the code is all of its answer (protocol 4.2, 4.3, 7). Anyone can have such codes answered, with made-up events.
func namesEvent(code string) bool {
	switch code {
	case "invalid_app_id", "invalid_json_body", "invalid_version_build", "missing_device_id", "mixed_app_ids", "semver_error",
		"version_not_found":
		return true
	}
	return false
}

// verdictOf is that of an event with an error code. A code that nobody knows is final: a dead letter can be sent again, while
// an event that is tried for ever cannot be stopped.
func verdictOf(code, message string) Verdict {
	v := Verdict{Fate: Dead, Code: code, Message: message}
	switch code {
	case codeUnknownApp, codeProcessing, codeUnknown, codeBlocked:
		v.Fate = Keep
	}
	return v
}

// readResults reads the results of the events, each of which says whose it is by its index or its place (see
// [resultsAnswer.namesEach]); those of a single event are its own. An event without one is delivered, and of several the first
// that says no holds. While any says no, one that is of no event may be that of an event which would be taken for delivered: such
// an answer is broken. If none does, whose they are does not matter: there may be one for all.
func readResults(results *resultsAnswer, n int) ([]Verdict, *Failure) {
	verdicts := allOf(n, Verdict{Fate: Delivered})
	codes := map[string]int{}
	stray, refused := !results.namesEach(n), false
	for i, r := range results.items {
		if r.Index != nil {
			i = *r.Index
		}
		code, message := r.refusal()
		refused = refused || code != ""
		if n == 1 {
			i = 0
		}
		switch {
		case i < 0 || i >= n:
			stray = true
		case code != "" && verdicts[i].Fate == Delivered:
			verdicts[i] = verdictOf(code, message)
			codes[code]++
		}
	}
	if stray && refused {
		return nil, brokenAnswer("it refuses events, and its results do not say which event they are of",
			"; correct its `index`, which counts from 0")
	}
	switch n {
	case codes[codeUnknownApp]:
		return make([]Verdict, n), &Failure{Scope: ScopeApp, Code: codeUnknownApp, Err: errors.New("it does not know the app")}
	case codes[codeBlocked]:
		f := &Failure{Code: codeBlocked}
		judgeCode(f, codeBlocked, false, false)
		return make([]Verdict, n), f
	}
	return verdicts, nil
}

// refusal is the code and the message of a result that says no. The code is empty if it does not.
func (r *resultAnswer) refusal() (code, message string) {
	if code, message = codeOf(r.Error, r.Message); code == "" && saysNo(r.Status) {
		code = codeError
	}
	return code, message
}

func allOf(n int, v Verdict) []Verdict {
	all := make([]Verdict, n)
	for i := range all {
		all[i] = v
	}
	return all
}

var codeName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// codeOf reads the code and the message of an error; the code is empty if there is no error. Some servers have a text where
// others have a code.
func codeOf(code, message any) (string, string) {
	text, _ := message.(string)
	text = strings.ToValidUTF8(text[:min(len(text), maxMessage)], "")
	switch v := code.(type) {
	case nil:
		return "", text
	case bool:
		if !v {
			return "", text
		}
	case string:
		if v == "" || codeName.MatchString(v) {
			return v, text
		}
		if text == "" {
			text = strings.ToValidUTF8(v[:min(len(v), maxMessage)], "")
		}
	}
	return codeError, text
}

// retryAfter reads how long to wait: from the header, in seconds or as a date, else from the body.
func retryAfter(header http.Header, answer *collectorAnswer, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if s, err := strconv.ParseFloat(value, 64); err == nil {
		return boundWait(s)
	}
	if t, err := http.ParseTime(value); err == nil {
		return boundWait(t.Sub(now).Seconds())
	}
	for _, w := range []waitAnswer{answer.MoreInfo.waitAnswer, answer.waitAnswer} {
		if w.RetryAfterSeconds > 0 {
			return boundWait(w.RetryAfterSeconds)
		}
		if w.RateLimitResetAt > 0 {
			return boundWait(w.RateLimitResetAt/1000 - float64(now.UnixMilli())/1000)
		}
	}
	return 0
}

func boundWait(seconds float64) time.Duration {
	if math.IsNaN(seconds) || seconds <= 0 {
		return 0
	}
	return time.Duration(min(seconds, maxRetryAfter.Seconds()) * float64(time.Second))
}
