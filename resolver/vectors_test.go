package resolver

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vectorCase is one case of testdata/vectors; see the README there. The same cases run through the real handler in
// caddymodule; here they localise a failure to the decision.
type vectorCase struct {
	Name     string
	Feature  string
	Method   string
	Manifest json.RawMessage
	Request  json.RawMessage
	RawBody  *string `json:"raw_body"`
	Expect   struct {
		Status   int
		Body     map[string]any
		Absent   []string
		Nonempty []string
	}
}

func (c *vectorCase) body() []byte {
	if c.RawBody != nil {
		return []byte(*c.RawBody)
	}
	return c.Request
}

func loadVectors(t testing.TB) []vectorCase {
	t.Helper()
	return loadVectorFile(t, "updates.json")
}

func loadVectorFile(t testing.TB, name string) []vectorCase {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "vectors", name))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []vectorCase }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	return file.Cases
}

// answer runs a body through the package as the handler does.
func answer(t *testing.T, manifest, body []byte, base string) (int, []byte) {
	t.Helper()
	var p CheckParser
	c, err := p.Parse(body)
	if err != nil {
		var r *Refusal
		if !errors.As(err, &r) {
			t.Fatal(err)
		}
		return r.Status, AppendRefusal(nil, r)
	}
	m, err := ParseManifest(manifest)
	if err != nil {
		t.Fatalf("every manifest of the vectors must validate: %v", err)
	}
	if m.AppID != c.AppID {
		r := &Refusal{Status: 429, Code: "on_premise_app", Message: "On-premise app detected"}
		return r.Status, AppendRefusal(nil, r)
	}
	if channel, ok := storedChoice(t, manifest, c.DeviceID); ok && c.AsksAssignment() {
		c.Assign(channel)
	}
	d := m.Decide(&c)
	return 200, AppendResponse(nil, &d, base)
}

// leftOut are the features an edge without an upstream cannot have, and those of later rooms.
var leftOut = []string{"cloud", "provider_block", "counters"}

// storedChoice finds the channel that a case's device has stored by /channel_self.
func storedChoice(t testing.TB, manifest []byte, device string) (channel int64, ok bool) {
	t.Helper()
	var m struct {
		Choices []struct {
			Device  string `json:"device_id"`
			Channel int64  `json:"channel_id"`
		} `json:"channel_self_overrides"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	for _, choice := range m.Choices {
		if choice.Device == device {
			return choice.Channel, true
		}
	}
	return 0, false
}

func TestVectors(t *testing.T) {
	for _, c := range loadVectors(t) {
		if slices.Contains(leftOut, c.Feature) || strings.Contains(string(c.Manifest), "rollout_decisions") {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			status, raw := answer(t, c.Manifest, c.body(), "https://edge.test")
			wantStatus, want := c.Expect.Status, c.Expect.Body
			if c.Feature == "quirk" {
				wantStatus, want = 200, map[string]any{"error": "misconfigured_channel", "kind": "failed"}
			}
			if status != wantStatus {
				t.Errorf("status %d, want %d: %s", status, wantStatus, raw)
			}
			var got map[string]any
			if err := json.Unmarshal(raw, &got); err != nil {
				t.Fatalf("answer is not JSON: %v: %s", err, raw)
			}
			for name, value := range want {
				if diff := cmp.Diff(expected(value), got[name]); diff != "" && name != "moreInfo" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
			if c.Feature == "quirk" {
				return
			}
			for _, name := range c.Expect.Absent {
				if value, ok := got[name]; ok {
					t.Errorf("%s must be absent, is %v", name, value)
				}
			}
			for _, name := range c.Expect.Nonempty {
				if text, _ := got[name].(string); text == "" {
					t.Errorf("%s must be a text", name)
				}
			}
		})
	}
}

// expected turns a vector's addresses into this edge's: its own public address, and no device_id.
func expected(value any) any {
	switch v := value.(type) {
	case string:
		before, _, _ := strings.Cut(strings.Replace(v, "{base}", "https://edge.test", 1), "&device_id=")
		return before
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = expected(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any)
		for name := range v {
			out[name] = expected(v[name])
		}
		return out
	}
	return value
}
