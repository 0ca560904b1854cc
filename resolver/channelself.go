package resolver

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// ChannelOp is what a call of /channel_self does (protocol 5).
type ChannelOp uint8

// The calls, in the words of clients, and the methods they travel by.
const (
	SetChannel   ChannelOp = iota // POST
	GetChannel                    // PUT
	UnsetChannel                  // DELETE, and POST with the action "unset"
	ListChannels                  // GET
	ChannelOps                    // how many there are
)

func (op ChannelOp) String() string { return [...]string{"set", "get", "unset", "list"}[op] }

// ChannelCall is a call of /channel_self, as far as the answer depends on it. Its strings share one copy of the body.
type ChannelCall struct {
	Op             ChannelOp
	AppID          string
	DeviceID       string // lower case; may be empty for ListChannels
	Platform       Platform
	Channel        string // empty if the call names none
	DefaultChannel string
	IsEmulator     bool
	IsProd         bool

	// Stored tells that the device's choice is kept by the server: its plugin is older than those that keep it themselves.
	// For all others the server only says whether a choice is allowed.
	Stored bool
}

// selfGate are the first plugins that keep the device's choice themselves (protocol 5).
var selfGate = gate{{major: 5, minor: 34}, {major: 6, minor: 34}, {major: 7, minor: 34}, {major: 8}}

// AsksAssignment reports whether the decision of c depends on the choice that the device stored by /channel_self (protocol
// 2.1, step 1). It does for old plugins only.
func (c *Check) AsksAssignment() bool { return !selfGate.passes(c.plugin) }

// Assign puts the channel that the device chose into a check that asks for it; others are left alone.
func (c *Check) Assign(channel int64) {
	if c.AsksAssignment() {
		c.assigned, c.hasAssigned = channel, true
	}
}

// ChannelParser reads calls of /channel_self. Its zero value is ready; reuse one to save allocations, from one goroutine at
// a time.
type ChannelParser struct{ reader }

// Parse reads the body of POST and PUT. It copies what it keeps. The error is a *Refusal, chosen in the order of protocol
// 1.5 rows 1 and 3.
func (p *ChannelParser) Parse(op ChannelOp, body []byte) (ChannelCall, error) {
	members, err := p.read(body)
	if err != nil {
		return ChannelCall{}, err
	}
	c, refusal := p.call(op, members)
	if refusal != nil {
		return ChannelCall{}, refusal
	}
	if unset := &p.fields[fAction]; op == SetChannel && c.Channel == "" && unset.state == isText && unset.text == "unset" {
		c.Op = UnsetChannel // Electron's (protocol 5.2); the upstream answers missing_channel, which is of no use to it
	}
	return c, nil
}

// ParseQuery reads the query of DELETE and GET. Of a parameter that stands there twice the first counts. A boolean is true
// if it is the word "true". Errors are those of Parse, but for the code of a broken schema.
func (p *ChannelParser) ParseQuery(op ChannelOp, query url.Values) (ChannelCall, error) {
	p.fields = [fieldCount]field{}
	for name, values := range query {
		if known := fieldIndex(name); known >= 0 && len(values) > 0 {
			p.fields[known] = queryField(known, values[0])
		}
	}
	var c ChannelCall
	var refusal *Refusal
	if op == ListChannels {
		c, refusal = p.list()
	} else {
		c, refusal = p.call(op, len(query))
	}
	if refusal == nil {
		return c, nil
	}
	if refusal.Code == codeInvalidBody {
		refusal.Code = "invalid_query_parameters"
	}
	return ChannelCall{}, refusal
}

func queryField(known int, text string) field {
	switch {
	case known != fIsEmulator && known != fIsProd:
		return field{state: isText, text: text, falsy: text == ""}
	case text == "true":
		return field{state: isTrue, text: text}
	}
	return field{state: isFalse, text: text, falsy: true}
}

// call takes the fields over, of which there are so many members, known or not.
func (p *ChannelParser) call(op ChannelOp, members int) (c ChannelCall, refusal *Refusal) {
	if refusal := p.refuseEmpty(members); refusal != nil {
		return c, refusal
	}
	if _, _, _, refusal := nativeVersion(&p.fields[fVersionBuild]); refusal != nil {
		return c, refusal
	}
	s := schema{fields: &p.fields}
	c.Op = op
	c.AppID = s.appID()
	c.DeviceID, _ = s.deviceID()
	c.Platform = s.platform()
	s.text(fVersionName)
	s.text(fVersionBuild)
	if plugin := &p.fields[fPluginVersion]; plugin.state != absent && (plugin.state != isText || !plugin.falsy) {
		c.Stored = !selfGate.passes(s.pluginVersion())
	}
	c.IsEmulator = s.boolean(fIsEmulator, false)
	c.IsProd = s.boolean(fIsProd, true)
	c.DefaultChannel = s.optional(fDefaultChannel, 0)
	s.optional(fKeyID, maxKeyID)
	s.optional(fInstallSource, maxInstallSource)
	c.Channel = s.optional(fChannel, 0)
	if len(s.issues) > 0 {
		return c, cannotParse(s.issues...)
	}
	return c, nil
}

