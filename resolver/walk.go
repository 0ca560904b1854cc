package resolver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// A Fault is one thing wrong with a channel manifest, at a JSON path such as $.channels[3].version.
type Fault struct {
	Path    string `json:"path"`
	Message string `json:"message"`
}

func (f Fault) String() string { return f.Path + ": " + f.Message }

// maxFaults is how many faults are named before the rest is only counted.
const maxFaults = 20

// Faults is the error of a manifest that does not validate: every fault, by its path.
type Faults struct {
	List []Fault
	More int // faults found beyond those listed
}

func (e *Faults) Error() string {
	var b strings.Builder
	b.WriteString("channel manifest does not validate: ")
	for i, f := range e.List {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(f.String())
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "; and %d more", e.More)
	}
	return b.String()
}

func (e *Faults) add(path, message string) {
	if len(e.List) == maxFaults {
		e.More++
		return
	}
	e.List = append(e.List, Fault{path, message})
}

// walker reads a JSON document member by member and goes on after a value of the wrong type, so that one pass names
// every fault. After a syntax error it is broken: all its methods return at once, and tell no further fault.
//
// The document is never turned into a tree: a manifest may have millions of values of which few are kept.
type walker struct {
	dec    *jsontext.Decoder
	faults *Faults
	base   base
	broken bool
	wrong  []string // members of the object read last whose value has a fault of its own
}

// base is the path of the text the decoder sees within the whole document: head, or head[index]tail. It is put together
// only for a fault.
type base struct {
	head  string
	index int
	tail  string
}

// newWalker reads the text at the given path. It is the whole document or a span of it; a span has no error of syntax,
// whose position would have to be told within the document.
func newWalker(text []byte, path string, faults *Faults) *walker {
	return &walker{dec: jsontext.NewDecoder(bytes.NewBuffer(text)), faults: faults, base: base{head: path}}
}

// reset makes the walker read another text, which stands at head[index]tail.
func (w *walker) reset(text []byte, head string, index int, tail string) {
	w.dec.Reset(bytes.NewBuffer(text))
	w.base = base{head, index, tail}
}

// path is where the walker stands: at the value it read last.
func (w *walker) path() string { return w.pathOf(w.dec.StackPointer()) }

// pathOf writes a place the decoder has entered in the notation of RFC 9535, with plain names unquoted. The pointer alone
// cannot tell an index from a member named like one.
func (w *walker) pathOf(at jsontext.Pointer) string {
	var b strings.Builder
	b.WriteString(w.base.head)
	if w.base.tail != "" {
		b.WriteString("[" + strconv.Itoa(w.base.index) + "]" + w.base.tail)
	}
	level := 0
	for token := range at.Tokens() {
		level++
		switch kind, _ := w.dec.StackIndex(level); {
		case kind == '[':
			b.WriteString("[" + token + "]")
		case isPlainName(token):
			b.WriteString("." + token)
		default:
			b.WriteString("[" + quoted(token) + "]")
		}
	}
	return b.String()
}

func isPlainName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c >= 0x80:
		case c >= '0' && c <= '9' && i > 0:
		default:
			return false
		}
	}
	return s != ""
}

// fault tells what is wrong with the value read last.
func (w *walker) fault(message string) {
	if w.broken {
		return
	}
	at := w.dec.StackPointer()
	w.wrong = append(w.wrong, at.LastToken())
	w.faults.add(w.pathOf(at), message)
}

// faultIn tells what is wrong with a member of the object read last.
func (w *walker) faultIn(member, message string) { w.faults.add(w.path()+"."+member, message) }

// missing tells that the object read last lacks a member it needs. A member whose value has the wrong type is not missing:
// that was told.
func (w *walker) missing(member string) {
	if !slices.Contains(w.wrong, member) {
		w.faultIn(member, "is required")
	}
}

// fail tells an error of syntax, at the place where the library found it.
func (w *walker) fail(err error) {
	if w.broken {
		return
	}
	w.broken = true
	if errors.Is(err, io.EOF) { // of all places, only before the document
		w.faults.add(w.path(), "is empty")
		return
	}
	at, offset := w.dec.StackPointer(), w.dec.InputOffset()
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		at, offset, err = syntax.JSONPointer, syntax.ByteOffset, syntax.Err
	}
	w.faults.add(w.pathOf(at), fmt.Sprintf("is not valid JSON at byte %d: %v", offset, err))
}

