package cache

import (
	"fmt"
	"math"
	"strings"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// recallsLocked reports whether what is kept outside of a group is still to be looked for. That is done before anything is asked
// for the group: a refusal is believed only of a group of which nothing is kept, and so it never hides a copy.
func (a *Answers[V]) recallsLocked(g *group[V]) bool {
	return !g.recalled && a.options.Recall != nil
}

// beginRecallLocked looks for what outlasted the group's last time in memory. Whoever asks meanwhile waits for it.
func (a *Answers[V]) beginRecallLocked(g *group[V], w *inquiry[V]) *asking[V] {
	c := &asking[V]{began: a.now(), done: make(chan struct{})}
	g.recalled, g.meeting = true, c
	g.asks++
	a.running.Add(1)
	go a.recall(g, c, w.terms.Mode == PerDeviceAuto)
	return c
}

func (a *Answers[V]) recall(g *group[V], c *asking[V], auto bool) {
	defer a.running.Done()
	var kept Recalled
	_ = safely(func() error { // a panic is as if nothing was kept
		kept = a.options.Recall(g.key)
		return nil
	})
	var n news[V]
	g.mu.Lock()
	g.auto = auto
	if g.forgotten == math.MinInt64 { // else a hard purge came first, and its copies may not be removed yet
		if kept.Known {
			g.known, g.answered = true, a.now()
		}
		a.remarkLocked(g, kept.Mark, &n)
	}
	for _, d := range kept.Differing {
		since := min(a.clock(d.Since), c.began) // the clock may have been set back
		if g.wroteLocked(d.Device) < since {
			a.differLocked(g, d.Device, since, &n)
		}
	}
	g.asks--
	g.meeting = nil
	a.accountLocked(g)
	g.mu.Unlock()
	close(c.done)
	a.tell(g, &n)
}

// differLocked notes that a device is asked for by itself, and that what it was given before the given time is outdated.
func (a *Answers[V]) differLocked(g *group[V], device string, at int64, n *news[V]) {
	if g.differs == nil {
		g.differs, _ = simplelru.NewLRU(maxDiffers, func(device string, _ int64) { g.bytes -= differsCost(device) })
	}
	full := g.differs.Len() == maxDiffers && !g.differs.Contains(device)
	if !g.differs.Contains(device) {
		device = strings.Clone(device)
		g.bytes += differsCost(device)
	}
	g.differs.Add(device, at)
	if full && g.auto { // one that is forgotten now must not be given what others share
		a.markLocked(g, fmt.Sprintf("more than %d devices differ", maxDiffers), n)
	}
}

func differsCost(device string) int64 { return int64(len(device)) + 128 }
