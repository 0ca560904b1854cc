package resolver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Importer builds a channel manifest from what the management API of an official server tells of an app, row by row
// (protocol 6.1), and from what is known besides. Rows may come twice: pages move while they are read.
//
// That API does not tell which platforms a channel serves, nor delta lists. Both are taken from Observe, and the former
// from SetPlatforms, which counts more.
type Importer struct {
	appID    string
	app      map[string]json.RawMessage
	channels []*importedChannel // in the order they came, as all below
	versions []*importedVersion
	devices  []importedDevice

	channelAt map[int64]*importedChannel
	versionAt map[int64]*importedVersion
	deviceAt  map[string]int // index in devices, by deviceDigest

	notes []string
}

// importedChannel is a channel as it is going to be written.
type importedChannel struct {
	id      int64
	name    string
	columns map[string]json.RawMessage
	stable  *versionRef // nil for the native bundle
	target  *versionRef // nil for no rollout

	platforms [platforms]knowledge
}

// knowledge is whether a channel serves a platform.
type knowledge uint8

const (
	untold knowledge = iota
	observedNo
	observedYes
	setNo
	setYes
)

func (k knowledge) yes() bool { return k == observedYes || k == setYes }

// versionRef is what a channel tells of the version it points at.
type versionRef struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
}

// importedVersion is a row of versions: the columns have the same names in the API and in a manifest.
type importedVersion struct {
	ID               int64          `json:"id"`
	Name             string         `json:"name"`
	Deleted          bool           `json:"deleted,omitempty"`
	ExternalURL      string         `json:"external_url,omitempty"`
	R2Path           string         `json:"r2_path,omitempty"`
	Checksum         *string        `json:"checksum,omitempty"` // an empty one is answered as it is, and null as null
	SessionKey       string         `json:"session_key,omitempty"`
	KeyID            string         `json:"key_id,omitempty"`
	MinUpdateVersion string         `json:"min_update_version,omitempty"`
	Link             string         `json:"link,omitempty"`
	Comment          string         `json:"comment,omitempty"`
	Count            int64          `json:"manifest_count,omitempty"`
	Files            []importedFile `json:"manifest,omitempty"`
}

type importedFile struct {
	Name string `json:"file_name"`
	Hash string `json:"file_hash"`
	Key  string `json:"s3_path"`
}

type importedDevice struct{ id, channel string }

// NewImporter returns an importer of one app.
func NewImporter(appID string) *Importer {
	return &Importer{
		appID: appID, channelAt: map[int64]*importedChannel{}, versionAt: map[int64]*importedVersion{}, deviceAt: map[string]int{},
	}
}

// AddApp takes the app's own row.
func (m *Importer) AddApp(row []byte) error {
	var id struct {
		AppID string `json:"app_id"`
	}
	if err := errors.Join(json.Unmarshal(row, &m.app), json.Unmarshal(row, &id)); err != nil {
		return fmt.Errorf("the row of the app is not what it should be: %w", err)
	}
	if id.AppID != "" && id.AppID != m.appID {
		return fmt.Errorf("the row of the app is that of %q", id.AppID)
	}
	return nil
}

// channelColumns are the columns of a channel that the API tells as they are, but for the spelling of some names. The
// spelling is that of a manifest.
var channelColumns = []string{
	"public", "disable_auto_update", "disable_auto_update_under_native", "allow_device_self_set", "allow_emulator",
	"allow_device", "allow_dev", "allow_prod", "rollout_enabled", "rollout_percentage_bps", "rollout_id", "rollout_paused_at",
	"rollout_cache_ttl_seconds", "auto_pause_enabled", "auto_pause_window_minutes", "auto_pause_failure_rate_bps",
	"auto_pause_confidence", "auto_pause_min_attempts", "auto_pause_min_failures", "auto_pause_action",
	"auto_pause_cooldown_minutes",
}

