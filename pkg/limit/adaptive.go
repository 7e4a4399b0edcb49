package limit

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Defaults of AdaptiveConfig.
const (
	DefaultMaxCommit = time.Second
	DefaultMaxWait   = time.Second
	DefaultMinRate   = 100
)

const (
	adaptInterval = time.Second
	// maxFill is how full the buffer may be.
	maxFill = 0.8
	// decrease is what is left of the rate after a second of overload.
	decrease = 0.8
	// patience is how many bad seconds in a row it takes for a limit to begin: a
	// checkpoint or a busy moment of the host is no reason to turn anybody away.
	patience = 3
	// growth is what the rate is multiplied with in a good second until trouble
	// comes back for the first time: until then nobody knows what can be taken.
	growth = 1.25
	// increase is what is added to the rate in a good second from then on, as a part
	// of the rate at which trouble last came back.
	increase = 0.05
	// calm is how far below its bounds everything must be in a good second.
	calm = 0.7
	// maxDebtSeconds of the rate is the most that is made up for later.
	maxDebtSeconds = 10
	// roomToSpare is how many times what is asked for the rate must be to be
	// lifted.
	roomToSpare = 1.5
)

// AdaptiveConfig is what an Adaptive needs.
type AdaptiveConfig struct {
	// Load reads the present load.
	Load func() Load
	// MaxCommit is how long a commit may take on average, and MaxWait how long an
	// event may wait for one, before less is taken; 0: the default.
	MaxCommit, MaxWait time.Duration
	// MinRate is what is taken at least, in events a second; 0: the default.
	MinRate float64
	// Registerer receives the metrics. nil: there are none.
	Registerer prometheus.Registerer
}

// Load is what tells how busy a process is. All but Fill only ever grow.
type Load struct {
	Commits    uint64
	CommitTime time.Duration // of all commits together
	Waits      uint64
	WaitTime   time.Duration // of all events together, for a committer
	Fill       float64       // how much of the buffer is in use: 0 to 1
}

// Adaptive lowers the rate at which this process takes events, a fifth each
// second from the third on, while commits are slow, events wait long or the buffer fills up; and
// raises it again by equal steps when all of that has passed. While there is no
// trouble there is no limit. A tenant that takes less than an equal share of the
// rate is not limited, so that the cost of a flood is its own.
//
// Its methods are safe for concurrent use.
type Adaptive struct {
	load func() Load

	mu      sync.Mutex
	control controller // guarded by mu, as is what follows
	last    Load
	tokens  float64
	filled  time.Time      // when tokens were last added
	offered int            // events asked for in this second
	taken   int            // events taken in this second
	tenants map[string]int // of each tenant
	active  int            // tenants in the last second
}

// NewAdaptive makes an Adaptive. It starts nothing: until Run runs there is no
// limit.
func NewAdaptive(cfg AdaptiveConfig) *Adaptive {
	if cfg.MaxCommit == 0 {
		cfg.MaxCommit = DefaultMaxCommit
	}
	if cfg.MaxWait == 0 {
		cfg.MaxWait = DefaultMaxWait
	}
	if cfg.MinRate == 0 {
		cfg.MinRate = DefaultMinRate
	}
	a := &Adaptive{
		load:    cfg.Load,
		control: newController(cfg.MaxCommit, cfg.MaxWait, cfg.MinRate),
		filled:  time.Now(),
		tenants: make(map[string]int),
	}
	registerAdaptive(cfg.Registerer, a)
	return a
}

// Admit reports whether to take an event of this tenant now, and the rate, in
// events a second, that is taken at the moment. One that follows another that was
// taken, and must be stored with it, is always taken; those that come later make
// up for it.
func (a *Adaptive) Admit(tenant string, follows bool) (ok bool, rate float64) {
	return a.admit(time.Now(), tenant, follows)
}

func (a *Adaptive) admit(now time.Time, tenant string, follows bool) (ok bool, rate float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.offered++
	rate = a.control.rate
	if !math.IsInf(rate, 1) {
		a.tokens = min(a.tokens+rate*now.Sub(a.filled).Seconds(), max(1, rate/10))
		a.filled = now
		equal := rate / float64(max(1, a.active))
		if !follows && a.tokens < 1 && float64(a.tenants[tenant]) >= equal {
			return false, rate
		}
		// Those below their share may overdraw it; the others make up for that.
		a.tokens = max(a.tokens-1, -maxDebtSeconds*rate)
	}
	a.tenants[tenant]++
	a.taken++
	return true, rate
}

