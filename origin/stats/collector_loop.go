package stats

import (
	"net/http"
	"strings"
)

// headerLoop names those that a request came through (RFC 8586). An edge puts itself there, so that one whose collector is
// its own address refuses what it sent, instead of storing and sending it for ever.
//
// The name is that of the spool, so that an edge behind an edge, or a site behind another of the same server, is no loop. It is
// not kept with the events: of a ring of several edges each sees the one before it alone, and does not notice the ring.
const headerLoop = "CDN-Loop"

const loopName = "capgo-edge-" // and the instance of the spool: a pseudonym in the words of RFC 8586, section 2

// loopID is the name of the spool that a batch comes from.
func loopID(key string) string {
	instance, _, _ := strings.Cut(key, "-")
	return loopName + instance
}

// Looped reports whether a request with this header is a delivery of this forwarder's own spool: its collector's address
// leads back to it. Such a request is to be answered with status 508 (RFC 5842, section 7.2), which stops the forwarder as
// a collector that is down does, and tells why. It is cheap, and may be asked before Start.
func (f *Forwarder) Looped(h http.Header) bool {
	for _, line := range h.Values(headerLoop) {
		for member := range strings.SplitSeq(line, ",") {
			id, _, _ := strings.Cut(member, ";") // parameters
			if id = strings.TrimSpace(id); strings.HasPrefix(id, loopName) && f.isOwn(id) {
				return true
			}
		}
	}
	return false
}

func (f *Forwarder) isOwn(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return id == f.loopID
}
