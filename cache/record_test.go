package cache

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"
)

// memFile is a File that holds some bytes.
type memFile struct{ *bytes.Reader }

func (memFile) Write([]byte) (int, error)  { return 0, os.ErrInvalid }
func (memFile) Close() error               { return nil }
func (memFile) Sync() error                { return nil }
func (memFile) Stat() (fs.FileInfo, error) { return nil, os.ErrInvalid }

func readBytes(raw []byte) (*objectRecord, error) {
	return readRecord(memFile{bytes.NewReader(raw)}, int64(len(raw)))
}

func testRecord() *objectRecord {
	expect := Expect{Covers: DecodedDigest, SHA256: [32]byte{1, 2, 3}}
	return &objectRecord{
		Format: objectFormat, Scope: "file /srv/a", Name: "b/c.zip", Size: 5, ETag: `W/"x"`,
		Modified: time.Unix(1e9, 0).UTC(), SHA256: strings.Repeat("ab", 32), Verified: expect.text(), verified: expect,
	}
}

func TestRecord(t *testing.T) {
	for _, name := range []string{"a", "ä \n\"", strings.Repeat("n", 2000), strings.Repeat("n", 60_000)} {
		r := testRecord()
		r.Name = name
		tail, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := readBytes(append([]byte("12345"), tail...))
		if err != nil || !got.of(Key{r.Scope, name}) || got.info() != r.info() || !got.verified.same(&r.verified) {
			t.Errorf("%d bytes of name: %+v, %v", len(name), got, err)
		}
		if got != nil && got.of(Key{r.Scope, "other"}) {
			t.Error("it is of any name")
		}
	}
}

// TestRecordRefuses what it could not read again.
func TestRecordRefuses(t *testing.T) {
	for _, change := range []func(r *objectRecord){
		func(r *objectRecord) { r.Name = strings.Repeat("n", maxRecord) },
		func(r *objectRecord) { r.Name = "\xff" },
		func(r *objectRecord) { r.Scope = "\xff" },
		func(r *objectRecord) { r.Modified = time.Date(12345, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		r := testRecord()
		change(r)
		if _, err := r.encode(); !errors.Is(err, ErrNotStorable) {
			t.Errorf("%.40q: %v", r.Name, err)
		}
	}
	r := testRecord()
	r.ETag = "\"\xff\"" // which only costs the ETag
	tail, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readBytes(append([]byte("12345"), tail...)); err != nil || got.ETag != "" || r.ETag == "" {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestRecordDamaged: any byte of a record that is changed, and any that is missing, is noticed.
func TestRecordDamaged(t *testing.T) {
	tail, err := testRecord().encode()
	if err != nil {
		t.Fatal(err)
	}
	whole := append([]byte("12345"), tail...)
	for i := range whole {
		raw := bytes.Clone(whole)
		raw[i] ^= 0x20
		if _, err := readBytes(raw); i >= 5 != errors.Is(err, errDamaged) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := readBytes(whole[:i]); !errors.Is(err, errDamaged) {
			t.Errorf("cut at %d: %v", i, err)
		}
		if _, err := readBytes(append(whole[:i:i], whole[i+1:]...)); !errors.Is(err, errDamaged) {
			t.Errorf("without byte %d: %v", i, err)
		}
	}
}

func TestRecordAdmits(t *testing.T) {
	digest := [32]byte{1}
	r := &objectRecord{SHA256: "01" + strings.Repeat("00", 31)}
	verified := &objectRecord{SHA256: strings.Repeat("00", 32), verified: Expect{Covers: DecodedDigest, SHA256: digest}}
	for _, tt := range []struct {
		name   string
		record *objectRecord
		expect Expect
		want   bool
	}{
		{"anything", r, Expect{}, true},
		{"its own digest", r, Expect{Covers: StoredDigest, SHA256: digest}, true},
		{"another", r, Expect{Covers: StoredDigest, SHA256: [32]byte{2}}, false},
		{"what it was not verified as", r, Expect{Covers: DecodedDigest, SHA256: digest}, false},
		{"what it was verified as", verified, Expect{Covers: DecodedDigest, SHA256: digest}, true},
		{"the same of the stored bytes", verified, Expect{Covers: StoredDigest, SHA256: digest}, false},
	} {
		if got := tt.record.admitted(&tt.expect); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// FuzzRecord: no file makes the reader of records panic, and what it takes it writes the same.
func FuzzRecord(f *testing.F) {
	tail, err := testRecord().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte("12345"), tail...))
	f.Add([]byte(recordMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := readBytes(raw)
		if err != nil {
			return
		}
		if r.Size > int64(len(raw)) || r.Size < 0 {
			t.Fatalf("%d bytes of %d", r.Size, len(raw))
		}
		again, err := r.encode()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		got, err := readBytes(append(bytes.Clone(raw[:r.Size]), again...))
		if err != nil || got.info() != r.info() && !got.Modified.Equal(r.Modified) || !got.verified.same(&r.verified) || got.Name != r.Name {
			t.Fatalf("%+v became %+v, %v", r, got, err)
		}
	})
}

// FuzzRecordText: the same behind the checksum, where a fuzzer gets no further by itself.
func FuzzRecordText(f *testing.F) {
	f.Add([]byte(`{"format":1,"scope":"a","name":"b","size":5,"sha256":"00","verified":"stored 00"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRecord(text, 5)
		if err != nil || len(text) > maxRecord/8 { // some grow when they are written: "<" by 6
			return
		}
		if _, err := r.encode(); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
	})
}
