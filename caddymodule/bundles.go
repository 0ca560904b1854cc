package caddymodule

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/resolver"
)

var (
	zipType    = []string{"application/zip"}
	binaryType = []string{"application/octet-stream"}
	immutable  = []string{"public, max-age=31536000, immutable, no-transform"}
)

// serveObject hands out a bundle or a delta file, if a manifest names it.
func (h *Handler) serveObject(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuseMethod(w, http.MethodGet, http.MethodHead, http.MethodOptions)
		return
	}
	keys := requestedKeys(r)
	if len(keys) == 0 {
		refuse(w, http.StatusBadRequest, "invalid_file_path", "This is not the path of a file")
		return
	}
	t, err := h.locate(r.Context(), appOf(r, keys[0]), keys)
	switch {
	case errors.Is(err, cache.ErrNotFound):
		h.runtime.counters.object(objectMissing)
		refuse(w, http.StatusNotFound, "not_found", "Not found")
	case err != nil:
		h.runtime.counters.object(objectFailed)
		refuseUnavailable(w)
	default:
		h.authorize(w, r, t)
	}
}

func refuseUnavailable(w http.ResponseWriter) {
	refuse(w, http.StatusServiceUnavailable, "upstream_unavailable", "This file cannot be had just now, try again later")
}

// requestedKeys are the object keys the request may mean.
func requestedKeys(r *http.Request) []string {
	escaped, ok := strings.CutPrefix(r.URL.EscapedPath(), resolver.FilesPath)
	if !ok { // the prefix itself was written with escapes
		escaped = url.PathEscape(strings.TrimPrefix(r.URL.Path, resolver.FilesPath))
	}
	return resolver.KeysOfPath(escaped)
}

// appOf is the app whose manifest is to name the key: the one the address tells, else the one the key does.
func appOf(r *http.Request, key string) string {
	if strings.Contains(r.URL.RawQuery, "app_id=") {
		if app := r.URL.Query().Get("app_id"); app != "" {
			return app
		}
	}
	return resolver.AppOfKey(key)
}

// locate finds which of the keys the app's manifest names, or an answer of the upstream has led to. A key that the manifest does
// not name may be one that another site has just told of, so the origin is asked once more before it is denied (contract
// section 3).
func (h *Handler) locate(ctx context.Context, appID string, keys []string) (target, error) {
	if len(appID) > maxAppIDLen || !resolver.IsAppID(appID) || !h.serves(appID) {
		return target{}, cache.ErrNotFound
	}
	t, err := h.locateNamed(ctx, appID, keys)
	if h.relays(err) {
		if t, ok := h.relay.find(appID, keys); ok {
			return t, nil
		}
	}
	return t, err
}

// locateNamed is locate by the app's manifest.
func (h *Handler) locateNamed(ctx context.Context, appID string, keys []string) (target, error) {
	if h.relayOnly {
		return target{}, cache.ErrNotFound
	}
	app, _, err := h.library.get(ctx, appID)
	if err != nil {
		return target{}, err
	}
	for try := 0; ; try++ {
		if t, ok := app.find(keys...); ok {
			return t, nil
		}
		if try > 0 {
			return target{}, cache.ErrNotFound
		}
		if app, err = h.library.renew(ctx, appID); err != nil {
			return target{}, err
		}
	}
}

// authorize delivers an object, if the address is one that this site gave out.
func (h *Handler) authorize(w http.ResponseWriter, r *http.Request, t target) {
	if h.address != nil && h.address.signer != nil {
		if err := h.address.signer.verify(r.URL.Query(), t.key, time.Now()); err != nil {
			h.runtime.counters.object(objectDenied)
			code := "invalid_signature"
			if errors.Is(err, errExpired) {
				code = "expired_signature"
			}
			refuse(w, http.StatusForbidden, code, "Ask for the update again: "+err.Error())
			return
		}
	}
	h.deliver(w, r, t)
}

