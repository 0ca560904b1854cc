//go:build unix

package stats

import (
	"errors"
	"os"
)

// syncDir makes a name in dir survive a power cut.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
