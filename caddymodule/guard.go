package caddymodule

import (
	"context"
	"hash/maphash"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// guard stops rollouts whose target fails on too many devices, at this site and for channels that ask for it (contract
// section 4, the fields auto_pause_*). It watches who is offered the target of a guarded rollout and what those devices
// report of it, and once the policy is crossed the target is offered to nobody else here. That ends when the manifest says
// something else about the rollout, or when an operator says so.
//
// It lives as long as the storage: votes survive a reload of the configuration, and pauses a restart too.
type guard struct {
	faults *faultLog
	keeper func(scope string) pauseKeeper
	began  time.Time
	seed   maphash.Seed
	events atomic.Pointer[func(guardEvent)] // who is told of pauses; nil if nobody

	places *budget // for devices of all targets
	slots  *budget // for targets

	pausedTotal, resumedTotal atomic.Uint64

	mu    sync.Mutex
	apps  map[cache.Key]*guardedApp // guarded by mu, as swept; one that was guarded once stays, with no votes it is small
	swept time.Duration
}

// The bounds of all targets together. A device takes about 130 bytes, or twice that with its vote.
const (
	maxGuardedDevices = 1 << 19
	maxGuardedTargets = 256
)

// The names of the events that tell of a pause and of its end.
const (
	eventRolloutPaused  = "capgo_rollout_paused"
	eventRolloutResumed = "capgo_rollout_resumed"
)

// guardEvent is a pause that began or ended.
type guardEvent struct {
	name  string // one of the above
	appID string
	pause pause
}

// data is what is told of the event.
func (e *guardEvent) data() map[string]any {
	return map[string]any{
		"app_id": e.appID, "channel": e.pause.Channel, "version": e.pause.Version,
		"attempts": e.pause.Attempts, "failures": e.pause.Failures,
	}
}

// newGuard makes a guard that logs where faults does. keeper gives what keeps the pauses of a scope; it is called once
// the storage is open.
func newGuard(faults *faultLog, keeper func(scope string) pauseKeeper) *guard {
	return &guard{
		faults: faults, keeper: keeper, began: time.Now(), seed: maphash.MakeSeed(),
		places: newBudget(maxGuardedDevices), slots: newBudget(maxGuardedTargets),
		apps: map[cache.Key]*guardedApp{},
	}
}

// tell has f told of pauses from now on.
func (g *guard) tell(f func(guardEvent)) { g.events.Store(&f) }

// now is the time since the guard was made, which no change of the clock moves.
func (g *guard) now() time.Duration { return time.Since(g.began) }

// appOf returns the app of a manifest; nil if there is nothing to guard.
func (g *guard) appOf(scope string, m *resolver.Manifest) *guardedApp {
	key := cache.Key{Scope: scope, Name: m.AppID}
	g.mu.Lock()
	defer g.mu.Unlock()
	if a := g.apps[key]; a != nil {
		return a
	}
	keeper := g.keeper(scope)
	doc := keeper.Pauses(m.AppID)
	if len(doc) == 0 && !hasGuards(m) {
		return nil
	}
	return g.addLocked(key, keeper, doc)
}

// addLocked begins to watch an app, with the pauses that are kept of it.
func (g *guard) addLocked(key cache.Key, keeper pauseKeeper, doc []byte) *guardedApp {
	a := &guardedApp{guard: g, key: key, keeper: keeper, ballots: map[ballotKey]*ballot{}}
	a.load(doc)
	g.apps[key] = a
	return a
}

// recall takes over all pauses of those scopes from before the restart, also of apps that nobody has asked for since.
func (g *guard) recall(scopes []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, scope := range scopes {
		keeper := g.keeper(scope)
		for app, doc := range keeper.AllPauses() {
			if key := (cache.Key{Scope: scope, Name: app}); g.apps[key] == nil {
				g.addLocked(key, keeper, doc)
			}
		}
	}
}

func hasGuards(m *resolver.Manifest) bool {
	for range m.Guards() {
		return true
	}
	return false
}

// saw takes an accepted event as the vote of its device, if it is one.
func (g *guard) saw(ctx context.Context, scope string, e *resolver.Event) {
	failed := strings.HasSuffix(e.Action, "_fail")
	if !failed && e.Action != "set" || e.Refusal != nil || e.Ignored {
		return
	}
	g.mu.Lock()
	a := g.apps[cache.Key{Scope: scope, Name: e.AppID}]
	g.mu.Unlock()
	if a != nil {
		a.saw(ctx, maphash.String(g.seed, e.DeviceID), e.Version, failed)
	}
}

// all lists the apps that are watched, in a stable order.
func (g *guard) all() []*guardedApp {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.SortedFunc(maps.Values(g.apps), func(a, b *guardedApp) int {
		return strings.Compare(a.key.Name+"\x00"+a.key.Scope, b.key.Name+"\x00"+b.key.Scope)
	})
}

// rolloutPause is a pause, for status pages, or one that has just ended.
type rolloutPause struct {
	AppID  string `json:"app_id"`
	Origin string `json:"origin"`
	pause
	// NotKept says why the pause, or its end, is not on disk yet: a restart would forget it.
	NotKept string `json:"not_kept,omitempty"`
}

func (a *guardedApp) describe(p pause) rolloutPause {
	return rolloutPause{AppID: a.key.Name, Origin: a.key.Scope, pause: p, NotKept: a.notKept()}
}

// pauses lists the rollouts that are paused here.
func (g *guard) pauses() []rolloutPause {
	var list []rolloutPause
	for _, a := range g.all() {
		for _, p := range a.paused.Load().sorted() {
			list = append(list, a.describe(p))
		}
	}
	return list
}

// resume ends the pauses of a channel of an app, or of all its channels if channel is empty, and returns what it ended.
// The votes on those targets begin anew, and decide nothing until the policy's cooldown is over.
func (g *guard) resume(ctx context.Context, appID, channel string) []rolloutPause {
	var list []rolloutPause
	for _, a := range g.all() {
		if a.key.Name != appID {
			continue
		}
		for _, p := range a.resume(ctx, channel) {
			list = append(list, a.describe(p))
		}
	}
	return list
}

// sweep drops the votes on targets that nobody was offered for longer than their window. It is called when there is no
// room for another target, and does its work once a minute at the most.
func (g *guard) sweep() {
	now := g.now()
	g.mu.Lock()
	if due := g.swept == 0 || now-g.swept >= time.Minute; !due {
		g.mu.Unlock()
		return
	}
	g.swept = now
	g.mu.Unlock()
	g.faults.fault("guard", "full", "too many guarded rollouts at once; some are not watched",
		zap.Int("most", maxGuardedTargets))
	for _, a := range g.all() {
		a.dropIdle(now)
	}
}

// siteOf is the /48 that an IPv6 network lies in, which a hosting customer may have as a whole; an IPv4 network itself.
func siteOf(network uint64) uint64 {
	const ipv4 = 1 << 40 // no IPv6 network that is routed is below
	if network < ipv4 {
		return network
	}
	return network &^ 0xffff
}

// networkOf is the network a request comes from, as far as votes tell networks apart: /24 of an IPv4 address, /64 of an IPv6
// one. It is that of the client as Caddy knows it, so behind a proxy that trusted_proxies does not name all devices are of
// one network, which has not enough votes to pause anything.
func networkOf(r *http.Request) uint64 {
	text, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	address, err := netip.ParseAddr(text)
	if err != nil {
		return 0 // of a Unix socket, say
	}
	bytes := address.Unmap().As16()
	if address.Unmap().Is4() {
		// ::ffff:a.b.c.d without d: no IPv6 network that is routed begins like this.
		return 0xffff<<24 | uint64(bytes[12])<<16 | uint64(bytes[13])<<8 | uint64(bytes[14])
	}
	var network uint64
	for _, b := range bytes[:8] {
		network = network<<8 | uint64(b)
	}
	return network
}

// pause is a rollout that is paused here.
type pause struct {
	// State is that of the guard when it was paused: a rollout of another state is another matter.
	State           uint64    `json:"state,string"`
	ChannelID       int64     `json:"channel_id"`
	Channel         string    `json:"channel"`
	VersionID       int64     `json:"version_id"`
	Version         string    `json:"version"`
	Attempts        int       `json:"attempts"`
	Failures        int       `json:"failures"`
	At              time.Time `json:"paused_at"`
	CooldownMinutes int64     `json:"cooldown_minutes"`
}

func (p *pause) ballot() ballotKey { return ballotKey{p.ChannelID, p.VersionID} }

// pauseSet are the pauses of an app, by the state of their guards. It is immutable: another takes its place.
type pauseSet struct{ byState map[uint64]pause }

// has reports whether the rollout of a guard is paused. The set may be nil, as for all its methods.
func (s *pauseSet) has(g *resolver.Guard) bool {
	if s == nil {
		return false
	}
	_, ok := s.byState[g.State]
	return ok
}

// sorted lists the pauses, the oldest first.
func (s *pauseSet) sorted() []pause {
	if s == nil {
		return nil
	}
	return slices.SortedFunc(maps.Values(s.byState), func(a, b pause) int { return a.At.Compare(b.At) })
}

// without returns the set without the pauses that ended reports, nil if none is left, and those.
func (s *pauseSet) without(ended func(p *pause) bool) (rest *pauseSet, gone []pause) {
	left := map[uint64]pause{}
	for _, p := range s.sorted() {
		if ended(&p) {
			gone = append(gone, p)
		} else {
			left[p.State] = p
		}
	}
	if len(left) == 0 {
		return nil, gone
	}
	return &pauseSet{left}, gone
}

// with returns the set with one more.
func (s *pauseSet) with(p pause) *pauseSet {
	next := &pauseSet{map[uint64]pause{p.State: p}}
	if s != nil {
		maps.Copy(next.byState, s.byState)
	}
	return next
}

// guardedApp is what the guard knows of one app. All releases of the app share it.
type guardedApp struct {
	guard  *guard
	key    cache.Key
	keeper pauseKeeper
	paused atomic.Pointer[pauseSet] // nil if nothing is paused; changed under mu

	mu      sync.Mutex
	ballots map[ballotKey]*ballot // guarded by mu

	keeping keeping
}

// ballotKey names a target of an app.
type ballotKey struct{ channel, version int64 }

// ballot are the votes on one target.
type ballot struct {
	guard *resolver.Guard // the newest that was offered; nil before the first
	votes *votes
	ended pause         // the one before these votes, if there was one
	quiet time.Duration // nothing is decided before that time: the cooldown behind that pause
	used  time.Duration // when the target was offered last
}

// offered notes that a device was offered the target of a guarded rollout.
func (a *guardedApp) offered(guarded *resolver.Guard, deviceID string, network uint64) {
	if a == nil {
		return
	}
	if !a.note(guarded, maphash.String(a.guard.seed, deviceID), network) {
		a.guard.sweep()
	}
}

// note is offered for a device by its hash. It reports whether there is room for the target.
func (a *guardedApp) note(guarded *resolver.Guard, device, network uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.paused.Load().has(guarded) {
		return true // it was decided before the pause
	}
	key := ballotKey{guarded.ChannelID, guarded.VersionID}
	b := a.ballots[key]
	if b == nil {
		if b = a.addLocked(key); b == nil {
			return false
		}
	}
	now := a.guard.now()
	b.use(guarded, now)
	b.votes.offered(device, network, now)
	return true
}

// addLocked begins the votes on a target, if there is room for them.
func (a *guardedApp) addLocked(key ballotKey) *ballot {
	if !a.guard.slots.take(1) {
		return nil
	}
	b := &ballot{votes: newVotes(a.guard.places)}
	a.ballots[key] = b
	return b
}

func (a *guardedApp) dropLocked(key ballotKey) {
	if b := a.ballots[key]; b != nil {
		b.votes.drop()
		a.guard.slots.give(1)
		delete(a.ballots, key)
	}
}

func (b *ballot) use(guarded *resolver.Guard, now time.Duration) {
	b.guard, b.used, b.votes.window = guarded, now, minutes(guarded.Policy.WindowMinutes)
}

// minutes is so many minutes of a manifest, which may name any number, but at most a year.
func minutes(n int64) time.Duration { return time.Duration(min(n, 365*24*60)) * time.Minute }

// crossed reports whether the votes cross the policy. Minima that no target can reach here, because so many devices are not
// remembered, count as half of what is.
func (b *ballot) crossed() bool {
	policy := b.guard.Policy
	policy.MinAttempts = min(policy.MinAttempts, maxVoters/2)
	policy.MinFailures = min(policy.MinFailures, maxVoters/2)
	return policy.Crossed(b.votes.attempts(), b.votes.failures)
}

// saw takes the vote of a device on all targets of that version, and pauses those that crossed their policy by it.
func (a *guardedApp) saw(ctx context.Context, device uint64, version string, failed bool) {
	now := a.guard.now()
	var began []pause
	a.mu.Lock()
	for key, b := range a.ballots {
		if b.guard == nil || b.guard.Version != version || !b.votes.voted(device, failed, now) || now < b.quiet || !b.crossed() {
			continue
		}
		p := b.pause()
		a.paused.Store(a.paused.Load().with(p))
		a.dropLocked(key) // a resume begins anew
		began = append(began, p)
	}
	a.mu.Unlock()
	if len(began) == 0 {
		return
	}
	a.guard.pausedTotal.Add(uint64(len(began)))
	for _, p := range began {
		a.report(zapcore.WarnLevel, eventRolloutPaused, p, "rollout paused at this site: its target fails on too many devices")
	}
	a.save(ctx)
}

func (b *ballot) pause() pause {
	return pause{
		State: b.guard.State, ChannelID: b.guard.ChannelID, Channel: b.guard.Channel, VersionID: b.guard.VersionID,
		Version: b.guard.Version, Attempts: b.votes.attempts(), Failures: b.votes.failures, At: time.Now().UTC(),
		CooldownMinutes: b.guard.Policy.CooldownMinutes,
	}
}

// resume ends the pauses of a channel, or of all if it is empty.
func (a *guardedApp) resume(ctx context.Context, channel string) []pause {
	a.mu.Lock()
	gone := a.endLocked(func(p *pause) bool { return channel == "" || p.Channel == channel })
	a.mu.Unlock()
	a.tellResumed(ctx, gone, "rollout resumed at this site: an operator said so")
	return gone
}

// endLocked ends the pauses that ended reports. New votes on their targets decide nothing before the cooldown is over.
func (a *guardedApp) endLocked(ended func(p *pause) bool) []pause {
	rest, gone := a.paused.Load().without(ended)
	if len(gone) == 0 {
		return nil
	}
	a.paused.Store(rest)
	for _, p := range gone {
		a.coolLocked(p, minutes(p.CooldownMinutes))
	}
	return gone
}

// coolLocked begins the votes on the target of a pause that has ended. They decide nothing for so long.
func (a *guardedApp) coolLocked(ended pause, left time.Duration) {
	a.dropLocked(ended.ballot())
	if b := a.addLocked(ended.ballot()); b != nil {
		now := a.guard.now()
		b.ended, b.used, b.quiet = ended, now, now+left
	}
}

// follow takes a release that is in force now as what there is: pauses of rollouts it says something else about end, and
// votes on targets it does not have are dropped.
func (a *guardedApp) follow(ctx context.Context, manifests ...*resolver.Manifest) {
	if a == nil {
		return
	}
	states, targets := map[uint64]bool{}, map[ballotKey]bool{}
	for _, m := range manifests {
		for guarded := range m.Guards() {
			states[guarded.State] = true
			targets[ballotKey{guarded.ChannelID, guarded.VersionID}] = true
		}
	}
	a.mu.Lock()
	gone := a.endLocked(func(p *pause) bool { return !states[p.State] })
	for key := range a.ballots {
		if !targets[key] {
			a.dropLocked(key)
		}
	}
	a.mu.Unlock()
	a.tellResumed(ctx, gone, "rollout no longer paused at this site: the manifest changed it")
	a.saveAgain(ctx)
}

// dropIdle drops the votes on targets that nobody was offered for longer than their window.
func (a *guardedApp) dropIdle(now time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, b := range a.ballots {
		if now-b.used > b.votes.window && now >= b.quiet {
			a.dropLocked(key)
		}
	}
}

func (a *guardedApp) tellResumed(ctx context.Context, gone []pause, message string) {
	if len(gone) == 0 {
		return
	}
	a.guard.resumedTotal.Add(uint64(len(gone)))
	for _, p := range gone {
		a.report(zapcore.InfoLevel, eventRolloutResumed, p, message)
	}
	a.save(ctx)
}

// report logs a pause or its end, and tells who wants to know.
func (a *guardedApp) report(level zapcore.Level, event string, p pause, message string) {
	a.log(level, p, message)
	if tell := a.guard.events.Load(); tell != nil {
		(*tell)(guardEvent{event, a.key.Name, p})
	}
}

func (a *guardedApp) log(level zapcore.Level, p pause, message string) {
	a.guard.faults.log.Load().Log(level, message,
		zap.String(fieldAppID, a.key.Name), zap.String(fieldChannel, p.Channel), zap.String(fieldVersion, p.Version),
		zap.Int("attempts", p.Attempts), zap.Int("failures", p.Failures))
}
