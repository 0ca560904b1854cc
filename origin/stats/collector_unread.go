package stats

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPlainAnswer bounds, in bytes, what is believed to be an acknowledgement in plain text.
const maxPlainAnswer = 64

// unread is the failure of an answer with status 2xx that does not tell whether the events were taken: a page of whoever stands
// between (a captive portal, a login, a firewall), or results that are cut off. Nil: it tells. Such a batch is sent again under
// its key, as the collector may have taken it. It is suspect, as a firewall may object to this batch alone.
//
// The body decides and not its type: PHP sends JSON as text/html, and Express the text "ok".
func unread(header http.Header, body []byte, isJSON bool, answer *collectorAnswer) *Failure {
	body = bytes.TrimSpace(body)
	kind, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		kind = "of no known type"
	}
	switch {
	case isJSON && answer.Results.unread, !isJSON && bytes.IndexAny(body, "{[") == 0:
		return &Failure{Suspect: true, Code: "broken_answer", Err: errors.New("it answers with JSON that is cut off or cannot be " +
			"understood, so what became of the events is not known; they are sent again under the same key")}
	case isJSON, len(body) == 0, kind != "text/html" && isPlain(body), strings.EqualFold(string(body), "ok"):
		return nil
	}
	return &Failure{Suspect: true, Code: "foreign_answer", Err: fmt.Errorf(
		"it answers with something that is no statistics answer (%s): is this the right address?", kind)}
}

// isPlain reports whether a text may be an acknowledgement: a short line without markup.
func isPlain(text []byte) bool {
	return len(text) <= maxPlainAnswer && utf8.Valid(text) && !bytes.ContainsFunc(text, func(r rune) bool {
		return r == '<' || !unicode.IsPrint(r)
	})
}

// denies reports that an answer in JSON says no, though it has no code for it.
func (a *collectorAnswer) denies() bool {
	status, _ := a.Status.(string)
	return strings.EqualFold(status, "error") || a.OK == false || a.Success == false
}

// resultsAnswer are the results of the events. What is no array says nothing of them, like none at all.
type resultsAnswer struct {
	items  []resultAnswer
	unread bool // it is an array, but not of results
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *resultsAnswer) UnmarshalJSON(data []byte) error {
	if data[0] == '[' {
		r.unread = json.Unmarshal(data, &r.items) != nil
	}
	return nil
}
