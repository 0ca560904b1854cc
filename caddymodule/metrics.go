package caddymodule

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// counters count what a runtime does. They are plain atomics, read when metrics are scraped: nothing is looked up, locked
// or allocated per request.
type counters struct {
	decisions  map[string]*decisionCounter // by rule; filled once, then only read
	refusals   map[string]*atomic.Uint64   // by wire code; likewise
	objects    [objectStates]atomic.Uint64
	origins    [originUses][originResults]atomic.Uint64
	originTime [originUses]atomic.Int64 // nanoseconds, of all requests together
	diskErrors atomic.Uint64
	events     [eventResults]atomic.Uint64
	relays     [relayStates]atomic.Uint64
	marked     atomic.Uint64
}

type decisionCounter struct {
	outcome string
	n       atomic.Uint64
}

// objectState says how a request for an object ended.
type objectState int

const (
	objectHit       objectState = iota // from disk
	objectMemory                       // from memory
	objectMiss                         // fetched for this request, and handed out while it came
	objectCollapsed                    // likewise, fetched for another one just before
	objectBypass                       // passed on from the origin: the disk could not take it
	objectElsewhere                    // the client was sent on to a host that this edge does not fetch from
	objectMissing                      // named by no manifest, or not in the origin
	objectDenied                       // its signature is wrong or has expired
	objectFailed                       // the origin could not be asked, or its object is not the one named
	objectCut                          // broke off after its answer had begun
	objectLeft                         // its client left before the answer began
	objectStates
)

func (s objectState) String() string {
	return [...]string{
		"hit", "memory", "miss", "collapsed", "bypass", "elsewhere", "missing", "denied", "failed", "cut", "left",
	}[s]
}

func objectStateOf(a cache.Access) objectState {
	return [...]objectState{
		cache.Hit: objectHit, cache.HitMemory: objectMemory, cache.Filled: objectMiss,
		cache.Collapsed: objectCollapsed, cache.Bypassed: objectBypass,
	}[a]
}

// originUse says what the origin was asked for.
type originUse int

const (
	originManifest originUse = iota
	originObject
	originCheck
	originUses
)

func (u originUse) String() string { return [...]string{"manifest", "object", "check"}[u] }

// originResult says what it answered.
type originResult int

const (
	originOK originResult = iota
	originNotModified
	originNotFound
	originError
	originResults
)

func (r originResult) String() string {
	return [...]string{"ok", "not_modified", "not_found", "error"}[r]
}

// eventResult says what became of an event that a phone sent.
type eventResult int

const (
	eventAccepted    eventResult = iota // kept for the site's collectors, if it has any
	eventIgnored                        // accepted and dropped, as the official server does
	eventRefused                        // its form is wrong, or its app or version unknown
	eventUnavailable                    // could not be kept; the phone sends it again
	eventResults
)

func (e eventResult) String() string {
	return [...]string{"accepted", "ignored", "refused", "unavailable"}[e]
}

// relayState says how a check of an app without a manifest was answered.
type relayState int

const (
	relayFresh       relayState = iota // from memory
	relayStale                         // from memory, older; a refresh goes on, or has failed
	relayAsked                         // the upstream was asked
	relayRefused                       // the upstream says that there is no such app
	relayUnavailable                   // nothing known, and the upstream could not be asked
	relayStates
)

func (s relayState) String() string {
	return [...]string{"fresh", "stale", "asked", "refused", "unavailable"}[s]
}

func relayStateOf(state cache.State) relayState {
	return [...]relayState{
		cache.Fresh: relayFresh, cache.Stale: relayStale, cache.Loaded: relayAsked, cache.Negative: relayRefused,
		cache.Unavailable: relayUnavailable,
	}[state]
}

func (c *counters) relay(state relayState) { c.relays[state].Add(1) }

func newCounters() *counters {
	c := &counters{decisions: map[string]*decisionCounter{}, refusals: map[string]*atomic.Uint64{}}
	for rule, outcome := range resolver.Rules() {
		c.decisions[rule] = &decisionCounter{outcome: outcome.String()}
	}
	for _, code := range []string{
		"invalid_json_parse_body", "invalid_json_body", "missing_device_id", "missing_app_id", "semver_error", codeTooLarge,
	} {
		c.refusals[code] = new(atomic.Uint64)
	}
	return c
}

