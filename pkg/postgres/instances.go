package postgres

import (
	"context"
	"fmt"
	"time"
)

// Role is what kind of process an instance is.
type Role string

// The closed set of roles.
const (
	RoleIngest     Role = "ingest"
	RoleDispatcher Role = "dispatcher"
)

// Beat writes an instance's heartbeat by the database's clock, and returns how
// many instances of its role were heard of within stale, itself included.
func Beat(ctx context.Context, q Querier, id string, role Role, version, host string, stale time.Duration) (alive int, err error) {
	err = q.QueryRow(ctx, `
		WITH beat AS (
			INSERT INTO fairhook.instances (id, role, version, host) VALUES ($1, $2, $3, $4)
			ON CONFLICT (id) DO UPDATE SET heartbeat_at = now()
		)
		SELECT 1 + count(*) FROM fairhook.instances
		WHERE role = $2 AND id <> $1 AND heartbeat_at > now() - $5::interval`,
		id, role, version, host, stale).Scan(&alive)
	if err != nil {
		return 0, fmt.Errorf("write the heartbeat of %s: %w", id, err)
	}
	return alive, nil
}

// Leave removes an instance that stops in order.
func Leave(ctx context.Context, q Querier, id string) error {
	if _, err := q.Exec(ctx, `DELETE FROM fairhook.instances WHERE id = $1`, id); err != nil {
		return fmt.Errorf("remove instance %s: %w", id, err)
	}
	return nil
}

// ForgetInstances removes instances not heard of for longer than after, and
// returns how many.
func ForgetInstances(ctx context.Context, q Querier, after time.Duration) (int64, error) {
	tag, err := q.Exec(ctx, `DELETE FROM fairhook.instances WHERE heartbeat_at < now() - $1::interval`, after)
	if err != nil {
		return 0, fmt.Errorf("forget dead instances: %w", err)
	}
	return tag.RowsAffected(), nil
}
