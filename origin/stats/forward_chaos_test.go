package stats_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

// chaos is a collector that fails in all ways there are, by the dice, until it is calm. It takes arrays of events as [event].
type chaos struct {
	mu       sync.Mutex
	dice     *rand.Rand
	calm     bool
	taken    map[string]map[int]int // how often, by device and number
	latest   map[string]int         // taken of a device
	overtook []string               // events that were taken before one of their device
	bodies   map[string]string      // by key
	reused   []string               // keys that came with another body
}

func newChaos(seed uint64) *chaos {
	return &chaos{
		dice: rand.New(rand.NewPCG(seed, 2)), taken: map[string]map[int]int{}, latest: map[string]int{}, bodies: map[string]string{},
	}
}

// RoundTrip implements http.RoundTripper.
func (c *chaos) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	key := r.Header.Get("Idempotency-Key")
	if was, ok := c.bodies[key]; ok && was != string(body) {
		c.reused = append(c.reused, key)
	}
	c.bodies[key] = string(body)
	status, text := c.answer(body)
	if status == 0 {
		return nil, errors.New("connection reset")
	}
	return &http.Response{
		StatusCode: status, Header: http.Header{"Retry-After": {map[int]string{429: "2"}[status]}},
		Body: io.NopCloser(strings.NewReader(text)), Request: r,
	}, nil
}

// answer takes the events of a request, or some of them, or none. Status 0: there is no answer.
func (c *chaos) answer(body []byte) (status int, text string) {
	var events []event
	if body[0] == '{' {
		body = []byte("[" + string(body) + "]")
	}
	if err := json.Unmarshal(body, &events); err != nil {
		return 400, `{"error":"invalid_json_parse_body"}`
	}
	lost := false
	if !c.calm {
		switch dice := c.dice.IntN(100); {
		case dice < 5:
			return 500, ""
		case dice < 8:
			return 429, `{"error":"too_many_requests"}`
		case dice < 10:
			return 0, ""
		case dice < 12:
			lost = true // the answer
		case dice < 13:
			return 429, `{"error":"on_premise_app"}`
		}
	}
	for _, e := range events {
		if e.bad() {
			return 400, `{"error":"invalid_json_body","message":"m"}`
		}
	}
	if len(body) > 60_000 && len(events) > 1 {
		return 413, ""
	}
	text = c.take(events)
	if lost {
		return 0, ""
	}
	return 200, text
}

// bad events are refused with the whole request.
func (e event) bad() bool { return e.N%97 == 96 }

// take takes events but for those that it cannot process for now, and gives the results of all.
func (c *chaos) take(events []event) string {
	results := make([]string, len(events))
	kept := map[string]bool{}
	for i, e := range events {
		if kept[e.Device] || !c.calm && c.dice.IntN(100) < 3 {
			kept[e.Device] = true
			results[i] = fmt.Sprintf(`{"status":"error","error":"processing_error","message":"m","index":%d}`, i)
			continue
		}
		results[i] = fmt.Sprintf(`{"status":"ok","index":%d}`, i)
		if c.taken[e.Device] == nil {
			c.taken[e.Device] = map[int]int{}
		}
		if c.taken[e.Device][e.N]++; c.taken[e.Device][e.N] > 1 {
			continue
		}
		if e.N < c.latest[e.Device] {
			c.overtook = append(c.overtook, fmt.Sprintf("%s before %d", e, c.latest[e.Device]))
		}
		c.latest[e.Device] = max(c.latest[e.Device], e.N)
	}
	return `{"status":"ok","results":[` + strings.Join(results, ",") + `]}`
}

// TestChaos: whatever a collector does, with restarts and reloads in between, each event is taken or a dead letter, those of a
// device in their order, and no key comes with two bodies.
func TestChaos(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testChaos(t, seed) })
		})
	}
}

func testChaos(t *testing.T, seed uint64) {
	dice, c := rand.New(rand.NewPCG(seed, 1)), newChaos(seed)
	b := newBox(t, stats.SpoolOptions{MaxBytes: 64 * mib})
	collector, err := stats.NewHTTPCollector(stats.HTTPCollectorOptions{
		URL: "http://collector.example/stats", WrapTransport: func(http.RoundTripper) http.RoundTripper { return c },
	})
	if err != nil {
		t.Fatal(err)
	}
	start := func() *stats.Forwarder {
		f := stats.NewForwarder(stats.ForwarderOptions{Spool: b.Spool, Collector: collector})
		f.Start()
		return f
	}
	stop := func(f *stats.Forwarder, within time.Duration) {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		_ = f.Close(ctx)
	}
	f, sent := start(), map[string]int{}
	for range 250 {
		app, batch := fmt.Sprintf("app%d", dice.IntN(3)), []stats.Event(nil)
		for range 1 + dice.IntN(60) {
			e := event{App: app, Device: fmt.Sprintf("%s-%d", app, dice.IntN(20))}
			if sent[e.Device]++; dice.IntN(20) == 0 {
				e.Padding = fill(dice.IntN(20_000))
			}
			e.N = sent[e.Device]
			data, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			batch = append(batch, confirmed(app, e.Device, string(data))...)
		}
		if err := b.Append(t.Context(), batch...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(dice.IntN(1500)) * time.Millisecond)
		switch dice.IntN(40) {
		case 0:
			stop(f, time.Duration(dice.IntN(100))*time.Millisecond)
			b.reopen()
			f = start()
		case 1:
			f.Use(collector)
		}
	}
	c.mu.Lock()
	c.calm = true
	c.mu.Unlock()
	time.Sleep(2 * time.Hour)
	stop(f, time.Minute)
	if b.Stats().Events > 0 || len(c.overtook) > 0 || len(c.reused) > 0 {
		t.Errorf("%d events are left, overtaken were %q, keys came twice %q", b.Stats().Events, c.overtook, c.reused)
	}
	dead := map[string]bool{}
	for _, text := range events(b.letters()) {
		var e event
		if err := json.Unmarshal([]byte(text), &e); err != nil || !e.bad() {
			t.Errorf("%s is dead, %v", e, err)
		}
		dead[e.String()] = true
	}
	for device, n := range sent {
		for i := 1; i <= n; i++ {
			if e := (event{Device: device, N: i}); c.taken[device][i] == 0 && !dead[e.String()] {
				t.Errorf("%s is missing", e)
			}
		}
	}
}
