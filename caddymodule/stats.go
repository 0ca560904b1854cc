package caddymodule

import "net/http"

// serveStats answers GET /stats, and refuses events: until this edge can keep them, a friendly answer would lose them. A
// phone that gets 503 keeps its events and tries again (protocol 4.5).
func (h *Handler) serveStats(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		writeJSON(w, http.StatusOK, statusOK)
	case http.MethodPost:
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "This edge takes no statistics; point statsUrl at the server that does")
	default:
		refuseMethod(w, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodOptions)
	}
}

// serveChannelSelf refuses the channel calls, which this edge does not answer yet.
func (h *Handler) serveChannelSelf(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete:
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "This edge does not answer channel calls; point channelUrl at the server that does")
	default:
		refuseMethod(w, http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions)
	}
}
