package resolver

import (
	"bytes"
	"slices"
)

// Ambiguous reports whether servers may read a body in two ways: a member that counts stands there twice, or in other letters.
// The parsers of some take the last of equal names and those of others the first, and some do not tell "Platform" from
// "platform" (protocol 7: those in Go, by encoding/json). So such a check may be answered for another platform than the one in
// its key: give the answer to the device that asked, and to no other. app reports that it is app_id that may be read so; who
// goes by the app must refuse such a body.
//
// What counts are the fields of the protocol's bodies, and those of f. body must be valid JSON; of plain ones nothing is
// copied.
func (f *KeyFields) Ambiguous(body []byte) (ambiguous, app bool) {
	var seen uint64
	for s := skim(body, 0); ; {
		name, _, ok := s.member()
		if !ok {
			return ambiguous, app
		}
		i, twin := f.exact(name), false
		if i < 0 {
			i, twin = f.folded(name), true
		}
		if i < 0 {
			continue
		}
		if twin || seen&(1<<i) != 0 {
			ambiguous = true
			app = app || i == fAppID
		}
		seen |= 1 << i
	}
}

// folded returns the index in names of the field that a name stands for in other letters, or -1. encoding/json and its like
// take a letter for all of its simple foldings in Unicode.
func (f *KeyFields) folded(name []byte) int {
	return slices.IndexFunc(f.names, func(known []byte) bool { return bytes.EqualFold(name, known) })
}
