package resolver

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Observation is a check and the answer to it, as far as Importer.Observe goes by them, and as JSON what it takes. It may be
// saved and sent around: it holds neither who asked, but for a digest of the device, nor what opens an address.
type Observation struct {
	Request observedCheck  `json:"request"`
	Answer  observedAnswer `json:"answer"`
}

type observedCheck struct {
	DeviceID       string `json:"device_id,omitempty"`
	Device         string `json:"device,omitempty"` // in place of it: see deviceDigest
	Platform       string `json:"platform"`
	DefaultChannel string `json:"defaultChannel,omitempty"`
	VersionName    string `json:"version_name"`
	VersionBuild   string `json:"version_build"`
	PluginVersion  string `json:"plugin_version"`
}

type observedAnswer struct {
	Error   string         `json:"error,omitempty"`
	Version string         `json:"version,omitempty"`
	Files   []observedFile `json:"manifest,omitempty"`
}

type observedFile struct {
	Name string `json:"file_name"`
	Hash string `json:"file_hash"`
	URL  string `json:"download_url"`
}

// NewObservation reads the body of a check, and of the answer to it.
func NewObservation(request, answer []byte) (*Observation, error) {
	o, err := readObservation(request, answer)
	if err != nil {
		return nil, err
	}
	o.Request.Device, o.Request.DeviceID = o.Request.device(), ""
	for i := range o.Answer.Files {
		o.Answer.Files[i].URL = keyedAddress(o.Answer.Files[i].URL)
	}
	return o, nil
}

func readObservation(request, answer []byte) (*Observation, error) {
	o := new(Observation)
	if err := errors.Join(json.Unmarshal(request, &o.Request), json.Unmarshal(answer, &o.Answer)); err != nil {
		return nil, fmt.Errorf("a learned answer is not what it should be: %w", err)
	}
	return o, nil
}

// device is the digest of the device that asked, or "" if it is not told.
func (c *observedCheck) device() string {
	if c.DeviceID == "" {
		return c.Device
	}
	return deviceDigest(c.DeviceID)
}

// deviceDigest stands for a device where only those who know its id are to recognise it. An id is random (protocol 1.2), so
// that it cannot be found by trying.
func deviceDigest(id string) string {
	digest := idOf(lowerHex(id))
	return hex.EncodeToString(digest[:])
}

// keyedAddress is what an address of the official layout tells of a delta file: its key, and the number of its version
// (protocol 3.2). Of any other address nothing is to be learned.
func keyedAddress(rawURL string) string {
	key, version, ok := keyOfAddress(rawURL)
	if !ok {
		return ""
	}
	return FilesPath + key + "?key=" + strconv.FormatInt(version, 10)
}

// keyOfAddress takes such an address apart. A key is what stands in it, escapes and all: the official upload tool escapes the
// names of files in keys, and the official server sends keys as they are (protocol 3.1).
func keyOfAddress(rawURL string) (key string, version int64, ok bool) {
	rawURL, _, _ = strings.Cut(rawURL, "#")
	address, query, _ := strings.Cut(rawURL, "?")
	_, key, found := strings.Cut(address, FilesPath)
	if !found || rowKeyFault([]byte(key)) != "" {
		return "", 0, false // as an edge's stand-in for an address, ext/...
	}
	for name, value := range parameters(query) {
		if name == "key" {
			version, err := strconv.ParseInt(value, 10, 64)
			return key, version, err == nil
		}
	}
	return "", 0, false
}
