package resolver

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzParseCheck(f *testing.F) {
	for _, c := range loadVectors(f) {
		f.Add(c.body())
	}
	f.Add([]byte(exampleBody))
	f.Add([]byte("{\"app\\u005fid\":\"com.demo.app\",\"device_id\":null,\"x\":[\"\xff\",\"\\ud800\"]} "))
	f.Add([]byte(`[1,{"a":null}]`))

	manifest := mustParse(f, scene{channel: object{"allow_device": false}, override: true}.document(f))
	var used CheckParser
	f.Fuzz(func(t *testing.T, body []byte) {
		var p CheckParser
		c, err := p.Parse(body)
		// The outcome must not depend on what the parser read before.
		again, errAgain := used.Parse(body)
		if c != again || (err == nil) != (errAgain == nil) {
			t.Fatalf("a used parser gives %+v, %v, a new one %+v, %v", again, errAgain, c, err)
		}
		if err != nil {
			var r *Refusal
			if !errors.As(err, &r) || r.Status != 400 || r.Code == "" || r.Message == "" {
				t.Fatalf("the error is %+v, want a *Refusal of 400", err)
			}
			if answer := AppendRefusal(nil, r); !json.Valid(answer) || !utf8.Valid(answer) {
				t.Fatalf("refusal is no JSON: %q", answer)
			}
			if r == ErrNotJSON && json.Valid(body) && utf8.Valid(body) {
				t.Fatalf("JSON is refused as none")
			}
			return
		}
		if !json.Valid(body) {
			t.Fatalf("accepted, and yet no JSON")
		}
		d := manifest.Decide(&c)
		if answer := AppendResponse(nil, &d, testBase); wellFormed(answer) != nil || !utf8.Valid(answer) {
			t.Fatalf("%v: %q", wellFormed(answer), answer)
		}
		if !utf8.Valid(body) {
			return // what another encoder makes of it is its own affair
		}
		// The standard library reads and writes the body: other order, other spelling, no duplicates.
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(body, &fields); err != nil {
			t.Fatal(err)
		}
		for name, raw := range fields {
			var text string
			if raw[0] == '"' && json.Unmarshal(raw, &text) == nil {
				fields[name] = toJSON(t, text)
			}
		}
		if same, err := p.Parse(toJSON(t, fields)); err != nil || same != c {
			t.Fatalf("written again, %s gives %+v, %v, want %+v", toJSON(t, fields), same, err, c)
		}
	})
}

// fuzzChecks are devices of all kinds, so that a document that compiles is asked about from every side.
func fuzzChecks(t testing.TB) []*Check {
	t.Helper()
	var checks []*Check
	for _, platform := range platformNames {
		for _, plugin := range []string{"0.0.1", "6.1.0", "7.0.0", "8.51.14"} {
			for _, change := range []object{
				{}, {"defaultChannel": "beta"}, {"version_name": "1.2.0", "is_emulator": true}, {"version_build": "2", "is_prod": false, "key_id": "k"},
			} {
				body := plainCheck.with(object{"platform": platform, "plugin_version": plugin}).with(change)
				checks = append(checks, mustCheck(t, string(toJSON(t, body))))
			}
		}
	}
	return checks
}

func FuzzParseManifest(f *testing.F) {
	for _, c := range loadVectors(f) {
		f.Add([]byte(c.Manifest))
	}
	f.Add(inOrder(wholeDocument, 2, 3, 1, 0))
	f.Add([]byte(inDevice(`"device_id":"` + testDevice + `","channel_id":1`)))
	f.Add([]byte(inChannel(`,"version":9,"auto_pause_confidence":0.5`)))
	f.Add([]byte(inFile(`,"file_size":-1`)))
	f.Add(scene{channel: guarded.with(object{"rollout_percentage_bps": 10000})}.document(f))

	checks := fuzzChecks(f)
	f.Fuzz(func(t *testing.T, doc []byte) {
		m, err := ParseManifest(doc)
		if err != nil {
			var faults *Faults
			if !errors.As(err, &faults) || len(faults.List) == 0 || m != nil {
				t.Fatalf("got %v, %v, want *Faults alone", m, err)
			}
			for _, fault := range faults.List {
				if !strings.HasPrefix(fault.Path, "$") || fault.Message == "" {
					t.Fatalf("fault %+v", fault)
				}
			}
			return
		}
		if !json.Valid(doc) || !utf8.Valid(doc) {
			t.Fatal("accepted, and yet no JSON")
		}
		if m.AppID == "" || m.MemorySize() <= 0 || len(m.Warnings) > maxFaults {
			t.Fatalf("manifest %+v", m)
		}
		twin, err := ParseManifest(bytes.Clone(doc))
		if err != nil {
			t.Fatalf("refused the second time: %v", err)
		}
		keys, ok := ParseKeys(m.Keys.AppendBinary(nil))
		if !ok || !reflect.DeepEqual(keys, &m.Keys) {
			t.Fatal("the keys do not survive their binary form")
		}
		for _, c := range checks {
			d, e := m.Decide(c), twin.Decide(c)
			answer := AppendResponse(nil, &d, testBase)
			if err := wellFormed(answer); err != nil || !utf8.Valid(answer) {
				t.Fatalf("%v: %q", err, answer)
			}
			if other := AppendResponse(nil, &e, testBase); !bytes.Equal(answer, other) {
				t.Fatalf("two parses answer %s and %s", answer, other)
			}
			if !bytes.Contains(doc, []byte("edge.test")) { // or an external address may look like one of ours
				checkOffered(t, m, &d, answer)
			}
			if d.Outcome == Offer && !bytes.Contains(doc, []byte("sig")) {
				checkReaddressed(t, m, d, answer)
			}
		}
		paused := m.Pause(func(*Guard) bool { return true })
		for _, c := range checks {
			if d := paused.Decide(c); d.Guard != nil {
				t.Fatalf("a paused rollout offers %s", d.Guard.Version)
			}
		}
		// Over itself nothing is held but rollouts, which pause: what is offered under it m can offer too.
		for offer := range twin.Hold(m, func(*Bundle) bool { return true }).Channels() {
			if offer.Target != nil {
				t.Fatalf("channel %s still gives %s", offer.Name, offer.Target.Name)
			}
		}
	})
}

