package resolver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// channelCase is one case of testdata/vectors/channel_self.json.
type channelCase struct {
	Name, Method string
	Manifest     json.RawMessage
	Request      json.RawMessage
	RawBody      *string `json:"raw_body"`
	Query        map[string]any
	Expect       struct {
		Status   int
		Body     any
		Absent   []string
		Nonempty []string
	}
}

func loadChannelCases(t testing.TB) []channelCase {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "vectors", "channel_self.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []channelCase }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	return file.Cases
}

// parse reads the call of a case by the way its method goes.
func (c *channelCase) parse() (ChannelCall, error) {
	var p ChannelParser
	switch op := channelOps[c.Method]; op {
	case UnsetChannel, ListChannels:
		query := url.Values{}
		for name, value := range c.Query {
			query.Set(name, fmt.Sprint(value))
		}
		return p.ParseQuery(op, query)
	default:
		if c.RawBody != nil {
			return p.Parse(op, []byte(*c.RawBody))
		}
		return p.Parse(op, c.Request)
	}
}

var channelOps = map[string]ChannelOp{"POST": SetChannel, "PUT": GetChannel, "DELETE": UnsetChannel, "GET": ListChannels}

// TestChannelVectors localises to this package what caddymodule shows over HTTP.
func TestChannelVectors(t *testing.T) {
	cases := loadChannelCases(t)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			call, err := c.parse()
			var status int
			var raw []byte
			m := mustParse(t, c.Manifest)
			if r, ok := errors.AsType[*Refusal](err); ok {
				status, raw = r.Status, AppendRefusal(nil, r)
			} else if call.AppID != m.AppID {
				status, raw = 429, []byte(`{"error":"on_premise_app","message":"On-premise app detected"}`)
			} else {
				stored, ok := storedChoice(t, c.Manifest, call.DeviceID)
				reply := m.AnswerChannel(&call, stored, ok)
				if !slices.Contains(ChannelResults()[call.Op], reply.Result) {
					t.Errorf("the result %q is not one that is counted", reply.Result)
				}
				status, raw = 200, AppendChannelReply(nil, &reply)
			}
			if status != c.Expect.Status {
				t.Errorf("status %d, want %d: %s", status, c.Expect.Status, raw)
			}
			if want, ok := c.Expect.Body.([]any); ok {
				compareLists(t, raw, want)
				return
			}
			got := members(t, raw)
			for name, value := range c.Expect.Body.(map[string]any) {
				if diff := cmp.Diff(value, got[name]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
			for _, name := range c.Expect.Absent {
				if value, ok := got[name]; ok {
					t.Errorf("%s must be absent, is %v", name, value)
				}
			}
			for _, name := range c.Expect.Nonempty {
				if text, _ := got[name].(string); text == "" {
					t.Errorf("%s must be a text", name)
				}
			}
		})
	}
	t.Logf("%d cases ran", len(cases))
}

// compareLists holds a list of channels to the expected one, in the order of names.
func compareLists(t *testing.T, raw []byte, want []any) {
	t.Helper()
	var got []any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	name := func(v any) string { return v.(map[string]any)["name"].(string) }
	byName := func(a, b any) int { return strings.Compare(name(a), name(b)) }
	if !slices.IsSortedFunc(got, byName) {
		t.Errorf("not sorted by name: %s", raw)
	}
	slices.SortFunc(want, byName)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("channels (-want +got):\n%s", diff)
	}
}

// channelScene is an app with channels of all kinds. "gone" leads to a deleted version.
var channelScene = object{
	"app": object{"app_id": testApp},
	"versions": []any{
		plainVersion, plainTarget, object{"id": 3, "name": "0.9.0", "r2_path": "orgs/o/apps/com.demo.app/0.9.0.zip", "deleted": true},
	},
	"channels": []any{
		object{"id": 0, "name": "production", "version": 1, "public": true},
		object{"id": 2, "name": "beta", "version": 2, "allow_device_self_set": true},
		object{"id": 3, "name": "open", "version": 2, "public": true, "ios": false, "android": false, "allow_device_self_set": true},
		object{"id": 4, "name": "staff", "version": 2, "android": false},
		object{"id": 5, "name": "gone", "version": 3, "allow_device_self_set": true},
	},
	"channel_devices": []any{object{"device_id": testDevice, "channel_id": 2}},
}

