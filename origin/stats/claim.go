package stats

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// scanBudget is how many records one transaction looks at for a batch.
const scanBudget = 50_000

// maxHintDevices is how many devices a hint holds at most. Beyond it the lane waits until one of them is free again.
const maxHintDevices = 1 << 16

// hint is where the records of a lane begin of which it is not known that their device is held: those before it belong to
// devices. With it a device that is held with a million events is not read again and again.
type hint struct {
	next    []byte // key
	devices map[uint64]struct{}
}

// key is the Idempotency-Key of a batch.
func (s *store) key(number uint64) string {
	return fmt.Sprintf("%016x-%016x", s.state.instance, number)
}

// newNumber is that of a new batch. It is drawn and not counted: a file that is put back from a copy would count on from where
// it stood then, and give other events keys that the collector knows.
func newNumber() uint64 { return rand.Uint64() }

// claimsOf reads the batches of a lane that are on their way. Damaged ones are forgotten: their events are claimed again.
func (s *store) claimsOf(key []byte) []claim {
	value := s.claims.Get(key)
	if value == nil {
		return nil
	}
	claims, err := decodeClaims(key, value)
	if err != nil {
		return nil
	}
	return claims
}

// claimed are the seqs of the records of a lane that are on their way.
func (s *store) claimed(key []byte) map[uint64]struct{} {
	var seqs map[uint64]struct{}
	for _, c := range s.claimsOf(key) {
		for _, seq := range c.seqs {
			if seqs == nil {
				seqs = map[uint64]struct{}{}
			}
			seqs[seq] = struct{}{}
		}
	}
	return seqs
}

func (s *store) putClaims(l Lane, claims []claim) error {
	s.changed = true
	key := l.key()
	if len(claims) == 0 {
		return s.claims.Delete(key)
	}
	return s.claims.Put(key, encodeClaims(key, claims))
}

// conditions are what a batch is claimed under.
type conditions struct {
	limits BatchLimits
	held   func(device uint64) bool
}

// claim takes the next batch of a lane. With more it did not find one among the records it looked at, and there are others.
func (s *store) claim(l Lane, c conditions) (b *Batch, more bool, err error) {
	a := s.apps.byNumber[l.app]
	if a == nil || l.n >= Lanes || a.records[l.n] == 0 {
		return nil, false, nil
	}
	b, resting, err := s.claimedBatch(a, l, c.held)
	if b != nil || err != nil {
		return b, false, err
	}
	found, more, err := s.scan(a, l, c, resting)
	if err != nil || len(found) == 0 {
		return nil, more, err
	}
	number := newNumber()
	claims := append(s.claimsOf(l.key()), claim{number: number, seqs: seqsOf(found)}) // behind those that rest
	return s.batch(a, l, number, found), false, s.putClaims(l, claims)
}

func (s *store) batch(a *app, l Lane, number uint64, records []Record) *Batch {
	return &Batch{Key: s.key(number), App: a.id, Lane: l, Events: records}
}

func seqsOf(records []Record) []uint64 {
	seqs := make([]uint64, len(records))
	for i, r := range records {
		seqs[i] = r.Seq
	}
	return seqs
}

// claimedBatch returns the first batch of a lane that is on its way already. One that lost events to the bound has another key, as
// it is no longer the same. Batches that rest (see [store.remaining]) are passed over, and their devices returned.
func (s *store) claimedBatch(a *app, l Lane, held func(device uint64) bool) (*Batch, map[uint64]struct{}, error) {
	claims := s.claimsOf(l.key())
	devices := map[uint64]struct{}{}
	var resting []claim
	for i, c := range claims {
		if device, ok := s.single(l, c); ok && held != nil && held(device) {
			resting, devices[device] = append(resting, c), struct{}{}
			continue
		}
		var found []Record
		for _, seq := range c.seqs {
			r, ok, err := s.fetch(a, l, eventKey(l, seq))
			if err != nil {
				return nil, nil, err
			}
			if ok {
				found = append(found, r)
			}
		}
		switch {
		case len(found) == 0:
			continue
		case len(found) < len(c.seqs):
			c = claim{number: newNumber(), seqs: seqsOf(found)}
		case i == len(resting):
			return s.batch(a, l, c.number, found), nil, nil // nothing to write
		}
		return s.batch(a, l, c.number, found), nil, s.putClaims(l, slices.Concat(resting, []claim{c}, claims[i+1:]))
	}
	if len(claims) > len(resting) {
		return nil, devices, s.putClaims(l, resting)
	}
	return nil, devices, nil
}

