package resolver

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNewUpstreamFaults(t *testing.T) {
	for _, base := range []string{"", "plugin.test", "/functions/v1", "ftp://plugin.test", "https://", "https://user:secret@\x7f"} {
		_, err := NewUpstream(base, nil)
		if err == nil {
			t.Errorf("%q is accepted", base)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q tells %v", base, err)
		}
	}
}

// A server may tell all bundles of a version apart by a token alone.
func TestPlaceByToken(t *testing.T) {
	u := mustUpstream(t, "https://plugin.test")
	place := func(checksum, claims string) string {
		t.Helper()
		a := &Answer{Version: "2.0.0", Checksum: checksum, Addresses: []Address{{URL: "https://plugin.test/download?token=" + jwt(claims), Zip: true}}}
		p, ok := u.Place(testApp, a, 0)
		if !ok {
			t.Fatal("no place")
		}
		return p.Key
	}
	const ios, android = `{"file":"ios/2.zip","exp":1900000000}`, `{"file":"android/2.zip","exp":1900000000}`
	if place("", ios) == place("", android) || place("0123abcd", ios) == place("0123abcd", android) {
		t.Error("the bundles of two platforms have one place")
	}
	if place("", ios) != place("", `{"file":"ios/2.zip","exp":1900000060}`) {
		t.Error("a bundle moves with each token")
	}
	if place(testDigest, ios) != place(testDigest, android) {
		t.Error("the same bytes have two places")
	}
}

