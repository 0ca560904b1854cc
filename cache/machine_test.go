package cache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/cache/storetest"
)

// blob is some content of the machine's origins.
type blob struct {
	data []byte
	sum  [sha256.Size]byte
}

// blobs are contents around every size at which the store behaves otherwise, two of each.
var blobs = sync.OnceValue(func() (all []*blob) {
	for i, size := range []int{
		0, 1, 1000, 64*kib - 1, 64 * kib, 64*kib + 1, 256 * kib, 256*kib + 1, 700 * kib, 700 * kib, 2 * mib, 6 * mib,
	} {
		for twin := range 2 {
			b := &blob{data: content(byte(2*i+twin), size)}
			b.sum = sha256.Sum256(b.data)
			all = append(all, b)
		}
	}
	return all
})

// ofReader marks the contexts of readers: what the origin is asked under another one is asked by a fill.
type ofReader struct{}

// thing is an object at an origin, with all it ever was there.
type thing struct {
	*storetest.Origin
	key cache.Key

	mu      sync.Mutex
	history []*blob // guarded by mu, as all below; the last is what it is now
	first   int     // reads of fills
	resumed int
}

func (o *thing) Get(ctx context.Context, offset, length int64, pin cache.Info) (*cache.Part, error) {
	o.mu.Lock()
	if ctx.Value(ofReader{}) == nil && len(o.history[len(o.history)-1].data) > 0 { // the pin of an empty one is as none
		if pin == (cache.Info{}) {
			o.first++
		} else {
			o.resumed++
		}
	}
	o.mu.Unlock()
	return o.Origin.Get(ctx, offset, length, pin)
}

func (o *thing) now() *blob {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.history[len(o.history)-1]
}

func (o *thing) was() []*blob {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.history)
}

func (o *thing) replace(b *blob) {
	o.mu.Lock()
	o.history = append(o.history, b)
	etag := fmt.Sprintf(`"%d"`, len(o.history))
	o.mu.Unlock()
	o.Set(func(s *storetest.Origin) { s.Replace(b.data, etag) })
}

// machine is a store under random operations, and what must be true of it.
type machine struct {
	rt      *rapid.T
	t       testing.TB
	base    string
	things  []*thing
	readers sync.WaitGroup
	ctx     context.Context //nolint:containedctx // of all readers of one run
	cancel  context.CancelFunc

	disk       *cache.Disk
	owner      *cache.Dir
	dir        string
	files      *storetest.Files // nil for the machine's own file system
	max        int64
	fills      uint64 // of the disks before this one
	generation int

	faulty  atomic.Bool // the disk may fail, or has since all was at rest
	retuned bool        // likewise

	mu     sync.Mutex
	broken []string // guarded by mu; what readers saw that must not be
}

// machineFor is how long the machine runs.
func machineFor(t *testing.T) (time.Duration, bool) {
	text := os.Getenv("CAPGO_EDGE_MACHINE")
	if text == "" {
		return 8 * time.Second, false
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d, true
}

var machineCounts struct{ runs, steps, reads, bytes, reopened, crashed atomic.Int64 }

// TestMachine runs random operations on a store in a directory, in fake time, and holds it to its invariants. A failure
// tells the seed that repeats it, as far as goroutines allow: they are why it does not try to shorten what failed.
// .ci/state-machine runs it for hours.
func TestMachine(t *testing.T) {
	duration, long := machineFor(t)
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		_ = errors.Join(flag.Set("rapid.checks", "5"), flag.Set("rapid.nofailfile", "true"), flag.Set("rapid.shrinktime", "1ns"))
	}
	began, told := time.Now(), time.Now()
	for round := 0; time.Since(began) < duration && !t.Failed(); round++ {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) { inBubble(t, func(t *testing.T) { runMachine(t, rt) }) })
		})
		if long && time.Since(told) > time.Minute {
			told = time.Now()
			tellMachine(time.Since(began))
		}
	}
	if long {
		tellMachine(time.Since(began))
	}
}

func tellMachine(after time.Duration) {
	c := &machineCounts
	fmt.Printf("state machine: %s, %d runs, %d steps, %d reads, %d MiB right, %d reopened, %d crashed\n", after.Round(time.Second),
		c.runs.Load(), c.steps.Load(), c.reads.Load(), c.bytes.Load()>>20, c.reopened.Load(), c.crashed.Load())
}

