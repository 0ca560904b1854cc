package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// Inventory is what the index holds: what each file takes of the budget, by its path below the storage directory.
func (d *Disk) Inventory() map[string]int64 {
	inventory := map[string]int64{}
	for id, size := range d.index.entries() {
		path, err := filepath.Rel(filepath.Dir(d.objects), d.path(id))
		if err == nil { // both are below one directory
			inventory[path] = size
		}
	}
	return inventory
}

// AwaitScan returns when the index knows all that is stored.
func (d *Disk) AwaitScan() {
	select {
	case <-d.scanDone:
	case <-d.ctx.Done():
	}
}

// VerifyFile reads the file of a stored object to its end and says what is wrong with it.
func VerifyFile(path string) error {
	f, err := osFiles{}.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	record, err := readRecord(f, stat.Size())
	if err != nil {
		return err
	}
	digest := sha256.New()
	if _, err := io.Copy(digest, io.NewSectionReader(f, 0, record.Size)); err != nil {
		return err
	}
	if got := hex.EncodeToString(digest.Sum(nil)); got != record.SHA256 {
		return fmt.Errorf("%w: its SHA-256 is %s, its record tells %s", errDamaged, got, record.SHA256)
	}
	if filepath.Base(path) != hashName(record.Name) {
		return errors.Join(errDamaged, errors.New("it has the name of another object"))
	}
	return nil
}
