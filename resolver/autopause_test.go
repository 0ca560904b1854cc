package resolver

import (
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The intervals are those of Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3,
// whose two sides of 95 per cent are one side of 97.5 each. The last three follow from the formula.
func TestWilsonLower(t *testing.T) {
	tests := []struct {
		hits, n    int
		confidence float64
		want       float64
	}{
		{81, 263, 0.975, 0.2553},
		{15, 148, 0.975, 0.0624},
		{0, 20, 0.975, 0},
		{1, 29, 0.975, 0.0061},
		{29, 29, 0.975, 0.8830},
		{10, 10, 0.5, 1},
		{3, 10, 0.5, 0.3},
	}
	for _, tt := range tests {
		if got := wilsonLower(tt.n, tt.hits, quantile(tt.confidence)); math.Abs(got-tt.want) > 0.00005 {
			t.Errorf("%d of %d at %v: %.5f, want %.4f", tt.hits, tt.n, tt.confidence, got, tt.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	for p, want := range map[float64]float64{
		0.5: 0, 0.9: 1.2815515655446004, 0.95: 1.6448536269514722, 0.975: 1.959963984540054, 0.99: 2.3263478740408408,
		0.999: 3.090232306167813, 0.05: -1.6448536269514722, 1e-300: -8, math.Nextafter(1, 0): 8,
	} {
		if got := quantile(p); math.Abs(got-want) > 1e-9 && math.Abs(want) != 8 || math.Abs(got) > 8 {
			t.Errorf("quantile(%v) = %v, want %v", p, got, want)
		}
	}
}

func TestCrossed(t *testing.T) {
	policy := newGuardRow().policy // 5 per cent, 0.95, 50 attempts, 5 failures
	with := func(change func(p *AutoPause)) AutoPause {
		p := policy
		change(&p)
		return p
	}
	tests := []struct {
		name               string
		policy             AutoPause
		attempts, failures int
		want               bool
	}{
		{"nothing", policy, 0, 0, false},
		{"just above in 50", policy, 50, 6, true}, // lower end 0.0641
		{"too few failures", policy, 50, 4, false},
		{"the rate alone is above", policy, 100, 8, false}, // seen 0.08, lower end 0.0459
		{"one more", policy, 100, 9, true},                 // lower end 0.0533
		{"too few attempts", policy, 49, 49, false},
		{"all fail", policy, 50, 50, true},
		{"at the limit for ever", policy, 1_000_000, 50_000, false},
		{"above it, with many", policy, 1_000_000, 50_500, true},
		{"more certainty", with(func(p *AutoPause) { p.Confidence = 0.999 }), 100, 9, false},
		{"no limit, no failure", with(func(p *AutoPause) { p.FailureRateBPS, p.MinAttempts, p.MinFailures = 0, 0, 0 }), 100, 0, false},
		{"no limit, one failure", with(func(p *AutoPause) { p.FailureRateBPS, p.MinAttempts, p.MinFailures = 0, 0, 0 }), 100, 1, true},
		{"a limit of all", with(func(p *AutoPause) { p.FailureRateBPS = fullRollout }), 100, 100, false},
		{"minimum of failures", with(func(p *AutoPause) { p.MinFailures = 11 }), 50, 10, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.policy.Crossed(tt.attempts, tt.failures); got != tt.want {
				t.Errorf("crossed: %t, with a lower end of %.4f", got, wilsonLower(tt.attempts, tt.failures, quantile(tt.policy.Confidence)))
			}
		})
	}
}

// More failures never end what fewer began, and the bound never lies above the rate that was seen.
func TestCrossedProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := AutoPause{
			FailureRateBPS: rapid.Int64Range(0, fullRollout).Draw(t, "rate"),
			Confidence:     rapid.Float64Range(0.5, 0.9999).Draw(t, "confidence"),
			MinAttempts:    rapid.Int64Range(0, 100).Draw(t, "attempts"), MinFailures: rapid.Int64Range(0, 20).Draw(t, "failures"),
		}
		n := rapid.IntRange(1, 5000).Draw(t, "n")
		hits := rapid.IntRange(0, n).Draw(t, "hits")
		bound := wilsonLower(n, hits, quantile(p.Confidence))
		if rate := float64(hits) / float64(n); bound < -1e-12 || bound > rate+1e-12 {
			t.Fatalf("bound %v of rate %v", bound, rate)
		}
		if hits > 0 && p.Crossed(n, hits-1) && !p.Crossed(n, hits) {
			t.Fatal("one more failure takes it back")
		}
	})
}

// guarded is a channel that gives half of its devices the target, and asks for the guard.
var guarded = object{
	"rollout_version": 2, "rollout_enabled": true, "rollout_percentage_bps": 5000, "rollout_id": "r", "auto_pause_enabled": true,
}