func (c *counters) decided(d *resolver.Decision) { c.decisions[d.Rule].n.Add(1) }

func (c *counters) refused(code string) { c.refusals[code].Add(1) }

func (c *counters) event(result eventResult, n int) { c.events[result].Add(uint64(n)) }

func (c *counters) object(s objectState) { c.objects[s].Add(1) }

func (c *counters) origin(use originUse, took time.Duration, err error) {
	result := originError
	switch {
	case err == nil:
		result = originOK
	case errors.Is(err, origin.ErrNotModified):
		result = originNotModified
	case errors.Is(err, origin.ErrNotFound):
		result = originNotFound
	}
	c.origins[use][result].Add(1)
	c.originTime[use].Add(int64(took))
}

// The metrics. Labels come from closed sets; app ids are chosen by clients and never become one.
var (
	descUpdates = prometheus.NewDesc("caddy_capgo_edge_updates_total",
		"Update checks decided, by outcome and by the rule that decided.", []string{"storage", "outcome", "rule"}, nil)
	descRefused = prometheus.NewDesc("caddy_capgo_edge_updates_refused_total",
		"Update checks, and questions for the sizes of delta files, whose body was refused, by wire code.", []string{"storage", "code"}, nil)
	descManifests = prometheus.NewDesc("caddy_capgo_edge_manifest_cache_total",
		"Lookups of channel manifests, by how they were answered.", []string{"storage", "state"}, nil)
	descObjects = prometheus.NewDesc("caddy_capgo_edge_bundle_requests_total",
		"Requests for bundles and delta files, by how they ended.", []string{"storage", "state"}, nil)
	descOrigin = prometheus.NewDesc("caddy_capgo_edge_origin_requests_total",
		"Requests to origins, by what was asked for and how it was answered.", []string{"storage", "use", "result"}, nil)
	descOriginTime = prometheus.NewDesc("caddy_capgo_edge_origin_seconds_total",
		"Time until origins answered, summed over all requests.", []string{"storage", "use"}, nil)
	descDisk = prometheus.NewDesc("caddy_capgo_edge_storage_errors_total",
		"Failures of the storage directory's disk.", []string{"storage"}, nil)
	descHealthy = prometheus.NewDesc("caddy_capgo_edge_storage_healthy",
		"Whether the storage directory's disk takes objects.", []string{"storage"}, nil)
	descDiskObjects = prometheus.NewDesc("caddy_capgo_edge_disk_objects",
		"Objects stored.", []string{"storage"}, nil)
	descDiskBytes = prometheus.NewDesc("caddy_capgo_edge_disk_bytes",
		"Bytes of disk that stored objects take.", []string{"storage"}, nil)
	descFilling = prometheus.NewDesc("caddy_capgo_edge_fill_inflight",
		"Objects being fetched.", []string{"storage"}, nil)
	descFills = prometheus.NewDesc("caddy_capgo_edge_fills_total",
		"Fetches of objects that ended, by how.", []string{"storage", "result"}, nil)
	descFillBytes = prometheus.NewDesc("caddy_capgo_edge_fill_bytes_total",
		"Bytes fetched from origins for the store.", []string{"storage"}, nil)
	descFar = prometheus.NewDesc("caddy_capgo_edge_far_ranges_total",
		"Ranges read from the origin because they lay far ahead of the fill.", []string{"storage"}, nil)
	descEvicted = prometheus.NewDesc("caddy_capgo_edge_evicted_total",
		"Objects removed to make room.", []string{"storage"}, nil)
	descDamaged = prometheus.NewDesc("caddy_capgo_edge_damaged_total",
		"Stored objects that could not be read, or were not what was stored.", []string{"storage"}, nil)
)

var (
	descRelay = prometheus.NewDesc("caddy_capgo_edge_relay_checks_total",
		"Update checks of apps without a manifest, by how they were answered.", []string{"storage", "state"}, nil)
	descMarked = prometheus.NewDesc("caddy_capgo_edge_relay_marked_total",
		"Apps found to be answered differently for each device.", []string{"storage"}, nil)
)

