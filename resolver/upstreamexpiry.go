package resolver

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"iter"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// ExpiryOf tells from an address alone how long it can be used: the Unix time in seconds at which it ends, if it tells one,
// and whether it is signed. One that is signed and tells no time ends at some time that is not known. Understood are the
// signatures of S3, Google and Alibaba, versions 2 and 4, of CloudFront with a fixed policy, of Azure, JSON Web Tokens in
// "token", as of Supabase, and the parameters "expires" and "exp" of many others, this edge's own among them.
func ExpiryOf(rawURL string) (expires int64, known, signed bool) {
	q := readSignature(rawURL)
	return q.expires, q.expires > 0, q.signed
}

// signature is what the query of an address tells of its end.
type signature struct {
	signed  bool
	expires int64 // 0 if it is not told
	date    int64 // when it was signed, and for how many seconds from then
	lasts   int64
}

func readSignature(rawURL string) signature {
	var s signature
	query := queryOf(rawURL)
	azure := isAzure(query)
	for name, value := range parameters(query) {
		s.read(strings.ToLower(name), value, azure)
	}
	if s.date > 0 && s.lasts > 0 && s.lasts < math.MaxInt64-s.date {
		s.ends(s.date + s.lasts)
	}
	return s
}

// read takes one parameter in; its name is in lower case.
func (s *signature) read(name, value string, azure bool) {
	s.signed = s.signed || isSignature(name, value)
	switch name {
	case "x-amz-date", "x-goog-date", "x-oss-date":
		s.date = basicTime(value)
	case "x-amz-expires", "x-goog-expires", "x-oss-expires":
		s.lasts, _ = strconv.ParseInt(value, 10, 64)
	case "expires", "exp":
		s.ends(unixTime(value))
	case "token":
		s.ends(tokenEnd(value))
	case "se":
		if azure {
			s.ends(extendedTime(value))
		}
	}
}

// ends takes in a time of which 0 is none. The first counts.
func (s *signature) ends(at int64) {
	if at > 0 && (s.expires == 0 || at < s.expires) {
		s.expires = at
	}
}

// isSignature reports whether a parameter is one without which the address is refused, and which is made anew each time.
func isSignature(name, value string) bool {
	switch name {
	case "signature", "sig", "hmac", "verify", "x-amz-signature", "x-goog-signature", "x-oss-signature", "q-signature":
		return true
	case "token": // others may be part of the address for good, as Firebase's are
		_, ok := tokenPayload(value)
		return ok
	}
	return false
}

// isVolatile reports whether a parameter differs from one answer to the next, though the address means the same object: the
// device, a signature, and what belongs to signatures. azure tells that the query is signed in that service's way, whose
// other names are too short to go by. Of a token only a part is: see stableToken.
func isVolatile(name, value string, azure bool) bool {
	name = strings.ToLower(name)
	if name != "token" && isSignature(name, value) {
		return true
	}
	switch name {
	case "x-oss-process": // says what becomes of the object
		return false
	case "device_id", "expires", "exp", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid":
		return true
	case "se", "st", "sp", "sv", "sr", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv":
		return azure
	}
	for _, prefix := range [...]string{"x-amz-", "x-goog-", "x-oss-", "q-sign-", "q-ak", "q-key-time", "q-header-list", "q-url-param-list"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// stableURL is an address without what differs from one answer to the next, and without its fragment.
func stableURL(rawURL string) string {
	rawURL, _, _ = strings.Cut(rawURL, "#")
	address, query, has := strings.Cut(rawURL, "?")
	if !has {
		return rawURL
	}
	return withQuery(address, changeParameters(query, func(part, name, value string, azure bool) string {
		if isVolatile(name, value, azure) {
			return ""
		}
		if claims, ok := tokenPayload(value); ok && strings.EqualFold(name, "token") {
			return stableToken(claims)
		}
		return part
	}))
}

// stableToken stands for a JSON Web Token, which may be all that tells one object of a server from another. What is made anew
// each time does not count: the times, the signature, the device, and the token's own id (RFC 7519 section 4.1) beside a claim
// that does. A token with no claim that counts is a pass for what the rest of the address names.
func stableToken(claims []byte) string {
	var kept [][]byte
	var id []byte
	for s := skim(claims, 0); ; {
		name, value, ok := s.member()
		if !ok {
			break
		}
		claim := appendKeyText(appendKeyText(nil, name), claims[value.from:value.to])
		switch string(name) {
		case "exp", "iat", "nbf", "device_id":
		case "jti":
			id = claim
		default:
			kept = append(kept, claim)
		}
	}
	if len(kept) == 0 && id != nil {
		kept = [][]byte{id} // a reference: only the server knows to what
	}
	if len(kept) == 0 {
		return ""
	}
	slices.SortFunc(kept, bytes.Compare)
	sum := sha256.Sum256(bytes.Join(kept, nil))
	return "token=" + hex.EncodeToString(sum[:])
}

// withoutDevice is an address without "device_id", which only says whose traffic it is (protocol 3.2), and its fragment. A
// signature may cover all parameters, so none is taken from an address that has one.
func withoutDevice(rawURL string) string {
	rawURL, _, _ = strings.Cut(rawURL, "#")
	address, query, has := strings.Cut(rawURL, "?")
	if !has || readSignature(rawURL).signed {
		return rawURL
	}
	return withQuery(address, changeParameters(query, func(part, name, _ string, _ bool) string {
		if name == "device_id" {
			return ""
		}
		return part
	}))
}

func withQuery(address, query string) string {
	if query == "" {
		return address
	}
	return address + "?" + query
}

// changeParameters returns the query with what change makes of each parameter, which is given as it was written and decoded.
// One that becomes "" is left out, and one without a name and value stays.
func changeParameters(query string, change func(part, name, value string, azure bool) string) string {
	azure := isAzure(query)
	kept := make([]string, 0, 8)
	for part := range strings.SplitSeq(query, "&") {
		name, value := parameter(part)
		if changed := change(part, name, value, azure); changed != "" || part == "" {
			kept = append(kept, changed)
		}
	}
	return strings.Join(kept, "&")
}

// isAzure reports whether a query is a shared access signature of Azure: it has a signature, its end and a service version.
func isAzure(query string) bool {
	var signature, end, version bool
	for name := range parameters(query) {
		switch name {
		case "sig":
			signature = true
		case "se":
			end = true
		case "sv":
			version = true
		}
	}
	return signature && end && version
}

func queryOf(rawURL string) string {
	rawURL, _, _ = strings.Cut(rawURL, "#")
	_, query, _ := strings.Cut(rawURL, "?")
	return query
}

// parameters yields the parameters of a query, decoded.
func parameters(query string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for part := range strings.SplitSeq(query, "&") {
			if name, value := parameter(part); !yield(name, value) {
				return
			}
		}
	}
}

// parameter splits one parameter. What cannot be decoded stays as it is.
func parameter(part string) (name, value string) {
	name, value, _ = strings.Cut(part, "=")
	return unescapeQuery(name), unescapeQuery(value)
}

func unescapeQuery(s string) string {
	if decoded, err := url.QueryUnescape(s); err == nil {
		return decoded
	}
	return s
}

// unixTime reads seconds since 1970, or milliseconds: no time this code sees has so many seconds. 0 is none.
func unixTime(s string) int64 {
	const mostSeconds = 100_000_000_000 // the year 5138
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil || n <= 0:
		return 0
	case n > mostSeconds:
		return n / 1000
	}
	return n
}

