package resolver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// KeyFields says which fields of a check an upstream's answer depends on. NewKeyFields makes one.
type KeyFields struct {
	judged judgedFields
	raw    []rawField // sorted by name
	others []string   // names of raw fields that are no fields of the protocol
	names  [][]byte   // all names that count: those of the protocol, then others
}

// rawField is a member of the body that is taken as it was sent.
type rawField struct {
	name string
	at   int // index in names
}

// judgedFields are fields that are taken in the form in which the official server judges them, a bit for each.
type judgedFields uint8

const (
	judgedPlatform judgedFields = 1 << iota
	judgedVersionName
	judgedVersionBuild
	judgedPlugin
	judgedDefaultChannel
	judgedIsProd
	judgedIsEmulator
	judgedKeyID
)

// judgedByName are the fields of protocol 1.10, "Cache and dependencies", by the names of their members. app_id and
// device_id are missing: who keeps answers has them by app anyway, and by device where that is asked for.
var judgedByName = map[string]judgedFields{
	fieldNames[fPlatform]:       judgedPlatform,
	fieldNames[fVersionName]:    judgedVersionName,
	fieldNames[fVersionBuild]:   judgedVersionBuild,
	fieldNames[fPluginVersion]:  judgedPlugin,
	fieldNames[fDefaultChannel]: judgedDefaultChannel,
	fieldNames[fIsProd]:         judgedIsProd,
	fieldNames[fIsEmulator]:     judgedIsEmulator,
	fieldNames[fKeyID]:          judgedKeyID,
}

// foreignFields are what a server of another make may look at (protocol 1.2 and 7), but for those that an answer is kept by
// anyway, and platform, which has one spelling. They are taken as they were sent: what is missing, null or empty is one to the
// official server and may be two to another, which may also know other classes of plugins, or tell one store from the next.
var foreignFields = []string{
	fieldNames[fCustomID], fieldNames[fDefaultChannel], fieldNames[fInstallSource], fieldNames[fIsEmulator], fieldNames[fIsProd],
	fieldNames[fKeyID], fieldNames[fPluginVersion], fieldNames[fVersionBuild], "version_code", fieldNames[fVersionName],
	fieldNames[fVersionOS],
}

// maxOtherFields bounds the members that are looked for in each body besides those of the protocol.
const maxOtherFields = 16

// NewKeyFields returns the fields that the answers of the official server depend on (protocol 1.10) or, if foreign, those
// that a server of another make may be assumed to look at: all that clients send (protocol 1.2), as they were sent. Changes come
// after: "+name" takes a further member of the body, or one of those already taken as it was sent; "-name" leaves one out
// altogether.
func NewKeyFields(foreign bool, changes ...string) (KeyFields, error) {
	var f KeyFields
	for _, bit := range judgedByName {
		f.judged |= bit
	}
	var raw []string
	if foreign {
		for _, name := range foreignFields {
			raw = f.add(raw, name)
		}
	}
	for _, change := range changes {
		var err error
		if raw, err = f.change(raw, change); err != nil {
			return KeyFields{}, fmt.Errorf("key field %q: %w", change, err)
		}
	}
	slices.Sort(raw)
	for _, name := range fieldNames {
		f.names = append(f.names, []byte(name))
	}
	for _, name := range raw {
		at := fieldIndex(name)
		if at < 0 {
			if at = len(f.names); f.folded([]byte(name)) >= 0 {
				return KeyFields{}, fmt.Errorf("key field %q: another one has this name in other letters, and some servers take them for one", name)
			}
			f.others = append(f.others, name)
			f.names = append(f.names, []byte(name))
		}
		f.raw = append(f.raw, rawField{name, at})
	}
	if len(f.others) > maxOtherFields {
		return KeyFields{}, fmt.Errorf("there are %d key fields that are none of the protocol; at most %d can be taken", len(f.others), maxOtherFields)
	}
	return f, nil
}

func (f *KeyFields) change(raw []string, change string) ([]string, error) {
	if len(change) < 2 || change[0] != '+' && change[0] != '-' {
		return nil, errors.New("write +name for a field that answers depend on, or -name for one that they do not")
	}
	name := change[1:]
	switch name {
	case fieldNames[fAppID]:
		return nil, errors.New("answers are always kept by app")
	case fieldNames[fDeviceID]:
		return nil, errors.New("whether answers are kept by device is said by per_device")
	}
	if change[0] == '+' {
		return f.add(raw, name), nil
	}
	return f.remove(raw, name), nil
}

// add takes a member as it was sent. What the official server makes of it follows from that.
func (f *KeyFields) add(raw []string, name string) []string { return append(f.remove(raw, name), name) }

