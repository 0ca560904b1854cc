package resolver

import (
	"net/url"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// FilesPath is where objects are served, below the public address (contract section 3).
const FilesPath = "/files/read/attachments/"

// template is prepared JSON with holes for the public address of the edge, which only the request knows. Preparing it
// once turns the answer of a bundle with hundreds of files into a few copies.
type template struct {
	text string
	cuts []int // offsets into text where the address goes, ascending
}

func (t *template) empty() bool { return t.text == "" }

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

type templateBuilder struct {
	text []byte
	cuts []int
}

func (b *templateBuilder) template() template {
	return template{text: string(b.text), cuts: slices.Clip(b.cuts)}
}

func (b *templateBuilder) quote(s string) { b.text, _ = jsontext.AppendQuote(b.text, s) }

// address appends the public address of an object, without the quotes of a JSON string: it has none to escape. version
// is the value of its "key" parameter. The application is named where the key does not tell it.
func (b *templateBuilder) address(appID, key, version string) {
	b.cuts = append(b.cuts, len(b.text))
	b.text = append(b.text, FilesPath...)
	b.text = appendEscapedKey(b.text, key)
	b.text = append(b.text, "?key="...)
	b.text = append(b.text, url.QueryEscape(version)...)
	if AppOfKey(key) != appID {
		b.text = append(b.text, "&app_id="...)
		b.text = append(b.text, url.QueryEscape(appID)...)
	}
}

// appendEscapedKey writes key as a URL path. Keys of the official upload tool are URL-encoded already (protocol 3.1) and
// go out as they are, as the official server sends them; the edge finds them by the raw path of the request. Any other
// key is escaped in full and found by the decoded path.
func appendEscapedKey(dst []byte, key string) []byte {
	const hexDigits = "0123456789ABCDEF"
	verbatim := isURLPath(key)
	for i := range len(key) {
		if c := key[i]; verbatim || isPathByte(c) {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return dst
}

// isURLPath reports whether s is a well-formed URL path as it stands.
func isURLPath(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] == '%' {
			if i+2 >= len(s) || !isHexDigit(s[i+1]) || !isHexDigit(s[i+2]) {
				return false
			}
			i += 2
		} else if !isPathByte(s[i]) {
			return false
		}
	}
	return true
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
