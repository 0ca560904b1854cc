// Package resolver decides what one device is told when it asks for an update.
//
// It is a pure function of three things: the application's channel manifest, the body of the request and the public
// address of the edge. The same inputs give the same bytes, at every site, on every day. The package therefore has no
// clock, no randomness, no I/O, no goroutines and no mutable package state; callers own all buffers that are reused.
//
// The path of a check:
//
//	body ── CheckParser.Parse ──▶ Check ── Manifest.Decide ──▶ Decision ── AppendResponse ──▶ JSON
//	                                            ▲
//	document ── ParseManifest ──▶ Manifest ─────┘
//
// Events go a shorter one: EventParser.Parse tells what is wrong with each whatever the app, Manifest.JudgeEvent what the
// app has against it, and AppendEventAnswer or AppendBatchAnswer writes the answer. They are passed on as they came.
//
// An app without a manifest is answered by what another server answered before: AppendAnswerKey tells which checks get the
// same answer, ParseAnswer what an answer comes to, and Answer.Compile makes it one for all of them.
//
// What was compiled never changes. Manifest.Hold makes another manifest of it, which goes on offering what was offered
// before, and Manifest.Pause one whose rollouts have stopped; Bundle.Readdress makes another bundle, whose answer has other
// addresses.
//
// "Protocol" in comments means the wire reference this edge was built from; its section numbers are quoted where a rule
// comes from there. The upstream uses the word "manifest" twice: here Manifest is the channel document of one
// application, and the list of delta files of a bundle is called its files.
package resolver
