package caddymodule

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// A delivery with signatures that were made with openssl dgst -sha256 -hmac and -macopt hexkey:, and once more with Python.
const (
	hookBody = `{"event":"channels.UPDATE","event_id":"evt-1","timestamp":"2026-11-20T10:00:00Z","org_id":"o","data":{"table":"channels","operation":"UPDATE","record_id":"11","old_record":{"id":11,"app_id":"com.demo.app","ios":true},"new_record":{"id":11,"app_id":"com.demo.app","ios":false},"changed_fields":["ios"]}}`
	hookTime = "1795000000"

	capgoSecret   = "my-webhook-secret"
	capgoMAC      = "50fbcb5ac839f62cfa83d0d29a5c6098a10f56bca7ef1a0adec8ed3c95020dc9"
	standardHook  = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=" // of the bytes 0 to 31
	standardMAC   = "rl8zOOYuH/HzBgtuHzQmiqUKjFbItSO5if39gYJH4Eg="
	shortHook     = "whsec_c2hvcnQ=" // of 5 bytes, so taken as it is
	shortMAC      = "+s1tLC4zATnItjYIyV1NTG8eJRLfsUUI6n9ustH68vc="
	standardOther = "AAAAOOYuH/HzBgtuHzQmiqUKjFbItSO5if39gYJH4Eg="
)

func headers(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i+1 < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

func standardHeaders(at, signature string) http.Header {
	return headers("webhook-id", "msg_1", "webhook-timestamp", at, "webhook-signature", signature)
}

func TestVerifyWebhook(t *testing.T) {
	sent := time.Unix(1795000000, 0)
	capgo := headers("X-Capgo-Signature", "v1="+hookTime+"."+capgoMAC)
	for _, c := range []struct {
		name   string
		secret string
		header http.Header
		body   string
		now    time.Time
		want   error
	}{
		{"capgo", capgoSecret, capgo, hookBody, sent, nil},
		{"standard", standardHook, standardHeaders(hookTime, "v1,"+standardMAC), hookBody, sent, nil},
		{"standard without padding of the secret", strings.TrimRight(standardHook, "="), standardHeaders(hookTime, "v1,"+standardMAC), hookBody, sent, nil},
		{"standard with a secret that is no key", shortHook, standardHeaders(hookTime, "v1,"+shortMAC), hookBody, sent, nil},
		{"the second of several", standardHook, standardHeaders(hookTime, "v1a,xx v1,"+standardOther+" v1,"+standardMAC), hookBody, sent, nil},
		{"five minutes later", capgoSecret, capgo, hookBody, sent.Add(5 * time.Minute), nil},
		{"five minutes earlier", capgoSecret, capgo, hookBody, sent.Add(-5 * time.Minute), nil},
		{
			"either format will do", capgoSecret,
			headers("X-Capgo-Signature", "v1="+hookTime+"."+capgoMAC, "Webhook-Signature", "v1,"+standardMAC), hookBody, sent, nil,
		},

		{"later", capgoSecret, capgo, hookBody, sent.Add(5*time.Minute + time.Second), errWebhookSignature},
		{"earlier", capgoSecret, capgo, hookBody, sent.Add(-5*time.Minute - time.Second), errWebhookSignature},
		{"standard, later", standardHook, standardHeaders(hookTime, "v1,"+standardMAC), hookBody, sent.Add(6 * time.Minute), errWebhookSignature},
		{"another body", capgoSecret, capgo, hookBody + " ", sent, errWebhookSignature},
		{"another secret", "other", capgo, hookBody, sent, errWebhookSignature},
		{"another time", capgoSecret, headers("X-Capgo-Signature", "v1=1795000001."+capgoMAC), hookBody, sent, errWebhookSignature},
		{"another id", standardHook, headers("webhook-id", "msg_2", "webhook-timestamp", hookTime, "webhook-signature", "v1,"+standardMAC), hookBody, sent, errWebhookSignature},
		{"another version", capgoSecret, headers("X-Capgo-Signature", "v2="+hookTime+"."+capgoMAC), hookBody, sent, errWebhookSignature},
		{"another version, standard", standardHook, standardHeaders(hookTime, "v2,"+standardMAC), hookBody, sent, errWebhookSignature},
		{"half a signature", capgoSecret, headers("X-Capgo-Signature", "v1="+hookTime+"."+capgoMAC[:32]), hookBody, sent, errWebhookSignature},
		{"no signature", capgoSecret, headers(), hookBody, sent, errWebhookSignature},
		{"no secret", "", capgo, hookBody, sent, errWebhookSignature},
		{"no secret, signed with none", "", headers("X-Capgo-Signature", "v1="+hookTime+"."+hex.EncodeToString(webhookMAC(nil, []byte(hookBody), hookTime))), hookBody, sent, errWebhookSignature},
		{"a time that is none", capgoSecret, headers("X-Capgo-Signature", "v1=now."+capgoMAC), hookBody, sent, errWebhookSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			event, err := verifyWebhook(c.secret, c.header, []byte(c.body), c.now)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if c.want == nil && (event.ID != "evt-1" || event.Table != "channels" || event.Operation != "UPDATE" || !slices.Equal(event.AppIDs, []string{"com.demo.app"})) {
				t.Errorf("%+v", event)
			}
		})
	}
}

