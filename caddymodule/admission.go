package caddymodule

import (
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/capgo-edge/capgo-edge/cache"
)

// admission holds down what apps cost an upstream that it never knew: anyone can make app ids up, and the official server
// answers nothing any more to an address that asked for 5 unknown apps in 15 minutes (protocol 1.5, row 5b).
type admission struct {
	began time.Time // what the times below count from

	mu        sync.Mutex
	clients   *simplelru.LRU[netip.Prefix, *recentAsks] // by network; guarded by mu, as all below
	perMinute int
	left      float64 // of the requests that all clients have together, at the time filled
	filled    time.Duration
}

// A network may have the upstream asked so often within so long. The upstream counts what arrives, and one more is too much: the
// first request may have taken longer than the last.
const (
	asksPerClient = 4
	askWindow     = 15*time.Minute + 10*time.Second
	maxClients    = 1 << 14
)

// recentAsks are the times at which a client had the upstream asked, within the window.
type recentAsks struct {
	at [asksPerClient]time.Duration // the oldest first
	n  int
}

// newAdmission lets so many requests a minute through, all clients together.
func newAdmission(perMinute int) *admission {
	clients, _ := simplelru.NewLRU[netip.Prefix, *recentAsks](maxClients, nil) // fails only for a size below 1
	return &admission{began: time.Now(), clients: clients, perMinute: perMinute, left: float64(perMinute)}
}

// retune changes how many requests a minute are let through; what was let through counts on.
func (a *admission) retune(perMinute int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fillLocked(time.Since(a.began))
	a.perMinute = perMinute
	a.left = min(a.left, float64(perMinute))
}

// fillLocked adds what has become free since the last time: a minute's worth at the most.
func (a *admission) fillLocked(now time.Duration) {
	a.left = min(a.left+(now-a.filled).Minutes()*float64(a.perMinute), float64(a.perMinute))
	a.filled = now
}

// allow reports whether the upstream may be asked about one more unknown app for a client. A client without an address
// counts with all others that have none. at is for giveBack.
func (a *admission) allow(client netip.Addr) (at time.Duration, ok bool) {
	network := clientNetwork(client)
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Since(a.began)
	asks, known := a.clients.Get(network)
	if !known {
		asks = new(recentAsks)
	}
	a.fillLocked(now)
	if !asks.room(now) || a.left < 1 {
		return 0, false
	}
	a.left--
	asks.at[asks.n] = now
	asks.n++
	a.clients.Add(network, asks)
	return now, true
}

// room reports whether there may be one more, and forgets those that the window has passed.
func (r *recentAsks) room(now time.Duration) bool {
	past := 0
	for past < r.n && now-r.at[past] >= askWindow {
		past++
	}
	r.n = copy(r.at[:], r.at[past:r.n])
	return r.n < asksPerClient
}

// giveBack undoes what allow did for a client at a time: the upstream did not get the request, gave no answer, or knows the app. all
// tells whether the request is not to count for all clients together, either.
func (a *admission) giveBack(client netip.Addr, at time.Duration, all bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	asks, ok := a.clients.Get(clientNetwork(client))
	if !ok {
		return
	}
	if i := slices.Index(asks.at[:asks.n], at); i >= 0 {
		asks.n = i + copy(asks.at[i:], asks.at[i+1:asks.n])
		if all {
			a.left = min(a.left+1, float64(a.perMinute))
		}
	}
}

// admissions are those to all servers, by address: a server counts a client's requests whatever site they come through, and
// whatever other servers the site has. The zero value has none.
type admissions struct {
	mu     sync.Mutex
	of     map[string]*admission      // guarded by mu
	events map[string]*eventAdmission // likewise; by upstream
}

// admissionOf is the admission to a server. Sites and configurations share it; the newest one says how many requests a minute
// it has.
func (r *runtime) admissionOf(server string, perMinute int) *admission {
	all := &r.admissions
	all.mu.Lock()
	defer all.mu.Unlock()
	if a := all.of[server]; a != nil {
		a.retune(perMinute)
		return a
	}
	if all.of == nil {
		all.of = map[string]*admission{}
	}
	a := newAdmission(perMinute)
	all.of[server] = a
	return a
}

// eventAdmissionOf is the same for the statistics of an upstream.
func (r *runtime) eventAdmissionOf(upstream string, perMinute int) *eventAdmission {
	all := &r.admissions
	all.mu.Lock()
	defer all.mu.Unlock()
	if a := all.events[upstream]; a != nil {
		a.retune(perMinute)
		return a
	}
	if all.events == nil {
		all.events = map[string]*eventAdmission{}
	}
	a := newEventAdmission(perMinute)
	all.events[upstream] = a
	return a
}

// clientNetwork is the part of an address that one client has: all of IPv4, and what is routed to one in IPv6.
func clientNetwork(client netip.Addr) netip.Prefix {
	client = client.Unmap()
	if !client.IsValid() {
		return netip.Prefix{}
	}
	bits := client.BitLen()
	if client.Is6() {
		bits = 64
	}
	network, _ := client.Prefix(bits) // fails only for bits that there are not
	return network
}

// pass is the leave to send a request to an upstream that may be about an app which it does not know. The zero pass is for one
// that need not have one.
type pass struct {
	client netip.Addr
	taken  []admitted
}

// admitted is what allow gave.
type admitted struct {
	by *admission
	at time.Duration
}

// admit gives a client a pass, if it has one left at every server: any of them may be asked.
func (l *relay) admit(client netip.Addr) (pass, bool) {
	p := pass{client, make([]admitted, 0, len(l.admissions))}
	for _, a := range l.admissions {
		at, ok := a.allow(client)
		if !ok {
			p.giveBack(true)
			return pass{}, false
		}
		p.taken = append(p.taken, admitted{a, at})
	}
	return p, true
}

// giveBack undoes what admit did. If not all of it, the client has its leave back, and the requests of all clients together are
// spent: some servers have an answer to any app, and each app that was never asked for costs them one.
func (p *pass) giveBack(all bool) {
	for _, t := range p.taken {
		t.by.giveBack(p.client, t.at, all)
	}
}

// termsFor are the relay's terms, for a client: of an app that nothing is known of, the upstream is asked only if the client
// has not asked for too many. Of all that ask at the same time only one does. An app that the operator has named is none that
// is made up.
func (l *relay) termsFor(r *http.Request, app cache.Key, named bool) *cache.Terms {
	if known, refused := l.runtime.answers.Knows(app); known || refused || named {
		return &l.terms
	}
	client, terms := clientOf(r).Address, l.terms
	var p pass
	terms.Admit = func() (ok bool) {
		p, ok = l.admit(client)
		return ok
	}
	terms.Dismiss = func(known bool) { p.giveBack(!known) } // by who was admitted, behind that
	return &terms
}
