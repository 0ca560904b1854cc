package caddymodule

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// tally is the same as votes, counted anew each time.
type tally struct {
	window time.Duration
	offers map[uint64]offer
	cast   map[uint64]vote
}

func (m *tally) expire(now time.Duration) {
	for device, o := range m.offers {
		if now-o.at >= m.window {
			delete(m.offers, device)
		}
	}
	for device, v := range m.cast {
		if now-v.at >= m.window {
			delete(m.cast, device)
		}
	}
}

func (m *tally) taken(is func(network uint64) bool) (taken seats) {
	for _, o := range m.offers {
		if is(o.network) {
			taken.offers++
		}
	}
	for _, v := range m.cast {
		if is(v.network) {
			taken.votes++
		}
	}
	return taken
}

// around is what the network has taken, and the site that it is in.
func (m *tally) around(network uint64) (own, site seats) {
	own = m.taken(func(n uint64) bool { return n == network })
	return own, m.taken(func(n uint64) bool { return n == network || network >= 1<<40 && n>>16 == network>>16 })
}

func (m *tally) offered(device, network uint64, now time.Duration) {
	m.expire(now)
	if old, known := m.offers[device]; known {
		network = old.network
	} else if own, site := m.around(network); own.offers == offersPerNetwork || site.offers == offersPerSite {
		return
	}
	m.offers[device] = offer{network, now}
}

func (m *tally) voted(device uint64, failed bool, now time.Duration) bool {
	m.expire(now)
	o, offered := m.offers[device]
	old, voted := m.cast[device]
	own, site := m.around(o.network)
	switch {
	case voted && (old.failed || !failed):
		return false
	case voted:
		m.cast[device] = vote{old.network, now, true}
		return true
	case !offered || own.votes == votesPerNetwork || site.votes == votesPerSite:
		return false
	}
	m.cast[device] = vote{o.network, now, failed}
	return true
}

func (m *tally) failures() int {
	n := 0
	for _, v := range m.cast {
		if v.failed {
			n++
		}
	}
	return n
}

// Whatever happens, the votes count as the tally does, keep to the bounds, and give back what room they took.
func TestVotesProperties(t *testing.T) {
	networks := []uint64{0xffff_c0_00_02, 0xffff_c0_00_03}
	for subnet := range uint64(6) { // a site has room for fewer than all their devices
		networks = append(networks, 0x2001_0db8_0000_0000+subnet)
	}
	rapid.Check(t, func(t *rapid.T) {
		room := newBudget(1000)
		v := newVotes(room)
		v.window = time.Duration(rapid.IntRange(0, 50).Draw(t, "window"))
		model := &tally{window: v.window, offers: map[uint64]offer{}, cast: map[uint64]vote{}}
		now := time.Duration(0)
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 5).Draw(t, "wait"))
			device := rapid.Uint64Range(0, 120).Draw(t, "device")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				network := rapid.SampledFrom(networks).Draw(t, "network")
				v.offered(device, network, now)
				model.offered(device, network, now)
			default:
				failed := rapid.Bool().Draw(t, "failed")
				if got, want := v.voted(device, failed, now), model.voted(device, failed, now); got != want {
					t.Fatalf("the vote of %d counts: %t, want %t", device, got, want)
				}
			}
			if v.attempts() != len(model.cast) || v.failures != model.failures() || v.offers.Len() != len(model.offers) {
				t.Fatalf("%d votes, %d failures of %d devices; want %d, %d of %d",
					v.attempts(), v.failures, v.offers.Len(), len(model.cast), model.failures(), len(model.offers))
			}
			for _, network := range networks {
				own, site := model.around(network)
				if v.networks[network] != own || v.sites[siteOf(network)] != site {
					t.Fatalf("network %x takes %+v of %+v, want %+v of %+v", network, v.networks[network], v.sites[siteOf(network)], own, site)
				}
			}
			if got := room.free.Load(); got != 1000-int64(v.offers.Len()) {
				t.Fatalf("room for %d with %d devices", got, v.offers.Len())
			}
		}
		v.drop()
		if room.free.Load() != 1000 {
			t.Fatal("room is lost")
		}
	})
}

func TestVotesAreBounded(t *testing.T) {
	room := newBudget(maxGuardedDevices)
	v := newVotes(room)
	v.window = time.Hour
	for device := range uint64(maxVoters + 1000) {
		v.offered(device, device, 0)
	}
	if v.offers.Len() != maxVoters {
		t.Errorf("%d devices are remembered", v.offers.Len())
	}
	// The first that were offered the target are those that may vote.
	if !v.voted(0, true, 1) || v.voted(maxVoters+1, true, 1) {
		t.Error("a later device took the place of an earlier one")
	}
	// Places that the window has passed over are free again.
	v.offered(maxVoters+1, 1, time.Hour)
	if v.offers.Len() != 1 || !v.voted(maxVoters+1, true, time.Hour) {
		t.Errorf("%d devices after the window", v.offers.Len())
	}
	full := newVotes(newBudget(1))
	full.window = time.Hour
	full.offered(1, 1, 0)
	full.offered(2, 2, 0)
	if full.offers.Len() != 1 {
		t.Error("more devices than there is room for")
	}
}

// TestVotesAreCountedOut: of more votes than are kept those that are kept count, and once the window has passed over them none.
func TestVotesAreCountedOut(t *testing.T) {
	v := newVotes(newBudget(maxGuardedDevices))
	v.window = time.Hour
	for device := range uint64(maxVoters) {
		v.offered(device, device, 0)
		v.voted(device, device%25 == 0, 1)
	}
	failures := v.failures
	for device := uint64(maxVoters); device < maxVoters+1000; device++ { // the first offers are over, not their votes
		v.offered(device, device, time.Hour)
		if v.voted(device, true, time.Hour) {
			t.Fatal("a vote takes the place of another")
		}
	}
	if v.attempts() != maxVoters || v.failures != failures {
		t.Errorf("%d votes, %d failures; want %d, %d", v.attempts(), v.failures, maxVoters, failures)
	}
	v.expire(3 * time.Hour)
	if v.attempts() != 0 || v.failures != 0 || len(v.networks) != 0 || len(v.sites) != 0 {
		t.Errorf("%d votes, %d failures, %d networks, %d sites", v.attempts(), v.failures, len(v.networks), len(v.sites))
	}
}

// TestSitesOfIPv6: who has a /48 has a few votes, and few of the places, whatever number of networks it is divided into.
func TestSitesOfIPv6(t *testing.T) {
	const site = 0x2001_0db8_0001_0000
	v := newVotes(newBudget(maxGuardedDevices))
	v.window = time.Hour
	for subnet := range uint64(1 << 16) {
		v.offered(subnet, site+subnet, 0)
		v.voted(subnet, true, 0)
	}
	if v.offers.Len() != offersPerSite || v.attempts() != votesPerSite {
		t.Errorf("%d devices, %d votes", v.offers.Len(), v.attempts())
	}
	v.offered(1<<20, site+1<<16, 0)
	if !v.voted(1<<20, true, 0) {
		t.Error("the site beside it has no vote")
	}
}

func BenchmarkVotesOffered(b *testing.B) {
	v := newVotes(newBudget(maxGuardedDevices))
	v.window = time.Hour
	device := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		device++
		v.offered(device%40_000, device%40_000/4, time.Duration(device))
	}
}
