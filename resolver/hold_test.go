package resolver

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// holdVersions are rows of versions for Hold's tests, by id: 1.0.<id>, each with a zip and a delta file. Changes go by id;
// the change without takes the row away.
func holdVersions(changes map[int]any) []any {
	var rows []any
	for id := 1; id <= 5; id++ {
		row := object{
			"id": id, "name": fmt.Sprintf("1.0.%d", id), "checksum": fmt.Sprintf("%064x", id),
			"r2_path":  fmt.Sprintf("orgs/o/apps/com.demo.app/1.0.%d.zip", id),
			"manifest": []any{object{"file_name": "f", "file_hash": "h", "s3_path": fmt.Sprintf("orgs/o/apps/com.demo.app/delta/%d", id)}},
		}
		switch change := changes[id].(type) {
		case object:
			rows = append(rows, row.with(change))
		case nil:
			rows = append(rows, row)
		}
	}
	return rows
}

// holdManifest has one public channel, changed as told, and an override of testDevice into it.
func holdManifest(t testing.TB, channel object, changes map[int]any, more ...any) *Manifest {
	t.Helper()
	return mustParse(t, toJSON(t, object{
		"app": object{"app_id": testApp}, "versions": holdVersions(changes),
		"channels":        append([]any{plainChannel.with(channel)}, more...),
		"channel_devices": []any{object{"device_id": testDevice, "channel_id": 1}},
	}))
}

// heldIDs is a predicate that holds the versions of these ids.
func heldIDs(ids ...int64) func(*Bundle) bool {
	return func(b *Bundle) bool { return slices.Contains(ids, b.ID) }
}

func pointsAt(id any) object { return object{"version": id} }

func rollsOut(stable, target any, bps int) object {
	return object{"version": stable, "rollout_version": target, "rollout_enabled": true, "rollout_percentage_bps": bps}
}

// standing is what a channel points at. Zero stands for the native bundle, and for no target.
type standing struct {
	Stable, Target int64
	Bps            int64
	Paused         bool
	RolloutID      string
}

func standingOf(ch *channel) standing {
	s := standing{Stable: ch.stable.ID}
	if r := &ch.rollout; r.live() {
		s.Target, s.Bps, s.Paused, s.RolloutID = r.target.ID, r.bps, r.paused, r.id
	}
	return s
}

