package stats_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/stats"
)

var dead = stats.Verdict{Fate: stats.Dead, Code: "invalid", Message: "no <such> thing"}

// bury has events of a device refused.
func (b *box) bury(app, device string, data ...string) {
	b.t.Helper()
	b.add(app, device, data...)
	for _, l := range b.lanes() {
		for batch := b.claim(l, all); batch != nil; {
			fates := make([]stats.Verdict, len(batch.Events))
			for i := range fates {
				fates[i] = dead
			}
			batch = b.settle(batch, all, fates...)
		}
	}
}

// letters are the dead letters.
func (b *box) letters() (letters []stats.DeadLetter) {
	b.t.Helper()
	err := b.DeadLetters(func(l stats.DeadLetter) bool {
		letters = append(letters, l)
		return true
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return letters
}

func events(letters []stats.DeadLetter) (data []string) {
	for _, l := range letters {
		data = append(data, string(l.Event))
	}
	return data
}

func (b *box) deadFile() string { return strings.TrimSuffix(b.options.Path, ".db") + ".dead.jsonl" }

func TestDeadLetters(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.bury("a", "d", `{"n": 1,
		"html": "<b>"}`, "no JSON\n", `{"n":12345678901234567890}`)
	text, err := os.ReadFile(b.deadFile())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %s", len(lines), text)
	}
	for i, event := range []string{`{"n":1,"html":"<b>"}`, `"no JSON\n"`, `{"n":12345678901234567890}`} {
		var l stats.DeadLetter
		if err := json.Unmarshal([]byte(lines[i]), &l); err != nil {
			t.Fatal(err)
		}
		if string(l.Event) != event || l.App != "a" || l.Code != "invalid" || l.Message != "no <such> thing" || l.ID == "" || l.Time.IsZero() ||
			l.Device != fmt.Sprintf("%016x", stats.HashDevice("d")) {
			t.Errorf("line %d: %s", i, lines[i])
		}
	}
	if st := b.Stats(); st.Dead != 3 || st.DeadEvents != 3 || st.DeadBytes != int64(len(text)) {
		t.Errorf("%+v", st)
	}
	b.reopen()
	if st := b.Stats(); st.Dead != 0 || st.DeadEvents != 3 || st.DeadBytes != int64(len(text)) {
		t.Errorf("after a restart: %+v", st)
	}
	first := 0
	if err := b.DeadLetters(func(stats.DeadLetter) bool { first++; return false }); err != nil || first != 1 {
		t.Errorf("%d letters, %v", first, err)
	}
}

// TestDeepLetters: an event that nests as deep as encoding/json reads is found again, though a letter has a level more.
func TestDeepLetters(t *testing.T) {
	for _, levels := range []int{64, 9_999, 10_000, 10_001} {
		b := newBox(t, stats.SpoolOptions{})
		event := strings.Repeat("[", levels) + strings.Repeat("]", levels)
		b.bury("a", "d", event)
		if st, listed := b.Stats(), len(b.letters()); st.DeadEvents != 1 || listed != 1 {
			t.Errorf("%d levels: %d letters are counted, and %d listed", levels, st.DeadEvents, listed)
		}
		if n, err := b.Replay(t.Context(), func(stats.DeadLetter) bool { return true }); n != 1 || err != nil {
			t.Errorf("%d levels: %d replayed, %v", levels, n, err)
		}
		wantTexts(t, b.claim(b.lanes()[0], all), event)
	}
}

func TestReplay(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.bury("a", "d", `1`, `2`)
	b.bury("b", "d", `3`)
	b.bury("a", "d", `{"n":4}`, "no JSON")
	ids := map[string]bool{}
	for _, l := range b.letters() {
		ids[l.ID] = true
	}
	if len(ids) != 5 {
		t.Errorf("ids %v", ids)
	}
	n, err := b.Replay(t.Context(), func(l stats.DeadLetter) bool { return l.App == "a" })
	if err != nil || n != 4 {
		t.Fatal(n, err)
	}
	if got := events(b.letters()); fmt.Sprint(got) != `[3]` {
		t.Errorf("left: %v", got)
	}
	if st := b.Stats(); st.DeadEvents != 1 || st.Events != 4 {
		t.Errorf("%+v", st)
	}
	b.reopen()
	if got := b.drain(); fmt.Sprint(got) != `map[a:[1 2 {"n":4} no JSON]]` {
		t.Errorf("delivered %v", got)
	}
	if n, err := b.Replay(t.Context(), func(stats.DeadLetter) bool { return false }); n != 0 || err != nil {
		t.Error(n, err)
	}
	if n, err := b.Replay(t.Context(), func(stats.DeadLetter) bool { return true }); n != 1 || err != nil {
		t.Error(n, err)
	}
	if st := b.Stats(); st.DeadEvents != 0 || st.DeadBytes != 0 {
		t.Errorf("%+v", st)
	}
	b.bury("a", "d", `5`)
	if got := events(b.letters()); fmt.Sprint(got) != `[3 5]` && fmt.Sprint(got) != `[5 3]` { // two lanes
		t.Errorf("left: %v", got)
	}
}

// TestReplayFails has the spool refuse what is put back.
func TestReplayFails(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.bury("a", "d", `1`, `2`)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n, err := b.Replay(ctx, func(stats.DeadLetter) bool { return true })
	if !errors.Is(err, context.Canceled) && n != 2 { // it may be on disk before anyone looks at ctx
		t.Error(n, err)
	}
	if got := len(b.letters()); got != 2-n {
		t.Errorf("%d letters are left, %d went back", got, n)
	}
	if _, err := os.Stat(b.deadFile() + ".new"); err == nil {
		t.Error("a new file was left behind")
	}
}

// TestTornLetters has a crash cut the last line off.
func TestTornLetters(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.bury("a", "d", `1`, `2`)
	for range 2 {
		b.close()
		text, err := os.ReadFile(b.deadFile())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b.deadFile(), text[:len(text)-5], 0o600); err != nil {
			t.Fatal(err)
		}
		b.open()
		if got := events(b.letters()); fmt.Sprint(got) != `[1]` {
			t.Errorf("letters: %v", got)
		}
		b.bury("a", "d", `3`)
		if got := events(b.letters()); fmt.Sprint(got) != `[1 3]` {
			t.Errorf("letters: %v", got)
		}
	}
	if n, err := b.Replay(t.Context(), func(l stats.DeadLetter) bool { return string(l.Event) == `1` }); n != 1 || err != nil {
		t.Error(n, err)
	}
	if got := events(b.letters()); fmt.Sprint(got) != `[3]` {
		t.Errorf("letters: %v", got)
	}
}

