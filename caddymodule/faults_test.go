package caddymodule

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// TestFaultsThatComeBack: a fault that comes back too soon to be logged is logged later, if it lasts. Spools and forwarders
// tell of a fault only once.
func TestFaultsThatComeBack(t *testing.T) {
	const down, up = "down", "up"
	type change struct {
		at             time.Duration
		subject, state string
	}
	tests := []struct {
		name    string
		changes []change
		want    []string // what is logged, and when
	}{
		{
			"for good",
			[]change{{0, "a", down}, {600 * time.Second, "a", up}, {630 * time.Second, "a", down}},
			[]string{"0s a down", "10m0s a up", "11m0s a down"},
		},
		{
			"and ends",
			[]change{{0, "a", down}, {1 * time.Second, "a", up}, {2 * time.Second, "a", down}, {60 * time.Second, "a", up}},
			[]string{"0s a down", "1s a up"},
		},
		{
			"and ends after it was logged",
			[]change{{0, "a", down}, {1 * time.Second, "a", up}, {2 * time.Second, "a", down}, {62 * time.Second, "a", up}},
			[]string{"0s a down", "1s a up", "1m1s a down", "1m2s a up"},
		},
		{
			"again and again",
			[]change{
				{0, "a", down},
				{1 * time.Second, "a", up},
				{2 * time.Second, "a", down},
				{3 * time.Second, "a", up},
				{59 * time.Second, "a", down},
				{600 * time.Second, "a", up},
			},
			[]string{"0s a down", "1s a up", "1m1s a down", "10m0s a up"},
		},
		{
			"in another way",
			[]change{{0, "a", down}, {1 * time.Second, "a", up}, {2 * time.Second, "a", down}, {3 * time.Second, "a", "broken"}},
			[]string{"0s a down", "1s a up", "1m1s a broken"},
		},
		{
			"with others",
			[]change{
				{0, "a", down},
				{0, "b", down},
				{1 * time.Second, "a", up},
				{30 * time.Second, "b", up},
				{31 * time.Second, "b", down},
				{32 * time.Second, "a", down},
				{33 * time.Second, "c", down},
			},
			[]string{"0s a down", "0s b down", "1s a up", "30s b up", "33s c down", "1m1s a down", "1m30s b down"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.DebugLevel)
				f := newFaultLog()
				f.use(zap.New(core))
				began := time.Now()
				for _, c := range tt.changes {
					time.Sleep(c.at - time.Since(began))
					if c.state == up {
						f.well(c.subject, c.subject+" up")
					} else {
						f.fault(c.subject, c.state, c.subject+" "+c.state)
					}
				}
				time.Sleep(time.Hour)
				var got []string
				for _, line := range logs.All() {
					got = append(got, line.Time.Sub(began).String()+" "+line.Message)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestFaultLogClosed: an edge that has stopped says nothing any more of what waited.
func TestFaultLogClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		f := newFaultLog()
		f.use(zap.New(core))
		f.fault("a", "down", "down")
		f.well("a", "up")
		f.fault("a", "down", "down again")
		f.close()
		time.Sleep(time.Hour)
		if n := logs.Len(); n != 2 {
			t.Errorf("%d lines", n)
		}
	})
}
