package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Group is one or several servers that know the same apps, in the order in which they are asked. Its methods may be called
// from any goroutine. It has no goroutine of its own.
type Group struct {
	servers []*server
	proxy   httputil.ReverseProxy // what is passed through starts with a copy
}

// Options configure a Group.
type Options struct {
	// URLs are the servers' base addresses, in order: what clients have as updateUrl, without the "/updates" at its end. A
	// user and password in one are sent as basic authentication; errors do not show them.
	URLs []string
	// WrapTransport, if set, wraps the transport of each server, for tracing.
	WrapTransport func(http.RoundTripper) http.RoundTripper
	// Report is told when a server's breaker opens, and why, and nil when it closes. Nil: nobody is told.
	Report func(upstream string, err error)
}

// NewGroup returns the group of the servers. It asks none of them.
func NewGroup(o Options) (*Group, error) {
	if len(o.URLs) == 0 {
		return nil, errors.New("no upstream; name at least one")
	}
	g := &Group{proxy: httputil.ReverseProxy{ErrorLog: zap.NewStdLog(zap.NewNop())}} // errors are returned
	for _, rawURL := range o.URLs {
		s, err := newServer(rawURL, &o)
		if err != nil {
			return nil, err
		}
		for _, other := range g.servers { // it would confirm its own refusals
			if other.name == s.name {
				return nil, fmt.Errorf("upstream %s is named twice", s.name)
			}
		}
		g.servers = append(g.servers, s)
	}
	return g, nil
}

// Identity names the group without secrets: what is learned from groups of one identity may be shared.
func (g *Group) Identity() string {
	names := make([]string, len(g.servers))
	for i, s := range g.servers {
		names[i] = s.name
	}
	return "upstream " + strings.Join(names, " ")
}

// Hosts are the servers' own hosts, as origin.ExternalOptions.Hosts takes them: what they offer for download at addresses
// of theirs may be fetched, whatever network they are on.
func (g *Group) Hosts() []string {
	hosts := make([]string, len(g.servers))
	for i, s := range g.servers {
		hosts[i] = s.listed()
	}
	return hosts
}

// CloseIdleConnections closes connections that no request uses. The group stays usable.
func (g *Group) CloseIdleConnections() {
	for _, s := range g.servers {
		s.idle()
	}
}

// Health is how a server stands.
type Health struct {
	Upstream string // its base address, without user and password
	State    State
	Since    time.Time // of the state; zero if it never changed
	Next     time.Time // when it is tried again; zero while closed
	Error    string    // the last failure; empty once it answered after it

	Requests uint64 // that were sent
	Failures uint64 // those without a usable answer
	Refused  uint64 // requests that were not sent, because the breaker was open
	InFlight int    // requests under way
}

// Health tells how the servers stand, in their order.
func (g *Group) Health() []Health {
	all := make([]Health, len(g.servers))
	for i, s := range g.servers {
		all[i] = s.breaker.health()
		all[i].Upstream, all[i].InFlight = s.name, len(s.checks)+len(s.forwards)
	}
	return all
}

// setAddress tells the server who asks. Common practice is either header; the chain that a request came with is left out,
// because its head is whatever the client wrote, and servers read the head.
func setAddress(h http.Header, address netip.Addr) {
	if !address.IsValid() {
		return
	}
	text := address.Unmap().WithZone("").String()
	h.Set("X-Forwarded-For", text)
	h.Set("X-Real-Ip", text)
}