// TestDeadLettersBound refuses more than the file takes.
func TestDeadLettersBound(t *testing.T) {
	const most = 64 * kib
	b := newBox(t, stats.SpoolOptions{DeadBytes: most})
	for i := range 200 {
		b.bury("a", "d", numbered{N: i, Fill: fill(1000)}.json(), numbered{N: i, Fill: fill(1000)}.json())
		st := b.Stats()
		if st.DeadBytes > most || st.DeadEvents+int64(st.Dropped["dead_letters_full"]) != int64(2*i+2) {
			t.Fatalf("%+v", st)
		}
	}
	st := b.Stats()
	if st.DeadEvents < 30 || st.Dead != 400 {
		t.Errorf("%+v", st)
	}
	letters := b.letters()
	if len(letters) != int(st.DeadEvents) || !strings.Contains(string(letters[len(letters)-1].Event), `"n":199`) {
		t.Errorf("%d letters", len(letters))
	}
	var n []int
	for _, l := range letters {
		var e numbered
		if err := json.Unmarshal(l.Event, &e); err != nil {
			t.Fatal(err)
		}
		n = append(n, e.N)
	}
	if !slices.IsSorted(n) {
		t.Errorf("out of order: %v", n)
	}
	b.bury("a", "d", `"`+fill(40*kib)+`"`) // alone too large
	if now := b.Stats(); now.Dropped["dead_letters_full"] <= st.Dropped["dead_letters_full"] || now.DeadBytes > most {
		t.Errorf("%+v", now)
	}
	b.add("a", "d", "{}")
	want := b.Stats().Dropped["dead_letters_full"]
	b.reopen()
	if got := b.Stats().Dropped["dead_letters_full"]; got != want {
		t.Errorf("%d counted, after a restart %d", want, got)
	}
}

