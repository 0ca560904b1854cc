package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// fullDisk keeps pauses as the state does, but refuses while it is full.
type fullDisk struct {
	pauseKeeper
	full *atomic.Bool
}

var errNoSpace = errors.New("no space left on device")

func (d fullDisk) SetPauses(ctx context.Context, app string, doc []byte) error {
	if d.full.Load() {
		return errNoSpace
	}
	return d.pauseKeeper.SetPauses(ctx, app, doc)
}

// TestGuardSavesAgain: a pause, and an operator's resume, that the disk refused are written once it works, and it is told that
// they are not kept as long as that is so.
func TestGuardSavesAgain(t *testing.T) {
	works := map[string]func(w *watch, m *resolver.Manifest){
		"soon":                   func(*watch, *resolver.Manifest) { time.Sleep(saveRetry); synctest.Wait() },
		"with the next manifest": func(w *watch, m *resolver.Manifest) { w.publish(m) },
	}
	for when, wait := range works {
		for _, resumed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, resumed %v", when, resumed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWatch(t)
					var full atomic.Bool
					full.Store(!resumed)
					keeper := w.guard.keeper
					w.guard.keeper = func(scope string) pauseKeeper { return fullDisk{keeper(scope), &full} }
					m := w.manifest(nil)
					w.publish(m)
					w.fail(0, 10)
					told := w.guard.pauses()
					if resumed {
						full.Store(true)
						told = w.guard.resume(t.Context(), watchedApp, "")
					}
					if len(told) != 1 || told[0].NotKept != errNoSpace.Error() {
						t.Errorf("told %+v", told)
					}
					time.Sleep(10 * saveRetry)
					w.publish(m)
					full.Store(false)
					wait(w, m)
					for _, p := range w.guard.pauses() {
						if p.NotKept != "" {
							t.Errorf("kept by now, and told %+v", p)
						}
					}
					w.close()
					w.open()
					w.publish(m)
					w.expect("after a restart", !resumed, 0)
					w.close()
				})
			})
		}
	}
}

// TestGuardCooldownAcrossRestarts: what is left of a cooldown is left behind a restart, and no more.
func TestGuardCooldownAcrossRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		m := w.manifest(nil)
		w.publish(m)
		w.fail(0, 10)
		w.guard.resume(t.Context(), watchedApp, "")
		for i := range 2 {
			time.Sleep(9 * time.Minute)
			w.close()
			w.open()
			w.guard.recall([]string{watchedScope})
			if got := w.guard.pauses(); len(got) != 0 {
				t.Errorf("paused by a restart: %+v", got)
			}
			w.publish(m)
			w.fail(100*i, 10)
			w.expect("in the cooldown", false, 0)
		}
		time.Sleep(2 * time.Minute)
		w.fail(1000, 1)
		w.expect("after the cooldown", true, 1)
		w.guard.resume(t.Context(), watchedApp, "")
		time.Sleep(20 * time.Minute)
		w.close()

		w.open()
		w.publish(m)
		w.fail(0, 10)
		w.expect("a cooldown that was over before the restart", true, 1)
		w.close()
	})
}

// TestGuardReadsDocuments: of the release before this one, and of a clock that was wrong.
func TestGuardReadsDocuments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		defer w.close()
		m := w.manifest(nil)
		var state uint64
		for guarded := range m.Guards() {
			state = guarded.State
		}
		const rest = `"channel_id":1,"channel":"production","version_id":2,"version":"1.2.0","attempts":11,"failures":10,` +
			`"paused_at":"1999-12-31T23:00:00Z","cooldown_minutes":20`
		keep := func(doc string) {
			t.Helper()
			w.close()
			w.open()
			if err := w.state.Scope(watchedScope).SetPauses(t.Context(), watchedApp, []byte(doc)); err != nil {
				t.Fatal(err)
			}
			w.publish(m)
		}
		keep(fmt.Sprintf(`[{"state":"%d",%s}]`, state, rest))
		w.expect("a pause of the release before", true, 0)
		keep(fmt.Sprintf(`[{"state":"0",%s,"quiet_until":"2100-01-01T00:00:00Z"}]`, rest))
		w.fail(0, 10)
		w.expect("a cooldown", false, 0)
		time.Sleep(20 * time.Minute)
		w.fail(100, 1)
		w.expect("a cooldown of a hundred years", true, 1)
	})
}
