package resolver

import (
	"encoding/json"
	"maps"
	"testing"
)

// object is a JSON object in the making.
type object map[string]any

// without, as the value of a change, takes the member away.
var without = struct{}{}

// with returns a copy of o with some members changed.
func (o object) with(changes object) object {
	changed := maps.Clone(o)
	for name, value := range changes {
		if value == without {
			delete(changed, name)
		} else {
			changed[name] = value
		}
	}
	return changed
}

func toJSON(t testing.TB, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

const (
	testApp    = "com.demo.app"
	testDevice = "00009a6b-eefe-490a-9c60-8e965132ae51"
	testBase   = "https://edge.test"
	testDigest = "9d9d1765a9cd13051632492412074083fa5b3187d9605af57fa8a6a2f21ff424"
)

// The rows of the plainest scene. They are only ever read; changed copies are made by with.
var (
	plainVersion = object{
		"id": 1, "name": "1.1.0", "r2_path": "orgs/o/apps/com.demo.app/1.1.0.zip", "checksum": testDigest,
	}
	plainTarget = object{
		"id": 2, "name": "1.2.0", "r2_path": "orgs/o/apps/com.demo.app/1.2.0.zip", "checksum": testDigest,
	}
	plainChannel = object{"id": 1, "name": "production", "version": 1, "public": true}
	plainCheck   = object{
		"app_id": testApp, "device_id": testDevice, "platform": "android", "version_name": "1.0.0",
		"version_build": "1.0.0", "plugin_version": "8.51.14", "is_emulator": false, "is_prod": true,
	}
)

// scene is an app with one public channel, and one device that asks. The zero scene ends in the offer of 1.1.0; the
// fields change members of its parts.
type scene struct {
	app, version, target, channel, check object

	override bool   // an override puts the device into the channel
	channels []any  // further channels
	device   string // asks instead of testDevice
}

func (s scene) document(t testing.TB) []byte {
	t.Helper()
	doc := object{
		"app":      object{"app_id": testApp}.with(s.app),
		"versions": []any{plainVersion.with(s.version), plainTarget.with(s.target)},
		"channels": append([]any{plainChannel.with(s.channel)}, s.channels...),
	}
	if s.override {
		doc["channel_devices"] = []any{object{"device_id": testDevice, "channel_id": 1}}
	}
	return toJSON(t, doc)
}

func (s scene) body(t testing.TB) string {
	t.Helper()
	body := plainCheck.with(s.check)
	if s.device != "" {
		body["device_id"] = s.device
	}
	return string(toJSON(t, body))
}

// subject is what the rules see of the scene.
func (s scene) subject(t testing.TB) subject {
	t.Helper()
	sub := subject{m: mustParse(t, s.document(t)), c: mustCheck(t, s.body(t))}
	if sub.ch = sub.m.channelFor(sub.c); sub.ch != nil {
		sub.b = sub.m.choose(sub.ch, sub.c)
	}
	return sub
}

func (s scene) decide(t testing.TB) Decision {
	t.Helper()
	return mustParse(t, s.document(t)).Decide(mustCheck(t, s.body(t)))
}

// members decodes an answer.
func members(t testing.TB, answer []byte) map[string]any {
	t.Helper()
	var got map[string]any
	if err := json.Unmarshal(answer, &got); err != nil {
		t.Fatalf("the answer is not JSON: %v: %q", err, answer)
	}
	return got
}
