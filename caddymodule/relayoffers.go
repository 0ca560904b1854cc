package caddymodule

import (
	"net/http"
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
	derives *simplelru.LRU[string, bool]   // apps for which the upstream itself says what upToDate does
}

// What is remembered of one upstream is bounded by both: a key holds members of the request as they were sent, up to all of its
// body, and the keys of phones have some 200 bytes.
const (
	maxOfferNotes = 1 << 14
	maxOfferNote  = 1 << 10 // bytes of both keys
)

// codeUpToDate is the code of an answer to a device that runs what it would be offered.
const codeUpToDate = "no_new_version_available"

func newOfferNotes() *offerNotes {
	n := new(offerNotes)
	n.keys, _ = simplelru.NewLRU[string, string](maxOfferNotes, nil) // both fail only for a size below 1
	n.derives, _ = simplelru.NewLRU[string, bool](maxOfferNotes, nil)
	return n
}

// noteKey is the key of an answer, without the running version.
func (i *inquiry) noteKey() string {
	fields, _ := i.keyFields()
	return string(appendQuery(resolver.AppendGroupKey(append([]byte(i.check.AppID), 0), &i.check, i.body, fields), i.query))
}

// note remembers an answer of the upstream to the device that asked.
func (i *inquiry) note(a *relayed) {
	switch {
	case a.learned.Class == resolver.AnswerOffer && a.learned.OffersRunning(&i.check):
		i.offers.noteDerives(i.check.AppID, false)
	case a.learned.Class == resolver.AnswerOffer:
		fields, _ := i.keyFields()
		i.offers.noteKeys(i.noteKey(), string(i.appendKey(nil, &i.check, i.body, i.query, fields)))
	case a.learned.Code == codeUpToDate: // in its own words: others may have more in them, such as the version
		i.offers.noteDerives(i.check.AppID, resolver.SameAnswer(a.learned, derivedUpToDate().learned))
	}
}

func (n *offerNotes) noteKeys(group, key string) {
	if len(group)+len(key) > maxOfferNote {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.keys.Add(group, key)
}

func (n *offerNotes) noteDerives(appID string, derives bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.derives.Add(appID, derives)
}

// find returns the key of the question that was answered last with an offer, if an answer may be derived from that.
func (n *offerNotes) find(group, appID string) (key string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if derives, _ := n.derives.Get(appID); !derives {
		return "", false
	}
	return n.keys.Get(group)
}

// upToDate is the answer to a device that runs what it would be offered, if it ran something else: it is derived only from an
// answer that this very device would be given just now, fresh. Some servers offer a device what it runs, and others say it in
// words of their own: the upstream must have said the very same for the app, and nothing else since. A question that is answered
// already is not derived again, or the answers that are checked against the upstream would be checked against themselves.
func (i *inquiry) upToDate(asked *cache.Question[*relayed]) *relayed {
	if _, known := i.runtime.answers.Peek(&i.terms, asked); known || i.ambiguous {
		return nil
	}
	key, ok := i.offers.find(i.noteKey(), i.check.AppID)
	if !ok {
		return nil
	}
	other := cache.Question[*relayed]{Group: asked.Group, Key: key, Device: asked.Device}
	offer, fresh := i.runtime.answers.Peek(&i.terms, &other)
	if !fresh || offer.learned == nil || !offer.learned.OffersRunning(&i.check) {
		return nil
	}
	return derivedUpToDate()
}

// derivedUpToDate is the answer that is derived: the official server's (protocol 1.5 row 13).
var derivedUpToDate = sync.OnceValue(func() *relayed {
	body := resolver.AppendUpToDate(nil)
	return &relayed{
		status: http.StatusOK, kind: jsonType[0], body: body, event: resolver.EventOf(codeUpToDate),
		learned: resolver.ParseAnswer(http.StatusOK, body).Compile(resolver.CompileOptions{}),
	}
})
