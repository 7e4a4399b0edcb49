package limit

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	goodSecond = second{commit: 10 * time.Millisecond, wait: time.Millisecond, fill: 0.01, offered: 1000, taken: 1000}
	badSecond  = second{commit: 3 * time.Second, wait: time.Millisecond, fill: 0.01, offered: 1000, taken: 1000}
)

func TestController(t *testing.T) {
	t.Parallel()
	fresh := func() controller { return newController(time.Second, time.Second, 100) }
	free := func(c controller) bool { return math.IsInf(c.rate, 1) }
	trouble := func(c *controller, s second) {
		for range patience {
			c.step(s)
		}
	}

	t.Run("LimitsNothingWithoutTrouble", func(t *testing.T) {
		t.Parallel()
		c := fresh()
		for range 100 {
			c.step(goodSecond)
		}
		c.step(second{}) // nobody submits anything
		if !free(c) {
			t.Errorf("rate is %v", c.rate)
		}
	})
	for name, s := range map[string]second{
		"SlowCommits":    {commit: 1100 * time.Millisecond, offered: 1000, taken: 1000},
		"LongWaits":      {wait: 1100 * time.Millisecond, offered: 1000, taken: 1000},
		"AFullBuffer":    {fill: 0.9, offered: 1000, taken: 1000},
		"AStuckDatabase": {fill: 0.1, idle: true, offered: 1000, taken: 1000},
	} {
		t.Run(name+"LowerTheRate", func(t *testing.T) {
			t.Parallel()
			c := fresh()
			trouble(&c, s)
			if c.rate != 800 {
				t.Errorf("rate is %v after 1,000 in a bad second", c.rate)
			}
			last := c.rate
			for range 20 {
				s.taken = min(s.offered, c.rate)
				c.step(s)
				if c.rate > last || c.rate < last*0.6 && c.rate > 100 {
					t.Errorf("rate went from %v to %v", last, c.rate)
				}
				last = c.rate
			}
			if c.rate != 100 {
				t.Errorf("rate is %v after 20 bad seconds, not at its floor", c.rate)
			}
		})
	}
	t.Run("AMomentOfTroubleLimitsNothing", func(t *testing.T) {
		t.Parallel()
		c := fresh()
		for range 100 {
			for range patience - 1 {
				c.step(badSecond)
			}
			c.step(goodSecond)
		}
		if !free(c) {
			t.Errorf("rate is %v", c.rate)
		}
	})
	t.Run("RecoversForWhatIsAskedForNotForWhatWasTakenAtTheStart", func(t *testing.T) {
		t.Parallel()
		c := fresh()
		s := badSecond
		s.taken = 10 // the trouble came with the first events
		trouble(&c, s)
		seconds := 0
		for ; !free(c) && seconds < 100; seconds++ {
			s = goodSecond
			s.offered = 5000
			s.taken = min(s.offered, c.rate)
			c.step(s)
		}
		if seconds > 30 {
			t.Errorf("free again after %d good seconds", seconds)
		}
	})
	t.Run("StaysWhereItIsBetweenGoodAndBad", func(t *testing.T) {
		t.Parallel()
		c := fresh()
		trouble(&c, badSecond)
		before := c.rate
		c.step(second{commit: 900 * time.Millisecond, offered: 1000, taken: 800})
		if c.rate != before {
			t.Errorf("rate went from %v to %v", before, c.rate)
		}
	})
	t.Run("RecoversByEqualStepsOnceItKnowsWhereTroubleComesBack", func(t *testing.T) {
		t.Parallel()
		c := fresh()
		trouble(&c, badSecond)
		c.step(goodSecond)
		found := c.rate
		c.step(badSecond)
		for n := 1; ; n++ {
			before := c.rate
			s := goodSecond
			s.taken = min(s.offered, c.rate)
			c.step(s)
			if free(c) {
				if n < 5 || n > 40 {
					t.Errorf("free again after %d good seconds", n)
				}
				return
			}
			if step := c.rate - before; math.Abs(step-increase*found) > 1e-6 {
				t.Fatalf("a step of %v", step)
			}
			if n > 100 {
				t.Fatalf("rate is %v after 100 good seconds", c.rate)
			}
		}
	})
	t.Run("AlwaysSettlesForAnyDatabase", func(t *testing.T) {
		t.Parallel()
		// A database that does so many a second and slows down beyond that; the
		// buffer holds two seconds' worth.
		rapid.Check(t, func(t *rapid.T) {
			capacity := rapid.Float64Range(200, 20_000).Draw(t, "what the database does")
			offered := capacity * rapid.Float64Range(1.2, 10).Draw(t, "times as much is asked for")
			c := fresh()
			backlog, served, waits := 0.0, 0.0, 0
			for n := range 300 {
				taken := min(offered, c.rate, 2*capacity-backlog+capacity)
				backlog += taken
				done := min(backlog, capacity)
				backlog -= done
				wait := time.Duration(backlog / capacity * float64(time.Second))
				if n >= 60 {
					served += done
					if wait > 1500*time.Millisecond {
						waits++
					}
				}
				c.step(second{
					commit: 100 * time.Millisecond, wait: wait, fill: backlog / (2 * capacity),
					offered: offered, taken: taken,
				})
			}
			if served < 0.8*240*capacity {
				t.Errorf("served %.0f of %.0f", served, 240*capacity)
			}
			if waits > 80 { // a third: each time that the limit is lifted too early costs three seconds
				t.Errorf("waits were long in %d of 240 seconds", waits)
			}
		})
	})
}

