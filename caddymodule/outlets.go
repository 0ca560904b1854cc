package caddymodule

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// outlet is the way of events to one collector: their spool, and what forwards it. Sites with the same origin and the same
// collector share one, and so do the configurations before and after a reload.
type outlet struct {
	runtime *runtime
	name    string // of the spool's file; a host and a hash, fit for logs and labels
	address string // of the collector, without what may be secret

	users int           // guarded by runtime.mu
	gone  chan struct{} // closed once its file is free
	after <-chan struct{}

	open atomic.Pointer[openOutlet] // nil until its spool is open

	mu     sync.Mutex // held while it is opened or closed
	failed time.Time  // guarded by mu, as all below; when opening it failed last
	err    error
	closed bool

	tuningMu sync.Mutex
	tuning   tuning // guarded by tuningMu, which is also held while it is put in force
}

// openOutlet is what an outlet has open.
type openOutlet struct {
	spool     *stats.Spool
	forwarder *stats.Forwarder
}

// tuning is what a configuration says of an outlet.
type tuning struct {
	collector         stats.Collector
	maxSpool, minFree int64
}

// Bounds of an outlet's work.
const (
	outletRetry = time.Second     // how soon a spool that could not be opened is tried again
	outletDrain = 5 * time.Second // how long requests to the collector may take to end when it is closed
)

// spoolsDir is where spools are, in the storage directory.
const spoolsDir = "spool"

// outletName names the spool of a collector for the sites with one origin. It does not tell the secrets of either.
func outletName(scope, address string) string {
	sum := sha256.Sum256([]byte(scope + "\x00" + address))
	host := "collector"
	if u, err := url.Parse(address); err == nil && u.Hostname() != "" {
		host = u.Hostname()
	}
	host = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, host)
	return host[:min(len(host), 100)] + "-" + hex.EncodeToString(sum[:8])
}

// outlet gives a share in the way to a collector. It opens nothing yet.
func (r *runtime) outlet(scope, address string) *outlet {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := outletName(scope, address)
	o := r.outlets[name]
	if o == nil || o.users == 0 { // nobody's any more, and about to be closed
		next := &outlet{runtime: r, name: name, address: withoutQuery(address), gone: make(chan struct{})}
		if o != nil {
			next.after = o.gone
		}
		o = next
		r.outlets[name] = o
	}
	o.users++
	return o
}

// release gives a share back. The last one closes the outlet, in the background: requests to the collector may be on
// their way. What is spooled stays on disk.
func (o *outlet) release() {
	o.runtime.mu.Lock()
	defer o.runtime.mu.Unlock()
	if o.users--; o.users == 0 {
		go o.close()
	}
}

// use puts a configuration's settings in force.
func (o *outlet) use(t tuning) {
	o.tuningMu.Lock()
	defer o.tuningMu.Unlock()
	o.tuning = t
	o.tuneLocked()
}

func (o *outlet) tuneLocked() {
	if open := o.open.Load(); open != nil && o.tuning.collector != nil {
		open.forwarder.Use(o.tuning.collector)
		open.spool.Retune(o.tuning.maxSpool, o.tuning.minFree)
	}
}

