package caddymodule

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"go.uber.org/zap"
)

// webhook takes the webhooks of an official server (protocol 6.2): it tells which apps have changed, so that the next check
// asks anew. What a delivery says about the change is not believed further; deliveries repeat and overtake each other.
type webhook struct {
	secret string
	seen   *seenEvents
	purge  func(appID string) // forgets what is known of an app
	log    *zap.Logger
	faults *faultLog
}

const (
	maxWebhookBody = 1 << 20
	// webhookSkew is how old, or how far ahead, a delivery's time may be. Later it could have been overheard.
	webhookSkew = 5 * time.Minute
	// webhookMemory is how long a delivery is remembered. The server repeats one that it believes lost for days, but then
	// purging once more costs a check, and nothing else.
	webhookMemory = 24 * time.Hour
	maxSeenEvents = 4096
)

const faultWebhook = "webhook"

// serve answers one delivery. A repeat, and what changes no app, is answered like the rest: any other status would have the
// server send it again.
func (h *webhook) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		refuseMethod(w, http.MethodPost, http.MethodOptions)
		return
	}
	body, ok := readBody(w, r, nil, maxWebhookBody)
	if !ok {
		return
	}
	now := time.Now()
	event, err := verifyWebhook(h.secret, r.Header, body, now)
	if err != nil {
		h.faults.fault(faultWebhook, "refused", "a webhook is refused; if it is one of yours, compare its secret with webhook_secret, and the clocks", zap.Error(err))
		if errors.Is(err, errWebhookSignature) {
			refuse(w, http.StatusUnauthorized, "invalid_signature", "The delivery is not signed with this edge's webhook secret, or its time is not now")
		} else {
			refuse(w, http.StatusBadRequest, "invalid_webhook", "The delivery is not a webhook event")
		}
		return
	}
	h.faults.well(faultWebhook, "webhooks are taken again")
	first := h.seen.first(event.ID, now)
	if c := h.log.Check(zap.DebugLevel, "webhook taken"); c != nil {
		c.Write(zap.String("event", event.Table+"."+event.Operation), zap.Strings("app_ids", event.AppIDs), zap.Bool("repeated", !first))
	}
	if first {
		for _, app := range event.AppIDs {
			h.purge(app)
		}
	}
	writeJSON(w, http.StatusOK, statusOK)
}

// webhookEvent is a delivery whose signature holds.
type webhookEvent struct {
	ID        string // the same in all deliveries of the event
	Table     string
	Operation string
	AppIDs    []string // the apps whose answers may have changed; none for tables that answers do not depend on
}

// The reasons why a delivery is refused.
var (
	errWebhookSignature = errors.New("the signature does not hold")
	errWebhookBody      = errors.New("the body is not a webhook event")
)

// verifyWebhook judges the signature of a delivery in either format (protocol 6.2), and reads it. The error wraps
// errWebhookSignature or errWebhookBody. Without a secret nothing is signed.
func verifyWebhook(secret string, header http.Header, body []byte, now time.Time) (webhookEvent, error) {
	id, err := verifySignature(secret, header, body, now)
	if err != nil {
		return webhookEvent{}, fmt.Errorf("%w: %w", errWebhookSignature, err)
	}
	event, err := readWebhook(body)
	if event.ID == "" {
		event.ID = id
	}
	return event, err
}

// verifySignature wants one of the formats to hold. It returns what may stand for the event's id: something that was signed.
func verifySignature(secret string, header http.Header, body []byte, now time.Time) (id string, err error) {
	if secret == "" {
		return "", errors.New("there is no secret")
	}
	var failed error
	if header.Get("Webhook-Signature") != "" {
		if failed = verifyStandard(secret, header, body, now); failed == nil {
			return header.Get("Webhook-Id"), nil
		}
	}
	if signature := header.Get("X-Capgo-Signature"); signature != "" || failed == nil {
		failed = verifyCapgo(secret, signature, body, now)
	}
	if failed != nil {
		return "", failed
	}
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:]), nil
}

// verifyCapgo judges "v1=<time>.<hex>" over "<time>.<body>".
func verifyCapgo(secret, signature string, body []byte, now time.Time) error {
	at, mac, ok := strings.Cut(strings.TrimPrefix(signature, "v1="), ".")
	given, err := hex.DecodeString(mac)
	if !strings.HasPrefix(signature, "v1=") || !ok || err != nil {
		return errors.New("X-Capgo-Signature is not v1=<time>.<hex>")
	}
	if err := checkWebhookTime(at, now); err != nil {
		return err
	}
	if !hmac.Equal(given, webhookMAC([]byte(secret), body, at)) {
		return errors.New("it was made with another secret, or for another body")
	}
	return nil
}

