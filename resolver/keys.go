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

// merge joins what two rows say about one key. Content that two rows describe differently is known by none.
func (o Object) merge(other Object) Object {
	if o.Covers != other.Covers || o.SHA256 != other.SHA256 {
		o.SHA256, o.Covers = [sha256.Size]byte{}, DigestUnknown
	}
	if o.Size == 0 {
		o.Size = other.Size
	} else if other.Size != 0 && o.Size != other.Size {
		o.Size = 0
	}
	return o
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
	return Keys{slices.Clip(b.ids[:n]), slices.Clip(b.objects[:n])}
}

// maxKeyLength is the longest object key. S3 ends at 1024 bytes.
const maxKeyLength = 1024

// KeyFault says what forbids key as an object key, or returns "". The rules keep a key inside the origin's storage
// whatever kind of storage that is.
func KeyFault(key string) string {
	switch {
	case key == "":
		return "must not be empty"
	case len(key) > maxKeyLength:
		return "is longer than 1024 bytes"
	case strings.IndexByte(key, 0) >= 0:
		return "must not contain NUL"
	case strings.IndexByte(key, '\\') >= 0:
		return `must not contain \`
	case key[0] == '/' || strings.Contains(key, "//"):
		return "must not start with / or contain //"
	}
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "." || segment == ".." {
			return "must not contain a segment . or .."
		}
	}
	return ""
}

// AppOfKey returns the application a key belongs to: the segment after the first "/apps/". It is empty if there is none.
func AppOfKey(key string) string {
	_, rest, _ := strings.Cut(key, "/apps/")
	app, _, _ := strings.Cut(rest, "/")
	return app
}

// sha256Hex reads 64 hexadecimal digits.
func sha256Hex(s []byte) (sum [sha256.Size]byte, ok bool) {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return sum, false
	}
	_, err := hex.Decode(sum[:], s)
	return sum, err == nil
}