func TestHold(t *testing.T) {
	none := map[int]any(nil)
	paused := object{"rollout_paused_at": "2026-01-01T00:00:00Z"}
	off := object{"rollout_enabled": false}
	tests := []struct {
		name    string
		before  object // prev's channel
		beforeV map[int]any
		after   object // m's channel
		afterV  map[int]any
		held    []int64
		want    standing
	}{
		{"nothing held", pointsAt(1), none, pointsAt(2), none, nil, standing{Stable: 2}},
		{"another one held", pointsAt(1), none, pointsAt(2), none, []int64{1, 3}, standing{Stable: 2}},
		{"forward", pointsAt(1), none, pointsAt(2), none, []int64{2}, standing{Stable: 1}},
		{"forward by several", pointsAt(1), none, pointsAt(5), none, []int64{2, 3, 4, 5}, standing{Stable: 1}},
		{"rollback", pointsAt(3), none, pointsAt(2), none, []int64{2}, standing{Stable: 2}},
		{"no move", pointsAt(2), none, pointsAt(2), none, []int64{2}, standing{Stable: 2}},
		{"first release", pointsAt(nil), none, pointsAt(2), none, []int64{2}, standing{}},
		{"first release, native bundle by a row of a larger id", pointsAt(5), map[int]any{5: object{"name": "builtin"}}, pointsAt(2), none, []int64{2}, standing{Stable: 5}},
		{"first release, that row deleted", pointsAt(1), map[int]any{1: object{"name": "builtin"}}, pointsAt(2), map[int]any{1: object{"name": "builtin", "deleted": true}}, []int64{2}, standing{Stable: 1}},
		{"first release, that row gone", pointsAt(1), map[int]any{1: object{"name": "builtin"}}, pointsAt(2), map[int]any{1: without}, []int64{2}, standing{Stable: 1}},
		{"back to the native bundle", pointsAt(2), none, pointsAt(nil), none, []int64{0, 2}, standing{}},
		{"back to a row of the native bundle", pointsAt(2), none, pointsAt(3), map[int]any{3: object{"name": "builtin"}}, []int64{3}, standing{Stable: 3}},
		{"previous deleted", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"deleted": true}}, []int64{2}, standing{Stable: 2}},
		{"previous gone", pointsAt(1), none, pointsAt(2), map[int]any{1: without}, []int64{2}, standing{Stable: 2}},
		{"previous renamed", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"name": "1.0.1-x"}}, []int64{2}, standing{Stable: 2}},
		{"previous became the native bundle", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"name": "builtin"}}, []int64{2}, standing{Stable: 2}},
		{"previous has another zip", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"r2_path": "orgs/o/x.zip"}}, []int64{2}, standing{Stable: 2}},
		{"previous has another checksum", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"checksum": "x"}}, []int64{2}, standing{Stable: 2}},
		{"previous has another session key", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"session_key": "a:b"}}, []int64{2}, standing{Stable: 2}},
		{"previous has another key id", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"key_id": "x"}}, []int64{2}, standing{Stable: 2}},
		{"previous is for other natives", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"min_update_version": "1.0.0"}}, []int64{2}, standing{Stable: 2}},
		{"previous lies elsewhere", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"external_url": "https://x.example"}}, []int64{2}, standing{Stable: 2}},
		{"previous lost its files", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"manifest": nil}}, []int64{2}, standing{Stable: 2}},
		{
			"previous got more files", pointsAt(1),
			map[int]any{1: object{"manifest": nil}},
			pointsAt(2), none,
			[]int64{2},
			standing{Stable: 1},
		},
		{"previous has other notes", pointsAt(1), none, pointsAt(2), map[int]any{1: object{"link": "l", "comment": "c"}}, []int64{2}, standing{Stable: 1}},
		{"previous outside the storage", pointsAt(1), map[int]any{1: object{"external_url": "https://x.example"}}, pointsAt(2), map[int]any{1: object{"external_url": "https://x.example"}}, []int64{2}, standing{Stable: 1}},
		{"previous was deleted before", pointsAt(1), map[int]any{1: object{"deleted": true}}, pointsAt(2), none, []int64{2}, standing{Stable: 2}},
		{"previous could not be offered", pointsAt(1), map[int]any{1: object{"r2_path": nil, "manifest": nil}}, pointsAt(2), map[int]any{1: object{"r2_path": nil, "manifest": nil}}, []int64{2}, standing{Stable: 2}},
		{"new one deleted", pointsAt(1), none, pointsAt(2), map[int]any{2: object{"deleted": true}}, []int64{2}, standing{Stable: 2}},
		{"new one has nothing to load", pointsAt(1), none, pointsAt(2), map[int]any{2: object{"r2_path": nil, "manifest": nil}}, []int64{2}, standing{Stable: 2}},
		{"the id is what counts, not the name", pointsAt(1), map[int]any{1: object{"name": "9.0.0"}}, pointsAt(2), map[int]any{1: object{"name": "9.0.0"}}, []int64{2}, standing{Stable: 1}},

		{"rollout not held", pointsAt(1), none, rollsOut(1, 2, 5000), none, []int64{3}, standing{1, 2, 5000, false, "1:2"}},
		{"first rollout", pointsAt(1), none, rollsOut(1, 2, 5000), none, []int64{2}, standing{1, 2, 5000, true, "1:2"}},
		{"next rollout", rollsOut(1, 2, 7000), none, rollsOut(1, 3, 100), none, []int64{3}, standing{1, 2, 7000, false, "1:2"}},
		{"next rollout, previous without an end", rollsOut(1, 2, 10000), none, rollsOut(1, 3, 100), none, []int64{3}, standing{1, 2, 10000, false, "1:2"}},
		{"next rollout, previous paused", rollsOut(1, 2, 7000).with(paused), none, rollsOut(1, 3, 100), none, []int64{3}, standing{1, 2, 7000, true, "1:2"}},
		{"next rollout, previous off", rollsOut(1, 2, 7000).with(off), none, rollsOut(1, 3, 100), none, []int64{3}, standing{1, 3, 100, true, "1:3"}},
		{"next rollout, previous at 0", rollsOut(1, 2, 0), none, rollsOut(1, 3, 100), none, []int64{3}, standing{1, 2, 0, false, "1:2"}},
		{"next rollout, previous deleted", rollsOut(1, 2, 7000), none, rollsOut(1, 3, 100), map[int]any{2: object{"deleted": true}}, []int64{3}, standing{1, 3, 100, true, "1:3"}},
		{"next rollout, previous gone", rollsOut(1, 2, 7000), none, rollsOut(1, 3, 100), map[int]any{2: without}, []int64{3}, standing{1, 3, 100, true, "1:3"}},
		{"next rollout, previous was deleted before", rollsOut(1, 2, 7000), map[int]any{2: object{"deleted": true}}, rollsOut(1, 3, 100), none, []int64{3}, standing{1, 3, 100, true, "1:3"}},
		{"rollout goes back", rollsOut(1, 4, 7000), none, rollsOut(1, 3, 100), none, []int64{3}, standing{1, 3, 100, true, "1:3"}},
		{"rollout raised", rollsOut(1, 2, 100), none, rollsOut(1, 2, 9000), none, []int64{2}, standing{1, 2, 9000, true, "1:2"}},
		{"rollout paused by the operator", rollsOut(1, 2, 100), none, rollsOut(1, 3, 100).with(paused), none, []int64{3}, standing{1, 3, 100, true, "1:3"}},
		{"rollout off", rollsOut(1, 2, 100), none, rollsOut(1, 3, 100).with(off), none, []int64{3}, standing{Stable: 1}},
		{"rollout at 0", rollsOut(1, 2, 100), none, rollsOut(1, 3, 0), none, []int64{3}, standing{1, 3, 0, false, "1:3"}},
		{"rollout beside the native bundle", rollsOut(nil, 2, 100), none, rollsOut(nil, 3, 100), none, []int64{3}, standing{0, 2, 100, false, "1:2"}},

		{"promoted, and the next rollout", rollsOut(1, 2, 7000), none, rollsOut(2, 3, 100), none, []int64{3}, standing{2, 3, 100, true, "1:3"}},
		{"overtaken, and the next rollout", rollsOut(1, 2, 7000), none, rollsOut(3, 4, 100), none, []int64{4}, standing{3, 4, 100, true, "1:4"}},
		{"both held", rollsOut(1, 2, 7000), none, rollsOut(3, 4, 100), none, []int64{3, 4}, standing{1, 2, 7000, false, "1:2"}},
		{"both held, no rollout before", pointsAt(1), none, rollsOut(3, 4, 100), none, []int64{3, 4}, standing{1, 4, 100, true, "1:4"}},
		{"stable held, rollout not", rollsOut(1, 2, 7000), none, rollsOut(3, 4, 100), none, []int64{3}, standing{1, 4, 100, false, "1:4"}},
		{"stable held, rollout goes on", rollsOut(1, 2, 7000), none, rollsOut(3, 2, 8000), none, []int64{3}, standing{1, 2, 8000, false, "1:2"}},
		{"stable held, rollout ended", rollsOut(1, 2, 7000), none, pointsAt(3), none, []int64{3}, standing{1, 2, 7000, true, "1:2"}},
		{"stable held, rollout switched off", rollsOut(1, 2, 7000), none, rollsOut(3, 2, 7000).with(off), none, []int64{3}, standing{1, 2, 7000, true, "1:2"}},
		{"stable held, rollout ended and its target deleted", rollsOut(1, 2, 7000), none, pointsAt(3), map[int]any{2: object{"deleted": true}}, []int64{3}, standing{Stable: 1}},
		{"stable held, rollout of a later one ended", rollsOut(1, 4, 7000), none, pointsAt(3), none, []int64{3}, standing{Stable: 1}},
		{"target promoted before it is here", rollsOut(1, 2, 7000), none, pointsAt(2), none, []int64{2}, standing{Stable: 1}},
		{"rollback ends a rollout", rollsOut(3, 4, 7000), none, pointsAt(2), none, []int64{2}, standing{Stable: 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			prev, m := holdManifest(t, tt.before, tt.beforeV), holdManifest(t, tt.after, tt.afterV)
			got := m.Hold(prev, heldIDs(tt.held...))
			if diff := cmp.Diff(tt.want, standingOf(&got.channels[0])); diff != "" {
				t.Errorf("the channel (-want +got):\n%s", diff)
			}
			if same := reflect.DeepEqual(got, m); same != (got == m) {
				t.Errorf("the variant equals the manifest: %t, it is the manifest: %t", same, got == m)
			}
			if !reflect.DeepEqual(prev, holdManifest(t, tt.before, tt.beforeV)) || !reflect.DeepEqual(m, holdManifest(t, tt.after, tt.afterV)) {
				t.Error("a manifest was changed")
			}
			checkVariant(t, got, m, prev)
			if again := m.Hold(got, heldIDs(tt.held...)); !reflect.DeepEqual(again, got) {
				t.Errorf("held again, over what is offered now: %+v", standingOf(&again.channels[0]))
			}
		})
	}
}

