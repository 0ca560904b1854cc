package resolver

import (
	"fmt"
	"slices"
	"strings"
)

// Manifest is the compiled channel manifest of one application: everything an answer can depend on besides the request.
// It is immutable and may be shared freely.
type Manifest struct {
	AppID string
	Keys  Keys // every object key the document names, of versions in use or not

	// Warnings are oddities an operator should know of, at most maxFaults. They do not keep the document from being used.
	Warnings []Fault

	channels       []channel
	byName         map[string]place
	byID           map[int64]place
	public         [platforms]place // step 4 of protocol 2.1
	overrides      map[deviceID]place
	rolloutActive  bool // some channel has an unpaused rollout above 0
	pausedTargets  map[string]bool
	exposeMetadata bool

	versions versionMarks // what Hold compares
	names    versionNames // of which events may speak
}

// place is where a channel stands in Manifest.channels, counted from 1; 0 is nowhere. Indexes hold places, not pointers, so
// that the variants of a manifest share them with it (Hold): there may be hundreds of thousands of overrides.
type place int32

// at returns the channel at p, or nil.
func (m *Manifest) at(p place) *channel {
	if p == 0 {
		return nil
	}
	return &m.channels[p-1]
}

// policy limits how far a bundle may be from the native version (protocol 1.5 rows 15 to 19).
type policy uint8

const (
	policyMajor policy = iota // the default
	policyMinor
	policyPatch
	policyVersionNumber
	policyNone
)

var policyNames = []string{"major", "minor", "patch", "version_number", "none"}

// channel is one release channel, with the bundles it points at.
type channel struct {
	id           int64
	name         string
	public       bool
	selfSettable bool // allow_device_self_set
	serves       [platforms]bool
	policy       policy
	nativeFloor  bool // disable_auto_update_under_native

	allowEmulator, allowDevice, allowDev, allowProd bool

	stable  *Bundle
	rollout rollout

	misconfigured string // the message of row 18, which names the channel
}

// hidden reports that the channel's bundle was deleted, which takes the channel out of every selection (protocol 2.1).
func (ch *channel) hidden() bool { return ch.stable.gone }

// nameable reports whether a device on the platform may name the channel in defaultChannel.
func (ch *channel) nameable(p Platform) bool {
	return ch.serves[p] && (ch.public || ch.selfSettable) && !ch.hidden()
}

// comparesVersions reports whether some rule of the channel needs the order of versions (rows 15 to 20).
func (ch *channel) comparesVersions() bool { return ch.policy != policyNone || ch.nativeFloor }

// Bundle is one version of the web application that a channel points at, with its answer prepared.
type Bundle struct {
	ID   int64
	Name string

	gone    bool // deleted, and not a row named builtin
	builtin bool // the native bundle
	unknown bool // the placeholder row of that name
	stored  bool // has an address, an object or delta files (row 11)
	offered bool // has an http(s) address, or delta files (row 26)

	keyID  string
	number version
	isSem  bool // the name is a semantic version, and number is it

	minNative version // min_update_version, for policy version_number
	hasMin    bool
	minIsSem  bool

	head  template // version, url, session_key and checksum of the answer
	files template // its delta list; empty if it has none
	meta  string   // its link and comment

	external *external // nil if the zip has no http(s) address of its own
	mark     uint64    // of its row, see versionMark
	original *Bundle   // what Readdress made this bundle of; nil if it is a manifest's own
}

// comparable reports whether the bundle takes part in rows 15 to 20.
func (b *Bundle) comparable() bool { return !b.builtin && !b.unknown }

// offerable reports whether some device may be offered the bundle. None is offered a deleted one, which hides its channel
// or is no target (protocol 2.1, 2.3), the native one (rows 25a and 25b), nor one without an address (rows 11 and 26).
func (b *Bundle) offerable() bool { return b.offered && !b.builtin && !b.gone }

// MemorySize estimates the bytes the bundle keeps in memory, with its prepared answer.
func (b *Bundle) MemorySize() int64 {
	const perBundle = 512
	size := perBundle + int64(len(b.meta)) + b.head.size() + b.files.size()
	if b.external != nil {
		size += b.external.size()
	}
	return size
}

