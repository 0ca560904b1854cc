package cache

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fleet is what the devices of the simulation ask: 6 native versions, 4 bundles, 2 platforms, 3 plugin versions.
type fleet struct {
	devices int
	keys    []string
	newest  string
	// differ are how many of 10,000 devices are pinned to the first bundle, and how many belong to a rollout.
	pinned, rollout int
}

func newFleet() *fleet {
	f := &fleet{devices: 20_000, newest: "1.0.3"}
	for native := range 6 {
		for bundle := range 4 {
			for platform := range 2 {
				for plugin := range 3 {
					f.keys = append(f.keys, fmt.Sprintf("native%d plugin%d platform%d 1.0.%d", native, plugin, platform, bundle))
				}
			}
		}
	}
	return f
}

// check returns the question of a random device. Each device has one.
func (f *fleet) check(r *rand.Rand) (key, device string) {
	n := r.IntN(f.devices)
	return f.keys[hashOf(fmt.Sprint("key", n))%uint64(len(f.keys))], fmt.Sprint("device", n)
}

func hashOf(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	x := h.Sum64()
	x ^= x >> 33 // its low bits are poor
	return x * 0xff51afd7ed558ccd >> 11
}

// answer is what the upstream gives to a device: nothing if it runs the right bundle already.
func (f *fleet) answer(key, device string) Reply[string] {
	version := f.newest
	switch at := int(hashOf("draw"+device) % 10_000); {
	case at < f.pinned:
		version = "1.0.0"
	case at < f.pinned+f.rollout:
		version = "2.0.0"
	}
	if strings.HasSuffix(key, " "+version) {
		return Reply[string]{Value: "none", Shareable: true}
	}
	return Reply[string]{Value: "update to " + version, Offer: version, Shareable: true}
}

func (f *fleet) wrong(got, key, device string) bool { return got != f.answer(key, device).Value }

// TestAnswersFleet is the simulation of 100,000 checks. They come within 100 s of fake time, that is ten fresh periods, and the
// upstream needs 50 ms for each.
func TestAnswersFleet(t *testing.T) {
	const checks = 100_000
	for _, test := range []struct {
		name            string
		mode            PerDevice
		pinned, rollout int
	}{
		{"nothing per device, auto", PerDeviceAuto, 0, 0},
		{"overrides and a rollout, on", PerDeviceOn, 100, 1000},
		{"overrides and a rollout, auto", PerDeviceAuto, 100, 1000},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFleet()
			f.pinned, f.rollout = test.pinned, test.rollout
			relay(t, test.mode, f.answer, func(t *testing.T, s *site, u *fakeUpstream) {
				u.delay = 50 * time.Millisecond
				r := rand.New(rand.NewPCG(1, 2))
				var mu sync.Mutex
				wrongBefore, wrongAfter, markedAt, asksThen := 0, 0, -1, 0
				began := time.Now()
				var all sync.WaitGroup
				for i := range checks {
					time.Sleep(time.Millisecond)
					key, device := f.check(r)
					marked := s.Marked(appKey)
					if marked && markedAt < 0 {
						markedAt, asksThen = i, int(s.Stats().Asks)
					}
					all.Go(func() {
						v, _, err := s.Get(t.Context(), &s.terms, s.question(appKey, key, device))
						mu.Lock()
						defer mu.Unlock()
						switch {
						case err != nil:
							t.Error(err)
						case f.wrong(v, key, device) && marked:
							wrongAfter++
						case f.wrong(v, key, device):
							wrongBefore++
						}
					})
				}
				all.Wait()
				synctest.Wait()
				asks := u.asked()
				t.Logf("%d checks: %d asks, %d of them checks; marked at check %d with %d asks; %d wrong before, %d after",
					checks, len(asks), s.Stats().Checks, markedAt, asksThen, wrongBefore, wrongAfter)
				if wrongAfter > 0 {
					t.Errorf("%d wrong answers after the app was marked", wrongAfter)
				}
				switch {
				case test.mode == PerDeviceOn:
					wantOncePerFresh(t, asks)
					if wrongBefore > 0 {
						t.Errorf("%d wrong answers", wrongBefore)
					}
				case test.rollout == 0:
					if wrongBefore > 0 || markedAt >= 0 {
						t.Errorf("%d wrong answers; marked at %d", wrongBefore, markedAt)
					}
					for period := range 11 {
						n := 0
						for _, a := range asks {
							if at := a.at.Sub(began); at/fresh == time.Duration(period) {
								n++
							}
						}
						if n > 200 {
							t.Errorf("%d asks in the fresh period %d", n, period+1)
						}
					}
				case markedAt < 0 || markedAt > 1000 || asksThen > 1000:
					t.Errorf("marked at check %d, after %d asks", markedAt, asksThen)
				}
			})
		})
	}
}