// checkVariant demands what holds for all variants of m: all is m's but for what channels point at, and that is prev's;
// devices are led to the variant's own channels; and answers hand out addresses of keys that m names.
func checkVariant(t *testing.T, v, m, prev *Manifest) {
	t.Helper()
	if v.AppID != m.AppID || !reflect.DeepEqual(v.Keys, m.Keys) || !reflect.DeepEqual(v.overrides, m.overrides) || v.public != m.public ||
		!reflect.DeepEqual(v.byName, m.byName) || !reflect.DeepEqual(v.versions, m.versions) || len(v.channels) != len(m.channels) {
		t.Fatal("the variant is of another document")
	}
	active, paused := false, map[string]bool{}
	for i := range v.channels {
		ch, own := v.channels[i], m.channels[i]
		if ch.stable != own.stable && !pointedAt(prev, ch.id, ch.stable) || ch.rollout.target != own.rollout.target && !pointedAt(prev, ch.id, ch.rollout.target) {
			t.Errorf("channel %s points at a bundle of neither manifest: %+v", ch.name, standingOf(&ch))
		}
		if r := ch.rollout; r.target != nil && r.enabled && r.bps > 0 {
			active = active || !r.paused
			if r.paused {
				paused[r.target.Name] = true
			}
		}
		ch.stable, ch.rollout = own.stable, own.rollout
		if ch != own {
			t.Errorf("channel %s differs in more than its bundles", ch.name)
		}
		if v.at(v.byName[ch.name]) != &v.channels[i] {
			t.Errorf("the name %s does not lead to the variant's channel", ch.name)
		}
	}
	if v.rolloutActive != active || !maps.Equal(v.pausedTargets, paused) {
		t.Errorf("rollouts are indexed as %t, %v, want %t, %v", v.rolloutActive, v.pausedTargets, active, paused)
	}
	for _, check := range fuzzChecks(t) {
		d := v.Decide(check)
		answer := AppendResponse(nil, &d, testBase)
		if err := wellFormed(answer); err != nil {
			t.Fatalf("%v: %s", err, answer)
		}
		checkOffered(t, v, &d, answer)
	}
}

