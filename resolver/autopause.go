package resolver

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
)

// AutoPause is the policy by which a channel wants its rollout paused when the target fails on too many devices (contract
// section 4, the fields auto_pause_*). The resolver compiles it and judges numbers by it; who counts is its caller.
type AutoPause struct {
	WindowMinutes   int64   // how far back attempts count; default 60
	CooldownMinutes int64   // how long after a resume nothing is decided; default 60
	FailureRateBPS  int64   // the rate of failures that is not to be exceeded, in basis points; default 500
	Confidence      float64 // how certain it must be that it is exceeded, between 0 and 1; default 0.95
	MinAttempts     int64   // fewer decide nothing; default 50
	MinFailures     int64   // fewer decide nothing; default 5
}

// Crossed reports whether so many failures among so many attempts cross the policy: both minima are reached, and the lower
// end of the Wilson score interval of the failure rate lies above the limit. The interval has one side: with a confidence
// of 0.95 the true rate lies below its lower end in 5 cases of 100, so z is 1.645. The more attempts, the nearer that end
// comes to the rate that was seen, and few attempts with bad luck do not stop a release.
func (p *AutoPause) Crossed(attempts, failures int) bool {
	if failures <= 0 || int64(attempts) < p.MinAttempts || int64(failures) < p.MinFailures {
		return false
	}
	return wilsonLower(attempts, failures, quantile(p.Confidence)) > float64(p.FailureRateBPS)/fullRollout
}

// wilsonLower is the lower end of the Wilson score interval for so many hits among n trials (E. B. Wilson, 1927).
func wilsonLower(n, hits int, z float64) float64 {
	trials := float64(n)
	rate := min(float64(hits)/trials, 1)
	square := z * z / trials
	spread := z * math.Sqrt(rate*(1-rate)/trials+square/(4*trials))
	return (rate + square/2 - spread) / (1 + square)
}

// quantile is the value below which a standard normal variable lies with probability p. Beyond 8 standard deviations
// float64 cannot tell p from 0 or 1.
func quantile(p float64) float64 {
	const most = 8
	return max(-most, min(most, math.Sqrt2*math.Erfinv(2*p-1)))
}

// Guard is a rollout whose channel asks for the release guard.
type Guard struct {
	ChannelID int64
	Channel   string // name
	VersionID int64
	Version   string // name of the target
	Policy    AutoPause

	// State is a digest of all that an operator sets about the rollout: its target, id, percentage and switches, and the
	// policy. It changes with any of them, and with nothing else of the document.
	State uint64
}

// Guards yields the guards of all channels, whether or not their rollouts go on.
func (m *Manifest) Guards() iter.Seq[*Guard] {
	return func(yield func(*Guard) bool) {
		for i := range m.channels {
			if g := m.channels[i].rollout.guard; g != nil && !yield(g) {
				return
			}
		}
	}
}

// Pause returns a variant of m in which the guarded rollouts that is reports are paused, as rollout_paused_at does it: no
// further device is given the target, and one that runs it keeps it (protocol 2.3 rows 2 and 3). If none is paused by that
// the result is m itself, which never changes.
func (m *Manifest) Pause(is func(*Guard) bool) *Manifest {
	var variant *Manifest
	for i := range m.channels {
		r := &m.channels[i].rollout
		if r.guard == nil || r.paused || !is(r.guard) {
			continue
		}
		if variant == nil {
			copied := *m
			copied.channels = slices.Clone(m.channels)
			variant = &copied
		}
		variant.channels[i].rollout.paused = true
	}
	if variant == nil {
		return m
	}
	variant.indexRollouts()
	return variant
}

// guardRow is what a row of channels says of the guard, and of the rollout beyond its compiled form.
type guardRow struct {
	policy   AutoPause
	enabled  bool
	action   string
	pausedAt string
}

// actionPause is the one auto_pause_action that this edge knows.
const actionPause = "pause"

func newGuardRow() guardRow {
	return guardRow{
		action: actionPause,
		policy: AutoPause{
			WindowMinutes: 60, CooldownMinutes: 60, FailureRateBPS: 500, Confidence: 0.95, MinAttempts: 50, MinFailures: 5,
		},
	}
}

// read reads a member of the guard, or skips what is none.
func (g *guardRow) read(w *walker, name string) {
	switch name {
	case "auto_pause_enabled":
		w.bool(&g.enabled)
	case "auto_pause_window_minutes":
		w.integer(&g.policy.WindowMinutes, 0, maxID)
	case "auto_pause_cooldown_minutes":
		w.integer(&g.policy.CooldownMinutes, 0, maxID)
	case "auto_pause_min_attempts":
		w.integer(&g.policy.MinAttempts, 0, maxID)
	case "auto_pause_min_failures":
		w.integer(&g.policy.MinFailures, 0, maxID)
	case "auto_pause_failure_rate_bps":
		w.integer(&g.policy.FailureRateBPS, 0, fullRollout)
	case "auto_pause_confidence":
		w.probability(&g.policy.Confidence)
	case "auto_pause_action":
		if text := w.bytes(); text != nil {
			g.action = string(text)
		}
	default:
		w.skip()
	}
}

// probability reads a number between 0 and 1, neither of which it may be; null leaves dst.
func (w *walker) probability(dst *float64) {
	if w.null() {
		return
	}
	v, ok := w.value('0', "a number")
	if !ok {
		return
	}
	p, err := strconv.ParseFloat(string(v), 64)
	if err != nil || p <= 0 || p >= 1 {
		w.fault("must be above 0 and below 1")
		return
	}
	*dst = p
}

// guard compiles the guard of the channel at index i, whose bundles are known; nil if it asks for none.
func (d *document) guard(i int, row *channelRow) *Guard {
	switch g := &row.guard; {
	case !g.enabled:
		return nil
	case g.action != actionPause:
		d.warn(fmt.Sprintf("$.channels[%d].auto_pause_action", i),
			fmt.Sprintf("is %q, which this edge does not know; the release guard of the channel is off", g.action))
		return nil
	case g.policy.WindowMinutes == 0:
		d.warn(fmt.Sprintf("$.channels[%d].auto_pause_window_minutes", i),
			"is 0, so that no attempt counts; the release guard of the channel guards nothing")
		return nil
	case row.rollout.target == nil:
		return nil
	}
	target := row.rollout.target
	return &Guard{
		ChannelID: row.id, Channel: row.name, VersionID: target.ID, Version: target.Name, Policy: row.guard.policy,
		State: row.guardState(),
	}
}

// guardState is Guard.State. It is kept on disk with a pause, so a golden test freezes it: a state that is another after an
// update of the edge would end all pauses.
func (row *channelRow) guardState() uint64 {
	p, r := &row.guard.policy, &row.rollout
	var b []byte
	for _, n := range [...]uint64{
		uint64(row.id), uint64(r.target.ID), r.target.mark, uint64(r.bps), boolBit(r.enabled),
		uint64(p.WindowMinutes), uint64(p.CooldownMinutes), uint64(p.FailureRateBPS), math.Float64bits(p.Confidence),
		uint64(p.MinAttempts), uint64(p.MinFailures),
	} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for _, s := range [...]string{r.target.Name, r.id, row.guard.pausedAt} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}

func boolBit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
