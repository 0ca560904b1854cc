package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// collectorHeaders are those of requests to a collector that are not the operator's to set.
var collectorHeaders = []string{
	"Accept-Encoding", "Cdn-Loop", "Connection", "Content-Length", "Content-Type", "Host", "Idempotency-Key", "Transfer-Encoding",
}

// originHeaders are those of requests to a web server that is an origin, likewise.
var originHeaders = []string{
	"Accept-Encoding", "Connection", "Content-Length", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range",
	"If-Unmodified-Since", "Range", "Transfer-Encoding",
}

// checkHeaderNames judges the names of headers that an operator has sent, of which some are not theirs to set.
func checkHeaderNames(headers http.Header, reserved []string) error {
	for name := range headers {
		if !isToken(name) {
			return fmt.Errorf("header: %q is not a name of a header: it has letters, digits and !#$%%&'*+-.^_`|~ only", name)
		}
		if slices.Contains(reserved, http.CanonicalHeaderKey(name)) {
			return fmt.Errorf("header: %s is set by the edge itself; leave it out", name)
		}
	}
	return nil
}

// checkHeaderValues judges values that have no placeholders any more. They may be secret, so the error does not show them.
func checkHeaderValues(headers http.Header) error {
	for name, values := range headers {
		if slices.ContainsFunc(values, func(value string) bool { return !isFieldValue(value) }) {
			return errors.New("header " + name + ": its value holds a control character, such as a line break; " +
				"look at the variable or file that it comes from")
		}
	}
	return nil
}

// isToken reports whether s is a token (RFC 9110 section 5.6.2), as the names of headers are.
func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// isFieldValue reports whether s can be the value of a header (RFC 9110 section 5.5).
func isFieldValue(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) < 0
}

// differentHeaders names the headers that are not the same in both, in alphabetical order.
func differentHeaders(a, b http.Header) []string {
	names := map[string]struct{}{}
	for _, headers := range []http.Header{a, b} {
		for name := range headers {
			if !slices.Equal(a[name], b[name]) {
				names[name] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}
