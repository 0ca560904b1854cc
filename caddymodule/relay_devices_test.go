package caddymodule_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// numbered is one of many device ids.
func numbered(i int) string { return fmt.Sprintf("%08x-0000-4000-8000-000000000000", i) }

// asking is what a server of these tests goes by.
type asking struct {
	Path    string `json:"-"`
	AppID   string `json:"app_id"` // in Go's way: in any letters, the last of several
	Device  string `json:"device_id"`
	Version string `json:"version_name"`
	// Platform and Brand stand for members that are in the key of answers, and for those that are not.
	Platform string `json:"platform"`
	Brand    string `json:"brand"`
	CustomID string `json:"custom_id"`
}

// answering starts a server that offers to each request the version that version says.
func answering(t *testing.T, version func(q *asking) string) (url string) {
	t.Helper()
	return serving(t, func(w http.ResponseWriter, q *asking) {
		v := version(q)
		_, _ = fmt.Fprintf(w, `{"version":%q,"url":"http://cdn.example/%s.zip","checksum":%[1]q}`, v, v)
	})
}

// serving starts a server that answers in JSON.
func serving(t *testing.T, answer func(w http.ResponseWriter, q *asking)) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/stats" { // in batches
			_, _ = io.WriteString(w, `{"status":"ok"}`)
			return
		}
		q := asking{Path: r.URL.Path}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		answer(w, &q)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// relaying is the configuration of an edge in front of a server, whose answers stay fresh.
func relaying(server string, options ...string) string {
	return "capgo_edge " + server + " {\n relay {\n fresh 10m\n " + strings.Join(options, "\n ") + "\n }\n }"
}

// within waits until something has come about.
func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	for began := time.Now(); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > 5*time.Second {
			t.Fatal("not so: " + what)
		}
	}
}

func wantOffered(t *testing.T, r *edgetest.Response, version, who string) {
	t.Helper()
	if got := r.JSON(t)["version"]; got != version {
		t.Errorf("%s is answered %v, want %s (status %d)", who, got, version, r.Status)
	}
}

// TestRelayFirstDevices: the first devices of all come at once, before it is known that the server is an official one, and some of
// them are pinned to another version. They get that, nobody else does, and nobody is asked for with another's custom_id.
func TestRelayFirstDevices(t *testing.T) {
	for _, herd := range []struct{ plain, pinned int }{{2, 1}, {3, 1}, {2, 2}, {3, 2}} {
		t.Run(fmt.Sprintf("%d and %d", herd.plain, herd.pinned), func(t *testing.T) {
			server := serving(t, func(w http.ResponseWriter, q *asking) {
				if q.CustomID != "" && q.CustomID != "of "+q.Device {
					t.Errorf("%s is asked for as %q", q.Device, q.CustomID)
				}
				v := "1.0.1"
				if strings.HasPrefix(q.Device, "0000009") {
					v = "9.0.0"
				}
				if q.Device == numbered(0) || v == "9.0.0" {
					time.Sleep(200 * time.Millisecond)
				}
				w.Header().Set("X-Worker-Source", "plugin")
				_, _ = fmt.Fprintf(w, `{"version":%q,"url":"http://cdn.example/%s.zip","session_key":"","checksum":%[1]q}`, v, v)
			})
			client := edgetest.Start(t, edgetest.Config{Site: relaying(server)}).Client(t)
			var all sync.WaitGroup
			ask := func(device int, version string) {
				all.Go(func() {
					r := client.Post("/updates", check("device_id", numbered(device), "custom_id", "of "+numbered(device)))
					wantOffered(t, r, version, "device "+numbered(device))
				})
			}
			ask(0, "1.0.1")
			time.Sleep(50 * time.Millisecond)
			for i := 1; i < herd.plain; i++ {
				ask(i, "1.0.1")
			}
			for i := range herd.pinned {
				ask(0x90+i, "9.0.0")
			}
			all.Wait()
			for i := range 4 {
				wantOffered(t, client.Post("/updates", check("device_id", numbered(0x100+i))), "1.0.1", "a later device")
			}
		})
	}
}

