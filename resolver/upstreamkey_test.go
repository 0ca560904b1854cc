package resolver

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func mustKeyFields(t testing.TB, foreign bool, changes ...string) KeyFields {
	t.Helper()
	f, err := NewKeyFields(foreign, changes...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// keyOf is the answer key of the plain check with some members changed, and groupOf its group key.
func keyOf(t testing.TB, f KeyFields, changes object) string {
	t.Helper()
	body := string(toJSON(t, plainCheck.with(changes)))
	return string(AppendAnswerKey(nil, mustCheck(t, body), []byte(body), f))
}

func groupOf(t testing.TB, f KeyFields, changes object) string {
	t.Helper()
	body := string(toJSON(t, plainCheck.with(changes)))
	return string(AppendGroupKey(nil, mustCheck(t, body), []byte(body), f))
}

// The table of protocol 1.10, "Cache and dependencies", and what a server of another make may look at besides.
func TestAnswerKeyFields(t *testing.T) {
	tests := []struct {
		name              string
		from, to          object
		official, foreign bool // whether the key differs
	}{
		{"app", nil, object{"app_id": "com.other.app"}, false, false},
		{"device", nil, object{"device_id": "f0000000-eefe-490a-9c60-8e965132ae51"}, false, false},
		{"platform", nil, object{"platform": "ios"}, true, true},
		{"version_name", nil, object{"version_name": "1.0.1"}, true, true},
		{"builtin", nil, object{"version_name": "builtin"}, false, true},
		{"version_name is no version", object{"version_name": "v1.0.0"}, object{"version_name": "1.0.0"}, true, true},
		{"version_build", nil, object{"version_build": "1.0.1"}, true, true},
		{"version_build written otherwise", nil, object{"version_build": "1"}, false, true},
		{"defaultChannel", nil, object{"defaultChannel": "beta"}, true, true},
		{"empty defaultChannel", nil, object{"defaultChannel": ""}, false, true},
		{"is_prod", nil, object{"is_prod": false}, true, true},
		{"is_prod null", nil, object{"is_prod": nil}, false, true},
		{"is_prod missing", object{"is_prod": true}, object{"is_prod": without}, false, true},
		{"is_emulator", nil, object{"is_emulator": true}, true, true},
		{"key_id", nil, object{"key_id": "k"}, true, true},
		{"empty key_id", nil, object{"key_id": ""}, false, true},
		{"custom_id", nil, object{"custom_id": "c"}, false, true},
		{"version_code", nil, object{"version_code": "12"}, false, true},
		{"version_code is no text", object{"version_code": "12"}, object{"version_code": 12}, false, true},
		{"version_os", nil, object{"version_os": "14"}, false, true},
		{"install_source", nil, object{"install_source": "google_play"}, false, true},
		{"unknown member", nil, object{"locale": "fr"}, false, false},
		{"order of members", nil, object{"aaa": 1}, false, false},
		{"plugin, no gate between", object{"plugin_version": "8.51.14"}, object{"plugin_version": "9.0.0"}, false, true},
		{"plugin 4", object{"plugin_version": "4.0.0"}, object{"plugin_version": "3.0.0"}, true, true},
		{"plugin 6.2.0", object{"plugin_version": "6.1.9"}, object{"plugin_version": "6.2.0"}, true, true},
		{"plugin 8.40.7", object{"plugin_version": "8.40.7"}, object{"plugin_version": "8.40.8"}, true, true},
		{"plugin's delta gate", object{"plugin_version": "7.0.34"}, object{"plugin_version": "7.0.35"}, true, true},
		{"plugin's metadata gate", object{"plugin_version": "7.34.9"}, object{"plugin_version": "7.35.0"}, true, true},
		{"plugin's self-assignment gate", object{"plugin_version": "7.33.9"}, object{"plugin_version": "7.34.0"}, true, true},
	}
	official, foreign := mustKeyFields(t, false), mustKeyFields(t, true)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if differs := keyOf(t, official, tt.from) != keyOf(t, official, tt.to); differs != tt.official {
				t.Errorf("official: differs %t", differs)
			}
			if differs := keyOf(t, foreign, tt.from) != keyOf(t, foreign, tt.to); differs != tt.foreign {
				t.Errorf("foreign: differs %t", differs)
			}
			// Of a group all is the same but the running version.
			alike := strings.HasPrefix(tt.name, "version_name") || tt.name == "builtin"
			if differs := groupOf(t, foreign, tt.from) != groupOf(t, foreign, tt.to); differs != (tt.foreign && !alike) {
				t.Errorf("foreign group: differs %t", differs)
			}
			if differs := groupOf(t, official, tt.from) != groupOf(t, official, tt.to); differs != (tt.official && !alike) {
				t.Errorf("official group: differs %t", differs)
			}
		})
	}
}