// inBubble runs f in fake time. rapid fails by a panic, which has to come out where rapid waits for it.
func inBubble(t *testing.T, f func(t *testing.T)) {
	var failure any
	synctest.Test(t, func(t *testing.T) {
		defer func() { failure = recover() }()
		f(t)
	})
	if failure != nil {
		t.Logf("%T: %v", failure, failure)
		panic(failure)
	}
}

func runMachine(t *testing.T, rt *rapid.T) {
	base, err := os.MkdirTemp("", "machine")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base) //nolint:errcheck // only cleaning
	m := &machine{rt: rt, t: t, base: base}
	m.ctx, m.cancel = context.WithCancel(context.WithValue(context.Background(), ofReader{}, true))
	for i := range 5 {
		o := &thing{Origin: storetest.NewOrigin(nil), key: cache.Key{Scope: fmt.Sprint("scope", i%2), Name: fmt.Sprint("name", i)}}
		o.replace(m.drawBlob())
		m.things = append(m.things, o)
	}
	if rapid.Bool().Draw(rt, "with faults") {
		m.files = storetest.NewFiles().Hurry()
	}
	m.max = 64 * mib
	m.open(filepath.Join(base, "0"))
	defer m.end()
	rt.Repeat(map[string]func(*rapid.T){
		"":        m.check,
		"read":    m.read,
		"range":   m.readRange,
		"readers": m.startReaders,
		"head":    m.head,
		"fetch":   m.fetch,
		"prefer":  m.prefer,
		"retune":  m.retune,
		"purge":   m.purge,
		"replace": m.replace,
		"origin":  m.originFault,
		"disk":    m.diskFault,
		"wait":    m.wait,
		"reopen":  m.reopen,
		"crash":   m.crash,
		"settle":  m.settle,
	})
	m.settle(rt)
	machineCounts.runs.Add(1)
}

func (m *machine) open(dir string) {
	var err error
	if m.owner, err = cache.Claim(dir); err != nil {
		m.rt.Fatal(err)
	}
	o := cache.DiskOptions{Dir: m.owner, MaxBytes: m.max, Memory: mib, ReportDamage: m.damaged}
	if m.files != nil {
		o.Files = m.files
	}
	if m.disk, err = cache.OpenDisk(o); err != nil {
		m.rt.Fatal(err)
	}
	m.dir = dir
}

// damaged notes an object that the store itself found damaged: only a failing disk may do that.
func (m *machine) damaged(key cache.Key, err error) {
	if !m.faulty.Load() {
		m.fault("%s is damaged: %v", key.Name, err)
	}
}

// close ends the store; readers go on.
func (m *machine) close() {
	m.disk.Close()
	m.fills += m.disk.Stats().Fills // readers that go on cannot start another
	if err := m.owner.Release(); err != nil {
		m.fault("release: %v", err)
	}
}

func (m *machine) end() {
	m.cancel()
	m.disk.Close()
	_ = m.owner.Release()
	m.readers.Wait()
	m.disk.Wait()
}

func (m *machine) fault(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = append(m.broken, fmt.Sprintf(format, args...))
}

// check is done after each step.
func (m *machine) check(rt *rapid.T) {
	machineCounts.steps.Add(1)
	stats := m.disk.Stats()
	if taken := stats.Bytes + stats.Reserved; taken > m.max && !stats.Scanning && !m.retuned {
		rt.Fatalf("%d bytes are taken of %d", taken, m.max)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.broken) > 0 {
		rt.Fatal(strings.Join(m.broken, "\n"))
	}
}

func (m *machine) drawBlob() *blob {
	return blobs()[rapid.IntRange(0, len(blobs())-1).Draw(m.rt, "content")]
}

func (m *machine) drawThing() *thing {
	return m.things[rapid.IntRange(0, len(m.things)-1).Draw(m.rt, "thing")]
}

// reading is one reader's wish.
type reading struct {
	of             *thing
	want           *blob // what its digest says; nil for none
	offset, length int64 // length 0: to the end
	hinted         bool
	leave          int64 // leaves after so many bytes; -1 for never
	sink           bool
	canceled       bool // before it leaves
}

func (m *machine) drawReading(rt *rapid.T) reading {
	r := reading{of: m.drawThing(), leave: -1, sink: rapid.Bool().Draw(rt, "sink")}
	switch rapid.IntRange(0, 5).Draw(rt, "digest") {
	case 0, 1:
	case 2:
		was := r.of.was()
		r.want = was[rapid.IntRange(0, len(was)-1).Draw(rt, "was")]
	case 3:
		r.want = m.drawBlob()
	default:
		r.want = r.of.now()
	}
	return r
}

