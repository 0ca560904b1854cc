package caddymodule

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"
)

// App is what all sites share: the storage directory and the memory budget. A configuration without it gets the defaults.
type App struct {
	// Storage is the directory for bundles, delta files and last good manifests. It is made if needed, readable by its owner
	// only, and locked: two processes cannot share it. Default: "capgo_edge" in Caddy's data directory.
	Storage string `json:"storage,omitempty"`

	// MaxSize is how many bytes of disk stored bundles and delta files may take. Those that were not asked for the longest
	// go first, those that a channel points at last. Default: 10737418240 (10 GiB).
	MaxSize int64 `json:"max_size,omitempty"`

	// MinFree is how many bytes of the disk are left to others. What would go below is not stored, but passed on from the
	// origin. Default: 1073741824 (1 GiB); to use the disk to its end, set it to 1.
	MinFree int64 `json:"min_free,omitempty"`

	// Memory is the number of bytes that compiled manifests, answers of upstreams and small files may take: five eighths are
	// for manifests, one is for answers, two are for files of up to 256 KiB. A manifest that finds no room is compiled anew for each check, from its copy in
	// Storage: correct, but slow. Default: 268435456 (256 MiB).
	Memory int64 `json:"memory,omitempty"`

	log      *zap.Logger
	emit     func(name string, data map[string]any) // to Caddy's events app
	settings settings
	runtime  *runtime // requests of this configuration use it even after Cleanup, so it is never taken away
	shares   bool     // a share of the runtime was taken, and not given back yet

	tunings map[string]*tuning // of the outlets of this configuration's sites, by name
}

// settings are the tunables of a runtime, as one configuration wants them.
type settings struct {
	maxSize, minFree, memory int64
}

// manifestMemory is what of the memory compiled manifests get.
func (s settings) manifestMemory() int64 { return s.memory - s.smallMemory() - s.answerMemory() }

// answerMemory is what of it answers of upstreams get.
func (s settings) answerMemory() int64 { return s.memory / 8 }

// smallMemory is what of it small files get. All delta files of a release together rarely have more than 10 MB.
func (s settings) smallMemory() int64 { return s.memory / 4 }

// The defaults of App, in bytes.
const (
	defaultMaxSize = 10 << 30
	defaultMinFree = 1 << 30
	defaultMemory  = 256 << 20
)

// The least that makes sense: no manifest of a real app would fit in less memory, and few bundles in less disk.
const (
	minMemory  = 1 << 20
	minMaxSize = 1 << 20
)

func checkMaxSize(bytes int64) error {
	if bytes < minMaxSize {
		return fmt.Errorf("max_size: %d bytes are too little, give at least 1MiB", bytes)
	}
	return nil
}

func checkMinFree(bytes int64) error {
	if bytes < 0 {
		return fmt.Errorf("min_free: %d bytes cannot be; give a size, such as 1GiB", bytes)
	}
	return nil
}

func checkMemory(bytes int64) error {
	if bytes < minMemory {
		return fmt.Errorf("memory: %d bytes are too little, give at least 1MiB", bytes)
	}
	return nil
}

// CaddyModule implements caddy.Module.
func (App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: moduleName, New: func() caddy.Module { return new(App) }}
}

// Provision takes a share of the directory's runtime. It opens nothing: this also runs for "caddy validate", beside a
// live server.
func (a *App) Provision(ctx caddy.Context) error {
	a.log = ctx.Logger()
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("getting the events app: %w", err)
	}
	a.emit = func(name string, data map[string]any) { events.(*caddyevents.App).Emit(ctx, name, data) }
	setDefault(&a.Memory, defaultMemory)
	setDefault(&a.MaxSize, defaultMaxSize)
	setDefault(&a.MinFree, defaultMinFree)
	if err := errors.Join(checkMemory(a.Memory), checkMaxSize(a.MaxSize), checkMinFree(a.MinFree)); err != nil {
		return err
	}
	a.settings = settings{maxSize: a.MaxSize, minFree: a.MinFree, memory: a.Memory}
	dir, err := expand("storage", a.Storage)
	if err != nil {
		return err
	}
	if dir == "" {
		dir = filepath.Join(caddy.AppDataDir(), moduleName)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	a.runtime, err = shareRuntime(dir)
	if err != nil {
		return err
	}
	a.shares = true
	return a.runtime.register(ctx.GetMetricsRegistry())
}

// Start opens the runtime, unless a request came first, and puts this configuration's settings in force. What the release guard
// has stopped is told from then on, also of apps that nobody has asked for yet.
func (a *App) Start() error {
	if err := a.runtime.open(a.settings, a.log); err != nil {
		return err
	}
	a.runtime.join(a)
	a.runtime.guard.recall(a.runtime.scopes())
	return nil
}

// Stop lets the settings of an older configuration apply again, if there is one that still runs.
func (a *App) Stop() error {
	a.runtime.leave(a)
	return nil
}

// Cleanup gives the runtime back. It also runs after a Provision or Start that failed.
func (a *App) Cleanup() error {
	if !a.shares {
		return nil
	}
	a.shares = false
	return releaseRuntime(a.runtime.dir)
}

var errClosed = errors.New("this storage directory is being closed")
