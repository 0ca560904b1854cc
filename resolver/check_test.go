package resolver

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// bodyOf writes the plain check with one member as the given JSON text, or without it if the text is empty.
func bodyOf(t testing.TB, member, text string) []byte {
	t.Helper()
	if text == "" {
		return toJSON(t, plainCheck.with(object{member: without}))
	}
	return toJSON(t, plainCheck.with(object{member: json.RawMessage(text)}))
}

// refusalOf parses body and returns why it is refused.
func refusalOf(t testing.TB, body []byte) *Refusal {
	t.Helper()
	var p CheckParser
	c, err := p.Parse(body)
	var r *Refusal
	if !errors.As(err, &r) {
		t.Fatalf("%.300q gives %+v, %v, want a refusal", body, c, err)
	}
	return r
}

func TestParseCheck(t *testing.T) {
	c := mustCheck(t, strings.Replace(exampleBody, "00009a6b-eefe", "00009A6B-EEFE", 1))
	want := Check{
		AppID: "com.demo.app", DeviceID: testDevice, Platform: Android, VersionName: "1.0.0", VersionBuild: "1.0.0",
		DefaultChannel: "beta", IsProd: true,
		device: deviceID{0x00, 0x00, 0x9a, 0x6b, 0xee, 0xfe, 0x49, 0x0a, 0x9c, 0x60, 0x8e, 0x96, 0x51, 0x32, 0xae, 0x51},
		native: version{1, 0, 0, ""}, plugin: version{8, 51, 14, ""},
	}
	if *c != want {
		t.Errorf("got  %+v\nwant %+v", *c, want)
	}
	for p, name := range map[Platform]string{IOS: "ios", Android: "android", Electron: "electron"} {
		if p.String() != name {
			t.Errorf("platform %d is called %s", p, p)
		}
		if c := mustCheck(t, string(bodyOf(t, "platform", `"`+name+`"`))); c.Platform != p {
			t.Errorf("%s gives %s", name, c.Platform)
		}
	}
}

// What a check keeps must not change when the buffer of the body is used for the next one.
func TestCheckCopiesTheBody(t *testing.T) {
	body := []byte(exampleBody)
	var p CheckParser
	c, err := p.Parse(body)
	if err != nil {
		t.Fatal(err)
	}
	before := c
	before.AppID, before.DefaultChannel = strings.Clone(c.AppID), strings.Clone(c.DefaultChannel)
	for i := range body {
		body[i] = 'x'
	}
	if _, err := p.Parse(body); err == nil {
		t.Fatal("no JSON is accepted")
	}
	if c != before {
		t.Errorf("the check became %+v", c)
	}
}