// The metrics of statistics. The label "collector" is the name of the spool's file.
var (
	descEvents = prometheus.NewDesc("caddy_capgo_edge_stats_events_total",
		"Statistics events that phones sent, by what became of them.", []string{"storage", "result"}, nil)
	descSpoolHealthy = prometheus.NewDesc("caddy_capgo_edge_spool_healthy",
		"Whether statistics events can be kept for the collector.", []string{"storage", "collector"}, nil)
	descSpoolEvents = prometheus.NewDesc("caddy_capgo_edge_spool_events",
		"Statistics events that wait for their collector.", []string{"storage", "collector"}, nil)
	descSpoolBytes = prometheus.NewDesc("caddy_capgo_edge_spool_bytes",
		"Bytes that waiting statistics events take, with what the file needs around them.", []string{"storage", "collector"}, nil)
	descSpoolFile = prometheus.NewDesc("caddy_capgo_edge_spool_file_bytes",
		"Size of the file they are in, which does not shrink.", []string{"storage", "collector"}, nil)
	descSpoolOldest = prometheus.NewDesc("caddy_capgo_edge_spool_oldest_seconds",
		"Age of the oldest waiting statistics event; 0 if none waits.", []string{"storage", "collector"}, nil)
	descSpoolDropped = prometheus.NewDesc("caddy_capgo_edge_spool_dropped_total",
		"Statistics events that were dropped, by reason.", []string{"storage", "collector", "reason"}, nil)
	descForwarded = prometheus.NewDesc("caddy_capgo_edge_forward_total",
		"Statistics events by what the collector made of them.", []string{"storage", "collector", "result"}, nil)
	descForwardRequests = prometheus.NewDesc("caddy_capgo_edge_forward_requests_total",
		"Requests to the collector, by how they ended.", []string{"storage", "collector", "result"}, nil)
	descForwarding = prometheus.NewDesc("caddy_capgo_edge_collector_healthy",
		"Whether the collector takes statistics.", []string{"storage", "collector"}, nil)
	descChannelCalls = prometheus.NewDesc("caddy_capgo_edge_channel_calls_total",
		"Calls of /channel_self, by what they do and how they ended.", []string{"storage", "call", "result"}, nil)
	descChoices = prometheus.NewDesc("caddy_capgo_edge_channel_choices",
		"Devices with old plugins whose choice of a channel is kept here.", []string{"storage"}, nil)
	descPaused = prometheus.NewDesc("caddy_capgo_edge_rollouts_paused",
		"Rollouts that are stopped here by the release guard.", []string{"storage"}, nil)
	descPausedTotal = prometheus.NewDesc("caddy_capgo_edge_rollouts_paused_total",
		"Rollouts that the release guard stopped.", []string{"storage"}, nil)
	descResumedTotal = prometheus.NewDesc("caddy_capgo_edge_rollouts_resumed_total",
		"Rollouts stopped by the release guard that go on.", []string{"storage"}, nil)
	descDead = prometheus.NewDesc("caddy_capgo_edge_dead_letters",
		"Statistics events in the dead-letter file.", []string{"storage", "collector"}, nil)
)

// collector shows one runtime's counters. Storage directories come from the configuration, so they are a fit label.
type collector struct{ runtime *runtime }

