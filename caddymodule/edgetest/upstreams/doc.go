// Package upstreams has stand-ins for the servers that an edge may be put in front of: one real HTTP server for each column
// of protocol 7, faithful in status codes, field names, lifetimes of addresses and faults. It is for tests only.
//
//	Official    the official server, with its files worker and its management API
//	Lite        capgo-update-lite
//	GoServer    capgo-server, the one in Go
//	Minimal     the server of the documentation
//	PluginTest  the plugin's own test server
//
// Each is made by its New function, and listens after Start. All of them embed Server, which breaks them on demand and
// records what they were asked.
package upstreams