// single gives the device of a batch of one event.
func (s *store) single(l Lane, c claim) (device uint64, ok bool) {
	if len(c.seqs) != 1 {
		return 0, false
	}
	key := eventKey(l, c.seqs[0])
	h, err := decodeHead(key, s.events.Get(key))
	return h.device, err == nil
}

// fetch returns a copy of an event, and drops one that is damaged.
func (s *store) fetch(a *app, l Lane, key []byte) (r Record, ok bool, err error) {
	c := s.events.Cursor()
	k, v := c.Seek(key)
	if !bytes.Equal(k, key) {
		return Record{}, false, nil
	}
	if r, _, _, err = s.read(c, k, v); err != nil {
		return Record{}, false, s.drop(a, l, key, reasonDamaged)
	}
	return r, true, nil
}

// scan collects the next batch of a lane on which nothing is on its way but batches that rest, of these devices.
func (s *store) scan(a *app, l Lane, c conditions, resting map[uint64]struct{}) (found []Record, more bool, err error) {
	prefix := l.key()
	skipped := s.heldAlready(l, c.held)
	from := prefix
	if len(skipped) > 0 {
		from = s.hints[l].next
	}
	maps.Copy(skipped, resting)
	var damaged [][]byte
	size, budget := 0, scanBudget
	cursor := s.events.Cursor()
	key, value := cursor.Seek(from)
	for bytes.HasPrefix(key, prefix) && budget > 0 {
		budget--
		h, err := decodeHead(key, value)
		if err == nil && isHeld(h.device, skipped, c.held) || !isHead(key) {
			key, value = cursor.Next()
			continue
		}
		if err == nil && len(found) > 0 && size+h.length > c.limits.Bytes {
			break
		}
		here := bytes.Clone(key)
		var r Record
		if r, key, value, err = s.read(cursor, key, value); err != nil {
			damaged = append(damaged, here)
			continue
		}
		found = append(found, r)
		if size += len(r.Data); len(found) >= c.limits.Events || size >= c.limits.Bytes {
			break
		}
	}
	more = len(found) == 0 && bytes.HasPrefix(key, prefix) && len(skipped) <= maxHintDevices
	if len(found) == 0 && len(damaged) == 0 && len(skipped) == 0 && !more {
		return nil, false, fmt.Errorf("%w: of the %d records of lane %d of the app %q none is found", errDamaged, a.records[l.n], l.n, a.id)
	}
	s.leaveHint(l, found, key, skipped)
	for _, key := range damaged {
		if err := s.drop(a, l, key, reasonDamaged); err != nil {
			return nil, false, err
		}
	}
	return found, more, nil
}

// isHeld reports that the events of a device are to be passed over. Once it is, it is for the whole scan: else a later event
// of the device could overtake one that was passed over a moment before.
func isHeld(device uint64, skipped map[uint64]struct{}, held func(uint64) bool) bool {
	if held == nil {
		return false
	}
	if _, is := skipped[device]; is {
		return true
	}
	if held(device) {
		skipped[device] = struct{}{}
		return true
	}
	return false
}

// heldAlready returns the devices of the lane's hint if all of them are held still, and forgets it otherwise.
func (s *store) heldAlready(l Lane, held func(uint64) bool) map[uint64]struct{} {
	h := s.hints[l]
	if h == nil {
		return map[uint64]struct{}{}
	}
	for device := range h.devices {
		if held == nil || !held(device) {
			delete(s.hints, l)
			return map[uint64]struct{}{}
		}
	}
	return h.devices
}

// leaveHint notes what the scan of a lane passed over before it found anything. A device that was met only later is held
// for the hint, too, which is right as long as the hint is used only while all its devices are held.
func (s *store) leaveHint(l Lane, found []Record, key []byte, skipped map[uint64]struct{}) {
	if len(skipped) == 0 {
		return
	}
	var next []byte
	switch {
	case len(found) > 0:
		next = eventKey(l, found[0].Seq)
	case bytes.HasPrefix(key, l.key()):
		next = bytes.Clone(key)
	default: // to the end of the lane
		next = eventKey(l, s.state.events+1)
	}
	s.hints[l] = &hint{next: next, devices: skipped}
}

