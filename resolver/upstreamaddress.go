package resolver

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/url"
	"strings"
)

// Upstream is the server whose answers are learned, as far as addresses in them go. It is immutable.
type Upstream struct {
	origin string // scheme, host and port
	path   string // of its files, with a slash at the end
	allows func(rawURL string) bool
}

// NewUpstream returns the server at a base URL, "https://host/functions/v1". What lies on that host and port may be fetched;
// of any other address allows is asked. Nil allows none.
func NewUpstream(base string, allows func(rawURL string) bool) (*Upstream, error) {
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return nil, errors.New("the address of the upstream is not a URL") // the parse error repeats it, password and all
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, errors.New("the address of the upstream must begin with https:// or http:// and a host")
	}
	return &Upstream{
		origin: originOf(u),
		path:   strings.TrimSuffix(u.EscapedPath(), "/") + FilesPath,
		allows: allows,
	}, nil
}

// originOf is what two addresses on one server have in common.
func originOf(u *url.URL) string {
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[scheme]
	}
	return scheme + "://" + host + " " + port
}

// Placement is where an object has its place on this edge.
type Placement struct {
	// Key is the object key: that of the upstream's own storage, or ext/<app_id>/<id> (contract section 3). It is the same
	// however the upstream signs the address.
	Key string
	// Path is what goes behind FilesPath in the address that clients get: the escaped key and its query.
	Path string
	// Fetch is where the object can be had just now. It may be as good as a password, and may end: see ExpiryOf.
	Fetch string
	// Known is what the answer tells of the object's bytes: the digest of a plain bundle or file, or nothing.
	Known Object
}

// Place gives the i-th of the answer's Addresses its place on this edge. ok is false if the edge cannot fetch from there.
func (u *Upstream) Place(appID string, a *Answer, i int) (p Placement, ok bool) {
	address := &a.Addresses[i]
	at, err := url.Parse(address.URL)
	if err != nil || at.Scheme != "http" && at.Scheme != "https" || at.Host == "" || at.User != nil ||
		strings.Contains(at.RawQuery, " ") { // it would end the request line
		return Placement{}, false
	}
	own := originOf(at) == u.origin
	if !own && (u.allows == nil || !u.allows(address.URL)) {
		return Placement{}, false
	}
	p.Fetch = withoutDevice(address.URL)
	p.Known = a.known(address, at.Path)
	query := "?key=" + a.versionParameter(address, at.RawQuery)
	if escaped, key, ok := u.ownKey(at); own && ok {
		p.Key = key
		p.Path = escaped + query
		if app := AppOfKey(key); app != appID {
			p.Path += "&app_id=" + url.QueryEscape(appID)
		}
		return p, true
	}
	p.Key = externalPrefix + appID + "/" + a.objectID(address)
	p.Path = string(appendEscapedKey(nil, p.Key)) + query
	return p, true
}

// ownKey is the key of an object in the upstream's own storage. Keys under ext/ are those of an edge that the upstream is,
// or stands behind, and would be taken for this edge's own.
func (u *Upstream) ownKey(at *url.URL) (escaped, key string, ok bool) {
	escaped, ok = strings.CutPrefix(at.EscapedPath(), u.path)
	if !ok {
		return "", "", false
	}
	key, err := url.PathUnescape(escaped)
	if err != nil || rowKeyFault([]byte(key)) != "" || rowKeyFault([]byte(escaped)) != "" {
		return "", "", false
	}
	if wellFormed, _ := isURLPath(escaped); !wellFormed {
		escaped = (&url.URL{Path: key}).EscapedPath()
	}
	return escaped, key, true
}

// versionParameter is the value of "key" in an address at this edge, escaped: the one of the upstream, whose number it needs
// to tell the sizes of delta files (protocol 1.9), else the checksum of the zip (protocol 3.2).
func (a *Answer) versionParameter(address *Address, query string) string {
	for part := range strings.SplitSeq(query, "&") {
		if name, value, _ := strings.Cut(part, "="); name == "key" {
			if isAddressText(value) {
				return value
			}
			return url.QueryEscape(unescapeQuery(value))
		}
	}
	if address.Zip {
		return url.QueryEscape(a.Checksum)
	}
	return ""
}

// known tells what the answer says about the bytes at an address; path is the decoded one there. "Plain" is as in contract
// section 3. The hash of a ".br" file is that of its decoded content, and it is by the file's name that clients decode it.
func (a *Answer) known(address *Address, path string) Object {
	digest, covers := a.Checksum, DigestStored
	if !address.Zip {
		digest = address.FileHash
		switch decodes := strings.HasSuffix(address.FileName, ".br"); {
		case decodes:
			covers = DigestDecoded
		case strings.HasSuffix(path, ".br"): // the two do not agree
			return Object{}
		}
	}
	sum, ok := sha256Hex([]byte(digest))
	if !ok || a.SessionKey != "" {
		return Object{}
	}
	return Object{SHA256: sum, Covers: covers}
}

// minStrongDigest is the length from which the text of a digest tells one object from all others: the hexadecimal digits of
// SHA-256, and whatever that is when it is encrypted. CRC32 has 8 (protocol 3.5).
const minStrongDigest = 64

// objectID is the name of an object among those of its app that are not in the upstream's own storage. It is the same for the
// same bytes, whatever their address is just now, so every site makes the same of it. Frozen by a golden test: what stores
// remember goes by it.
//
// A strong digest tells the object, together with the key that its bytes were encrypted with; a compressed file has the same
// digest as one that is not. Without it the address does, less what is made anew for each device or answer: what else may
// tell one object from another counts, so that rather two ids have one object than one id has two. What is at an address may
// be replaced with the next version, so the version counts then.
func (a *Answer) objectID(address *Address) string {
	digest, kind := a.Checksum, "zip"
	if !address.Zip {
		digest, kind = address.FileHash, "file"
		if strings.HasSuffix(address.FileName, ".br") {
			kind = "file.br"
		}
	}
	parts := []string{kind, digest, a.SessionKey}
	if len(digest) < minStrongDigest {
		parts = append(parts, a.Version, stableURL(address.URL))
	}
	var text []byte
	for _, part := range parts {
		text = appendKeyText(text, part)
	}
	const digits = 32
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:digits/2])
}
