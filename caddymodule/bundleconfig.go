package caddymodule

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/capgo-edge/capgo-edge/origin"
)

// Bundles configures how bundles are handed out.
type Bundles struct {
	// AnnounceWarm is how long a new version is held back at the most, until all of its objects are stored here and verified.
	// Meanwhile the version before is offered, unless that was deleted or paused, or the new one is a step back. Default: 0,
	// new versions are offered at once.
	AnnounceWarm caddy.Duration `json:"announce_warm,omitempty"`

	// Prefetch says which objects are fetched before a phone asks for them: "on" for those that channels point at and those
	// of versions that are new in the manifest, "channels" for the former alone, "off" for none. Default: on.
	Prefetch string `json:"prefetch,omitempty"`

	// ExternalProxy are the hosts whose bundles come through this edge when a manifest's external_url names them:
	// "cdn.example.com", "*.example.com", with ":port" if need be, and with "http://" before it if they have no TLS. A host
	// listed by its very name may have a private address. Default: none, external addresses are handed out as they are.
	ExternalProxy []string `json:"external_proxy,omitempty"`

	// Sign has addresses of objects end. Default: they do not.
	Sign *Sign `json:"sign,omitempty"`

	// CORS are origins that web pages may use this edge from, such as https://app.example.com, besides the web views of
	// Capacitor and Ionic on localhost, which always may.
	CORS []string `json:"cors,omitempty"`
}

// The values of Bundles.Prefetch.
const (
	prefetchOn       = "on"
	prefetchChannels = "channels"
	prefetchOff      = "off"
)

// check judges what can be judged before placeholders have values.
func (b *Bundles) check() error {
	switch {
	case b.Prefetch != "" && !slices.Contains([]string{prefetchOn, prefetchChannels, prefetchOff}, b.Prefetch):
		return fmt.Errorf("prefetch: %q is none of on, off and channels", b.Prefetch)
	case b.AnnounceWarm < 0:
		return errors.New("announce: the time to wait must be positive")
	case b.AnnounceWarm > 0 && b.Prefetch == prefetchOff:
		return errors.New("announce warm needs prefetch on or channels: with prefetch off nothing would get warm")
	}
	return checkCORS(b.CORS)
}

// provision makes what hands out addresses; nil if the prepared ones are right.
func (b *Bundles) provision() (*readdresser, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	setDefault(&b.Prefetch, prefetchOn)
	if len(b.ExternalProxy) == 0 && b.Sign == nil {
		return nil, nil //nolint:nilnil // nothing to do is no error
	}
	a := new(readdresser)
	var err error
	if b.Sign != nil {
		if a.signer, err = newSigner(b.Sign); err != nil {
			return nil, err
		}
	}
	if len(b.ExternalProxy) > 0 {
		a.external, err = newExternal("external proxy", b.ExternalProxy)
	}
	return a, err
}

func newExternal(option string, hosts []string) (*origin.External, error) {
	external, err := origin.NewExternal(origin.ExternalOptions{Hosts: hosts, Setting: option})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", option, err)
	}
	return external, nil
}

func (b *Bundles) unmarshal(d *caddyfile.Dispenser) error {
	if err := eachOption(d, func() error { return b.unmarshalOption(d) }); err != nil {
		return err
	}
	return atLine(d, b.check())
}

func (b *Bundles) unmarshalOption(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "announce":
		return b.unmarshalAnnounce(d)
	case "prefetch":
		if err := oneArgument(d, &b.Prefetch); err != nil {
			return err
		}
		return atLine(d, b.check())
	case "external":
		return b.unmarshalExternal(d)
	case "sign":
		return b.unmarshalSign(d)
	case "cors":
		if err := arguments(d, &b.CORS); err != nil {
			return err
		}
		return atLine(d, checkCORS(b.CORS))
	}
	return unknown(d, "announce, prefetch, external, sign, cors")
}

// unmarshalAnnounce reads: announce now | warm <max wait>
func (b *Bundles) unmarshalAnnounce(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	switch {
	case len(args) == 1 && args[0] == "now":
		return nil
	case len(args) == 2 && args[0] == "warm":
		wait, err := caddy.ParseDuration(args[1])
		if err != nil || wait <= 0 {
			return d.Errf("announce warm: %q is not a duration; write it like 10m", args[1])
		}
		b.AnnounceWarm = caddy.Duration(wait)
		return nil
	}
	return d.Err("announce is \"now\", or \"warm\" and the time to wait at the most, such as: announce warm 10m")
}

// unmarshalExternal reads: external pass | proxy <host...>
func (b *Bundles) unmarshalExternal(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	switch {
	case len(args) == 1 && args[0] == "pass":
		return nil
	case len(args) > 1 && args[0] == "proxy":
		b.ExternalProxy = args[1:]
		_, err := newExternal("external proxy", b.ExternalProxy)
		return atLine(d, err)
	}
	return d.Err("external is \"pass\", or \"proxy\" and the hosts whose bundles come through this edge")
}

// unmarshalSign reads: sign <secret> [<old secret>] <ttl>
func (b *Bundles) unmarshalSign(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 2 && len(args) != 3 {
		return d.Err("sign needs a secret, the old one while it is being changed, and how long addresses live, such as: " +
			"sign {env.SIGN_SECRET} 1h")
	}
	ttl, err := caddy.ParseDuration(args[len(args)-1])
	if err != nil {
		return d.Err("sign: the last value is no duration; write it like 1h") // not repeated: it may be the secret
	}
	b.Sign = &Sign{Secret: args[0], TTL: caddy.Duration(ttl)}
	if len(args) == 3 {
		b.Sign.OldSecret = args[1]
	}
	for _, secret := range args[:len(args)-1] {
		if err := checkPlaceholders("sign", secret); err != nil {
			return atLine(d, err)
		}
	}
	if strings.Contains(b.Sign.Secret+b.Sign.OldSecret, "{") { // their values come at start
		unknown := *b.Sign
		unknown.Secret = "comes at start"
		return atLine(d, unknown.check())
	}
	return atLine(d, b.Sign.check())
}