func TestAdaptive(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_800_000_000, 0)
	slow := func(t *testing.T, rate float64) *Adaptive {
		t.Helper()
		a := NewAdaptive(AdaptiveConfig{Load: func() Load { return Load{} }})
		a.control.rate, a.filled = rate, began
		return a
	}
	// offer has tenants ask so many times, spread over a second.
	offer := func(a *Adaptive, from time.Time, asks map[string]int) map[string]int {
		taken := map[string]int{}
		for ms := range 1000 {
			for tenant, n := range asks {
				for k := ms * n / 1000; k < (ms+1)*n/1000; k++ {
					if ok, _ := a.admit(from.Add(time.Duration(ms)*time.Millisecond), tenant, false); ok {
						taken[tenant]++
					}
				}
			}
		}
		return taken
	}

	t.Run("TakesAtTheRate", func(t *testing.T) {
		t.Parallel()
		a := slow(t, 500)
		total := 0
		for n := range 10 {
			from := began.Add(time.Duration(n) * time.Second)
			total += offer(a, from, map[string]int{"one": 2000})["one"]
			a.active = len(a.tenants)
			clear(a.tenants)
		}
		if total < 4500 || total > 5600 {
			t.Errorf("took %d in 10 s at 500 a second", total)
		}
	})
	t.Run("AFloodCostsOnlyItsSender", func(t *testing.T) {
		t.Parallel()
		a := slow(t, 500)
		for n := range 5 {
			from := began.Add(time.Duration(n) * time.Second)
			taken := offer(a, from, map[string]int{"flood": 20_000, "quiet": 100})
			if n > 0 && taken["quiet"] != 100 {
				t.Errorf("in second %d %d of 100 were taken from the quiet one, and %d from the other", n, taken["quiet"], taken["flood"])
			}
			a.active = len(a.tenants)
			clear(a.tenants)
		}
	})
	t.Run("ABatchIsNotDividedAndIsMadeUpFor", func(t *testing.T) {
		t.Parallel()
		a := slow(t, 100)
		now := began.Add(time.Second)
		for n := range 300 {
			if ok, _ := a.admit(now, "one", n > 0); !ok {
				t.Fatalf("item %d was refused", n)
			}
		}
		a.active = 1
		if ok, _ := a.admit(now.Add(time.Second), "one", false); ok {
			t.Error("taken again after a second")
		}
		if ok, _ := a.admit(now.Add(4*time.Second), "two", false); !ok {
			t.Error("not taken after four")
		}
	})
	t.Run("GoesByItsLoad", func(t *testing.T) {
		t.Parallel()
		var load Load
		a := NewAdaptive(AdaptiveConfig{Load: func() Load { return load }})
		for range 1000 {
			if ok, _ := a.Admit("one", false); !ok {
				t.Fatal("refused without trouble")
			}
		}
		for range patience {
			load.Commits, load.CommitTime = load.Commits+2, load.CommitTime+4*time.Second
			a.runOnce(time.Now())
		}
		if rate := a.Rate(); rate != 512 { // four fifths of what is left of 1,000 after two more seconds
			t.Errorf("rate is %v", rate)
		}
		refused := 0
		for range 1000 {
			if ok, rate := a.Admit("one", false); !ok && rate == 512 {
				refused++
			}
		}
		if refused == 0 {
			t.Error("nothing was refused")
		}
	})
}
