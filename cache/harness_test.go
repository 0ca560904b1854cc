package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	errDown    = errors.New("connection refused")
	errInvalid = errors.New("invalid document")
)

const (
	fresh, staleWhile, stale, negative = 10 * time.Second, time.Minute, 7 * 24 * time.Hour, 10 * time.Second

	scope = "file /srv/a"
	app   = "com.example.app"
)

// value is a compiled document.
type value struct{ text, memo string }

// fakeOrigin holds documents, and a Source that counts what is asked of it.
type fakeOrigin struct {
	mu       sync.Mutex
	docs     map[string]string // guarded by mu, as all below
	etags    map[string]string
	err      error
	delay    time.Duration
	panics   any
	size     int64
	busy     bool
	requests []time.Time
	whole    int // requests that were answered with a document
	decoded  int
	reports  []error
	disk     []error
}

func newOrigin(docs ...string) *fakeOrigin {
	o := &fakeOrigin{docs: map[string]string{}, etags: map[string]string{}, size: 100}
	for i := 0; i < len(docs); i += 2 {
		o.docs[docs[i]] = docs[i+1]
	}
	return o
}

// do changes the origin.
func (o *fakeOrigin) do(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

func (o *fakeOrigin) put(name, text string) { o.do(func() { o.docs[name] = text }) }
func (o *fakeOrigin) fail(err error)        { o.do(func() { o.err = err }) }

// asked returns how many requests there were since it was last called.
func (o *fakeOrigin) asked() int { return len(o.askedAt()) }

func (o *fakeOrigin) askedAt() []time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	requests := o.requests
	o.requests = nil
	return requests
}

// diskErrors returns what ReportDisk was told since it was last called.
func (o *fakeOrigin) diskErrors() []error {
	o.mu.Lock()
	defer o.mu.Unlock()
	errs := o.disk
	o.disk = nil
	return errs
}

func (o *fakeOrigin) source() *Source[*value] {
	return &Source[*value]{
		Scope: scope,
		Ages:  Ages{Fresh: fresh, StaleWhile: staleWhile, Stale: stale, Negative: negative},
		Fetch: o.fetch, Decode: o.decode, Replace: replace,
		Admit:      func() bool { o.mu.Lock(); defer o.mu.Unlock(); return !o.busy },
		Report:     func(_ string, _ bool, err error) { o.do(func() { o.reports = append(o.reports, err) }) },
		ReportDisk: func(_ string, err error) { o.do(func() { o.disk = append(o.disk, err) }) },
	}
}

func (o *fakeOrigin) fetch(ctx context.Context, name string, prev Document) (Document, error) {
	o.mu.Lock()
	o.requests = append(o.requests, time.Now())
	delay := o.delay
	o.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return Document{}, ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	text, ok := o.docs[name]
	etag := o.etags[name]
	if etag == "" {
		etag = fmt.Sprintf("%q", text)
	}
	switch {
	case o.panics != nil:
		panic(o.panics)
	case o.err != nil:
		return Document{}, o.err
	case !ok:
		return Document{}, fmt.Errorf("asking for %s: %w", name, ErrNotFound)
	case etag == prev.ETag:
		return Document{}, ErrNotModified
	}
	o.whole++
	return Document{Raw: []byte(text), ETag: etag}, nil
}

func (o *fakeOrigin) decode(_ string, raw, memo []byte) (*value, int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.decoded++
	text := string(raw)
	switch {
	case text == "panic":
		panic("decode")
	case strings.HasPrefix(text, "invalid"):
		return nil, 0, errInvalid
	}
	return &value{text, string(memo)}, o.size, nil
}

// replace remembers what came before.
func replace(old, next *value, _ []byte) []byte {
	next.memo = old.text + " " + old.memo
	return []byte(next.memo)
}

// newMemory returns a Memory over dir that is closed with the test, or by the function.
func newMemory(t testing.TB, dir string, maxBytes int64) (*Memory[*value], func()) {
	t.Helper()
	lastGood, err := OpenLastGood(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewMemory[*value](maxBytes, lastGood)
	if err != nil {
		t.Fatal(err)
	}
	closeOnce := sync.OnceFunc(m.Close)
	t.Cleanup(closeOnce)
	return m, closeOnce
}

const room = 1 << 20

// bubble runs f in fake time.
func bubble(t *testing.T, o *fakeOrigin, f func(t *testing.T, m *Memory[*value], s *Source[*value])) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m, _ := newMemory(t, t.TempDir(), room)
		f(t, m, o.source())
	})
}

// answer is what a Get gave, as text.
func answer(t *testing.T, m *Memory[*value], s *Source[*value], name string) string {
	t.Helper()
	v, state, err := m.Get(t.Context(), s, name)
	if err != nil {
		if v != nil {
			t.Errorf("a value comes with the error %v", err)
		}
		return state.String() + ": " + err.Error()
	}
	return state.String() + " " + v.text
}

func want(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func wantAsked(t *testing.T, o *fakeOrigin, n int) {
	t.Helper()
	if got := o.asked(); got != n {
		t.Errorf("the origin was asked %d times, want %d", got, n)
	}
}

// breakDisk makes the copies of the scope unwritable, for root too; the function mends it.
func breakDisk(t *testing.T, m *Memory[*value]) (mend func()) {
	t.Helper()
	dir := m.lastGood.dir
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
	}
}
