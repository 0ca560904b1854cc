package cache

import (
	"encoding/hex"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// objectID stands for a Key: a name is known by 128 bits of its SHA-256, so a million objects take little memory.
type objectID struct {
	scope uint32 // number of the scope, in the order of first use
	name  [16]byte
}

func (id objectID) String() string { return hex.EncodeToString(id.name[:]) }

// storedObject is one object of the index. It stands for one file: what is stored anew gets a new one.
type storedObject struct {
	size   int64                        // what its file takes of the budget
	used   int64                        // when its file was last marked as used, unix seconds; guarded by index.mu
	record atomic.Pointer[objectRecord] // nil until first read
}

// class says how dear an object is. Objects of a lower class are evicted before any of a higher one.
type class int

const (
	scanned class = iota // found at start, not asked for since
	other
	preferred // a channel points at it
	classes
)

// index knows what is stored, by last use, within a budget of bytes. It touches no file: what falls out of it is returned
// to the caller, who removes it.
type index struct {
	mu       sync.Mutex
	lists    [classes]*simplelru.LRU[objectID, *storedObject] // guarded by mu, as all below; each object is in one of them
	wanted   map[objectID]int                                 // how many groups prefer it
	groups   map[Key][]objectID
	bytes    int64 // of all entries
	reserved int64 // promised to fills
	max      int64

	scanning   bool
	gone       map[objectID]bool // removed while the scan goes on, which may list it all the same
	goneScopes map[uint32]bool   // likewise
}

func newIndex(maxBytes int64) *index {
	x := &index{
		wanted: map[objectID]int{}, groups: map[Key][]objectID{}, max: maxBytes,
		scanning: true, gone: map[objectID]bool{}, goneScopes: map[uint32]bool{},
	}
	for c := range x.lists {
		x.lists[c], _ = simplelru.NewLRU[objectID, *storedObject](math.MaxInt, nil) // fails only for a size below 1
	}
	return x
}

func (x *index) getLocked(id objectID) *storedObject {
	for c := classes - 1; c >= 0; c-- {
		if e, ok := x.lists[c].Get(id); ok {
			if c == scanned {
				x.lists[c].Remove(id)
				x.lists[x.homeLocked(id)].Add(id, e)
			}
			return e
		}
	}
	return nil
}

// lookup returns the entry of id and marks it as used. Without an entry, maybe tells that the object may be stored all the
// same: the scan has not come to it.
func (x *index) lookup(id objectID) (e *storedObject, maybe bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e = x.getLocked(id)
	return e, e == nil && x.unscannedLocked(id)
}

func (x *index) unscannedLocked(id objectID) bool {
	return x.scanning && !x.gone[id] && !x.goneScopes[id.scope]
}

// adopt adds what was found before the scan came to it. It reports false if that is known already, or gone.
func (x *index) adopt(id objectID, e *storedObject) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.findLocked(id) != nil || !x.unscannedLocked(id) {
		return false
	}
	x.addLocked(id, e)
	return true
}

// is reports whether e is what is stored under id.
func (x *index) is(id objectID, e *storedObject) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.peekLocked(id) == e
}

func (x *index) peekLocked(id objectID) *storedObject {
	if list := x.findLocked(id); list != nil {
		e, _ := list.Peek(id)
		return e
	}
	return nil
}

// has reports whether id is stored, without marking it as used.
func (x *index) has(id objectID) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.findLocked(id) != nil
}

func (x *index) findLocked(id objectID) *simplelru.LRU[objectID, *storedObject] {
	for _, list := range x.lists {
		if list.Contains(id) {
			return list
		}
	}
	return nil
}

func (x *index) homeLocked(id objectID) class {
	if x.wanted[id] > 0 {
		return preferred
	}
	return other
}

// isScanning reports whether there may be objects that the index does not know of yet.
func (x *index) isScanning() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.scanning
}

// settle puts e in the place of what is there, for the bytes that were reserved for it. It returns what has to go: the
// budget may be smaller than it was when they were.
func (x *index) settle(id objectID, e *storedObject, reserved int64) (victims []objectID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.reserved -= reserved
	x.addLocked(id, e)
	return x.shrinkLocked(x.max)
}

func (x *index) addLocked(id objectID, e *storedObject) {
	x.removeLocked(id)
	delete(x.gone, id)
	x.lists[x.homeLocked(id)].Add(id, e)
	x.bytes += e.size
}