func TestKeyFieldChanges(t *testing.T) {
	tests := []struct {
		name    string
		foreign bool
		changes []string
		member  string
		a, b    any
		differs bool
	}{
		{"added", false, []string{"+locale"}, "locale", "fr", "de", true},
		{"added, of another type", false, []string{"+n"}, "n", "1", 1, true},
		{"added, missing and null", false, []string{"+n"}, "n", without, nil, true},
		{"added, missing and empty", false, []string{"+n"}, "n", without, "", true},
		{"added, objects", false, []string{"+n"}, "n", object{"a": "}"}, object{"a": "]"}, true},
		{"added to the official ones", false, []string{"+version_code"}, "version_code", "1", "2", true},
		{"taken away", true, []string{"-custom_id"}, "custom_id", "1", "2", false},
		{"taken away that was not there", false, []string{"-custom_id"}, "custom_id", "1", "2", false},
		{"taken away and added", true, []string{"-custom_id", "+custom_id"}, "custom_id", "1", "2", true},
		{"one of the official ones taken away", false, []string{"-key_id"}, "key_id", "1", "2", false},
		{"both forms taken away", true, []string{"-version_build"}, "version_build", "1.0.0", "2.0.0", false},
		{"as it was sent", false, []string{"+version_build"}, "version_build", "1.0.0", "1.0", true},
		{"plugin as it was sent", false, []string{"+plugin_version"}, "plugin_version", "8.51.14", "8.51.15", true},
		{"boolean taken away", true, []string{"-is_prod"}, "is_prod", true, false, false},
		{"boolean as it was sent", false, []string{"+is_prod"}, "is_prod", true, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := mustKeyFields(t, tt.foreign, tt.changes...)
			if differs := keyOf(t, f, object{tt.member: tt.a}) != keyOf(t, f, object{tt.member: tt.b}); differs != tt.differs {
				t.Errorf("differs %t", differs)
			}
		})
	}
}

func TestKeyFieldFaults(t *testing.T) {
	var many []string
	for i := range maxOtherFields + 1 {
		many = append(many, "+x"+string(rune('a'+i)))
	}
	for _, changes := range [][]string{{"locale"}, {"+"}, {""}, {"-"}, {"+app_id"}, {"-device_id"}, {"+Platform"}, {"+locale", "+Locale"}, many} {
		if _, err := NewKeyFields(false, changes...); err == nil {
			t.Errorf("%q are accepted", changes)
		}
	}
}

