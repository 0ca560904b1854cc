package stats

import (
	"bytes"
	"os"
	"reflect"
	"strconv"
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
	f.Add(keyState, encodeState(keyState, &state{instance: 1, apps: 2, events: 3}))
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

// FuzzTree spoils the file of a spool: the check of it, and what saves the rest, end without a panic and find only what was written.
func FuzzTree(f *testing.F) {
	path := f.TempDir() + "/s.db"
	s, err := OpenSpool(SpoolOptions{Path: path, MaxBytes: 1 << 20})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 40 {
		err := s.Append(f.Context(), Event{App: "a", Device: strconv.Itoa(i), Data: bytes.Repeat([]byte("x"), 100*i)})
		if err != nil {
			f.Fatal(err)
		}
	}
	s.Close()
	file, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), uint32(5000), []byte("nothing"), uint32(0))
	f.Add(uint32(4096*5), uint32(10), []byte{1, 0}, uint32(100))
	f.Fuzz(func(t *testing.T, first, second uint32, patch []byte, cut uint32) {
		spoiled := bytes.Clone(file[:len(file)-int(cut)%len(file)])
		for _, at := range []uint32{first, second} {
			if int(at) < len(spoiled) {
				copy(spoiled[at:], patch)
			}
		}
		tree, err := openTree(bytes.NewReader(spoiled), int64(len(spoiled)))
		if err != nil {
			return
		}
		_ = tree.check() // whatever it finds
		clear(tree.seen)
		tree.deep = true
		_ = tree.check()
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