// Describe implements prometheus.Collector. It tells nothing, which makes the collector an unchecked one: several
// runtimes in one registry share all names and differ in a label.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	r := c.runtime
	count := func(desc *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), append([]string{r.dir}, labels...)...)
	}
	for rule, d := range r.counters.decisions {
		count(descUpdates, d.n.Load(), d.outcome, rule)
	}
	for code, n := range r.counters.refusals {
		count(descRefused, n.Load(), code)
	}
	for s := range objectStates {
		count(descObjects, r.counters.objects[s].Load(), s.String())
	}
	for use := range originUses {
		for result := range originResults {
			count(descOrigin, r.counters.origins[use][result].Load(), use.String(), result.String())
		}
		seconds := time.Duration(r.counters.originTime[use].Load()).Seconds()
		ch <- prometheus.MustNewConstMetric(descOriginTime, prometheus.CounterValue, seconds, r.dir, use.String())
	}
	for state, n := range r.manifestCounts() {
		count(descManifests, n, state.String())
	}
	r.channelCalls.each(func(call, result string, n uint64) { count(descChannelCalls, n, call, result) })
	count(descPausedTotal, r.guard.pausedTotal.Load())
	count(descResumedTotal, r.guard.resumedTotal.Load())
	for state := range relayStates {
		count(descRelay, r.counters.relays[state].Load(), state.String())
	}
	count(descMarked, r.counters.marked.Load())
	for result := range eventResults {
		count(descEvents, r.counters.events[result].Load(), result.String())
	}
	r.eachOutlet(func(o *outlet, open *openOutlet) { collectOutlet(ch, o, open) })
	gauge := func(desc *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, r.dir)
	}
	if own := r.openedState.Load(); own != nil {
		gauge(descChoices, float64(own.Stats().Assignments))
		gauge(descPaused, float64(len(r.guard.pauses())))
	}
	c.collectDisk(count, gauge)
}

func (c *collector) collectDisk(count func(*prometheus.Desc, uint64, ...string), gauge func(*prometheus.Desc, float64)) {
	disk := c.runtime.openedDisk.Load()
	if disk == nil {
		count(descDisk, c.runtime.counters.diskErrors.Load())
		return
	}
	s := disk.Stats()
	count(descDisk, c.runtime.counters.diskErrors.Load()+s.DiskErrors)
	healthy := 1.0
	if err, _ := disk.Health(); err != nil {
		healthy = 0
	}
	gauge(descHealthy, healthy)
	gauge(descDiskObjects, float64(s.Objects))
	gauge(descDiskBytes, float64(s.Bytes))
	gauge(descFilling, float64(s.Filling))
	count(descFills, s.Stored, "stored")
	count(descFills, s.Failed-s.Mismatches, "failed")
	count(descFills, s.Mismatches, "mismatch")
	count(descFillBytes, uint64(s.FilledBytes))
	count(descFar, s.RangeReads)
	count(descEvicted, s.Evicted)
	count(descDamaged, s.Damaged)
}

// manifestCounts is empty until the directory was opened.
func (r *runtime) manifestCounts() map[cache.State]uint64 {
	if !r.users.enter() {
		return nil
	}
	defer r.users.leave()
	memory := r.opened.Load()
	if memory == nil {
		return nil
	}
	return memory.Counts()
}

func collectOutlet(ch chan<- prometheus.Metric, o *outlet, open *openOutlet) {
	number := func(desc *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, kind, v, append([]string{o.runtime.dir, o.name}, labels...)...)
	}
	works := 1.0
	if o.health() != nil {
		works = 0
	}
	number(descSpoolHealthy, prometheus.GaugeValue, works)
	number(descSpoolDropped, prometheus.CounterValue, float64(o.missed.Load()), droppedNotOpen)
	if open == nil {
		return
	}
	kept, sent := open.spool.Stats(), open.forwarder.Stats()
	number(descSpoolEvents, prometheus.GaugeValue, float64(kept.Events))
	number(descSpoolBytes, prometheus.GaugeValue, float64(kept.Bytes))
	number(descSpoolFile, prometheus.GaugeValue, float64(kept.FileBytes))
	age := 0.0
	if !kept.Oldest.IsZero() {
		age = max(0, time.Since(kept.Oldest).Seconds())
	}
	number(descSpoolOldest, prometheus.GaugeValue, age)
	number(descDead, prometheus.GaugeValue, float64(kept.DeadEvents))
	for reason, n := range kept.Dropped {
		number(descSpoolDropped, prometheus.CounterValue, float64(n), reason)
	}
	number(descForwarded, prometheus.CounterValue, float64(sent.Delivered), "delivered")
	number(descForwarded, prometheus.CounterValue, float64(sent.Retried), "retried")
	number(descForwarded, prometheus.CounterValue, float64(sent.Dead), "dead")
	for result, n := range sent.Requests {
		number(descForwardRequests, prometheus.CounterValue, float64(n), result)
	}
	healthy := 1.0
	if sent.Failing != nil {
		healthy = 0
	}
	number(descForwarding, prometheus.GaugeValue, healthy)
}