// MemorySize estimates the bytes the manifest keeps in memory. A variant that Hold made counts like a manifest of its own,
// although it shares nearly all with the one it was made of.
func (m *Manifest) MemorySize() int64 {
	const perOverride, perChannel = 40, 512
	size := int64(1024 + m.Keys.Len()*(keySize+7) + len(m.overrides)*perOverride + len(m.versions)*versionMarkSize + len(m.names)*versionNameSize)
	seen := make(map[*Bundle]bool)
	for i := range m.channels {
		size += perChannel + 2*int64(len(m.channels[i].name))
		for _, b := range []*Bundle{m.channels[i].stable, m.channels[i].rollout.target} {
			if b != nil && !seen[b] {
				seen[b] = true
				size += b.MemorySize()
			}
		}
	}
	return size
}

// ParseManifest validates and compiles a channel manifest. The error is a *Faults that names each fault by its JSON path.
// doc is not kept.
//
// The document is walked without building a tree of it. Versions come last, whatever their place, because which of them
// are worth compiling is known only once all channels have been read.
func ParseManifest(doc []byte) (*Manifest, error) {
	d := &document{
		doc: doc, m: &Manifest{}, used: map[int64]*Bundle{},
		channelIDs: map[int64]int{}, channelNames: map[string]int{}, versionIDs: map[int64]int{},
	}
	if d.readTop() {
		d.readVersions()
		d.m.Keys = d.keys.keys()
		d.checkAddresses()
		d.link()
	}
	if len(d.faults.List) > 0 {
		return nil, &d.faults
	}
	d.index()
	return d.m, nil
}

// document is the state of one compilation.
type document struct {
	doc    []byte
	m      *Manifest
	faults Faults
	keys   keyBuilder
	twins  []twinKey
	marks  versionMarks // of the versions read so far
	names  versionNames // of the same versions
	room   []byte       // reused for each

	versions span
	used     map[int64]*Bundle // versions that a channel points at; nil until read
	channels []channelRow
	devices  []deviceRow

	// Index of the row that has an id or a name, to find the second one.
	channelIDs   map[int64]int
	channelNames map[string]int
	versionIDs   map[int64]int
}

// span is a part of the document that is read later.
type span struct{ from, to int }

// channelRow is a channel with its references as numbers.
type channelRow struct {
	channel
	version, target       int64
	hasVersion, hasTarget bool
	guard                 guardRow
}

// deviceRow is an override, at its index in channel_devices.
type deviceRow struct {
	device  deviceID
	channel int64
	index   int
}

func (d *document) warn(path, message string) {
	if len(d.m.Warnings) < maxFaults {
		d.m.Warnings = append(d.m.Warnings, Fault{path, message})
	}
}

// readTop reads all but the versions. It reports whether the document is JSON at all: what follows an error of syntax was
// not read, so no more can be said about it.
func (d *document) readTop() bool {
	w := newWalker(d.doc, "$", &d.faults)
	hasApp := false
	ok := w.object(func(name []byte) {
		switch string(name) {
		case "app":
			hasApp = true
			d.readApp(w)
		case "versions":
			d.versions = w.span()
		case "channels":
			w.array(func(i int) { d.readChannel(w, i) })
		case "channel_devices":
			w.array(func(i int) { d.readDevice(w, i) })
		default:
			w.skip()
		}
	})
	if ok && !hasApp {
		w.missing("app")
	}
	w.end()
	return !w.broken
}

func (d *document) readApp(w *walker) {
	ok := w.object(func(name []byte) {
		switch string(name) {
		case "app_id":
			w.string(&d.m.AppID)
		case "expose_metadata":
			w.bool(&d.m.exposeMetadata)
		default:
			w.skip()
		}
	})
	if ok && d.m.AppID == "" {
		w.missing("app_id")
	}
}

