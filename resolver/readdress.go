package resolver

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// external is the zip of a bundle that lies outside the origin's storage.
type external struct {
	url     string
	version string // as zipVersion
	object  Object
}

// newExternal describes the zip of a version that has an external address. It is nil if no device can load from there.
func newExternal(v *versionRow, url string) *external {
	if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") {
		return nil
	}
	return &external{url: url, version: v.zipVersion(), object: v.object(v.checksum, 0, DigestStored)}
}

func (e *external) size() int64 { return 96 + int64(len(e.url)+len(e.version)) }

// External returns the address of the bundle's zip if it lies outside the origin's storage, as the document has it, and
// what is known of the bytes there: the digest of a plain bundle (contract section 3), or nothing. ok is false for bundles
// whose zip is in the storage or has an address that is neither http nor https.
func (b *Bundle) External() (url string, o Object, ok bool) {
	if b.external == nil {
		return "", Object{}, false
	}
	return b.external.url, b.external.object, true
}

// ExternalKey is the object key under which this edge serves what an application has at an address outside the storage:
// ext/<app_id>/<id> (contract section 3). It depends on nothing else, so every site makes the same of it. Frozen by a
// golden test: what stores remember goes by it.
func ExternalKey(appID, url string) string {
	const digits = 32
	sum := sha256.Sum256([]byte(url))
	return externalPrefix + appID + "/" + hex.EncodeToString(sum[:digits/2])
}

// Addresses is what Readdress makes of the addresses in an answer.
type Addresses struct {
	// ExternalKey is the object key that takes the place of the zip's address outside the storage: the function of that name
	// makes one. Empty leaves the address alone, and bundles without such an address are not concerned.
	ExternalKey string

	// Suffix appends to dst what goes behind the query of an address on this edge, such as "&expires=1234&sig=abc", and
	// returns the extended slice. It must need no escaping, neither in a URL nor in JSON. key is the object key as the origin
	// has it. Nil appends nothing. Addresses elsewhere are not asked about.
	Suffix func(dst []byte, key string) []byte
}

// Readdress returns a copy of the bundle whose prepared answer has other addresses, or the bundle itself if r changes
// none. m is the manifest that it belongs to. The copy stands in for the bundle in a Decision; all but the addresses,
// and what External and Objects tell, is the same. A copy may be readdressed again: r is applied to the original.
func (b *Bundle) Readdress(m *Manifest, r Addresses) *Bundle {
	if b.original != nil {
		b = b.original
	}
	moved := b.external != nil && r.ExternalKey != ""
	if !moved && (r.Suffix == nil || len(b.head.cuts)+len(b.files.cuts) == 0) {
		return b
	}
	out := *b
	out.original = b
	keyOf := m.Keys.keyAt
	if moved { // there is no delta list then, and no other address
		out.head = b.headAt(m.AppID, r.ExternalKey)
		keyOf = func(string) string { return r.ExternalKey }
	}
	if r.Suffix != nil {
		out.head = out.head.suffixed(r.Suffix, keyOf)
		out.files = out.files.suffixed(r.Suffix, keyOf)
	}
	return &out
}

// headAt is the head of the answer of an external bundle, with the address of a key in place of the external one.
func (b *Bundle) headAt(appID, key string) template {
	before := beforeURL(b.Name)
	after := b.head.text[len(before)+len(quoted(b.external.url)):]
	t := template{text: make([]byte, 0, len(b.head.text)+len(FilesPath)+len(key))}
	t.add(before)
	t.address(appID, []byte(key), b.external.version)
	t.text = append(t.text, after...)
	return t
}

// keyAt is the key that the escaped path of an address stands for. Only one with escapes may stand for two, and must be
// looked up.
func (k *Keys) keyAt(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	key, _, _ := k.meant(path)
	return key
}
