package caddymodule

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestNewChoices: a network has so many first choices at once, and so many a day, and the operator is told once a day.
func TestNewChoices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNewChoices()
		const network, other = 0xffff_c0_00_02, 0xffff_c0_00_03
		flood := func(network uint64, n int) (allowed, told int) {
			for range n {
				ok, tell := c.allow(network, time.Now())
				if ok {
					allowed++
				}
				if tell {
					told++
				}
			}
			return allowed, told
		}
		if allowed, told := flood(network, 2*choicesPerDay); allowed != choicesPerDay || told != 1 {
			t.Errorf("%d are allowed at once, %d times told", allowed, told)
		}
		if allowed, _ := flood(other, 10); allowed != 10 {
			t.Errorf("another network has %d", allowed)
		}
		time.Sleep(12 * time.Hour)
		if allowed, told := flood(network, choicesPerDay); allowed != choicesPerDay/2 || told != 0 {
			t.Errorf("%d after half a day, %d times told", allowed, told)
		}
		time.Sleep(12 * time.Hour)
		if allowed, told := flood(network, choicesPerDay); allowed != choicesPerDay/2 || told != 1 {
			t.Errorf("%d after another half, %d times told", allowed, told)
		}
		for range 3 * choicesPerDay { // on a disk that fails
			if ok, _ := c.allow(other, time.Now()); !ok {
				t.Fatal("what was given back is not there")
			}
			c.giveBack(other)
		}
		const site = 0x2001_0db8_0001_0000 // all networks of an IPv6 site count together
		sum := 0
		for subnet := range uint64(100) {
			allowed, _ := flood(site+subnet, 200)
			sum += allowed
		}
		if sum != choicesPerDay {
			t.Errorf("a site has %d", sum)
		}
		for network := range uint64(maxChoosers + 10) {
			c.allow(network, time.Now())
		}
		if n := c.networks.Len(); n != maxChoosers {
			t.Errorf("%d networks are remembered", n)
		}
	})
}
