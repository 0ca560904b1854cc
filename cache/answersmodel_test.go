package cache

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// What happens in the model.
const (
	doAsk = iota
	doHerd
	doWait
	doRelease
	doFail
	doHeal
	doRefuse
	doSplit
	doName
	doPass
	doPurge
	doDiffers
	doKinds
)

type action struct{ kind, n, wait int }

// model is an upstream whose answers tell for whom and when they were given, and what happened to it.
type model struct {
	mu       sync.Mutex
	revision int             // guarded by mu, as all below
	since    []time.Time     // when each revision began
	split    map[string]bool // devices that are answered differently
	names    bool            // answers name the device
	passes   bool
	healthy  time.Time // since when it answers; zero while it does not
	hard     int       // the revision at the last hard purge
	faults   []string
}

func (m *model) fault(format string, args ...any) {
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

// answer gives "key revision class device", the last two only if they matter.
func (m *model) answer(key, device string) Reply[string] {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Reply[string]{Value: fmt.Sprintf("%s %d all -", key, m.revision), Shareable: true}
	if m.revision%3 > 0 {
		r.Offer = strconv.Itoa(m.revision)
	}
	switch {
	case m.passes:
		return Reply[string]{Value: fmt.Sprintf("%s %d pass %s", key, m.revision, device), Verdict: Pass}
	case m.names:
		return Reply[string]{Value: fmt.Sprintf("%s %d own %s", key, m.revision, device), Offer: r.Offer}
	case m.split[device]:
		return Reply[string]{Value: fmt.Sprintf("%s %d split -", key, m.revision), Offer: r.Offer + "split", Shareable: true}
	}
	return r
}

// check judges what a device was answered.
func (m *model) check(s *site, began time.Time, key, device, v string, state State, err error, individual bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if m.healthy.IsZero() || time.Since(m.healthy) < time.Minute || state != Unavailable && v != "" {
			return // it failed of late
		}
		m.fault("%s of %s: %v, though the upstream works", key, device, err)
		return
	}
	if v == "refused" {
		return
	}
	part := strings.Fields(v)
	if len(part) != 4 || part[0] != key {
		m.fault("%s of %s: got %q", key, device, v)
		return
	}
	if part[3] != "-" && part[3] != device {
		m.fault("%s of %s: got the answer of another device: %q", key, device, v)
	}
	if individual && (part[2] == "split") != m.split[device] && part[2] != "own" && part[2] != "pass" {
		m.fault("%s of %s: asked for by itself, but got %q", key, device, v)
	}
	revision, _ := strconv.Atoi(part[1])
	if revision < m.hard {
		m.fault("%s of %s: got revision %d from before a purge", key, device, revision)
	}
	if revision == m.revision {
		return
	}
	ended := m.since[revision+1]
	most := s.terms.Ages.Fresh
	if state == Stale {
		most = s.terms.Ages.young() + staleWait + 2*time.Second
	}
	if m.healthy.IsZero() || began.Sub(m.healthy) < time.Minute {
		most = s.terms.Ages.Stale
	}
	if age := began.Sub(ended); age > most {
		m.fault("%s of %s: got revision %d %v after it ended, in the state %v", key, device, revision, age, state)
	}
}

// TestAnswersModel compares Answers with what an upstream may say at each time, whatever happens.
func TestAnswersModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mode := PerDevice(rapid.IntRange(0, 2).Draw(rt, "mode"))
		delay := time.Duration(rapid.IntRange(0, 1500).Draw(rt, "delay")) * time.Millisecond
		room := int64(rapid.SampledFrom([]int{4 << 10, 32 << 10, 1 << 20}).Draw(rt, "room"))
		actions := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) action {
			return action{
				kind: rapid.SampledFrom([]int{
					doAsk, doAsk, doAsk, doAsk, doHerd, doWait, doWait, doRelease, doFail, doHeal, doHeal, doRefuse, doSplit,
					doName, doPass, doPurge, doDiffers,
				}).Draw(rt, "kind"),
				n:    rapid.IntRange(0, 9).Draw(rt, "n"),
				wait: rapid.IntRange(1, 30_000).Draw(rt, "wait"),
			}
		}), 1, 60).Draw(rt, "actions")
		var faults []string
		synctest.Test(t, func(t *testing.T) { faults = runModel(t, mode, delay, room, actions) })
		if len(faults) > 0 {
			rt.Fatalf("%s", strings.Join(faults, "\n"))
		}
	})
}

func runModel(t *testing.T, mode PerDevice, delay time.Duration, room int64, actions []action) []string {
	m := &model{since: []time.Time{time.Now()}, split: map[string]bool{}, healthy: time.Now()}
	u := newUpstream(m.answer)
	u.delay = delay
	s := newSite(t, u, mode, room)
	s.options.Restore, s.options.Save = nil, nil // copies may be of before a purge
	var all sync.WaitGroup
	told := map[string]bool{}
	get := func(key, device string) {
		individual := mode == PerDeviceOn || told[device]
		all.Go(func() {
			began := time.Now()
			individual := individual || mode == PerDeviceAuto && s.Marked(appKey)
			v, state, err := s.Get(t.Context(), &s.terms, s.question(appKey, key, device))
			m.check(s, began, key, device, v, state, err, individual)
		})
	}
	for _, a := range actions {
		key, device := fmt.Sprint("k", a.n%3), fmt.Sprint("d", a.n)
		switch a.kind {
		case doAsk:
			get(key, device)
		case doHerd:
			for i := range 30 {
				get(key, fmt.Sprint("d", i%10))
			}
		case doWait:
			time.Sleep(time.Duration(a.wait) * time.Millisecond)
		case doRelease:
			m.mu.Lock()
			m.revision++
			m.since = append(m.since, time.Now())
			m.mu.Unlock()
		case doFail, doRefuse:
			all.Wait()
			m.mu.Lock()
			m.healthy = time.Time{}
			m.mu.Unlock()
			u.do(func() {
				if u.err = errDown; a.kind == doRefuse {
					u.err, u.answer = nil, refusing
				}
			})
		case doHeal:
			m.mu.Lock()
			if m.healthy.IsZero() {
				m.healthy = time.Now()
			}
			m.mu.Unlock()
			u.do(func() { u.err, u.answer = nil, m.answer })
		case doSplit, doName, doPass:
			// The judge knows no history of these, so nothing may be left of before.
			all.Wait()
			synctest.Wait()
			time.Sleep(2 * delay)
			s.Purge(appKey, false)
			clear(told)
			m.mu.Lock()
			switch a.kind {
			case doSplit:
				m.split[device] = !m.split[device]
			case doName:
				m.names = !m.names
			default:
				m.passes = !m.passes
			}
			m.mu.Unlock()
			for d := range m.split {
				s.Differs(appKey, d)
				told[d] = true
			}
			time.Sleep(tick)
		case doPurge:
			all.Wait()
			s.Purge(appKey, a.n%2 == 0)
			m.mu.Lock()
			if a.n%2 == 1 {
				m.hard = m.revision
			}
			m.mu.Unlock()
			time.Sleep(tick)
		case doDiffers:
			s.Differs(appKey, device)
			told[device] = true
		}
	}
	all.Wait()
	s.running.Wait()
	wantAccounts(t, s)
	if mode == PerDeviceAuto && len(m.split) == 0 && s.Stats().Marks > 0 {
		m.fault("marked, though no devices differ")
	}
	if stats := s.Stats(); stats.Bytes > room && stats.Groups > 1 {
		m.fault("%d bytes in a room of %d", stats.Bytes, room)
	}
	return m.faults
}