// wantOncePerFresh fails if a device was asked for the same twice within a fresh period.
func wantOncePerFresh(t *testing.T, asks []ask) {
	t.Helper()
	last := map[[2]string]time.Time{}
	for _, a := range asks {
		id := [2]string{a.key, a.device}
		if at, ok := last[id]; ok && a.at.Sub(at) < fresh {
			t.Errorf("%v was asked again after %v", id, a.at.Sub(at))
		}
		last[id] = a.at
	}
}

// TestAnswersNotices says how soon devices that differ are noticed, over many seeds: CAPGO_EDGE_SEEDS of them, 50 if that is not set.
func TestAnswersNotices(t *testing.T) {
	seeds, err := strconv.Atoi(cmp.Or(os.Getenv("CAPGO_EDGE_SEEDS"), "50"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name            string
		keys            int
		pinned, rollout int
		delay, between  time.Duration
		mayMiss         bool
	}{
		{"overrides and a rollout", 144, 100, 1000, 0, 0, false},
		{"overrides and a rollout, 1,000 checks a second, 50 ms each", 144, 100, 1000, 50 * time.Millisecond, time.Millisecond, false},
		{"a rollout, one question", 1, 0, 1000, 0, 0, true},
		{"a rollout, one question, 100 checks a second, 50 ms each", 1, 0, 1000, 50 * time.Millisecond, 10 * time.Millisecond, true},
		{"overrides only", 144, 100, 0, 0, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var at, wrong, asked []int
			missed := 0
			for seed := range seeds {
				f := newFleet()
				f.keys, f.pinned, f.rollout = f.keys[:test.keys], test.pinned, test.rollout
				marked, bad, asks := untilMarked(t, f, uint64(seed), test.delay, test.between)
				if marked > 1000 {
					missed++
					continue
				}
				at, wrong, asked = append(at, marked), append(wrong, bad), append(asked, asks)
			}
			t.Logf("%d of %d seeds not marked within 1,000 checks; marked at %s; wrong before %s; asks until then %s",
				missed, seeds, spread(at), spread(wrong), spread(asked))
			if missed > 0 && !test.mayMiss || missed > seeds/50 && test.rollout > 0 {
				t.Errorf("%d of %d seeds were not marked within 1,000 checks", missed, seeds)
			}
			if len(asked) > 0 && slices.Max(asked) > 1000 {
				t.Errorf("%d asks", slices.Max(asked))
			}
		})
	}
}

func spread(n []int) string {
	if len(n) == 0 {
		return "never"
	}
	slices.Sort(n)
	return fmt.Sprintf("%d (median), %d (most)", n[len(n)/2], n[len(n)-1])
}