// TestRelayOneOddDevice: what a device says of itself beyond the key may get it another answer. It alone changes nobody else's.
func TestRelayOneOddDevice(t *testing.T) {
	server := answering(t, func(q *asking) string {
		if q.Brand == "odd" {
			return "6.6.6"
		}
		return "1.0.1"
	})
	client := edgetest.Start(t, edgetest.Config{Site: relaying(server)}).Client(t)
	for i := range 10 {
		client.Post("/updates", check("device_id", numbered(i)))
	}
	for i := range 60 {
		client.Post("/updates", check("device_id", numbered(0x666), "brand", "odd"))
		wantOffered(t, client.Post("/updates", check("device_id", numbered(0x1000+i))), "1.0.1", "another device")
	}
}

// TestRelayAmbiguousBodies: a server may read members that this edge does not see. The answer is for nobody else, and the app
// is that which the edge sees, or none.
func TestRelayAmbiguousBodies(t *testing.T) {
	var foreign atomic.Int64
	server := answering(t, func(q *asking) string {
		if q.AppID != appID {
			foreign.Add(1)
		}
		return q.Platform
	})
	client := edgetest.Start(t, edgetest.Config{Site: relaying(server)}).Client(t)
	with := func(body, member string) string { return strings.TrimSuffix(body, "}") + "," + member + "}" }
	for i := range 5 {
		body := check("device_id", numbered(i), "platform", "ios")
		wantOffered(t, client.Post("/updates", with(body, `"Platform":"android"`)), "android", "a device that says both")
		wantOffered(t, client.Post("/updates", with(body, `"platform":"android"`)), "android", "a device that says both")
	}
	for i := range 5 {
		wantOffered(t, client.Post("/updates", check("device_id", numbered(0x100+i), "platform", "ios")), "ios", "an iOS device")
	}
	for _, member := range []string{`"App_Id":"com.made.up"`, `"app_id":"com.made.up"`} {
		for _, path := range []string{"/updates", "/updates/manifest_size", "/channel_self"} {
			for _, body := range []string{check("version_name", "7.0.0", "channel", "beta"), check("platform", "ios")} { // the last is known
				if r := client.Post(path, with(body, member)); r.Status != 400 {
					t.Errorf("%s with %s: status %d, %s", path, member, r.Status, r.Body)
				}
			}
		}
	}
	if n := foreign.Load(); n > 0 {
		t.Errorf("%d requests about another app", n)
	}
}

// TestRelayLostChannelWrite: a device has chosen a channel at the upstream, and the answer is lost. Its next check is its own.
func TestRelayLostChannelWrite(t *testing.T) {
	for name, lose := range map[string]func(http.ResponseWriter){
		"it breaks off": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "15")
			_, _ = io.WriteString(w, `{"status"`)
		},
		"there is none": func(w http.ResponseWriter) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		},
		"the client hangs up": func(w http.ResponseWriter) {
			time.Sleep(400 * time.Millisecond)
			_, _ = io.WriteString(w, `{"status":"ok"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var chosen sync.Map
			written := make(chan struct{}, 1)
			server := serving(t, func(w http.ResponseWriter, q *asking) {
				if q.Path == "/channel_self" {
					chosen.Store(q.Device, true)
					defer func() { written <- struct{}{} }()
					lose(w)
					return
				}
				v := "1.0.1"
				if _, ok := chosen.Load(q.Device); ok {
					v = "2.0.0"
				}
				_, _ = fmt.Fprintf(w, `{"version":%q,"url":"http://cdn.example/%s.zip","checksum":%[1]q}`, v, v)
			})
			client := edgetest.Start(t, edgetest.Config{Site: relaying(server, "per_device off")}).Client(t)
			client.Post("/updates", check("device_id", numbered(1)))
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if r, err := client.Open(ctx, "POST", "/channel_self", check("device_id", numbered(2), "plugin_version", "6.0.0", "channel", "beta")); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				_ = r.Body.Close()
			}
			<-written
			within(t, "the device is asked for by itself", func() bool {
				return client.Post("/updates", check("device_id", numbered(2))).JSON(t)["version"] == "2.0.0"
			})
			wantOffered(t, client.Post("/updates", check("device_id", numbered(3))), "1.0.1", "another device")
		})
	}
}

// TestRelayUnsentChannelWrite: a call that reached nobody changes nothing: the device has last good answers in an outage, too.
func TestRelayUnsentChannelWrite(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"version":"1.0.1","url":"http://cdn.example/1.zip","checksum":"1"}`)
	}))
	defer server.Close()
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + server.URL + " {\n relay {\n fresh 50ms\n stale_while 50ms\n }\n }"})
	client := e.Client(t)
	for i := range 4 {
		client.Post("/updates", check("device_id", numbered(i)))
	}
	server.Close()
	time.Sleep(150 * time.Millisecond) // until the answer is old
	for range 10 {                     // also behind the breaker
		if r := client.Post("/channel_self", check("plugin_version", "6.0.0", "channel", "beta")); r.Status != 503 {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
		wantOffered(t, client.Post("/updates", check()), "1.0.1", "the device")
	}
}