// AddChannel takes a channel.
func (m *Importer) AddChannel(row []byte) error {
	var columns map[string]json.RawMessage
	var known struct {
		versionRef
		Version *versionRef `json:"version"`
		Rollout *int64      `json:"rollout_version"`
		Target  *versionRef `json:"rollout_version_info"`
	}
	if err := errors.Join(json.Unmarshal(row, &columns), json.Unmarshal(row, &known)); err != nil {
		return fmt.Errorf("a row of the channels is not what it should be: %w", err)
	}
	if known.Name == "" || columns["id"] == nil {
		return fmt.Errorf("a row of the channels has no id or no name: %.100s", row)
	}
	ch := &importedChannel{id: known.ID, name: known.Name, columns: map[string]json.RawMessage{}, stable: known.Version}
	if known.Rollout != nil {
		ch.target = &versionRef{ID: *known.Rollout}
		if known.Target != nil && known.Target.ID == *known.Rollout {
			ch.target.Name = known.Target.Name
		}
	}
	for _, column := range channelColumns {
		value := columns[column]
		if value == nil {
			value = columns[camelCase(column)]
		}
		if value != nil && string(value) != "null" {
			ch.columns[column] = value
		}
	}
	for p, name := range platformNames { // not told by the official server; by others, perhaps
		switch string(columns[name]) {
		case "true":
			ch.platforms[p] = setYes
		case "false":
			ch.platforms[p] = setNo
		}
	}
	m.putChannel(ch)
	return nil
}

func (m *Importer) putChannel(ch *importedChannel) {
	if old := m.channelAt[ch.id]; old != nil {
		*old = *ch
		return
	}
	m.channelAt[ch.id] = ch
	m.channels = append(m.channels, ch)
}

// camelCase is how the API spells a column.
func camelCase(column string) string {
	words := strings.Split(column, "_")
	for i, word := range words[1:] {
		words[i+1] = strings.ToUpper(word[:1]) + word[1:]
	}
	return strings.Join(words, "")
}

// AddBundle takes a version. Its delta list is not part of the row.
func (m *Importer) AddBundle(row []byte) error {
	v := new(importedVersion)
	if err := json.Unmarshal(row, v); err != nil {
		return fmt.Errorf("a row of the bundles is not what it should be: %w", err)
	}
	if v.Name == "" {
		return fmt.Errorf("a row of the bundles has no name: %.100s", row)
	}
	v.Files = nil
	if old := m.versionAt[v.ID]; old != nil {
		v.Files = old.Files
		*old = *v
		return nil
	}
	m.versionAt[v.ID] = v
	m.versions = append(m.versions, v)
	return nil
}

// AddDevice takes a device, which has an override if it names a channel.
func (m *Importer) AddDevice(row []byte) error {
	var device struct {
		ID      string  `json:"device_id"`
		Channel *string `json:"channel"`
	}
	if err := json.Unmarshal(row, &device); err != nil {
		return fmt.Errorf("a row of the devices is not what it should be: %w", err)
	}
	if device.Channel == nil || *device.Channel == "" || device.ID == "" {
		return nil
	}
	override := importedDevice{lowerHex(device.ID), *device.Channel}
	digest := deviceDigest(override.id)
	if at, twice := m.deviceAt[digest]; twice {
		m.devices[at] = override
		return nil
	}
	m.deviceAt[digest] = len(m.devices)
	m.devices = append(m.devices, override)
	return nil
}

// SetPlatforms says which platforms a channel serves. All channels must have been added.
func (m *Importer) SetPlatforms(channel string, serves []string) error {
	ch := m.channel(channel)
	if ch == nil {
		return fmt.Errorf("the app has no channel %q; it has %s", channel, m.channelNames())
	}
	for _, name := range serves {
		if !slices.Contains(platformNames[:], name) {
			return fmt.Errorf("%q is none of the platforms ios, android and electron", name)
		}
	}
	for p, name := range platformNames {
		ch.platforms[p] = setNo
		if slices.Contains(serves, name) {
			ch.platforms[p] = setYes
		}
	}
	return nil
}

func (m *Importer) channel(name string) *importedChannel {
	at := slices.IndexFunc(m.channels, func(ch *importedChannel) bool { return ch.name == name })
	if at < 0 {
		return nil
	}
	return m.channels[at]
}

