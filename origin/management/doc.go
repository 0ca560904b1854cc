// Package management reads an app's state from the management API of an official server (protocol 6.1), with an API key. It
// knows how that API hands out rows and what to do when it is not in the mood; what is in the rows is for others to know.
package management
