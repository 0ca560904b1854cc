package resolver

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestNewKeys(t *testing.T) {
	version := func(id int, more string) string {
		return fmt.Sprintf(`{"id":%d,"name":"1.0.%d","r2_path":"orgs/o/apps/a.b/%d.zip"%s}`, id, id, id, more)
	}
	doc := func(versions ...string) []byte {
		return []byte(`{"channels":[],"versions":[` + strings.Join(versions, ",") + `],"app":{"app_id":"a.b"}}`)
	}
	files := `,"manifest":[{"file_name":"x","file_hash":"h","s3_path":"orgs/o/apps/a.b/delta/x"},
		{"file_name":"y","file_hash":"h","s3_path":"orgs/o/apps/a.b/delta/y"}]`
	known := func(doc []byte) *Keys {
		m, err := ParseManifest(doc)
		if err != nil {
			t.Fatal(err)
		}
		return &m.Keys
	}
	for _, tt := range []struct {
		name     string
		old, new []byte
		want     []string
	}{
		{"nothing new", doc(version(1, files)), doc(version(1, files)), nil},
		{"a zip", doc(version(1, "")), doc(version(1, ""), version(2, "")), []string{"orgs/o/apps/a.b/2.zip"}},
		{
			"a zip and one file", doc(version(1, `,"manifest":[{"file_name":"x","file_hash":"h","s3_path":"orgs/o/apps/a.b/delta/x"}]`)),
			doc(version(2, files)),
			[]string{"orgs/o/apps/a.b/2.zip", "orgs/o/apps/a.b/delta/y"},
		},
		{"deleted", doc(version(1, "")), doc(version(1, ""), version(2, `,"deleted":true`), version(3, "")), []string{"orgs/o/apps/a.b/3.zip"}},
		{"one file of two versions", doc(), doc(version(1, files), version(2, files)), []string{
			"orgs/o/apps/a.b/1.zip", "orgs/o/apps/a.b/delta/x", "orgs/o/apps/a.b/delta/y", "orgs/o/apps/a.b/2.zip",
		}},
		{"nothing at all", doc(), doc(), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := NewKeys(tt.new, known(tt.old)); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	many := make([]string, maxNews+5)
	for i := range many {
		many[i] = version(i+1, "")
	}
	if got := NewKeys(doc(many...), known(doc())); len(got) != maxNews {
		t.Errorf("%d keys", len(got))
	}
}
