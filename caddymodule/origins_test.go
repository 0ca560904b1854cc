package caddymodule_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule"
)

// TestHTTPOriginStoreRefuses: what is wrong once placeholders have values is refused, and no value is shown.
func TestHTTPOriginStoreRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("s3cret\r\nX-Evil: 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HTTP_TEST_BASE", "s3cret.example.com")
	t.Setenv("HTTP_TEST_QUERY", "https://example.com/?s3cret")
	header := func(name, value string) http.Header { return http.Header{name: {value}} }
	for text, o := range map[string]caddymodule.HTTPOrigin{
		`origin http: "{env.HTTP_TEST_BASE}": the base address must begin with http:// or https://`: {BaseURL: "{env.HTTP_TEST_BASE}"},
		`origin http: "{env.HTTP_TEST_QUERY}": the base address must have no query`:                 {BaseURL: "{env.HTTP_TEST_QUERY}"},
		`origin http: "https://xxxxx@exa mple.com": the base address is not a URL`:                  {BaseURL: "https://joe:s3cret@exa mple.com"},
		"header X-Token: its value holds a control character": {
			BaseURL: "https://example.com", Headers: header("X-Token", "{file."+file+"}"),
		},
		"header X-Token: evaluated placeholder {env.HTTP_TEST_NOT_SET} is empty": {
			BaseURL: "https://example.com", Headers: header("X-Token", "{env.HTTP_TEST_NOT_SET}"),
		},
		`header: "X Token" is not a name of a header`: {BaseURL: "https://example.com", Headers: header("X Token", "a")},
		"header: range is set by the edge itself":     {BaseURL: "https://example.com", Headers: header("range", "bytes=0-1")},
	} {
		store, err := o.Store()
		if store != nil || err == nil || !strings.HasPrefix(err.Error(), text) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("got %v, %v, want %q", store, err, text)
		}
	}
	fine := caddymodule.HTTPOrigin{BaseURL: "https://example.com", Headers: header("Host", "storage.example.com")}
	if store, err := fine.Store(); err != nil || store.Identity() != "http https://example.com host storage.example.com" {
		t.Errorf("%v, %v", store, err)
	}
}
