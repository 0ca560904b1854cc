package upstreams

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/capgo-edge/capgo-edge/resolver"
)

// Put stores an object under its key, as the upload tool does.
func (o *Official) Put(key string, content []byte) {
	o.state.Lock()
	defer o.state.Unlock()
	o.objects[key] = content
}

// serveFile is the files worker (protocol 3.2). It looks an object up by the decoded path, by the raw one, and by the raw
// one with its segments encoded once more.
func (o *Official) serveFile(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		notFound(w)
		return
	}
	raw := strings.TrimPrefix(r.URL.EscapedPath(), resolver.FilesPath)
	decoded, err := url.PathUnescape(raw)
	if err != nil {
		writeJSON(w, http.StatusBadRequest, object{"error": "invalid_file_path_encoding", "message": "Invalid file path encoding"})
		return
	}
	if o.broken(r.URL.Path, NoDatabase) {
		writeJSON(w, http.StatusServiceUnavailable, object{"error": "upstream_unavailable", "message": "The store does not answer"})
		return
	}
	segments := strings.Split(raw, "/")
	for i, segment := range segments {
		segments[i] = url.PathEscape(segment)
	}
	for _, key := range []string{decoded, raw, strings.Join(segments, "/")} {
		o.state.Lock()
		content, ok := o.objects[key]
		o.state.Unlock()
		if ok {
			sendObject(w, r, key, content)
			return
		}
	}
	notFound(w)
}

func sendObject(w http.ResponseWriter, r *http.Request, key string, content []byte) {
	sum := sha256.Sum256(content)
	h := w.Header()
	h.Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
	h.Set("Content-Type", "application/octet-stream")
	if strings.HasSuffix(key, ".zip") {
		h.Set("Content-Type", "application/zip")
	}
	h.Set("Cache-Control", "public, max-age=31536000, immutable, no-transform")
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", key))
	h.Set("X-Checksum-Sha256", base64.StdEncoding.EncodeToString(sum[:]))
	status := http.StatusOK
	size := int64(len(content))
	if from, to, ok := rangeOf(r.Header.Get("Range"), size); ok {
		status = http.StatusPartialContent
		if from >= size { // not 416
			content = nil
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		} else {
			content = content[from : to+1]
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, size))
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(content)))
	w.WriteHeader(status)
	if r.Method == http.MethodGet {
		_, _ = w.Write(content)
	}
}

// rangeOf reads a Range of one part.
func rangeOf(text string, size int64) (from, to int64, ok bool) {
	text, isBytes := strings.CutPrefix(text, "bytes=")
	first, last, hasDash := strings.Cut(text, "-")
	if !isBytes || !hasDash {
		return 0, 0, false
	}
	from, errFrom := strconv.ParseInt(first, 10, 64)
	to, errTo := strconv.ParseInt(last, 10, 64)
	switch {
	case first == "" && errTo == nil: // the last bytes
		return max(size-to, 0), size - 1, to > 0
	case errFrom != nil, last != "" && (errTo != nil || to < from):
		return 0, 0, false
	case last == "" || to >= size:
		to = size - 1
	}
	return from, to, true
}
