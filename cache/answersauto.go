package cache

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// How Answers finds out, in the mode PerDeviceAuto, whether an upstream answers devices that ask the same differently:
//
//   - An offer is shared once three devices of the group were given it, whatever their questions. So a device that is pinned to a
//     version is not the one that all others follow, and N questions about one new offer cost about N requests, not 3 N.
//     Until then what was shared before is what the others are given if the upstream fails.
//   - Every request is made as the device that caused it, so each refresh is a sample. Some of the shared answers are sampled
//     before their time: one in eight (checkEvery), as long as the group's budget lasts (checkBurst, checkRefill).
//   - If a device gets something else than what is shared, either the answer has changed, or devices differ. This is
//     settled by asking again, see settle.
//
// A group whose devices differ is marked: its shared answers are dropped, and each device is asked for by itself. It is
// examined again after an hour, and each time it fails after twice the time, up to a day. As each
// device is asked for anyway then, the examination costs no requests and no wrong answers: it compares what they are given, and
// ends when examineFor of them in a row were given what others were.
const (
	// enoughDevices must have been given an offer before it is shared.
	enoughDevices = 3
	// A shared answer is checked with a chance of one in checkEvery while there is budget left. A rollout to a tenth of all
	// devices hides from 72 samples with a chance of 0.9^72 = 0.0005, and 72 samples are had from 1,000 answers of one question.
	checkEvery = 8
	checkBurst = 72
	// Other requests are samples too, so they take from the budget, down to this: a group with many questions needs fewer checks.
	checkFloor  = 36
	checkRefill = 10 * time.Second // one more check every so often
	maxChecks   = 3                // at once, for one question

	examineFirst, examineMost = time.Hour, 24 * time.Hour
	// examineFor answers must agree: one device in a hundred hides from so many with a chance of 0.99^1000 = 0.00004.
	examineFor = 1000

	maxOffers = 64 // whose devices are remembered, in a group
)

// differing is what tells whether the devices of a group differ.
type differing struct {
	auto      bool // the mode is PerDeviceAuto
	marked    bool
	examineAt int64 // when a marked group is examined again
	rounds    int   // how often it was found to differ
	agreed    int   // answers in a row that did not differ, in an examination

	offers     *simplelru.LRU[string, *evidence]
	left       float64 // checks
	refilledAt int64
}

// evidence are the devices that were given an offer, as far as they matter.
type evidence struct{ devices []string }

// lacksLocked is how many more devices must be given an offer before it is shared.
func (d *differing) lacksLocked(offer string) int {
	if offer == "" {
		return 0
	}
	if d.offers != nil {
		if e, ok := d.offers.Peek(offer); ok {
			return enoughDevices - len(e.devices)
		}
	}
	return enoughDevices
}

// gaveLocked notes that device was given an offer.
func (d *differing) gaveLocked(offer, device string) {
	if offer == "" {
		return
	}
	if d.offers == nil {
		d.offers, _ = simplelru.NewLRU[string, *evidence](maxOffers, nil) // fails only below 1
	}
	e, ok := d.offers.Get(offer)
	if !ok {
		e = &evidence{}
		d.offers.Add(offer, e)
	}
	e.devices = addDevice(e.devices, device)
}

func addDevice(devices []string, device string) []string {
	if len(devices) >= enoughDevices || slices.Contains(devices, device) {
		return devices
	}
	return append(devices, device)
}

// checksLocked is how many checks the group may make just now.
func (d *differing) checksLocked(now int64) float64 {
	return min(checkBurst, d.left+float64(now-d.refilledAt)/float64(checkRefill))
}

// takeLocked takes a request from the budget, and reports whether it did.
func (d *differing) takeLocked(now int64, check bool) bool {
	d.left, d.refilledAt = d.checksLocked(now), now
	if !check && d.left <= checkFloor {
		return false
	}
	d.left--
	return true
}

// mayCheckLocked reports whether asking as device would be a check of what s shares.
func (g *group[V]) mayCheckLocked(s *slot[V], device string, now int64) bool {
	return s.shared && !s.settling && len(s.asking) < maxChecks && now >= s.retryAt &&
		!slices.Contains(s.devices, device) && g.checksLocked(now) >= 1
}

// learnDeviceLocked takes in what a device was given: for itself, for all, or to compare it with what others were given.
func (a *Answers[V]) learnDeviceLocked(g *group[V], s *slot[V], c *asking[V], w *inquiry[V], n *news[V]) {
	mode, now := w.terms.Mode, a.now()
	g.auto = mode == PerDeviceAuto
	if g.individualLocked(mode, c.of.device) || s.id.device != "" || !c.reply.Shareable {
		a.storeLocked(g, g.placeLocked(slotID{w.key, c.of.device}), &c.reply, c.of.device, c.began, n)
	}
	switch {
	case mode == PerDeviceOn || g.differs != nil && g.differs.Contains(c.of.device):
		return
	case g.auto && g.marked && now < g.examineAt:
		return
	}
	base := g.placeLocked(slotID{key: w.key})
	same := base.has && c.reply.Shareable && a.options.Same(base.value, c.reply.Value)
	switch {
	case g.auto && base.has && !same && base.settling: // it will be found again if it matters
	case g.auto && base.has && !same && len(g.othersLocked(base, c.of.device)) > 0:
		n.compare = &comparison[V]{base: base, like: base.value, asked: c, others: g.othersLocked(base, c.of.device)}
	default:
		if g.marked && same && !slices.Contains(base.devices, c.of.device) {
			g.agreed++
		}
		a.adoptLocked(g, base, &c.reply, []string{c.of.device}, c.began, w, n)
		a.endExaminationLocked(g, n)
	}
}

