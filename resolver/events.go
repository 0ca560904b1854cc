package resolver

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// Event is one statistics event (protocol 4.1), as far as an edge looks at it. Its strings share one copy of the body.
type Event struct {
	AppID    string
	DeviceID string // lower case
	Action   string // any text: new plugins have actions that no list has (protocol 4.4)

	// Version is what the event speaks of: VersionName up to the first ":".
	Version string
	// VersionName is version_name, with "builtin" replaced by the canonical version_build.
	VersionName string
	// Native tells that VersionName is version_build: the app runs what it was installed with.
	Native bool

	// Raw is the event as it came, a part of the body.
	Raw []byte

	// Refusal is why the event is refused whatever the state of the app; nil if it is not.
	Refusal *Refusal
	// Ignored tells that the upstream accepts the event and drops it (protocol 4.3): older plugins report failed downloads
	// where there were none.
	Ignored bool
}

// Limits of the fields of events alone (protocol 4.1), in UTF-16 code units.
const (
	maxCustomID      = 36
	maxMetadata      = 30 // members
	maxMetadataName  = 64
	maxMetadataValue = 2048
)

// maxDepth is how deep the objects and arrays of an event may be nested. No known member has more than one level.
const maxDepth = 64

// MaxBatch is how many events a batch may have. Plugins keep 200 at the most (protocol 4.5); the limit keeps a body of
// tiny items from costing many times its size in memory.
const MaxBatch = 10_000

// Bounds of what is said about the faults of a batch: they lie beyond any batch of a plugin, and keep many small faults, or
// one in a long text, from costing many times what was sent.
const (
	maxExplained = 200      // refused events of which each broken rule is told
	maxDetails   = 64 << 10 // bytes of an answer, after which its entries have no moreInfo
	maxRepeated  = 1 << 10  // bytes of a text that is sent back
)

// What refuses a body of events as a whole, or one event of it.
var (
	missingAppID   = &Refusal{Status: 400, Code: "invalid_app_id", Message: "App ID is required"}
	malformedAppID = &Refusal{Status: 400, Code: "invalid_app_id", Message: "App ID must be a reverse domain string"}

	// These two are of later items of a batch; the upstream answers them with status 200 (protocol 4.3).
	laterMissingAppID   = &Refusal{Status: 200, Code: missingAppID.Code, Message: missingAppID.Message}
	laterMalformedAppID = &Refusal{Status: 200, Code: malformedAppID.Code, Message: malformedAppID.Message}

	mixedApps     = &Refusal{Status: 200, Code: "mixed_app_ids", Message: "All events in a batch must have the same app_id"}
	batchTooLarge = &Refusal{
		Status: 413, Code: "batch_too_large",
		Message: "A batch must have no more than " + strconv.Itoa(MaxBatch) + " events, send it in parts",
	}

	missingDeviceID = &Refusal{Status: 400, Code: "missing_device_id", Message: "Cannot find device_id"}
	missingAction   = &Refusal{Status: 400, Code: "processing_error", Message: "The event has no action"}

	// An array of a collector's is one level more: an event at the limit of its parser would be refused in a batch, and the batch
	// with it.
	nestedTooDeep = &Refusal{
		Status: 400, Code: codeInvalidBody,
		Message: "Cannot parse body: an event may have " + strconv.Itoa(maxDepth) + " levels of objects and arrays",
	}

	// These two are of events about which no more is told.
	unparsable    = cannotParse()
	noNativeBuild = &Refusal{Status: 400, Code: "semver_error", Message: "Native version: version_build is not a semantic version"}
)

// The plugins whose download_fail counts (protocol 4.3).
var (
	firstHonest  = version{major: 7, minor: 17}
	firstHonest6 = version{major: 6, minor: 14, patch: 25}
)

// EventParser reads events. Its zero value is ready; reuse one to save allocations, from one goroutine at a time.
type EventParser struct {
	reader
	events []Event
	batch  bool
	mixed  bool     // events of different apps were seen
	whole  *Refusal // of the body

	refused int // events
}

// Parse reads the body of POST /stats: one event, or a batch of them. events is valid until the next call, and so long as
// body is not changed, which Raw is a part of.
//
// The error is a *Refusal of the body as a whole, in the order of protocol 4.2 and 4.3, with the status it is answered
// with. An event of its own fault has that in Event.Refusal, and leaves the others of its batch unharmed.
func (p *EventParser) Parse(body []byte) (events []Event, batch bool, err error) {
	text := string(body) // one copy for all strings of the events
	if !p.scanEvents(body, text) && !p.decodeEvents(body, text) {
		return nil, false, ErrNotJSON
	}
	switch {
	case p.whole != nil:
		return nil, p.batch, p.whole
	case p.mixed:
		return nil, true, mixedApps
	}
	return p.events, p.batch, nil
}

