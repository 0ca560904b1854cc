package caddymodule_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	_ "github.com/capgo-edge/capgo-edge/caddymodule"
	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// vectorCase is one case of resolver/testdata/vectors; see the README there.
type vectorCase struct {
	Name     string
	Feature  string
	Manifest json.RawMessage
	Request  json.RawMessage
	RawBody  *string `json:"raw_body"`
	Expect   struct {
		Status   int
		Body     map[string]any
		Absent   []string
		Nonempty []string
		Assets   struct {
			Zip      map[string]any
			Manifest []string
		}
	}
}

// leftOut are the features that this edge does not claim, and why.
var leftOut = map[string]string{
	"cloud":          "billing and throttles are known to an upstream only",
	"provider_block": "an upstream's rule; this edge blocks no address",
	"counters":       "this edge keeps no denormalised counters",
}

func (c *vectorCase) reasonToLeaveOut() string {
	if strings.Contains(string(c.Manifest), `"rollout_decisions"`) {
		return "the bucket replaces remembered draws"
	}
	return leftOut[c.Feature]
}

// TestVectors runs the conformance table through the real handler over HTTP, each case as a site of its own below a path
// prefix, and follows every address in the answers to the object it must lead to.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "resolver", "testdata", "vectors", "updates.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []vectorCase }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	e := edgetest.New(t)
	var site strings.Builder
	for i, c := range file.Cases {
		var m struct {
			App struct {
				ID string `json:"app_id"`
			}
		}
		if err := json.Unmarshal(c.Manifest, &m); err != nil {
			t.Fatal(err)
		}
		origin := filepath.Join(dir, fmt.Sprint(i))
		edgetest.WriteFile(t, origin, "manifests/"+m.App.ID+".json", c.Manifest)
		edgetest.WriteFile(t, origin, "undigested/"+m.App.ID+".json", withoutDigests(t, c.Manifest))
		storeChoices(t, e, origin, c.Manifest)
		for _, key := range keysOf(t, c.Manifest) {
			edgetest.WriteFile(t, origin, key, []byte("object at "+key))
		}
		fmt.Fprintf(&site, "handle_path /case%d/* {\n capgo_edge {\n origin file %s\n }\n }\n", i, origin)
		fmt.Fprintf(&site, "handle_path /objects%d/* {\n capgo_edge {\n origin file %s\n manifests undigested/{app_id}.json\n }\n }\n", i, origin)
	}
	load(t, e, edgetest.Config{Site: site.String()})
	client := e.Client(t)

	ran := 0
	for i, c := range file.Cases {
		if reason := c.reasonToLeaveOut(); reason != "" {
			t.Logf("left out: %s (%s)", c.Name, reason)
			continue
		}
		ran++
		t.Run(c.Name, func(t *testing.T) { runVector(t, client, fmt.Sprintf("/case%d", i), &c) })
	}
	t.Logf("%d of %d cases ran", ran, len(file.Cases))
	if ran < 209 {
		t.Errorf("only %d cases ran", ran)
	}
}

func runVector(t *testing.T, client *edgetest.Client, prefix string, c *vectorCase) {
	body := string(c.Request)
	if c.RawBody != nil {
		body = *c.RawBody
	}
	r := client.Post(prefix+"/updates", body)
	got := r.JSON(t)
	if c.Feature == "quirk" { // the official server breaks here
		if r.Status != 200 || got["error"] != "misconfigured_channel" || got["kind"] != "failed" {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
		return
	}
	if r.Status != c.Expect.Status {
		t.Errorf("status %d, want %d: %s", r.Status, c.Expect.Status, r.Body)
	}
	expectMembers(t, got, ours(c.Expect.Body, client.Base+prefix).(map[string]any), c.Expect.Absent, c.Expect.Nonempty)
	followAddresses(t, client, c, got)
}

// expectMembers holds an answer to what a case expects of its members.
func expectMembers(t *testing.T, got, want map[string]any, absent, nonempty []string) {
	t.Helper()
	for name, value := range want {
		if diff := cmp.Diff(value, subset(got[name], value)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for _, name := range absent {
		if value, ok := got[name]; ok {
			t.Errorf("%s must be absent, is %v", name, value)
		}
	}
	for _, name := range nonempty {
		if text, _ := got[name].(string); text == "" {
			t.Errorf("%s must be a text", name)
		}
	}
}

// followAddresses downloads what the answer leads to.
func followAddresses(t *testing.T, client *edgetest.Client, c *vectorCase, got map[string]any) {
	if key, ok := c.Expect.Assets.Zip["r2_path"].(string); ok {
		expectObject(t, client, got["url"].(string), key)
	}
	files, _ := got["manifest"].([]any)
	for i, key := range c.Expect.Assets.Manifest {
		expectObject(t, client, files[i].(map[string]any)["download_url"].(string), key)
	}
}

func expectObject(t *testing.T, client *edgetest.Client, address, key string) {
	t.Helper()
	r := client.Get(strings.Replace(address, "/case", "/objects", 1))
	if want := []byte("object at " + key); r.Status != 200 || !bytes.Equal(r.Body, want) {
		t.Errorf("%s: status %d, body %q, want %q", address, r.Status, r.Body, want)
	}
}

// ours turns an expected value into this edge's: its own public address, no device_id, escapes normalised.
func ours(value any, base string) any {
	switch v := value.(type) {
	case string:
		if !strings.Contains(v, "{base}") {
			return v
		}
		return normal(strings.Replace(v, "{base}", base, 1))
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = ours(v[i], base)
		}
		return out
	case map[string]any:
		out := make(map[string]any)
		for name := range v {
			out[name] = ours(v[name], base)
		}
		return out
	}
	return value
}

// subset reduces got to the members that want has, and normalises addresses.
func subset(got, want any) any {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return got
		}
		out := make(map[string]any)
		for name := range w {
			if value, ok := g[name]; ok {
				out[name] = subset(value, w[name])
			}
		}
		return out
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return got
		}
		out := make([]any, len(g))
		for i := range g {
			out[i] = subset(g[i], w[i])
		}
		return out
	case string:
		if g, ok := got.(string); ok && strings.Contains(g, "/files/read/attachments/") {
			return normal(g)
		}
	}
	return got
}

// normal writes an address with its query sorted, without device_id, and with one spelling of escapes.
func normal(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	query := u.Query()
	query.Del("device_id")
	return u.Scheme + "://" + u.Host + u.Path + "?" + query.Encode()
}

// withoutDigests takes the digests out of a manifest. Those of the vectors are of content that nobody has, so that no object
// can have them, and the edge serves none that does not.
func withoutDigests(t *testing.T, manifest []byte) []byte {
	var m map[string]any
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	versions, _ := m["versions"].([]any)
	for _, v := range versions {
		version := v.(map[string]any)
		delete(version, "checksum")
		files, _ := version["manifest"].([]any)
		for _, f := range files {
			f.(map[string]any)["file_hash"] = "unknown"
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// keysOf lists the object keys of a manifest.
func keysOf(t *testing.T, manifest []byte) []string {
	var m struct {
		Versions []struct {
			R2Path   string `json:"r2_path"`
			Manifest []struct {
				S3Path string `json:"s3_path"`
			}
		}
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, v := range m.Versions {
		if v.R2Path != "" {
			keys[v.R2Path] = true
		}
		for _, f := range v.Manifest {
			keys[f.S3Path] = true
		}
	}
	return slices.Sorted(maps.Keys(keys))
}