func (f *KeyFields) remove(raw []string, name string) []string {
	f.judged &^= judgedByName[name]
	return slices.DeleteFunc(raw, func(taken string) bool { return taken == name })
}

// The first byte of a key tells what it is for, so that both kinds can be in one table.
const (
	answerKey = 'a'
	groupKey  = 'g'
)

// AppendAnswerKey appends what distinguishes a check from those that get the same answer, but for app and device. body is the
// one that c was read from. Keys made by other fields never equal each other; they are no text.
func AppendAnswerKey(dst []byte, c *Check, body []byte, f KeyFields) []byte {
	return f.append(append(dst, answerKey), c, body, f.judged, "")
}

// AppendGroupKey appends the same without version_name: checks that are offered the same version, unless they run it.
func AppendGroupKey(dst []byte, c *Check, body []byte, f KeyFields) []byte {
	return f.append(append(dst, groupKey), c, body, f.judged&^judgedVersionName, fieldNames[fVersionName])
}

func (f *KeyFields) append(dst []byte, c *Check, body []byte, judged judgedFields, without string) []byte {
	dst = append(dst, byte(judged))
	dst = c.appendJudged(dst, judged)
	if len(f.raw) == 0 {
		return dst
	}
	var values fieldValues
	f.find(&values, body)
	for _, raw := range f.raw {
		if raw.name != without {
			dst = appendKeyText(dst, raw.name)
			dst = appendRaw(dst, body[values[raw.at].from:values[raw.at].to])
		}
	}
	return dst
}

// appendJudged appends the given fields, in an order that never changes.
func (c *Check) appendJudged(dst []byte, fields judgedFields) []byte {
	if fields&judgedPlatform != 0 {
		dst = append(dst, byte(c.Platform))
	}
	if fields&judgedPlugin != 0 {
		dst = append(dst, classOfPlugin(c.plugin))
	}
	if fields&judgedIsProd != 0 {
		dst = appendKeyBit(dst, c.IsProd)
	}
	if fields&judgedIsEmulator != 0 {
		dst = appendKeyBit(dst, c.IsEmulator)
	}
	if fields&judgedVersionName != 0 {
		dst = appendKeyText(dst, c.VersionName)
	}
	if fields&judgedVersionBuild != 0 {
		dst = appendKeyText(dst, c.VersionBuild)
	}
	if fields&judgedDefaultChannel != 0 {
		dst = appendKeyText(dst, c.DefaultChannel)
	}
	if fields&judgedKeyID != 0 {
		dst = appendKeyText(dst, c.KeyID)
	}
	return dst
}

// classOfPlugin is all of a plugin's version that an answer depends on (protocol 1.10): a bit for each gate.
func classOfPlugin(v version) byte {
	var class byte
	for i, passes := range [...]bool{
		v.major == 4, !v.less(firstWithBuiltin), lastWithoutKeyCheck.less(v),
		filesGate.passes(v), metaGate.passes(v), selfGate.passes(v),
	} {
		if passes {
			class |= 1 << i
		}
	}
	return class
}

func appendKeyBit(dst []byte, b bool) []byte {
	if b {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// appendKeyText appends a text with its length before it, so that what follows cannot be taken for a part of it.
func appendKeyText[T string | []byte](dst []byte, text T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(text)))
	return append(dst, text...)
}

// fieldValues are where the values of the fields in names stand.
type fieldValues [fieldCount + maxOtherFields]span

// find looks for the fields among the members of the body. Of equal names the last counts.
func (f *KeyFields) find(values *fieldValues, body []byte) {
	for s := skim(body, 0); ; {
		name, value, ok := s.member()
		if !ok {
			return
		}
		if i := f.exact(name); i >= 0 {
			values[i] = value
		}
	}
}

// exact returns the index in names of a field, or -1.
func (f *KeyFields) exact(name []byte) int {
	if i := fieldIndex(name); i >= 0 {
		return i
	}
	for i, other := range f.others {
		if string(name) == other {
			return fieldCount + i
		}
	}
	return -1
}

// What a member holds that is taken as it was sent.
const (
	rawAbsent byte = iota
	rawText
	rawOther
)

// appendRaw appends a value. Texts are the same however they were escaped; of other values the JSON is taken.
func appendRaw(dst []byte, value []byte) []byte {
	switch {
	case len(value) == 0:
		return append(dst, rawAbsent)
	case value[0] == '"':
		return appendKeyText(append(dst, rawText), textOf(value))
	}
	return appendKeyText(append(dst, rawOther), value)
}
