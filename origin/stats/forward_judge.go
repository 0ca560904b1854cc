package stats

import (
	"errors"
	"fmt"
	"time"
)

const (
	// suspectAfter is how often a batch has the collector fail, with others taken in between, until it is taken for the cause.
	suspectAfter = 3
	// brokenAfter is how often a batch of several is answered so that nobody knows what became of which event, until it is split,
	// whether others are taken or not: with one event the answer may be clear. It takes about two minutes, in which whoever cuts
	// answers off may cease to, as the batch may have been taken, and its parts have other keys.
	brokenAfter = 8
	// maxRefusals is how many events are refused in a row, each with its request as a whole, until each further one closes the
	// gate. So a wrong address, or a collector that refuses everything for an hour, costs some events and not the whole
	// spool. What a collector says of an event, under a status 2xx, is none of it: made-up events would close the gate.
	maxRefusals = 100
	// minShrunk bounds from below, in bytes, what a collector's 413 teaches; shrunkFor is how long that is remembered.
	minShrunk = 4 << 10
	shrunkFor = 24 * time.Hour
)

// suspicion counts how often the batch that begins with an event had the collector fail.
type suspicion struct {
	first    uint64 // the event
	failures int
	broken   int    // of them all, also without others taken, those by a broken answer
	accepted uint64 // batches that had been taken at the last failure
}

// step is what is done with a batch after its request.
type step uint8

const (
	stepLeave  step = iota // it stays as it is, and is sent again
	stepSettle             // each event has its verdict
	stepSplit
)

// asFailure reads the error of a Collector.
func asFailure(b *Batch, verdicts []Verdict, err error) ([]Verdict, *Failure) {
	if verdicts != nil && len(verdicts) != len(b.Events) {
		err = fmt.Errorf("the collector gave %d verdicts for %d events; this is a bug in it", len(verdicts), len(b.Events))
		return nil, &Failure{Code: "bug", Err: err}
	}
	if err == nil {
		if verdicts == nil {
			return nil, &Failure{Code: "bug", Err: errors.New("the collector gave no verdicts; this is a bug in it")}
		}
		return verdicts, nil
	}
	if failure, ok := errors.AsType[*Failure](err); ok {
		f := *failure
		if f.RetryAfter = min(f.RetryAfter, maxRetryAfter); f.Code == "" {
			f.Code = "failed"
		}
		if f.Err == nil {
			f.Err = errors.New("the collector failed with code " + f.Code)
		}
		return verdicts, &f
	}
	return verdicts, &Failure{Suspect: true, Code: "no_answer", Err: err}
}

// judgeLocked draws the consequences of an answer: for the gates, the devices, the counters, and the batch.
func (f *Forwarder) judgeLocked(l *laneTurn, b *Batch, verdicts []Verdict, failure *Failure, now time.Time) (step, []Verdict) {
	n := len(b.Events)
	if failure != nil && failure.Scope == ScopeContent {
		if n > 1 {
			f.refusedLocked(l, b, failure, now)
			return stepSplit, nil
		}
		verdicts, failure = []Verdict{failure.verdict()}, nil
	}
	alone := false
	if failure != nil && f.suspectsLocked(l, b, verdicts, failure) {
		if f.counts.retry++; n > 1 {
			return stepSplit, nil
		}
		verdicts = []Verdict{{Fate: Keep, Code: failure.Code, Message: failure.Message, unanswered: verdicts == nil}}
		alone = true
	} else {
		f.gatesLocked(l, verdicts, failure, now)
	}
	if verdicts == nil {
		f.counts.retried += uint64(n)
		return stepLeave, nil
	}
	f.idle.note(verdicts, failure, now)
	if count(verdicts, Delivered) > 0 {
		f.accepted++
	}
	f.turns.hold(l, b, verdicts, alone, f.accepted, now)
	f.tallyLocked(l, verdicts)
	return stepSettle, verdicts
}

// gatesLocked opens or closes the gates by what a request met.
func (f *Forwarder) gatesLocked(l *laneTurn, verdicts []Verdict, failure *Failure, now time.Time) {
	t := &f.turns
	switch {
	case failure == nil:
		if refusal := f.refusesAll(verdicts); refusal != nil {
			f.counts.refused++
			t.fail(&t.collector, l.collectorPass, refusal, now)
			break
		}
		switch {
		case len(verdicts) == 1 && verdicts[0].Fate == Dead:
			f.counts.refused++
		case count(verdicts, Keep) == len(verdicts):
			f.counts.retry++
		default:
			f.counts.ok++
		}
		t.succeed(&t.collector, l.collectorPass)
		t.succeed(&l.app.gate, l.appPass)
	case failure.Scope == ScopeApp:
		f.counts.retry++
		t.succeed(&t.collector, l.collectorPass)
		t.fail(&l.app.gate, l.appPass, failure, now)
	default:
		f.counts.retry++
		t.fail(&t.collector, l.collectorPass, failure, now)
	}
	t.queue(l.app, now)
}