func (p *EventParser) begin(batch bool) {
	p.events, p.batch, p.mixed, p.whole, p.refused = p.events[:0], batch, false, nil, 0
}

// scanEvents reads a body whose text is plain, see reader.scan.
func (p *EventParser) scanEvents(body []byte, text string) bool {
	plain, controls := survey(text)
	i := skipBlanks(text, 0)
	if !plain || i == len(text) {
		return false
	}
	p.begin(text[i] == '[')
	if !p.batch {
		i = p.scanEvent(body, text, i, controls)
		return i >= 0 && skipBlanks(text, i) == len(text)
	}
	if i = skipBlanks(text, i+1); i < len(text) && text[i] == ']' {
		return skipBlanks(text, i+1) == len(text)
	}
	for {
		if i = p.scanEvent(body, text, i, controls); i < 0 {
			return false
		}
		i = skipBlanks(text, i)
		switch {
		case i == len(text):
			return false
		case text[i] == ']':
			return skipBlanks(text, i+1) == len(text)
		case text[i] != ',':
			return false
		}
		i = skipBlanks(text, i+1)
	}
}

// scanEvent reads the item at i, whatever it is, and returns what follows, or -1.
func (p *EventParser) scanEvent(body []byte, text string, i int, controls bool) (next int) {
	p.fields = [fieldCount]field{}
	if i < len(text) && text[i] == '{' {
		_, next = p.scanObject(text, i, controls)
	} else {
		_, next = plainValue(text, i, controls)
	}
	if next >= 0 {
		p.add(body[i:next:next])
	}
	return next
}

// decodeEvents is scanEvents for bodies of any form. It reports whether the body is JSON.
func (p *EventParser) decodeEvents(body []byte, text string) bool {
	p.open(body)
	p.begin(p.dec.PeekKind() == '[')
	if !p.batch {
		return p.decodeEvent(body, text) && p.atEnd()
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return false
	}
	for p.dec.PeekKind() != ']' {
		if !p.decodeEvent(body, text) {
			return false
		}
	}
	_, err := p.dec.ReadToken()
	return err == nil && p.atEnd()
}

func (p *EventParser) decodeEvent(body []byte, text string) bool {
	if p.dec.PeekKind() != '{' {
		value, err := p.dec.ReadValue()
		if err != nil {
			return false
		}
		p.fields = [fieldCount]field{}
		p.add(value)
		return true
	}
	ahead := p.dec.UnreadBuffer()
	from := int(p.dec.InputOffset()) + len(ahead) - len(bytes.TrimLeft(ahead, " \t\r\n,"))
	if _, err := p.decodeObject(text); err != nil {
		return false
	}
	to := p.dec.InputOffset()
	p.add(body[from:to:to])
	return true
}

// add judges the item whose fields were read last. Once the body is refused the rest of it is read for its syntax alone.
func (p *EventParser) add(raw []byte) {
	if p.whole != nil {
		return
	}
	app := &p.fields[fAppID]
	if p.whole = p.judgeApp(app); p.whole != nil {
		return
	}
	if p.mixed = p.mixed || len(p.events) > 0 && p.events[0].AppID != app.text; p.mixed {
		return
	}
	if len(p.events) == MaxBatch {
		p.whole = batchTooLarge
		return
	}
	e := Event{AppID: app.text, Raw: raw}
	if e.Refusal = p.fill(&e); e.Refusal == nil && tooDeep(raw) {
		e.Refusal = nestedTooDeep
	}
	if e.Refusal != nil {
		if p.refused++; p.refused > maxExplained || len(e.Refusal.VersionBuild) > maxRepeated {
			e.Refusal = e.Refusal.brief()
		}
	}
	p.events = append(p.events, e)
}

