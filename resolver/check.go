package resolver

import (
	"bytes"
	"errors"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Platform is the kind of client that asks.
type Platform uint8

// The three platforms of the protocol.
const (
	IOS Platform = iota
	Android
	Electron
	platforms // how many there are
)

var platformNames = [platforms]string{"ios", "android", "electron"}

func (p Platform) String() string { return platformNames[p] }

// Check is one device's question, "is there something newer for me?", as far as the answer depends on it (protocol 1.10,
// "Cache and dependencies"). Its strings share one copy of the body.
type Check struct {
	AppID          string
	DeviceID       string // lower case
	Platform       Platform
	VersionName    string // what runs now; "builtin" already replaced by VersionBuild
	VersionBuild   string // version of the native app, canonical spelling
	DefaultChannel string
	KeyID          string
	IsEmulator     bool
	IsProd         bool

	device         deviceID
	native         version
	nativeOverflow bool // numbers too large to compare: protocol 1.5 row 8
	plugin         version
}

// deviceID is a UUID in binary, whatever the letter case it was written in.
type deviceID [16]byte

// A Refusal is a request that gets no decision: its HTTP status, the code and message clients read, and details for
// developers.
type Refusal struct {
	Status  int
	Code    string
	Message string

	// VersionBuild is set for the code semver_error, and repeated to the client in moreInfo.
	VersionBuild string
	// Issues name the fields that break the schema, for the code invalid_json_body.
	Issues []Issue
}

// Issue is one broken rule of the request's schema.
type Issue struct {
	Field, Code, Message string
}

func (r *Refusal) Error() string { return r.Code + ": " + r.Message }

// ErrNotJSON refuses a body that is no JSON text (protocol 1.5 row 1).
var ErrNotJSON = &Refusal{Status: 400, Code: "invalid_json_parse_body", Message: "Invalid JSON body"}

// What a field of a check holds. The distinctions are those of the upstream's schema.
type fieldState uint8

const (
	absent fieldState = iota
	isNull
	isText
	isTrue
	isFalse
	isOther
)

// field is one member of the body: its state, its text, and whether the upstream's language takes it for "nothing"
// (protocol 1.5 rows 3b to 3d ask for that).
type field struct {
	state fieldState
	falsy bool
	text  string
}

func (f *field) missing() bool { return f.state == absent || f.falsy }

// The members of the body that the answer depends on, or that the schema judges.
const (
	fAppID = iota
	fDeviceID
	fPlatform
	fVersionName
	fVersionBuild
	fPluginVersion
	fIsEmulator
	fIsProd
	fDefaultChannel
	fKeyID
	fInstallSource
	fieldCount
)

var fieldNames = [fieldCount]string{
	"app_id", "device_id", "platform", "version_name", "version_build", "plugin_version",
	"is_emulator", "is_prod", "defaultChannel", "key_id", "install_source",
}

// CheckParser reads checks. Its zero value is ready; reuse one to save allocations, from one goroutine at a time.
type CheckParser struct {
	dec    jsontext.Decoder
	src    bytes.Buffer
	fields [fieldCount]field
}

// Parse reads the body of POST /updates. It copies what it keeps. The error is a *Refusal, chosen in the order of
// protocol 1.5 rows 1 and 3.
func (p *CheckParser) Parse(body []byte) (Check, error) {
	var c Check
	members, err := p.read(body)
	if err != nil {
		return c, err
	}
	f := &p.fields
	switch {
	case members < 0: // JSON, but no object
		return c, cannotParse(Issue{"", "invalid_type", "the body must be an object"})
	case members == 0:
		return c, cannotParse(Issue{"", "invalid_type", "the body is empty"})
	case f[fDeviceID].missing():
		return c, &Refusal{Status: 400, Code: "missing_device_id", Message: "Cannot find device_id"}
	case f[fAppID].missing():
		return c, &Refusal{Status: 400, Code: "missing_app_id", Message: "Cannot find app_id"}
	}
	if err := p.nativeVersion(&c); err != nil {
		return c, err
	}
	if issues := p.fill(&c); len(issues) > 0 {
		return c, cannotParse(issues...)
	}
	return c, nil
}

func cannotParse(issues ...Issue) *Refusal {
	return &Refusal{Status: 400, Code: "invalid_json_body", Message: "Cannot parse body", Issues: issues}
}

// read walks the body once and notes the members that matter. It returns their number, known or not, or -1 for JSON that
// is no object. As in the upstream's parser names are case-sensitive and the last of two equal names wins.
func (p *CheckParser) read(body []byte) (members int, err error) {
	p.fields = [fieldCount]field{}
	text := string(body) // one copy for all strings of the check
	if members, ok := p.scan(text); ok {
		return members, nil
	}
	return p.decode(body, text)
}

// decode is read for bodies of any form; text is the same bytes.
func (p *CheckParser) decode(body []byte, text string) (members int, err error) {
	p.fields = [fieldCount]field{}
	p.src = *bytes.NewBuffer(body)
	p.dec.Reset(&p.src, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if p.dec.PeekKind() != '{' {
		if _, err := p.dec.ReadValue(); err != nil || !p.atEnd() {
			return 0, ErrNotJSON
		}
		return -1, nil
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return 0, ErrNotJSON
	}
	for p.dec.PeekKind() != '}' {
		name, err := p.dec.ReadValue()
		if err != nil {
			return 0, ErrNotJSON
		}
		known := fieldIndex(unquote(name))
		value, err := p.dec.ReadValue()
		if err != nil {
			return 0, ErrNotJSON
		}
		if known >= 0 {
			end := int(p.dec.InputOffset())
			p.fields[known] = readField(value, text[end-len(value):end])
		}
		members++
	}
	if _, err := p.dec.ReadToken(); err != nil || !p.atEnd() {
		return 0, ErrNotJSON
	}
	return members, nil
}

// atEnd reports that nothing follows but what JSON takes for blanks.
func (p *CheckParser) atEnd() bool {
	return len(bytes.Trim(p.dec.UnreadBuffer(), " \t\r\n")) == 0
}

// fieldIndex returns which known field name is, or -1.
func fieldIndex[T string | []byte](name T) int {
	switch string(name) {
	case "app_id":
		return fAppID
	case "device_id":
		return fDeviceID
	case "platform":
		return fPlatform
	case "version_name":
		return fVersionName
	case "version_build":
		return fVersionBuild
	case "plugin_version":
		return fPluginVersion
	case "is_emulator":
		return fIsEmulator
	case "is_prod":
		return fIsProd
	case "defaultChannel":
		return fDefaultChannel
	case "key_id":
		return fKeyID
	case "install_source":
		return fInstallSource
	}
	return -1
}

// readField classifies a value; text is the same bytes within the check's one copy of the body.
func readField(value jsontext.Value, text string) field {
	switch value.Kind() {
	case 'n':
		return field{state: isNull, falsy: true}
	case 't':
		return field{state: isTrue}
	case 'f':
		return field{state: isFalse, falsy: true}
	case '"':
		s := text[1 : len(text)-1]
		if strings.IndexByte(s, '\\') >= 0 {
			unquoted, _ := jsontext.AppendUnquote(nil, value)
			s = string(unquoted)
		}
		return field{state: isText, text: s, falsy: s == ""}
	case '0':
		return field{state: isOther, falsy: strings.Trim(text, "-0.") == ""}
	default:
		return field{state: isOther}
	}
}

// nativeVersion coerces version_build before the schema is judged (protocol 1.3, 1.5 row 3d). A value that is no text
// fails the schema later.
func (p *CheckParser) nativeVersion(c *Check) error {
	f := &p.fields[fVersionBuild]
	if f.state != isText || f.falsy {
		return nil
	}
	v, plain := parsePlain(f.text)
	if plain {
		c.native, c.VersionBuild = v, f.text
		return nil
	}
	v, canonical, err := parseVersion(coerceNative(f.text))
	if errors.Is(err, errVersionSyntax) {
		return &Refusal{
			Status: 400, Code: "semver_error",
			Message:      "Native version: " + f.text + " is not a semantic version, set CFBundleShortVersionString or versionName to x.y.z",
			VersionBuild: f.text,
		}
	}
	c.native, c.VersionBuild, c.nativeOverflow = v, canonical, err != nil
	return nil
}

// fill judges the schema (protocol 1.2) and takes the fields over into c. It returns what is broken.
func (p *CheckParser) fill(c *Check) []Issue {
	var issues []Issue
	bad := func(field int, code, message string) {
		issues = append(issues, Issue{fieldNames[field], code, message})
	}
	required := func(field int) string {
		f := &p.fields[field]
		switch {
		case f.state != isText:
			bad(field, "invalid_type", "expected a string")
		case f.falsy:
			bad(field, "too_small", "must not be empty")
		}
		return f.text
	}
	optional := func(field, limit int) string {
		f := &p.fields[field]
		switch {
		case f.state != isText && f.state != absent:
			bad(field, "invalid_type", "expected a string")
		case limit > 0 && utf16Longer(f.text, limit):
			bad(field, "too_big", "is too long")
		}
		return f.text
	}
	boolean := func(field int, byDefault bool) bool {
		switch p.fields[field].state {
		case absent, isNull:
			return byDefault
		case isTrue:
			return true
		case isFalse:
			return false
		default:
			bad(field, "invalid_type", "expected a boolean")
			return byDefault
		}
	}

	if c.AppID = required(fAppID); c.AppID != "" && !IsAppID(c.AppID) {
		bad(fAppID, "invalid_format", "must be a reverse domain string")
	}
	if id := required(fDeviceID); id != "" {
		var ok bool
		if c.device, ok = parseDeviceID(id); !ok {
			bad(fDeviceID, "invalid_format", "must be a UUID")
		}
		c.DeviceID = lowerHex(id)
	}
	if platform := required(fPlatform); platform != "" {
		for c.Platform = 0; c.Platform < platforms && platform != platformNames[c.Platform]; c.Platform++ {
		}
		if c.Platform == platforms {
			bad(fPlatform, "invalid_value", "must be ios, android or electron")
		}
	}
	c.VersionName = required(fVersionName)
	if c.VersionName == "builtin" {
		c.VersionName = c.VersionBuild
	}
	required(fVersionBuild)
	if s := required(fPluginVersion); s != "" {
		var err error
		if c.plugin, _, err = parseVersion(s); err != nil {
			bad(fPluginVersion, "invalid_format", "must be a semantic version")
		}
	}
	c.IsEmulator = boolean(fIsEmulator, false)
	c.IsProd = boolean(fIsProd, true)
	c.DefaultChannel = optional(fDefaultChannel, 0)
	c.KeyID = optional(fKeyID, 20)
	optional(fInstallSource, 64)
	return issues
}

// utf16Longer reports whether s has more than limit UTF-16 code units, which is what the upstream's language counts.
func utf16Longer(s string, limit int) bool {
	if len(s) <= limit {
		return false
	}
	units := 0
	for _, r := range s {
		units++
		if r > 0xFFFF {
			units++
		}
	}
	return units > limit
}

// IsAppID reports whether s has the form of an application id (protocol 1.2): a first segment of letters and digits, then
// at least one more of letters, digits, "_" and "-", joined by dots.
func IsAppID(s string) bool {
	segments, length := 0, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			length++
		case (c == '_' || c == '-') && segments > 0:
			length++
		case c == '.' && length > 0:
			segments, length = segments+1, 0
		default:
			return false
		}
	}
	return segments > 0 && length > 0
}

// lowerHex is id with its hexadecimal digits in lower case; nearly every client sends it so.
func lowerHex(id string) string {
	for i := range len(id) {
		if c := id[i]; c >= 'A' && c <= 'Z' || c >= 0x80 {
			return strings.ToLower(id)
		}
	}
	return id
}

// parseDeviceID reads a UUID of any version, in any letter case, without braces.
func parseDeviceID[T string | []byte](s T) (deviceID, bool) {
	var id deviceID
	if len(s) != 36 {
		return id, false
	}
	nibbles := 0
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return id, false
			}
			continue
		}
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return id, false
		}
		id[nibbles/2] = id[nibbles/2]<<4 | c
		nibbles++
	}
	return id, true
}