// TestRelayStrangersInVain: the upstream has counted what it answered, be the answer of no use, and what a client did not wait for.
// Made-up apps cost it no more than they would otherwise.
func TestRelayStrangersInVain(t *testing.T) {
	for name, answer := range map[string]struct {
		status int
		body   string
	}{
		"throttled":   {429, `{"error":"too_many_requests","message":"slow down"}`},
		"own address": {429, `{"error":"provider_infrastructure_request_blocked","message":"blocked"}`},
		"failing":     {500, `{"error":"unknown_error","message":"unknown"}`},
		"no answer":   {200, `<html>`},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			server := serving(t, func(w http.ResponseWriter, _ *asking) {
				asked.Add(1)
				w.WriteHeader(answer.status)
				_, _ = io.WriteString(w, answer.body)
			})
			client := edgetest.Start(t, edgetest.Config{Site: relaying(server)}).Client(t)
			for i := range 20 {
				client.Post("/updates", check("app_id", fmt.Sprint("com.made.up", i)))
			}
			if n := asked.Load(); n == 0 || n > 4 {
				t.Errorf("the upstream was asked %d times", n)
			}
		})
	}
	t.Run("the client hangs up", func(t *testing.T) {
		var asked atomic.Int64
		server := serving(t, func(_ http.ResponseWriter, _ *asking) {
			asked.Add(1)
			time.Sleep(200 * time.Millisecond)
		})
		client := edgetest.Start(t, edgetest.Config{Site: relaying(server)}).Client(t)
		for i := range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			r, err := client.Open(ctx, "POST", "/channel_self", check("app_id", fmt.Sprint("com.made.up", i), "channel", "beta"))
			if err == nil {
				_ = r.Body.Close()
			}
			cancel()
		}
		if n := asked.Load(); n == 0 || n > 4 {
			t.Errorf("the upstream was asked %d times", n)
		}
	})
}

// TestRelayRefusedChannelWrite: calls that the upstream refuses, by a 200 as the official one does, make no device differ.
func TestRelayRefusedChannelWrite(t *testing.T) {
	var asked atomic.Int64
	server := serving(t, func(w http.ResponseWriter, q *asking) {
		if q.Path == "/channel_self" {
			_, _ = io.WriteString(w, `{"error":"channel_not_found","message":"no such channel"}`)
			return
		}
		asked.Add(1)
		_, _ = io.WriteString(w, `{"version":"1.0.1","url":"http://cdn.example/1.zip","checksum":"1"}`)
	})
	client := edgetest.Start(t, edgetest.Config{Site: relaying(server)}).Client(t)
	for i := range 3 {
		client.Post("/updates", check("device_id", numbered(i)))
	}
	before := asked.Load()
	for i := range 50 {
		device := numbered(0x100 + i)
		if r := client.Post("/channel_self", check("device_id", device, "plugin_version", "6.0.0", "channel", "nonsense")); r.Status != 200 {
			t.Fatalf("status %d, %s", r.Status, r.Body)
		}
		client.Post("/updates", check("device_id", device))
	}
	if n := asked.Load() - before; n > 25 { // one answer in eight is checked
		t.Errorf("%d of 50 devices were asked for by themselves", n)
	}
}

