package caddymodule_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestStatsOfChangedSite: events that wait for a collector are delivered when of its site the origin, the query or the headers
// have changed, over a reload as over a restart, and then nothing is left of their spool. With two such changes at once it
// might be the site of somebody else: then they stay, and that is said.
func TestStatsOfChangedSite(t *testing.T) {
	tests := []struct {
		name    string
		moved   bool     // to another origin
		options []string // of the collector before, and after each change
		stays   bool
	}{
		{name: "another origin", moved: true, options: []string{" {\n header X-Key 1\n }", " {\n header X-Key 1\n max_spool 8MiB\n }"}},
		{name: "another query", options: []string{"?token=hunter1", "?token=hunter2"}},
		{name: "another query, then others, and another header", options: []string{"?token=1", "?token=2", "?token=3", "?token=3 {\n header X-Key 2\n }"}},
		{name: "another origin and query", moved: true, options: []string{"?token=1", "?token=2"}, stays: true},
		{name: "another query and header", options: []string{"?token=1 {\n header X-Key 1\n }", "?token=2 {\n header X-Key 2\n }"}, stays: true},
	}
	for _, tt := range tests {
		for _, restart := range []bool{false, true} {
			name := tt.name + ", reloaded"
			if restart {
				name = tt.name + ", restarted"
			}
			t.Run(name, func(t *testing.T) {
				if tt.stays && !restart {
					t.Skip("the forwarder of the site before might try again just before it ends")
				}
				s, elsewhere, c := newSite(t), newSite(t), newCollector(t)
				s.publish("1.0.1", 100)
				elsewhere.publish("1.0.1", 100)
				c.setDown(true)
				e := edgetest.New(t)
				load(t, e, edgetest.Config{Site: s.handler("stats " + c.URL + tt.options[0])})
				sendEvent(t, e, "first")
				if tt.moved {
					s = elsewhere
				}
				for i, options := range tt.options[1:] {
					if restart {
						e.Stop()
					}
					c.setDown(i+2 < len(tt.options))
					load(t, e, edgetest.Config{Site: s.handler("stats " + c.URL + options)})
				}
				sendEvent(t, e, "second")
				if tt.stays {
					edgetest.Eventually(t, "the orphan is named", func() bool { return len(e.Log("a collector that no site names any more")) == 1 })
					edgetest.Eventually(t, "the event of the new site arrives", func() bool { return len(c.events()) > 0 })
					if got := c.values("custom_id"); !slices.Equal(got, []string{"second"}) {
						t.Errorf("arrived: %s", got)
					}
					return
				}
				edgetest.Eventually(t, "both events arrive", func() bool { return len(c.events()) == 2 })
				if got := slices.Sorted(slices.Values(c.values("custom_id"))); !slices.Equal(got, []string{"first", "second"}) {
					t.Errorf("arrived: %s", got)
				}
				edgetest.Eventually(t, "the old spool is gone", func() bool { return len(spoolFiles(t, e)) == 2 })
				for _, file := range spoolFiles(t, e) {
					if raw, err := os.ReadFile(file); err != nil || strings.Contains(string(raw), "hunter") {
						t.Errorf("%s tells the secret: %v", file, err)
					}
				}
			})
		}
	}
}

// sendEvent has the site accept an event that is known by its custom id.
func sendEvent(t *testing.T, e *edgetest.Edge, id string) {
	t.Helper()
	client := e.Client(t)
	client.Redials = 20 // across a reload
	if r := client.Post("/stats", statsEvent("version_name", "1.0.1", "custom_id", id)); r.Status != http.StatusOK {
		t.Fatalf("status %d, %s", r.Status, r.Body)
	}
}

// spoolFiles are the spools there are, and their labels.
func spoolFiles(t *testing.T, e *edgetest.Edge) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(e.Storage, "spool", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestStatsOfRestoredSite: a site that is configured again while its spool is emptied by another uses it as before. Spools of
// sites that are gone stay, whoever sends to the same collector from an origin and with headers of its own.
func TestStatsOfRestoredSite(t *testing.T) {
	s, other, stranger, c := newSite(t), newSite(t), newSite(t), newCollector(t)
	for _, origin := range []*site{s, other, stranger} {
		origin.publish("1.0.1", 100)
	}
	c.setDown(true)
	e := edgetest.New(t)
	handler := s.handler("stats " + c.URL)
	load(t, e, edgetest.Config{Site: handler})
	sendEvent(t, e, "first")
	inherited := func(times int) {
		t.Helper()
		edgetest.Eventually(t, "the spool has an heir", func() bool { return len(e.Log("by the one that has taken its place")) == times })
	}
	load(t, e, edgetest.Config{Site: other.handler("stats " + c.URL)})
	sendEvent(t, e, "second")
	inherited(1)
	load(t, e, edgetest.Config{Site: handler})
	sendEvent(t, e, "third")
	inherited(2)
	e.Stop()
	c.setDown(false)
	load(t, e, edgetest.Config{Site: stranger.handler("stats " + c.URL + " {\n header X-Key theirs\n }")})
	edgetest.Eventually(t, "both orphans are named", func() bool { return len(e.Log("a collector that no site names any more")) == 2 })
	sendEvent(t, e, "theirs")
	edgetest.Eventually(t, "the stranger's event arrives", func() bool { return len(c.events()) == 1 })
	load(t, e, edgetest.Config{Site: handler})
	want := []string{"first", "second", "theirs", "third"}
	edgetest.Eventually(t, "all arrive", func() bool { return len(c.events()) == len(want) })
	if got := slices.Sorted(slices.Values(c.values("custom_id"))); !slices.Equal(got, want) {
		t.Errorf("arrived: %s", got)
	}
}

// TestStatsOfTenants: two sites of one collector that a key in its query tells apart are two tenants. When one goes, the other
// does not get its events, over a reload as over a restart.
func TestStatsOfTenants(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(map[bool]string{false: "reloaded", true: "restarted"}[restart], func(t *testing.T) {
			s, c := newSite(t), newCollector(t)
			s.publish("1.0.1", 100)
			c.setDown(true)
			e := edgetest.New(t)
			goes := "stats " + c.URL + "?key=tenantA {\n apps " + appID + "\n }"
			stays := "stats " + c.URL + "?key=tenantB {\n apps com.tenant.b\n }"
			load(t, e, edgetest.Config{Site: s.handler(goes, stays)})
			sendEvent(t, e, "first")
			if restart {
				e.Stop()
			}
			load(t, e, edgetest.Config{Site: s.handler(stays)})
			edgetest.Eventually(t, "the orphan is named", func() bool { return len(e.Log("a collector that no site names any more")) == 1 })
			if got := e.Log("by the one that has taken its place"); len(got) > 0 {
				t.Errorf("the other tenant inherits: %v", got)
			}
			c.setDown(false)
			load(t, e, edgetest.Config{Site: s.handler(goes, stays)})
			edgetest.Eventually(t, "the event arrives", func() bool { return len(c.events()) == 1 })
		})
	}
}
