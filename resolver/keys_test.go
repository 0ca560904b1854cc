package resolver

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKeyFault(t *testing.T) {
	tests := []struct {
		name, key string
		want      string // part of the fault; "" if there is none
	}{
		{"zip", "orgs/o/apps/com.demo.app/1.0.0.zip", ""},
		{"one segment", "a", ""},
		{"longest", strings.Repeat("k", 1024), ""},
		{"longest in bytes", strings.Repeat("é", 512), ""},
		{"dots within a segment", "a/b..c/..d/e../...", ""},
		{"hidden file", "a/.well-known", ""},
		{"space, query and hash", "a b?c#d", ""},
		{"escapes are letters like others", "a/%20/%41%2f/b", ""},
		{"escaped dots within a segment", "a/%2e%2eb/%2e%2e%2e/c%2e", ""},
		{"half an escape", "a/%2/b%", ""},
		{"slash at the end", "a/", ""},
		{"empty", "", "empty"},
		{"too long", strings.Repeat("k", 1025), "1024"},
		{"too long in bytes", strings.Repeat("é", 513), "1024"},
		{"NUL", "a\x00b", "NUL"},
		{"NUL first", "\x00", "NUL"},
		{"backslash", `a\b`, `\`},
		{"backslash first", `\a`, `\`},
		{"backslashes that climb", `a\..\b`, `\`},
		{"slash at the start", "/a", "start with /"},
		{"slash alone", "/", "start with /"},
		{"two slashes", "a//b", "//"},
		{"two slashes at the end", "a//", "//"},
		{"dot dot alone", "..", ".."},
		{"dot dot first", "../a", ".."},
		{"dot dot inside", "a/../b", ".."},
		{"dot dot last", "a/..", ".."},
		{"dot alone", ".", "segment ."},
		{"dot inside", "a/./b", "segment ."},
		{"escaped dot dot", "a/%2e%2e/b", "segment ."},
		{"escaped dot dot, capitals", "%2E%2E/b", "segment ."},
		{"half escaped dot dot", "a/.%2E", "segment ."},
		{"the other half", "a/%2e./b", "segment ."},
		{"escaped dot", "a/%2e/b", "segment ."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := KeyFault(tt.key)
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q in it", got, tt.want)
			}
		})
	}
}

// No row may name what is not in the storage, whichever way its address could be read.
func TestRowKeyFault(t *testing.T) {
	tests := []struct {
		name, key string
		want      bool // a fault
	}{
		{"outside", "ext/com.demo.app/1", true},
		{"nothing but the start", "ext/", true},
		{"escaped slash", "ext%2Fa", true},
		{"escaped slash, small", "ext%2fa", true},
		{"all escaped", "%65%78%74%2F", true},
		{"escaped start, and no path further on", "%65xt/a b", true},
		{"no slash", "ext", false},
		{"more letters", "exta/b", false},
		{"capitals", "EXT/a", false},
		{"escaped capital", "%45xt/a", false},
		{"escaped twice", "%2565xt/a", false},
		{"cut escape", "ext%2", false},
		{"another escape", "ext%2Ea", false},
		{"further on", "a/ext/b", false},
		{"ordinary", "orgs/o/apps/com.demo.app/1.zip", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if KeyFault(tt.key) != "" {
				t.Fatal("not even a key")
			}
			if got := rowKeyFault([]byte(tt.key)); (got != "") != tt.want {
				t.Errorf("got %q", got)
			}
			// The rule is what it is for: no address of an allowed key leads outside.
			for _, key := range KeysOfPath(string(appendEscapedKey(nil, tt.key))) {
				if strings.HasPrefix(key, externalPrefix) && !tt.want {
					t.Errorf("its address may mean %s", key)
				}
			}
		})
	}
	if rowKeyFault([]byte("ext/../a")) != KeyFault("ext/../a") {
		t.Error("the rules of every key come first")
	}
}

func TestKeysOfPath(t *testing.T) {
	tests := []struct {
		name, path string
		want       []string
	}{
		{"plain", "orgs/o/apps/a.b/1.zip", []string{"orgs/o/apps/a.b/1.zip"}},
		{"escapes", "a%20b", []string{"a b", "a%20b"}},
		{"escaped slash", "a%2Fb", []string{"a/b", "a%2Fb"}},
		{"escaped per cent", "a%2520b", []string{"a%20b", "a%2520b"}},
		{"plus is no space", "a+b", []string{"a+b"}},
		{"broken escape", "a%2", nil},
		{"per cent alone", "100%", nil},
		{"empty", "", nil},
		{"climbs", "a/../b", nil},
		{"climbs escaped", "a/%2e%2e/b", nil},
		{"climbs escaped twice", "a/%252e%252e/b", nil},
		{"climbs by escaped slashes", "a%2F..%2Fb", nil},
		{"escaped NUL", "a%00b", nil},
		{"escaped backslash", "a%5Cb", nil},
		{"two slashes", "a//b", nil},
		{"two slashes, one escaped", "a/%2Fb", nil},
		{"slash at the start", "/a", nil},
		{"escaped slash at the start", "%2Fa", nil},
		{"backslash", `a\b`, nil},
		{"longest", strings.Repeat("%41", 1024), []string{strings.Repeat("A", 1024)}},
		{"too long", strings.Repeat("A", 1025), nil},
		{"escapes that are no UTF-8", "a%ffb", []string{"a\xffb", "a%ffb"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, KeysOfPath(tt.path)); diff != "" {
				t.Errorf("keys (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAppOfKey(t *testing.T) {
	tests := []struct{ name, key, want string }{
		{"zip", "orgs/o/apps/com.demo.app/1.0.0.zip", "com.demo.app"},
		{"delta file", "orgs/o/apps/com.demo.app/delta/x_apps/y.js", "com.demo.app"},
		{"the first counts", "orgs/apps/a.b/apps/c.d/x", "a.b"},
		{"nothing after the app", "orgs/o/apps/com.demo.app", "com.demo.app"},
		{"nothing after apps", "orgs/o/apps/", ""},
		{"apps at the start is no segment between slashes", "apps/com.demo.app/1.zip", ""},
		{"another word", "orgs/o/myapps/com.demo.app/1.zip", ""},
		{"outside the storage", "ext/com.demo.app/0123", "com.demo.app"},
		{"outside, whatever follows", "ext/com.demo.app/apps/c.d/x", "com.demo.app"},
		{"outside, nothing after the app", "ext/com.demo.app", "com.demo.app"},
		{"outside, no app", "ext/", ""},
		{"outside in capitals is nothing", "EXT/com.demo.app/1", ""},
		{"ext further on", "a/ext/com.demo.app/1", ""},
		{"none", "1.zip", ""},
		{"empty", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := AppOfKey(tt.key); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func digest(b byte) (sum [32]byte) {
	for i := range sum {
		sum[i] = b
	}
	return sum
}

type keyRow struct {
	key string
	Object
}

// keysOf collects rows in the given order.
func keysOf(rows ...keyRow) Keys {
	var b keyBuilder
	for _, row := range rows {
		b.add(idOf(row.key), row.Object)
	}
	return b.keys()
}

func TestKeysAreFound(t *testing.T) {
	var rows []keyRow
	for i := range 1000 {
		rows = append(rows, keyRow{fmt.Sprintf("k/%d", i), Object{digest(byte(i)), DigestStored, int64(i)}})
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	k := keysOf(append(rows, rows[:100]...)...)
	if k.Len() != len(rows) {
		t.Errorf("%d keys, want %d", k.Len(), len(rows))
	}
	for _, row := range rows {
		if got, ok := k.Find(row.key); !ok || got != row.Object {
			t.Errorf("%s: %+v, %t, want %+v", row.key, got, ok, row.Object)
		}
	}
	for _, other := range []string{"", "k/1000", "k", "K/1", "k/1/"} {
		if got, ok := k.Find(other); ok || got != (Object{}) {
			t.Errorf("%q is found: %+v", other, got)
		}
	}
	var none Keys
	if _, ok := none.Find("k/1"); ok || none.Len() != 0 {
		t.Error("no keys find a key")
	}
}

// Two rows may name one key: the file is the same in many versions. What they do not agree on is known by none.
func TestRowsOfOneKey(t *testing.T) {
	stored := Object{digest(1), DigestStored, 10}
	tests := []struct {
		name    string
		objects []Object
		want    Object
	}{
		{"equal", []Object{stored, stored, stored}, stored},
		{"another digest", []Object{stored, {digest(2), DigestStored, 10}}, Object{Size: 10}},
		{"another digest, then the first again", []Object{stored, {digest(2), DigestStored, 10}, stored}, Object{Size: 10}},
		{"the digest of other bytes", []Object{stored, {digest(1), DigestDecoded, 10}}, Object{Size: 10}},
		{"one does not know the digest", []Object{stored, {Size: 10}}, Object{Size: 10}},
		{"one does not know the size", []Object{stored, {digest(1), DigestStored, 0}}, stored},
		{"another size", []Object{stored, {digest(1), DigestStored, 11}}, Object{digest(1), DigestStored, 0}},
		{"three sizes", []Object{{Size: 10}, {Size: 20}, {Size: 30}}, Object{}},
		{"another size, then the first again", []Object{{Size: 10}, {Size: 20}, {}, {Size: 10}}, Object{}},
		{"a size among unknown ones", []Object{{}, {Size: 20}, {}}, Object{Size: 20}},
		{"nobody knows anything", []Object{{}, {}}, Object{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // forwards, then backwards
				var b keyBuilder
				for _, o := range tt.objects {
					b.add(idOf("k"), o)
				}
				k := b.keys()
				if got, ok := k.Find("k"); !ok || got != tt.want || k.Len() != 1 {
					t.Errorf("got %+v, %t, want %+v", got, ok, tt.want)
				}
				slices.Reverse(tt.objects)
			}
		})
	}
}

// Which digests a document tells (contract section 3, "plain"): those of bundles without a session key, in 64
// hexadecimal digits; for a ".br" file that of the decoded content.
func TestDigestsOfADocument(t *testing.T) {
	upper := strings.ToUpper(testDigest)
	raw, err := hex.DecodeString(testDigest)
	if err != nil {
		t.Fatal(err)
	}
	sum := [32]byte(raw)
	tests := []struct {
		name    string
		version object
		key     string
		want    Object
	}{
		{"zip", object{}, "z", Object{sum, DigestStored, 0}},
		{"zip, capitals", object{"checksum": upper}, "z", Object{sum, DigestStored, 0}},
		{"zip, encrypted", object{"session_key": "a:b"}, "z", Object{}},
		{"zip, empty session key", object{"session_key": ""}, "z", Object{sum, DigestStored, 0}},
		{"zip, no checksum", object{"checksum": nil}, "z", Object{}},
		{"zip, CRC32", object{"checksum": "cbf43926"}, "z", Object{}},
		{"zip, 64 characters that are no digits", object{"checksum": strings.Repeat("g", 64)}, "z", Object{}},
		{"zip, 66 digits", object{"checksum": testDigest + "00"}, "z", Object{}},
		{"file", object{}, "f", Object{sum, DigestStored, 7}},
		{"file, encrypted", object{"session_key": "a:b"}, "f", Object{Size: 7}},
		{"compressed file", object{}, "f.br", Object{sum, DigestDecoded, 5}},
		{"compressed file, encrypted", object{"session_key": "a:b"}, "f.br", Object{Size: 5}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := scene{version: object{
				"r2_path": "z",
				"manifest": []any{
					object{"file_name": "f", "file_hash": testDigest, "s3_path": "f", "file_size": 7},
					object{"file_name": "f.br", "file_hash": testDigest, "s3_path": "f.br", "file_size": 5},
				},
			}.with(tt.version)}
			m := mustParse(t, s.document(t))
			if got, ok := m.Keys.Find(tt.key); !ok || got != tt.want {
				t.Errorf("got %+v, %t, want %+v", got, ok, tt.want)
			}
		})
	}
}

func TestKeysWithout(t *testing.T) {
	row := func(key string, size int64) keyRow { return keyRow{key, Object{Size: size}} }
	all := keysOf(row("a", 1), row("b", 2), row("c", 3))
	tests := []struct {
		name  string
		other Keys
		want  Keys
	}{
		{"nothing", Keys{}, all},
		{"itself", all, Keys{}},
		{"one", keysOf(row("b", 2)), keysOf(row("a", 1), row("c", 3))},
		{"one that is known otherwise", keysOf(row("b", 9)), keysOf(row("a", 1), row("c", 3))},
		{"strangers", keysOf(row("x", 1), row("y", 2)), all},
		{"more than it has", keysOf(row("a", 1), row("b", 2), row("c", 3), row("d", 4)), Keys{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := all.Without(&tt.other); !reflect.DeepEqual(*got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	if all.Len() != 3 {
		t.Error("the keys themselves were changed")
	}
}

func TestKeysRoundTrip(t *testing.T) {
	for _, k := range []Keys{
		{},
		keysOf(keyRow{"a", Object{}}),
		keysOf(keyRow{"a", Object{digest(7), DigestStored, maxID}}, keyRow{"b", Object{digest(8), DigestDecoded, 1}}, keyRow{"c", Object{Size: 256}}),
		mustParse(t, appOf(3, 200, 0)).Keys,
	} {
		text := k.AppendBinary([]byte("prefix"))
		if !bytes.HasPrefix(text, []byte("prefix")) || len(text) != len("prefix")+k.Len()*keySize {
			t.Errorf("%d keys take %d bytes", k.Len(), len(text))
		}
		got, ok := ParseKeys(text[len("prefix"):])
		if !ok || !reflect.DeepEqual(*got, k) {
			t.Errorf("read back %+v, %t, want %+v", got, ok, k)
		}
	}
}

// The binary form lives on disk: what is not exactly what was written is refused, never half believed.
func TestParseKeysRefuses(t *testing.T) {
	k := keysOf(keyRow{"a", Object{digest(7), DigestStored, 3}}, keyRow{"b", Object{digest(8), DigestDecoded, 4}})
	good := k.AppendBinary(nil)
	changed := func(change func(b []byte)) []byte {
		b := bytes.Clone(good)
		change(b)
		return b
	}
	first, second := good[:keySize], good[keySize:]
	const covers = len(keyID{}) + 32
	tests := []struct {
		name string
		src  []byte
	}{
		{"one byte", []byte{0}},
		{"cut", good[:len(good)-1]},
		{"one byte more", append(bytes.Clone(good), 0)},
		{"wrong order", append(bytes.Clone(second), first...)},
		{"the same key twice", append(bytes.Clone(first), first...)},
		{"unknown digest", changed(func(b []byte) { b[covers] = byte(DigestDecoded) + 1 })},
		{"unknown digest, last key", changed(func(b []byte) { b[keySize+covers] = 0xff })},
		{"negative size", changed(func(b []byte) { b[covers+1] = 0x80 })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if k, ok := ParseKeys(tt.src); ok || k != nil {
				t.Errorf("accepted: %+v", k)
			}
		})
	}
}
