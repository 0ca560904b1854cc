package caddymodule_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest/upstreams"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// TestRelayMany asks a hundred thousand times (CAPGO_EDGE_CHECKS; a tenth in CI) from a fifth as many devices, with 6 native
// versions, 4 bundle versions, 2 platforms and 3 plugin versions, in front of an official server, and counts what that is
// asked and which answers are not those it would have given.
func TestRelayMany(t *testing.T) {
	checks := 10_000
	if text := os.Getenv("CAPGO_EDGE_CHECKS"); text != "" {
		var err error
		if checks, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("nothing per device", func(t *testing.T) {
		c := newAudience(t, checks, "auto", false)
		c.run(t)
		t.Logf("%d checks: %d requests to the upstream, %d wrong answers", checks, c.asked(), c.wrong.Load())
		if c.asked() > 200 || c.wrong.Load() > 0 {
			t.Error("want at most 200 requests, and no wrong answer")
		}
	})
	t.Run("overrides and a rollout, per_device on", func(t *testing.T) {
		c := newAudience(t, checks, "on", true)
		c.run(t)
		t.Logf("%d checks, %d of them different: %d requests to the upstream, %d wrong answers", checks, len(c.seen), c.asked(), c.wrong.Load())
		if c.asked() > len(c.seen) || c.wrong.Load() > 0 {
			t.Error("want at most one request for each device and key, and no wrong answer")
		}
	})
	t.Run("overrides and a rollout, per_device auto", func(t *testing.T) {
		c := newAudience(t, checks, "auto", true)
		c.run(t)
		t.Logf("%d checks: marked after %d of them and %d requests to the upstream; %d wrong answers before, %d after",
			checks, c.markedAfter, c.askedBefore, c.wrongBefore.Load(), c.wrong.Load()-c.wrongBefore.Load())
		if c.markedAfter == 0 || c.markedAfter > 1000 || c.askedBefore > 1000 || c.wrong.Load() > c.wrongBefore.Load() {
			t.Error("want it marked within 1000 checks and 1000 requests, and no wrong answer after that")
		}
		before := c.wrong.Load()
		c.restart(t)
		c.run(t)
		t.Logf("the same checks after a restart: %d wrong answers", c.wrong.Load()-before)
		if c.wrong.Load() > before || !caddymodule.RelayMarked(c.edge.Storage, appID) {
			t.Error("what was found out is forgotten")
		}
	})
}

// audience is many devices in front of an upstream with one app.
type audience struct {
	upstream *upstreams.Official
	edge     *edgetest.Edge
	config   edgetest.Config
	manifest *resolver.Manifest
	bodies   []string
	seen     map[string]bool

	wrong, wrongBefore       atomic.Int64 // answers; before the app was marked
	mu                       sync.Mutex
	markedAfter, askedBefore int // guarded by mu
}

func newAudience(t *testing.T, checks int, perDevice string, differ bool) *audience {
	t.Helper()
	c := &audience{upstream: upstreams.NewOfficial(), seen: map[string]bool{}}
	c.upstream.DrawLikeEdge = true
	c.upstream.Start(t)
	devices := make([]string, checks/5)
	for i := range devices {
		devices[i] = fmt.Sprintf("%08x-%04x-4000-8000-%012x", rand.Uint32(), rand.Uint32N(1<<16), i)
	}
	doc := audienceManifest(t, devices, differ)
	if err := c.upstream.Publish(doc); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.manifest, err = resolver.ParseManifest(doc); err != nil {
		t.Fatal(err)
	}
	for range checks {
		body := check(
			"device_id", devices[rand.N(len(devices))], "version_name", fmt.Sprintf("1.0.%d", 1+rand.N(4)),
			"version_build", fmt.Sprintf("1.%d.0", rand.N(6)), "version_code", "10", "platform", []string{"ios", "android"}[rand.N(2)],
			"plugin_version", []string{"5.9.0", "7.40.0", "8.51.14"}[rand.N(3)],
		)
		c.bodies, c.seen[body] = append(c.bodies, body), true
	}
	c.config = edgetest.Config{Site: fmt.Sprintf(
		"capgo_edge %s {\n stats off\n relay {\n fresh 10m\n per_device %s\n }\n }", c.upstream.URL, perDevice)}
	c.edge = edgetest.Start(t, c.config)
	t.Cleanup(c.edge.Stop)
	return c
}

// restart starts the edge anew with the storage it has.
func (c *audience) restart(t *testing.T) {
	t.Helper()
	c.edge.Stop()
	load(t, c.edge, c.config)
}

// audienceManifest has a channel that everybody is in. If devices differ, every hundredth has an override, and a tenth of all
// is in a rollout.
func audienceManifest(t *testing.T, devices []string, differ bool) []byte {
	t.Helper()
	production := map[string]any{
		"id": 1, "name": "production", "public": true, "version": 3, "disable_auto_update": "none", "disable_auto_update_under_native": false,
	}
	beta := map[string]any{"id": 2, "name": "beta", "version": 2, "disable_auto_update": "none", "disable_auto_update_under_native": false}
	overrides := []any{}
	if differ {
		production["rollout_enabled"], production["rollout_version"] = true, 4
		production["rollout_percentage_bps"], production["rollout_id"] = 1000, "r"
		for i := 0; i < len(devices); i += 100 {
			overrides = append(overrides, map[string]any{"device_id": devices[i], "channel_id": 2})
		}
	}
	versions := []any{}
	for id := 1; id <= 4; id++ {
		versions = append(versions, map[string]any{
			"id": id, "name": fmt.Sprintf("1.0.%d", id), "checksum": digest([]byte{byte(id)}), "r2_path": fmt.Sprintf("orgs/o/apps/%s/%d.zip", appID, id),
		})
	}
	doc, err := json.Marshal(map[string]any{
		"app": map[string]any{"app_id": appID}, "versions": versions, "channels": []any{production, beta}, "channel_devices": overrides,
	})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func (c *audience) asked() int { return c.upstream.Count("/updates") }

// run sends all checks, in four lanes.
func (c *audience) run(t *testing.T) {
	t.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		client := c.edge.Client(t)
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(c.bodies) {
					return
				}
				marked := c.isMarked(i) // before the check: what is on its way when an app is marked may still be wrong
				if r := client.Post("/updates", c.bodies[i]); c.isRight(t, c.bodies[i], r) {
					continue
				}
				if c.wrong.Add(1); !marked {
					c.wrongBefore.Add(1)
				}
			}
		})
	}
	wg.Wait()
}

// isMarked reports whether the edge has found that devices differ, and notes after how many checks it had.
func (c *audience) isMarked(checks int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.markedAfter == 0 && caddymodule.RelayMarked(c.edge.Storage, appID) {
		c.markedAfter, c.askedBefore = checks, c.asked()
	}
	return c.markedAfter > 0
}

// isRight reports whether an answer is the one that the upstream would give to this device.
func (c *audience) isRight(t *testing.T, body string, r *edgetest.Response) bool {
	parsed, err := new(resolver.CheckParser).Parse([]byte(body))
	if err != nil {
		t.Error(err)
		return false
	}
	d := c.manifest.Decide(&parsed)
	var got struct{ Version, Error string }
	if err := json.Unmarshal(r.Body, &got); err != nil || r.Status != 200 {
		t.Errorf("status %d, %s", r.Status, r.Body)
		return false
	}
	if d.Outcome == resolver.Offer {
		return got.Version == d.Bundle.Name && got.Error == ""
	}
	return got.Error == d.Code
}