// The schema of protocol 1.2, field by field: "" for accepted, else the code and, for invalid_json_body, the issue.
func TestCheckSchema(t *testing.T) {
	const (
		body  = "invalid_json_body"
		kind  = "invalid_type"
		empty = "too_small"
		long  = "too_big"
		form  = "invalid_format"
		value = "invalid_value"
	)
	text := func(s string, n int) string { return `"` + strings.Repeat(s, n) + `"` }
	type result struct{ code, issue string }
	ok := result{}
	tests := []struct {
		field, name, text string
		want              result
	}{
		{"app_id", "absent", ``, result{"missing_app_id", ""}},
		{"app_id", "null", `null`, result{"missing_app_id", ""}},
		{"app_id", "empty", `""`, result{"missing_app_id", ""}},
		{"app_id", "zero", `0`, result{"missing_app_id", ""}},
		{"app_id", "false", `false`, result{"missing_app_id", ""}},
		{"app_id", "number", `7`, result{body, kind}},
		{"app_id", "true", `true`, result{body, kind}},
		{"app_id", "array", `["com.demo.app"]`, result{body, kind}},
		{"app_id", "object", `{}`, result{body, kind}},
		{"app_id", "one segment", `"app"`, result{body, form}},
		{"app_id", "dot at the end", `"com.demo."`, result{body, form}},
		{"app_id", "dot at the start", `".demo.app"`, result{body, form}},
		{"app_id", "two dots", `"com..app"`, result{body, form}},
		{"app_id", "hyphen in the first segment", `"my-com.app"`, result{body, form}},
		{"app_id", "underscore in the first segment", `"my_com.app"`, result{body, form}},
		{"app_id", "slash", `"com.demo/app"`, result{body, form}},
		{"app_id", "blank", `"com.demo app"`, result{body, form}},
		{"app_id", "newline at the end", `"com.demo.app\n"`, result{body, form}},
		{"app_id", "é", `"com.démo.app"`, result{body, form}},
		{"app_id", "long s, which only folds to a letter", `"ſcom.app"`, result{body, form}},
		{"app_id", "hyphen and underscore later", `"com.-._"`, ok},
		{"app_id", "digits first", `"1.2"`, ok},
		{"app_id", "first and last letters and digits", `"azAZ09.azAZ09_-"`, ok},
		{"app_id", "before 0", `"com.a/"`, result{body, form}},
		{"app_id", "after 9", `"com.:"`, result{body, form}},
		{"app_id", "before A", `"com.@"`, result{body, form}},
		{"app_id", "after Z", `"com.["`, result{body, form}},
		{"app_id", "before a", "\"com.`\"", result{body, form}},
		{"app_id", "after z", `"com.{"`, result{body, form}},
		{"app_id", "capitals", `"COM.Demo.App"`, ok},
		{"app_id", "very long", `"com.` + strings.Repeat("a", 500) + `"`, ok},

		{"device_id", "absent", ``, result{"missing_device_id", ""}},
		{"device_id", "null", `null`, result{"missing_device_id", ""}},
		{"device_id", "empty", `""`, result{"missing_device_id", ""}},
		{"device_id", "zero", `0`, result{"missing_device_id", ""}},
		{"device_id", "minus zero", `-0.0`, result{"missing_device_id", ""}},
		{"device_id", "false", `false`, result{"missing_device_id", ""}},
		{"device_id", "number", `12`, result{body, kind}},
		{"device_id", "array", `[]`, result{body, kind}},
		{"device_id", "capitals", `"00009A6B-EEFE-490A-9C60-8E965132AE51"`, ok},
		{"device_id", "all digits", `"01234567-89ab-cdef-ABCD-EF0189afAF90"`, ok},
		{"device_id", "after 9", `"00009a6b-eefe-490a-9c60-8e965132ae5:"`, result{body, form}},
		{"device_id", "before 0", `"00009a6b-eefe-490a-9c60-8e965132ae5/"`, result{body, form}},
		{"device_id", "before A", `"00009a6b-eefe-490a-9c60-8e965132ae5@"`, result{body, form}},
		{"device_id", "after F", `"00009a6b-eefe-490a-9c60-8e965132ae5G"`, result{body, form}},
		{"device_id", "before a", "\"00009a6b-eefe-490a-9c60-8e965132ae5`\"", result{body, form}},
		{"device_id", "any version", `"ffffffff-ffff-ffff-ffff-ffffffffffff"`, ok},
		{"device_id", "all zeros", `"00000000-0000-0000-0000-000000000000"`, ok},
		{"device_id", "35 characters", `"00009a6b-eefe-490a-9c60-8e965132ae5"`, result{body, form}},
		{"device_id", "37 characters", `"00009a6b-eefe-490a-9c60-8e965132ae511"`, result{body, form}},
		{"device_id", "braces", `"{00009a6b-eefe-490a-9c60-8e965132ae51}"`, result{body, form}},
		{"device_id", "no hyphens", `"00009a6beefe490a9c608e965132ae510000"`, result{body, form}},
		{"device_id", "hyphens elsewhere", `"00009a6-beefe-490a-9c60-8e965132ae51"`, result{body, form}},
		{"device_id", "no hexadecimal digit", `"00009a6b-eefe-490a-9c60-8e965132ae5g"`, result{body, form}},
		{"device_id", "blank around", `" 0009a6b-eefe-490a-9c60-8e965132ae51"`, result{body, form}},

		{"platform", "absent", ``, result{body, kind}},
		{"platform", "null", `null`, result{body, kind}},
		{"platform", "empty", `""`, result{body, empty}},
		{"platform", "capitals", `"Android"`, result{body, value}},
		{"platform", "another", `"web"`, result{body, value}},
		{"platform", "number", `1`, result{body, kind}},

		{"version_name", "absent", ``, result{body, kind}},
		{"version_name", "null", `null`, result{body, kind}},
		{"version_name", "empty", `""`, result{body, empty}},
		{"version_name", "number", `1.0`, result{body, kind}},
		{"version_name", "any text", `"summer ☀"`, ok},
		{"version_name", "very long", text("a", 3000), ok},

		{"version_build", "absent", ``, result{body, kind}},
		{"version_build", "null", `null`, result{body, kind}},
		{"version_build", "empty", `""`, result{body, empty}},
		{"version_build", "number", `1.2`, result{body, kind}},
		{"version_build", "zero", `0`, result{body, kind}},
		{"version_build", "true", `true`, result{body, kind}},
		{"version_build", "no version", `"abc"`, result{"semver_error", ""}},
		{"version_build", "256 characters", `"1.2.3+` + strings.Repeat("5", 250) + `"`, ok},
		{"version_build", "257 characters", `"1.2.3+` + strings.Repeat("5", 251) + `"`, result{"semver_error", ""}},

		{"plugin_version", "absent", ``, result{body, kind}},
		{"plugin_version", "null", `null`, result{body, kind}},
		{"plugin_version", "empty", `""`, result{body, empty}},
		{"plugin_version", "number", `8`, result{body, kind}},
		{"plugin_version", "one part", `"8"`, result{body, form}},
		{"plugin_version", "two parts", `"8.1"`, result{body, form}},
		{"plugin_version", "word", `"builtin"`, result{body, form}},
		{"plugin_version", "number too large", `"9007199254740992.0.0"`, result{body, form}},
		{"plugin_version", "v and pre-release", `"v8.1.0-rc.1"`, ok},

		{"is_emulator", "absent", ``, ok},
		{"is_emulator", "null", `null`, ok},
		{"is_emulator", "true", `true`, ok},
		{"is_emulator", "false", `false`, ok},
		{"is_emulator", "text", `"true"`, result{body, kind}},
		{"is_emulator", "empty", `""`, result{body, kind}},
		{"is_emulator", "number", `1`, result{body, kind}},
		{"is_emulator", "zero", `0`, result{body, kind}},
		{"is_emulator", "array", `[]`, result{body, kind}},
		{"is_prod", "absent", ``, ok},
		{"is_prod", "null", `null`, ok},
		{"is_prod", "text", `"false"`, result{body, kind}},
		{"is_prod", "number", `0`, result{body, kind}},

		{"defaultChannel", "absent", ``, ok},
		{"defaultChannel", "empty", `""`, ok},
		{"defaultChannel", "text", `"beta"`, ok},
		{"defaultChannel", "very long", text("c", 3000), ok},
		{"defaultChannel", "null", `null`, result{body, kind}},
		{"defaultChannel", "number", `1`, result{body, kind}},
		{"defaultChannel", "false", `false`, result{body, kind}},

		// Limits count UTF-16 code units, as the upstream's language does.
		{"key_id", "absent", ``, ok},
		{"key_id", "empty", `""`, ok},
		{"key_id", "null", `null`, result{body, kind}},
		{"key_id", "number", `1`, result{body, kind}},
		{"key_id", "20", text("k", 20), ok},
		{"key_id", "21", text("k", 21), result{body, long}},
		{"key_id", "20 of two bytes", text("é", 20), ok},
		{"key_id", "21 of two bytes", text("é", 21), result{body, long}},
		{"key_id", "20 of the last with one unit", text("\uffff", 20), ok},
		{"key_id", "11 of the first with two units", text("\U00010000", 11), result{body, long}},
		{"key_id", "10 of two units", text("𝄞", 10), ok},
		{"key_id", "11 of two units", text("𝄞", 11), result{body, long}},
		{"key_id", "20 escapes", text(`\u00e9`, 20), ok},
		{"key_id", "10 escaped pairs", text(`\ud834\udd1e`, 10), ok},
		{"key_id", "11 escaped pairs", text(`\ud834\udd1e`, 11), result{body, long}},

		{"install_source", "absent", ``, ok},
		{"install_source", "empty", `""`, ok},
		{"install_source", "number", `1`, result{body, kind}},
		{"install_source", "64", text("s", 64), ok},
		{"install_source", "65", text("s", 65), result{body, long}},
		{"install_source", "64 of three bytes", text("€", 64), ok},
		{"install_source", "33 of two units", text("𝄞", 33), result{body, long}},

		{"custom_id", "null", `null`, ok},
		{"custom_id", "object", `{"app_id":"x"}`, ok},
		{"version_code", "number", `10`, ok},
		{"version_os", "array", `[[]]`, ok},
		{"unknown", "anything", `{"a":[1,2,{"b":null}]}`, ok},
		{"", "member without a name", `1`, ok},
	}
	for _, tt := range tests {
		t.Run(tt.field+"/"+tt.name, func(t *testing.T) {
			raw := bodyOf(t, tt.field, tt.text)
			if tt.want == ok {
				mustCheck(t, string(raw))
				return
			}
			r := refusalOf(t, raw)
			if r.Code != tt.want.code || r.Status != 400 {
				t.Fatalf("refused with %d %s, want 400 %s", r.Status, r.Code, tt.want.code)
			}
			if tt.want.issue == "" {
				if len(r.Issues) > 0 {
					t.Errorf("issues %v, want none", r.Issues)
				}
				return
			}
			if len(r.Issues) != 1 || r.Issues[0].Field != tt.field || r.Issues[0].Code != tt.want.issue || r.Issues[0].Message == "" {
				t.Errorf("issues %v, want %s of %s", r.Issues, tt.want.issue, tt.field)
			}
		})
	}
}

