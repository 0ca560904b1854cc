package cache

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"
	"unicode/utf8"
)

// Info describes an object.
type Info struct {
	Size     int64     // -1 while it is not known
	ETag     string    // as the origin gave it, for the same origin
	Modified time.Time // as the origin gave it
}

// pinned reports whether the origin can be asked for this very object again.
func (i *Info) pinned() bool { return i.ETag != "" || !i.Modified.IsZero() }

// objectRecord is the last line of a stored object's file. Content comes first, so that it begins where the file does and
// the file of a fill only ever grows.
//
//	content | record as JSON | its length, 4 bytes | its CRC-32, 4 bytes | recordMagic
type objectRecord struct {
	Format   int       `json:"format"`
	Scope    string    `json:"scope"`
	Name     string    `json:"name"`
	Size     int64     `json:"size"`
	ETag     string    `json:"etag,omitempty"`
	Modified time.Time `json:"modified,omitzero"`
	SHA256   string    `json:"sha256"` // of the content
	// Verified is what the content was verified to be, as Expect.text writes it.
	Verified string `json:"verified,omitempty"`

	verified Expect
}

const (
	objectFormat = 1
	recordMagic  = "capgoobj"
	footerSize   = 8 + int64(len(recordMagic))
	maxRecord    = 64 << 10
)

var errDamaged = errors.New("the stored object is damaged")

// of reports whether the record is that of key.
func (r *objectRecord) of(key Key) bool { return r.Scope == key.Scope && r.Name == key.Name }

func (r *objectRecord) info() Info { return Info{Size: r.Size, ETag: r.ETag, Modified: r.Modified} }

// verifiedAs are the names of what digests cover.
var verifiedAs = map[DigestOf]string{StoredDigest: "stored ", DecodedDigest: "decoded "}

// text writes what an object was verified to be; nothing if only its length was.
func (e *Expect) text() string {
	if e.Covers == NoDigest {
		return ""
	}
	return verifiedAs[e.Covers] + hex.EncodeToString(e.SHA256[:])
}

// parse reads what text wrote.
func (e *Expect) parse(text string) bool {
	if text == "" {
		return true
	}
	for covers, name := range verifiedAs {
		if digits, ok := strings.CutPrefix(text, name); ok && len(digits) == hex.EncodedLen(len(e.SHA256)) {
			e.Covers = covers
			_, err := hex.Decode(e.SHA256[:], []byte(digits))
			return err == nil
		}
	}
	return false
}

// admitted reports whether the object may be served as e: it was verified as that, or its own digest tells.
func (r *objectRecord) admitted(e *Expect) bool {
	return e.admits(&r.verified) || e.Covers == StoredDigest && hex.EncodeToString(e.SHA256[:]) == r.SHA256
}

// encode returns what follows the content.
func (r *objectRecord) encode() ([]byte, error) {
	if !utf8.ValidString(r.Scope) || !utf8.ValidString(r.Name) { // JSON would change them
		return nil, fmt.Errorf("%w: its name is no UTF-8", ErrNotStorable)
	}
	if !utf8.ValidString(r.ETag) { // an origin may send any byte
		without := *r
		without.ETag = ""
		r = &without
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStorable, err)
	}
	if len(text) > maxRecord {
		return nil, fmt.Errorf("%w: its name is too long", ErrNotStorable)
	}
	sum := crc32.ChecksumIEEE(text)
	text = binary.BigEndian.AppendUint32(text, uint32(len(text)))
	text = binary.BigEndian.AppendUint32(text, sum)
	return append(text, recordMagic...), nil
}

// readRecord reads the record of an open file of the given size.
func readRecord(f File, size int64) (*objectRecord, error) {
	if size < footerSize {
		return nil, fmt.Errorf("%w: it has no record", errDamaged)
	}
	tail := make([]byte, min(size, 1024)) // most records fit
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	length, sum, ok := footer(tail)
	if !ok || length+footerSize > size {
		return nil, fmt.Errorf("%w: it has no record", errDamaged)
	}
	if length+footerSize > int64(len(tail)) {
		tail = make([]byte, length+footerSize)
		if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
			return nil, err
		}
	}
	text := tail[int64(len(tail))-length-footerSize : int64(len(tail))-footerSize]
	if crc32.ChecksumIEEE(text) != sum {
		return nil, fmt.Errorf("%w: its record is", errDamaged)
	}
	return parseRecord(text, size-length-footerSize)
}

// recordIn returns the record of the entry's file, which is read at first use.
func (e *storedObject) recordIn(file File, key Key) (*objectRecord, error) {
	if r := e.record.Load(); r != nil {
		return r, nil
	}
	stat, err := file.Stat()
	if err != nil {
		return nil, err
	}
	r, err := readRecord(file, stat.Size())
	if err != nil {
		return nil, err
	}
	if !r.of(key) {
		return nil, fmt.Errorf("%w: it belongs to another name", errDamaged)
	}
	e.record.Store(r)
	return r, nil
}

func footer(tail []byte) (length int64, sum uint32, ok bool) {
	if int64(len(tail)) < footerSize || string(tail[len(tail)-len(recordMagic):]) != recordMagic {
		return 0, 0, false
	}
	tail = tail[int64(len(tail))-footerSize:]
	length = int64(binary.BigEndian.Uint32(tail))
	return length, binary.BigEndian.Uint32(tail[4:]), length <= maxRecord
}

func parseRecord(text []byte, size int64) (*objectRecord, error) {
	r := new(objectRecord)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	switch {
	case r.Format != objectFormat:
		return nil, fmt.Errorf("%w: its record has format %d, this version reads %d", errDamaged, r.Format, objectFormat)
	case !r.verified.parse(r.Verified):
		return nil, fmt.Errorf("%w: its record says it was verified as %q", errDamaged, r.Verified)
	case r.Size != size:
		return nil, fmt.Errorf("%w: it has %d bytes, its record tells %d", errDamaged, size, r.Size)
	}
	return r, nil
}