// signed signs a body as the official server does.
func signed(body string, at time.Time) http.Header {
	text := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(capgoSecret))
	mac.Write([]byte(text + "." + body))
	return headers("X-Capgo-Signature", "v1="+text+"."+hex.EncodeToString(mac.Sum(nil)))
}

func TestWebhookEvents(t *testing.T) {
	now := time.Unix(1795000000, 0)
	for _, c := range []struct{ name, body, want string }{
		{"a new channel", `{"event_id":"e","data":{"table":"channels","operation":"INSERT","old_record":null,"new_record":{"app_id":"com.a.b"}}}`, "e channels INSERT [com.a.b]"},
		{"a bundle that is gone", `{"event_id":"e","data":{"table":"app_versions","operation":"DELETE","old_record":{"app_id":"com.a.b"},"new_record":null}}`, "e app_versions DELETE [com.a.b]"},
		{"an app that moved", `{"event_id":"e","data":{"table":"apps","operation":"UPDATE","old_record":{"app_id":"com.a.b"},"new_record":{"app_id":"com.a.c"}}}`, "e apps UPDATE [com.a.c com.a.b]"},
		{"members of an organisation", `{"event_id":"e","data":{"table":"org_users","operation":"UPDATE","new_record":{"app_id":"com.a.b"}}}`, "e org_users UPDATE []"},
		{"the event's name alone", `{"event":"orgs.UPDATE","event_id":"e"}`, "e orgs UPDATE []"},
		{"a channel of no app", `{"event_id":"e","data":{"table":"channels","operation":"UPDATE","new_record":{}}}`, "e channels UPDATE []"},
		{"no table", `{"event_id":"e","data":{}}`, "error"},
		{"no JSON", `table=channels`, "error"},
		{"no object", `[]`, "error"},
		{"an app of numbers", `{"event_id":"e","data":{"table":"channels","new_record":{"app_id":7}}}`, "error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			event, err := verifyWebhook(capgoSecret, signed(c.body, now), []byte(c.body), now)
			got := fmt.Sprintf("%s %s %s %v", event.ID, event.Table, event.Operation, event.AppIDs)
			if err != nil {
				got = "error"
				if !errors.Is(err, errWebhookBody) {
					t.Error(err)
				}
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
	t.Run("in milliseconds", func(t *testing.T) {
		mac := hex.EncodeToString(webhookMAC([]byte(capgoSecret), []byte(hookBody), "1795000000000"))
		if _, err := verifyWebhook(capgoSecret, headers("X-Capgo-Signature", "v1=1795000000000."+mac), []byte(hookBody), now); err != nil {
			t.Error(err)
		}
	})
	t.Run("without an id", func(t *testing.T) {
		const body = `{"event":"apps.UPDATE"}`
		event, err := verifyWebhook(capgoSecret, signed(body, now), []byte(body), now)
		if err != nil || len(event.ID) != 64 {
			t.Errorf("%+v, %v", event, err)
		}
		mac := base64.StdEncoding.EncodeToString(webhookMAC([]byte(capgoSecret), []byte(body), "msg_1", hookTime))
		event, err = verifyWebhook(capgoSecret, standardHeaders(hookTime, "v1,"+mac), []byte(body), now)
		if err != nil || event.ID != "msg_1" {
			t.Errorf("%+v, %v", event, err)
		}
	})
}

func TestServeWebhook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var purged []string
		h := &webhook{secret: capgoSecret, seen: newSeenEvents(), purge: func(app string) { purged = append(purged, app) }, log: zap.NewNop(), faults: newFaultLog()}
		post := func(method, body string, header http.Header) (int, string) {
			r := httptest.NewRequestWithContext(t.Context(), method, "/webhooks/capgo", strings.NewReader(body))
			for name := range header {
				r.Header.Set(name, header.Get(name))
			}
			w := httptest.NewRecorder()
			h.serve(w, r)
			return w.Code, w.Body.String()
		}
		send := func(body string) (int, string) { return post(http.MethodPost, body, signed(body, time.Now())) }
		if status, body := send(hookBody); status != 200 || body != `{"status":"ok"}` || !slices.Equal(purged, []string{"com.demo.app"}) {
			t.Errorf("%d %s, purged %v", status, body, purged)
		}
		time.Sleep(time.Minute) // signed anew, as repeats are
		if status, body := send(hookBody); status != 200 || body != `{"status":"ok"}` || len(purged) != 1 {
			t.Errorf("again: %d %s, purged %v", status, body, purged)
		}
		if status, _ := send(`{"event":"orgs.UPDATE","event_id":"evt-2"}`); status != 200 || len(purged) != 1 {
			t.Errorf("another table: %d, purged %v", status, purged)
		}
		if status, body := post(http.MethodPost, hookBody, nil); status != 401 || !strings.Contains(body, "invalid_signature") {
			t.Errorf("unsigned: %d %s", status, body)
		}
		if status, body := send("{"); status != 400 || !strings.Contains(body, "invalid_webhook") {
			t.Errorf("no JSON: %d %s", status, body)
		}
		if status, _ := send(`"` + strings.Repeat("a", maxWebhookBody) + `"`); status != 413 {
			t.Errorf("too large: %d", status)
		}
		if status, _ := post(http.MethodGet, "", nil); status != 405 {
			t.Errorf("GET: %d", status)
		}
		time.Sleep(webhookMemory)
		if status, _ := send(hookBody); status != 200 || len(purged) != 2 {
			t.Errorf("after a day: %d, purged %v", status, purged)
		}
	})
}

