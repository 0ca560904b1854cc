package cache

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeStore keeps what AnswersOptions ask for beyond a restart, beside the copies of a fakeUpstream.
type fakeStore struct {
	mu      sync.Mutex
	delay   time.Duration // guarded by mu, as all below
	panics  bool
	recalls int // how often it was asked
	differs []Differing
	mark    Mark
}

// anew returns a site that begins with what u and st have kept.
func anew(t *testing.T, u *fakeUpstream, st *fakeStore, mode PerDevice) *site {
	t.Helper()
	s := newSite(t, u, mode, 1<<20)
	s.options.Recall = func(group Key) (kept Recalled) {
		st.mu.Lock()
		st.recalls++
		delay, panics := st.delay, st.panics
		kept.Differing, kept.Mark = st.differs, st.mark
		st.mu.Unlock()
		time.Sleep(delay)
		if panics {
			panic("the store is closed")
		}
		u.do(func() {
			for k := range u.saved {
				kept.Known = kept.Known || k.Group == group
			}
		})
		return kept
	}
	s.options.SaveMark = func(_ Key, m Mark) {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.mark = m
	}
	s.options.SaveDiffers = func(_ Key, device string) {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.differs = append(st.differs, Differing{device, time.Now()})
	}
	return s
}

// TestAnswersRecallBeforeRefusal restarts while the upstream refuses what it used to answer. A question without a copy is
// asked before, beside and after those that have one.
func TestAnswersRecallBeforeRefusal(t *testing.T) {
	relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		const copies = 5
		for i := range copies {
			s.get(t, fmt.Sprint("k", i), "d")
		}
		synctest.Wait()
		time.Sleep(time.Hour)
		u.do(func() { u.answer = refusing })
		u.asked()
		st := &fakeStore{delay: time.Second}
		after := anew(t, u, st, PerDeviceOff)
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				want(t, after.get(t, "first", fmt.Sprint("d", i)), "unavailable: "+ErrRefused.Error())
			})
			all.Go(func() {
				k := fmt.Sprint("k", i%copies)
				want(t, after.get(t, k, fmt.Sprint("d", i)), "stale "+k+" 1")
			})
		}
		all.Wait()
		want(t, after.get(t, "last", "d"), "unavailable: "+ErrRefused.Error())
		want(t, u.reported(), "outage began")
		if st.recalls != 1 {
			t.Errorf("asked %d times what was kept", st.recalls)
		}
		u.do(func() { u.answer, u.busy = offering("2"), true })
		want(t, after.get(t, "new", "d"), "loaded new 2") // what was known before is no stranger
		time.Sleep(stale)
		u.do(func() { u.answer, u.busy = refusing, false })
		want(t, after.get(t, "first", "d"), "negative refused") // gone for longer than a fault lasts
		wantAccounts(t, after)
	})
}

// TestAnswersRecallNothing meets groups of which nothing was kept: their refusal is believed, at once.
func TestAnswersRecallNothing(t *testing.T) {
	for _, panics := range []bool{false, true} {
		relay(t, PerDeviceAuto, refusing, func(t *testing.T, _ *site, u *fakeUpstream) {
			st := &fakeStore{panics: panics}
			s := anew(t, u, st, PerDeviceAuto)
			u.do(func() {
				u.saved[AnswerKey{Key{scope, "other"}, "k", ""}] = Kept[string]{Value: "v", Validated: time.Now()}
			})
			for i := range 10 {
				want(t, s.get(t, fmt.Sprint("k", i), "d"), "negative refused")
			}
			wantAsks(t, u, 1)
			time.Sleep(2 * negative)
			want(t, s.get(t, "k", "d"), "negative refused")
			wantAsks(t, u, 1)
			if st.recalls != 1 {
				t.Errorf("asked %d times what was kept", st.recalls)
			}
			wantAccounts(t, s)
		})
	}
}

// TestAnswersRecallPurged purges all of a group while it is recalled: what is still kept is of before.
func TestAnswersRecallPurged(t *testing.T) {
	relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
		s.get(t, "k", "d")
		synctest.Wait()
		u.do(func() { u.answer = refusing })
		after := anew(t, u, &fakeStore{delay: time.Second}, PerDeviceOff)
		time.AfterFunc(time.Second/2, func() { after.Purge(appKey, false) })
		want(t, after.get(t, "k", "d"), "negative refused")
	})
}

