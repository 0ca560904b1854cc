//go:build !unix

package origin

const openNonblock = 0

// isNoFile is never told apart here.
func isNoFile(error) bool { return false }
