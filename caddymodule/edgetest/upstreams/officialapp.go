package upstreams

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// officialApp is one app of the official server.
type officialApp struct {
	manifest *resolver.Manifest
	tables   tables

	planValid      bool
	blockProviders bool
	rateLimited    float64 // the part of its requests that is refused
}

// tables is a neutral manifest as the rows it was written from.
type tables struct {
	App      row   `json:"app"`
	Versions []row `json:"versions,omitempty"`
	Channels []row `json:"channels,omitempty"`
	Devices  []row `json:"channel_devices,omitempty"`
	Choices  []row `json:"channel_self_overrides,omitempty"`
	Counters row   `json:"counters,omitempty"`
}

// row is a row of a table, by its column names. Numbers are json.Number.
type row map[string]any

func (r row) text(column string) string {
	text, _ := r[column].(string)
	return text
}

func (r row) number(column string) int64 {
	n, _ := r[column].(json.Number)
	value, _ := n.Int64()
	return value
}

// flag is a column that is true or false.
func (r row) flag(column string, byDefault bool) bool {
	if value, ok := r[column].(bool); ok {
		return value
	}
	return byDefault
}

func (r row) isZero(column string) bool {
	_, ok := r[column].(json.Number)
	return ok && r.number(column) == 0
}

func (t *tables) version(id int64) row { return find(t.Versions, "id", id) }

func find(rows []row, column string, value int64) row {
	for _, r := range rows {
		if _, ok := r[column].(json.Number); ok && r.number(column) == value {
			return r
		}
	}
	return nil
}

// Publish makes an app what a neutral manifest says. Checks are answered by it from now on.
func (o *Official) Publish(manifest []byte) error {
	var t tables
	d := json.NewDecoder(bytes.NewReader(manifest))
	d.UseNumber()
	if err := d.Decode(&t); err != nil {
		return fmt.Errorf("upstreams: reading a manifest: %w", err)
	}
	return o.publish(t)
}

// Change publishes an app anew, after f changed its manifest.
func (o *Official) Change(appID string, f func(app, versions, channels, devices *[]map[string]any)) error {
	app := o.app(appID)
	if app == nil {
		return fmt.Errorf("upstreams: there is no app %q", appID)
	}
	raw, err := json.Marshal(app.tables)
	if err != nil {
		return err
	}
	var t struct {
		App      map[string]any   `json:"app"`
		Versions []map[string]any `json:"versions"`
		Channels []map[string]any `json:"channels"`
		Devices  []map[string]any `json:"channel_devices"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&t); err != nil {
		return err
	}
	apps := []map[string]any{t.App}
	f(&apps, &t.Versions, &t.Channels, &t.Devices)
	t.App = apps[0]
	if raw, err = json.Marshal(t); err != nil {
		return err
	}
	return o.Publish(raw)
}

// Withdraw removes an app, as if it had never been.
func (o *Official) Withdraw(appID string) {
	o.state.Lock()
	defer o.state.Unlock()
	delete(o.apps, appID)
	delete(o.status, appID)
}

func (o *Official) publish(t tables) error {
	m, err := o.compile(t)
	if err != nil {
		return err
	}
	app := &officialApp{
		manifest: m, tables: t, planValid: t.App.flag("plan_valid", true), blockProviders: t.App.flag("block_provider_infra_requests", false),
	}
	if part, ok := t.App["rate_limited"].(json.Number); ok {
		if app.rateLimited, err = part.Float64(); err != nil {
			return err
		}
	}
	o.state.Lock()
	defer o.state.Unlock()
	o.apps[m.AppID] = app
	for _, choice := range t.Choices {
		o.choices[[2]string{m.AppID, choice.text("device_id")}] = choice.number("channel_id")
	}
	return nil
}

// compile is the manifest that checks are decided by: rollouts draw by the server's own ids, and what a counter says is not
// there is not looked up (vectors, section 5).
func (o *Official) compile(t tables) (*resolver.Manifest, error) {
	if t.Counters.isZero("channel_device_count") {
		t.Devices = nil
	}
	t.Versions, t.Channels = slices.Clone(t.Versions), slices.Clone(t.Channels)
	for i := range t.Versions {
		if t.Counters.isZero("manifest_bundle_count") {
			t.Versions[i] = maps.Clone(t.Versions[i])
			delete(t.Versions[i], "manifest")
		}
	}
	for i, channel := range t.Channels {
		if !o.DrawLikeEdge && channel["rollout_version"] != nil {
			t.Channels[i] = maps.Clone(channel)
			t.Channels[i]["rollout_id"] = o.salt + fmt.Sprint(channel["rollout_id"], channel["id"], channel["rollout_version"])
		}
	}
	doc, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	return resolver.ParseManifest(doc)
}

func (o *Official) app(appID string) *officialApp {
	o.state.Lock()
	defer o.state.Unlock()
	return o.apps[appID]
}

// sizes answers how large delta files are (protocol 1.9). The version is taken from the key parameter of each address.
func (o *Official) sizes(w http.ResponseWriter, r *http.Request) {
	raw := body(r)
	files, err := resolver.ParseSizeQuery(raw)
	if err != nil {
		writeJSON(w, http.StatusBadRequest, object{"error": "invalid_json_body", "message": "Cannot parse body"})
		return
	}
	app := o.admit(w, r, appIDOf(raw), http.StatusOK)
	if app == nil {
		return
	}
	var total, known int64
	list := []object{}
	for _, f := range files {
		entry := object{"file_name": f.Name, "file_hash": f.Hash, "download_url": f.URL}
		if size := app.sizeOf(f); size > 0 {
			entry["size"] = size
			total += size
			known++
		} else {
			entry["error"] = "size_unknown"
		}
		list = append(list, entry)
	}
	writeJSON(w, http.StatusOK, object{
		"totalSize": total, "knownFiles": known, "unknownFiles": int64(len(files)) - known, "files": list,
	})
}

func (a *officialApp) sizeOf(f resolver.FileQuery) int64 {
	u, err := url.Parse(f.URL)
	if err != nil {
		return 0
	}
	for _, v := range a.tables.Versions {
		if fmt.Sprint(v["id"]) != u.Query().Get("key") {
			continue
		}
		rows, _ := v["manifest"].([]any)
		for _, entry := range rows {
			if file, ok := entry.(map[string]any); ok && file["file_name"] == f.Name && file["file_hash"] == f.Hash {
				return row(file).number("file_size")
			}
		}
	}
	return 0
}
