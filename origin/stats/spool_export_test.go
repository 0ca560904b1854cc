package stats

import (
	"errors"
	"fmt"
	"os"

	"go.etcd.io/bbolt"
)

// CheckSpool reads a whole file, which no process has open, and compares what is in it with what is counted in it.
func CheckSpool(path string) error {
	if err := checkFile(path, true); err != nil {
		return err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if err != nil {
		return err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		return checkCounts(tx)
	})
	return errors.Join(err, db.Close())
}

func checkCounts(tx *bbolt.Tx) error {
	if tx.Bucket(bucketMeta) == nil {
		return errors.New("the file has no buckets")
	}
	state, err := decodeState(keyState, tx.Bucket(bucketMeta).Get(keyState))
	if err != nil {
		return err
	}
	counted := map[uint64]*app{}
	err = tx.Bucket(bucketApps).ForEach(func(key, value []byte) error {
		a, err := decodeApp(key, value)
		if err != nil {
			return err
		}
		if a.number > state.apps || a.total() == 0 {
			return fmt.Errorf("app %d of %d has %d records", a.number, state.apps, a.total())
		}
		counted[a.number] = a
		return nil
	})
	if err != nil {
		return err
	}
	err = tx.Bucket(bucketEvents).ForEach(func(key, value []byte) error {
		l, seq, _ := splitEventKey(key)
		a := counted[l.app]
		if a == nil || seq > state.events {
			return fmt.Errorf("event %d of app %d, lane %d does not belong there", seq, l.app, l.n)
		}
		a.bytes -= recordSize(key, value)
		if !isHead(key) {
			return nil
		}
		a.records[l.n]--
		h, err := decodeHead(key, value)
		if err == nil && laneOf(l.app, h.device) != l {
			return fmt.Errorf("event %d of app %d is in lane %d", seq, l.app, l.n)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, a := range counted {
		if a.records != [Lanes]int64{} || a.bytes != 0 {
			return fmt.Errorf("the counters of the app %q are too high by %v records, %d bytes", a.id, a.records, a.bytes)
		}
	}
	return tx.Bucket(bucketClaims).ForEach(func(key, value []byte) error {
		claims, err := decodeClaims(key, value)
		if err != nil {
			return err
		}
		for _, c := range claims {
			if len(c.seqs) == 0 {
				return fmt.Errorf("batch %d has no events", c.number)
			}
		}
		return nil
	})
}

// LaneOf returns the lane of a device's events, of the app with that number.
func LaneOf(app uint64, device string) Lane { return laneOf(app, hashDevice(device)) }

// HashDevice is what Record.Device is.
func HashDevice(device string) uint64 { return hashDevice(device) }

// Damaged are the files beside a spool that were set aside.
func Damaged(path string) (n int) {
	entries, err := os.ReadDir(path[:len(path)-len("/s.db")])
	if err != nil {
		return -1
	}
	for _, e := range entries {
		if len(e.Name()) > len("s.db.damaged-") && e.Name()[:len("s.db.damaged-")] == "s.db.damaged-" {
			n++
		}
	}
	return n
}

// SetFormat has a file be of another format.
func SetFormat(path string, format byte) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		value := append([]byte(nil), meta.Get(keyState)...)
		value[crcLen] = format
		return meta.Put(keyState, seal(keyState, value))
	})
	return errors.Join(err, db.Close())
}
