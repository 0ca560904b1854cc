package upstream_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/storetest"
	"github.com/capgo-edge/capgo-edge/origin/upstream"
)

// TestHosts: objects at the upstream's own host may be fetched, also where it is on a private network.
func TestHosts(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(r.URL.Path)) }))
	defer server.Close()
	g, err := upstream.NewGroup(upstream.Options{URLs: []string{server.URL + "/functions/v1", "http://u:p@[::1]:8080", "https://capgo.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := origin.NewExternal(origin.ExternalOptions{Hosts: append(g.Hosts(), "*.cdn.example.com"), Setting: "allow_host"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.CloseIdleConnections()
	if _, got, err := storetest.Read(t, e, server.URL+"/a.zip?key=1", origin.GetOptions{}); err != nil || string(got) != "/a.zip" {
		t.Errorf("%q, %v", got, err)
	}
	for url, want := range map[string]bool{
		"http://[::1]:8080/x": true, "https://capgo.example.com/x": true, "https://eu.cdn.example.com/x": true,
		"http://capgo.example.com/x": false, "https://169.254.169.254/x": false, "https://other.example.com/x": false,
	} {
		if e.Allows(url) != want {
			t.Errorf("%s: %v", url, !want)
		}
	}
}