// checkReaddressed demands that another answer with the bundle differs in its suffixes alone, which were asked for by keys
// the manifest names.
func checkReaddressed(t *testing.T, m *Manifest, d Decision, answer []byte) {
	t.Helper()
	var keys []string
	d.Bundle = d.Bundle.Readdress(m, Addresses{Suffix: func(dst []byte, key string) []byte {
		keys = append(keys, key)
		return append(dst, "&sig=1"...)
	}})
	got := AppendResponse(nil, &d, testBase)
	if bare := bytes.ReplaceAll(got, []byte("&sig=1"), nil); !bytes.Equal(bare, answer) {
		t.Fatalf("readdressed %s\nfrom       %s", got, answer)
	}
	for _, key := range keys {
		if _, ok := m.Keys.Find(key); !ok {
			t.Fatalf("a suffix for %q, which the manifest does not name", key)
		}
	}
	for key, o := range d.Bundle.Objects(m) {
		if known, _ := m.Keys.Find(key); known != o || !slices.Contains(keys, key) {
			t.Fatalf("object %q, with suffixes for %q", key, keys)
		}
	}
}

// checkOffered demands that each address of this edge in an answer leads to a key that the manifest names.
func checkOffered(t *testing.T, m *Manifest, d *Decision, answer []byte) {
	t.Helper()
	if d.Outcome != Offer {
		return
	}
	var got struct {
		URL      string
		Manifest []struct {
			URL string `json:"download_url"`
		}
	}
	if err := json.Unmarshal(answer, &got); err != nil {
		t.Fatal(err)
	}
	addresses := []string{got.URL}
	for _, file := range got.Manifest {
		addresses = append(addresses, file.URL)
	}
	for _, address := range addresses {
		path, ours := strings.CutPrefix(address, testBase+FilesPath)
		if !ours {
			continue
		}
		path, _, _ = strings.Cut(path, "?")
		if !slices.ContainsFunc(KeysOfPath(path), func(key string) bool { _, ok := m.Keys.Find(key); return ok }) {
			t.Fatalf("%s leads to no key of the manifest", address)
		}
	}
}

func FuzzObjectKey(f *testing.F) {
	for _, c := range loadVectors(f) {
		var doc struct {
			Versions []struct {
				R2Path   string `json:"r2_path"`
				Manifest []struct {
					Path string `json:"s3_path"`
				}
			}
		}
		if err := json.Unmarshal(c.Manifest, &doc); err != nil {
			f.Fatal(err)
		}
		for _, v := range doc.Versions {
			f.Add(v.R2Path)
			for _, file := range v.Manifest {
				f.Add(file.Path)
			}
		}
	}
	for _, seed := range []string{
		"", "/", "..", "a/../b", "%2e%2e/x", "a%2F..%2Fb", "a//b", `a\b`, "a%5Cb", "a%00b", "a\x00", "é", "a b", "a%20b c", "100%", "%zz", "a?b#c",
		"ext/com.demo.app/1", "%65xt%2Fa", "exta/b",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		keys := KeysOfPath(text)
		if len(keys) > 2 || len(keys) == 2 && keys[0] == keys[1] {
			t.Fatalf("keys %q", keys)
		}
		for _, key := range keys {
			checkKey(t, key)
		}
		if KeyFault(text) != "" {
			return
		}
		checkKey(t, text)
		_ = AppOfKey(text)
		// No address of the storage leads outside of it.
		if rowKeyFault([]byte(text)) == "" && slices.ContainsFunc(KeysOfPath(string(appendEscapedKey(nil, text))), func(key string) bool {
			return strings.HasPrefix(key, externalPrefix)
		}) {
			t.Fatalf("the address of %q leads to an object outside the storage", text)
		}
		// The address of a key, as a server's router sees it, leads back to the key.
		address := string(appendEscapedKey(nil, text))
		parsed, err := url.Parse(testBase + FilesPath + address + "?key=1")
		if err != nil {
			t.Fatalf("key %q has the address %q: %v", text, address, err)
		}
		if got := strings.TrimPrefix(parsed.EscapedPath(), FilesPath); got != address {
			t.Fatalf("address %q arrives as %q", address, got)
		}
		if keys := KeysOfPath(address); !slices.Contains(keys, text) {
			t.Fatalf("key %q has the address %q, which leads to %q", text, address, keys)
		}
	})
}

// checkKey repeats the rules of contract section 3 in other words than KeyFault.
func checkKey(t *testing.T, key string) {
	t.Helper()
	if fault := KeyFault(key); fault != "" {
		t.Fatalf("%q %s", key, fault)
	}
	if key == "" || len(key) > 1024 || strings.ContainsAny(key, "\x00\\") || strings.Contains("/"+key, "//") ||
		slices.Contains(strings.Split(key, "/"), "..") {
		t.Fatalf("%q is no key", key)
	}
}
