package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/capgo-edge/capgo-edge/origin/state"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// watch is a guard with a state on disk, and one app that it watches.
type watch struct {
	t       *testing.T
	path    string
	state   *state.State
	guard   *guard
	release *release
	events  []guardEvent
}

const watchedApp, watchedScope = "com.demo.app", "origin"

func newWatch(t *testing.T) *watch {
	w := &watch{t: t, path: filepath.Join(t.TempDir(), "state.db")}
	w.open()
	return w
}

// open is a start of the edge.
func (w *watch) open() {
	w.t.Helper()
	own, err := state.Open(state.Options{Path: w.path})
	if err != nil {
		w.t.Fatal(err)
	}
	w.state, w.events = own, nil
	w.guard = newGuard(newFaultLog(), func(scope string) pauseKeeper { return own.Scope(scope) })
	w.guard.tell(func(e guardEvent) { w.events = append(w.events, e) })
}

func (w *watch) close() {
	w.t.Helper()
	if err := w.state.Close(); err != nil {
		w.t.Fatal(err)
	}
}

type document = map[string]any

// manifest has a rollout of 1.2.0 to all devices, over 1.1.0, with changes of the channel.
func (w *watch) manifest(changes document) *resolver.Manifest {
	w.t.Helper()
	channel := document{
		"id": 1, "name": "production", "public": true, "version": 1, "rollout_version": 2, "rollout_enabled": true,
		"rollout_percentage_bps": 10000, "rollout_id": "r", "auto_pause_enabled": true, "auto_pause_min_attempts": 10,
		"auto_pause_min_failures": 3, "auto_pause_window_minutes": 30, "auto_pause_cooldown_minutes": 20,
	}
	maps.Copy(channel, changes)
	version := func(id int, name string) document {
		return document{"id": id, "name": name, "r2_path": "orgs/o/apps/" + watchedApp + "/" + name + ".zip", "checksum": strings.Repeat("a", 64)}
	}
	doc, err := json.Marshal(document{
		"app": document{"app_id": watchedApp}, "channels": []any{channel},
		"versions": []any{version(1, "1.1.0"), version(2, "1.2.0"), version(3, "1.3.0")},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := resolver.ParseManifest(doc)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// publish has a manifest in force, as the library does.
func (w *watch) publish(m *resolver.Manifest) *release {
	w.release = &release{manifest: m, guard: w.guard.appOf(watchedScope, m)}
	w.release.guard.follow(w.t.Context(), w.release.manifests()...)
	return w.release
}

func device(i int) string { return fmt.Sprintf("%08d-eefe-490a-9c60-8e965132ae51", i) }

// check is what a device is offered. It is in a network of its own unless another is given.
func (w *watch) check(i int, network ...uint64) string {
	w.t.Helper()
	return w.ask(i, "1.0.0", network...)
}

func (w *watch) ask(i int, runs string, network ...uint64) string {
	w.t.Helper()
	var p resolver.CheckParser
	c, err := p.Parse(fmt.Appendf(nil, `{"app_id":%q,"device_id":%q,"platform":"android","version_name":%q,"version_build":"1.0.0","plugin_version":"8.51.14"}`,
		watchedApp, device(i), runs))
	if err != nil {
		w.t.Fatal(err)
	}
	d, _ := w.release.decide(&c)
	if d.Guard != nil {
		w.release.guard.offered(d.Guard, c.DeviceID, append(network, uint64(1000+i))[0])
	}
	if d.Outcome != resolver.Offer {
		return d.Code
	}
	return d.Bundle.Name
}

func (w *watch) event(i int, action, version string) {
	w.guard.saw(w.t.Context(), watchedScope, &resolver.Event{AppID: watchedApp, DeviceID: device(i), Action: action, Version: version})
}

// fail has n devices offered 1.2.0 and fail with it, beginning with the given one.
func (w *watch) fail(from, n int) {
	w.t.Helper()
	for i := range n {
		w.check(from + i)
		w.event(from+i, "update_fail", "1.2.0")
	}
}

func (w *watch) expect(name string, paused bool, events int) {
	w.t.Helper()
	want := "1.2.0"
	if paused {
		want = "1.1.0"
	}
	if got := w.check(999_999); got != want {
		w.t.Errorf("%s: %s is offered, want %s", name, got, want)
	}
	if got := len(w.guard.pauses()); (got > 0) != paused {
		w.t.Errorf("%s: %d pauses", name, got)
	}
	if len(w.events) != events {
		w.t.Errorf("%s: %d events: %+v", name, len(w.events), w.events)
	}
}

func TestGuardPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		defer w.close()
		w.publish(w.manifest(nil))
		for i := range 9 {
			w.check(i)
			w.event(i, "set", "1.2.0")
		}
		w.check(9)
		w.fail(10, 2)
		w.expect("two failures", false, 0)
		w.event(0, "set_fail", "1.2.0") // after it was set
		w.expect("three failures of eleven", true, 1)
		if got := w.ask(0, "1.2.0"); got != "no_new_version_available" {
			t.Errorf("a device that runs the target is told %s", got)
		}
		e := w.events[0]
		if e.name != eventRolloutPaused || e.data()["version"] != "1.2.0" || e.data()["attempts"] != 11 || e.data()["failures"] != 3 ||
			e.data()["channel"] != "production" || e.data()["app_id"] != watchedApp {
			t.Errorf("event %s %v", e.name, e.data())
		}
		p := w.guard.pauses()[0]
		if p.AppID != watchedApp || p.Origin != watchedScope || p.Channel != "production" || p.Attempts != 11 || p.At.IsZero() {
			t.Errorf("pause %+v", p)
		}
		if w.guard.pausedTotal.Load() != 1 || w.guard.resumedTotal.Load() != 0 {
			t.Error("the totals are wrong")
		}
	})
}

