package resolver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The properties of testdata/vectors/README.md, section 6, in its order. What is random here is drawn from a fixed seed:
// a failure comes back, and its message holds all it takes to see it again.

func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(20261120, 8))
}

func randomDevice(r *rand.Rand) string {
	a, b := r.Uint64(), r.Uint64()
	return fmt.Sprintf("%08x-%04x-4%03x-a%03x-%012x", uint32(a>>32), uint16(a>>16), a&0xfff, b>>52, b&0xffffffffffff)
}

func randomDevices(r *rand.Rand, n int) []string {
	devices := make([]string, n)
	for i := range devices {
		devices[i] = randomDevice(r)
	}
	return devices
}

// chosen returns which of the devices get the target when the rollout stands at bps.
func chosen(t *testing.T, bps int, devices []string) map[string]bool {
	t.Helper()
	s := scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": bps})}
	m := mustParse(t, s.document(t))
	got := make(map[string]bool)
	var p CheckParser
	for _, device := range devices {
		c, err := p.Parse([]byte(scene{device: device}.body(t)))
		if err != nil {
			t.Fatal(err)
		}
		d := m.Decide(&c)
		if d.Outcome != Offer {
			t.Fatalf("device %s at %d: %s", device, bps, d.Rule)
		}
		if d.Bundle.Name == "1.2.0" {
			got[device] = true
		}
	}
	return got
}

func TestHalfOfTheDevicesGetTheTarget(t *testing.T) {
	devices := randomDevices(seeded(t), 2000)
	first := chosen(t, 5000, devices)
	if n := len(first); n < 920 || n > 1080 {
		t.Errorf("%d of 2000 devices get the target at 50 %%, want 46 to 54 %%", n)
	}
	slices.Reverse(devices)
	again := chosen(t, 5000, devices)
	for _, device := range devices {
		if first[device] != again[device] {
			t.Errorf("device %s gets another answer when it asks again", device)
		}
	}
}

func TestPercentageMovesNobodyNeedlessly(t *testing.T) {
	devices := randomDevices(seeded(t), 2000)
	steps := []int{0, 1, 100, 1000, 2500, 5000, 7500, 9900, 9999, 10000}
	var before map[string]bool
	for i, bps := range steps {
		now := chosen(t, bps, devices)
		for device := range before {
			if !now[device] {
				t.Errorf("raising %d to %d takes the target from %s", steps[i-1], bps, device)
			}
		}
		before = now
	}
	if len(before) != len(devices) {
		t.Errorf("%d of %d devices get the target at 100 %%", len(before), len(devices))
	}

	for _, step := range [][2]int{{8000, 4000}, {10000, 2500}, {6000, 5000}} {
		from, to := step[0], step[1]
		had, kept := chosen(t, from, devices), 0
		for device := range chosen(t, to, devices) {
			if had[device] {
				kept++
			}
		}
		got, want := float64(kept)/float64(len(had)), float64(to)/float64(from)
		if got < want-0.04 || got > want+0.04 {
			t.Errorf("lowering %d to %d keeps %.3f of the devices, want about %.3f", from, to, got, want)
		}
	}
}

// forObjects runs f for each vector whose body is an object with members.
func forObjects(t *testing.T, f func(t *testing.T, c vectorCase, fields map[string]json.RawMessage)) {
	t.Helper()
	ran := 0
	for _, c := range loadVectors(t) {
		var fields map[string]json.RawMessage
		if c.RawBody != nil || json.Unmarshal(c.Request, &fields) != nil || len(fields) == 0 {
			continue
		}
		ran++
		t.Run(c.Name, func(t *testing.T) { f(t, c, fields) })
	}
	if ran < 200 {
		t.Errorf("only %d vectors have an object for a body", ran)
	}
}

// shuffled writes the members in any order with white space wherever JSON allows some.
func shuffled(r *rand.Rand, fields map[string]json.RawMessage) []byte {
	blank := func() string { return []string{"", " ", "\n", "\t", "\r\n  "}[r.IntN(5)] }
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names) // or the seed would not fix the order
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	var b bytes.Buffer
	b.WriteString(blank() + "{")
	for i, name := range names {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "%s%q%s:%s%s%s", blank(), name, blank(), blank(), fields[name], blank())
	}
	b.WriteString("}" + blank())
	return b.Bytes()
}

