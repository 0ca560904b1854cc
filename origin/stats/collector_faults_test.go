package stats_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// itemErrors answers a batch as the official collector does: a result for each event, with the codes that code gives.
func itemErrors(a arrival, code func(event) string) reply {
	results, codes := make([]string, len(a.events)), make([]string, len(a.events))
	for i, e := range a.events {
		results[i] = fmt.Sprintf(`{"status":"ok","index":%d}`, i)
		if codes[i] = code(e); codes[i] != "" {
			results[i] = fmt.Sprintf(`{"status":"error","error":"%s","message":"m","index":%d}`, codes[i], i)
		}
	}
	return reply{status: 200, codes: codes, body: `{"status":"ok","results":[` + strings.Join(results, ",") + `]}`}
}

func refusal(status int, code string) reply {
	return reply{status: status, body: fmt.Sprintf(`{"error":"%s","message":"m"}`, code)}
}

// fails answers the first n requests like bad, and takes the others.
func fails(n int, bad reply) func(arrival) reply {
	return func(a arrival) reply {
		if a.n <= n {
			return bad
		}
		return ok
	}
}

// TestCollectorFaults: what arrives at a collector that fails, in what order, and what is in the dead-letter file. One device
// has four events unless the row says otherwise.
func TestCollectorFaults(t *testing.T) {
	tests := []struct {
		name    string
		answer  func(arrival) reply
		run     func(t *testing.T, s *site) // default: d1 to d4 are added, and an hour passes
		arrives []string
		dead    []string
		reports string // a part of what is reported
		wait    time.Duration
	}{
		{
			name:    "works",
			arrives: []string{"a[d1 d2 d3 d4] 200"},
		},
		{
			name: "500 three times", answer: fails(3, refusal(500, "unknown_error")),
			arrives: []string{"a[d1 d2 d3 d4] 500", "a[d1 d2 d3 d4] 500", "a[d1 d2 d3 d4] 500", "a[d1 d2 d3 d4] 200"},
			reports: "collector http://collector.example/stats: it answers status 500 (code unknown_error) | works",
		},
		{
			name: "500 for an hour, which objects meet now and then", answer: func(a arrival) reply {
				if a.at < time.Hour {
					return reply{status: 500}
				}
				return ok
			},
			run: func(t *testing.T, s *site) {
				s.add("d1 d2")
				s.pass(2 * time.Hour)
				n := 0
				for _, a := range s.seen() {
					if a.object {
						n++
					}
				}
				if n < 5 || n > 12 {
					t.Errorf("%d objects, wanted one in 5 minutes", n)
				}
			},
		},
		{
			name: "500 for ten minutes, and objects, which it does not know, are refused", answer: func(a arrival) reply {
				switch {
				case a.object:
					return reply{status: 422, body: `{"detail":"a list is expected"}`}
				case a.at < 10*time.Minute:
					return reply{status: 500}
				}
				return ok
			},
		},
		{
			name: "503 three times", answer: fails(3, reply{status: 503}),
			arrives: []string{"a[d1 d2 d3 d4] 503", "a[d1 d2 d3 d4] 503", "a[d1 d2 d3 d4] 503", "a[d1 d2 d3 d4] 200"},
		},
		{
			name:    "429 with Retry-After in seconds",
			answer:  fails(1, reply{status: 429, header: map[string]string{"Retry-After": "120"}}),
			arrives: []string{"a[d1 d2 d3 d4] 429", "a[d1 d2 d3 d4] 200"},
			reports: "it limits the rate of requests | works", wait: 120 * time.Second,
		},
		{
			name: "429 with Retry-After as a date",
			answer: func(a arrival) reply {
				return fails(1, reply{status: 429, header: map[string]string{
					"Retry-After": time.Now().Add(10 * time.Minute).UTC().Format(http.TimeFormat),
				}})(a)
			},
			arrives: []string{"a[d1 d2 d3 d4] 429", "a[d1 d2 d3 d4] 200"}, wait: 10*time.Minute - time.Second,
		},
		{
			name:    "429 with a hint in the body",
			answer:  fails(1, reply{status: 429, body: `{"error":"too_many_requests","moreInfo":{"retryAfterSeconds":90}}`}),
			arrives: []string{"a[d1 d2 d3 d4] 429", "a[d1 d2 d3 d4] 200"}, wait: 90 * time.Second,
		},
		{
			name: "400 for one item",
			answer: func(a arrival) reply {
				if a.has(3) {
					return refusal(400, "invalid_json_body")
				}
				return ok
			},
			arrives: []string{
				"a[d1 d2 d3 d4] 400", "a[d1 d2] 200", "a[d3 d4] 400", "a[d3] 400", "a{d3} 400", "a[d4] 200",
			},
			dead: []string{"d3:invalid_json_body"},
		},
		{
			name: "400 for two items, no code",
			answer: func(a arrival) reply {
				if a.has(1) || a.has(4) {
					return reply{status: 422, body: "<h1>no</h1>"}
				}
				return ok
			},
			arrives: []string{
				"a[d1 d2 d3 d4] 422", "a[d1 d2] 422", "a[d1] 422", "a{d1} 422", "a[d2] 200", "a[d3 d4] 422", "a[d3] 200", "a[d4] 422",
			},
			dead: []string{"d1:status_422", "d4:status_422"},
		},
		{
			name: "200 with errors for items",
			answer: func(a arrival) reply {
				return itemErrors(a, func(e event) string {
					switch {
					case e.N == 1:
						return "semver_error"
					case e.N == 2 && a.n < 3:
						return "processing_error"
					case e.N == 3:
						return "version_not_found"
					}
					return ""
				})
			},
			arrives: []string{"a[d1!semver_error d2!processing_error d3!version_not_found d4] 200", "a[d2!processing_error] 200", "a[d2] 200"},
			dead:    []string{"d1:semver_error", "d3:version_not_found"},
		},
		{
			name: "a device waits, with its later events, and others do not",
			answer: func(a arrival) reply {
				return itemErrors(a, func(e event) string {
					if e.Device == "d" && time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) < 10*time.Minute {
						return "unknown_error"
					}
					return ""
				})
			},
			run: func(t *testing.T, s *site) {
				s.add("d1")
				s.pass(0)
				s.add("d2 e3")
				s.pass(0)
				var got []string
				for _, a := range s.seen() {
					got = append(got, a.String())
				}
				if want := []string{"a[d1!unknown_error] 200", "a[e3] 200"}; !slices.Equal(got, want) {
					t.Errorf("%q, not %q", got, want)
				}
				s.pass(time.Hour)
				last := s.seen()[len(s.seen())-1]
				if last.String() != "a[d1 d2] 200" {
					t.Errorf("%s came last", last)
				}
			},
		},
		{
			name: "hangs", answer: fails(2, reply{hang: true}),
			arrives: []string{"a[d1 d2 d3 d4] -", "a[d1 d2 d3 d4] -", "a[d1 d2 d3 d4] 200"},
			reports: "no answer within 30s | works", wait: 30 * time.Second,
		},
		{
			name: "cuts the connection", answer: fails(1, reply{cut: 1}),
			arrives: []string{"a[d1 d2 d3 d4] -", "a[d1 d2 d3 d4] 200"},
			reports: "it hung up in the middle of a request | works",
		},
		{
			name: "cuts the connection in the answer", answer: fails(1, reply{cut: 2}),
			arrives: []string{"a[d1 d2 d3 d4] -", "a[d1 d2 d3 d4] 200"},
		},
		{
			name: "a captive portal",
			answer: fails(3, reply{
				status: 200, unread: true, body: "<!doctype html><title>Log in</title>", header: map[string]string{"Content-Type": "text/html; charset=utf-8"},
			}),
			arrives: []string{"a[d1 d2 d3 d4] 200", "a[d1 d2 d3 d4] 200", "a[d1 d2 d3 d4] 200", "a[d1 d2 d3 d4] 200"},
			reports: "it answers with something that is no statistics answer (text/html): is this the right address? | works",
		},
		{
			name:    "results that are cut off",
			answer:  fails(1, reply{status: 200, unread: true, body: `{"status":"ok","results":[{"status":"ok","index":0},{"sta`}),
			arrives: []string{"a[d1 d2 d3 d4] 200", "a[d1 d2 d3 d4] 200"},
			reports: "what became of the events is not known; they are sent again under the same key | works",
		},
		{
			name: "results that do not say which event they are of",
			answer: func(a arrival) reply {
				switch {
				case !a.has(2):
					return ok
				case len(a.events) > 1:
					return reply{status: 200, unread: true, body: `{"results":[{"error":"version_not_found"}]}`}
				}
				return reply{status: 200, body: `{"results":[{"index":1,"error":"version_not_found"}]}`}
			},
			arrives: slices.Concat(slices.Repeat([]string{"a[d1 d2 d3 d4] 200"}, 8), []string{
				"a[d1 d2] 200", "a[d1] 200", "a[d2] 200", "a[d3 d4] 200",
			}),
			dead:    []string{"d2:version_not_found"},
			reports: "its results do not say which event they are of, so what became of the events is not known; they are sent again under the same key; correct its `index`, which counts from 0 | works",
		},
		{
			name:    "a loop",
			answer:  fails(2, reply{status: 508, body: `{"error":"loop_detected"}`}),
			arrives: []string{"a[d1 d2 d3 d4] 508", "a[d1 d2 d3 d4] 508", "a[d1 d2 d3 d4] 200"},
			reports: "its address leads back to an edge, which has these events already; set it to the collector itself (code loop_detected) | works",
		},
		{
			name: "takes no arrays",
			answer: func(a arrival) reply {
				if !a.object {
					return refusal(400, "invalid_json_body")
				}
				return ok
			},
			run: func(t *testing.T, s *site) {
				s.add("d1 d2 d3 d4")
				s.pass(time.Minute)
				s.add("d5 d6") // it is remembered
				s.pass(time.Hour)
				s.add("d7 d8") // for an hour
				s.pass(time.Hour)
			},
			arrives: []string{
				"a[d1 d2 d3 d4] 400", "a[d1 d2] 400", "a[d1] 400", "a{d1} 200", "a[d2] 400", "a{d2} 200", "a{d3} 200", "a{d4} 200",
				"a{d5} 200", "a{d6} 200",
				"a[d7 d8] 400", "a{d7} 200", "a{d8} 200",
			},
		},
		{
			name: "fails on arrays",
			answer: func(a arrival) reply {
				if !a.object {
					return reply{status: 500}
				}
				return ok
			},
			run: func(t *testing.T, s *site) {
				s.add("d1 d2 d3 d4")
				s.pass(90 * time.Minute)
				s.add("d5 d6") // an array is tried once an hour
				s.pass(time.Second)
				s.add("d7 d8")
				s.pass(time.Second)
			},
			arrives: []string{
				"a[d1 d2 d3 d4] 500", "a[d1 d2 d3 d4] 500", // it may be an outage
				"a[d1 d2 d3 d4] 500", "a[d1 d2 d3 d4] 500", "a[d1 d2 d3 d4] 500", "a{d1} 200",
				"a[d2 d3 d4] 500", "a[d2 d3 d4] 500", "a[d2 d3 d4] 500", "a{d2} 200", "a{d3} 200", "a{d4} 200",
				"a[d5 d6] 500", "a{d5} 200", "a{d6} 200", "a{d7} 200", "a{d8} 200",
			},
		},
		{
			name: "takes no array with one event, such as one that nests too deeply then",
			answer: func(a arrival) reply {
				if a.has(3) && !a.object {
					return refusal(400, "invalid_json_parse_body")
				}
				return ok
			},
			run: func(_ *testing.T, s *site) {
				s.add("d3 d4 d5")
				s.pass(time.Minute)
				s.add("d6 d7")
				s.pass(time.Minute)
			},
			arrives: []string{"a[d3 d4 d5] 400", "a[d3] 400", "a{d3} 200", "a[d4 d5] 200", "a[d6 d7] 200"},
		},
		{
			name: "413 for one event",
			answer: func(a arrival) reply {
				if a.has(1) {
					return reply{status: 413}
				}
				return ok
			},
			arrives: []string{"a[d1 d2 d3 d4] 413", "a[d1 d2] 413", "a[d1] 413", "a[d2] 200", "a[d3 d4] 200"},
			dead:    []string{"d1:status_413"},
		},
		{
			name: "takes objects, one of them never",
			answer: func(a arrival) reply {
				switch {
				case !a.object:
					return refusal(400, "invalid_json_body")
				case a.has(3):
					return refusal(200, "version_not_found")
				}
				return ok
			},
			arrives: []string{
				"a[d1 d2 d3 d4] 400", "a[d1 d2] 400", "a[d1] 400", "a{d1} 200", "a[d2] 400", "a{d2} 200", "a{d3} 200", "a{d4} 200",
			},
			dead: []string{"d3:version_not_found"},
		},
		{
			name: "413 above two events",
			answer: func(a arrival) reply {
				if len(a.events) > 2 {
					return reply{status: 413}
				}
				return ok
			},
			arrives: []string{"a[d1 d2 d3 d4] 413", "a[d1 d2] 200", "a[d3 d4] 200"},
		},
		{
			name: "a wrong key", answer: fails(3, reply{status: 401}),
			arrives: []string{"a[d1 d2 d3 d4] 401", "a[d1 d2 d3 d4] 401", "a[d1 d2 d3 d4] 401", "a[d1 d2 d3 d4] 200"},
			reports: "it answers status 401: it does not accept this edge; correct the header with its key, or its address | works",
		},
		{
			name: "a wrong address", answer: fails(1, reply{status: 404}),
			arrives: []string{"a[d1 d2 d3 d4] 404", "a[d1 d2 d3 d4] 200"},
			reports: "no collector takes events there; correct its address | works",
		},
		{
			name: "redirects elsewhere", answer: fails(1, reply{status: 308, header: map[string]string{"Location": "http://other.example/stats"}}),
			arrives: []string{"a[d1 d2 d3 d4] 308", "a[d1 d2 d3 d4] 200"},
			reports: "set its address to where it redirects to | works",
		},
		{
			name: "redirects to a GET", answer: fails(1, reply{status: 302, header: map[string]string{"Location": "/stats"}}),
			arrives: []string{"a[d1 d2 d3 d4] 302", "a[d1 d2 d3 d4] 200"},
		},
		{
			name: "redirects on the same server", answer: fails(1, reply{status: 307, header: map[string]string{"Location": "/stats2"}}),
			arrives: []string{"a[d1 d2 d3 d4] 307", "a[d1 d2 d3 d4] 200"},
			reports: "-",
		},
		{
			name: "does not know an app",
			answer: func(a arrival) reply {
				if a.app == "x" && a.at < 20*time.Minute {
					return refusal(429, "on_premise_app")
				}
				return ok
			},
			run: func(t *testing.T, s *site) {
				s.addTo("x", "d1 d2")
				s.pass(0)
				s.add("e3")
				s.pass(0)
				if got := fmt.Sprint(s.seen()); got != "[x[d1 d2] 429 a[e3] 200]" {
					t.Error(got)
				}
				if s.forwarder.Stats().WaitingApps != 1 {
					t.Error("the app does not wait")
				}
				s.pass(2 * time.Hour)
				seen := s.seen()
				if last := seen[len(seen)-1]; last.String() != "x[d1 d2] 200" || last.key != seen[0].key {
					t.Error(last)
				}
			},
			reports: "-",
		},
		{
			name: "does not know an app, by items",
			answer: func(a arrival) reply {
				return itemErrors(a, func(event) string {
					if a.n < 3 {
						return "on_premise_app"
					}
					return ""
				})
			},
			arrives: []string{
				"a[d1!on_premise_app d2!on_premise_app d3!on_premise_app d4!on_premise_app] 200",
				"a[d1!on_premise_app d2!on_premise_app d3!on_premise_app d4!on_premise_app] 200",
				"a[d1 d2 d3 d4] 200",
			},
			reports: "-",
		},
		{
			name: "refuses data centres", answer: fails(1, refusal(429, "provider_infrastructure_request_blocked")),
			arrives: []string{"a[d1 d2 d3 d4] 429", "a[d1 d2 d3 d4] 200"},
			reports: "have its operator allow this edge's address",
		},
		{
			name: "down for 24 hours",
			run: func(t *testing.T, s *site) {
				s.network.setDown(true)
				for hour := range 24 {
					s.add(fmt.Sprintf("d%d", hour+1))
					s.pass(time.Hour)
				}
				tries := s.forwarder.Stats().Requests["retry"]
				if tries < 24*60/8 || tries > 24*60/2 { // every 5 min, or half of it more or less
					t.Errorf("%d tries", tries)
				}
				if s.spool.Stats().Events != 24 || s.forwarder.Stats().Failing == nil {
					t.Errorf("%+v", s.spool.Stats())
				}
				s.network.setDown(false)
				s.pass(10 * time.Minute)
			},
			arrives: []string{
				"a[d1] 200", // the batch of the first try
				"a[d2 d3 d4 d5 d6 d7 d8 d9 d10 d11 d12 d13 d14 d15 d16 d17 d18 d19 d20 d21 d22 d23 d24] 200",
			},
			reports: "connection refused | works",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if test.answer == nil {
					test.answer = func(arrival) reply { return ok }
				}
				s := newSite(t, test.answer)
				if test.run != nil {
					test.run(t, s)
				} else {
					s.add("d1 d2 d3 d4")
					s.pass(time.Hour)
				}
				arrivals := s.seen()
				var arrived []string
				for _, a := range arrivals {
					arrived = append(arrived, a.String())
				}
				if test.arrives != nil && !slices.Equal(arrived, test.arrives) {
					t.Errorf("arrived:\n\t%s\nwanted:\n\t%s", strings.Join(arrived, "\n\t"), strings.Join(test.arrives, "\n\t"))
				}
				dead := s.dead()
				if !slices.Equal(dead, test.dead) {
					t.Errorf("dead letters %q, wanted %q", dead, test.dead)
				}
				if stats := s.spool.Stats(); stats.Events != 0 {
					t.Errorf("%d events are left in the spool", stats.Events)
				}
				reported := s.reported()
				if test.reports == "-" && reported != "" || test.reports != "-" && !strings.Contains(reported, test.reports) {
					t.Errorf("reported %q, wanted %q", reported, test.reports)
				}
				if test.wait > 0 && arrivals[1].at-arrivals[0].at < test.wait {
					t.Errorf("it came again after %s", arrivals[1].at-arrivals[0].at)
				}
				checkOrder(t, arrivals)
				checkKeys(t, arrivals)
				if len(arrived) > 14 {
					arrived = append(arrived[:6], fmt.Sprintf("... %d more ...", len(arrived)-8), arrived[len(arrived)-2], arrived[len(arrived)-1])
				}
				t.Logf("\n\tarrives  %s\n\tdead     %s\n\treported %s", strings.Join(arrived, "\n\t         "), strings.Join(dead, ", "), reported)
			})
		})
	}
}

