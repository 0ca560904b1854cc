package cache

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// outageEvery is the least time between two reports that an outage of a group began: one question that the upstream cannot
// stand must not fill a log.
const outageEvery = int64(time.Minute)

// news is what is to be told once no lock is held.
type news[V any] struct {
	reports []report
	saves   []saving[V]
	drop    bool
	mark    bool // whether the group is marked has changed
	compare *comparison[V]
}

type report struct {
	event  Event
	detail string
}

type saving[V any] struct {
	id   slotID
	kept Kept[V]
}

func (n *news[V]) report(e Event, detail string) { n.reports = append(n.reports, report{e, detail}) }

func (a *Answers[V]) tell(g *group[V], n *news[V]) {
	if n.drop && a.options.Drop != nil {
		a.options.Drop(g.key)
	}
	if n.mark {
		a.saveMark(g)
	}
	for i := range n.saves {
		a.options.Save(AnswerKey{g.key, n.saves[i].id.key, n.saves[i].id.device}, n.saves[i].kept)
	}
	if a.options.Report != nil {
		for _, r := range n.reports {
			a.options.Report(g.key, r.event, r.detail)
		}
	}
}

// beginLocked starts a request for the answer to q, which is what w inquires, or what must come before it.
func (a *Answers[V]) beginLocked(g *group[V], q *Question[V], w *inquiry[V]) *asking[V] {
	if a.recallsLocked(g) {
		return a.beginRecallLocked(g, w)
	}
	now := a.now()
	id, _ := g.slotLocked(w.terms, q, now)
	s := g.placeLocked(id)
	c := &asking[V]{of: slotID{w.key, w.device}, epoch: g.epoch, began: now, done: make(chan struct{})}
	c.restore = a.options.Restore != nil && !s.has && !s.sought
	c.meets = !g.knownLocked(w.terms, now)
	s.sought = true
	s.asking = append(s.asking, c)
	if c.meets {
		g.meeting = c
	}
	if id.device == "" {
		check := s.has && s.validated >= g.notBefore && time.Duration(now-s.validated) < w.terms.Ages.Fresh && s.shared
		if g.takeLocked(now, check) && check {
			a.counts.checks.Add(1)
		}
	}
	g.asks++
	a.running.Add(1)
	go a.run(g, s, c, w)
	return c
}

// run makes a request, learns from it, and lets go those who wait for it.
func (a *Answers[V]) run(g *group[V], s *slot[V], c *asking[V], w *inquiry[V]) {
	defer a.running.Done()
	var n news[V]
	restored := c.restore && a.restore(g, s, c, w)
	if !restored {
		c.reply, c.err = a.request(c, w)
	}
	g.mu.Lock()
	if !restored {
		a.learnLocked(g, s, c, w, &n)
	}
	s.end(c)
	g.asks--
	if g.meeting == c {
		g.meeting = nil
	}
	if n.compare != nil {
		n.compare.beginLocked(g)
	}
	a.accountLocked(g)
	g.mu.Unlock()
	close(c.done)
	if n.compare != nil {
		a.compare(g, n.compare, w, &n)
	}
	a.tell(g, &n)
	if errors.Is(c.err, ErrBusy) {
		a.forgetStranger(g)
	}
	if a.bytes.Load() > a.max.Load() {
		a.sweep()
	}
}

// end removes a request from those that run for s.
func (s *slot[V]) end(c *asking[V]) {
	for i := range s.asking {
		if s.asking[i] == c {
			s.asking = append(s.asking[:i:i], s.asking[i+1:]...)
			return
		}
	}
}

func (a *Answers[V]) request(c *asking[V], w *inquiry[V]) (Reply[V], error) {
	if c.meets && !w.terms.Admit() {
		a.counts.busy.Add(1)
		return Reply[V]{}, ErrBusy
	}
	var none V
	reply, err := a.ask(w, c.of.device, none)
	c.sent = !errors.Is(err, ErrNotAsked)
	if c.meets && w.terms.Dismiss != nil && !countsForStranger(reply.Verdict, err) {
		w.terms.Dismiss(err == nil)
	}
	return reply, err
}

// countsForStranger reports whether a request that ended so is one that Terms.Admit was asked for. PassAlone is: the upstream may
// have answered for another group than the one that was asked for.
func countsForStranger(v Verdict, err error) bool {
	if err != nil {
		return errors.Is(err, ErrAnswered)
	}
	return v != Keep && v != Pass
}

// ask asks the upstream as the given device.
func (a *Answers[V]) ask(w *inquiry[V], device string, like V) (reply Reply[V], err error) {
	ctx, cancel := context.WithTimeout(a.ctx, loadTimeout)
	defer cancel()
	err = safely(func() (err error) {
		reply, err = w.asker(ctx, device, like)
		return err
	})
	switch {
	case errors.Is(err, ErrNotAsked):
		a.counts.notAsked.Add(1)
		return reply, err
	case err != nil:
		a.counts.failures.Add(1)
	case reply.Verdict == Refused:
		a.counts.refusals.Add(1)
	}
	a.counts.asks.Add(1)
	return reply, err
}

