package upstreams

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// PluginTest stands in for the server that the plugin is tested with. Its column of protocol 7:
//
//	Endpoints                  all, plus fixtures
//	Status for errors          200
//	kind                       never
//	Error form                 as official
//	Up to date                 same code
//	Channel                    fixed
//	Order of versions          scenario
//	checksum, session_key      absent, ""
//	manifest                   yes
//	URL lifetime               loopback
//	/stats answer              ok
//	Headers                    Cache-Control: no-store
type PluginTest struct {
	Server

	state    sync.Mutex
	scenario Scenario // guarded by state
}

// Scenario is what all apps are answered.
type Scenario struct {
	Version string
	Zip     []byte
	Files   map[string][]byte // a delta list, by file name; none if empty
	Error   string            // answers this code instead
}

// NewPluginTest returns a server that has nothing new.
func NewPluginTest() *PluginTest {
	p := &PluginTest{scenario: Scenario{Error: "no_new_version_available"}}
	p.init("", p.route)
	return p
}

// Play sets the scenario.
func (p *PluginTest) Play(s Scenario) {
	p.state.Lock()
	defer p.state.Unlock()
	p.scenario = s
}

const fixtures = "/fixtures/"

func (p *PluginTest) route(w http.ResponseWriter, r *http.Request) {
	p.state.Lock()
	s := p.scenario
	p.state.Unlock()
	if name, ok := strings.CutPrefix(r.URL.Path, fixtures); ok {
		p.fixture(w, r, &s, name)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	switch r.Method + " " + strings.TrimPrefix(r.URL.Path, "/plugin") {
	case "POST /updates":
		writeJSON(w, http.StatusOK, p.answer(&s, body(r)))
	case "POST /stats", "POST /channel_self", "DELETE /channel_self", "GET /ok", "GET /updates", "GET /stats":
		writeJSON(w, http.StatusOK, object{"status": "ok"})
	case "PUT /channel_self":
		writeJSON(w, http.StatusOK, object{"channel": "production", "status": "default"})
	case "GET /channel_self":
		writeJSON(w, http.StatusOK, []object{{"id": 1, "name": "production", "public": true, "allow_self_set": true}})
	default:
		notFound(w)
	}
}

func (p *PluginTest) answer(s *Scenario, raw []byte) object {
	var c check
	switch {
	case json.Unmarshal(raw, &c) != nil:
		return refused("invalid_json_parse_body", "Invalid JSON body")
	case s.Error != "":
		return refused(s.Error, "The scenario says so")
	case c.VersionName == s.Version:
		return refused("no_new_version_available", "No new version available")
	}
	answer := object{"version": s.Version, "url": p.URL + fixtures + "bundle.zip", "session_key": ""}
	if len(s.Files) > 0 {
		list := []object{}
		for _, name := range slices.Sorted(maps.Keys(s.Files)) {
			sum := sha256.Sum256(s.Files[name])
			list = append(list, object{"file_name": name, "file_hash": hex.EncodeToString(sum[:]), "download_url": p.URL + fixtures + "files/" + name})
		}
		answer["manifest"] = list
	}
	return answer
}

func (p *PluginTest) fixture(w http.ResponseWriter, r *http.Request, s *Scenario, name string) {
	content, ok := s.Files[strings.TrimPrefix(name, "files/")]
	if name == "bundle.zip" {
		content, ok = s.Zip, s.Zip != nil
	}
	if !ok {
		notFound(w)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(content)
}
