package resolver

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// offered is a ChannelOffer with names in place of bundles, "" for none.
type offered struct {
	Name           string
	Public         bool
	Stable, Target string
}

func offersOf(m *Manifest) []offered {
	var all []offered
	for o := range m.Channels() {
		named := offered{Name: o.Name, Public: o.Public}
		if o.Stable != nil {
			named.Stable = o.Stable.Name
		}
		if o.Target != nil {
			named.Target = o.Target.Name
		}
		all = append(all, named)
	}
	return all
}

func TestChannels(t *testing.T) {
	const stable, target = "1.1.0", "1.2.0"
	noAddress := object{"r2_path": nil}
	tests := []struct {
		name string
		scene
		want offered
	}{
		{"plain", scene{}, offered{"production", true, stable, ""}},
		{"not public", scene{channel: object{"public": false}}, offered{"production", false, stable, ""}},
		{"native bundle", scene{channel: object{"version": nil}}, offered{"production", true, "", ""}},
		{"row of the native bundle", scene{version: object{"name": "builtin"}}, offered{"production", true, "", ""}},
		{"row of the native bundle, deleted", scene{version: object{"name": "builtin", "deleted": true}}, offered{"production", true, "", ""}},
		{"placeholder", scene{version: object{"name": "unknown"}.with(noAddress)}, offered{"production", true, "", ""}},
		{"nothing to load", scene{version: noAddress}, offered{"production", true, "", ""}},
		{"address of another kind", scene{version: object{"external_url": "ftp://cdn.example/x.zip"}}, offered{"production", true, "", ""}},
		{"outside the storage", scene{version: object{"external_url": "https://cdn.example/x.zip"}}, offered{"production", true, stable, ""}},
		{"rollout", scene{channel: fullRolloutOf2}, offered{"production", true, stable, target}},
		{"rollout beside the native bundle", scene{channel: fullRolloutOf2.with(object{"version": nil})}, offered{"production", true, "", target}},
		{"rollout at its least", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 1})}, offered{"production", true, stable, target}},
		{"rollout at 0", scene{channel: fullRolloutOf2.with(object{"rollout_percentage_bps": 0})}, offered{"production", true, stable, ""}},
		{"rollout paused", scene{channel: fullRolloutOf2.with(object{"rollout_paused_at": "x"})}, offered{"production", true, stable, ""}},
		{"rollout off", scene{channel: fullRolloutOf2.with(object{"rollout_enabled": false})}, offered{"production", true, stable, ""}},
		{"rollout of nothing", scene{channel: fullRolloutOf2.with(object{"rollout_version": nil})}, offered{"production", true, stable, ""}},
		{"target deleted", scene{channel: fullRolloutOf2, target: object{"deleted": true}}, offered{"production", true, stable, ""}},
		{"target has no address", scene{channel: fullRolloutOf2, target: noAddress}, offered{"production", true, stable, ""}},
		{"rollout of the native bundle", scene{channel: fullRolloutOf2, target: object{"name": "builtin"}}, offered{"production", true, stable, ""}},
		{"channel hidden", scene{channel: fullRolloutOf2, version: object{"deleted": true}}, offered{"production", true, "", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff([]offered{tt.want}, offersOf(mustParse(t, tt.document(t)))); diff != "" {
				t.Errorf("channels (-want +got):\n%s", diff)
			}
		})
	}
}

func TestChannelsInTheOrderOfTheDocument(t *testing.T) {
	m := mustParse(t, scene{channels: []any{
		object{"id": 7, "name": "zeta"}, object{"id": 3, "name": "alpha", "version": 2}, object{"id": 5, "name": "beta", "version": 1},
	}}.document(t))
	want := []offered{{"production", true, "1.1.0", ""}, {"zeta", false, "", ""}, {"alpha", false, "1.2.0", ""}, {"beta", false, "1.1.0", ""}}
	if diff := cmp.Diff(want, offersOf(m)); diff != "" {
		t.Errorf("channels (-want +got):\n%s", diff)
	}
	seen := 0
	for range m.Channels() {
		if seen++; seen == 2 {
			break
		}
	}
	for range (&Manifest{}).Channels() {
		t.Error("no manifest has a channel")
	}
}

