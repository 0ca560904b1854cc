package resolver

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const (
	officialZip  = "https://plugin.test/api/files/read/attachments/orgs/o/apps/com.demo.app/1.0.1.zip?key=" + testDigest + "&device_id=" + testDevice
	officialFile = "https://plugin.test/api/files/read/attachments/orgs/o/apps/com.demo.app/delta/e0d1_index.html?key=101&device_id=" + testDevice

	officialOffer = `{"version":"1.0.1","url":"` + officialZip + `","session_key":"","checksum":"` + testDigest + `","manifest":[` +
		`{"file_name":"index.html","file_hash":"` + testDigest + `","download_url":"` + officialFile + `"}]}`

	presigned = "https://b.s3.test/o/1.0.1.zip?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F20260102%2Fauto%2Fs3%2Faws4_request" +
		"&X-Amz-Date=20260102T030405Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature=00ff&x-id=GetObject"
	liteOffer   = `{"version":"1.0.1","url":"` + presigned + `","checksum":"` + testDigest + `","session_key":""}`
	goOffer     = `{"version":"1.0.1","url":"https://go.test/b/7.zip","checksum":"cbf43926","sessionKey":"iv:k","signature":"s=="}`
	docOffer    = `{"version":"1.0.1","url":"https://cdn.test/1.0.1.zip"}`
	loopback    = "http://127.0.0.1:3192/"
	pluginOffer = "{\n  \"version\": \"1.0.1\",\n  \"session_key\": \"\",\n  \"url\": \"" + loopback + "b.zip\",\n  \"manifest\": [\n    { \"file_name\": \"a\\/\u00e9.js\", " +
		"\"file_hash\": \"" + testDigest + "\", \"download_url\": \"http:\\/\\/127.0.0.1:3192\\/f\\/a\" }\n  ]\n}\n"
)