// maxResting is how many batches of a lane rest at most, as all that is noted of a lane is read with each batch. Beyond it an event is
// sent again under another key.
const maxResting = 100

// settle ends a batch. One that is not on its way was settled before, by a call whose answer got lost.
func (s *store) settle(b *Batch, verdicts []Verdict) error {
	a, i, claims := s.find(b)
	if i < 0 {
		return nil
	}
	if err := s.putClaims(b.Lane, slices.Concat(claims[:i], s.remaining(b, verdicts, i, claims))); err != nil {
		return err
	}
	for j, v := range verdicts {
		if v.Fate == Keep {
			continue
		}
		if _, err := s.remove(a, b.Lane, eventKey(b.Lane, b.Events[j].Seq)); err != nil {
			return err
		}
	}
	return nil
}

// remaining are the batches of a lane from the i-th on, which is settled.
//
// If it was answered, and nothing became of any event as all wait for the app or the collector, it is another request, in its
// place: so none is overtaken by its lane, and what a split found out is not forgotten. If it is a single event whose request was
// not answered, it rests: it keeps its key, and is passed over while its device is held.
func (s *store) remaining(b *Batch, verdicts []Verdict, i int, claims []claim) []claim {
	c, behind := claims[i], claims[i+1:]
	switch v := verdicts[0]; {
	case !slices.ContainsFunc(verdicts, func(v Verdict) bool { return v.Fate != Keep || v.Code != "" }):
		return slices.Concat([]claim{{number: newNumber(), seqs: c.seqs}}, behind)
	case v.Fate == Keep && v.unanswered && i < maxResting:
		return slices.Concat([]claim{c}, s.giveUp(b, verdicts, behind))
	}
	return s.giveUp(b, verdicts, behind)
}

// giveUp takes from what a split left of a lane all from the first batch on that has an event of a device of which one is kept: it
// would overtake that one, which is claimed behind them. They were not sent yet, so that no key is lost, and are composed anew;
// those behind the first as well, or they would overtake what is given up of other devices.
func (s *store) giveUp(b *Batch, verdicts []Verdict, claims []claim) []claim {
	kept := map[uint64]struct{}{}
	for j, v := range verdicts {
		if v.Fate == Keep {
			kept[b.Events[j].Device] = struct{}{}
		}
	}
	for i, c := range claims {
		if slices.ContainsFunc(c.seqs, func(seq uint64) bool { return s.isOf(b.Lane, seq, kept) }) {
			return claims[:i]
		}
	}
	return claims
}

// isOf reports that an event is there, and of one of the devices.
func (s *store) isOf(l Lane, seq uint64, devices map[uint64]struct{}) bool {
	if len(devices) == 0 {
		return false
	}
	key := eventKey(l, seq)
	h, err := decodeHead(key, s.events.Get(key))
	_, is := devices[h.device]
	return err == nil && is
}

// find looks for a batch among those that are on their way.
func (s *store) find(b *Batch) (a *app, i int, claims []claim) {
	if a = s.apps.byNumber[b.Lane.app]; a == nil {
		return nil, -1, nil
	}
	claims = s.claimsOf(b.Lane.key())
	return a, slices.IndexFunc(claims, func(c claim) bool { return s.key(c.number) == b.Key }), claims
}

// split puts two batches in place of one. One that is not on its way was split before, by a call whose answer got lost.
func (s *store) split(b *Batch) (*Batch, error) {
	a, i, claims := s.find(b)
	switch {
	case a == nil:
		return nil, nil
	case i < 0:
		first, _, err := s.claimedBatch(a, b.Lane, nil)
		return first, err
	}
	seqs := claims[i].seqs
	half := len(seqs) / 2
	first, second := newNumber(), newNumber()
	claims = slices.Replace(claims, i, i+1, claim{number: first, seqs: seqs[:half]}, claim{number: second, seqs: seqs[half:]})
	if err := s.putClaims(b.Lane, claims); err != nil {
		return nil, err
	}
	return s.batch(a, b.Lane, first, b.Events[:half]), nil
}
