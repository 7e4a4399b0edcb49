package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// GateCause is why a lane's gate is closed, other than its webhook's own state.
type GateCause string

// The closed set of causes.
const (
	GateReceiver GateCause = "receiver" // it asked for time, or its gateway did
	GateBreaker  GateCause = "breaker"  // too many of its deliveries failed
	GateProxy    GateCause = "proxy"    // the operator's own proxy failed
	GateAuth     GateCause = "auth"     // its token endpoint gives no answer
)

// WebhookLimit is what the fetch must know of a webhook.
type WebhookLimit struct {
	ID             webhook.ID
	URL            string
	State          webhook.State
	TimeoutSeconds int
	MaxInFlight    int
	RatePerSecond  *float64
	Burst          *int
	Weight         int
	Gate           *Gate
	// Unwell says that the webhook failed lately: it has a row of webhook_failures.
	Unwell bool
	// Owner is the dispatcher that has, or last had, the lane to itself, and OwnedUntil
	// until when; empty: nobody had lately.
	Owner      string
	OwnedUntil time.Time
	Ordering   webhook.Ordering
	// Arranged is the ordering that the lane's jobs are arranged for, or LaneChanging.
	Arranged string
}

// LaneChanging is in WebhookLimit.Arranged from the moment a webhook's ordering was
// changed until a dispatcher has seen to that.
const LaneChanging = "changing"

// Gate is a row of lane_gates: why a lane was shut, and until when.
type Gate struct {
	Cause GateCause
	Until time.Time
	// InARow counts the gates since the last success, this one included.
	InARow int
	// ClosedAt is when it closed.
	ClosedAt time.Time
	// ProbeUntil is how long only one dispatcher may send the breaker's probe; nil:
	// nobody was chosen yet.
	ProbeUntil *time.Time
}

