package dispatch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// healthInterval is how often counts are written, in one statement.
	healthInterval = time.Second
	healthTimeout  = 5 * time.Second
	// healthMemory is how long a webhook's attempts are counted after its last
	// failure: the others cost nothing.
	healthMemory = time.Minute
	// maxUnwell bounds the webhooks that are counted at the same time.
	maxUnwell = 10_000
)

// health tells how the deliveries of webhooks in trouble go, for ingest to accept
// less for them: it counts their attempts, and adds them to the database's
// counters. Nothing depends on their being exact: what cannot be written is
// dropped, and of more than maxUnwell webhooks the others are not counted.
type health struct {
	db     postgres.Querier
	logger *slog.Logger

	mu     sync.Mutex
	unwell map[webhook.ID]*unwell // guarded by mu
}

// unwell is a webhook that had a failure within healthMemory, and its attempts
// since the last flush.
type unwell struct {
	delivered, failed int64
	failedAt          time.Time
}

func newHealth(db postgres.Querier, logger *slog.Logger) *health {
	return &health{db: db, logger: logger, unwell: make(map[webhook.ID]*unwell)}
}

// observe counts an attempt that made a request.
func (h *health) observe(id webhook.ID, reason webhook.Reason) {
	if reason == webhook.ReasonInternalError {
		return // ours, and says nothing about the webhook
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	u, known := h.unwell[id]
	if reason == webhook.ReasonDelivered {
		if known {
			u.delivered++
		}
		return
	}
	if !known {
		if len(h.unwell) >= maxUnwell {
			return
		}
		u = &unwell{}
		h.unwell[id] = u
	}
	u.failed++
	u.failedAt = time.Now()
}

// Run writes the counts each second until ctx ends, and then once more. It
// returns nil.
func (h *health) Run(ctx context.Context) error {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			h.flush(context.WithoutCancel(ctx), time.Now())
			return nil
		case now := <-ticker.C:
			h.flush(ctx, now)
		}
	}
}

// flush writes what was counted since the last time.
func (h *health) flush(ctx context.Context, now time.Time) {
	counts := h.collect(now)
	if len(counts) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	if err := postgres.AddLaneHealth(ctx, h.db, counts); err != nil {
		h.logger.DebugContext(ctx, "could not write how deliveries go", "webhooks", len(counts), "error", err)
	}
}

// collect takes what was counted, and forgets webhooks that are well again.
func (h *health) collect(now time.Time) []postgres.LaneHealth {
	h.mu.Lock()
	defer h.mu.Unlock()
	var counts []postgres.LaneHealth
	for id, u := range h.unwell {
		if u.delivered+u.failed > 0 {
			counts = append(counts, postgres.LaneHealth{WebhookID: id, Delivered: u.delivered, Failed: u.failed})
		}
		u.delivered, u.failed = 0, 0
		if now.Sub(u.failedAt) > healthMemory {
			delete(h.unwell, id)
		}
	}
	return counts
}
