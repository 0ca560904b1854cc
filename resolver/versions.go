package resolver

import (
	"bytes"
	"fmt"
	"net/url"
	"strconv"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// builtinBundle is what a channel without a version points at: the native bundle.
var builtinBundle = &Bundle{Name: nameBuiltin, builtin: true}

// Reserved version names (protocol 2.4).
const (
	nameBuiltin = "builtin"
	nameUnknown = "unknown"
)

// noZip is the address of a bundle that has delta files only; the official server hands it out, and clients need a
// well-formed address even when they use the files.
const noZip = "https://404.capgo.app/no.zip"

// versionRow is one row of versions as it is read.
type versionRow struct {
	id      int64
	index   int
	hasID   bool
	deleted bool

	// The texts are parts of the document: of most rows none is kept.
	name, externalURL, r2Path, checksum, sessionKey []byte
	keyID, minUpdate, link, comment                 []byte

	files span // the rows of its delta list, relative to versions

	mark uint64
}

// gone reports that the version was deleted. A row named builtin still counts then (protocol 2.1).
func (v *versionRow) gone() bool { return v.deleted && string(v.name) != nameBuiltin }

// plain reports that digests of this version are those of the bytes before any encryption (contract section 3).
func (v *versionRow) plain() bool { return len(v.sessionKey) == 0 }

// readVersions reads the rows of versions, compiles those that a channel points at and collects the keys of all.
func (d *document) readVersions() {
	part := d.doc[d.versions.from:d.versions.to]
	if len(part) == 0 {
		return
	}
	// Room that grows would cost several times what it ends up with. No row with a key takes less than 32 bytes.
	d.keys = newKeyBuilder(min(bytes.Count(part, []byte(`_path":`)), len(part)/32))
	d.marks = newVersionMarks(part)
	d.names = make(versionNames, 0, cap(d.marks))
	w := newWalker(part, "$.versions", &d.faults)
	files := newWalker(nil, "", &d.faults)
	w.array(func(i int) {
		v := versionRow{index: i}
		if w.object(func(name []byte) { v.read(w, name) }) {
			d.addVersion(w, &v, part, files)
		}
	})
}

func (v *versionRow) read(w *walker, name []byte) {
	var ignored int64
	switch string(name) {
	case "id":
		v.hasID = w.integer(&v.id, minID, maxID)
	case "name":
		v.name = w.bytes()
	case "deleted":
		w.bool(&v.deleted)
	case "external_url":
		v.externalURL = w.bytes()
	case "r2_path":
		v.r2Path = w.bytes()
	case "checksum":
		v.checksum = w.bytes()
	case "session_key":
		v.sessionKey = w.bytes()
	case "key_id":
		v.keyID = w.bytes()
	case "min_update_version":
		v.minUpdate = w.bytes()
	case "link":
		v.link = w.bytes()
	case "comment":
		v.comment = w.bytes()
	case "manifest":
		v.files = w.span()
	case "manifest_count":
		w.integer(&ignored, 0, maxID)
	default:
		w.skip()
	}
}

// addVersion judges a row, notes its keys and compiles it if it is in use. part is the text of all versions.
func (d *document) addVersion(w *walker, v *versionRow, part []byte, files *walker) {
	if len(v.name) == 0 {
		w.missing("name")
	}
	if first, twice := d.versionIDs[v.id]; !v.hasID {
		w.missing("id")
	} else if twice {
		w.faultIn("id", fmt.Sprintf("is the id of $.versions[%d] already", first))
	} else {
		d.versionIDs[v.id] = v.index
	}
	if len(v.r2Path) > 0 {
		if fault := rowKeyFault(v.r2Path); fault != "" {
			w.faultIn("r2_path", fault)
		}
		d.addKey(v.r2Path, v.object(v.checksum, 0, DigestStored), v.index, noFile)
	}
	d.markVersion(v)
	_, used := d.used[v.id]
	used = used && v.hasID
	list := d.readFiles(v, part[v.files.from:v.files.to], files, used && len(v.externalURL) == 0)
	if used {
		d.used[v.id] = d.compile(v, list)
	}
}

// object tells what is known of an object with the given digest.
func (v *versionRow) object(digest []byte, size int64, covers DigestOf) Object {
	o := Object{Size: size}
	if sum, ok := sha256Hex(digest); ok && v.plain() {
		o.SHA256, o.Covers = sum, covers
	}
	return o
}

// fileRow is one delta file. Its texts are parts of the document, which may have a million rows.
type fileRow struct {
	name, hash, key []byte
	size            int64
}

// readFiles notes the keys of a delta list and, if it is to be offered, compiles it. It reads such a list twice: lists are
// most of what a manifest keeps, and one that is measured first is written in one piece without room to spare.
func (d *document) readFiles(v *versionRow, part []byte, w *walker, offered bool) template {
	if len(part) == 0 {
		return template{}
	}
	id := strconv.FormatInt(v.id, 10)
	var entry template
	size, count := 0, 0
	d.eachFile(v, part, w, func(i int, row *fileRow) {
		if !row.judge(w) {
			return
		}
		covers := DigestStored
		if bytes.HasSuffix(row.key, []byte(".br")) {
			covers = DigestDecoded
		}
		d.addKey(row.key, v.object(row.hash, row.size, covers), v.index, i)
		if offered {
			entry.reset()
			entry.file(d.m.AppID, id, row)
			size, count = size+1+len(entry.text), count+1
		}
	})
	if count == 0 || len(d.faults.List) > 0 {
		return template{}
	}
	const before, after = `,"manifest":[`, `]`
	list := template{make([]byte, 0, len(before)+size), make([]int, 0, count)} // the last comma's place is the bracket's
	list.add(before)
	d.eachFile(v, part, w, func(i int, row *fileRow) {
		if i > 0 {
			list.add(",")
		}
		list.file(d.m.AppID, id, row)
	})
	list.add(after)
	return list
}

// eachFile calls f for each row of a delta list that is an object. The walker stands behind the row then.
func (d *document) eachFile(v *versionRow, part []byte, w *walker, f func(i int, row *fileRow)) {
	w.reset(part, "$.versions", v.index, ".manifest")
	var row fileRow
	w.array(func(i int) {
		row = fileRow{}
		if w.object(func(name []byte) { row.read(w, name) }) {
			f(i, &row)
		}
	})
}

func (row *fileRow) read(w *walker, name []byte) {
	switch string(name) {
	case "file_name":
		row.name = w.bytes()
	case "file_hash":
		row.hash = w.bytes()
	case "s3_path":
		row.key = w.bytes()
	case "file_size":
		w.integer(&row.size, 0, maxID)
	default:
		w.skip()
	}
}

func (row *fileRow) judge(w *walker) bool {
	if len(row.name) == 0 {
		w.missing("file_name")
	}
	if len(row.hash) == 0 {
		w.missing("file_hash")
	}
	if len(row.key) == 0 {
		w.missing("s3_path")
	} else if fault := rowKeyFault(row.key); fault != "" {
		w.faultIn("s3_path", fault)
		return false
	}
	return len(row.name) > 0 && len(row.hash) > 0 && len(row.key) > 0
}

// file appends the entry of a delta file of the given version.
func (t *template) file(appID, version string, row *fileRow) {
	t.add(`{"file_name":`)
	t.quote(legacyFileName(row.name, row.key))
	t.add(`,"file_hash":`)
	t.quote(row.hash)
	t.add(`,"download_url":`)
	t.address(appID, row.key, version)
	t.add("}")
}

// legacyFileName undoes the escapes of rows written by old upload tools: those whose key ends in "_" and that very name
// (protocol 1.6).
func legacyFileName(name, key []byte) []byte {
	rest, same := bytes.CutSuffix(key, name)
	if bytes.IndexByte(name, '%') < 0 || !same || !bytes.HasSuffix(rest, []byte("_")) {
		return name
	}
	decoded, err := url.PathUnescape(string(name))
	if err != nil || !utf8.ValidString(decoded) {
		return name
	}
	return []byte(decoded)
}

// compile prepares the answer that offers the version.
func (d *document) compile(v *versionRow, files template) *Bundle {
	name, external := string(v.name), string(v.externalURL)
	hasZip := len(v.r2Path) > 0
	b := &Bundle{
		ID:      v.id,
		Name:    name,
		builtin: name == nameBuiltin,
		unknown: name == nameUnknown,
		gone:    v.gone(),
		stored:  external != "" || hasZip || !files.empty(),
		offered: hasZip || !files.empty(),
		keyID:   string(v.keyID),
		head:    d.compileHead(v),
		files:   files,
		mark:    v.mark,
	}
	b.number, b.isSem = numberOf(name)
	if b.hasMin = len(v.minUpdate) > 0; b.hasMin {
		b.minNative, b.minIsSem = numberOf(string(v.minUpdate))
	}
	if external != "" {
		b.external = newExternal(v, external)
		b.offered = b.external != nil
	}
	if b.stored && len(v.checksum) == 0 {
		d.warn(fmt.Sprintf("$.versions[%d].checksum", v.index), "is missing; plugins from 8.51.23 on refuse a bundle without it")
	}
	if len(v.link) > 0 {
		b.meta += `,"link":` + quoted(v.link)
	}
	if len(v.comment) > 0 {
		b.meta += `,"comment":` + quoted(v.comment)
	}
	return b
}

func (d *document) compileHead(v *versionRow) template {
	var t template
	t.add(beforeURL(v.name))
	switch {
	case len(v.externalURL) > 0:
		t.quote(v.externalURL)
	case len(v.r2Path) > 0:
		t.address(d.m.AppID, v.r2Path, v.zipVersion())
	default:
		t.quote([]byte(noZip))
	}
	t.add(`,"session_key":`)
	t.quote(v.sessionKey)
	t.add(`,"checksum":`)
	if v.checksum == nil {
		t.add("null")
	} else {
		t.quote(v.checksum)
	}
	return template{fit(t.text), fit(t.cuts)}
}

// beforeURL is what stands before the address of the zip in an answer that offers the version of that name.
func beforeURL[T string | []byte](name T) string { return `{"version":` + quoted(name) + `,"url":` }

// zipVersion is the value of "key" in the address of the zip (protocol 3.2).
func (v *versionRow) zipVersion() string { return url.QueryEscape(string(v.checksum)) }

func numberOf(name string) (version, bool) {
	v, _, err := parseVersion(name)
	return v, err == nil
}

func quoted[T string | []byte](s T) string {
	q, _ := jsontext.AppendQuote(nil, s)
	return string(q)
}