// tooDeep reports whether the objects and arrays of a JSON value are nested deeper than maxDepth.
func tooDeep(value []byte) bool {
	if bytes.Count(value, []byte("{"))+bytes.Count(value, []byte("[")) <= maxDepth { // as of nearly all
		return false
	}
	depth, inText := 0, false
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '"':
			inText = !inText
		case c == '\\' && inText:
			i++
		case inText:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// brief is a refusal of an event without its details, which all such events share.
func (r *Refusal) brief() *Refusal {
	switch {
	case len(r.Issues) > 0:
		return unparsable
	case r.VersionBuild != "":
		return noNativeBuild
	}
	return r // it has none
}

// judgeApp refuses the body for the app id of the item read last.
func (p *EventParser) judgeApp(app *field) *Refusal {
	later := len(p.events) > 0
	switch missing := app.state != isText || app.text == ""; {
	case missing && later:
		return laterMissingAppID
	case missing:
		return missingAppID
	case IsAppID(app.text):
		return nil
	case later:
		return laterMalformedAppID
	}
	return malformedAppID
}

// fill takes the fields over into e, and returns what refuses it (protocol 4.1, 4.2).
func (p *EventParser) fill(e *Event) *Refusal {
	f := &p.fields
	if f[fDeviceID].missing() {
		return missingDeviceID
	}
	_, build, _, refusal := nativeVersion(&f[fVersionBuild])
	if refusal != nil {
		return refusal
	}
	s := schema{fields: f}
	e.DeviceID, _ = s.deviceID()
	if e.VersionName = s.text(fVersionName); e.VersionName == nameBuiltin {
		e.VersionName = build
	}
	e.Version, e.Native = beforeColon(e.VersionName), e.VersionName == build
	s.required(fVersionBuild)
	plugin := s.pluginVersion()
	s.text(fPlatform)
	s.text(fVersionOS)
	s.boolean(fIsEmulator, false)
	s.boolean(fIsProd, true)
	s.optional(fDefaultChannel, 0)
	s.optional(fKeyID, maxKeyID)
	s.optional(fInstallSource, maxInstallSource)
	s.optional(fOldVersionName, 0)
	if f[fCustomID].state != isNull { // Electron sends that for "unset" (protocol 1.2)
		s.optional(fCustomID, maxCustomID)
	}
	s.metadata()
	return p.finish(e, &s, plugin)
}

// finish judges the action, which comes last: the upstream's schema does without it and its handler then fails.
func (p *EventParser) finish(e *Event, s *schema, plugin version) *Refusal {
	hasAction := p.fields[fAction].state == isText && !p.fields[fAction].falsy
	if !p.batch && !hasAction {
		s.bad(fAction, "invalid_type", "expected a string that is not empty")
	}
	switch {
	case len(s.issues) > 0:
		return cannotParse(s.issues...)
	case !hasAction:
		return missingAction
	}
	e.Action = p.fields[fAction].text
	e.Ignored = e.Action == "download_fail" && plugin.less(firstHonest) && (plugin.major != 6 || plugin.less(firstHonest6))
	return nil
}

// metadata judges the details of an event (protocol 4.1).
func (s *schema) metadata() {
	f := &s.fields[fMetadata]
	switch f.state {
	case absent:
		return
	case isObject:
	default:
		s.bad(fMetadata, "invalid_type", "expected an object")
		return
	}
	n := 0
	for m := range membersOf(f.text) {
		n++
		switch {
		case m.value.state != isText:
			s.bad(fMetadata, "invalid_type", "expected strings as values")
			return
		case utf16Longer(m.name, maxMetadataName), utf16Longer(m.value.text, maxMetadataValue), n > maxMetadata:
			s.bad(fMetadata, "too_big", "has too many members, or one that is too long")
			return
		}
	}
}

// JudgeEvent returns why the app refuses an event that has no fault of its own: the version it speaks of is unknown
// (protocol 4.2, 4.3). It returns nil if it does not.
func (m *Manifest) JudgeEvent(e *Event) *Refusal {
	if e.Ignored || m.has(e.Version) {
		return nil
	}
	return &Refusal{
		Status: 200, Code: "version_not_found", Message: "Version not found",
		AppID: e.AppID, VersionName: e.VersionName[:min(len(e.VersionName), maxRepeated)],
	}
}

// has reports whether events may speak of a version. The upstream has rows for the two placeholders in every app.
func (m *Manifest) has(version string) bool {
	return version == nameBuiltin || version == nameUnknown || m.names.has(version)
}

// HasVersionOf reports whether events may speak of the version that asks (protocol 4.3, "Version lookup"). A check is
// decided whatever its version is, and a native one was often never uploaded.
func (m *Manifest) HasVersionOf(c *Check) bool { return m.has(beforeColon(c.VersionName)) }

// UpstreamHasVersionOf is HasVersionOf for an app without a manifest, as far as the answer to the check tells, by the action
// that is noted for it: a bundle that was downloaded came from there, while a native version is known to be there only if the
// answer says that it is the one of the channel.
func UpstreamHasVersionOf(c *Check, action string) bool {
	const upToDate = "noNew"
	return c.VersionName != c.VersionBuild || action == upToDate
}

// beforeColon is the version in a version_name: a file of it may follow (protocol 4.1).
func beforeColon(versionName string) string {
	version, _, _ := strings.Cut(versionName, ":")
	return version
}

// versionNames are digests of the names of all versions that are not deleted, sorted. There may be hundreds of thousands,
// and a collision does no more than let an event pass.
type versionNames []uint64

const versionNameSize = 8

func (s versionNames) has(name string) bool {
	_, ok := slices.BinarySearch(s, nameDigest(name))
	return ok
}

// sorted brings the names into order. s must not be used afterwards.
func (s versionNames) sorted() versionNames {
	slices.Sort(s)
	return fit(s)
}

// nameDigest is the 64-bit FNV-1a hash of a name.
func nameDigest[T string | []byte](name T) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * prime
	}
	return h
}

