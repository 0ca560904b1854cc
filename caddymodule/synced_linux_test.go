package caddymodule_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest"
)

// TestSyncBeforeAnswer watches the system calls of a Caddy of its own: each event is written, synced, made to count, synced
// again, and only then answered. A kill -9 cannot show that, for what is not synced outlives the process in the page cache.
func TestSyncBeforeAnswer(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("there is no strace (Debian: apt-get install strace)")
	}
	s, c := newSite(t), newCollector(t)
	s.publish("1.0.1", 100)
	c.setDown(true) // so that nothing but events is written
	e := edgetest.New(t)
	edge := startCaddy(t, e, edgetest.Config{Site: s.handler("stats " + c.URL + " {\n checks off\n }")})
	client := e.Client(t)
	client.Post("/stats", statsEvent("version_name", "1.0.1")) // opens what is opened once

	trace := filepath.Join(t.TempDir(), "trace")
	tracer := exec.CommandContext(t.Context(), strace, "-f", "-y", "-s", "65536", "-e", "trace=write,pwrite64,fdatasync,fsync",
		"-o", trace, "-p", fmt.Sprint(edge.Process.Pid))
	var said strings.Builder
	tracer.Stderr = &said
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	if !attached(t, trace, client) {
		_ = tracer.Process.Kill()
		_ = tracer.Wait()
		t.Skipf("strace may not attach to a process here: %s", said.String())
	}
	const events = 20
	for i := range events {
		if r := client.Post("/stats", statsEvent("version_name", "1.0.1", "action", fmt.Sprintf("traced_%d_", i))); r.Status != 200 {
			t.Fatalf("status %d, %s", r.Status, r.Body)
		}
	}
	_ = tracer.Process.Signal(os.Interrupt)
	_ = tracer.Wait()
	raw, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	calls := finishedCalls(string(raw))
	for i := range events {
		if fault := answeredTooEarly(calls, fmt.Sprintf("traced_%d_", i)); fault != "" {
			t.Errorf("event %d: %s", i, fault)
		}
	}
}

// attached waits until strace sees the process answer.
func attached(t *testing.T, trace string, client *edgetest.Client) bool {
	t.Helper()
	for range 100 {
		if r := client.Get("/ok"); r.Status != 200 {
			t.Fatalf("status %d", r.Status)
		}
		if raw, _ := os.ReadFile(trace); strings.Contains(string(raw), "HTTP/1.1 200") {
			return true
		}
	}
	return false
}

// call is a system call that has returned, with the lines of the trace at which it began and ended.
type call struct {
	text       string
	began, end int
}

var (
	unfinished = regexp.MustCompile(`^(\d+) +(.*) <unfinished \.\.\.>$`)
	resumed    = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
)

// finishedCalls puts the halves of calls together that strace has torn apart because another thread made one in between.
func finishedCalls(trace string) []call {
	var calls []call
	pending := map[string]call{}
	for i, line := range strings.Split(trace, "\n") {
		if m := unfinished.FindStringSubmatch(line); m != nil {
			pending[m[1]] = call{text: m[2], began: i}
			continue
		}
		if m := resumed.FindStringSubmatch(line); m != nil {
			if c, ok := pending[m[1]]; ok {
				calls = append(calls, call{c.text + m[2], c.began, i})
				delete(pending, m[1])
			}
			continue
		}
		if _, text, ok := strings.Cut(line, " "); ok {
			calls = append(calls, call{strings.TrimSpace(text), i, i})
		}
	}
	return calls
}

// answeredTooEarly says what is wrong with the order of an event's calls, each of which must have begun after the one
// before it had ended.
func answeredTooEarly(calls []call, event string) string {
	steps := []struct {
		what string
		is   func(c call) bool
	}{
		{"the event is written to the spool", func(c call) bool {
			return strings.HasPrefix(c.text, "pwrite64(") && strings.Contains(c.text, ".db>") && strings.Contains(c.text, event)
		}},
		{"it is synced", isSync},
		{"the commit is written", func(c call) bool {
			return strings.HasPrefix(c.text, "pwrite64(") && strings.Contains(c.text, ".db>")
		}},
		{"that is synced", isSync},
	}
	answer := func(c call) bool {
		return strings.HasPrefix(c.text, "write(") && strings.Contains(c.text, "HTTP/1.1 200 OK")
	}
	at := -1
	for _, step := range steps {
		next := firstAfter(calls, at, step.is)
		if next == nil {
			return "never: " + step.what
		}
		if at >= 0 {
			if early := firstAfter(calls, at, answer); early != nil && early.began < next.end {
				return "answered before " + step.what
			}
		}
		at = next.end
	}
	if firstAfter(calls, at, answer) == nil {
		return "no answer was seen"
	}
	return ""
}

func isSync(c call) bool {
	return (strings.HasPrefix(c.text, "fdatasync(") || strings.HasPrefix(c.text, "fsync(")) && strings.Contains(c.text, ".db>") &&
		strings.HasSuffix(c.text, "= 0")
}

func firstAfter(calls []call, line int, is func(c call) bool) *call {
	for i := range calls {
		if calls[i].began > line && is(calls[i]) {
			return &calls[i]
		}
	}
	return nil
}
