package limit

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// assumedProcesses is how many processes may take deliveries for one webhook
	// without it going over its limit between two counts.
	assumedProcesses = 16
	// assumedFilling is how fast, in deliveries a second, a backlog may grow: what
	// could be full by then is counted again.
	assumedFilling = 20_000

	leastCountGap = 250 * time.Millisecond
	mostCountGap  = 30 * time.Second
	// countCost keeps the share of time spent on counting one backlog to one part
	// in so many.
	countCost = 50
	// countAnew is when a backlog that is far from its limit is counted again.
	countAnew = 10 * time.Minute
	// countTimeout bounds one count.
	countTimeout = 5 * time.Second
	// countInterval is how often to look for backlogs that should be counted.
	countInterval = 100 * time.Millisecond
	// countTogether is how many backlogs one query counts. One that had more than
	// countAlone is counted by itself, so that it does not hold up others.
	countTogether = 200
	countAlone    = 10_000
)

// BacklogConfig is what a Backlog needs.
type BacklogConfig struct {
	// Count is fairqueue.CountBacklogs on some pool.
	Count func(ctx context.Context, ids []webhook.ID, limits []int) (map[webhook.ID]int, error)
	// Logger hears of counts that fail. nil: nobody does.
	Logger *slog.Logger
	// Registerer receives the metrics. nil: there are none.
	Registerer prometheus.Registerer
}

// Backlog estimates how many deliveries wait for each webhook: as many as were
// counted last, and what was accepted here since. A backlog is counted soon after
// it is first asked for, and then the more often the nearer it is to its limit,
// but never so that counting takes more than 2 % of the time. Until the first
// count it counts as empty.
//
// With n processes a backlog can go over its limit by what the others accept
// between two counts: at most 250 ms of it where counting is quick. It falls short
// by what was delivered since the last count, and by what was committed while that
// was made, which then counts twice until the next.
//
// Its methods are safe for concurrent use.
type Backlog struct {
	count   func(ctx context.Context, ids []webhook.ID, limits []int) (map[webhook.ID]int, error)
	logger  *slog.Logger
	metrics *backlogMetrics
	kick    chan struct{} // holds one; a backlog was asked for the first time

	mu       sync.Mutex
	backlogs map[webhook.ID]*backlog // guarded by mu
}

// backlog is the estimate for one webhook.
type backlog struct {
	limit   int
	counted int // by the last count
	// stored were accepted and committed here since the last count began, and
	// pending are being stored now.
	stored, pending int
	// wanted says that somebody was refused since the last count began.
	wanted bool

	countedAt time.Time // zero: never
	next      time.Time // not to be counted before
	usedAt    time.Time
}

func (b *backlog) estimate() int { return b.counted + b.stored + b.pending }

// due reports whether to count it now.
func (b *backlog) due(now time.Time) bool {
	switch {
	case now.Before(b.next):
		return false
	case b.countedAt.IsZero(), b.wanted:
		return true
	case b.usedAt.Before(b.countedAt):
		return false
	}
	// Far from full, whatever the others accept.
	return b.counted+assumedProcesses*(b.stored+b.pending) > b.limit/2 || now.Sub(b.countedAt) > countAnew
}

// recount takes in a count that took so long.
func (b *backlog) recount(now time.Time, count, storedBefore int, took time.Duration) {
	b.counted, b.countedAt = count, now
	b.stored -= storedBefore // these are in the count
	room := time.Duration(max(0, b.limit-b.estimate())) * time.Second / assumedFilling
	b.next = now.Add(max(min(max(room, leastCountGap), mostCountGap), countCost*took))
}

// NewBacklog makes a Backlog. It starts nothing.
func NewBacklog(cfg BacklogConfig) *Backlog {
	b := &Backlog{
		count:    cfg.Count,
		logger:   cfg.Logger,
		kick:     make(chan struct{}, 1),
		backlogs: make(map[webhook.ID]*backlog),
	}
	if b.logger == nil {
		b.logger = slog.New(slog.DiscardHandler)
	}
	b.metrics = newBacklogMetrics(cfg.Registerer)
	return b
}

// Admit counts one more delivery for a webhook, if its backlog is under the
// limit. Settle must follow once its event is stored, or is not. It never waits.
func (b *Backlog) Admit(id webhook.ID, limit int) bool {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	one, known := b.backlogs[id]
	if !known {
		one = &backlog{}
		b.backlogs[id] = one
		select {
		case b.kick <- struct{}{}:
		default:
		}
	}
	one.limit, one.usedAt = limit, now
	if one.estimate() >= limit {
		one.wanted = true
		return false
	}
	one.pending++
	return true
}

// Settle says what became of a delivery that was admitted.
func (b *Backlog) Settle(id webhook.ID, stored bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	one := b.backlogs[id] // is there: it has one pending
	one.pending--
	if stored {
		one.stored++
	}
}

// Run counts backlogs until ctx ends. It returns nil.
func (b *Backlog) Run(ctx context.Context) error {
	ticker := time.NewTicker(countInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-b.kick:
		}
		for ctx.Err() == nil && b.runOnce(ctx) {
		}
	}
}

// runOnce counts some of the backlogs that are due, and reports whether there
// were any.
func (b *Backlog) runOnce(ctx context.Context) bool {
	now := time.Now()
	ids, limits, before := b.choose(now)
	if len(ids) == 0 {
		return false
	}
	countCtx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	counts, err := b.count(countCtx, ids, limits)
	took := time.Since(now)
	b.metrics.observe(took, len(ids), err)
	if err != nil && ctx.Err() == nil {
		b.logger.WarnContext(ctx, "could not count backlogs", "webhooks", len(ids), "error", err)
	}

	now = time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, id := range ids {
		one := b.backlogs[id]
		if err != nil {
			one.next = now.Add(max(time.Second, countCost*took))
			continue
		}
		one.recount(now, counts[id], before[i], took)
	}
	return true
}

// choose is the backlogs to count next, how far, and what is stored of each
// before the count begins. It forgets those that nobody has asked for in a while.
func (b *Backlog) choose(now time.Time) (ids []webhook.ID, limits, before []int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, one := range b.backlogs {
		if one.pending == 0 && now.Sub(one.usedAt) > countAnew {
			delete(b.backlogs, id)
			continue
		}
		if len(ids) == countTogether || !one.due(now) {
			continue
		}
		if one.counted > countAlone && len(ids) > 0 {
			continue
		}
		one.wanted = false
		ids, limits, before = append(ids, id), append(limits, one.limit), append(before, one.stored)
		if one.counted > countAlone {
			break
		}
	}
	return ids, limits, before
}