// untilMarked returns after how many checks the group is marked, at most 1,001, and what happened until then.
func untilMarked(t *testing.T, f *fleet, seed uint64, delay, between time.Duration) (checks, wrong, asks int) {
	t.Helper()
	relay(t, PerDeviceAuto, f.answer, func(t *testing.T, s *site, u *fakeUpstream) {
		u.delay = delay
		r := rand.New(rand.NewPCG(seed, seed))
		var mu sync.Mutex
		var all sync.WaitGroup
		for checks <= 1000 && !s.Marked(appKey) {
			checks++
			key, device := f.check(r)
			all.Go(func() {
				v, _, err := s.Get(t.Context(), &s.terms, s.question(appKey, key, device))
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				} else if f.wrong(v, key, device) {
					wrong++
				}
			})
			time.Sleep(between)
			if between == 0 {
				synctest.Wait()
			}
		}
		asks = len(u.asked())
		all.Wait()
	})
	return checks, wrong, asks
}

// split answers the devices whose names begin with a "b" with one version, all others with another.
func split(others, b string) func(key, device string) Reply[string] {
	return func(key, device string) Reply[string] {
		if strings.HasPrefix(device, "b") {
			return offer(key, b)
		}
		return offer(key, others)
	}
}

// valueOf cuts the state off what a device is answered.
func valueOf(got string) string {
	_, v, _ := strings.Cut(got, " ")
	return v
}

// TestAnswersEvidence has an offer that is shared after three devices got it, over all questions.
func TestAnswersEvidence(t *testing.T) {
	relay(t, PerDeviceAuto, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		for _, device := range []string{"a", "b", "a", "b", "a"} {
			s.get(t, "k0", device)
		}
		wantAsks(t, u, 2)
		want(t, s.get(t, "k1", "a"), "loaded k1 1") // a is known already, so the offer still lacks a device
		want(t, s.get(t, "k1", "b"), "loaded k1 1")
		want(t, s.get(t, "k1", "c"), "loaded k1 1")
		wantAsks(t, u, 3)
		want(t, s.get(t, "k0", "d"), "fresh k0 1")
		for i := range 100 { // N questions cost N requests from now on
			s.get(t, fmt.Sprint("n", i), "x")
			want(t, valueOf(s.get(t, fmt.Sprint("n", i), fmt.Sprint("y", i))), fmt.Sprintf("n%d 1", i))
		}
		synctest.Wait()
		if asks, checks := len(u.asked()), int(s.Stats().Checks); asks != 100+checks {
			t.Errorf("%d asks, %d of them checks", asks, checks)
		}
	})
}

// TestAnswersUnsettled has the upstream fail while devices are compared: nothing is concluded, and what is shared stays.
func TestAnswersUnsettled(t *testing.T) {
	relay(t, PerDeviceAuto, split("", "2"), func(t *testing.T, s *site, u *fakeUpstream) {
		want(t, s.get(t, "k", "a"), "loaded k")
		u.do(func() {
			u.answer = func(key, device string) Reply[string] {
				u.do(func() { u.err = errDown }) // for the next request
				return split("", "2")(key, device)
			}
		})
		time.Sleep(fresh + staleWhile)
		want(t, s.get(t, "k", "b"), "loaded k 2")
		want(t, s.get(t, "k", "c"), "stale k")
		wantAsks(t, u, 3)
		u.do(func() { u.err, u.answer = nil, split("", "2") })
		time.Sleep(retryMost)
		want(t, s.get(t, "k", "b"), "stale k") // as it failed of late
		synctest.Wait()
		if !s.Marked(appKey) || len(s.Groups()) != 1 || s.Groups()[0] != appKey {
			t.Errorf("the difference is not noticed: %v", s.Groups())
		}
		want(t, s.get(t, "k", "b"), "fresh k 2") // it was asked for when compared
		want(t, s.get(t, "k", "a"), "fresh k")
		want(t, s.get(t, "k", "c"), "loaded k")
	})
}

