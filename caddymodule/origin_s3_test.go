package caddymodule_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule"
	"github.com/capgo-edge/capgo-edge/origin"
)

// TestS3OriginStore has all options come from placeholders, and asks by what they stand for.
func TestS3OriginStore(t *testing.T) {
	var asked atomic.Value
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.Path + " " + r.Header.Get("Authorization") + " " + r.Header.Get("X-Amz-Security-Token"))
		http.ServeContent(w, r, "a.json", time.Unix(1, 0), strings.NewReader("content"))
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"BUCKET": "releases", "REGION": "eu-north-1", "ENDPOINT": server.URL, "PREFIX": "mobile", "KEY": "access", "TOKEN": "session",
	} {
		t.Setenv("S3_TEST_"+name, value)
	}
	store, err := (&caddymodule.S3Origin{
		Bucket: "{env.S3_TEST_BUCKET}", Region: "{env.S3_TEST_REGION}", Endpoint: "{env.S3_TEST_ENDPOINT}", Prefix: "{env.S3_TEST_PREFIX}",
		AccessKey: "{env.S3_TEST_KEY}", SecretKey: "{file." + file + "}", SessionToken: "{env.S3_TEST_TOKEN}",
	}).Store()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.(*origin.S3).CloseIdleConnections)
	if got, want := store.Identity(), "s3 "+server.URL+" releases mobile"; got != want {
		t.Errorf("identity %q, want %q", got, want)
	}
	o, err := store.Get(t.Context(), "a.json", origin.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Body.Close(); err != nil {
		t.Error(err)
	}
	got := asked.Load().(string)
	if !strings.HasPrefix(got, "/releases/mobile/a.json AWS4-HMAC-SHA256 Credential=access/") || !strings.HasSuffix(got, " session") ||
		!strings.Contains(got, "/eu-north-1/s3/") {
		t.Errorf("asked for %s", got)
	}
}

func TestS3OriginStoreRefuses(t *testing.T) {
	for text, o := range map[string]caddymodule.S3Origin{
		"origin s3: the bucket is missing":             {},
		"origin s3: access_key is set without":         {Bucket: "releases", AccessKey: "a"},
		"origin s3: the endpoint must begin with":      {Bucket: "releases", Endpoint: "example.com"},
		"origin s3: secret_key: evaluated placeholder": {Bucket: "releases", AccessKey: "a", SecretKey: "{env.S3_TEST_NOT_SET}"},
		"origin s3: secret_key: {http.":                {Bucket: "releases", AccessKey: "a", SecretKey: "{http.request.uri.path.file.secret}"},
	} {
		store, err := o.Store()
		if store != nil || err == nil || !strings.HasPrefix(err.Error(), text) || errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("got %v, %v, want %q", store, err, text)
		}
	}
}