// restore fills s with its last good copy, if there is one that can be used.
func (a *Answers[V]) restore(g *group[V], s *slot[V], c *asking[V], w *inquiry[V]) bool {
	var kept Kept[V]
	var ok bool
	err := safely(func() error {
		kept, ok = a.options.Restore(AnswerKey{g.key, s.id.key, s.id.device})
		return nil
	})
	age := time.Since(kept.Validated)
	if err != nil || !ok || age >= w.terms.Ages.Stale {
		return false
	}
	if age < 0 { // the clock was set back, or somebody copied the directory
		age = w.terms.Ages.Fresh
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.has || c.epoch != g.epoch || s.id.device == "" && g.individualLocked(w.terms.Mode, c.of.device) {
		return false
	}
	at := a.now() - int64(age)
	if at < g.forgotten || at < g.wroteLocked(s.id.device) {
		return false
	}
	reply := Reply[V]{Value: kept.Value, Offer: kept.Offer}
	s.shared = s.id.device == ""
	g.putLocked(s, &reply, a.options.Size(kept.Value), at, a.clock(kept.Until))
	s.saved = at
	if !g.known {
		g.known, g.answered = true, at
	}
	return true
}

// learnLocked takes in how a request ended.
func (a *Answers[V]) learnLocked(g *group[V], s *slot[V], c *asking[V], w *inquiry[V], n *news[V]) {
	now := a.now()
	c.state = Loaded
	if c.reply.Verdict == Refused {
		c.state = Negative
	}
	switch {
	case a.ctx.Err() != nil: // closing: this says nothing about the upstream
	case errors.Is(c.err, ErrBusy):
	case c.err != nil:
		a.failedLocked(g, s, w, c.err, n)
	case c.reply.Verdict == Refused && g.knownLocked(w.terms, now):
		c.err = ErrRefused
		a.failedLocked(g, s, w, c.err, n)
	case c.epoch != g.epoch: // it was purged meanwhile
	case c.reply.Verdict == Refused:
		g.refuseLocked(c, a.options.Size(c.reply.Value), now+int64(max(w.terms.Ages.Negative, forcedEvery)))
	default:
		a.answeredLocked(g, s, c, w, n)
	}
	c.replied = c.err == nil
}

func (a *Answers[V]) failedLocked(g *group[V], s *slot[V], w *inquiry[V], err error, n *news[V]) {
	now := a.now()
	s.delay(&w.terms.Ages, now, err)
	if errors.Is(err, ErrNotAsked) || !g.known || g.outage || now-g.outageAt < outageEvery {
		return
	}
	g.outage, g.outageAt = true, now
	n.report(OutageBegan, err.Error())
}

// refuseLocked remembers the refusal of a group of which nothing is known. One that names a device is for that device only.
func (g *group[V]) refuseLocked(c *asking[V], size, until int64) {
	if !c.reply.Shareable {
		return
	}
	g.forgetRefusalLocked()
	g.refusal, g.refusedUntil, g.refusalSize = c.reply.Value, until, size
	g.bytes += size
}

func (g *group[V]) forgetRefusalLocked() {
	var none V
	g.bytes -= g.refusalSize
	g.refusal, g.refusedUntil, g.refusalSize = none, 0, 0
}

// answeredLocked takes in an answer.
func (a *Answers[V]) answeredLocked(g *group[V], s *slot[V], c *asking[V], w *inquiry[V], n *news[V]) {
	now := a.now()
	if c.reply.Verdict != PassUnknown {
		g.meetLocked(now, n)
	}
	if c.reply.Verdict == PassAlone {
		return
	}
	s.failures, s.err, s.retryAt = 0, nil, 0
	until := a.clock(c.reply.Until)
	if c.reply.Verdict == Keep && (until == 0 || until > now) {
		a.learnDeviceLocked(g, s, c, w, n)
		return
	}
	if s.has {
		s.retryAt = now + int64(max(w.terms.Ages.Fresh, forcedEvery))
	}
	if s.id.device == "" {
		s.alone = now + int64(max(w.terms.Ages.Negative, forcedEvery))
	}
}

// meetLocked notes that the upstream has answered for the group.
func (g *group[V]) meetLocked(now int64, n *news[V]) {
	g.known, g.answered = true, now
	g.forgetRefusalLocked()
	if g.outage {
		g.outage = false
		n.report(OutageEnded, fmt.Sprintf("after %s", time.Duration(now-g.outageAt).Round(time.Second)))
	}
}

// storeLocked puts an answer that the upstream gave to device in s, and has a copy kept of it now and then.
func (a *Answers[V]) storeLocked(g *group[V], s *slot[V], reply *Reply[V], device string, began int64, n *news[V]) {
	now := a.now()
	if s.id.device != "" && began < g.wroteLocked(s.id.device) {
		return
	}
	validated := now
	if began < max(g.notBefore, g.wroteLocked(device)) { // it may be of before the purge, or of before the device's write
		validated = began
	}
	if !s.has || s.offer != reply.Offer || !a.options.Same(s.value, reply.Value) {
		s.saved = neverSaved
	}
	g.putLocked(s, reply, a.options.Size(reply.Value), validated, a.clock(reply.Until))
	s.failures, s.err, s.retryAt = 0, nil, 0
	if a.options.Save == nil || s.id.device == "" && (!s.shared || g.auto && g.marked) {
		return
	}
	if s.saved == neverSaved || now-s.saved >= saveEvery {
		s.saved = now
		n.saves = append(n.saves, saving[V]{s.id, Kept[V]{reply.Value, reply.Offer, time.Now(), reply.Until}})
	}
}