// Nobody is offered what Channels leaves out, and all that anyone is offered is there: else a prefetch would load too
// much, or miss what the first device asks for.
func TestChannelsAreWhatIsOffered(t *testing.T) {
	r := seeded(t)
	seen := map[string]int{}
	for i := range 3000 {
		s := randomScene(r)
		if i%2 == 0 {
			s.channel = s.channel.with(fullRolloutOf2).with(object{"rollout_percentage_bps": []int{0, 5000, 10000}[r.IntN(3)]})
		}
		m := mustParse(t, s.document(t))
		d := m.Decide(mustCheck(t, s.body(t)))
		if d.Outcome != Offer {
			continue
		}
		found := false
		for o := range m.Channels() {
			for what, b := range map[string]*Bundle{"stable": o.Stable, "target": o.Target} {
				if o.Name == d.Channel && b == d.Bundle {
					found = true
					seen[what]++
				}
			}
		}
		if !found {
			t.Fatalf("%s is offered in %s, which Channels does not tell: %s", d.Bundle.Name, d.Channel, s.document(t))
		}
	}
	if seen["stable"] < 100 || seen["target"] < 100 {
		t.Errorf("only %v offers were compared", seen)
	}
}

// keyed is a key with what is known of its object.
type keyed struct {
	Key    string
	Covers DigestOf
	Size   int64
}

func objectsOf(b *Bundle, m *Manifest) []keyed {
	var all []keyed
	for key, o := range b.Objects(m) {
		all = append(all, keyed{key, o.Covers, o.Size})
	}
	return all
}

func TestObjects(t *testing.T) {
	file := func(key string, size int) any {
		return object{"file_name": "f", "file_hash": testDigest, "s3_path": key, "file_size": size}
	}
	const zip = "orgs/o/apps/com.demo.app/1.1.0.zip"
	theZip := keyed{zip, DigestStored, 0}
	tests := []struct {
		name    string
		version object
		want    []keyed
	}{
		{"zip", object{}, []keyed{theZip}},
		{"zip, encrypted", object{"session_key": "a:b"}, []keyed{{zip, DigestUnknown, 0}}},
		{"zip and files", object{"manifest": []any{file("b", 1), file("a.br", 2)}}, []keyed{theZip, {"b", DigestStored, 1}, {"a.br", DigestDecoded, 2}}},
		{"files", object{"r2_path": nil, "manifest": []any{file("b", 1), file("a", 2)}}, []keyed{{"b", DigestStored, 1}, {"a", DigestStored, 2}}},
		{"a file twice", object{"manifest": []any{file("b", 1), file("a", 2), file("b", 1)}}, []keyed{theZip, {"b", DigestStored, 1}, {"a", DigestStored, 2}}},
		{"the zip as a file", object{"manifest": []any{file(zip, 1)}}, []keyed{{zip, DigestStored, 1}}},
		{"nothing", object{"r2_path": nil}, nil},
		{"outside", object{"external_url": "https://cdn.example/x.zip", "manifest": []any{file("b", 1)}}, nil},
		{"outside, and looking like ours", object{"external_url": testBase + FilesPath + zip + "?key=1"}, nil},
		{"another app's", object{"r2_path": "orgs/o/apps/com.other.app/1.zip"}, []keyed{{"orgs/o/apps/com.other.app/1.zip", DigestStored, 0}}},
		{"escaped in full", object{"r2_path": `o/é "b"?x#y%.zip`}, []keyed{{`o/é "b"?x#y%.zip`, DigestStored, 0}}},
		{"escapes of the upload tool", object{"r2_path": "o/a%20b.zip"}, []keyed{{"o/a%20b.zip", DigestStored, 0}}},
		{"small escapes", object{"r2_path": "o/a%c3%a9.zip"}, []keyed{{"o/a%c3%a9.zip", DigestStored, 0}}},
		// The edge answers both addresses with the first object, so that is the one to have.
		{"a key and its escaped twin", object{"manifest": []any{file("o/a%20b", 1), file("o/a b", 1)}}, []keyed{theZip, {"o/a b", DigestStored, 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := mustParse(t, scene{version: tt.version}.document(t))
			got := objectsOf(m.channels[0].stable, m)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			for range m.channels[0].stable.Objects(m) {
				break
			}
		})
	}
	for range builtinBundle.Objects(mustParse(t, scene{}.document(t))) {
		t.Error("the native bundle has an object")
	}
}

func TestObjectsWithTheirDigests(t *testing.T) {
	m := mustParse(t, scene{}.document(t))
	sum, _ := sha256Hex([]byte(testDigest))
	for _, o := range m.channels[0].stable.Objects(m) {
		if o != (Object{sum, DigestStored, 0}) {
			t.Errorf("got %+v", o)
		}
	}
}

// A key that the manifest does not name is not served, so it is none to fetch.
func TestObjectsOfAnotherManifest(t *testing.T) {
	m := mustParse(t, scene{version: object{"manifest": []any{
		object{"file_name": "f", "file_hash": "h", "s3_path": "gone"}, object{"file_name": "g", "file_hash": "h", "s3_path": "orgs/o/apps/com.demo.app/1.2.0.zip"},
	}}}.document(t))
	other := mustParse(t, scene{}.document(t))
	want := []keyed{{"orgs/o/apps/com.demo.app/1.1.0.zip", DigestStored, 0}, {"orgs/o/apps/com.demo.app/1.2.0.zip", DigestStored, 0}}
	if diff := cmp.Diff(want, objectsOf(m.channels[0].stable, other)); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}

// The vectors say which objects each answer has to lead to.
func TestObjectsOfVectors(t *testing.T) {
	compared := 0
	for _, c := range loadVectors(t) {
		m, err := ParseManifest(c.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Versions []struct {
				ID          int64
				ExternalURL string `json:"external_url"`
				R2Path      string `json:"r2_path"`
				Manifest    []struct {
					Path string `json:"s3_path"`
				}
			}
		}
		if err := json.Unmarshal(c.Manifest, &doc); err != nil {
			t.Fatal(err)
		}
		for o := range m.Channels() {
			for _, b := range []*Bundle{o.Stable, o.Target} {
				if b == nil {
					continue
				}
				var want, got []string
				for _, v := range doc.Versions {
					if v.ID != b.ID || v.ExternalURL != "" {
						continue
					}
					if v.R2Path != "" {
						want = append(want, v.R2Path)
					}
					for _, f := range v.Manifest {
						want = append(want, f.Path)
					}
				}
				for key := range b.Objects(m) {
					got = append(got, key)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: %s (-want +got):\n%s", c.Name, b.Name, diff)
				}
				compared++
			}
		}
	}
	if compared < 200 {
		t.Errorf("only %d bundles have been compared", compared)
	}
}

// bundleOf is a bundle with a zip and so many files, whose keys have escapes if escaped.
func bundleOf(t testing.TB, files int, escaped bool) (*Bundle, *Manifest) {
	t.Helper()
	name := "assets/chunk-%d.js"
	if escaped {
		name = "assets/%%5Bslug%%5D-%d.js"
	}
	list := make([]any, files)
	for i := range list {
		list[i] = object{
			"file_name": "assets/x.js", "file_hash": testDigest, "file_size": 100,
			"s3_path": fmt.Sprintf("orgs/3c5f6c0e/apps/com.demo.app/delta/%s_"+name, strings.Repeat("0", 64), i),
		}
	}
	m := mustParse(t, scene{version: object{"manifest": list}}.document(t))
	return m.channels[0].stable, m
}

func BenchmarkObjects(b *testing.B) {
	bundle, m := bundleOf(b, 300, false)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for range bundle.Objects(m) {
			n++
		}
		if n != 301 {
			b.Fatal(n)
		}
	}
}

