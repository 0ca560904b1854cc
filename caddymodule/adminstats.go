package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// collectorStatus is what GET /capgo_edge/status tells of one collector.
type collectorStatus struct {
	Collector string `json:"collector"` // its address, without a query
	Spool     string `json:"spool"`     // the name of its files in the storage directory's folder "spool"

	// Healthy is false while the collector takes nothing; Error says why, Since when that began, and Next when it is asked again.
	Healthy bool       `json:"healthy"`
	Error   string     `json:"error,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Next    *time.Time `json:"next,omitempty"`

	Waiting     int64             `json:"waiting"` // events
	Bytes       int64             `json:"bytes"`   // that they take
	Oldest      *time.Time        `json:"oldest,omitempty"`
	Delivered   uint64            `json:"delivered"` // since the start
	Dropped     map[string]uint64 `json:"dropped,omitempty"`
	DeadLetters int64             `json:"dead_letters"`
}

func (o *outlet) status(open *openOutlet) collectorStatus {
	kept, sent := open.spool.Stats(), open.forwarder.Stats()
	s := collectorStatus{
		Collector: o.address, Spool: o.name, Healthy: sent.Failing == nil,
		Since: timeOrNone(sent.Since), Next: timeOrNone(sent.Until),
		Waiting: kept.Events, Bytes: kept.Bytes, Oldest: timeOrNone(kept.Oldest), Delivered: sent.Delivered,
		Dropped: map[string]uint64{}, DeadLetters: kept.DeadEvents,
	}
	if sent.Failing != nil {
		s.Error = sent.Failing.Error()
	}
	for reason, n := range kept.Dropped {
		if n > 0 {
			s.Dropped[reason] = n
		}
	}
	return s
}

func timeOrNone(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// deadLetter is one line of GET /capgo_edge/dead_letters.
type deadLetter struct {
	Spool string `json:"spool"`
	stats.DeadLetter
}

// Bounds of GET /capgo_edge/dead_letters.
const defaultDeadLetters, maxDeadLetters = 100, 10_000

// serveDeadLetters lists events that collectors refused for good, oldest first. The query may name a spool, an app_id, a
// code and a limit.
func serveDeadLetters(r *http.Request) (any, error) {
	query := r.URL.Query()
	limit := defaultDeadLetters
	if text := query.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxDeadLetters {
			return nil, badRequest(fmt.Errorf("limit: %q is not a number from 1 to %d", text, maxDeadLetters))
		}
	}
	chosen := deadChoice{Spool: query.Get("spool"), AppID: query.Get("app_id"), Code: query.Get("code")}
	letters := []deadLetter{}
	err := chosen.eachSpool(func(o *outlet, spool *stats.Spool) error {
		return spool.DeadLetters(func(l stats.DeadLetter) bool {
			if chosen.matches(l) {
				letters = append(letters, deadLetter{o.name, l})
			}
			return len(letters) < limit
		})
	})
	return map[string]any{"dead_letters": letters}, err
}

// serveReplay puts dead letters back into their spools, to be sent once more.
func serveReplay(r *http.Request) (any, error) {
	var chosen deadChoice
	if err := readAdminBody(r, &chosen); err != nil {
		return nil, err
	}
	total := 0
	err := chosen.eachSpool(func(_ *outlet, spool *stats.Spool) error {
		n, err := spool.Replay(r.Context(), chosen.matches)
		total += n
		return err
	})
	return map[string]any{"replayed": total}, err
}

// deadChoice says which dead letters are meant; what is empty means all.
type deadChoice struct {
	Spool string `json:"spool"`
	AppID string `json:"app_id"`
	Code  string `json:"code"`
}

func (c *deadChoice) matches(l stats.DeadLetter) bool {
	return (c.AppID == "" || c.AppID == l.App) && (c.Code == "" || c.Code == l.Code)
}

func (c *deadChoice) eachSpool(do func(o *outlet, spool *stats.Spool) error) error {
	found, errs := false, []error(nil)
	eachRuntime(func(r *runtime) {
		r.eachOutlet(func(o *outlet, open *openOutlet) {
			if c.Spool == "" || c.Spool == o.name {
				found = true
				errs = append(errs, do(o, open.spool))
			}
		})
	})
	if c.Spool != "" && !found {
		return caddy.APIError{
			HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("no spool %q is open; GET /capgo_edge/status lists them", c.Spool),
		}
	}
	return errors.Join(errs...)
}

func badRequest(err error) error { return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err} }
