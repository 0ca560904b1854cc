package resolver

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/url"
)

// twinKey is a key that goes out as it stands although it holds escapes. Its address means the key it decodes to as well,
// and that one is tried first (KeysOfPath), so a document must not name both.
type twinKey struct {
	id, decoded keyID
	byContent   bool // the key begins like that of every file of the same content
	version     int
	file        int // noFile if it is the version's r2_path
}

const noFile = -1

func (t *twinKey) path() string {
	if t.file == noFile {
		return fmt.Sprintf("$.versions[%d].r2_path", t.version)
	}
	return fmt.Sprintf("$.versions[%d].manifest[%d].s3_path", t.version, t.file)
}

// addKey notes a key at its place in the document.
func (d *document) addKey(key []byte, o Object, version, file int) {
	id := idOf(key)
	d.keys.add(id, o)
	if _, escapes := isURLPath(key); !escapes {
		return
	}
	if decoded, err := url.PathUnescape(string(key)); err == nil {
		d.twins = append(d.twins, twinKey{id, idOf(decoded), namesContent(key), version, file})
	}
}

// namesContent reports whether the key holds the hash of its content before any escape, as the official upload tool
// writes those of delta files: .../<64 digits>_<path>. What it decodes to is of the same content then.
func namesContent(key []byte) bool {
	const digits = 2 * sha256.Size
	before, _, _ := bytes.Cut(key, []byte("%"))
	for segment := range bytes.SplitSeq(before, []byte("/")) {
		if len(segment) > digits && segment[digits] == '_' {
			if _, ok := sha256Hex(segment[:digits]); ok {
				return true
			}
		}
	}
	return false
}

// checkAddresses refuses two keys of one address. An upload tool that escapes names and one that does not may both have
// stored a file: that pair is fine, because either object serves.
func (d *document) checkAddresses() {
	for i := range d.twins {
		t := &d.twins[i]
		other, named := d.m.Keys.find(t.decoded)
		own, _ := d.m.Keys.find(t.id)
		same := own.sameContent(other) || t.byContent && own.Covers == DigestUnknown && other.Covers == DigestUnknown
		if named && !same {
			d.faults.add(t.path(), "has the address of another key, the one it decodes to")
		}
	}
}
