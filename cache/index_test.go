package cache

import (
	"math"
	"slices"
	"testing"
)

func numbered(n byte) objectID { return objectID{name: [16]byte{n}} }

// fill puts objects of one byte each in the index, as fills do.
func (x *index) fill(ids ...byte) (victims []objectID) {
	for _, id := range ids {
		more, ok := x.reserve(1)
		if !ok {
			panic("no room")
		}
		victims = append(victims, more...)
		victims = append(victims, x.settle(numbered(id), &storedObject{size: 1}, 1)...)
	}
	return victims
}

func first(ids []objectID) (bytes []byte) {
	for _, id := range ids {
		bytes = append(bytes, id.name[0])
	}
	return bytes
}

// TestIndexClasses: what goes first, and by last use within a class.
func TestIndexClasses(t *testing.T) {
	x := newIndex(100)
	x.prefer(Key{Name: "a"}, []objectID{numbered(2), numbered(12), numbered(22)})
	x.fill(11, 12, 13)
	x.addScanned([]scannedObject{{numbered(1), 1, 0}, {numbered(2), 1, 0}, {numbered(3), 1, 0}, {numbered(4), 1, 0}, {numbered(12), 7, 0}})
	x.endScan()
	if e, _ := x.lookup(numbered(1)); e == nil || e.size != 1 { // asked for, so it is not old any more
		t.Fatal("1 is missing")
	}
	if objects, bytes, reserved := x.count(); objects != 7 || bytes != 7 || reserved != 0 {
		t.Errorf("%d objects, %d bytes, %d reserved", objects, bytes, reserved)
	}
	var order []byte
	for max := range int64(7) {
		order = append(order, first(x.retune(6-max))...)
	}
	if want := []byte{3, 4, 11, 13, 1, 12, 2}; !slices.Equal(order, want) {
		t.Errorf("they go in the order %v, want %v", order, want)
	}
}

// TestIndexPrefers: an object is preferred as long as one group wants it.
func TestIndexPrefers(t *testing.T) {
	x := newIndex(4)
	x.endScan()
	x.fill(1, 2, 3, 4)
	x.prefer(Key{Name: "a"}, []objectID{numbered(1)})
	x.prefer(Key{Name: "b"}, []objectID{numbered(1), numbered(1), numbered(2)})
	x.prefer(Key{Name: "a"}, nil)
	if got := first(x.fill(5, 6)); !slices.Equal(got, []byte{3, 4}) {
		t.Errorf("%v had to go", got)
	}
	x.prefer(Key{Name: "b"}, []objectID{numbered(2)})
	if got := first(x.fill(7)); !slices.Equal(got, []byte{5}) { // 1 was moved just now
		t.Errorf("%v had to go", got)
	}
	x.prefer(Key{Name: "b"}, nil)
	if len(x.wanted) != 0 || len(x.groups) != 0 {
		t.Errorf("left over: %v, %v", x.wanted, x.groups)
	}
	if got := first(x.fill(8, 9)); !slices.Equal(got, []byte{6, 1}) {
		t.Errorf("%v had to go", got)
	}
}

func TestIndexReserves(t *testing.T) {
	x := newIndex(10)
	x.fill(1, 2, 3)
	if victims, ok := x.reserve(8); !ok || len(victims) != 1 {
		t.Errorf("%v, %v", victims, ok)
	}
	for _, n := range []int64{3, 11, math.MaxInt64} {
		if _, ok := x.reserve(n); ok {
			t.Errorf("%d of 2", n)
		}
	}
	x.unreserve(8)
	if victims := x.free(1); len(victims) != 1 {
		t.Errorf("%v", victims)
	}
}

func TestCharge(t *testing.T) {
	for size, want := range map[int64]int64{0: 0, 1: 4096, 4096: 4096, 4097: 8192, math.MaxInt64: math.MaxInt64 - 4095} {
		if got := charge(size); got != want {
			t.Errorf("%d is charged as %d", size, got)
		}
	}
}

// TestIndexAdopts: what is found before the scan comes to it, unless it is gone.
func TestIndexAdopts(t *testing.T) {
	x := newIndex(100)
	e := &storedObject{size: 1}
	if _, maybe := x.lookup(numbered(1)); !maybe || !x.adopt(numbered(1), e) || !x.is(numbered(1), e) {
		t.Error("not adopted")
	}
	if x.adopt(numbered(1), &storedObject{size: 1}) {
		t.Error("adopted twice")
	}
	if x.removeEntry(numbered(1), &storedObject{}) || !x.removeEntry(numbered(1), e) {
		t.Error("removed what is another's, or not what is its own")
	}
	if _, maybe := x.lookup(numbered(1)); maybe || x.adopt(numbered(1), e) {
		t.Error("adopted what is gone")
	}
	if !x.removeEntry(numbered(2), nil) || x.removeEntry(numbered(2), nil) {
		t.Error("what is not scanned goes once")
	}
	x.removeScope(0)
	if _, maybe := x.lookup(numbered(3)); maybe {
		t.Error("there may be something of a scope that was purged")
	}
	x.endScan()
	if _, maybe := x.lookup(objectID{scope: 1}); maybe || x.adopt(objectID{scope: 1}, e) {
		t.Error("there may be something behind the scan")
	}
}
