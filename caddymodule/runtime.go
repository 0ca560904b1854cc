package caddymodule

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin/learned"
	"github.com/capgo-edge/capgo-edge/origin/state"
	"github.com/capgo-edge/capgo-edge/origin/upstream"
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
	storage  *cache.Dir                             // set by open
	lastGood *cache.LastGood                        // set by open
	disk     *cache.Disk                            // set by open
	state    *state.State                           // set by open

	openedDisk  atomic.Pointer[cache.Disk]  // the same as disk, for those who did not open
	openedState atomic.Pointer[state.State] // the same as state, likewise
	misses      *rate.Limiter
	faults      *faultLog
	largeBodies *largeBodies
	newChoices  *newChoices
	counters    *counters

	channelCalls channelCounters

	answers     *cache.Answers[*relayed] // set by open
	learnedOnce sync.Once
	learned     atomic.Pointer[learned.Store] // nil until a relay needs it, and while it cannot be used

	admissions admissions // to upstreams

	users gate

	warmer *warmer
	guard  *guard

	heirs sync.Mutex // held while it is decided who empties which spool

	mu      sync.Mutex
	apps    []*App                     // guarded by mu, as all below; the configurations that run, oldest first
	sites   map[*Handler]struct{}      // of all configurations
	groups  map[string]*upstream.Group // by identity; they remember across reloads which servers fail
	outlets map[string]*outlet         // by name
	awake   map[string]bool            // sources whose last good manifests were loaded after the start
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
		r := &runtime{
			dir:          dir,
			misses:       rate.NewLimiter(missesPerSecond, missBurst),
			faults:       newFaultLog(),
			counters:     newCounters(),
			channelCalls: newChannelCounters(),
			largeBodies:  newLargeBodies(),
			newChoices:   newNewChoices(),
			sites:        map[*Handler]struct{}{},
			awake:        map[string]bool{},
			groups:       map[string]*upstream.Group{},
			outlets:      map[string]*outlet{},
		}
		r.warmer = newWarmer(r)
		r.guard = newGuard(r.faults, func(scope string) pauseKeeper { return r.state.Scope(scope) })
		return r, nil
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
	storage, err := cache.Claim(r.dir)
	if err != nil {
		return fail(err)
	}
	if err := r.openStores(storage, s); err != nil {
		return fail(errors.Join(err, storage.Release()))
	}
	return nil
}

func (r *runtime) openStores(storage *cache.Dir, s settings) error {
	lastGood, err := cache.OpenLastGood(storage.Manifests())
	if err != nil {
		return err
	}
	own, err := r.openState()
	if err != nil {
		return err
	}
	disk, err := cache.OpenDisk(cache.DiskOptions{
		Dir: storage, MaxBytes: s.maxSize, MinFree: s.minFree, Memory: s.smallMemory(),
		Report: r.reportDisk, ReportDamage: r.reportDamage,
	})
	if err != nil {
		return errors.Join(err, own.Close())
	}
	if r.memory, err = cache.NewMemory[*release](s.manifestMemory(), lastGood); err != nil {
		disk.Close()
		return errors.Join(err, own.Close())
	}
	r.openAnswers(s)
	r.state = own
	r.openedState.Store(own)
	r.storage, r.lastGood, r.disk = storage, lastGood, disk
	r.opened.Store(r.memory)
	r.openedDisk.Store(disk)
	return nil
}

// reportDisk logs that the disk fails, or works again.
func (r *runtime) reportDisk(err error) {
	where := zap.String(fieldStorage, r.dir)
	if err == nil {
		r.faults.well("disk", "storage works again", where)
		return
	}
	r.faults.fault("disk", "failing", "storage fails; objects are passed on from the origin and not kept; check space and permissions",
		where, zap.Error(err))
}

func (r *runtime) reportDamage(key cache.Key, err error) {
	r.faults.fault("damage "+key.Scope+" "+key.Name, "damaged", "a stored object cannot be read; it is fetched anew",
		zap.String(fieldStorage, r.dir), zap.String(fieldKey, withoutQuery(key.Name)), zap.Error(err))
}

// join puts the settings of a configuration in force.
func (r *runtime) join(a *App) {
	defer r.seekHeirs() // once mu is free: it reads a directory
	r.mu.Lock()
	defer r.mu.Unlock()
	r.apps = append(r.apps, a)
	r.retuneLocked()
	for site := range r.sites {
		if scope := site.library.source.Scope; !r.awake[scope] && site.Bundles.Prefetch != prefetchOff {
			r.awake[scope] = true
			r.warmer.work.Go(func() { site.library.wake(r.warmer.ctx) })
		}
	}
}

// enroll notes a site that uses the runtime, dismiss that it does so no more.
func (r *runtime) enroll(site *Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sites[site] = struct{}{}
}

func (r *runtime) dismiss(site *Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sites, site)
}

// leave takes a configuration's settings out of force. Those of the newest one left apply, so that a configuration which
// failed after its start undoes itself.
func (r *runtime) leave(a *App) {
	defer r.seekHeirs()
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

// sitesOf lists the sites that serve an app.
func (r *runtime) sitesOf(appID string) []*Handler {
	r.mu.Lock()
	defer r.mu.Unlock()
	var sites []*Handler
	for site := range r.sites {
		if site.serves(appID) {
			sites = append(sites, site)
		}
	}
	return sites
}

// settings are those in force.
func (r *runtime) settings() settings {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.apps) == 0 {
		return settings{}
	}
	return r.apps[len(r.apps)-1].settings
}

func (r *runtime) retuneLocked() {
	if len(r.apps) == 0 {
		return
	}
	newest := r.apps[len(r.apps)-1]
	r.faults.use(newest.log)
	r.guard.tell(func(e guardEvent) { newest.emit(e.name, e.data()) })
	s := newest.settings
	r.memory.Retune(s.manifestMemory())
	r.answers.Retune(s.answerMemory())
	r.disk.Retune(s.maxSize, s.minFree, s.smallMemory())
	for site := range r.sites {
		if site.app == newest {
			site.statistics.start()
		}
	}
}

// register makes the runtime's counters part of a configuration's metrics. Caddy has a new registry for each.
func (r *runtime) register(registry *prometheus.Registry) error {
	err := registry.Register(&collector{r})
	if _, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return nil
	}
	return err
}

// Destruct implements caddy.Destructor. Requests of the last configuration may still run. Downloads go on from what they
// have open, while the directory is given up at once, so that another configuration or process can have it. The memory is
// closed behind the requests, and left alone if they never end.
func (r *runtime) Destruct() error {
	drained := r.users.close()
	r.once.Do(func() { r.openErr = errClosed })
	r.warmer.close()
	r.closeOutlets()
	r.faults.close()
	if r.openErr != nil {
		return nil //nolint:nilerr // it was told to who opened
	}
	r.disk.Close()
	go func() {
		select {
		case <-drained:
			r.answers.Close()
			r.memory.Close()
		case <-time.After(drainTime):
		}
	}()
	return errors.Join(r.closeLearned(), r.state.Close(), r.storage.Release())
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
