package resolver

import (
	"bytes"
	"net/url"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// FilesPath is where objects are served, below the public address (contract section 3).
const FilesPath = "/files/read/attachments/"

// template is prepared JSON with holes for the public address of the edge, which only the request knows. Preparing it
// once turns the answer of a bundle with hundreds of files into a few copies.
type template struct {
	text []byte
	cuts []int // offsets into text where the address goes, ascending
}

func (t *template) empty() bool { return len(t.text) == 0 }

func (t *template) size() int64 { return int64(len(t.text) + 8*len(t.cuts)) }

func (t *template) append(dst []byte, base string) []byte {
	from := 0
	for _, cut := range t.cuts {
		dst = append(dst, t.text[from:cut]...)
		dst = append(dst, base...)
		from = cut
	}
	return append(dst, t.text[from:]...)
}

// addressAt returns the escaped key of the address at a cut, and where that address ends: nothing in it needs escaping in
// JSON, so the next quote is its end.
func (t *template) addressAt(cut int) (path string, end int) {
	end = cut + bytes.IndexByte(t.text[cut:], '"')
	escaped, _, _ := bytes.Cut(t.text[cut+len(FilesPath):end], []byte("?"))
	return string(escaped), end
}

// suffixed returns a copy of t with more behind each address. keyOf tells the key that an escaped one stands for.
func (t *template) suffixed(suffix func(dst []byte, key string) []byte, keyOf func(path string) string) template {
	if len(t.cuts) == 0 {
		return *t
	}
	out := template{cuts: make([]int, 0, len(t.cuts))}
	from := 0
	for i, cut := range t.cuts {
		path, end := t.addressAt(cut)
		out.cuts = append(out.cuts, len(out.text)+cut-from)
		out.text = append(out.text, t.text[from:end]...)
		before := len(out.text)
		out.text = suffix(out.text, keyOf(path))
		if i == 0 { // most often all are of one length: measured first, the text is written in one piece
			out.text = slices.Grow(out.text, len(t.text)-end+(len(out.text)-before)*(len(t.cuts)-1))
		}
		from = end
	}
	out.text = append(out.text, t.text[from:]...)
	return out
}

func (t *template) add(s string) { t.text = append(t.text, s...) }

// quote appends s as a JSON string.
func (t *template) quote(s []byte) { t.text, _ = jsontext.AppendQuote(t.text, s) }

// reset empties the template and keeps its room.
func (t *template) reset() { t.text, t.cuts = t.text[:0], t.cuts[:0] }

// address appends the public address of an object as a JSON string: it has nothing to escape. version is the escaped
// value of its "key" parameter. The application is named where the key does not tell it.
func (t *template) address(appID string, key []byte, version string) {
	t.add(`"`)
	t.cuts = append(t.cuts, len(t.text))
	t.add(FilesPath)
	t.text = appendEscapedKey(t.text, key)
	t.add("?key=")
	t.add(version)
	if app := appWithin(key); string(key[app.from:app.to]) != appID {
		t.add("&app_id=")
		t.add(url.QueryEscape(appID))
	}
	t.add(`"`)
}

// appendEscapedKey writes key as a URL path. Keys of the official upload tool are URL-encoded already (protocol 3.1) and
// go out as they are, as the official server sends them; the edge finds them by the raw path of the request. Any other
// key is escaped in full and found by the decoded path.
func appendEscapedKey[T string | []byte](dst []byte, key T) []byte {
	const hexDigits = "0123456789ABCDEF"
	verbatim, escapes := isURLPath(key)
	if escapes {
		verbatim = len(KeysOfPath(string(key))) > 0
	}
	for i := range len(key) {
		if c := key[i]; verbatim || isPathByte(c) {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return dst
}

// isURLPath reports whether s is a well-formed URL path as it stands, and whether it holds escapes then.
func isURLPath[T string | []byte](s T) (ok, escapes bool) {
	for i := 0; i < len(s); i++ {
		if s[i] == '%' {
			if i+2 >= len(s) || !isHexDigit(s[i+1]) || !isHexDigit(s[i+2]) {
				return false, false
			}
			escapes = true
			i += 2
		} else if !isPathByte(s[i]) {
			return false, false
		}
	}
	return true, escapes
}

// isPathByte reports whether c may stand in a path unescaped (RFC 3986, pchar and "/").
func isPathByte(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	switch c {
	case '-', '.', '_', '~', '!', '$', '&', '\'', '(', ')', '*', '+', ',', ';', '=', ':', '@', '/':
		return true
	}
	return false
}

func isHexDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
