package stats

import (
	"fmt"
	"sync"
)

// fault is a part of a spool that fails, the worst first.
type fault int

const (
	faultFile    fault = iota // events cannot be taken
	faultLetters              // dead letters cannot be written, or not be read at the start
	faultSize                 // the file cannot be made smaller
	faultCount
)

// faults tell SpoolOptions.Report of the worst fault there is, when it becomes another one. The committer finds some of them,
// those who settle batches find others.
type faults struct {
	report func(error)

	mu   sync.Mutex
	errs [faultCount]error // guarded by mu, as told
	told fault             // faultCount: all is well
}

func newFaults(report func(error)) *faults { return &faults{report: report, told: faultCount} }

// set notes that a part fails or, with nil, works.
func (f *faults) set(which fault, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs[which] = err
	worst := fault(0)
	for worst < faultCount && f.errs[worst] == nil {
		worst++
	}
	if worst == f.told {
		return
	}
	if f.told = worst; worst == faultCount {
		f.report(nil)
	} else {
		f.report(f.errs[worst])
	}
}

// stillTaking is an error of a part that no event waits for.
func stillTaking(err error) error { return fmt.Errorf("%w (%w)", err, ErrStillTaking) }