func TestOldChannelCalls(t *testing.T) {
	m := mustParse(t, toJSON(t, channelScene))
	const none = -1
	for _, tt := range []struct {
		name     string
		op       ChannelOp
		platform Platform
		channel  string
		byDef    string // defaultChannel
		stored   int64
		want     string // result
		change   ChannelChange
		id       int64
		body     string
	}{
		{"stores", SetChannel, Android, "beta", "", none, "ok", StoreChoice, 2, `{"status":"ok"}`},
		{"stores again", SetChannel, Android, "beta", "", 2, "ok", StoreChoice, 2, ""},
		{"stores one that serves nothing", SetChannel, Android, "gone", "", 2, "ok", StoreChoice, 5, ""},
		{"stores what is public elsewhere", SetChannel, Android, "open", "", none, "ok", StoreChoice, 3, ""},
		{"public here: drops", SetChannel, Electron, "open", "", 2, "ok", DropChoice, 0, ""},
		{"may not leave", SetChannel, Android, "beta", "", 4, "cannot_override", KeepChoice, 0, ""},
		{"may not leave id 0", SetChannel, Android, "beta", "", 0, "cannot_override", KeepChoice, 0, ""},
		{"a vanished channel binds nobody", SetChannel, Android, "beta", "", 99, "ok", StoreChoice, 2, ""},
		{"missing comes before all", SetChannel, Android, "", "", 4, "missing_channel", KeepChoice, 0, ""},
		{"cannot_override comes before not found", SetChannel, Android, "nope", "", 4, "cannot_override", KeepChoice, 0, ""},
		{"private", SetChannel, Android, "staff", "", none, "channel_self_set_not_allowed", KeepChoice, 0, ""},
		{"get stored", GetChannel, Android, "", "beta", 4, "override", KeepChoice, 0, `{"channel":"staff","status":"override","allowSet":false}`},
		{"get vanished", GetChannel, Android, "", "", 99, "default", KeepChoice, 0, `{"channel":"production","status":"default"}`},
		{"get default", GetChannel, Android, "", "beta", none, "default", KeepChoice, 0, `{"channel":"beta","status":"default"}`},
		{"get ignores the body's channel", GetChannel, Android, "beta", "", none, "default", KeepChoice, 0, `{"channel":"production","status":"default"}`},
		{"unset", UnsetChannel, Android, "", "", 2, "ok", DropChoice, 0, `{"status":"ok"}`},
		{"unset none", UnsetChannel, Android, "", "", none, "cannot_override", KeepChoice, 0, ""},
		{"unset vanished", UnsetChannel, Android, "", "", 99, "cannot_override", KeepChoice, 0, ""},
		{"unset locked", UnsetChannel, Android, "", "", 4, "cannot_override", KeepChoice, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			call := &ChannelCall{
				Op: tt.op, AppID: testApp, DeviceID: testDevice, Platform: tt.platform, Channel: tt.channel,
				DefaultChannel: tt.byDef, IsProd: true, Stored: true,
			}
			r := m.AnswerChannel(call, tt.stored, tt.stored != none)
			if r.Result != tt.want || r.Change != tt.change || r.ChannelID != tt.id {
				t.Errorf("%s, change %d to %d; want %s, %d, %d", r.Result, r.Change, r.ChannelID, tt.want, tt.change, tt.id)
			}
			if body := string(AppendChannelReply(nil, &r)); tt.body != "" && body != tt.body {
				t.Errorf("%s, want %s", body, tt.body)
			}
			if call.Stored = false; m.AnswerChannel(call, tt.stored, true).Change != KeepChoice {
				t.Error("a new plugin changes what is stored")
			}
		})
	}
}