// TestRelayTrickleInOutage: what brought no answer does not count against a client, so that an app is back when the upstream is.
func TestRelayTrickleInOutage(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	server := serving(t, func(w http.ResponseWriter, _ *asking) {
		if down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = io.WriteString(w, `{"version":"1.0.1","url":"http://cdn.example/1.zip","checksum":"1"}`)
	})
	client := edgetest.Start(t, edgetest.Config{Site: relaying(server)}).Client(t)
	for i := range 20 {
		client.Post("/updates", check("device_id", numbered(i), "version_name", fmt.Sprint("1.0.", i)))
	}
	down.Store(false)
	for began := time.Now(); client.Post("/updates", check()).Status != 200; time.Sleep(100 * time.Millisecond) {
		if time.Since(began) > 20*time.Second { // the breaker's first pause is 5 s, and it may have been probed in vain
			t.Fatal("the app is still not answered")
		}
	}
}

// TestRelaySettingsDiffer: sites of one upstream, and configurations one after the other, make each their own of its answers.
func TestRelaySettingsDiffer(t *testing.T) {
	downloads := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "zip") }))
	t.Cleanup(downloads.Close)
	server := serving(t, func(w http.ResponseWriter, q *asking) {
		if q.Version == "2.0.0" {
			_, _ = io.WriteString(w, `{"error":"no_new_version_available","message":"none"}`)
			return
		}
		_, _ = io.WriteString(w, `{"version":"2.0.0","url":"`+downloads.URL+`/2.zip","checksum":"2"}`)
	})
	plain, other := relaying(server), relaying(server, "allow_host "+downloads.URL, "kind keep")
	e := edgetest.Start(t, edgetest.Config{Site: "@other header X-Site other\n handle @other {\n " + other + "\n }\n handle {\n " + plain + "\n }"})
	judge := func(client *edgetest.Client, own bool, header ...string) {
		t.Helper()
		client.Redials = 20 // across reloads
		within(t, "the configuration is in force", func() bool {
			client.Reconnect()
			address, _ := client.Post("/updates", check(), header...).JSON(t)["url"].(string)
			return own != strings.HasPrefix(address, downloads.URL)
		})
		for i := range 5 {
			address, _ := client.Post("/updates", check("device_id", numbered(i)), header...).JSON(t)["url"].(string)
			if through := !strings.HasPrefix(address, downloads.URL); through != own || through && client.Do("GET", address, "", header...).Status != 200 {
				t.Errorf("the address is %s", address)
			}
			_, kind := client.Post("/updates", check("device_id", numbered(i), "version_name", "2.0.0"), header...).JSON(t)["kind"]
			if kind == own {
				t.Errorf("kind is there: %v", kind)
			}
		}
	}
	judge(e.Client(t), true, "X-Site", "other")
	judge(e.Client(t), false)
	load(t, e, edgetest.Config{Site: other})
	judge(e.Over(t, edgetest.HTTP2), true)
	load(t, e, edgetest.Config{Site: plain})
	judge(e.Over(t, edgetest.HTTP2), false)
}

// TestRelayWebhookAfterRestart: a webhook comes before the first check of a run. What was kept of the app is outdated.
func TestRelayWebhookAfterRestart(t *testing.T) {
	var version atomic.Value
	version.Store("1.0.1")
	server := answering(t, func(*asking) string { return version.Load().(string) })
	config := edgetest.Config{Site: relaying(server, "webhook_secret secret")}
	e := edgetest.New(t)
	load(t, e, config)
	for i := range 4 {
		e.Client(t).Post("/updates", check("device_id", numbered(i)))
	}
	e.Stop() // writes what waits
	load(t, e, config)
	client := e.Over(t, edgetest.HTTP2)
	version.Store("1.0.0")
	body := fmt.Sprintf(`{"event":"channels.UPDATE","event_id":"1","data":{"table":"channels","operation":"UPDATE","new_record":{"app_id":%q}}}`, appID)
	if r := client.Post("/webhooks/capgo", body, "X-Capgo-Signature", signedWebhook("secret", body)); r.Status != 200 {
		t.Fatalf("status %d, %s", r.Status, r.Body)
	}
	wantOffered(t, client.Post("/updates", check("device_id", numbered(50))), "1.0.0", "a device behind the webhook")
}
