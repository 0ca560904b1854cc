package stats_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLooped: an edge knows what it sent itself, and nothing else.
func TestLooped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *site
		leadsBack := func(a arrival) reply {
			if s.forwarder.Looped(a.loop) {
				return reply{status: http.StatusLoopDetected}
			}
			return ok
		}
		s = newSite(t, leadsBack)
		other := newSite(t, func(arrival) reply { return ok })
		s.add("d1")
		other.add("d1")
		s.pass(time.Minute)
		for _, a := range s.seen() {
			if a.status != http.StatusLoopDetected {
				t.Errorf("it took %s", a)
			}
		}
		own, foreign := s.seen()[0].loop.Get("CDN-Loop"), other.seen()[0].loop.Get("CDN-Loop")
		tests := []struct {
			name  string
			lines []string
			want  bool
		}{
			{"none", nil, false},
			{"own", []string{own}, true},
			{"of another edge", []string{foreign}, false},
			{"of another CDN", []string{"cloudflare; loops=1"}, false},
			{"among others", []string{"cloudflare; loops=1; subreqs=1," + own + ";a=b , " + foreign}, true},
			{"in a further line", []string{foreign, "\t" + own}, true},
			{"a part of it", []string{own[:len(own)-1], strings.TrimPrefix(own, "capgo-edge-")}, false},
			{"no instance", []string{"capgo-edge-", "capgo-edge", ""}, false},
		}
		for _, test := range tests {
			if got := s.forwarder.Looped(http.Header{"Cdn-Loop": test.lines}); got != test.want {
				t.Errorf("%s: %t", test.name, got)
			}
		}
		s.now(func(arrival) reply { return ok }) // the address was corrected
		s.pass(time.Hour)
		if left := s.spool.Stats().Events; left != 0 {
			t.Errorf("%d events are left", left)
		}
	})
}