// TestAnswersDiffersWhileCompared has a device answered by a channel that it chose itself, before Differs tells so.
func TestAnswersDiffersWhileCompared(t *testing.T) {
	relay(t, PerDeviceAuto, split("", "2"), func(t *testing.T, s *site, u *fakeUpstream) {
		u.delay = 50 * time.Millisecond
		want(t, s.get(t, "k", "a"), "loaded k")
		time.Sleep(fresh + staleWhile)
		want(t, s.get(t, "k", "b"), "loaded k 2")
		s.Differs(appKey, "b")
		time.Sleep(time.Second)
		want(t, s.get(t, "k", "b"), "loaded k 2")
		want(t, valueOf(s.get(t, "k", "c")), "k")
		if s.Marked(appKey) {
			t.Error("marked for a device that is known to differ")
		}
	})
}

// TestAnswersChangeOfOneDevice has something new for the only device that asked: it is not shared before others got it.
func TestAnswersChangeOfOneDevice(t *testing.T) {
	relay(t, PerDeviceAuto, offering(""), func(t *testing.T, s *site, u *fakeUpstream) {
		want(t, s.get(t, "k", "a"), "loaded k")
		u.do(func() { u.answer = offering("2") })
		time.Sleep(fresh + staleWhile)
		want(t, s.get(t, "k", "a"), "loaded k 2")
		want(t, s.get(t, "k", "b"), "loaded k 2")
		want(t, s.get(t, "k", "c"), "loaded k 2")
		want(t, s.get(t, "k", "d"), "fresh k 2")
	})
}

// TestAnswersChangeBesideDiffering has a release while the device that the shared answer came from differs.
func TestAnswersChangeBesideDiffering(t *testing.T) {
	relay(t, PerDeviceAuto, offering(""), func(t *testing.T, s *site, u *fakeUpstream) {
		want(t, s.get(t, "k", "b"), "loaded k")
		s.Differs(appKey, "b")
		u.do(func() { u.answer = split("2", "beta") })
		time.Sleep(fresh + staleWhile)
		for _, device := range []string{"a", "c", "d"} {
			want(t, s.get(t, "k", device), "loaded k 2")
		}
		want(t, s.get(t, "k", "e"), "fresh k 2")
		want(t, s.get(t, "k", "b"), "loaded k beta")
	})
}

// TestAnswersSchedules goes through the schedules of settle: what the devices are given in turn, from the refresh on.
func TestAnswersSchedules(t *testing.T) {
	for _, test := range []struct {
		name   string
		given  []string
		asks   int
		marked bool
		then   string
	}{
		{"a release before", []string{"2", "2"}, 2, false, "2"},
		{"a release, and back before the other is asked", []string{"2", "", ""}, 3, false, ""},
		{"another release in between", []string{"2", "3", "3"}, 3, false, "3"},
		{"a difference", []string{"2", "", "2"}, 3, true, ""},
		{"a difference, and a release", []string{"2", "", "3"}, 3, true, ""},
	} {
		relay(t, PerDeviceAuto, offering(""), func(t *testing.T, s *site, u *fakeUpstream) {
			want(t, s.get(t, "k", "a"), "loaded k")
			u.asked()
			given := test.given
			u.do(func() {
				u.answer = func(key, _ string) Reply[string] {
					u.mu.Lock()
					defer u.mu.Unlock()
					version := given[0]
					given = given[1:]
					return offer(key, version)
				}
			})
			time.Sleep(fresh)
			s.get(t, "k", "b")
			wantAsks(t, u, test.asks)
			if s.Marked(appKey) != test.marked {
				t.Errorf("%s: marked %v", test.name, s.Marked(appKey))
			}
			want(t, s.get(t, "k", "a"), strings.TrimSuffix("fresh k "+test.then, " "))
		})
	}
}

