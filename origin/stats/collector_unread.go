package stats

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPlainAnswer bounds, in bytes, what is believed to be an acknowledgement in plain text.
const maxPlainAnswer = 64

// read reads a body, and reports that it is JSON. A member of another type than expected is left out by itself. An array is one
// of results.
func (a *collectorAnswer) read(body []byte) (isJSON bool) {
	if bytes.HasPrefix(body, []byte("[")) {
		return json.Unmarshal(body, &a.Results) == nil
	}
	err := json.Unmarshal(body, a)
	_, mistyped := errors.AsType[*json.UnmarshalTypeError](err)
	return err == nil || mistyped
}

// unread is the failure of an answer with status 2xx that does not tell whether the events were taken: a page of whoever stands
// between (a captive portal, a login, a firewall), or results that are cut off. Nil: it tells. Such a batch is sent again under its
// key, as the collector may have taken it. It is suspect, as a firewall may object to this batch alone.
//
// The body decides and not its type: PHP sends JSON as text/html, and Express the text "ok".
func unread(header http.Header, body []byte, isJSON bool, answer *collectorAnswer) *Failure {
	kind, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		kind = "of no known type"
	}
	known := false
	switch {
	case len(body) == 0:
		known = true
	case body[0] == '[' && isJSON && answer.Results.unread: // of something else
	case !isJSON && bytes.IndexAny(body, "{[") == 0, isJSON && answer.Results.unread:
		return brokenAnswer("it answers with JSON that is cut off or cannot be understood", "")
	case isJSON:
		known = body[0] == '{' || body[0] == '[' || isYes(body)
	default:
		known = kind != "text/html" && isPlain(body) || strings.EqualFold(string(body), "ok")
	}
	if known {
		return nil
	}
	return &Failure{Suspect: true, Code: "foreign_answer", Err: fmt.Errorf(
		"it answers with something that is no statistics answer (%s): is this the right address?", kind)}
}

func brokenAnswer(what, remedy string) *Failure {
	return &Failure{Suspect: true, Code: codeBroken, Err: errors.New(what +
		", so what became of the events is not known; they are sent again under the same key" + remedy)}
}

// isYes reports whether a JSON value that holds no others may be an acknowledgement. A string is what it would be in plain text; a
// number counts events.
func isYes(value []byte) bool {
	var v any
	if json.Unmarshal(value, &v) != nil { // a number that is too large
		return false
	}
	if text, ok := v.(string); ok {
		return isPlain([]byte(text))
	}
	return v != false && v != float64(0)
}

// isPlain reports whether a text may be an acknowledgement: a short line without markup.
func isPlain(text []byte) bool {
	return len(text) <= maxPlainAnswer && utf8.Valid(text) && !bytes.ContainsFunc(text, func(r rune) bool {
		return r == '<' || !unicode.IsPrint(r)
	})
}

// denies reports that an answer in JSON says no, though it has no code for it. Errors beside anything that may tell of success,
// such as how many events were accepted, are of some events or are warnings: they have the status to believe.
func (a *collectorAnswer) denies(body []byte) bool {
	if a.Status != nil || a.OK != nil || a.Success != nil {
		return saysNo(a.Status) || a.OK == false || a.Success == false
	}
	return isFilled(a.Errors) && hasErrorsAlone(body)
}

// hasErrorsAlone reports that an object has no other members than those of an answer that failed as a whole: errors, data that is
// null and extensions (GraphQL, section 7.1), and a message.
func hasErrorsAlone(body []byte) bool {
	var members map[string]any
	if json.Unmarshal(body, &members) != nil {
		return false
	}
	for name, value := range members {
		switch strings.ToLower(name) {
		case "errors", "extensions", "message":
		case "data":
			if value != nil {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// saysNo reports that a status is not one of success. Those that nobody knows are.
func saysNo(status any) bool {
	text, _ := status.(string)
	switch strings.ToLower(text) {
	case "error", "fail", "failed", "failure":
		return true
	}
	return false
}

// isFilled reports that a JSON value holds anything.
func isFilled(value any) bool {
	switch v := value.(type) {
	case []any:
		return len(v) > 0
	case map[string]any:
		return len(v) > 0
	default:
		return v != nil && v != false && v != "" && v != float64(0)
	}
}

// resultsAnswer are the results of the events. What is no array says nothing of them, like none at all.
type resultsAnswer struct {
	items  []*resultAnswer // none is nil
	unread bool            // it is an array, but not of results
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *resultsAnswer) UnmarshalJSON(data []byte) error {
	if data[0] == '[' {
		r.unread = json.Unmarshal(data, &r.items) != nil || slices.Contains(r.items, nil)
	}
	return nil
}

// namesEach reports that each result that there is says which of n events it is of.
func (r *resultsAnswer) namesEach(n int) bool {
	return n == 1 || len(r.items) == n || !slices.ContainsFunc(r.items, func(item *resultAnswer) bool { return item.Index == nil })
}