// What does not count, whatever there is of it.
func TestGuardIgnores(t *testing.T) {
	tests := []struct {
		name string
		do   func(w *watch, i int)
	}{
		{"devices of one network", func(w *watch, i int) { w.check(i, 7); w.event(i, "set_fail", "1.2.0") }},
		{"devices that were offered nothing", func(w *watch, i int) { w.event(i, "set_fail", "1.2.0") }},
		{"one device, again and again", func(w *watch, i int) { w.check(1, uint64(i)); w.event(1, "set_fail", "1.2.0") }},
		{"failures of another version", func(w *watch, i int) { w.check(i); w.event(i, "set_fail", "1.1.0") }},
		{"other actions", func(w *watch, i int) { w.check(i); w.event(i, "app_crash", "1.2.0") }},
		{"successes", func(w *watch, i int) { w.check(i); w.event(i, "set", "1.2.0") }},
		{"failures of another app", func(w *watch, i int) {
			w.check(i)
			w.guard.saw(w.t.Context(), watchedScope, &resolver.Event{AppID: "com.other.app", DeviceID: device(i), Action: "set_fail", Version: "1.2.0"})
		}},
		{"failures at another site", func(w *watch, i int) {
			w.check(i)
			w.guard.saw(w.t.Context(), "other", &resolver.Event{AppID: watchedApp, DeviceID: device(i), Action: "set_fail", Version: "1.2.0"})
		}},
		{"events that are refused or dropped", func(w *watch, i int) {
			w.check(i)
			e := resolver.Event{AppID: watchedApp, DeviceID: device(i), Action: "download_fail", Version: "1.2.0", Ignored: true}
			w.guard.saw(w.t.Context(), watchedScope, &e)
			e.Ignored, e.Refusal = false, resolver.ErrNotJSON
			w.guard.saw(w.t.Context(), watchedScope, &e)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWatch(t)
			defer w.close()
			w.publish(w.manifest(nil))
			for i := range 200 {
				tt.do(w, i)
			}
			w.expect(tt.name, false, 0)
		})
	}
}

func TestGuardIsOffByDefault(t *testing.T) {
	w := newWatch(t)
	defer w.close()
	w.publish(w.manifest(document{"auto_pause_enabled": false}))
	w.fail(0, 100)
	w.expect("without a guard", false, 0)
	if w.release.guard != nil {
		t.Error("an app without guards is watched")
	}
}

func TestGuardForgetsOldVotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		defer w.close()
		w.publish(w.manifest(nil))
		w.fail(0, 9)
		time.Sleep(30 * time.Minute)
		w.fail(100, 9)
		w.expect("nine in the window, eighteen in all", false, 0)
		w.check(200)
		time.Sleep(30*time.Minute - time.Second)
		w.event(200, "set_fail", "1.2.0")
		w.expect("the tenth in the window", true, 1)
	})
}

// An offer counts as long as the window, too.
func TestGuardForgetsOldOffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		defer w.close()
		w.publish(w.manifest(nil))
		for i := range 50 {
			w.check(i)
		}
		time.Sleep(30 * time.Minute)
		for i := range 50 {
			w.event(i, "set_fail", "1.2.0")
		}
		w.expect("offered too long ago", false, 0)
	})
}

func TestGuardResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		defer w.close()
		w.publish(w.manifest(nil))
		w.fail(0, 10)
		w.expect("paused", true, 1)
		if got := w.guard.resume(t.Context(), watchedApp, "beta"); len(got) != 0 {
			t.Errorf("another channel resumed %+v", got)
		}
		if got := w.guard.resume(t.Context(), "com.other.app", ""); len(got) != 0 {
			t.Errorf("another app resumed %+v", got)
		}
		w.expect("still paused", true, 1)
		if got := w.guard.resume(t.Context(), watchedApp, "production"); len(got) != 1 || got[0].Version != "1.2.0" {
			t.Errorf("resumed %+v", got)
		}
		w.expect("resumed", false, 2)
		if e := w.events[1]; e.name != eventRolloutResumed || e.data()["version"] != "1.2.0" {
			t.Errorf("event %+v", e)
		}
		// The votes begin anew, and decide nothing during the cooldown.
		w.fail(100, 50)
		w.expect("in the cooldown", false, 2)
		time.Sleep(20 * time.Minute)
		w.fail(200, 1)
		w.expect("after the cooldown", true, 3)
		if got := w.guard.resume(t.Context(), watchedApp, ""); len(got) != 1 {
			t.Errorf("resumed %+v", got)
		}
	})
}

func TestGuardFollowsTheManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		defer w.close()
		w.publish(w.manifest(nil))
		w.fail(0, 10)
		w.publish(w.manifest(document{"disable_auto_update": "none", "allow_emulator": false}))
		w.expect("another part of the channel changed", true, 1)
		w.publish(w.manifest(document{"rollout_percentage_bps": 9999}))
		w.expect("the percentage changed", false, 2)
		w.fail(100, 50)
		w.expect("in the cooldown of the same target", false, 2)
		time.Sleep(20 * time.Minute)
		w.fail(200, 10)
		w.expect("paused again", true, 3)

		// Another target is another matter: it has no cooldown.
		w.publish(w.manifest(document{"rollout_version": 3}))
		if got := w.check(1); got != "1.3.0" {
			t.Errorf("the new target: %s is offered", got)
		}
		for i := range 10 {
			w.check(i)
			w.event(i, "set_fail", "1.3.0")
		}
		if got := w.check(1); got != "1.1.0" {
			t.Errorf("the new target failed: %s is offered", got)
		}
		w.publish(w.manifest(document{"auto_pause_enabled": false}))
		if got := w.check(1); got != "1.2.0" || len(w.guard.pauses()) != 0 {
			t.Errorf("the guard is off: %s is offered", got)
		}
		if w.guard.slots.free.Load() != maxGuardedTargets || w.guard.places.free.Load() != maxGuardedDevices {
			t.Error("room is lost")
		}
	})
}

// A release that still answers requests while the next is in force keeps the pause, whatever the next one says.
func TestGuardPauseBelongsToItsRollout(t *testing.T) {
	w := newWatch(t)
	defer w.close()
	old := w.publish(w.manifest(nil))
	w.fail(0, 10)
	next := &release{manifest: w.manifest(document{"rollout_percentage_bps": 9999}), guard: old.guard}
	w.release = next // seen by requests before it is published
	if got := w.check(1); got != "1.2.0" {
		t.Errorf("the changed rollout: %s is offered", got)
	}
	w.release = old
	if got := w.check(1); got != "1.1.0" {
		t.Errorf("the paused rollout: %s is offered", got)
	}
}

