package upstreams

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Lite stands in for capgo-update-lite. Its column of protocol 7:
//
//	Endpoints                  /updates, /stats
//	Status for errors          always 200
//	kind                       never
//	Error form                 error, message
//	Up to date                 no_new_version_available
//	Channel                    defaultChannel or "production"
//	Order of versions          newest semver above version_name
//	Level compared with        version_name (policies), native build for its own floor
//	checksum, session_key      SHA-256, yes
//	manifest                   no
//	URL lifetime               presigned, 1 h default (60 s to 7 d)
//	Depends on device_id       failure blacklist per device
//	/stats answer              per item, code invalid_request
//
// Codes of its own: invalid_request, invalid_version_build, no_app, below_min_native_build (min_required, current),
// server_misconfigured. Addresses are signed anew for each check, and answered below /download of this server: 403 once
// they expired, or if the signature is wrong.
type Lite struct {
	Server

	// Lifetime is how long an address is good for.
	Lifetime time.Duration
	// Misconfigured has checks answered server_misconfigured.
	Misconfigured bool

	secret  []byte
	state   sync.Mutex
	bundles []LiteBundle               // guarded by state, as all below
	failed  map[string]map[string]bool // versions by app and device
	events  int
}

// LiteBundle is a version that was published to a channel.
type LiteBundle struct {
	AppID      string
	Channel    string
	Version    string
	MinNative  string // the least native build that is given it; empty for any
	Policy     string // "major", "minor" or "patch": what may not differ from version_name; empty for none
	SessionKey string
	Content    []byte
}

// NewLite returns a server without apps, whose addresses are good for an hour.
func NewLite() *Lite {
	l := &Lite{Lifetime: time.Hour, secret: []byte(rand.Text()), failed: map[string]map[string]bool{}}
	l.init("", l.route)
	return l
}

// Publish adds a version.
func (l *Lite) Publish(b LiteBundle) {
	l.state.Lock()
	defer l.state.Unlock()
	l.bundles = append(l.bundles, b)
}

// Events is how many events were accepted.
func (l *Lite) Events() int {
	l.state.Lock()
	defer l.state.Unlock()
	return l.events
}

func (l *Lite) route(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/updates" && r.Method == http.MethodPost:
		writeJSON(w, http.StatusOK, l.answer(body(r)))
	case r.URL.Path == "/stats" && r.Method == http.MethodPost:
		writeJSON(w, http.StatusOK, l.stats(body(r)))
	case strings.HasPrefix(r.URL.Path, "/download/") && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		l.download(w, r)
	default:
		notFound(w)
	}
}

func refused(code, message string) object { return object{"error": code, "message": message} }

// answer decides a check.
func (l *Lite) answer(raw []byte) object {
	var c check
	if json.Unmarshal(raw, &c) != nil || c.AppID == "" || c.DeviceID == "" || c.Platform == "" || c.VersionName == "" {
		return refused("invalid_request", "The request body is not a valid update check")
	}
	native, ok := parseNumber(c.VersionBuild)
	if !ok {
		return refused("invalid_version_build", "version_build is not a semantic version")
	}
	if l.Misconfigured {
		return refused("server_misconfigured", "The server has no storage")
	}
	if c.DefaultChannel == "" {
		c.DefaultChannel = "production"
	}
	current, ok := parseNumber(c.VersionName)
	if !ok { // builtin
		current = native
	}
	l.state.Lock()
	defer l.state.Unlock()
	if !slices.ContainsFunc(l.bundles, func(b LiteBundle) bool { return b.AppID == c.AppID }) {
		return refused("no_app", "App not found")
	}
	best := l.newestLocked(&c, current)
	if best == nil {
		return refused("no_new_version_available", "No new version available")
	}
	if least, ok := parseNumber(best.MinNative); ok && native.compare(least) < 0 {
		answer := refused("below_min_native_build", "The native build is too old for this bundle")
		answer["min_required"], answer["current"] = best.MinNative, c.VersionBuild
		return answer
	}
	if answer := best.refuse(current); answer != nil {
		return answer
	}
	sum := sha256.Sum256(best.Content)
	return object{
		"version": best.Version, "url": l.sign(best), "checksum": hex.EncodeToString(sum[:]), "session_key": best.SessionKey,
	}
}

