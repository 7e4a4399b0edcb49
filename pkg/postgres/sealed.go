package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// SealedColumn is a column whose values are sealed (package seal), of a table whose
// key is the uuid Key.
type SealedColumn struct {
	Table, Key, Column string
	// Context is the SQL expression for what a value is bound to.
	Context string
}

// String names the column.
func (c SealedColumn) String() string { return c.Table + "." + c.Column }

// SealedColumns are all columns that hold sealed values. What is not listed here
// cannot be opened any more once its key is gone: a test compares the list with
// the schema.
func SealedColumns() []SealedColumn {
	return []SealedColumn{
		{"webhook_secrets", "id", "sealed", "webhook_id::text"},
		{"api_key_secrets", "id", "sealed", "key_id::text"},
		{"webhook_credentials", "webhook_id", "sealed", "'credentials ' || webhook_id"}, // identity.Context
	}
}

// SealedValue is one value of a SealedColumn.
type SealedValue struct {
	ID      webhook.ID
	Context string
	Sealed  []byte
}

// SealedCount is how many values of a column begin alike.
type SealedCount struct {
	Prefix []byte // shorter than asked for where a value is
	Values int
}

// SealedPrefixes counts the values of a column by their first size bytes, which
// tell under which key they are sealed. It reads the whole table.
func SealedPrefixes(ctx context.Context, q Querier, c SealedColumn, size int) ([]SealedCount, error) {
	rows, err := q.Query(ctx, fmt.Sprintf(`
		SELECT substring(%s FROM 1 FOR $1) AS prefix, count(*) FROM fairhook.%s WHERE %[1]s IS NOT NULL GROUP BY prefix ORDER BY prefix`,
		c.Column, c.Table), size)
	if err != nil {
		return nil, fmt.Errorf("count the sealed values of %s: %w", c, err)
	}
	counts, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (n SealedCount, err error) {
		err = row.Scan(&n.Prefix, &n.Values)
		return n, err
	})
	if err != nil {
		return nil, fmt.Errorf("count the sealed values of %s: %w", c, err)
	}
	return counts, nil
}

// LockSealed reads at most limit values of a column that do not begin with prefix,
// in the order of their ids, from after on, and keeps their rows locked until the
// caller's transaction ends. Rows that somebody else has locked are passed over, so
// that it waits for nobody who may be waiting for it.
func LockSealed(ctx context.Context, tx pgx.Tx, c SealedColumn, prefix []byte, after webhook.ID, limit int) ([]SealedValue, error) {
	rows, err := tx.Query(ctx, fmt.Sprintf(`
		SELECT %s, %s, %s FROM fairhook.%s
		WHERE %[1]s > $1 AND substring(%[3]s FROM 1 FOR $2) <> $3
		ORDER BY %[1]s LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED`, c.Key, c.Context, c.Column, c.Table), after, len(prefix), prefix, limit)
	if err != nil {
		return nil, fmt.Errorf("read the sealed values of %s: %w", c, err)
	}
	values, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v SealedValue, err error) {
		err = row.Scan(&v.ID, &v.Context, &v.Sealed)
		return v, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the sealed values of %s: %w", c, err)
	}
	return values, nil
}

// UpdateSealed writes values of a column, by their ids.
func UpdateSealed(ctx context.Context, tx pgx.Tx, c SealedColumn, values []SealedValue) error {
	ids, sealed := make([]webhook.ID, len(values)), make([][]byte, len(values))
	for i, v := range values {
		ids[i], sealed[i] = v.ID, v.Sealed
	}
	_, err := tx.Exec(ctx, fmt.Sprintf(`
		UPDATE fairhook.%s AS t SET %s = v.sealed FROM unnest($1::uuid[], $2::bytea[]) AS v (id, sealed) WHERE t.%s = v.id`,
		c.Table, c.Column, c.Key), ids, sealed)
	if err != nil {
		return fmt.Errorf("write the sealed values of %s: %w", c, err)
	}
	return nil
}