func pointedAt(m *Manifest, id int64, b *Bundle) bool {
	if m == nil {
		return false
	}
	i := slices.IndexFunc(m.channels, func(ch channel) bool { return ch.id == id })
	return i >= 0 && (m.channels[i].stable == b || m.channels[i].rollout.target == b)
}

// A channel that is new has no bundle to stay with. Its rollout waits all the same: it has a stable bundle.
func TestHoldWithoutAPast(t *testing.T) {
	for name, prev := range map[string]*Manifest{
		"no manifest":    nil,
		"no channels":    mustParse(t, []byte(`{"app":{"app_id":"com.demo.app"}}`)),
		"other channels": mustParse(t, toJSON(t, object{"app": object{"app_id": testApp}, "channels": []any{object{"id": 9, "name": "production"}}})),
	} {
		t.Run(name, func(t *testing.T) {
			m := holdManifest(t, pointsAt(2), nil)
			if v := m.Hold(prev, heldIDs(2)); v != m {
				t.Errorf("a new channel is held: %+v", standingOf(&v.channels[0]))
			}
			m = holdManifest(t, rollsOut(2, 3, 500), nil)
			v := m.Hold(prev, heldIDs(2, 3))
			if diff := cmp.Diff(standing{2, 3, 500, true, "1:3"}, standingOf(&v.channels[0])); diff != "" {
				t.Errorf("the channel (-want +got):\n%s", diff)
			}
			checkVariant(t, v, m, prev)
		})
	}
}