// othersLocked are devices that were given what s holds, other than device, and with which it may be compared.
func (g *group[V]) othersLocked(s *slot[V], device string) []string {
	return slices.DeleteFunc(slices.Clone(s.devices), func(d string) bool {
		return d == device || g.differs != nil && g.differs.Contains(d)
	})
}

// adoptLocked makes an answer that was given to devices the one to be shared, as soon as it may be.
func (a *Answers[V]) adoptLocked(
	g *group[V], base *slot[V], reply *Reply[V], devices []string, began int64, w *inquiry[V], n *news[V],
) {
	if !reply.Shareable {
		base.alone = a.now() + int64(w.terms.Ages.young())
		if g.auto {
			g.clearLocked(base)
		}
		return
	}
	if base.has && !a.options.Same(base.value, reply.Value) {
		g.clearLocked(base)
	}
	for _, device := range devices {
		base.devices = addDevice(base.devices, device)
		if g.auto {
			g.gaveLocked(reply.Offer, device)
		}
	}
	base.shared = base.shared || !g.auto || g.lacksLocked(reply.Offer) == 0
	a.storeLocked(g, base, reply, "", began, n)
}

// comparison finds out what it means that a device was given something else than others that asked the same.
type comparison[V any] struct {
	base   *slot[V]
	like   V          // what base held
	asked  *asking[V] // what brought the difference to light
	others []string   // devices that were given what base holds
	need   int        // how many of them must be given the new answer too
	call   *asking[V] // stands in base.asking for the comparison, so that others wait for it
}

// beginLocked keeps other requests for the slot away while the comparison goes on.
func (x *comparison[V]) beginLocked(g *group[V]) {
	x.need = max(1, min(len(x.others), g.lacksLocked(x.asked.reply.Offer)-1))
	x.call = &asking[V]{epoch: g.epoch, began: x.asked.began, done: make(chan struct{})}
	x.base.asking = append(x.base.asking, x.call)
	x.base.settling = true
	g.asks++
}

// finding is what a comparison found out.
type finding[V any] struct {
	differ   bool
	volatile bool       // they differ each time, even those to one device
	replies  []given[V] // the newest; of different devices, and all the same unless differ
	err      error      // nothing could be found out
}

type given[V any] struct {
	device string
	reply  Reply[V]
}

// settle tells a change from a difference. A release may come between any two requests, so two answers that differ prove
// nothing. The schedule: others were given A once, then a device d was given B. Now
//
//	another device o is asked as: it is given C
//	  C = B: o was given A before, so the answer has changed for o as for d. No difference.
//	  C ≠ B: d is asked as once more: it is given D
//	    D = C: the answer has changed after B, or back. No difference.
//	    D ≠ C: d was given something else than o, before o was asked and after it. One release cannot do that.
//	           But if D ≠ B either, and all have the same offer, it is not the devices: answers differ each time.
//
// While the offer B lacks devices more others are asked as, so that the release does not wait for clients to come.
func (a *Answers[V]) settle(x *comparison[V], w *inquiry[V]) finding[V] {
	first := given[V]{x.asked.of.device, x.asked.reply}
	f := finding[V]{replies: []given[V]{first}}
	for _, device := range x.others[:x.need] {
		other, err := a.askAgain(w, device, x.like)
		if err != nil {
			return finding[V]{err: err}
		}
		if a.same(&other.reply, &first.reply) {
			f.replies = append(f.replies, other)
			continue
		}
		var none V
		again, err := a.askAgain(w, first.device, none)
		if err != nil {
			return finding[V]{err: err}
		}
		offer := again.reply.Offer
		return finding[V]{
			differ:   !a.same(&other.reply, &again.reply),
			volatile: !a.same(&first.reply, &again.reply) && first.reply.Offer == offer && other.reply.Offer == offer,
			replies:  []given[V]{other, again},
		}
	}
	return f
}

func (a *Answers[V]) askAgain(w *inquiry[V], device string, like V) (given[V], error) {
	reply, err := a.ask(w, device, like)
	if err == nil && reply.Verdict != Keep {
		err = fmt.Errorf("comparing devices: %w", ErrRefused)
	}
	return given[V]{device, reply}, err
}

func (a *Answers[V]) same(r, s *Reply[V]) bool {
	if !r.Shareable || !s.Shareable { // what names a device can be compared with nothing
		return r.Shareable == s.Shareable
	}
	return a.options.Same(r.Value, s.Value)
}

