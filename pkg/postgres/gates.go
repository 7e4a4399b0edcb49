package postgres

import (
	"bytes"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// GateChange closes the gate of a webhook's lane, or opens it, because of an
// attempt.
type GateChange struct {
	WebhookID webhook.ID
	// Cause is why it closes; empty: it opens.
	Cause GateCause
	// At is when the attempt ended, and Until until when the gate is closed.
	At, Until time.Time
	// StartedAt is when the attempt began. One that was under way when the gate
	// closed, or began before all can have heard of it (GateHeard), says nothing new:
	// it makes the gate last longer at most, and does not open it.
	StartedAt time.Time
}

// GateHeard is how long after a gate has closed a dispatcher that has not heard of
// it yet may send. It is less than the shortest gate.
const GateHeard = 900 * time.Millisecond

// Follows reports whether an attempt that began at this moment came after the gate,
// and is no left-over from before.
func (g Gate) Follows(started time.Time) bool { return started.After(g.ClosedAt.Add(GateHeard)) }

// closeGateSQL closes a gate. The breaker's stays the breaker's, whatever its
// probe is answered: only a success ends it.
const closeGateSQL = `
INSERT INTO fairhook.lane_gates AS g (webhook_id, cause, until, closed_at)
VALUES ($1, $2, $3, $4)
ON CONFLICT (webhook_id) DO UPDATE SET
	cause = CASE g.cause WHEN 'breaker' THEN g.cause ELSE excluded.cause END,
	until = greatest(g.until, excluded.until),
	in_a_row = CASE WHEN $5 > g.closed_at + $6::interval THEN g.in_a_row + 1 ELSE g.in_a_row END,
	closed_at = CASE WHEN $5 > g.closed_at + $6::interval THEN excluded.closed_at ELSE g.closed_at END,
	probe_by = CASE WHEN $5 > g.closed_at + $6::interval THEN NULL ELSE g.probe_by END,
	probe_until = CASE WHEN $5 > g.closed_at + $6::interval THEN NULL ELSE g.probe_until END,
	updated_at = clock_timestamp()`

const openGateSQL = `DELETE FROM fairhook.lane_gates WHERE webhook_id = $1 AND closed_at + $3::interval < $2`

// queueGateChanges adds gate changes to a batch, in an order that is the same for
// all, so that two transactions do not wait for each other.
func queueGateChanges(batch *pgx.Batch, changes []GateChange) {
	slices.SortStableFunc(changes, func(a, b GateChange) int { return bytes.Compare(a.WebhookID[:], b.WebhookID[:]) })
	for _, c := range changes {
		if c.Cause == "" {
			batch.Queue(openGateSQL, c.WebhookID, c.StartedAt, GateHeard)
		} else {
			batch.Queue(closeGateSQL, c.WebhookID, c.Cause, c.Until, c.At, c.StartedAt, GateHeard)
		}
	}
}
