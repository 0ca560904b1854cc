package caddymodule

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

var oneClient = netip.MustParseAddr("203.0.113.7")

// The official server answers nothing any more to an address that asked for 5 unknown apps within any 15 minutes (protocol 1.5,
// row 5b).
func TestAdmissionWindow(t *testing.T) {
	for name, every := range map[string]time.Duration{"flood": time.Second, "now and then": 3 * time.Minute, "rarely": 4 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, began := newAdmission(60), time.Now()
				var let []time.Time
				for time.Since(began) < 4*time.Hour {
					if allows(a, oneClient) {
						let = append(let, time.Now())
					}
					time.Sleep(every)
				}
				for i := range len(let) - asksPerClient {
					if within := let[i+asksPerClient].Sub(let[i]); within <= 15*time.Minute {
						t.Errorf("%d within %s", asksPerClient+1, within)
					}
				}
				if len(let) < 12*asksPerClient {
					t.Errorf("%d are let through in 4 hours", len(let))
				}
			})
		})
	}
}

// All clients together have so many a minute.
func TestAdmissionTrickle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, next := newAdmission(30), netip.MustParseAddr("198.51.100.0")
		flood := func(last time.Duration) (n int) {
			for began := time.Now(); time.Since(began) < last; time.Sleep(100 * time.Millisecond) {
				if next = next.Next(); allows(a, next) {
					n++
				}
			}
			return n
		}
		if n := flood(time.Minute); n < 59 || n > 60 { // those that are free at once, and those of the minute
			t.Errorf("%d in the first minute", n)
		}
		if n := flood(time.Minute); n < 29 || n > 31 {
			t.Errorf("%d in the second", n)
		}
		a.retune(60)
		if n := flood(time.Minute); n < 59 || n > 61 {
			t.Errorf("%d in the third, with twice as many allowed", n)
		}
		a.retune(6)
		if n := flood(time.Minute); n > 7 {
			t.Errorf("%d in the fourth, with a tenth of that", n)
		}
		time.Sleep(time.Hour)
		if n := flood(time.Second); n != 6 {
			t.Errorf("%d at once after an hour, of 6 a minute", n)
		}
	})
}

func TestAdmissionGiveBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(5)
		for range 20 { // in an outage
			at, ok := a.allow(oneClient)
			if !ok {
				t.Fatal("what came to nothing counts")
			}
			a.giveBack(oneClient, at, true)
		}
		for i := range asksPerClient {
			if !allows(a, oneClient) {
				t.Fatalf("only %d are let through", i)
			}
		}
		if allows(a, oneClient) {
			t.Error("one too many is let through")
		}
		a.giveBack(netip.MustParseAddr("203.0.113.8"), 0, true) // it had none
		if allows(a, oneClient) || !allows(a, netip.MustParseAddr("203.0.113.9")) || allows(a, netip.MustParseAddr("203.0.113.10")) {
			t.Error("another client's is given back")
		}
	})
}

func TestAdmissionNetworks(t *testing.T) {
	for _, tt := range []struct {
		name, a, b string
		same       bool
	}{
		{"IPv4", "192.0.2.1", "192.0.2.2", false},
		{"IPv4 in IPv6", "192.0.2.1", "::ffff:192.0.2.1", true},
		{"IPv6, routed to one", "2001:db8::1", "2001:db8::ffff:2", true},
		{"IPv6", "2001:db8::1", "2001:db8:0:1::1", false},
		{"none", "", "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAdmission(60)
			first, _ := netip.ParseAddr(tt.a)
			second, _ := netip.ParseAddr(tt.b)
			for range asksPerClient {
				allows(a, first)
			}
			if allows(a, second) == tt.same {
				t.Errorf("they count as one: %t", !tt.same)
			}
		})
	}
}

// What clients leave behind is bounded.
func TestAdmissionClients(t *testing.T) {
	a := newAdmission(1 << 20)
	for client := range maxClients + 10 {
		allows(a, netip.AddrFrom4([4]byte{10, byte(client >> 16), byte(client >> 8), byte(client)}))
	}
	if n := a.clients.Len(); n != maxClients {
		t.Errorf("%d clients are remembered", n)
	}
}

// Sites of one upstream, and configurations one after the other, share what is let through.
func TestAdmissionOf(t *testing.T) {
	r := new(runtime)
	a := r.admissionOf("one", 60)
	for range asksPerClient {
		allows(a, oneClient)
	}
	if allows(r.admissionOf("one", 30), oneClient) {
		t.Error("another site has its own")
	}
	if a.perMinute != 30 {
		t.Errorf("the newest configuration says 30 a minute, and it lets %d through", a.perMinute)
	}
	if !allows(r.admissionOf("another", 60), oneClient) {
		t.Error("upstreams share one")
	}
}

// TestAdmissionGiveBackOlder: what is given back is what came to nothing, also if others have begun since: the newer ones count for
// as long as they must.
func TestAdmissionGiveBackOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(60)
		first, _ := a.allow(oneClient)
		time.Sleep(15 * time.Second)
		for range asksPerClient - 1 {
			a.allow(oneClient)
		}
		a.giveBack(oneClient, first, true)
		if !allows(a, oneClient) {
			t.Error("nothing was given back")
		}
		time.Sleep(askWindow - time.Second)
		if allows(a, oneClient) {
			t.Error("five within the window")
		}
	})
}

func allows(a *admission, client netip.Addr) bool {
	_, ok := a.allow(client)
	return ok
}