// opened returns the spool. Whoever comes first opens it; t are the settings until use says others: Caddy may serve requests
// before our app was started.
func (o *outlet) opened(t tuning) (*stats.Spool, error) {
	if open := o.open.Load(); open != nil {
		return open.spool, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	open := o.open.Load()
	switch {
	case open != nil:
		return open.spool, nil
	case o.closed:
		return nil, errClosed
	case time.Since(o.failed) < outletRetry:
		return nil, o.err
	}
	open, err := o.openLocked(t)
	if err != nil {
		o.failed, o.err = time.Now(), fmt.Errorf("the spool cannot be opened: %w", err)
		o.reportSpool(o.err)
		return nil, o.err
	}
	o.open.Store(open)
	o.tuningMu.Lock()
	defer o.tuningMu.Unlock()
	o.tuneLocked()
	return open.spool, nil
}

func (o *outlet) openLocked(t tuning) (*openOutlet, error) {
	if o.after != nil {
		<-o.after
	}
	dir := filepath.Join(o.runtime.dir, spoolsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	spool, err := stats.OpenSpool(stats.SpoolOptions{
		Path: filepath.Join(dir, o.name+".db"), MaxBytes: t.maxSpool, MinFree: t.minFree,
		Free: o.runtime.storage.Free, Report: o.reportSpool,
	})
	if err != nil {
		return nil, err
	}
	forwarder := stats.NewForwarder(stats.ForwarderOptions{Spool: spool, Collector: t.collector, Report: o.reportCollector})
	forwarder.Start()
	return &openOutlet{spool, forwarder}, nil
}

// close gives the file up. Requests to the collector that are on their way may end first.
func (o *outlet) close() {
	defer close(o.gone)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	open := o.open.Load()
	if open == nil {
		if o.after != nil {
			<-o.after
		}
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), outletDrain)
	defer cancel()
	if err := errors.Join(open.forwarder.Close(ctx), open.spool.Close()); err != nil {
		o.reportSpool(err)
	}
}

// closeOutlets closes them all and waits until their files are free.
func (r *runtime) closeOutlets() {
	r.mu.Lock()
	all := slices.Collect(maps.Values(r.outlets))
	for _, o := range all {
		if o.users > 0 {
			o.users = 0
			go o.close()
		}
	}
	r.mu.Unlock()
	for _, o := range all {
		<-o.gone
	}
}

// eachOutlet calls do for all that are open, in the order of their names.
func (r *runtime) eachOutlet(do func(o *outlet, open *openOutlet)) {
	r.mu.Lock()
	var all []*outlet
	for _, name := range slices.Sorted(maps.Keys(r.outlets)) {
		if o := r.outlets[name]; o.users > 0 {
			all = append(all, o)
		}
	}
	r.mu.Unlock()
	for _, o := range all {
		if open := o.open.Load(); open != nil {
			do(o, open)
		}
	}
}

func (o *outlet) fields() []zap.Field {
	return []zap.Field{zap.String(fieldCollector, o.address), zap.String(fieldSpool, o.name), zap.String(fieldStorage, o.runtime.dir)}
}

// reportSpool logs that the spool fails, or works again.
func (o *outlet) reportSpool(err error) {
	subject := "spool " + o.name
	if err == nil {
		o.runtime.faults.well(subject, "statistics can be kept again", o.fields()...)
		return
	}
	o.runtime.faults.fault(subject, "failing", "statistics cannot be kept; phones are told to keep them; check space and permissions",
		append(o.fields(), zap.Error(err))...)
}

// reportCollector logs that the collector takes nothing, or takes events again.
func (o *outlet) reportCollector(err error) {
	subject := "collector " + o.name
	if err == nil {
		o.runtime.faults.well(subject, "collector takes statistics again", o.fields()...)
		return
	}
	o.runtime.faults.fault(subject, "failing", "collector does not take statistics; they are kept and tried again",
		append(o.fields(), zap.Error(err))...)
}

// warnOfOrphansLocked names spools that hold events for a collector that no site has any more.
func (r *runtime) warnOfOrphansLocked() {
	entries, err := os.ReadDir(filepath.Join(r.dir, spoolsDir))
	if err != nil {
		return // there are none
	}
	for _, entry := range entries {
		name, isSpool := strings.CutSuffix(entry.Name(), ".db")
		if _, used := r.outlets[name]; isSpool && !used {
			r.faults.fault("orphan "+name, "orphan", "a spool may hold statistics for a collector that no site names any more; "+
				"configure it again to have them delivered, or delete the file",
				zap.String(fieldSpool, name), zap.String(fieldStorage, r.dir))
		}
	}
}
