package caddymodule

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/learned"
	"github.com/capgo-edge/capgo-edge/origin/upstream"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// relay answers checks as existing servers would: by asking them, and from what they answered before.
type relay struct {
	runtime   *runtime
	config    Relay
	addresses []string // as they are configured, without a slash at the end
	names     []string // of the servers, as their answers and status call them, in the same order
	group     *upstream.Group
	scope     string
	terms     cache.Terms
	shelf     *shelf // of the objects that answers lead to

	foreign, official resolver.KeyFields
	variant           [8]byte                       // of what is made of the upstream's answers here: other settings make another
	servers           map[string]*resolver.Upstream // by name
	external          *origin.External
	recall            sync.Once
	isOfficial        atomic.Bool // all servers have said so
	makesMu           sync.Mutex
	makes             map[string]bool // whether a server is an official one, as far as it was asked; guarded by makesMu
	admissions        []*admission    // to each server
	eventApps         *eventAdmission
	offers            *offerNotes
}

// newRelay makes the relay of a site. It asks nobody yet.
func newRelay(r *runtime, addresses []string, config *Relay) (*relay, error) {
	l := &relay{runtime: r, config: *config, offers: newOfferNotes(), makes: map[string]bool{}}
	l.config.setDefaults()
	if err := l.config.check(); err != nil {
		return nil, err
	}
	var err error
	if l.group, err = r.upstreams(addresses); err != nil {
		return nil, err
	}
	l.scope = l.group.Identity()
	l.variant = l.config.variant()
	if l.foreign, err = resolver.NewKeyFields(true, l.config.KeyFields...); err != nil {
		return nil, fmt.Errorf("key_fields: %w", err)
	}
	if l.official, err = resolver.NewKeyFields(false, added(l.config.KeyFields)...); err != nil {
		return nil, fmt.Errorf("key_fields: %w", err)
	}
	if l.external, err = newExternal("allow_host", append(l.group.Hosts(), l.config.AllowHosts...)); err != nil {
		return nil, err
	}
	l.servers = map[string]*resolver.Upstream{}
	for i, server := range l.group.Health() { // in the order of the addresses
		l.addresses = append(l.addresses, strings.TrimSuffix(addresses[i], "/"))
		l.names = append(l.names, server.Upstream)
		if l.servers[server.Upstream], err = resolver.NewUpstream(l.addresses[i], l.external.Allows); err != nil {
			return nil, err
		}
	}
	l.shelf = newShelf(r, &learnedObjects{relay: l})
	l.terms = cache.Terms{
		Mode: map[string]cache.PerDevice{
			perDeviceAuto: cache.PerDeviceAuto, perDeviceOn: cache.PerDeviceOn, perDeviceOff: cache.PerDeviceOff,
		}[l.config.PerDevice],
		Ages: cache.Ages{
			Fresh: time.Duration(l.config.Fresh), StaleWhile: time.Duration(l.config.StaleWhile),
			Stale: time.Duration(l.config.Stale), Negative: time.Duration(l.config.Negative),
		},
		Admit: func() bool { return true }, // of an app that nothing is known of, termsFor asks for more
	}
	for _, server := range l.names {
		l.admissions = append(l.admissions, r.admissionOf(server, l.config.UnknownPerMinute))
	}
	l.eventApps = r.eventAdmissionOf(l.scope, l.config.UnknownPerMinute)
	return l, nil
}

// added are the fields of a list that are added.
func added(fields []string) []string {
	var list []string
	for _, field := range fields {
		if field[0] == '+' {
			list = append(list, field)
		}
	}
	return list
}

// relayed is an answer of an upstream as this edge gives it.
type relayed struct {
	status     int
	kind       string // of content
	retryAfter string
	learned    *resolver.Learned // nil if the answer is passed on as it came
	body       []byte            // as it came
	server     string
	event      string // the action that the upstream notes for it
	request    []byte // the check that it answers, with what all that share the answer have in common; may be nil
	queried    bool   // there was a query, too
}

func (a *relayed) size() int64 {
	size := int64(len(a.body)+len(a.request)) + 256
	if a.learned != nil {
		size += a.learned.MemorySize()
	}
	return size
}

// sameRelayed reports whether two answers tell any device the same.
func sameRelayed(a, b *relayed) bool {
	if a.learned == nil || b.learned == nil {
		return a.learned == b.learned && a.status == b.status && bytes.Equal(a.body, b.body)
	}
	return resolver.SameAnswer(a.learned, b.learned)
}

// keyFields are those that the upstream's answers depend on, as far as is known of it.
func (l *relay) keyFields() (fields resolver.KeyFields, official bool) {
	l.recall.Do(l.recallMakes)
	if l.isOfficial.Load() {
		return l.official, true
	}
	return l.foreign, false
}

// makesNote stands for an app in the notes of the servers: whether each has told that it is an official one. That must be
// known after a restart, too: answers are found again by the same fields only.
const makesNote = "official servers"