// checkKeys: a request that failed is sent again with the key it had. One that was answered, so that it tells, ended, whatever became of its
// events: if they are sent again it is in another, even if they are the same.
func checkKeys(t *testing.T, arrivals []arrival) {
	t.Helper()
	last := map[string]arrival{} // by composition
	for _, a := range arrivals {
		composition := fmt.Sprint(a.app, a.object, a.events)
		if was, ok := last[composition]; ok && (was.key == a.key) != (was.status != 200 || was.unread) {
			t.Errorf("%s had the key %s, and then, as %s, the key %s", was, was.key, a, a.key)
		}
		last[composition] = a
	}
}

// checkOrder: the events of a device arrive for the first time in their order, and no key is used for two compositions.
func checkOrder(t *testing.T, arrivals []arrival) {
	t.Helper()
	latest := map[string]int{} // by device
	arrived := map[event]bool{}
	composed := map[string]string{} // by key
	for _, a := range arrivals {
		composition := fmt.Sprint(a.app, a.object, a.events)
		if was, ok := composed[a.key]; ok && was != composition {
			t.Errorf("key %s had %s and now %s", a.key, was, composition)
		}
		composed[a.key] = composition
		for _, e := range a.events {
			if device := e.App + " " + e.Device; !arrived[e] {
				if e.N < latest[device] {
					t.Errorf("%s of %s arrives after %d", e, e.App, latest[device])
				}
				latest[device] = e.N
			}
			arrived[e] = true
		}
	}
}