// list takes over what a list of channels depends on; it needs no more than an app and a platform. The device is of interest
// only to who counts calls.
func (p *ChannelParser) list() (c ChannelCall, refusal *Refusal) {
	s := schema{fields: &p.fields}
	c.Op = ListChannels
	c.AppID = s.appID()
	if id := p.fields[fDeviceID].text; id != "" {
		if _, ok := parseDeviceID(id); ok {
			c.DeviceID = lowerHex(id)
		}
	}
	c.Platform = s.platform()
	c.IsEmulator = s.boolean(fIsEmulator, false)
	c.IsProd = s.boolean(fIsProd, true)
	if len(s.issues) > 0 {
		return c, cannotParse(s.issues...)
	}
	return c, nil
}

// ChannelChange says what a call does to the choice that is stored for the device.
type ChannelChange uint8

// The changes.
const (
	KeepChoice  ChannelChange = iota
	StoreChoice               // of ChannelReply.ChannelID
	DropChoice
)

// ChannelReply is the answer to a call, before it is written. A refusal of what a call asks for is answered with status 200.
type ChannelReply struct {
	// Result is which answer it is; a closed set, fit for logs and metrics. A refusal's is its wire code.
	Result  string
	Message string // of a refusal

	// Change must be on disk before the answer is given. It never is for plugins that keep their choice themselves.
	Change    ChannelChange
	ChannelID int64

	channel  string     // repeated to the client, if not empty
	appID    string     // likewise
	allowSet allowSet   // likewise
	list     []*channel // of ListChannels
}

// allowSet is whether, and how, an answer says that the device may choose for itself.
type allowSet uint8

const (
	allowUnsaid allowSet = iota
	allowFalse
	allowTrue
)

// The results of calls, besides wire codes.
const (
	resultOK       = "ok"
	resultOverride = "override"
	resultDefault  = "default"
	resultList     = "list"
)

// The refusals, by wire code (protocol 5.1).
const (
	codeMissingChannel   = "missing_channel"
	codeCannotOverride   = "cannot_override"
	codeChannelNotFound  = "channel_not_found"
	codePublicNotAllowed = "public_channel_self_set_not_allowed"
	codeSetNotAllowed    = "channel_self_set_not_allowed"
	codeNoStorage        = "channel_self_server_storage_unavailable"
)

// ChannelResults lists what Result can be, by call.
func ChannelResults() [ChannelOps][]string {
	return [ChannelOps][]string{
		SetChannel: {
			resultOK, codeMissingChannel, codeCannotOverride, codeChannelNotFound, codePublicNotAllowed, codeSetNotAllowed, codeNoStorage,
		},
		GetChannel:   {resultOverride, resultDefault, codeChannelNotFound},
		UnsetChannel: {resultOK, codeCannotOverride, codeNoStorage},
		ListChannels: {resultList},
	}
}

// ChannelStorageUnavailable is the answer to a call whose choice cannot be kept: the disk fails, or there are too many.
func ChannelStorageUnavailable() ChannelReply {
	return ChannelReply{Result: codeNoStorage, Message: "The channel of this device cannot be stored now, try again later"}
}

// AnswerChannel answers a call. stored is the channel that the device chose before, by its id; it counts for calls with
// Stored only, and if the app still has that channel.
func (m *Manifest) AnswerChannel(c *ChannelCall, stored int64, hasStored bool) ChannelReply {
	var old *channel
	if c.Stored && hasStored {
		old = m.at(m.byID[stored])
	}
	switch c.Op {
	case SetChannel:
		return m.setChannel(c, old)
	case GetChannel:
		return m.getChannel(c, old)
	case UnsetChannel:
		return unsetChannel(c, old)
	default:
		return ChannelReply{Result: resultList, list: m.listChannels(c)}
	}
}

func (m *Manifest) setChannel(c *ChannelCall, old *channel) ChannelReply {
	ch := m.at(m.byName[c.Channel])
	refused := func(code, message string) ChannelReply {
		return ChannelReply{Result: code, Message: message, channel: c.Channel, appID: c.AppID}
	}
	switch {
	case c.Channel == "":
		return ChannelReply{Result: codeMissingChannel, Message: "Cannot find channel in body"}
	case old != nil && !old.selfSettable:
		return cannotOverride()
	case ch == nil:
		return refused(codeChannelNotFound, "Cannot find channel")
	case !ch.selfSettable && ch.public:
		return refused(codePublicNotAllowed, "This channel is public and does not allow devices to self associate, unset the channel to use it")
	case !ch.selfSettable:
		return refused(codeSetNotAllowed, "This channel does not allow devices to self associate")
	case !c.Stored:
		return ChannelReply{Result: resultOK, allowSet: allowTrue}
	case ch == m.at(m.public[c.Platform]):
		return ChannelReply{Result: resultOK, Change: DropChoice}
	}
	return ChannelReply{Result: resultOK, Change: StoreChoice, ChannelID: ch.id}
}

