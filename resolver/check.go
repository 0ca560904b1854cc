package resolver

import "strings"

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

	assigned    int64 // the channel that the device of an old plugin chose, see Assign
	hasAssigned bool
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
	// AppID and VersionName are set for the code version_not_found (protocol 4.2), and repeated to the client.
	AppID, VersionName string
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

// CheckParser reads checks. Its zero value is ready; reuse one to save allocations, from one goroutine at a time.
type CheckParser struct{ reader }

// Parse reads the body of POST /updates. It copies what it keeps. The error is a *Refusal, chosen in the order of
// protocol 1.5 rows 1 and 3.
func (p *CheckParser) Parse(body []byte) (Check, error) {
	var c Check
	members, err := p.read(body)
	if err != nil {
		return c, err
	}
	if refusal := p.refuseEmpty(members); refusal != nil {
		return c, refusal
	}
	var refusal *Refusal
	if c.native, c.VersionBuild, c.nativeOverflow, refusal = nativeVersion(&p.fields[fVersionBuild]); refusal != nil {
		return c, refusal
	}
	if issues := p.fill(&c); len(issues) > 0 {
		return c, cannotParse(issues...)
	}
	return c, nil
}

// refuseEmpty refuses what has no members, or not those that say who asks (protocol 1.5 rows 3a to 3c).
func (r *reader) refuseEmpty(members int) *Refusal {
	switch {
	case members < 0: // JSON, but no object
		return cannotParse(Issue{"", "invalid_type", "the body must be an object"})
	case members == 0:
		return cannotParse(Issue{"", "invalid_type", "there are no members"})
	case r.fields[fDeviceID].missing():
		return missingDeviceID
	case r.fields[fAppID].missing():
		return &Refusal{Status: 400, Code: "missing_app_id", Message: "Cannot find app_id"}
	}
	return nil
}

const codeInvalidBody = "invalid_json_body"

func cannotParse(issues ...Issue) *Refusal {
	return &Refusal{Status: 400, Code: codeInvalidBody, Message: "Cannot parse body", Issues: issues}
}

// fill judges the schema (protocol 1.2) and takes the fields over into c. It returns what is broken.
func (p *CheckParser) fill(c *Check) []Issue {
	s := schema{fields: &p.fields}
	c.AppID = s.appID()
	c.DeviceID, c.device = s.deviceID()
	c.Platform = s.platform()
	c.VersionName = s.required(fVersionName)
	if c.VersionName == "builtin" {
		c.VersionName = c.VersionBuild
	}
	s.required(fVersionBuild)
	c.plugin = s.pluginVersion()
	c.IsEmulator = s.boolean(fIsEmulator, false)
	c.IsProd = s.boolean(fIsProd, true)
	c.DefaultChannel = s.optional(fDefaultChannel, 0)
	c.KeyID = s.optional(fKeyID, maxKeyID)
	s.optional(fInstallSource, maxInstallSource)
	return s.issues
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
