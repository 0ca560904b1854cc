package origin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// External is a Store over absolute URLs: an object's key is its whole address, for bundles that a manifest says lie on
// another host.
//
// Whoever writes manifests says where it connects to, so it trusts no address. Each request and each hop of a redirect
// must be for a listed host, by the scheme and port it is listed with. Each connection is judged by the address it is
// actually made to, after the name was resolved, so a name that changes its mind gains nothing. A connection kept for
// later use was judged when it was made, and is only used for that same host and port.
//
// What a listed host may turn out to be:
//
//	listed as                   may be at
//	a wildcard                  public addresses
//	its exact name              also private, shared, loopback, benchmark, documentation and reserved ones
//	an IP address               that address
//
// So link-local addresses and metadata services of clouds are out of reach unless listed as the address they are, and
// multicast, broadcast and unspecified ones always. Listing a host by name trusts whoever answers for that name with the
// inside of the network. Over https a certificate for the name is asked of what is found there, over http nothing is.
//
// Proxies named by the environment are not used: they, and not the edge, would choose the address. It keeps no cookies,
// and tells no host where it was referred from: an address may be as good as a password.
type External struct {
	hosts     hostList
	dial      net.Dialer // the common part of all dialers
	transport *http.Transport
	sender    http.RoundTripper // transport, maybe wrapped
	stall     time.Duration
}

// ExternalOptions configure an External store.
type ExternalOptions struct {
	// Hosts are the hosts objects may be fetched from: names ("cdn.example.com"), wildcards ("*.example.com": names below
	// it at any depth, not itself) and IP addresses ("10.0.0.5", "[fd00::1]"). Each may have a port behind it; without,
	// it has the scheme's. Each is asked by https unless "http://" stands before it.
	Hosts []string
	// Setting is what the operator lists the hosts in, for errors. Default: "external proxy".
	Setting string
	// StallTimeout ends a request whose body brings nothing for so long. Default: 30 s.
	StallTimeout time.Duration
	// WrapTransport, if set, wraps the transport, for tracing. It sees addresses with their queries, which may hold
	// secrets. Connections a wrapper makes by itself are not judged.
	WrapTransport func(http.RoundTripper) http.RoundTripper
}

// NewExternal returns the store over the hosts.
func NewExternal(o ExternalOptions) (*External, error) {
	hosts, err := parseHostList(o.Hosts)
	if err != nil {
		return nil, err
	}
	if o.Setting != "" {
		hosts.setting = o.Setting
	}
	e := &External{hosts: hosts, dial: *newDialer(), stall: o.StallTimeout}
	if e.stall <= 0 {
		e.stall = 30 * time.Second
	}
	e.transport = newTransport(nil, func(ctx context.Context, network, address string) (net.Conn, error) {
		return e.dialer(address).DialContext(ctx, network, address)
	})
	e.transport.MaxIdleConns = 256 // a wildcard has any number of hosts
	e.sender = e.transport
	if o.WrapTransport != nil {
		e.sender = o.WrapTransport(e.transport)
	}
	return e, nil
}

// Identity implements Store. It leaves out the hosts: an address names the same object whoever may ask for it.
func (e *External) Identity() string { return "external" }

// CloseIdleConnections closes connections that no request uses. The store stays usable.
func (e *External) CloseIdleConnections() { e.transport.CloseIdleConnections() }

// Allows reports that Get would ask for the URL. It looks at the list alone: where the host's name leads, and whether that
// is allowed, only Get finds out.
func (e *External) Allows(rawURL string) bool {
	_, err := e.parse(rawURL)
	return err == nil
}