func (r *reading) request() *cache.Request {
	q := &cache.Request{Key: r.of.key, Origin: r.of}
	if r.want != nil {
		q.Expect = cache.Expect{Covers: cache.StoredDigest, SHA256: r.want.sum}
	}
	if r.hinted {
		q.Offset, q.Length = r.offset, r.length
	}
	return q
}

// collector is a cache.Sink.
type collector struct{ bytes.Buffer }

func (c *collector) FilePiece() int64 { return 1 }

func (c *collector) SendFile(f *os.File, n int64) (int64, error) { return io.CopyN(&c.Buffer, f, n) }

// do reads and judges what it gets. It returns whether all came.
func (m *machine) do(disk *cache.Disk, r reading) bool {
	machineCounts.reads.Add(1)
	faulty := m.faulty.Load()
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	object, access, err := disk.Open(ctx, r.request())
	if err != nil {
		return false
	}
	defer object.Close()
	got, err := r.bytes(object)
	if r.canceled {
		cancel()
	}
	machineCounts.bytes.Add(int64(len(got)))
	whole := err == nil && r.leave < 0
	trusted := (access == cache.Hit || access == cache.HitMemory) && !faulty && !m.faulty.Load()
	if why := r.judge(got, whole, trusted); why != "" {
		m.fault("%s by %v, digest known: %v, from %d length %d, whole %v: %d bytes: %s (%v)",
			r.of.key.Name, access, r.want != nil, r.offset, r.length, whole, len(got), why, err)
	}
	return whole
}

func (r *reading) bytes(object *cache.Object) ([]byte, error) {
	if err := object.Await(r.offset); err != nil {
		return nil, err
	}
	if _, err := object.Seek(r.offset, io.SeekStart); err != nil {
		return nil, err
	}
	most := int64(1 << 40)
	if r.length > 0 {
		most = r.length
	}
	if r.leave >= 0 {
		most = min(most, r.leave)
	}
	var out collector
	var err error
	if r.sink {
		_, err = object.CopyN(&out, most)
	} else {
		_, err = io.CopyN(&out, object, most)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return out.Bytes(), errors.Join(err, object.Err())
}

// judge says why what was read is not right.
func (r *reading) judge(got []byte, whole, trusted bool) string {
	if r.want != nil && r.fits(got, whole, r.want) {
		return ""
	}
	if r.want != nil && trusted {
		return "it was stored, but is not what was asked for"
	}
	for _, b := range r.of.was() {
		if !r.fits(got, whole, b) {
			continue
		}
		switch {
		case r.want == nil, len(got) == 0 && !whole:
			return ""
		case r.offset > 0 || r.length > 0: // a range of what comes in may be of what turns out to be something else
			return ""
		case !whole && len(got) <= max(0, len(b.data)-64*kib):
			return ""
		}
	}
	return "it is none of what the origin ever had, or complete and not what was asked for"
}

// fits reports whether got is the part of b that was asked for; not to its end if it is not whole.
func (r *reading) fits(got []byte, whole bool, b *blob) bool {
	part := b.data[min(r.offset, int64(len(b.data))):]
	if r.length > 0 {
		part = part[:min(r.length, int64(len(part)))]
	}
	return bytes.HasPrefix(part, got) && (!whole || len(got) == len(part))
}

func (m *machine) read(rt *rapid.T) { m.do(m.disk, m.drawReading(rt)) }

func (m *machine) drawRange(rt *rapid.T) reading {
	r := m.drawReading(rt)
	r.offset = rapid.SampledFrom([]int64{0, 1, 64 * kib, 256 * kib, 600 * kib, mib, 5 * mib}).Draw(rt, "offset")
	r.length = rapid.SampledFrom([]int64{0, 1, 1000, 64 * kib, 300 * kib, 6 * mib}).Draw(rt, "length")
	r.hinted = rapid.Bool().Draw(rt, "hinted")
	return r
}

func (m *machine) readRange(rt *rapid.T) { m.do(m.disk, m.drawRange(rt)) }

// startReaders starts readers that go on during further steps.
func (m *machine) startReaders(rt *rapid.T) {
	disk := m.disk
	for range rapid.IntRange(1, 4).Draw(rt, "readers") {
		r := m.drawRange(rt)
		if rapid.Bool().Draw(rt, "all") {
			r.offset, r.length = 0, 0
		}
		if rapid.Bool().Draw(rt, "leaves") {
			r.leave = rapid.SampledFrom([]int64{0, 1, 1000, 100 * kib, 2 * mib}).Draw(rt, "leaves after")
			r.canceled = rapid.Bool().Draw(rt, "canceled")
		}
		m.readers.Go(func() { m.do(disk, r) })
	}
}

func (m *machine) head(rt *rapid.T) {
	r := m.drawReading(rt)
	object, _, err := m.disk.Open(m.ctx, r.request())
	if err != nil {
		return
	}
	size := object.Info().Size
	known := slices.ContainsFunc(r.of.was(), func(b *blob) bool { return size < 0 || int64(len(b.data)) == size })
	if !known {
		rt.Fatalf("size %d", size)
	}
	if err := object.Close(); err != nil {
		rt.Fatal(err)
	}
}

func (m *machine) fetch(rt *rapid.T) {
	r := m.drawReading(rt)
	disk := m.disk
	if rapid.Bool().Draw(rt, "behind") {
		m.readers.Go(func() { _ = disk.Fetch(m.ctx, r.request()) })
		return
	}
	_ = disk.Fetch(m.ctx, r.request())
}

func (m *machine) prefer(rt *rapid.T) {
	var keys []cache.Key
	for _, o := range m.things {
		if rapid.Bool().Draw(rt, "preferred") {
			keys = append(keys, o.key)
		}
	}
	m.disk.Prefer(cache.Key{Name: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "group")}, keys)
}