// Rate is how many events a second are taken; infinite without a limit.
func (a *Adaptive) Rate() float64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.control.rate
}

// Run adapts the rate each second until ctx ends. It returns nil.
func (a *Adaptive) Run(ctx context.Context) error {
	a.mu.Lock()
	a.last = a.load()
	a.mu.Unlock()
	ticker := time.NewTicker(adaptInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			a.runOnce(now)
		}
	}
}

// runOnce ends a second.
func (a *Adaptive) runOnce(now time.Time) {
	load := a.load()
	a.mu.Lock()
	defer a.mu.Unlock()
	free := math.IsInf(a.control.rate, 1)
	a.control.step(second{
		commit:  mean(load.CommitTime-a.last.CommitTime, load.Commits-a.last.Commits),
		wait:    mean(load.WaitTime-a.last.WaitTime, load.Waits-a.last.Waits),
		fill:    load.Fill,
		idle:    load.Commits == a.last.Commits,
		offered: float64(a.offered),
		taken:   float64(a.taken),
	})
	if free {
		a.tokens, a.filled = 0, now
	}
	a.last = load
	a.active = len(a.tenants)
	a.offered, a.taken = 0, 0
	clear(a.tenants)
}

func mean(total time.Duration, n uint64) time.Duration {
	if n == 0 {
		return 0
	}
	return total / time.Duration(n)
}

// second is what happened in one.
type second struct {
	commit, wait   time.Duration // means
	fill           float64
	idle           bool // no commit ended
	offered, taken float64
}

// controller tells from a second how busy this process is, and what its rate is.
type controller struct {
	aimd
	maxCommit, maxWait time.Duration
}

func newController(maxCommit, maxWait time.Duration, minRate float64) controller {
	return controller{aimd: newAIMD(minRate), maxCommit: maxCommit, maxWait: maxWait}
}

// step takes in one second and sets the rate for the next.
func (c *controller) step(s second) {
	// What is held and not moving is a commit that takes longer than a second.
	stuck := s.idle && s.fill > 0 && (s.taken > 0 || c.taken > 0) && c.maxCommit <= adaptInterval
	stress := max(
		s.commit.Seconds()/c.maxCommit.Seconds(),
		s.wait.Seconds()/c.maxWait.Seconds(),
		s.fill/maxFill)
	if stuck {
		stress = math.Inf(1)
	}
	c.aimd.step(stress, s.offered, s.taken)
}

// aimd is the rule, without a clock: additive increase, multiplicative decrease.
type aimd struct {
	minRate float64

	rate float64 // +Inf: no limit
	// bad is how many seconds in a row were, while there was no limit.
	bad int
	// peak is the rate at which trouble began.
	peak float64
	// searching says that trouble has not come back since it first began, and
	// raised that the last second was good.
	searching, raised bool
	// taken is what was taken lately: a second in which all stands still says
	// nothing about what can be taken.
	taken float64
}

func newAIMD(minRate float64) aimd { return aimd{minRate: minRate, rate: math.Inf(1)} }

// limited reports whether there is a limit.
func (c *aimd) limited() bool { return !math.IsInf(c.rate, 1) }

// note takes in a second of which nothing is known but what was taken.
func (c *aimd) note(taken float64) { c.taken = max(taken, c.taken*decrease) }

// step takes in one second and sets the rate for the next. The second was bad if
// stress is more than 1, and good if it is no more than calm.
func (c *aimd) step(stress, offered, taken float64) {
	c.note(taken)
	trouble := stress > 1
	switch {
	case !trouble:
		c.bad = 0
	case !c.limited():
		c.bad++
	}
	switch {
	case trouble && !c.limited() && c.bad < patience:
	case trouble:
		switch {
		case !c.limited():
			c.peak, c.searching = max(c.taken, c.minRate), true
		case c.raised:
			c.peak, c.searching = c.rate, false
		}
		c.raised = false
		c.rate = max(c.minRate, min(c.rate, c.taken)*decrease)
	case !c.limited() || stress > calm:
	default:
		c.raised = true
		if c.searching {
			c.rate *= growth
		} else {
			c.rate += max(increase*c.peak, 1)
		}
		// Nothing was refused for long, or what can be taken is far more than what
		// anybody sends.
		if c.rate >= max(c.peak, offered)*roomToSpare {
			c.rate, c.peak, c.bad = math.Inf(1), 0, 0
		}
	}
}
