package resolver

import (
	"fmt"
	"strings"
)

// Observe takes a check and the answer that the server gave to it, or the two parts of an Observation, from the least recent to
// the most recent. It tells delta lists, and often which platforms a channel serves. All channels, bundles and devices must have
// been added.
func (m *Importer) Observe(request, answer []byte) error {
	o, err := readObservation(request, answer)
	if err != nil {
		return err
	}
	check, got := &o.Request, &o.Answer
	got.learnFiles(m)
	p := platformNamed(check.Platform)
	plugin, _, err := parseVersion(check.PluginVersion)
	if p == platforms || err != nil || !selfGate.passes(plugin) { // an old plugin may have a choice that the server keeps
		return nil
	}
	if at, forced := m.deviceAt[check.device()]; forced {
		m.observeForced(p, m.channel(m.devices[at].channel), got)
		return nil
	}
	version := got.Version
	switch {
	case got.Error == "no_channel":
		m.observeNone(p, check.DefaultChannel)
		return nil
	case strings.HasPrefix(got.Error, "disabled_platform_"): // such a device was forced
		return nil
	case got.Error == "no_new_version_available" && check.VersionName == nameBuiltin:
		version = check.VersionBuild
	case got.Error == "no_new_version_available":
		version = check.VersionName
	}
	m.observe(p, check.DefaultChannel, version)
	return nil
}

// learnFiles keeps the delta list of the version that the addresses name.
func (a *observedAnswer) learnFiles(m *Importer) {
	files := make([]importedFile, 0, len(a.Files))
	var v *importedVersion
	for _, f := range a.Files {
		key, id, ok := keyOfAddress(f.URL)
		if v = m.versionAt[id]; !ok || v == nil || v.Name != a.Version {
			return
		}
		files = append(files, importedFile{f.Name, f.Hash, key})
	}
	if v != nil {
		v.Files = files
	}
}

func platformNamed(name string) Platform {
	for p := range platforms {
		if platformNames[p] == name {
			return p
		}
	}
	return platforms
}

// observe notes that a device without an override was served the version of this name (protocol 2.1, steps 3 and 4).
func (m *Importer) observe(p Platform, defaultChannel, version string) {
	if defaultChannel != "" {
		if ch := m.channel(defaultChannel); ch != nil && ch.points(version) {
			ch.learn(p, observedYes)
		}
		return
	}
	var serving *importedChannel
	for _, ch := range m.channels {
		if ch.is("public") && ch.points(version) {
			if serving != nil {
				return // which of them it was cannot be told
			}
			serving = ch
		}
	}
	if serving == nil {
		return
	}
	for _, ch := range m.channels { // no two public channels serve one platform
		if ch.is("public") {
			ch.learn(p, observedNo)
		}
	}
	serving.learn(p, observedYes)
}

// observeForced notes what a device was told that is in the channel whatever platforms that serves: the flags
// are looked at only once it is known what it would get (protocol 1.5, row 14).
func (m *Importer) observeForced(p Platform, ch *importedChannel, got *observedAnswer) {
	switch {
	case ch == nil || !ch.points(got.Version):
	case strings.HasPrefix(got.Error, "disabled_platform_"):
		ch.learn(p, observedNo)
	default: // only an offer, and what comes after row 14, tell a version
		ch.learn(p, observedYes)
	}
}

// observeNone notes that a device without an override had no channel.
func (m *Importer) observeNone(p Platform, defaultChannel string) {
	for _, ch := range m.channels {
		named := ch.name == defaultChannel && (ch.is("public") || ch.is("allow_device_self_set"))
		if (named || defaultChannel == "" && ch.is("public")) && !m.hidden(ch) {
			ch.learn(p, observedNo)
		}
	}
}

// hidden reports that the channel's bundle was deleted, which hides the channel whatever platforms it serves.
func (m *Importer) hidden(ch *importedChannel) bool {
	return ch.stable != nil && m.versionAt[ch.stable.ID] == nil && ch.stable.Name != nameBuiltin
}

func (ch *importedChannel) learn(p Platform, k knowledge) {
	if ch.platforms[p] < setNo {
		ch.platforms[p] = k
	}
}