func (m *machine) retune(rt *rapid.T) {
	m.max = rapid.SampledFrom([]int64{100 * kib, mib, 4 * mib, 9 * mib, 64 * mib}).Draw(rt, "max")
	m.retuned = true // running fills keep what they were promised
	m.disk.Retune(m.max, 0, rapid.SampledFrom([]int64{0, 300 * kib, 4 * mib}).Draw(rt, "memory"))
}

func (m *machine) purge(rt *rapid.T) {
	key := m.drawThing().key
	if rapid.Bool().Draw(rt, "scope") {
		key.Name = ""
	}
	m.disk.Purge(key.Scope, key.Name)
}

func (m *machine) replace(*rapid.T) { m.drawThing().replace(m.drawBlob()) }

func (m *machine) originFault(rt *rapid.T) {
	o := m.drawThing()
	o.Set(func(s *storetest.Origin) {
		s.Fail(rapid.SampledFrom([]error{nil, nil, storetest.ErrDown, cache.ErrNotFound}).Draw(rt, "error"))
		s.Cut(rapid.IntRange(0, 2).Draw(rt, "cuts"), int64(rapid.IntRange(0, 2*mib).Draw(rt, "cut at")))
		s.Hide(rapid.Bool().Draw(rt, "unsized"), rapid.IntRange(0, 3).Draw(rt, "blind") == 0)
		s.Pace(rapid.SampledFrom([]time.Duration{0, time.Millisecond, time.Second}).Draw(rt, "pace"),
			rapid.SampledFrom([]int{1000, 32 * kib, mib}).Draw(rt, "piece"))
	})
}

func (m *machine) diskFault(rt *rapid.T) {
	if m.files == nil {
		return
	}
	op := rapid.SampledFrom([]storetest.Operation{
		storetest.Create, storetest.Open, storetest.ReadAt, storetest.Write, storetest.Sync, storetest.Rename,
		storetest.Remove, storetest.Mkdir, storetest.Touch,
	}).Draw(rt, "operation")
	err := rapid.SampledFrom([]error{nil, storetest.Full, storetest.ReadOnly, storetest.Broken, syscall.EMFILE}).Draw(rt, "fault")
	m.faulty.Store(true)
	m.files.FailAfter(rapid.IntRange(0, 5).Draw(rt, "after"), err, op)
}

func (m *machine) wait(rt *rapid.T) {
	time.Sleep(rapid.SampledFrom([]time.Duration{
		time.Millisecond, 50 * time.Millisecond, time.Second, 3 * time.Second, 11 * time.Second, 5 * time.Minute,
	}).Draw(rt, "wait"))
}

// healDisk ends all faults of the disk.
func (m *machine) healDisk() {
	if m.files != nil {
		m.files.Fail(nil, storetest.Create, storetest.Open, storetest.ReadAt, storetest.Write, storetest.Sync,
			storetest.Rename, storetest.Remove, storetest.Mkdir, storetest.Touch)
	}
}

