package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Beat is what an instance says of itself with each heartbeat.
type Beat struct {
	ID            string
	Role          webhook.Role
	Version, Host string
	Capacity      int  // how much it can take at once
	InFlight      int  // how much of that is in use
	Draining      bool // it was told to stop
}

// WriteBeat writes an instance's heartbeat by the database's clock, and returns
// how many instances of its role were heard of within stale, itself included. One
// that drains is among them: it holds what it has until it leaves.
func WriteBeat(ctx context.Context, q Querier, b Beat, stale time.Duration) (alive int, err error) {
	err = q.QueryRow(ctx, `
		WITH beat AS (
			INSERT INTO fairhook.instances (id, role, version, host, capacity, in_flight, draining, reads_sealed_headers)
			VALUES ($1, $2, $3, $4, $5, $6, $7, true)
			ON CONFLICT (id) DO UPDATE SET heartbeat_at = now(),
				capacity = EXCLUDED.capacity, in_flight = EXCLUDED.in_flight, draining = EXCLUDED.draining
		)
		SELECT 1 + count(*) FROM fairhook.instances
		WHERE role = $2 AND id <> $1 AND heartbeat_at > now() - $8::interval`,
		b.ID, b.Role, b.Version, b.Host, b.Capacity, b.InFlight, b.Draining, stale).Scan(&alive)
	if err != nil {
		return 0, fmt.Errorf("write the heartbeat of %s: %w", b.ID, err)
	}
	return alive, nil
}

// CountUnaware counts the other instances of a role that were heard of within
// stale, and not since a moment, of the database's clock, at which id's row was
// committed: they may not have read it yet. It also returns the present moment.
func CountUnaware(ctx context.Context, q Querier, id string, role webhook.Role, since time.Time, stale time.Duration) (n int, now time.Time, err error) {
	err = q.QueryRow(ctx, `
		SELECT count(*), clock_timestamp() FROM fairhook.instances
		WHERE role = $2 AND id <> $1 AND heartbeat_at > now() - $4::interval AND heartbeat_at <= $3`,
		id, role, since, stale).Scan(&n, &now)
	if err != nil {
		return 0, now, fmt.Errorf("ask who knows of %s: %w", id, err)
	}
	return n, now, nil
}

// Leave removes an instance that stops in order.
func Leave(ctx context.Context, q Querier, id string) error {
	if _, err := q.Exec(ctx, `DELETE FROM fairhook.instances WHERE id = $1`, id); err != nil {
		return fmt.Errorf("remove instance %s: %w", id, err)
	}
	return nil
}

// InstancePosition is where an instance stands in the order of Instances.
type InstancePosition struct {
	StartedAt time.Time
	ID        string
}

// Instances reads the instances, the one that started last first: at most limit,
// and with after only those that follow it. One that was not heard of for stale
// has the status stale.
func Instances(ctx context.Context, q Querier, after *InstancePosition, limit int, stale time.Duration) ([]webhook.Instance, error) {
	position := InstancePosition{}
	if after != nil {
		position = *after
	}
	rows, err := q.Query(ctx, `
		SELECT i.id, i.role, i.version, i.host, i.started_at, i.heartbeat_at, i.capacity, i.in_flight, i.draining,
		       EXISTS (SELECT FROM fairhook.river_leader l WHERE l.leader_id = i.id AND l.expires_at > now()),
		       CASE WHEN i.heartbeat_at > now() - $1::interval THEN $2::text ELSE $3::text END
		FROM fairhook.instances i
		WHERE $4 OR (i.started_at, i.id) < ($5, $6)
		ORDER BY i.started_at DESC, i.id DESC LIMIT $7`,
		stale, webhook.InstanceAlive, webhook.InstanceStale, after == nil, position.StartedAt, position.ID, limit)
	if err != nil {
		return nil, fmt.Errorf("read the instances: %w", err)
	}
	instances, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (i webhook.Instance, err error) {
		err = row.Scan(&i.ID, &i.Role, &i.Version, &i.Host, &i.StartedAt, &i.HeartbeatAt, &i.Capacity, &i.InFlight,
			&i.Draining, &i.Leader, &i.Status)
		i.StartedAt, i.HeartbeatAt = i.StartedAt.UTC(), i.HeartbeatAt.UTC()
		return i, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the instances: %w", err)
	}
	return instances, nil
}