// WebhookLimits reads the limits of webhooks; those that do not exist are
// missing from the answer.
func WebhookLimits(ctx context.Context, q Querier, ids []webhook.ID) ([]WebhookLimit, error) {
	rows, err := q.Query(ctx, `
		SELECT w.id, w.url, w.status, w.timeout_seconds, w.max_in_flight, w.rate_per_second, w.burst, w.weight,
		       g.cause, g.until, g.in_a_row, g.closed_at, g.probe_until, o.owner, o.until, f.webhook_id IS NOT NULL,
		       w.ordering, coalesce(o.ordering, 'none')
		FROM fairhook.webhooks w
		LEFT JOIN fairhook.lane_gates g ON g.webhook_id = w.id
		LEFT JOIN fairhook.lane_owners o ON o.webhook_id = w.id
		LEFT JOIN fairhook.webhook_failures f ON f.webhook_id = w.id
		WHERE w.id = ANY ($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("read the limits of %d webhooks: %w", len(ids), err)
	}
	limits, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l WebhookLimit, err error) {
		var (
			cause           *GateCause
			until, closedAt *time.Time
			inARow          *int
			probeUntil      *time.Time
			owner           *string
			ownedUntil      *time.Time
		)
		err = row.Scan(&l.ID, &l.URL, &l.State, &l.TimeoutSeconds, &l.MaxInFlight, &l.RatePerSecond, &l.Burst, &l.Weight,
			&cause, &until, &inARow, &closedAt, &probeUntil, &owner, &ownedUntil, &l.Unwell, &l.Ordering, &l.Arranged)
		if err == nil && cause != nil {
			l.Gate = &Gate{*cause, *until, *inARow, *closedAt, probeUntil}
		}
		if err == nil && owner != nil {
			l.Owner, l.OwnedUntil = *owner, *ownedUntil
		}
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the limits of %d webhooks: %w", len(ids), err)
	}
	return limits, nil
}

// probeFresh is how long after an instance was chosen to send a probe asking again
// changes nothing: where notifications cannot arrive it asks each second.
const probeFresh = 10 * time.Second

// ClaimProbes chooses an instance to send the breaker's probe of each of the
// webhooks whose gate would open now, unless another was chosen and has time left.
// It returns until when it may, of those that it got. forAt is parallel to ids: how
// long it has. One that it was chosen for less than probeFresh ago stays as it is.
func ClaimProbes(ctx context.Context, q Querier, instance string, ids []webhook.ID, forAt []time.Duration) (map[webhook.ID]time.Time, error) {
	// What somebody else has locked he is taking, or it is being closed again.
	rows, err := q.Query(ctx, `
		WITH free AS MATERIALIZED (
			SELECT g.webhook_id, a.life
			FROM fairhook.lane_gates g JOIN unnest($2::uuid[], $3::interval[]) AS a (id, life) ON g.webhook_id = a.id
			WHERE g.cause = 'breaker' AND g.until <= now()
			  AND (g.probe_until IS NULL OR g.probe_until <= now() OR g.probe_by = $1)
			ORDER BY g.webhook_id FOR UPDATE OF g SKIP LOCKED
		)
		UPDATE fairhook.lane_gates g SET probe_by = $1, probe_until = CASE
			WHEN g.probe_by = $1 AND g.probe_until > now() + free.life - $4::interval THEN g.probe_until
			ELSE now() + free.life END
		FROM free WHERE g.webhook_id = free.webhook_id
		RETURNING g.webhook_id, g.probe_until`, instance, ids, forAt, probeFresh)
	return collectEnds(rows, err, "claim the probes of %d webhooks", len(ids))
}

// GiveUpProbes ends an instance's claims of probes, except of the webhooks given, which
// it has sent; others hear of it.
func GiveUpProbes(ctx context.Context, q Querier, instance string, except []webhook.ID) error {
	_, err := q.Exec(ctx, `
		WITH mine AS (
			UPDATE fairhook.lane_gates SET probe_by = NULL, probe_until = NULL
			WHERE webhook_id IN (
				SELECT webhook_id FROM fairhook.lane_gates
				WHERE probe_by = $1 AND webhook_id <> ALL ($2) ORDER BY webhook_id FOR UPDATE SKIP LOCKED)
			RETURNING webhook_id
		)
		SELECT pg_notify('fairhook.lanes', webhook_id::text) FROM mine`, instance, except)
	if err != nil {
		return fmt.Errorf("give up the probes of %s: %w", instance, err)
	}
	return nil
}

// Lease is an instance's ownership of a lane.
type Lease struct {
	Until time.Time
	// Epoch grows with each new owner.
	Epoch int64
	// Arranged is as in WebhookLimit.
	Arranged string
}

// ClaimLanes makes an instance the owner of lanes for so long, of those that have no
// other owner whose lease goes on. It returns its leases, and when those of others end.
func ClaimLanes(ctx context.Context, q Querier, instance string, ids []webhook.ID, lease time.Duration) (mine map[webhook.ID]Lease, others map[webhook.ID]time.Time, err error) {
	mine = map[webhook.ID]Lease{}
	rows, err := q.Query(ctx, `
		INSERT INTO fairhook.lane_owners AS o (webhook_id, owner, until)
		SELECT id, $1, now() + $3::interval FROM unnest($2::uuid[]) AS a (id) ORDER BY id
		ON CONFLICT (webhook_id) DO UPDATE
		SET owner = excluded.owner, until = excluded.until, epoch = o.epoch + CASE o.owner WHEN $1 THEN 0 ELSE 1 END
		WHERE o.owner = $1 OR o.until <= now()
		RETURNING o.webhook_id, o.until, o.epoch, o.ordering`, instance, ids, lease)
	if err == nil {
		var (
			id webhook.ID
			l  Lease
		)
		_, err = pgx.ForEachRow(rows, []any{&id, &l.Until, &l.Epoch, &l.Arranged}, func() error {
			mine[id] = l
			return nil
		})
	}
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("claim %d lanes: %w", len(ids), err)
	case len(mine) == len(ids):
		return mine, nil, nil
	}
	rows, err = q.Query(ctx, `
		SELECT webhook_id, until FROM fairhook.lane_owners WHERE webhook_id = ANY ($1) AND owner <> $2`, ids, instance)
	others, err = collectEnds(rows, err, "read the owners of %d lanes", len(ids))
	return mine, others, err
}

// RenewLanes prolongs an instance's leases of lanes, and returns when those that it
// still has end.
func RenewLanes(ctx context.Context, q Querier, instance string, ids []webhook.ID, lease time.Duration) (map[webhook.ID]time.Time, error) {
	rows, err := q.Query(ctx, `
		UPDATE fairhook.lane_owners SET until = now() + $3::interval
		WHERE webhook_id IN (
			SELECT webhook_id FROM fairhook.lane_owners
			WHERE webhook_id = ANY ($2) AND owner = $1 AND until > now() ORDER BY webhook_id FOR UPDATE)
		RETURNING webhook_id, until`, instance, ids, lease)
	return collectEnds(rows, err, "renew the leases of %d lanes", len(ids))
}

// ShareLanes ends an instance's leases of lanes whose caps can be divided again, from
// now on: others hear of it, and see in WebhookLimit.Owner since when it has kept to its
// part.
func ShareLanes(ctx context.Context, q Querier, instance string, ids []webhook.ID) error {
	_, err := q.Exec(ctx, `
		WITH mine AS (
			UPDATE fairhook.lane_owners SET until = now()
			WHERE webhook_id IN (
				SELECT webhook_id FROM fairhook.lane_owners
				WHERE webhook_id = ANY ($2) AND owner = $1 AND until > now() ORDER BY webhook_id FOR UPDATE)
			RETURNING webhook_id
		)
		SELECT pg_notify('fairhook.lanes', webhook_id::text) FROM mine`, instance, ids)
	if err != nil {
		return fmt.Errorf("share %d lanes: %w", len(ids), err)
	}
	return nil
}

// GiveUpLanes ends all leases of an instance; others hear of it. What a lane is arranged
// for is kept.
func GiveUpLanes(ctx context.Context, q Querier, instance string) error {
	var batch pgx.Batch
	batch.Queue(`DELETE FROM fairhook.lane_owners WHERE owner = $1 AND ordering = 'none'`, instance)
	batch.Queue(`
		WITH mine AS (
			UPDATE fairhook.lane_owners SET until = now()
			WHERE webhook_id IN (
				SELECT webhook_id FROM fairhook.lane_owners WHERE owner = $1 AND until > now() ORDER BY webhook_id FOR UPDATE)
			RETURNING webhook_id
		)
		SELECT pg_notify('fairhook.lanes', webhook_id::text) FROM mine`, instance)
	if err := q.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("give up the lanes of %s: %w", instance, err)
	}
	return nil
}

// collectEnds reads rows of a webhook and a time.
func collectEnds(rows pgx.Rows, err error, what string, args ...any) (map[webhook.ID]time.Time, error) {
	ends := map[webhook.ID]time.Time{}
	if err == nil {
		var (
			id  webhook.ID
			end time.Time
		)
		_, err = pgx.ForEachRow(rows, []any{&id, &end}, func() error {
			ends[id] = end
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf(what+": %w", append(args, err)...)
	}
	return ends, nil
}
