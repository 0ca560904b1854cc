package stats

import (
	"fmt"
	"time"
)

// maxIdle is how many batches in a row bring nothing but events to keep, until that is reported.
const maxIdle = 20

// idleness is that of a collector which answers, and can process nothing: its database is down, as a rule. Its gate stays open, as
// each event waits by itself; but somebody must be told.
type idleness struct {
	batches int       // in a row that brought events to keep and none delivered
	since   time.Time // when the first of them ended
	code    string    // of the last
}

// note takes a batch into account. One that is refused says nothing either way: collectors look at events before they ask
// their database.
func (i *idleness) note(verdicts []Verdict, failure *Failure, now time.Time) {
	code := keptFor(verdicts, failure)
	switch {
	case count(verdicts, Delivered) > 0:
		*i = idleness{}
	case code != "":
		if i.batches == 0 {
			i.since = now
		}
		i.batches++
		i.code = code
	}
}

// keptFor is the code of an event of an answered batch that could not be processed for now; empty if there is none.
func keptFor(verdicts []Verdict, failure *Failure) string {
	if failure != nil {
		if failure.Scope == ScopeApp && failure.Suspect { // one code for all
			return failure.Code
		}
		return ""
	}
	for i := range verdicts {
		if v := &verdicts[i]; v.Fate == Keep && v.Code != "" {
			return v.Code
		}
	}
	return ""
}

// failure is what there is to report; nil: nothing.
func (i *idleness) failure() *Failure {
	if i.batches < maxIdle {
		return nil
	}
	return &Failure{Code: "processes_nothing", Err: fmt.Errorf("the collector answers, and has processed no event of the last %d "+
		"batches (last code %s); they are kept and tried again. Ask its operator what it fails on, its database perhaps",
		i.batches, i.code)}
}

// failureLocked says why nothing is delivered, and since when; nil: it is, as far as anyone knows.
func (f *Forwarder) failureLocked() (*Failure, time.Time) {
	if g := &f.turns.collector; g.failure != nil {
		return g.failure, g.since
	}
	if len(f.turns.lanes) == 0 { // nothing waits
		return nil, time.Time{}
	}
	return f.idle.failure(), f.idle.since
}
