package postgres

import (
	"bytes"
	"iter"
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
WITH followed AS MATERIALIZED (
	SELECT g.webhook_id
	FROM fairhook.lane_gates g JOIN unnest($1::uuid[], $2::timestamptz[]) AS a (id, attempt_at) ON g.webhook_id = a.id
	WHERE g.closed_at + $3::interval < a.attempt_at
	ORDER BY g.webhook_id FOR UPDATE OF g
)
DELETE FROM fairhook.lane_gates g USING followed WHERE g.webhook_id = followed.webhook_id`

// queueGateChanges adds gate changes to a batch, those of one webhook in the order in
// which they are given. The webhooks have one order in all transactions, or two of them
// would wait for each other; so there is a statement for all that close in a row, or open.
// To lock the gates first and change them in any order is not enough: one that another
// transaction inserts meanwhile is not among those.
func queueGateChanges(batch *pgx.Batch, changes []GateChange) {
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(a, b GateChange) int { return bytes.Compare(a.WebhookID[:], b.WebhookID[:]) })
	alike := func(a, b *GateChange) bool { return a.closes() == b.closes() && a.WebhookID != b.WebhookID }
	for run := range runs(changes, alike) {
		queueGates(batch, run)
	}
}

// runs divides changes that are in order, and keeps that order, into those that one
// statement can make: each is like the one before it.
func runs[C any](changes []C, alike func(a, b *C) bool) iter.Seq[[]C] {
	return func(yield func([]C) bool) {
		for len(changes) > 0 {
			n := 1
			for n < len(changes) && alike(&changes[n-1], &changes[n]) {
				n++
			}
			if !yield(changes[:n]) {
				return
			}
			changes = changes[n:]
		}
	}
}

// closes reports whether the gate closes.
func (c *GateChange) closes() bool { return c.Cause != "" }

// queueGates adds changes of different webhooks that all close, or all open.
func queueGates(batch *pgx.Batch, changes []GateChange) {
	var (
		ids                []webhook.ID
		causes             []string
		until, at, started []time.Time
	)
	for _, c := range changes {
		ids, causes = append(ids, c.WebhookID), append(causes, string(c.Cause))
		until, at, started = append(until, c.Until), append(at, c.At), append(started, c.StartedAt)
	}
	if changes[0].closes() {
		batch.Queue(closeGatesSQL, ids, causes, until, at, started, GateHeard)
	} else {
		batch.Queue(openGatesSQL, ids, started, GateHeard)
	}
}