func (l *relay) recallMakes() {
	kept := l.kept()
	if kept == nil {
		return
	}
	l.makesMu.Lock()
	defer l.makesMu.Unlock()
	for _, server := range l.names {
		if note, ok := kept.FindNote(makesNote, server); ok {
			l.makes[server] = string(note) == "true"
		}
	}
	l.isOfficial.Store(l.allOfficialLocked())
}

// sawServer notes whether a server tells that it is an official one, whose answers depend on less.
func (l *relay) sawServer(server string, official bool) {
	l.makesMu.Lock()
	defer l.makesMu.Unlock()
	if known, ok := l.makes[server]; ok && known == official {
		return
	}
	l.makes[server] = official
	l.isOfficial.Store(l.allOfficialLocked())
	l.runtime.faults.well(l.firstAnswer(), "the upstream answers checks", zap.String(fieldUpstream, server))
	if kept := l.kept(); kept != nil {
		kept.Note(makesNote, server, strconv.AppendBool(nil, official))
	}
}

// firstAnswer is the subject of what is logged of an upstream before it has ever answered a check.
func (l *relay) firstAnswer() string { return "first answer of " + l.scope }

// notMet logs what comes instead of the first answer ever: the address may be wrong. Later, what fails is told by the breaker,
// and for each app.
func (l *relay) notMet(server string, err error) {
	l.makesMu.Lock()
	met := len(l.makes) > 0
	l.makesMu.Unlock()
	if met {
		return
	}
	l.runtime.faults.fault(l.firstAnswer(), "missing", "the upstream has never answered a check so far; its address must be what phones had as updateUrl, "+
		"without the /updates at its end", zap.String(fieldUpstream, server), zap.Error(err))
}

// allOfficialLocked reports whether every server is an official one: any of them may be the next to answer.
func (l *relay) allOfficialLocked() bool {
	for _, server := range l.names {
		if !l.makes[server] {
			return false
		}
	}
	return true
}

// ask returns the answer to a check. named says that the operator has named its app. seen reports whether the upstream has seen
// this very device ask, or does now.
func (l *relay) ask(r *http.Request, s *scratch, named bool) (a *relayed, state cache.State, seen bool, err error) {
	if !l.runtime.users.enter() {
		return nil, cache.Unavailable, false, errClosed
	}
	defer l.runtime.users.leave()
	fields, official := l.keyFields()
	s.key = l.appendKey(s.key[:0], &s.check, s.body, r.URL.RawQuery, fields)
	var mine *inquiry
	q := cache.Question[*relayed]{Group: l.groupOf(s.check.AppID), Key: string(s.key), Device: s.check.DeviceID}
	q.Asker = func() cache.Asker[*relayed] {
		mine = l.inquire(r, s, official, named)
		derived := mine.upToDate(&q)
		mine.derived.Store(derived)
		mine.derives = derived != nil
		return mine.ask
	}
	a, state, err = l.runtime.answers.Get(r.Context(), l.termsFor(r, q.Group, named), &q)
	seen = q.Asked && (mine == nil || !mine.derives)
	if now := l.isOfficial.Load(); now && !official && mine != nil {
		if reply := mine.reply.Load(); reply != nil && reply.Value.learned != nil { // it is to be found by the fields that count from now on
			l.keepAgain(r, s, reply)
			return reply.Value, cache.Loaded, seen, nil
		}
	}
	return a, state, seen, err
}

// keepAgain keeps a reply of the upstream under the fields of an official one.
func (l *relay) keepAgain(r *http.Request, s *scratch, own *cache.Reply[*relayed]) {
	mine, reply, answer := l.inquire(r, s, true, false), *own, *own.Value
	answer.request = mine.common(answer.request)
	reply.Value = &answer
	s.key = l.appendKey(s.key[:0], &s.check, s.body, r.URL.RawQuery, l.official)
	_, _, _ = l.runtime.answers.Get(r.Context(), &l.terms, &cache.Question[*relayed]{ // for what it keeps
		Group: l.groupOf(s.check.AppID), Key: string(s.key), Device: s.check.DeviceID,
		Asker: func() cache.Asker[*relayed] {
			return func(ctx context.Context, device string, like *relayed) (cache.Reply[*relayed], error) {
				if device == mine.check.DeviceID {
					return reply, nil
				}
				return mine.ask(ctx, device, like)
			}
		},
	})
}

// appendKey appends the key that the answer to a check is kept under. Servers may go by what stands behind updateUrl as its
// query.
func (l *relay) appendKey(dst []byte, c *resolver.Check, body []byte, query string, fields resolver.KeyFields) []byte {
	return append(appendQuery(resolver.AppendAnswerKey(dst, c, body, fields), query), l.variant[:]...)
}

func appendQuery(dst []byte, query string) []byte {
	if query == "" {
		return dst
	}
	sum := sha256.Sum256([]byte(query))
	return append(dst, sum[:]...)
}

// keyHasCustomID reports whether custom_id is in the key of answers, so that all that share one have the same.
func (l *relay) keyHasCustomID(official bool) bool {
	if official {
		return slices.Contains(l.config.KeyFields, "+custom_id")
	}
	return !slices.Contains(l.config.KeyFields, "-custom_id")
}

