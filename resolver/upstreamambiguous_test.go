package resolver

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestAmbiguous(t *testing.T) {
	f := mustKeyFields(t, true, "+locale", "+theMe")
	tests := []struct {
		name           string
		tail           string // after the example of protocol 1.10
		ambiguous, app bool
	}{
		{"as it is sent", ``, false, false},
		{"unknown members", `,"x":1,"X":2,"x":{"platform":1,"Platform":2},"":0,"appid":1,"platforms":"","latform":""`, false, false},
		{"key field", `,"locale":"fr"`, false, false},
		{"key field with capitals", `,"theMe":"dark"`, false, false},
		{"field twice", `,"platform":"ios"`, true, false},
		{"field twice, the same", `,"platform":"android"`, true, false},
		{"field in other letters", `,"Platform":"ios"`, true, false},
		{"field in capitals", `,"VERSION_NAME":"9"`, true, false},
		{"field in small letters", `,"defaultchannel":"beta"`, true, false},
		{"field that is not sent, in other letters", `,"Key_ID":"k"`, true, false},
		{"long s", `,"iſ_prod":false`, true, false},
		{"sign of kelvin", `,"` + "\u212a" + `ey_id":"k"`, true, false},
		{"escaped sign of kelvin", `,"\u212aey_id":"k"`, true, false},
		{"escaped field", `,"\u0070latform":"ios"`, true, false},
		{"key field twice", `,"locale":"fr","locale":"de"`, true, false},
		{"key field in other letters", `,"Locale":"de"`, true, false},
		{"key field with capitals, in small letters", `,"theme":"dark"`, true, false},
		{"app in other letters", `,"App_Id":"com.other.app"`, true, true},
		{"app twice", `,"app_id":"com.other.app"`, true, true},
		{"device in other letters", `,"DEVICE_ID":"x"`, true, false},
		{"field of a channel call", `,"channel":"a","Channel":"b"`, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := strings.TrimSuffix(exampleBody, "}") + tt.tail + "}"
			if !json.Valid([]byte(body)) {
				t.Fatalf("%s is no JSON", body)
			}
			if ambiguous, app := f.Ambiguous([]byte(body)); ambiguous != tt.ambiguous || app != tt.app {
				t.Errorf("ambiguous %t, app %t", ambiguous, app)
			}
		})
	}
}

// FuzzAmbiguous: of what is not ambiguous encoding/json, which takes the last of all names that differ in letter case only,
// reads the same app and fields as the parser.
func FuzzAmbiguous(f *testing.F) {
	for _, body := range scanBodies {
		f.Add([]byte(body))
	}
	for _, tail := range []string{`,"Platform":"ios"`, `,"iſ_prod":false`, `,"x":{"platform":1}`, `,"\u212aey_id":"k"`, `,"app_id":"x"`} {
		f.Add([]byte(strings.TrimSuffix(exampleBody, "}") + tail + "}"))
	}
	fields := mustKeyFields(f, true)
	f.Fuzz(func(t *testing.T, body []byte) {
		ambiguous, app := fields.Ambiguous(body) // of no JSON it must come to an end
		if app && !ambiguous {
			t.Fatal("the app alone is ambiguous")
		}
		var read struct {
			AppID       json.RawMessage `json:"app_id"`
			Platform    json.RawMessage `json:"platform"`
			IsProd      json.RawMessage `json:"is_prod"`
			KeyID       json.RawMessage `json:"key_id"`
			VersionCode json.RawMessage `json:"version_code"`
		}
		if ambiguous || json.Unmarshal(body, &read) != nil {
			return
		}
		var values fieldValues
		fields.find(&values, body)
		for _, one := range []struct {
			name string
			got  json.RawMessage
		}{
			{"app_id", read.AppID},
			{"platform", read.Platform},
			{"is_prod", read.IsProd},
			{"key_id", read.KeyID},
			{"version_code", read.VersionCode},
		} {
			at := values[fields.exact([]byte(one.name))]
			if string(body[at.from:at.to]) != string(one.got) {
				t.Fatalf("%s: %s is %s to encoding/json, and here %s", body, one.name, one.got, body[at.from:at.to])
			}
		}
	})
}

func BenchmarkAmbiguous(b *testing.B) {
	f := mustKeyFields(b, true)
	body := []byte(exampleBody)
	b.ReportAllocs()
	for b.Loop() {
		f.Ambiguous(body)
	}
}
