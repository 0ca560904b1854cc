package caddymodule

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// statistics sends the events of one site on to its collectors. Without any, events end here.
type statistics struct {
	destinations []*destination
	released     atomic.Bool
}

// destination is a collector of a site, with what it is to get.
type destination struct {
	outlet *outlet
	tuning tuning
	config Stats
	shares map[string]float64 // of the actions that are not sent on in full
}

// newStatistics takes a share of the outlets that a site's configuration names.
func newStatistics(r *runtime, scope string, all []*Stats, minFree int64) (*statistics, error) {
	if err := checkStats(all); err != nil {
		return nil, err
	}
	s := new(statistics)
	for _, config := range all {
		full, err := config.expand()
		if err == nil {
			err = full.check()
		}
		if err != nil {
			s.release()
			return nil, err
		}
		for _, address := range full.Collectors {
			d, err := newDestination(full, address, minFree)
			if err != nil {
				s.release()
				return nil, err
			}
			d.outlet = r.outlet(scope, address)
			s.destinations = append(s.destinations, d)
		}
	}
	return s, nil
}

func newDestination(config Stats, address string, minFree int64) (*destination, error) {
	collector, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{URL: address, Header: config.Headers})
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	d := &destination{config: config, tuning: tuning{collector, config.MaxSpool, minFree}}
	d.shares = map[string]float64{}
	maps.Copy(d.shares, config.Sample)
	for _, action := range config.Drop {
		d.shares[action] = 0
	}
	return d, nil
}

// release gives the outlets back. Requests may still be using them.
func (s *statistics) release() {
	if s.released.Swap(true) {
		return
	}
	for _, d := range s.destinations {
		d.outlet.release()
	}
}

// start puts the site's settings in force, and opens the spools behind the caller's back: they may hold events from before.
func (s *statistics) start() {
	for _, d := range s.destinations {
		d.outlet.use(d.tuning)
		go func() { _, _ = d.outlet.opened(d.tuning) }() // what fails is reported there
	}
}

// event is one that a site accepted.
type event struct {
	app, device, action string
	confirmed           bool
	raw                 []byte
}

// keep returns once the events are on disk for every collector that is to have them.
func (s *statistics) keep(ctx context.Context, events []event) error {
	if len(s.destinations) == 0 || len(events) == 0 {
		return nil
	}
	if len(s.destinations) == 1 {
		return s.destinations[0].keep(ctx, events)
	}
	errs := make([]error, len(s.destinations))
	var work sync.WaitGroup
	for i, d := range s.destinations {
		work.Go(func() { errs[i] = d.keep(ctx, events) })
	}
	work.Wait()
	return errors.Join(errs...)
}

func (d *destination) keep(ctx context.Context, events []event) error {
	records := make([]stats.Event, 0, len(events))
	for i := range events {
		e := &events[i]
		if d.takesApp(e.app) && d.samples(e.action) {
			records = append(records, stats.Event{App: e.app, Device: e.device, Confirmed: e.confirmed, Data: d.conceal(e.app, e.raw)})
		}
	}
	if len(records) == 0 {
		return nil
	}
	spool, err := d.outlet.opened(d.tuning) //nolint:contextcheck // what it opens outlives the request
	if err != nil {
		return err
	}
	// Whoever sent them may leave: they are on their way to disk, from memory that is used again as soon as this returns.
	return spool.Append(context.WithoutCancel(ctx), records...)
}

// sawCheck reports that this edge decided a check, as the official server notes it (protocol 1, "Cache and dependencies"). It
// costs the phone no wait: the report rides the next commit.
func (s *statistics) sawCheck(check *resolver.Check, body []byte, action string) {
	if action == "" {
		return
	}
	for _, d := range s.destinations {
		if !chance(*d.config.Checks) || !d.samples(action) || !d.takesApp(check.AppID) {
			continue
		}
		spool, err := d.outlet.opened(d.tuning)
		if err != nil {
			continue // reported there
		}
		data := d.conceal(check.AppID, resolver.AppendCheckEvent(nil, body, action, time.Now().UnixMilli()))
		spool.Offer(stats.Event{App: check.AppID, Device: check.DeviceID, Confirmed: true, Data: data})
	}
}

func (d *destination) takesApp(appID string) bool { return matchesApp(d.config.Apps, appID) }

// samples reports whether this event of an action is sent on.
func (d *destination) samples(action string) bool {
	if len(d.shares) == 0 {
		return true
	}
	share, limited := d.shares[action]
	return !limited || chance(share)
}

func chance(share float64) bool { return share >= 1 || rand.Float64() < share }

// conceal does with an event's custom_id what the configuration says.
func (d *destination) conceal(appID string, event []byte) []byte {
	switch d.config.CustomID {
	case customIDDrop:
		return resolver.AppendWithCustomID(nil, event, func(string) (string, bool) { return "", false })
	case customIDHash:
		return resolver.AppendWithCustomID(nil, event, func(id string) (string, bool) { return hashCustomID(appID, id), true })
	}
	return event
}

// hashCustomID is 32 hexadecimal digits: the official server takes 36 characters at the most. No id stays none.
func hashCustomID(appID, id string) string {
	if id == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(appID + "\x00" + id))
	return hex.EncodeToString(sum[:16])
}

// matchesApp reports whether one of the patterns matches; none at all match every app.
func matchesApp(patterns []string, appID string) bool {
	if len(patterns) == 0 {
		return true
	}
	for _, pattern := range patterns {
		if ok, _ := path.Match(pattern, appID); ok { // the only error is a bad pattern, of which there is none
			return true
		}
	}
	return false
}
