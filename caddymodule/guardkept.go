package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/capgo-edge/capgo-edge/origin/state"
)

// pauseKeeper keeps the pauses of each app beyond a restart.
type pauseKeeper interface {
	// Pauses returns what SetPauses got last, from memory; nil if nothing is kept. It must not be changed.
	Pauses(app string) []byte
	// AllPauses returns what is kept by app. The documents must not be changed.
	AllPauses() map[string][]byte
	// SetPauses replaces it, and removes it if doc is empty. It returns nil once that is on disk.
	SetPauses(ctx context.Context, app string, doc []byte) error
}

// keptPause is a pause as it is on disk: in force, or over, but with some of its cooldown left. One that is over has no state,
// so that a release which knows nothing of cooldowns takes it for the pause of no rollout there is.
type keptPause struct {
	pause
	QuietUntil time.Time `json:"quiet_until,omitzero"` // zero while it is in force
}

// keeping is how far an app's pauses are on disk.
type keeping struct {
	mu      sync.Mutex                // held while they are written, so that the last state of them is what stays
	waiting bool                      // guarded by mu; saveAgain is about to be called
	unsaved atomic.Pointer[saveFault] // nil while what is on disk is what there is; set under mu
}

// saveFault is why pauses are not on disk.
type saveFault struct{ err error }

// saveRetry is how soon pauses that the disk refused are written again.
const saveRetry = 10 * time.Second

// notKept says why what there is of pauses is not on disk; empty if it is.
func (a *guardedApp) notKept() string {
	if fault := a.keeping.unsaved.Load(); fault != nil {
		return fault.err.Error()
	}
	return ""
}

// save writes the pauses to disk as they are now. The client whose request led to a pause need not wait for the end of it. What
// the disk refuses is written later.
func (a *guardedApp) save(ctx context.Context) {
	k := &a.keeping
	k.mu.Lock()
	defer k.mu.Unlock()
	var doc []byte
	if list := a.kept(); len(list) > 0 {
		doc, _ = json.Marshal(list) // of texts, numbers and times: it does not fail
	}
	err := a.keeper.SetPauses(context.WithoutCancel(ctx), a.key.Name, doc)
	if err == nil {
		k.unsaved.Store(nil)
		a.guard.faults.well(a.subject(), "pauses of rollouts are kept again", zap.String(fieldAppID, a.key.Name))
		return
	}
	k.unsaved.Store(&saveFault{err})
	a.guard.faults.fault(a.subject(), "failing", "pauses of rollouts cannot be kept; a restart would forget them; check space and permissions",
		zap.String(fieldAppID, a.key.Name), zap.Error(err))
	if !k.waiting && !errors.Is(err, state.ErrClosed) {
		k.waiting = true
		time.AfterFunc(saveRetry, func() { //nolint:contextcheck // by then the request may be long over
			k.mu.Lock()
			k.waiting = false
			k.mu.Unlock()
			a.saveAgain(context.Background())
		})
	}
}

// saveAgain writes the pauses to disk if that is not done.
func (a *guardedApp) saveAgain(ctx context.Context) {
	if a.keeping.unsaved.Load() != nil {
		a.save(ctx)
	}
}

// subject is that of the app's pauses in the log.
func (a *guardedApp) subject() string { return "pauses " + a.key.Scope + " " + a.key.Name }

// kept lists what is to be on disk, the oldest first.
func (a *guardedApp) kept() (list []keptPause) {
	now, clock := a.guard.now(), time.Now().UTC()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.paused.Load().sorted() {
		list = append(list, keptPause{pause: p})
	}
	for _, b := range a.ballots {
		if b.quiet > now {
			over := keptPause{b.ended, clock.Add(b.quiet - now).Round(time.Second)}
			over.State = 0
			list = append(list, over)
		}
	}
	slices.SortStableFunc(list, func(a, b keptPause) int { return a.At.Compare(b.At) })
	return list
}

// load takes over the pauses from before the restart, and what is left of cooldowns. Nobody sees a yet.
func (a *guardedApp) load(doc []byte) {
	var list []keptPause
	if len(doc) == 0 {
		return
	}
	if err := json.Unmarshal(doc, &list); err != nil {
		a.guard.faults.fault(a.subject(), "unreadable", "pauses of rollouts from before the restart are lost",
			zap.String(fieldAppID, a.key.Name), zap.Error(err))
		return
	}
	for _, p := range list {
		if p.QuietUntil.IsZero() {
			a.paused.Store(a.paused.Load().with(p.pause))
			a.log(zapcore.WarnLevel, p.pause, "rollout is still paused at this site, as before the restart")
		} else if left := time.Until(p.QuietUntil); left > 0 {
			a.coolLocked(p.pause, min(left, minutes(p.CooldownMinutes))) // the clock may have been set back
		}
	}
}