func TestIgnoredFieldsAndLayoutChangeNothing(t *testing.T) {
	r := seeded(t)
	junk := []string{`"x"`, `""`, `null`, `7`, `true`, `[{"app_id":"other"}]`, `{"version_name":"9.9.9"}`}
	stores := []string{`""`, `"google_play"`, `"testflight"`, `"` + strings.Repeat("s", 64) + `"`}
	forObjects(t, func(t *testing.T, c vectorCase, fields map[string]json.RawMessage) {
		wantStatus, want := answer(t, c.Manifest, c.body(), testBase)
		for range 5 {
			for _, name := range []string{"custom_id", "version_code", "version_os", "unknown", "App_id", "DEVICE_ID"} {
				if fields[name] = json.RawMessage(junk[r.IntN(len(junk))]); r.IntN(4) == 0 {
					delete(fields, name)
				}
			}
			// The length of install_source is judged, so a value that is refused is left alone.
			if wantStatus == 200 {
				fields["install_source"] = json.RawMessage(stores[r.IntN(len(stores))])
			}
			body := shuffled(r, fields)
			if status, got := answer(t, c.Manifest, body, testBase); status != wantStatus || !bytes.Equal(got, want) {
				t.Fatalf("%s\ngives %d %s\nwant  %d %s", body, status, got, wantStatus, want)
			}
		}
	})
}

func TestLetterCaseOfTheDeviceChangesNothing(t *testing.T) {
	r := seeded(t)
	forObjects(t, func(t *testing.T, c vectorCase, fields map[string]json.RawMessage) {
		device := string(fields["device_id"])
		mixed := func(c rune) rune {
			if r.IntN(2) == 0 {
				return []rune(strings.ToUpper(string(c)))[0]
			}
			return c
		}
		wantStatus, want := answer(t, c.Manifest, c.body(), testBase)
		for _, spelling := range []string{strings.ToUpper(device), strings.ToLower(device), strings.Map(mixed, device)} {
			if device == "" || device == "null" {
				continue
			}
			fields["device_id"] = json.RawMessage(spelling)
			body := toJSON(t, fields)
			if status, got := answer(t, c.Manifest, body, testBase); status != wantStatus || !bytes.Equal(got, want) {
				t.Fatalf("%s\ngives %d %s\nwant  %d %s", body, status, got, wantStatus, want)
			}
		}
	})
}

// This edge leaves device_id out of its addresses, so two devices get the same bytes where the upstream's answers differ
// in that parameter: the reason why an answer may be shared.
func TestDevicesDifferInNothing(t *testing.T) {
	r := seeded(t)
	forObjects(t, func(t *testing.T, c vectorCase, fields map[string]json.RawMessage) {
		m := mustParse(t, c.Manifest)
		var device string
		if len(m.overrides) > 0 || m.rolloutActive || strings.Contains(string(c.Manifest), "channel_self_overrides") ||
			json.Unmarshal(fields["device_id"], &device) != nil {
			t.Skip("the answer may depend on the device")
		}
		if _, ok := parseDeviceID(device); !ok {
			t.Skip("no device asks")
		}
		wantStatus, want := answer(t, c.Manifest, c.body(), testBase)
		for range 3 {
			fields["device_id"] = toJSON(t, randomDevice(r))
			body := toJSON(t, fields)
			if status, got := answer(t, c.Manifest, body, testBase); status != wantStatus || !bytes.Equal(got, want) {
				t.Fatalf("%s\ngives %d %s\nwant  %d %s", body, status, got, wantStatus, want)
			}
		}
	})
}

// wellFormed says what is wrong with an answer of status 200: clients take what has neither an error nor a kind for an
// update, and what has no known kind for a failure (protocol 1.8).
func wellFormed(answer []byte) error {
	var got map[string]any
	if err := json.Unmarshal(answer, &got); err != nil {
		return err
	}
	text := func(name string) string { s, _ := got[name].(string); return s }
	_, hasError := got["error"]
	_, hasKind := got["kind"]
	if hasError || hasKind {
		if text("error") == "" || text("message") == "" || !slices.Contains([]string{"up_to_date", "blocked", "failed"}, text("kind")) {
			return fmt.Errorf("a refusal needs error, message and a known kind")
		}
		if _, ok := got["url"]; ok {
			return fmt.Errorf("a refusal must not offer an address")
		}
		return nil
	}
	for name, value := range got {
		_, isText := value.(string)
		switch name {
		case "version", "url", "link", "comment":
			if text(name) == "" {
				return fmt.Errorf("%s must be a text", name)
			}
		case "session_key":
			if !isText {
				return fmt.Errorf("session_key must be a text")
			}
		case "checksum":
			if !isText && value != nil {
				return fmt.Errorf("checksum must be a text or null")
			}
		case "manifest": // its mere presence selects the delta path (protocol 1.8)
			if list, _ := value.([]any); len(list) == 0 {
				return fmt.Errorf("manifest must be a list that is not empty")
			}
		default:
			return fmt.Errorf("%s is no member of an update", name)
		}
	}
	for _, name := range []string{"version", "url", "session_key", "checksum"} {
		if _, ok := got[name]; !ok {
			return fmt.Errorf("%s is missing", name)
		}
	}
	return nil
}

