package caddymodule

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// TestBodyMemory: a body takes memory as it arrives, and a small one exactly what it needs.
func TestBodyMemory(t *testing.T) {
	tests := []struct {
		name            string
		announced, sent int
		most            int
		ok              bool
	}{
		{"a check", 700, 700, 701, true},
		{"the largest that is taken in one piece", firstBody - 1, firstBody - 1, firstBody, true},
		{"a batch", 60_000, 60_000, 64 << 10, true},
		{"announced and not sent", 200_000, 1, firstBody, false},
		{"announced and sent in part", 200_000, 20_000, 32 << 10, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := io.MultiReader(strings.NewReader(strings.Repeat("x", tt.sent)), failingReader{})
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/stats", body)
			r.ContentLength = int64(tt.announced)
			got, ok := readBody(httptest.NewRecorder(), r, nil, 1<<20)
			if ok != tt.ok || len(got) != tt.sent || cap(got) > tt.most {
				t.Errorf("%v, %d bytes, memory for %d", ok, len(got), cap(got))
			}
		})
	}
}

// failingReader is a connection that breaks.
type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestChunkedBodyMemory: a body that does not tell its length takes no more than one that does.
func TestChunkedBodyMemory(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/stats", strings.NewReader(strings.Repeat("x", maxEventsBody)))
	r.ContentLength = -1
	s, h := new(scratch), &Handler{runtime: &runtime{largeBodies: newLargeBodies()}}
	if !h.readLarge(httptest.NewRecorder(), r, s, maxEventsBody) || len(s.body) != maxEventsBody || s.large > maxEventsBody {
		t.Errorf("%d bytes, which took %d", len(s.body), s.large)
	}
	if !h.takeLarge(r, s, resolver.MaxBatch*eventMemory) {
		t.Error("there is no memory for its events")
	}
	h.giveLarge(s, s.large)
	if l := h.runtime.largeBodies; l.taken != 0 || len(l.byNetwork) != 0 {
		t.Errorf("%d bytes are not given back, %v", l.taken, l.byNetwork)
	}
}

// TestLargeBodiesOfANetwork: the clients of one network leave memory to the others.
func TestLargeBodiesOfANetwork(t *testing.T) {
	const body = 8 << 20
	l := newLargeBodies()
	count := func(network uint64) (n int) {
		for l.take(network, body) {
			n++
		}
		return n
	}
	if n := count(1); n != maxNetworkBodies/body {
		t.Errorf("one network has %d bodies", n)
	}
	all := maxNetworkBodies / body
	for network := uint64(2); network < 100; network++ {
		all += count(network)
	}
	if all != maxLargeBodies/body {
		t.Errorf("all have %d bodies", all)
	}
	l.give(1, body)
	if !l.take(3, body) && !l.take(99, body) {
		t.Error("what was given back cannot be taken")
	}
}

// pipes is a listener in memory, for whom time can be what a test says.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if conn, ok := <-p; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p pipes) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	p <- server
	return client, nil
}

// slowBody gives the first bytes at once, and then so many in each interval.
type slowBody struct {
	first, left, each int
	interval          time.Duration
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n := min(b.first, b.left, len(p))
	if n == 0 {
		n = min(b.each, b.left, len(p))
		time.Sleep(b.interval * time.Duration(n) / time.Duration(b.each))
	} else {
		b.first -= n
	}
	b.left -= n
	copy(p, bytes.Repeat([]byte(" "), n))
	return n, nil
}

// TestSlowBodies: who takes memory for a large body has to send it, and who sends it has the time that it needs.
func TestSlowBodies(t *testing.T) {
	tests := []struct {
		name        string
		body        slowBody
		readTimeout time.Duration // of Caddy
		status      int
		after       time.Duration
	}{
		{"all at once", slowBody{1 << 20, 1 << 20, 0, 0}, 0, 200, 0},
		{"64 KiB in a second", slowBody{0, 4 << 20, 64 << 10, time.Second}, 0, 200, 64 * time.Second},
		{"300 KB, and no more", slowBody{300_000, 1 << 20, 1, 20 * time.Second}, 0, 408, 38 * time.Second},
		{"8 MiB, and no more", slowBody{8<<20 + 1, 16 << 20, 1, 20 * time.Second}, 0, 408, (30 + 256) * time.Second},
		{"20 KB, and no more", slowBody{20_000, 1 << 20, 1, 20 * time.Second}, 0, 408, 30 * time.Second},
		{"longer than Caddy waits", slowBody{300_000, 1 << 20, 1, 3 * time.Second}, 10 * time.Second, 408, 10 * time.Second},
	}
	for _, tt := range tests {
		for _, version := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, HTTP/%d", tt.name, version), func(t *testing.T) {
				body := tt.body
				synctest.Test(t, func(t *testing.T) { testSlowBody(t, &body, tt.readTimeout, version, tt.status, tt.after) })
			})
		}
	}
}

