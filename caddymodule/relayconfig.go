package caddymodule

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Relay says how the answers of upstream servers are kept and shared.
type Relay struct {
	// Fresh is how long an answer is used after the upstream gave it. Default: 10s.
	Fresh caddy.Duration `json:"fresh,omitempty"`
	// StaleWhile is how much longer it is used at once, while it is refreshed behind the answer. Default: 60s.
	StaleWhile caddy.Duration `json:"stale_while,omitempty"`
	// Stale is how long the last good answer is used while the upstream fails. Default: 168h (7 days).
	Stale caddy.Duration `json:"stale,omitempty"`
	// Negative is how long a refusal is believed, "there is no such app" above all. Default: 10s.
	Negative caddy.Duration `json:"negative,omitempty"`

	// PerDevice says whether devices that ask the same get the same answer: "off" for always, "on" for never, and "auto" to
	// find out: an offer is shared once three devices got it, some shared answers are checked against the upstream, and the
	// first difference switches the app to "on". Default: auto.
	PerDevice string `json:"per_device,omitempty"`

	// AllowHosts are the hosts whose download addresses come through this edge, besides the upstream's own:
	// "cdn.example.com" or "*.example.com". A host listed by its very name may have a private address.
	AllowHosts []string `json:"allow_hosts,omitempty"`

	// KeyFields add members of the request to those that the upstream's answer may depend on ("+channel"), or take some of
	// version_code, version_os, custom_id, install_source and plugin_version away ("-custom_id") for a server other than the
	// official one, which is assumed to look at all that clients send.
	KeyFields []string `json:"key_fields,omitempty"`

	// WebhookSecret lets Capgo's webhooks have what is known of an app forgotten, at <prefix>/webhooks/capgo. Default: none,
	// and no such path.
	WebhookSecret string `json:"webhook_secret,omitempty"`

	// KeepKind passes refusals on without "kind" where the upstream sends none. Plugins from 8.45.11 on take those for failed
	// downloads. Default: off, "kind" is added.
	KeepKind bool `json:"keep_kind,omitempty"`

	// UnknownPerMinute is how many requests a minute the upstream gets about apps that it never knew, all together, and of how many
	// such apps a minute statistics are taken. Apps that are named in "apps", without a *, are none of them. Besides, a
	// client has four in 15 minutes. Default: 60.
	UnknownPerMinute int `json:"unknown_per_minute,omitempty"`
}

// The values of Relay.PerDevice.
const (
	perDeviceAuto = "auto"
	perDeviceOn   = "on"
	perDeviceOff  = "off"
)

func (r *Relay) setDefaults() {
	setDefault(&r.Fresh, caddy.Duration(10*time.Second))
	setDefault(&r.StaleWhile, caddy.Duration(time.Minute))
	setDefault(&r.Stale, caddy.Duration(7*24*time.Hour))
	setDefault(&r.Negative, caddy.Duration(10*time.Second))
	setDefault(&r.PerDevice, perDeviceAuto)
	setDefault(&r.UnknownPerMinute, 60)
}

func (r *Relay) check() error {
	switch {
	case r.Fresh < 0 || r.StaleWhile < 0 || r.Negative < 0:
		return errors.New("relay: ages must be positive")
	case r.Stale < r.Fresh+r.StaleWhile:
		return fmt.Errorf("relay: stale (%s) must not be shorter than fresh and stale_while together (%s)",
			time.Duration(r.Stale), time.Duration(r.Fresh+r.StaleWhile))
	case !slices.Contains([]string{perDeviceAuto, perDeviceOn, perDeviceOff}, r.PerDevice):
		return fmt.Errorf("per_device: %q is none of auto, on and off", r.PerDevice)
	case r.UnknownPerMinute < 0:
		return errors.New("unknown_per_minute must be positive")
	}
	for _, field := range r.KeyFields {
		if len(field) < 2 || field[0] != '+' && field[0] != '-' {
			return fmt.Errorf("key_fields: %q must be + or - and the name of a member of the request, such as +channel", field)
		}
		if field[0] == '-' && !slices.Contains(foreignFields, field[1:]) {
			return fmt.Errorf("key_fields: only %s can be taken away, not %q", strings.Join(foreignFields, ", "), field[1:])
		}
	}
	return nil
}

// foreignFields are members of a check that may be taken out of the key of servers other than the official one.
var foreignFields = []string{"version_code", "version_os", "custom_id", "install_source", "plugin_version"}

// variant tells the settings apart that make different answers of what an upstream says.
func (r *Relay) variant() [8]byte {
	hosts, fields := slices.Clone(r.AllowHosts), slices.Clone(r.KeyFields)
	slices.Sort(hosts)
	slices.Sort(fields)
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %t", hosts, fields, r.KeepKind))
	return [8]byte(sum[:])
}

