package resolver

import (
	"strings"
	"testing"
)

const testRollout = "6f5b2f0e-6a0c-4b39-9a4e-8d3b1f1e2a11"

// The bucket is frozen: another function would draw every device of every running rollout anew. The numbers were
// computed without this package:
//
//	python3 -c 'import hashlib,sys; r,d=sys.argv[1:]; print(int.from_bytes(
//	  hashlib.sha256(r.encode()+b"\0"+d.lower().encode()).digest()[:8],"big")%10000)' ROLLOUT DEVICE
func TestBucketGolden(t *testing.T) {
	const last = "ffffffff-ffff-4fff-bfff-ffffffffffff"
	tests := []struct {
		name, rollout, device string
		want                  int64
	}{
		{"UUID", testRollout, testDevice, 2191},
		{"UUID, another device", testRollout, last, 7944},
		{"derived id", "1:2", testDevice, 5545},
		{"derived id, another device", "1:2", last, 3300},
		{"derived id of vectors", "11:102", testDevice, 4444},
		{"derived id of vectors, another device", "11:102", last, 6338},
		{"text that is not ASCII", "summer-é", testDevice, 7990},
		{"text longer than the buffer on the stack", strings.Repeat("r", 200), testDevice, 6453},
		{"no text", "", last, 3077},
		{"lowest bucket", testRollout, "0000205c-eefe-490a-9c60-8e965132ae51", 0},
		{"below the middle", testRollout, "000004b4-eefe-490a-9c60-8e965132ae51", 4999},
		{"middle", testRollout, "00000928-eefe-490a-9c60-8e965132ae51", 5000},
		{"highest bucket", testRollout, "00007d3e-eefe-490a-9c60-8e965132ae51", 9999},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := bucket(tt.rollout, tt.device); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestDerivedRolloutIDGolden(t *testing.T) {
	tests := []struct {
		name            string
		channel, target int64
		want            string
	}{
		{"small", 1, 2, "1:2"},
		{"of vectors", 11, 102, "11:102"},
		{"not by concatenation", 111, 2, "111:2"},
		{"zero", 0, 0, "0:0"},
		{"largest", maxID, maxID, "9007199254740991:9007199254740991"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := derivedRolloutID(tt.channel, tt.target); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// testDevice has bucket 2191 under testRollout.
var fullRolloutOf2 = object{
	"rollout_enabled": true, "rollout_version": 2, "rollout_percentage_bps": 10000, "rollout_id": testRollout,
}

// The table of protocol 2.3 as far as it needs no memory: rows 1 to 4 as they stand, rows 5 to 9 by the bucket.
func TestRollout(t *testing.T) {
	const stable, target = "1.1.0", "1.2.0"
	paused := object{"rollout_paused_at": "2026-01-01T00:00:00Z"}
	another := []any{object{ // keeps the app off the fast path
		"id": 2, "name": "zeta", "version": 1, "rollout_enabled": true, "rollout_version": 2, "rollout_percentage_bps": 1,
	}}
	onTarget := object{"version_name": target}
	capitals := strings.ToUpper(testDevice)
	tests := []struct {
		name string
		scene
		want string
	}{
		{"row 1, no target", scene{channel: fullRolloutOf2.with(object{"rollout_version": nil}), channels: another}, stable},
		{"row 1, target deleted", scene{channel: fullRolloutOf2, target: object{"deleted": true}}, stable},
		{"row 1, target deleted, device on it", scene{channel: fullRolloutOf2, target: object{"deleted": true}, check: onTarget}, stable},
		{"row 1, off", scene{channel: fullRolloutOf2.with(object{"rollout_enabled": false})}, stable},
		{"row 1, off, device on target", scene{channel: fullRolloutOf2.with(object{"rollout_enabled": false}), check: onTarget, channels: another}, stable},
		{"row 2, active", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 1}), check: onTarget}, target},
		{"row 2, paused", scene{channel: fullRolloutOf2.with(paused), check: onTarget}, target},
		{"row 2, paused, another rollout", scene{channel: fullRolloutOf2.with(paused), check: onTarget, channels: another}, target},
		{"row 2, at 0, another rollout", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 0}), check: onTarget, channels: another}, target},
		{"fast path, at 0, alone", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 0}), check: onTarget}, stable},
		{"fast path, paused at 0, alone", scene{channel: fullRolloutOf2.with(paused).with(object{"rollout_percentage_bps": 0}), check: onTarget}, stable},
		{"row 3, paused, new device", scene{channel: fullRolloutOf2.with(paused)}, stable},
		{"row 3, paused, new device, another rollout", scene{channel: fullRolloutOf2.with(paused), channels: another}, stable},
		{"row 4, at 0", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 0}), channels: another}, stable},
		{"drawn, all", scene{channel: fullRolloutOf2}, target},
		{"drawn, just below", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 2191})}, stable},
		{"drawn, just reached", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 2192})}, target},
		{"drawn, capitals", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 2192}), device: capitals}, target},
		{"drawn, capitals, just below", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 2191}), device: capitals}, stable},
		{"derived id, just below", scene{channel: fullRolloutOf2.with(object{"rollout_id": without, "rollout_percentage_bps": 5545})}, stable},
		{"derived id, just reached", scene{channel: fullRolloutOf2.with(object{"rollout_id": without, "rollout_percentage_bps": 5546})}, target},
		{"derived id for null", scene{channel: fullRolloutOf2.with(object{"rollout_id": nil, "rollout_percentage_bps": 5546})}, target},
		{"derived id for an empty text", scene{channel: fullRolloutOf2.with(object{"rollout_id": "", "rollout_percentage_bps": 5545})}, stable},
		{"lowest bucket at 1", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 1}), device: "0000205c-eefe-490a-9c60-8e965132ae51"}, target},
		{"highest bucket at 9999", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 9999}), device: "00007d3e-eefe-490a-9c60-8e965132ae51"}, stable},
		{"highest bucket at 10000", scene{channel: fullRolloutOf2, device: "00007d3e-eefe-490a-9c60-8e965132ae51"}, target},
		{"in an override", scene{channel: fullRolloutOf2.with(object{"public": false}), override: true}, target},
		{"stable is builtin, drawn", scene{channel: fullRolloutOf2.with(object{"version": nil})}, target},
		{"stable is builtin, not drawn", scene{channel: fullRolloutOf2.with(object{"version": nil, "rollout_percentage_bps": 1})}, "builtin"},
		{"name of another channel's paused target", scene{
			channels: []any{object{"id": 2, "name": "zeta"}.with(fullRolloutOf2).with(paused)}, check: onTarget,
		}, stable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.decide(t).Bundle.Name; got != tt.want {
				t.Errorf("the bundle is %s, want %s", got, tt.want)
			}
		})
	}
}

// A device that was drawn and may not have the target gets no stable bundle instead (protocol 2.3).
func TestBlockedTargetDoesNotFallBack(t *testing.T) {
	s := scene{channel: fullRolloutOf2, target: object{"name": "2.0.0"}}
	if d := s.decide(t); d.Rule != "policy_major" || d.Bundle.Name != "2.0.0" {
		t.Errorf("%s answers for %s, want policy_major for 2.0.0", d.Rule, d.Bundle.Name)
	}
}
