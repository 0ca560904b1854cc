package caddymodule_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestRelayLearnedSecrets: people save what an edge has learned, and send it around: it opens no address, and names no device.
func TestRelayLearnedSecrets(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"version":"1.0.1","url":"http://`+r.Host+`/b/a.zip?X-Amz-Signature=SECRET&X-Amz-Date=20990101T000000Z&X-Amz-Expires=3600","checksum":"1",`+
			`"manifest":[{"file_name":"a.js","file_hash":"h","download_url":"http://`+r.Host+`/files/read/attachments/orgs/o/apps/`+appID+`/delta/h_a.js?key=7&device_id=x&sig=SECRET"}]}`)
	}))
	t.Cleanup(up.Close)
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge " + up.URL + " {\n relay {\n fresh 10m\n }\n }"})
	client := e.Client(t)
	for i := range 3 {
		client.Post("/updates", check("device_id", fmt.Sprintf("%08x-0000-4000-8000-00000000beef", i), "custom_id", "SECRET", "email", "SECRET"))
	}
	var lines string
	edgetest.Eventually(t, "it is kept", func() bool {
		lines = caddymodule.LearnedLines(t.Context(), appID)
		return lines != ""
	})
	for _, secret := range []string{"SECRET", "Expires", "beef", "device_id", "custom_id"} {
		if strings.Contains(lines, secret) {
			t.Errorf("%s is told: %s", secret, lines)
		}
	}
	if !strings.Contains(lines, `"/files/read/attachments/orgs/o/apps/`+appID+`/delta/h_a.js?key=7"`) {
		t.Errorf("the import would not learn the delta list: %s", lines)
	}
}