func (d *document) readDevice(w *walker, i int) {
	var device []byte
	var channel int64
	hasChannel := false
	ok := w.object(func(name []byte) {
		switch string(name) {
		case "device_id":
			device = w.bytes()
		case "channel_id":
			hasChannel = w.integer(&channel, minID, maxID)
		default:
			w.skip()
		}
	})
	if !ok {
		return
	}
	if len(device) == 0 {
		w.missing("device_id")
	}
	if !hasChannel {
		w.missing("channel_id")
	}
	if id, isUUID := parseDeviceID(device); isUUID && hasChannel {
		d.devices = append(d.devices, deviceRow{id, channel, i})
	} else if !isUUID {
		d.warn(fmt.Sprintf("$.channel_devices[%d].device_id", i), "is not a UUID, so no device can match it")
	}
}

// link resolves the references between rows.
func (d *document) link() {
	for i := range d.channels {
		row := &d.channels[i]
		row.stable = builtinBundle
		if row.hasVersion {
			row.stable = d.bundle(row.version, i, "version")
		}
		if row.hasTarget {
			row.rollout.target = d.bundle(row.target, i, "rollout_version")
		}
	}
	d.m.channels = make([]channel, len(d.channels))
	d.m.overrides = make(map[deviceID]place, len(d.devices))
	for _, row := range d.devices {
		d.override(row)
	}
}

func (d *document) override(row deviceRow) {
	path := func(member string) string { return fmt.Sprintf("$.channel_devices[%d].%s", row.index, member) }
	if _, twice := d.m.overrides[row.device]; twice {
		d.faults.add(path("device_id"), "has an override already")
	}
	i, ok := d.channelIDs[row.channel]
	if !ok {
		d.faults.add(path("channel_id"), fmt.Sprintf("%d is not the id of a channel", row.channel))
	}
	d.m.overrides[row.device] = placeOf(i)
}

// placeOf is the place of the channel at index i.
func placeOf(i int) place { return place(i + 1) }

func (d *document) bundle(id int64, channel int, member string) *Bundle {
	b := d.used[id]
	if b == nil {
		d.faults.add(fmt.Sprintf("$.channels[%d].%s", channel, member), fmt.Sprintf("%d is not the id of a version", id))
	}
	return b
}

// index builds what Decide looks things up in. The document is free of faults.
func (d *document) index() {
	m := d.m
	m.byName = make(map[string]place, len(d.channels))
	m.byID = make(map[int64]place, len(d.channels))
	for i := range d.channels {
		ch := &m.channels[i]
		*ch = d.channels[i].channel
		ch.rollout.guard = d.guard(i, &d.channels[i])
		ch.misconfigured = "Channel " + ch.name + " is misconfigured"
		m.byName[ch.name] = placeOf(i)
		m.byID[ch.id] = placeOf(i)
		d.indexPublic(i, ch)
		d.warnAboutNames(i, ch)
	}
	m.indexRollouts()
	m.versions, m.names = d.marks.sorted(), d.names.sorted()
}

// indexPublic keeps the first public channel of each platform, the lowest by name (protocol 2.1, step 4). The upstream
// orders names by its database's collation, this edge by bytes; two candidates are an accident anyway.
func (d *document) indexPublic(i int, ch *channel) {
	if !ch.public || ch.hidden() {
		return
	}
	for p := range platforms {
		if !ch.serves[p] {
			continue
		}
		old := d.m.at(d.m.public[p])
		if old != nil {
			d.warn("$.channels", fmt.Sprintf("%q and %q are both public for %s; the first by name serves", old.name, ch.name, p))
		}
		if old == nil || ch.name < old.name {
			d.m.public[p] = placeOf(i)
		}
	}
}

// indexRollouts notes which rollouts make it worth looking at rollouts at all (protocol 2.3, fast path).
func (m *Manifest) indexRollouts() {
	m.rolloutActive, m.pausedTargets = false, map[string]bool{}
	for i := range m.channels {
		r := &m.channels[i].rollout
		switch {
		case r.target == nil || !r.enabled || r.bps == 0:
		case r.paused:
			m.pausedTargets[r.target.Name] = true
		default:
			m.rolloutActive = true
		}
	}
}

