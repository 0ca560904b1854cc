//go:build unix

package origin

import (
	"errors"
	"syscall"
)

// isNotDirectory reports that a key goes through a file as if it were a directory.
func isNotDirectory(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
