package caddymodule

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// spoolLabel says for whom the events of a spool are. It stands beside the spool, for the day on which no site uses that any
// more: its name is made of the site's origin and of the collector's whole address, and each of them may change while events
// wait. It tells of the address what is no secret; the rest are digests.
type spoolLabel struct {
	Collector string `json:"collector"` // its address, without a query
	Origin    string `json:"origin"`
	Address   string `json:"address"`
	Headers   string `json:"headers"`
	Heir      string `json:"heir,omitempty"` // the spool of the site that has taken the place; empty while it is a site's own
}

const labelSuffix = ".collector.json"

func labelOf(scope string, t *tuning) spoolLabel {
	digest := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:16])
	}
	headers, _ := json.Marshal(t.headers) // in the order of their names
	address := sameAddress(t.address)
	return spoolLabel{withoutQuery(address), digest(scope), digest(address), digest(string(headers)), ""}
}

// isHeir reports whether a site may send the events of a spool that is not its own, and how much the two have in common. Of
// the origin, the address and the headers one may be another: a secret that was changed, or an origin that has moved. With two
// it may be the site of somebody else, whose credentials would go with these events.
func (l *spoolLabel) isHeir(of *spoolLabel) (alike int, ok bool) {
	if l.Collector != of.Collector {
		return 0, false
	}
	for _, same := range []bool{l.Origin == of.Origin, l.Address == of.Address, l.Headers == of.Headers} {
		if same {
			alike++
		}
	}
	return alike, alike >= 2
}

func (r *runtime) readLabel(name string) (l spoolLabel) {
	raw, err := os.ReadFile(r.spoolPath(name, labelSuffix))
	if err != nil || json.Unmarshal(raw, &l) != nil {
		return spoolLabel{} // nobody's: a release before the labels wrote the spool
	}
	return l
}

// writeLabel notes for whom a spool is, unless that is what is noted.
func (r *runtime) writeLabel(name string, l spoolLabel) {
	if r.readLabel(name) == l {
		return
	}
	path := r.spoolPath(name, labelSuffix)
	raw, err := json.Marshal(l)
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path+".new", raw, 0o600), os.Rename(path+".new", path))
	}
	subject, where := "label "+name, []zap.Field{zap.String(fieldSpool, name), zap.String(fieldStorage, r.dir)}
	if err != nil {
		r.faults.fault(subject, "failing", "it cannot be noted for whom a spool is; its events would stay if the site's origin were changed",
			append(where, zap.Error(err))...)
		return
	}
	r.faults.well(subject, "it can be noted for whom a spool is", where...)
}

// seekHeirs has what waits in spools that no site adds to any more delivered, each by a site that has taken the place of the one
// before, and warns of those for which there is none.
func (r *runtime) seekHeirs() {
	r.heirs.Lock()
	defer r.heirs.Unlock()
	sites := r.labels()
	if sites == nil {
		return // the edge stops
	}
	fresh := map[string]bool{} // sites that were not there, or not like this, the last time: only they can have taken a place
	for name, l := range sites {
		fresh[name] = r.readLabel(name) != l.spoolLabel
	}
	files, _ := os.ReadDir(filepath.Join(r.dir, spoolsDir)) // what cannot be read is opened, and reported, elsewhere
	for _, file := range files {
		if name, isSpool := strings.CutSuffix(file.Name(), spoolSuffix); isSpool {
			r.seekHeir(name, sites, fresh)
		}
	}
	for name, l := range sites { // at last: until then a crash leaves them fresh
		r.writeLabel(name, l.spoolLabel)
	}
}

// labelledTuning is a collector of a site, and for whom its spool is.
type labelledTuning struct {
	spoolLabel
	tuning
}

// labels are those of the spools of the configuration in force, by their names; nil if there is none.
func (r *runtime) labels() map[string]labelledTuning {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.apps) == 0 {
		return nil
	}
	all := map[string]labelledTuning{}
	for site := range r.sites {
		if site.app == r.apps[len(r.apps)-1] {
			for _, d := range site.statistics.destinations {
				all[d.outlet.name] = labelledTuning{labelOf(d.outlet.scope, &d.tuning), d.tuning}
			}
		}
	}
	return all
}

