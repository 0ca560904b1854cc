package resolver

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSizeQuery(t *testing.T) {
	one := FileQuery{Name: "index.html", Hash: "h1", URL: "https://edge.test/files/read/attachments/k/1?key=1"}
	two := FileQuery{Name: "a\"b", Hash: "h2", URL: "https://edge.test/files/read/attachments/k/2?key=1"}
	entry := func(f FileQuery) string {
		text, _ := json.Marshal(map[string]string{"file_name": f.Name, "file_hash": f.Hash, "download_url": f.URL})
		return string(text)
	}
	tests := []struct {
		name, body string
		want       []FileQuery
	}{
		{"manifest", `{"app_id":"com.demo.app","version":"1.0.0","version_id":1,"manifest":[` + entry(one) + `,` + entry(two) + `]}`, []FileQuery{one, two}},
		{"files", `{"files":[` + entry(one) + `]}`, []FileQuery{one}},
		{"order is kept", `{"manifest":[` + entry(two) + `,` + entry(one) + `]}`, []FileQuery{two, one}},
		{"none", `{"app_id":"com.demo.app"}`, nil},
		{"empty list", `{"manifest":[]}`, nil},
		{"null list", `{"manifest":null,"files":null}`, nil},
		{"null members", `{"manifest":[{"file_name":null,"file_hash":null,"download_url":null}]}`, []FileQuery{{}}},
		{"absent members", `{"manifest":[{"size":7,"x":{"file_name":"y"}}]}`, []FileQuery{{}}},
		{"device fields of any type", `{"device_id":5,"version_id":{"a":[]},"manifest":[` + entry(one) + `]}`, []FileQuery{one}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseSizeQuery([]byte(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseSizeQueryRefuses(t *testing.T) {
	tests := []struct {
		name, body, code, field string
	}{
		{"empty", ``, "invalid_json_parse_body", ""},
		{"cut", `{"manifest":[{}`, "invalid_json_parse_body", ""},
		{"text after it", `{"manifest":[]} x`, "invalid_json_parse_body", ""},
		{"array", `[]`, "invalid_json_body", "$"},
		{"null", `null`, "invalid_json_body", "$"},
		{"list is a text", `{"files":"x"}`, "invalid_json_body", "$.files"},
		{"entry is a text", `{"manifest":[{},"x"]}`, "invalid_json_body", "$.manifest[1]"},
		{"name is a number", `{"manifest":[{"file_name":5}]}`, "invalid_json_body", "$.manifest[0].file_name"},
		{"address is an object", `{"manifest":[{"download_url":{}}]}`, "invalid_json_body", "$.manifest[0].download_url"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files, err := ParseSizeQuery([]byte(tt.body))
			var r *Refusal
			if !errors.As(err, &r) || r.Status != 400 || r.Code != tt.code || files != nil {
				t.Fatalf("got %v, %v, want 400 %s", files, err, tt.code)
			}
			if tt.field != "" && (len(r.Issues) != 1 || r.Issues[0].Field != tt.field || r.Issues[0].Message == "") {
				t.Errorf("issues %v, want one of %s", r.Issues, tt.field)
			}
			if !json.Valid(AppendRefusal(nil, r)) {
				t.Error("the answer is no JSON")
			}
		})
	}
	t.Run("a body full of faults", func(t *testing.T) {
		body := `{"manifest":[` + strings.TrimSuffix(strings.Repeat("5,", 10_000), ",") + `]}`
		_, err := ParseSizeQuery([]byte(body))
		var r *Refusal
		if !errors.As(err, &r) || len(r.Issues) != maxFaults {
			t.Errorf("%v with %d issues, want %d", err, len(r.Issues), maxFaults)
		}
	})
}

// Sizes come from file_size, found by the object key within the address (protocol 1.9).
func TestAppendSizes(t *testing.T) {
	file := func(name, key string, size any) object {
		return object{"file_name": name, "file_hash": "h", "s3_path": key, "file_size": size}
	}
	s := scene{version: object{"manifest": []any{
		file("a", "orgs/o/apps/com.demo.app/delta/a", 100),
		file("b c", "orgs/o/apps/com.demo.app/delta/b c", 20),
		file("d", "orgs/o/apps/com.demo.app/delta/d%20e", 3),
		file("nothing", "orgs/o/apps/com.demo.app/delta/nothing", nil),
	}}}
	m := mustParse(t, s.document(t))

	// A client asks about what it was given.
	d := m.Decide(mustCheck(t, s.body(t)))
	offered := AppendResponse(nil, &d, testBase+"/prefix")
	files, err := ParseSizeQuery(offered)
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %v", files, err)
	}
	url := func(rest string) string { return testBase + FilesPath + rest }
	files = append(files,
		FileQuery{"stranger", "h", url("orgs/o/apps/com.demo.app/delta/stranger?key=1")},
		FileQuery{"no address", "h", ""},
		FileQuery{"another server", "h", "https://cdn.example/a"},
		FileQuery{"climbs", "h", url("orgs/o/apps/com.demo.app/x/../delta/a")},
		FileQuery{"without a query", "h", url("orgs/o/apps/com.demo.app/delta/a")},
		FileQuery{"\"\\\xff", "\n", "\x00"},
	)
	raw := AppendSizes([]byte("  "), files, m.Keys.Find)
	var got struct {
		TotalSize, KnownFiles, UnknownFiles int
		Files                               []map[string]any
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	if got.TotalSize != 223 || got.KnownFiles != 4 || got.UnknownFiles != 6 || len(got.Files) != len(files) {
		t.Errorf("totals %d %d %d of %d files", got.TotalSize, got.KnownFiles, got.UnknownFiles, len(got.Files))
	}
	want := []any{100.0, 20.0, 3.0, nil, nil, nil, nil, nil, 100.0, nil}
	for i, f := range got.Files {
		wantError := any("size_unknown")
		if want[i] != nil {
			wantError = nil
		}
		if f["size"] != want[i] || f["error"] != wantError || len(f) != 4 {
			t.Errorf("file %d: %v", i, f)
		}
		if i < 9 && (f["file_name"] != files[i].Name || f["file_hash"] != files[i].Hash || f["download_url"] != files[i].URL) {
			t.Errorf("file %d does not repeat the question: %v", i, f)
		}
	}
}

// A sum beyond what a number holds stays at its end.
func TestAppendSizesIsNeverNegative(t *testing.T) {
	files := []FileQuery{{URL: FilesPath + "k"}, {URL: FilesPath + "k"}, {URL: FilesPath + "k"}}
	got := AppendSizes(nil, files, func(string) (Object, bool) { return Object{Size: 1 << 62}, true })
	if want := `{"totalSize":9223372036854775807,`; !strings.HasPrefix(string(got), want) {
		t.Errorf("got %.60s, want %s", got, want)
	}
}

func TestAppendSizesOfNothing(t *testing.T) {
	got := AppendSizes(nil, nil, (&Keys{}).Find)
	if want := `{"totalSize":0,"knownFiles":0,"unknownFiles":0,"files":[]}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
