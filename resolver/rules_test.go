package resolver

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// protocolRule is a row of protocol 1.5: what must be true of a rule, written down a second time.
type protocolRule struct {
	row, name  string
	code, kind string
	message    string   // "" where the protocol gives no exact text
	more       []string // members of the answer beside error, message and kind
}

// The table of protocol 1.5 from row 8 on, in its order.
var protocolRules = []protocolRule{
	{"8", "native_version_overflow", "semver_error", "failed", "", nil},
	{"9", "plugin_too_old", "unsupported_plugin_version", "failed", "", nil},
	{"10", "no_channel", "no_channel", "failed", "no default channel or override", nil},
	{"11", "no_bundle", "no_bundle", "failed", "Cannot get bundle", nil},
	{"12", "key_id_mismatch", "key_id_mismatch", "blocked", "", []string{"deviceKeyId", "bundleKeyId"}},
	{"13", "up_to_date", "no_new_version_available", "up_to_date", "No new version available", nil},
	{"14", "platform_ios", "disabled_platform_ios", "blocked", "", []string{"version", "old"}},
	{"14", "platform_android", "disabled_platform_android", "blocked", "", []string{"version", "old"}},
	{"14", "platform_electron", "disabled_platform_electron", "blocked", "", []string{"version", "old"}},
	{"notes", "bundle_name_not_semver", "misconfigured_channel", "failed", "Channel production is misconfigured", []string{"version", "old"}},
	{"15", "policy_major", "disable_auto_update_to_major", "blocked", "Cannot upgrade major version", []string{"major", "version", "old"}},
	{"16", "policy_minor", "disable_auto_update_to_minor", "blocked", "Cannot upgrade minor version", []string{"major", "version", "old"}},
	{"17", "policy_patch", "disable_auto_update_to_patch", "blocked", "Cannot upgrade patch version", []string{"major", "version", "old"}},
	{"18", "policy_without_minimum", "misconfigured_channel", "failed", "Channel production is misconfigured", []string{"version", "old"}},
	{
		"19", "policy_minimum", "disable_auto_update_to_metadata", "blocked",
		"Cannot upgrade version, min update version > current version",
		[]string{"major", "version", "old"},
	},
	{"20", "native_floor", "disable_auto_update_under_native", "blocked", "Cannot revert under native version", []string{"version", "old"}},
	{"21", "prod_builds", "disable_prod_build", "blocked", "Cannot update, prod build is disabled", []string{"version", "old"}},
	{"22", "dev_builds", "disable_dev_build", "blocked", "Cannot update, dev build is disabled", []string{"version", "old"}},
	{"23", "devices", "disable_device", "blocked", "Cannot update, device is disabled", []string{"version", "old"}},
	{"24", "emulators", "disable_emulator", "blocked", "Cannot update, emulator is disabled", []string{"version", "old"}},
	{"25a", "already_on_builtin", "already_on_builtin", "up_to_date", "Already on builtin", []string{"version"}},
	{
		"25b", "builtin_plugin_too_old", "revert_to_builtin_plugin_version_too_old", "failed",
		"revert_to_builtin used, but plugin version is too old", nil,
	},
	{"26", "no_bundle_url", "no_bundle_url", "failed", "Cannot get bundle url", nil},
}

// serverEvents are the statistics the upstream writes while it answers a check (protocol 4, "written by the server").
var serverEvents = []string{
	"missingBundle", "noNew", "disablePlatformIos", "disablePlatformAndroid", "disablePlatformElectron",
	"disableAutoUpdateToMajor", "disableAutoUpdateToMinor", "disableAutoUpdateToPatch", "disableAutoUpdateMetadata",
	"disableAutoUpdateUnderNative", "disableDevBuild", "disableProdBuild", "disableEmulator", "disableDevice",
	"channelMisconfigured", "cannotGetBundle", "NoChannelOrOverride", "keyMismatch",
}

