package stats

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
)

// bbolt trusts its file: pages are read where they are mapped, without bounds or checksums. In a file that was cut short or
// that the disk spoiled it reads what is not there, goes in circles, or writes over what is in use; part of that ends the
// process and cannot be recovered from. So the file is looked at before bbolt gets it, and what can be saved of a damaged
// one is read, by code that trusts nothing. It reads what bbolt has written since its first release:
//
//	page    id 8, flags 2, count 2, overflow 4; then count elements, then what they point to
//	branch  element: pos 4, size of the key 4, page 8
//	leaf    element: flags 4, pos 4, size of the key 4, of the value 4; flag 1 is a bucket
//	bucket  root 8, sequence 8; with root 0 a page follows
//	meta    magic 4, version 4, page size 4, flags 4, root bucket 16, free list 8, pages 8, transaction 8, FNV-64a 8
//
// Integers have the order of the machine. pos counts from the element.
const (
	pageHeadLen   = 16
	bucketHeadLen = 16
	metaLen       = 64
	metaMagic     = 0xED0CDAED
	metaVersion   = 2
	flagBranch    = 1
	flagLeaf      = 2
	flagFree      = 16
	flagBucket    = 1
	maxDepth      = 32
	maxOverflow   = 4096 // pages
	noFreelist    = 1<<64 - 1
)

var native = binary.NativeEndian

// tree is a file of bbolt.
type tree struct {
	file     io.ReaderAt
	pageSize uint64
	root     uint64
	free     uint64
	high     uint64 // pages that there are
	txid     uint64
	seen     []uint64 // bits of the pages that were met

	scratch []byte // the page that was read last

	// deep has all pages read; else those of records are only counted.
	deep bool
	// bad is told of damage. The walk goes on where it returns nil.
	bad func(error) error
	// visit gets each record; nil: nobody wants them.
	visit func(bucket string, key, value []byte) error
}

// openTree reads which of the two meta pages holds.
func openTree(file io.ReaderAt, size int64) (*tree, error) {
	var best *tree
	for offset := int64(0); offset < size && offset <= 1<<24; offset = max(offset*2, 1024) {
		buf := make([]byte, pageHeadLen+metaLen)
		if _, err := file.ReadAt(buf, offset); err != nil {
			if errors.Is(err, io.EOF) {
				break
			}
			return nil, err
		}
		t := parseMeta(buf[pageHeadLen:])
		if t != nil && (offset == 0 || uint64(offset) == t.pageSize) && (best == nil || t.txid > best.txid) {
			best = t
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%w: it has no valid meta page", errDamaged)
	}
	best.file = file
	if pages := uint64(size) / best.pageSize; best.high > pages {
		return nil, fmt.Errorf("%w: it has %d pages of %d bytes and should have %d", errDamaged, pages, best.pageSize, best.high)
	}
	best.scratch = make([]byte, best.pageSize)
	best.seen = make([]uint64, best.high/64+1)
	return best, nil
}

func parseMeta(b []byte) *tree {
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaLen-8]) // it never fails
	if native.Uint32(b) != metaMagic || native.Uint32(b[4:]) != metaVersion || native.Uint64(b[metaLen-8:]) != sum.Sum64() {
		return nil
	}
	t := &tree{
		pageSize: uint64(native.Uint32(b[8:])), root: native.Uint64(b[16:]),
		free: native.Uint64(b[32:]), high: native.Uint64(b[40:]), txid: native.Uint64(b[48:]),
	}
	if t.pageSize < 1024 || t.pageSize > 1<<24 {
		return nil
	}
	return t
}

// walk goes through the buckets of the file.
func (t *tree) walk() error {
	return t.page("", t.root, 0, span{})
}

// check walks, and looks whether a page is in use and free at the same time.
func (t *tree) check() error {
	t.bad = func(err error) error { return err }
	if err := t.walk(); err != nil || t.free == noFreelist {
		return err
	}
	head, err := t.read(t.free, int(t.high*8/t.pageSize)+2, flagFree)
	if err != nil {
		return err
	}
	n, ids := uint64(native.Uint16(head[10:])), head[pageHeadLen:]
	if n == 0xffff && len(ids) >= 8 {
		n, ids = native.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids))/8 {
		return t.damage(t.free, "its list of free pages is cut off")
	}
	for i := range n {
		if id := native.Uint64(ids[i*8:]); id < 2 || id >= t.high || t.mark(id) {
			return t.damage(id, "it is in use, and free")
		}
	}
	return nil
}

func (t *tree) damage(id uint64, format string, args ...any) error {
	return fmt.Errorf("%w: page %d: %s", errDamaged, id, fmt.Sprintf(format, args...))
}

// mark notes that a page was met, and reports that it was before.
func (t *tree) mark(id uint64) (again bool) {
	bit := uint64(1) << (id % 64)
	again = t.seen[id/64]&bit != 0
	t.seen[id/64] |= bit
	return again
}

