//go:build !unix

package stats

// isNoSpace reports that err is that of a full disk. Here that cannot be told from other errors of the disk.
func isNoSpace(error) bool { return false }
