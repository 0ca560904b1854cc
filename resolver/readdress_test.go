package resolver

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const externalURL = `https://cdn.example/b.zip?x="1"&y=é\z`

// Computed without this package:
//
//	python3 -c 'import hashlib,sys; print(hashlib.sha256(sys.argv[1].encode()).hexdigest()[:32])' URL
func TestExternalKeyGolden(t *testing.T) {
	tests := []struct{ name, app, url, want string }{
		{"plain", "com.demo.app", "https://cdn.example/b.zip", "ext/com.demo.app/637d6e080fd3d3ecc4c1b3441783b3ef"},
		{"query", "com.demo.app", "https://cdn.example/b.zip?v=1", "ext/com.demo.app/133de9cd62906d2948556e558192235c"},
		{"no normal form", "com.demo.app", externalURL, "ext/com.demo.app/2cf9094f5f4318b6da04feb21b5fbb6a"},
		{"no text", "com.demo.app", "", "ext/com.demo.app/e3b0c44298fc1c149afbf4c8996fb924"},
		{"another app", "com.other.app", "https://cdn.example/b.zip", "ext/com.other.app/637d6e080fd3d3ecc4c1b3441783b3ef"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ExternalKey(tt.app, tt.url)
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if KeyFault(got) != "" || rowKeyFault([]byte(got)) == "" || AppOfKey(got) != tt.app {
				t.Errorf("key fault %q, row's fault %q, app %q", KeyFault(got), rowKeyFault([]byte(got)), AppOfKey(got))
			}
		})
	}
}

func TestExternal(t *testing.T) {
	const url = "https://cdn.example/b.zip"
	sum, _ := sha256Hex([]byte(testDigest))
	known := Object{SHA256: sum, Covers: DigestStored}
	tests := []struct {
		name    string
		version object
		url     string
		object  Object
		ok      bool
	}{
		{"in the storage", object{}, "", Object{}, false},
		{"plain", object{"external_url": url}, url, known, true},
		{"http", object{"external_url": "http://cdn.example"}, "http://cdn.example", known, true},
		{"nothing in the storage", object{"external_url": url, "r2_path": nil}, url, known, true},
		{"capitals", object{"external_url": url, "checksum": strings.ToUpper(testDigest)}, url, known, true},
		{"encrypted", object{"external_url": url, "session_key": "a:b"}, url, Object{}, true},
		{"CRC32", object{"external_url": url, "checksum": "cbf43926"}, url, Object{}, true},
		{"no checksum", object{"external_url": url, "checksum": nil}, url, Object{}, true},
		{"text that JSON and URLs escape", object{"external_url": externalURL}, externalURL, known, true},
		{"another scheme", object{"external_url": "ftp://cdn.example/b.zip"}, "", Object{}, false},
		{"scheme in capitals, which the answer refuses as well", object{"external_url": "HTTPS://cdn.example/b.zip"}, "", Object{}, false},
		{"empty", object{"external_url": ""}, "", Object{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := mustParse(t, scene{version: tt.version}.document(t))
			url, o, ok := m.channels[0].stable.External()
			if url != tt.url || o != tt.object || ok != tt.ok {
				t.Errorf("got %q, %+v, %t", url, o, ok)
			}
		})
	}
	if _, _, ok := builtinBundle.External(); ok {
		t.Error("the native bundle lies outside")
	}
}

// signed is a suffix that tells the key it is for.
func signed(dst []byte, key string) []byte {
	dst = append(dst, "&sig="...)
	return append(dst, strings.NewReplacer("/", ".", "%", "-", " ", "_").Replace(key)...)
}

// answerWith is the answer of the scene with a bundle readdressed in it.
func answerWith(t *testing.T, s scene, r Addresses) map[string]any {
	t.Helper()
	m := mustParse(t, s.document(t))
	d := m.Decide(mustCheck(t, s.body(t)))
	if d.Outcome != Offer {
		t.Fatalf("%s answers", d.Rule)
	}
	d.Bundle = d.Bundle.Readdress(m, r)
	return members(t, AppendResponse(nil, &d, testBase))
}

