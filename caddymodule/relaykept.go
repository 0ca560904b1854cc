package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin/learned"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// keptAnswer stands before an answer of an upstream on disk.
type keptAnswer struct {
	Status int    `json:"status"`
	Kind   string `json:"type"`
	Server string `json:"server"`
	Offer  string `json:"offer,omitempty"`
	// Request is the check that was answered; what a manifest is made of needs it.
	Request json.RawMessage `json:"request,omitempty"`
	Queried bool            `json:"queried,omitempty"` // it had a query, by which the answer may be another than the request tells
	Until   time.Time       `json:"until,omitzero"`
}

// readKept takes an answer apart as saveAnswer wrote it.
func readKept(raw []byte) (head keptAnswer, body []byte, ok bool) {
	line, body, _ := bytes.Cut(raw, []byte{'\n'})
	ok = json.Unmarshal(line, &head) == nil
	return head, body, ok
}

// openAnswers makes what keeps the answers of upstreams.
func (r *runtime) openAnswers(s settings) {
	r.answers = cache.NewAnswers(cache.AnswersOptions[*relayed]{
		MaxBytes: s.answerMemory(), Size: (*relayed).size, Same: sameRelayed,
		Report: r.reportAnswers, Restore: r.restoreAnswer, Save: r.saveAnswer, Drop: r.dropAnswers,
		Recall: r.recallGroup, SaveDiffers: r.saveDiffers, SaveMark: r.saveMark,
	})
}

// learnedStore opens what upstreams told and must outlast a restart. The first relay that needs it does.
func (r *runtime) learnedStore() *learned.Store {
	r.learnedOnce.Do(func() {
		store, err := learned.Open(learned.Options{Path: filepath.Join(r.dir, "learned.db"), Report: r.reportLearned})
		if err != nil {
			r.reportLearned(fmt.Errorf("opening learned.db: %w", err))
			return
		}
		r.learned.Store(store)
	})
	return r.learned.Load()
}

func (r *runtime) closeLearned() error {
	r.learnedOnce.Do(func() {}) // nobody opens it any more
	if store := r.learned.Load(); store != nil {
		return store.Close()
	}
	return nil
}

func (r *runtime) reportLearned(err error) {
	where := zap.String(fieldStorage, r.dir)
	if err == nil {
		r.faults.well("learned", "what upstreams tell can be kept again", where)
		return
	}
	r.faults.fault("learned", "failing", "what upstreams tell cannot be kept; their addresses are handed out as they are; check space and permissions",
		where, zap.Error(err))
}

func (r *runtime) reportAnswers(group cache.Key, e cache.Event, detail string) {
	fields := []zap.Field{zap.String(fieldAppID, group.Name), zap.String(fieldUpstream, group.Scope), zap.String("detail", detail)}
	switch e {
	case cache.Marked, cache.StillMarked:
		if e == cache.Marked {
			r.counters.marked.Add(1)
		}
		r.faults.fault("devices "+group.Scope+" "+group.Name, "differ", "answers of the upstream differ, so they are not shared; each device is asked for by itself from now on", fields...)
	case cache.Unmarked:
		r.faults.well("devices "+group.Scope+" "+group.Name, "answers are shared between devices again", fields...)
	case cache.OutageBegan:
		r.faults.fault("answers "+group.Scope+" "+group.Name, "failing", "the upstream does not answer for an app; its last good answers are given", fields...)
	case cache.OutageEnded:
		r.faults.well("answers "+group.Scope+" "+group.Name, "the upstream answers for an app again", fields...)
	}
}

// saveAnswer keeps an answer beyond a restart. There may be any number of those for single devices: what they take of disk is
// bounded, and the oldest go.
func (r *runtime) saveAnswer(k cache.AnswerKey, kept cache.Kept[*relayed]) {
	l := r.relayOf(k.Group.Scope)
	if l == nil || kept.Value.learned == nil {
		return
	}
	a := kept.Value
	front := keptAnswer{Status: a.status, Kind: a.kind, Server: a.server, Offer: kept.Offer, Queried: a.queried, Until: kept.Until}
	if a.request != nil {
		front.Request = withoutCustomID(a.request)
	}
	head, err := json.Marshal(front)
	if err != nil {
		return // it holds nothing that could fail
	}
	if scope := l.kept(); scope != nil {
		scope.Save(k.Group.Name, keptKey(k), append(append(head, '\n'), a.body...), kept.Validated)
	}
}

// rememberMissing is remember for what an answer from before said: where an object is known to be by now stays.
func (l *relay) rememberMissing(appID string, objects []learned.Object) bool {
	kept := l.kept()
	missing := slices.DeleteFunc(objects, func(o learned.Object) bool {
		_, known := kept.Find(appID, o.Key)
		return known
	})
	return len(missing) == 0 || l.remember(context.Background(), appID, missing)
}