// The variant is found like any manifest: by override, by name, as the public channel.
func TestHoldDecides(t *testing.T) {
	const stranger = "ffffffff-ffff-4fff-bfff-ffffffffffff"
	beta := func(version int) any {
		return object{"id": 2, "name": "beta", "version": version, "allow_device_self_set": true}
	}
	prev := holdManifest(t, pointsAt(1), nil, beta(2))
	m := holdManifest(t, pointsAt(4), nil, beta(3))
	tests := []struct {
		name   string
		held   []int64
		check  object
		device string
		want   string // rule and version
	}{
		{"override", []int64{4}, nil, "", "offer 1.0.1"},
		{"override, whatever is named", []int64{4}, object{"defaultChannel": "beta"}, "", "offer 1.0.1"},
		{"public", []int64{4}, nil, stranger, "offer 1.0.1"},
		{"by name", []int64{4}, object{"defaultChannel": "beta"}, stranger, "offer 1.0.3"},
		{"by name, held", []int64{3, 4}, object{"defaultChannel": "beta"}, stranger, "offer 1.0.2"},
		{"public, another one held", []int64{3}, nil, stranger, "offer 1.0.4"},
		{"on the previous one", []int64{4}, object{"version_name": "1.0.1"}, stranger, "up_to_date 1.0.1"},
		{"on the held one", []int64{4}, object{"version_name": "1.0.4"}, stranger, "up_to_date 1.0.4"},
		{"on another one", []int64{4}, object{"version_name": "1.0.2"}, stranger, "offer 1.0.1"},
		{"not for this native", []int64{4}, object{"version_build": "2.0.0"}, stranger, "native_floor 1.0.4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			held := heldIDs(tt.held...)
			c := mustCheck(t, scene{check: tt.check, device: tt.device}.body(t))
			d := decideHeld(m, m.Hold(prev, held), held, c)
			if got := d.Rule + " " + d.Bundle.Name; got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	// Why the variant alone must not answer: it would take back what another site has handed out.
	v := m.Hold(prev, heldIDs(4))
	if d := v.Decide(mustCheck(t, scene{check: object{"version_name": "1.0.4"}}.body(t))); d.Outcome != Offer || d.Bundle.ID != 1 {
		t.Errorf("the variant answers %s for %s: the rule for callers is not needed", d.Rule, d.Bundle.Name)
	}
}

// decideHeld is how callers use a variant.
func decideHeld(m, variant *Manifest, held func(*Bundle) bool, c *Check) Decision {
	d := m.Decide(c)
	if d.Outcome == Offer && held(d.Bundle) {
		d = variant.Decide(c)
	}
	return d
}

// A device stays on what a rollout gave it while the rollout's end, or the next one, is on its way.
func TestHoldTakesNoTargetBack(t *testing.T) {
	prev := holdManifest(t, rollsOut(1, 2, 10000), nil)
	paused := holdManifest(t, rollsOut(1, 2, 10000).with(object{"rollout_paused_at": "x"}), nil)
	onTarget := mustCheck(t, scene{check: object{"version_name": "1.0.2"}}.body(t))
	for name, tt := range map[string]struct{ prev, m *Manifest }{
		"next rollout":             {prev, holdManifest(t, rollsOut(1, 3, 10000), nil)},
		"next rollout, was paused": {paused, holdManifest(t, rollsOut(1, 3, 10000), nil)},
		"stable overtook it":       {prev, holdManifest(t, pointsAt(3), nil)},
		"both":                     {prev, holdManifest(t, rollsOut(3, 4, 10000), nil)},
	} {
		t.Run(name, func(t *testing.T) {
			held := heldIDs(3, 4)
			if d := tt.m.Decide(onTarget); d.Outcome != Offer {
				t.Fatalf("%s answers: the device is not concerned", d.Rule)
			}
			if d := decideHeld(tt.m, tt.m.Hold(tt.prev, held), held, onTarget); d.Outcome != UpToDate {
				t.Errorf("%s answers for %s", d.Rule, d.Bundle.Name)
			}
		})
	}
}

// Releases that follow each other while nothing is here: what is offered is the last that was.
func TestHoldInAChain(t *testing.T) {
	steps := []struct {
		name    string
		channel object
		changes map[int]any
		held    []int64
		want    standing
	}{
		{"start", pointsAt(1), nil, nil, standing{Stable: 1}},
		{"release", pointsAt(2), nil, []int64{2}, standing{Stable: 1}},
		{"the next", pointsAt(3), nil, []int64{2, 3}, standing{Stable: 1}},
		{"and a rollout", rollsOut(3, 4, 500), nil, []int64{2, 3, 4}, standing{1, 4, 500, true, "1:4"}},
		{"stable is here", rollsOut(3, 4, 500), nil, []int64{4}, standing{3, 4, 500, true, "1:4"}},
		{"target is here", rollsOut(3, 4, 500), nil, nil, standing{3, 4, 500, false, "1:4"}},
		{"the next rollout", rollsOut(3, 5, 100), nil, []int64{5}, standing{3, 4, 500, false, "1:4"}},
		{"raised", rollsOut(3, 5, 900), nil, []int64{5}, standing{3, 4, 500, false, "1:4"}},
		{"rolled out", pointsAt(5), nil, []int64{5}, standing{3, 4, 500, true, "1:4"}},
		{"and once more", pointsAt(5), nil, []int64{5}, standing{3, 4, 500, true, "1:4"}},
		{"what was offered is deleted", pointsAt(5), map[int]any{3: object{"deleted": true}}, []int64{5}, standing{Stable: 5}},
		{"rollback", pointsAt(4), nil, []int64{4, 5}, standing{Stable: 4}},
		{"native bundle", pointsAt(nil), nil, []int64{4, 5}, standing{}},
		{"from there", pointsAt(2), nil, []int64{2}, standing{}},
		{"on", pointsAt(3), nil, []int64{2, 3}, standing{}},
		{"here", pointsAt(3), nil, nil, standing{Stable: 3}},
	}
	var offered *Manifest
	for _, step := range steps {
		m := holdManifest(t, step.channel, step.changes)
		v := m.Hold(offered, heldIDs(step.held...))
		if diff := cmp.Diff(step.want, standingOf(&v.channels[0])); diff != "" {
			t.Fatalf("%s: the channel (-want +got):\n%s", step.name, diff)
		}
		checkVariant(t, v, m, offered)
		offered = v
	}
}

// Asking whether a bundle is here may cost a look at each of its objects.
func TestHoldAsksOnce(t *testing.T) {
	more := []any{object{"id": 2, "name": "b", "version": 3}, object{"id": 3, "name": "c", "version": nil}, object{"id": 4, "name": "d", "version": 4}}
	prev := holdManifest(t, pointsAt(1), nil, more...)
	m := holdManifest(t, rollsOut(3, 3, 500), map[int]any{4: object{"deleted": true}}, more...)
	asked := map[int64]int{}
	m.Hold(prev, func(b *Bundle) bool {
		asked[b.ID]++
		return true
	})
	if diff := cmp.Diff(map[int64]int{3: 1}, asked); diff != "" {
		t.Errorf("questions by id (-want +got):\n%s", diff)
	}
}

// A variant costs its channels, not its overrides or versions: holds come and go with each release.
func TestHoldShares(t *testing.T) {
	prev, m := mustParse(t, appOf(3, 10, 50_000)), mustParse(t, appOf(3, 11, 50_000))
	v := m.Hold(prev, heldIDs(11))
	if v == m || v.channels[0].stable != prev.channels[0].stable {
		t.Fatal("nothing is held")
	}
	for name, parts := range map[string][2]any{
		"overrides": {v.overrides, m.overrides}, "names": {v.byName, m.byName}, "keys": {v.Keys.ids, m.Keys.ids}, "versions": {v.versions, m.versions},
	} {
		if reflect.ValueOf(parts[0]).Pointer() != reflect.ValueOf(parts[1]).Pointer() {
			t.Errorf("the %s are copied", name)
		}
	}
	budget(t, "Hold", 100, func() { m.Hold(prev, heldIDs(11)) })
	if diff := v.MemorySize() - m.MemorySize(); diff < -100 || diff > 100 {
		t.Errorf("the variant counts %d bytes, the manifest %d", v.MemorySize(), m.MemorySize())
	}
}

// Versions are told apart by what their rows say, however those are written.
func TestVersionMarks(t *testing.T) {
	rows := func(rows ...any) versionMarks {
		return mustParse(t, toJSON(t, object{"app": object{"app_id": testApp}, "versions": rows})).versions
	}
	row := object{"id": 7, "name": "1.0.0", "r2_path": "a", "checksum": "b"}
	mark := rows(row)[0]
	t.Run("sorted, without the deleted", func(t *testing.T) {
		got := rows(row.with(object{"id": 9}), row.with(object{"id": 8, "deleted": true}), row, row.with(object{"id": 1, "name": "builtin", "deleted": true}))
		var ids []int64
		for _, v := range got {
			ids = append(ids, v.id)
		}
		if diff := cmp.Diff([]int64{1, 7, 9}, ids); diff != "" {
			t.Errorf("ids (-want +got):\n%s", diff)
		}
		for want, v := range map[bool]versionMark{true: mark, false: {8, mark.mark}} {
			if got.has(v) != want {
				t.Errorf("%+v is there: %t", v, !want)
			}
		}
		if got.has(versionMark{7, mark.mark + 1}) || versionMarks(nil).has(mark) {
			t.Error("another mark is there")
		}
	})
	for name, other := range map[string]object{
		"name": {"name": "1.0.1"}, "key": {"r2_path": "c"}, "checksum": {"checksum": "c"}, "a text moves on": {"r2_path": "ab", "checksum": nil},
		"session key": {"session_key": "x"}, "address": {"external_url": "x"}, "key id": {"key_id": "x"}, "minimum": {"min_update_version": "x"},
	} {
		if rows(row.with(other))[0].mark == mark.mark {
			t.Errorf("another %s has the same mark", name)
		}
	}
	for name, other := range map[string]object{
		"id": {"id": 8}, "notes": {"link": "x", "comment": "y"}, "unknown": {"created_at": "x"}, "null": {"session_key": nil, "deleted": nil},
		"files": {"manifest": []any{object{"file_name": "f", "file_hash": "h", "s3_path": "k"}}},
	} {
		if rows(row.with(other))[0].mark != mark.mark {
			t.Errorf("another %s has another mark", name)
		}
	}
}

// story is a random document in plain rows, from which the rule of Hold is worked out a second time.
type story struct {
	versions map[int64]storyVersion
	channels map[int64]storyChannel
}

type storyVersion struct {
	ID      int64
	Name    string
	Zip     string
	Files   string // keys of one letter each
	Deleted bool
}

// storyChannel is what a channel points at; in a document by the rows of that document.
type storyChannel struct {
	Stable, Target  storyVersion
	Enabled, Paused bool
	Bps             int64
	RolloutID       string
}

var storyNative = storyVersion{Name: "builtin"}

func (v storyVersion) gone() bool { return v.Deleted && v.Name != "builtin" }
func (v storyVersion) loadable() bool {
	return v.Name != "builtin" && !v.Deleted && v.Zip+v.Files != ""
}

func (c storyChannel) live() bool  { return c.Target.ID != 0 && !c.Target.gone() && c.Enabled }
func (c storyChannel) gives() bool { return c.live() && !c.Paused && c.Bps > 0 }

func (c storyChannel) withRollout(of storyChannel) storyChannel {
	of.Stable = c.Stable
	return of
}

// has reports whether the version is served: its row is there as it was, and all files are named somewhere.
func (s story) has(v storyVersion) bool {
	row, ok := s.versions[v.ID]
	named := map[rune]bool{}
	for _, v := range s.versions {
		for _, f := range v.Files {
			named[f] = true
		}
	}
	for _, f := range v.Files {
		ok = ok && named[f]
	}
	return ok && !row.Deleted && row.Name == v.Name && row.Zip == v.Zip
}

// expect is the rule of Hold for one channel; old is how it stood, if it was there.
func (s story) expect(own, old storyChannel, known bool, held map[int64]bool) storyChannel {
	isHeld := func(v storyVersion) bool { return v.loadable() && held[v.ID] }
	mayStay := func(v, next storyVersion) bool {
		return v.Name == "builtin" || v.ID < next.ID && v.loadable() && s.has(v)
	}
	now := own
	switch {
	case own.Stable.gone():
		return own
	case known && isHeld(own.Stable) && mayStay(old.Stable, own.Stable):
		now.Stable = old.Stable
		if !own.live() && old.live() && mayStay(old.Target, own.Stable) {
			now = now.withRollout(old)
			now.Paused = true
		}
	}
	if own.gives() && isHeld(own.Target) {
		stays := known && now.Stable.ID == old.Stable.ID && now.Stable.Name == old.Stable.Name
		if stays && old.live() && mayStay(old.Target, own.Target) {
			return now.withRollout(old)
		}
		now.Paused = true
	}
	return now
}

// next is a later document: most of it as it was, and most channels move forward.
func (s story) next(r *rand.Rand) story {
	n := story{map[int64]storyVersion{}, map[int64]storyChannel{}}
	maps.Copy(n.versions, s.versions)
	for id := int64(1); id <= 6; id++ {
		v, ok := n.versions[id]
		if !ok {
			v = storyVersion{ID: id, Name: fmt.Sprintf("1.0.%d", id), Zip: fmt.Sprintf("z%d", id), Files: string(rune('a' + id))}
		}
		switch r.IntN(40) {
		case 0:
			v.Deleted = !v.Deleted
		case 1:
			v.Name += "-x"
		case 2:
			v.Zip = []string{"", "other"}[r.IntN(2)]
		case 3:
			v.Files = []string{"", "b", "ce"}[r.IntN(3)]
		case 4:
			v.Name = "builtin"
		case 5:
			delete(n.versions, id)
			continue
		}
		n.versions[id] = v
	}
	pick := func(from int64) storyVersion {
		for range 10 {
			if v, ok := n.versions[min(6, max(1, from+r.Int64N(4)-1))]; ok {
				return v
			}
		}
		return storyNative
	}
	for id := int64(1); id <= 3; id++ {
		c, known := s.channels[id]
		if !known && r.IntN(3) == 0 || known && r.IntN(20) == 0 {
			continue
		}
		if c.Stable = pick(c.Stable.ID); r.IntN(8) == 0 {
			c.Stable = storyNative
		}
		c.Target, c.RolloutID = storyVersion{}, ""
		if r.IntN(3) > 0 {
			c.Target = pick(c.Stable.ID + 1)
			if c.Target.ID == 0 {
				c.Target = storyVersion{}
			}
			c.RolloutID = fmt.Sprintf("%d of %d", c.Target.ID, id)
		}
		c.Enabled, c.Paused, c.Bps = r.IntN(5) > 0, r.IntN(6) == 0, []int64{0, 1, 5000, 10000}[r.IntN(4)]
		n.channels[id] = c
	}
	return n
}

func (s story) manifest(t *testing.T) *Manifest {
	t.Helper()
	versions, channels := []any{}, []any{}
	for _, v := range s.versions {
		files := []any{}
		for _, f := range v.Files {
			files = append(files, object{"file_name": "f", "file_hash": "h", "s3_path": "files/" + string(f)})
		}
		versions = append(versions, object{
			"id": v.ID, "name": v.Name, "r2_path": v.Zip, "checksum": testDigest, "deleted": v.Deleted, "manifest": files,
		})
	}
	for _, id := range slices.Sorted(maps.Keys(s.channels)) {
		c := s.channels[id]
		row := object{
			"id": id, "name": fmt.Sprintf("c%d", id), "public": id == 1, "allow_device_self_set": true, "disable_auto_update": "none",
			"rollout_enabled": c.Enabled, "rollout_percentage_bps": c.Bps, "rollout_id": c.RolloutID,
		}
		for member, v := range map[string]storyVersion{"version": c.Stable, "rollout_version": c.Target} {
			if v.ID != 0 {
				row[member] = v.ID
			}
		}
		if c.Paused {
			row["rollout_paused_at"] = "x"
		}
		channels = append(channels, row)
	}
	return mustParse(t, toJSON(t, object{
		"app": object{"app_id": testApp}, "versions": versions, "channels": channels,
	}))
}

// tell writes a compiled channel as a story does, without what it does not keep.
func tell(ch *channel) storyChannel {
	version := func(b *Bundle) (v storyVersion) {
		if b != nil {
			v = storyVersion{ID: b.ID, Name: b.Name, Deleted: b.gone}
		}
		return v
	}
	r := &ch.rollout
	return storyChannel{version(ch.stable), version(r.target), r.enabled, r.paused, r.bps, r.id}
}

// told is what is left of c when it is compiled.
func (c storyChannel) told() storyChannel {
	for _, v := range []*storyVersion{&c.Stable, &c.Target} {
		v.Zip, v.Files, v.Deleted = "", "", v.gone()
	}
	return c
}

// The rule of Hold over random lives of an app: each document is held over what was offered before it.
func TestHoldInStories(t *testing.T) {
	r := seeded(t)
	seen := map[string]int{}
	for range 250 {
		var offered *Manifest
		standing := map[int64]storyChannel{}
		s := story{}.next(r)
		for range 8 {
			m, held := s.manifest(t), map[int64]bool{}
			for id := int64(1); id <= 6; id++ {
				held[id] = r.IntN(2) == 0
			}
			isHeld := func(b *Bundle) bool { return held[b.ID] }
			if v := m.Hold(offered, func(*Bundle) bool { return false }); v != m {
				t.Fatal("nothing is held, and yet there is a variant")
			}
			v := m.Hold(offered, isHeld)
			now, same := map[int64]storyChannel{}, true
			for i := range v.channels {
				id := v.channels[i].id
				old, known := standing[id]
				own := s.channels[id]
				if own.RolloutID == "" {
					own.RolloutID = derivedRolloutID(id, 0)
				}
				now[id] = s.expect(own, old, known, held)
				if diff := cmp.Diff(now[id].told(), tell(&v.channels[i])); diff != "" {
					t.Fatalf("channel %d of %+v, before %+v, held %v (-want +got):\n%s", id, own, old, held, diff)
				}
				same = same && now[id] == own
				for what, is := range map[string]bool{
					"stable held":        now[id].Stable != own.Stable,
					"stable not to hold": now[id].Stable == own.Stable && own.Stable.loadable() && held[own.Stable.ID],
					"rollout paused":     now[id].Paused && !own.Paused && now[id].Target == own.Target,
					"rollout replaced":   now[id].Target != own.Target && own.gives(),
					"rollout kept":       now[id].Target != own.Target && !own.gives(),
					"nothing to do":      now[id] == own,
				} {
					if is {
						seen[what]++
					}
				}
			}
			if same != (v == m) {
				t.Fatalf("nothing changes: %t, the variant is the manifest: %t", same, v == m)
			}
			if again := m.Hold(v, isHeld); !reflect.DeepEqual(again, v) {
				t.Fatal("held again over what is offered, the variant is another")
			}
			if !reflect.DeepEqual(m, s.manifest(t)) {
				t.Fatal("the manifest was changed")
			}
			checkVariant(t, v, m, offered)
			seen["offers"] += checkHeldOffers(t, r, m, v, now, isHeld)
			offered, standing = v, now
			s = s.next(r)
		}
	}
	for _, what := range []string{"stable held", "stable not to hold", "rollout paused", "rollout replaced", "rollout kept", "nothing to do", "offers"} {
		if seen[what] < 30 {
			t.Errorf("%q came about %d times only: %v", what, seen[what], seen)
		}
	}
}

// checkHeldOffers lets random devices ask as callers do, and demands that none is offered a held bundle of m unless the
// rule left it where it was. It returns the number of offers.
func checkHeldOffers(t *testing.T, r *rand.Rand, m, v *Manifest, now map[int64]storyChannel, isHeld func(*Bundle) bool) int {
	t.Helper()
	offers := 0
	for id, c := range now {
		check := object{"defaultChannel": fmt.Sprintf("c%d", id), "version_name": fmt.Sprintf("1.0.%d", r.IntN(8))}
		d := decideHeld(m, v, isHeld, mustCheck(t, scene{check: check, device: randomDevice(r)}.body(t)))
		if d.Outcome != Offer {
			continue
		}
		offers++
		if id := d.Bundle.ID; isHeld(d.Bundle) && id != c.Stable.ID && (id != c.Target.ID || !c.gives()) {
			t.Fatalf("version %d is offered while it is held, in %+v", id, c)
		}
		if !m.serves(d.Bundle) {
			t.Fatalf("version %d is offered, which the manifest does not serve", d.Bundle.ID)
		}
	}
	return offers
}

// The usual case: one release over the one before, of 300 files.
func BenchmarkHold(b *testing.B) {
	list := make([]any, 300)
	for i := range list {
		list[i] = object{"file_name": "f", "file_hash": testDigest, "s3_path": fmt.Sprintf("orgs/o/apps/com.demo.app/delta/%s_assets/chunk-%d.js", testDigest, i)}
	}
	files := map[int]any{1: object{"manifest": list}, 2: object{"manifest": list}}
	prev, m, held := holdManifest(b, pointsAt(1), files), holdManifest(b, pointsAt(2), files), heldIDs(2)
	b.ReportAllocs()
	for b.Loop() {
		if m.Hold(prev, held) == m {
			b.Fatal("nothing is held")
		}
	}
}
