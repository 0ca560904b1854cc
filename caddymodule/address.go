package caddymodule

import (
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// publicBase is the address phones reach this site at, to which paths of objects are appended: public_url, or what the
// request tells (contract section 3).
func (h *Handler) publicBase(r *http.Request) string {
	if h.PublicURL != "" {
		return h.PublicURL
	}
	scheme, host := "https://", r.Host
	if r.TLS == nil {
		scheme = "http://"
	}
	if trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool); trusted {
		switch firstOf(r.Header.Get("X-Forwarded-Proto")) {
		case "https":
			scheme = "https://"
		case "http":
			scheme = "http://"
		}
		if forwarded := firstOf(r.Header.Get("X-Forwarded-Host")); isHost(forwarded) {
			host = forwarded
		}
	}
	if !isHost(host) {
		host = "localhost"
	}
	return scheme + host + strippedPrefix(r)
}

// firstOf is the first element of a list in a header: the one the phone's own request made.
func firstOf(list string) string {
	first, _, _ := strings.Cut(list, ",")
	return strings.TrimSpace(first)
}

// isHost reports whether s may stand as a host and port, in an address and in JSON as it is.
func isHost(s string) bool {
	if s == "" || len(s) > 255+6 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '.', c == '-', c == '_', c == ':', c == '[', c == ']':
		default:
			return false
		}
	}
	return true
}

// withoutSecrets is an address as an error may show it: without user, password, query and fragment, of which each may be a
// secret that somebody wrote down. It works on text, because what is shown in errors is often no URL.
func withoutSecrets(address string) string {
	scheme, rest, found := strings.Cut(address, "://")
	if found {
		scheme += "://"
	} else {
		scheme, rest = "", address
	}
	at, end := strings.LastIndexByte(rest, '@'), strings.IndexAny(rest, "?#")
	switch {
	case at >= 0 && end >= 0 && end < at: // a query with @, or a password with ? that should have been escaped
		return scheme + "xxxxx"
	case end >= 0:
		rest = rest[:end]
	}
	if at >= 0 {
		rest = "xxxxx" + rest[at:]
	}
	return scheme + rest
}

// strippedPrefix is what handle_path or "uri strip_prefix" took off the path before it came here.
func strippedPrefix(r *http.Request) string {
	original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if !ok || original.URL == nil || len(original.URL.Path) == len(r.URL.Path) {
		return ""
	}
	prefix, ok := strings.CutSuffix(original.URL.EscapedPath(), r.URL.EscapedPath())
	if !ok || strings.ContainsAny(prefix, `"\`) {
		return ""
	}
	return strings.TrimSuffix(prefix, "/")
}
