package caddymodule

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// The official limits of /channel_self (protocol 5.1), and how many devices are remembered for them: beyond that those that
// were quiet longest are forgotten, so that made-up devices cost no memory. A forgotten device may call a little too often.
const (
	channelCallsPerWindow = 5
	channelWindow         = time.Second
	channelRepeat         = time.Minute
	maxLimitedDevices     = 65_536
)

// channelLimits holds each device to a number of calls of one kind. A device that sets the channel once more that it has
// just set is not counted: where the official server refuses that, this edge says again that it is set, which it is.
// A nil *channelLimits allows everything.
type channelLimits struct {
	seed maphash.Seed

	mu      sync.Mutex
	windows *simplelru.LRU[uint64, *channelCalls] // guarded by mu; by hash of app, device and kind
}

// channelCalls are the calls of one device and kind.
type channelCalls struct {
	since  time.Time // when the window began
	n      int       // calls in it
	set    uint64    // hash of the channel that was set last
	setEnd time.Time // until when it may be set again
}

func newChannelLimits() *channelLimits {
	windows, _ := simplelru.NewLRU[uint64, *channelCalls](maxLimitedDevices, nil) // fails only for a size below 1
	return &channelLimits{seed: maphash.MakeSeed(), windows: windows}
}

// key is a hash, not the texts themselves: those are parts of a body, all of which they would keep in memory. Nobody can
// choose two devices with one hash, because nobody knows the seed.
func (l *channelLimits) key(c *resolver.ChannelCall) uint64 {
	return maphash.Comparable(l.seed, struct {
		op          resolver.ChannelOp
		app, device string
	}{c.Op, c.AppID, c.DeviceID})
}

func (l *channelLimits) channel(c *resolver.ChannelCall) uint64 {
	return maphash.String(l.seed, c.Channel)
}

// allow counts a call and reports whether it may pass; if not, reset is when the next one may. A call that does not say
// which device it is from is not counted.
func (l *channelLimits) allow(c *resolver.ChannelCall, now time.Time) (reset time.Time, ok bool) {
	if l == nil || c.DeviceID == "" {
		return reset, true
	}
	key, channel := l.key(c), l.channel(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	calls, known := l.windows.Get(key)
	if !known {
		calls = new(channelCalls)
		l.windows.Add(key, calls)
	}
	reset = calls.since.Add(channelWindow)
	switch {
	case c.Op == resolver.SetChannel && calls.set == channel && now.Before(calls.setEnd):
		return reset, true
	case !now.Before(reset):
		calls.since, calls.n = now, 1
		return reset, true
	case calls.n < channelCallsPerWindow:
		calls.n++
		return reset, true
	}
	return reset, false
}

// done notes that a call succeeded.
func (l *channelLimits) done(c *resolver.ChannelCall, now time.Time) {
	if l == nil || c.DeviceID == "" {
		return
	}
	set := *c
	set.Op = resolver.SetChannel
	key := l.key(&set)
	l.mu.Lock()
	defer l.mu.Unlock()
	calls, known := l.windows.Get(key)
	switch {
	case c.Op == resolver.SetChannel && known:
		calls.set, calls.setEnd = l.channel(c), now.Add(channelRepeat)
	case c.Op == resolver.UnsetChannel && known:
		calls.setEnd = time.Time{} // setting it again is a change now
	}
}