// keptKey is the key of an answer on disk. Those of checks are self-contained, so a device behind one makes another.
func keptKey(k cache.AnswerKey) string { return k.Key + k.Device }

func (r *runtime) restoreAnswer(k cache.AnswerKey) (none cache.Kept[*relayed], ok bool) {
	l := r.relayFor(&k)
	if l == nil || l.kept() == nil {
		return none, false
	}
	raw, at, ok := l.kept().Load(k.Group.Name, keptKey(k))
	if !ok {
		return none, false
	}
	head, body, ok := readKept(raw)
	if !ok {
		return none, false
	}
	parsed := resolver.ParseAnswer(head.Status, body)
	if parsed.Class != resolver.AnswerOffer && parsed.Class != resolver.AnswerNoUpdate {
		return none, false
	}
	a := &relayed{status: head.Status, kind: head.Kind, server: head.Server, body: body, queried: head.Queried}
	if _, official := l.keyFields(); !l.keyHasCustomID(official) { // else the request lacks what it had
		a.request = head.Request
	}
	l.prepare(a, parsed, k.Group.Name, k.Device, func(objects []learned.Object) bool {
		return l.rememberMissing(k.Group.Name, objects)
	})
	return cache.Kept[*relayed]{Value: a, Offer: head.Offer, Validated: at, Until: head.Until}, true
}

func (r *runtime) dropAnswers(group cache.Key) {
	if l := r.relayOf(group.Scope); l != nil && l.kept() != nil {
		go func() {
			err := l.kept().DropApp(context.Background(), group.Name)
			if err != nil && !errors.Is(err, learned.ErrClosed) {
				r.reportLearned(err)
			}
		}()
	}
}

// relayOf is the newest relay with an identity.
func (r *runtime) relayOf(scope string) *relay {
	return r.newestRelay(func(l *relay) bool { return l.scope == scope })
}

// relayFor is the newest relay that makes of answers what was made of this one.
func (r *runtime) relayFor(k *cache.AnswerKey) *relay {
	return r.newestRelay(func(l *relay) bool {
		return l.scope == k.Group.Scope && strings.HasSuffix(k.Key, string(l.variant[:]))
	})
}

func (r *runtime) newestRelay(fits func(*relay) bool) *relay {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found *relay
	for site := range r.sites {
		if site.relay != nil && fits(site.relay) && (found == nil || len(r.apps) > 0 && site.app == r.apps[len(r.apps)-1]) {
			found = site.relay
		}
	}
	return found
}

// knew reports whether the upstream has answered for an app within the time that last good answers are used.
func (l *relay) knew(ctx context.Context, appID string) bool {
	kept, known := l.kept(), false
	if kept == nil {
		return false
	}
	oldest := time.Now().Add(-l.terms.Ages.Stale)
	err := kept.Each(ctx, appID, func(_ string, _ []byte, at time.Time) bool {
		known = at.After(oldest)
		return !known
	})
	return known && err == nil
}

// recallGroup returns what was kept of an app.
func (r *runtime) recallGroup(group cache.Key) (kept cache.Recalled) {
	l := r.relayOf(group.Scope)
	if l == nil || l.kept() == nil {
		return kept
	}
	kept.Known = l.knew(context.Background(), group.Name)
	if note, ok := l.kept().FindNote(markNote, group.Name); ok {
		_ = json.Unmarshal(note, &kept.Mark) // what cannot be read is found out again
	}
	err := l.kept().Notes(differingNotes+group.Name, func(device string, since []byte) bool {
		if at, err := time.Parse(time.RFC3339Nano, string(since)); err == nil {
			kept.Differing = append(kept.Differing, cache.Differing{Device: device, Since: at})
		}
		return true
	})
	if err != nil {
		r.reportLearned(err)
	}
	slices.SortFunc(kept.Differing, func(a, b cache.Differing) int { return a.Since.Compare(b.Since) })
	return kept
}

// What notes are kept under: which apps' devices were found to differ, and the devices of an app that chose a channel at the
// upstream. No app id has a blank.
const (
	markNote       = "differing apps"
	differingNotes = "differing "
)

func (r *runtime) saveDiffers(group cache.Key, device string) {
	if l := r.relayOf(group.Scope); l != nil && l.kept() != nil {
		l.kept().Note(differingNotes+group.Name, device, []byte(time.Now().Format(time.RFC3339Nano)))
	}
}

func (r *runtime) saveMark(group cache.Key, m cache.Mark) {
	l := r.relayOf(group.Scope)
	if l == nil || l.kept() == nil {
		return
	}
	var note []byte // none: it is not marked
	if m != (cache.Mark{}) {
		note, _ = json.Marshal(m) // it holds nothing that could fail
	}
	l.kept().Note(markNote, group.Name, note)
}
