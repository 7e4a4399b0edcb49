package fairqueue

import (
	"context"
	"fmt"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// learners is how many questions about limits may be under way at once, and
	// learnBatch how many lanes one is about. Claiming what only one dispatcher may
	// do takes time for each lane: thousands of breakers whose time is over at once
	// must not hold up a lane that somebody just sent something to.
	learners   = 2
	learnBatch = 200
	learnPause = 200 * time.Millisecond // after a question that failed
)

// runLearner learns the limits of lanes, beside the fetch, which never waits for it.
func (q *Queue) runLearner(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.ring.strange:
		}
		if q.draining.Load() {
			continue // what others could work is not claimed any more
		}
		if err := q.learn(ctx); err != nil && ctx.Err() == nil {
			q.metrics.learnErrors.Inc()
			q.cfg.Logger.DebugContext(ctx, "could not read the limits of webhooks", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(learnPause):
			}
			signal(q.ring.strange)
		}
	}
}

// learn reads the limits of some lanes that have none yet.
func (q *Queue) learn(ctx context.Context) error {
	ids, sharers := q.ring.unknown(learnBatch)
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	limits, err := q.cfg.Limits(ctx, ids, sharers)
	if err != nil {
		q.ring.forsake(ids)
		return fmt.Errorf("read the limits of %d webhooks: %w", len(ids), err)
	}
	learned := make(map[webhook.ID]Limit, len(ids))
	for _, id := range ids {
		limit, exists := limits[id]
		if !exists {
			limit = Limit{MaxInFlight: maxRoom} // nothing is sent
		}
		learned[id] = limit
	}
	if q.ring.learn(learned) {
		signal(q.kick)
	}
	return nil
}
