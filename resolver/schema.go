package resolver

import "errors"

// The longest texts of optional fields, in UTF-16 code units (protocol 1.2).
const (
	maxKeyID         = 20
	maxInstallSource = 64
)

// schema judges the fields of a body one by one (protocol 1.2) and collects what is broken. Its methods return what a
// field says; after an issue that is of no use.
type schema struct {
	fields *[fieldCount]field
	issues []Issue
}

func (s *schema) bad(field int, code, message string) {
	s.issues = append(s.issues, Issue{fieldNames[field], code, message})
}

// text is a field that must be there, and may be empty.
func (s *schema) text(field int) string {
	f := &s.fields[field]
	if f.state != isText {
		s.bad(field, "invalid_type", "expected a string")
		return ""
	}
	return f.text
}

// required is a field that must be there and not empty.
func (s *schema) required(field int) string {
	f := &s.fields[field]
	switch {
	case f.state != isText:
		s.bad(field, "invalid_type", "expected a string")
		return ""
	case f.falsy:
		s.bad(field, "too_small", "must not be empty")
	}
	return f.text
}

// optional is a text of at most limit UTF-16 code units, or of any length if limit is 0.
func (s *schema) optional(field, limit int) string {
	f := &s.fields[field]
	switch {
	case f.state == absent:
		return ""
	case f.state != isText:
		s.bad(field, "invalid_type", "expected a string")
		return ""
	case limit > 0 && utf16Longer(f.text, limit):
		s.bad(field, "too_big", "is too long")
	}
	return f.text
}

func (s *schema) boolean(field int, byDefault bool) bool {
	switch s.fields[field].state {
	case absent, isNull:
		return byDefault
	case isTrue:
		return true
	case isFalse:
		return false
	default:
		s.bad(field, "invalid_type", "expected a boolean")
		return byDefault
	}
}

func (s *schema) appID() string {
	id := s.required(fAppID)
	if id != "" && !IsAppID(id) {
		s.bad(fAppID, "invalid_format", "must be a reverse domain string")
	}
	return id
}

// deviceID returns the id in lower case, and in binary.
func (s *schema) deviceID() (string, deviceID) {
	id := s.required(fDeviceID)
	if id == "" {
		return "", deviceID{}
	}
	binary, ok := parseDeviceID(id)
	if !ok {
		s.bad(fDeviceID, "invalid_format", "must be a UUID")
	}
	return lowerHex(id), binary
}

func (s *schema) platform() Platform {
	name := s.required(fPlatform)
	for p := range platforms {
		if name == platformNames[p] {
			return p
		}
	}
	if name != "" {
		s.bad(fPlatform, "invalid_value", "must be ios, android or electron")
	}
	return IOS
}

func (s *schema) pluginVersion() version {
	text := s.required(fPluginVersion)
	if text == "" {
		return version{}
	}
	v, _, err := parseVersion(text)
	if err != nil {
		s.bad(fPluginVersion, "invalid_format", "must be a semantic version")
	}
	return v
}

// nativeVersion coerces version_build before the schema is judged (protocol 1.3, 1.5 row 3d), and returns its canonical
// spelling, and whether its numbers are too large to compare. A value that is no text fails the schema later.
func nativeVersion(f *field) (v version, canonical string, overflow bool, refusal *Refusal) {
	if f.state != isText || f.falsy {
		return version{}, "", false, nil
	}
	if v, plain := parsePlain(f.text); plain {
		return v, f.text, false, nil
	}
	v, canonical, err := parseVersion(coerceNative(f.text))
	if errors.Is(err, errVersionSyntax) {
		return version{}, "", false, &Refusal{
			Status: 400, Code: "semver_error",
			Message:      "Native version: " + f.text + " is not a semantic version, set CFBundleShortVersionString or versionName to x.y.z",
			VersionBuild: f.text,
		}
	}
	return v, canonical, err != nil, nil
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
