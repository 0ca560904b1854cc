package resolver

import "iter"

// subject is what the rules judge: a check, the channel that serves it, and that channel's bundle for this device. It is
// passed by value, so that judging costs no allocation.
type subject struct {
	m  *Manifest
	c  *Check
	ch *channel // nil if no channel serves the device; only the rules up to no_channel see that
	b  *Bundle
}

// shown says which further fields an answer has.
type shown uint8

const (
	showNothing shown = iota
	showKeyIDs
	showOldName  // version, old = version_name
	showOldBuild // version, old = version_build
	showMajor    // as showOldBuild, and major
	showVersion  // version alone
)

const codeMisconfigured = "misconfigured_channel"

// rule refuses a check, if it fires, with a fixed answer.
type rule struct {
	name    string
	outcome Outcome
	code    string
	message string
	event   string
	show    shown
	fires   func(s subject) bool
}

// rules are rows 8 to 26 of protocol 1.5, in their order. The first that fires answers; if none does, the bundle is
// offered. Rows 1 and 3 are CheckParser's; rows 4 to 7 speak of accounts and addresses, which only an upstream knows.
var rules = [...]rule{
	{
		"native_version_overflow", Failed, "semver_error", "Native version: a number in version_build is too large",
		"", showNothing,
		func(s subject) bool { return s.c.nativeOverflow },
	},
	{
		"plugin_too_old", Failed, "unsupported_plugin_version",
		"Plugin version 4 is not supported anymore, install @capgo/capacitor-updater 5 or later",
		"", showNothing,
		func(s subject) bool { return s.c.plugin.major == 4 },
	},
	{
		"no_channel", Failed, "no_channel", "no default channel or override",
		"NoChannelOrOverride", showNothing,
		func(s subject) bool { return s.ch == nil },
	},
	{
		"no_bundle", Failed, "no_bundle", "Cannot get bundle",
		"missingBundle", showNothing,
		func(s subject) bool { return !s.b.stored && s.b.comparable() },
	},
	{
		"key_id_mismatch", Blocked, "key_id_mismatch", "The bundle is encrypted for another public key than the one in the app",
		"keyMismatch", showKeyIDs,
		func(s subject) bool {
			return s.c.KeyID != "" && s.b.keyID != "" && s.c.KeyID != s.b.keyID && lastWithoutKeyCheck.less(s.c.plugin)
		},
	},
	{
		"up_to_date", UpToDate, "no_new_version_available", "No new version available",
		"noNew", showNothing,
		func(s subject) bool { return s.c.VersionName == s.b.Name },
	},
	{
		"platform_ios", Blocked, "disabled_platform_ios", "Cannot update, ios it's disabled",
		"disablePlatformIos", showOldName,
		func(s subject) bool { return s.c.Platform == IOS && !s.ch.serves[IOS] },
	},
	{
		"platform_android", Blocked, "disabled_platform_android", "Cannot update, android is disabled",
		"disablePlatformAndroid", showOldName,
		func(s subject) bool { return s.c.Platform == Android && !s.ch.serves[Android] },
	},
	{
		"platform_electron", Blocked, "disabled_platform_electron", "Cannot update, electron is disabled",
		"disablePlatformElectron", showOldName,
		func(s subject) bool { return s.c.Platform == Electron && !s.ch.serves[Electron] },
	},
	{
		// The upstream breaks here with a 500, which no client can act on.
		"bundle_name_not_semver", Failed, codeMisconfigured, "",
		"channelMisconfigured", showOldBuild,
		func(s subject) bool { return s.compares() && !s.b.isSem },
	},
	{
		"policy_major", Blocked, "disable_auto_update_to_major", "Cannot upgrade major version",
		"disableAutoUpdateToMajor", showMajor,
		func(s subject) bool { return s.policy(policyMajor) && s.b.number.major > s.c.native.major },
	},
	{
		"policy_minor", Blocked, "disable_auto_update_to_minor", "Cannot upgrade minor version",
		"disableAutoUpdateToMinor", showMajor,
		func(s subject) bool { return s.policy(policyMinor) && !s.sameMinor() },
	},
	{
		"policy_patch", Blocked, "disable_auto_update_to_patch", "Cannot upgrade patch version",
		"disableAutoUpdateToPatch", showMajor,
		func(s subject) bool {
			return s.policy(policyPatch) && (!s.sameMinor() || s.b.number.patch != s.c.native.patch)
		},
	},
	{
		"policy_without_minimum", Failed, codeMisconfigured, "",
		"channelMisconfigured", showOldBuild,
		func(s subject) bool { return s.policy(policyVersionNumber) && (!s.b.hasMin || !s.b.minIsSem) },
	},
	{
		"policy_minimum", Blocked, "disable_auto_update_to_metadata",
		"Cannot upgrade version, min update version > current version",
		"disableAutoUpdateMetadata", showMajor,
		func(s subject) bool { return s.policy(policyVersionNumber) && s.c.native.less(s.b.minNative) },
	},
	{
		"native_floor", Blocked, "disable_auto_update_under_native", "Cannot revert under native version",
		"disableAutoUpdateUnderNative", showOldName,
		func(s subject) bool { return s.ch.nativeFloor && s.b.comparable() && s.b.number.less(s.c.native) },
	},
	{
		"prod_builds", Blocked, "disable_prod_build", "Cannot update, prod build is disabled",
		"disableProdBuild", showOldName,
		func(s subject) bool { return s.c.IsProd && !s.ch.allowProd },
	},
	{
		"dev_builds", Blocked, "disable_dev_build", "Cannot update, dev build is disabled",
		"disableDevBuild", showOldName,
		func(s subject) bool { return !s.c.IsProd && !s.ch.allowDev },
	},
	{
		"devices", Blocked, "disable_device", "Cannot update, device is disabled",
		"disableDevice", showOldName,
		func(s subject) bool { return !s.c.IsEmulator && !s.ch.allowDevice },
	},
	{
		"emulators", Blocked, "disable_emulator", "Cannot update, emulator is disabled",
		"disableEmulator", showOldName,
		func(s subject) bool { return s.c.IsEmulator && !s.ch.allowEmulator },
	},
	{
		"already_on_builtin", UpToDate, "already_on_builtin", "Already on builtin",
		"", showVersion,
		func(s subject) bool { return s.b.builtin && !s.c.plugin.less(firstWithBuiltin) },
	},
	{
		"builtin_plugin_too_old", Failed, "revert_to_builtin_plugin_version_too_old",
		"revert_to_builtin used, but plugin version is too old",
		"", showNothing,
		func(s subject) bool { return s.b.builtin },
	},
	{
		"no_bundle_url", Failed, "no_bundle_url", "Cannot get bundle url",
		"cannotGetBundle", showNothing,
		func(s subject) bool { return !s.b.offered },
	},
}

// compares reports whether rows 15 to 20 look at the order of versions here.
func (s subject) compares() bool { return s.b.comparable() && s.ch.comparesVersions() }

func (s subject) policy(p policy) bool { return s.ch.policy == p && s.b.comparable() }

func (s subject) sameMinor() bool {
	return s.b.number.major == s.c.native.major && s.b.number.minor == s.c.native.minor
}

// Rules yields the name and outcome of every rule, and of the offer that is made when none fires.
func Rules() iter.Seq2[string, Outcome] {
	return func(yield func(string, Outcome) bool) {
		for i := range rules {
			if !yield(rules[i].name, rules[i].outcome) {
				return
			}
		}
		yield(ruleOffer, Offer)
	}
}

// ruleOffer is the rule of a decision that no rule refused.
const ruleOffer = "offer"