// compare settles x, and draws the conclusion.
func (a *Answers[V]) compare(g *group[V], x *comparison[V], w *inquiry[V], n *news[V]) {
	f := a.settle(x, w)
	g.mu.Lock()
	defer func() {
		x.base.end(x.call)
		x.base.settling = false
		g.asks--
		a.accountLocked(g)
		g.mu.Unlock()
		close(x.call.done)
	}()
	now := a.now()
	current, _ := g.slots.Peek(x.base.id)
	switch {
	case a.ctx.Err() != nil || x.call.epoch != g.epoch: // closing, or purged
	case f.err != nil:
		x.base.delay(&w.terms.Ages, now, f.err)
	case f.differ && g.excusedLocked(f.replies): // one of them has just become a device that differs
	case f.differ:
		a.markLocked(g, f.difference(), n)
		for i := range f.replies {
			own := g.placeLocked(slotID{w.key, f.replies[i].device})
			a.storeLocked(g, own, &f.replies[i].reply, f.replies[i].device, x.call.began, n)
		}
	case current != x.base || g.marked && now < g.examineAt: // marked or evicted meanwhile
	default:
		var devices []string
		for i := range f.replies {
			devices = append(devices, f.replies[i].device)
		}
		a.adoptLocked(g, x.base, &f.replies[len(f.replies)-1].reply, devices, x.call.began, w, n)
	}
}

// excusedLocked reports whether one of the devices is known to differ, so that nothing follows for others.
func (g *group[V]) excusedLocked(replies []given[V]) bool {
	return g.differs != nil && slices.ContainsFunc(replies, func(r given[V]) bool { return g.differs.Contains(r.device) })
}

// difference says in what the answers differ.
func (f *finding[V]) difference() string {
	one, other := described(&f.replies[0].reply), described(&f.replies[1].reply)
	switch {
	case f.volatile:
		return fmt.Sprintf("answers to one and the same question differ each time, even those to one device, though all have %s: "+
			"something in them is made anew for each", one)
	case one == other:
		return fmt.Sprintf("devices that asked the same were given answers that differ, though both have %s", one)
	}
	return fmt.Sprintf("devices that asked the same were given %s and %s", one, other)
}

func described[V any](r *Reply[V]) string {
	if r.Offer == "" {
		return "no offer"
	}
	return fmt.Sprintf("the offer %q", r.Offer)
}

// markLocked notes that devices of the group differ.
func (a *Answers[V]) markLocked(g *group[V], detail string, n *news[V]) {
	now := a.now()
	if g.marked && now < g.examineAt {
		return // what was found out before it was marked
	}
	if !g.marked {
		a.counts.marks.Add(1)
		n.report(Marked, detail)
		n.drop = true
	}
	g.marked, n.mark = true, true
	g.examineAt = now + int64(jitter(min(examineFirst<<min(g.rounds, 10), examineMost)))
	g.rounds++
	g.agreed, g.offers, g.forgotten = 0, nil, now
	for _, id := range g.slots.Keys() {
		if id.device == "" {
			g.slots.Remove(id)
		}
	}
}

// remarkLocked takes up a mark from before.
func (a *Answers[V]) remarkLocked(g *group[V], m Mark, n *news[V]) {
	if m.Rounds <= 0 || g.marked {
		return
	}
	g.marked, g.rounds = true, m.Rounds
	g.examineAt = min(a.clock(m.ExamineAt), a.now()+int64(examineMost)) // the clock may have been set back
	if g.auto {
		n.report(StillMarked, "as was found out before")
	}
}

// saveMark has it kept whether the group is marked, once more if that has changed meanwhile.
func (a *Answers[V]) saveMark(g *group[V]) {
	if a.options.SaveMark == nil {
		return
	}
	for saved := -1; ; {
		var m Mark
		g.mu.Lock()
		if g.marked {
			m = Mark{g.rounds, time.Now().Add(time.Duration(g.examineAt - a.now()))}
		}
		g.mu.Unlock()
		if m.Rounds == saved {
			return
		}
		a.options.SaveMark(g.key, m)
		saved = m.Rounds
	}
}

// endExaminationLocked has answers shared again once enough of them have agreed.
func (a *Answers[V]) endExaminationLocked(g *group[V], n *news[V]) {
	if !g.marked || g.agreed < examineFor {
		return
	}
	a.counts.unmarks.Add(1)
	n.mark = true
	n.report(Unmarked, fmt.Sprintf("%d answers to devices agreed", g.agreed))
	g.marked, g.agreed, g.rounds, g.left = false, 0, 0, checkBurst
}

// Differs says that a device may be answered differently from now on: it is asked for by itself, and what it was given
// before is outdated.
func (a *Answers[V]) Differs(key Key, device string) {
	var n news[V]
	g := a.enter(key)
	a.differLocked(g, device, a.now(), &n)
	a.accountLocked(g)
	g.mu.Unlock()
	if a.options.SaveDiffers != nil {
		a.options.SaveDiffers(g.key, strings.Clone(device))
	}
	a.tell(g, &n)
}

// Marked reports whether the devices of a group are asked for one by one because they were found to differ.
func (a *Answers[V]) Marked(key Key) bool {
	g := a.find(key)
	if g == nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.marked
}