// deliver hands out an object: from the store, or while it comes in.
func (h *Handler) deliver(w http.ResponseWriter, r *http.Request, t target) {
	request := h.shelves.request(t)
	if request == nil { // an external bundle of a host that is not listed any more
		h.refuseObject(w, r, t, cache.ErrNotFound)
		return
	}
	hint := hintOf(r)
	request.Offset, request.Length = hint.first, hint.length
	object, access, err := h.runtime.disk.Open(r.Context(), request)
	if err != nil {
		h.refuseObject(w, r, t, err)
		return
	}
	defer object.Close()                           //nolint:errcheck // only read from
	if err := ready(object, r, hint); err != nil { //nolint:contextcheck // the object has the request's
		h.refuseObject(w, r, t, err)
		return
	}
	h.runtime.counters.object(objectStateOf(access))
	setObjectHeaders(w.Header(), t, object.Info(), access)
	switch content := object.Bytes(); {
	case content != nil && isPlain(r):
		w.Header()["Content-Length"] = []string{strconv.Itoa(len(content))}
		_, _ = w.Write(content) //nolint:gosec // its type is fixed and not sniffed; a client that went away is no fault
	case object.Info().Size < 0:
		deliverUnsized(w, r, object)
	default:
		http.ServeContent(newBodyWriter(w, r, object), withoutRangeLists(r), "", time.Time{}, object)
	}
	if err := object.Err(); err != nil && r.Context().Err() == nil {
		h.runtime.counters.object(objectCut)
		abort(w)
	}
}

// isPlain reports whether a request is for the whole object, whatever it is.
func isPlain(r *http.Request) bool {
	if r.Method != http.MethodGet {
		return false
	}
	for _, condition := range [...]string{"Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if len(r.Header[condition]) > 0 {
			return false
		}
	}
	return true
}

// ready waits until the answer to the request can begin, so that what fails before is told with a status. A range needs
// the size, which an origin may not tell at first: a 200 in its place would be glued to what an old client already has
// (protocol 3.3).
func ready(object *cache.Object, r *http.Request, h hint) error {
	header := r.Header
	if header.Get("Range") != "" || header.Get("If-None-Match") != "" || header.Get("If-Match") != "" {
		if err := object.AwaitSize(); err != nil {
			return err
		}
	}
	if header.Get("Range") != "" && object.Info().Size < 0 { // it is not stored, so the size stays unknown
		return errNoSize
	}
	switch size := object.Info().Size; {
	case h.none:
		return nil
	case h.last > 0:
		return object.Await(max(size-h.last, 0))
	}
	return object.Await(h.first)
}

var errNoSize = errors.New("no range of an object can be told while its size is not known")

// refuseObject answers a request for an object that cannot be had here, unless its client has gone.
func (h *Handler) refuseObject(w http.ResponseWriter, r *http.Request, t target, err error) {
	redirect, isRedirect := errors.AsType[*origin.RedirectError](err)
	switch {
	case errors.Is(err, cache.ErrNotFound):
		h.runtime.counters.object(objectMissing)
		refuse(w, http.StatusNotFound, "not_found", "Not found")
	case r.Context().Err() != nil:
		h.runtime.counters.object(objectLeft)
	case isRedirect && t.learnedOf != "" && h.sendOn(w, r, redirect.To):
		h.runtime.counters.object(objectElsewhere)
	default:
		h.runtime.counters.object(objectFailed)
		refuseUnavailable(w)
	}
}

// abort breaks the connection or stream, so that a body that was cut cannot be taken for a whole one.
func abort(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush() // what has come so far is good, and a client may resume behind it
	panic(http.ErrAbortHandler)
}

// deliverUnsized hands out an object whose size the origin does not tell, while it comes in.
func deliverUnsized(w http.ResponseWriter, r *http.Request, object *cache.Object) {
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // else HTTP/3 tells a HEAD that the length is 0
	if r.Method != http.MethodHead {
		_, _ = io.Copy(onlyWriter{w}, object) // object.Err tells what went wrong there; a client that left is no fault
	}
}

