// Package upstream asks the Capgo-compatible servers that an edge stands in front of.
//
// A [Group] has one or several of them, in order. Each has a breaker: one that fails is left alone for a while, and then
// tried by one request at a time. Update checks go to the next server when one fails; what is no update check is passed
// through as it is. Nothing is kept here: what an answer means, and how long it holds, is the caller's.
//
// The operator names these servers, so they may be on any network, and are asked through the proxies of the environment.
package upstream