// TestAnswersHerd has thousands of devices come at once, when nothing is known and at a release.
func TestAnswersHerd(t *testing.T) {
	for _, test := range []struct {
		mode        PerDevice
		version     string
		first, then int
	}{
		{PerDeviceAuto, "1", enoughDevices, 0},
		{PerDeviceAuto, "", 1, 0},
		{PerDeviceOff, "1", 1, 0},
		{PerDeviceOn, "1", 2000, 0},
	} {
		relay(t, test.mode, offering(test.version), func(t *testing.T, s *site, u *fakeUpstream) {
			u.delay = 100 * time.Millisecond
			herd := func(version string, asks int) {
				t.Helper()
				var all sync.WaitGroup
				began := time.Now()
				for i := range 4000 {
					all.Go(func() {
						got := s.get(t, "k", fmt.Sprint("d", i%2000))
						if !strings.HasSuffix(got, strings.TrimSuffix(" k "+version, " ")) {
							t.Errorf("got %q", got)
						}
					})
				}
				all.Wait()
				if waited := time.Since(began); waited > 3*u.delay {
					t.Errorf("waited %v", waited)
				}
				synctest.Wait()
				if n, checks := len(u.asked()), int(s.Stats().Checks); n > asks+checks {
					t.Errorf("%v %q: asked %d times, %d of them checks, want %d", test.mode, version, n, checks, asks)
				}
			}
			herd(test.version, test.first)
			herd(test.version, test.then)
			if test.mode == PerDeviceOn {
				return
			}
			u.do(func() { u.answer = offering("2") })
			time.Sleep(fresh + staleWhile + time.Second) // so they wait for the refresh
			herd("2", 1+enoughDevices)
			if s.Marked(appKey) {
				t.Error("a release marks the group")
			}
		})
	}
}

// TestAnswersReleases releases at random times under load. No release may be taken for a difference.
func TestAnswersReleases(t *testing.T) {
	f := newFleet()
	relay(t, PerDeviceAuto, f.answer, func(t *testing.T, s *site, u *fakeUpstream) {
		u.delay = 50 * time.Millisecond
		r := rand.New(rand.NewPCG(3, 4))
		var all sync.WaitGroup
		steady, most := 0, 0
		for second := range 600 {
			if second%60 == 59 {
				newest := fmt.Sprintf("1.0.%d", r.IntN(6)) // rollbacks too
				u.do(func() {
					u.answer = func(key, device string) Reply[string] {
						g := *f
						g.newest = newest
						return g.answer(key, device)
					}
				})
			}
			for range 200 {
				time.Sleep(5 * time.Millisecond)
				key, device := f.check(r)
				all.Go(func() {
					if _, _, err := s.Get(t.Context(), &s.terms, s.question(appKey, key, device)); err != nil {
						t.Error(err)
					}
				})
			}
			if second%10 == 9 {
				n := len(u.asked())
				most = max(most, n)
				steady += n
			}
		}
		all.Wait()
		t.Logf("ten releases in ten minutes: %d asks per fresh period on average, %d at most", steady/60, most)
		if s.Marked(appKey) || s.Stats().Marks > 0 {
			t.Errorf("a release was taken for a difference: %s", u.events)
		}
		if most > 450 {
			t.Errorf("%d asks in one fresh period", most)
		}
	})
}

