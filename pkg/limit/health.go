package limit

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// DefaultHealthRate is a usable HealthConfig.MinRate.
const DefaultHealthRate = 10

const (
	healthInterval = time.Second
	// healthWindow is how far back counters are read: a read that comes late must
	// not miss what was written meanwhile.
	healthWindow  = 5 * time.Second
	healthTimeout = 2 * time.Second
	// maxFailing is the part of a second's attempts that may fail.
	maxFailing = 0.5
	// quiet is how long a rate is kept while nothing is attempted. A lane whose gate
	// is closed says nothing, and is not well for that: it may be 5 min from one
	// attempt to the next.
	quiet = 6 * time.Minute
	// maxHealthRows bounds one read, and maxPatients the memory.
	maxHealthRows = 10_000
	maxPatients   = 2 * maxHealthRows
)

// HealthConfig is what a Health needs.
type HealthConfig struct {
	// Read is postgres.RecentLaneHealth on some pool.
	Read func(ctx context.Context, within time.Duration, limit int) ([]postgres.LaneHealth, error)
	// MinRate is what is accepted at least for a webhook, in events a second. It
	// must be positive.
	MinRate float64
	// Logger hears of reads that fail. nil: nobody does.
	Logger *slog.Logger
	// Registerer receives the metrics. nil: there are none.
	Registerer prometheus.Registerer
}

// Health lowers the rate at which this process accepts events for a webhook while
// more than half of its deliveries fail: by a fifth of what was accepted lately in
// each second in which some were attempted, from the third on, down to MinRate. It
// raises it again as Adaptive does while most are delivered, and after six minutes
// without any attempts, until the limit is gone.
//
// Each process goes by what it accepted itself, and by how the deliveries of all
// dispatchers went. So n processes together accept a fifth less than they did
// together, and n times MinRate at least.
//
// What it knows is a second or two old, and only of webhooks that had a failure
// within minutes: the others take no memory. Where more than 20,000 have had one,
// the rest of them are not limited.
//
// Its methods are safe for concurrent use.
type Health struct {
	read    func(ctx context.Context, within time.Duration, limit int) ([]postgres.LaneHealth, error)
	minRate float64
	logger  *slog.Logger
	metrics *healthMetrics

	known    atomic.Int64 // len(patients): while it is 0 nobody waits for mu
	mu       sync.Mutex
	patients map[webhook.ID]*patient // guarded by mu
}

// patient is a webhook that has had a failure lately.
type patient struct {
	delivered, failed int64     // as read last
	newsAt            time.Time // when they last grew
	control           aimd

	offered, taken int // in this second
	tokens         float64
	filled         time.Time // when tokens were last added
}

// NewHealth makes a Health. It starts nothing: until Run runs there is no limit.
func NewHealth(cfg HealthConfig) *Health {
	h := &Health{read: cfg.Read, minRate: cfg.MinRate, logger: cfg.Logger, patients: make(map[webhook.ID]*patient)}
	if h.logger == nil {
		h.logger = slog.New(slog.DiscardHandler)
	}
	h.metrics = newHealthMetrics(cfg.Registerer, h)
	return h
}

// Admit reports whether to accept an event for a webhook now, and the rate, in
// events a second, that is accepted at the moment; infinite without a limit.
func (h *Health) Admit(id webhook.ID) (ok bool, rate float64) { return h.admit(time.Now(), id) }

func (h *Health) admit(now time.Time, id webhook.ID) (ok bool, rate float64) {
	free := newAIMD(h.minRate)
	if h.known.Load() == 0 {
		return true, free.rate
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p, known := h.patients[id]
	if !known {
		return true, free.rate
	}
	p.offered++
	if rate = p.control.rate; p.control.limited() {
		p.tokens = min(p.tokens+rate*now.Sub(p.filled).Seconds(), max(1, rate/10))
		p.filled = now
		if p.tokens < 1 {
			return false, rate
		}
		p.tokens--
	}
	p.taken++
	return true, rate
}

// Run reads the counters and adapts the rates each second until ctx ends. It
// returns nil.
func (h *Health) Run(ctx context.Context) error {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			h.runOnce(ctx)
		}
	}
}

func (h *Health) runOnce(ctx context.Context) {
	readCtx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	rows, err := h.read(readCtx, healthWindow, maxHealthRows)
	h.metrics.reads.WithLabelValues(outcome(err)).Inc()
	if err != nil {
		// Nothing is known, so everything stays as it is.
		if ctx.Err() == nil {
			h.logger.DebugContext(ctx, "could not read how deliveries go", "error", err)
		}
		return
	}
	h.take(time.Now(), rows)
}

// take ends a second, after which the counters were as in rows.
func (h *Health) take(now time.Time, rows []postgres.LaneHealth) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() { h.known.Store(int64(len(h.patients))) }()
	failing := make(map[*patient]float64, len(rows)) // the part that failed of what was attempted
	for _, row := range rows {
		p, known := h.patients[row.WebhookID]
		if !known {
			if len(h.patients) < maxPatients {
				// What the counters stood at before is not known.
				h.patients[row.WebhookID] = &patient{delivered: row.Delivered, failed: row.Failed, newsAt: now, control: newAIMD(h.minRate)}
			}
			continue
		}
		delivered, failed := row.Delivered-p.delivered, row.Failed-p.failed
		p.delivered, p.failed = row.Delivered, row.Failed
		// They begin anew after a crash of the server.
		if delivered >= 0 && failed >= 0 && delivered+failed > 0 {
			failing[p] = float64(failed) / float64(delivered+failed)
			p.newsAt = now
		}
	}
	for id, p := range h.patients {
		free := !p.control.limited()
		part, news := failing[p]
		switch {
		case news:
			p.control.step(part/maxFailing, float64(p.offered), float64(p.taken))
		case now.Sub(p.newsAt) <= quiet:
			p.control.note(float64(p.taken))
		case free:
			delete(h.patients, id)
		default:
			p.control.step(0, float64(p.offered), float64(p.taken))
		}
		if free && p.control.limited() {
			p.tokens, p.filled = 0, now
		}
		p.offered, p.taken = 0, 0
	}
}

// counts is how many webhooks are watched, and how many of them limited.
func (h *Health) counts() (watched, limited int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.patients {
		if p.control.limited() {
			limited++
		}
	}
	return len(h.patients), limited
}
