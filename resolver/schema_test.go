package resolver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// The JSON Schema is for operators' editors and pipelines; ParseManifest does not read it. These tests keep the two of
// one mind.
const schemaFile = "manifest.schema.json"

func loadSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	schema, err := jsonschema.NewCompiler().Compile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// bySchema is the schema's judgement of a document.
func bySchema(t testing.TB, schema *jsonschema.Schema, doc []byte) error {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		t.Fatalf("%v: %s", err, doc)
	}
	return schema.Validate(value)
}

func TestSchemaAcceptsManifests(t *testing.T) {
	schema := loadSchema(t)
	docs := map[string][]byte{
		"whole":  inOrder(wholeDocument, 0, 1, 2, 3),
		"bare":   []byte(`{"app":{"app_id":"com.demo.app"}}`),
		"large":  appOf(5, 20, 10),
		"scene":  scene{channel: fullRolloutOf2, override: true}.document(t),
		"nulls":  []byte(inApp(`"versions":null,"channels":null,"channel_devices":null`)),
		"odd":    []byte(inDevice(`"device_id":"my-phone","channel_id":1`)),
		"escape": []byte(inVersion(`,"r2_path":"a/%2e%2eb/%252e/b..c/é","manifest":[]`)),
	}
	for _, c := range loadVectors(t) {
		docs["vector "+c.Name] = c.Manifest
	}
	demos, err := filepath.Glob(filepath.Join("..", "origin", "demo", "manifests", "*.json"))
	if err != nil || len(demos) == 0 {
		t.Errorf("no manifest of the demo is found: %v", err)
	}
	for _, name := range demos {
		if docs[name], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	for name, doc := range docs {
		t.Run(name, func(t *testing.T) {
			if err := bySchema(t, schema, doc); err != nil {
				t.Errorf("the schema refuses it: %v", err)
			}
			if m, err := ParseManifest(doc); err != nil {
				t.Errorf("the parser refuses it: %v", err)
			} else if len(m.Warnings) > 0 && strings.Contains(name, "demo") && !strings.HasPrefix(name, "vector") {
				t.Errorf("the parser warns: %v", m.Warnings)
			}
		})
	}
}

func TestSchemaRefusesFaults(t *testing.T) {
	schema := loadSchema(t)
	for _, tt := range manifestFaults {
		t.Run(tt.name, func(t *testing.T) {
			var invalid *jsonschema.ValidationError
			if err := bySchema(t, schema, []byte(tt.doc)); !errors.As(err, &invalid) {
				t.Fatalf("the schema says %v", err)
			}
			// The places agree too: the editor must underline what the edge will complain about.
			if got := schemaPaths(invalid); !got[tt.want[0].Path] && !strings.HasSuffix(tt.want[0].Message, isRequired) {
				t.Errorf("the schema complains at %v, the parser at %s", got, tt.want[0].Path)
			}
		})
	}
}

// schemaPaths returns the JSON paths at which the schema was broken.
func schemaPaths(e *jsonschema.ValidationError) map[string]bool {
	paths := map[string]bool{}
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		path := "$"
		for _, step := range e.InstanceLocation {
			if strings.Trim(step, "0123456789") == "" {
				path += "[" + step + "]"
			} else {
				path += "." + step
			}
		}
		paths[path] = true
		for _, cause := range e.Causes {
			walk(cause)
		}
	}
	walk(e)
	return paths
}