func guardsOf(m *Manifest) []*Guard { return slices.Collect(m.Guards()) }

func TestGuard(t *testing.T) {
	tests := []struct {
		name    string
		change  object
		guard   bool
		warning string
	}{
		{"asked for", object{}, true, ""},
		{"not asked for", object{"auto_pause_enabled": without}, false, ""},
		{"off", object{"auto_pause_enabled": false}, false, ""},
		{"without a target", object{"rollout_version": nil}, false, ""},
		{"paused already", object{"rollout_paused_at": "2026-01-01"}, true, ""},
		{"action of another kind", object{"auto_pause_action": "rollback"}, false, "$.channels[0].auto_pause_action"},
		{"the same, off", object{"auto_pause_action": "rollback", "auto_pause_enabled": false}, false, ""},
		{"action null", object{"auto_pause_action": nil}, true, ""},
		{"no window", object{"auto_pause_window_minutes": 0}, false, "$.channels[0].auto_pause_window_minutes"},
		{"the same, off", object{"auto_pause_window_minutes": 0, "auto_pause_enabled": false}, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := mustParse(t, scene{channel: guarded.with(tt.change)}.document(t))
			if got := guardsOf(m); (len(got) == 1) != tt.guard {
				t.Fatalf("guards %+v", got)
			}
			if warned := len(m.Warnings) > 0; warned != (tt.warning != "") || warned && m.Warnings[0].Path != tt.warning {
				t.Errorf("warnings %v", m.Warnings)
			}
		})
	}
	m := mustParse(t, scene{channel: guarded.with(object{
		"auto_pause_window_minutes": 1, "auto_pause_cooldown_minutes": 2, "auto_pause_failure_rate_bps": 3,
		"auto_pause_confidence": 0.4, "auto_pause_min_attempts": 5, "auto_pause_min_failures": 6,
	})}.document(t))
	want := AutoPause{WindowMinutes: 1, CooldownMinutes: 2, FailureRateBPS: 3, Confidence: 0.4, MinAttempts: 5, MinFailures: 6}
	g := guardsOf(m)[0]
	if g.Policy != want || g.ChannelID != 1 || g.Channel != "production" || g.VersionID != 2 || g.Version != "1.2.0" {
		t.Errorf("guard %+v", g)
	}
}

// The state is on disk with a pause: what changes it here ends the pauses of all sites when they are updated.
func TestGuardStateIsFrozen(t *testing.T) {
	const golden = 0x85739692984a84bb
	if got := guardsOf(mustParse(t, scene{channel: guarded}.document(t)))[0].State; got != golden {
		t.Errorf("state %#x, want %#x", got, uint64(golden))
	}
}

func TestGuardStateFollowsTheRollout(t *testing.T) {
	state := func(s scene) uint64 {
		s.channel = guarded.with(s.channel)
		return guardsOf(mustParse(t, s.document(t)))[0].State
	}
	before := state(scene{})
	for name, s := range map[string]scene{
		"target":     {channel: object{"rollout_version": 1}},
		"its name":   {target: object{"name": "1.2.1"}},
		"its object": {target: object{"checksum": strings.Repeat("a", 64)}},
		"id":         {channel: object{"rollout_id": "s"}},
		"percentage": {channel: object{"rollout_percentage_bps": 5001}},
		"switch":     {channel: object{"rollout_enabled": false}},
		"pause":      {channel: object{"rollout_paused_at": "2026-01-01"}},
		"window":     {channel: object{"auto_pause_window_minutes": 61}},
		"cooldown":   {channel: object{"auto_pause_cooldown_minutes": 61}},
		"rate":       {channel: object{"auto_pause_failure_rate_bps": 501}},
		"confidence": {channel: object{"auto_pause_confidence": 0.96}},
		"attempts":   {channel: object{"auto_pause_min_attempts": 51}},
		"failures":   {channel: object{"auto_pause_min_failures": 6}},
	} {
		if state(s) == before {
			t.Errorf("another %s leaves the state", name)
		}
	}
	for name, s := range map[string]scene{
		"stable bundle": {channel: object{"version": nil}},
		"policy":        {channel: object{"disable_auto_update": "none"}},
		"app":           {app: object{"expose_metadata": true}},
		"comment":       {target: object{"comment": "x"}},
		"channels":      {channels: []any{object{"id": 7, "name": "beta"}}},
		"written out":   {channel: object{"auto_pause_window_minutes": 60, "auto_pause_confidence": 0.950}},
	} {
		if state(s) != before {
			t.Errorf("another %s changes the state", name)
		}
	}
}

