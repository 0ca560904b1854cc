package resolver

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"net/url"
	"slices"
	"strings"
)

// CompileOptions say what becomes of an upstream's answer.
type CompileOptions struct {
	// Rewrite is asked about each of the Addresses, in their order. It returns what goes behind FilesPath at this edge, the
	// escaped key with its query: Placement.Path is such. If ok is false, or path holds what a URL or JSON must escape, the
	// address stays as it is. Nil rewrites none.
	Rewrite func(i int, a Address) (path string, ok bool)
	// DeviceID is the device that asked. NamesDevice is told by it.
	DeviceID string
	// AddKind adds "kind" to an answer that has an "error" of protocol 1.5 and no kind, or a null or empty one: clients report a
	// failed download without it (protocol 1.8). A code that only another server has says nothing of its kind, and is left as it is.
	AddKind bool
}

// Learned is an upstream's answer, prepared for every device that it fits: the bytes that the upstream sent, but for the
// addresses that lead to this edge now. It is immutable.
type Learned struct {
	Class   AnswerClass
	Version string // of an offer, or the one that an answer without an update tells
	Code    string
	Kind    string // as it is sent on, so also one that was added

	// Keep is false if the answer must not be kept: it is neither an offer nor a refusal of one, or an address that stays as it
	// is ends at a time that it does not tell.
	Keep bool
	// Expires is the Unix time, in seconds, at which the first of the addresses that stay as they are ends; 0 if none tells one.
	Expires int64
	// NamesDevice reports that the answer names the device that asked, other than in an address that was rewritten. Such an
	// answer is not another device's.
	NamesDevice bool

	answer   template
	identity [sha256.Size]byte
}

// Compile prepares the answer. That of a class other than AnswerOffer and AnswerNoUpdate is passed on as it came.
func (a *Answer) Compile(o CompileOptions) *Learned {
	c := compiler{answer: a, learned: Learned{
		Class: a.Class, Version: a.Version, Code: a.Code, Kind: a.Kind,
		Keep: a.Class == AnswerOffer || a.Class == AnswerNoUpdate,
	}, same: sha256.New()}
	c.learned.answer.text = make([]byte, 0, len(a.body)+64)
	for _, p := range a.relocations(o.Rewrite) {
		c.copy(p.at.from)
		if p.path != "" {
			c.rewrite(p.path)
		} else {
			c.leave(p.Address)
		}
		c.from = p.at.to
	}
	if o.AddKind && a.Class == AnswerNoUpdate && a.Kind == "" {
		c.addKind()
	}
	c.copy(len(a.body))
	l := c.learned
	l.answer = template{fit(l.answer.text), fit(l.answer.cuts)}
	l.NamesDevice = o.DeviceID != "" && bytes.Contains(bytes.ToLower(l.answer.text), []byte(strings.ToLower(o.DeviceID)))
	c.same.Sum(l.identity[:0])
	return &l
}

// relocation is an address, and where it leads to now: "" leaves it as it is.
type relocation struct {
	Address
	path string
}

// relocations returns the addresses as they follow each other in the body.
func (a *Answer) relocations(rewrite func(int, Address) (string, bool)) []relocation {
	list := make([]relocation, len(a.Addresses))
	for i, address := range a.Addresses {
		list[i].Address = address
		if rewrite == nil {
			continue
		}
		if path, ok := rewrite(i, address); ok && isAddressText(path) {
			list[i].path = path
		}
	}
	slices.SortFunc(list, func(a, b relocation) int { return cmp.Compare(a.at.from, b.at.from) })
	return list
}

// isAddressText reports whether s may stand in an address within JSON as it is.
func isAddressText(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '?' && c != '%' && !isPathByte(c) {
			return false
		}
	}
	return true
}

// compiler writes an answer, and along with it what makes two answers the same.
type compiler struct {
	answer  *Answer
	learned Learned
	same    hash.Hash
	from    int // of what is still to be copied
}

// The kinds of what follows each other in an answer.
const (
	partCopied byte = iota
	partRewritten
	partLeft
)

// means adds a part to what makes two answers the same.
func (c *compiler) means(part byte, text []byte) {
	var head [1 + binary.MaxVarintLen64]byte
	c.same.Write(binary.AppendUvarint(append(head[:0], part), uint64(len(text))))
	c.same.Write(text)
}