func (d *document) warnAboutNames(i int, ch *channel) {
	for _, b := range []*Bundle{ch.stable, ch.rollout.target} {
		if b != nil && b.comparable() && !b.isSem && ch.comparesVersions() {
			d.warn(fmt.Sprintf("$.channels[%d]", i), fmt.Sprintf(
				"version name %q is not semver, which the channel's policy needs; devices are told misconfigured_channel", b.Name))
		}
	}
}

const (
	minID = 0
	maxID = 1<<53 - 1 // ids are JSON numbers, which iOS and JavaScript read as doubles
)

// readChannel reads one row of channels, with the defaults of the upstream's columns.
func (d *document) readChannel(w *walker, i int) {
	row := channelRow{channel: channel{
		nativeFloor: true, allowEmulator: true, allowDevice: true, allowDev: true, allowProd: true,
	}, guard: newGuardRow()}
	for p := range row.serves {
		row.serves[p] = true
	}
	hasID := false
	policyName := policyNames[policyMajor]
	ok := w.object(func(name []byte) {
		switch string(name) {
		case "id":
			hasID = w.integer(&row.id, minID, maxID)
		case "name":
			w.string(&row.name)
		case "version":
			row.hasVersion = w.integer(&row.version, minID, maxID)
		case "disable_auto_update":
			if text := w.bytes(); text != nil {
				policyName = string(text)
			}
		case "rollout_version":
			row.hasTarget = w.integer(&row.target, minID, maxID)
		case "rollout_percentage_bps":
			w.integer(&row.rollout.bps, 0, fullRollout)
		case "rollout_id":
			w.string(&row.rollout.id)
		case "rollout_paused_at":
			w.string(&row.guard.pausedAt)
			row.rollout.paused = row.guard.pausedAt != ""
		default:
			if flag := row.flag(string(name)); flag != nil {
				w.bool(flag)
			} else {
				row.guard.read(w, string(name))
			}
		}
	})
	if ok {
		at := slices.Index(policyNames, policyName)
		if at < 0 {
			w.faultIn("disable_auto_update", "must be one of "+strings.Join(policyNames, ", "))
		}
		row.policy = policy(at)
		d.nameChannel(w, &row, i, hasID)
	}
	d.addChannel(row) // whatever it is: rows keep the index they have in the document
}

// flag is where a member that is true or false belongs, or nil.
func (ch *channel) flag(name string) *bool {
	switch name {
	case "public":
		return &ch.public
	case "ios":
		return &ch.serves[IOS]
	case "android":
		return &ch.serves[Android]
	case "electron":
		return &ch.serves[Electron]
	case "disable_auto_update_under_native":
		return &ch.nativeFloor
	case "allow_device_self_set":
		return &ch.selfSettable
	case "allow_emulator":
		return &ch.allowEmulator
	case "allow_device":
		return &ch.allowDevice
	case "allow_dev":
		return &ch.allowDev
	case "allow_prod":
		return &ch.allowProd
	case "rollout_enabled":
		return &ch.rollout.enabled
	}
	return nil
}

// nameChannel judges what identifies the channel at index i. Only what is there can be there twice.
func (d *document) nameChannel(w *walker, row *channelRow, i int, hasID bool) {
	if first, twice := d.channelIDs[row.id]; !hasID {
		w.missing("id")
	} else if twice {
		w.faultIn("id", fmt.Sprintf("is the id of $.channels[%d] already", first))
	} else {
		d.channelIDs[row.id] = i
	}
	if first, twice := d.channelNames[row.name]; row.name == "" {
		w.missing("name")
	} else if twice {
		w.faultIn("name", fmt.Sprintf("is the name of $.channels[%d] already", first))
	} else {
		d.channelNames[row.name] = i
	}
}

func (d *document) addChannel(row channelRow) {
	if row.rollout.id == "" {
		row.rollout.id = derivedRolloutID(row.id, row.target)
	}
	if row.hasVersion {
		d.used[row.version] = nil
	}
	if row.hasTarget {
		d.used[row.target] = nil
	}
	d.channels = append(d.channels, row)
}