// TestSeenEvents: the memory is bounded, and forgets the oldest first.
func TestSeenEvents(t *testing.T) {
	s, now := newSeenEvents(), time.Unix(0, 0)
	for i := range maxSeenEvents + 1 {
		if !s.first(strconv.Itoa(i), now) {
			t.Fatalf("event %d is no news", i)
		}
	}
	if s.first(strconv.Itoa(maxSeenEvents), now) || !s.first("0", now) {
		t.Error("the newest is forgotten, or the oldest is not")
	}
	if s.ids.Len() != maxSeenEvents {
		t.Errorf("%d events are remembered", s.ids.Len())
	}
}

// FuzzWebhook: nothing that was not signed is ever taken, and nothing panics.
func FuzzWebhook(f *testing.F) {
	f.Add("v1="+hookTime+"."+capgoMAC, "", "", "", hookBody)
	f.Add("", "msg_1", hookTime, "v1,"+standardMAC, hookBody)
	f.Add("v1=.", "", "0", "v1, v1,= ,", "")
	f.Fuzz(func(t *testing.T, capgo, id, at, standard, body string) {
		h := headers("X-Capgo-Signature", capgo, "Webhook-Id", id, "Webhook-Timestamp", at, "Webhook-Signature", standard)
		now := time.Unix(1795000000, 0)
		if event, err := verifyWebhook("a secret that the fuzzer does not know", h, []byte(body), now); err == nil {
			t.Errorf("%+v is taken", event)
		}
		_, _ = readWebhook([]byte(body))
		if event, err := verifyWebhook(capgoSecret, signed(body, now), []byte(body), now); err == nil && event.ID == "" {
			t.Error("an event without an id")
		}
	})
}
