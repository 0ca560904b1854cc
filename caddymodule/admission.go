package caddymodule

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/capgo-edge/capgo-edge/cache"
)

// admission holds down what apps cost an upstream that it never knew: anyone can make app ids up, and the official server
// answers nothing any more to an address that asked for 5 unknown apps in 15 minutes (protocol 1.5, row 5b).
type admission struct {
	all *rate.Limiter

	mu      sync.Mutex
	clients *simplelru.LRU[netip.Prefix, *rate.Limiter] // by network; guarded by mu
}

// A network may ask for so many apps that are unknown here, then for one more every so often: the server it is passed on to
// allows one more.
const (
	unknownPerClient = 4
	unknownInterval  = 15 * time.Minute / unknownPerClient
	maxClients       = 1 << 14
)

func newAdmission(perMinute int) *admission {
	clients, _ := simplelru.NewLRU[netip.Prefix, *rate.Limiter](maxClients, nil) // fails only for a size below 1
	return &admission{all: rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute), clients: clients}
}

// allow reports whether the upstream may be asked about one more unknown app for a client. A client without an address
// counts with all others that have none.
func (a *admission) allow(client netip.Addr) bool {
	network := clientNetwork(client)
	a.mu.Lock()
	limiter, ok := a.clients.Get(network)
	if !ok {
		limiter = rate.NewLimiter(rate.Every(unknownInterval), unknownPerClient)
		a.clients.Add(network, limiter)
	}
	a.mu.Unlock()
	return limiter.Allow() && a.all.Allow()
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

// termsFor are the relay's terms, for a client: of an app that nothing is known of, the upstream is asked only if the client
// has not asked for too many. Of all that ask at the same time only one does.
func (l *relay) termsFor(r *http.Request, app cache.Key) *cache.Terms {
	if known, refused := l.runtime.answers.Knows(app); known || refused {
		return &l.terms
	}
	client, terms := clientOf(r).Address, l.terms
	terms.Admit = func() bool { return l.admission.allow(client) }
	return &terms
}
