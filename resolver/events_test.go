package resolver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// plainEvent is an event of a plugin of today.
var plainEvent = plainCheck.with(object{"action": "set", "version_os": "14", "custom_id": "", "version_code": "10"})

// answerEvents runs a body through the package as the handler does.
func answerEvents(t testing.TB, m *Manifest, body []byte) (int, []byte) {
	t.Helper()
	var p EventParser
	events, batch, err := p.Parse(body)
	if err != nil {
		r, _ := errors.AsType[*Refusal](err)
		return r.Status, AppendRefusal(nil, r)
	}
	refusals := make([]*Refusal, len(events))
	for i := range events {
		e := &events[i]
		switch refusals[i] = e.Refusal; {
		case e.Refusal != nil:
		case e.AppID != m.AppID:
			refusals[i] = &Refusal{Status: 429, Code: "on_premise_app", Message: "On-premise app detected"}
		default:
			refusals[i] = m.JudgeEvent(e)
		}
	}
	if batch {
		return 200, AppendBatchAnswer(nil, refusals)
	}
	status := 200
	if refusals[0] != nil {
		status = refusals[0].Status
	}
	return status, AppendEventAnswer(nil, refusals[0])
}

// acceptedHere are cases of the upstream's list of actions, by which an edge must not go (protocol 4.4).
var acceptedHere = []string{"stats.single-unknown-action", "stats.single-action-newer-than-enum", "stats.batch-one-unknown-action"}

func TestStatsVectors(t *testing.T) {
	for _, c := range loadVectorFile(t, "stats.json") {
		if c.Feature == "cloud" || c.Method == "GET" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			status, raw := answerEvents(t, mustParse(t, c.Manifest), c.body())
			if slices.Contains(acceptedHere, c.Name) {
				if status != 200 || bytes.Contains(raw, []byte("error")) {
					t.Errorf("status %d: %s", status, raw)
				}
				return
			}
			want := c.Expect
			if c.Feature == "quirk" && want.Status == 500 {
				want.Status, want.Body = 400, map[string]any{"error": "invalid_json_body"}
			}
			if status != want.Status {
				t.Errorf("status %d, want %d: %s", status, want.Status, raw)
			}
			got := members(t, raw)
			if diff := subset(want.Body, got); diff != "" {
				t.Errorf("%s: %s", diff, raw)
			}
			for _, name := range want.Absent {
				if value, ok := got[name]; ok {
					t.Errorf("%s must be absent, is %v", name, value)
				}
			}
		})
	}
}

// subset tells where got lacks something of want (section 3 of the vectors' README), or returns "".
func subset(want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, _ := got.(map[string]any)
		for name := range w {
			if diff := subset(w[name], g[name]); diff != "" {
				return name + "." + diff
			}
		}
		return ""
	case []any:
		g, _ := got.([]any)
		if len(g) != len(w) {
			return fmt.Sprintf(" has %d elements, want %d", len(g), len(w))
		}
		for i := range w {
			if diff := subset(w[i], g[i]); diff != "" {
				return fmt.Sprintf("%d.%s", i, diff)
			}
		}
		return ""
	}
	if !cmp.Equal(want, got) {
		return fmt.Sprintf(" is %v, want %v", got, want)
	}
	return ""
}

func parseEvents(t testing.TB, body []byte) ([]Event, bool) {
	t.Helper()
	events, batch, err := new(EventParser).Parse(body)
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return events, batch
}

