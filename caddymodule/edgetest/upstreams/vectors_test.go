package upstreams_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest/upstreams"
)

// vectorCase is one case of the conformance vectors; see the README there. Each was checked against the real server, so
// a stand-in that passes them all answers as that does.
type vectorCase struct {
	Name           string
	Method         string
	Manifest       json.RawMessage
	Request        json.RawMessage
	RawBody        *string `json:"raw_body"`
	Query          map[string]any
	ClientIP       string `json:"client_ip"`
	ClientProvider string `json:"client_provider"`
	Expect         struct {
		Status   int
		Body     json.RawMessage
		Absent   []string
		Nonempty []string
	}
}

func vectors(t *testing.T, file string) []vectorCase {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "..", "resolver", "testdata", "vectors", file))
	if err != nil {
		t.Fatal(err)
	}
	var table struct{ Cases []vectorCase }
	if err := json.Unmarshal(raw, &table); err != nil {
		t.Fatal(err)
	}
	return table.Cases
}

// leftOut are cases that force the state of a memory which the stand-in keeps in another form.
func leftOut(c *vectorCase) bool {
	text := string(c.Manifest)
	return strings.Contains(text, "rollout_decisions") || strings.Contains(text, "rollout_channel_count") ||
		strings.Contains(text, "rollout_paused_version_names")
}

func TestOfficialAnswersTheVectors(t *testing.T) {
	for file, path := range map[string]string{"updates.json": "/updates", "stats.json": "/stats", "channel_self.json": "/channel_self"} {
		ran := 0
		for _, c := range vectors(t, file) {
			if leftOut(&c) {
				continue
			}
			ran++
			t.Run(c.Name, func(t *testing.T) { runVector(t, path, &c) })
		}
		t.Logf("%s: %d cases", file, ran)
	}
}

func runVector(t *testing.T, path string, c *vectorCase) {
	o := upstreams.NewOfficial()
	if err := o.Publish(c.Manifest); err != nil {
		t.Fatal(err)
	}
	o.Providers[c.ClientIP] = c.ClientProvider
	query := url.Values{}
	for name, value := range c.Query {
		query.Set(name, fmt.Sprint(value))
	}
	body := string(c.Request)
	if c.RawBody != nil {
		body = *c.RawBody
	}
	if c.Method == "" {
		c.Method = http.MethodPost
	}
	r := ask(t, &o.Server, c.Method, path+"?"+query.Encode(), body, "X-Forwarded-For", c.ClientIP)
	if r.status != c.Expect.Status {
		t.Errorf("status %d, want %d: %s", r.status, c.Expect.Status, r.body)
	}
	var got, want any
	if err := json.Unmarshal(r.body, &got); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	if text := strings.ReplaceAll(string(c.Expect.Body), "{base}", o.URL); text != "" {
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(sorted(want), subset(sorted(got), sorted(want))); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	members, _ := got.(map[string]any)
	for _, name := range c.Expect.Absent {
		if _, ok := members[name]; ok {
			t.Errorf("%s must be absent: %s", name, r.body)
		}
	}
	for _, name := range c.Expect.Nonempty {
		if text, _ := members[name].(string); text == "" {
			t.Errorf("%s must be a text: %s", name, r.body)
		}
	}
}

// sorted orders a list of channels, which may come in any order.
func sorted(value any) any {
	list, ok := value.([]any)
	if !ok {
		return value
	}
	name := func(v any) string {
		members, _ := v.(map[string]any)
		return fmt.Sprint(members["name"])
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b any) int { return strings.Compare(name(a), name(b)) })
	return list
}

// subset reduces got to the members that want has.
func subset(got, want any) any {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return got
		}
		out := map[string]any{}
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
	}
	return got
}
