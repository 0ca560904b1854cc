package stats

import (
	"bytes"
	"hash/fnv"
	"reflect"
	"testing"
	"time"
)

// FuzzRecords reads what is no record: nothing panics, and what is accepted is what would be written.
func FuzzRecords(f *testing.F) {
	l := Lane{app: 7, n: 3}
	e := &entry{app: "a", device: 5, time: time.UnixMilli(1_800_000_000_000), data: []byte(`{"a":1}`)}
	key := eventKey(l, 9)
	f.Add(key, encodeHead(key, e))
	f.Add(partKey(key, 1), encodePart(partKey(key, 1), []byte("more")))
	f.Add(l.key(), encodeClaims(l.key(), []claim{{number: 4, seqs: []uint64{1, 2, 900}}, {number: 5, seqs: []uint64{3}}}))
	a := &app{number: 7, id: "com.example", confirmed: true, bytes: 1000, records: [Lanes]int64{1, 2, 3}}
	f.Add(a.key(), encodeApp(a.key(), a))
	f.Add(keyState, encodeState(keyState, &state{instance: 1, apps: 2, events: 3, batches: 4}))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if len(value) < crcLen {
			return
		}
		for _, sealed := range []bool{false, true} {
			if sealed { // the checksum keeps the fuzzer out else
				value = seal(key, bytes.Clone(value))
			}
			checkHead(t, key, value)
			if claims, err := decodeClaims(key, value); err == nil {
				again, err := decodeClaims(key, encodeClaims(key, claims))
				if err != nil || !reflect.DeepEqual(again, claims) {
					t.Errorf("claims %v become %v, %v", claims, again, err)
				}
			}
			if a, err := decodeApp(key, value); err == nil {
				again, err := decodeApp(key, encodeApp(key, a))
				if err != nil || *again != *a {
					t.Errorf("app %v becomes %v, %v", a, again, err)
				}
			}
			if s, err := decodeState(key, value); err == nil {
				again, err := decodeState(key, encodeState(key, &s))
				if err != nil || again != s {
					t.Errorf("state %v becomes %v, %v", s, again, err)
				}
			}
		}
	})
}

func checkHead(t *testing.T, key, value []byte) {
	t.Helper()
	h, err := decodeHead(key, value)
	if err != nil {
		return
	}
	data := append(bytes.Clone(h.data), make([]byte, h.length-len(h.data))...)
	again := encodeHead(key, &entry{device: h.device, time: h.time, data: data})
	if !bytes.Equal(again, value) {
		t.Errorf("%x becomes %x", value, again)
	}
}

// FuzzTree has the check of a file read what is no file of bbolt.
func FuzzTree(f *testing.F) {
	f.Add([]byte("nothing"))
	f.Fuzz(func(t *testing.T, page []byte) {
		file := fuzzFile(page)
		tree, err := openTree(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		tree.deep = true
		_ = tree.check() // it ends
		clear(tree.seen)
		tree.bad = func(error) error { return nil }
		tree.visit = func(_ string, key, value []byte) error {
			checkHead(t, key, value)
			return nil
		}
		if err := tree.walk(); err != nil {
			t.Error(err)
		}
	})
}

// fuzzFile is a file of bbolt with a valid meta page, whose other pages are made of what the fuzzer finds.
func fuzzFile(pages []byte) []byte {
	const size, count = 1024, 8
	file := make([]byte, size*count)
	meta := file[pageHeadLen:]
	native.PutUint32(meta, metaMagic)
	native.PutUint32(meta[4:], metaVersion)
	native.PutUint32(meta[8:], size)
	native.PutUint64(meta[16:], 3)
	native.PutUint64(meta[32:], 2)
	native.PutUint64(meta[40:], count)
	sum := fnv.New64a()
	sum.Write(meta[:metaLen-8])
	native.PutUint64(meta[metaLen-8:], sum.Sum64())
	copy(file[2*size:], pages)
	return file
}
