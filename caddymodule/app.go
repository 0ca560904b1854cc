package caddymodule

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// App is what all sites share: the storage directory and the memory budget. A configuration without it gets the defaults.
type App struct {
	// Storage is the directory for last good manifests and, in time, for bundles and statistics. It is made if needed,
	// readable by its owner only. Two processes must not share it. Default: "capgo_edge" in Caddy's data directory.
	Storage string `json:"storage,omitempty"`

	// Memory is the number of bytes that compiled manifests may take. A manifest that finds no room is compiled anew for
	// each check, from its copy in Storage: correct, but slow. Default: 268435456 (256 MiB).
	Memory int64 `json:"memory,omitempty"`

	log      *zap.Logger
	settings settings
	runtime  *runtime // requests of this configuration use it even after Cleanup, so it is never taken away
	shares   bool     // a share of the runtime was taken, and not given back yet
}

// settings are the tunables of a runtime, as one configuration wants them.
type settings struct {
	memory int64
}

// defaultMemory is App.Memory's default, in bytes.
const defaultMemory = 256 << 20

// minMemory is less than which no manifest of a real app would fit.
const minMemory = 1 << 20

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
	if a.Memory == 0 {
		a.Memory = defaultMemory
	}
	if err := checkMemory(a.Memory); err != nil {
		return err
	}
	a.settings = settings{memory: a.Memory}
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

// Start opens the runtime, unless a request came first, and puts this configuration's settings in force.
func (a *App) Start() error {
	if err := a.runtime.open(a.settings, a.log); err != nil {
		return err
	}
	a.runtime.join(a)
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