func TestBooleansOfACheck(t *testing.T) {
	tests := []struct {
		name, text     string
		emulator, prod bool
	}{
		{"absent", ``, false, true},
		{"null", `null`, false, true},
		{"true", `true`, true, true},
		{"false", `false`, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if c := mustCheck(t, string(bodyOf(t, "is_emulator", tt.text))); c.IsEmulator != tt.emulator {
				t.Errorf("is_emulator is %t", c.IsEmulator)
			}
			if c := mustCheck(t, string(bodyOf(t, "is_prod", tt.text))); c.IsProd != tt.prod {
				t.Errorf("is_prod is %t", c.IsProd)
			}
		})
	}
}

// Bodies by their shape alone (protocol 1.5 rows 1 and 3a).
func TestBodyShapes(t *testing.T) {
	plain := string(toJSON(t, plainCheck))
	inside := func(members string) string { return strings.TrimSuffix(plain, "}") + "," + members + "}" }
	const notJSON, noObject, ok = "invalid_json_parse_body", "invalid_json_body", ""
	tests := []struct {
		name, body, want string
	}{
		{"empty", ``, notJSON},
		{"blank", " \r\n\t", notJSON},
		{"cut", plain[:len(plain)-1], notJSON},
		{"cut within a text", plain[:len(plain)/2], notJSON},
		{"word", `hello`, notJSON},
		{"form data", `app_id=com.demo.app`, notJSON},
		{"single quotes", `{'app_id':'x'}`, notJSON},
		{"comma at the end", strings.TrimSuffix(plain, "}") + ",}", notJSON},
		{"name without quotes", `{app_id:1}`, notJSON},
		{"name that is no text", `{1:1}`, notJSON},
		{"no colon", `{"app_id" "x"}`, notJSON},
		{"no value", `{"app_id":}`, notJSON},
		{"no comma", `{"a":1 "b":2}`, notJSON},
		{"comment", plain + "// end", notJSON},
		{"text after it", plain + " x", notJSON},
		{"second object", plain + plain, notJSON},
		{"bracket after it", plain + "]", notJSON},
		{"bracket of another kind", strings.TrimSuffix(plain, "}") + "]", notJSON},
		{"NUL after it", plain + "\x00", notJSON},
		{"form feed after it", plain + "\f", notJSON},
		{"next line after it", plain + "\u0085", notJSON},
		{"no-break space after it", plain + "\u00a0", notJSON},
		{"no-break space after an array", "[]\u00a0", notJSON},
		{"no-break space alone", "\u00a0", notJSON},
		{"array, cut", `[1`, notJSON},
		{"array, text after it", `[1] x`, notJSON},
		{"byte order mark", "\ufeff" + plain, notJSON},
		{"UTF-16", "{\x00\"\x00a\x00\"\x00:\x001\x00}\x00", notJSON},
		{"control character in a text", inside("\"custom_id\":\"\n\""), notJSON},
		{"unknown escape", inside(`"custom_id":"\x"`), notJSON},
		{"NaN", inside(`"custom_id":NaN`), notJSON},
		{"leading zero", inside(`"custom_id":01`), notJSON},
		{"deep nesting without an end", strings.Repeat("[", 60_000), notJSON},

		{"empty object", `{}`, noObject},
		{"empty object, blanks", " {\n} ", noObject},
		{"null", `null`, noObject},
		{"array", `[]`, noObject},
		{"array of a check", `[` + plain + `]`, noObject},
		{"text", `"x"`, noObject},
		{"number", `-1.5e3`, noObject},
		{"true", `true`, noObject},
		{"false", ` false `, noObject},

		{"blanks around", "\r\n\t " + plain + " \n", ok},
		{"nested junk", inside(`"x":{"app_id":"other","device_id":[{"platform":{}}]},"y":[[[[]]]]`), ok},
		{"deep nesting", inside(`"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000)), ok},
		{"duplicate unknown members", inside(`"x":1,"x":{"x":2,"x":3}`), ok},
		{"invalid UTF-8 in what is ignored", inside("\"custom_id\":\"\xff\""), ok},
		{"invalid UTF-8 in a name", inside("\"\xff\":1"), ok},
		{"half a surrogate pair", inside(`"custom_id":"\ud800"`), ok},
		{"long number", inside(`"x":` + strings.Repeat("9", 5000)), ok},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == ok {
				if c := mustCheck(t, tt.body); *c != *mustCheck(t, plain) {
					t.Errorf("the check is %+v", c)
				}
				return
			}
			if r := refusalOf(t, []byte(tt.body)); r.Code != tt.want || r.Status != 400 {
				t.Errorf("refused with %d %s, want 400 %s", r.Status, r.Code, tt.want)
			}
		})
	}
}

// Names match as in the upstream's parser: exactly, whatever way they are spelled in JSON, and the last one wins.
func TestMemberNames(t *testing.T) {
	plain := string(toJSON(t, plainCheck))
	last := func(members string) string { return strings.TrimSuffix(plain, "}") + "," + members + "}" }
	first := func(members string) string { return "{" + members + "," + plain[1:] }
	tests := []struct {
		name, body string
		want       string // version_name that was read
		code       string
	}{
		{"plain", plain, "1.0.0", ""},
		{"last wins", last(`"version_name":"2.0.0"`), "2.0.0", ""},
		{"last wins over an earlier one", first(`"version_name":"2.0.0"`), "1.0.0", ""},
		{"last wins though it is wrong", last(`"version_name":7`), "", "invalid_json_body"},
		{"last wins over a wrong one", first(`"version_name":7`), "1.0.0", ""},
		{"last wins though it is null", last(`"app_id":null`), "", "missing_app_id"},
		{"escaped name", strings.Replace(plain, `"app_id"`, `"app\u005fid"`, 1), "1.0.0", ""},
		{"escaped name is the same name", last(`"\u0076ersion_nam\u0065":"2.0.0"`), "2.0.0", ""},
		{"escaped name of another", last(`"version\u002dname":"2.0.0"`), "1.0.0", ""},
		{"escaped value", last(`"version_name":"\u0032.0.\u0030\/\t\"\\"`), "2.0.0/\t\"\\", ""},
		{"capitals are another name", last(`"Version_Name":"2.0.0","VERSION_NAME":"3.0.0"`), "1.0.0", ""},
		{"blanks are another name", last(`" version_name":"2.0.0"`), "1.0.0", ""},
		{"invalid UTF-8 is another name", last("\"version_name\xff\":\"2.0.0\""), "1.0.0", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.code != "" {
				if r := refusalOf(t, []byte(tt.body)); r.Code != tt.code {
					t.Errorf("refused with %s, want %s", r.Code, tt.code)
				}
				return
			}
			if c := mustCheck(t, tt.body); c.VersionName != tt.want {
				t.Errorf("version_name is %q, want %q", c.VersionName, tt.want)
			}
		})
	}
}

// The order of protocol 1.5 rows 1 and 3: of everything that is wrong, the first thing is told.
func TestOrderOfRefusals(t *testing.T) {
	wrong := []struct {
		code   string
		change object
	}{
		{"missing_device_id", object{"device_id": without}},
		{"missing_app_id", object{"app_id": nil}},
		{"semver_error", object{"version_build": "abc"}},
		{"invalid_json_body", object{"platform": "web", "plugin_version": "8"}},
	}
	// Every combination of the four: the lowest that is there is told.
	for set := 1; set < 1<<len(wrong); set++ {
		body, want := plainCheck, ""
		var there []string
		for i := range slices.Backward(wrong) {
			if set>>i&1 == 1 {
				body, want = body.with(wrong[i].change), wrong[i].code
				there = append(there, wrong[i].code)
			}
		}
		slices.Reverse(there)
		t.Run(strings.Join(there, "+"), func(t *testing.T) {
			text := toJSON(t, body)
			if r := refusalOf(t, text); r.Code != want {
				t.Errorf("refused with %s, want %s", r.Code, want)
			}
			if r := refusalOf(t, text[:len(text)-1]); r != ErrNotJSON {
				t.Errorf("cut, it is refused with %s", r.Code)
			}
		})
	}
}

// All broken fields are told at once, in a fixed order.
func TestEveryIssueIsTold(t *testing.T) {
	r := refusalOf(t, []byte(`{"install_source":5,"key_id":null,"defaultChannel":1,"is_prod":"","is_emulator":0,
		"plugin_version":"8","version_name":"","version_build":null,"platform":"web","device_id":"x","app_id":"app"}`))
	var got []string
	for _, issue := range r.Issues {
		got = append(got, issue.Field)
	}
	want := []string{
		"app_id", "device_id", "platform", "version_name", "version_build", "plugin_version", "is_emulator", "is_prod",
		"defaultChannel", "key_id", "install_source",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

// A parser that is reused forgets the check before.
func TestParserIsReused(t *testing.T) {
	var p CheckParser
	full := toJSON(t, plainCheck.with(object{"key_id": "k", "defaultChannel": "beta", "is_emulator": true, "is_prod": false}))
	bare := toJSON(t, plainCheck.with(object{"is_emulator": without, "is_prod": without}))
	want := *mustCheck(t, string(bare))
	for _, before := range [][]byte{full, full[:40], nil, []byte(`{}`), []byte(`[1`), full} {
		_, _ = p.Parse(before)
		if got, err := p.Parse(bare); err != nil || got != want {
			t.Errorf("after %.40q: %+v, %v", before, got, err)
		}
	}
}

func TestRefusalIsAnError(t *testing.T) {
	if got := ErrNotJSON.Error(); got != "invalid_json_parse_body: Invalid JSON body" {
		t.Errorf("text %q", got)
	}
	if Offer.String() != "offer" || UpToDate.String() != "up_to_date" || Blocked.String() != "blocked" || Failed.String() != "failed" {
		t.Error("an outcome has another name")
	}
}

func TestAppendRefusal(t *testing.T) {
	nasty := "\"\\\n\x00\xff</script>\u2028é\ud7ff"
	tests := []struct {
		name    string
		refusal *Refusal
		want    string
	}{
		{"not JSON", ErrNotJSON, `{"error":"invalid_json_parse_body","message":"Invalid JSON body","moreInfo":{}}`},
		{"missing", &Refusal{Status: 400, Code: "missing_app_id", Message: "Cannot find app_id"}, `{"error":"missing_app_id","message":"Cannot find app_id","moreInfo":{}}`},
		{"unknown app", &Refusal{Status: 429, Code: "on_premise_app", Message: "On-premise app detected"}, `{"error":"on_premise_app","message":"On-premise app detected"}`},
		{
			"version", &Refusal{Status: 400, Code: "semver_error", Message: "m", VersionBuild: "a\"b"},
			`{"error":"semver_error","message":"m","moreInfo":{"version_build":"a\"b"}}`,
		},
		{
			"issues",
			cannotParse(Issue{"app_id", "invalid_type", "expected a string"}, Issue{"", "invalid_type", "the body is empty"}),
			`{"error":"invalid_json_body","message":"Cannot parse body","moreInfo":{"parseResult":[` +
				`{"code":"invalid_type","path":["app_id"],"message":"expected a string"},` +
				`{"code":"invalid_type","path":[],"message":"the body is empty"}]}}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := AppendRefusal([]byte("before"), tt.refusal)
			if string(got) != "before"+tt.want {
				t.Errorf("got  %s\nwant before%s", got, tt.want)
			}
		})
	}
	for _, r := range []*Refusal{
		{Status: 400, Code: nasty, Message: nasty, VersionBuild: nasty},
		{Status: 500, Code: nasty, Message: nasty},
		cannotParse(Issue{nasty, nasty, nasty}, Issue{}),
		{},
	} {
		got := AppendRefusal(nil, r)
		if !json.Valid(got) || !utf8.Valid(got) {
			t.Errorf("%+v gives no JSON: %q", r, got)
		}
	}
}

// What a device sent comes back in some answers; nothing it sends may break them.
func TestNastyTextsInAnswers(t *testing.T) {
	for _, text := range []string{
		`\"`, `\\`, `\u0000`, `\n`, "\x7f", `\u007f`, "\u2028", "</script>", "é", "𝄞", "\xff", "\xed\xa0\x80", "a\xc3", `\ud800`,
	} {
		for _, member := range []string{"version_name", "version_build", "key_id"} {
			body := strings.Replace(string(bodyOf(t, member, `"TEXT"`)), "TEXT", text, 1)
			s := scene{channel: object{"allow_device": false}, version: object{"key_id": "bundle"}}
			status, got := answer(t, s.document(t), []byte(body), testBase)
			if !json.Valid(got) || !utf8.Valid(got) {
				t.Errorf("%s %q: the answer is no JSON: %d %q", member, text, status, got)
			}
		}
	}
}

// No refusal of the vectors says what only decisions may (protocol 1.5, notes).
func TestRefusalsOfTheVectors(t *testing.T) {
	for _, c := range loadVectors(t) {
		var p CheckParser
		_, err := p.Parse(c.body())
		if err == nil {
			continue
		}
		got := members(t, AppendRefusal(nil, refusalOf(t, c.body())))
		names := slices.Sorted(maps.Keys(got))
		if diff := cmp.Diff([]string{"error", "message", "moreInfo"}, names); diff != "" {
			t.Errorf("%s: members (-want +got):\n%s", c.Name, diff)
		}
	}
}
