package resolver

import "iter"

// member is one member of an object: its name, its value, and where they stand in the text.
type member struct {
	name  string
	value field
	from  int // of the name
	at    int // of the value
	to    int // behind the value
}

// membersOf yields the members of an object, which must be valid JSON. Like scan it leaves to the library what is not of the
// plain form.
func membersOf(text string) iter.Seq[member] {
	return func(yield func(member) bool) {
		plain, controls := survey(text)
		i, done := skipBlanks(text, 0), 0
		for plain {
			m := member{from: skipBlanks(text, i+1)}
			var next int
			if m.name, next = plainString(text, m.from, controls); next < 0 {
				break
			}
			m.at = skipBlanks(text, skipBlanks(text, next)+1)
			if m.value, m.to = plainValue(text, m.at, controls); m.to < 0 {
				break
			}
			if done++; !yield(m) {
				return
			}
			if i = skipBlanks(text, m.to); i == len(text) || text[i] != ',' {
				return
			}
		}
		decodeMembers(text, done, yield)
	}
}

// decodeMembers yields the members after the first skip ones.
func decodeMembers(text string, skip int, yield func(member) bool) {
	var r reader
	r.open([]byte(text))
	if r.dec.PeekKind() != '{' {
		return
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return
	}
	for n := 0; r.dec.PeekKind() == '"'; n++ {
		var m member
		name, err := r.dec.ReadValue()
		if err != nil {
			return
		}
		m.from = int(r.dec.InputOffset()) - len(name)
		m.name = string(unquote(name))
		value, err := r.dec.ReadValue()
		if err != nil {
			return
		}
		m.to = int(r.dec.InputOffset())
		m.at = m.to - len(value)
		m.value = readField(value, text[m.at:m.to])
		if n >= skip && !yield(m) {
			return
		}
	}
}

// appendMembers copies an object byte by byte up to its end, which it returns: the closing bracket and what follows.
// change is asked about each member: the JSON of another value, or "" to leave it as it is; keep is false to leave it out.
func appendMembers(dst []byte, text string, change func(m member) (value string, keep bool)) (out []byte, rest string) {
	end, kept := -1, false // end is that of the member before
	for m := range membersOf(text) {
		if end < 0 {
			dst = append(dst, text[:m.from]...)
		}
		value, keep := change(m)
		if keep {
			if kept {
				dst = append(dst, text[end:m.from]...)
			}
			if value == "" {
				value = text[m.at:m.to]
			}
			dst = append(dst, text[m.from:m.at]...)
			dst = append(dst, value...)
			kept = true
		}
		end = m.to
	}
	if end < 0 { // without members
		return dst, text
	}
	return dst, text[end:]
}
