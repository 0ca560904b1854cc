// Package stats keeps statistics events on disk and delivers them to a collector.
//
// It makes two promises, with a verb each:
//
//   - [Spool.Append] returns nil once the events are on disk. From then on an event leaves the spool in one of three ways
//     only: the collector took it, it went to the dead-letter file, or the spool was full and dropped it, which is counted.
//   - [Forwarder] delivers at least once, the events of one device in their order. What is delivered twice is a batch that
//     was on its way when the process died, or that got no clear answer, and it has the same Idempotency-Key each time. New
//     keys have the halves of a batch that is split because the collector fails on it again and again, and an event that it
//     fails on alone, each time: if it took them nonetheless, it has them under several keys.
//
// A spool belongs to one collector. Where there are several, each has a spool of its own, so that one which is down for a
// day holds nothing up.
package stats
