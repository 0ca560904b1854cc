package resolver

import "bytes"

// AnswerClass is what an upstream's answer to a check comes to: whether it may be kept, and for whom.
type AnswerClass uint8

// The classes.
const (
	// AnswerUnknown is what none of the others is. It goes to the client unchanged, with its status, and is not kept: forward
	// first, understand second (protocol 7).
	AnswerUnknown AnswerClass = iota
	// AnswerOffer tells the device what to run: a version with a url or a delta list, or the bare version "builtin", by which
	// clients return to their native bundle (protocol 1.8).
	AnswerOffer
	// AnswerNoUpdate is a 200 with "error" or "kind": by either of them clients tell that there is no update (protocol 1.8).
	// The code is one of protocol 1.5, or one that only a server of another make has.
	AnswerNoUpdate
	// AnswerRefused is a 429 with nothing in it, and on_premise_app with any status below 500. An unknown app, an unpaid plan
	// and a failed database read look alike (protocol 1.5 rows 5 and 7), so one server's word for it is not enough.
	AnswerRefused
	// AnswerThrottled is any other 429, also a gateway's page, and too_many_requests with any status below 500 (protocol 1.5
	// row 2): too many requests. It speaks of this moment or of the address that asks, and is never kept or shared.
	AnswerThrottled
	// AnswerOwnAddress is provider_infrastructure_request_blocked (protocol 1.5 rows 4 and 6): it speaks of the address that
	// the edge asks from, and of no device.
	AnswerOwnAddress
	// AnswerOutage is a fault of the upstream: a status of 500 and above, or a 200 that is empty or no JSON.
	AnswerOutage
	// AnswerClientError judges the body of this one request (protocol 1.5 rows 1 and 3), also fields that others do not share.
	// It goes to the client unchanged and is not kept.
	AnswerClientError
	AnswerClasses // how many there are
)

func (c AnswerClass) String() string {
	return [...]string{"unknown", "offer", "no_update", "refused", "throttled", "own_address", "outage", "client_error", "invalid"}[min(c, AnswerClasses)]
}

// Answer is what an upstream answered to a check. Its texts are those of the members of that name, and empty where there is
// none or it is no text.
type Answer struct {
	Class AnswerClass
	Code  string // "error"
	Kind  string // "kind"

	Version    string
	Checksum   string
	SessionKey string // "session_key", or "sessionKey" as some servers have it

	// Addresses are those an offer tells: that of the zip, if it has one, then those of the delta files. The placeholder of
	// bundles without a zip (protocol 1.6) is not among them.
	Addresses []Address

	body    []byte
	fetches bool // there is a url that is not empty, or a delta list, be it empty
	kindAt  span // of the value of "kind"
}

// Address is one address in an offer.
type Address struct {
	URL string
	// FileName and FileHash are those of a delta file. The zip has neither.
	FileName, FileHash string
	Zip                bool

	at span // of its JSON string in the body
}

// ParseAnswer reads and classifies the answer to an update check. It keeps body, which must not change any more; body has
// no content coding. Time-outs and broken connections are the caller's to classify.
func ParseAnswer(status int, body []byte) *Answer {
	a := &Answer{body: body}
	a.Class = a.classify(status, a.read())
	if a.Class != AnswerOffer {
		a.Addresses = nil
	}
	return a
}

// answerForm is what a body is, as far as its class goes.
type answerForm uint8

const (
	notJSON answerForm = iota
	oddJSON            // no object, or one that not all clients read alike
	plainJSON
)

// The codes that a class goes by.
const (
	codeOnPremise       = "on_premise_app"
	codeTooManyRequests = "too_many_requests"
	codeOwnAddress      = "provider_infrastructure_request_blocked"
)

func (a *Answer) classify(status int, form answerForm) AnswerClass {
	switch {
	case status >= 500 || status == 200 && form == notJSON:
		return AnswerOutage
	case a.Code == codeOwnAddress:
		return AnswerOwnAddress
	case a.Code == codeOnPremise || status == 429 && len(bytes.TrimSpace(a.body)) == 0:
		return AnswerRefused
	case status == 429 || a.Code == codeTooManyRequests:
		return AnswerThrottled
	case judgesBody(status, a.Code):
		return AnswerClientError
	case status != 200 || form != plainJSON:
		return AnswerUnknown
	case a.Code != "" || a.Kind != "":
		return AnswerNoUpdate
	case a.Version == nameBuiltin || a.Version != "" && a.fetches:
		return AnswerOffer
	}
	return AnswerUnknown
}