func TestNoPublicChannel(t *testing.T) {
	m := mustParse(t, toJSON(t, channelScene.with(object{"channels": []any{object{"id": 1, "name": "a", "version": 1}}, "channel_devices": without})))
	r := m.AnswerChannel(&ChannelCall{Op: GetChannel, Stored: true}, 0, false)
	if body := string(AppendChannelReply(nil, &r)); body != `{"error":"channel_not_found","message":"Cannot find channel"}` {
		t.Error(body)
	}
}

// TestAssignedChannel: protocol 2.1 step 1.
func TestAssignedChannel(t *testing.T) {
	m := mustParse(t, toJSON(t, channelScene))
	const none = -1
	for _, tt := range []struct {
		name, plugin, byDef string
		assigned            int64
		want                string // channel
	}{
		{"none: the override", "7.33.9", "", none, "beta"},
		{"before the override", "7.33.9", "", 0, "production"},
		{"neither public nor on the platform", "6.33.99", "", 4, "staff"},
		{"before defaultChannel", "5.33.0", "beta", 4, "staff"},
		{"deleted: the override is hidden", "7.33.9", "", 5, "production"},
		{"deleted: defaultChannel", "7.33.9", "gone", 5, ""},
		{"vanished: the override", "7.33.9", "", 99, "beta"},
		{"a pre-release of 8.0.0 is older", "8.0.0-rc.1", "", 4, "staff"},
		{"new plugins do not ask", "7.34.0", "", 4, "beta"},
		{"new plugins of 5", "5.34.0", "", 4, "beta"},
		{"new plugins of 8", "8.0.0", "", 4, "beta"},
		{"Electron does not ask", "0.0.1", "", 4, "beta"},
		{"later majors do not ask", "10.0.0", "", 4, "beta"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := mustCheck(t, string(toJSON(t, plainCheck.with(object{"plugin_version": tt.plugin, "defaultChannel": tt.byDef}))))
			if tt.assigned != none {
				c.Assign(tt.assigned)
			}
			d := m.Decide(c)
			if d.Channel != tt.want {
				t.Errorf("channel %q by rule %s, want %q", d.Channel, d.Rule, tt.want)
			}
		})
	}
}

// TestChannelCallBodies: what the schema takes and what it does not.
func TestChannelCallBodies(t *testing.T) {
	base := plainCheck.with(object{"channel": "beta"})
	for _, tt := range []struct {
		name   string
		op     ChannelOp
		change object
		want   string // code of the refusal, or what the call is
	}{
		{"new", SetChannel, nil, "set beta"},
		{"old", SetChannel, object{"plugin_version": "7.33.0"}, "set beta stored"},
		{"no plugin version", SetChannel, object{"plugin_version": without}, "set beta"},
		{"empty plugin version", SetChannel, object{"plugin_version": ""}, "set beta"},
		{"null plugin version", SetChannel, object{"plugin_version": nil}, "invalid_json_body"},
		{"no semver", SetChannel, object{"plugin_version": "7.33"}, "invalid_json_body"},
		{"empty versions", SetChannel, object{"version_name": "", "version_build": ""}, "set beta"},
		{"no version_name", SetChannel, object{"version_name": without}, "invalid_json_body"},
		{"no version_build", SetChannel, object{"version_build": without}, "invalid_json_body"},
		{"overflow", SetChannel, object{"version_build": "99999999999999999999.0.0"}, "set beta"},
		{"null channel", SetChannel, object{"channel": nil}, "invalid_json_body"},
		{"empty channel", SetChannel, object{"channel": ""}, "set "},
		{"null booleans", SetChannel, object{"is_prod": nil, "is_emulator": nil}, "set beta"},
		{"text for a boolean", SetChannel, object{"is_prod": "true"}, "invalid_json_body"},
		{"null default", GetChannel, object{"defaultChannel": nil}, "invalid_json_body"},
		{"null custom id", SetChannel, object{"custom_id": nil}, "set beta"},
		{"bad device", SetChannel, object{"device_id": "x"}, "invalid_json_body"},
		{"empty device", SetChannel, object{"device_id": ""}, "missing_device_id"},
		{"empty app", SetChannel, object{"app_id": ""}, "missing_app_id"},
		{"Electron unsets", SetChannel, object{"channel": without, "action": "unset", "platform": "electron"}, "unset "},
		{"action beside a channel", SetChannel, object{"action": "unset"}, "set beta"},
		{"action of a get", GetChannel, object{"channel": without, "action": "unset"}, "get "},
		{"other action", SetChannel, object{"channel": without, "action": "set"}, "set "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p ChannelParser
			c, err := p.Parse(tt.op, toJSON(t, base.with(tt.change)))
			got := fmt.Sprint(c.Op, " ", c.Channel)
			if c.Stored {
				got += " stored"
			}
			if r, ok := errors.AsType[*Refusal](err); ok {
				got = r.Code
			}
			if got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
			if err == nil && (c.DeviceID != testDevice || c.AppID != testApp || c.Platform == IOS || !c.IsProd || c.IsEmulator) {
				t.Errorf("%+v", c)
			}
		})
	}
}

