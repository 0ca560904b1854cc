package caddymodule

import (
	"encoding/binary"
	"time"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// retiredFormat is the first byte of what encodeRetired writes. The form before it began with a time, whose first byte is
// never below 128.
const retiredFormat = 2

// encodeRetired writes the keys of earlier revisions for the last good copy, so that a restart does not forget them:
//
//	format, then for each revision: until, length of its keys, keys, number of external objects,
//	and for each of those: key, URL, what its digest covers, digest
func encodeRetired(retired []retiredKeys) []byte {
	if len(retired) == 0 {
		return nil
	}
	memo := []byte{retiredFormat}
	for _, r := range retired {
		memo = binary.AppendVarint(memo, r.until.Unix())
		memo = appendText(memo, r.keys.AppendBinary(nil))
		memo = binary.AppendUvarint(memo, uint64(len(r.externals)))
		for key, e := range r.externals {
			memo = appendText(memo, []byte(key))
			memo = appendText(memo, []byte(e.url))
			memo = append(memo, byte(e.known.Covers))
			memo = append(memo, e.known.SHA256[:]...)
		}
	}
	return memo
}

func appendText(dst, text []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(text))), text...)
}

// decodeRetired reads what encodeRetired wrote. What cannot be read is left out: such keys are only a courtesy.
func decodeRetired(memo []byte) []retiredKeys {
	if len(memo) == 0 || memo[0] != retiredFormat {
		return nil
	}
	m := memoReader{rest: memo[1:]}
	var retired []retiredKeys
	for len(m.rest) > 0 {
		r := retiredKeys{until: time.Unix(m.varint(), 0)}
		keys, ok := resolver.ParseKeys(m.text())
		if !ok || m.failed {
			return retired
		}
		r.keys = keys
		r.externals = m.externals()
		if m.failed {
			return retired
		}
		retired = append(retired, r)
	}
	return retired
}

// memoReader reads a memo; once something is not there it has failed, and reads nothing more.
type memoReader struct {
	rest   []byte
	failed bool
}

func (m *memoReader) fail() {
	m.rest, m.failed = nil, true
}

func (m *memoReader) varint() int64 {
	v, n := binary.Varint(m.rest)
	if n <= 0 {
		m.fail()
		return 0
	}
	m.rest = m.rest[n:]
	return v
}

func (m *memoReader) uvarint() uint64 {
	v, n := binary.Uvarint(m.rest)
	if n <= 0 {
		m.fail()
		return 0
	}
	m.rest = m.rest[n:]
	return v
}

func (m *memoReader) take(n uint64) []byte {
	if n > uint64(len(m.rest)) {
		m.fail()
		return nil
	}
	taken := m.rest[:n]
	m.rest = m.rest[n:]
	return taken
}

func (m *memoReader) text() []byte { return m.take(m.uvarint()) }

func (m *memoReader) externals() map[string]externalObject {
	n := m.uvarint()
	if n > uint64(len(m.rest)) {
		m.fail()
	}
	if n == 0 || m.failed {
		return nil
	}
	externals := make(map[string]externalObject, n)
	for range n {
		key, url := string(m.text()), string(m.text())
		covers, digest := m.take(1), m.take(32)
		if m.failed || resolver.DigestOf(covers[0]) > resolver.DigestStored {
			m.fail()
			return nil
		}
		externals[key] = externalObject{url, resolver.Object{
			SHA256: [32]byte(digest), Covers: resolver.DigestOf(covers[0]),
		}}
	}
	return externals
}
