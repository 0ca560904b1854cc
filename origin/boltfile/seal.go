package boltfile

import (
	"encoding/binary"
	"hash/crc32"
)

// A row's value ends in a checksum of its key and content, because bbolt has none for its pages.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SealSize is how many bytes Seal appends.
const SealSize = 4

func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// Seal appends the checksum to a value.
func Seal(key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, checksum(key, value))
}

// Unseal returns the value that was sealed, which is a part of sealed. It reports false if that is not what was written.
func Unseal(key, sealed []byte) (value []byte, ok bool) {
	at := len(sealed) - SealSize
	if at < 0 || binary.BigEndian.Uint32(sealed[at:]) != checksum(key, sealed[:at]) {
		return nil, false
	}
	return sealed[:at:at], true
}