// Each kind of server of protocol 7, with all that it answers.
var upstreamAnswers = []struct {
	server, name string
	status       int
	body         string
	want         AnswerClass
}{
	{"official", "update", 200, officialOffer, AnswerOffer},
	{"official", "delta list only, for an old plugin", 200, `{"version":"1.0.1","url":"` + noZip + `","session_key":"","checksum":null}`, AnswerOffer},
	{"official", "up to date", 200, `{"error":"no_new_version_available","message":"No new version available","kind":"up_to_date"}`, AnswerNoUpdate},
	{"official", "blocked", 200, `{"error":"disable_auto_update_to_major","message":"m","major":true,"version":"2.0.0","old":"1.0.0","kind":"blocked"}`, AnswerNoUpdate},
	{"official", "number too large", 200, `{"error":"semver_error","message":"Native version: ...","kind":"failed"}`, AnswerNoUpdate},
	{"official", "unknown app", 429, `{"error":"on_premise_app","message":"On-premise app detected"}`, AnswerRefused},
	{"official", "unknown app, no message", 429, `{"error":"on_premise_app"}`, AnswerRefused},
	{"official", "throttled by the operator", 429, `{"error":"too_many_requests","message":"Too many requests","moreInfo":{"app_id":"com.demo.app"}}`, AnswerThrottled},
	{"official", "the edge's address", 200, `{"error":"provider_infrastructure_request_blocked","message":"m","provider":"google","kind":"blocked"}`, AnswerOwnAddress},
	{"official", "no JSON was sent", 400, `{"error":"invalid_json_parse_body","message":"Invalid JSON body","moreInfo":{}}`, AnswerClientError},
	{"official", "no device", 400, `{"error":"missing_device_id","message":"Cannot find device_id"}`, AnswerClientError},
	{"official", "no app", 400, `{"error":"missing_app_id","message":"Cannot find app_id"}`, AnswerClientError},
	{"official", "native version", 400, `{"error":"semver_error","message":"Native version: ...","moreInfo":{"version_build":"x"}}`, AnswerClientError},
	{"official", "schema", 400, `{"error":"invalid_json_body","message":"Cannot parse body","moreInfo":{"parseResult":[]}}`, AnswerClientError},
	{"official", "broken", 500, `{"error":"unknown_error","message":"Unknown error","moreInfo":{}}`, AnswerOutage},
	{"official", "broken, with a code of another class", 503, `{"error":"on_premise_app"}`, AnswerOutage},
	{"official", "no such path", 404, `{"error":"not_found","message":"Not found"}`, AnswerUnknown},
	{"capgo-update-lite", "update", 200, liteOffer, AnswerOffer},
	{"capgo-update-lite", "up to date", 200, `{"error":"no_new_version_available","message":"No new version available"}`, AnswerNoUpdate},
	{"capgo-update-lite", "floor", 200, `{"error":"below_min_native_build","message":"m","min_required":"2.0.0","current":"1.0.0"}`, AnswerNoUpdate},
	{"capgo-update-lite", "no app", 200, `{"error":"no_app","message":"m"}`, AnswerNoUpdate},
	{"capgo-update-lite", "native version", 200, `{"error":"invalid_version_build","message":"m"}`, AnswerNoUpdate},
	{"capgo-update-lite", "misconfigured", 200, `{"error":"server_misconfigured","message":"m"}`, AnswerNoUpdate},
	{"capgo-update-lite", "request", 200, `{"error":"invalid_request","message":"m"}`, AnswerClientError},
	{"capgo-server", "update", 200, goOffer, AnswerOffer},
	{"capgo-server", "builtin", 200, `{"version":"builtin","url":"https://go.test/builtin.zip","checksum":"0"}`, AnswerOffer},
	{"capgo-server", "throttled", 429, ``, AnswerRefused},
	{"capgo-server", "error", 400, `{"error":"Key: 'AppID' failed on the 'required' tag"}`, AnswerUnknown},
	{"capgo-server", "error", 500, `{"error":"sql: no rows"}`, AnswerOutage},
	{"capgo-server", "an old error as 200", 200, `{"error":"on_premise_app"}`, AnswerRefused},
	{"documentation", "update", 200, docOffer, AnswerOffer},
	{"documentation", "up to date", 200, `{"message":"No new version","error":"no_new_version_available"}`, AnswerNoUpdate},
	{"documentation", "store", 200, `{"message":"store_update_required","breaking":true}`, AnswerUnknown},
	{"test server", "update", 200, pluginOffer, AnswerOffer},
	{"test server", "back to the native bundle", 200, `{"version":"builtin"}`, AnswerOffer},
	{"test server", "up to date", 200, `{"kind":"up_to_date","error":"no_new_version_available","message":"m"}`, AnswerNoUpdate},
	{"any", "kind alone", 200, `{"kind":"blocked"}`, AnswerNoUpdate},
	{"any", "delta list alone", 200, `{"version":"2","manifest":[]}`, AnswerOffer},
	{"any", "entries that lack something", 200, `{"version":"2","manifest":[{},{"file_name":"a"},{"download_url":null}]}`, AnswerOffer},
	{"any", "empty", 200, ``, AnswerOutage},
	{"any", "blank", 200, " \n", AnswerOutage},
	{"any", "HTML", 200, `<html></html>`, AnswerOutage},
	{"any", "cut", 200, `{"version":"1.0.1","url":"h`, AnswerOutage},
	{"any", "two objects", 200, docOffer + docOffer, AnswerOutage},
	{"any", "HTML of a gateway", 502, `<html></html>`, AnswerOutage},
	{"any", "HTML of a limiter", 429, `<html></html>`, AnswerThrottled},
	{"any", "429 with blanks", 429, " \r\n", AnswerRefused},
	{"any", "429 with another code", 429, `{"error":"slow_down"}`, AnswerThrottled},
	{"any", "429 with an offer", 429, docOffer, AnswerThrottled},
	{"any", "429 for the edge's address", 429, `{"error":"provider_infrastructure_request_blocked"}`, AnswerOwnAddress},
	{"any", "throttled as 200", 200, `{"error":"too_many_requests"}`, AnswerThrottled},
	{"any", "firewall", 403, `<html></html>`, AnswerUnknown},
	{"any", "nothing", 204, ``, AnswerUnknown},
	{"any", "redirect", 302, ``, AnswerUnknown},
	{"any", "an update with another status", 201, docOffer, AnswerUnknown},
	{"any", "list", 200, `[]`, AnswerUnknown},
	{"any", "null", 200, ` null `, AnswerUnknown},
	{"any", "text", 200, `"ok"`, AnswerUnknown},
	{"any", "no members", 200, `{}`, AnswerUnknown},
	{"any", "version alone", 200, `{"version":"1.0.1"}`, AnswerUnknown},
	{"any", "no url", 200, `{"version":"1.0.1","url":null}`, AnswerUnknown},
	{"any", "empty url", 200, `{"version":"1.0.1","url":""}`, AnswerUnknown},
	{"any", "no version", 200, `{"url":"https://cdn.test/1.0.1.zip"}`, AnswerUnknown},
	{"any", "error null, which not every client ignores", 200, `{"error":null,"version":"1","url":"https://cdn.test/1"}`, AnswerUnknown},
	{"any", "error empty", 200, `{"error":"","kind":""}`, AnswerUnknown},
	{"any", "error of another type", 200, `{"error":{"code":1}}`, AnswerUnknown},
	{"any", "version is a number", 200, `{"version":1,"url":"https://cdn.test/1"}`, AnswerUnknown},
	{"any", "twice", 200, `{"version":"1","version":"2","url":"https://cdn.test/1"}`, AnswerUnknown},
	{"any", "twice, once with escapes", 200, `{"version":"1","url":"https://cdn.test/1","\u0075rl":"https://cdn.test/1"}`, AnswerUnknown},
	{"any", "address twice in a file", 200, `{"version":"1","manifest":[{"download_url":"a","download_url":"b"}]}`, AnswerUnknown},
	{"any", "files are no list", 200, `{"version":"1","url":"https://cdn.test/1","manifest":{}}`, AnswerUnknown},
	{"any", "a file is no object", 200, `{"version":"1","url":"https://cdn.test/1","manifest":[1]}`, AnswerUnknown},
	{"any", "a hash is no text", 200, `{"version":"1","manifest":[{"file_hash":1}]}`, AnswerUnknown},
}