// tokenEnd is when a JSON Web Token ends (RFC 7519 section 4.1.4), or 0.
func tokenEnd(token string) int64 {
	payload, ok := tokenPayload(token)
	if !ok {
		return 0
	}
	var end int64
	for s := skim(payload, 0); ; {
		name, value, ok := s.member()
		if !ok {
			return end
		}
		if string(name) != "exp" {
			continue
		}
		if n, err := strconv.ParseFloat(string(payload[value.from:value.to]), 64); err == nil && n >= 1 && n < 1<<53 {
			end = int64(n)
		}
	}
}

// tokenPayload is the JSON object that a JSON Web Token carries. Its signature is not looked at: the token is the upstream's,
// for a server that will check it.
func tokenPayload(token string) ([]byte, bool) {
	_, rest, ok := strings.Cut(token, ".")
	payload, _, signed := strings.Cut(rest, ".")
	if !ok || !signed {
		return nil, false
	}
	text, err := base64.RawURLEncoding.DecodeString(payload)
	return text, err == nil && bytes.HasPrefix(text, []byte("{")) && isJSON(text)
}

// basicTime reads 20060102T150405Z, and extendedTime 2006-01-02T15:04:05Z, of which seconds, or the time of day, may be
// missing. They return seconds since 1970, or 0.
func basicTime(s string) int64 {
	if len(s) != 16 || s[8] != 'T' || s[15] != 'Z' {
		return 0
	}
	return timeOfDigits(s[:8] + s[9:15])
}

func extendedTime(s string) int64 {
	const form = "2006-01-02T15:04:05"
	s = strings.TrimSuffix(s, "Z")
	if seconds, fraction, ok := strings.Cut(s, "."); ok && len(seconds) == len(form) && digits(fraction) >= 0 {
		s = seconds
	}
	if len(s) != 10 && len(s) != 16 && len(s) != len(form) {
		return 0
	}
	for i := range len(s) {
		if isDigit(s[i]) != isDigit(form[i]) || !isDigit(s[i]) && s[i] != form[i] {
			return 0
		}
	}
	s = strings.NewReplacer("-", "", "T", "", ":", "").Replace(s)
	return timeOfDigits(s + "000000"[:14-len(s)])
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// timeOfDigits reads yyyymmddhhmmss in UTC.
func timeOfDigits(s string) int64 {
	year, month, day := digits(s[:4]), digits(s[4:6]), digits(s[6:8])
	hour, minute, second := digits(s[8:10]), digits(s[10:12]), digits(s[12:14])
	if year < 1970 || month < 1 || month > 12 || day < 1 || day > 31 || hour < 0 || hour > 23 || minute < 0 || minute > 59 ||
		second < 0 || second > 60 {
		return 0
	}
	return daysSince1970(year, month, day)*86400 + hour*3600 + minute*60 + second
}

// digits is a number of digits only, or -1.
func digits(s string) int64 {
	n, err := strconv.ParseUint(s, 10, 62)
	if err != nil {
		return -1
	}
	return int64(n)
}

// daysSince1970 counts the days of the Gregorian calendar. A year begins in March here, so that its last day is the leap one.
func daysSince1970(year, month, day int64) int64 {
	if month <= 2 {
		year, month = year-1, month+12
	}
	return 365*year + year/4 - year/100 + year/400 + (153*(month-3)+2)/5 + day - 1 - 719468
}
