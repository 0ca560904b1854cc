package resolver

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
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
	id, index int64
	hasID     bool
	deleted   bool

	name, externalURL, r2Path, checksum, sessionKey string
	keyID, minUpdate, link, comment                 string

	files span // the rows of its delta list, relative to versions
}

// plain reports that digests of this version are those of the bytes before any encryption (contract section 3).
func (v *versionRow) plain() bool { return v.sessionKey == "" }

// readVersions reads the rows of versions, compiles those that a channel points at and collects the keys of all.
func (d *document) readVersions() {
	part := d.doc[d.versions.from:d.versions.to]
	if len(part) == 0 {
		return
	}
	w := newWalker(part, "$.versions", &d.faults)
	files := newWalker(nil, "", &d.faults)
	w.array(func(i int) {
		v := versionRow{index: int64(i)}
		if w.object(func(name string) { v.read(w, name) }) {
			d.addVersion(&v, part, files)
		}
	})
}

func (v *versionRow) read(w *walker, name string) {
	var ignored int64
	switch name {
	case "id":
		v.hasID = w.integer(&v.id, minID, maxID)
	case "name":
		w.string(&v.name)
	case "deleted":
		w.bool(&v.deleted)
	case "external_url":
		w.string(&v.externalURL)
	case "r2_path":
		w.string(&v.r2Path)
	case "checksum":
		w.string(&v.checksum)
	case "session_key":
		w.string(&v.sessionKey)
	case "key_id":
		w.string(&v.keyID)
	case "min_update_version":
		w.string(&v.minUpdate)
	case "link":
		w.string(&v.link)
	case "comment":
		w.string(&v.comment)
	case "manifest":
		v.files = w.span()
	case "manifest_count":
		w.integer(&ignored, 0, maxID)
	default:
		w.skip()
	}
}

