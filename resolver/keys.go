package resolver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sort"
	"strings"
)

// DigestOf says which bytes the digest of an object covers.
type DigestOf uint8

// A digest is unknown for encrypted bundles and for checksums of other kinds. The file hash of a ".br" delta file is
// that of its content after decoding, not of the bytes that travel (protocol 3.1, 3.4).
const (
	DigestUnknown DigestOf = iota
	DigestStored
	DigestDecoded
)

// Object is what a manifest tells about one object of the origin's storage.
type Object struct {
	SHA256 [sha256.Size]byte
	Covers DigestOf
	Size   int64 // the manifest's file_size; 0 where it tells none
}

// sizesDiffer stands for the size of a key while rows are merged that do not agree on it.
const sizesDiffer = -1

// merge joins what a further row says about a key. Content that rows describe differently is known by none, and stays
// so whatever the next row says.
func (o Object) merge(other Object) Object {
	if o.Covers != other.Covers || o.SHA256 != other.SHA256 {
		o.SHA256, o.Covers = [sha256.Size]byte{}, DigestUnknown
	}
	if o.Size == 0 {
		o.Size = other.Size
	} else if other.Size != 0 && o.Size != other.Size {
		o.Size = sizesDiffer
	}
	return o
}

// sameContent reports whether two objects are known to hold the same bytes.
func (o Object) sameContent(other Object) bool {
	return o.Covers != DigestUnknown && o.Covers == other.Covers && o.SHA256 == other.SHA256
}

// keyID stands for an object key. A manifest names up to hundreds of thousands of keys of 150 bytes, nearly none of which
// is asked for: keeping their digests takes a tenth of the room, and 128 bits of SHA-256 do not collide by design either.
type keyID [16]byte

func idOf[T string | []byte](key T) keyID {
	sum := sha256.Sum256([]byte(key))
	return keyID(sum[:16])
}

// Keys is the set of object keys a manifest names. It is immutable.
type Keys struct {
	ids     []keyID // sorted, distinct
	objects []Object
}

// Len is the number of keys.
func (k *Keys) Len() int { return len(k.ids) }

// Find returns what is known of the object at key, and whether the manifest names that key.
func (k *Keys) Find(key string) (Object, bool) { return k.find(idOf(key)) }

func (k *Keys) find(id keyID) (Object, bool) {
	i, ok := slices.BinarySearchFunc(k.ids, id, compareIDs)
	if !ok {
		return Object{}, false
	}
	return k.objects[i], true
}

// Without returns the keys of k that are not in other.
func (k *Keys) Without(other *Keys) *Keys {
	rest := &Keys{}
	for i, id := range k.ids {
		if _, ok := other.find(id); !ok {
			rest.ids, rest.objects = append(rest.ids, id), append(rest.objects, k.objects[i])
		}
	}
	return rest
}

// keySize is the length of one key in the binary form of Keys.
const keySize = len(keyID{}) + sha256.Size + 1 + 8

// AppendBinary appends k in a form that ParseKeys reads.
func (k *Keys) AppendBinary(dst []byte) []byte {
	for i, id := range k.ids {
		o := &k.objects[i]
		dst = append(dst, id[:]...)
		dst = append(dst, o.SHA256[:]...)
		dst = append(dst, byte(o.Covers))
		for shift := 56; shift >= 0; shift -= 8 {
			dst = append(dst, byte(o.Size>>shift))
		}
	}
	return dst
}

// ParseKeys reads what AppendBinary wrote; ok is false if it is anything else.
func ParseKeys(src []byte) (keys *Keys, ok bool) {
	if len(src)%keySize != 0 {
		return nil, false
	}
	k := &Keys{}
	for ; len(src) > 0; src = src[keySize:] {
		id := keyID(src)
		if n := len(k.ids); n > 0 && compareIDs(k.ids[n-1], id) >= 0 {
			return nil, false
		}
		o := Object{SHA256: [sha256.Size]byte(src[len(id):]), Covers: DigestOf(src[len(id)+sha256.Size])}
		for _, b := range src[keySize-8 : keySize] {
			o.Size = o.Size<<8 | int64(b)
		}
		if o.Covers > DigestDecoded || o.Size < 0 {
			return nil, false
		}
		k.ids, k.objects = append(k.ids, id), append(k.objects, o)
	}
	return k, true
}

func compareIDs(a, b keyID) int { return bytes.Compare(a[:], b[:]) }

// keyBuilder collects keys in any order, with repetitions.
type keyBuilder struct {
	ids     []keyID
	objects []Object
}

// newKeyBuilder has room for n keys.
func newKeyBuilder(n int) keyBuilder {
	return keyBuilder{make([]keyID, 0, n), make([]Object, 0, n)}
}

func (b *keyBuilder) add(id keyID, o Object) {
	b.ids, b.objects = append(b.ids, id), append(b.objects, o)
}