// The ids were computed without this package: the first 16 bytes of SHA-256 over the parts, each with its length as an
// unsigned varint before it. The parts are the kind, the digest and the session key and, with a digest of less than 64
// characters, the version and the stable form of the address.
func TestPlace(t *testing.T) {
	const (
		sum     = testDigest
		plain   = "939a1513d092dc095cdd321eb6b1d12d" // zip, sum, ""
		crypted = "d7e2125e313f651e5644d0cb4d2fca8d" // zip, sum, iv:k
		byURL   = "7424c836f24f7502b0d345fd5140751d" // zip, "", "", 1.0.1, https://cdn.test/1.0.1.zip
		byQuery = "a76fd8e315c1fd43ed6e712041590deb" // the same with ?id=7
		file    = "c8225dee57453cd548c8ba4bb75e992c" // file, sum, ""
		fileBr  = "98f363f6bcc6faa335b3702f222f51ef" // file.br, sum, ""
		weak    = "b444b7d00dd6d51790237da89c50ae8d" // file, h, "", 1.0.1, https://cdn.test/f
		own     = "https://plugin.test/v1/files/read/attachments/"
		mine    = "orgs/o/apps/com.demo.app/"
		ext     = "ext/com.demo.app/"
	)
	digest, _ := sha256Hex([]byte(sum))
	stored, decoded := Object{SHA256: digest, Covers: DigestStored}, Object{SHA256: digest, Covers: DigestDecoded}
	zip := func(url string) Address { return Address{URL: url, Zip: true} }
	delta := func(url, name string) Address { return Address{URL: url, FileName: name, FileHash: sum} }
	tests := []struct {
		name    string
		answer  Answer
		address Address
		want    Placement // Key may be left out where it is that of Path
		ok      bool
	}{
		// Below the upstream's own files.
		{"own zip", Answer{Checksum: sum}, zip(own + mine + "1.zip?key=c&device_id=d"), Placement{Path: mine + "1.zip?key=c", Fetch: own + mine + "1.zip?key=c", Known: stored}, true},
		{"own file", Answer{}, delta(own+mine+"delta/x_a.js?device_id=d&key=101#f", "a.js"), Placement{Path: mine + "delta/x_a.js?key=101", Fetch: own + mine + "delta/x_a.js?key=101", Known: stored}, true},
		{"other parameters stay at the upstream", Answer{}, zip(own + mine + "1.zip?t=1&key=c"), Placement{Path: mine + "1.zip?key=c", Fetch: own + mine + "1.zip?t=1&key=c"}, true},
		{"no key", Answer{}, zip(own + mine + "1.zip"), Placement{Path: mine + "1.zip?key=", Fetch: own + mine + "1.zip"}, true},
		{"no key but a checksum", Answer{Checksum: "a+b/c="}, zip(own + mine + "1.zip"), Placement{Path: mine + "1.zip?key=a%2Bb%2Fc%3D", Fetch: own + mine + "1.zip"}, true},
		{"odd key", Answer{}, zip(own + mine + `1.zip?key="é`), Placement{Path: mine + "1.zip?key=%22%C3%A9", Fetch: own + mine + `1.zip?key="é`}, true},
		{"escapes", Answer{}, delta(own+mine+"delta/x_a%20b%2525.js?key=1", "a b%25.js"), Placement{Key: mine + "delta/x_a b%25.js", Path: mine + "delta/x_a%20b%2525.js?key=1", Fetch: own + mine + "delta/x_a%20b%2525.js?key=1", Known: stored}, true},
		{"not escaped", Answer{}, zip(own + mine + "é[1] .zip?key=1"), Placement{Key: mine + "é[1] .zip", Path: mine + "%C3%A9%5B1%5D%20.zip?key=1", Fetch: own + mine + "é[1] .zip?key=1"}, true},
		{"key of another app", Answer{}, zip(own + "orgs/o/apps/com.other.app/1.zip?key=c"), Placement{Path: "orgs/o/apps/com.other.app/1.zip?key=c&app_id=com.demo.app", Fetch: own + "orgs/o/apps/com.other.app/1.zip?key=c"}, true},
		{"key of no app", Answer{}, zip(own + "1.zip?key=c"), Placement{Path: "1.zip?key=c&app_id=com.demo.app", Fetch: own + "1.zip?key=c"}, true},
		{"host in capitals, port told", Answer{}, zip("HTTPS://PLUGIN.test:443/v1/files/read/attachments/" + mine + "1.zip"), Placement{Path: mine + "1.zip?key=", Fetch: "HTTPS://PLUGIN.test:443/v1/files/read/attachments/" + mine + "1.zip"}, true},
		{"own, but another edge's name space", Answer{Checksum: sum}, zip(own + ext + "00?key=c"), Placement{Path: ext + plain + "?key=c", Fetch: own + ext + "00?key=c", Known: stored}, true},
		{"own, but another edge's name space in escapes", Answer{Checksum: sum}, zip(own + "%65xt/a/00?key=c"), Placement{Path: ext + plain + "?key=c", Fetch: own + "%65xt/a/00?key=c", Known: stored}, true},
		{"own, but no key", Answer{Checksum: sum}, zip(own + "a/../b?key=c"), Placement{Path: ext + plain + "?key=c", Fetch: own + "a/../b?key=c", Known: stored}, true},
		{"own, but beside its files", Answer{Checksum: sum}, zip("https://plugin.test/files/read/attachments/" + mine + "1.zip"), Placement{Path: ext + plain + "?key=" + sum, Fetch: "https://plugin.test/files/read/attachments/" + mine + "1.zip", Known: stored}, true},

		// Elsewhere.
		{"presigned", Answer{Checksum: sum}, zip("https://cdn.test/1?X-Amz-Signature=a&X-Amz-Date=b&device_id=d"), Placement{Path: ext + plain + "?key=" + sum, Fetch: "https://cdn.test/1?X-Amz-Signature=a&X-Amz-Date=b&device_id=d", Known: stored}, true},
		{"the same bytes elsewhere", Answer{Checksum: sum, Version: "2"}, zip("https://cdn.test/2"), Placement{Path: ext + plain + "?key=" + sum, Fetch: "https://cdn.test/2", Known: stored}, true},
		{"encrypted", Answer{Checksum: sum, SessionKey: "iv:k"}, zip("https://cdn.test/1"), Placement{Path: ext + crypted + "?key=" + sum, Fetch: "https://cdn.test/1"}, true},
		{"no checksum", Answer{Version: "1.0.1"}, zip("https://cdn.test/1.0.1.zip?device_id=d"), Placement{Path: ext + byURL + "?key=", Fetch: "https://cdn.test/1.0.1.zip"}, true},
		{"no checksum, signed", Answer{Version: "1.0.1"}, zip("https://cdn.test/1.0.1.zip?Expires=1&Signature=s"), Placement{Path: ext + byURL + "?key=", Fetch: "https://cdn.test/1.0.1.zip?Expires=1&Signature=s"}, true},
		{"no checksum, the query tells", Answer{Version: "1.0.1"}, zip("https://cdn.test/1.0.1.zip?id=7&sig=s"), Placement{Path: ext + byQuery + "?key=", Fetch: "https://cdn.test/1.0.1.zip?id=7&sig=s"}, true},
		{"file", Answer{}, delta("https://cdn.test/f?key=7", "a.js"), Placement{Path: ext + file + "?key=7", Fetch: "https://cdn.test/f?key=7", Known: stored}, true},
		{"file of another name", Answer{}, delta("https://cdn.test/g", "b.js"), Placement{Path: ext + file + "?key=", Fetch: "https://cdn.test/g", Known: stored}, true},
		{"compressed file", Answer{}, delta("https://cdn.test/f", "a.js.br"), Placement{Path: ext + fileBr + "?key=", Fetch: "https://cdn.test/f", Known: decoded}, true},
		{"compressed at the server, clients do not decode it", Answer{}, delta("https://cdn.test/f.br", "a.js"), Placement{Path: ext + file + "?key=", Fetch: "https://cdn.test/f.br"}, true},
		{"file with a weak hash", Answer{Version: "1.0.1"}, Address{URL: "https://cdn.test/f", FileName: "a", FileHash: "h"}, Placement{Path: ext + weak + "?key=", Fetch: "https://cdn.test/f"}, true},

		// Not fetched.
		{"not allowed", Answer{Checksum: sum}, zip("https://other.test/1.zip"), Placement{}, false},
		{"the upstream's name, another scheme", Answer{}, zip("http://plugin.test/v1/files/read/attachments/a"), Placement{}, false},
		{"the upstream's name, another port", Answer{}, zip("https://plugin.test:8443/v1/files/read/attachments/a"), Placement{}, false},
		{"password", Answer{}, zip("https://u:p@plugin.test/a"), Placement{}, false},
		{"another scheme", Answer{}, zip("ftp://plugin.test/a"), Placement{}, false},
		{"relative", Answer{}, zip("/v1/files/read/attachments/a"), Placement{}, false},
		{"no address", Answer{}, zip("https://plugin.test/%zz"), Placement{}, false},
		{"blank in the query", Answer{}, zip("https://plugin.test/a?b c"), Placement{}, false},
	}
	u := mustUpstream(t, "https://plugin.test/v1/", "cdn.test")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.answer.Addresses = []Address{tt.address}
			got, ok := u.Place(testApp, &tt.answer, 0)
			if tt.want.Key == "" {
				tt.want.Key = beforeQuery(tt.want.Path)
			}
			if diff := cmp.Diff(tt.want, got); tt.ok && diff != "" || ok != tt.ok {
				t.Errorf("ok %t, %s", ok, diff)
			}
			if !ok {
				return
			}
			if KeyFault(got.Key) != "" || KeysOfPath(beforeQuery(got.Path))[0] != got.Key {
				t.Errorf("key fault %q, the path stands for %q", KeyFault(got.Key), KeysOfPath(beforeQuery(got.Path)))
			}
			if app, told := AppOfKey(got.Key), strings.HasSuffix(got.Path, "&app_id="+testApp); (app == testApp) == told {
				t.Errorf("the key is of %q, and yet told is %t", app, told)
			}
		})
	}
	if _, ok := mustUpstream(t, "https://plugin.test").Place(testApp, &Answer{Addresses: []Address{zip("https://cdn.test/1")}}, 0); ok {
		t.Error("nothing was allowed")
	}
}
