package resolver

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// keyAt is one row that names a key: a zip, or a delta file of a version.
type keyAt struct {
	key, digest string
	zip         bool
	more        object // changes of the version
}

// twinDocument has a version for each row.
func twinDocument(t testing.TB, rows ...keyAt) []byte {
	t.Helper()
	var versions []any
	for i, row := range rows {
		v := object{"id": i + 1, "name": "1.0." + string(rune('0'+i))}
		if row.zip {
			v = v.with(object{"r2_path": row.key, "checksum": row.digest})
		} else {
			v = v.with(object{"manifest": []any{object{"file_name": "f", "file_hash": row.digest, "s3_path": row.key}}})
		}
		versions = append(versions, v.with(row.more))
	}
	return toJSON(t, object{"app": object{"app_id": testApp}, "versions": versions})
}

// No address may mean two objects: the edge looks for the decoded key first, and would send its bytes for the other.
func TestTwoKeysOfOneAddress(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	const zip0, zip1, file0, file1 = "$.versions[0].r2_path", "$.versions[1].r2_path", "$.versions[0].manifest[0].s3_path", "$.versions[1].manifest[0].s3_path"
	zip := func(key, digest string) keyAt { return keyAt{key, digest, true, nil} }
	file := func(key, digest string) keyAt { return keyAt{key, digest, false, nil} }
	encrypted := func(row keyAt) keyAt { row.more = object{"session_key": "a:b"}; return row }
	content := "orgs/o/apps/com.demo_app/delta/" + a
	tests := []struct {
		name string
		rows []keyAt
		want []string // places of faults
	}{
		{"zips", []keyAt{zip("o/a b.zip", a), zip("o/a%20b.zip", b)}, []string{zip1}},
		{"zips, escaped first", []keyAt{zip("o/a%20b.zip", b), zip("o/a b.zip", a)}, []string{zip0}},
		{"zips of one content", []keyAt{zip("o/a b.zip", a), zip("o/a%20b.zip", a)}, nil},
		{"zips of unknown content", []keyAt{zip("o/a b.zip", "c"), zip("o/a%20b.zip", "c")}, []string{zip1}},
		{"zips, one unknown", []keyAt{zip("o/a b.zip", a), zip("o/a%20b.zip", "")}, []string{zip1}},
		{"a needless escape", []keyAt{zip("o/A.zip", a), zip("o/%41.zip", b)}, []string{zip1}},
		{"an escaped escape", []keyAt{zip("o/a%20b", a), zip("o/a%2520b", b)}, []string{zip1}},
		{"an escaped slash", []keyAt{zip("o/a/b", a), zip("o/a%2Fb", b)}, []string{zip1}},
		{"three in a chain", []keyAt{zip("o/a b", a), zip("o/a%20b", b), zip("o/a%2520b", a)}, []string{zip1, "$.versions[2].r2_path"}},
		{"one key twice", []keyAt{zip("o/a%20b", a), zip("o/a%20b", b)}, nil},
		{"keys that only look alike", []keyAt{zip("o/a b.zip", a), zip("o/a%20B.zip", b), zip("o/a+b.zip", b)}, nil},
		{"escaped in full, as it is no path", []keyAt{zip("o/a b c", a), zip("o/a%20b c", b)}, nil},
		{"no escape", []keyAt{zip("o/100%", a), zip("o/100%25", b)}, []string{zip1}},

		{"files", []keyAt{file("o/a b", a), file("o/a%20b", b)}, []string{file1}},
		{"files of one content", []keyAt{file("o/a b", a), file("o/a%20b", a)}, nil},
		{"files of two uploads", []keyAt{file(content+"_img/a b", a), file(content+"_img/a%20b", a)}, nil},
		{"files of two uploads, encrypted", []keyAt{encrypted(file(content+"_img/a b", "x")), encrypted(file(content+"_img/a%20b", "x"))}, nil},
		{"files encrypted, of other names", []keyAt{encrypted(file("o/img_a b", "x")), encrypted(file("o/img_a%20b", "x"))}, []string{file1}},
		{"files whose names lie", []keyAt{file(content+"_a%20b", a), file(content+"_a b", b)}, []string{file0}},
		{"files, the hash behind the escape", []keyAt{encrypted(file("o/a b/"+a+"_c", "x")), encrypted(file("o/a%20b/"+a+"_c", "x"))}, []string{file1}},
		{"files, one decoded", []keyAt{file("o/a b.br", a), file("o/a%20b.br", a)}, nil},
		{"a zip and a file", []keyAt{zip("o/a b", a), file("o/a%20b", b)}, []string{file1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := twinDocument(t, tt.rows...)
			if tt.want == nil {
				mustParse(t, doc)
				return
			}
			var want []Fault
			for _, path := range tt.want {
				want = append(want, Fault{path, "has the address of another key, the one it decodes to"})
			}
			if diff := cmp.Diff(want, faultsOf(t, string(doc))); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}