func (m *Manifest) getChannel(c *ChannelCall, old *channel) ChannelReply {
	switch {
	case !c.Stored && c.Channel != "":
		return ChannelReply{Result: resultOverride, channel: c.Channel, allowSet: allowTrue}
	case !c.Stored && c.DefaultChannel != "":
		return ChannelReply{Result: resultDefault, channel: c.DefaultChannel}
	case !c.Stored:
		return ChannelReply{Result: resultDefault, channel: "production"} // the word, whatever channels there are
	case old != nil && old.selfSettable:
		return ChannelReply{Result: resultOverride, channel: old.name, allowSet: allowTrue}
	case old != nil:
		return ChannelReply{Result: resultOverride, channel: old.name, allowSet: allowFalse}
	}
	ch := m.at(m.public[c.Platform])
	if c.DefaultChannel != "" {
		ch = m.at(m.byName[c.DefaultChannel])
	}
	if ch == nil {
		return ChannelReply{Result: codeChannelNotFound, Message: "Cannot find channel"}
	}
	return ChannelReply{Result: resultDefault, channel: ch.name}
}

func unsetChannel(c *ChannelCall, old *channel) ChannelReply {
	switch {
	case !c.Stored:
		return ChannelReply{Result: resultOK}
	case old == nil || !old.selfSettable:
		return cannotOverride()
	}
	return ChannelReply{Result: resultOK, Change: DropChoice}
}

func cannotOverride() ChannelReply {
	return ChannelReply{Result: codeCannotOverride, Message: "Cannot change device override current channel don't allow it"}
}

// listChannels are the channels that such a device can be in by its own choice, or by none, in the order of their names.
func (m *Manifest) listChannels(c *ChannelCall) []*channel {
	var list []*channel
	for i := range m.channels {
		ch := &m.channels[i]
		device, build := ch.allowDevice, ch.allowDev
		if c.IsEmulator {
			device = ch.allowEmulator
		}
		if c.IsProd {
			build = ch.allowProd
		}
		if ch.serves[c.Platform] && device && build && (ch.public || ch.selfSettable) {
			list = append(list, ch)
		}
	}
	slices.SortFunc(list, func(a, b *channel) int { return strings.Compare(a.name, b.name) })
	return list
}

// AppendChannelReply appends the JSON body of a reply.
func AppendChannelReply(dst []byte, r *ChannelReply) []byte {
	switch r.Result {
	case resultList:
		return appendChannels(dst, r.list)
	case resultOK:
		dst = append(dst, `{"status":"ok"`...)
	case resultOverride, resultDefault:
		dst = appendMember(dst, `{"channel":`, r.channel)
		dst = appendMember(dst, `,"status":`, r.Result)
	default:
		dst = appendMember(dst, `{"error":`, r.Result)
		dst = appendMember(dst, `,"message":`, r.Message)
		if r.appID != "" {
			dst = appendMember(dst, `,"channel":`, r.channel)
			dst = appendMember(dst, `,"app_id":`, r.appID)
		}
	}
	if r.allowSet != allowUnsaid {
		dst = append(dst, `,"allowSet":`...)
		dst = strconv.AppendBool(dst, r.allowSet == allowTrue)
	}
	return append(dst, '}')
}

func appendChannels(dst []byte, list []*channel) []byte {
	dst = append(dst, '[')
	for i, ch := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"id":`...)
		dst = strconv.AppendInt(dst, ch.id, 10)
		dst = appendMember(dst, `,"name":`, ch.name)
		dst = append(dst, `,"public":`...)
		dst = strconv.AppendBool(dst, ch.public)
		dst = append(dst, `,"allow_self_set":`...)
		dst = strconv.AppendBool(dst, ch.selfSettable)
		dst = append(dst, '}')
	}
	return append(dst, ']')
}

// AppendChannelLimit appends the JSON body of the refusal of a device that calls too often (protocol 5.1). resetAt is when
// the next call will pass, in milliseconds since 1970, and retryAfter how many seconds that is from now.
func AppendChannelLimit(dst []byte, c *ChannelCall, resetAt, retryAfter int64) []byte {
	dst = append(dst, `{"error":"too_many_requests","message":"Too many requests","moreInfo":{"app_id":`...)
	dst = appendMember(dst, ``, c.AppID)
	dst = appendMember(dst, `,"device_id":`, c.DeviceID)
	dst = append(dst, `,"rateLimitResetAt":`...)
	dst = strconv.AppendInt(dst, resetAt, 10)
	dst = append(dst, `,"retryAfterSeconds":`...)
	dst = strconv.AppendInt(dst, retryAfter, 10)
	return append(dst, `}}`...)
}