func TestReaddress(t *testing.T) {
	const mine = "orgs/o/apps/com.demo.app/"
	const ours = testBase + FilesPath
	file := func(key string) any { return object{"file_name": "f", "file_hash": "h", "s3_path": key} }
	key := ExternalKey(testApp, externalURL)
	idOfKey := strings.TrimPrefix(key, "ext/com.demo.app/")
	outside := object{"external_url": externalURL}
	type want struct {
		url   string
		files []string
	}
	tests := []struct {
		name    string
		version object
		app     object
		Addresses
		want
	}{
		{"nothing", object{}, nil, Addresses{}, want{ours + mine + "1.1.0.zip?key=" + testDigest, nil}},
		{"zip signed", object{}, nil, Addresses{Suffix: signed}, want{ours + mine + "1.1.0.zip?key=" + testDigest + "&sig=orgs.o.apps.com.demo.app.1.1.0.zip", nil}},
		{
			"zip and files signed",
			object{"checksum": "c", "manifest": []any{file("b"), file("a/é"), file("b")}},
			nil,
			Addresses{Suffix: signed},
			want{ours + mine + "1.1.0.zip?key=c&sig=orgs.o.apps.com.demo.app.1.1.0.zip", []string{
				ours + "b?key=1&app_id=com.demo.app&sig=b", ours + "a/%C3%A9?key=1&app_id=com.demo.app&sig=a.é", ours + "b?key=1&app_id=com.demo.app&sig=b",
			}},
		},
		{
			"the key as the storage has it",
			object{"checksum": "c", "r2_path": mine + "a b.zip", "manifest": []any{file(mine + "c%20d"), file(mine + "%41%")}},
			nil,
			Addresses{Suffix: signed},
			want{ours + mine + "a%20b.zip?key=c&sig=orgs.o.apps.com.demo.app.a_b.zip", []string{
				ours + mine + "c%20d?key=1&sig=orgs.o.apps.com.demo.app.c-20d", ours + mine + "%2541%25?key=1&sig=orgs.o.apps.com.demo.app.-41-",
			}},
		},
		{"files without a zip", object{"r2_path": nil, "manifest": []any{file(mine + "b")}}, nil, Addresses{Suffix: signed}, want{
			noZip, []string{ours + mine + "b?key=1&sig=orgs.o.apps.com.demo.app.b"},
		}},
		{"outside, as it is", outside, nil, Addresses{}, want{externalURL, nil}},
		{"outside, not signed", outside, nil, Addresses{Suffix: signed}, want{externalURL, nil}},
		{"proxied", outside, nil, Addresses{ExternalKey: key}, want{ours + key + "?key=" + testDigest, nil}},
		{"proxied, checksum of an encrypted bundle", outside.with(object{"checksum": "a+b/c=&d", "session_key": "x"}), nil, Addresses{ExternalKey: key}, want{ours + key + "?key=a%2Bb%2Fc%3D%26d", nil}},
		{"proxied, no checksum", outside.with(object{"checksum": nil}), nil, Addresses{ExternalKey: key}, want{ours + key + "?key=", nil}},
		{"proxied and signed", outside.with(object{"checksum": "c"}), nil, Addresses{key, signed}, want{ours + key + "?key=c&sig=ext.com.demo.app." + idOfKey, nil}},
		{"proxied, name with escapes", outside.with(object{"checksum": "c", "name": `a"\é`}), nil, Addresses{ExternalKey: key}, want{ours + key + "?key=c", nil}},
		{"proxied under another app", outside.with(object{"checksum": "c"}), nil, Addresses{ExternalKey: "ext/com.other.app/1"}, want{ours + "ext/com.other.app/1?key=c&app_id=com.demo.app", nil}},
		{
			"proxied, an odd app", outside.with(object{"checksum": "c"}),
			object{"app_id": "a%20b c"},
			Addresses{ExternalKey("a%20b c", ""), signed},
			want{ours + "ext/a%2520b%20c/e3b0c44298fc1c149afbf4c8996fb924?key=c&sig=ext.a-20b_c.e3b0c44298fc1c149afbf4c8996fb924", nil},
		},
		{
			"proxied, an app with escapes", outside.with(object{"checksum": "c"}),
			object{"app_id": "a%20b"},
			Addresses{ExternalKey("a%20b", ""), signed},
			want{ours + "ext/a%20b/e3b0c44298fc1c149afbf4c8996fb924?key=c&sig=ext.a-20b.e3b0c44298fc1c149afbf4c8996fb924", nil},
		},
		{"in the storage, nothing to proxy", object{}, nil, Addresses{ExternalKey: key}, want{ours + mine + "1.1.0.zip?key=" + testDigest, nil}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := scene{version: tt.version, app: tt.app, channel: object{"disable_auto_update": "none", "disable_auto_update_under_native": false}}
			before, got := answerWith(t, s, Addresses{}), answerWith(t, s, tt.Addresses)
			if got["url"] != tt.url {
				t.Errorf("url  %v\nwant %s", got["url"], tt.url)
			}
			var files []string
			list, _ := got["manifest"].([]any)
			for i, entry := range list {
				entry := entry.(map[string]any)
				files = append(files, entry["download_url"].(string))
				// Nothing else in the answer changes.
				entry["download_url"] = before["manifest"].([]any)[i].(map[string]any)["download_url"]
			}
			if diff := cmp.Diff(tt.files, files); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			got["url"] = before["url"]
			if diff := cmp.Diff(before, got); diff != "" {
				t.Errorf("more than addresses changed (-want +got):\n%s", diff)
			}
		})
	}
}

