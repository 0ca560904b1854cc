package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Stats says where the statistics of phones go, and what of them. A site may have several, for collectors that are to get
// different things. Events are acknowledged once they are on disk, and stay there until the collector has taken them.
type Stats struct {
	// Off answers events as ever, and drops them. It stands alone.
	Off bool `json:"off,omitempty"`

	// Collectors are addresses that take events as Capgo's /stats does, such as https://capgo.example.com/stats. Each gets
	// all events, from a spool of its own, so that one which is down holds up none of the others.
	Collectors []string `json:"collectors,omitempty"`

	// Headers are sent with each request to the collectors, for example an authorization. Write secrets as {env.NAME} or
	// {file./path}. Those that the edge sets itself cannot be set: Accept-Encoding, CDN-Loop, Connection, Content-Length,
	// Content-Type, Host, Idempotency-Key and Transfer-Encoding.
	Headers http.Header `json:"headers,omitempty"`

	// MaxSpool is how many bytes of disk the events for one collector may take, in the storage directory. At that size the
	// oldest ones of the app that has most go, and are counted. From 4194304 (4 MiB) to 1099511627776 (1 TiB). Default:
	// 1073741824 (1 GiB).
	MaxSpool int64 `json:"max_spool,omitempty"`

	// Checks is the share of update checks that are reported to the collectors, 0 to 1. The official server counts devices
	// and writes statistics as it answers checks; this edge answers them in its place, so it reports the same. These reports
	// are best effort: a crash may lose the last second of them. Default: 1.
	Checks *float64 `json:"checks,omitempty"`

	// Drop are actions that are never sent on, such as app_moved_to_background: exact names.
	Drop []string `json:"drop,omitempty"`

	// Sample are actions, by their exact names, of which only a share is sent on, chosen at random, 0 to 1.
	Sample map[string]float64 `json:"sample,omitempty"`

	// CustomID says what becomes of the id that an app gives its user: "keep", "drop", or "hash", which puts the first 32
	// hexadecimal digits of the SHA-256 of app id, NUL and custom id in its place. A hash hides an id from those who do not
	// know it, not from those who can guess it. Default: keep.
	CustomID string `json:"custom_id,omitempty"`

	// Apps are the apps whose events go here, with * for any text. Default: all that the site serves.
	Apps []string `json:"apps,omitempty"`
}

// The values of Stats.CustomID.
const (
	customIDKeep = "keep"
	customIDDrop = "drop"
	customIDHash = "hash"
)

// Bounds of Stats.MaxSpool, in bytes. With less than the minimum a busy minute would not find room; more than the maximum is
// a slip of the pen.
const (
	defaultMaxSpool = 1 << 30
	minMaxSpool     = 4 << 20
	maxMaxSpool     = 1 << 40
)

// check judges what can be judged before placeholders have values.
func (s *Stats) check() error {
	switch {
	case s.Off && len(s.Collectors) > 0:
		return errors.New("stats: it is either off or has collectors")
	case !s.Off && len(s.Collectors) == 0:
		return errors.New("stats: name the collectors that events go to, such as https://capgo.example.com/stats, or write: stats off")
	case s.MaxSpool != 0 && s.MaxSpool < minMaxSpool:
		return fmt.Errorf("max_spool: %d bytes are too little, give at least 4MiB", s.MaxSpool)
	case s.MaxSpool > maxMaxSpool:
		return fmt.Errorf("max_spool: %d bytes are too much, give at most 1TiB", s.MaxSpool)
	case s.CustomID != "" && !slices.Contains([]string{customIDKeep, customIDDrop, customIDHash}, s.CustomID):
		return fmt.Errorf("custom_id: %q is none of keep, drop and hash", s.CustomID)
	case s.Checks != nil && !isShare(*s.Checks):
		return fmt.Errorf("checks: %v is not a share between 0 and 1", *s.Checks)
	}
	for _, action := range s.Drop {
		if err := checkAction("drop", action); err != nil {
			return err
		}
	}
	for action, share := range s.Sample {
		if err := checkAction("sample", action); err != nil {
			return err
		}
		if !isShare(share) {
			return fmt.Errorf("sample: %v is not a share between 0 and 1, of the action %s", share, action)
		}
		if slices.Contains(s.Drop, action) {
			return fmt.Errorf("sample: the action %s is in drop, too", action)
		}
	}
	for _, address := range s.Collectors {
		if err := checkPlaceholders("stats", address); err != nil {
			return err
		}
		if !strings.Contains(address, "{") && !isCollector(address) {
			return notCollector(address)
		}
	}
	if err := checkHeaderNames(s.Headers, collectorHeaders); err != nil {
		return err
	}
	return checkApps(s.Apps)
}

// checkAction judges an action that is named in an option.
func checkAction(option, action string) error {
	if action == "" || strings.ContainsAny(action, "*{}, \t") {
		return fmt.Errorf("%s: %q is not the exact name of an action, such as app_moved_to_background", option, action)
	}
	return nil
}

func isShare(f float64) bool { return f >= 0 && f <= 1 }

// isCollector judges an address that has no placeholders any more.
func isCollector(address string) bool {
	u, err := url.Parse(address)
	return err == nil && isWebScheme(u.Scheme) && isHost(u.Host) && u.User == nil && u.Fragment == ""
}

