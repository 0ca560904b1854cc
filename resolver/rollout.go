package resolver

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
)

// fullRollout is the number of buckets, and the percentage in basis points that takes all of them.
const fullRollout = 10000

// rollout is the progressive rollout of a channel (protocol 2.3).
type rollout struct {
	target  *Bundle // nil if there is none
	enabled bool
	paused  bool
	bps     int64
	id      string
	guard   *Guard // nil if the channel asks for none
}

// live reports whether row 1 of the table lets the rollout count.
func (r *rollout) live() bool { return r.target != nil && !r.target.gone && r.enabled }

// gives reports whether a device that does not run the target may be given it: whether rows 5 to 9 are reached.
func (r *rollout) gives() bool { return r.live() && !r.paused && r.bps > 0 }

// derivedRolloutID stands in for a missing rollout_id: it changes whenever the target does. Frozen by a golden test,
// because another text would draw all devices anew.
func derivedRolloutID(channel, target int64) string {
	return strconv.FormatInt(channel, 10) + ":" + strconv.FormatInt(target, 10)
}

// bucket is the device's place in a rollout, 0 to 9999, the same at every site and on every day: the first 8 bytes of
// SHA-256(rollout id, NUL, lower-case device id), big-endian, modulo 10000 (contract section 4). A device gets the target
// while its bucket is below the percentage, so raising the percentage never takes the target away from one.
func bucket(rolloutID, deviceID string) int64 {
	var room [160]byte
	text := append(room[:0], rolloutID...)
	text = append(text, 0)
	text = append(text, deviceID...)
	sum := sha256.Sum256(text)
	return int64(binary.BigEndian.Uint64(sum[:8]) % fullRollout)
}

// choose returns the bundle of the channel for this device (protocol 2.3; the rows are those of its table). No draw is
// remembered: the bucket stands for rows 5 to 9.
func (m *Manifest) choose(ch *channel, c *Check) *Bundle {
	r := &ch.rollout
	switch {
	case !m.rolloutActive && !m.pausedTargets[c.VersionName]: // the fast path
		return ch.stable
	case !r.live(): // row 1
		return ch.stable
	case c.VersionName == r.target.Name: // row 2, paused or not
		return r.target
	case r.paused || r.bps == 0: // rows 3 and 4
		return ch.stable
	case bucket(r.id, c.DeviceID) < r.bps:
		return r.target
	}
	return ch.stable
}
