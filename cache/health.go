package cache

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// health remembers whether the disk works.
type health struct {
	mu    sync.Mutex
	err   error     // guarded by mu, as the next; nil while it works
	since time.Time // when it last changed
}

// probeEvery is how often a failing disk is tried again.
const probeEvery = 5 * time.Second

// Health says why the disk cannot be used just now, and since when; nil if it can.
func (d *Disk) Health() (error, time.Time) { //nolint:revive,staticcheck // the error is the answer here, not a failure
	d.health.mu.Lock()
	defer d.health.mu.Unlock()
	return d.health.err, d.health.since
}

func (d *Disk) healthy() bool {
	err, _ := d.Health()
	return err == nil
}

func (d *Disk) diskFailed(err error) {
	d.counts.diskErrors.Add(1)
	d.setHealth(err)
}

func (d *Disk) setHealth(err error) {
	d.health.mu.Lock()
	changed := (d.health.err == nil) != (err == nil)
	d.health.err = err
	if changed {
		d.health.since = d.now()
	}
	d.health.mu.Unlock()
	if changed {
		d.report(err)
	}
}

// watchHealth tries a failing disk now and then, so that it is used again as soon as it works.
func (d *Disk) watchHealth(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !d.healthy() && d.probe() == nil {
			d.setHealth(nil)
			d.removeLeftovers()
		}
	}
}

// probe does what a fill does, in small.
func (d *Disk) probe() error {
	if err := d.makeDirs(); err != nil {
		return err
	}
	path := d.newFillPath("probe")
	f, err := d.files.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, blockSize))
	err = errors.Join(err, f.Sync(), f.Close())
	d.removeTemp(path)
	return err
}

// diskCounters count what the store does.
type diskCounters struct {
	access     [accesses]atomic.Uint64
	fills      atomic.Uint64
	stored     atomic.Uint64
	mismatches atomic.Uint64
	failed     atomic.Uint64
	evicted    atomic.Uint64
	damaged    atomic.Uint64
	diskErrors atomic.Uint64
	farReads   atomic.Uint64
	filled     atomic.Int64 // bytes read by fills
}

// DiskStats says what the store holds and has done.
type DiskStats struct {
	Objects         int
	Bytes, Reserved int64 // of stored objects; of running fills
	Filling         int   // fills that run
	Scanning        bool

	Access                                   map[Access]uint64
	Fills, Stored, Mismatches, Failed        uint64
	Evicted, Damaged, DiskErrors, RangeReads uint64
	FilledBytes                              int64
}

// Stats returns what the store holds and has done.
func (d *Disk) Stats() DiskStats {
	s := DiskStats{
		Scanning: d.index.isScanning(),
		Access:   map[Access]uint64{},
		Fills:    d.counts.fills.Load(), Stored: d.counts.stored.Load(),
		Mismatches: d.counts.mismatches.Load(), Failed: d.counts.failed.Load(),
		Evicted: d.counts.evicted.Load(), Damaged: d.counts.damaged.Load(), DiskErrors: d.counts.diskErrors.Load(),
		RangeReads: d.counts.farReads.Load(), FilledBytes: d.counts.filled.Load(),
	}
	s.Objects, s.Bytes, s.Reserved = d.index.count()
	for a := range accesses {
		s.Access[a] = d.counts.access[a].Load()
	}
	d.mu.Lock()
	s.Filling = len(d.fills)
	d.mu.Unlock()
	return s
}

// jitter returns half to one and a half of wait: sites and objects must not ask in step.
func jitter(wait time.Duration) time.Duration { return wait/2 + rand.N(wait) }
