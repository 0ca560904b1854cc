package stats_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// site is an edge with a spool, a forwarder and a collector, all real, joined by HTTP over pipes, so that it runs in fake time.
type site struct {
	t         *testing.T
	began     time.Time
	options   stats.SpoolOptions
	spool     *stats.Spool
	forwarder *stats.Forwarder
	network   *pipeNetwork
	server    *http.Server

	mu       sync.Mutex
	answer   func(r arrival) reply // guarded by mu, as the others
	arrivals []arrival
	reports  []string
	n        int    // number of the last event, for tests that count
	padding  string // of events

	objectForm bool // of the collectors that are made
}

// arrival is a request at the collector.
type arrival struct {
	n      int // from 1
	at     time.Duration
	key    string
	loop   http.Header
	bytes  int
	object bool
	app    string
	events []event
	status int
	codes  []string // of the events, in a 200 with results
	unread bool     // a 200 does not tell what became of them
}

type event struct {
	App    string `json:"app_id"`
	Device string `json:"device_id"`
	N      int    `json:"n"`

	Padding string `json:"padding,omitempty"`
}

func (e event) String() string { return fmt.Sprintf("%s%d", e.Device, e.N) }

// String is as "a[d1 d2] 200", with braces for the object form, "-" for no answer, and "d1!code" for an event with an error.
func (a arrival) String() string {
	brackets := "[]"
	if a.object {
		brackets = "{}"
	}
	result := fmt.Sprint(a.status)
	if a.status == 0 {
		result = "-"
	}
	names := make([]string, len(a.events))
	for i, e := range a.events {
		if names[i] = e.String(); a.codes != nil && a.codes[i] != "" {
			names[i] += "!" + a.codes[i]
		}
	}
	return a.app + brackets[:1] + strings.Join(names, " ") + brackets[1:] + " " + result
}

func (a arrival) has(n int) bool {
	return slices.ContainsFunc(a.events, func(e event) bool { return e.N == n })
}

// reply is what the collector answers: a status and a body, or nothing.
type reply struct {
	status int
	body   string
	codes  []string // what the body says, event by event
	header map[string]string
	hang   bool
	unread bool // the body does not tell
	cut    int  // 1: before the answer, 2: in the middle of it
}

var ok = reply{status: 200, body: `{"status":"ok"}`}

// newSite starts an edge. The test runs in a bubble.
func newSite(t *testing.T, answer func(arrival) reply) *site {
	s := &site{
		t: t, began: time.Now(), answer: answer, network: newPipeNetwork(),
		options: stats.SpoolOptions{Path: scratch(t) + "/spool", MaxBytes: 1 << 30},
	}
	s.server = &http.Server{Handler: s}
	go func() { _ = s.server.Serve(s.network) }()
	s.start()
	t.Cleanup(func() {
		s.stop()
		s.network.Close()
		s.server.Close()
	})
	return s
}

func (s *site) start() { s.startWith(1) }

func (s *site) startWith(concurrency int) {
	s.t.Helper()
	var err error
	if s.spool, err = stats.OpenSpool(s.options); err != nil {
		s.t.Fatal(err)
	}
	s.forwarder = stats.NewForwarder(stats.ForwarderOptions{
		Spool: s.spool, Collector: s.collector("first"), Concurrency: concurrency, Report: s.report,
	})
	s.forwarder.Start()
}

