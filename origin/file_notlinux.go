//go:build !linux

package origin

import (
	"io/fs"
	"os"
)

// isSameFile reports that b is the file a.
func isSameFile(a, b fs.FileInfo) bool { return os.SameFile(a, b) }