// AppendEventAnswer appends the body of the answer to a single event; r is nil for one that was accepted.
func AppendEventAnswer(dst []byte, r *Refusal) []byte {
	if r == nil {
		return append(dst, `{"status":"ok"}`...)
	}
	return AppendRefusal(dst, r)
}

// AppendBatchAnswer appends the body of the answer to a batch (protocol 4.3): one entry per event, in their order; items
// are nil for those that were accepted. Entries behind the first 64 KiB have no moreInfo.
func AppendBatchAnswer(dst []byte, items []*Refusal) []byte {
	begin := len(dst)
	dst = append(dst, `{"status":"ok","results":[`...)
	for i, r := range items {
		if i > 0 {
			dst = append(dst, ',')
		}
		if r == nil {
			dst = append(dst, `{"status":"ok"`...)
		} else {
			dst = appendMember(dst, `{"status":"error","error":`, r.Code)
			dst = appendMember(dst, `,"message":`, r.Message)
		}
		dst = append(dst, `,"index":`...)
		dst = strconv.AppendInt(dst, int64(i), 10)
		if r != nil && len(dst)-begin < maxDetails {
			dst = r.appendMoreInfo(dst)
		}
		dst = append(dst, '}')
	}
	return append(dst, `]}`...)
}

// AppendCheckEvent appends an update check as the event that the upstream records for it: the members of the check, the
// action, and at, in milliseconds since 1970. check must be a body that CheckParser accepted. What an official collector
// would refuse is set right: version_os is added where a check lacks it, and custom_id left out where it is no text or too
// long, which a check may have (protocol 1.2, 4.1). A version that the collector does not have, as known tells, is reported
// as "unknown", under which it takes events in every app (protocol 4.3): the device is counted all the same. Members that are
// objects or arrays are left out: none that is known is one, and what is nested too deep would be refused.
func AppendCheckEvent(dst, check []byte, known bool, action string, at int64) []byte {
	hasOS := false
	dst, _ = appendMembers(dst, string(check), func(m member) (string, bool) {
		isText := m.value.state == isText
		switch m.name {
		case "action", "timestamp", "metadata":
			return "", false
		case "version_name":
			if !known {
				return `"` + nameUnknown + `"`, true
			}
		case "custom_id":
			return "", isText && !utf16Longer(m.value.text, maxCustomID)
		case "old_version_name":
			return "", isText
		case "version_os":
			hasOS = hasOS || isText
			return "", isText
		}
		return "", m.value.state != isObject && !strings.HasPrefix(m.value.text, "[") || isText
	})
	if !hasOS {
		dst = append(dst, `,"version_os":"unknown"`...)
	}
	dst = appendMember(dst, `,"action":`, action)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, at, 10)
	return append(dst, '}')
}

// AppendWithCustomID appends an event with another custom_id, or without it where change reports false. change is asked
// with each custom_id that is a text: an event may have several, of which the last one counts. One that is no text is left
// out, as nobody can say what it tells; one that is unset stays. All else is copied byte by byte. event must be valid JSON.
func AppendWithCustomID(dst, event []byte, change func(id string) (string, bool)) []byte {
	dst, rest := appendMembers(dst, string(event), func(m member) (string, bool) {
		unset := m.value.state == isNull || m.value.state == isText && m.value.text == ""
		switch {
		case m.name != "custom_id" || unset:
			return "", true
		case m.value.state != isText:
			return "", false
		}
		id, keep := change(m.value.text)
		if !keep || id == m.value.text {
			return "", keep
		}
		return quoted(id), true
	})
	return append(dst, rest...)
}
