package caddymodule

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// newChoices holds down how often devices of one network, as siteOf has it, may leave a choice of a channel here that have none.
// Choices are kept for good, and device ids can be made up: one client would otherwise fill the room of all devices of an app
// within a minute. It is far more than the old plugins behind one address ever choose.
type newChoices struct {
	mu       sync.Mutex
	networks *simplelru.LRU[uint64, *networkChoices] // guarded by mu
}

type networkChoices struct {
	left   float64 // choices, at the time filled
	filled time.Time
	told   time.Time // when it was logged last that there are none left
}

// The bounds of newChoices. A network that is forgotten may begin anew.
const (
	choicesPerDay    = 10_000 // and so many at once
	maxChoosers      = 1 << 14
	choicesToldEvery = 24 * time.Hour
)

func newNewChoices() *newChoices {
	networks, _ := simplelru.NewLRU[uint64, *networkChoices](maxChoosers, nil) // fails only for a size below 1
	return &newChoices{networks: networks}
}

// allow counts one more, and reports whether there is room for it; if not, whether that is to be logged.
func (c *newChoices) allow(network uint64, now time.Time) (ok, tell bool) {
	network = siteOf(network)
	c.mu.Lock()
	defer c.mu.Unlock()
	n, known := c.networks.Get(network)
	if !known {
		n = &networkChoices{left: choicesPerDay, filled: now}
		c.networks.Add(network, n)
	}
	n.left = min(n.left+choicesPerDay*now.Sub(n.filled).Hours()/24, choicesPerDay)
	n.filled = now
	if n.left >= 1 {
		n.left--
		return true, false
	}
	if tell = now.Sub(n.told) >= choicesToldEvery; tell {
		n.told = now
	}
	return false, tell
}

// giveBack undoes what allow did for a choice that could not be kept.
func (c *newChoices) giveBack(network uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n, known := c.networks.Peek(siteOf(network)); known {
		n.left = min(n.left+1, choicesPerDay)
	}
}
