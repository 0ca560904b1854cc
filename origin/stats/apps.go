package stats

import (
	"container/heap"
	"encoding/binary"
	"slices"
)

// app is what the spool knows of an app that has events in it. It is in memory and in the file.
type app struct {
	number    uint64 // never used again
	id        string
	confirmed bool
	bytes     int64
	records   [Lanes]int64
	oldest    [Lanes]int64 // time of the first record in Unix milliseconds, 0 if there is none; in memory alone
}

func (a *app) key() []byte { return binary.BigEndian.AppendUint64(nil, a.number) }

func (a *app) total() (n int64) {
	for _, records := range a.records {
		n += records
	}
	return n
}

// apps are all of them, by number and by id, with what they sum up to.
type apps struct {
	byNumber map[uint64]*app
	byID     map[string]*app

	records, bytes   int64
	first            *app // has the oldest record; nil: it is to be looked for
	unconfirmed      int  // apps
	unconfirmedBytes int64
}

func newApps() apps { return apps{byNumber: map[uint64]*app{}, byID: map[string]*app{}} }

func (t *apps) put(a *app) {
	t.byNumber[a.number] = a
	t.byID[a.id] = a
	t.records += a.total()
	t.bytes += a.bytes
	if !a.confirmed {
		t.unconfirmed++
		t.unconfirmedBytes += a.bytes
	}
}

// remove forgets an app that has no records left.
func (t *apps) remove(a *app) {
	delete(t.byNumber, a.number)
	delete(t.byID, a.id)
	t.lookAgain(a)
	t.bytes -= a.bytes // pieces of damaged events
	if !a.confirmed {
		t.unconfirmed--
		t.unconfirmedBytes -= a.bytes
	}
}

// confirm notes that an app exists.
func (t *apps) confirm(a *app) {
	if !a.confirmed {
		a.confirmed = true
		t.unconfirmed--
		t.unconfirmedBytes -= a.bytes
	}
}

// count notes that n records of an app came or, with negative numbers, went.
func (t *apps) count(a *app, lane uint8, n, bytes int64) {
	a.records[lane] += n
	a.bytes += bytes
	t.records += n
	t.bytes += bytes
	if !a.confirmed {
		t.unconfirmedBytes += bytes
	}
}

// oldest is the time of the oldest record, 0 if there is none. It is looked for again only when the app that has it lost some,
// or another got an older one.
func (t *apps) oldest() int64 {
	if t.first == nil {
		for _, a := range t.byNumber {
			if at := a.oldestRecord(); at != 0 && (t.first == nil || at < t.first.oldestRecord()) {
				t.first = a
			}
		}
	}
	if t.first == nil {
		return 0
	}
	return t.first.oldestRecord()
}

func (a *app) oldestRecord() (oldest int64) {
	for _, at := range a.oldest {
		if at != 0 && (oldest == 0 || at < oldest) {
			oldest = at
		}
	}
	return oldest
}

// lookAgain notes that the first record of a lane of an app is another one. It may be older than those that came before it, if
// the clock was set back.
func (t *apps) lookAgain(a *app) {
	if t.first == a || t.first != nil && a.oldestRecord() != 0 && a.oldestRecord() < t.first.oldestRecord() {
		t.first = nil
	}
}

// oldestUnconfirmed are n unconfirmed apps, those that came first.
func (t *apps) oldestUnconfirmed(n int) []*app {
	var all []*app
	for _, a := range t.byNumber {
		if !a.confirmed {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b *app) int { return int(int64(a.number - b.number)) })
	return all[:min(n, len(all))]
}

// victims are apps by what they hold, most first; of equals, the one that came first.
type victims []*app

// victims returns the confirmed apps or the others. What it returns is a heap.
func (t *apps) victims(confirmed bool) *victims {
	var v victims
	for _, a := range t.byNumber {
		if a.confirmed == confirmed && a.total() > 0 {
			v = append(v, a)
		}
	}
	heap.Init(&v)
	return &v
}

// largest returns the app that is to lose records, and how many bytes of them before another one is the largest.
func (v *victims) largest() (a *app, lead int64) {
	if len(*v) == 0 {
		return nil, 0
	}
	a, lead = (*v)[0], (*v)[0].bytes
	for i := 1; i < min(3, len(*v)); i++ {
		lead = min(lead, a.bytes-(*v)[i].bytes)
	}
	return a, lead
}

// settle puts the largest in its place again after it lost records.
func (v *victims) settle() {
	if (*v)[0].total() == 0 {
		heap.Pop(v)
	} else {
		heap.Fix(v, 0)
	}
}

// skip takes the largest out: it has nothing to give.
func (v *victims) skip() { heap.Pop(v) }

func (v victims) Len() int      { return len(v) }
func (v victims) Swap(i, j int) { v[i], v[j] = v[j], v[i] }
func (v victims) Less(i, j int) bool {
	if v[i].bytes != v[j].bytes {
		return v[i].bytes > v[j].bytes
	}
	return v[i].number < v[j].number
}
func (v *victims) Push(x any) { *v = append(*v, x.(*app)) }

func (v *victims) Pop() any {
	last := len(*v) - 1
	a := (*v)[last]
	*v = (*v)[:last]
	return a
}