// TestAnswersRemark follows a marked group until it is shared again.
func TestAnswersRemark(t *testing.T) {
	relay(t, PerDeviceAuto, split("1", "2"), func(t *testing.T, s *site, u *fakeUpstream) {
		for _, device := range []string{"a0", "a1", "a2", "b0"} {
			s.get(t, "k", device)
		}
		time.Sleep(fresh)
		s.get(t, "k", "b1") // the refresh shows it
		synctest.Wait()
		want(t, u.reported(), "marked")
		if !s.Marked(appKey) || u.drops != 1 || s.Stats().Marked != 1 {
			t.Errorf("marked %v, %d drops", s.Marked(appKey), u.drops)
		}
		for g := range s.all() {
			for _, id := range g.slots.Keys() {
				if id.device == "" {
					t.Errorf("the shared answer to %v is still there", id)
				}
			}
		}
		round := func() {
			for i := range 60 {
				want(t, valueOf(s.get(t, "k", fmt.Sprint("a", i))), "k 1")
			}
			want(t, valueOf(s.get(t, "k", "b0")), "k 2")
			synctest.Wait()
		}
		u.asked()
		began := time.Now()
		for time.Since(began) < 72*time.Hour { // it stays marked while they differ, and no device is asked for more often
			time.Sleep(10 * time.Minute)
			round()
			if !s.Marked(appKey) {
				t.Fatal("unmarked while devices differ")
			}
			if n := len(u.asked()); n > 61+2 {
				t.Fatalf("%d asks for 61 devices", n)
			}
		}
		want(t, u.reported(), "")
		u.do(func() { u.answer = offering("3") })
		began = time.Now()
		for s.Marked(appKey) && time.Since(began) < 60*time.Hour {
			time.Sleep(10 * time.Minute)
			for i := range 20 {
				want(t, valueOf(s.get(t, "k", fmt.Sprint("a", i))), "k 3")
			}
			synctest.Wait()
		}
		want(t, u.reported(), "unmarked")
		u.asked()
		for i := range 20 {
			want(t, valueOf(s.get(t, "k", fmt.Sprint("c", i))), "k 3")
		}
		synctest.Wait()
		if n := len(u.asked()); n > 10 {
			t.Errorf("%d asks for 20 devices that share", n)
		}
	})
}

// TestAnswersUpstreamKilled takes the upstream away for ten minutes under load.
func TestAnswersUpstreamKilled(t *testing.T) {
	for _, test := range []struct {
		name    string
		mode    PerDevice
		breaker bool
	}{
		{"auto", PerDeviceAuto, false},
		{"auto behind a breaker", PerDeviceAuto, true},
		{"on", PerDeviceOn, false},
		{"on behind a breaker", PerDeviceOn, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFleet()
			f.devices = 500
			relay(t, test.mode, f.answer, func(t *testing.T, s *site, u *fakeUpstream) {
				u.delay = 50 * time.Millisecond
				r := rand.New(rand.NewPCG(5, 6))
				var all sync.WaitGroup
				asked := map[string]bool{}
				down := false
				load := func(d time.Duration) (perPeriod []int) {
					for end := time.Now().Add(d); time.Now().Before(end); {
						u.asked()
						for range 400 {
							time.Sleep(fresh / 400)
							key, device := f.check(r)
							known := asked[key] && (test.mode == PerDeviceAuto || asked[device])
							asked[key], asked[device] = true, true
							all.Go(func() {
								v, _, err := s.Get(t.Context(), &s.terms, s.question(appKey, key, device))
								switch {
								case err != nil && known:
									t.Errorf("no answer to a question asked before: %v", err)
								case err == nil && f.wrong(v, key, device):
									t.Errorf("got %q", v)
								case err != nil && !down:
									t.Error(err)
								}
							})
						}
						perPeriod = append(perPeriod, len(u.asked()))
					}
					all.Wait()
					return perPeriod
				}
				load(2 * time.Minute)
				steady := slices.Max(load(3 * time.Minute))
				down = true
				u.do(func() {
					u.err = errDown
					if test.breaker {
						u.err, u.delay = fmt.Errorf("circuit open: %w", ErrNotAsked), 0
					}
				})
				during := load(10 * time.Minute)
				u.do(func() { u.err, u.delay = nil, 50*time.Millisecond })
				time.Sleep(retryMost * 3 / 2) // nobody comes for a while, which is the worst case
				after := slices.Max(load(5 * time.Minute))
				t.Logf("asks per fresh period: %d steady, %d while it failed, %d at most after it", steady, slices.Max(during), after)
				if after > 2*steady {
					t.Errorf("a herd of %d asks in a fresh period, %d are steady", after, steady)
				}
				if slices.Max(during) > steady*11/10 {
					t.Errorf("more asks while it failed than before: %v", during)
				}
			})
		})
	}
}