func TestAnswerClasses(t *testing.T) {
	seen := map[AnswerClass]bool{}
	for _, tt := range upstreamAnswers {
		t.Run(tt.server+"/"+tt.name, func(t *testing.T) {
			a := ParseAnswer(tt.status, []byte(tt.body))
			seen[a.Class] = true
			if a.Class != tt.want {
				t.Errorf("got %s, want %s", a.Class, tt.want)
			}
			if keep := a.Compile(CompileOptions{}).Keep; keep && a.Class != AnswerOffer && a.Class != AnswerNoUpdate {
				t.Errorf("%s is kept", a.Class)
			}
		})
	}
	for class := range AnswerClasses {
		if !seen[class] {
			t.Errorf("no case of %s", class)
		}
	}
}

func TestAnswerFields(t *testing.T) {
	tests := []struct {
		name, body string
		want       Answer
		addresses  []Address
	}{
		{
			"official", officialOffer,
			Answer{Version: "1.0.1", Checksum: testDigest},
			[]Address{{URL: officialZip, Zip: true}, {URL: officialFile, FileName: "index.html", FileHash: testDigest}},
		},
		{
			"other names", goOffer,
			Answer{Version: "1.0.1", Checksum: "cbf43926", SessionKey: "iv:k"},
			[]Address{{URL: "https://go.test/b/7.zip", Zip: true}},
		},
		{
			"escapes", pluginOffer,
			Answer{Version: "1.0.1"},
			[]Address{{URL: loopback + "b.zip", Zip: true}, {URL: loopback + "f/a", FileName: "a/é.js", FileHash: testDigest}},
		},
		{
			"placeholder", `{"version":"1","url":"` + noZip + `","manifest":[{"download_url":"u"}]}`,
			Answer{Version: "1"},
			[]Address{{URL: "u"}},
		},
		{"no update", `{"error":"e","kind":"k","version":"2","url":"u"}`, Answer{Code: "e", Kind: "k", Version: "2"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := ParseAnswer(200, []byte(tt.body))
			got := Answer{Code: a.Code, Kind: a.Kind, Version: a.Version, Checksum: a.Checksum, SessionKey: a.SessionKey}
			same := cmp.AllowUnexported(Answer{}, Address{}, span{})
			if diff := cmp.Diff(tt.want, got, same); diff != "" {
				t.Error(diff)
			}
			for i := range a.Addresses {
				a.Addresses[i].at = span{}
			}
			if diff := cmp.Diff(tt.addresses, a.Addresses, same); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// everywhere rewrites each address to a key of its own.
func everywhere(i int, _ Address) (string, bool) {
	return "ext/com.demo.app/" + strings.Repeat("0", i+1) + "?key=", true
}

func FuzzParseAnswer(f *testing.F) {
	for _, tt := range upstreamAnswers {
		f.Add(tt.status, []byte(tt.body))
	}
	f.Add(200, []byte("{\"version\":\"\xff\",\"url\":\"\\ud800\",\"manifest\":[ {\"download_url\":\"\\u0022\"} ] }\n"))
	upstream, err := NewUpstream("https://plugin.test/api", func(string) bool { return true })
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		a := ParseAnswer(status, bytes.Clone(body))
		if a.Class >= AnswerClasses {
			t.Fatal(a.Class)
		}
		if (a.Class == AnswerOffer || a.Class == AnswerNoUpdate) && !json.Valid(body) {
			t.Fatalf("%s, and yet no JSON", a.Class)
		}
		if blank := len(bytes.TrimSpace(body)) == 0; a.Class == AnswerRefused && a.Code != codeOnPremise && (status != 429 || !blank) {
			t.Fatalf("status %d and %q refuse the app", status, body)
		}
		if as := a.Compile(CompileOptions{}).Append(nil, testBase); !bytes.Equal(as, body) {
			t.Fatalf("unchanged, it is %q", as)
		}
		place := func(i int, _ Address) (string, bool) {
			p, ok := upstream.Place(testApp, a, i)
			if ok && (KeyFault(p.Key) != "" || !slices.Contains(KeysOfPath(beforeQuery(p.Path)), p.Key) || !isAddressText(p.Path)) {
				t.Fatalf("placement %+v", p)
			}
			return p.Path, ok
		}
		for _, rewrite := range []func(int, Address) (string, bool){everywhere, place} {
			l := a.Compile(CompileOptions{Rewrite: rewrite, AddKind: true, DeviceID: testDevice})
			out := l.Append(nil, testBase)
			if json.Valid(body) && !json.Valid(out) || utf8.Valid(body) && !utf8.Valid(out) {
				t.Fatalf("no JSON: %q", out)
			}
			again := ParseAnswer(status, out)
			if again.Class != a.Class || len(again.Addresses) != len(a.Addresses) || again.Version != a.Version || again.Code != a.Code || again.Kind != l.Kind {
				t.Fatalf("%q is read as %+v, was %+v", out, again, a)
			}
			if !SameAnswer(l, ParseAnswer(status, body).Compile(CompileOptions{Rewrite: rewrite, AddKind: true})) {
				t.Fatal("the same answer is another")
			}
			signed := l.Suffixed(signed)
			if out := signed.Append(nil, testBase); json.Valid(body) && !json.Valid(out) {
				t.Fatalf("signed, it is no JSON: %q", out)
			}
		}
	})
}

func beforeQuery(path string) string {
	path, _, _ = strings.Cut(path, "?")
	return path
}
