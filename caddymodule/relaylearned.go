package caddymodule

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// learnedAnswer is one line of GET /capgo_edge/learned: a check, and the upstream's answer to it.
type learnedAnswer struct {
	*resolver.Observation
	at time.Time
}

// serveLearned lists what upstreams have answered for an app, as "manifest import --learned" reads it: one JSON object a line,
// the oldest first. People save it and send it around, so it holds no more than the import needs: no device or custom id, and
// nothing of addresses that opens them.
func serveLearned(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet {
		return adminMethod(w, http.MethodGet)
	}
	appID := r.URL.Query().Get("app_id")
	if !resolver.IsAppID(appID) {
		return badRequest(errNoAppID)
	}
	var all []learnedAnswer
	eachRuntime(func(run *runtime) {
		for _, l := range run.relays() {
			all = append(all, l.learnedOf(r.Context(), appID)...)
		}
	})
	slices.SortStableFunc(all, func(a, b learnedAnswer) int { return a.at.Compare(b.at) })
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	for _, one := range all {
		if err := lines.Encode(one); err != nil {
			return nil //nolint:nilerr // the client has gone
		}
	}
	return nil
}

// relays are those of all sites, one of each identity.
func (r *runtime) relays() []*relay {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := map[string]bool{}
	var all []*relay
	for site := range r.sites {
		if site.relay != nil && !seen[site.relay.scope] {
			seen[site.relay.scope] = true
			all = append(all, site.relay)
		}
	}
	return all
}

// learnedOf lists what the upstream has answered for an app, as far as that is kept on disk.
func (l *relay) learnedOf(ctx context.Context, appID string) (all []learnedAnswer) {
	kept := l.kept()
	if kept == nil {
		return nil
	}
	err := kept.Each(ctx, appID, func(_ string, raw []byte, at time.Time) bool {
		head, body, ok := readKept(raw)
		if !ok || len(head.Request) == 0 || head.Queried {
			return true
		}
		if o, err := resolver.NewObservation(head.Request, body); err == nil { // what the import could not read tells it nothing
			all = append(all, learnedAnswer{o, at})
		}
		return true
	})
	if err != nil && ctx.Err() == nil {
		l.runtime.reportLearned(err)
	}
	return all
}