// Each member of each row with values of every type and at every edge: the schema and the parser agree on all of them.
func TestSchemaAgreesWithTheParser(t *testing.T) {
	schema := loadSchema(t)
	values := []string{
		`null`, `true`, `false`, `""`, `"x"`, `"1"`, `"major"`, `"version_number"`, `"../x"`, `"a/."`, `"/x"`, `"a\\b"`, `"a\u0000b"`,
		`"a.b/..c"`, `"a/%2e%2E/b"`, `".%2e"`, `"ext/a"`, `"%65x%74%2Fa"`, `"ext"`, `"Ext/ext/a"`, `"ext%2g"`, `"%2e"`, `"%2e%2e%2e/%2eb"`, `"2026-01-01T00:00:00Z"`, `"` + testDevice + `"`, `"` + strings.Repeat("k", 1024) + `"`, `"` + strings.Repeat("k", 1025) + `"`,
		`0`, `1`, `-1`, `0.5`, `-0.5`, `10000`, `10001`, `9007199254740991`, `9007199254740992`, `18446744073709551616`, `10000000000000000000000`, `-10000000000000000000000`,
		`[]`, `{}`, `[1]`, `[null]`, `{"id":1}`,
	}
	agreed := map[bool]int{}
	for _, row := range manifestRows {
		for member := range row.members {
			for _, value := range values {
				doc := row.document(t, member, value)
				accepted := acceptsRows(doc)
				if err := bySchema(t, schema, doc); (err == nil) != accepted {
					t.Errorf("%s.%s = %.80s: the parser accepts: %t, the schema says %v", row.path, member, value, accepted, err)
				}
				agreed[accepted]++
			}
		}
	}
	if agreed[true] < 100 || agreed[false] < 100 {
		t.Errorf("%d documents are accepted and %d refused: one side is hardly tried", agreed[true], agreed[false])
	}
}

// acceptsRows reports whether the parser finds nothing wrong within a row. References between rows are beyond a schema.
func acceptsRows(doc []byte) bool {
	_, err := ParseManifest(doc)
	var faults *Faults
	if !errors.As(err, &faults) {
		return err == nil
	}
	for _, f := range faults.List {
		if !strings.Contains(f.Message, "is not the id of") {
			return false
		}
	}
	return true
}

type schemaRow struct {
	Required   []string
	Properties map[string]struct {
		Description string
		Default     json.RawMessage
	}
}

func loadSchemaRows(t testing.TB) map[string]schemaRow {
	t.Helper()
	raw, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		schemaRow
		Defs map[string]schemaRow `json:"$defs"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	return map[string]schemaRow{
		"$": file.schemaRow, "$.app": file.Defs["app"], "$.versions[0]": file.Defs["version"],
		"$.versions[0].manifest[0]": file.Defs["file"], "$.channels[0]": file.Defs["channel"],
		"$.channel_devices[0]": file.Defs["channel_device"],
	}
}

// The schema lists the members that the parser reads, says of all others that they are not read, and explains each.
func TestSchemaListsTheMembersThatAreRead(t *testing.T) {
	rows := loadSchemaRows(t)
	for _, row := range manifestRows {
		want, got := map[string]bool{}, map[string]bool{}
		for member := range row.members {
			want[member] = true
		}
		for member, p := range rows[row.path].Properties {
			if p.Description == "" && member != "app" {
				t.Errorf("%s.%s is not explained", row.path, member)
			}
			if member != "app" && !strings.Contains(p.Description, "Not read by this edge.") {
				got[member] = true
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-parser +schema):\n%s", row.path, diff)
		}
		// What the schema requires, the parser misses.
		for _, member := range rows[row.path].Required {
			doc := toJSON(t, row.around(row.valid.with(object{member: without})))
			want := []Fault{{row.path + "." + member, isRequired}}
			if got := faultsOf(t, string(doc)); !cmp.Equal(got, want) {
				t.Errorf("without %s.%s the parser says %v", row.path, member, got)
			}
		}
	}
}

// The defaults that the schema tells are those of the parser: to write them out changes nothing.
func TestSchemaDefaults(t *testing.T) {
	rows := loadSchemaRows(t)
	for _, row := range manifestRows {
		bare := toJSON(t, row.around(row.valid))
		want := mustParse(t, bare)
		for member, p := range rows[row.path].Properties {
			if p.Default == nil {
				continue
			}
			t.Run(fmt.Sprintf("%s.%s=%s", row.path, member, p.Default), func(t *testing.T) {
				if _, set := row.valid[member]; set {
					t.Fatal("the valid row has it already")
				}
				if got := mustParse(t, row.document(t, member, string(p.Default))); !reflect.DeepEqual(got, want) {
					t.Errorf("the parser's default is another:\n got %+v\nwant %+v", got, want)
				}
			})
		}
	}
}
