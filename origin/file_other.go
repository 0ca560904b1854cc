//go:build !unix

package origin

// isNotDirectory is never told apart here: a key that goes through a file does not exist.
func isNotDirectory(error) bool { return false }
