package caddymodule

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// offerNotes remember what an upstream offered last to those who ask the same but run another version. A device that runs
// that version is up to date, which the upstream need not be asked about.
type offerNotes struct {
	mu      sync.Mutex
	notes   *simplelru.LRU[string, offerNote] // guarded by mu, as all below
	derives map[string]bool                   // apps for which the upstream itself calls such a device up to date
}

type offerNote struct {
	appID   string
	offer   *resolver.Learned
	offered time.Time
}

// maxOfferNotes bounds the notes of one upstream, and the apps it is known to call devices up to date for.
const maxOfferNotes = 1 << 14

// codeUpToDate is the code of an answer to a device that runs what it would be offered.
const codeUpToDate = "no_new_version_available"

func newOfferNotes() *offerNotes {
	notes, _ := simplelru.NewLRU[string, offerNote](maxOfferNotes, nil) // fails only for a size below 1
	return &offerNotes{notes: notes, derives: map[string]bool{}}
}

// noteKey is that of the check's group, and of its device if answers differ between devices.
func (i *inquiry) noteKey(device string) string {
	key := append([]byte(i.check.AppID), 0)
	fields, _ := i.keyFields()
	key = resolver.AppendGroupKey(key, &i.check, i.body, fields)
	if i.terms.Mode == cache.PerDeviceOn || i.runtime.answers.Marked(i.groupOf(i.check.AppID)) {
		key = append(key, device...)
	}
	return string(key)
}

// note remembers an answer of the upstream.
func (i *inquiry) note(a *relayed, device string) {
	n := i.offers
	switch {
	case a.learned.Class == resolver.AnswerOffer:
		key := i.noteKey(device)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.notes.Add(key, offerNote{i.check.AppID, a.learned, time.Now()})
	case a.learned.Code == codeUpToDate:
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.derives) >= maxOfferNotes {
			clear(n.derives)
		}
		n.derives[i.check.AppID] = true
	}
}

// upToDate is the answer to a device that runs what it would be offered, as long as that offer is fresh; nil if it does not
// or that is not known. Some servers offer a device what it runs, so the upstream must have shown that it does not.
func (i *inquiry) upToDate(device string) *cache.Reply[*relayed] {
	n := i.offers
	key := i.noteKey(device)
	n.mu.Lock()
	note, ok := n.notes.Get(key)
	derives := n.derives[i.check.AppID]
	n.mu.Unlock()
	until := note.offered.Add(i.terms.Ages.Fresh)
	if !ok || !derives || !time.Now().Before(until) || !note.offer.OffersRunning(&i.check) {
		return nil
	}
	body := resolver.AppendUpToDate(nil)
	a := &relayed{status: 200, kind: jsonType[0], body: body, event: resolver.EventOf(codeUpToDate)}
	a.learned = resolver.ParseAnswer(200, body).Compile(resolver.CompileOptions{DeviceID: device})
	return &cache.Reply[*relayed]{Value: a, Verdict: cache.Keep, Shareable: true, Until: until}
}

// forget drops what is noted of an app.
func (n *offerNotes) forget(appID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.derives, appID)
	for _, key := range n.notes.Keys() {
		if note, ok := n.notes.Peek(key); ok && note.appID == appID {
			n.notes.Remove(key)
		}
	}
}
