package caddymodule

import (
	"cmp"
	"container/heap"
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// warmer fetches objects before a phone asks for them, few at a time: those of public channels first.
type warmer struct {
	runtime *runtime
	ctx     context.Context //nolint:containedctx // ends with the runtime
	cancel  context.CancelFunc
	work    sync.WaitGroup

	mu      sync.Mutex
	queue   errands // guarded by mu, as all below
	workers int
	number  uint64
	newest  map[cache.Key]revision // of each app: the errands of others are dropped
}

// revision tells one state of an app's manifest from another. It does not hold on to what was compiled of it.
type revision struct {
	sum    [sha256.Size]byte
	number uint64
}

const (
	maxWarming = 4 // objects that are fetched ahead at once
	// A fetch that failed is tried again, later each time. After the last try a phone's request is what fetches it.
	warmRetryFirst, warmRetryMost = 2 * time.Second, time.Minute
	maxWarmTries                  = 20
)

// The priorities, dearest first.
const (
	warmPublic = iota // a public channel points at it
	warmChannel
	warmNew // no channel points at it yet
)

// errand is one object to fetch.
type errand struct {
	request  *cache.Request
	app      cache.Key
	revision uint64
	release  *release
	bundle   *bundleErrand // nil if no channel points at it
	priority int
	number   uint64 // of arrival
	tries    int
}

// bundleErrand counts the objects of one bundle that are still to come.
type bundleErrand struct {
	bundle *resolver.Bundle
	left   int // guarded by warmer.mu
}

func newWarmer(r *runtime) *warmer {
	w := &warmer{runtime: r, newest: map[cache.Key]revision{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// close ends all errands.
func (w *warmer) close() {
	w.mu.Lock()
	w.cancel()
	w.mu.Unlock()
	w.work.Wait()
}

// warm has the store keep what the channels of a release point at, and fetch what it does not have of it, as the site
// wants. It does so once for one state of the manifest.
func (w *warmer) warm(l *library, r *release, sum [sha256.Size]byte) {
	off := l.bundles.Prefetch == prefetchOff
	if !off && !w.isNew(appKey(l, r), sum) {
		return
	}
	app, all, keys := w.errandsOf(l, r)
	w.runtime.disk.Prefer(app, keys)
	if off {
		return
	}
	for _, key := range r.news {
		if o, ok := r.manifest.Keys.Find(key); ok {
			all = append(all, &errand{request: l.shelves.own.request(key, o), app: app, release: r, priority: warmNew})
		}
	}
	r.news = nil
	w.add(app, all)
}

func appKey(l *library, r *release) cache.Key {
	return cache.Key{Scope: l.source.Scope, Name: r.manifest.AppID}
}

// isNew notes the newest state of an app's manifest, and reports whether it was another one.
func (w *warmer) isNew(app cache.Key, sum [sha256.Size]byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, known := w.newest[app]
	if known && last.sum == sum {
		return false
	}
	w.newest[app] = revision{sum, last.number + 1}
	return true
}

// fetch has the store fetch what the channels of a release point at, and returns how many objects that are.
func (w *warmer) fetch(l *library, r *release) int {
	app, all, _ := w.errandsOf(l, r)
	w.add(app, all)
	return len(all)
}

// errandsOf lists the objects that the channels of a release point at.
func (w *warmer) errandsOf(l *library, r *release) (cache.Key, []*errand, []cache.Key) {
	app := appKey(l, r)
	var all []*errand
	var keys []cache.Key
	seen := map[*resolver.Bundle]bool{}
	for b, public := range offeredBy(r.manifest) {
		if seen[b] {
			continue
		}
		seen[b] = true
		errands := bundleErrands(l.shelves, app, r, b, public)
		for _, e := range errands {
			keys = append(keys, e.request.Key)
		}
		all = append(all, errands...)
	}
	return app, all, keys
}

func bundleErrands(s *shelves, app cache.Key, r *release, b *resolver.Bundle, public bool) []*errand {
	priority := warmChannel
	if public {
		priority = warmPublic
	}
	requests := s.requests(r.manifest, b)
	count := &bundleErrand{bundle: b, left: len(requests)}
	errands := make([]*errand, len(requests))
	for i, request := range requests {
		errands[i] = &errand{request: request, app: app, release: r, bundle: count, priority: priority}
	}
	return errands
}

// add queues errands for the newest state of an app's manifest.
func (w *warmer) add(app cache.Key, all []*errand) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range all {
		e.revision = w.newest[app].number
		w.pushLocked(e)
	}
}

func (w *warmer) pushLocked(e *errand) {
	if w.ctx.Err() != nil {
		return
	}
	w.number++
	e.number = w.number
	heap.Push(&w.queue, e)
	if w.workers < maxWarming {
		w.workers++
		w.work.Go(w.run)
	}
}

// run fetches until nothing is left to do.
func (w *warmer) run() {
	for {
		e := w.next()
		if e == nil {
			return
		}
		w.finish(e, w.runtime.disk.Fetch(w.ctx, e.request))
	}
}

func (w *warmer) next() *errand {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.queue.Len() > 0 && w.ctx.Err() == nil {
		e := heap.Pop(&w.queue).(*errand)
		if w.newest[e.app].number == e.revision {
			return e
		}
	}
	w.workers--
	return nil
}

func (w *warmer) finish(e *errand, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.retryLocked(e, err)
		return
	}
	if b := e.bundle; b != nil {
		if b.left--; b.left == 0 {
			e.release.warmed(b.bundle)
			w.logWarm(e)
		}
	}
}

func (w *warmer) logWarm(e *errand) {
	w.runtime.faults.log.Load().Debug("bundle is stored here",
		zap.String(fieldAppID, e.app.Name), zap.String("version", e.bundle.bundle.Name))
}

// retryLocked tries e again later.
func (w *warmer) retryLocked(e *errand, err error) {
	e.tries++
	if errors.Is(err, context.Canceled) || e.tries == maxWarmTries {
		return
	}
	wait := min(warmRetryFirst<<min(e.tries-1, 10), warmRetryMost)
	time.AfterFunc(wait, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.newest[e.app].number == e.revision {
			w.pushLocked(e)
		}
	})
}

// waiting is how many objects are to be fetched ahead.
func (w *warmer) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queue.Len() + w.workers
}

// errands is a heap, the dearest and oldest first.
type errands []*errand

func (q errands) Len() int { return len(q) }
func (q errands) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].priority, q[j].priority), cmp.Compare(q[i].number, q[j].number)) < 0
}
func (q errands) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *errands) Push(x any)   { *q = append(*q, x.(*errand)) }
func (q *errands) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return e
}
