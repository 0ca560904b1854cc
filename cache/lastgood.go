package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// LastGood keeps the last good copy of each document in a directory, one file per document.
//
// A file is one line of JSON (record), the memo and the document. It is named by a hash of its key, because names may
// differ only in letter case and file systems may not.
type LastGood struct {
	dir string
}

// record is the first line of a file.
type record struct {
	Format   int       `json:"format"`
	Scope    string    `json:"scope"`
	Name     string    `json:"name"`
	ETag     string    `json:"etag,omitempty"`
	Modified time.Time `json:"modified,omitzero"`
	SHA256   string    `json:"sha256"` // of memo and document
	Memo     int       `json:"memo"`   // bytes of the memo
}

const recordFormat = 1

// copyOf is a document as it was kept.
type copyOf struct {
	Document
	Memo      []byte
	Validated time.Time // when the origin last confirmed it
}

// OpenLastGood makes dir if needed and removes what a crash left unfinished.
func OpenLastGood(dir string) (*LastGood, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unfinished, err := fs.Glob(os.DirFS(dir), "*/*.tmp") // not filepath.Glob: dir may hold what is a pattern there
	if err != nil {
		return nil, err
	}
	for _, path := range unfinished {
		_ = os.Remove(filepath.Join(dir, filepath.FromSlash(path))) // it is only in the way of disk space
	}
	return &LastGood{dir}, nil
}

func hashName(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

func (l *LastGood) path(key Key) string {
	return filepath.Join(l.dir, hashName(key.Scope), hashName(key.Name))
}

// load reads the copy of key, or returns an error that is fs.ErrNotExist if there is none. A damaged copy is removed.
func (l *LastGood) load(key Key) (*copyOf, error) {
	path := l.path(key)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := parseCopy(raw, key)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("last good copy %s: %w", path, err), os.Remove(path))
	}
	c.Validated = info.ModTime()
	return c, nil
}

// Names lists the documents of a scope that there are copies of. What cannot be read is left out.
func (l *LastGood) Names(scope string) []string {
	dir := filepath.Join(l.dir, hashName(scope))
	files, _ := os.ReadDir(dir) // none is as good an answer
	var names []string
	for _, file := range files {
		if r, err := readFirstLine(filepath.Join(dir, file.Name())); err == nil && r.Scope == scope {
			names = append(names, r.Name)
		}
	}
	return names
}

func readFirstLine(path string) (r record, err error) {
	f, err := os.Open(path)
	if err != nil {
		return r, err
	}
	defer f.Close() //nolint:errcheck // only read from
	err = json.NewDecoder(f).Decode(&r)
	return r, err
}

func parseCopy(raw []byte, key Key) (*copyOf, error) {
	line, rest, ok := bytes.Cut(raw, []byte{'\n'})
	if !ok {
		return nil, errors.New("is cut off")
	}
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("has a damaged record: %w", err)
	}
	sum := sha256.Sum256(rest)
	switch {
	case r.Format != recordFormat:
		return nil, fmt.Errorf("has format %d, this version reads %d", r.Format, recordFormat)
	case r.Scope != key.Scope || r.Name != key.Name:
		return nil, errors.New("belongs to another document")
	case r.SHA256 != hex.EncodeToString(sum[:]) || r.Memo < 0 || r.Memo > len(rest):
		return nil, errors.New("is damaged: its SHA-256 differs")
	}
	return &copyOf{
		Document: Document{Raw: rest[r.Memo:], ETag: r.ETag, Modified: r.Modified},
		Memo:     rest[:r.Memo],
	}, nil
}

// save replaces the copy of key.
func (l *LastGood) save(key Key, doc Document, memo []byte) (err error) {
	path := l.path(key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	digest := sha256.New()
	digest.Write(memo)
	digest.Write(doc.Raw)
	line, err := json.Marshal(record{
		Format: recordFormat, Scope: key.Scope, Name: key.Name, ETag: doc.ETag, Modified: doc.Modified,
		SHA256: hex.EncodeToString(digest.Sum(nil)), Memo: len(memo),
	})
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-*.tmp") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	for _, part := range [][]byte{line, {'\n'}, memo, doc.Raw} {
		if _, err := tmp.Write(part); err != nil {
			return errors.Join(err, tmp.Close())
		}
	}
	if err := tmp.Sync(); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// touch notes that the origin confirmed the copy of key just now.
func (l *LastGood) touch(key Key) error {
	now := time.Now()
	if err := os.Chtimes(l.path(key), now, now); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remove deletes the copy of key.
func (l *LastGood) remove(key Key) error {
	if err := os.Remove(l.path(key)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
