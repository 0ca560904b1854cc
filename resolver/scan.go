package resolver

import "strings"

// scan reads the body of nearly every check there is: one object without escapes and in ASCII. For any other body, valid
// JSON or not, it reports false, and the caller reads it with the library.
//
// It is here because the parse is the dearest part of an answer from memory: a third of the library's time is enough for
// bodies of this form, and that is what brings the edge within reach of a handler that does nothing (.ci/bench-wire). A
// fuzz target holds it to the library's reading.
func (r *reader) scan(text string) (members int, ok bool) {
	plain, controls := survey(text)
	if !plain {
		return 0, false
	}
	members, next := r.scanObject(text, skipBlanks(text, 0), controls)
	return members, next >= 0 && skipBlanks(text, next) == len(text)
}

// scanObject reads the object at i of a plain text into the fields, which are those of no object yet. It returns the
// number of its members and what follows, or -1.
func (r *reader) scanObject(text string, i int, controls bool) (members, next int) {
	if i == len(text) || text[i] != '{' {
		return 0, -1
	}
	for {
		name, next := plainString(text, skipBlanks(text, i+1), controls)
		if next < 0 {
			return 0, -1
		}
		i = skipBlanks(text, next)
		if i == len(text) || text[i] != ':' {
			return 0, -1
		}
		value, next := plainValue(text, skipBlanks(text, i+1), controls)
		if next < 0 {
			return 0, -1
		}
		if known := fieldIndex(name); known >= 0 {
			r.fields[known] = value
		}
		members++
		i = skipBlanks(text, next)
		if i == len(text) || text[i] != ',' {
			break
		}
	}
	if i == len(text) || text[i] != '}' {
		return 0, -1
	}
	return members, i + 1
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

// plainValue reads the value at i and returns it and what follows, or -1 if there is none.
func plainValue(text string, i int, controls bool) (field, int) {
	switch rest := text[i:]; {
	case strings.HasPrefix(rest, `"`):
		s, next := plainString(text, i, controls)
		return field{state: isText, text: s, falsy: s == ""}, next
	case strings.HasPrefix(rest, "true"):
		return field{state: isTrue, text: rest[:4]}, i + 4
	case strings.HasPrefix(rest, "false"):
		return field{state: isFalse, falsy: true, text: rest[:5]}, i + 5
	case strings.HasPrefix(rest, "null"):
		return field{state: isNull, falsy: true, text: rest[:4]}, i + 4
	case rest == "":
		return field{}, -1
	case rest[0] == '{' || rest[0] == '[':
		next := plainGroup(text, i, controls, maxPlainDepth)
		if next < 0 {
			return field{}, -1
		}
		f := field{state: isOther, text: text[i:next]}
		if rest[0] == '{' {
			f.state = isObject
		}
		return f, next
	}
	next := plainNumber(text, i)
	if next < 0 {
		return field{}, -1
	}
	return field{state: isOther, falsy: isZero(text[i:next]), text: text[i:next]}, next
}

// maxPlainDepth is how deep groups may be nested that are read here.
const maxPlainDepth = 32

// plainGroup returns what follows the object or array at i, or -1.
func plainGroup(text string, i int, controls bool, depth int) int {
	isObject := text[i] == '{'
	end := byte(']')
	if isObject {
		end = '}'
	}
	if depth == 0 {
		return -1
	}
	if i = skipBlanks(text, i+1); i < len(text) && text[i] == end {
		return i + 1
	}
	for {
		if isObject {
			if _, i = plainString(text, i, controls); i < 0 {
				return -1
			}
			if i = skipBlanks(text, i); i == len(text) || text[i] != ':' {
				return -1
			}
			i = skipBlanks(text, i+1)
		}
		if i < len(text) && (text[i] == '{' || text[i] == '[') {
			i = plainGroup(text, i, controls, depth-1)
		} else {
			_, i = plainValue(text, i, controls)
		}
		if i < 0 {
			return -1
		}
		i = skipBlanks(text, i)
		switch {
		case i == len(text):
			return -1
		case text[i] == end:
			return i + 1
		case text[i] != ',':
			return -1
		}
		i = skipBlanks(text, i+1)
	}
}

// plainNumber returns what follows the number at i, or -1 (RFC 8259 section 6).
func plainNumber(text string, i int) int {
	if i < len(text) && text[i] == '-' {
		i++
	}
	switch next := skipDigits(text, i); {
	case next == i:
		return -1
	case text[i] == '0':
		i++
	default:
		i = next
	}
	if i < len(text) && text[i] == '.' {
		next := skipDigits(text, i+1)
		if next == i+1 {
			return -1
		}
		i = next
	}
	if i < len(text) && (text[i] == 'e' || text[i] == 'E') {
		i++
		if i < len(text) && (text[i] == '+' || text[i] == '-') {
			i++
		}
		next := skipDigits(text, i)
		if next == i {
			return -1
		}
		i = next
	}
	return i
}

func skipDigits(text string, i int) int {
	for i < len(text) && text[i] >= '0' && text[i] <= '9' {
		i++
	}
	return i
}