// TestAnswersLastGood has one device be given a new offer, which may not be shared yet, before the upstream fails: what all shared
// until then is there for the others.
func TestAnswersLastGood(t *testing.T) {
	id := AnswerKey{appKey, "k", ""}
	newOffer := func(t *testing.T, s *site, u *fakeUpstream) {
		t.Helper()
		for _, device := range []string{"x", "y", "z"} { // they share the offer, whatever they ask
			s.get(t, "other", device)
		}
		want(t, s.get(t, "k", "a"), "loaded k 1")
		if v, fresh := s.Peek(&s.terms, s.question(appKey, "k", "b")); !fresh || v != "k 1" {
			t.Errorf("%q is not shared", v)
		}
		u.do(func() { u.answer = offering("2") })
		time.Sleep(fresh + staleWhile)
		want(t, s.get(t, "k", "a"), "loaded k 2")
		synctest.Wait()
		u.do(func() { want(t, u.saved[id].Value, "k 1") }) // that is not shared yet
	}
	down := "unavailable: " + errDown.Error()
	for _, test := range []struct {
		name string
		then func(t *testing.T, s *site, u *fakeUpstream)
		want string // of a device that was given nothing new
	}{
		{"the upstream fails", func(*testing.T, *site, *fakeUpstream) {}, "stale k 1"},
		{"later", func(*testing.T, *site, *fakeUpstream) { time.Sleep(time.Hour) }, "stale k 1"},
		{"too late", func(*testing.T, *site, *fakeUpstream) { time.Sleep(stale) }, down},
		{"a soft purge", func(_ *testing.T, s *site, _ *fakeUpstream) { s.Purge(appKey, true) }, "stale k 1"},
		{"a hard purge", func(_ *testing.T, s *site, _ *fakeUpstream) { s.Purge(appKey, false) }, down},
		{"the device differs", func(_ *testing.T, s *site, _ *fakeUpstream) { s.Differs(appKey, "c") }, down},
		{"the group is marked", func(_ *testing.T, s *site, _ *fakeUpstream) {
			for i := range maxDiffers + 1 {
				s.Differs(appKey, fmt.Sprint("d", i))
			}
		}, down},
		{"a newer offer", func(t *testing.T, s *site, u *fakeUpstream) {
			u.do(func() { u.err, u.answer = nil, offering("3") })
			time.Sleep(fresh + staleWhile)
			want(t, s.get(t, "k", "a"), "loaded k 3")
			u.do(func() { u.err = errDown })
		}, "stale k 1"},
		{"an answer that names its device", func(t *testing.T, s *site, u *fakeUpstream) {
			u.do(func() {
				u.err = nil
				u.answer = func(_, device string) Reply[string] { return Reply[string]{Value: "for " + device} }
			})
			time.Sleep(fresh + staleWhile)
			want(t, s.get(t, "k", "a"), "loaded for a")
			u.do(func() { u.err = errDown })
		}, "stale k 1"},
		{"others get the offer", func(t *testing.T, s *site, u *fakeUpstream) {
			u.do(func() { u.err = nil })
			want(t, s.get(t, "k", "b"), "loaded k 2")
			want(t, s.get(t, "k", "d"), "loaded k 2")
			want(t, s.get(t, "k", "c"), "fresh k 2")
			synctest.Wait()
			u.do(func() { want(t, u.saved[id].Value, "k 2") })
			u.do(func() { u.err = errDown })
			time.Sleep(fresh)
		}, "stale k 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			relay(t, PerDeviceAuto, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
				newOffer(t, s, u)
				wantAccounts(t, s)
				u.do(func() { u.err = errDown })
				test.then(t, s, u)
				for range 3 {
					want(t, s.get(t, "k", "c"), test.want)
					time.Sleep(time.Second)
				}
				wantAccounts(t, s)
			})
		})
	}
	t.Run("no reply", func(t *testing.T) {
		relay(t, PerDeviceAuto, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
			newOffer(t, s, u)
			u.do(func() { u.delay = time.Minute })
			want(t, s.get(t, "k", "c"), "stale k 1")
		})
	})
	t.Run("the upstream answers", func(t *testing.T) {
		relay(t, PerDeviceAuto, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
			newOffer(t, s, u)
			u.do(func() { u.err = errDown })
			want(t, s.get(t, "k", "c"), "stale k 1")
			u.do(func() { u.err, u.delay = nil, staleWait*2 })
			time.Sleep(retryMost * 2)
			want(t, s.get(t, "k", "c"), "loaded k 2")
		})
	})
	t.Run("from a copy", func(t *testing.T) {
		relay(t, PerDeviceAuto, offering("2"), func(t *testing.T, s *site, u *fakeUpstream) {
			u.saved[id] = Kept[string]{Value: "k 1", Offer: "1", Validated: time.Now().Add(-time.Hour)}
			want(t, s.get(t, "k", "a"), "loaded k 2")
			u.do(func() { u.err = errDown })
			want(t, s.get(t, "k", "b"), "stale k 1")
			wantAccounts(t, s)
		})
	})
}

