package resolver

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func mustUpstream(t testing.TB, base string, hosts ...string) *Upstream {
	t.Helper()
	u, err := NewUpstream(base, func(rawURL string) bool {
		for _, host := range hosts {
			if strings.HasPrefix(rawURL, "https://"+host+"/") || strings.HasPrefix(rawURL, "http://"+host+"/") {
				return true
			}
		}
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// learn compiles an answer as the edge in front of a server does.
func learn(t testing.TB, u *Upstream, body string) *Learned {
	t.Helper()
	a := ParseAnswer(200, []byte(body))
	return a.Compile(CompileOptions{
		Rewrite: func(i int, _ Address) (string, bool) {
			p, ok := u.Place(testApp, a, i)
			return p.Path, ok
		},
		DeviceID: testDevice, AddKind: true,
	})
}

// What a client sees with the edge is what it sees without, but for the addresses.
func TestLearnedAnswers(t *testing.T) {
	const ours = testBase + FilesPath
	tests := []struct {
		name, upstream string
		hosts          []string
		body, want     string
	}{
		{
			"official", "https://plugin.test/api", nil, officialOffer,
			strings.NewReplacer("https://plugin.test/api/files/read/attachments/", ours, "&device_id="+testDevice, "").Replace(officialOffer),
		},
		{
			"presigned", "https://lite.test",
			[]string{"b.s3.test"},
			liteOffer,
			strings.Replace(liteOffer, presigned, ours+"ext/com.demo.app/939a1513d092dc095cdd321eb6b1d12d?key="+testDigest, 1),
		},
		{"presigned, not allowed", "https://lite.test", nil, liteOffer, liteOffer},
		{
			"other names", "https://go.test", nil, goOffer,
			strings.Replace(goOffer, "https://go.test/b/7.zip", ours+"ext/com.demo.app/3cebec4f1f559e57215998776374c975?key=cbf43926", 1),
		},
		{
			"blanks and escapes", "http://127.0.0.1:3192", nil, pluginOffer,
			strings.NewReplacer(
				loopback+"b.zip", ours+"ext/com.demo.app/31049ddde0a8a4e89208101f1c4b6445?key=",
				`http:\/\/127.0.0.1:3192\/f\/a`, ours+"ext/com.demo.app/c8225dee57453cd548c8ba4bb75e992c?key=").Replace(pluginOffer),
		},
		{"kind added", "https://lite.test", nil, "{\"error\":\"no_new_version_available\" }\r\n", "{\"error\":\"no_new_version_available\" ,\"kind\":\"up_to_date\"}\r\n"},
		{"kind there", "https://lite.test", nil, `{"error":"no_new_version_available","kind":"odd"}`, `{"error":"no_new_version_available","kind":"odd"}`},
		{"kind null", "https://lite.test", nil, `{"kind": null,"error":"no_new_version_available"}`, `{"kind": "up_to_date","error":"no_new_version_available"}`},
		{"kind empty", "https://lite.test", nil, `{"error":"disable_device","kind":"" }`, `{"error":"disable_device","kind":"blocked" }`},
		{"kind null, of a code that says nothing of it", "https://lite.test", nil, `{"error":"odd","kind":null}`, `{"error":"odd","kind":null}`},
		{"code of another server", "https://lite.test", nil, `{"error":"below_min_native_build"}`, `{"error":"below_min_native_build"}`},
		{"placeholder", "https://404.capgo.app", nil, `{"version":"1","url":"` + noZip + `"}`, `{"version":"1","url":"` + noZip + `"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := learn(t, mustUpstream(t, tt.upstream, tt.hosts...), tt.body)
			if got := string(l.Append(nil, testBase)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// Of every kind of answer without addresses, or with none of them rewritten, the bytes are those of the server.
func TestUntouchedAnswersAreTheSameBytes(t *testing.T) {
	for _, tt := range upstreamAnswers {
		l := ParseAnswer(tt.status, []byte(tt.body)).Compile(CompileOptions{
			Rewrite: func(int, Address) (string, bool) { return `x"y`, true }, // must be escaped, so it is not taken
		})
		if got := string(l.Append(nil, testBase)); got != tt.body {
			t.Errorf("%s, %s: got %q, want %q", tt.server, tt.name, got, tt.body)
		}
	}
}

// An edge behind an edge hands on what the first one says.
func TestRewritingTwiceIsRewritingOnce(t *testing.T) {
	edge := mustUpstream(t, testBase)
	for _, tt := range []struct {
		upstream *Upstream
		body     string
	}{
		{mustUpstream(t, "https://plugin.test/api"), officialOffer},
		{mustUpstream(t, "https://lite.test", "b.s3.test"), liteOffer},
		{mustUpstream(t, "https://plugin.test/api"), strings.ReplaceAll(officialOffer, "apps/com.demo.app/", "")},
	} {
		once := learn(t, tt.upstream, tt.body)
		twice := learn(t, edge, string(once.Append(nil, testBase)))
		if a, b := string(once.Append(nil, testBase)), string(twice.Append(nil, testBase)); a != b || a == tt.body {
			t.Errorf("once  %s\ntwice %s", a, b)
		}
		if !SameAnswer(once, twice) {
			t.Error("they are not the same")
		}
	}
}

func TestSameAnswer(t *testing.T) {
	lite := func(u *Upstream, changes ...string) *Learned {
		return learn(t, u, strings.NewReplacer(changes...).Replace(liteOffer))
	}
	fetched, left := mustUpstream(t, "https://lite.test", "b.s3.test"), mustUpstream(t, "https://lite.test")
	fresh := []string{"030405Z", "040506Z", "=00ff", "=11ee"}
	tests := []struct {
		name string
		a, b *Learned
		want bool
	}{
		{"fresh signature, rewritten", lite(fetched), lite(fetched, fresh...), true},
		{"fresh signature, left", lite(left), lite(left, fresh...), true},
		{"rewritten and left", lite(fetched), lite(left), false},
		{"another path, left", lite(left), lite(left, "/o/", "/p/"), false},
		{"another path of the same bytes", lite(fetched), lite(fetched, "/o/", "/p/"), true},
		{"another checksum", lite(fetched), lite(fetched, "9d9d", "9d9e"), false},
		{"another version", lite(fetched), lite(fetched, `"1.0.1"`, `"1.0.2"`), false},
		{"blanks", lite(fetched), lite(fetched, `"version":`, `"version": `), false},
		{"device in the address", learn(t, left, docOffer[:len(docOffer)-2]+`?device_id=a"}`), learn(t, left, docOffer[:len(docOffer)-2]+`?device_id=b"}`), true},
		{"an offer and none", lite(fetched), learn(t, fetched, `{"error":"no_app"}`), false},
	}
	for _, tt := range tests {
		if got := SameAnswer(tt.a, tt.b); got != tt.want || (tt.a.Identity() == tt.b.Identity()) != tt.want {
			t.Errorf("%s: got %t", tt.name, got)
		}
	}
}

func TestLearnedFields(t *testing.T) {
	left := mustUpstream(t, "https://lite.test")
	tests := []struct {
		name, body  string
		keep        bool
		expires     int64
		namesDevice bool
		kind        string
	}{
		{"nothing ends", docOffer, true, 0, false, ""},
		{"presigned", liteOffer, true, 1767323045 + 3600, false, ""},
		{"the first end counts", `{"version":"1","url":"https://a/z?exp=2000","manifest":[{"download_url":"https://a/f?expires=1000"},{"download_url":"https://a/g"}]}`, true, 1000, false, ""},
		{"an end that is not told", `{"version":"1","url":"https://a/z?sig=x"}`, false, 0, false, ""},
		{"one is told", `{"version":"1","url":"https://a/z?sig=x&exp=2000","manifest":[{"download_url":"https://a/f?sig=x"}]}`, false, 2000, false, ""},
		{"device in an address", `{"version":"1","url":"https://a/z?device_id=` + testDevice + `"}`, true, 0, true, ""},
		{"device in capitals", `{"version":"1","url":"https://a/z","for":"` + strings.ToUpper(testDevice) + `"}`, true, 0, true, ""},
		{"device in an address that is rewritten", `{"version":"1","url":"https://lite.test/z?device_id=` + testDevice + `"}`, true, 0, false, ""},
		{"kind", `{"error":"disable_device"}`, true, 0, false, "blocked"},
		{"not kept", `{}`, false, 0, false, ""},
	}
	for _, tt := range tests {
		l := learn(t, left, tt.body)
		if l.Keep != tt.keep || l.Expires != tt.expires || l.NamesDevice != tt.namesDevice || l.Kind != tt.kind {
			t.Errorf("%s: keep %t, expires %d, names the device %t, kind %q", tt.name, l.Keep, l.Expires, l.NamesDevice, l.Kind)
		}
	}
}

// The kinds are those of the table of protocol 1.5.
func TestKindOfCodes(t *testing.T) {
	kinds := map[string]string{
		"up_to_date": "no_new_version_available already_on_builtin",
		"failed": "semver_error unsupported_plugin_version no_channel no_bundle misconfigured_channel " +
			"revert_to_builtin_plugin_version_too_old no_bundle_url",
		"blocked": "key_id_mismatch disabled_platform_ios disabled_platform_android disabled_platform_electron " +
			"disable_auto_update_to_major disable_auto_update_to_minor disable_auto_update_to_patch " +
			"disable_auto_update_to_metadata disable_auto_update_under_native disable_prod_build disable_dev_build " +
			"disable_device disable_emulator",
		"": "no_app unknown_version_build missing_info",
	}
	for kind, codes := range kinds {
		for code := range strings.FieldsSeq(codes) {
			l := ParseAnswer(200, []byte(`{"error":"`+code+`"}`)).Compile(CompileOptions{AddKind: true})
			if l.Kind != kind {
				t.Errorf("%s: got %q, want %q", code, l.Kind, kind)
			}
		}
	}
}

func TestOffersRunning(t *testing.T) {
	offer := learn(t, mustUpstream(t, "https://plugin.test/api"), officialOffer)
	tests := []struct {
		name   string
		l      *Learned
		change object
		want   bool
	}{
		{"another version", offer, nil, false},
		{"that version", offer, object{"version_name": "1.0.1"}, true},
		{"native version", offer, object{"version_name": "1.0.1", "version_build": "1.0.1"}, false},
		{"native bundle", offer, object{"version_name": "builtin", "version_build": "1.0.1"}, false},
		{"no offer", learn(t, mustUpstream(t, "https://plugin.test"), `{"error":"e","version":"1.0.1"}`), object{"version_name": "1.0.1"}, false},
	}
	for _, tt := range tests {
		if got := tt.l.OffersRunning(mustCheck(t, string(toJSON(t, plainCheck.with(tt.change))))); got != tt.want {
			t.Errorf("%s: got %t", tt.name, got)
		}
	}
}

func TestAppendUpToDate(t *testing.T) {
	d := scene{check: object{"version_name": "1.1.0"}}.decide(t)
	if got, want := string(AppendUpToDate(nil)), string(AppendResponse(nil, &d, testBase)); got != want || d.Outcome != UpToDate {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSuffixed(t *testing.T) {
	l := learn(t, mustUpstream(t, "https://plugin.test/api"), strings.Replace(officialOffer, "e0d1_index", "e0d1_a%20b%2525", 1))
	got := string(l.Suffixed(signed).Append(nil, testBase))
	for _, want := range []string{
		"1.0.1.zip?key=" + testDigest + `&sig=orgs.o.apps.com.demo.app.1.0.1.zip"`,
		`e0d1_a%20b%2525.html?key=101&sig=orgs.o.apps.com.demo.app.delta.e0d1_a_b-25.html"`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
	if bytes.Contains(l.Append(nil, testBase), []byte("&sig=")) {
		t.Error("the original changed")
	}
}

func TestLearnedCosts(t *testing.T) {
	l := learn(t, mustUpstream(t, "https://plugin.test/api"), officialOffer)
	if size := l.MemorySize(); size < int64(len(officialOffer)) || size > int64(len(officialOffer))+512 {
		t.Errorf("%d bytes of answer count %d", len(officialOffer), size)
	}
	dst := make([]byte, 0, 4096)
	budget(t, "Learned.Append", 0, func() { dst = l.Append(dst[:0], testBase) })
	budget(t, "AppendUpToDate", 0, func() { dst = AppendUpToDate(dst[:0]) })
	c, body := mustCheck(t, exampleBody), []byte(exampleBody)
	for _, foreign := range []bool{false, true} {
		f := mustKeyFields(t, foreign)
		budget(t, "AppendAnswerKey", 0, func() { dst = AppendAnswerKey(dst[:0], c, body, f) })
		budget(t, "AppendGroupKey", 0, func() { dst = AppendGroupKey(dst[:0], c, body, f) })
		budget(t, "Ambiguous", 0, func() { f.Ambiguous(body) })
	}
}

// officialOfFiles is an official offer with so many delta files.
func officialOfFiles(n int) string {
	var b strings.Builder
	b.WriteString(`{"version":"1.0.1","url":"` + officialZip + `","session_key":"","checksum":"` + testDigest + `","manifest":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"file_name":"assets/chunk-%d.js","file_hash":"%064x","download_url":"https://plugin.test/api/files/read/attachments/`+
			`orgs/o/apps/com.demo.app/delta/%064x_assets/chunk-%d.js?key=101&device_id=`+testDevice+`"}`, i, i, i, i)
	}
	b.WriteString(`]}`)
	return b.String()
}

func BenchmarkLearnedAppend(b *testing.B) {
	for _, files := range []int{1, 300} {
		b.Run(fmt.Sprintf("files=%d", files), func(b *testing.B) {
			l := learn(b, mustUpstream(b, "https://plugin.test/api"), officialOfFiles(files))
			dst := make([]byte, 0, 256<<10)
			b.ReportAllocs()
			for b.Loop() {
				dst = l.Append(dst[:0], "https://updates.example.com")
			}
		})
	}
}

func BenchmarkLearn(b *testing.B) {
	u := mustUpstream(b, "https://plugin.test/api")
	body := officialOfFiles(300)
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		learn(b, u, body)
	}
}
