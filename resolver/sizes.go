package resolver

import (
	"math"
	"net/url"
	"strconv"
	"strings"
)

// FileQuery is a delta file whose size a client wants to know (protocol 1.9), as it came.
type FileQuery struct {
	Name, Hash, URL string
}

// ParseSizeQuery reads the entries of the body of POST /updates/manifest_size: those under "manifest", or under "files".
// The error is a *Refusal.
func ParseSizeQuery(body []byte) ([]FileQuery, error) {
	var files []FileQuery
	var faults Faults
	w := newWalker(body, "$", &faults)
	w.object(func(name []byte) {
		switch string(name) {
		case "manifest", "files":
			w.array(func(int) {
				var f FileQuery
				if w.object(func(name []byte) { f.read(w, name) }) {
					files = append(files, f)
				}
			})
		default:
			w.skip()
		}
	})
	w.end()
	if w.broken {
		return nil, ErrNotJSON
	}
	if len(faults.List) == 0 {
		return files, nil
	}
	issues := make([]Issue, len(faults.List))
	for i, f := range faults.List {
		issues[i] = Issue{Field: f.Path, Code: "invalid_type", Message: f.Message}
	}
	return nil, cannotParse(issues...)
}

func (f *FileQuery) read(w *walker, name []byte) {
	switch string(name) {
	case "file_name":
		w.string(&f.Name)
	case "file_hash":
		w.string(&f.Hash)
	case "download_url":
		w.string(&f.URL)
	default:
		w.skip()
	}
}

// AppendSizes appends the answer to a size query. The manifest's file_size is found by the object key within the address,
// which this edge wrote itself, so the version number in its "key" parameter is not needed.
func AppendSizes(dst []byte, files []FileQuery, find func(key string) (Object, bool)) []byte {
	var total int64
	known := 0
	list := make([]byte, 0, 256*len(files))
	for i, f := range files {
		if i > 0 {
			list = append(list, ',')
		}
		list = appendMember(list, `{"file_name":`, f.Name)
		list = appendMember(list, `,"file_hash":`, f.Hash)
		list = appendMember(list, `,"download_url":`, f.URL)
		if size := sizeOf(f.URL, find); size > 0 {
			total += min(size, math.MaxInt64-total)
			known++
			list = append(list, `,"size":`...)
			list = strconv.AppendInt(list, size, 10)
			list = append(list, '}')
		} else {
			list = append(list, `,"error":"size_unknown"}`...)
		}
	}
	dst = append(dst, `{"totalSize":`...)
	dst = strconv.AppendInt(dst, total, 10)
	dst = append(dst, `,"knownFiles":`...)
	dst = strconv.AppendInt(dst, int64(known), 10)
	dst = append(dst, `,"unknownFiles":`...)
	dst = strconv.AppendInt(dst, int64(len(files)-known), 10)
	dst = append(dst, `,"files":[`...)
	dst = append(dst, list...)
	return append(dst, `]}`...)
}

func sizeOf(address string, find func(key string) (Object, bool)) int64 {
	_, path, ok := strings.Cut(address, FilesPath)
	if !ok {
		return 0
	}
	path, _, _ = strings.Cut(path, "?")
	for _, key := range KeysOfPath(path) {
		if o, ok := find(key); ok {
			return o.Size
		}
	}
	return 0
}

// KeysOfPath returns the object keys that a request may mean by the escaped path after FilesPath, in the order they are
// to be tried: the decoded text, then the raw one if it differs (contract section 3). A path that decodes to what no key
// may be has none.
func KeysOfPath(escaped string) []string {
	decoded, err := url.PathUnescape(escaped)
	if err != nil || KeyFault(decoded) != "" {
		return nil
	}
	keys := []string{decoded}
	if escaped != decoded && KeyFault(escaped) == "" {
		keys = append(keys, escaped)
	}
	return keys
}
