package cache_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capgo-edge/capgo-edge/cache"
	"github.com/capgo-edge/capgo-edge/cache/storetest"
)

// TestHealth: a disk that fails is told of once, left alone, tried every few seconds, and told of once when it works.
func TestHealth(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := reopenStore(t, dir)
		s.AwaitScan()
		began := time.Now()
		time.Sleep(time.Second)
		s.files.Fail(storetest.Full, storetest.Write)
		for _, name := range []string{"a", "b", "c"} {
			body := content(1, mib)
			if _, _, err := s.read(request(name, storetest.NewOrigin(body), body), 0); err != nil {
				t.Error(err)
			}
		}
		s.Wait()
		err, since := s.Health()
		if !errors.Is(err, storetest.Full) || since.Sub(began) != time.Second {
			t.Errorf("%v since %s", err, since.Sub(began))
		}
		time.Sleep(20 * time.Second) // tried in vain
		if err, again := s.Health(); err == nil || again != since {
			t.Errorf("%v since %s", err, again.Sub(began))
		}
		s.files.Fail(nil, storetest.Write)
		time.Sleep(5 * time.Second)
		if err, since := s.Health(); err != nil || since.Sub(began) > 30*time.Second {
			t.Errorf("%v since %s", err, since.Sub(began))
		}
		s.mu.Lock()
		told := slices.Clone(s.health)
		s.mu.Unlock()
		if len(told) != 2 || told[0] == nil || told[1] != nil {
			t.Errorf("told %v", told)
		}
		s.close()
	})
}

// TestFailuresBackOff: an object that is not the one expected is asked for less and less often, up to a limit.
func TestFailuresBackOff(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := reopenStore(t, dir)
		o := storetest.NewOrigin(content(1, kib))
		r := request("a", o, content(2, kib))
		var asked []time.Time
		for began := time.Now(); time.Since(began) < time.Hour; time.Sleep(100 * time.Millisecond) {
			gets := len(o.Gets())
			if _, _, err := s.read(r, 0); !errors.Is(err, cache.ErrMismatch) {
				t.Fatal(err)
			}
			s.Wait()
			if len(o.Gets()) > gets {
				asked = append(asked, time.Now())
			}
		}
		if n := len(asked); n < 20 || n > 70 {
			t.Errorf("asked %d times in an hour", n)
		}
		for i := 1; i < len(asked); i++ {
			most := min(3*time.Second<<min(i-1, 10), 3*time.Minute) + time.Second
			if waited := asked[i].Sub(asked[i-1]); waited < time.Second || waited > most {
				t.Errorf("wait %d is %s", i, waited)
			}
		}
		o.Set(func(o *storetest.Origin) { o.Replace(content(2, kib), `"2"`) })
		time.Sleep(4 * time.Minute)
		s.want(r, 0, content(2, kib), cache.Filled)
		s.close()
	})
}