// A bundle that has nothing to change is given back as it is, and no other is ever changed itself.
func TestReaddressCopies(t *testing.T) {
	rows := map[string]scene{
		"zip":     {},
		"files":   {version: object{"manifest": []any{object{"file_name": "f", "file_hash": "h", "s3_path": "a%20b"}}}},
		"outside": {version: object{"external_url": externalURL}},
		"nothing": {version: object{"r2_path": nil}},
		"native":  {channel: object{"version": nil}},
	}
	all := Addresses{ExternalKey: ExternalKey(testApp, externalURL), Suffix: signed}
	tests := []struct {
		row, name string
		Addresses
		same bool
	}{
		{"zip", "nothing", Addresses{}, true},
		{"zip", "key", Addresses{ExternalKey: all.ExternalKey}, true},
		{"zip", "suffix", Addresses{Suffix: signed}, false},
		{"files", "suffix", Addresses{Suffix: signed}, false},
		{"files", "key", Addresses{ExternalKey: all.ExternalKey}, true},
		{"outside", "nothing", Addresses{}, true},
		{"outside", "suffix", Addresses{Suffix: signed}, true},
		{"outside", "key", Addresses{ExternalKey: all.ExternalKey}, false},
		{"outside", "both", all, false},
		{"nothing", "both", all, true},
		{"native", "both", all, true},
	}
	for _, tt := range tests {
		t.Run(tt.row+", "+tt.name, func(t *testing.T) {
			doc := rows[tt.row].document(t)
			m, untouched := mustParse(t, doc), mustParse(t, doc)
			b := m.channels[0].stable
			got := b.Readdress(m, tt.Addresses)
			if (got == b) != tt.same {
				t.Errorf("the bundle itself: %t, want %t", got == b, tt.same)
			}
			if !reflect.DeepEqual(m, untouched) {
				t.Error("the bundle of the manifest was changed")
			}
			// Only addresses differ: what asks about the bundle sees the same.
			url, o, ok := got.External()
			wantURL, want, wantOK := b.External()
			if url != wantURL || o != want || ok != wantOK || got.ID != b.ID || got.Name != b.Name || got.offerable() != b.offerable() {
				t.Errorf("the copy is %+v", got)
			}
			if diff := cmp.Diff(objectsOf(b, m), objectsOf(got, m)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			// Again, and back.
			if again := got.Readdress(m, tt.Addresses); !reflect.DeepEqual(again, got) {
				t.Errorf("readdressed twice it is %+v, want %+v", again, got)
			}
			if back := got.Readdress(m, Addresses{}); back != b {
				t.Error("without addresses it is not the bundle again")
			}
			if got.MemorySize() < b.MemorySize()-int64(len(externalURL)) {
				t.Errorf("the copy counts %d bytes, the bundle %d", got.MemorySize(), b.MemorySize())
			}
		})
	}
}

// Keys of escaped addresses are looked up. One that the given manifest does not name is told as it would be tried first.
func TestReaddressWithAnotherManifest(t *testing.T) {
	m := mustParse(t, scene{version: object{"r2_path": "a%20b"}}.document(t))
	other := mustParse(t, scene{}.document(t))
	for _, tt := range []struct {
		m    *Manifest
		want string
	}{{m, "a%20b"}, {other, "a b"}} {
		got := ""
		m.channels[0].stable.Readdress(tt.m, Addresses{Suffix: func(dst []byte, key string) []byte { got = key; return dst }})
		if got != tt.want {
			t.Errorf("key %q, want %q", got, tt.want)
		}
	}
}

// Suffixes need not be of one length.
func TestReaddressLengths(t *testing.T) {
	b, m := bundleOf(t, 50, true)
	d := m.Decide(mustCheck(t, scene{}.body(t)))
	plain := AppendResponse(nil, &d, testBase)
	for name, suffix := range map[string]string{"none": "", "short": "&s=1", "long": "&s=" + strings.Repeat("x", 500)} {
		calls := 0
		d.Bundle = b.Readdress(m, Addresses{Suffix: func(dst []byte, _ string) []byte {
			calls++
			return append(append(dst, '|'), suffix[:len(suffix)*(calls%7)/7]...)
		}})
		got := AppendResponse(nil, &d, testBase)
		if calls != 51 || bytes.Count(got, []byte("|")) != 51 {
			t.Errorf("%s: %d calls, %d suffixes", name, calls, bytes.Count(got, []byte("|")))
		}
		for i := range 8 {
			got = bytes.ReplaceAll(got, []byte("|"+suffix[:len(suffix)*i/7]+`"`), []byte(`"`))
		}
		if !bytes.Equal(got, plain) {
			t.Errorf("%s: without the suffixes the answer is %s", name, got)
		}
	}
}

// A copy is written in few pieces: it is kept, and made anew while requests wait for nothing.
func TestReaddressAllocations(t *testing.T) {
	b, m := bundleOf(t, 300, false)
	budget(t, "Readdress", 301+10, func() {
		b.Readdress(m, Addresses{Suffix: func(dst []byte, _ string) []byte { return append(dst, "&expires=1234567890&sig=0123456789abcdef"...) }})
	})
}

func BenchmarkReaddress(b *testing.B) {
	for name, escaped := range map[string]bool{"plain": false, "escaped": true} {
		bundle, m := bundleOf(b, 300, escaped)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				bundle.Readdress(m, Addresses{Suffix: func(dst []byte, _ string) []byte { return append(dst, "&expires=1234567890&sig=0123456789abcdef"...) }})
			}
		})
	}
}
