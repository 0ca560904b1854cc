package resolver

import (
	"fmt"
	"strings"
	"testing"
)

// appOf writes a manifest with the given numbers of rows. The public channel, which comes last by name and id, points at
// a version with a delta list and has a rollout at half, so that a check takes the longest way.
func appOf(channels, versions, devices int) []byte {
	var b strings.Builder
	b.WriteString(`{"app":{"app_id":"com.demo.app"},"versions":[`)
	for i := range versions {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"id":%d,"name":"1.0.%d","checksum":"%064x","r2_path":"orgs/o/apps/com.demo.app/1.0.%d.zip",`+
			`"manifest":[{"file_name":"index.html","file_hash":"%064x","s3_path":"orgs/o/apps/com.demo.app/delta/%064x_index.html","file_size":100}]}`,
			i+1, i, i, i, i, i)
	}
	b.WriteString(`],"channels":[`)
	for i := range channels {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"id":%d,"name":"channel-%04d","version":%d,"public":%t,"rollout_enabled":true,"rollout_version":%d,"rollout_percentage_bps":5000}`,
			i+1, i, versions, i == channels-1, max(1, versions-1))
	}
	b.WriteString(`],"channel_devices":[`)
	for i := range devices {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"device_id":"%08x-eefe-490a-9c60-8e965132ae51","channel_id":1}`, 0xf0000000+i)
	}
	b.WriteString(`]}`)
	return []byte(b.String())
}

func mustParse(t testing.TB, doc []byte) *Manifest {
	t.Helper()
	m, err := ParseManifest(doc)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustCheck(t testing.TB, body string) *Check {
	t.Helper()
	var p CheckParser
	c, err := p.Parse([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

// publicBody asks for the public channel.
var publicBody = strings.Replace(exampleBody, `"defaultChannel":"beta"`, `"defaultChannel":""`, 1)

func BenchmarkDecide(b *testing.B) {
	for _, size := range []struct{ channels, versions, devices int }{
		{3, 10, 0},
		{300, 10, 0},
		{3, 10_000, 0},
		{3, 10, 100_000},
		{300, 10_000, 100_000},
	} {
		name := fmt.Sprintf("channels=%d/versions=%d/overrides=%d", size.channels, size.versions, size.devices)
		m := mustParse(b, appOf(size.channels, size.versions, size.devices))
		c := mustCheck(b, publicBody)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d := m.Decide(c); d.Outcome != Offer {
					b.Fatal(d.Rule)
				}
			}
		})
	}
}

func BenchmarkAppendResponse(b *testing.B) {
	m := mustParse(b, appOf(3, 10, 0))
	d := m.Decide(mustCheck(b, publicBody))
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendResponse(dst[:0], &d, "https://updates.example.com")
	}
}

// The budgets of the hot path. They count allocations, never time: this must hold on any machine.
func TestAllocations(t *testing.T) {
	m := mustParse(t, appOf(300, 100, 1000))
	var p CheckParser
	body := []byte(publicBody)
	var c Check
	budget(t, "CheckParser.Parse", 4, func() { c, _ = p.Parse(body) })
	if c.AppID == "" {
		t.Fatal("the check was refused")
	}

	answers := map[string]*Check{
		"Offer":             mustCheck(t, publicBody),
		"UpToDate":          mustCheck(t, strings.Replace(publicBody, `"builtin"`, `"1.0.99"`, 1)),
		"pre-release build": mustCheck(t, strings.Replace(publicBody, `"version_build":"1.0.0"`, `"version_build":"1.0.0-rc.1"`, 1)),
		"override":          mustCheck(t, strings.Replace(publicBody, "00009a6b", "f0000001", 1)),
		"no channel":        mustCheck(t, exampleBody),
	}
	dst := make([]byte, 0, 4096)
	for name, c := range answers {
		var d Decision
		budget(t, "Decide "+name, 0, func() { d = m.Decide(c) })
		budget(t, "AppendResponse "+name, 0, func() { dst = AppendResponse(dst[:0], &d, "https://updates.example.com") })
	}
}

func budget(t *testing.T, what string, most float64, f func()) {
	t.Helper()
	if got := testing.AllocsPerRun(200, f); got > most {
		t.Errorf("%s: %v allocations, budget %v", what, got, most)
	}
}
