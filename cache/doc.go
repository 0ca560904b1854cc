// Package cache keeps what the edge has fetched: documents compiled in memory, with the last good copy of each on disk
// (Memory, LastGood), and whole objects in files (Disk).
//
// It is mechanism only. Names are strings, scopes are prefixes that keep equal names of different origins apart, and what
// a document means, or what an object must be, is known to the caller alone.
//
// # What is promised of documents
//
// A document that was ever fetched and decoded answers until it is Ages.Stale old, whatever happens to the origin: from
// memory, and after a restart or an eviction from its copy on disk. A copy is written to a temporary file, synced and
// renamed, and carries the SHA-256 of its content: after a crash or on a damaged disk it is either whole or not there.
// A full or failing disk costs the copy, never the answer.
//
// Memory is bounded, and so is what unknown names may take of it: they are remembered in a budget of their own.
//
// # What is promised of objects
//
// However many ask for an object, the origin is asked once, by a fill that belongs to none of them; all read what it has
// brought so far, from any offset, except the last 64 KiB, which wait until length and digest are right. So nobody ever has
// the whole of an object that is wrong, and none is stored. A fill whose body breaks off is resumed once, if the object is
// still the same.
//
// A file gets its name after it was synced, with a record behind its content: after a crash what has a name is whole, and
// what has none is removed. What is damaged later is noticed where the record or, for small objects, the digest tells; it
// is dropped and fetched anew. A disk that is full, read-only or broken costs the copies: objects are passed on from the
// origin, verified on the way where they are read from their start, and the disk is tried again every few seconds.
//
// Stored objects and running fills stay within a budget of bytes, and leave some of the disk to others. After a purge no
// fill is stored that began before it. A directory belongs to one process, and to one Disk.
package cache
