package caddymodule

import (
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"

	"github.com/capgo-edge/capgo-edge/origin/upstream"
)

// parseApp reads the global option:
//
//	capgo_edge {
//		storage  <dir>
//		max_size <size>
//		min_free <size>
//		memory   <size>
//	}
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // the option's name
	if existing != nil {
		return nil, d.Err("the global option capgo_edge is set already")
	}
	app := new(App)
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	seen := once{}
	for d.NextBlock(0) {
		if err := seen.check(d); err != nil {
			return nil, err
		}
		var err error
		switch d.Val() {
		case "storage":
			err = oneArgument(d, &app.Storage)
		case "max_size":
			if err = sizeArgument(d, &app.MaxSize); err == nil {
				err = atLine(d, checkMaxSize(app.MaxSize))
			}
		case "min_free":
			err = sizeArgument(d, &app.MinFree, "; to use the disk to its end write 1B")
		case "memory":
			if err = sizeArgument(d, &app.Memory); err == nil {
				err = atLine(d, checkMemory(app.Memory))
			}
		default:
			err = unknown(d, "storage, max_size, min_free, memory")
		}
		if err != nil {
			return nil, err
		}
	}
	return httpcaddyfile.App{Name: moduleName, Value: caddyconfig.JSON(app, nil)}, nil
}

func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive:
//
//	capgo_edge [<matcher>] [<upstream>] {
//		upstream <url>
//		origin file <dir>
//		origin http <base url> {
//			header <name> <value>
//		}
//		origin s3 <bucket> {
//			region        <region>
//			endpoint      <url>
//			prefix        <prefix>
//			access_key    <key>
//			secret_key    <key>
//			session_token <token>
//			path_style
//		}
//		relay {
//			fresh          <duration>
//			stale_while    <duration>
//			stale          <duration>
//			negative       <duration>
//			per_device     auto | on | off
//			allow_host     <host...>
//			key_fields     +<member> | -<member> ...
//			unknown        <requests per minute>
//			kind           add | keep
//			webhook_secret <secret>
//		}
//		manifests [<key>] {
//			fresh       <duration>
//			stale_while <duration>
//			stale       <duration>
//			negative    <duration>
//			max_size    <size>
//		}
//		apps       <pattern...>
//		public_url <url>
//		stats off | <collector url...> {
//			header    <name> <value>
//			max_spool <size>
//			checks    on | off | sample <rate>
//			drop      <action...>
//			sample    <action> <rate>
//			custom_id keep | drop | hash
//			apps      <pattern...>
//		}
//		channel_self {
//			limits off | official
//		}
//		bundles {
//			announce now | warm <max wait>
//			prefetch on | off | channels
//			external pass | proxy <host...>
//			sign     <secret> [<old secret>] <ttl>
//			cors     <origin...>
//		}
//		debug
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		if err := h.addUpstream(d, d.Val()); err != nil {
			return err
		}
		if err := noMoreArguments(d); err != nil {
			return err
		}
	}
	hasArgument, seen := len(h.Upstreams) > 0, once{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if hasArgument && d.Val() == "upstream" {
			return d.Err("the upstream is named behind capgo_edge already; name several by upstream only")
		}
		if option := d.Val(); option != "stats" && option != "upstream" { // there may be several
			if err := seen.check(d); err != nil {
				return err
			}
		}
		if err := h.unmarshalOption(d); err != nil {
			return err
		}
	}
	if h.OriginRaw == nil && len(h.Upstreams) == 0 {
		return atLine(d, errNoOrigin)
	}
	if h.Relay != nil && len(h.Upstreams) == 0 {
		return d.Err("relay says how the answers of an upstream are kept, but there is no upstream")
	}
	return nil
}

func (h *Handler) addUpstream(d *caddyfile.Dispenser, address string) error {
	h.Upstreams = append(h.Upstreams, address)
	if err := checkUpstream(address); err != nil {
		return atLine(d, err)
	}
	known := slices.DeleteFunc(slices.Clone(h.Upstreams), func(address string) bool { return strings.Contains(address, "{") })
	if len(known) == 0 {
		return nil
	}
	_, err := upstream.NewGroup(upstream.Options{URLs: known}) // it asks nobody yet
	return atLine(d, err)
}

func (h *Handler) unmarshalOption(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "origin":
		return h.unmarshalOrigin(d)
	case "upstream":
		var address string
		if err := oneArgument(d, &address); err != nil {
			return err
		}
		return h.addUpstream(d, address)
	case "relay":
		h.Relay = new(Relay)
		return h.Relay.unmarshal(d)
	case "manifests":
		h.Manifests = new(Manifests)
		return h.Manifests.unmarshal(d)
	case "apps":
		if err := arguments(d, &h.Apps); err != nil {
			return err
		}
		return atLine(d, checkApps(h.Apps))
	case "public_url":
		if err := oneArgument(d, &h.PublicURL); err != nil || strings.Contains(h.PublicURL, "{") {
			return err
		}
		return atLine(d, checkPublicURL(h.PublicURL))
	case "channel_self":
		h.ChannelSelf = new(ChannelSelf)
		return h.ChannelSelf.unmarshal(d)
	case "bundles":
		h.Bundles = new(Bundles)
		return h.Bundles.unmarshal(d)
	case "stats":
		s := new(Stats)
		if err := s.unmarshal(d); err != nil {
			return err
		}
		h.Stats = append(h.Stats, s)
		return atLine(d, checkStats(h.Stats))
	case "debug":
		h.Debug = true
		return noMoreArguments(d)
	}
	return unknown(d, "origin, upstream, relay, manifests, apps, public_url, stats, channel_self, bundles, debug")
}

