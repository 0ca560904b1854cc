// Package cache keeps what the edge has fetched: documents compiled in memory, with the last good copy of each on disk.
//
// It is mechanism only. Names are strings, scopes are prefixes that keep equal names of different origins apart, and what
// a document means is known to the caller's Source alone.
//
// # What is promised
//
// A document that was ever fetched and decoded answers until it is Ages.Stale old, whatever happens to the origin: from
// memory, and after a restart or an eviction from its copy on disk. A copy is written to a temporary file, synced and
// renamed, and carries the SHA-256 of its content: after a crash or on a damaged disk it is either whole or not there.
// A full or failing disk costs the copy, never the answer.
//
// Memory is bounded, and so is what unknown names may take of it: they are remembered in a budget of their own.
package cache