func TestRulesAreThoseOfTheProtocol(t *testing.T) {
	type identity struct{ Name, Code, Kind string }
	var want, got []identity
	for _, r := range protocolRules {
		want = append(want, identity{r.name, r.code, r.kind})
	}
	seen := map[string]bool{}
	for _, r := range rules {
		got = append(got, identity{r.name, r.code, r.outcome.String()})
		if seen[r.name] {
			t.Errorf("two rules are called %s", r.name)
		}
		seen[r.name] = true
		if r.event != "" && !slices.Contains(serverEvents, r.event) {
			t.Errorf("%s records %q, which the upstream does not know", r.name, r.event)
		}
		if r.outcome == Offer {
			t.Errorf("%s offers, which only the end of the table may", r.name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rules (-protocol +table):\n%s", diff)
	}
	if seen["offer"] {
		t.Error("offer is the name of the end of the table")
	}
}

// ruleCase says how one rule behaves at its edges.
type ruleCase struct {
	name  string
	fires scene

	// nearly is fires with the smallest change that stops the rule; then is the rule that answers instead.
	nearly scene
	then   string

	// loses is a scene in which the rule holds and to, an earlier one, answers.
	loses scene
	to    string
}

var (
	notServed = object{"ios": false, "android": false, "electron": false}
	noZipRow  = object{"r2_path": without}
	oldPlugin = object{"plugin_version": "4.99.99"}
)

var ruleCases = []ruleCase{
	{
		name:   "native_version_overflow",
		fires:  scene{check: object{"version_build": "9007199254740992.0.0"}},
		nearly: scene{check: object{"version_build": "9007199254740991.0.0"}},
		then:   "native_floor", // the first rule has none to lose to
	},
	{
		name:   "plugin_too_old",
		fires:  scene{check: object{"plugin_version": "4.0.0"}},
		nearly: scene{check: object{"plugin_version": "3.99.99"}},
		then:   "offer",
		loses:  scene{check: object{"plugin_version": "4.0.0", "version_build": "9007199254740992.0.0"}},
		to:     "native_version_overflow",
	},
	{
		name:   "no_channel",
		fires:  scene{channel: object{"public": false}},
		nearly: scene{channel: object{"public": false}, override: true},
		then:   "offer",
		loses:  scene{channel: object{"public": false}, check: oldPlugin},
		to:     "plugin_too_old",
	},
	{
		name:   "no_bundle",
		fires:  scene{version: noZipRow},
		nearly: scene{version: object{"r2_path": without, "name": "unknown"}},
		then:   "no_bundle_url",
		loses:  scene{version: noZipRow, check: oldPlugin},
		to:     "plugin_too_old",
	},
	{
		name:   "key_id_mismatch",
		fires:  scene{version: object{"key_id": "bundle"}, check: object{"key_id": "device", "plugin_version": "8.40.8"}},
		nearly: scene{version: object{"key_id": "bundle"}, check: object{"key_id": "device", "plugin_version": "8.40.7"}},
		then:   "offer",
		loses:  scene{version: object{"key_id": "bundle", "r2_path": without}, check: object{"key_id": "device"}},
		to:     "no_bundle",
	},
	{
		name:   "up_to_date",
		fires:  scene{check: object{"version_name": "1.1.0"}},
		nearly: scene{check: object{"version_name": "1.1.0+1"}}, // the same version, but another text
		then:   "offer",
		loses:  scene{version: object{"key_id": "bundle"}, check: object{"key_id": "device", "version_name": "1.1.0"}},
		to:     "key_id_mismatch",
	},
	{
		name:   "platform_ios",
		fires:  scene{channel: object{"ios": false}, check: object{"platform": "ios"}, override: true},
		nearly: scene{channel: object{"android": false, "electron": false}, check: object{"platform": "ios"}, override: true},
		then:   "offer",
		loses:  scene{channel: notServed, check: object{"platform": "ios", "version_name": "1.1.0"}, override: true},
		to:     "up_to_date",
	},
	{
		name:   "platform_android",
		fires:  scene{channel: object{"android": false}, override: true},
		nearly: scene{channel: object{"ios": false, "electron": false}, override: true},
		then:   "offer",
		loses:  scene{channel: notServed, check: object{"version_name": "1.1.0"}, override: true},
		to:     "up_to_date",
	},
	{
		name:   "platform_electron",
		fires:  scene{channel: object{"electron": false}, check: object{"platform": "electron"}, override: true},
		nearly: scene{channel: object{"ios": false, "android": false}, check: object{"platform": "electron"}, override: true},
		then:   "offer",
		loses:  scene{channel: notServed, check: object{"platform": "electron", "version_name": "1.1.0"}, override: true},
		to:     "up_to_date",
	},
	{
		name:  "bundle_name_not_semver",
		fires: scene{version: object{"name": "summer"}, channel: object{"disable_auto_update": "none"}},
		nearly: scene{
			version: object{"name": "summer"},
			channel: object{"disable_auto_update": "none", "disable_auto_update_under_native": false},
		},
		then:  "offer",
		loses: scene{version: object{"name": "summer"}, channel: notServed, override: true},
		to:    "platform_android",
	},
	{
		name:   "policy_major",
		fires:  scene{check: object{"version_build": "0.99.99"}},
		nearly: scene{check: object{"version_build": "1.0.0-0"}},
		then:   "offer",
		loses:  scene{channel: notServed, check: object{"version_build": "0.99.99"}, override: true},
		to:     "platform_android",
	},
	{
		name:   "policy_minor",
		fires:  scene{channel: object{"disable_auto_update": "minor"}, check: object{"version_build": "1.0.99"}},
		nearly: scene{channel: object{"disable_auto_update": "minor"}, check: object{"version_build": "1.1.0"}},
		then:   "offer",
		loses: scene{
			channel: object{"disable_auto_update": "minor", "android": false},
			check:   object{"version_build": "1.0.99"}, override: true,
		},
		to: "platform_android",
	},
	{
		name:   "policy_patch",
		fires:  scene{version: object{"name": "1.1.1"}, channel: object{"disable_auto_update": "patch"}, check: object{"version_build": "1.1.0"}},
		nearly: scene{version: object{"name": "1.1.1"}, channel: object{"disable_auto_update": "patch"}, check: object{"version_build": "1.1.1-rc.1"}},
		then:   "offer",
		loses: scene{
			version: object{"name": "1.1.1"}, channel: object{"disable_auto_update": "patch", "android": false},
			check: object{"version_build": "1.1.0"}, override: true,
		},
		to: "platform_android",
	},
	{
		name:   "policy_without_minimum",
		fires:  scene{channel: object{"disable_auto_update": "version_number"}},
		nearly: scene{channel: object{"disable_auto_update": "version_number"}, version: object{"min_update_version": "1.0.0"}},
		then:   "offer",
		loses:  scene{channel: object{"disable_auto_update": "version_number"}, version: object{"name": "summer"}},
		to:     "bundle_name_not_semver",
	},
	{
		name:   "policy_minimum",
		fires:  scene{channel: object{"disable_auto_update": "version_number"}, version: object{"min_update_version": "1.0.1-0"}},
		nearly: scene{channel: object{"disable_auto_update": "version_number"}, version: object{"min_update_version": "1.0.0+1"}},
		then:   "offer",
		loses: scene{
			channel: object{"disable_auto_update": "version_number"},
			version: object{"min_update_version": "1.0.1", "name": "summer"},
		},
		to: "bundle_name_not_semver",
	},
	{
		name:   "native_floor",
		fires:  scene{check: object{"version_build": "1.1.1-0"}},
		nearly: scene{check: object{"version_build": "1.1.0"}},
		then:   "offer",
		loses:  scene{channel: object{"disable_auto_update": "patch"}, check: object{"version_build": "1.1.1"}},
		to:     "policy_patch",
	},
	{
		name:   "prod_builds",
		fires:  scene{channel: object{"allow_prod": false}},
		nearly: scene{channel: object{"allow_prod": false}, check: object{"is_prod": false}},
		then:   "offer",
		loses:  scene{channel: object{"allow_prod": false}, check: object{"version_build": "2.0.0"}},
		to:     "native_floor",
	},
	{
		name:   "dev_builds",
		fires:  scene{channel: object{"allow_dev": false}, check: object{"is_prod": false}},
		nearly: scene{channel: object{"allow_dev": false}},
		then:   "offer",
		loses:  scene{channel: object{"allow_dev": false}, check: object{"is_prod": false, "version_build": "2.0.0"}},
		to:     "native_floor",
	},
	{
		name:   "devices",
		fires:  scene{channel: object{"allow_device": false}},
		nearly: scene{channel: object{"allow_device": false}, check: object{"is_emulator": true}},
		then:   "offer",
		loses:  scene{channel: object{"allow_device": false, "allow_prod": false}},
		to:     "prod_builds",
	},
	{
		name:   "emulators",
		fires:  scene{channel: object{"allow_emulator": false}, check: object{"is_emulator": true}},
		nearly: scene{channel: object{"allow_emulator": false}},
		then:   "offer",
		loses: scene{
			channel: object{"allow_emulator": false, "allow_dev": false},
			check:   object{"is_emulator": true, "is_prod": false},
		},
		to: "dev_builds",
	},
	{
		name:   "already_on_builtin",
		fires:  scene{channel: object{"version": nil}, check: object{"plugin_version": "6.2.0"}},
		nearly: scene{channel: object{"version": nil}, check: object{"plugin_version": "6.2.0-rc.1"}},
		then:   "builtin_plugin_too_old",
		loses:  scene{channel: object{"version": nil, "allow_device": false}},
		to:     "devices",
	},
	{
		name:   "builtin_plugin_too_old",
		fires:  scene{version: object{"name": "builtin"}, check: object{"plugin_version": "0.0.1"}},
		nearly: scene{version: object{"name": "builtins"}, channel: object{"disable_auto_update": "none", "disable_auto_update_under_native": false}, check: object{"plugin_version": "0.0.1"}},
		then:   "offer",
		loses:  scene{version: object{"name": "builtin"}, check: object{"plugin_version": "7.0.0"}},
		to:     "already_on_builtin",
	},
	{
		name:   "no_bundle_url",
		fires:  scene{version: object{"external_url": "ftp://example.com/1.zip"}},
		nearly: scene{version: object{"external_url": "http://example.com/1.zip"}},
		then:   "offer",
		loses:  scene{version: object{"external_url": "ftp://example.com/1.zip"}, check: object{"is_emulator": true}, channel: object{"allow_emulator": false}},
		to:     "emulators",
	},
}

func TestRules(t *testing.T) {
	for _, tt := range ruleCases {
		t.Run(tt.name, func(t *testing.T) {
			i := slices.IndexFunc(rules[:], func(r rule) bool { return r.name == tt.name })
			if i < 0 {
				t.Fatal("there is no such rule")
			}
			t.Run("fires", func(t *testing.T) {
				d := tt.fires.decide(t)
				if d.Rule != tt.name {
					t.Fatalf("%s answers", d.Rule)
				}
				checkAnswer(t, &d, protocolRules[i])
			})
			t.Run("nearly fires", func(t *testing.T) {
				if got := tt.nearly.decide(t).Rule; got != tt.then {
					t.Errorf("%s answers, want %s", got, tt.then)
				}
				// The rule must be silent by itself, not merely hidden behind an earlier one.
				if s := tt.nearly.subject(t); s.ch != nil && rules[i].fires(s) {
					t.Error("it holds still")
				}
			})
			if i == 0 {
				return
			}
			t.Run("loses", func(t *testing.T) {
				if got := tt.loses.decide(t).Rule; got != tt.to {
					t.Errorf("%s answers, want %s", got, tt.to)
				}
				if !rules[i].fires(tt.loses.subject(t)) {
					t.Error("it does not hold at all, so the case shows nothing")
				}
				if slices.IndexFunc(rules[:i], func(r rule) bool { return r.name == tt.to }) < 0 {
					t.Errorf("%s is not an earlier rule", tt.to)
				}
			})
		})
	}
}

// checkAnswer compares what a rule answers with its row of the protocol, to the last member.
func checkAnswer(t *testing.T, d *Decision, want protocolRule) {
	t.Helper()
	got := members(t, AppendResponse(nil, d, testBase))
	names := append([]string{"error", "message", "kind"}, want.more...)
	slices.Sort(names)
	if diff := cmp.Diff(names, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("members (-protocol +answer):\n%s", diff)
	}
	if got["error"] != want.code || got["kind"] != want.kind {
		t.Errorf("error %v, kind %v", got["error"], got["kind"])
	}
	if message, _ := got["message"].(string); message == "" || want.message != "" && message != want.message {
		t.Errorf("message %q, want %q", message, want.message)
	}
	if major, ok := got["major"]; ok && major != true {
		t.Errorf("major is %v", major)
	}
}

// A rule without cases is a rule nobody tried to break.
func TestEveryRuleHasCases(t *testing.T) {
	var want, got []string
	for _, r := range rules {
		want = append(want, r.name)
	}
	for _, c := range ruleCases {
		got = append(got, c.name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cases (-rules +cases):\n%s", diff)
	}
}

// Rows 15 to 20 in the details that one scene per rule cannot show.
func TestPolicies(t *testing.T) {
	tests := []struct {
		name, policy, bundle, native, min string
		noFloor                           bool
		want                              string
	}{
		{name: "major allows a minor step", policy: "major", bundle: "1.9.9", native: "1.0.0", want: "offer"},
		{name: "major does not block downwards", policy: "major", bundle: "1.0.0", native: "2.0.0", noFloor: true, want: "offer"},
		{name: "downwards the floor blocks", policy: "major", bundle: "1.0.0", native: "2.0.0", want: "native_floor"},
		{name: "minor blocks a major step", policy: "minor", bundle: "2.1.0", native: "1.1.0", want: "policy_minor"},
		{name: "minor blocks downwards", policy: "minor", bundle: "1.1.0", native: "1.2.0", noFloor: true, want: "policy_minor"},
		{name: "minor allows a patch step", policy: "minor", bundle: "1.1.9", native: "1.1.0", want: "offer"},
		{name: "minor allows a patch step downwards", policy: "minor", bundle: "1.1.0", native: "1.1.9", noFloor: true, want: "offer"},
		{name: "patch blocks a minor step", policy: "patch", bundle: "1.2.0", native: "1.1.0", want: "policy_patch"},
		{name: "patch blocks a major step", policy: "patch", bundle: "2.1.0", native: "1.1.0", want: "policy_patch"},
		{name: "patch blocks downwards", policy: "patch", bundle: "1.1.0", native: "1.1.1", noFloor: true, want: "policy_patch"},
		{name: "patch allows other build metadata", policy: "patch", bundle: "1.1.1+2", native: "1.1.1+1", want: "offer"},
		{name: "patch allows the release of a pre-release", policy: "patch", bundle: "1.1.1", native: "1.1.1-rc.1", want: "offer"},
		{name: "patch leaves a pre-release to the floor", policy: "patch", bundle: "1.1.1-rc.1", native: "1.1.1", want: "native_floor"},
		{name: "none allows a major step", policy: "none", bundle: "9.0.0", native: "1.0.0", want: "offer"},
		{name: "none obeys the floor", policy: "none", bundle: "1.0.0", native: "1.0.1", want: "native_floor"},
		{name: "none without the floor", policy: "none", bundle: "1.0.0", native: "9.0.0", noFloor: true, want: "offer"},
		{name: "minimum reached crosses a major step", policy: "version_number", bundle: "3.0.0", native: "1.0.0", min: "1.0.0", want: "offer"},
		{name: "minimum above", policy: "version_number", bundle: "3.0.0", native: "1.0.0", min: "1.0.1", want: "policy_minimum"},
		{name: "minimum above a pre-release", policy: "version_number", bundle: "3.0.0", native: "1.0.0-rc.1", min: "1.0.0", want: "policy_minimum"},
		{name: "minimum is not a version", policy: "version_number", bundle: "3.0.0", native: "1.0.0", min: "soon", want: "policy_without_minimum"},
		{name: "minimum under another policy", policy: "none", bundle: "3.0.0", native: "1.0.0", min: "2.0.0", want: "offer"},
		{name: "minimum reached, floor blocks", policy: "version_number", bundle: "1.0.0", native: "2.0.0", min: "1.0.0", want: "native_floor"},
		{name: "name is no version, policy none, floor on", policy: "none", bundle: "a", native: "1.0.0", want: "bundle_name_not_semver"},
		{name: "name is no version, policy none, floor off", policy: "none", bundle: "a", native: "1.0.0", noFloor: true, want: "offer"},
		{name: "name is no version, policy major, floor off", policy: "major", bundle: "a", native: "1.0.0", noFloor: true, want: "bundle_name_not_semver"},
		{name: "name has numbers too large", policy: "major", bundle: "9007199254740992.0.0", native: "1.0.0", want: "bundle_name_not_semver"},
		{name: "name with a v is a version", policy: "patch", bundle: "v1.1.0", native: "1.1.0", want: "offer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := scene{
				version: object{"name": tt.bundle},
				channel: object{"disable_auto_update": tt.policy, "disable_auto_update_under_native": !tt.noFloor},
				check:   object{"version_build": tt.native, "version_name": "builtin"},
			}
			if tt.min != "" {
				s.version["min_update_version"] = tt.min
			}
			if tt.native == tt.bundle {
				s.check["version_name"] = "other" // or row 13 answers
			}
			if got := s.decide(t).Rule; got != tt.want {
				t.Errorf("%s answers, want %s", got, tt.want)
			}
		})
	}
}

// Rows 15 to 20 are skipped for the reserved names; rows 14 and 21 to 24 are not (protocol 1.5, notes).
func TestReservedNamesSkipPolicies(t *testing.T) {
	strict := []string{"major", "minor", "patch", "version_number", "none"}
	for _, name := range []string{"builtin", "unknown"} {
		want := map[string]string{"builtin": "already_on_builtin", "unknown": "no_bundle_url"}[name]
		for _, policy := range strict {
			s := scene{
				version: object{"name": name, "r2_path": without},
				channel: object{"disable_auto_update": policy},
				check:   object{"version_build": "0.0.1"},
			}
			if got := s.decide(t).Rule; got != want {
				t.Errorf("%s under %s: %s answers, want %s", name, policy, got, want)
			}
			s.channel = s.channel.with(object{"allow_device": false})
			if got := s.decide(t).Rule; got != "devices" {
				t.Errorf("%s under %s, devices off: %s answers", name, policy, got)
			}
			s.channel, s.override = s.channel.with(notServed), true
			if got := s.decide(t).Rule; got != "platform_android" {
				t.Errorf("%s under %s, platform off: %s answers", name, policy, got)
			}
		}
	}
}

// What "old" and "version" say (protocol 1.5): rows 14 and 20 to 24 name the running bundle, rows 15 to 19 the native
// version. A device on its native bundle is known by its native version in both.
func TestOldAndVersion(t *testing.T) {
	tests := []struct {
		name string
		scene
		old string
	}{
		{"platform", scene{channel: notServed, override: true, check: object{"version_name": "1.0.5"}}, "1.0.5"},
		{"platform, on builtin", scene{channel: notServed, override: true, check: object{"version_name": "builtin"}}, "1.0.0"},
		{"major", scene{check: object{"version_name": "1.0.5", "version_build": "0.9"}}, "0.9.0"},
		{"minor", scene{channel: object{"disable_auto_update": "minor"}, check: object{"version_name": "x", "version_build": "v1"}}, "1.0.0"},
		{"minimum missing", scene{channel: object{"disable_auto_update": "version_number"}, check: object{"version_name": "x"}}, "1.0.0"},
		{"floor", scene{check: object{"version_name": "x", "version_build": "1.2"}}, "x"},
		{"floor, on builtin", scene{check: object{"version_name": "builtin", "version_build": "1.2"}}, "1.2.0"},
		{"prod", scene{channel: object{"allow_prod": false}, check: object{"version_name": `a"b`}}, `a"b`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.decide(t)
			got := members(t, AppendResponse(nil, &d, testBase))
			if got["old"] != tt.old || got["version"] != "1.1.0" {
				t.Errorf("old %v, version %v, want %q, 1.1.0", got["old"], got["version"], tt.old)
			}
		})
	}
}