// judgesBody reports whether a code is about the request's body, and not about the device or the app. Some servers send such
// codes with 200 (protocol 7). A native version that cannot be read is in the key of an answer, so with 200 it may be kept.
func judgesBody(status int, code string) bool {
	switch code {
	case ErrNotJSON.Code, codeInvalidBody, missingDeviceID.Code, "missing_app_id", "invalid_request":
		return status == 400 || status == 200
	case "semver_error", "invalid_version_build":
		return status == 400
	}
	return false
}

// answerMember is a member of an answer that clients act on.
type answerMember uint8

const (
	mVersion answerMember = iota
	mURL
	mChecksum
	mSessionKey
	mOtherSessionKey
	mError
	mKind
	mManifest // the only one that is no text
	answerMembers
)

var answerMemberNames = [answerMembers]string{
	"version", "url", "checksum", "session_key", "sessionKey", "error", "kind", "manifest",
}

// read takes the members over, if the body is an object. Clients may read one in two ways if a member that counts stands
// there twice, or is of another type than they expect.
func (a *Answer) read() answerForm {
	switch {
	case !isJSON(a.body):
		return notJSON
	case bytes.TrimLeft(a.body, jsonBlanks)[0] != '{':
		return oddJSON
	}
	var values [answerMembers]span
	form := plainJSON
	for s := skim(a.body, 0); ; {
		name, value, ok := s.member()
		if !ok {
			break
		}
		for i, known := range answerMemberNames {
			if string(name) != known {
				continue
			}
			if values[i] != (span{}) {
				form = oddJSON
			}
			values[i] = value
		}
	}
	if !a.take(&values) {
		form = oddJSON
	}
	return form
}

// take takes over the members that were found, and reports whether each is of its type.
func (a *Answer) take(values *[answerMembers]span) (typed bool) {
	var texts [mManifest]string
	typed = true
	for i := range texts {
		var ok bool
		texts[i], ok = a.text(values[i])
		typed = typed && ok
	}
	a.Version, a.Checksum, a.Code, a.Kind = texts[mVersion], texts[mChecksum], texts[mError], texts[mKind]
	if a.SessionKey = texts[mSessionKey]; a.SessionKey == "" {
		a.SessionKey = texts[mOtherSessionKey]
	}
	a.kindAt = values[mKind]
	if (a.kindAt != span{} || values[mError] != span{}) && a.Code == "" && a.Kind == "" {
		return false // that they are there is what counts, but not to every client
	}
	a.fetches = texts[mURL] != "" || values[mManifest] != span{}
	if texts[mURL] != "" && texts[mURL] != noZip {
		a.Addresses = append(a.Addresses, Address{URL: texts[mURL], Zip: true, at: values[mURL]})
	}
	return a.takeFiles(values[mManifest]) && typed
}

// text is the text of a member, which may also be null or missing.
func (a *Answer) text(value span) (text string, ok bool) {
	if value == (span{}) {
		return "", true
	}
	switch raw := a.body[value.from:value.to]; raw[0] {
	case '"':
		return string(textOf(raw)), true
	case 'n':
		return "", true
	}
	return "", false
}

// takeFiles takes over the delta list, if there is one.
func (a *Answer) takeFiles(list span) (typed bool) {
	if list == (span{}) {
		return true
	}
	if a.body[list.from] != '[' {
		return false
	}
	for s := skim(a.body[:list.to], list.from); ; {
		file, ok := s.element()
		if !ok {
			return true
		}
		if a.body[file.from] != '{' {
			return false
		}
		if file, ok := a.file(file); !ok {
			return false
		} else if file.URL != "" {
			a.Addresses = append(a.Addresses, file)
		}
	}
}

// file reads an entry of the delta list. Whether an entry may lack a member is for the client to judge.
func (a *Answer) file(entry span) (file Address, plain bool) {
	for s := skim(a.body[:entry.to], entry.from); ; {
		name, value, ok := s.member()
		if !ok {
			return file, true
		}
		var dst *string
		switch string(name) {
		case "file_name":
			dst = &file.FileName
		case "file_hash":
			dst = &file.FileHash
		case "download_url":
			dst, file.at = &file.URL, value
		default:
			continue
		}
		if *dst != "" {
			return file, false
		}
		if *dst, ok = a.text(value); !ok {
			return file, false
		}
	}
}
