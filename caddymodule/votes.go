package caddymodule

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// votes are what devices say of one target of a rollout: that it was set, or that it failed. Events are not authenticated,
// so a device has a vote only where this site offered it the target of late, and each has one: a failure outweighs the
// success before it, and nothing outweighs a failure. A network has few votes however many devices it claims to have.
// Carriers spread their customers over many networks, while one who makes up devices and failures seldom has more than one.
//
// Times count from any moment that does not change. Nothing here is safe for concurrent use.
type votes struct {
	window   time.Duration // what is older does not count
	offers   *simplelru.LRU[uint64, offer]
	cast     *simplelru.LRU[uint64, vote]
	networks map[uint64]seats
	sites    map[uint64]seats // of the same devices, by siteOf
	failures int
	room     *budget // of all targets
}

// offer is a device that may vote, and the network it was in when it was offered the target first. The list of offers is
// in the order of their times, and so is that of votes.
type offer struct {
	network uint64
	at      time.Duration
}

type vote struct {
	network uint64
	at      time.Duration
	failed  bool
}

// seats counts what a network has taken.
type seats struct{ offers, votes int32 }

// The bounds of one target, of a network in it, and of a site. A network's devices wait for a vote in more places than there are votes, because some never
// report; and once all places of the target are taken no further device gets one until the window has passed over some,
// so that those who were offered it first have time to report.
const (
	maxVoters = 65_536

	offersPerNetwork, votesPerNetwork = 16, 2
	offersPerSite, votesPerSite       = 64, 8
)

func newVotes(room *budget) *votes {
	v := &votes{networks: map[uint64]seats{}, sites: map[uint64]seats{}, room: room}
	v.offers, _ = simplelru.NewLRU[uint64, offer](maxVoters, nil) // fails only for a size below 1, as the next
	v.cast, _ = simplelru.NewLRU[uint64, vote](maxVoters, nil)
	return v
}

// attempts is how many votes count.
func (v *votes) attempts() int { return v.cast.Len() }

// offered notes that a device was offered the target.
func (v *votes) offered(device, network uint64, now time.Duration) {
	v.expire(now)
	if old, known := v.offers.Peek(device); known {
		v.offers.Add(device, offer{old.network, now})
		return
	}
	full := v.networks[network].offers == offersPerNetwork || v.sites[siteOf(network)].offers == offersPerSite
	if full || v.offers.Len() == maxVoters || !v.room.take(1) {
		return
	}
	v.seat(network, seats{offers: 1})
	v.offers.Add(device, offer{network, now})
}

// voted takes the vote of a device, and reports whether it changes anything.
func (v *votes) voted(device uint64, failed bool, now time.Duration) bool {
	v.expire(now)
	if old, known := v.cast.Peek(device); known {
		if old.failed || !failed {
			return false
		}
		v.failures++
		v.cast.Add(device, vote{old.network, now, true})
		return true
	}
	o, known := v.offers.Peek(device)
	if !known {
		return false
	}
	full := v.networks[o.network].votes == votesPerNetwork || v.sites[siteOf(o.network)].votes == votesPerSite
	if full || v.cast.Len() == maxVoters { // the list itself would drop its oldest vote, and not count it out
		return false
	}
	v.seat(o.network, seats{votes: 1})
	v.cast.Add(device, vote{o.network, now, failed})
	if failed {
		v.failures++
	}
	return true
}

// expire drops what lies before the window.
func (v *votes) expire(now time.Duration) {
	for {
		device, o, ok := v.offers.GetOldest()
		if !ok || now-o.at < v.window {
			break
		}
		v.offers.Remove(device)
		v.room.give(1)
		v.seat(o.network, seats{offers: -1})
	}
	for {
		device, old, ok := v.cast.GetOldest()
		if !ok || now-old.at < v.window {
			break
		}
		v.cast.Remove(device)
		if old.failed {
			v.failures--
		}
		v.seat(old.network, seats{votes: -1})
	}
}

// seat counts what a network, and its site, take from now on, or leave.
func (v *votes) seat(network uint64, more seats) {
	for _, place := range [...]struct {
		taken map[uint64]seats
		at    uint64
	}{{v.networks, network}, {v.sites, siteOf(network)}} {
		now := place.taken[place.at]
		now.offers += more.offers
		now.votes += more.votes
		if now == (seats{}) {
			delete(place.taken, place.at)
		} else {
			place.taken[place.at] = now
		}
	}
}

// drop gives back the room that v takes. v must not be used afterwards.
func (v *votes) drop() { v.room.give(int64(v.offers.Len())) }