func (h *Handler) unmarshalOrigin(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Err("origin needs its kind, \"file\", \"http\" or \"s3\", and a place")
	}
	kind := d.Val()
	id := "capgo_edge.origins." + kind
	if _, err := caddy.GetModule(id); err != nil {
		return d.Errf("unknown kind of origin %q; the kinds are file, http and s3", kind)
	}
	module, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	h.OriginRaw = caddyconfig.JSONModuleObject(module, "kind", kind, nil)
	return nil
}

// UnmarshalCaddyfile reads: file <dir>
func (o *FileOrigin) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the kind
	if err := oneArgument(d, &o.Dir); err != nil {
		return err
	}
	return noBlock(d)
}

// UnmarshalCaddyfile reads:
//
//	http <base url> {
//		header <name> <value>
//	}
func (o *HTTPOrigin) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the kind
	if err := oneArgument(d, &o.BaseURL); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return atLine(d, err)
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() != "header" {
			return unknown(d, "header")
		}
		if err := headerArguments(d, &o.Headers); err != nil {
			return err
		}
		if err := o.check(); err != nil {
			return atLine(d, err)
		}
	}
	return nil
}

func (m *Manifests) unmarshal(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		m.Key = d.Val()
	}
	if err := eachOption(d, func() error { return m.unmarshalOption(d) }); err != nil {
		return err
	}
	complete := *m // judged with its defaults, written without
	complete.setDefaults()
	return atLine(d, complete.check())
}

func (m *Manifests) unmarshalOption(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "fresh":
		return durationArgument(d, &m.Fresh)
	case "stale_while":
		return durationArgument(d, &m.StaleWhile)
	case "stale":
		return durationArgument(d, &m.Stale)
	case "negative":
		return durationArgument(d, &m.Negative)
	case "max_size":
		return sizeArgument(d, &m.MaxSize)
	}
	return unknown(d, "fresh, stale_while, stale, negative, max_size")
}

// eachOption reads a block of options, none of which may stand twice; read takes one.
func eachOption(d *caddyfile.Dispenser, read func() error) error {
	if err := noMoreArguments(d); err != nil {
		return err
	}
	seen := once{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := seen.check(d); err != nil {
			return err
		}
		if err := read(); err != nil {
			return err
		}
	}
	return nil
}

// once notes the options of a block, none of which may stand twice.
type once map[string]bool

func (o once) check(d *caddyfile.Dispenser) error {
	if o[d.Val()] {
		return d.Errf("%s is set already", d.Val())
	}
	o[d.Val()] = true
	return nil
}

// atLine tells where in the Caddyfile err was found.
func atLine(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

func unknown(d *caddyfile.Dispenser, known string) error {
	return d.Errf("unknown option %q; known here: %s", d.Val(), known)
}

func noMoreArguments(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.Errf("unexpected argument %q", d.Val())
	}
	return nil
}

func noBlock(d *caddyfile.Dispenser) error {
	if d.NextBlock(d.Nesting()) {
		return unknown(d, "none")
	}
	return nil
}

func oneArgument(d *caddyfile.Dispenser, value *string) error {
	name := d.Val()
	if !d.NextArg() || d.Val() == "" {
		return d.Errf("%s needs a value", name)
	}
	*value = d.Val()
	return noMoreArguments(d)
}

func arguments(d *caddyfile.Dispenser, values *[]string) error {
	name := d.Val()
	*values = d.RemainingArgs()
	if len(*values) == 0 {
		return d.Errf("%s needs at least one value", name)
	}
	return nil
}

func durationArgument(d *caddyfile.Dispenser, value *caddy.Duration) error {
	name, text := d.Val(), ""
	if err := oneArgument(d, &text); err != nil {
		return err
	}
	parsed, err := caddy.ParseDuration(text)
	if err != nil || parsed <= 0 {
		return d.Errf("%s: %q is not a duration; write it like 10s, 5m or 7d", name, text)
	}
	*value = caddy.Duration(parsed)
	return nil
}

// sizeArgument reads a size. hint is what else an error says.
func sizeArgument(d *caddyfile.Dispenser, value *int64, hint ...string) error {
	name, text := d.Val(), ""
	if err := oneArgument(d, &text); err != nil {
		return err
	}
	const most = 1 << 62
	size, err := humanize.ParseBytes(text)
	if err != nil || size == 0 || size > most {
		return d.Errf("%s: %q is not a size; write it like 64MiB or 10GB%s", name, text, strings.Join(hint, ""))
	}
	*value = int64(size)
	return nil
}
