package origin

import (
	"io/fs"
	"os"
	"syscall"
)

// isSameFile reports that b is the file a, and that nothing was written to it since: the number of a file that was removed
// is soon given to another, and a time can be set, but not the one of the last change to the file's own record.
func isSameFile(a, b fs.FileInfo) bool {
	before, ok1 := a.Sys().(*syscall.Stat_t)
	after, ok2 := b.Sys().(*syscall.Stat_t)
	return ok1 && ok2 && before.Ctim == after.Ctim && os.SameFile(a, b)
}
