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
	raw    []string // members of the body that are taken as they were sent; sorted
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

// foreignFields are what a server of another make may look at besides (protocol 7): fields that the official one ignores,
// and those that it brings into a form of its own first. They are taken as they were sent.
var foreignFields = []string{
	fieldNames[fCustomID], fieldNames[fVersionBuild], "version_code", fieldNames[fVersionName], fieldNames[fVersionOS],
}

// maxRawFields bounds the members that are looked for in each body.
const maxRawFields = 16

// NewKeyFields returns the fields that the answers of the official server depend on (protocol 1.10) or, if foreign, those
// that a server of another make may be assumed to look at: besides them custom_id, version_code and version_os, and
// version_name and version_build as they were sent. Changes come after: "+name" takes a further member of the body, or one of
// those already taken as it was sent; "-name" leaves one out altogether.
func NewKeyFields(foreign bool, changes ...string) (KeyFields, error) {
	var f KeyFields
	for _, bit := range judgedByName {
		f.judged |= bit
	}
	if foreign {
		for _, name := range foreignFields {
			f.add(name)
		}
	}
	for _, change := range changes {
		if err := f.change(change); err != nil {
			return KeyFields{}, fmt.Errorf("key field %q: %w", change, err)
		}
	}
	if len(f.raw) > maxRawFields {
		return KeyFields{}, fmt.Errorf("there are %d key fields; at most %d can be taken as they are sent", len(f.raw), maxRawFields)
	}
	slices.Sort(f.raw)
	return f, nil
}

func (f *KeyFields) change(change string) error {
	if len(change) < 2 || change[0] != '+' && change[0] != '-' {
		return errors.New("write +name for a field that answers depend on, or -name for one that they do not")
	}
	name := change[1:]
	switch name {
	case fieldNames[fAppID]:
		return errors.New("answers are always kept by app")
	case fieldNames[fDeviceID]:
		return errors.New("whether answers are kept by device is said by per_device")
	}
	f.remove(name)
	if change[0] == '+' {
		f.add(name)
	}
	return nil
}

// add takes a member as it was sent. What the official server makes of it follows from that.
func (f *KeyFields) add(name string) {
	f.remove(name)
	f.raw = append(f.raw, name)
}

func (f *KeyFields) remove(name string) {
	f.judged &^= judgedByName[name]
	f.raw = slices.DeleteFunc(f.raw, func(taken string) bool { return taken == name })
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
	var values [maxRawFields]span
	f.find(&values, body)
	for i, name := range f.raw {
		if name != without {
			dst = appendKeyText(dst, name)
			dst = appendRaw(dst, body[values[i].from:values[i].to])
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

// find looks for the raw fields among the members of the body. Of equal names the last counts.
func (f *KeyFields) find(values *[maxRawFields]span, body []byte) {
	s := skim(body, 0)
	for {
		name, value, ok := s.member()
		if !ok {
			return
		}
		for i, wanted := range f.raw {
			if string(name) == wanted {
				values[i] = value
				break
			}
		}
	}
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
