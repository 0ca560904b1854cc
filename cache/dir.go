package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// formatFile stamps a storage directory with the version of its layout.
const formatFile = "FORMAT"

// layout is the version of the storage layout this code writes.
const layout = 1

// OpenDir makes a storage directory usable: it creates it, readable by its owner alone, and stamps it with the version
// of its layout. A directory that a newer version wrote is refused, so that a downgrade damages nothing.
func OpenDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, formatFile)
	stamp, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(stamp) == 0 { // new, or a crash came between create and write
		return os.WriteFile(path, []byte(strconv.Itoa(layout)+"\n"), 0o600)
	}
	if err != nil {
		return err
	}
	found, err := strconv.Atoi(strings.TrimSpace(string(stamp)))
	switch {
	case err != nil || found < 1:
		return fmt.Errorf("%s does not hold a layout version; use an empty directory, or one that this program made", path)
	case found > layout:
		return fmt.Errorf("%s was written by a newer version (layout %d, this one knows %d); upgrade, or use another directory",
			dir, found, layout)
	}
	return nil
}
