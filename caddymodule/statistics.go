package caddymodule

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path"
	"strings"
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

	maxEvent int // bytes of one event
}

// newStatistics takes a share of the outlets that a configuration of one of the app's sites names.
func newStatistics(a *App, scope string, all []*Stats) (*statistics, error) {
	if err := checkStats(all); err != nil {
		return nil, err
	}
	s, seen := new(statistics), map[string]bool{}
	for _, config := range all {
		if err := s.add(a, scope, config, seen); err != nil {
			s.release()
			return nil, err
		}
	}
	return s, nil
}

// delivers reports whether events are sent on to anybody.
func (s *statistics) delivers() bool { return len(s.destinations) > 0 }

// add takes a share of the outlets of one block. seen are the collectors of the blocks before it.
func (s *statistics) add(a *App, scope string, config *Stats, seen map[string]bool) error {
	full, err := config.expand()
	if err != nil {
		return err
	}
	for i, address := range full.Collectors {
		same := sameAddress(address)
		if seen[same] {
			return fmt.Errorf("stats: the collector %s is there twice, written in two ways; name it once",
				withoutSecrets(config.Collectors[i]))
		}
		seen[same] = true
		d, err := newDestination(full, address, a.settings.minFree)
		if err != nil {
			return err
		}
		if err := a.agree(scope, withoutSecrets(config.Collectors[i]), &d.tuning); err != nil {
			return err
		}
		d.outlet = a.runtime.outlet(scope, address)
		s.destinations = append(s.destinations, d)
	}
	return nil
}

// agree refuses a site whose options for a collector are not those of another site with the same origin: they share one
// spool, and which of the two would be in force is chance. configured is the collector's address as it is written, fit to be shown.
func (a *App) agree(scope, configured string, t *tuning) error {
	name := outletName(scope, t.address)
	first, known := a.tunings[name]
	if !known {
		if a.tunings == nil {
			a.tunings = map[string]*tuning{}
		}
		a.tunings[name] = t
		return nil
	}
	const rule = "stats: two sites with the same origin send to %s, through one spool, but with different %s; " +
		"give both the same, or each an address of its own, such as one that ends in ?site=a"
	if first.maxSpool != t.maxSpool {
		return fmt.Errorf(rule, configured, fmt.Sprintf("max_spool: %d and %d bytes", first.maxSpool, t.maxSpool))
	}
	if names := differentHeaders(first.headers, t.headers); len(names) > 0 {
		return fmt.Errorf(rule, configured, "header: "+strings.Join(names, ", "))
	}
	return nil
}

func newDestination(config Stats, address string, minFree int64) (*destination, error) {
	collector, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{URL: address, Header: config.Headers})
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	d := &destination{config: config, tuning: tuning{address, config.Headers, collector, config.MaxSpool, minFree}}
	if d.maxEvent = stats.MaxEvent(config.MaxSpool); config.CustomID == customIDHash {
		d.maxEvent -= hashedLen
	}
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
		d.outlet.begin(d.tuning)
	}
}

// event is one that a site accepted.
type event struct {
	app, device, action string
	confirmed           bool
	raw                 []byte
}

// keep returns once the events are on disk for every collector that is to have them.
//
// After an error the phone sends them again, and a collector whose spool had taken them gets them twice. So no spool gets
// any before all are open, and those that failed last time get theirs first, one after another: as long as one of them
// fails, the others get nothing. What is left is the moment in which a spool begins to fail.
func (s *statistics) keep(ctx context.Context, events []event) error {
	if len(s.destinations) == 0 || len(events) == 0 {
		return nil
	}
	parcels, err := s.pack(ctx, events)
	if err != nil {
		return err
	}
	// Whoever sent them may leave: they are on their way to disk, from memory that is used again as soon as this returns.
	ctx = context.WithoutCancel(ctx)
	sound := parcels[:0]
	for _, p := range parcels {
		if !p.outlet.failing.Load() {
			sound = append(sound, p)
		} else if err := p.append(ctx); err != nil {
			return err
		}
	}
	return appendAll(ctx, sound)
}

