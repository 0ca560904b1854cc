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

func (m *tally) taken(network uint64) (taken seats) {
	for _, o := range m.offers {
		if o.network == network {
			taken.offers++
		}
	}
	for _, v := range m.cast {
		if v.network == network {
			taken.votes++
		}
	}
	return taken
}

func (m *tally) offered(device, network uint64, now time.Duration) {
	m.expire(now)
	if old, known := m.offers[device]; known {
		network = old.network
	} else if m.taken(network).offers == offersPerNetwork {
		return
	}
	m.offers[device] = offer{network, now}
}

func (m *tally) voted(device uint64, failed bool, now time.Duration) bool {
	m.expire(now)
	o, offered := m.offers[device]
	old, voted := m.cast[device]
	switch {
	case voted && (old.failed || !failed):
		return false
	case voted:
		m.cast[device] = vote{old.network, now, true}
		return true
	case !offered || m.taken(o.network).votes == votesPerNetwork:
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
	rapid.Check(t, func(t *rapid.T) {
		room := newBudget(1000)
		v := newVotes(room)
		v.window = time.Duration(rapid.IntRange(0, 50).Draw(t, "window"))
		model := &tally{window: v.window, offers: map[uint64]offer{}, cast: map[uint64]vote{}}
		now := time.Duration(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 5).Draw(t, "wait"))
			device := rapid.Uint64Range(0, 60).Draw(t, "device")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				network := rapid.Uint64Range(0, 3).Draw(t, "network")
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
			for network := range uint64(4) {
				if got, want := v.networks[network], model.taken(network); got != want {
					t.Fatalf("network %d takes %+v, want %+v", network, got, want)
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
