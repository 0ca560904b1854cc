package caddymodule_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestRelayUpToDate: that a device is up to date is derived only where the upstream says so itself, in the very same words.
func TestRelayUpToDate(t *testing.T) {
	const upToDate = `{"error":"no_new_version_available","message":"No new version available","kind":"up_to_date"}`
	for name, c := range map[string]struct {
		says    string // to a device that runs 1.0.1; %s is its version_build
		derives bool
	}{
		"official":                {upToDate, true},
		"another order":           {`{"message":"No new version available","error":"no_new_version_available","kind":"up_to_date"}`, false},
		"the version beside":      {`{"error":"no_new_version_available","message":"No new version available","kind":"up_to_date","version":"1.0.1 for %s"}`, false},
		"offers what runs":        {`{"version":"1.0.1","url":"http://x.example/%s.zip","checksum":"1"}`, false},
		"offers the running once": {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var q struct {
					Build string `json:"version_build"`
					Runs  string `json:"version_name"`
				}
				_ = json.NewDecoder(r.Body).Decode(&q)
				w.Header().Set("Content-Type", "application/json")
				says := c.says
				switch {
				case q.Runs != "1.0.1":
					says = `{"version":"1.0.1","url":"http://x.example/%s.zip","checksum":"1"}`
				case says == "" && asked.Add(1) == 1:
					says = upToDate
				case says == "":
					says = `{"version":"1.0.1","url":"http://x.example/%s.zip","checksum":"1"}`
				default:
					asked.Add(1)
				}
				_, _ = io.WriteString(w, strings.ReplaceAll(says, "%s", q.Build))
			}))
			t.Cleanup(up.Close)
			e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + up.URL + " {\n relay {\n fresh 10m\n per_device off\n }\n }"})
			client := e.Client(t)
			const builds = 5
			for i := range builds {
				build := fmt.Sprintf("1.%d.0", i)
				if name == "offers the running once" && i == 2 { // what is derived until then is no longer
					client.Post("/updates", check("version_build", "1.9.0", "version_name", "1.0.1"))
				}
				client.Post("/updates", check("version_build", build, "version_name", "1.0.0"))
				got := client.Post("/updates", check("version_build", build, "version_name", "1.0.1"))
				if want := strings.ReplaceAll(c.says, "%s", build); c.says != "" && got.Status == 200 && string(got.Body) != want {
					t.Errorf("a device is answered %s, and the upstream says %s", got.Body, want)
				}
			}
			want := int64(builds)
			switch {
			case c.derives:
				want = 1
			case c.says == "":
				want = 1 + 1 + 3 // the first, the one between, and those behind it
			}
			if n := asked.Load(); n != want {
				t.Errorf("of %d devices that run the offered version %d are asked for, want %d", builds, n, want)
			}
		})
	}
}

// TestRelayOfferNotes: what is remembered of offers is bounded in bytes, whatever phones send.
func TestRelayOfferNotes(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"version":"1.0.1","url":"http://x.example/a.zip","checksum":"1"}`)
	}))
	t.Cleanup(up.Close)
	e := edgetest.Start(t, edgetest.Config{Storage: "memory 16MiB", Site: "capgo_edge " + up.URL + " {\n relay {\n fresh 10m\n }\n }"})
	client := e.Client(t)
	heap := func() int64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	client.Post("/updates", check())
	before, large := heap(), strings.Repeat("x", 60<<10)
	for i := range 1500 {
		if r := client.Post("/updates", check("device_id", fmt.Sprintf("%08x-0000-4000-8000-000000000000", i), "version_os", fmt.Sprint(i, large))); r.Status != 200 {
			t.Fatal(r.Status)
		}
	}
	if grown := (heap() - before) >> 20; grown > 64 { // noted, the keys alone had 180 MiB
		t.Errorf("1500 checks of 60 KiB leave %d MiB behind", grown)
	}
}