// maxEvent is how many bytes an event of an app may have, so that all collectors that are to get it can have it.
func (s *statistics) maxEvent(appID string) int {
	most := math.MaxInt
	for _, d := range s.destinations {
		if d.takesApp(appID) {
			most = min(most, d.maxEvent)
		}
	}
	return most
}

// parcel is what one collector gets of a request.
type parcel struct {
	outlet  *outlet
	spool   *stats.Spool
	records []stats.Event
}

// pack divides events among the collectors, and waits for spools that are being opened.
func (s *statistics) pack(ctx context.Context, events []event) ([]parcel, error) {
	var parcels []parcel
	latest := time.Now().Add(outletWait)
	for _, d := range s.destinations {
		records := d.records(events)
		if len(records) == 0 {
			continue
		}
		open, err := d.outlet.opened(ctx, d.tuning, latest)
		if err != nil {
			return nil, err
		}
		parcels = append(parcels, parcel{d.outlet, open.spool, records})
	}
	return parcels, nil
}

// records are those of the events that the destination is to get, as it is to get them.
func (d *destination) records(events []event) []stats.Event {
	records := make([]stats.Event, 0, len(events))
	for i := range events {
		e := &events[i]
		if d.takesApp(e.app) && d.samples(e.action) {
			records = append(records, stats.Event{App: e.app, Device: e.device, Confirmed: e.confirmed, Data: d.conceal(e.app, e.raw)})
		}
	}
	return records
}

func (p *parcel) append(ctx context.Context) error {
	err := p.spool.Append(ctx, p.records...)
	// An event that is too large says nothing of the spool.
	if failing := err != nil && !errors.Is(err, stats.ErrTooLarge); failing != p.outlet.failing.Load() {
		p.outlet.failing.Store(failing)
	}
	return err
}

// appendAll appends all parcels at once.
func appendAll(ctx context.Context, parcels []parcel) error {
	if len(parcels) == 1 {
		return parcels[0].append(ctx)
	}
	errs := make([]error, len(parcels))
	var work sync.WaitGroup
	for i := range parcels {
		work.Go(func() { errs[i] = parcels[i].append(ctx) })
	}
	work.Wait()
	return errors.Join(errs...)
}

// sawDecision reports that this edge decided a check by the app's manifest, as the official server notes it (protocol 1, "Cache
// and dependencies").
func (s *statistics) sawDecision(check *resolver.Check, body []byte, action string, app *resolver.Manifest) {
	if len(s.destinations) > 0 {
		s.report(check, body, action, app.HasVersionOf(check))
	}
}

// sawCheck is sawDecision for a check that was answered by what the upstream said to another device.
func (s *statistics) sawCheck(check *resolver.Check, body []byte, action string) {
	s.report(check, body, action, resolver.UpstreamHasVersionOf(check, action))
}

// report sends the collectors an event about a check. It costs the phone no wait: the event rides the next commit, and is
// dropped and counted while the spool is not open. known tells whether the collectors have the version that asks.
func (s *statistics) report(check *resolver.Check, body []byte, action string, known bool) {
	if action == "" {
		return
	}
	for _, d := range s.destinations {
		if !chance(*d.config.Checks) || !d.samples(action) || !d.takesApp(check.AppID) {
			continue
		}
		open := d.outlet.open.Load()
		if open == nil {
			d.outlet.missed.Add(1)
			d.outlet.begin(d.tuning)
			continue
		}
		data := d.conceal(check.AppID, resolver.AppendCheckEvent(nil, body, known, action, time.Now().UnixMilli()))
		open.spool.Offer(stats.Event{App: check.AppID, Device: check.DeviceID, Confirmed: true, Data: data})
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

// hashedLen is how many hexadecimal digits stand for a custom id: the official server takes 36 characters at the most.
const hashedLen = 32

// hashCustomID is what stands for a custom id. No id stays none.
func hashCustomID(appID, id string) string {
	if id == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(appID + "\x00" + id))
	return hex.EncodeToString(sum[:hashedLen/2])
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
