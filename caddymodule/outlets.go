package caddymodule

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
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
	scope   string // of the origin whose sites use it; empty for an orphan
	address string // of the collector, without what may be secret

	users  int           // guarded by runtime.mu, as the next two
	orphan bool          // no site adds to it; its only user delivers what is left, see seekHeirs
	spent  bool          // an orphan that is empty; its files go when it is closed
	gone   chan struct{} // closed once its file is free
	after  <-chan struct{}

	open    atomic.Pointer[openOutlet] // nil until its spool is open
	trouble atomic.Pointer[spoolFault] // nil while the spool works, as far as anyone knows
	failing atomic.Bool                // the last events were not taken
	missed  atomic.Uint64              // reports of checks that were dropped because the spool was not open

	mu      sync.Mutex
	opening chan struct{} // guarded by mu, as all below; closed when the attempt that goes on has ended; nil if none does
	failed  time.Time     // when opening it failed last
	err     error         // why
	closed  bool

	tuningMu sync.Mutex
	tuning   tuning // guarded by tuningMu, which is also held while it is put in force
	served   tuning // guarded by tuningMu; what the forwarder uses
}

// openOutlet is what an outlet has open.
type openOutlet struct {
	spool     *stats.Spool
	forwarder *stats.Forwarder
}

// tuning is what a configuration says of an outlet.
type tuning struct {
	address           string
	headers           http.Header
	collector         stats.Collector // at that address, with those headers
	maxSpool, minFree int64
}

// reaches reports whether requests go to the same address as those of other, with the same headers.
func (t *tuning) reaches(other *tuning) bool {
	return t.address == other.address && len(differentHeaders(t.headers, other.headers)) == 0
}

// spoolFault says why a spool takes nothing, and since when.
type spoolFault struct {
	err   error
	since time.Time
}

// Bounds of an outlet's work.
const (
	outletRetry = time.Second     // how soon a spool that could not be opened is tried again
	outletWait  = 2 * time.Second // how long events wait for a spool that is being opened
	outletDrain = 5 * time.Second // how long requests to the collector may take to end when it is closed
)

var errOpening = errors.New("the spool is still being opened; a large one that was not closed is read through first")

// spoolsDir is where spools are, in the storage directory.
const (
	spoolsDir   = "spool"
	spoolSuffix = ".db"
)

// spoolPath is that of a file of a spool.
func (r *runtime) spoolPath(name, suffix string) string {
	return filepath.Join(r.dir, spoolsDir, name+suffix)
}

// outletName names the spool of a collector for the sites with one origin. It does not tell the secrets of either.
func outletName(scope, address string) string {
	address = sameAddress(address)
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
	switch {
	case o == nil || o.users == 0: // nobody's any more, and about to be closed
		o = r.addOutletLocked(name, scope, withoutQuery(address))
	case o.orphan:
		o.orphan, o.scope, o.users = false, scope, 0
	}
	o.users++
	return o
}

// addOutletLocked makes an outlet, which waits for one of that name that is being closed.
func (r *runtime) addOutletLocked(name, scope, address string) *outlet {
	o := &outlet{runtime: r, name: name, scope: scope, address: address, gone: make(chan struct{})}
	if before := r.outlets[name]; before != nil {
		o.after = before.gone
	}
	r.outlets[name] = o
	return o
}

// release gives a share back. The last one closes the outlet, in the background: requests to the collector may be on
// their way. What is spooled stays on disk.
func (o *outlet) release() {
	o.runtime.mu.Lock()
	defer o.runtime.mu.Unlock()
	o.releaseLocked()
}

func (o *outlet) releaseLocked() {
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
	open := o.open.Load()
	if open == nil || o.tuning.collector == nil {
		return
	}
	if !o.tuning.reaches(&o.served) { // else what it knows of the collector stays, such as when to try it again
		open.forwarder.Use(o.tuning.collector)
		o.served = o.tuning
	}
	open.spool.Retune(o.tuning.maxSpool, o.tuning.minFree)
}

// opened returns what is open. It waits for a spool that is being opened, until ctx ends or the time has come.
func (o *outlet) opened(ctx context.Context, t tuning, latest time.Time) (*openOutlet, error) {
	if open := o.open.Load(); open != nil {
		return open, nil
	}
	if opening := o.begin(t); opening != nil {
		select {
		case <-opening:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Until(latest)):
			return nil, errOpening
		}
	}
	if open := o.open.Load(); open != nil {
		return open, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, errClosed
	}
	return nil, o.err
}

