package upstreams

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// routeManagement answers the management API (protocol 6.1): what can be read of an app with an API key. Platform flags of
// channels and delta rows are not part of it.
func (o *Official) routeManagement(w http.ResponseWriter, r *http.Request) bool {
	path := r.URL.Path
	appID, isApp := strings.CutPrefix(path, "/app/")
	if path != "/channel" && path != "/bundle" && path != "/device" && !isApp {
		return false
	}
	if !o.authorized(w, r) {
		return true
	}
	if !isApp {
		appID = r.URL.Query().Get("app_id")
	}
	app := o.app(appID)
	switch {
	case r.Method != http.MethodGet:
		notFound(w)
	case app == nil:
		writeJSON(w, http.StatusBadRequest, object{"error": "cannot_access_app", "message": "You can't access this app", "moreInfo": object{"app_id": appID}})
	case path == "/channel":
		app.listChannels(w, r)
	case path == "/bundle":
		app.listBundles(w, r)
	case path == "/device":
		app.listDevices(w, r)
	default:
		app.describe(w)
	}
	return true
}

// authorized wants the bare key in capgkey or authorization, and not too many requests with it.
func (o *Official) authorized(w http.ResponseWriter, r *http.Request) bool {
	key := r.Header.Get("Capgkey")
	if key == "" {
		key = r.Header.Get("Authorization")
	}
	if key != o.Key {
		writeJSON(w, http.StatusUnauthorized, object{"error": "invalid_apikey", "message": "Invalid apikey"})
		return false
	}
	if reset, ok := o.allow("key", o.KeyLimit, time.Minute); !ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(reset.Sub(o.now())/time.Second)+1))
		writeJSON(w, http.StatusTooManyRequests, object{"error": "too_many_requests", "message": "Too many requests"})
		return false
	}
	return true
}

const rowsPerPage = 50

// page cuts one page out of rows.
func page(r *http.Request, rows []object) []object {
	n, err := strconv.Atoi(r.URL.Query().Get("page"))
	if err != nil || n < 0 {
		n = 0
	}
	from := min(n*rowsPerPage, len(rows))
	return rows[from:min(from+rowsPerPage, len(rows))]
}

// managementNames are the columns of channels whose names the management API changes.
var managementNames = map[string]string{
	"disable_auto_update":              "disableAutoUpdate",
	"disable_auto_update_under_native": "disableAutoUpdateUnderNative",
	"rollout_percentage_bps":           "rolloutPercentageBps",
	"rollout_enabled":                  "rolloutEnabled",
	"rollout_paused_at":                "rolloutPausedAt",
	"rollout_cache_ttl_seconds":        "rolloutCacheTtlSeconds",
	"auto_pause_enabled":               "autoPauseEnabled",
	"auto_pause_window_minutes":        "autoPauseWindowMinutes",
	"auto_pause_failure_rate_bps":      "autoPauseFailureRateBps",
	"auto_pause_confidence":            "autoPauseConfidence",
	"auto_pause_min_attempts":          "autoPauseMinAttempts",
	"auto_pause_min_failures":          "autoPauseMinFailures",
	"auto_pause_action":                "autoPauseAction",
	"auto_pause_cooldown_minutes":      "autoPauseCooldownMinutes",
}

// channelDefaults are the columns that the database fills in.
var channelDefaults = object{
	"public": false, "disable_auto_update": "major", "disable_auto_update_under_native": true, "allow_device_self_set": false,
	"allow_emulator": true, "allow_device": true, "allow_dev": true, "allow_prod": true, "rollout_version": nil, "rollout_id": nil,
	"rollout_percentage_bps": 0, "rollout_enabled": false, "rollout_paused_at": nil, "rollout_cache_ttl_seconds": 2592000,
	"auto_pause_enabled": false,
}

// listChannels answers oldest first. One that is asked for by its name comes alone.
func (a *officialApp) listChannels(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("channel")
	list := []object{}
	for _, channel := range a.tables.Channels {
		if name == "" || name == channel.text("name") {
			list = append(list, a.channelRow(channel))
		}
	}
	switch {
	case name == "":
		writeJSON(w, http.StatusOK, page(r, list))
	case len(list) == 0:
		writeJSON(w, http.StatusBadRequest, object{"error": "cannot_find_channel", "message": "Cannot find channel"})
	default:
		writeJSON(w, http.StatusOK, list[0])
	}
}