// Get implements Store. The key is an absolute URL; a fragment counts for nothing. The error wraps a RedirectError as well
// if the key's host is listed, but the object is elsewhere.
func (e *External) Get(ctx context.Context, key string, opts GetOptions) (*Object, error) {
	target, err := e.parse(key)
	if err != nil {
		return nil, unavailable("%w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	resp, err := e.ask(ctx, target, opts)
	if err != nil {
		cancel(nil)
		return nil, unavailable("%w", err)
	}
	return open(resp, e.stall, cancel, opts)
}

// ask sends the request, and follows redirects. It does so itself, because http.Client names the address, query and all,
// to the next host and in its errors, and waits for the bodies of redirects.
func (e *External) ask(ctx context.Context, target *url.URL, opts GetOptions) (*http.Response, error) {
	for range 1 + maxRedirects {
		resp, err := e.sender.RoundTrip(newExternalRequest(ctx, target, opts))
		if err != nil {
			return nil, publicError(err)
		}
		location := resp.Header.Get("Location")
		if !isRedirect(resp.StatusCode) || location == "" {
			return resp, nil
		}
		_ = resp.Body.Close()
		if target, err = e.follow(target, location); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("more than %d redirects", maxRedirects)
}

// newExternalRequest takes the address as it was judged: text that is read a second time may be read differently.
func newExternalRequest(ctx context.Context, target *url.URL, opts GetOptions) *http.Request {
	req := &http.Request{
		Method: http.MethodGet, URL: target, Host: target.Host, Header: http.Header{},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if opts.HeadOnly {
		req.Method = http.MethodHead
	}
	req.Header.Set("Accept-Encoding", "identity")
	setConditions(req.Header, opts)
	return req.WithContext(ctx)
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// follow returns where a redirect leads to.
func (e *External) follow(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	if err != nil {
		return nil, errors.New("it redirects to what is not a URL")
	}
	public, err := e.judge(to)
	downgrades := from.Scheme == "https" && to.Scheme == "http"
	if _, notListed := errors.AsType[notListedError](err); notListed && !downgrades && len(location) <= maxLocation {
		return nil, &RedirectError{to, err}
	}
	if err != nil {
		return nil, fmt.Errorf("it redirects: %w", err)
	}
	return public, nil
}

// maxLocation is bytes of an address that a client is sent on to; some are remembered for a moment. Servers seldom take more.
const maxLocation = 8 << 10

// RedirectError is why External.Get fails if the object is at a host that is not listed: a listed one redirects there.
// Nothing was sent to that host, but whoever wants the object may go there by itself. Redirects from https to http are not
// among these errors: nobody should follow them.
type RedirectError struct {
	// To is absolute, by https or http. Its query may be a secret, and is not part of the error's text.
	To  *url.URL
	why error
}

func (e *RedirectError) Error() string { return "it redirects: " + e.why.Error() }

// Unwrap returns what is said of the host.
func (e *RedirectError) Unwrap() error { return e.why }

// notListedError refuses a host that is not listed.
type notListedError struct {
	at      endpoint
	setting string
}

func (e notListedError) Error() string {
	return fmt.Sprintf("%s is not allowed; add %s to %s if it is meant", e.at.origin(), e.at, e.setting)
}

func (e *External) parse(rawURL string) (*url.URL, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("the address is not a URL") // the parse error repeats it, query and all
	}
	return e.judge(u)
}

// judge returns the address in the form it is asked for, if its host is listed.
func (e *External) judge(u *url.URL) (*url.URL, error) {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("the address does not begin with https:// or http://")
	case u.User != nil:
		return nil, errors.New("the address holds a user or password; use one without")
	case strings.ContainsAny(u.RawQuery, " "):
		return nil, errors.New("the address has a blank in its query; write %20") // it would end the request line
	}
	at, err := endpointOf(u)
	if err != nil {
		return nil, err
	}
	if !e.hosts.lists(at) {
		return nil, notListedError{at, e.hosts.setting}
	}
	public := *u
	public.Host = at.authority()
	public.Fragment, public.RawFragment = "", ""
	return &public, nil
}

// dialer returns the dialer for connections to a host and port. One is made for each connection, because what may be
// connected to depends on how that host is listed.
func (e *External) dialer(target string) *net.Dialer {
	d := e.dial
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return e.hosts.judgeConnection(target, address)
	}
	return &d
}

// judgeConnection judges a connection that is about to be made for target, a host and port, to an address and port.
func (l hostList) judgeConnection(target, address string) error {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return errors.New("the host and port cannot be told apart")
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%s resolves to what is no address", host)
	}
	need, what := judgeAddress(to.Addr())
	switch {
	case need <= l.granted(host, port):
		return nil
	case need == grantName:
		return fmt.Errorf("%s resolves to %s, %s; list that host by name in %s if it is meant", host, to.Addr(), what, l.setting)
	case need == grantLiteral:
		return fmt.Errorf("%s resolves to %s, %s; only that very address, listed in %s, would allow for it",
			host, to.Addr(), what, l.setting)
	default:
		return fmt.Errorf("%s resolves to %s, %s; nothing is fetched from there", host, to.Addr(), what)
	}
}

// endpoint is a server: a name or an IP address, and how it is asked.
type endpoint struct {
	scheme string
	host   string // lower case, without a dot at the end; an IPv6 address without brackets
	port   uint16
}

// endpointOf returns the server a URL names.
func endpointOf(u *url.URL) (endpoint, error) {
	host, ok := canonicalHost(u.Hostname())
	if !ok {
		return endpoint{}, errors.New("the address has no host that is a name in ASCII or an IP address")
	}
	port, err := parsePort(u.Scheme, u.Port())
	return endpoint{u.Scheme, host, port}, err
}

// canonicalHost gives a host, without brackets, the one form it is compared in. Unlike an address, a name may end in a dot.
func canonicalHost(host string) (string, bool) {
	if addr, ok := parseLiteral(host); ok {
		return addr.String(), true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host, isHostName(host)
}

func parsePort(scheme, port string) (uint16, error) {
	if port == "" {
		return defaultPort(scheme), nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port; ports are 1 to 65535", port)
	}
	return uint16(n), nil
}

func defaultPort(scheme string) uint16 {
	if scheme == "http" {
		return 80
	}
	return 443
}

// authority is the endpoint as it stands in a URL, without the port that goes without saying: signatures cover it so.
func (p endpoint) authority() string {
	host := p.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if p.port != defaultPort(p.scheme) {
		host += ":" + strconv.Itoa(int(p.port))
	}
	return host
}

func (p endpoint) origin() string { return p.scheme + "://" + p.authority() }

// String is the endpoint as an operator would list it.
func (p endpoint) String() string {
	if p.scheme == "https" {
		return p.authority()
	}
	return p.origin()
}

// hostList is what an operator allows to fetch from.
type hostList struct {
	setting  string // that it is written in
	exact    map[endpoint]bool
	wildcard map[endpoint]bool // by the name below which all are allowed
}

// lists reports that the endpoint may be asked. No wildcard holds an IP address: its last label would be a number.
func (l hostList) lists(p endpoint) bool {
	if l.exact[p] {
		return true
	}
	for _, parent, ok := strings.Cut(p.host, "."); ok; _, parent, ok = strings.Cut(parent, ".") {
		if l.wildcard[endpoint{p.scheme, parent, p.port}] {
			return true
		}
	}
	return false
}

// granted says what addresses a host and port that is asked may be at.
func (l hostList) granted(host, port string) grant {
	number, err := parsePort("", port)
	if err != nil {
		return grantAny
	}
	host, _ = canonicalHost(host)
	if !l.exact[endpoint{"https", host, number}] && !l.exact[endpoint{"http", host, number}] {
		return grantAny
	}
	if _, ok := parseLiteral(host); ok {
		return grantLiteral
	}
	return grantName
}

func parseHostList(hosts []string) (hostList, error) {
	l := hostList{setting: "external proxy", exact: map[endpoint]bool{}, wildcard: map[endpoint]bool{}}
	if len(hosts) == 0 {
		return l, errors.New("no hosts; list those that objects may be fetched from")
	}
	for _, host := range hosts {
		p, wildcard, err := parseListed(host)
		if err != nil {
			return l, err
		}
		if wildcard {
			l.wildcard[p] = true
		} else {
			l.exact[p] = true
		}
	}
	return l, nil
}

// parseListed reads [scheme://][*.]host[:port].
func parseListed(s string) (p endpoint, wildcard bool, err error) {
	p.scheme = "https"
	rest := s
	if scheme, behind, ok := strings.Cut(s, "://"); ok {
		p.scheme, rest = strings.ToLower(scheme), behind
	}
	switch {
	case strings.Contains(s, "@"): // not repeated: it may be a password
		return p, false, errors.New("a host has a user or password before it; list the host alone")
	case p.scheme != "http" && p.scheme != "https":
		return p, false, fmt.Errorf("%q: only https:// and http:// can stand before a host", s)
	case strings.ContainsAny(rest, "/?#"):
		return p, false, fmt.Errorf("%q is an address; list the host alone, as in cdn.example.com", s)
	case strings.Contains(rest, "%"):
		return p, false, fmt.Errorf("%q has a zone, which only means something on one machine; list the address without", s)
	}
	host, port, err := splitListed(rest)
	if err != nil {
		return p, false, fmt.Errorf("%q: %w", s, err)
	}
	if p.port, err = parsePort(p.scheme, port); err != nil {
		return p, false, fmt.Errorf("%q: %w", s, err)
	}
	host, wildcard = strings.CutPrefix(host, "*.")
	if p.host, err = parseListedHost(host, wildcard); err != nil {
		return p, false, fmt.Errorf("%q: %w", s, err)
	}
	return p, wildcard, nil
}

// splitListed splits host[:port]; a host in brackets comes without them.
func splitListed(s string) (host, port string, err error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		inner, port, ok = strings.Cut(inner, "]")
		if !ok || !strings.Contains(inner, ":") || port != "" && port[0] != ':' {
			return "", "", errors.New("write an IPv6 address and its port as [fd00::1]:8443")
		}
		host = inner
	} else if strings.Count(s, ":") > 1 {
		return "", "", errors.New("write an IPv6 address in brackets, as in [fd00::1]")
	} else {
		host, port = s, ""
		if i := strings.IndexByte(s, ':'); i >= 0 {
			host, port = s[:i], s[i:]
		}
	}
	if port == ":" {
		return "", "", errors.New("no port stands behind the colon")
	}
	return host, strings.TrimPrefix(port, ":"), nil
}

func parseListedHost(host string, wildcard bool) (string, error) {
	canonical, ok := canonicalHost(host)
	addr, isLiteral := parseLiteral(host)
	switch {
	case host == "":
		return "", errors.New("no host")
	case host == "*":
		return "", errors.New("every host would make the edge an open proxy; list the hosts that are meant")
	case strings.Contains(host, "*"):
		return "", errors.New("a * can only be the first label, as in *.example.com")
	case strings.ContainsFunc(host, func(r rune) bool { return r > 127 }):
		return "", errors.New("write a name that is not ASCII in punycode, as in xn--mnchen-3ya.example")
	case isLiteral && wildcard, wildcard && ok && !strings.Contains(canonical, "."):
		return "", errors.New("a wildcard needs a domain of at least two labels behind it, as in *.example.com")
	case isLiteral:
		if need, what := judgeAddress(addr); need == grantNever {
			return "", fmt.Errorf("it is %s; list the address of a server", what)
		}
	case !ok && isNumber(canonical[strings.LastIndexByte(canonical, '.')+1:]):
		return "", errors.New("it ends in a number, but is no IP address; write one as in 10.0.0.5 or [fd00::1]")
	case !ok:
		return "", errors.New("it is no host name; list one as in cdn.example.com")
	}
	return canonical, nil
}