// Protocol 2.1: which channel serves.
func TestChannelSelection(t *testing.T) {
	beta := object{"id": 2, "name": "beta", "version": 2, "allow_device_self_set": true}
	tests := []struct {
		name string
		scene
		channel, rule string
	}{
		{"public", scene{}, "production", "offer"},
		{"public, first by name", scene{channels: []any{beta.with(object{"public": true})}}, "beta", "offer"},
		{"public, first by name has a higher id", scene{channels: []any{beta.with(object{"id": 0, "name": "zeta", "public": true})}}, "production", "offer"},
		{"public, first by name is deleted", scene{channels: []any{beta.with(object{"public": true})}, target: object{"deleted": true}}, "production", "offer"},
		{"public, first by name serves others", scene{channels: []any{beta.with(object{"public": true, "android": false})}}, "production", "offer"},
		{"none public", scene{channel: object{"public": false}, channels: []any{beta}}, "", "no_channel"},
		{"named", scene{channels: []any{beta}, check: object{"defaultChannel": "beta"}}, "beta", "offer"},
		{"named in other letters", scene{channels: []any{beta}, check: object{"defaultChannel": "Beta"}}, "", "no_channel"},
		{"named, private", scene{channels: []any{beta.with(object{"allow_device_self_set": false})}, check: object{"defaultChannel": "beta"}}, "", "no_channel"},
		{"named, public only", scene{check: object{"defaultChannel": "production"}}, "production", "offer"},
		{"named, other platform", scene{channels: []any{beta.with(object{"android": false})}, check: object{"defaultChannel": "beta"}}, "", "no_channel"},
		{"named, deleted", scene{channels: []any{beta}, target: object{"deleted": true}, check: object{"defaultChannel": "beta"}}, "", "no_channel"},
		{"named, unknown", scene{check: object{"defaultChannel": "gamma"}}, "", "no_channel"},
		{"override, private", scene{channel: object{"public": false}, override: true}, "production", "offer"},
		{"override beats the named one", scene{channels: []any{beta}, override: true, check: object{"defaultChannel": "beta"}}, "production", "offer"},
		{"override, deleted, named", scene{version: object{"deleted": true}, channels: []any{beta}, override: true, check: object{"defaultChannel": "beta"}}, "beta", "offer"},
		{"override, deleted, public", scene{version: object{"deleted": true}, channels: []any{beta.with(object{"public": true})}, override: true}, "beta", "offer"},
		{"override of another device", scene{channel: object{"public": false}, override: true, device: "11119a6b-eefe-490a-9c60-8e965132ae51"}, "", "no_channel"},
		{"override, capitals", scene{channel: object{"public": false}, override: true, device: strings.ToUpper(testDevice)}, "production", "offer"},
		{"deleted builtin row still counts", scene{version: object{"name": "builtin", "deleted": true}}, "production", "already_on_builtin"},
		{"deleted unknown row does not", scene{version: object{"name": "unknown", "deleted": true}}, "", "no_channel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.decide(t)
			if d.Channel != tt.channel || d.Rule != tt.rule {
				t.Errorf("channel %q, rule %s, want %q, %s", d.Channel, d.Rule, tt.channel, tt.rule)
			}
		})
	}
}