// verifyStandard judges a list of "v1,<base64>" over "<id>.<time>.<body>", one of which must hold.
func verifyStandard(secret string, header http.Header, body []byte, now time.Time) error {
	id, at := header.Get("Webhook-Id"), header.Get("Webhook-Timestamp")
	if err := checkWebhookTime(at, now); err != nil {
		return err
	}
	want := webhookMAC(standardKey(secret), body, id, at)
	holds := false
	for signature := range strings.FieldsSeq(header.Get("Webhook-Signature")) {
		text, isV1 := strings.CutPrefix(signature, "v1,")
		given, err := base64.StdEncoding.DecodeString(text)
		holds = isV1 && err == nil && hmac.Equal(given, want) || holds
	}
	if !holds {
		return errors.New("it was made with another secret, or for another body")
	}
	return nil
}

// standardKey is what a secret stands for in the standard format: the bytes behind whsec_, if there are 24 to 64 of them.
func standardKey(secret string) []byte {
	text, prefixed := strings.CutPrefix(secret, "whsec_")
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil { // not every tool writes the padding
		key, err = base64.RawStdEncoding.DecodeString(text)
	}
	if prefixed && err == nil && 24 <= len(key) && len(key) <= 64 {
		return key
	}
	return []byte(secret)
}

// webhookMAC is the HMAC over the parts and the body, with dots between them.
func webhookMAC(key, body []byte, parts ...string) []byte {
	mac := hmac.New(sha256.New, key)
	for _, part := range parts {
		mac.Write([]byte(part + "."))
	}
	mac.Write(body)
	return mac.Sum(nil)
}

// checkWebhookTime refuses a time that is not about now. It is in seconds since 1970; one in milliseconds is known by its
// size.
func checkWebhookTime(text string, now time.Time) error {
	n, err := strconv.ParseUint(text, 10, 53)
	if err != nil {
		return errors.New("it tells no time")
	}
	at := time.Unix(int64(n), 0)
	if n > 1e11 {
		at = time.UnixMilli(int64(n))
	}
	if age := now.Sub(at); age > webhookSkew || age < -webhookSkew {
		return fmt.Errorf("its time is %s off; more than %s may be a delivery that was overheard, or a clock that is wrong", age.Round(time.Second), webhookSkew)
	}
	return nil
}

// webhookTables are the tables that answers depend on, as far as there are webhooks for them.
var webhookTables = []string{"apps", "app_versions", "channels"}

// readWebhook reads the body of a delivery.
func readWebhook(body []byte) (webhookEvent, error) {
	type record struct {
		AppID string `json:"app_id"`
	}
	var delivery struct {
		Event string `json:"event"` // "table.OPERATION"
		ID    string `json:"event_id"`
		Data  struct {
			Table     string `json:"table"`
			Operation string `json:"operation"`
			New       record `json:"new_record"`
			Old       record `json:"old_record"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &delivery); err != nil {
		return webhookEvent{}, fmt.Errorf("%w: %w", errWebhookBody, err)
	}
	event := webhookEvent{ID: delivery.ID, Table: delivery.Data.Table, Operation: delivery.Data.Operation}
	if event.Table == "" {
		event.Table, event.Operation, _ = strings.Cut(delivery.Event, ".")
	}
	if event.Table == "" {
		return webhookEvent{}, fmt.Errorf("%w: it names no table", errWebhookBody)
	}
	if !slices.Contains(webhookTables, event.Table) {
		return event, nil
	}
	for _, app := range []string{delivery.Data.New.AppID, delivery.Data.Old.AppID} {
		if app != "" && !slices.Contains(event.AppIDs, app) {
			event.AppIDs = append(event.AppIDs, app)
		}
	}
	return event, nil
}

// seenEvents remembers which events were taken, the latest few thousand, for webhookMemory.
type seenEvents struct {
	mu  sync.Mutex
	ids *simplelru.LRU[string, time.Time] // when each came first; guarded by mu
}

func newSeenEvents() *seenEvents {
	ids, err := simplelru.NewLRU[string, time.Time](maxSeenEvents, nil)
	if err != nil { // it refuses sizes that are not positive
		panic(err)
	}
	return &seenEvents{ids: ids}
}

// first reports that the event was not seen before, and remembers it.
func (s *seenEvents) first(id string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.ids.Get(id); ok && now.Sub(at) < webhookMemory {
		return false
	}
	s.ids.Add(id, now)
	return true
}
