// Package parsers measures the JSON libraries that were candidates for reading the body of a check (ADR 3). It is a module
// of its own, so that the product does not depend on those that lost.
//
//	go test -bench . ./...
package parsers

import (
	stdjson "encoding/json"
	"testing"

	"github.com/bytedance/sonic"
	"github.com/go-json-experiment/json"
)

// body is the request of protocol 1.10 as phones send it, without line ends.
const body = `{"app_id":"com.demo.app","device_id":"00009a6b-eefe-490a-9c60-8e965132ae51","custom_id":"",` +
	`"platform":"android","version_build":"1.0.0","version_code":"10","version_os":"14","version_name":"builtin",` +
	`"plugin_version":"8.51.14","is_emulator":false,"is_prod":true,"install_source":"google_play","defaultChannel":"beta"}`

type check struct {
	AppID          string  `json:"app_id"`
	DeviceID       string  `json:"device_id"`
	Platform       string  `json:"platform"`
	VersionName    string  `json:"version_name"`
	VersionBuild   string  `json:"version_build"`
	PluginVersion  string  `json:"plugin_version"`
	IsEmulator     *bool   `json:"is_emulator"`
	IsProd         *bool   `json:"is_prod"`
	DefaultChannel *string `json:"defaultChannel"`
	KeyID          *string `json:"key_id"`
	InstallSource  *string `json:"install_source"`
}

var candidates = []struct {
	name  string
	parse func([]byte, *check) error
}{
	{"encoding/json", func(b []byte, c *check) error { return stdjson.Unmarshal(b, c) }},
	{"go-json-experiment", func(b []byte, c *check) error { return json.Unmarshal(b, c) }},
	{"sonic", func(b []byte, c *check) error { return sonic.Unmarshal(b, c) }},
}

func TestCandidatesAgree(t *testing.T) {
	for _, candidate := range candidates {
		var c check
		if err := candidate.parse([]byte(body), &c); err != nil || c.AppID != "com.demo.app" || *c.DefaultChannel != "beta" {
			t.Errorf("%s: %+v, %v", candidate.name, c, err)
		}
	}
}

func BenchmarkParsers(b *testing.B) {
	for _, candidate := range candidates {
		b.Run(candidate.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var c check
				if err := candidate.parse([]byte(body), &c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