// Protocol 1.6: the checksum is the stored text, or null where there is none.
func TestChecksumAsStored(t *testing.T) {
	for _, stored := range []any{nil, without, "", "c", testDigest} {
		d := scene{version: object{"checksum": stored}}.decide(t)
		want := stored
		if stored == without {
			want = nil
		}
		if got := members(t, AppendResponse(nil, &d, testBase))["checksum"]; got != want {
			t.Errorf("%v is told as %v", stored, got)
		}
	}
}

// The members of an update and the gates before the optional ones (protocol 1.6).
func TestOfferMembers(t *testing.T) {
	file := object{"file_name": "index.html", "file_hash": testDigest, "s3_path": "orgs/o/apps/com.demo.app/delta/x_index.html"}
	tests := []struct {
		name string
		scene
		url  string   // after the public address, or whole
		more []string // members beside version, url, session_key and checksum
	}{
		{"zip", scene{}, testBase + FilesPath + "orgs/o/apps/com.demo.app/1.1.0.zip?key=" + testDigest, nil},
		{"no checksum", scene{version: object{"checksum": nil}}, testBase + FilesPath + "orgs/o/apps/com.demo.app/1.1.0.zip?key=", nil},
		{"external", scene{version: object{"external_url": "https://cdn.example/a b?c=1#d"}}, "https://cdn.example/a b?c=1#d", nil},
		{
			"external hides the files",
			scene{version: object{"external_url": "https://cdn.example/1.zip", "manifest": []any{file}}},
			"https://cdn.example/1.zip", nil,
		},
		{"files alone", scene{version: object{"r2_path": nil, "manifest": []any{file}}}, noZip, []string{"manifest"}},
		{"files alone, old plugin", scene{version: object{"r2_path": nil, "manifest": []any{file}}, check: object{"plugin_version": "7.0.34"}}, noZip, nil},
		{"empty list", scene{version: object{"manifest": []any{}}}, testBase + FilesPath + "orgs/o/apps/com.demo.app/1.1.0.zip?key=" + testDigest, nil},
		{
			"link and comment",
			scene{app: object{"expose_metadata": true}, version: object{"link": "https://example.com", "comment": "c"}},
			testBase + FilesPath + "orgs/o/apps/com.demo.app/1.1.0.zip?key=" + testDigest,
			[]string{"link", "comment"},
		},
		{
			"link, empty comment",
			scene{app: object{"expose_metadata": true}, version: object{"link": "https://example.com", "comment": ""}},
			testBase + FilesPath + "orgs/o/apps/com.demo.app/1.1.0.zip?key=" + testDigest,
			[]string{"link"},
		},
		{
			"link not exposed",
			scene{version: object{"link": "https://example.com", "comment": "c"}},
			testBase + FilesPath + "orgs/o/apps/com.demo.app/1.1.0.zip?key=" + testDigest, nil,
		},
		{
			"link, old plugin",
			scene{app: object{"expose_metadata": true}, version: object{"link": "x"}, check: object{"plugin_version": "8.34.9"}},
			testBase + FilesPath + "orgs/o/apps/com.demo.app/1.1.0.zip?key=" + testDigest, nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.decide(t)
			if d.Outcome != Offer || d.Event != "get" || d.Bundle == nil || d.Channel != "production" {
				t.Fatalf("got %+v", d)
			}
			got := members(t, AppendResponse(nil, &d, testBase))
			names := append([]string{"version", "url", "session_key", "checksum"}, tt.more...)
			slices.Sort(names)
			if diff := cmp.Diff(names, slices.Sorted(maps.Keys(got))); diff != "" {
				t.Errorf("members (-want +got):\n%s", diff)
			}
			if got["url"] != tt.url {
				t.Errorf("url %v, want %s", got["url"], tt.url)
			}
		})
	}
}