func (s *site) collector(token string) *stats.HTTPCollector {
	c, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{
		URL:    "http://user:secret1@collector.example/stats?token=secret2",
		Header: http.Header{"X-Token": {token}}, ObjectForm: s.objectForm,
		WrapTransport: func(http.RoundTripper) http.RoundTripper {
			return &http.Transport{DialContext: s.network.dial, MaxIdleConnsPerHost: 8}
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// stop ends the edge; requests on their way are cut off.
func (s *site) stop() {
	if s.forwarder == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.forwarder.Close(ctx)
	if err := s.spool.Close(); err != nil {
		s.t.Error(err)
	}
	s.forwarder = nil
}

func (s *site) report(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := "works"
	if err != nil {
		text = err.Error()
	}
	if strings.Contains(text, "secret") {
		s.t.Errorf("a secret is in %q", text)
	}
	s.reports = append(s.reports, text)
}

// add appends events of app a: "d1 d2 e3" are two of device d and one of e.
func (s *site) add(events string) { s.addTo("a", events) }

func (s *site) addTo(app, events string) {
	s.t.Helper()
	var all []event
	for name := range strings.FieldsSeq(events) {
		e := event{App: app, Device: name[:1], Padding: s.padding}
		e.N, _ = strconv.Atoi(name[1:])
		all = append(all, e)
	}
	s.addEvents(all...)
}

func (s *site) addEvents(events ...event) {
	s.t.Helper()
	var batch []stats.Event
	for _, e := range events {
		data, _ := json.Marshal(e)
		batch = append(batch, stats.Event{App: e.App, Device: e.Device, Confirmed: true, Data: data})
	}
	if err := s.spool.Append(s.t.Context(), batch...); err != nil {
		s.t.Fatal(err)
	}
}

// pass lets time pass.
func (s *site) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// now replaces how the collector answers.
func (s *site) now(answer func(arrival) reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *site) seen() []arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.arrivals)
}

func (s *site) reported() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.reports, " | ")
}

// ServeHTTP is the collector.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	a := arrival{bytes: len(body), at: time.Since(s.began), key: r.Header.Get("Idempotency-Key"), loop: r.Header, object: body[0] == '{'}
	if a.object {
		body = slices.Concat([]byte("["), body, []byte("]"))
	}
	if err := json.Unmarshal(body, &a.events); err != nil || r.Header.Get("Content-Type") != "application/json" || r.Method != http.MethodPost {
		s.t.Errorf("%s %s, %v", r.Method, body, err)
	}
	a.app = a.events[0].App
	s.mu.Lock()
	a.n = len(s.arrivals) + 1
	reply := s.answer(a)
	a.codes, a.unread = reply.codes, reply.unread
	if a.status = reply.status; reply.hang || reply.cut > 0 {
		a.status = 0
	}
	s.arrivals = append(s.arrivals, a)
	s.mu.Unlock()
	for name, value := range reply.header {
		w.Header().Set(name, value)
	}
	switch {
	case reply.hang:
		<-r.Context().Done()
	case reply.cut == 1:
		panic(http.ErrAbortHandler)
	case reply.cut == 2:
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"status":`)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	default:
		w.WriteHeader(reply.status)
		_, _ = io.WriteString(w, reply.body)
	}
}

// dead lists the dead letters as "d3:code".
func (s *site) dead() []string {
	s.t.Helper()
	var dead []string
	err := s.spool.DeadLetters(func(d stats.DeadLetter) bool {
		var e event
		if err := json.Unmarshal(d.Event, &e); err != nil {
			s.t.Error(err)
		}
		dead = append(dead, e.String()+":"+d.Code)
		return true
	})
	if err != nil {
		s.t.Error(err)
	}
	return dead
}

// pipeNetwork is a network with one host.
type pipeNetwork struct {
	conns chan net.Conn
	done  chan struct{}
	mu    sync.Mutex
	down  bool         // guarded by mu
	dead  *atomic.Bool // of the connections that are made now; guarded by mu
}

func newPipeNetwork() *pipeNetwork {
	return &pipeNetwork{conns: make(chan net.Conn), done: make(chan struct{}), dead: new(atomic.Bool)}
}

// pipeConn is a connection that brings nothing to the other side any more once it is dead, and does not say so.
type pipeConn struct {
	net.Conn
	dead *atomic.Bool
}

func (c pipeConn) Write(p []byte) (int, error) {
	if c.dead.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// silence has all connections there are die without a word.
func (p *pipeNetwork) silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead.Store(true)
	p.dead = new(atomic.Bool)
}

var errRefused = errors.New("connection refused")

func (p *pipeNetwork) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	p.mu.Lock()
	down, dead := p.down, p.dead
	p.mu.Unlock()
	if down {
		return nil, errRefused
	}
	client, server := net.Pipe()
	select {
	case p.conns <- pipeConn{server, dead}:
		return pipeConn{client, dead}, nil
	case <-p.done:
		return nil, errRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipeNetwork) setDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

func (p *pipeNetwork) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipeNetwork) Close() error {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}

func (p *pipeNetwork) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
