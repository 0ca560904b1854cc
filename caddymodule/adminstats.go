package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// collectorStatus is what GET /capgo_edge/status tells of one collector.
type collectorStatus struct {
	Collector string `json:"collector"` // its address, without a query
	Spool     string `json:"spool"`     // the name of its files in the storage directory's folder "spool"

	// Healthy is false while the spool keeps nothing or the collector takes nothing; Error says why, Since when that began, and
	// Next when the collector is asked again. A lesser fault of the spool's files, which keeps no event from being delivered, is
	// told while Healthy is true.
	Healthy bool       `json:"healthy"`
	Error   string     `json:"error,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Next    *time.Time `json:"next,omitempty"`

	Waiting     int64             `json:"waiting"` // events
	Bytes       int64             `json:"bytes"`   // that they take, with what the file needs around them
	Oldest      *time.Time        `json:"oldest,omitempty"`
	Delivered   uint64            `json:"delivered"` // since the start
	Dropped     map[string]uint64 `json:"dropped,omitempty"`
	DeadLetters int64             `json:"dead_letters"`
}

// droppedNotOpen is why reports of checks were dropped that came while the spool was not open.
const droppedNotOpen = "not_open"

func (o *outlet) status(open *openOutlet) collectorStatus {
	s := collectorStatus{Collector: o.address, Spool: o.name, Healthy: true, Dropped: map[string]uint64{}}
	if open != nil {
		s.add(open)
	}
	if missed := o.missed.Load(); missed > 0 {
		s.Dropped[droppedNotOpen] = missed
	}
	if fault := o.health(); fault != nil { // phones are refused, which is worse than a collector that is down
		s.Healthy, s.Error, s.Since, s.Next = false, fault.err.Error(), timeOrNone(fault.since), nil
	} else if fault := o.trouble.Load(); fault != nil && s.Healthy {
		s.Error, s.Since = fault.err.Error(), timeOrNone(fault.since)
	}
	return s
}

// add tells of an open spool and its forwarder.
func (s *collectorStatus) add(open *openOutlet) {
	kept, sent := open.spool.Stats(), open.forwarder.Stats()
	s.Since, s.Next = timeOrNone(sent.Since), timeOrNone(sent.Until)
	s.Waiting, s.Bytes, s.Oldest, s.Delivered = kept.Events, kept.Bytes, timeOrNone(kept.Oldest), sent.Delivered
	s.DeadLetters = kept.DeadEvents
	if sent.Failing != nil {
		s.Healthy, s.Error = false, sent.Failing.Error()
	}
	for reason, n := range kept.Dropped {
		if n > 0 {
			s.Dropped[reason] = n
		}
	}
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
	for name := range query {
		if !slices.Contains([]string{"spool", "app_id", "code", "limit"}, name) {
			return nil, badRequest(fmt.Errorf("the query may name spool, app_id, code and limit, not %q", name))
		}
	}
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
		found := 0
		return spool.DeadLetters(func(l stats.DeadLetter) bool {
			if chosen.matches(l) {
				letters = append(letters, deadLetter{o.name, l})
				found++
			}
			return found < limit
		})
	})
	// Each spool gave its oldest: the oldest of all are among them.
	slices.SortStableFunc(letters, func(a, b deadLetter) int { return a.Time.Compare(b.Time) })
	return map[string]any{"dead_letters": letters[:min(len(letters), limit)]}, err
}

// replayRequest is the body of POST /capgo_edge/replay. Nothing is replayed by mistake: whoever means all says so.
type replayRequest struct {
	deadChoice
	All bool `json:"all"`
}

// serveReplay puts dead letters back into their spools, to be sent once more.
func serveReplay(r *http.Request) (any, error) {
	var body replayRequest
	if err := readAdminBody(r, &body); err != nil {
		return nil, err
	}
	if filtered := body.deadChoice != (deadChoice{}); filtered == body.All {
		return nil, badRequest(errors.New(`say which dead letters, by spool, app_id or code, or {"all":true} for all of them`))
	}
	total := 0
	err := body.eachSpool(func(_ *outlet, spool *stats.Spool) error {
		n, err := spool.Replay(r.Context(), body.matches)
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
			if open != nil && (c.Spool == "" || c.Spool == o.name) {
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