func TestEveryAnswerIsAnUpdateOrHasAKind(t *testing.T) {
	for _, c := range loadVectors(t) {
		if status, got := answer(t, c.Manifest, c.body(), testBase); status == 200 {
			if err := wellFormed(got); err != nil {
				t.Errorf("%s: %v: %s", c.Name, err, got)
			}
		} else if members(t, got)["kind"] != nil {
			t.Errorf("%s: status %d has a kind: %s", c.Name, status, got)
		}
	}

	r := seeded(t)
	rulesSeen := map[string]int{}
	for range 3000 {
		s := randomScene(r)
		d := s.decide(t)
		rulesSeen[d.Rule]++
		if got := AppendResponse(nil, &d, testBase); wellFormed(got) != nil {
			t.Fatalf("%v: %s\ndocument %s\nbody %s", wellFormed(got), got, s.document(t), s.body(t))
		}
		if d.Code == "" && d.Outcome != Offer || d.Rule == "" {
			t.Fatalf("decision without a name: %+v", d)
		}
	}
	// A generator that never reaches a rule shows nothing about it.
	for _, rule := range rules {
		if rulesSeen[rule.name] == 0 {
			t.Errorf("no random check comes to %s", rule.name)
		}
	}
	if rulesSeen["offer"] < 100 {
		t.Errorf("only %d random checks come to an offer", rulesSeen["offer"])
	}
}

// randomScene draws an app and a check from values at which something changes. Most members keep what they have in the
// plain scene, or the early rules would hide the late ones.
func randomScene(r *rand.Rand) scene {
	pick := func(o object, name string, values ...any) {
		if r.IntN(4) == 0 {
			o[name] = values[r.IntN(len(values))]
		}
	}
	flags := func(o object, names ...string) {
		for _, name := range names {
			pick(o, name, true, false, false, nil)
		}
	}
	names := []any{"1.1.0", "1.0.0", "1.0.1-rc.1", "2.0.0", "builtin", "unknown", "summer", "1.1.0+2", `a"b\c`, "é"}
	file := object{"file_name": "a%20b.js", "file_hash": "h", "s3_path": "k/x_a%20b.js", "file_size": 3}
	bundle := func() object {
		o := object{}
		pick(o, "name", names...)
		pick(o, "deleted", true, false, nil)
		pick(o, "external_url", "https://cdn.example/x.zip", "ftp://cdn.example/x.zip", "", nil)
		pick(o, "r2_path", without, nil, "")
		pick(o, "checksum", without, nil, "sha")
		pick(o, "session_key", "a:b", nil)
		pick(o, "key_id", "one", "two", nil)
		pick(o, "min_update_version", "1.0.0", "1.0.1", "soon", nil)
		pick(o, "link", "https://example.com", "", nil)
		pick(o, "comment", "c\n", "")
		pick(o, "manifest", []any{file}, []any{}, nil)
		return o
	}
	channel := object{}
	flags(
		channel, "public", "ios", "android", "electron", "disable_auto_update_under_native", "allow_device_self_set",
		"allow_emulator", "allow_device", "allow_dev", "allow_prod",
	)
	pick(channel, "disable_auto_update", "none", "patch", "minor", "major", "version_number")
	pick(channel, "version", nil, 2)
	pick(channel, "rollout_version", 2, nil)
	pick(channel, "rollout_enabled", true)
	pick(channel, "rollout_percentage_bps", 10000, 5000, 0)
	pick(channel, "rollout_paused_at", "2026-01-01T00:00:00Z")

	check := object{}
	pick(check, "platform", "ios", "android", "electron")
	pick(check, "version_name", names...)
	pick(check, "version_build", "1", "1.1", "1.1.0-rc.1", "0.9.0", "2.0.0", "9007199254740992.0.0")
	pick(check, "plugin_version", "4.1.0", "5.9.9", "6.1.0", "6.2.0", "7.0.35", "8.34.0", "8.40.8", "0.0.1")
	pick(check, "key_id", "one", "two", "")
	pick(check, "defaultChannel", "production", "beta", "")
	flags(check, "is_emulator", "is_prod")
	app := object{}
	pick(app, "expose_metadata", true)
	return scene{
		app: app, version: bundle(), target: bundle(), channel: channel, check: check,
		override: r.IntN(3) == 0, device: randomDeviceOr(r, testDevice),
	}
}

func randomDeviceOr(r *rand.Rand, device string) string {
	if r.IntN(2) == 0 {
		return randomDevice(r)
	}
	return device
}

// One manifest answers all requests at once: nothing in it may be written after it was compiled. The race detector is
// the judge here.
func TestManifestIsShared(t *testing.T) {
	m := mustParse(t, appOf(20, 20, 100))
	d := m.Decide(mustCheck(t, publicBody))
	want := AppendResponse(nil, &d, testBase)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			var p CheckParser
			for range 50 {
				c, err := p.Parse([]byte(publicBody))
				if err != nil {
					t.Error(err)
					return
				}
				d := m.Decide(&c)
				if got := AppendResponse(nil, &d, testBase); !bytes.Equal(got, want) {
					t.Errorf("got %s, want %s", got, want)
					return
				}
			}
		})
	}
	group.Wait()
}
