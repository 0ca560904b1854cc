package learned

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

// seal makes a row's value of what was encoded, with room for that.
func seal(k rowKey, value []byte) []byte { return boltfile.Seal(k.inTable(), value) }

// unseal returns a copy of what was sealed. It reports false if that is not what was written.
func unseal(key, sealed []byte) ([]byte, bool) {
	value, ok := boltfile.Unseal(key, sealed)
	return bytes.Clone(value), ok
}

// An object's value: its flags, the day it was last used, its size, its digest, and its address to the end.
const (
	dayAt      = 1
	sizeAt     = dayAt + 4
	digestAt   = sizeAt + 8
	addressAt  = digestAt + 32
	coversMask = 0x03
	immutable  = 0x04
)

// encode makes the value of an object that was used on a day.
func (o *Object) encode(day uint32) []byte {
	flags := byte(o.Covers) & coversMask
	if o.Immutable {
		flags |= immutable
	}
	value := make([]byte, 0, addressAt+len(o.URL)+boltfile.SealSize)
	value = append(value, flags)
	value = binary.BigEndian.AppendUint32(value, day)
	value = binary.BigEndian.AppendUint64(value, uint64(o.Size))
	value = append(value, o.SHA256[:]...)
	return append(value, o.URL...)
}

// decodeObject reads a value. It reports false for what no release wrote.
func decodeObject(key string, value []byte) (o Object, day uint32, ok bool) {
	if len(value) < addressAt {
		return Object{}, 0, false
	}
	return Object{
		Key: key, URL: string(value[addressAt:]), SHA256: [32]byte(value[digestAt:]), Covers: Covers(value[0] & coversMask),
		Size: int64(binary.BigEndian.Uint64(value[sizeAt:])), Immutable: value[0]&immutable != 0,
	}, binary.BigEndian.Uint32(value[dayAt:]), true
}

// An answer's value: when it was given, in milliseconds since 1970, then the answer. That of a note is made alike.
const answerAt = 8

func encodeAnswer(answer []byte, at time.Time) []byte {
	value := make([]byte, 0, answerAt+len(answer)+boltfile.SealSize)
	return append(binary.BigEndian.AppendUint64(value, uint64(at.UnixMilli())), answer...)
}

func decodeAnswer(value []byte) (answer []byte, at time.Time, ok bool) {
	if len(value) < answerAt {
		return nil, time.Time{}, false
	}
	return value[answerAt:], time.UnixMilli(int64(binary.BigEndian.Uint64(value))), true
}

// dayOf counts days since 1970.
func dayOf(t time.Time) uint32 { return uint32(t.Unix() / (24 * 60 * 60)) }

// hourOf is when a row was last used, in hours since 1970, as the bound takes it. Objects count as used until the end of the
// day, so that of a day's rows the answers go first: an address that was given out must be served.
func hourOf(t table, sealed []byte) int64 {
	switch {
	case t == objects && len(sealed) >= addressAt:
		return int64(binary.BigEndian.Uint32(sealed[dayAt:]))*24 + 23
	case t != objects && len(sealed) >= answerAt:
		return int64(binary.BigEndian.Uint64(sealed)) / time.Hour.Milliseconds()
	}
	return 0 // damaged
}
