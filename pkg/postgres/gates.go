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

// closeGatesSQL closes gates, at most one of each webhook. The breaker's stays the
// breaker's, whatever its probe is answered: only a success ends it.
const closeGatesSQL = `
INSERT INTO fairhook.lane_gates AS g (webhook_id, cause, until, closed_at, attempt_at)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[])
ON CONFLICT (webhook_id) DO UPDATE SET
	cause = CASE g.cause WHEN 'breaker' THEN g.cause ELSE excluded.cause END,
	until = greatest(g.until, excluded.until),
	in_a_row = CASE WHEN excluded.attempt_at > g.closed_at + $6::interval THEN g.in_a_row + 1 ELSE g.in_a_row END,
	closed_at = CASE WHEN excluded.attempt_at > g.closed_at + $6::interval THEN excluded.closed_at ELSE g.closed_at END,
	probe_by = CASE WHEN excluded.attempt_at > g.closed_at + $6::interval THEN NULL ELSE g.probe_by END,
	probe_until = CASE WHEN excluded.attempt_at > g.closed_at + $6::interval THEN NULL ELSE g.probe_until END,
	attempt_at = excluded.attempt_at`

// openGatesSQL opens gates by attempts that followed them.
const openGatesSQL = `
DELETE FROM fairhook.lane_gates g USING unnest($1::uuid[], $2::timestamptz[]) AS a (id, attempt_at)
WHERE g.webhook_id = a.id AND g.closed_at + $3::interval < a.attempt_at`

// lockGatesSQL locks the gates that are there, in one order for all transactions:
// otherwise two of them wait for each other.
const lockGatesSQL = `SELECT FROM fairhook.lane_gates WHERE webhook_id = ANY ($1) ORDER BY webhook_id FOR UPDATE`

// queueGateChanges adds gate changes to a batch: a statement that locks their rows, and
// two for all of them, unless a webhook has several.
func queueGateChanges(batch *pgx.Batch, changes []GateChange) {
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(a, b GateChange) int { return bytes.Compare(a.WebhookID[:], b.WebhookID[:]) })
	if len(changes) > 1 {
		ids := make([]webhook.ID, len(changes))
		for i, c := range changes {
			ids[i] = c.WebhookID
		}
		batch.Queue(lockGatesSQL, ids)
	}
	for len(changes) > 0 {
		var (
			shut, open             []webhook.ID
			causes                 []string
			until, at              []time.Time
			shutStarted, openStart []time.Time
			later                  []GateChange
		)
		for i, c := range changes {
			switch {
			case i > 0 && changes[i-1].WebhookID == c.WebhookID:
				later = append(later, c)
			case c.Cause == "":
				open, openStart = append(open, c.WebhookID), append(openStart, c.StartedAt)
			default:
				shut, causes = append(shut, c.WebhookID), append(causes, string(c.Cause))
				until, at, shutStarted = append(until, c.Until), append(at, c.At), append(shutStarted, c.StartedAt)
			}
		}
		if len(shut) > 0 {
			batch.Queue(closeGatesSQL, shut, causes, until, at, shutStarted, GateHeard)
		}
		if len(open) > 0 {
			batch.Queue(openGatesSQL, open, openStart, GateHeard)
		}
		changes = later
	}
}
