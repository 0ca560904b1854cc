package upstream

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

// How a server is spared while it recovers. Behind an outage every answer that an edge has is too old, and all of them
// would be asked for again at once.
const (
	recovery    = time.Minute
	memory      = time.Minute      // what counts as "before": older requests count ever less
	leastMemory = 10 * time.Second // one request right after the start is no rate
	headroom    = 1.25             // of the rate before
	leastRate   = 1                // requests a second
)

// pace measures how often a server is asked, and holds it to that after an outage. It is guarded by the breaker's mutex.
type pace struct {
	weight      float64 // of all requests; each counts for less as time goes by
	first, last time.Time
	until       time.Time // when it has recovered
	limit       *rate.Limiter
}

// allow counts a request; false turns it away.
func (p *pace) allow(now time.Time, canWait bool) bool {
	if now.Before(p.until) && !p.limit.AllowN(now, 1) && canWait {
		return false
	}
	if p.first.IsZero() {
		p.first = now
	}
	p.weight = p.weightAt(now) + 1
	p.last = now
	return true
}

func (p *pace) weightAt(now time.Time) float64 {
	return p.weight * math.Exp(-float64(now.Sub(p.last))/float64(memory))
}

// rate is how many requests there were in a second, up to then.
func (p *pace) rate(then time.Time) float64 {
	known := max(then.Sub(p.first), leastMemory)
	window := memory.Seconds() * (1 - math.Exp(-float64(known)/float64(memory)))
	return p.weightAt(then) / window
}

// recover begins the time after an outage. The outage counts for nothing, as if the clock had stood still.
func (p *pace) recover(since, now time.Time) {
	limit := max(p.rate(since)*headroom, leastRate)
	p.limit = rate.NewLimiter(rate.Limit(limit), int(math.Ceil(limit/4)))
	p.until = now.Add(recovery)
	outage := now.Sub(since)
	p.first, p.last = p.first.Add(outage), p.last.Add(outage)
}