func TestGuardAcrossRestarts(t *testing.T) {
	w := newWatch(t)
	m := w.manifest(document{"auto_pause_cooldown_minutes": 0})
	w.publish(m)
	w.fail(0, 10)
	w.close()

	w.open()
	w.guard.recall([]string{watchedScope}) // nobody has asked for the app yet
	if got := w.guard.pauses(); len(got) != 1 || got[0].Version != "1.2.0" || got[0].Origin != watchedScope {
		t.Errorf("after a restart, pauses %+v", got)
	}
	w.release = &release{manifest: m, guard: w.guard.appOf(watchedScope, m)}
	w.expect("after a restart, before anything is published", true, 0)
	w.publish(m)
	w.expect("after a restart", true, 0)
	if p := w.guard.pauses()[0]; p.Failures != 10 || p.Version != "1.2.0" || p.At.IsZero() {
		t.Errorf("pause %+v", p)
	}
	w.guard.resume(t.Context(), watchedApp, "")
	w.close()

	w.open()
	w.publish(m)
	w.expect("after the next", false, 0)
	w.fail(0, 10)
	w.close()

	w.open() // meanwhile the operator has changed the manifest
	w.publish(w.manifest(document{"rollout_enabled": false}))
	if len(w.guard.pauses()) != 0 || len(w.events) != 1 || len(w.state.Scope(watchedScope).Pauses(watchedApp)) > 0 {
		t.Errorf("pauses %+v, events %+v", w.guard.pauses(), w.events)
	}
	w.close()

	w.open() // what is kept cannot be read
	if err := w.state.Scope(watchedScope).SetPauses(t.Context(), watchedApp, []byte("{")); err != nil {
		t.Fatal(err)
	}
	w.publish(m)
	w.expect("after damage", false, 0)
	w.close()
}

// A pause holds even if it cannot be kept.
func TestGuardWithoutADisk(t *testing.T) {
	w := newWatch(t)
	w.publish(w.manifest(nil))
	w.close()
	w.fail(0, 10)
	w.expect("paused", true, 1)
}

// While a release is held back until its objects are here, what it goes on offering is guarded as well.
func TestGuardUnderHold(t *testing.T) {
	w := newWatch(t)
	defer w.close()
	old := w.publish(w.manifest(nil))
	next := w.publish(w.manifest(document{"rollout_version": 3}))
	waiting := map[*resolver.Bundle]bool{}
	for ch := range next.manifest.Channels() {
		waiting[ch.Target] = true
	}
	next.setHold(&hold{until: time.Now().Add(time.Hour), prev: old.offered(), waiting: waiting})
	next.guard.follow(t.Context(), next.manifests()...)
	w.expect("held", false, 0)
	w.fail(0, 10)
	w.expect("the target before it failed", true, 1)
	next.guard.follow(t.Context(), next.manifests()...)
	w.expect("published again", true, 1)
	// The next release takes over what was in effect: the failing target is not offered again.
	third := &release{manifest: w.manifest(document{"rollout_version": 3, "rollout_percentage_bps": 9999}), guard: next.guard}
	waiting = map[*resolver.Bundle]bool{}
	for ch := range third.manifest.Channels() {
		waiting[ch.Target] = true
	}
	third.setHold(&hold{until: time.Now().Add(time.Hour), prev: next.offered(), waiting: waiting})
	w.release = third
	if got := w.check(999_999); got != "1.1.0" {
		t.Errorf("%s is offered", got)
	}
}

func TestGuardHasBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		defer w.close()
		m := w.manifest(nil)
		var guarded *resolver.Guard
		for g := range m.Guards() {
			guarded = g
		}
		w.publish(m)
		offer := func(version int64) {
			g := *guarded
			g.VersionID = version
			w.release.guard.offered(&g, device(1), 1)
		}
		for version := range int64(maxGuardedTargets + 10) {
			offer(version)
		}
		if got := len(w.release.guard.ballots); got != maxGuardedTargets {
			t.Errorf("%d targets are watched", got)
		}
		time.Sleep(time.Hour)
		offer(1000) // sweeps those nobody was offered since
		offer(1001)
		if got := len(w.release.guard.ballots); got != 1 || w.guard.places.free.Load() != maxGuardedDevices-1 {
			t.Errorf("%d targets are watched an hour later", got)
		}
	})
}