func testSlowBody(t *testing.T, body *slowBody, readTimeout time.Duration, version, status int, after time.Duration) {
	h := &Handler{runtime: &runtime{largeBodies: newLargeBodies()}}
	listener, protocols := make(pipes), new(http.Protocols)
	protocols.SetHTTP1(version == 1)
	protocols.SetUnencryptedHTTP2(version == 2)
	began := time.Now()
	var answered time.Duration
	server := &http.Server{Protocols: protocols, ReadTimeout: readTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := new(scratch)
		ok := h.readLarge(w, r, s, maxEventsBody)
		answered = time.Since(began)
		h.giveLarge(s, s.large)
		if !ok {
			return
		}
		time.Sleep(time.Hour) // the answer may take its time
		if r.Context().Err() != nil {
			t.Error("the request ends before it is answered")
		}
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	transport := &http.Transport{DialContext: listener.dial, Protocols: protocols}
	client := &http.Client{Transport: transport}
	for _, body := range []io.Reader{body, strings.NewReader("{}")} { // the second one over the same connection, if it goes on
		sent := time.Now()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://edge/stats", io.NopCloser(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != status || answered != after {
			t.Errorf("status %d, after %s", resp.StatusCode, answered)
		}
		began, status, after = began.Add(time.Since(sent)), http.StatusOK, 0
	}
	if taken := h.runtime.largeBodies.taken; taken != 0 {
		t.Errorf("%d bytes are not given back", taken)
	}
	transport.CloseIdleConnections()
	_ = server.Close()
	wg.Wait()
}

// TestManyEventsMemory: a large batch counts as such, however small its events are, and an ordinary one does not.
func TestManyEventsMemory(t *testing.T) {
	e := edgetest.Start(t, edgetest.Config{Site: "capgo_edge {\n origin file " + t.TempDir() + "\n }"})
	batch := func(n int) string { return `[{"app_id":"a.b"}` + strings.Repeat(`,{"app_id":"a.b"}`, n-1) + `]` }
	client := e.Client(t)
	e.AllProtocols(t, func(t *testing.T, c *edgetest.Client) {
		if r := c.Post("/stats", batch(resolver.MaxBatch)); r.Status != 200 || len(r.Body) < 50*resolver.MaxBatch {
			t.Errorf("status %d, %d bytes", r.Status, len(r.Body))
		}
	})
	var all *largeBodies
	eachRuntime(func(r *runtime) {
		if r.dir == e.Storage {
			all = r.largeBodies
		}
	})
	edgetest.Eventually(t, "all memory is given back", func() bool {
		all.mu.Lock()
		defer all.mu.Unlock()
		return all.taken == 0
	})
	for network := uint64(1 << 40); all.take(network, maxNetworkBodies); network++ {
	}
	for network := uint64(1 << 50); all.take(network, eventMemory); network++ {
	}
	if r := client.Post("/stats", batch(ordinaryBatch)); r.Status != 200 {
		t.Errorf("an ordinary batch: status %d, %s", r.Status, r.Body)
	}
	if r := client.Post("/stats", batch(ordinaryBatch+1)); r.Status != 503 {
		t.Errorf("a large batch: status %d", r.Status)
	}
}

// TestBatchAnswerMemory: for a client that does not take its answer nothing is held but that.
func TestBatchAnswerMemory(t *testing.T) {
	h := &Handler{runtime: &runtime{largeBodies: newLargeBodies()}}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/stats", nil)
	for _, n := range []int{10, 4900} {
		s := &scratch{body: make([]byte, 1<<20), accepted: make([]event, n)}
		for range n {
			s.refusals = append(s.refusals, unknownApp)
		}
		if !h.takeLarge(r, s, int64(n*eventMemory)) {
			t.Fatal("there is no memory")
		}
		w := httptest.NewRecorder()
		h.answerEvents(w, s, true)
		small := w.Body.Len() <= smallAnswer
		if held := s.body != nil || s.accepted != nil || s.refusals != nil; held != small {
			t.Errorf("%d refusals: held %t", n, held)
		}
		if taken := h.runtime.largeBodies.taken; taken != s.large || !small && taken != int64(cap(s.answer)) {
			t.Errorf("%d refusals: %d bytes are taken, for %d", n, taken, cap(s.answer))
		}
		h.giveLarge(s, s.large)
	}
}
