package stats

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"
)

// The file has these records. Integers are big endian in keys and values; varint is that of encoding/binary. Each value ends
// up under a CRC-32C that covers its key, too, so that a record which stands in the wrong place is not believed.
//
//	meta    "state"         crc, format, instance, counters
//	apps    app             crc, flags, bytes, records of each lane, app id
//	events  app, lane, seq  crc, format, hash of the device, time, length of the data, data
//	        ..., part       crc, more data
//	claims  app, lane       crc, batches that are on their way: number and seqs of each
//
// Data of more than pieceLen bytes goes into several records, so that four of them fit into a page. bbolt looks for pages
// that follow one another to keep larger ones, and a file that is nearly full for long has none.
const (
	crcLen       = 4
	laneKeyLen   = 8 + 1
	eventKeyLen  = laneKeyLen + 8
	partKeyLen   = eventKeyLen + 2
	eventHeadLen = crcLen + 1 + 8 + 8 + 4
	eventFormat  = 1
	elementLen   = 16 // what bbolt writes for each record beside its key and value
	pieceLen     = 920
	maxEventLen  = 16 << 20 // has fewer pieces than a part can count
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errRecord says that a record is not what was written.
var errRecord = errors.New("the record is damaged")

// seal puts the checksum of a record into the place that was left for it in front of its value.
func seal(key, value []byte) []byte {
	binary.BigEndian.PutUint32(value, checksum(key, value))
	return value
}

func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value[crcLen:])
}

// unseal returns what follows the checksum of a value, or nil if the record is damaged.
func unseal(key, value []byte) []byte {
	if len(value) <= crcLen || binary.BigEndian.Uint32(value) != checksum(key, value) {
		return nil
	}
	return value[crcLen:]
}

func (l Lane) key() []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, eventKeyLen), l.app), l.n)
}

func eventKey(l Lane, seq uint64) []byte { return binary.BigEndian.AppendUint64(l.key(), seq) }

// splitEventKey is the inverse of eventKey, and takes keys of pieces as well.
func splitEventKey(key []byte) (l Lane, seq uint64, ok bool) {
	if len(key) != eventKeyLen && len(key) != partKeyLen || key[8] >= Lanes {
		return Lane{}, 0, false
	}
	return Lane{app: binary.BigEndian.Uint64(key), n: key[8]}, binary.BigEndian.Uint64(key[laneKeyLen:]), true
}

// hashDevice is what order is kept by. It is part of the file's format. It is cryptographic, so that nobody finds an id that
// stands in the way of another device's events.
func hashDevice(id string) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(sum[:])
}

// laneOf is the lane of a device's events.
func laneOf(app, device uint64) Lane { return Lane{app: app, n: uint8(device % Lanes)} }

// head is what stands in front of an event's data.
type head struct {
	device uint64
	time   time.Time
	length int // of the data
	data   []byte
}

// encodeHead returns the record of an event's head with the first piece of data.
func encodeHead(key []byte, e *entry) []byte {
	piece := e.data[:min(len(e.data), pieceLen)]
	value := make([]byte, crcLen, eventHeadLen+len(piece))
	value = append(value, eventFormat)
	value = binary.BigEndian.AppendUint64(value, e.device)
	value = binary.BigEndian.AppendUint64(value, uint64(e.time.UnixMilli()))
	value = binary.BigEndian.AppendUint32(value, uint32(len(e.data)))
	return seal(key, append(value, piece...))
}

func decodeHead(key, value []byte) (head, error) {
	if len(key) != eventKeyLen || len(value) < eventHeadLen || unseal(key, value) == nil || value[crcLen] != eventFormat {
		return head{}, errRecord
	}
	fixed := value[crcLen+1:]
	h := head{
		device: binary.BigEndian.Uint64(fixed),
		time:   time.UnixMilli(int64(binary.BigEndian.Uint64(fixed[8:]))),
		length: int(binary.BigEndian.Uint32(fixed[16:])),
		data:   value[eventHeadLen:],
	}
	if h.length > maxEventLen || len(h.data) != min(h.length, pieceLen) {
		return head{}, errRecord
	}
	return h, nil
}

func encodePart(key, piece []byte) []byte {
	return seal(key, append(make([]byte, crcLen, crcLen+len(piece)), piece...))
}

// partKey is the key of a further piece of an event.
func partKey(key []byte, part int) []byte {
	return binary.BigEndian.AppendUint16(append(make([]byte, 0, partKeyLen), key...), uint16(part))
}