// addScanned adds what the scan found, oldest first, unless something newer is known. It takes few at a time, so that
// requests never wait long for the lock.
func (x *index) addScanned(found []scannedObject) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range found {
		if x.gone[f.id] || x.goneScopes[f.id.scope] || x.findLocked(f.id) != nil {
			continue
		}
		list := scanned
		if x.wanted[f.id] > 0 {
			list = preferred
		}
		x.lists[list].Add(f.id, &storedObject{size: f.size, used: f.used})
		x.bytes += f.size
	}
}

// endScan ends the scan.
func (x *index) endScan() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.scanning, x.gone, x.goneScopes = false, nil, nil
}

// remove takes id out and returns what was there.
func (x *index) remove(id objectID) *storedObject {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.removeLocked(id)
}

// removeEntry takes id out if e is still what is stored there: nil for what the scan has not come to.
func (x *index) removeEntry(id objectID, e *storedObject) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.peekLocked(id) != e || e == nil && !x.unscannedLocked(id) {
		return false
	}
	x.removeLocked(id)
	return true
}

func (x *index) removeLocked(id objectID) *storedObject {
	if x.scanning {
		x.gone[id] = true
	}
	list := x.findLocked(id)
	if list == nil {
		return nil
	}
	e, _ := list.Peek(id)
	list.Remove(id)
	x.bytes -= e.size
	return e
}

// removeScope takes out all objects of a scope.
func (x *index) removeScope(scope uint32) (removed []objectID, bytes int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.scanning {
		x.goneScopes[scope] = true
	}
	for _, list := range x.lists {
		for _, id := range list.Keys() {
			if id.scope != scope {
				continue
			}
			e, _ := list.Peek(id)
			bytes += e.size
			x.removeLocked(id)
			removed = append(removed, id)
		}
	}
	return removed, bytes
}

// reserve promises n bytes to a fill. It returns what has to go for them; ok is false if the budget is too small even
// without all that is stored.
func (x *index) reserve(n int64) (victims []objectID, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n > x.max-x.reserved {
		return nil, false
	}
	x.reserved += n
	return x.shrinkLocked(x.max), true
}

// unreserve takes back what reserve promised.
func (x *index) unreserve(n int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.reserved -= n
}

// free drops objects worth n bytes, as far as there are that many.
func (x *index) free(n int64) []objectID {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.shrinkLocked(x.bytes + x.reserved - n)
}

// retune changes the budget and returns what has to go for it.
func (x *index) retune(maxBytes int64) []objectID {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.max = maxBytes
	return x.shrinkLocked(maxBytes)
}

// shrink returns what has to go for the budget to hold.
func (x *index) shrink() []objectID {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.shrinkLocked(x.max)
}

// shrinkLocked drops the objects that were not used for longest, of the lowest class first, until no more than limit is
// taken.
func (x *index) shrinkLocked(limit int64) (victims []objectID) {
	for _, list := range x.lists {
		for x.bytes+x.reserved > limit {
			id, e, ok := list.RemoveOldest()
			if !ok {
				break
			}
			x.bytes -= e.size
			if x.scanning {
				x.gone[id] = true
			}
			victims = append(victims, id)
		}
	}
	return victims
}

// prefer sets which objects a group wants to be kept.
func (x *index) prefer(group Key, ids []objectID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range ids {
		x.wanted[id]++
	}
	for _, id := range x.groups[group] {
		if x.wanted[id]--; x.wanted[id] == 0 {
			delete(x.wanted, id)
			x.moveLocked(id, preferred, other)
		}
	}
	if x.groups[group] = ids; len(ids) == 0 {
		delete(x.groups, group)
	}
	for _, id := range ids {
		x.moveLocked(id, other, preferred)
		x.moveLocked(id, scanned, preferred)
	}
}

func (x *index) moveLocked(id objectID, from, to class) {
	if e, ok := x.lists[from].Peek(id); ok {
		x.lists[from].Remove(id)
		x.lists[to].Add(id, e)
	}
}

// count returns how many objects are stored, and what they and running fills take of the budget.
func (x *index) count() (objects int, bytes, reserved int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, list := range x.lists {
		objects += list.Len()
	}
	return objects, x.bytes, x.reserved
}

// entries is what every object takes of the budget.
func (x *index) entries() map[objectID]int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := map[objectID]int64{}
	for _, list := range x.lists {
		for _, id := range list.Keys() {
			e, _ := list.Peek(id)
			all[id] = e.size
		}
	}
	return all
}

// blockSize is the unit in which files are charged: a small file takes a block, whatever its length.
const blockSize = 4096

func charge(size int64) int64 {
	return (min(size, math.MaxInt64-blockSize) + blockSize - 1) / blockSize * blockSize
}

// objectPath is where an object is stored, below objectsDir.
func objectPath(scopeDir string, id objectID) string {
	name := id.String()
	return filepath.Join(scopeDir, name[:2], name)
}
