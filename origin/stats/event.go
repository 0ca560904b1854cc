package stats

import "time"

// Event is one statistics event of a device.
type Event struct {
	// App is the application id. Events of different apps never share a batch: the official collector refuses those.
	App string
	// Device is what order is kept by.
	Device string
	// Confirmed says that the app is known to exist. The events of all others together get a small part of the spool, so
	// that made-up app ids cannot push out real events.
	Confirmed bool
	// Data is the event as it is delivered, a JSON object. It is not changed by the spool, and not kept by Append.
	Data []byte
}

// Lane is a part of an app's events: those of the devices with one hash. Within a lane batches are delivered one after
// another, so that the events of a device keep their order; lanes do not wait for each other.
type Lane struct {
	app uint64 // number of the app in the spool
	n   uint8
}

// Lanes is how many lanes an app has. It is part of the file's format.
const Lanes = 8

// Batch is what one request to a collector holds: events of one app, in order.
type Batch struct {
	// Key is the Idempotency-Key. It is on disk before the batch is returned, so the batch has the same after a crash.
	Key    string
	App    string
	Lane   Lane
	Events []Record

	buried []uint64 // seqs of the events that are in the dead-letter file already
}

// Record is an event in the spool.
type Record struct {
	Seq    uint64 // grows with each event of a spool
	Device uint64 // hash of the device
	Time   time.Time
	Data   []byte
}

// Fate is what became of an event that was sent.
type Fate uint8

const (
	// Keep leaves the event in the spool, to be sent again.
	Keep Fate = iota
	// Delivered removes it.
	Delivered
	// Dead moves it to the dead-letter file.
	Dead
)

// Verdict is the fate of one event of a batch.
type Verdict struct {
	Fate Fate
	// Code and Message say why an event is dead, in the collector's words.
	Code, Message string
	// Whole says that the event is dead because the request was refused as a whole, see [Failure]: that may be a wrong
	// address.
	Whole bool

	// unanswered says of a single event to keep that its request was not answered, so that it is sent again under its key.
	unanswered bool
}

// BatchLimits bound a batch. A single event may be larger than Bytes. A batch never has more than 256 events.
type BatchLimits struct {
	Events, Bytes int
}