// object calls member for each member of the object that comes next; member must read its value or skip it.
func (w *walker) object(member func(name []byte)) bool {
	w.wrong = w.wrong[:0]
	if !w.enter('{', "an object") {
		return false
	}
	for !w.broken && w.dec.PeekKind() != '}' {
		if name, ok := w.name(); ok {
			member(name)
		}
	}
	return w.bracket()
}

// name reads the name of a member. Anything else in its place is an error, which the next token tells best.
func (w *walker) name() ([]byte, bool) {
	if w.dec.PeekKind() != '"' && !w.bracket() {
		return nil, false
	}
	name, err := w.dec.ReadValue()
	if err != nil {
		w.fail(err)
		return nil, false
	}
	return unquote(name), true
}

// array calls item for each element of the array that comes next, or of none if it is null.
func (w *walker) array(item func(index int)) {
	if w.null() || !w.enter('[', "an array") {
		return
	}
	for i := 0; !w.broken && w.dec.PeekKind() != ']'; i++ {
		item(i)
	}
	w.bracket()
}

func (w *walker) enter(kind jsontext.Kind, what string) bool { return w.is(kind, what) && w.bracket() }

// bracket reads the bracket that comes next.
func (w *walker) bracket() bool {
	if w.broken {
		return false
	}
	if _, err := w.dec.ReadToken(); err != nil {
		w.fail(err)
		return false
	}
	return true
}

func (w *walker) skip() {
	if w.broken {
		return
	}
	if err := w.dec.SkipValue(); err != nil {
		w.fail(err)
	}
}

// null reports whether the next value is null, and reads it if so. Null stands for "not there" everywhere.
func (w *walker) null() bool {
	if w.broken || w.dec.PeekKind() != 'n' {
		return false
	}
	w.skip()
	return true
}

// is reports whether the next value is of the given kind, or may be, and skips one that is not; what names the kind in a
// fault.
func (w *walker) is(kind jsontext.Kind, what string) bool {
	if w.broken {
		return false
	}
	if found := w.dec.PeekKind(); found != kind && found != 0 { // 0 is an error that the next read returns
		w.skip()
		w.fault("must be " + what)
		return false
	}
	return true
}

// value reads the next scalar of the given kind.
func (w *walker) value(kind jsontext.Kind, what string) (jsontext.Value, bool) {
	if !w.is(kind, what) {
		return nil, false
	}
	v, err := w.dec.ReadValue()
	if err != nil {
		w.fail(err)
		return nil, false
	}
	return v, true
}

// bytes reads a string; null gives nil. Where it can be the result is a part of the text, which no one changes.
func (w *walker) bytes() []byte {
	if w.null() {
		return nil
	}
	v, ok := w.value('"', "a string")
	if !ok {
		return nil
	}
	return unquote(v)
}

func unquote(v jsontext.Value) []byte {
	if bytes.IndexByte(v, '\\') < 0 {
		return v[1 : len(v)-1]
	}
	text, _ := jsontext.AppendUnquote(nil, v)
	return text
}

func (w *walker) string(dst *string) { *dst = string(w.bytes()) }

// bool reads a boolean; null leaves dst, which holds the default.
func (w *walker) bool(dst *bool) {
	if w.null() {
		return
	}
	kind := w.dec.PeekKind()
	if kind != 'f' {
		kind = 't'
	}
	if _, ok := w.value(kind, "true or false"); ok {
		*dst = kind == 't'
	}
}

// integer reads a whole number from least to most; null leaves dst. It reports whether it set dst.
func (w *walker) integer(dst *int64, least, most int64) bool {
	if w.null() {
		return false
	}
	v, ok := w.value('0', "a whole number")
	if !ok {
		return false
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		w.fault("must be a whole number")
		return false
	case n < least || n > most: // a number beyond 64 bits is read as the outermost one
		w.fault(fmt.Sprintf("must be between %d and %d", least, most))
		return false
	}
	*dst = n
	return true
}

// span skips the next value and returns where it stands. It goes token by token, so that an error of syntax is found
// with all levels above it known.
func (w *walker) span() span {
	ahead := w.dec.UnreadBuffer()
	from := int(w.dec.InputOffset()) + len(ahead) - len(bytes.TrimLeft(ahead, " \t\r\n:"))
	w.skip()
	if w.broken {
		return span{}
	}
	return span{from, int(w.dec.InputOffset())}
}

// end checks that nothing follows the document.
func (w *walker) end() {
	if w.broken {
		return
	}
	if _, err := w.dec.ReadToken(); err == nil {
		w.fail(errors.New("more than one document"))
	} else if !errors.Is(err, io.EOF) {
		w.fail(err)
	}
}