// copy takes over what the upstream sent, up to a place in its body.
func (c *compiler) copy(to int) {
	text := c.answer.body[c.from:to]
	c.learned.answer.text = append(c.learned.answer.text, text...)
	c.means(partCopied, text)
	c.from = to
}

// rewrite writes an address at this edge.
func (c *compiler) rewrite(path string) {
	t := &c.learned.answer
	t.add(`"`)
	t.cuts = append(t.cuts, len(t.text))
	t.add(FilesPath)
	t.add(path)
	t.add(`"`)
	c.means(partRewritten, []byte(path))
}

// leave takes over an address as it is. What changes from one answer to the next in it makes no other answer.
func (c *compiler) leave(a Address) {
	l := &c.learned
	l.answer.text = append(l.answer.text, c.answer.body[a.at.from:a.at.to]...)
	c.means(partLeft, []byte(stableURL(a.URL)))
	expires, known, signed := ExpiryOf(a.URL)
	switch {
	case known && (l.Expires == 0 || expires < l.Expires):
		l.Expires = expires
	case signed && !known:
		l.Keep = false
	}
}

// addKind puts the kind in place of one that says nothing, or copies up to the end of the object and adds the member.
func (c *compiler) addKind() {
	kind, ok := kindOf(c.answer.Code)
	if !ok {
		return
	}
	text := `"` + kind.String() + `"`
	if at := c.answer.kindAt; at != (span{}) {
		c.copy(at.from)
		c.from = at.to
	} else {
		c.copy(bytes.LastIndexByte(c.answer.body, '}'))
		text = `,"kind":` + text
	}
	c.learned.answer.text = append(c.learned.answer.text, text...)
	c.means(partCopied, []byte(text))
	c.learned.Kind = kind.String()
}

// kindOf is the kind of the answers with a code (protocol 1.5, rows 8 to 26).
func kindOf(code string) (Outcome, bool) {
	for i := range rules {
		if rules[i].code == code {
			return rules[i].outcome, true
		}
	}
	return Failed, false
}

// Append appends the answer. base is the public address of the edge, as for AppendResponse.
func (l *Learned) Append(dst []byte, base string) []byte { return l.answer.append(dst, base) }

// MemorySize estimates the bytes the answer keeps in memory.
func (l *Learned) MemorySize() int64 {
	return 224 + l.answer.size() + int64(len(l.Version)+len(l.Code)+len(l.Kind))
}

// Identity is the same for answers that are the same in the sense of SameAnswer, and for no others.
func (l *Learned) Identity() [sha256.Size]byte { return l.identity }

// SameAnswer reports whether an upstream meant the same by two answers: they are the same bytes, but for addresses that stay
// as they are; in those, signatures, times and the device are not compared.
func SameAnswer(a, b *Learned) bool { return a.identity == b.identity }

// Suffixed returns a copy of the answer with more behind each of its addresses on this edge: see Addresses.Suffix.
func (l *Learned) Suffixed(suffix func(dst []byte, key string) []byte) *Learned {
	out := *l
	out.answer = l.answer.suffixed(suffix, keyOfPath)
	return &out
}

// keyOfPath is the key that an address of a Placement stands for.
func keyOfPath(path string) string {
	key, err := url.PathUnescape(path)
	if err != nil {
		return path
	}
	return key
}

// OffersRunning reports that an offer is of the very version that a device runs, so that it gets none: the answer of
// AppendUpToDate stands for the upstream's (protocol 1.5 row 13). The offer must be one to a check of the same group key.
//
// It is false for a device that may run its native bundle, and whose native version is the offered one: the official server
// takes that for up to date and others may not, so let the upstream say.
func (l *Learned) OffersRunning(c *Check) bool {
	return l.Class == AnswerOffer && c.VersionName == l.Version && c.VersionName != c.VersionBuild
}

// AppendUpToDate appends the answer of the official server to a device that runs what it would be offered.
func AppendUpToDate(dst []byte) []byte {
	return append(dst, `{"error":"no_new_version_available","message":"No new version available","kind":"up_to_date"}`...)
}
