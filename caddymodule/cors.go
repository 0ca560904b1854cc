package caddymodule

import (
	"net/http"
	"net/url"
	"slices"
)

// What web pages may send, and may read of an answer: ranges and digests, beside the usual.
var (
	corsMethods = []string{"GET, HEAD, POST, PUT, DELETE, OPTIONS"}
	corsHeaders = []string{"Content-Type, Range, If-Range, If-None-Match, If-Modified-Since"}
	corsExposed = []string{"Content-Length, Content-Range, Accept-Ranges, ETag, Repr-Digest, Cache-Status, Content-Disposition, Retry-After"}
	corsMaxAge  = []string{"86400"}
)

// allowOrigin lets the web views of Capacitor and Ionic read the answer (protocol 1.1), and the pages the operator named.
// No credentials are ever allowed: nothing here needs any.
func (h *Handler) allowOrigin(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	o := r.Header["Origin"]
	if len(o) == 0 && r.Method == http.MethodPost {
		return // a phone's own client; no cache keeps what is answered to a POST, so it needs no Vary
	}
	if header["Vary"] == nil {
		header["Vary"] = varyOrigin
	} else {
		header.Add("Vary", "Origin")
	}
	if len(o) == 0 || !isWebView(o[0]) && !slices.Contains(h.Bundles.CORS, o[0]) {
		return
	}
	header["Access-Control-Allow-Origin"] = []string{o[0]}
	header["Access-Control-Expose-Headers"] = corsExposed
}

// isWebView reports whether o is an origin that a web view in an app has: localhost, at any port.
func isWebView(o string) bool {
	u, err := url.Parse(o)
	if err != nil || u.Hostname() != "localhost" || u.User != nil || u.Path != "" {
		return false
	}
	switch u.Scheme {
	case "capacitor", "ionic", "http", "https":
		return true
	}
	return false
}

// servePreflight answers OPTIONS on any of our paths. Whether the origin may go on was decided by allowOrigin.
func (h *Handler) servePreflight(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	if header["Access-Control-Allow-Origin"] != nil && r.Header.Get("Access-Control-Request-Method") != "" {
		header["Access-Control-Allow-Methods"] = corsMethods
		header["Access-Control-Allow-Headers"] = corsHeaders
		header["Access-Control-Max-Age"] = corsMaxAge
	}
	header["Allow"] = corsMethods
	w.WriteHeader(http.StatusNoContent)
}