// TestAnswersLastGoodRoom counts what is kept besides the answer.
func TestAnswersLastGoodRoom(t *testing.T) {
	relay(t, PerDeviceAuto, nil, func(t *testing.T, s *site, u *fakeUpstream) {
		const long = 10_000
		offers := func(version string) func(string, string) Reply[string] {
			return func(string, string) Reply[string] {
				return Reply[string]{Value: version + strings.Repeat(".", long), Offer: version, Shareable: true}
			}
		}
		u.answer = offers("")
		s.get(t, "k", "a")
		one := s.Stats().Bytes
		for i, version := range []string{"1", "2", "3"} {
			u.do(func() { u.answer = offers(version) })
			time.Sleep(fresh + staleWhile)
			s.get(t, "k", "a")
			synctest.Wait()
			if bytes := s.Stats().Bytes; bytes < one+long || bytes > one+long+2*lastCost {
				t.Errorf("%d bytes after %d offers, %d before", bytes, i+1, one)
			}
		}
		s.get(t, "k", "b")
		s.get(t, "k", "c")
		synctest.Wait()
		if bytes := s.Stats().Bytes; bytes > one+lastCost {
			t.Errorf("%d bytes once all share the offer, %d before", bytes, one)
		}
		wantAccounts(t, s)
	})
}

// TestAnswersMarkDetail has answers differ in all ways: the operator is told the one that it is.
func TestAnswersMarkDetail(t *testing.T) {
	n := 0
	for _, test := range []struct {
		name, want string
		answer     func(key, device string) Reply[string]
	}{
		{"offers", `marked: devices that asked the same were given no offer and the offer "2"`, split("", "2")},
		{
			"each time", `marked: answers to one and the same question differ each time, even those to one device, though all have ` +
				`the offer "1": something in them is made anew for each`,
			func(key, _ string) Reply[string] {
				n++
				return Reply[string]{Value: fmt.Sprint(key, " ", n), Offer: "1", Shareable: true}
			},
		},
		{
			"besides the offer", `marked: devices that asked the same were given answers that differ, though both have the offer "1"`,
			func(key, device string) Reply[string] {
				return Reply[string]{Value: key + " " + device, Offer: "1", Shareable: true}
			},
		},
	} {
		relay(t, PerDeviceAuto, test.answer, func(t *testing.T, s *site, u *fakeUpstream) {
			s.get(t, "k", "a")
			time.Sleep(fresh)
			s.get(t, "k", "b")
			synctest.Wait()
			u.do(func() { want(t, strings.Join(u.events, "; "), test.want) })
			if !s.Marked(appKey) {
				t.Errorf("%s: not marked", test.name)
			}
		})
	}
}
