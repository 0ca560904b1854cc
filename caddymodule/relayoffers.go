package caddymodule

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// offerNotes remember which question an upstream answered last with an offer, among those that differ in the running version
// alone. A device that runs what it would be offered is up to date, which the upstream need not be asked about.
type offerNotes struct {
	mu      sync.Mutex
	keys    *simplelru.LRU[string, string] // by app and group key, the answer's key; guarded by mu, as all below
	derives *simplelru.LRU[string, bool]   // apps for which the upstream itself calls such a device up to date
}

// maxOfferNotes bounds what is remembered of one upstream.
const maxOfferNotes = 1 << 14

// codeUpToDate is the code of an answer to a device that runs what it would be offered.
const codeUpToDate = "no_new_version_available"

func newOfferNotes() *offerNotes {
	n := new(offerNotes)
	n.keys, _ = simplelru.NewLRU[string, string](maxOfferNotes, nil) // both fail only for a size below 1
	n.derives, _ = simplelru.NewLRU[string, bool](maxOfferNotes, nil)
	return n
}

func (i *inquiry) noteKey() string {
	fields, _ := i.keyFields()
	return string(resolver.AppendGroupKey(append([]byte(i.check.AppID), 0), &i.check, i.body, fields))
}

// note remembers an answer of the upstream.
func (i *inquiry) note(a *relayed) {
	n := i.offers
	switch {
	case a.learned.Class == resolver.AnswerOffer:
		fields, _ := i.keyFields()
		group, key := i.noteKey(), string(resolver.AppendAnswerKey(nil, &i.check, i.body, fields))
		n.mu.Lock()
		defer n.mu.Unlock()
		n.keys.Add(group, key)
	case a.learned.Code == codeUpToDate:
		n.mu.Lock()
		defer n.mu.Unlock()
		n.derives.Add(i.check.AppID, true)
	}
}

// upToDate is the answer to a device that runs what it would be offered, if it ran something else: it is derived only from an
// answer that this very device would be given just now, fresh. Some servers offer a device what it runs, so the upstream must have
// shown that it does not. A question that is answered already is not derived again, or the answers that are checked against the
// upstream would be checked against themselves.
func (i *inquiry) upToDate(asked *cache.Question[*relayed]) *relayed {
	if _, known := i.runtime.answers.Peek(&i.terms, asked); known {
		return nil
	}
	n := i.offers
	n.mu.Lock()
	key, ok := n.keys.Get(i.noteKey())
	derives, _ := n.derives.Get(i.check.AppID)
	n.mu.Unlock()
	if !ok || !derives {
		return nil
	}
	other := cache.Question[*relayed]{Group: asked.Group, Key: key, Device: asked.Device}
	offer, fresh := i.runtime.answers.Peek(&i.terms, &other)
	if !fresh || offer.learned == nil || !offer.learned.OffersRunning(&i.check) {
		return nil
	}
	body := resolver.AppendUpToDate(nil)
	a := &relayed{status: 200, kind: jsonType[0], body: body, event: resolver.EventOf(codeUpToDate)}
	a.learned = resolver.ParseAnswer(200, body).Compile(resolver.CompileOptions{})
	return a
}
