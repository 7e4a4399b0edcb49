package heartbeat

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// interval is how often an instance says that it lives.
	interval = 2 * time.Second
	// timeout bounds one beat. Two beats of a process that runs are at most this and
	// an interval apart.
	timeout = 5 * time.Second
	maxGap  = timeout + interval
	// freshFor is how long after a beat an instance may act: what it then begins must
	// have reached the receiver before the others take it for dead.
	freshFor = webhook.StaleAfter - 3*time.Second
	// joinPoll is how often an instance that joins looks whether the others know.
	joinPoll = 200 * time.Millisecond
)

// Config is what a Heartbeat needs. Fields are required but where said otherwise.
type Config struct {
	DB            postgres.Querier
	Instance      string // fresh at each start
	Role          webhook.Role
	Version, Host string
	// Load says how much the instance can take at once, and how much of that is in
	// use. It is called with each beat and must not block.
	Load func() (capacity, inFlight int)
	// OnBeat, if set, hears after each beat how many instances of the role live,
	// this one included. It is called from Run's goroutine.
	OnBeat     func(alive int)
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Heartbeat beats for one instance. Its methods are safe for concurrent use.
type Heartbeat struct {
	cfg    Config
	errors prometheus.Counter

	known     chan struct{} // closed by the first beat that was written
	knownOnce sync.Once
	drain     chan struct{} // closed by Drain
	drainOnce sync.Once

	mu sync.Mutex
	// healthySince is when the present run of successful beats began, or zero, and
	// lastBeat when the last of them did, by the clocks of this host. Guarded by mu.
	healthySince, lastBeat time.Time
}

// New makes a Heartbeat. It starts nothing.
func New(cfg Config) *Heartbeat {
	h := &Heartbeat{
		cfg: cfg,
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_heartbeat_errors_total",
			Help: "Heartbeats that could not be written.",
		}),
		known: make(chan struct{}),
		drain: make(chan struct{}),
	}
	cfg.Registerer.MustRegister(h.errors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "fairhook_heartbeat_fresh",
		Help: "1 while this instance's last heartbeat is young enough for it to act.",
	}, func() float64 {
		if h.Fresh() {
			return 1
		}
		return 0
	}))
	return h
}

// Run beats until ctx ends, and then takes this instance off the list: it is told
// to stop after what it reports has left.
func (h *Heartbeat) Run(ctx context.Context) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	drain := h.drain
	for {
		h.beat(ctx)
		select {
		case <-ctx.Done():
			h.leave(ctx)
			return nil
		case <-drain:
			drain = nil // said once; every later beat says it too
		case <-ticker.C:
		}
	}
}

func (h *Heartbeat) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if err := postgres.Leave(ctx, h.cfg.DB, h.cfg.Instance); err != nil {
		// Nothing is lost: the row grows old, and others forget it.
		h.cfg.Logger.WarnContext(ctx, "could not sign off", "error", err)
	}
}

// beat writes one heartbeat.
func (h *Heartbeat) beat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	capacity, inFlight := h.cfg.Load()
	before := time.Now()
	alive, err := postgres.WriteBeat(ctx, h.cfg.DB, postgres.Beat{
		ID: h.cfg.Instance, Role: h.cfg.Role, Version: h.cfg.Version, Host: h.cfg.Host,
		Capacity: capacity, InFlight: inFlight, Draining: h.draining(),
	}, webhook.StaleAfter)
	h.note(before, err == nil)
	if err != nil {
		if ctx.Err() != context.Canceled {
			h.errors.Inc()
			h.cfg.Logger.DebugContext(ctx, "heartbeat failed", "error", err)
		}
		return
	}
	if h.cfg.OnBeat != nil {
		h.cfg.OnBeat(alive)
	}
	h.knownOnce.Do(func() { close(h.known) })
}

// note keeps what a beat that began at a moment says about this instance's health.
func (h *Heartbeat) note(began time.Time, written bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !written {
		h.healthySince = time.Time{}
		return
	}
	// A gap means that this process, or the whole machine, was stopped: the others
	// may have been too, and must have the time to say that they live.
	if h.healthySince.IsZero() || age(began, h.lastBeat) > maxGap {
		h.healthySince = began
	}
	h.lastBeat = began
}

// age is how long ago a moment was: the longer of what the wall clock and the
// monotonic one say. The second stands still while a machine sleeps, and the first
// can be set.
func age(now, moment time.Time) time.Duration {
	return max(now.Sub(moment), now.Round(0).Sub(moment.Round(0)))
}

// Known is closed once the first beat has been written: others can know of this
// instance from here on.
func (h *Heartbeat) Known() <-chan struct{} { return h.known }

// Fresh reports whether the last beat is young enough for nobody to take this
// instance for dead, now or in the next seconds.
func (h *Heartbeat) Fresh() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.lastBeat.IsZero() && age(time.Now(), h.lastBeat) < freshFor
}

// Observed reports whether this instance has seen the database answer without a
// break for as long as silence must last to mean death, up to now: after an outage,
// or after this machine was stopped, everyone's last heartbeat is old.
func (h *Heartbeat) Observed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	return !h.healthySince.IsZero() && now.Sub(h.healthySince) >= webhook.StaleAfter && age(now, h.lastBeat) <= maxGap
}

// Drain says from now on, and at once, that this instance was told to stop.
func (h *Heartbeat) Drain() { h.drainOnce.Do(func() { close(h.drain) }) }

func (h *Heartbeat) draining() bool {
	select {
	case <-h.drain:
		return true
	default:
		return false
	}
}

// AwaitPeers waits for the first beat, and then until every other live instance of the
// role has beaten after it, and so knows of this one: then it returns true. It gives up when ctx
// ends, since one of them may be dead.
func (h *Heartbeat) AwaitPeers(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-h.known:
	}
	ticker := time.NewTicker(joinPoll)
	defer ticker.Stop()
	var since time.Time // a moment after the first beat was committed
	for {
		unaware, now, err := postgres.CountUnaware(ctx, h.cfg.DB, h.cfg.Instance, h.cfg.Role, since, webhook.StaleAfter)
		switch {
		case err != nil:
			h.cfg.Logger.DebugContext(ctx, "could not ask who knows of this instance", "error", err)
		case since.IsZero():
			since = now // nobody's beat was before the zero time: look again
			continue
		case unaware == 0:
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}
