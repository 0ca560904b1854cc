package caddymodule

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/capgo-edge/capgo-edge/cache"
)

// runtimes holds the heavy state of each storage directory, by its absolute path. It outlives configurations: a reload
// takes a new share before the old one is given back. This is the only package-level state of the module.
var runtimes = caddy.NewUsagePool()

// runtime is what lives as long as a storage directory is in use, through any number of reloads.
type runtime struct {
	dir      string
	once     sync.Once
	openErr  error
	memory   *cache.Memory[*release]                // set by open
	opened   atomic.Pointer[cache.Memory[*release]] // the same, for those who did not open
	misses   *rate.Limiter
	faults   *faultLog
	counters *counters

	users gate

	mu   sync.Mutex
	apps []*App // guarded by mu; the configurations that run, oldest first
}

// Unknown apps may ask the origins so often, all together. A site that starts with thousands of apps needs the burst; a
// flood of made-up ones is held to the rate.
const (
	missesPerSecond = 50
	missBurst       = 1000
)

// drainTime is how long a directory that is given up waits for the requests that still use it.
const drainTime = 30 * time.Second

func shareRuntime(dir string) (*runtime, error) {
	value, _, err := runtimes.LoadOrNew(dir, func() (caddy.Destructor, error) {
		return &runtime{
			dir:      dir,
			misses:   rate.NewLimiter(missesPerSecond, missBurst),
			faults:   newFaultLog(),
			counters: newCounters(),
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return value.(*runtime), nil
}

func releaseRuntime(dir string) error {
	_, err := runtimes.Delete(dir)
	return err
}

// open makes the directory usable. Whoever comes first opens it: Caddy may serve requests before our app was started.
func (r *runtime) open(s settings, log *zap.Logger) error {
	r.once.Do(func() {
		r.faults.use(log)
		r.openErr = r.openNow(s)
		if r.openErr == nil {
			log.Info("storage opened", zap.String(fieldStorage, r.dir))
		}
	})
	return r.openErr
}

func (r *runtime) openNow(s settings) error {
	fail := func(err error) error {
		return fmt.Errorf("storage %s cannot be used: %w (set capgo_edge { storage <dir> } in the global options)", r.dir, err)
	}
	if err := cache.OpenDir(r.dir); err != nil {
		return fail(err)
	}
	lastGood, err := cache.OpenLastGood(filepath.Join(r.dir, "manifests"))
	if err != nil {
		return fail(err)
	}
	if r.memory, err = cache.NewMemory[*release](s.memory, lastGood); err != nil {
		return fail(err)
	}
	r.opened.Store(r.memory)
	return nil
}

// join puts the settings of a configuration in force.
func (r *runtime) join(a *App) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.apps = append(r.apps, a)
	r.retuneLocked()
}

// leave takes a configuration's settings out of force. Those of the newest one left apply, so that a configuration which
// failed after its start undoes itself.
func (r *runtime) leave(a *App) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.apps {
		if r.apps[i] == a {
			r.apps = append(r.apps[:i], r.apps[i+1:]...)
			break
		}
	}
	r.retuneLocked()
}

func (r *runtime) retuneLocked() {
	if len(r.apps) == 0 {
		return
	}
	newest := r.apps[len(r.apps)-1]
	r.faults.use(newest.log)
	r.memory.Retune(newest.settings.memory)
}

// register makes the runtime's counters part of a configuration's metrics. Caddy has a new registry for each.
func (r *runtime) register(registry *prometheus.Registry) error {
	err := registry.Register(&collector{r})
	if _, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return nil
	}
	return err
}

// Destruct implements caddy.Destructor. Requests of the last configuration may still run: the memory is closed behind
// them, and left alone if they never end.
func (r *runtime) Destruct() error {
	drained := r.users.close()
	go func() {
		select {
		case <-drained:
		case <-time.After(drainTime):
			return
		}
		r.once.Do(func() { r.openErr = errClosed })
		if r.memory != nil {
			r.memory.Close()
		}
	}()
	return nil
}

// gate counts who uses something, so that it can be closed once nobody does.
type gate struct {
	state   atomic.Int64 // users, less closedGate once closed
	drained chan struct{}
	once    sync.Once
}

const closedGate = 1 << 40

// enter reports whether the thing may be used; if so, leave must follow.
func (g *gate) enter() bool {
	if g.state.Add(1) > 0 {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.state.Add(-1) == -closedGate {
		g.once.Do(func() { close(g.drained) })
	}
}

// close lets nobody in any more. The channel it returns is closed when the last user has left.
func (g *gate) close() <-chan struct{} {
	g.drained = make(chan struct{})
	if g.state.Add(-closedGate) == -closedGate {
		g.once.Do(func() { close(g.drained) })
	}
	return g.drained
}