func TestParseEvent(t *testing.T) {
	tests := []struct {
		name   string
		change object
		code   string // of the refusal
		field  string // that it names
	}{
		{"as it comes", object{}, "", ""},
		{"unknown members are kept", object{"x": []any{1, object{"y": nil}}, "channel": 7}, "", ""},
		{"nested as deep as may be", object{"x": nested(maxDepth - 1)}, "", ""},
		{"brackets in a text", object{"x": []any{strings.Repeat(`[{"\`, 50), "]"}}, "", ""},
		{"brackets side by side", object{"x": slices.Repeat([]any{object{}}, 100)}, "", ""},
		{"upper case device", object{"device_id": strings.ToUpper(testDevice)}, "", ""},
		{"device missing", object{"device_id": without}, "missing_device_id", ""},
		{"device empty", object{"device_id": ""}, "missing_device_id", ""},
		{"device missing before bad build", object{"device_id": without, "version_build": "x"}, "missing_device_id", ""},
		{"device of another form", object{"device_id": "me"}, "invalid_json_body", "device_id"},
		{"build bad before schema", object{"version_build": "x", "version_os": without}, "semver_error", ""},
		{"build missing", object{"version_build": without}, "invalid_json_body", "version_build"},
		{"build beyond comparing", object{"version_build": "99999999999999999999.0.0"}, "", ""},
		{"plugin of two parts", object{"plugin_version": "8.1"}, "invalid_json_body", "plugin_version"},
		{"version name missing", object{"version_name": without}, "invalid_json_body", "version_name"},
		{"version name empty", object{"version_name": ""}, "", ""},
		{"version os missing", object{"version_os": without}, "invalid_json_body", "version_os"},
		{"version os a number", object{"version_os": 14}, "invalid_json_body", "version_os"},
		{"platform of its own", object{"platform": "tizen"}, "", ""},
		{"platform null", object{"platform": nil}, "invalid_json_body", "platform"},
		{"emulator null", object{"is_emulator": nil}, "", ""},
		{"emulator text", object{"is_emulator": "no"}, "invalid_json_body", "is_emulator"},
		{"old name null", object{"old_version_name": nil}, "invalid_json_body", "old_version_name"},
		{"default channel null", object{"defaultChannel": nil}, "invalid_json_body", "defaultChannel"},
		{"custom id of 36", object{"custom_id": strings.Repeat("c", 36)}, "", ""},
		{"custom id of 37", object{"custom_id": strings.Repeat("c", 37)}, "invalid_json_body", "custom_id"},
		{"custom id of 18 pairs", object{"custom_id": strings.Repeat("😀", 18)}, "", ""},
		{"custom id of 19 pairs", object{"custom_id": strings.Repeat("😀", 19)}, "invalid_json_body", "custom_id"},
		{"custom id of Electron", object{"custom_id": nil}, "", ""},
		{"custom id a number", object{"custom_id": 1}, "invalid_json_body", "custom_id"},
		{"install source of 65", object{"install_source": strings.Repeat("s", 65)}, "invalid_json_body", "install_source"},
		{"action missing", object{"action": without}, "invalid_json_body", "action"},
		{"action empty", object{"action": ""}, "invalid_json_body", "action"},
		{"action a number", object{"action": 1}, "invalid_json_body", "action"},
		{"action of tomorrow", object{"action": "quantum_fail"}, "", ""},
		{"metadata empty", object{"metadata": object{}}, "", ""},
		{"metadata null", object{"metadata": nil}, "invalid_json_body", "metadata"},
		{"metadata a list", object{"metadata": []any{}}, "invalid_json_body", "metadata"},
		{"metadata of 30", object{"metadata": manyMembers(30)}, "", ""},
		{"metadata of 31", object{"metadata": manyMembers(31)}, "invalid_json_body", "metadata"},
		{"metadata name of 64", object{"metadata": object{strings.Repeat("n", 64): ""}}, "", ""},
		{"metadata name of 65", object{"metadata": object{strings.Repeat("é", 65): ""}}, "invalid_json_body", "metadata"},
		{"metadata value of 2048", object{"metadata": object{"a": strings.Repeat("v", 2048)}}, "", ""},
		{"metadata value of 2049", object{"metadata": object{"a": strings.Repeat("v", 2049)}}, "invalid_json_body", "metadata"},
		{"metadata value nested", object{"metadata": object{"a": object{}}}, "invalid_json_body", "metadata"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw := toJSON(t, plainEvent.with(tt.change))
			for _, body := range []string{string(raw), "\n " + string(raw) + " ", `[` + string(raw) + `]`, "[ " + string(raw) + "\t]"} {
				events, batch := parseEvents(t, []byte(body))
				e := events[0]
				if !bytes.Equal(e.Raw, raw) || len(events) != 1 || batch != strings.Contains(body[:1], "[") {
					t.Fatalf("%s gives %d events, batch %t, raw %s", body, len(events), batch, e.Raw)
				}
				code := tt.code
				if batch && tt.field == "action" {
					code = "processing_error"
				}
				if got := codeOf(e.Refusal); got != code {
					t.Fatalf("refused with %q, want %q", got, code)
				}
				if code == "" && (e.DeviceID != testDevice || e.AppID != testApp || e.Action == "") {
					t.Errorf("event %+v", e)
				}
				if code == "invalid_json_body" && (len(e.Refusal.Issues) != 1 || e.Refusal.Issues[0].Field != tt.field) {
					t.Errorf("issues %+v, want one of %s", e.Refusal.Issues, tt.field)
				}
			}
		})
	}
}

// TestNestedTooDeep: an event that a collector might not take within an array is refused, alone.
func TestNestedTooDeep(t *testing.T) {
	deep := toJSON(t, plainEvent.with(object{"x": nested(maxDepth)}))
	for _, body := range []string{string(deep), "[" + string(deep) + "," + string(toJSON(t, plainEvent)) + "]"} {
		events, batch := parseEvents(t, []byte(body))
		if events[0].Refusal != nestedTooDeep {
			t.Errorf("refused with %v", events[0].Refusal)
		}
		if batch && events[1].Refusal != nil {
			t.Errorf("the event beside it is refused with %v", events[1].Refusal)
		}
	}
}

func codeOf(r *Refusal) string {
	if r == nil {
		return ""
	}
	return r.Code
}

func manyMembers(n int) object {
	many := object{}
	for i := range n {
		many[fmt.Sprint("k", i)] = "v"
	}
	return many
}

func TestParseEventsRefusesTheBody(t *testing.T) {
	event := func(change object) string { return string(toJSON(t, plainEvent.with(change))) }
	good, bad := event(nil), event(object{"app_id": "nodots"})
	missing, other := event(object{"app_id": without}), event(object{"app_id": "com.other.app"})
	tests := []struct {
		name, body string
		status     int
		code       string
		message    string
	}{
		{"nothing", ``, 400, "invalid_json_parse_body", ""},
		{"no JSON", `[{`, 400, "invalid_json_parse_body", ""},
		{"two documents", good + good, 400, "invalid_json_parse_body", ""},
		{"comma at the end", `[` + good + `,]`, 400, "invalid_json_parse_body", ""},
		{"list not closed", `[` + good, 400, "invalid_json_parse_body", ""},
		{"no JSON behind a refusal", `[` + bad + `,]`, 400, "invalid_json_parse_body", ""},
		{"null", `null`, 400, "invalid_app_id", "App ID is required"},
		{"a text", `"x"`, 400, "invalid_app_id", "App ID is required"},
		{"a number", `1`, 400, "invalid_app_id", "App ID is required"},
		{"empty object", `{}`, 400, "invalid_app_id", "App ID is required"},
		{"app a number", `{"app_id":1}`, 400, "invalid_app_id", "App ID is required"},
		{"app empty", `{"app_id":""}`, 400, "invalid_app_id", "App ID is required"},
		{"app malformed", bad, 400, "invalid_app_id", "App ID must be a reverse domain string"},
		{"first app missing", `[` + missing + `,` + good + `]`, 400, "invalid_app_id", "App ID is required"},
		{"first item null", `[null,` + good + `]`, 400, "invalid_app_id", "App ID is required"},
		{"later app missing", `[` + good + `,` + missing + `]`, 200, "invalid_app_id", "App ID is required"},
		{"later item a list", `[` + good + `,[]]`, 200, "invalid_app_id", "App ID is required"},
		{"later app malformed", `[` + good + `,` + bad + `]`, 200, "invalid_app_id", "App ID must be a reverse domain string"},
		{"mixed", `[` + good + `,` + other + `]`, 200, "mixed_app_ids", ""},
		{"mixed and malformed", `[` + good + `,` + other + `,` + bad + `]`, 200, "invalid_app_id", ""},
		{"too many", `[{"app_id":"a.b"}` + strings.Repeat(`,{"app_id":"a.b"}`, MaxBatch) + `]`, 413, "batch_too_large", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			events, _, err := new(EventParser).Parse([]byte(tt.body))
			r, ok := errors.AsType[*Refusal](err)
			if !ok || events != nil {
				t.Fatalf("got %v, %v", events, err)
			}
			if r.Status != tt.status || r.Code != tt.code || tt.message != "" && r.Message != tt.message {
				t.Errorf("refused with %d %s %q", r.Status, r.Code, r.Message)
			}
		})
	}
}

func TestParseEventsOfABatch(t *testing.T) {
	if events, batch := parseEvents(t, []byte(" [ ] ")); len(events) != 0 || !batch {
		t.Errorf("an empty batch gives %v, %t", events, batch)
	}
	second := plainEvent.with(object{"action": without, "timestamp": 1760000000000})
	third := plainEvent.with(object{"version_build": "x"})
	events, _ := parseEvents(t, fmt.Appendf(nil, "[%s,\n%s , %s]", toJSON(t, plainEvent), toJSON(t, second), toJSON(t, third)))
	var refusals []*Refusal
	for i := range events {
		refusals = append(refusals, events[i].Refusal)
	}
	const want = `{"status":"ok","results":[{"status":"ok","index":0},` +
		`{"status":"error","error":"processing_error","message":"The event has no action","index":1},` +
		`{"status":"error","error":"semver_error","message":"Native version: x is not a semantic version, set CFBundleShortVersionString or versionName to x.y.z","index":2,"moreInfo":{"version_build":"x"}}]}`
	if got := string(AppendBatchAnswer(nil, refusals)); got != want {
		t.Errorf("answer %s\nwant   %s", got, want)
	}
	if !bytes.Equal(events[1].Raw, toJSON(t, second)) {
		t.Errorf("raw %s", events[1].Raw)
	}
}

func TestJudgeEvent(t *testing.T) {
	m := mustParse(t, scene{target: object{"deleted": true}}.document(t))
	tests := []struct {
		name    string
		event   object
		version string
		refused string // the version name that is repeated
	}{
		{"in use", object{"version_name": "1.1.0"}, "1.1.0", ""},
		{"a file", object{"version_name": "1.1.0:a:b.js"}, "1.1.0", ""},
		{"unknown", object{"version_name": "7.7.7"}, "7.7.7", "7.7.7"},
		{"a file of an unknown one", object{"version_name": "7.7.7:a"}, "7.7.7", "7.7.7:a"},
		{"deleted", object{"version_name": "1.2.0"}, "1.2.0", "1.2.0"},
		{"native", object{"version_name": "builtin", "version_build": "1.1"}, "1.1.0", ""},
		{"native, not uploaded", object{"version_name": "builtin", "version_build": "3"}, "3.0.0", "3.0.0"},
		{"a native file", object{"version_name": "builtin:a"}, "builtin", ""},
		{"placeholder", object{"version_name": "unknown"}, "unknown", ""},
		{"ignored", object{"version_name": "7.7.7", "plugin_version": "7.16.9", "action": "download_fail"}, "7.7.7", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			events, _ := parseEvents(t, toJSON(t, plainEvent.with(tt.event)))
			if events[0].Version != tt.version {
				t.Errorf("speaks of %q, want %q", events[0].Version, tt.version)
			}
			r := m.JudgeEvent(&events[0])
			if (r == nil) != (tt.refused == "") {
				t.Fatalf("refusal %+v", r)
			}
			if r == nil {
				return
			}
			want := `{"error":"version_not_found","message":"Version not found","app_id":"com.demo.app","version_name":"` + tt.refused + `"}`
			if got := string(AppendEventAnswer(nil, r)); got != want {
				t.Errorf("answer %s", got)
			}
		})
	}
}

func TestIgnoredEvents(t *testing.T) {
	for plugin, ignored := range map[string]bool{
		"0.0.1": true, "5.50.1": true, "6.14.24": true, "6.14.25-rc.1": true, "6.14.25": false, "6.25.0": false,
		"7.0.0": true, "7.16.9": true, "7.17.0-beta": true, "7.17.0": false, "8.51.14": false,
	} {
		body := plainEvent.with(object{"plugin_version": plugin, "action": "download_fail"})
		if events, _ := parseEvents(t, toJSON(t, body)); events[0].Ignored != ignored {
			t.Errorf("download_fail of %s: ignored %t", plugin, events[0].Ignored)
		}
		if events, _ := parseEvents(t, toJSON(t, body.with(object{"action": "set_fail"}))); events[0].Ignored {
			t.Errorf("set_fail of %s is ignored", plugin)
		}
	}
}

// nested is an array of so many levels.
func nested(levels int) any {
	var v any = 1
	for range levels {
		v = []any{v}
	}
	return v
}

func TestAppendCheckEvent(t *testing.T) {
	tests := []struct {
		name, check, want string
	}{
		{"as phones send it", `{"a":"b","version_os":"14"}`, `{"a":"b","version_os":"14","action":"get","timestamp":7}`},
		{"nested members", `{"a":1,"b":[ [] ],"c":{"d":{}},"e":"[f"}`, `{"a":1,"e":"[f","version_os":"unknown","action":"get","timestamp":7}`},
		{"blanks stay", "{ \"a\" : 1 ,\n\"b\":2 } ", "{ \"a\" : 1 ,\n\"b\":2" + `,"version_os":"unknown","action":"get","timestamp":7}`},
		{"of Electron", `{"custom_id":null,"a":1}`, `{"a":1,"version_os":"unknown","action":"get","timestamp":7}`},
		{"custom id too long", `{"a":1,"custom_id":"` + strings.Repeat("c", 37) + `","b":2}`, `{"a":1,"b":2,"version_os":"unknown","action":"get","timestamp":7}`},
		{"custom id fine", `{"custom_id":"c"}`, `{"custom_id":"c","version_os":"unknown","action":"get","timestamp":7}`},
		{"members of events", `{"action":1,"a":"é","timestamp":3,"metadata":4,"old_version_name":5}`, `{"a":"é","version_os":"unknown","action":"get","timestamp":7}`},
		{"os no text", `{"version_os":14,"a":"\u0041"}`, `{"a":"\u0041","version_os":"unknown","action":"get","timestamp":7}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(AppendCheckEvent(nil, []byte(tt.check), true, "get", 7)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestReportedVersion: no report of a check speaks of a version that is not there, whatever a device says that it runs.
func TestReportedVersion(t *testing.T) {
	m := mustParse(t, scene{target: object{"deleted": true}}.document(t))
	tests := []struct {
		name     string
		check    object
		reported string
	}{
		{"in use", object{"version_name": "1.1.0"}, "1.1.0"},
		{"a file", object{"version_name": "1.1.0:a:b.js"}, "1.1.0:a:b.js"},
		{"made up", object{"version_name": "7.7.7"}, "unknown"},
		{"a file of one that is made up", object{"version_name": "7.7.7:a"}, "unknown"},
		{"deleted", object{"version_name": "1.2.0"}, "unknown"},
		{"native", object{"version_name": "builtin", "version_build": "1.1"}, "builtin"},
		{"native, not uploaded", object{"version_name": "builtin", "version_build": "3.7.0"}, "unknown"},
		{"a native file", object{"version_name": "builtin:a"}, "builtin:a"},
		{"placeholder", object{"version_name": "unknown"}, "unknown"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw := toJSON(t, plainCheck.with(tt.check))
			c, err := new(CheckParser).Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			report := AppendCheckEvent(nil, raw, m.HasVersionOf(&c), "noNew", 7)
			var fields struct {
				VersionName string `json:"version_name"`
			}
			if err := json.Unmarshal(report, &fields); err != nil || fields.VersionName != tt.reported {
				t.Errorf("reported as %q, %v", fields.VersionName, err)
			}
			events, _ := parseEvents(t, report)
			if e := &events[0]; e.Refusal != nil || m.JudgeEvent(e) != nil || e.DeviceID != c.DeviceID {
				t.Errorf("%s is refused", report)
			}
		})
	}
	for _, check := range []string{
		`{"version_name":"1","app_id":"a.b","version_name":"2"}`, `{"version\u005fname":"1","app_id":"a.b","version_name":"2"}`,
	} {
		if got := string(AppendCheckEvent(nil, []byte(check), false, "get", 7)); strings.Count(got, `:"unknown"`) != 3 {
			t.Errorf("of several names one is kept: %s", got)
		}
	}
}

// TestUpstreamHasVersionOf: without a manifest a native version is reported if the answer says that the channel has it.
func TestUpstreamHasVersionOf(t *testing.T) {
	m := mustParse(t, scene{}.document(t)) // plays the upstream
	tests := []struct {
		name   string
		check  object
		action string
		has    bool
	}{
		{"downloaded, offered another", object{"version_name": "1.0.5"}, "get", true},
		{"downloaded, up to date", object{"version_name": "1.1.0"}, "noNew", true},
		{"native, up to date", object{"version_name": "builtin", "version_build": "1.1"}, "noNew", true},
		{"native, offered another", object{"version_name": "builtin", "version_build": "1.0.0"}, "get", false},
		{"Electron's native", object{"version_name": "1.0.0", "version_build": "1.0.0"}, "get", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := new(CheckParser).Parse(toJSON(t, plainCheck.with(tt.check)))
			if err != nil {
				t.Fatal(err)
			}
			d := m.Decide(&c)
			if has := UpstreamHasVersionOf(&c, d.Event); d.Event != tt.action || has != tt.has {
				t.Errorf("%s: %t", d.Event, has)
			}
		})
	}
}

// TestManyFaults: a batch of a plugin is told all that is wrong, and a larger one costs no more for each fault than for
// each event.
func TestManyFaults(t *testing.T) {
	m := mustParse(t, scene{}.document(t))
	batch := func(n int, item any) []byte {
		raw := string(toJSON(t, item))
		return []byte("[" + strings.Repeat(raw+",", n-1) + raw + "]")
	}
	bare := object{"app_id": testApp, "device_id": "x", "version_build": "1"}
	tests := []struct {
		name              string
		n                 int
		item              object
		explained, entire int // how many entries tell details, and how large the answer is at most
	}{
		{"unknown versions of a plugin's batch", 200, plainEvent.with(object{"version_name": "7.7.7"}), 200, 40_000},
		{"one fault in each of a plugin's batch", 200, plainEvent.with(object{"platform": 1}), 200, 40_000},
		{"many faults", 4900, bare, 132, 500_000},
		{"no native version", 4900, bare.with(object{"version_build": "x"}), 200, 620_000},
		{"a native version without end", 2, bare.with(object{"version_build": strings.Repeat("x", 1<<20)}), 0, 400},
		{"a version without end", 2, plainEvent.with(object{"version_name": strings.Repeat("7", 1<<20)}), 2, 3000},
		{"versions that are long", 4900, plainEvent.with(object{"version_name": strings.Repeat("7", 1000)}), 58, 510_000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := batch(tt.n, tt.item)
			_, answer := answerEvents(t, m, body)
			var got struct {
				Results []struct {
					Error    string
					MoreInfo json.RawMessage
				}
			}
			if err := json.Unmarshal(answer, &got); err != nil || len(got.Results) != tt.n {
				t.Fatalf("%d results, %v", len(got.Results), err)
			}
			explained := 0
			for _, r := range got.Results {
				if r.Error != got.Results[0].Error {
					t.Fatalf("%+v after %+v", r, got.Results[0])
				}
				if r.MoreInfo != nil {
					explained++
				}
			}
			if explained != tt.explained || len(answer) > tt.entire {
				t.Errorf("%d explained, answer of %d bytes to a body of %d", explained, len(answer), len(body))
			}
		})
	}
	var p EventParser
	body := batch(4900, bare)
	events, _, err := p.Parse(body)
	if err != nil {
		t.Fatal(err)
	}
	distinct := map[*Refusal]bool{}
	for i := range events {
		distinct[events[i].Refusal] = true
	}
	if len(distinct) > maxExplained+1 {
		t.Errorf("%d refusals are kept for 4900 faults", len(distinct))
	}
}

func TestAppendWithCustomID(t *testing.T) {
	drop := func(string) (string, bool) { return "", false }
	other := func(id string) (string, bool) { return `<"` + id + `">`, true }
	same := func(id string) (string, bool) { return id, true }
	tests := []struct {
		name, event string
		change      func(string) (string, bool)
		want        string
	}{
		{"kept", " { \"custom_id\" : \"\\u0041\" } ", same, " { \"custom_id\" : \"\\u0041\" } "},
		{"replaced", `{"a":1, "custom_id" : "me" ,"b":2}`, other, `{"a":1, "custom_id" : "<\"me\">" ,"b":2}`},
		{"dropped, first", `{"custom_id":"me", "b":2}`, drop, `{"b":2}`},
		{"dropped, last", `{"a":1 , "custom_id":"me" }`, drop, `{"a":1 }`},
		{"dropped, between", `{"a":1,"custom_id":"me","b":2}`, drop, `{"a":1,"b":2}`},
		{"dropped, alone", `{"custom_id":"me"}`, drop, `{}`},
		{"dropped, twice", `{"custom_id":"me","a":1,"custom_id":"you"}`, drop, `{"a":1}`},
		{"name with escapes", `{"custom\u005fid":"me"}`, other, `{"custom\u005fid":"<\"me\">"}`},
		{"dropped, one with escapes", `{"custom_id":"me","a":1,"custom\u005fid":"you"}`, drop, `{"a":1}`},
		{"dropped, one that is no text", `{"custom_id":12345,"a":1,"custom_id":"me","custom_id":{"me":"you"}}`, drop, `{"a":1}`},
		{"replaced, one that is no text", `{"custom_id":["me"],"a":1,"custom_id":"me"}`, other, `{"a":1,"custom_id":"<\"me\">"}`},
		{"replaced, twice", `{"custom_id":"me","a":1,"custom\u005fid":"you"}`, other, `{"custom_id":"<\"me\">","a":1,"custom\u005fid":"<\"you\">"}`},
		{"unset", `{"custom_id":""}`, drop, `{"custom_id":""}`},
		{"null", `{"custom_id":null}`, drop, `{"custom_id":null}`},
		{"nested is another's", `{"metadata":{"custom_id":"me"}}`, drop, `{"metadata":{"custom_id":"me"}}`},
		{"empty", ` {} `, drop, ` {} `},
		{"deeper than scan goes", `{"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `,"custom_id":"me"}`, drop, `{"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(AppendWithCustomID(nil, []byte(tt.event), tt.change)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// FuzzParseEvents holds the fast reading of events to the library's, and what is made of an event to JSON.
func FuzzParseEvents(f *testing.F) {
	for _, c := range loadVectorFile(f, "stats.json") {
		f.Add(c.body())
	}
	for _, body := range scanBodies {
		f.Add([]byte(body))
		f.Add([]byte("[" + body + "," + body + "]"))
	}
	f.Add(toJSON(f, plainEvent.with(object{"metadata": object{"é": "\"", "x": 1}})))
	m := mustParse(f, scene{}.document(f))
	var used EventParser
	f.Fuzz(func(t *testing.T, body []byte) {
		text := string(body)
		var fast, slow EventParser
		if fast.scanEvents(body, text) {
			if !slow.decodeEvents(body, text) {
				t.Fatalf("%q was taken for JSON", body)
			}
			if diff := cmp.Diff(slow.events, fast.events, cmp.AllowUnexported(Event{})); diff != "" || slow.batch != fast.batch ||
				slow.mixed != fast.mixed || slow.whole != fast.whole {
				t.Fatalf("%q: (-library +scan)\n%s", body, diff)
			}
		}
		events, batch, err := new(EventParser).Parse(body)
		again, _, errAgain := used.Parse(body)
		if diff := cmp.Diff(events, again); diff != "" && len(events)+len(again) > 0 || !errors.Is(err, errAgain) {
			t.Fatalf("a used parser gives another result: %s %v %v", diff, err, errAgain)
		}
		if errors.Is(err, ErrNotJSON) && json.Valid(body) && utf8.Valid(body) {
			t.Fatal("JSON is refused as none")
		}
		status, answer := answerEvents(t, m, body)
		if !json.Valid(answer) || !utf8.Valid(answer) || status == 0 {
			t.Fatalf("%d: %q", status, answer)
		}
		if err != nil {
			return
		}
		if !json.Valid(body) || !batch && len(events) != 1 {
			t.Fatalf("accepted as %d events", len(events))
		}
		for i := range events {
			checkEvent(t, &events[i])
		}
	})
}

func checkEvent(t *testing.T, e *Event) {
	t.Helper()
	if !json.Valid(e.Raw) || e.Raw[0] != '{' {
		t.Fatalf("raw %q", e.Raw)
	}
	same := AppendWithCustomID(nil, e.Raw, func(id string) (string, bool) { return id, true })
	if _, others := customIDs(e.Raw); !bytes.Equal(same, e.Raw) && others == 0 {
		t.Fatalf("copied as %q, from %q", same, e.Raw)
	}
	if e.Refusal != nil {
		return
	}
	if e.AppID == "" || e.DeviceID == "" || e.Action == "" || strings.Contains(e.Version, ":") {
		t.Fatalf("accepted %+v", e)
	}
	anonymous := AppendWithCustomID(nil, e.Raw, func(string) (string, bool) { return "", false })
	recorded := AppendCheckEvent(nil, e.Raw, true, "get", 1)
	if texts, others := customIDs(anonymous); texts+others > 0 {
		t.Fatalf("made anonymous as %q, from %q", anonymous, e.Raw)
	}
	for _, body := range [][]byte{anonymous, recorded} {
		events, _ := parseEvents(t, body)
		if other := events[0]; other.Refusal != nil || other.DeviceID != e.DeviceID || other.VersionName != e.VersionName {
			t.Fatalf("%q is read as %+v", body, other)
		}
	}
}

// customIDs counts the custom_id of an event that are set, to a text or to something else.
func customIDs(event []byte) (texts, others int) {
	for m := range membersOf(string(event)) {
		switch {
		case m.name != "custom_id" || m.value.state == isNull || m.value.state == isText && m.value.text == "":
		case m.value.state == isText:
			texts++
		default:
			others++
		}
	}
	return texts, others
}

func BenchmarkParseEvent(b *testing.B) {
	var p EventParser
	body := toJSON(b, plainEvent.with(object{"old_version_name": "1.0.0", "install_source": "google_play"}))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := p.Parse(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseEventBatch(b *testing.B) {
	var p EventParser
	var list []any
	for range 200 {
		list = append(list, plainEvent.with(object{"timestamp": 1760000000000, "metadata": object{"source": "watchdog"}}))
	}
	body := toJSON(b, list)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := p.Parse(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendCheckEvent(b *testing.B) {
	body := []byte(exampleBody)
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendCheckEvent(dst[:0], body, true, "get", 1760000000000)
	}
}
