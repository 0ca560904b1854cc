package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The format of bbolt's files, version 2, as far as a reader has to know it. Numbers are in the machine's byte order.
const (
	headerSize  = 16 // of a page: id uint64, flags uint16, count uint16, overflow uint32
	elementSize = 16 // of a branch: pos, ksize uint32, child uint64; of a leaf: flags, pos, ksize, vsize uint32
	bucketSize  = 16 // root uint64, sequence uint64

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	bucketLeaf = 0x01 // flag of a leaf's element whose value is a bucket

	magic       = 0xED0CDAED
	noFreelist  = 1<<64 - 1
	manyFree    = 0xFFFF // the count of free pages is in the page's first entry
	maxPageSize = 1 << 24
)

var order = binary.NativeEndian

// meta is one of the two pages that lead to all others.
type meta struct {
	pageSize                   int64
	root, freelist, end, count uint64 // end: the pages from there on were never used; count: of transactions
}

func parseMeta(b []byte) (meta, bool) {
	b = b[headerSize:]
	hash := fnv.New64a()
	_, _ = hash.Write(b[:56])
	m := meta{
		pageSize: int64(order.Uint32(b[8:])), root: order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]), end: order.Uint64(b[40:]), count: order.Uint64(b[48:]),
	}
	sound := order.Uint32(b) == magic && order.Uint32(b[4:]) == 2 && order.Uint64(b[56:]) == hash.Sum64() &&
		m.pageSize >= 512 && m.pageSize <= maxPageSize
	return m, sound
}

// verifier reads a file as bbolt does, and takes nothing for granted. bbolt has no checksums but those of the meta pages, so
// a changed key or value is not noticed; what is noticed is all that would make bbolt read or write where it must not.
type verifier struct {
	file io.ReaderAt
	meta
	used []byte // a bit for each page
}

// verify reports what is wrong with the structure of a file. pageSize is bbolt's finding.
func verify(file io.ReaderAt, pageSize int64) error {
	v := verifier{file: file}
	sound := false
	for i := range int64(2) {
		page := make([]byte, headerSize+64)
		if _, err := file.ReadAt(page, i*pageSize); err != nil {
			return fmt.Errorf("meta page %d: %w", i, err)
		}
		if m, ok := parseMeta(page); ok && m.pageSize == pageSize && (!sound || m.count > v.count) {
			v.meta, sound = m, true
		}
	}
	if !sound {
		return errors.New("both meta pages are invalid")
	}
	if err := v.checkSize(); err != nil {
		return err
	}
	v.used = make([]byte, v.end/8+1)
	v.claim(0)
	v.claim(1)
	if err := v.tree(v.root, nil, 0); err != nil {
		return err
	}
	return v.free()
}

// checkSize reads the last byte of the pages in use: a torn file ends before it, and is no reason to take memory for it.
func (v *verifier) checkSize() error {
	const most = 1 << 48
	if v.end < 3 || v.end > uint64(most/v.pageSize) {
		return fmt.Errorf("it claims to have %d pages", v.end)
	}
	if _, err := v.file.ReadAt(make([]byte, 1), int64(v.end)*v.pageSize-1); err != nil {
		return fmt.Errorf("it ends before its %d pages: %w", v.end, err)
	}
	return nil
}

// claim notes that a page has a use. It reports false for one that has another already, or cannot have one.
func (v *verifier) claim(id uint64) bool {
	if id >= v.end || v.used[id/8]&(1<<(id%8)) != 0 {
		return false
	}
	v.used[id/8] |= 1 << (id % 8)
	return true
}

