package postgres

import (
	"context"
	"fmt"
	"time"
)

// sweepBatch is how many rows of a table one statement removes, so that none holds
// locks for long or announces too much at once.
const sweepBatch = 1000

// Dead rows and how long they are kept: longer than anybody can ask for them.
const (
	laneRest   = time.Hour // after a gate opened, a lease ended, a counter stopped
	silentRest = time.Hour // a dead instance, for people to see

	secretRest = time.Minute // a secret that has ended, which nobody signs or verifies with
)

// orphaned is for rows of webhooks that were deleted while the row was being written.
const orphaned = `NOT EXISTS (SELECT FROM fairhook.webhooks w WHERE w.id = dead.webhook_id)`

// sweeps are the rows that serve nobody any more: table, condition and, for $1, how
// old they must be.
var sweeps = []struct {
	table, dead string
	after       time.Duration // 0: the events' retention
}{
	// A breaker's gate waits for its probe, however long nothing comes to probe with.
	{"lane_gates", `until < now() - $1::interval AND (cause <> 'breaker'
		OR NOT EXISTS (SELECT FROM fairhook.webhooks w WHERE w.id = dead.webhook_id))`, laneRest},
	{"lane_owners", `until < now() - $1::interval`, laneRest},
	{"webhook_failures", `failed_at < now() - $1::interval AND (since IS NULL AND NOT told OR ` + orphaned + `)`, laneRest},
	{"exhausted_deliveries", `announce_at < now() - $1::interval AND ` + orphaned, laneRest},
	{"growing_backlogs", `checked_at < now() - $1::interval AND ` + orphaned, laneRest},
	{"webhook_tests", `requested_at < now() - $1::interval`, laneRest},
	{"lane_health", `updated_at < now() - $1::interval`, laneRest},
	{"lane_events", `at < now() - $1::interval`, 0},
	{"webhook_secrets", `expires_at < now() - $1::interval`, secretRest},
	{"api_key_secrets", `expires_at < now() - $1::interval`, secretRest},
	{"instances", `heartbeat_at < now() - $1::interval`, silentRest},
}

// Sweep removes what dispatchers left behind of lanes, webhooks and instances that
// are gone, and secrets that have ended, in small transactions, and returns how many rows. What happened to lanes
// is kept for retention; 0: for ever. Several may call it at once: one does the work.
func Sweep(ctx context.Context, db Beginner, retention time.Duration) (removed int64, err error) {
	for _, s := range sweeps {
		after := s.after
		if after == 0 {
			if after = retention; after == 0 {
				continue
			}
		}
		statement := fmt.Sprintf(`
			DELETE FROM fairhook.%s WHERE ctid = ANY (ARRAY(
				SELECT ctid FROM fairhook.%[1]s dead WHERE %s LIMIT %d FOR UPDATE SKIP LOCKED))`, s.table, s.dead, sweepBatch)
		for n := int64(sweepBatch); n == sweepBatch; removed += n {
			if n, err = removeBatch(ctx, db, "sweep", statement, after); err != nil {
				return removed, fmt.Errorf("sweep %s: %w", s.table, err)
			}
		}
	}
	return removed, nil
}