// seekHeir decides about a spool.
func (r *runtime) seekHeir(name string, sites map[string]labelledTuning, fresh map[string]bool) {
	label := r.readLabel(name)
	heir := heirOf(&label, candidates(name, label.Heir, sites, fresh))
	subject, where := "orphan "+name, []zap.Field{
		zap.String(fieldCollector, label.Collector), zap.String(fieldSpool, name), zap.String(fieldStorage, r.dir),
	}
	if heir != nil { // of which one thing may be another next time, even if the spool is still being closed by then
		r.writeLabel(name, heir.spoolLabel)
	}
	o, begun := r.inherit(name, heir)
	switch {
	case o == nil && heir == nil:
		r.faults.fault(subject, "orphan", "a spool may hold statistics for a collector that no site names any more; "+
			"configure it again to have them delivered, or delete the file", where...)
		return
	case o == nil: // it is about to be closed, which seeks again
		return
	case begun:
		r.faults.log.Load().Info("what waits in the spool of a site before is delivered by the one that has taken its place", where...)
	}
	r.faults.well(subject, "a site names the collector of a spool again", where...)
	if heir != nil {
		o.drain(heir)
	}
}

// candidates are the sites that may be the heir of a spool: the one whose spool it is, those that are fresh, and the heir there
// was. One that was there before, as it is, has taken nobody's place: it is another tenant of the same collector, maybe.
func candidates(name, before string, sites map[string]labelledTuning, fresh map[string]bool) (all []labelledTuning) {
	for _, site := range slices.Sorted(maps.Keys(sites)) {
		l := sites[site]
		if site != name {
			l.Heir = site
		}
		if site == name || fresh[site] || site == before {
			all = append(all, l)
		}
	}
	return all
}

// inherit returns who empties a spool: a site that uses it, or its heir, and whether that has just begun. It is nil if there is
// no heir, and for a spool that is about to be closed.
func (r *runtime) inherit(name string, heir *labelledTuning) (o *outlet, begun bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o = r.outlets[name]
	switch {
	case o != nil && o.users == 0:
		return nil, false
	case o != nil && (!o.orphan || heir != nil):
		return o, false
	case heir == nil:
		if o != nil {
			o.releaseLocked()
		}
		return nil, false
	}
	o = r.addOutletLocked(name, "", heir.Collector)
	o.orphan, o.users, o.tuning = true, 1, heir.tuning
	time.AfterFunc(orphanCheck, o.checkSpent)
	return o, true
}

// orphanCheck is how often it is looked whether an orphan is empty.
const orphanCheck = time.Second

// drain has the events of an orphan delivered as its heir's are. Nothing is added to it, so its size is no bound that it must
// come down to. A spool that a site uses is left to that.
func (o *outlet) drain(heir *labelledTuning) {
	t := heir.tuning
	if info, err := os.Stat(o.runtime.spoolPath(o.name, spoolSuffix)); err == nil {
		t.maxSpool = max(t.maxSpool, info.Size())
	}
	o.runtime.mu.Lock()
	orphan := o.orphan
	if orphan {
		o.use(t)
	}
	o.runtime.mu.Unlock()
	if orphan {
		o.begin(t)
	}
}

// checkSpent closes an orphan that holds nothing any more, dead letters included, and has its files removed. While not all is
// well with them nobody knows what they hold.
func (o *outlet) checkSpent() {
	open := o.open.Load()
	if open == nil {
		o.tuningMu.Lock()
		t := o.tuning
		o.tuningMu.Unlock()
		o.begin(t)
	}
	o.runtime.mu.Lock()
	defer o.runtime.mu.Unlock()
	if !o.orphan || o.users == 0 { // it is a site's again, or closed
		return
	}
	if open != nil {
		if left := open.spool.Stats(); left.Events == 0 && left.DeadEvents == 0 && o.trouble.Load() == nil {
			o.spent = true
			o.releaseLocked()
			return
		}
	}
	time.AfterFunc(orphanCheck, o.checkSpent)
}

// remove deletes the files of an orphan that was closed. Its label is the last, in case the rest fails.
func (o *outlet) remove() error {
	for _, suffix := range []string{spoolSuffix, labelSuffix} {
		if err := os.Remove(o.runtime.spoolPath(o.name, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("an empty spool cannot be removed: %w", err)
		}
	}
	o.runtime.faults.log.Load().Info("the spool of a site before is empty, and removed", o.fields()...)
	return nil
}

// heirOf chooses the site that is most like the one before. Where several are, what they send must be the same.
func heirOf(l *spoolLabel, sites []labelledTuning) (heir *labelledTuning) {
	best := 0
	for i := range sites {
		switch alike, ok := sites[i].isHeir(l); {
		case !ok || alike < best:
		case alike > best:
			heir, best = &sites[i], alike
		case heir != nil && !heir.reaches(&sites[i].tuning):
			heir = nil
		}
	}
	return heir
}