// begin has the spool opened in the background, if it is not open, and was not tried a moment ago. The channel it returns is
// closed when the attempt that goes on has ended; it is nil if none does. t are the settings until use says others: Caddy may
// serve requests before our app was started.
//
//nolint:contextcheck,nolintlint // what is opened outlives the request; the former counts its callers
func (o *outlet) begin(t tuning) <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.opening == nil && o.open.Load() == nil && !o.closed && time.Since(o.failed) >= outletRetry {
		o.opening = make(chan struct{})
		go o.openNow(t)
	}
	return o.opening
}

// openNow is one attempt to open the spool, which may take long.
func (o *outlet) openNow(t tuning) {
	before := o.trouble.Load()
	open, err := o.openSpool(t)
	if err != nil {
		err = fmt.Errorf("the spool cannot be opened: %w", err)
		o.reportSpool(err)
	} else {
		o.tuningMu.Lock()
		o.served = t
		o.open.Store(open)
		o.tuneLocked()
		o.tuningMu.Unlock()
		if before != nil && o.trouble.Load() == before { // nothing is said of a new one
			o.reportSpool(nil)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		o.failed, o.err = time.Now(), err
	}
	close(o.opening)
	o.opening = nil
}

func (o *outlet) openSpool(t tuning) (*openOutlet, error) {
	if o.after != nil {
		<-o.after
	}
	path := o.runtime.spoolPath(o.name, spoolSuffix)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	spool, err := stats.OpenSpool(stats.SpoolOptions{
		Path: path, MaxBytes: t.maxSpool, MinFree: t.minFree,
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
	o.mu.Lock()
	o.closed = true
	opening := o.opening
	o.mu.Unlock()
	if opening != nil {
		<-opening
	}
	if open := o.open.Load(); open != nil {
		ctx, cancel := context.WithTimeout(context.Background(), outletDrain)
		defer cancel()
		err := errors.Join(open.forwarder.Close(ctx), open.spool.Close())
		if err == nil && o.spent {
			err = o.remove()
		}
		if err != nil {
			o.reportSpool(err)
		}
	} else if o.after != nil {
		<-o.after
	}
	close(o.gone)
	if o.runtime.forget(o) || o.spent { // the label that was removed may be that of a site which is here again
		o.runtime.seekHeirs()
	}
}

// forget takes a closed outlet out of the list. It reports whether that is because a reload removed its collector, and not
// because the edge stops.
func (r *runtime) forget(o *outlet) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outlets[o.name] != o {
		return false
	}
	delete(r.outlets, o.name)
	return len(r.apps) > 0
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

// eachOutlet calls do for all in use, in the order of their names. open is nil where the spool is not open.
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
		do(o, o.open.Load())
	}
}

// health says why the spool takes nothing; nil if it works. A lesser fault is none of it.
func (o *outlet) health() *spoolFault {
	if fault := o.trouble.Load(); fault != nil && !errors.Is(fault.err, stats.ErrStillTaking) {
		return fault
	}
	if o.open.Load() == nil {
		return &spoolFault{err: errOpening}
	}
	return nil
}

func (o *outlet) fields() []zap.Field {
	return []zap.Field{zap.String(fieldCollector, o.address), zap.String(fieldSpool, o.name), zap.String(fieldStorage, o.runtime.dir)}
}

// reportSpool logs that the spool fails, or works again.
func (o *outlet) reportSpool(err error) {
	subject := "spool " + o.name
	if err == nil {
		o.trouble.Store(nil)
		o.runtime.faults.well(subject, "statistics can be kept again", o.fields()...)
		return
	}
	fault := &spoolFault{err, time.Now()}
	if before := o.trouble.Load(); before != nil {
		fault.since = before.since
	}
	o.trouble.Store(fault)
	state, message := "failing", "statistics cannot be kept; phones are told to keep them; check space and permissions"
	if errors.Is(err, stats.ErrStillTaking) {
		state, message = "hampered", "statistics are kept, but not all is well with their files; check space and permissions"
	}
	o.runtime.faults.fault(subject, state, message, append(o.fields(), zap.Error(err))...)
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