// refusedLocked notes a batch of several that is refused for what is in it.
func (f *Forwarder) refusedLocked(l *laneTurn, b *Batch, failure *Failure, now time.Time) {
	f.counts.split++
	if failure.TooLarge {
		size := 0
		for i := range b.Events {
			size += len(b.Events[i].Data)
		}
		f.shrunk, f.shrunkUntil = max(size/2, minShrunk), now.Add(shrunkFor)
	}
	t := &f.turns
	if failure.Whole && f.refusals >= maxRefusals {
		t.fail(&t.collector, l.collectorPass, tooManyRefusals(failure.Code), now)
	} else {
		t.succeed(&t.collector, l.collectorPass) // not the app's gate: nothing was said of the app, which may be unknown
	}
	t.queue(l.app, now)
}

// refusesAll is a failure when these verdicts are refusals, and too many in a row.
func (f *Forwarder) refusesAll(verdicts []Verdict) *Failure {
	whole, code := wholeRefusals(verdicts)
	if whole == 0 || f.refusals+whole <= maxRefusals || whole+count(verdicts, Keep) < len(verdicts) {
		return nil // with others among them tallyLocked begins to count anew
	}
	return tooManyRefusals(code)
}

// wholeRefusals counts the events that were refused with their request, and gives the code of the last.
func wholeRefusals(verdicts []Verdict) (n int, code string) {
	for i := range verdicts {
		if v := &verdicts[i]; v.Whole && v.Fate == Dead {
			n, code = n+1, v.Code
		}
	}
	return n, code
}

func tooManyRefusals(code string) *Failure {
	return &Failure{Code: "refuses_all", Err: fmt.Errorf("the collector has refused more than %d events in a row, each with its "+
		"request as a whole (last code %s); delivery goes on slowly. See the dead letters for what it says, correct it or its "+
		"address, then replay them",
		maxRefusals, code)}
}

// suspectsLocked reports whether a batch must be taken for the cause of a failure.
func (f *Forwarder) suspectsLocked(l *laneTurn, b *Batch, verdicts []Verdict, failure *Failure) bool {
	if !failure.Suspect || count(verdicts, Keep) < len(verdicts) {
		return false
	}
	accepted, probe := f.accepted, l.collectorPass.probe
	if h := l.held[b.Events[0].Device]; h != nil && h.alone && len(b.Events) == 1 {
		return f.accepted > h.accepted && !probe
	}
	s := &l.suspicion
	if s.first != b.Events[0].Seq {
		*s = suspicion{first: b.Events[0].Seq, accepted: accepted}
	}
	if failure.Code == codeBroken {
		s.broken++
	}
	if s.failures == 0 {
		s.failures = 1
		return false
	}
	if s.broken >= brokenAfter && failure.Code == codeBroken && len(b.Events) > 1 {
		return true
	}
	if failure.Scope == ScopeApp { // it was answered, and so are its parts: a small app may have nobody else to be measured by
		s.failures++
		return len(b.Events) > 1 && s.failures >= suspectAfter
	}
	others := accepted > s.accepted
	if s.accepted = accepted; others {
		s.failures++
	}
	return others && s.failures >= suspectAfter && !probe // a probe that fails says more about the collector
}

// tallyLocked counts what the verdicts say.
func (f *Forwarder) tallyLocked(l *laneTurn, verdicts []Verdict) {
	delivered, dead := count(verdicts, Delivered), count(verdicts, Dead)
	f.counts.batches++
	f.counts.delivered += uint64(delivered)
	f.counts.dead += uint64(dead)
	f.counts.retried += uint64(len(verdicts) - delivered - dead)
	if whole, _ := wholeRefusals(verdicts); delivered+dead > whole {
		f.refusals = 0
	} else {
		f.refusals += whole
	}
	if delivered+dead > 0 {
		l.suspicion = suspicion{}
	}
}

func count(verdicts []Verdict, fate Fate) int {
	n := 0
	for i := range verdicts {
		if verdicts[i].Fate == fate {
			n++
		}
	}
	return n
}
