//go:build !unix

package boltfile

// SyncDir does nothing: a directory cannot be synced here.
func SyncDir(string) error { return nil }
