//go:build !unix || aix || solaris

package boltfile

import "os"

// unlock has nothing to do: here the lock ends with the file, or with the process.
func unlock(*os.File) {}
