//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package stats

import (
	"os"
	"syscall"
)

// unlock releases bbolt's lock on a file that stays mapped, and would keep it.
func unlock(f *os.File) { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) } // at worst the next open says that it is locked