// groupOf is what the answers for an app are kept under.
func (l *relay) groupOf(appID string) cache.Key { return cache.Key{Scope: l.scope, Name: appID} }

// forget has the next check of an app ask the upstream. Last good answers stay for an outage.
func (l *relay) forget(appID string) {
	if !l.runtime.users.enter() {
		return
	}
	defer l.runtime.users.leave()
	l.runtime.answers.Purge(l.groupOf(appID), true)
}

// knows reports whether the upstream has answered for an app. The error is cache.ErrNotFound while it says that there is none.
func (l *relay) knows(appID string) (bool, error) {
	known, refused := l.runtime.answers.Knows(l.groupOf(appID))
	if refused {
		return false, cache.ErrNotFound
	}
	return known, nil
}

// differs notes that a device has chosen a channel at the upstream: it may be answered otherwise than others now.
func (l *relay) differs(appID, device string) {
	if !l.runtime.users.enter() {
		return
	}
	defer l.runtime.users.leave()
	l.runtime.answers.Differs(l.groupOf(appID), device)
}

// kept is what the relay has on disk; nil if that cannot be used.
func (l *relay) kept() *learned.Scope {
	if store := l.runtime.learnedStore(); store != nil {
		return store.Scope(l.scope)
	}
	return nil
}

// close gives up connections that are not in use. Requests may still run.
func (l *relay) close() {
	l.group.CloseIdleConnections()
	l.external.CloseIdleConnections()
}

// upstreams are the servers at these addresses. Configurations share them.
func (r *runtime) upstreams(addresses []string) (*upstream.Group, error) {
	group, err := upstream.NewGroup(upstream.Options{URLs: addresses, Report: r.reportUpstream})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.groups[group.Identity()]; known != nil {
		return known, nil
	}
	r.groups[group.Identity()] = group
	return group, nil
}

// reportUpstream logs that a server fails, or answers again.
func (r *runtime) reportUpstream(server string, err error) {
	field := zap.String(fieldUpstream, server)
	if err == nil {
		r.faults.well("upstream "+server, "upstream answers again", field)
		return
	}
	r.faults.fault("upstream "+server, "failing", "upstream does not answer; last good answers are given where there are any", field, zap.Error(err))
}

// learn prepares an answer to be given to others, and notes on disk what the addresses in it stand for.
func (l *relay) learn(ctx context.Context, a *relayed, parsed *resolver.Answer, appID, device string) {
	l.prepare(a, parsed, appID, device, func(objects []learned.Object) bool { return l.remember(ctx, appID, objects) })
}

// prepare is learn, with remember to note the objects. If it fails, addresses stay as they are.
func (l *relay) prepare(a *relayed, parsed *resolver.Answer, appID, device string, remember func([]learned.Object) bool) {
	paths := make([]string, len(parsed.Addresses))
	objects := make([]learned.Object, 0, len(parsed.Addresses))
	if server := l.servers[a.server]; server != nil {
		for n := range parsed.Addresses {
			if p, ok := server.Place(appID, parsed, n); ok {
				paths[n] = p.Path
				objects = append(objects, learnedObject(&p))
			} else {
				l.elsewhere(parsed.Addresses[n].URL)
			}
		}
	}
	if len(objects) > 0 && !remember(objects) {
		clear(paths) // what nobody would know after a restart must not be given out
	}
	a.learned = parsed.Compile(resolver.CompileOptions{
		Rewrite:  func(n int, _ resolver.Address) (string, bool) { return paths[n], paths[n] != "" },
		DeviceID: device, AddKind: !l.config.KeepKind,
	})
	a.event = resolver.EventOf(parsed.Code)
}

// elsewhere logs, once for each host, that phones load from there, past this edge.
func (l *relay) elsewhere(address string) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || l.external.Allows(u.Scheme+"://"+u.Host) {
		return
	}
	l.runtime.faults.fault("downloads of "+l.scope+" from "+u.Host, "elsewhere",
		"the upstream's downloads are on a host that this edge does not fetch from, so phones load them there; "+
			"list it in relay { allow_host ... } to have them come through here", zap.String("host", u.Scheme+"://"+u.Host))
}

// remember notes on disk where objects are. It reports whether that is done.
func (l *relay) remember(ctx context.Context, appID string, objects []learned.Object) bool {
	kept := l.kept()
	if kept == nil {
		return false
	}
	if err := kept.Put(ctx, appID, objects); err != nil {
		l.runtime.reportLearned(err)
		return false
	}
	return true
}

func learnedObject(p *resolver.Placement) learned.Object {
	o := learned.Object{Key: p.Key, URL: p.Fetch, Size: p.Known.Size, SHA256: p.Known.SHA256}
	switch p.Known.Covers {
	case resolver.DigestStored:
		o.Covers = learned.StoredBytes
	case resolver.DigestDecoded:
		o.Covers = learned.DecodedBytes
	case resolver.DigestUnknown:
	}
	return o
}
