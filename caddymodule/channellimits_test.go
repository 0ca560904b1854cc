package caddymodule

import (
	"fmt"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// TestChannelLimits walks through calls at given times; each step is one call.
func TestChannelLimits(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	set := resolver.ChannelCall{Op: resolver.SetChannel, AppID: "a.b", DeviceID: "1", Channel: "beta"}
	get := resolver.ChannelCall{Op: resolver.GetChannel, AppID: "a.b", DeviceID: "1"}
	with := func(c resolver.ChannelCall, change func(*resolver.ChannelCall)) *resolver.ChannelCall {
		change(&c)
		return &c
	}
	type step struct {
		call *resolver.ChannelCall
		at   time.Duration
		ok   bool
		done bool // the call succeeds
	}
	times := func(n int, s step) (steps []step) {
		for range n {
			steps = append(steps, s)
		}
		return steps
	}
	other := func(c *resolver.ChannelCall) { c.DeviceID = "2" }
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"five pass", append(times(5, step{&get, 0, true, true}), step{&get, 0, false, false})},
		{"a second later", append(times(5, step{&get, 0, true, true}), step{&get, 999 * time.Millisecond, false, false}, step{&get, time.Second, true, true})},
		{"refused ones are not counted", append(append(times(5, step{&get, 0, true, true}), times(9, step{&get, 0, false, false})...), step{&get, time.Second, true, true})},
		{"each device for itself", append(times(5, step{&get, 0, true, true}), step{with(get, other), 0, true, true})},
		{"each kind for itself", append(times(5, step{&get, 0, true, true}), step{&set, 0, true, true})},
		{"each app for itself", append(times(5, step{&get, 0, true, true}), step{with(get, func(c *resolver.ChannelCall) { c.AppID = "a.c" }), 0, true, true})},
		{"the same set again", times(50, step{&set, 0, true, true})},
		{"a set that failed is counted", append(times(5, step{&set, 0, true, false}), step{&set, 0, false, false})},
		{"again after a minute", append(times(20, step{&set, 0, true, true}),
			append(times(5, step{&set, time.Minute, true, false}), step{&set, time.Minute, false, false})...)},
		{"another channel", append([]step{{&set, 0, true, true}}, append(
			times(4, step{with(set, func(c *resolver.ChannelCall) { c.Channel = "nope" }), 0, true, false}),
			step{with(set, func(c *resolver.ChannelCall) { c.Channel = "nope" }), 0, false, false}, step{&set, 0, true, true})...)},
		{"set, unset, set", []step{
			{&set, 0, true, true},
			{&set, 0, true, true},
			{with(set, func(c *resolver.ChannelCall) { c.Op, c.Channel = resolver.UnsetChannel, "" }), 0, true, true},
			{&set, 0, true, false},
			{&set, 0, true, false},
			{&set, 0, true, false},
			{&set, 0, true, false},
			{&set, 0, false, false},
		}},
		{"no device", times(50, step{&resolver.ChannelCall{Op: resolver.ListChannels, AppID: "a.b"}, 0, true, true})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newChannelLimits()
			for i, s := range tt.steps {
				now := start.Add(s.at)
				reset, ok := l.allow(s.call, now)
				if ok != s.ok {
					t.Fatalf("step %d: allowed %v", i, ok)
				}
				if !ok && (!reset.After(now) || reset.Sub(now) > time.Second) {
					t.Errorf("step %d: the next call may come %v later", i, reset.Sub(now))
				}
				if s.done {
					l.done(s.call, now)
				}
			}
		})
	}
	var none *channelLimits
	for range 100 {
		if _, ok := none.allow(&get, start); !ok {
			t.Fatal("no limits refuse")
		}
		none.done(&get, start)
	}
}

// TestChannelLimitsMemory: made-up devices do not pile up.
func TestChannelLimitsMemory(t *testing.T) {
	l, now := newChannelLimits(), time.Unix(1_700_000_000, 0)
	for i := range maxLimitedDevices + 1000 {
		l.allow(&resolver.ChannelCall{Op: resolver.GetChannel, AppID: "a.b", DeviceID: fmt.Sprint(i)}, now)
	}
	if n := l.windows.Len(); n != maxLimitedDevices {
		t.Errorf("%d devices are remembered", n)
	}
}

// TestChannelCounters: each result there can be has a counter.
func TestChannelCounters(t *testing.T) {
	c, want := newChannelCounters(), uint64(0)
	for op, results := range resolver.ChannelResults() {
		for _, result := range append(results, channelRefused, channelLimited, channelUnknownApp, channelUnavailable) {
			c.count(resolver.ChannelOp(op), result)
			want++
		}
	}
	sum := uint64(0)
	c.each(func(_, _ string, n uint64) { sum += n })
	if sum != want || want < 20 {
		t.Errorf("%d calls were counted, of %d", sum, want)
	}
}
