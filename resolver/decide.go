package resolver

// Outcome is what a decision comes to. Except for Offer its text is the "kind" of the answer, by which clients tell a
// failure they report from a refusal they keep quiet about (protocol 1.8).
type Outcome uint8

// The outcomes.
const (
	Offer Outcome = iota
	UpToDate
	Blocked
	Failed
)

func (o Outcome) String() string {
	return [...]string{"offer", "up_to_date", "blocked", "failed"}[o]
}

// Decision is the answer to one check, before it is written.
type Decision struct {
	Outcome Outcome
	Rule    string // which rule decided; a closed set, fit for logs and metrics
	Code    string // wire error code; empty for Offer
	Message string
	Event   string // the statistics action the upstream records for it; empty for none
	Channel string // the channel that was chosen; empty for none
	Bundle  *Bundle
	Guard   *Guard // set if a guarded rollout offers its target; see AutoPause

	show  shown
	check *Check
	// withFiles and withMeta tell whether this plugin may be given the delta list, and link and comment.
	withFiles, withMeta bool
}

// The plugin versions that understand what an answer may hold (protocol 1.6, "Gate" in its introduction).
var (
	filesGate = gate{{major: 5, minor: 10}, {major: 6, minor: 25}, {major: 7, patch: 35}, {major: 8}}
	metaGate  = gate{{major: 5, minor: 35}, {major: 6, minor: 35}, {major: 7, minor: 35}, {major: 8, minor: 35}}

	// Later plugins are refused a bundle encrypted for another key (row 12).
	lastWithoutKeyCheck = version{major: 8, minor: 40, patch: 7}
	// Earlier plugins cannot return to the native bundle (rows 25a and 25b).
	firstWithBuiltin = version{major: 6, minor: 2}
)

// eventGet is the action for an offer.
const eventGet = "get"

// Decide answers the check: it walks the rules and takes the first that fires. c must outlive the decision.
func (m *Manifest) Decide(c *Check) Decision {
	s := subject{m: m, c: c}
	if s.ch = m.channelFor(c); s.ch != nil {
		s.b = m.choose(s.ch, c)
	}
	for i := range rules {
		if rules[i].fires(s) {
			return s.decision(&rules[i])
		}
	}
	return s.offer()
}

// channelFor selects the channel that serves the device (protocol 2.1), or nil. A device that names a channel it may not
// have gets none: there is no way back to the public one.
func (m *Manifest) channelFor(c *Check) *channel {
	if ch := m.forced(c); ch != nil && !ch.hidden() {
		return ch
	}
	if c.DefaultChannel != "" {
		if ch := m.at(m.byName[c.DefaultChannel]); ch != nil && ch.nameable(c.Platform) {
			return ch
		}
		return nil
	}
	return m.at(m.public[c.Platform])
}

// forced is the channel that the device of an old plugin stored, or else the one that the operator put the device into. A
// stored one goes before the other even if it serves nothing.
func (m *Manifest) forced(c *Check) *channel {
	if c.hasAssigned {
		if ch := m.at(m.byID[c.assigned]); ch != nil {
			return ch
		}
	}
	return m.at(m.overrides[c.device])
}

func (s subject) decision(r *rule) Decision {
	d := Decision{
		Outcome: r.outcome, Rule: r.name, Code: r.code, Message: r.message, Event: r.event,
		show: r.show, check: s.c, Bundle: s.b,
	}
	if s.ch != nil {
		d.Channel = s.ch.name
		if r.code == codeMisconfigured {
			d.Message = s.ch.misconfigured
		}
	}
	return d
}

func (s subject) offer() Decision {
	return Decision{
		Outcome: Offer, Rule: ruleOffer, Event: eventGet, Channel: s.ch.name, Bundle: s.b, Guard: s.guard(), check: s.c,
		withFiles: !s.b.files.empty() && filesGate.passes(s.c.plugin),
		withMeta:  s.b.meta != "" && s.m.exposeMetadata && metaGate.passes(s.c.plugin),
	}
}

// guard is that of the rollout which gives the device its target; nil if none does. A target that is the stable bundle too
// is offered whatever the rollout comes to.
func (s subject) guard() *Guard {
	if r := &s.ch.rollout; r.guard != nil && s.b == r.target && s.b != s.ch.stable {
		return r.guard
	}
	return nil
}