// Answers are on disk under these keys.
func TestAnswerKeyGolden(t *testing.T) {
	var less []string
	for _, name := range foreignFields {
		if name != "custom_id" && name != "version_code" && name != "is_prod" {
			less = append(less, "-"+name)
		}
	}
	tests := []struct {
		name string
		got  string
		want string
	}{
		{"official", keyOf(t, mustKeyFields(t, false), nil), "61ff013e0100" + "05312e302e30" + "05312e302e30" + "00" + "00"},
		{"official group", groupOf(t, mustKeyFields(t, false), nil), "67fd013e0100" + "05312e302e30" + "00" + "00"},
		{
			"foreign", keyOf(t, mustKeyFields(t, true, less...), object{"custom_id": "é", "version_code": 7}),
			"6101" + "01" + "09" + hex.EncodeToString([]byte("custom_id")) + "0102c3a9" +
				"07" + hex.EncodeToString([]byte("is_prod")) + "020474727565" + "0c" + hex.EncodeToString([]byte("version_code")) + "020137",
		},
	}
	for _, tt := range tests {
		if got := hex.EncodeToString([]byte(tt.got)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Equal names, escapes and blanks are read as the parser reads them.
func TestAnswerKeyReadsAsParsed(t *testing.T) {
	f := mustKeyFields(t, true, "+locale")
	spelled := func(tail string) string {
		body := strings.TrimSuffix(string(toJSON(t, plainCheck)), "}") + tail
		return string(AppendAnswerKey(nil, mustCheck(t, body), []byte(body), f))
	}
	want := spelled(`,"locale":"fr\/A"}`)
	for _, tail := range []string{
		`,"locale":"de","locale":"fr/A"}`, ` , "loc\u0061le" : "\u0066r/A" } `, `,"x":{"locale":"de","y":["]",{}]},"locale":"fr/A"}`,
		`,"x":"\"","y":"\\","locale":"fr/A","z":[[],{"a":"\\\""}]}`,
	} {
		if got := spelled(tail); got != want {
			t.Errorf("%s: got %q, want %q", tail, got, want)
		}
	}
	if got := spelled(`,"locale":"fr/A","locale":null}`); got == want {
		t.Error("the last of equal names does not count")
	}
}

func FuzzAnswerKey(f *testing.F) {
	for _, body := range scanBodies {
		f.Add([]byte(body), "custom_id")
	}
	f.Add([]byte(`{"a":"`), "a")
	f.Add([]byte(`{"a":["}`), "a")
	fields := mustKeyFields(f, true)
	f.Fuzz(func(t *testing.T, body []byte, name string) {
		if own, err := NewKeyFields(true, "+"+name); err == nil {
			var zero Check
			AppendAnswerKey(nil, &zero, body, own) // of no check at all: it must come to an end
		}
		var p CheckParser
		c, err := p.Parse(body)
		if err != nil {
			return
		}
		key := AppendAnswerKey(nil, &c, body, fields)
		// The standard library reads the body: other order, other spelling, no duplicates.
		var values map[string]json.RawMessage
		if json.Unmarshal(body, &values) != nil || slices.ContainsFunc(body, func(c byte) bool { return c >= 0x80 }) {
			return
		}
		for member, raw := range values {
			var text string
			if raw[0] == '"' && json.Unmarshal(raw, &text) == nil {
				values[member] = toJSON(t, text)
			}
		}
		again := toJSON(t, values)
		for _, member := range values {
			var b bytes.Buffer
			if json.Compact(&b, member) != nil || b.String() != string(member) {
				return // of what is no text the spelling counts
			}
		}
		if c, err = p.Parse(again); err != nil {
			t.Fatal(err)
		}
		if got := AppendAnswerKey(nil, &c, again, fields); !bytes.Equal(got, key) {
			t.Fatalf("%s: key %q, written again as %s: %q", body, key, again, got)
		}
	})
}

func BenchmarkAppendAnswerKey(b *testing.B) {
	for _, kind := range []string{"official", "foreign"} {
		b.Run(kind, func(b *testing.B) {
			f := mustKeyFields(b, kind == "foreign")
			body := []byte(exampleBody)
			c := mustCheck(b, exampleBody)
			dst := make([]byte, 0, 512)
			b.ReportAllocs()
			for b.Loop() {
				dst = AppendAnswerKey(dst[:0], c, body, f)
			}
		})
	}
}
