package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
)

// RecordOf reads the record of a stored object's file.
func RecordOf(path string) (key Key, sum, verified string, err error) {
	f, err := osFiles{}.Open(path)
	if err != nil {
		return key, "", "", err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return key, "", "", err
	}
	r, err := readRecord(f, stat.Size())
	if err != nil {
		return key, "", "", err
	}
	return Key{r.Scope, r.Name}, r.SHA256, r.Verified, nil
}

// WriteObject writes the file of a stored object below the storage directory dir, as a fill does.
func WriteObject(dir string, key Key, body []byte) error {
	sum := sha256.Sum256(body)
	record := &objectRecord{
		Format: objectFormat, Scope: key.Scope, Name: key.Name, Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:]),
	}
	tail, err := record.encode()
	if err != nil {
		return err
	}
	name := hashName(key.Name)
	path := filepath.Join(dir, objectsDir, hashName(key.Scope), name[:2], name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, append(bytes.Clone(body), tail...), 0o600)
}

// Failures is how many objects are remembered that could not be had.
func (d *Disk) Failures() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failures.Len()
}
