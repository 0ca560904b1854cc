// Package origin reads the storage that holds an operator's manifests and bundles.
//
// One primitive, Store, serves them all. Stores are stateless as far as their callers can tell, safe for concurrent use,
// and never retry: who calls knows whether a second try is worth it.
package origin
