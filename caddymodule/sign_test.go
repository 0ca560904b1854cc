package caddymodule

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// TestSignerExpiry: signatures live for their time at the least and a quarter longer at the most, and are the same for
// that quarter; clocks may differ by five minutes.
func TestSignerExpiry(t *testing.T) {
	s, err := newSigner(&Sign{Secret: "0123456789abcdef", TTL: caddy.Duration(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	windows := map[int64]bool{}
	for minute := range 60 {
		at := now.Add(time.Duration(minute) * time.Minute)
		expiry := s.expiry(at)
		windows[expiry] = true
		if left := time.Unix(expiry, 0).Sub(at); left < time.Hour || left > 75*time.Minute {
			t.Errorf("signed at %s it lives for %s", at, left)
		}
		query, err := url.ParseQuery(string(s.suffix([]byte("key=1"), "a/b.zip", expiry)))
		if err != nil {
			t.Fatal(err)
		}
		end := time.Unix(expiry, 0)
		for _, tt := range []struct {
			at   time.Time
			key  string
			want error
		}{
			{at, "a/b.zip", nil},
			{at.Add(-5 * time.Minute), "a/b.zip", nil},
			{end.Add(5 * time.Minute), "a/b.zip", nil},
			{end.Add(5*time.Minute + time.Second), "a/b.zip", errExpired},
			{at, "a/c.zip", errUnsigned},
		} {
			if err := s.verify(query, tt.key, tt.at); !errors.Is(err, tt.want) {
				t.Errorf("%s at %s: %v, want %v", tt.key, tt.at, err, tt.want)
			}
		}
	}
	if len(windows) > 5 {
		t.Errorf("%d different expiries within an hour", len(windows))
	}
}

func TestRetiredMemo(t *testing.T) {
	if decodeRetired(nil) != nil || decodeRetired([]byte{0x90, 0x91}) != nil {
		t.Error("a memo of another form is read")
	}
	full := encodeRetired([]retiredKeys{{until: time.Unix(1_800_000_000, 0), keys: newKeys(t), externals: map[string]externalObject{
		"ext/a.b/1": {url: "https://cdn.example.com/b.zip"},
	}}})
	if got := decodeRetired(full); len(got) != 1 || got[0].externals["ext/a.b/1"].url != "https://cdn.example.com/b.zip" ||
		got[0].keys.Len() != 1 || got[0].until.Unix() != 1_800_000_000 {
		t.Errorf("%+v", got)
	}
	for n := range full {
		if got := decodeRetired(full[:n]); len(got) != 0 {
			t.Errorf("%d of %d bytes give %+v", n, len(full), got)
		}
	}
}

// newKeys are the keys of a small manifest.
func newKeys(t *testing.T) *resolver.Keys {
	t.Helper()
	m, err := resolver.ParseManifest([]byte(`{"app":{"app_id":"a.b"},"versions":[{"id":1,"name":"1.0.0","r2_path":"apps/a.b/1.zip"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return &m.Keys
}