// A decision names the guard for an offer of the target, and for nothing else.
func TestDecisionNamesTheGuard(t *testing.T) {
	tests := []struct {
		name  string
		scene scene
		want  bool
	}{
		{"drawn", scene{channel: object{"rollout_percentage_bps": 10000}}, true},
		{"not drawn", scene{channel: object{"rollout_percentage_bps": 0}}, false},
		{"runs it", scene{channel: object{"rollout_percentage_bps": 10000}, check: object{"version_name": "1.2.0"}}, false},
		{"blocked", scene{channel: object{"rollout_percentage_bps": 10000, "allow_prod": false}}, false},
		{"the target is stable too", scene{channel: object{"rollout_percentage_bps": 10000, "version": 2}}, false},
		{"no guard", scene{channel: object{"rollout_percentage_bps": 10000, "auto_pause_enabled": false}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.scene.channel = guarded.with(tt.scene.channel)
			if d := tt.scene.decide(t); (d.Guard != nil) != tt.want {
				t.Errorf("guard %+v with rule %s", d.Guard, d.Rule)
			}
		})
	}
}

func TestPause(t *testing.T) {
	all := func(*Guard) bool { return true }
	s := scene{channel: guarded.with(object{"rollout_percentage_bps": 10000})}
	m := mustParse(t, s.document(t))
	if m.Pause(func(*Guard) bool { return false }) != m {
		t.Error("a pause of nothing makes another manifest")
	}
	paused := m.Pause(all)
	name := func(m *Manifest, check object) string {
		d := m.Decide(mustCheck(t, scene{check: check}.body(t)))
		return d.Bundle.Name + " " + d.Rule
	}
	fresh, onTarget := object{}, object{"version_name": "1.2.0"}
	if got := name(m, fresh); got != "1.2.0 offer" {
		t.Errorf("before: %s", got)
	}
	if got := name(paused, fresh); got != "1.1.0 offer" {
		t.Errorf("paused: %s", got)
	}
	if got, want := name(paused, onTarget), name(m, onTarget); got != want {
		t.Errorf("on the target: %s, before %s", got, want)
	}
	// It is what the operator's own pause does.
	byHand := mustParse(t, scene{channel: guarded.with(object{"rollout_percentage_bps": 10000, "rollout_paused_at": "now"})}.document(t))
	for _, check := range []object{fresh, onTarget, {"version_name": "1.1.0"}, {"platform": "ios"}, {"defaultChannel": "production"}} {
		if got, want := name(paused, check), name(byHand, check); got != want {
			t.Errorf("%v: %s, by hand %s", check, got, want)
		}
	}
	if byHand.Pause(all) != byHand {
		t.Error("what is paused is paused again")
	}
	if plain := mustParse(t, scene{}.document(t)); plain.Pause(all) != plain {
		t.Error("a manifest without guards is paused")
	}
	if got := guardsOf(paused); len(got) != 1 || got[0] != guardsOf(m)[0] {
		t.Error("the variant has other guards")
	}
}

// A rollout that Hold goes on with keeps its own guard, and stays paused.
func TestPauseUnderHold(t *testing.T) {
	rollout := guarded.with(object{"rollout_percentage_bps": 10000})
	third := object{"id": 3, "name": "1.3.0", "r2_path": "orgs/o/apps/com.demo.app/1.3.0.zip", "checksum": testDigest}
	document := func(target int) []byte {
		return toJSON(t, object{
			"app": object{"app_id": testApp}, "versions": []any{plainVersion, plainTarget, third},
			"channels": []any{plainChannel.with(rollout).with(object{"rollout_version": target})},
		})
	}
	prev, next := mustParse(t, document(2)), mustParse(t, document(3))
	held := next.Hold(prev, func(b *Bundle) bool { return b.Name == "1.3.0" })
	check := mustCheck(t, scene{}.body(t))
	if d := held.Decide(check); d.Guard == nil || d.Guard.Version != "1.2.0" {
		t.Fatalf("held: %s, guard %+v", d.Bundle.Name, d.Guard)
	}
	failing := guardsOf(prev)[0].State
	isFailing := func(g *Guard) bool { return g.State == failing }
	if d := held.Pause(isFailing).Decide(check); d.Bundle.Name != "1.1.0" {
		t.Errorf("paused while held: %s", d.Bundle.Name)
	}
	if d := next.Pause(isFailing).Decide(check); d.Bundle.Name != "1.3.0" {
		t.Errorf("the next target: %s", d.Bundle.Name)
	}
	held = next.Hold(prev.Pause(isFailing), func(b *Bundle) bool { return b.Name == "1.3.0" })
	if d := held.Decide(check); d.Bundle.Name != "1.1.0" {
		t.Errorf("held after a pause: %s", d.Bundle.Name)
	}
}

func BenchmarkCrossed(b *testing.B) {
	p := newGuardRow().policy
	for b.Loop() {
		p.Crossed(1000, 51)
	}
}
