package resolver

import "github.com/go-json-experiment/json/jsontext"

// skimmer steps through the members of an object, or the elements of an array, without a copy and without an allocation.
// The text is known to be valid JSON: of another it yields something, and comes to an end.
type skimmer struct {
	text []byte
	i    int
}

// skim stands before the first member or element of the object or array that text[at:] begins with.
func skim(text []byte, at int) skimmer {
	s := skimmer{text, at}
	s.blanks()
	s.i++ // the bracket
	return s
}

// member is the next member: its name, and where its value stands.
func (s *skimmer) member() (name []byte, value span, ok bool) {
	if !s.more() || s.text[s.i] != '"' {
		return nil, span{}, false
	}
	from := s.i
	if escaped := s.string(); escaped || s.i < from+2 {
		name = textOf(s.text[from:s.i])
	} else {
		name = s.text[from+1 : s.i-1]
	}
	if s.blanks(); s.i < len(s.text) {
		s.i++ // the colon
	}
	value, ok = s.element()
	return name, value, ok
}

// element is where the next element stands.
func (s *skimmer) element() (value span, ok bool) {
	if !s.more() {
		return span{}, false
	}
	value.from = s.i
	switch s.text[s.i] {
	case '"':
		s.string()
	case '{', '[':
		s.group()
	default:
		for s.i++; s.i < len(s.text) && !endsScalar(s.text[s.i]); s.i++ {
		}
	}
	value.to = s.i
	return value, true
}

// more goes to the next member or element, and reports whether there is one.
func (s *skimmer) more() bool {
	if s.blanks(); s.i < len(s.text) && s.text[s.i] == ',' {
		s.i++
		s.blanks()
	}
	return s.i < len(s.text) && s.text[s.i] != '}' && s.text[s.i] != ']'
}

func (s *skimmer) blanks() {
	for s.i < len(s.text) && isJSONBlank(s.text[s.i]) {
		s.i++
	}
}

// string goes behind the string that begins here, and reports whether it holds escapes. Most are short: byte by byte is the
// fastest way.
func (s *skimmer) string() (escaped bool) {
	for i := s.i + 1; i < len(s.text); i++ {
		switch s.text[i] {
		case '"':
			s.i = i + 1
			return escaped
		case '\\':
			escaped = true
			i++ // what it escapes
		}
	}
	s.i = len(s.text)
	return escaped
}

// group goes behind the object or array that begins here.
func (s *skimmer) group() {
	for depth := 0; s.i < len(s.text); {
		switch s.text[s.i] {
		case '"':
			s.string()
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		if s.i++; depth == 0 {
			return
		}
	}
}

// jsonBlanks are what JSON takes for blanks.
const jsonBlanks = " \t\r\n"

func isJSONBlank(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func endsScalar(c byte) bool { return c == ',' || c == '}' || c == ']' || isJSONBlank(c) }

// textOf is the text of a JSON string.
func textOf(quoted []byte) []byte {
	if len(quoted) < 2 { // of what is no valid JSON
		return nil
	}
	return unquote(quoted)
}

// isJSON reports whether text is one JSON value, by the rules that bodies are read by.
func isJSON(text []byte) bool {
	return jsontext.Value(text).IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}
