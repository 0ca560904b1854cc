package resolver

import "strings"

// scan reads the body of nearly every check there is: one flat object of plain strings and literals, without escapes and
// in ASCII. For any other body, valid JSON or not, it reports false, and the caller reads it with the library.
//
// It is here because the parse is the dearest part of an answer from memory: a third of the library's time is enough for
// bodies of this form, and that is what brings the edge within reach of a handler that does nothing (.ci/bench-wire). A
// fuzz target holds it to the library's reading.
func (p *CheckParser) scan(text string) (members int, ok bool) {
	plain, blanks := survey(text)
	i := skipBlanks(text, 0)
	if !plain || i == len(text) || text[i] != '{' {
		return 0, false
	}
	for {
		name, next := plainString(text, skipBlanks(text, i+1), blanks)
		if next < 0 {
			return 0, false
		}
		i = skipBlanks(text, next)
		if i == len(text) || text[i] != ':' {
			return 0, false
		}
		value, next := plainValue(text, skipBlanks(text, i+1), blanks)
		if next < 0 {
			return 0, false
		}
		if known := fieldIndex(name); known >= 0 {
			p.fields[known] = value
		}
		members++
		i = skipBlanks(text, next)
		if i == len(text) || text[i] != ',' {
			break
		}
	}
	if i == len(text) || text[i] != '}' {
		return 0, false
	}
	return members, skipBlanks(text, i+1) == len(text)
}

// survey reports whether text has neither escapes nor anything beyond ASCII, and whether it has control characters: line
// ends and tabs, which may stand between values but not in a string. Eight bytes are looked at in one step.
func survey(text string) (plain, controls bool) {
	if strings.IndexByte(text, '\\') >= 0 {
		return false, false
	}
	const high, ones = 0x8080808080808080, 0x0101010101010101
	var beyond, below uint64
	i := 0
	for ; i+8 <= len(text); i += 8 {
		w := uint64(text[i]) | uint64(text[i+1])<<8 | uint64(text[i+2])<<16 | uint64(text[i+3])<<24 |
			uint64(text[i+4])<<32 | uint64(text[i+5])<<40 | uint64(text[i+6])<<48 | uint64(text[i+7])<<56
		beyond |= w & high
		below |= (w - ' '*ones) &^ w & high // a byte below ' ' borrows into its high bit
	}
	for ; i < len(text); i++ {
		beyond |= uint64(text[i]) & 0x80
		if text[i] < ' ' {
			below = 1
		}
	}
	return beyond == 0, below != 0
}

func skipBlanks(text string, i int) int {
	for i < len(text) && (text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r') {
		i++
	}
	return i
}

// plainString reads the string at i and returns its text and what follows, or -1 if there is none.
func plainString(text string, i int, controls bool) (string, int) {
	if i == len(text) || text[i] != '"' {
		return "", -1
	}
	length := strings.IndexByte(text[i+1:], '"')
	if length < 0 {
		return "", -1
	}
	s := text[i+1 : i+1+length]
	if controls {
		for j := range len(s) {
			if s[j] < ' ' {
				return "", -1
			}
		}
	}
	return s, i + length + 2
}

// plainValue reads the string or literal at i and returns it and what follows, or -1 if it is neither.
func plainValue(text string, i int, controls bool) (field, int) {
	switch rest := text[i:]; {
	case strings.HasPrefix(rest, `"`):
		s, next := plainString(text, i, controls)
		return field{state: isText, text: s, falsy: s == ""}, next
	case strings.HasPrefix(rest, "true"):
		return field{state: isTrue}, i + len("true")
	case strings.HasPrefix(rest, "false"):
		return field{state: isFalse, falsy: true}, i + len("false")
	case strings.HasPrefix(rest, "null"):
		return field{state: isNull, falsy: true}, i + len("null")
	}
	return field{}, -1
}
