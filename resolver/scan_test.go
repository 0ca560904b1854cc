package resolver

import "testing"

// scanBodies are of the plain form, nearly of it, and not of it.
var scanBodies = []string{
	exampleBody,
	`{}`, ` { } `, `{"a":"b"}`, `{"app_id":"a","app_id":"b"}`, "\t{\r\n\"a\" : null , \"b\":true,\"c\":false}\n",
	`{"a":1}`, `{"a":{}}`, `{"a":[]}`, `{"a":"\u0041"}`, `{"\u0061pp_id":"x"}`, `{"a":"é"}`, "{\"a\":\"\x01\"}", `{"a":"b",}`,
	`{"a":"b"} x`, `{"a":"b"}}`, `{"a" "b"}`, `{"a":tru}`, `{"a":truex}`, `{"a":nul`, `{"a":"b`, `{"a`, `{`, ``, ` `, `[]`, `"a"`, `null`,
	`{"is_prod":true,"is_prod":null}`, `{,"a":"b"}`, `{"a":}`, "{\"a\":\"b\"}\f", "\ufeff{}",
}

// checkScan holds the fast reading to the library's: where it claims a body, both find the same fields.
func checkScan(t *testing.T, body []byte) {
	t.Helper()
	var fast, slow CheckParser
	members, ok := fast.scan(string(body))
	if !ok {
		return
	}
	want, err := slow.decode(body, string(body))
	if err != nil {
		t.Fatalf("%q was taken for JSON", body)
	}
	if members != want || fast.fields != slow.fields {
		t.Fatalf("%q: %d members %+v, want %d members %+v", body, members, fast.fields, want, slow.fields)
	}
}

func TestScanReadsAsTheLibraryDoes(t *testing.T) {
	claimed := 0
	for _, body := range scanBodies {
		checkScan(t, []byte(body))
		if _, ok := new(CheckParser).scan(body); ok {
			claimed++
		}
	}
	if claimed < 5 {
		t.Errorf("only %d bodies were of the plain form", claimed)
	}
}

func FuzzScan(f *testing.F) {
	for _, body := range scanBodies {
		f.Add([]byte(body))
	}
	f.Fuzz(checkScan)
}

// BenchmarkParseCheckLibrary is BenchmarkParseCheck for a body that scan leaves to the library.
func BenchmarkParseCheckLibrary(b *testing.B) {
	var p CheckParser
	body := []byte(exampleBody[:len(exampleBody)-1] + `,"x":"\u0031"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Parse(body); err != nil {
			b.Fatal(err)
		}
	}
}