func TestChannelQueries(t *testing.T) {
	full := "app_id=com.demo.app&device_id=00009A6B-eefe-490a-9c60-8e965132ae51&platform=ios&version_name=&version_build=&plugin_version=6.33.0"
	for _, tt := range []struct{ name, query, want string }{
		{"delete", full, "unset 00009a6b-eefe-490a-9c60-8e965132ae51 true false stored"},
		{"delete, nothing at all", "", "invalid_query_parameters"},
		{"delete, no device", "app_id=com.demo.app", "missing_device_id"},
		{"delete, no app", "device_id=1", "missing_app_id"},
		{"delete, semver", full + "&version_build=", "unset 00009a6b-eefe-490a-9c60-8e965132ae51 true false stored"},
		{"delete, bad semver", strings.Replace(full, "version_build=", "version_build=a.b.c", 1), "semver_error"},
		{"delete, bad platform", strings.Replace(full, "ios", "web", 1), "invalid_query_parameters"},
		{"list", "app_id=com.demo.app&platform=ios", "list  true false"},
		{"list, booleans", "app_id=com.demo.app&platform=ios&is_prod=false&is_emulator=true", "list  false true"},
		{"list, other words", "app_id=com.demo.app&platform=ios&is_prod=1&is_emulator=TRUE", "list  false false"},
		{"list, first of two", "app_id=com.demo.app&platform=ios&platform=web&is_prod=true&is_prod=false", "list  true false"},
		{"list, no platform", "app_id=com.demo.app", "invalid_query_parameters"},
		{"list, device", full, "list 00009a6b-eefe-490a-9c60-8e965132ae51 true false"},
		{"list, bad device", "app_id=com.demo.app&platform=ios&device_id=x", "list  true false"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			op := UnsetChannel
			if strings.HasPrefix(tt.name, "list") {
				op = ListChannels
			}
			query, err := url.ParseQuery(tt.query)
			if err != nil {
				t.Fatal(err)
			}
			var p ChannelParser
			c, err := p.ParseQuery(op, query)
			got := fmt.Sprint(c.Op, " ", c.DeviceID, " ", c.IsProd, " ", c.IsEmulator)
			if c.Stored {
				got += " stored"
			}
			if r, ok := errors.AsType[*Refusal](err); ok {
				got = r.Code
			}
			if got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestChannelLimitAnswer(t *testing.T) {
	got := string(AppendChannelLimit(nil, &ChannelCall{AppID: "a.b", DeviceID: "d"}, 1_700_000_000_123, 2))
	want := `{"error":"too_many_requests","message":"Too many requests","moreInfo":{"app_id":"a.b","device_id":"d",` +
		`"rateLimitResetAt":1700000000123,"retryAfterSeconds":2}}`
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// FuzzChannelBody: no body breaks the parser, what it was fed before does not matter, and each answer is JSON.
func FuzzChannelBody(f *testing.F) {
	for _, c := range loadChannelCases(f) {
		if c.RawBody != nil {
			f.Add([]byte(*c.RawBody), byte(0))
		} else if c.Request != nil {
			f.Add([]byte(c.Request), byte(channelOps[c.Method]))
		}
	}
	m := mustParse(f, toJSON(f, channelScene))
	var used ChannelParser
	f.Fuzz(func(t *testing.T, body []byte, op byte) {
		method := ChannelOp(op % 2)
		var p ChannelParser
		c, err := p.Parse(method, body)
		again, errAgain := used.Parse(method, body)
		if c != again || (err == nil) != (errAgain == nil) {
			t.Fatalf("a used parser gives %+v, %v, a new one %+v, %v", again, errAgain, c, err)
		}
		if !checkRefusal(t, err) {
			answerAll(t, m, &c)
		}
	})
}

// FuzzChannelQuery is FuzzChannelBody for queries.
func FuzzChannelQuery(f *testing.F) {
	for _, c := range loadChannelCases(f) {
		query := url.Values{}
		for name, value := range c.Query {
			query.Set(name, fmt.Sprint(value))
		}
		f.Add(query.Encode(), byte(channelOps[c.Method]))
	}
	m := mustParse(f, toJSON(f, channelScene))
	var used ChannelParser
	f.Fuzz(func(t *testing.T, text string, op byte) {
		query, _ := url.ParseQuery(text)
		method := UnsetChannel + ChannelOp(op%2)
		var p ChannelParser
		c, err := p.ParseQuery(method, query)
		again, errAgain := used.ParseQuery(method, query)
		if c != again || (err == nil) != (errAgain == nil) {
			t.Fatalf("a used parser gives %+v, %v, a new one %+v, %v", again, errAgain, c, err)
		}
		if !checkRefusal(t, err) {
			answerAll(t, m, &c)
		}
	})
}

// checkRefusal reports whether err is a refusal, which must be a sound one.
func checkRefusal(t *testing.T, err error) bool {
	t.Helper()
	if err == nil {
		return false
	}
	r, ok := errors.AsType[*Refusal](err)
	if !ok || r.Status != 400 || r.Code == "" || r.Message == "" {
		t.Fatalf("the error is %+v, want a *Refusal of 400", err)
	}
	if answer := AppendRefusal(nil, r); !json.Valid(answer) || !utf8.Valid(answer) {
		t.Fatalf("refusal is no JSON: %q", answer)
	}
	return true
}

// answerAll answers a call with each channel stored.
func answerAll(t *testing.T, m *Manifest, c *ChannelCall) {
	t.Helper()
	for stored := int64(-1); stored < 7; stored++ {
		r := m.AnswerChannel(c, stored, stored >= 0)
		if !slices.Contains(ChannelResults()[c.Op], r.Result) {
			t.Fatalf("the result %q is not one that is counted for %v", r.Result, c.Op)
		}
		if r.Change != KeepChoice && !c.Stored {
			t.Fatal("a new plugin changes what is stored")
		}
		if answer := AppendChannelReply(nil, &r); !json.Valid(answer) || !utf8.Valid(answer) {
			t.Fatalf("no JSON: %q", answer)
		}
	}
}

func BenchmarkChannelCall(b *testing.B) {
	m := mustParse(b, toJSON(b, channelScene))
	body := toJSON(b, plainCheck.with(object{"channel": "beta"}))
	var p ChannelParser
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		c, err := p.Parse(SetChannel, body)
		if err != nil {
			b.Fatal(err)
		}
		r := m.AnswerChannel(&c, 0, false)
		dst = AppendChannelReply(dst[:0], &r)
	}
}
