package caddymodule

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/time/rate"
)

// faultLog writes one line when the state of something changes, instead of one per request that meets it. How often a
// fault was met is what the counters tell.
type faultLog struct {
	log atomic.Pointer[zap.Logger] // of the newest configuration

	mu         sync.Mutex
	subjects   *simplelru.LRU[string, subjectState] // guarded by mu, as all below
	lines      *rate.Limiter
	suppressed int         // lines not written because there were too many
	timer      *time.Timer // writes the faults that wait; nil if none does
	due        time.Time   // when it does so
	closed     bool
}

// subjectState is what was last logged of a subject, and when.
type subjectState struct {
	state   string
	logged  time.Time
	waiting *faultLine // a fault that came too soon after that; nil if it is over, or none did
}

// faultLine is what is to be logged of a change.
type faultLine struct {
	state, message string
	level          zapcore.Level
	fields         []zap.Field
}

// The bounds of the log: subjects remembered, and how soon after a subject was well its next fault is logged, so that a
// thing which works every other time does not fill it. A fault that comes sooner is logged once that time is over, if it
// goes on: some are told of only once.
const (
	maxSubjects  = 10_000
	calmInterval = time.Minute
)

func newFaultLog() *faultLog {
	subjects, _ := simplelru.NewLRU[string, subjectState](maxSubjects, nil) // fails only for a size below 1
	f := &faultLog{subjects: subjects, lines: rate.NewLimiter(1, 20)}
	f.log.Store(zap.NewNop())
	return f
}

func (f *faultLog) use(log *zap.Logger) { f.log.Store(log) }

// close has the faults that wait forgotten.
func (f *faultLog) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.timer != nil {
		f.timer.Stop()
	}
}

// fault notes that subject is in the given state of fault, and logs the change if it is one.
func (f *faultLog) fault(subject, state, message string, fields ...zap.Field) {
	f.change(subject, &faultLine{state, message, zapcore.WarnLevel, fields})
}

// well notes that subject is in order, and logs it if it was not.
func (f *faultLog) well(subject, message string, fields ...zap.Field) {
	f.change(subject, &faultLine{"", message, zapcore.InfoLevel, fields})
}

func (f *faultLog) change(subject string, line *faultLine) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	last, known := f.subjects.Get(subject)
	calm := last.logged.Add(calmInterval)
	switch {
	case known && last.state == "" && line.state != "" && now.Before(calm):
		last.waiting = line
		f.subjects.Add(subject, last)
		f.wakeLocked(calm)
	case last.state != line.state:
		f.logLocked(subject, line, now)
	case last.waiting != nil: // it was over before anyone was told
		last.waiting = nil
		f.subjects.Add(subject, last)
	}
}

// wakeLocked has the faults that wait looked at when the time has come, or sooner.
func (f *faultLog) wakeLocked(due time.Time) {
	if f.closed || f.timer != nil && !due.Before(f.due) {
		return
	}
	if f.timer != nil {
		f.timer.Stop()
	}
	f.due = due
	f.timer = time.AfterFunc(time.Until(due), f.catchUp)
}

// catchUp logs the faults that have waited long enough.
func (f *faultLog) catchUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.timer = nil
	now := time.Now()
	for _, subject := range f.subjects.Keys() {
		last, _ := f.subjects.Peek(subject)
		if last.waiting == nil {
			continue
		}
		if calm := last.logged.Add(calmInterval); now.Before(calm) {
			f.wakeLocked(calm)
		} else {
			f.logLocked(subject, last.waiting, now)
		}
	}
}

func (f *faultLog) logLocked(subject string, line *faultLine, now time.Time) {
	f.subjects.Add(subject, subjectState{state: line.state, logged: now})
	if !f.lines.AllowN(now, 1) {
		f.suppressed++
		return
	}
	fields := line.fields
	if f.suppressed > 0 {
		fields = append(fields, zap.Int(fieldSuppressed, f.suppressed))
		f.suppressed = 0
	}
	f.log.Load().Log(line.level, line.message, fields...)
}