// Minima beyond what is remembered of devices are not a guard that never acts.
func TestGuardMinimaCanBeReached(t *testing.T) {
	b := &ballot{guard: &resolver.Guard{Policy: resolver.AutoPause{Confidence: 0.95, MinAttempts: 1 << 40, MinFailures: 1 << 40}}, votes: newVotes(newBudget(maxVoters))}
	b.votes.window = time.Hour
	for i := range uint64(maxVoters / 2) {
		if b.crossed() {
			t.Fatalf("crossed by %d votes", i)
		}
		b.votes.offered(i, i, 0)
		b.votes.voted(i, true, 0)
	}
	if !b.crossed() {
		t.Error("not crossed by half of the devices that are remembered")
	}
}

// Offers, votes, pauses, resumes and publications from many goroutines.
func TestGuardIsSafe(t *testing.T) {
	w := newWatch(t)
	defer w.close()
	w.guard.tell(func(guardEvent) {})
	manifests := []*resolver.Manifest{
		w.manifest(document{"auto_pause_cooldown_minutes": 0}),
		w.manifest(document{"auto_pause_cooldown_minutes": 0, "rollout_percentage_bps": 9000}),
	}
	w.publish(manifests[0])
	app := w.release.guard
	releases := []*release{w.release, {manifest: manifests[1], guard: app}}
	var p resolver.CheckParser
	check, err := p.Parse(fmt.Appendf(nil, `{"app_id":%q,"device_id":%q,"platform":"ios","version_name":"1.0.0","version_build":"1.0.0","plugin_version":"8.0.0"}`,
		watchedApp, device(1)))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 300 {
				c := check
				c.DeviceID = device(worker*1000 + i)
				if d, _ := releases[i%2].decide(&c); d.Guard != nil {
					app.offered(d.Guard, c.DeviceID, uint64(worker*1000+i))
				}
				w.guard.saw(context.Background(), watchedScope, &resolver.Event{AppID: watchedApp, DeviceID: c.DeviceID, Action: "set_fail", Version: "1.2.0"})
				switch i % 100 {
				case 50:
					app.follow(context.Background(), manifests[worker%2])
				case 75:
					w.guard.resume(context.Background(), watchedApp, "")
				}
				_ = w.guard.pauses()
			}
		})
	}
	wg.Wait()
	kept := w.state.Scope(watchedScope).Pauses(watchedApp)
	if paused := w.guard.pauses(); (len(paused) > 0) != (len(kept) > 0) {
		t.Errorf("paused %+v, kept %s", paused, kept)
	}
}

func TestNetworkOf(t *testing.T) {
	network := func(address string) uint64 {
		r := httptest.NewRequest(http.MethodPost, "/updates", nil)
		vars := map[string]any{}
		if address != "" {
			vars[caddyhttp.ClientIPVarKey] = address
		}
		return networkOf(r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, vars)))
	}
	same := [][2]string{
		{"192.0.2.1", "192.0.2.254"},
		{"192.0.2.1", "::ffff:192.0.2.7"},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::"},
		{"fe80::1%eth0", "fe80::2"},
		{"", "@"},
	}
	for _, s := range same {
		if network(s[0]) != network(s[1]) {
			t.Errorf("%s and %s are in two networks", s[0], s[1])
		}
	}
	seen := map[uint64]string{}
	for _, address := range []string{"", "192.0.2.1", "192.0.3.1", "2001:db8:1:2::1", "2001:db8:1:3::1"} {
		if other, known := seen[network(address)]; known {
			t.Errorf("%s and %s are in one network", address, other)
		}
		seen[network(address)] = address
	}
}

func BenchmarkGuardOffered(b *testing.B) {
	g := newGuard(newFaultLog(), func(string) pauseKeeper { return nil })
	a := &guardedApp{guard: g, ballots: map[ballotKey]*ballot{}}
	guarded := &resolver.Guard{ChannelID: 1, VersionID: 2, Policy: resolver.AutoPause{WindowMinutes: 60}}
	devices := make([]string, 40_000)
	for i := range devices {
		devices[i] = device(i)
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		a.offered(guarded, devices[i%len(devices)], uint64(i%len(devices)/4))
	}
}