func checkUpstream(address string) error {
	if err := checkPlaceholders("upstream", address); err != nil || strings.Contains(address, "{") || isUpstream(address) {
		return err
	}
	return notUpstream(address)
}

func isUpstream(address string) bool {
	u, err := url.Parse(address)
	return err == nil && isWebScheme(u.Scheme) && isHost(u.Host) && u.User == nil && u.Fragment == "" && u.RawQuery == ""
}

// notUpstream says what is wrong with an address, as it is configured: what stands for a placeholder may be secret.
func notUpstream(address string) error {
	return fmt.Errorf("upstream: %q must be http(s)://host, with a path at the most, such as https://capgo.example.com/functions/v1, "+
		"and no user, password or query", withoutSecrets(address))
}

// unmarshal reads the block of "relay".
func (r *Relay) unmarshal(d *caddyfile.Dispenser) error {
	if err := eachOption(d, func() error { return r.unmarshalOption(d) }); err != nil {
		return err
	}
	complete := *r // judged with its defaults, written without
	complete.setDefaults()
	return atLine(d, complete.check())
}

func (r *Relay) unmarshalOption(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "fresh":
		return durationArgument(d, &r.Fresh)
	case "stale_while":
		return durationArgument(d, &r.StaleWhile)
	case "stale":
		return durationArgument(d, &r.Stale)
	case "negative":
		return durationArgument(d, &r.Negative)
	case "per_device":
		return oneArgument(d, &r.PerDevice)
	case "allow_host":
		if err := arguments(d, &r.AllowHosts); err != nil {
			return err
		}
		_, err := newExternal("allow_host", r.AllowHosts)
		return atLine(d, err)
	case "key_fields":
		return arguments(d, &r.KeyFields)
	case "unknown":
		return r.unmarshalUnknown(d)
	case "kind":
		return r.unmarshalKind(d)
	case "webhook_secret":
		if err := oneArgument(d, &r.WebhookSecret); err != nil {
			return err
		}
		return atLine(d, checkPlaceholders("webhook_secret", r.WebhookSecret))
	}
	return unknown(d, "fresh, stale_while, stale, negative, per_device, allow_host, key_fields, unknown, kind, webhook_secret")
}

// unmarshalUnknown reads: unknown <requests per minute>
func (r *Relay) unmarshalUnknown(d *caddyfile.Dispenser) error {
	var text string
	if err := oneArgument(d, &text); err != nil {
		return err
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return d.Errf("unknown: %q is not a number of requests per minute, such as 60", text)
	}
	r.UnknownPerMinute = n
	return nil
}

// unmarshalKind reads: kind add | keep
func (r *Relay) unmarshalKind(d *caddyfile.Dispenser) error {
	var text string
	if err := oneArgument(d, &text); err != nil {
		return err
	}
	switch text {
	case "add":
	case "keep":
		r.KeepKind = true
	default:
		return d.Errf("kind: %q is neither add nor keep", text)
	}
	return nil
}

// provisionRelay makes what asks the upstreams, if there are any.
func (h *Handler) provisionRelay() error {
	if len(h.Upstreams) == 0 {
		if h.Relay != nil {
			return errors.New("relay says how the answers of an upstream are kept, but there is no upstream")
		}
		return nil
	}
	addresses := make([]string, len(h.Upstreams))
	for i, address := range h.Upstreams {
		var err error
		if addresses[i], err = expand("upstream", address); err != nil {
			return err
		}
		if !isUpstream(addresses[i]) {
			return notUpstream(address)
		}
	}
	if h.Relay == nil {
		h.Relay = new(Relay)
	}
	secret, err := expand("webhook_secret", h.Relay.WebhookSecret)
	if err != nil {
		return err
	}
	if h.relay, err = newRelay(h.runtime, addresses, h.Relay); err != nil {
		return err
	}
	if secret != "" {
		h.webhook = &webhook{secret: secret, seen: newSeenEvents(), purge: h.purge, log: h.log, faults: h.runtime.faults}
	}
	return nil
}

// statsConfig is where statistics go: to the first upstream, unless the configuration says otherwise.
func (h *Handler) statsConfig() []*Stats {
	if len(h.Stats) > 0 || h.relay == nil {
		return h.Stats
	}
	return []*Stats{{Collectors: []string{h.relay.addresses[0] + pathStats}}}
}

// scope is the identity of what a site answers from.
func (h *Handler) scope() string {
	if h.relayOnly {
		return h.relay.scope
	}
	return h.store.Identity()
}
