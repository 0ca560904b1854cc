package stats

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/boltfile"
)

// DeadLetter is an event that the collector refused for good: a line of the dead-letter file.
type DeadLetter struct {
	ID      string          `json:"id"`
	Time    time.Time       `json:"time"` // when it was refused
	App     string          `json:"app_id"`
	Device  string          `json:"device"` // hash of the device, 16 hexadecimal digits
	Code    string          `json:"code"`   // the collector's
	Message string          `json:"message,omitempty"`
	Event   json.RawMessage `json:"event"` // a string holds what was not JSON, or a string
}

// letters are the dead letters: JSON Lines in two files. When the current one has half of the bytes, it takes the place of the
// previous one. The files are opened for each use: an operator may look at them, and take them away.
type letters struct {
	current, previous string
	most              int64 // bytes of each

	lines   [2]atomic.Int64 // of the two files
	size    [2]atomic.Int64
	dropped atomic.Uint64 // since the file of the spool was begun
	moved   atomic.Uint64

	mu   sync.Mutex // held while the files are written, which may wait for the committer
	torn bool       // the current file ends within a line
}

// openLetters counts the letters there are. One that cannot be read is counted, and written to, once it can.
func openLetters(stem string, maxBytes int64) (d *letters, err error) {
	d = &letters{current: stem + ".dead.jsonl", previous: stem + ".dead.1.jsonl", most: maxBytes / 2}
	for _, path := range []string{d.current, d.previous} {
		_ = os.Remove(path + leftoverSuffix) // of a Replay that a crash ended; it is not there, as a rule
	}
	return d, d.measureAll()
}

// measureAll counts the lines of both files.
func (d *letters) measureAll() (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, path := range []string{d.current, d.previous} {
		if e := d.measure(i, path); e != nil {
			err = errors.Join(err, fmt.Errorf("read dead letters: %w", e))
		}
	}
	return err
}