// isHead reports that a key of the events is that of an event, and not of one of its further pieces.
func isHead(key []byte) bool { return len(key) == eventKeyLen }

// recordSize is what a record takes of the file, but for the pages around it.
func recordSize(key, value []byte) int64 { return int64(len(key) + len(value) + elementLen) }

// claim is a batch that is on its way.
type claim struct {
	number uint64   // at random
	seqs   []uint64 // ascending
}

func encodeClaims(key []byte, claims []claim) []byte {
	value := make([]byte, crcLen, crcLen+64)
	value = binary.AppendUvarint(value, uint64(len(claims)))
	for _, c := range claims {
		value = binary.AppendUvarint(value, c.number)
		value = binary.AppendUvarint(value, uint64(len(c.seqs)))
		last := uint64(0)
		for _, seq := range c.seqs {
			value = binary.AppendUvarint(value, seq-last)
			last = seq
		}
	}
	return seal(key, value)
}

func decodeClaims(key, value []byte) ([]claim, error) {
	r := fields{rest: unseal(key, value)}
	claims := make([]claim, r.count())
	for i := range claims {
		claims[i].number = r.uvarint()
		claims[i].seqs = make([]uint64, r.count())
		last := uint64(0)
		for j := range claims[i].seqs {
			step := r.uvarint()
			if step == 0 || last+step < last {
				return nil, errRecord
			}
			last += step
			claims[i].seqs[j] = last
		}
	}
	if r.bad || len(r.rest) > 0 || len(claims) == 0 {
		return nil, errRecord
	}
	return claims, nil
}

const appConfirmed = 1 // flag of an app

func encodeApp(key []byte, a *app) []byte {
	value := make([]byte, crcLen, crcLen+32+len(a.id))
	flags := byte(0)
	if a.confirmed {
		flags |= appConfirmed
	}
	value = append(value, flags)
	value = binary.AppendUvarint(value, uint64(a.bytes))
	for _, n := range a.records {
		value = binary.AppendUvarint(value, uint64(n))
	}
	return seal(key, append(value, a.id...))
}

func decodeApp(key, value []byte) (*app, error) {
	body := unseal(key, value)
	if len(key) != 8 || body == nil {
		return nil, errRecord
	}
	r := fields{rest: body[1:]}
	a := &app{number: binary.BigEndian.Uint64(key), confirmed: body[0]&appConfirmed != 0, bytes: int64(r.uvarint())}
	for i := range a.records {
		a.records[i] = int64(r.uvarint())
	}
	if a.id = string(r.rest); r.bad || a.bytes < 0 {
		return nil, errRecord
	}
	return a, nil
}

// state is the record of a spool as a whole.
type state struct {
	instance uint64
	apps     uint64 // number of the last app
	events   uint64 // seq of the last event
	dropped  [len(reasons)]uint64
}

// spoolFormat is the format that this code writes, and the newest that it reads.
const spoolFormat = 1

func encodeState(key []byte, s *state) []byte {
	value := make([]byte, crcLen, 64)
	value = append(value, spoolFormat)
	value = binary.BigEndian.AppendUint64(value, s.instance)
	for _, n := range []uint64{s.apps, s.events, 0} { // the last one counted batches
		value = binary.AppendUvarint(value, n)
	}
	for _, n := range s.dropped {
		value = binary.AppendUvarint(value, n)
	}
	return seal(key, value)
}

// decodeState returns ErrFormat for what a newer release wrote.
func decodeState(key, value []byte) (state, error) {
	body := unseal(key, value)
	switch {
	case body == nil:
		return state{}, errRecord
	case body[0] != spoolFormat:
		return state{}, ErrFormat
	case len(body) < 1+8:
		return state{}, errRecord
	}
	r := fields{rest: body[1+8:]}
	s := state{instance: binary.BigEndian.Uint64(body[1:]), apps: r.uvarint(), events: r.uvarint()}
	r.uvarint() // counted batches
	for i := range s.dropped {
		s.dropped[i] = r.uvarint()
	}
	if r.bad || len(r.rest) > 0 {
		return state{}, errRecord
	}
	return s, nil
}

// fields reads integers one after another.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) uvarint() uint64 {
	n, size := binary.Uvarint(f.rest)
	if size <= 0 {
		f.bad, f.rest = true, nil
		return 0
	}
	f.rest = f.rest[size:]
	return n
}

// count reads how many things follow, each of at least a byte.
func (f *fields) count() int {
	n := f.uvarint()
	if n > uint64(len(f.rest)) {
		f.bad, f.rest = true, nil
		return 0
	}
	return int(n)
}
