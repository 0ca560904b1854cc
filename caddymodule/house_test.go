package caddymodule_test

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/google/go-cmp/cmp"
)

const module = "github.com/capgo-edge/capgo-edge"

// rooms is who may import what. Of the standard library a room may import all that is not denied; of other modules only
// what is listed, by prefix.
var rooms = map[string]struct{ modules, denied []string }{
	"resolver": {
		modules: []string{"github.com/Masterminds/semver/v3", "github.com/go-json-experiment/json/jsontext"},
		denied:  []string{"net", "net/http", "os", "io/fs", "context", "log", "log/slog", "time", "math/rand", "math/rand/v2", "crypto/rand", "sync", "sync/atomic", "unsafe"},
	},
	"cache": {
		modules: []string{"github.com/dgraph-io/ristretto/v2", "github.com/hashicorp/golang-lru/v2", "golang.org/x/sys", "go.uber.org/zap"},
		denied:  []string{"net", "net/http", "net/url", "log", "unsafe"},
	},
	"origin": {
		modules: []string{
			"github.com/minio/minio-go/v7", "go.etcd.io/bbolt", "github.com/cenkalti/backoff/v5", "golang.org/x/time", "golang.org/x/sys",
			"go.uber.org/zap",
		},
		denied: []string{"log", "unsafe"},
	},
	"caddymodule": {
		modules: []string{
			module + "/resolver", module + "/cache", module + "/origin", module + "/caddymodule",
			"github.com/caddyserver/caddy/v2", "github.com/prometheus/client_golang", "github.com/dustin/go-humanize",
			"github.com/andybalholm/brotli", "github.com/spf13/cobra", "github.com/quic-go/quic-go", // the latter for edgetest
			"github.com/hashicorp/golang-lru/v2", "go.uber.org/zap", "golang.org/x/time",
		},
		denied: []string{"log", "unsafe"},
	},
}

// TestRooms parses the imports of every file that is no test and holds them to the table.
func TestRooms(t *testing.T) {
	for room, rule := range rooms {
		files := 0
		err := filepath.WalkDir(filepath.Join("..", room), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			files++
			for _, spec := range file.Imports {
				name, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					return err
				}
				if slices.Contains(rule.denied, name) && !isHarness(path) {
					t.Errorf("%s must not import %s", path, name)
				}
				if strings.Contains(strings.Split(name, "/")[0], ".") && !allowed(room, rule.modules, name) {
					t.Errorf("%s must not import %s", path, name)
				}
			}
			return nil
		})
		if err != nil || files == 0 {
			t.Errorf("%s: %d files, %v", room, files, err)
		}
	}
}

// isHarness reports whether a file serves tests only.
func isHarness(path string) bool {
	return strings.Contains(path, "edgetest") || strings.Contains(path, "storetest") || strings.Contains(path, "faulty")
}

func allowed(room string, modules []string, name string) bool {
	if strings.HasPrefix(name, module+"/"+room+"/") || name == module+"/"+room {
		return true
	}
	return slices.ContainsFunc(modules, func(prefix string) bool {
		return name == prefix || strings.HasPrefix(name, prefix+"/")
	})
}

// TestTopLevel: the four rooms and the fixed files, and furniture.
func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	known := []string{
		"caddymodule", "resolver", "cache", "origin", "Caddyfile.example", "xcaddy.json", "go.mod", "go.sum", "README.md",
		"LICENSE", "CHANGELOG.md",
	}
	for _, entry := range entries {
		if name := entry.Name(); !strings.HasPrefix(name, ".") && !slices.Contains(known, name) {
			t.Errorf("%s does not belong at the top level", name)
		}
	}
	for _, name := range known {
		if _, err := os.Stat(filepath.Join("..", name)); err != nil {
			t.Error(err)
		}
	}
}

// TestXcaddyBuild ties xcaddy.json to go.mod and to the command line in README.
func TestXcaddyBuild(t *testing.T) {
	var build struct {
		CaddyVersion string `json:"caddy_version"`
		Plugins      []struct {
			ModulePath string `json:"module_path"`
		}
		Replacements []struct{ Old, New string }
	}
	if err := json.Unmarshal(readFile(t, "xcaddy.json"), &build); err != nil {
		t.Fatal(err)
	}
	gomod := string(readFile(t, "go.mod"))
	if !strings.Contains(gomod, "github.com/caddyserver/caddy/v2 "+build.CaddyVersion+"\n") {
		t.Errorf("go.mod has another version of Caddy than %s", build.CaddyVersion)
	}
	if !strings.HasPrefix(gomod, "module "+module+"\n") || build.Plugins[0].ModulePath != module+"/caddymodule" {
		t.Errorf("the plugin is %q", build.Plugins[0].ModulePath)
	}
	command := "xcaddy build " + build.CaddyVersion + " --with " + build.Plugins[0].ModulePath +
		" --replace " + build.Replacements[0].Old + "=" + build.Replacements[0].New
	if !strings.Contains(string(readFile(t, "README.md")), command) {
		t.Errorf("README does not show %q", command)
	}
}

// TestREADME: it opens with the two commands, and its Caddyfiles are formatted and can be loaded.
func TestREADME(t *testing.T) {
	readme := string(readFile(t, "README.md"))
	opening := readme[:strings.Index(readme, "\n## ")]
	for _, command := range []string{"go run ./caddymodule/cmd/caddy run --config Caddyfile.example", "go test ./..."} {
		if !strings.Contains(opening, "\n"+command+"\n") {
			t.Errorf("README does not open with %q", command)
		}
	}
	snippets := regexp.MustCompile("(?s)```caddyfile\n(.*?)```").FindAllStringSubmatch(readme, -1)
	if len(snippets) < 3 {
		t.Errorf("%d Caddyfiles in README", len(snippets))
	}
	for _, variable := range regexp.MustCompile(`{env\.(\w+)}`).FindAllStringSubmatch(readme, -1) {
		t.Setenv(variable[1], "of the environment")
	}
	for _, snippet := range snippets {
		checkCaddyfile(t, snippet[1])
	}
	checkCaddyfile(t, string(readFile(t, "Caddyfile.example")))
	for _, option := range []string{
		"storage", "max_size", "min_free", "memory", "origin file", "origin http", "header", "origin s3", "region",
		"endpoint", "prefix", "access_key", "secret_key", "session_token", "path_style", "announce", "prefetch", "external", "sign", "manifests", "fresh", "stale_while", "stale", "negative",
		"max_size", "apps", "public_url", "cors", "debug", "stats", "max_spool", "checks on", "drop", "sample", "custom_id keep",
		"limits off", "upstream", "per_device auto", "allow_host", "key_fields", "unknown", "kind add", "webhook_secret",
	} {
		if !strings.Contains(readme, "`"+option) {
			t.Errorf("README does not explain %s", option)
		}
	}
}

// checkCaddyfile sees that a Caddyfile can be loaded, and that "caddy fmt" has nothing to change.
func checkCaddyfile(t *testing.T, text string) {
	t.Helper()
	t.Run("loads", func(t *testing.T) {
		t.Chdir(t.TempDir()) // an authority of its own is made in a directory beside it
		if got := adapted(text); !strings.HasPrefix(got, "{") {
			t.Errorf("%s in\n%s", got, text)
		}
	})
	if diff := cmp.Diff(string(caddyfile.Format([]byte(text))), text); diff != "" {
		t.Errorf("not formatted (-formatted +is):\n%s", diff)
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
