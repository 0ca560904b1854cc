package resolver

import (
	"bytes"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// What a field of a body holds. The distinctions are those of the upstream's schema.
type fieldState uint8

const (
	absent fieldState = iota
	isNull
	isText
	isTrue
	isFalse
	isObject
	isOther
)

// field is one member of the body: its state, its text, and whether the upstream's language takes it for "nothing"
// (protocol 1.5 rows 3b to 3d ask for that). The text of what is no string is the JSON of it.
type field struct {
	state fieldState
	falsy bool
	text  string
}

func (f *field) missing() bool { return f.state == absent || f.falsy }

// The members of a body that an answer depends on, or that a schema judges: first those of checks and events alike, then
// those that only events are asked for, and calls of /channel_self.
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
	fAction
	fVersionOS
	fOldVersionName
	fCustomID
	fMetadata
	fChannel
	fieldCount
)

var fieldNames = [fieldCount]string{
	"app_id", "device_id", "platform", "version_name", "version_build", "plugin_version",
	"is_emulator", "is_prod", "defaultChannel", "key_id", "install_source",
	"action", "version_os", "old_version_name", "custom_id", "metadata",
	"channel",
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
	case "action":
		return fAction
	case "version_os":
		return fVersionOS
	case "old_version_name":
		return fOldVersionName
	case "custom_id":
		return fCustomID
	case "metadata":
		return fMetadata
	case "channel":
		return fChannel
	}
	return -1
}

// reader notes the members of one object that matter. As in the upstream's parser names are case-sensitive and the last
// of two equal names wins.
type reader struct {
	dec    jsontext.Decoder
	src    bytes.Buffer
	fields [fieldCount]field
}

// read walks the body once. It returns the number of its members, known or not, or -1 for JSON that is no object.
func (r *reader) read(body []byte) (members int, err error) {
	r.fields = [fieldCount]field{}
	text := string(body) // one copy for all strings of the fields
	if members, ok := r.scan(text); ok {
		return members, nil
	}
	return r.decode(body, text)
}

// decode is read for bodies of any form; text is the same bytes.
func (r *reader) decode(body []byte, text string) (members int, err error) {
	r.open(body)
	if r.dec.PeekKind() == '{' {
		members, err = r.decodeObject(text)
	} else {
		_, err = r.dec.ReadValue()
		members = -1
	}
	if err != nil || !r.atEnd() {
		return 0, ErrNotJSON
	}
	return members, nil
}

// open begins the reading of a body with the library.
func (r *reader) open(body []byte) {
	r.src = *bytes.NewBuffer(body)
	r.dec.Reset(&r.src, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// decodeObject reads the object that comes next; text is the whole body.
func (r *reader) decodeObject(text string) (members int, err error) {
	r.fields = [fieldCount]field{}
	if _, err := r.dec.ReadToken(); err != nil {
		return 0, err
	}
	for r.dec.PeekKind() != '}' {
		name, err := r.dec.ReadValue()
		if err != nil {
			return 0, err
		}
		known := fieldIndex(unquote(name))
		value, err := r.dec.ReadValue()
		if err != nil {
			return 0, err
		}
		if known >= 0 {
			end := int(r.dec.InputOffset())
			r.fields[known] = readField(value, text[end-len(value):end])
		}
		members++
	}
	_, err = r.dec.ReadToken()
	return members, err
}

// atEnd reports that nothing follows but what JSON takes for blanks.
func (r *reader) atEnd() bool {
	return len(bytes.Trim(r.dec.UnreadBuffer(), " \t\r\n")) == 0
}

// readField classifies a value; text is the same bytes within the one copy of the body.
func readField(value jsontext.Value, text string) field {
	switch value.Kind() {
	case 'n':
		return field{state: isNull, falsy: true, text: text}
	case 't':
		return field{state: isTrue, text: text}
	case 'f':
		return field{state: isFalse, falsy: true, text: text}
	case '"':
		s := text[1 : len(text)-1]
		if strings.IndexByte(s, '\\') >= 0 {
			unquoted, _ := jsontext.AppendUnquote(nil, value)
			s = string(unquoted)
		}
		return field{state: isText, text: s, falsy: s == ""}
	case '0':
		return field{state: isOther, falsy: isZero(text), text: text}
	case '{':
		return field{state: isObject, text: text}
	default:
		return field{state: isOther, text: text}
	}
}

// isZero reports whether a number is one that the upstream's language takes for "nothing".
func isZero(number string) bool { return strings.Trim(number, "-0.") == "" }