// notCollector is the error for an address, of which it shows what is written: its placeholders may stand for secrets.
func notCollector(configured string) error {
	return fmt.Errorf("stats: %q must be http(s)://host/path; put a password into a header", withoutSecrets(configured))
}

// sameAddress is the form in which addresses of the same collector are equal: the scheme and the host in lower case, without
// the port that the scheme has anyway, and with a path (RFC 3986 section 6.2).
func sameAddress(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address // which is refused elsewhere
	}
	u.Scheme, u.Host = strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	if u.Scheme == "http" {
		u.Host = strings.TrimSuffix(u.Host, ":80")
	} else {
		u.Host = strings.TrimSuffix(u.Host, ":443")
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u.String()
}

// checkStats judges the statistics of a site as a whole.
func checkStats(all []*Stats) error {
	seen := map[string]bool{}
	for _, s := range all {
		if s == nil {
			return errors.New("stats: an entry is null; leave it out")
		}
		if err := s.check(); err != nil {
			return err
		}
		if s.Off && len(all) > 1 {
			return errors.New("stats: it is either off or has collectors")
		}
		for _, address := range s.Collectors {
			same := sameAddress(address)
			if seen[same] {
				return fmt.Errorf("stats: the collector %s is there twice", withoutSecrets(address))
			}
			seen[same] = true
		}
	}
	return nil
}

// unmarshal reads one directive: stats off | <collector url...> { ... }
func (s *Stats) unmarshal(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) == 1 && args[0] == "off" {
		s.Off = true
		return noBlock(d)
	}
	s.Collectors = args
	if err := atLine(d, s.check()); err != nil {
		return err
	}
	seen := once{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if option := d.Val(); option != "header" && option != "sample" {
			if err := seen.check(d); err != nil {
				return err
			}
		}
		if err := s.unmarshalOption(d); err != nil {
			return err
		}
		if err := atLine(d, s.check()); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stats) unmarshalOption(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "header":
		return headerArguments(d, &s.Headers)
	case "max_spool":
		return sizeArgument(d, &s.MaxSpool)
	case "checks":
		return s.unmarshalChecks(d)
	case "drop":
		return arguments(d, &s.Drop)
	case "sample":
		args := d.RemainingArgs()
		if len(args) != 2 {
			return d.Err("sample needs an action and the share of its events to keep, such as: sample ping 0.1")
		}
		if s.Sample == nil {
			s.Sample = map[string]float64{}
		}
		if _, twice := s.Sample[args[0]]; twice {
			return d.Errf("sample %s is set already", args[0])
		}
		var err error
		s.Sample[args[0]], err = parseShare(d, args[1])
		return err
	case "custom_id":
		return oneArgument(d, &s.CustomID)
	case "apps":
		return arguments(d, &s.Apps)
	}
	return unknown(d, "header, max_spool, checks, drop, sample, custom_id, apps")
}

// unmarshalChecks reads: checks on | off | sample <rate>
func (s *Stats) unmarshalChecks(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	share := 1.0
	switch {
	case len(args) == 1 && args[0] == "on":
	case len(args) == 1 && args[0] == "off":
		share = 0
	case len(args) == 2 && args[0] == "sample":
		var err error
		if share, err = parseShare(d, args[1]); err != nil {
			return err
		}
	default:
		return d.Err("checks is on, off, or \"sample\" and the share of update checks to report, such as: checks sample 0.1")
	}
	s.Checks = &share
	return nil
}

func parseShare(d *caddyfile.Dispenser, text string) (float64, error) {
	share, err := strconv.ParseFloat(text, 64)
	if err != nil || !isShare(share) {
		return 0, d.Errf("%q is not a share between 0 and 1, such as 0.1", text)
	}
	return share, nil
}

// expand fills in the placeholders of s, and its defaults, and judges what could not be judged before.
func (s *Stats) expand() (Stats, error) {
	full := *s
	setDefault(&full.MaxSpool, defaultMaxSpool)
	setDefault(&full.CustomID, customIDKeep)
	if full.Checks == nil {
		all := 1.0
		full.Checks = &all
	}
	full.Collectors = slices.Clone(s.Collectors)
	var err error
	for i, address := range full.Collectors {
		if full.Collectors[i], err = expand("stats", address); err != nil {
			return full, err
		}
		if strings.Contains(full.Collectors[i], "{") {
			return full, fmt.Errorf("stats: %q holds a placeholder that has no value here", withoutSecrets(address))
		}
		if !isCollector(full.Collectors[i]) {
			return full, notCollector(address)
		}
	}
	if full.Headers, err = expandHeaders(s.Headers); err != nil {
		return full, err
	}
	return full, checkHeaderValues(full.Headers)
}

// expandHeaders fills in the placeholders of header values.
func expandHeaders(headers http.Header) (http.Header, error) {
	expanded := make(http.Header, len(headers))
	for name, values := range headers {
		for _, value := range values {
			value, err := expand("header "+name, value)
			if err != nil {
				return nil, err
			}
			expanded.Add(name, value)
		}
	}
	return expanded, nil
}

// headerArguments reads: header <name> <value>
func headerArguments(d *caddyfile.Dispenser, headers *http.Header) error {
	args := d.RemainingArgs()
	if len(args) != 2 {
		return d.Err("header needs a name and a value")
	}
	if err := checkPlaceholders("header "+args[0], args[1]); err != nil {
		return atLine(d, err)
	}
	if *headers == nil {
		*headers = make(http.Header)
	}
	headers.Add(args[0], args[1])
	return nil
}
