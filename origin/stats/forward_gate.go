package stats

import (
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// maxWait bounds the wait between two tries, before jitter.
	maxWait = 5 * time.Minute
	// maxAppWait is that of an app. There may be thousands that the collector does not know, all made up: at 5 min each they
	// would have it answer dozens of requests a second, for good.
	maxAppWait = 30 * time.Minute
)

// newBackoff spaces retries: 1 s, 2 s, 4 s and so on up to longest, each by half more or less. It never gives up.
func newBackoff(longest time.Duration) backoff.ExponentialBackOff {
	return backoff.ExponentialBackOff{
		InitialInterval: time.Second, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: longest,
	}
}

// gate stands before the collector, and before each app. It closes when a request fails. When it has been closed for a time
// it lets one request through, the probe, and opens only if that succeeds; so a collector that comes back is not met by
// everything that has been waiting.
type gate struct {
	until   time.Time     // when a closed gate lets a probe through; zero: it is open
	probing bool          // the probe is on its way
	round   int           // grows whenever the gate opens or closes
	since   time.Time     // when it closed after it was open last
	failure *Failure      // why
	longest time.Duration // wait
	backoff backoff.ExponentialBackOff
	waiter  waiter
}

// pass is what a request got at a gate: the round it went through in.
type pass struct {
	round int
	probe bool
}

func (g *gate) closed() bool { return !g.until.IsZero() }

// lets reports whether a request may go through now.
func (g *gate) lets(now time.Time) bool { return !g.closed() || !g.probing && !now.Before(g.until) }

// enter takes a request through.
func (g *gate) enter() pass {
	g.probing = g.closed()
	return pass{g.round, g.probing}
}

// leave ends a request that said nothing about the collector.
func (g *gate) leave(p pass) {
	if p.round == g.round {
		g.probing = false
	}
}

// succeed opens the gate, and reports whether it was closed. What set out before the gate closed does not open it.
func (g *gate) succeed(p pass) bool {
	if p.round != g.round || !g.closed() {
		return false
	}
	g.round++
	g.until, g.probing, g.since, g.failure = time.Time{}, false, time.Time{}, nil
	g.backoff.Reset()
	return true
}

// fail closes the gate. A request that set out before it closed counts no second time, but the wait it asks for holds.
func (g *gate) fail(p pass, now time.Time, failure *Failure) {
	if p.round != g.round {
		if until := now.Add(failure.RetryAfter); g.closed() && g.round-p.round == 1 && until.After(g.until) {
			g.until = until
		}
		return
	}
	if g.round++; g.since.IsZero() {
		g.since, g.backoff = now, newBackoff(g.longest)
	}
	wait := g.backoff.NextBackOff()
	if asked := failure.RetryAfter; asked > 0 {
		// Others were told the same, so they come at the same moment: some later.
		wait = max(wait, asked+rand.N(asked/10+1))
	}
	g.until, g.probing, g.failure = now.Add(wait), false, failure
}

// retry has a closed gate let a probe through now. The round grows by more than one, so that no request that is on its way
// counts any more.
func (g *gate) retry(now time.Time) {
	g.round += 2
	if g.closed() {
		g.until, g.probing = now, false
		g.backoff.Reset()
	}
}