// The key of an address is the one that a request for it finds, for whichever keys there are.
func TestMeantIsWhatARequestFinds(t *testing.T) {
	texts := []string{"o/a", "o/a b", "o/a%20b", "o/a%2520b", "o/%41", "o/A", "o/a%2Fb", "o/a/b", "o/100%", "o/é"}
	for set := range 1 << len(texts) {
		var rows []keyRow
		for i, key := range texts {
			if set>>i&1 == 1 {
				rows = append(rows, keyRow{key, Object{Size: int64(i + 1)}})
			}
		}
		k := keysOf(rows...)
		for _, text := range texts {
			path := string(appendEscapedKey(nil, text))
			var want string
			var wantObject Object
			found := false
			for _, key := range slices.Backward(KeysOfPath(path)) {
				if o, ok := k.Find(key); ok || !found {
					want, wantObject, found = key, o, ok
				}
			}
			if key, o, ok := k.meant(path); key != want || o != wantObject || ok != found {
				t.Fatalf("%s among %v: %q, %+v, %t, want %q, %+v, %t", path, rows, key, o, ok, want, wantObject, found)
			}
		}
	}
	none := &Keys{}
	if key, _, ok := none.meant("100%"); key != "100%" || ok {
		t.Errorf("no path is read as %q, %t", key, ok)
	}
}