func (m *Importer) channelNames() string {
	names := make([]string, len(m.channels))
	for i, ch := range m.channels {
		names[i] = fmt.Sprintf("%q", ch.name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// Missing reports whether a channel points at a version that no bundle was added for. It was deleted, or pages moved while
// they were read: then reading the bundles once more brings it.
func (m *Importer) Missing() bool {
	for _, ch := range m.channels {
		for _, ref := range []*versionRef{ch.stable, ch.target} {
			if ref != nil && m.versionAt[ref.ID] == nil && !isReserved(ref.Name) {
				return true
			}
		}
	}
	return false
}

func isReserved(name string) bool { return name == nameBuiltin || name == nameUnknown }

// is reports that a channel's column is true.
func (ch *importedChannel) is(column string) bool { return string(ch.columns[column]) == "true" }

// Document returns the manifest, one row per line, and notes for people on what it may be wrong in, and how to set that
// right. What it returns without an error, ParseManifest accepts.
func (m *Importer) Document() (doc []byte, notes []string, err error) {
	if err := m.settlePlatforms(); err != nil {
		return nil, nil, err
	}
	m.addDeleted()
	var b bytes.Buffer
	b.WriteString(`{"app":`)
	writeRow(&b, m.appRow())
	writeTable(&b, "versions", len(m.versions), func(i int) any { return m.versions[i] })
	writeTable(&b, "channels", len(m.channels), func(i int) any { return m.channels[i].row() })
	overrides := m.overrides()
	writeTable(&b, "channel_devices", len(overrides), func(i int) any { return overrides[i] })
	b.WriteString("}\n")
	manifest, err := ParseManifest(b.Bytes())
	if err != nil {
		return nil, nil, fmt.Errorf("what the server told makes no manifest: %w", err)
	}
	m.noteWhatIsUntold()
	for _, warning := range manifest.Warnings {
		m.notes = append(m.notes, warning.String())
	}
	return b.Bytes(), m.notes, nil
}

func writeTable(b *bytes.Buffer, name string, rows int, row func(i int) any) {
	fmt.Fprintf(b, ",\n%q:[", name)
	for i := range rows {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
		writeRow(b, row(i))
	}
	b.WriteByte(']')
}

// writeRow writes what was read, so it cannot fail.
func writeRow(b *bytes.Buffer, row any) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(row)
	b.Truncate(b.Len() - 1) // Encode ends the line
}

func (m *Importer) appRow() any {
	row := map[string]any{"app_id": m.appID}
	for _, column := range []string{"expose_metadata", "block_provider_infra_requests", "allow_device_custom_id"} {
		if value := m.app[column]; value != nil && string(value) != "null" {
			row[column] = value
		}
	}
	return row
}

func (ch *importedChannel) row() any {
	row := map[string]any{"id": ch.id, "name": ch.name}
	for column, value := range ch.columns {
		row[column] = value
	}
	for p, name := range platformNames {
		row[name] = ch.platforms[p].yes()
	}
	if ch.stable != nil {
		row["version"] = ch.stable.ID
	}
	if ch.target != nil {
		row["rollout_version"] = ch.target.ID
	}
	return row
}

// addDeleted adds the versions that channels point at and the server does not list: deleted ones, and the placeholders of
// reserved names (protocol 2.1, 2.4).
func (m *Importer) addDeleted() {
	for _, ch := range m.channels {
		for _, ref := range []*versionRef{ch.stable, ch.target} {
			if ref == nil || m.versionAt[ref.ID] != nil {
				continue
			}
			v := &importedVersion{ID: ref.ID, Name: ref.Name, Deleted: true}
			if v.Name == "" {
				v.Name = fmt.Sprintf("deleted-%d", v.ID)
			}
			m.versionAt[v.ID] = v
			m.versions = append(m.versions, v)
			if !isReserved(v.Name) {
				m.note("channel %q points at the bundle %q, which was deleted: no device gets anything from it", ch.name, v.Name)
			}
		}
	}
}

func (m *Importer) overrides() []any {
	var rows []any
	for _, device := range m.devices {
		ch := m.channel(device.channel)
		if ch == nil {
			m.note("device %s is in the channel %q, which the app does not have: left out", device.id, device.channel)
			continue
		}
		rows = append(rows, map[string]any{"device_id": device.id, "channel_id": ch.id})
	}
	return rows
}

func (m *Importer) note(format string, args ...any) {
	m.notes = append(m.notes, fmt.Sprintf(format, args...))
}
