package resolver

import (
	"iter"
	"net/url"
)

// ChannelOffer is what one channel can offer, for who wants to have its objects at hand before the first device asks.
type ChannelOffer struct {
	Name   string
	Public bool

	// Stable is the bundle for all devices. It is nil if none can be offered it, whoever asks: the native bundle, a deleted
	// one, a placeholder.
	Stable *Bundle
	// Target is the bundle of a rollout that goes on. It is nil if there is none, and also while the rollout is off, paused
	// or at 0: devices that run the target keep it then (protocol 2.3 row 2), but no further one is given it.
	Target *Bundle
}

// Channels yields what the channels can offer, in the order of the document. A bundle may be offered by several.
func (m *Manifest) Channels() iter.Seq[ChannelOffer] {
	return func(yield func(ChannelOffer) bool) {
		for i := range m.channels {
			if !yield(m.channels[i].offer()) {
				return
			}
		}
	}
}

func (ch *channel) offer() ChannelOffer {
	o := ChannelOffer{Name: ch.name, Public: ch.public}
	if ch.stable.offerable() {
		o.Stable = ch.stable
	}
	// A channel whose own bundle was deleted is never selected, so its rollout reaches nobody (protocol 2.1).
	if r := &ch.rollout; !ch.hidden() && r.gives() && r.target.offerable() {
		o.Target = r.target
	}
	return o
}

// Objects yields the object keys whose addresses an answer that offers the bundle hands out: that of the zip, then those
// of the delta files in their order, each once. With each comes what m knows of the object. m is the manifest that the
// bundle belongs to; keys it does not name are left out, because the edge does not serve them (contract section 3). So is
// the zip of an external bundle: see External.
func (b *Bundle) Objects(m *Manifest) iter.Seq2[string, Object] {
	return func(yield func(string, Object) bool) {
		seen := make(map[string]bool, len(b.head.cuts)+len(b.files.cuts))
		for path := range b.paths() {
			key, o, ok := m.Keys.meant(path)
			if !ok || seen[key] {
				continue
			}
			seen[key] = true
			if !yield(key, o) {
				return
			}
		}
	}
}

// paths yields the escaped key of each address on this edge in the bundle's answer.
func (b *Bundle) paths() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, t := range []*template{&b.head, &b.files} {
			for _, cut := range t.cuts {
				if path, _ := t.addressAt(cut); !yield(path) {
					return
				}
			}
		}
	}
}

// meant returns the key that the escaped path of an address stands for, and whether k has it. That is the one found when a
// device asks for it: of those that KeysOfPath tells, the first that is named, or the first if none is. What no key may be
// is not looked for here, as no manifest names it.
func (k *Keys) meant(path string) (key string, o Object, ok bool) {
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return path, Object{}, false
	}
	if o, ok = k.Find(decoded); ok || decoded == path {
		return decoded, o, ok
	}
	if o, ok = k.Find(path); ok {
		return path, o, true
	}
	return decoded, Object{}, false
}