// points reports whether the channel offers a version of this name to some devices.
func (ch *importedChannel) points(version string) bool {
	if ch.stable == nil && version == nameBuiltin {
		return true
	}
	for _, ref := range []*versionRef{ch.stable, ch.target} {
		if ref != nil && ref.Name == version && version != "" {
			return true
		}
	}
	return false
}

// settlePlatforms fills in what nobody told: channels serve all platforms. That must not be assumed where several are
// public, since no platform has two public channels (protocol 2.1).
func (m *Importer) settlePlatforms() error {
	var assumed []string
	for p := range platforms {
		public := 0
		var told, guessed []string
		for _, ch := range m.channels {
			if !ch.is("public") {
				continue
			}
			switch {
			case ch.platforms[p].yes():
				told = append(told, fmt.Sprintf("%q", ch.name))
			case ch.platforms[p] == untold:
				guessed = append(guessed, fmt.Sprintf("%q", ch.name))
				public++
			}
		}
		switch {
		case len(told) > 1:
			return &AmbiguousPlatforms{platformNames[p], told}
		case len(told) == 1: // the others do not, then
			m.settlePublic(p, observedNo)
		case public > 1:
			return &AmbiguousPlatforms{platformNames[p], guessed}
		}
	}
	for _, ch := range m.channels {
		for p := range platforms {
			if ch.platforms[p] == untold {
				ch.platforms[p] = observedYes
				assumed = append(assumed, fmt.Sprintf("%q for %s", ch.name, platformNames[p]))
			}
		}
	}
	if len(assumed) > 0 {
		m.note("which platforms a channel serves is not told; assumed: %s. Say it with --platforms <channel>=ios,android,electron if that is wrong",
			few(assumed))
	}
	return nil
}

func (m *Importer) settlePublic(p Platform, k knowledge) {
	for _, ch := range m.channels {
		if ch.is("public") && ch.platforms[p] == untold {
			ch.platforms[p] = k
		}
	}
}

// AmbiguousPlatforms is the error of an app with several public channels of which it is not known which serves a platform.
type AmbiguousPlatforms struct {
	Platform string
	Channels []string
}

func (e *AmbiguousPlatforms) Error() string {
	return fmt.Sprintf("the channels %s are all public, and only one of them can serve %s; the server does not tell which. "+
		"Say it for each: --platforms <channel>=ios,android,electron", strings.Join(e.Channels, ", "), e.Platform)
}

// noteWhatIsUntold notes what the management API has no word about and matters for this app.
func (m *Importer) noteWhatIsUntold() {
	var lists, rollouts []string
	for _, v := range m.versions {
		if v.Count > 0 && len(v.Files) == 0 && m.inUse(v) {
			lists = append(lists, v.Name)
		}
	}
	if len(lists) > 0 {
		m.note("the delta lists of these bundles are not told: %s. Devices download the whole zip; a bundle without one is not offered. "+
			"Take the lists from what an edge has learned: --learned <file>", few(lists))
	}
	for _, ch := range m.channels {
		if ch.target != nil && ch.is("rollout_enabled") {
			rollouts = append(rollouts, fmt.Sprintf("%q", ch.name))
		}
	}
	if len(rollouts) > 0 {
		m.note("whom the server has drawn for the rollouts of %s is not told; this edge draws devices itself, as many but others", few(rollouts))
	}
	if len(m.devices) > 0 {
		m.note("%d overrides of devices are taken over without the time at which they lapse, which is not told", len(m.devices))
	}
	if string(m.app["block_provider_infra_requests"]) == "true" {
		m.note("the server refuses addresses of data centres to this app; an edge without an upstream does not")
	}
	m.note("not told at all: channels that devices with old plugins chose for themselves, updatePackage of channels, and whether the plan is paid")
}

func (m *Importer) inUse(v *importedVersion) bool {
	for _, ch := range m.channels {
		if ch.stable != nil && ch.stable.ID == v.ID || ch.target != nil && ch.target.ID == v.ID {
			return true
		}
	}
	return false
}

// few lists the first of many.
func few(list []string) string {
	const most = 10
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