// read returns a page of one of the types in flags with those that follow it. It may be overwritten by the next call.
func (t *tree) read(id uint64, maxOverflow int, flags uint16) ([]byte, error) {
	if id < 2 || id >= t.high {
		return nil, t.damage(id, "there is no such page")
	}
	page := t.scratch
	if _, err := t.file.ReadAt(page, int64(id*t.pageSize)); err != nil {
		return nil, t.damage(id, "%v", err)
	}
	switch got, typ, overflow := native.Uint64(page), native.Uint16(page[8:]), uint64(native.Uint32(page[12:])); {
	case got != id:
		return nil, t.damage(id, "it says that it is page %d", got)
	case typ&flags == 0 || typ&(typ-1) != 0:
		return nil, t.damage(id, "it has the type %d", typ)
	case overflow > uint64(maxOverflow) || id+overflow >= t.high:
		return nil, t.damage(id, "it has %d more pages", overflow)
	case overflow > 0:
		page = slices.Concat(page, make([]byte, overflow*t.pageSize))
		if _, err := t.file.ReadAt(page[t.pageSize:], int64((id+1)*t.pageSize)); err != nil {
			return nil, t.damage(id, "%v", err)
		}
		for i := range overflow {
			if t.mark(id + 1 + i) {
				return nil, t.damage(id+1+i, "it is in use twice")
			}
		}
	}
	return page, nil
}

// span is where the keys of a page lie.
type span struct{ low, high []byte } // nil: no bound

// page walks over a page and those below it.
func (t *tree) page(bucket string, id uint64, depth int, keys span) error {
	if id < 2 || id >= t.high || depth > maxDepth {
		return t.bad(t.damage(id, "there is no such page"))
	}
	if t.mark(id) {
		return t.bad(t.damage(id, "it is in use twice"))
	}
	page, err := t.read(id, maxOverflow, flagBranch|flagLeaf)
	if err != nil {
		return t.bad(err)
	}
	if native.Uint16(page[8:]) == flagBranch {
		return t.branch(bucket, id, bytes.Clone(page), depth, keys)
	}
	if bucket == "" || t.visit != nil { // what is in it is needed for longer
		page = bytes.Clone(page)
	}
	return t.leaf(bucket, id, page, keys)
}

func (t *tree) branch(bucket string, id uint64, page []byte, depth int, keys span) error {
	n := int(native.Uint16(page[10:]))
	if n == 0 || pageHeadLen+n*elementLen > len(page) {
		return t.bad(t.damage(id, "it has %d elements", n))
	}
	ids, lows := make([]uint64, n), make([][]byte, n)
	for i := range n {
		element := page[pageHeadLen+i*elementLen:]
		pos, size := uint64(native.Uint32(element)), uint64(native.Uint32(element[4:]))
		if pos+size > uint64(len(element)) {
			return t.bad(t.damage(id, "element %d points outside", i))
		}
		ids[i], lows[i] = native.Uint64(element[8:]), element[pos:pos+size]
		if i > 0 && bytes.Compare(lows[i-1], lows[i]) >= 0 || !keys.holds(lows[i]) {
			return t.bad(t.damage(id, "key %d is out of order", i))
		}
	}
	if !t.deep && t.isLeaf(ids[0]) {
		for _, child := range ids {
			if child < 2 || child >= t.high || t.mark(child) {
				return t.bad(t.damage(child, "it is in use twice, or not there"))
			}
		}
		return nil
	}
	for i, child := range ids {
		below := span{low: lows[i], high: keys.high}
		if i+1 < n {
			below.high = lows[i+1]
		}
		if err := t.page(bucket, child, depth+1, below); err != nil {
			return err
		}
	}
	return nil
}

func (s span) holds(key []byte) bool {
	return bytes.Compare(key, s.low) >= 0 && (s.high == nil || bytes.Compare(key, s.high) < 0)
}

func (t *tree) isLeaf(id uint64) bool {
	head := make([]byte, pageHeadLen)
	if id >= t.high {
		return false
	}
	_, err := t.file.ReadAt(head, int64(id*t.pageSize))
	return err == nil && native.Uint16(head[8:]) == flagLeaf
}

func (t *tree) leaf(bucket string, id uint64, page []byte, keys span) error {
	n := int(native.Uint16(page[10:]))
	if pageHeadLen+n*elementLen > len(page) {
		return t.bad(t.damage(id, "it has %d elements", n))
	}
	var last []byte
	for i := range n {
		element := page[pageHeadLen+i*elementLen:]
		flags, pos := native.Uint32(element), uint64(native.Uint32(element[4:]))
		keySize, valueSize := uint64(native.Uint32(element[8:])), uint64(native.Uint32(element[12:]))
		var err error
		if pos+keySize+valueSize > uint64(len(element)) || keySize == 0 || flags&^flagBucket != 0 {
			err = t.bad(t.damage(id, "element %d points outside", i))
		} else {
			key, value := element[pos:pos+keySize], element[pos+keySize:pos+keySize+valueSize]
			if !keys.holds(key) || last != nil && bytes.Compare(last, key) >= 0 {
				if err := t.bad(t.damage(id, "key %d is out of order", i)); err != nil {
					return err
				}
			}
			last = key
			err = t.element(bucket, id, flags, key, value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// element is a record, or a bucket.
func (t *tree) element(bucket string, id uint64, flags uint32, key, value []byte) error {
	isBucket := flags == flagBucket
	switch {
	case isBucket != (bucket == ""):
		return t.bad(t.damage(id, "it has a bucket in the place of a record, or a record in that of a bucket"))
	case !isBucket && t.visit == nil:
		return nil
	case !isBucket:
		return t.visit(bucket, key, value)
	case len(value) < bucketHeadLen:
		return t.bad(t.damage(id, "a bucket is cut off"))
	}
	if root := native.Uint64(value); root != 0 {
		return t.page(string(key), root, 1, span{})
	}
	inline := value[bucketHeadLen:]
	if len(inline) < pageHeadLen || native.Uint16(inline[8:]) != flagLeaf {
		return t.bad(t.damage(id, "the bucket %q is cut off", key))
	}
	return t.leaf(string(key), id, inline, span{})
}
