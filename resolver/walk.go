package resolver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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
// every fault. After a syntax error it is broken and all its methods return at once.
//
// The document is never turned into a tree: a manifest may have millions of values of which few are kept.
type walker struct {
	dec    *jsontext.Decoder
	faults *Faults
	base   base
	broken bool
	text   []byte // scratch for strings with escapes
}

// base is the path of the text the decoder sees within the whole document: head, or head[index]tail. It is put together
// only for a fault.
type base struct {
	head  string
	index int
	tail  string
}

func newWalker(text []byte, path string, faults *Faults) *walker {
	return &walker{dec: jsontext.NewDecoder(bytes.NewBuffer(text)), faults: faults, base: base{head: path}}
}

// reset makes the walker read another text, which stands at head[index]tail. What was broken stays broken: a fault of
// syntax was told already.
func (w *walker) reset(text []byte, head string, index int, tail string) {
	w.dec.Reset(bytes.NewBuffer(text))
	w.base = base{head, index, tail}
}

// path is where the walker stands, in the notation of RFC 9535's normalized paths with plain names unquoted.
func (w *walker) path() string {
	var b strings.Builder
	b.WriteString(w.base.head)
	if w.base.tail != "" {
		b.WriteString("[" + strconv.Itoa(w.base.index) + "]" + w.base.tail)
	}
	for token := range w.dec.StackPointer().Tokens() {
		if _, err := strconv.Atoi(token); err == nil {
			b.WriteString("[" + token + "]")
		} else {
			b.WriteString("." + token)
		}
	}
	return b.String()
}

func (w *walker) fault(message string) { w.faults.add(w.path(), message) }

func (w *walker) fail(err error) {
	if !w.broken {
		w.broken = true
		w.fault("is not valid JSON at byte " + strconv.FormatInt(w.dec.InputOffset(), 10) + ": " + syntaxReason(err))
	}
}

// syntaxReason takes the library's own prefix and position off: the path and the byte are already told.
func syntaxReason(err error) string {
	reason := strings.TrimPrefix(err.Error(), "jsontext: ")
	if at := strings.Index(reason, " within "); at > 0 {
		reason = reason[:at]
	}
	if at := strings.Index(reason, " after offset "); at > 0 {
		reason = reason[:at]
	}
	return reason
}

// object calls member for each member of the object that comes next; member must read its value or skip it.
func (w *walker) object(member func(name string)) bool {
	if !w.enter('{', "an object") {
		return false
	}
	for !w.broken && w.dec.PeekKind() != '}' {
		name, err := w.dec.ReadToken()
		if err != nil {
			w.fail(err)
			return false
		}
		member(name.String())
	}
	return w.leave()
}

// array calls item for each element of the array that comes next, or of none if it is null.
func (w *walker) array(item func(index int)) bool {
	if w.null() {
		return true
	}
	if !w.enter('[', "an array") {
		return false
	}
	for i := 0; !w.broken && w.dec.PeekKind() != ']'; i++ {
		item(i)
	}
	return w.leave()
}

func (w *walker) enter(kind jsontext.Kind, what string) bool {
	if w.broken {
		return false
	}
	if found := w.dec.PeekKind(); found != kind && found != 0 {
		w.skip()
		w.fault("must be " + what)
		return false
	}
	if _, err := w.dec.ReadToken(); err != nil {
		w.fail(err)
		return false
	}
	return true
}

func (w *walker) leave() bool {
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

// value reads the next scalar of the given kind; what names the kind in a fault.
func (w *walker) value(kind jsontext.Kind, what string) (jsontext.Value, bool) {
	if w.broken {
		return nil, false
	}
	found := w.dec.PeekKind()
	v, err := w.dec.ReadValue()
	if err != nil {
		w.fail(err)
		return nil, false
	}
	if found != kind {
		w.fault("must be " + what)
		return nil, false
	}
	return v, true
}

// bytes reads a string; the result is valid until the next call. Null gives nil.
func (w *walker) bytes() []byte {
	if w.null() {
		return nil
	}
	v, ok := w.value('"', "a string")
	if !ok {
		return nil
	}
	if bytes.IndexByte(v, '\\') < 0 {
		return v[1 : len(v)-1]
	}
	w.text, _ = jsontext.AppendUnquote(w.text[:0], v)
	return w.text
}

func (w *walker) string(dst *string) { *dst = string(w.bytes()) }

// bool reads a boolean; null leaves dst, which holds the default.
func (w *walker) bool(dst *bool) {
	if w.broken || w.null() {
		return
	}
	switch w.dec.PeekKind() {
	case 't', 'f':
		v, err := w.dec.ReadToken()
		if err != nil {
			w.fail(err)
			return
		}
		*dst = v.Bool()
	default:
		w.value('t', "true or false")
	}
}

// integer reads a whole number from least to most; null leaves dst. It reports whether it set dst.
func (w *walker) integer(dst *int64, least, most int64) bool {
	if w.broken || w.null() {
		return false
	}
	v, ok := w.value('0', "a whole number")
	if !ok {
		return false
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	switch {
	case err != nil:
		w.fault("must be a whole number")
		return false
	case n < least || n > most:
		w.fault(fmt.Sprintf("must be between %d and %d", least, most))
		return false
	}
	*dst = n
	return true
}

// span skips the next value and returns where it stands.
func (w *walker) span() span {
	if w.broken {
		return span{}
	}
	v, err := w.dec.ReadValue()
	if err != nil {
		w.fail(err)
		return span{}
	}
	end := int(w.dec.InputOffset())
	return span{end - len(v), end}
}

// end checks that nothing follows the document.
func (w *walker) end() {
	if w.broken {
		return
	}
	if _, err := w.dec.ReadToken(); err != io.EOF {
		if err == nil {
			err = errors.New("more than one document")
		}
		w.fail(err)
	}
}