// newestLocked is the newest version of the channel above the running one that did not fail on the device.
func (l *Lite) newestLocked(c *check, current number) *LiteBundle {
	var best *LiteBundle
	for i := range l.bundles {
		b := &l.bundles[i]
		n, ok := parseNumber(b.Version)
		if !ok || b.AppID != c.AppID || b.Channel != c.DefaultChannel || n.compare(current) <= 0 ||
			l.failed[c.AppID+" "+strings.ToLower(c.DeviceID)][b.Version] {
			continue
		}
		if best == nil {
			best = b
		} else if top, _ := parseNumber(best.Version); n.compare(top) > 0 {
			best = b
		}
	}
	return best
}

// refuse is what the bundle's policy says to a device that runs the given version.
func (b *LiteBundle) refuse(current number) object {
	n, _ := parseNumber(b.Version)
	major := n.major != current.major
	minor := major || n.minor != current.minor
	patch := minor || n.patch != current.patch
	if differs := map[string]bool{"major": major, "minor": minor, "patch": patch}; !differs[b.Policy] {
		return nil
	}
	answer := refused("disable_auto_update_to_"+b.Policy, "Cannot upgrade "+b.Policy+" version")
	answer["version"] = b.Version
	return answer
}

// sign mints an address for the zip of b. Two of them are never equal.
func (l *Lite) sign(b *LiteBundle) string {
	path := "/download/" + b.AppID + "/" + b.Channel + "/" + b.Version + ".zip"
	q := url.Values{
		"X-Amz-Date":    {time.Now().UTC().Format("20060102T150405Z")},
		"X-Amz-Expires": {strconv.FormatInt(l.now().Add(l.Lifetime).Unix(), 10)},
		"X-Amz-Nonce":   {rand.Text()},
	}
	q.Set("X-Amz-Signature", l.signature(path, q))
	return l.URL + path + "?" + q.Encode()
}

func (l *Lite) signature(path string, q url.Values) string {
	mac := hmac.New(sha256.New, l.secret)
	mac.Write([]byte(path + "\n" + q.Get("X-Amz-Date") + "\n" + q.Get("X-Amz-Expires") + "\n" + q.Get("X-Amz-Nonce")))
	return hex.EncodeToString(mac.Sum(nil))
}

// download answers as object stores answer signed addresses: in XML.
func (l *Lite) download(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	expires, err := strconv.ParseInt(q.Get("X-Amz-Expires"), 10, 64)
	code := ""
	switch {
	case err != nil || !hmac.Equal([]byte(q.Get("X-Amz-Signature")), []byte(l.signature(r.URL.Path, q))):
		code = "SignatureDoesNotMatch"
	case l.now().Unix() >= expires:
		code = "AccessDenied"
	}
	if code != "" {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte("<Error><Code>" + code + "</Code></Error>"))
		return
	}
	l.state.Lock()
	defer l.state.Unlock()
	for _, b := range l.bundles {
		if "/download/"+b.AppID+"/"+b.Channel+"/"+b.Version+".zip" == r.URL.Path {
			sendObject(w, r, b.Version+".zip", b.Content)
			return
		}
	}
	notFound(w)
}

// stats takes one event or several, and notes which versions failed on which device. The documentation of that server does
// not say by which actions; these are the failures of a bundle that was installed.
func (l *Lite) stats(raw []byte) object {
	type event struct {
		check
		Action string `json:"action"`
	}
	var batch []event
	if json.Unmarshal(raw, &batch) != nil {
		batch = make([]event, 1)
		if json.Unmarshal(raw, &batch[0]) != nil {
			return refused("invalid_request", "The request body is no event")
		}
	}
	l.state.Lock()
	defer l.state.Unlock()
	results := []object{}
	for i, e := range batch {
		if e.AppID == "" || e.DeviceID == "" || e.Action == "" {
			results = append(results, object{"status": "error", "error": "invalid_request", "message": "Not a valid event", "index": i})
			continue
		}
		l.events++
		if e.Action == "set_fail" || e.Action == "update_fail" {
			device := e.AppID + " " + strings.ToLower(e.DeviceID)
			if l.failed[device] == nil {
				l.failed[device] = map[string]bool{}
			}
			l.failed[device][e.VersionName] = true
		}
		results = append(results, object{"status": "ok", "index": i})
	}
	return object{"status": "ok", "results": results}
}
