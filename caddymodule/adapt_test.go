package caddymodule_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

var update = flag.Bool("update", false, "write the golden files of testdata/adapt anew")

const separator = "\n----------\n"

// TestAdapt adapts each Caddyfile of testdata/adapt and compares the JSON, or the error, with what stands below its ten
// dashes. "go test ./caddymodule -run TestAdapt -update" writes that part anew.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "adapt", "*.caddyfiletest"))
	if err != nil || len(files) < 20 {
		t.Fatalf("%d golden files (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, _ := strings.Cut(string(raw), separator)
			got := adapted(input)
			if *update {
				if err := os.WriteFile(file, []byte(input+separator+got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// adapted is the JSON of a Caddyfile, or the error of adapting or of provisioning it.
func adapted(input string) string {
	config, err := edgetest.Adapt(input)
	if err != nil {
		return "adapt: " + err.Error() + "\n"
	}
	var out bytes.Buffer
	if err := json.Indent(&out, config, "", "\t"); err != nil {
		return err.Error()
	}
	out.WriteByte('\n')
	var parsed caddy.Config
	if err := json.Unmarshal(config, &parsed); err != nil {
		return err.Error()
	}
	if err := caddy.Validate(&parsed); err != nil {
		return "validate: " + err.Error() + "\n"
	}
	return out.String()
}

// FuzzCaddyfile: whatever stands in the directive's block is adapted or refused, never a panic, and what was adapted can
// be provisioned or is refused with an error.
func FuzzCaddyfile(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "adapt", "*.caddyfiletest"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		input, _, _ := strings.Cut(string(raw), separator)
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input string) {
		if strings.Contains(input, "import") || strings.Contains(input, "{$") {
			return // Caddy's own directives that read files and the environment
		}
		if config, err := edgetest.Adapt(input); err == nil && !json.Valid(config) {
			t.Errorf("not JSON: %s", config)
		}
	})
}
