package caddymodule_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// collector stands at the other end of a site's statistics, and takes them as the official server does: an array of events
// of one app, answered event by event.
type collector struct {
	t    testing.TB
	URL  string
	mu   sync.Mutex
	all  []delivered    // guarded by mu, as all below
	down bool           // answers 503
	keys map[string]int // Idempotency-Keys, with how often each came
	want http.Header    // of each request
}

// delivered is one event as it arrived.
type delivered struct {
	raw    string
	fields map[string]any
}

func newCollector(t testing.TB) *collector {
	c := &collector{t: t, keys: map[string]int{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.URL = server.URL + "/stats"
	return c
}

// setDown has the collector answer 503, or no more.
func (c *collector) setDown(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

// ServeHTTP implements http.Handler.
func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || c.down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	for name := range c.want {
		if r.Header.Get(name) != c.want.Get(name) {
			c.t.Errorf("header %s: %q", name, r.Header.Get(name))
		}
	}
	var items []json.RawMessage
	if err := json.Unmarshal(body, &items); err != nil || r.Header.Get("Idempotency-Key") == "" {
		c.t.Errorf("a batch with the key %q that is no array: %s", r.Header.Get("Idempotency-Key"), body)
	}
	c.keys[r.Header.Get("Idempotency-Key")]++
	results := []map[string]any{}
	for i, item := range items {
		d := delivered{raw: string(item)}
		if err := json.Unmarshal(item, &d.fields); err != nil {
			c.t.Errorf("event %s: %v", item, err)
		}
		if len(c.all) > 0 && i > 0 && d.fields["app_id"] != c.all[len(c.all)-1].fields["app_id"] {
			c.t.Errorf("a batch of several apps: %s", body)
		}
		c.all = append(c.all, d)
		results = append(results, map[string]any{"status": "ok", "index": i})
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"status": "ok", "results": results})
}

// events returns what has arrived so far.
func (c *collector) events() []delivered {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all)
}

// values lists one member of all events that have arrived.
func (c *collector) values(name string) []string {
	var values []string
	for _, e := range c.events() {
		text, _ := e.fields[name].(string)
		values = append(values, text)
	}
	return values
}

// has reports whether an event with this text has arrived.
func (c *collector) has(text string) bool {
	return slices.ContainsFunc(c.events(), func(d delivered) bool { return strings.Contains(d.raw, text) })
}
