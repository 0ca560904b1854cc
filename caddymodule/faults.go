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
	subjects   *simplelru.LRU[string, subjectState] // guarded by mu
	lines      *rate.Limiter
	suppressed int // guarded by mu; lines not written because there were too many
}

type subjectState struct {
	state  string
	logged time.Time
}

// The bounds of the log: subjects remembered, and the least time between two lines about one of them, so that a thing
// which works every other time does not fill it.
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

// fault notes that subject is in the given state of fault, and logs the change if it is one.
func (f *faultLog) fault(subject, state, message string, fields ...zap.Field) {
	f.change(subject, state, zapcore.WarnLevel, message, fields)
}

// well notes that subject is in order, and logs it if it was not.
func (f *faultLog) well(subject, message string, fields ...zap.Field) {
	f.change(subject, "", zapcore.InfoLevel, message, fields)
}

func (f *faultLog) change(subject, state string, level zapcore.Level, message string, fields []zap.Field) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	last, known := f.subjects.Get(subject)
	if last.state == state || known && state != "" && last.state == "" && now.Sub(last.logged) < calmInterval {
		return
	}
	f.subjects.Add(subject, subjectState{state, now})
	if !f.lines.AllowN(now, 1) {
		f.suppressed++
		return
	}
	if f.suppressed > 0 {
		fields = append(fields, zap.Int(fieldSuppressed, f.suppressed))
		f.suppressed = 0
	}
	f.log.Load().Log(level, message, fields...)
}