// page reads a page with those it overflows into, and claims them.
func (v *verifier) page(id uint64) ([]byte, error) {
	if id >= v.end {
		return nil, fmt.Errorf("page %d is beyond the %d there are", id, v.end)
	}
	header := make([]byte, headerSize)
	if _, err := v.file.ReadAt(header, int64(id)*v.pageSize); err != nil {
		return nil, err
	}
	overflow := uint64(order.Uint32(header[12:]))
	if order.Uint64(header) != id || overflow >= v.end-id {
		return nil, fmt.Errorf("page %d is not itself", id)
	}
	for i := range overflow + 1 {
		if !v.claim(id + i) {
			return nil, fmt.Errorf("page %d is used twice", id+i)
		}
	}
	page := make([]byte, int64(overflow+1)*v.pageSize)
	if _, err := v.file.ReadAt(page, int64(id)*v.pageSize); err != nil {
		return nil, err
	}
	return page, nil
}

// maxDepth is more than any tree has: each level has at least two pages a page.
const maxDepth = 64

// tree checks the tree below a page. Its keys must not be lower than least.
func (v *verifier) tree(id uint64, least []byte, depth int) error {
	page, err := v.page(id)
	if err != nil {
		return err
	}
	if err := v.elements(page, least, depth+1); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks what a page has, which may also stand within a value: a small bucket does.
func (v *verifier) elements(page, least []byte, depth int) error {
	flags, count := order.Uint16(page[8:]), int(order.Uint16(page[10:]))
	switch {
	case depth > maxDepth:
		return errors.New("the tree is too deep")
	case flags != branchPage && flags != leafPage:
		return fmt.Errorf("is of no known kind: %#x", flags)
	case headerSize+count*elementSize > len(page):
		return fmt.Errorf("has no room for %d elements", count)
	case flags == branchPage && count == 0:
		return errors.New("is an empty branch")
	}
	for i := range count {
		at := headerSize + i*elementSize
		element, keyAt, valueSize := page[at:at+elementSize], 0, 0
		if flags == leafPage {
			element, keyAt = element[4:], 4
			valueSize = int(order.Uint32(element[8:]))
		}
		pos, keySize := int(order.Uint32(element)), int(order.Uint32(element[4:]))
		rest := len(page) - at
		if pos > rest || keySize > rest-pos || valueSize > rest-pos-keySize || keySize == 0 && i+keyAt > 0 {
			return fmt.Errorf("element %d is not within it", i)
		}
		key := page[at+pos : at+pos+keySize]
		value := page[at+pos+keySize : at+pos+keySize+valueSize]
		if i == 0 && bytes.Compare(key, least) < 0 || i > 0 && bytes.Compare(key, least) <= 0 {
			return fmt.Errorf("element %d is out of order", i)
		}
		least = key
		var err error
		switch {
		case flags == branchPage:
			err = v.tree(order.Uint64(element[8:]), key, depth)
		case order.Uint32(page[at:])&bucketLeaf != 0:
			err = v.bucket(value, depth)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bucket checks a value that is a bucket.
func (v *verifier) bucket(value []byte, depth int) error {
	if len(value) < bucketSize {
		return errors.New("a bucket is too short")
	}
	if root := order.Uint64(value); root != 0 {
		return v.tree(root, nil, depth)
	}
	inline := value[bucketSize:]
	if len(inline) < headerSize || order.Uint16(inline[8:]) != leafPage || order.Uint64(inline) != 0 {
		return errors.New("a small bucket is not one")
	}
	return v.elements(inline, nil, depth+1)
}

// free checks the list of pages that may be written to: none of them must be in use.
func (v *verifier) free() error {
	if v.freelist == noFreelist {
		return nil
	}
	page, err := v.page(v.freelist)
	if err != nil {
		return err
	}
	ids, count := page[headerSize:], uint64(order.Uint16(page[10:]))
	if count == manyFree {
		count, ids = order.Uint64(ids), ids[8:]
	}
	if order.Uint16(page[8:]) != freelistPage || count > uint64(len(ids)/8) {
		return errors.New("the list of free pages is not one")
	}
	for i := range count {
		if id := order.Uint64(ids[8*i:]); !v.claim(id) {
			return fmt.Errorf("page %d is free and in use", id)
		}
	}
	return nil
}
