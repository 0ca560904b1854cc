//go:build unix && !aix && !solaris

package boltfile

import (
	"os"
	"syscall"
)

// unlock ends the lock that bbolt holds on a file. Closing the file is not enough while it is mapped.
func unlock(file *os.File) {
	_ = syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
}
