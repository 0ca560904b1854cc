//go:build unix

package stats

import (
	"errors"
	"syscall"
)

// isNoSpace reports that err is that of a full disk.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