// TestAnswersDiffersKept has a device that differs before a restart still asked for by itself after it, and never given what
// others share.
func TestAnswersDiffersKept(t *testing.T) {
	answer := func(key, device string) Reply[string] {
		if device == "self" {
			return offer(key, "beta")
		}
		return offer(key, "1")
	}
	for _, mode := range []PerDevice{PerDeviceAuto, PerDeviceOff} {
		relay(t, mode, answer, func(t *testing.T, _ *site, u *fakeUpstream) {
			st := &fakeStore{}
			before := anew(t, u, st, mode)
			before.Differs(appKey, "self")
			for _, device := range []string{"a", "b", "c", "self"} {
				before.get(t, "k", device)
			}
			synctest.Wait()
			time.Sleep(tick)
			u.asked()
			after := anew(t, u, st, mode)
			after.Differs(appKey, "late")
			want(t, after.get(t, "k", "self"), "loaded k beta")
			want(t, after.get(t, "k", "self"), "fresh k beta")
			want(t, after.get(t, "k", "d"), "loaded k 1")
			want(t, after.get(t, "k", "e"), "fresh k 1")
			wantAsks(t, u, int(after.Stats().Checks)) // all have copies
			time.Sleep(time.Hour)
			u.do(func() { u.err = errDown })
			down := anew(t, u, st, mode)
			want(t, down.get(t, "k", "self"), "stale k beta")
			want(t, down.get(t, "k", "d"), "stale k 1")
			if down.Marked(appKey) {
				t.Error("a device that is known to differ marks the group")
			}
			wantAccounts(t, down)
			time.Sleep(time.Hour)
			down.Differs(appKey, "self") // what it was given before would undo what it chose
			for _, s := range []*site{down, anew(t, u, st, mode)} {
				want(t, s.get(t, "k", "self"), "unavailable: "+errDown.Error())
				want(t, s.get(t, "k", "d"), "stale k 1")
			}
		})
	}
}

// TestAnswersDiffersKeptOverflow has more devices restored than are remembered.
func TestAnswersDiffersKeptOverflow(t *testing.T) {
	relay(t, PerDeviceAuto, offering("1"), func(t *testing.T, _ *site, u *fakeUpstream) {
		st := &fakeStore{}
		for i := range maxDiffers + 1 {
			st.differs = append(st.differs, Differing{fmt.Sprint("d", i), time.Now()})
		}
		s := anew(t, u, st, PerDeviceAuto)
		want(t, s.get(t, "k", "d0"), "loaded k 1")
		if !s.Marked(appKey) {
			t.Error("a device was forgotten")
		}
		wantAccounts(t, s)
	})
}

// TestAnswersMarkKept marks a group, and begins anew: no device is given what another one was, and the examination comes
// when it would have come. What it then finds is kept as well.
func TestAnswersMarkKept(t *testing.T) {
	differing := func(key, device string) Reply[string] {
		if device == "pinned" {
			return offer(key, "old")
		}
		return offer(key, "1")
	}
	relay(t, PerDeviceAuto, differing, func(t *testing.T, _ *site, u *fakeUpstream) {
		st := &fakeStore{}
		before := anew(t, u, st, PerDeviceAuto)
		for _, device := range []string{"a", "b", "c", "d"} {
			before.get(t, "k", device)
		}
		for !before.Marked(appKey) {
			before.get(t, "k", "pinned")
			synctest.Wait()
			time.Sleep(time.Second)
		}
		time.Sleep(examineFirst / 2)
		u.reported()
		after := anew(t, u, st, PerDeviceAuto)
		for _, device := range []string{"e", "f", "g"} {
			want(t, after.get(t, "k", device), "loaded k 1")
		}
		want(t, after.get(t, "k", "pinned"), "loaded k old")
		want(t, u.reported(), "still marked")
		u.do(func() { u.answer = offering("1") })
		time.Sleep(examineFirst) // with its jitter
		for i := range examineFor + 2*enoughDevices {
			after.get(t, "k", fmt.Sprint("later", i))
		}
		synctest.Wait()
		if after.Marked(appKey) || st.mark != (Mark{}) {
			t.Errorf("marked: %v, kept: %+v", after.Marked(appKey), st.mark)
		}
		wantAccounts(t, after)
	})
}

// TestAnswersPurgeForgotten purges a group that is not in memory: its copies are of before.
func TestAnswersPurgeForgotten(t *testing.T) {
	for _, soft := range []bool{true, false} {
		relay(t, PerDeviceOff, offering("1"), func(t *testing.T, s *site, u *fakeUpstream) {
			s.get(t, "k", "d")
			synctest.Wait()
			after := anew(t, u, &fakeStore{mark: Mark{Rounds: 1}}, PerDeviceOff)
			time.Sleep(tick)
			after.Purge(appKey, soft)
			u.do(func() { u.answer = offering("2") })
			want(t, after.get(t, "k", "d"), "loaded k 2")
			wantAccounts(t, after)
		})
	}
}

// TestAnswersMarkOtherMode takes up a mark where devices are not told apart any more: it changes nothing, and nobody is told.
func TestAnswersMarkOtherMode(t *testing.T) {
	relay(t, PerDeviceOff, offering("1"), func(t *testing.T, _ *site, u *fakeUpstream) {
		st := &fakeStore{mark: Mark{Rounds: 2, ExamineAt: time.Now().Add(time.Hour)}}
		s := anew(t, u, st, PerDeviceOff)
		want(t, s.get(t, "k", "a"), "loaded k 1")
		want(t, s.get(t, "k", "b"), "fresh k 1")
		synctest.Wait()
		want(t, u.reported(), "")
		u.do(func() {
			if len(u.saved) != 1 || s.Stats().Marked != 0 {
				t.Errorf("%d copies, %+v", len(u.saved), s.Stats())
			}
		})
		u.do(func() { u.err = errDown })
		want(t, anew(t, u, st, PerDeviceOff).get(t, "k", "c"), "loaded k 1")
	})
}