func (a *officialApp) channelRow(channel row) object {
	out := object{
		"id": channel["id"], "name": channel["name"], "app_id": a.manifest.AppID, "created_by": "00000000-0000-4000-8000-000000000001",
		"created_at": "2026-01-01T00:00:00+00:00", "updated_at": "2026-01-01T00:00:00+00:00", "rolloutPauseReason": nil,
		"version": a.versionInfo(channel, "version"), "rollout_version_info": a.versionInfo(channel, "rollout_version"),
	}
	column := func(name string, value any) {
		if other, ok := managementNames[name]; ok {
			name = other
		}
		out[name] = value
	}
	for name, value := range channelDefaults {
		column(name, value)
	}
	for name, value := range channel {
		switch name {
		case "version", "ios", "android", "electron": // the last three are not told
		default:
			column(name, value)
		}
	}
	return out
}

// versionInfo is the id and name of the version in a column, or null.
func (a *officialApp) versionInfo(channel row, column string) any {
	if channel[column] == nil {
		return nil
	}
	v := a.tables.version(channel.number(column))
	return object{"id": channel[column], "name": v.text("name")}
}

// listBundles answers newest first, without deleted ones. An empty page is an error.
func (a *officialApp) listBundles(w http.ResponseWriter, r *http.Request) {
	list := []object{}
	for _, v := range a.tables.Versions {
		if v.flag("deleted", false) {
			continue
		}
		out := object{
			"app_id": a.manifest.AppID, "created_at": "2026-01-01T00:00:00+00:00", "updated_at": "2026-01-01T00:00:00+00:00",
			"external_url": nil, "r2_path": nil, "checksum": nil, "session_key": nil, "key_id": nil, "min_update_version": nil,
			"link": nil, "comment": nil, "deleted": false, "storage_provider": "r2", "native_packages": nil, "manifest_count": 0,
		}
		maps.Copy(out, v)
		rows, _ := v["manifest"].([]any)
		delete(out, "manifest") // no public call lists delta rows
		if v["manifest_count"] == nil {
			out["manifest_count"] = len(rows)
		}
		list = append(list, out)
	}
	slices.SortStableFunc(list, func(a, b object) int { return int(row(b).number("id") - row(a).number("id")) })
	if list = page(r, list); len(list) == 0 {
		writeJSON(w, http.StatusBadRequest, object{"error": "cannot_get_bundle", "message": "Cannot get bundle"})
		return
	}
	writeJSON(w, http.StatusOK, list)
}

// listDevices answers page by page, each with the cursor of the next. Devices are known by their overrides only, and for
// each of them there is one without.
func (a *officialApp) listDevices(w http.ResponseWriter, r *http.Request) {
	from, err := strconv.Atoi(r.URL.Query().Get("cursor"))
	if err != nil || from < 0 {
		from = 0
	}
	from = min(from, 2*len(a.tables.Devices))
	to := min(from+rowsPerPage, 2*len(a.tables.Devices))
	list := []object{}
	for i := from; i < to; i++ {
		out := object{
			"app_id": a.manifest.AppID, "device_id": fmt.Sprintf("ffffffff-0000-4000-8000-%012d", i), "platform": "ios",
			"updated_at": "2026-01-01T00:00:00+00:00", "channel": nil,
		}
		if device := a.tables.Devices[i/2]; i%2 == 0 {
			channel := find(a.tables.Channels, "id", device.number("channel_id"))
			out["device_id"], out["channel"] = device.text("device_id"), channel.text("name")
		}
		list = append(list, out)
	}
	answer := object{"data": list, "hasMore": to < 2*len(a.tables.Devices)}
	if answer["hasMore"] == true {
		answer["nextCursor"] = strconv.Itoa(to)
	}
	writeJSON(w, http.StatusOK, answer)
}

func (a *officialApp) describe(w http.ResponseWriter) {
	out := object{
		"expose_metadata": false, "block_provider_infra_requests": false, "allow_device_custom_id": true,
		"channel_device_count": len(a.tables.Devices), "name": "Demo", "created_at": "2026-01-01T00:00:00+00:00",
	}
	for name, value := range a.tables.App {
		if name != "plan_valid" && name != "rate_limited" { // not columns
			out[name] = value
		}
	}
	writeJSON(w, http.StatusOK, out)
}