// TestLettersTakenAway has an operator move the file.
func TestLettersTakenAway(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.bury("a", "d", `1`)
	if err := os.Remove(b.deadFile()); err != nil {
		t.Fatal(err)
	}
	if got := b.letters(); len(got) != 0 {
		t.Error(got)
	}
	b.bury("a", "d", `2`)
	if got := events(b.letters()); fmt.Sprint(got) != `[2]` || b.Stats().DeadEvents != 1 {
		t.Error(got, b.Stats())
	}
}

// TestLettersFail has no dead letter be written: the batch stays.
func TestLettersFail(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.add("a", "d", `1`, `2`)
	batch := b.claim(b.lanes()[0], all)
	if err := os.Mkdir(b.deadFile(), 0o700); err != nil {
		t.Fatal(err)
	}
	refused := []stats.Verdict{dead, {Fate: stats.Delivered}}
	if _, err := b.Settle(t.Context(), batch, refused, all, nil); !errors.Is(err, stats.ErrStillTaking) {
		t.Fatalf("settled, with the dead letter nowhere: %v", err)
	}
	b.add("b", "d", `3`) // which does not end what is reported
	if got := b.reports.list(); len(got) != 1 || !errors.Is(got[0], stats.ErrStillTaking) {
		t.Errorf("reported %v", got)
	}
	b.wantStats(3, nil)
	if err := os.Remove(b.deadFile()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time its answer got lost
		if _, err := b.Settle(t.Context(), batch, refused, all, nil); err != nil {
			t.Fatal(err)
		}
	}
	b.wantStats(1, nil)
	if got := events(b.letters()); fmt.Sprint(got) != `[1]` {
		t.Error(got)
	}
	if got := b.reports.list(); len(got) != 2 || got[1] != nil {
		t.Errorf("reported %v", got)
	}
}

// TestLettersUnreadable has the dead letters be unreadable at the start: the spool opens, tells of it, and loses none.
func TestLettersUnreadable(t *testing.T) {
	b := newBox(t, stats.SpoolOptions{})
	b.bury("a", "d", `1`)
	b.close()
	aside := b.deadFile() + ".aside"
	if err := os.Rename(b.deadFile(), aside); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.deadFile(), 0o700); err != nil {
		t.Fatal(err)
	}
	b.open()
	again := b.options
	again.Report = func(err error) { t.Errorf("a spool that cannot be opened reports %v", err) }
	if _, err := stats.OpenSpool(again); !errors.Is(err, stats.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	b.add("a", "d", `2`)
	if got := b.reports.list(); len(got) != 1 || !errors.Is(got[0], stats.ErrStillTaking) || !strings.Contains(got[0].Error(), b.deadFile()) {
		t.Errorf("reported %v", got)
	}
	batch := b.claim(b.lanes()[0], all)
	if _, err := b.Settle(t.Context(), batch, []stats.Verdict{dead}, all, nil); !errors.Is(err, stats.ErrStillTaking) {
		t.Errorf("settled, with the dead letter nowhere: %v", err)
	}
	if err := errors.Join(os.Remove(b.deadFile()), os.Rename(aside, b.deadFile())); err != nil {
		t.Fatal(err)
	}
	b.settle(batch, all, dead)
	if got := events(b.letters()); fmt.Sprint(got) != `[1 2]` || b.Stats().DeadEvents != 2 {
		t.Error(got, b.Stats())
	}
	if got := b.reports.list(); len(got) != 2 || got[1] != nil {
		t.Errorf("reported %v", got)
	}
}

// TestLettersReadableAgain: dead letters that could not be read at the start are counted once they can be.
func TestLettersReadableAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, stats.SpoolOptions{})
		if err := os.Mkdir(b.deadFile(), 0o700); err != nil {
			t.Fatal(err)
		}
		b.reopen()
		time.Sleep(time.Hour + time.Second) // between two tries
		if got := b.reports.list(); len(got) != 1 || !errors.Is(got[0], stats.ErrStillTaking) {
			t.Errorf("reported %v", got)
		}
		if err := errors.Join(os.Remove(b.deadFile()), os.WriteFile(b.deadFile(), []byte("{}\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if got := b.reports.list(); len(got) != 2 || got[1] != nil || b.Stats().DeadEvents != 1 {
			t.Errorf("reported %v, %+v", got, b.Stats())
		}
		b.close()
	})
}
