package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// LeaseLife is how long a token may be out of its bucket: what is given back
// later than that is void.
const LeaseLife = 150 * time.Millisecond

// leastRate is what lower rates are raised to, in tokens a second: one in 30 years.
// Postgres refuses a product that is too small for a number, and with one bucket's
// would refuse the exchange of all.
const leastRate = 1e-9

// TokenAsk asks one bucket for tokens, or gives some back.
type TokenAsk struct {
	Name string
	// Rate is how many tokens a second the bucket gets, and Capacity how many it
	// can hold.
	Rate, Capacity float64
	Want           int
	// GiveBack is how many tokens taken at TakenAt were not used.
	GiveBack int
	TakenAt  time.Time // by the database's clock
}

// TokenGrant is what a bucket gave.
type TokenGrant struct {
	Tokens  int       // at most what was wanted, and whole ones only
	Left    float64   // what is in the bucket after that
	TakenAt time.Time // by the database's clock
}

// longestDry bounds UntilNext: the time until a token of the lowest rates is more than
// a Duration can hold.
const longestDry = time.Hour

// UntilNext is when the bucket, which gets so many tokens a second, has a whole one
// again if nobody else takes it; at most an hour, after which it is worth another look.
func (g TokenGrant) UntilNext(rate float64) time.Duration {
	return time.Duration(min(max(0, 1-g.Left)/rate, longestDry.Seconds()) * float64(time.Second))
}

// ExchangeTokens gives tokens back to their buckets and takes others out, all in
// one transaction and one round trip. A bucket that does not exist is a full one.
// No two asks may be for the same bucket. Asks must be sorted by name, byte by
// byte, so that processes lock buckets in one order.
//
// The buckets are in an unlogged table, so the commit waits for no disk. After an
// error it is not known whether the exchange took place.
func ExchangeTokens(ctx context.Context, q Querier, asks []TokenAsk) (map[string]TokenGrant, error) {
	n := len(asks)
	var (
		names             = make([]string, n)
		rates, capacities = make([]float64, n), make([]float64, n)
		wants, backs      = make([]int32, n), make([]int32, n)
		takenAt           = make([]time.Time, n)
	)
	for i, a := range asks {
		names[i], rates[i], capacities[i] = a.Name, max(a.Rate, leastRate), a.Capacity
		wants[i], backs[i], takenAt[i] = int32(a.Want), int32(a.GiveBack), a.TakenAt
	}
	var batch pgx.Batch
	batch.Queue(`
		INSERT INTO fairhook.rate_buckets (name, tokens, updated_at)
		SELECT name, capacity, clock_timestamp()
		FROM unnest($1::text[], $2::float8[]) WITH ORDINALITY AS a (name, capacity, ord)
		ORDER BY ord
		ON CONFLICT DO NOTHING`, names, capacities)
	batch.Queue(`
		SELECT FROM fairhook.rate_buckets WHERE name = ANY ($1) ORDER BY name COLLATE "C" FOR UPDATE`, names)
	// A statement of its own: its snapshot is taken with the locks held, so what it
	// reads is what it changes.
	var grants map[string]TokenGrant
	batch.Queue(`
		UPDATE fairhook.rate_buckets AS b
		SET tokens = n.tokens - n.granted, updated_at = n.at
		FROM (
			SELECT f.name, f.tokens, f.at, least(floor(f.tokens), f.want) AS granted
			FROM (
				SELECT o.name, a.want, t.at,
				       least(a.capacity, greatest(0, o.tokens)
				           + a.rate * greatest(0, extract(epoch FROM t.at - o.updated_at)::float8)
				           + CASE WHEN t.at - a.taken_at <= $7 THEN a.back ELSE 0 END) AS tokens
				FROM unnest($1::text[], $2::float8[], $3::float8[], $4::integer[], $5::integer[], $6::timestamptz[])
				         AS a (name, rate, capacity, want, back, taken_at)
				JOIN fairhook.rate_buckets AS o USING (name),
				     (SELECT clock_timestamp() AS at OFFSET 0) AS t
				OFFSET 0
			) AS f
		) AS n
		WHERE b.name = n.name
		RETURNING b.name, n.granted::integer, b.tokens, b.updated_at`,
		names, rates, capacities, wants, backs, takenAt, LeaseLife,
	).Query(func(rows pgx.Rows) error {
		grants = make(map[string]TokenGrant, n)
		var (
			name string
			g    TokenGrant
		)
		_, err := pgx.ForEachRow(rows, []any{&name, &g.Tokens, &g.Left, &g.TakenAt}, func() error {
			grants[name] = g
			return nil
		})
		return err
	})
	if err := q.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("exchange tokens of %d buckets: %w", n, err)
	}
	return grants, nil
}

// ForgetBuckets deletes buckets that nobody took from for longer than after, and
// returns how many: they are full, as one that does not exist is.
func ForgetBuckets(ctx context.Context, q Querier, after time.Duration) (int64, error) {
	tag, err := q.Exec(ctx, `
		DELETE FROM fairhook.rate_buckets WHERE name IN (
			SELECT name FROM fairhook.rate_buckets
			WHERE updated_at < now() - $1::interval
			LIMIT 10000 FOR UPDATE SKIP LOCKED
		)`, after)
	if err != nil {
		return 0, fmt.Errorf("forget unused token buckets: %w", err)
	}
	return tag.RowsAffected(), nil
}