// TestFailsOnArrays: of a collector that fails with 500 on arrays, an event that is read as an object and not taken has the fate it
// would have otherwise, and holds no others.
func TestFailsOnArrays(t *testing.T) {
	tests := []struct {
		name  string
		first reply // to the first event of device d
		dead  []string
		left  int64
	}{
		{"refused", refusal(400, "invalid_json_body"), []string{"d1:invalid_json_body"}, 0},
		{"refused with 200", refusal(200, "strange_code"), []string{"d1:strange_code"}, 0},
		{"of an unknown app", refusal(429, "on_premise_app"), nil, 3},
		{"not processed", refusal(200, "processing_error"), nil, 3},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, func(a arrival) reply {
					switch {
					case !a.object:
						return reply{status: 500}
					case a.app == "a" && a.has(1):
						return test.first
					}
					return ok
				})
				s.add("d1 d2 d3")
				s.pass(0)
				s.addTo("b", "e4 f5")
				s.pass(3 * time.Hour)
				s.addTo("b", "e6 f7")
				s.pass(time.Minute)
				if left, dead := s.spool.Stats().Events, s.dead(); left != test.left || !slices.Equal(dead, test.dead) {
					t.Errorf("%d events are left, dead are %q", left, dead)
				}
				if n := len(s.seen()); n > 120 {
					t.Errorf("%d requests in three hours", n)
				}
				if s.forwarder.Stats().Failing != nil && test.name != "not processed" || strings.Count(s.reported(), "status 500") != 1 {
					t.Error(s.reported())
				}
				checkOrder(t, s.seen())
			})
		})
	}
}
