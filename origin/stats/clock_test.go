package stats

import (
	"strings"
	"testing"
	"time"
)

// TestSharedTime: devices that wait share a time on the monotonic clock, as the other may be set back.
func TestSharedTime(t *testing.T) {
	turns := newTurns()
	for _, test := range []struct{ wait, grid time.Duration }{
		{300 * time.Millisecond, time.Second},
		{5 * time.Second, time.Second},
		{4 * time.Minute, 10 * time.Second},
	} {
		now := time.Now()
		until := now.Add(test.wait)
		shared := turns.sharedTime(until, now)
		if !strings.Contains(shared.String(), " m=") { // the monotonic reading
			t.Errorf("%s: %v is a time of the wall clock", test.wait, shared)
		}
		if late := shared.Sub(until); late < 0 || late >= test.grid {
			t.Errorf("%s: it is %s too late", test.wait, late)
		}
		if off := shared.Sub(turns.began) % test.grid; off != 0 {
			t.Errorf("%s: it is %s beside what others get", test.wait, off)
		}
	}
}

// TestOldestWhenTheClockIsSetBack: the oldest event is none of the future, and is found among those that came later, too.
func TestOldestWhenTheClockIsSetBack(t *testing.T) {
	s, err := OpenSpool(SpoolOptions{Path: t.TempDir() + "/s.db"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	now := time.Now()
	for _, test := range []struct {
		app       string
		at, least time.Duration
	}{
		{"a", 2 * time.Hour, 0},
		{"b", time.Hour, 0},
		{"c", -time.Hour, time.Hour},
		{"d", -time.Minute, time.Hour},
	} {
		e := entry{app: test.app, confirmed: true, time: now.Add(test.at), data: []byte("{}")}
		if err := s.append(t.Context(), []entry{e}); err != nil {
			t.Fatal(err)
		}
		if age := time.Since(s.Stats().Oldest); age < test.least || age > test.least+time.Minute {
			t.Errorf("with app %s the oldest event is %s old", test.app, age)
		}
	}
}