func (m *machine) reopen(*rapid.T) {
	machineCounts.reopened.Add(1)
	m.healDisk()
	m.close()
	m.litter(m.dir)
	m.open(m.dir)
}

// crash goes on with the directory as it is at some moment, as after a kill -9.
func (m *machine) crash(*rapid.T) {
	machineCounts.crashed.Add(1)
	m.healDisk()
	m.generation++
	dir := filepath.Join(m.base, fmt.Sprint(m.generation))
	copyTree(m.rt, m.dir, dir)
	m.close()
	m.litter(dir)
	m.open(dir)
}

// litter leaves what processes before may have left, and others.
func (m *machine) litter(dir string) {
	for _, path := range []string{"fills/old", "fills/purged-1/x", "objects/note", "objects/dir/ab/note"} {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			m.rt.Fatal(err)
		}
	}
}

// copyTree copies what is there of a directory that changes meanwhile.
func copyTree(t interface{ Fatal(args ...any) }, from, to string) {
	err := fs.WalkDir(os.DirFS(from), ".", func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(to, path), 0o700)
		}
		raw, err := os.ReadFile(filepath.Join(from, path))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.Join(err, os.WriteFile(filepath.Join(to, path), raw, 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// settle waits until all is at rest, and checks everything.
func (m *machine) settle(rt *rapid.T) {
	m.healDisk()
	for _, o := range m.things {
		o.Set(func(s *storetest.Origin) {
			s.Fail(nil)
			s.Cut(0, 0)
		})
	}
	m.readers.Wait()
	m.disk.AwaitScan()
	m.disk.Wait()
	time.Sleep(5 * time.Minute) // failures are forgotten, and the disk is well again
	if err, _ := m.disk.Health(); err != nil {
		rt.Fatalf("the disk is not well again: %v", err)
	}
	m.faulty.Store(false)
	m.retuned = false
	m.inspect(rt)
	for _, o := range m.things {
		for _, want := range []*blob{nil, o.now()} {
			if !m.do(m.disk, reading{of: o, want: want, leave: -1}) {
				rt.Fatalf("%s cannot be had", o.key.Name)
			}
			m.disk.Wait()
		}
	}
	m.inspect(rt)
	m.check(rt)
}

// errorsOf collects what a checker finds, for rapid.
type errorsOf struct {
	testing.TB
	rt *rapid.T
}

func (e *errorsOf) Helper()                           {}
func (e *errorsOf) Error(args ...any)                 { e.rt.Error(args...) }
func (e *errorsOf) Errorf(format string, args ...any) { e.rt.Errorf(format, args...) }

// inspect checks what must be true at rest.
func (m *machine) inspect(rt *rapid.T) {
	_ = os.RemoveAll(filepath.Join(m.dir, "objects", "dir"))
	_ = os.Remove(filepath.Join(m.dir, "objects", "note"))
	storetest.Check(&errorsOf{m.t, rt}, m.disk, m.dir)
	stats := m.disk.Stats()
	if stats.Bytes > m.max {
		rt.Errorf("%d bytes are stored of %d", stats.Bytes, m.max)
	}
	first, resumed := 0, 0
	for _, o := range m.things {
		o.mu.Lock()
		first, resumed = first+o.first, resumed+o.resumed
		o.mu.Unlock()
	}
	if fills := int(m.fills + stats.Fills); first > fills || resumed > first {
		rt.Errorf("%d fills read from the origin %d times, and resumed %d times", fills, first, resumed)
	}
	for path := range m.disk.Inventory() {
		m.inspectFile(rt, filepath.Join(m.dir, path))
	}
	if rt.Failed() {
		rt.FailNow()
	}
}

// inspectFile checks that what is stored is something the origin had, and was verified as.
func (m *machine) inspectFile(rt *rapid.T, path string) {
	key, sum, verified, err := cache.RecordOf(path)
	if err != nil {
		rt.Errorf("%s: %v", path, err)
		return
	}
	for _, o := range m.things {
		if o.key != key {
			continue
		}
		had := slices.ContainsFunc(o.was(), func(b *blob) bool { return hex.EncodeToString(b.sum[:]) == sum })
		if !had || verified != "" && verified != "stored "+sum {
			rt.Errorf("%s was stored with SHA-256 %s, which the origin had: %v, verified as %q", key.Name, sum, had, verified)
		}
		return
	}
	rt.Errorf("%s is of %v", path, key)
}