// measure counts the lines of a file.
func (d *letters) measure(i int, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		d.lines[i].Store(0)
		d.size[i].Store(0)
		if i == 0 {
			d.torn = false
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it is only read
	buf := make([]byte, 64<<10)
	var lines, size int64
	torn := false
	for {
		n, err := f.Read(buf)
		if n > 0 {
			torn = !bytes.HasSuffix(buf[:n], []byte("\n"))
		}
		lines += int64(bytes.Count(buf[:n], []byte("\n")))
		size += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	d.lines[i].Store(lines)
	d.size[i].Store(size)
	if i == 0 {
		d.torn = torn
	}
	return nil
}

// adopt begins to count the dropped where the file of the spool ended.
func (d *letters) adopt(dropped uint64) { d.dropped.Store(max(d.dropped.Load(), dropped)) }

func (d *letters) addTo(s *SpoolStats) {
	s.Dead = d.moved.Load()
	s.DeadEvents = d.lines[0].Load() + d.lines[1].Load()
	s.DeadBytes = d.size[0].Load() + d.size[1].Load()
	s.Dropped[reasons[reasonDeadLettersFull]] = d.dropped.Load()
}

// bury writes the dead of a batch, and syncs. Those that an earlier call wrote for the same batch are not written again. It
// returns how many it wrote.
func (d *letters) bury(b *Batch, verdicts []Verdict) (int, error) {
	var text []byte
	var seqs []uint64
	now := time.Now().UTC()
	for i, v := range verdicts {
		if v.Fate != Dead || slices.Contains(b.buried, b.Events[i].Seq) {
			continue
		}
		line, err := encodeLetter(newLetter(b, i, v, now))
		if err != nil {
			return 0, err
		}
		text = append(text, line...)
		seqs = append(seqs, b.Events[i].Seq)
	}
	if len(seqs) == 0 {
		return 0, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.writeLocked(text, int64(len(seqs))); err != nil {
		return 0, err
	}
	b.buried = append(b.buried, seqs...)
	d.moved.Add(uint64(len(seqs)))
	return len(seqs), nil
}

func newLetter(b *Batch, i int, v Verdict, now time.Time) *DeadLetter {
	return &DeadLetter{
		ID: objectKey(b, i), Time: now, App: b.App, Device: fmt.Sprintf("%016x", b.Events[i].Device),
		Code: v.Code, Message: v.Message, Event: b.Events[i].Data,
	}
}

// encodeLetter returns the line of a letter.
func encodeLetter(l *DeadLetter) ([]byte, error) {
	if trimmed := bytes.TrimSpace(l.Event); !isMember(trimmed) || trimmed[0] == '"' {
		text, err := json.Marshal(string(l.Event))
		if err != nil {
			return nil, err
		}
		l.Event = text
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(l)
	return b.Bytes(), err
}

// isMember reports that a text is JSON, and can be in an object: what nests as deep as encoding/json reads at most cannot.
func isMember(text []byte) bool {
	return json.Valid(text) && json.Valid(slices.Concat([]byte("["), text, []byte("]")))
}

// writeLocked appends lines to the current file, or to a new one. Lines that have no room in a file of their own are lost.
func (d *letters) writeLocked(text []byte, lines int64) error {
	if err := d.rotateLocked(int64(len(text))); err != nil {
		return err
	}
	if int64(len(text)) > d.most {
		if lines == 1 {
			d.dropped.Add(1)
			return nil
		}
		for line := range bytes.Lines(text) {
			if err := d.writeLocked(line, 1); err != nil {
				return err
			}
		}
		return nil
	}
	if d.torn {
		text = append([]byte("\n"), text...)
	}
	n, err := appendFile(d.current, text)
	if err != nil {
		d.torn = n > 0
		d.size[0].Add(int64(n))
		return err
	}
	if d.size[0].Load() == 0 {
		err = boltfile.SyncDir(filepath.Dir(d.current))
	}
	d.torn = false
	d.size[0].Add(int64(n))
	d.lines[0].Add(lines)
	return err
}

// rotateLocked makes room for n bytes.
func (d *letters) rotateLocked(n int64) error {
	if info, err := os.Stat(d.current); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if err != nil || info.Size() != d.size[0].Load() { // an operator was here
		if err := d.measure(0, d.current); err != nil {
			return err
		}
	}
	if size := d.size[0].Load(); size == 0 || size+n+1 <= d.most {
		return nil
	}
	if err := d.measure(1, d.previous); err != nil {
		return err
	}
	if err := os.Rename(d.current, d.previous); err != nil {
		return err
	}
	d.dropped.Add(uint64(d.lines[1].Load()))
	d.lines[1].Store(d.lines[0].Swap(0))
	d.size[1].Store(d.size[0].Swap(0))
	d.torn = false
	return boltfile.SyncDir(filepath.Dir(d.current))
}

// appendFile appends to a file and syncs it. Of what it cannot write it leaves n bytes behind.
func appendFile(path string, text []byte) (n int, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	if n, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	return n, errors.Join(err, f.Close())
}

// each calls f for the letters of both files, the oldest first, until it returns false.
func (d *letters) each(f func(DeadLetter) bool) error {
	files, err := d.files()
	if err != nil {
		return fmt.Errorf("read dead letters: %w", err)
	}
	defer func() {
		for _, file := range files {
			_ = file.Close() // it was only read
		}
	}()
	seen := map[string]struct{}{}
	for _, file := range files {
		for line, err := range readLines(file) {
			if err != nil {
				return fmt.Errorf("read dead letters: %w", err)
			}
			l, ok := decodeLetter(line)
			if _, twice := seen[l.ID]; !ok || twice {
				continue
			}
			seen[l.ID] = struct{}{}
			if !f(l) {
				return nil
			}
		}
	}
	return nil
}

// files opens both, so that what changes afterwards does not matter.
func (d *letters) files() (files []*os.File, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, path := range []string{d.previous, d.current} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, f.Close())
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// readLines yields the lines of a file with their ends.
func readLines(r io.Reader) func(yield func([]byte, error) bool) {
	return func(yield func([]byte, error) bool) {
		b := bufio.NewReaderSize(r, 64<<10)
		for {
			line, err := b.ReadBytes('\n')
			if len(line) > 0 && !yield(line, nil) {
				return
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					yield(nil, err)
				}
				return
			}
		}
	}
}

// decodeLetter reads a line. What is no letter, such as one that a crash cut off, is passed over.
func decodeLetter(line []byte) (l DeadLetter, ok bool) {
	if err := json.Unmarshal(line, &l); err != nil || l.ID == "" || len(l.Event) == 0 {
		return DeadLetter{}, false
	}
	return l, true
}

// entry is the event of a letter, on its way back into the spool.
func (l *DeadLetter) entry(now time.Time) (entry, bool) {
	device, err := strconv.ParseUint(l.Device, 16, 64)
	if err != nil || len(l.App) > maxAppID {
		return entry{}, false
	}
	data := []byte(l.Event)
	if data[0] == '"' {
		var text string
		if json.Unmarshal(data, &text) == nil {
			data = []byte(text)
		}
	}
	return entry{app: l.App, confirmed: true, device: device, time: now, data: data}, true
}

// replayChunk is how many bytes of letters go back into the spool at once.
const replayChunk = 1 << 20

// replay gives the letters that match to put, and takes those that it took out of the files.
func (d *letters) replay(match func(DeadLetter) bool, put func([]entry) error) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := map[string]struct{}{}
	for i, path := range []string{d.previous, d.current} {
		r := replay{match: match, put: put, seen: seen}
		if err = r.file(path); err != nil {
			err = fmt.Errorf("replay dead letters: %w", err)
		}
		n += r.taken
		if merr := d.measure(1-i, path); err == nil && merr != nil {
			err = fmt.Errorf("replay dead letters: %w", merr)
		}
		if err != nil {
			break
		}
	}
	return n, err
}

// replay is one over one file.
type replay struct {
	match func(DeadLetter) bool
	put   func([]entry) error
	seen  map[string]struct{}

	kept    *bufio.Writer
	entries []entry
	lines   [][]byte // of entries
	size    int
	taken   int
}

// file goes over a file, and leaves in it what was not taken.
func (r *replay) file(path string) error {
	from, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // it is only read
	to, err := os.OpenFile(path+leftoverSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	r.kept = bufio.NewWriter(to)
	refused, err := r.lineByLine(from)
	if err = errors.Join(err, r.kept.Flush(), to.Sync(), to.Close()); err == nil && r.taken > 0 {
		err = errors.Join(os.Rename(path+leftoverSuffix, path), boltfile.SyncDir(filepath.Dir(path)))
	} else {
		removeLeftover(path) // what was taken stays in the file as well
	}
	return errors.Join(refused, err)
}

// lineByLine takes what matches, and keeps the rest. Once put has refused something all is kept.
func (r *replay) lineByLine(from io.Reader) (refused, err error) {
	now := time.Now()
	for line, err := range readLines(from) {
		if err != nil {
			return refused, err
		}
		l, ok := decodeLetter(line)
		if ok && refused == nil && r.match(l) {
			if e, ok := l.entry(now); ok {
				if _, twice := r.seen[l.ID]; !twice {
					r.seen[l.ID] = struct{}{}
					r.entries = append(r.entries, e)
				}
				r.lines = append(r.lines, line)
				if r.size += len(line); r.size >= replayChunk {
					refused, err = r.flush()
				}
				if err != nil {
					return refused, err
				}
				continue
			}
		}
		if err := r.keep(line); err != nil {
			return refused, err
		}
	}
	if refused == nil {
		return r.flush()
	}
	return refused, nil
}

func (r *replay) keep(line []byte) error {
	if line[len(line)-1] != '\n' {
		line = append(line, '\n')
	}
	_, err := r.kept.Write(line)
	return err
}

// flush gives what was collected to put, or keeps it if put refuses.
func (r *replay) flush() (refused, err error) {
	if refused = r.put(r.entries); refused == nil {
		r.taken += len(r.entries)
	} else {
		for _, line := range r.lines {
			err = errors.Join(err, r.keep(line))
		}
	}
	r.entries, r.lines, r.size = nil, nil, 0
	return refused, err
}