// addVersion judges a row, notes its keys and compiles it if it is in use. part is the text of all versions.
func (d *document) addVersion(v *versionRow, part []byte, files *walker) {
	path := func(member string) string { return fmt.Sprintf("$.versions[%d].%s", v.index, member) }
	if v.name == "" {
		d.faults.add(path("name"), "is required")
	}
	if first, twice := d.versionIDs[v.id]; !v.hasID {
		d.faults.add(path("id"), "is required")
	} else if twice {
		d.faults.add(path("id"), fmt.Sprintf("is the id of $.versions[%d] already", first))
	}
	d.versionIDs[v.id] = int(v.index)

	if v.r2Path != "" {
		if fault := KeyFault(v.r2Path); fault != "" {
			d.faults.add(path("r2_path"), fault)
		}
		d.keys.add(idOf(v.r2Path), v.object([]byte(v.checksum), 0, DigestStored))
	}
	_, used := d.used[v.id]
	var list []byte
	if used && v.externalURL == "" {
		list = []byte(`,"manifest":[`)
	}
	compiled := d.readFiles(v, part[v.files.from:v.files.to], files, list)
	if used {
		d.used[v.id] = d.compile(v, compiled)
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

// fileRow is one delta file. Its texts are buffers that the next row reuses: a document may have a million rows.
type fileRow struct {
	name, hash, key []byte
	size            int64
}

// readFiles notes the keys of a delta list and, where list is not nil, appends its entries to list as prepared JSON.
func (d *document) readFiles(v *versionRow, part []byte, w *walker, list []byte) template {
	if len(part) == 0 {
		return template{}
	}
	w.reset(part, "$.versions", int(v.index), ".manifest")
	var row fileRow
	b := templateBuilder{text: list}
	count := 0
	w.array(func(i int) {
		row.name, row.hash, row.key, row.size = row.name[:0], row.hash[:0], row.key[:0], 0
		if !w.object(func(name string) { row.read(w, name) }) || !d.judgeFile(v, i, &row) {
			return
		}
		covers := DigestStored
		if strings.HasSuffix(string(row.key), ".br") {
			covers = DigestDecoded
		}
		d.keys.add(idOf(row.key), v.object(row.hash, row.size, covers))
		if list != nil {
			d.appendFile(&b, v, &row, count)
			count++
		}
	})
	if count == 0 {
		return template{}
	}
	b.text = append(b.text, ']')
	return b.template()
}

func (row *fileRow) read(w *walker, name string) {
	switch name {
	case "file_name":
		row.name = append(row.name, w.bytes()...)
	case "file_hash":
		row.hash = append(row.hash, w.bytes()...)
	case "s3_path":
		row.key = append(row.key, w.bytes()...)
	case "file_size":
		w.integer(&row.size, 0, maxID)
	default:
		w.skip()
	}
}

func (d *document) judgeFile(v *versionRow, i int, row *fileRow) bool {
	fault := func(member, message string) bool {
		d.faults.add(fmt.Sprintf("$.versions[%d].manifest[%d].%s", v.index, i, member), message)
		return false
	}
	switch {
	case len(row.name) == 0:
		return fault("file_name", "is required")
	case len(row.hash) == 0:
		return fault("file_hash", "is required")
	case len(row.key) == 0:
		return fault("s3_path", "is required")
	}
	if message := KeyFault(string(row.key)); message != "" {
		return fault("s3_path", message)
	}
	return true
}

func (d *document) appendFile(b *templateBuilder, v *versionRow, row *fileRow, count int) {
	if count > 0 {
		b.text = append(b.text, ',')
	}
	key := string(row.key)
	b.text = append(b.text, `{"file_name":`...)
	b.quote(legacyFileName(string(row.name), key))
	b.text = append(b.text, `,"file_hash":`...)
	b.quote(string(row.hash))
	b.text = append(b.text, `,"download_url":"`...)
	b.address(d.m.AppID, key, strconv.FormatInt(v.id, 10))
	b.text = append(b.text, `"}`...)
}

// legacyFileName undoes the escapes of rows written by old upload tools: those whose key ends in "_" and that very name
// (protocol 1.6).
func legacyFileName(name, key string) string {
	if !strings.Contains(name, "%") || !strings.HasSuffix(key, "_"+name) {
		return name
	}
	decoded, err := url.PathUnescape(name)
	if err != nil || !utf8.ValidString(decoded) {
		return name
	}
	return decoded
}

// compile prepares the answer that offers the version.
func (d *document) compile(v *versionRow, files template) *Bundle {
	b := &Bundle{
		ID:      v.id,
		Name:    v.name,
		builtin: v.name == nameBuiltin,
		unknown: v.name == nameUnknown,
		gone:    v.deleted && v.name != nameBuiltin,
		stored:  v.externalURL != "" || v.r2Path != "" || !files.empty(),
		keyID:   v.keyID,
		files:   files,
	}
	b.number, b.isSem = numberOf(v.name)
	if b.hasMin = v.minUpdate != ""; b.hasMin {
		b.minNative, b.minIsSem = numberOf(v.minUpdate)
	}
	b.offered = v.r2Path != "" || !files.empty()
	if v.externalURL != "" {
		b.offered = isWebAddress(v.externalURL)
	}
	if b.stored && v.checksum == "" {
		d.warn(fmt.Sprintf("$.versions[%d].checksum", v.index), "is missing; plugins from 8.51.23 on refuse a bundle without it")
	}
	b.head = d.compileHead(v)
	if v.link != "" {
		b.meta += `,"link":` + quoted(v.link)
	}
	if v.comment != "" {
		b.meta += `,"comment":` + quoted(v.comment)
	}
	return b
}

func (d *document) compileHead(v *versionRow) template {
	var b templateBuilder
	b.text = append(b.text, `{"version":`...)
	b.quote(v.name)
	b.text = append(b.text, `,"url":`...)
	switch {
	case v.externalURL != "":
		b.quote(v.externalURL)
	case v.r2Path != "":
		b.text = append(b.text, '"')
		b.address(d.m.AppID, v.r2Path, v.checksum)
		b.text = append(b.text, '"')
	default:
		b.quote(noZip)
	}
	b.text = append(b.text, `,"session_key":`...)
	b.quote(v.sessionKey)
	b.text = append(b.text, `,"checksum":`...)
	if v.checksum == "" {
		b.text = append(b.text, "null"...)
	} else {
		b.quote(v.checksum)
	}
	return b.template()
}

func numberOf(name string) (version, bool) {
	v, _, err := parseVersion(name)
	return v, err == nil
}

func isWebAddress(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

func quoted(s string) string {
	q, _ := jsontext.AppendQuote(nil, s)
	return string(q)
}
