package upstreams

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
)

// Minimal stands in for the small server that the documentation shows. Its column of protocol 7:
//
//	Endpoints                  /updates (+ optional others)
//	Status for errors          200
//	kind                       never
//	Error form                 message, error
//	Up to date                 no_new_version_available
//	Channel                    own choice; here there is one
//	checksum, session_key      optional
//	manifest                   no
//	URL lifetime               any; here stable
//	/stats answer              any 2xx; here there is none
type Minimal struct {
	Server

	state    sync.Mutex
	versions map[string]MinimalVersion // by app; guarded by state
}

// MinimalVersion is the version an app is to have.
type MinimalVersion struct {
	Version  string
	Content  []byte
	Checksum bool   // tells the SHA-256; the page's sample does without
	URL      string // where the zip is, if not at this server
}

// NewMinimal returns a server without apps.
func NewMinimal() *Minimal {
	m := &Minimal{versions: map[string]MinimalVersion{}}
	m.init("", m.route)
	return m
}

// Publish sets the version an app is to have.
func (m *Minimal) Publish(appID string, v MinimalVersion) {
	m.state.Lock()
	defer m.state.Unlock()
	m.versions[appID] = v
}

func (m *Minimal) route(w http.ResponseWriter, r *http.Request) {
	m.state.Lock()
	defer m.state.Unlock()
	appID, isZip := strings.CutPrefix(r.URL.Path, "/zips/")
	appID, _, _ = strings.Cut(appID, "/")
	v, known := m.versions[appID]
	switch {
	case r.URL.Path == "/updates" && r.Method == http.MethodPost:
		writeJSON(w, http.StatusOK, m.answerLocked(body(r)))
	case isZip && known:
		sendObject(w, r, v.Version+".zip", v.Content)
	default:
		http.NotFound(w, r) // the page's server says it in plain text
	}
}

func (m *Minimal) answerLocked(raw []byte) object {
	var c check
	if err := json.Unmarshal(raw, &c); err != nil {
		return object{"message": "Error: " + err.Error(), "error": "invalid_body"}
	}
	v, ok := m.versions[c.AppID]
	if !ok {
		return object{"message": "App not found", "error": "app_not_found"}
	}
	if c.VersionName == v.Version {
		return object{"message": "No new version available", "error": "no_new_version_available"}
	}
	answer := object{"version": v.Version, "url": v.URL}
	if v.URL == "" {
		answer["url"] = m.URL + "/zips/" + c.AppID + "/" + v.Version + ".zip"
	}
	if v.Checksum {
		sum := sha256.Sum256(v.Content)
		answer["checksum"] = hex.EncodeToString(sum[:])
	}
	return answer
}