func (b *keyBuilder) Len() int           { return len(b.ids) }
func (b *keyBuilder) Less(i, j int) bool { return compareIDs(b.ids[i], b.ids[j]) < 0 }
func (b *keyBuilder) Swap(i, j int) {
	b.ids[i], b.ids[j] = b.ids[j], b.ids[i]
	b.objects[i], b.objects[j] = b.objects[j], b.objects[i]
}

// keys sorts and joins what was collected. The builder must not be used afterwards.
func (b *keyBuilder) keys() Keys {
	sort.Sort(b)
	n := 0
	for i := range b.ids {
		if n > 0 && b.ids[n-1] == b.ids[i] {
			b.objects[n-1] = b.objects[n-1].merge(b.objects[i])
			continue
		}
		b.ids[n], b.objects[n] = b.ids[i], b.objects[i]
		n++
	}
	for i := range n {
		b.objects[i].Size = max(b.objects[i].Size, 0) // sizesDiffer
	}
	return Keys{fit(b.ids[:n]), fit(b.objects[:n])}
}

// fit takes away the room a slice does not need, if it is worth a copy. An empty one becomes nil.
func fit[T any](s []T) []T {
	if cap(s)-len(s) >= len(s)/8 {
		return append([]T(nil), s...)
	}
	return slices.Clip(s)
}

// maxKeyLength is the longest object key. S3 ends at 1024 bytes.
const maxKeyLength = 1024

// KeyFault says what forbids key as an object key, or returns "". The rules keep a key inside the origin's storage
// whatever kind of storage that is.
func KeyFault(key string) string { return keyFault([]byte(key)) }

// keyFault is KeyFault for the rows of a manifest, of which there are too many to make strings of.
func keyFault(key []byte) string {
	switch {
	case len(key) == 0:
		return "must not be empty"
	case len(key) > maxKeyLength:
		return "is longer than 1024 bytes"
	case bytes.IndexByte(key, 0) >= 0:
		return "must not contain NUL"
	case bytes.IndexByte(key, '\\') >= 0:
		return `must not contain \`
	case key[0] == '/' || bytes.Contains(key, []byte("//")):
		return "must not start with / or contain //"
	}
	for segment := range bytes.SplitSeq(key, []byte("/")) {
		if isDots(segment) {
			return "must not contain a segment . or .."
		}
	}
	return ""
}

// externalPrefix begins the keys of objects that are not in the origin's storage: ext/<app_id>/<id> (contract section 3).
const externalPrefix = "ext/"

// rowKeyFault is keyFault for a row of a manifest, whose keys are all in the storage: the name space of the others is not
// its.
func rowKeyFault(key []byte) string {
	if fault := keyFault(key); fault != "" || !looksExternal(key) {
		return fault
	}
	return "must not begin with ext/, where the edge has objects that are not in the storage"
}

// looksExternal reports whether key begins with externalPrefix, also with some of it written as escapes: the address of a
// key with escapes may mean the one it decodes to as well (KeysOfPath).
func looksExternal(key []byte) bool {
	const escaped = "%65%78%74%2f"
	for i := range len(externalPrefix) {
		switch {
		case len(key) > 0 && key[0] == externalPrefix[i]:
			key = key[1:]
		case len(key) >= 3 && strings.EqualFold(string(key[:3]), escaped[3*i:3*i+3]):
			key = key[3:]
		default:
			return false
		}
	}
	return true
}

// isDots reports whether a segment is . or .., also with dots written as %2e: a storage behind HTTP may decode a key once
// more than it should.
func isDots(segment []byte) bool {
	dots := 0
	for ; len(segment) > 0; dots++ {
		switch {
		case segment[0] == '.':
			segment = segment[1:]
		case len(segment) >= 3 && bytes.EqualFold(segment[:3], []byte("%2e")):
			segment = segment[3:]
		default:
			return false
		}
	}
	return dots == 1 || dots == 2
}

// AppOfKey returns the application a key belongs to: the segment after the first "/apps/", or after the "ext/" of an object
// that is not in the storage (contract section 3). It is empty if there is none.
func AppOfKey(key string) string {
	app := appWithin([]byte(key))
	return key[app.from:app.to]
}

// appWithin is where AppOfKey finds the application.
func appWithin(key []byte) span {
	const before = "/apps/"
	from := len(externalPrefix)
	if !bytes.HasPrefix(key, []byte(externalPrefix)) {
		at := bytes.Index(key, []byte(before))
		if at < 0 {
			return span{}
		}
		from = at + len(before)
	}
	app, _, _ := bytes.Cut(key[from:], []byte("/"))
	return span{from, from + len(app)}
}

// sha256Hex reads 64 hexadecimal digits.
func sha256Hex(s []byte) (sum [sha256.Size]byte, ok bool) {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return sum, false
	}
	_, err := hex.Decode(sum[:], s)
	return sum, err == nil
}
