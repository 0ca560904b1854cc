package caddymodule

import (
	"time"

	"github.com/capgo-edge/capgo-edge/origin/upstream"
)

// upstreamStatus is what GET /capgo_edge/status tells of one upstream.
type upstreamStatus struct {
	Upstream string `json:"upstream"`
	// Healthy is false while it is not asked because it fails; Error says why, Since when that began, and Next when it is tried
	// again.
	Healthy  bool       `json:"healthy"`
	Error    string     `json:"error,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	Next     *time.Time `json:"next,omitempty"`
	Requests uint64     `json:"requests"` // since the start
	Failures uint64     `json:"failures"`
}

// upstreamStatus tells of the upstreams that sites have, each once.
func (r *runtime) upstreamStatus() []upstreamStatus {
	var all []upstreamStatus
	for _, l := range r.relays() {
		for _, h := range l.group.Health() {
			all = append(all, upstreamStatus{
				Upstream: h.Upstream, Healthy: h.State == upstream.Closed, Error: h.Error,
				Since: timeOrNone(h.Since), Next: timeOrNone(h.Next), Requests: h.Requests, Failures: h.Failures,
			})
		}
	}
	return all
}
