package caddymodule_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// crowd are devices of an app in a rollout, each in a network of its own unless they are all behind one address.
type crowd struct {
	t      *testing.T
	c      *edgetest.Client
	behind string
}

func (d *crowd) id(i int) string { return fmt.Sprintf("%08d-eefe-490a-9c60-8e965132ae51", i) }

func (d *crowd) address(i int) string {
	if d.behind != "" {
		return d.behind
	}
	return fmt.Sprintf("10.%d.%d.7", i/256, i%256)
}

// ask is the version the device is offered, or what it is told instead.
func (d *crowd) ask(i int, changes ...any) string {
	d.t.Helper()
	r := d.c.Post("/updates", check(append([]any{"device_id", d.id(i)}, changes...)...), "X-Forwarded-For", d.address(i))
	body := r.JSON(d.t)
	if version, ok := body["version"].(string); ok {
		return version
	}
	text, _ := body["error"].(string)
	return text
}

// report sends an event of the device, in a batch as plugins of today do.
func (d *crowd) report(i int, action, version string) {
	d.t.Helper()
	r := d.c.Post("/stats", "["+check("device_id", d.id(i), "version_name", version, "action", action)+"]", "X-Forwarded-For", d.address(i))
	if string(r.Body) != `{"status":"ok","results":[{"status":"ok","index":0}]}` {
		d.t.Errorf("%s of device %d: %d %s", action, i, r.Status, r.Body)
	}
}

// drawn lists n devices that are offered 1.0.2, from the given one on.
func (d *crowd) drawn(from, n int) []int {
	d.t.Helper()
	var list []int
	for i := from; len(list) < n && i < from+20*n; i++ {
		switch version := d.ask(i); version {
		case "1.0.2":
			list = append(list, i)
		case "1.0.1":
		default:
			d.t.Fatalf("device %d is told %q", i, version)
		}
	}
	if len(list) < n {
		d.t.Fatalf("only %d devices are offered the target", len(list))
	}
	return list
}

// TestReleaseGuard: a target that fails on the devices that were offered it is offered to no further one at this site, not
// even after a restart, until the rollout is changed; who runs it keeps it.
func TestReleaseGuard(t *testing.T) {
	s := newSite(t)
	first, second := s.bundle(1, "1.0.1", 1000), s.bundle(2, "1.0.2", 1000)
	rollout := func(bps int) row {
		ch := production(1)
		maps.Copy(ch, row{
			"rollout_version": 2, "rollout_enabled": true, "rollout_percentage_bps": bps, "rollout_id": "r",
			"auto_pause_enabled": true, "auto_pause_min_attempts": 20, "auto_pause_cooldown_minutes": 0,
		})
		return ch
	}
	s.write([]row{first, second}, []row{rollout(5000)})
	config := edgetest.Config{Global: "servers {\n trusted_proxies static 127.0.0.1/32\n}", Site: s.handler(quick)}
	e := edgetest.New(t)
	load(t, e, config)
	d := &crowd{t: t, c: e.Client(t)}
	d.c.Redials = 20 // across the reloads

	one := &crowd{t: t, c: d.c, behind: "203.0.113.9"}
	for _, i := range one.drawn(10_000, 30) {
		one.report(i, "set_fail", "1.0.2")
	}
	for i := range 100 {
		d.report(20_000+i, "set_fail", "1.0.2") // of devices that were offered nothing
	}
	drawn := d.drawn(0, 40)
	const paused, resumed = "rollout paused at this site", "rollout resumed at this site"
	// fail has the devices report, a quarter of them failures, until the guard acts as it did so many times before.
	fail := func(before int) {
		t.Helper()
		for n, i := range drawn {
			if got := d.ask(i); got != "1.0.2" {
				t.Fatalf("after %d reports device %d is offered %s", n, i, got)
			}
			action := "set"
			if n%4 == 0 {
				action = "update_fail"
			}
			d.report(i, action, "1.0.2")
			if len(e.Log(paused)) > before {
				return
			}
		}
		t.Fatalf("never paused: %q", e.Log("rollout"))
	}
	fail(0)
	gone := func(when string) {
		t.Helper()
		for _, i := range drawn {
			if got := d.ask(i); got != "1.0.1" {
				t.Fatalf("%s device %d is offered %s", when, i, got)
			}
		}
		if got := d.ask(drawn[0], "version_name", "1.0.2"); got != "no_new_version_available" {
			t.Errorf("%s a device that runs the target is told %s", when, got)
		}
	}
	gone("paused,")
	load(t, e, edgetest.Config{Global: config.Global, Site: s.handler(quick, "debug")})
	gone("after a reload,")
	e.Stop()
	load(t, e, config)
	if n := len(e.Log("rollout is still paused at this site")); n != 1 { // before anybody asked
		t.Errorf("after a restart, the pause was logged %d times", n)
	}
	gone("after a restart,")

	w, err := admin(t, "POST", "/capgo_edge/resume", `{"app_id":"`+appID+`"}`)
	if err != nil || !strings.Contains(w.Body.String(), `"version":"1.0.2"`) {
		t.Fatalf("resuming: %v, %s", err, w.Body)
	}
	fail(1)
	gone("paused again,")
	if n := len(e.Log(resumed)); n != 1 {
		t.Errorf("the resume was logged %d times", n)
	}

	s.write([]row{first, second}, []row{rollout(5000), {"id": 9, "name": "beta", "allow_device_self_set": true}})
	edgetest.Eventually(t, "the other part is in force", func() bool { return d.ask(1, "defaultChannel", "beta") == "builtin" })
	gone("after another part of the manifest changed,")
	s.write([]row{first, second}, []row{rollout(5001)})
	edgetest.Eventually(t, "the changed rollout goes on", func() bool { return d.ask(drawn[0]) == "1.0.2" })
	edgetest.Eventually(t, "that is logged", func() bool { return len(e.Log("rollout no longer paused at this site")) == 1 })
}