// hint is which part of an object a request will read, if all goes its usual way.
type hint struct {
	first, length int64 // length 0: all to the end
	last          int64 // so many bytes before the end, if not 0
	none          bool  // nothing
}

// hintOf tells which part of an object the request will read.
func hintOf(r *http.Request) hint {
	if r.Method == http.MethodHead || r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Match") != "" {
		return hint{none: true}
	}
	spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok || strings.Contains(spec, ",") || r.Header.Get("If-Range") != "" {
		return hint{}
	}
	from, to, ok := strings.Cut(strings.TrimSpace(spec), "-")
	first, err := strconv.ParseInt(from, 10, 64)
	if from == "" && ok {
		n, _ := strconv.ParseInt(to, 10, 64) // what is wrong is 0, and judged later
		return hint{last: max(n, 0)}
	}
	if !ok || err != nil || first < 0 {
		return hint{}
	}
	last, err := strconv.ParseInt(to, 10, 64)
	if err != nil || last < first || last == math.MaxInt64 {
		return hint{first: first}
	}
	return hint{first: first, length: last - first + 1}
}

// withoutRangeLists makes a request for several ranges one for the whole object, as RFC 9110 section 14.2 allows: each
// range would cost the origin a request, and no client of ours asks so.
func withoutRangeLists(r *http.Request) *http.Request {
	if !strings.Contains(r.Header.Get("Range"), ",") {
		return r
	}
	whole := new(http.Request)
	*whole = *r
	whole.Header = r.Header.Clone()
	whole.Header.Del("Range")
	return whole
}

// The values of Cache-Status, by how an object was had (contract section 6).
var accessStatus = [...][]string{
	cache.Hit:       {"capgo-edge; hit"},
	cache.HitMemory: {"capgo-edge; hit"},
	cache.Filled:    {"capgo-edge; fwd=miss; stored"},
	cache.Collapsed: {"capgo-edge; fwd=miss; collapsed"},
	cache.Bypassed:  {"capgo-edge; fwd=bypass; detail=not-stored"},
}

// setObjectHeaders sets what contract section 3 asks of every answer with an object.
func setObjectHeaders(header http.Header, t target, info cache.Info, access cache.Access) {
	header["Content-Type"] = binaryType
	if t.url != "" || strings.HasSuffix(t.key, ".zip") {
		header["Content-Type"] = zipType
	}
	header["Cache-Control"] = immutable
	header["Content-Disposition"] = attachment
	header["Content-Security-Policy"] = strictCSP
	header["X-Content-Type-Options"] = noSniff
	header["Accept-Ranges"] = acceptBytes
	header["Cache-Status"] = accessStatus[access]
	if t.known.Covers == resolver.DigestStored {
		setDigest(header, &t.known.SHA256)
	} else if tag := entityTag(info); tag != "" {
		header["Etag"] = []string{tag}
	}
}

// setDigest sets the headers that tell the object's digest. They are made in one piece: this is the hot path of delta files.
func setDigest(header http.Header, digest *[sha256.Size]byte) {
	const before, after = "sha-256=:", ":"
	text := make([]byte, 0, 192) // on the stack
	text = append(text, '"')
	text = hex.AppendEncode(text, digest[:])
	text = append(text, '"')
	tag := len(text)
	text = append(text, before...)
	text = base64.StdEncoding.AppendEncode(text, digest[:])
	text = append(text, after...)
	whole := string(text)
	values := &[2]string{whole[:tag], whole[tag:]}
	header["Etag"], header["Repr-Digest"] = values[0:1:1], values[1:2:2]
}

// entityTag is made of what the origin tells of an object whose digest is not known, the same at every site and in every
// state. While the origin has not told the size it is empty.
func entityTag(info cache.Info) string {
	if info.Size < 0 {
		return ""
	}
	validator := strings.TrimPrefix(info.ETag, "W/")
	if validator == "" && !info.Modified.IsZero() {
		validator = strconv.FormatInt(info.Modified.Unix(), 10)
	}
	sum := sha256.Sum256([]byte(validator + " " + strconv.FormatInt(info.Size, 10)))
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}
