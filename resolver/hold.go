package resolver

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Hold returns a variant of m that goes on offering what prev offered, in place of bundles that are held: an edge announces
// a release once the objects of it are stored there, not before (contract section 5, "announce warm"). held is asked about
// bundles of m that a device can be offered, at most once about each. If nothing changes the result is m itself; m and prev
// never change.
//
// A channel whose stable bundle is held points at the one that the channel of the same id had in prev, if that goes
// forward and can still be served:
//   - The previous bundle has a smaller id, or is the native one. A rollback is never held: it is how an operator stops
//     a release that does harm.
//   - It was offered, and m still has it: a version of that id that is not deleted, of the same name, zip and keys, and all
//     delta files of its answer. Addresses that m does not name would stop working before long.
//
// A channel whose rollout goes on and has a target that is held gets prev's rollout as a whole, under the same two
// conditions for its target, if the channel's stable bundle is the one it had in prev: then it is where it was. Otherwise
// the rollout counts as paused. And where the stable bundle is held and m has ended the rollout that prev had, that rollout
// counts as paused instead: the devices that run its target wait where they are for the new bundle, and are not sent back
// to the previous one meanwhile.
//
// All else is m's: policies, flags, overrides, and channels that are new. prev is what was offered until now, itself a
// variant if releases follow each other while none is at hand; nil if nothing was.
//
// The variant is for devices that m would offer a held bundle, and for them alone. One that runs such a bundle already, as
// another site was earlier, is up to date under m, while the variant might take it back. So callers decide by m first:
//
//	d := m.Decide(c)
//	if d.Outcome == Offer && held(d.Bundle) {
//		d = variant.Decide(c)
//	}
func (m *Manifest) Hold(prev *Manifest, held func(*Bundle) bool) *Manifest {
	h := holder{m: m, held: held, verdicts: map[*Bundle]bool{}, served: map[*Bundle]bool{}}
	h.remember(prev)
	var variant *Manifest
	for i := range m.channels {
		ch := h.channel(&m.channels[i])
		if ch == m.channels[i] {
			continue
		}
		if variant == nil {
			copied := *m
			copied.channels = slices.Clone(m.channels)
			variant = &copied
		}
		variant.channels[i] = ch
	}
	if variant == nil {
		return m
	}
	variant.indexRollouts()
	return variant
}

// holder is the state of one Hold.
type holder struct {
	m        *Manifest
	held     func(*Bundle) bool
	before   map[int64]*channel // prev's channels by id
	verdicts map[*Bundle]bool   // of held
	served   map[*Bundle]bool   // of m.serves
}

func (h *holder) remember(prev *Manifest) {
	if prev == nil {
		return
	}
	h.before = make(map[int64]*channel, len(prev.channels))
	for i := range prev.channels {
		h.before[prev.channels[i].id] = &prev.channels[i]
	}
}

// channel returns ch as the variant has it.
func (h *holder) channel(ch *channel) channel {
	v, old := *ch, h.before[ch.id]
	if ch.hidden() {
		return v // no device is led here
	}
	if old != nil && h.isHeld(ch.stable) && h.mayStay(old.stable, ch.stable) {
		v.stable = old.stable
		if !ch.rollout.live() && h.mayRun(&old.rollout, ch.stable) {
			v.rollout = old.rollout
			v.rollout.paused = true
		}
	}
	if r := &ch.rollout; r.gives() && h.isHeld(r.target) {
		if old != nil && sameVersion(v.stable, old.stable) && h.mayRun(&old.rollout, r.target) {
			v.rollout = old.rollout
		} else {
			v.rollout.paused = true
		}
	}
	return v
}

func (h *holder) isHeld(b *Bundle) bool {
	return b.offerable() && remembered(h.verdicts, b, h.held)
}

// mayStay reports whether devices may be offered old a little longer although its place was taken by next.
func (h *holder) mayStay(old, next *Bundle) bool {
	return old.builtin || old.ID < next.ID && old.offerable() && remembered(h.served, old, h.m.serves)
}

// mayRun is mayStay for the target of a rollout. A paused one may run too: that is, stay paused.
func (h *holder) mayRun(old *rollout, next *Bundle) bool {
	return old.live() && h.mayStay(old.target, next)
}

// remembered is f(b), asked once.
func remembered(known map[*Bundle]bool, b *Bundle, f func(*Bundle) bool) bool {
	answer, ok := known[b]
	if !ok {
		answer = f(b)
		known[b] = answer
	}
	return answer
}

// sameVersion reports whether two bundles, of two manifests of one application, are one version.
func sameVersion(a, b *Bundle) bool { return a.ID == b.ID && a.Name == b.Name }

// serves reports whether m still has the version that b was compiled from, in a manifest before it, and names all keys
// that the answer of b hands out.
func (m *Manifest) serves(b *Bundle) bool {
	if !m.versions.has(versionMark{b.ID, b.mark}) {
		return false
	}
	for path := range b.paths() {
		if _, _, ok := m.Keys.meant(path); !ok {
			return false
		}
	}
	return true
}

// versionMark tells a version from what another document says of the one with its id. Rows of versions that no channel
// points at are not kept, so it is all that is known of most. mark is a digest of what makes the version's answer, except
// for the delta list, of which the keys are known, and link and comment, which change nothing about what a device loads.
type versionMark struct {
	id   int64
	mark uint64
}

const versionMarkSize = 16

// versionMarks are those of the versions that are not deleted, sorted by id.
type versionMarks []versionMark

// newVersionMarks has room for the versions in part, the text of all rows.
func newVersionMarks(part []byte) versionMarks {
	const shortest = `{"id":1,"name":"1"},`
	return make(versionMarks, 0, min(bytes.Count(part, []byte(`"name":`)), len(part)/len(shortest)+1))
}

// markVersion notes the mark of a row.
func (d *document) markVersion(v *versionRow) {
	d.room = d.room[:0]
	for _, text := range [...][]byte{v.name, v.externalURL, v.r2Path, v.checksum, v.sessionKey, v.keyID, v.minUpdate} {
		d.room = binary.AppendUvarint(d.room, uint64(len(text)))
		d.room = append(d.room, text...)
	}
	sum := sha256.Sum256(d.room)
	v.mark = binary.BigEndian.Uint64(sum[:])
	if !v.gone() {
		d.marks = append(d.marks, versionMark{v.id, v.mark})
		d.names = append(d.names, nameDigest(v.name))
	}
}

// sorted brings the marks into order. s must not be used afterwards.
func (s versionMarks) sorted() versionMarks {
	slices.SortFunc(s, func(a, b versionMark) int { return cmp.Compare(a.id, b.id) })
	return fit(s)
}

func (s versionMarks) has(v versionMark) bool {
	i, ok := slices.BinarySearchFunc(s, v.id, func(e versionMark, id int64) int { return cmp.Compare(e.id, id) })
	return ok && s[i] == v
}
