package caddymodule

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/resolver"
)

var (
	zipType        = []string{"application/zip"}
	binaryType     = []string{"application/octet-stream"}
	immutable      = []string{"public, max-age=31536000, immutable, no-transform"}
	statusStreamed = []string{"capgo-edge; fwd=bypass; detail=streamed"}
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
	key, known, err := h.locate(r.Context(), appOf(r, keys[0]), keys)
	switch {
	case errors.Is(err, cache.ErrNotFound):
		h.runtime.counters.object(objectMissing)
		refuse(w, http.StatusNotFound, "not_found", "Not found")
	case err != nil:
		h.runtime.counters.object(objectFailed)
		refuseUnavailable(w)
	default:
		h.stream(w, r, key, known)
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

// locate finds which of the keys the app's manifest names. A key it does not name may be one that another site has just
// told of, so the origin is asked once more before it is denied (contract section 3).
func (h *Handler) locate(ctx context.Context, appID string, keys []string) (string, resolver.Object, error) {
	if len(appID) > maxAppIDLen || !resolver.IsAppID(appID) || !h.serves(appID) {
		return "", resolver.Object{}, cache.ErrNotFound
	}
	app, _, err := h.library.get(ctx, appID)
	if err != nil {
		return "", resolver.Object{}, err
	}
	for try := 0; ; try++ {
		if key, o, ok := app.find(keys...); ok {
			return key, o, nil
		}
		if try > 0 {
			return "", resolver.Object{}, cache.ErrNotFound
		}
		if app, err = h.library.renew(ctx, appID); err != nil {
			return "", resolver.Object{}, err
		}
	}
}

// stream passes an object on from the origin.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request, key string, known resolver.Object) {
	began := time.Now()
	object, err := origin.OpenReader(r.Context(), h.store, key, hintOf(r))
	h.runtime.counters.origin(originObject, time.Since(began), err)
	h.reportObject(key, err)
	if err != nil {
		h.refuseObject(w, err)
		return
	}
	defer object.Close() //nolint:errcheck // only read from
	h.runtime.counters.object(objectStreamed)
	info := object.Info()
	setObjectHeaders(w.Header(), key, known, info)
	if info.Size < 0 {
		streamUnsized(w, r, object)
	} else {
		http.ServeContent(w, withoutRangeLists(r), "", time.Time{}, object)
	}
	if err := object.Err(); err != nil && r.Context().Err() == nil {
		h.runtime.counters.object(objectCut)
		h.reportObject(key, err)
		abort(w)
	}
}

func (h *Handler) refuseObject(w http.ResponseWriter, err error) {
	if errors.Is(err, origin.ErrNotFound) {
		h.runtime.counters.object(objectMissing)
		refuse(w, http.StatusNotFound, "not_found", "Not found")
		return
	}
	h.runtime.counters.object(objectFailed)
	refuseUnavailable(w)
}

// abort breaks the connection or stream, so that a body that was cut cannot be taken for a whole one.
func abort(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush() // what has come so far is good, and a client may resume behind it
	panic(http.ErrAbortHandler)
}

// streamUnsized passes on an object whose size the origin does not tell. A range of it cannot be answered, and a 200 in its
// place would be glued to what an old client already has (protocol 3.3).
func streamUnsized(w http.ResponseWriter, r *http.Request, object *origin.Reader) {
	w.Header().Del("Accept-Ranges")
	if r.Header.Get("Range") != "" {
		for name := range w.Header() {
			if !strings.HasPrefix(name, "Access-Control-") && name != "Vary" {
				w.Header().Del(name)
			}
		}
		refuseUnavailable(w)
		return
	}
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = io.Copy(w, object) // object.Err tells what went wrong there; a client that left is no fault
	}
}

// hintOf tells which part of an object the request will read, if all goes its usual way.
func hintOf(r *http.Request) origin.Hint {
	if r.Method == http.MethodHead || r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Match") != "" {
		return origin.Hint{None: true}
	}
	spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return origin.Hint{}
	}
	from, to, ok := strings.Cut(strings.TrimSpace(spec), "-")
	first, err := strconv.ParseInt(from, 10, 64)
	if !ok || err != nil || first < 0 { // "bytes=-n" needs the size first
		return origin.Hint{None: from == "" && ok}
	}
	last, err := strconv.ParseInt(to, 10, 64)
	if err != nil || last < first {
		return origin.Hint{Offset: first}
	}
	return origin.Hint{Offset: first, Length: last - first + 1}
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

// setObjectHeaders sets what contract section 3 asks of every answer with an object.
func setObjectHeaders(header http.Header, key string, known resolver.Object, info origin.Object) {
	header["Content-Type"] = binaryType
	if strings.HasSuffix(key, ".zip") {
		header["Content-Type"] = zipType
	}
	header["Etag"] = []string{`"` + entityTag(known, info) + `"`}
	header["Cache-Control"] = immutable
	header["Content-Disposition"] = attachment
	header["Content-Security-Policy"] = strictCSP
	header["X-Content-Type-Options"] = noSniff
	header["Accept-Ranges"] = acceptBytes
	header["Cache-Status"] = statusStreamed
	if known.Covers == resolver.DigestStored {
		header["Repr-Digest"] = []string{"sha-256=:" + base64.StdEncoding.EncodeToString(known.SHA256[:]) + ":"}
	}
}

// entityTag is the same at every site: the digest the manifest tells, else one made of what the origin tells.
func entityTag(known resolver.Object, info origin.Object) string {
	if known.Covers == resolver.DigestStored {
		return hex.EncodeToString(known.SHA256[:])
	}
	validator := strings.TrimPrefix(info.ETag, "W/")
	if validator == "" && !info.Modified.IsZero() {
		validator = strconv.FormatInt(info.Modified.Unix(), 10)
	}
	sum := sha256.Sum256([]byte(validator + " " + strconv.FormatInt(info.Size, 10)))
	return hex.EncodeToString(sum[:16])
}

// reportObject logs a change in how the site's objects can be had.
func (h *Handler) reportObject(key string, err error) {
	faults, identity := h.runtime.faults, h.store.Identity()
	fields := []zap.Field{zap.String(fieldOrigin, identity), zap.String(fieldKey, key), zap.Error(err)}
	link, isLink := errors.AsType[*origin.LinkError](err)
	switch {
	case err == nil:
		faults.well("objects "+identity, "objects can be read again", fields[0])
	case errors.Is(err, context.Canceled):
	case isLink:
		faults.fault("link "+identity+" "+link.Link, "leads out", "origin refuses a link", fields...)
	case errors.Is(err, origin.ErrNotFound):
		faults.fault("object "+identity+" "+key, "missing", "a manifest names an object that the origin does not have", fields...)
	default:
		faults.fault("objects "+identity, "unavailable", "objects cannot be read", fields...)
	}
}
