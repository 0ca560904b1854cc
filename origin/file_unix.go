//go:build unix

package origin

import (
	"errors"
	"syscall"
)

// openNonblock keeps the opening of a named pipe from waiting for somebody who writes to it.
const openNonblock = syscall.O_NONBLOCK

// isNoFile reports that there cannot be a file of that name: the key goes through a file as if it were a directory, is
// longer than a name can be, or is that of a socket.
func isNoFile(err error) bool {
	return errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, syscall.ENXIO)
}
