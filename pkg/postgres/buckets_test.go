package postgres_test

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

func TestExchangeTokens(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	exchange := func(t *testing.T, asks ...postgres.TokenAsk) map[string]postgres.TokenGrant {
		t.Helper()
		grants, err := postgres.ExchangeTokens(t.Context(), pool, asks)
		if err != nil {
			t.Fatal(err)
		}
		if len(grants) != len(asks) {
			t.Fatalf("%d answers to %d asks", len(grants), len(asks))
		}
		return grants
	}
	// Rates so low that nothing comes in during a test.
	const none = 1e-9
	near := func(a, b float64) bool { return math.Abs(a-b) < 1e-3 }

	t.Run("ANewBucketIsFull", func(t *testing.T) {
		t.Parallel()
		got := exchange(t, postgres.TokenAsk{Name: "new", Rate: none, Capacity: 5.5, Want: 4})["new"]
		if got.Tokens != 4 || !near(got.Left, 1.5) || time.Since(got.TakenAt).Abs() > time.Minute {
			t.Errorf("granted %+v", got)
		}
	})
	t.Run("GivesWholeTokensAndNotMoreThanItHas", func(t *testing.T) {
		t.Parallel()
		ask := postgres.TokenAsk{Name: "whole", Rate: none, Capacity: 2.7, Want: 10}
		if got := exchange(t, ask)["whole"]; got.Tokens != 2 || !near(got.Left, 0.7) {
			t.Errorf("granted %+v", got)
		}
		if got := exchange(t, ask)["whole"]; got.Tokens != 0 || !near(got.Left, 0.7) {
			t.Errorf("then granted %+v", got)
		}
	})
	t.Run("FillsAtItsRateUpToItsCapacity", func(t *testing.T) {
		t.Parallel()
		exchange(t, postgres.TokenAsk{Name: "rate", Rate: none, Capacity: 100, Want: 100})
		age := func(seconds float64) {
			_, err := pool.Exec(t.Context(), `UPDATE fairhook.rate_buckets SET updated_at = now() - $1 * interval '1 s' WHERE name = 'rate'`, seconds)
			if err != nil {
				t.Fatal(err)
			}
		}
		age(3)
		if got := exchange(t, postgres.TokenAsk{Name: "rate", Rate: 10, Capacity: 100, Want: 100})["rate"]; got.Tokens != 30 {
			t.Errorf("granted %+v after 3 s", got)
		}
		age(1e6)
		if got := exchange(t, postgres.TokenAsk{Name: "rate", Rate: 10, Capacity: 100, Want: 1000})["rate"]; got.Tokens != 100 {
			t.Errorf("granted %+v after a long time", got)
		}
		age(-1e6) // the clock was set back
		if got := exchange(t, postgres.TokenAsk{Name: "rate", Rate: 10, Capacity: 100, Want: 1})["rate"]; got.Tokens != 0 {
			t.Errorf("granted %+v after less than no time", got)
		}
	})
	t.Run("TakesTokensBackWhileTheyLive", func(t *testing.T) {
		t.Parallel()
		got := exchange(t, postgres.TokenAsk{Name: "back", Rate: none, Capacity: 10, Want: 10})["back"]
		late := postgres.TokenAsk{Name: "back", Rate: none, Capacity: 10, GiveBack: 4, TakenAt: got.TakenAt.Add(-2 * postgres.LeaseLife)}
		if got := exchange(t, late)["back"]; !near(got.Left, 0) {
			t.Errorf("late ones count: %+v", got)
		}
		inTime := late
		inTime.TakenAt = got.TakenAt.Add(time.Hour)
		if got := exchange(t, inTime)["back"]; !near(got.Left, 4) {
			t.Errorf("others do not: %+v", got)
		}
		inTime.GiveBack = 40
		if got := exchange(t, inTime)["back"]; !near(got.Left, 10) {
			t.Errorf("more than fits: %+v", got)
		}
	})
	t.Run("OneRateTooLowToCountDoesNotFailTheOthers", func(t *testing.T) {
		t.Parallel()
		// Postgres refuses a product that underflows, and with it the whole exchange.
		asks := []postgres.TokenAsk{
			{Name: "tiny/a", Rate: math.SmallestNonzeroFloat64, Capacity: 1, Want: 1},
			{Name: "tiny/b", Rate: none, Capacity: 100, Want: 1},
		}
		for round := range 2 {
			got := exchange(t, asks...)
			if got["tiny/b"].Tokens != 1 || got["tiny/a"].Tokens != 1-round {
				t.Errorf("round %d granted %+v", round, got)
			}
		}
	})
	t.Run("OverlappingExchangesGrantEachTokenOnce", func(t *testing.T) {
		t.Parallel()
		var names []string
		for i := range 20 {
			names = append(names, fmt.Sprintf("shared/%02d", i))
		}
		var (
			mu      sync.Mutex
			granted = map[string]int{}
			calls   sync.WaitGroup
		)
		for n := range 8 {
			calls.Go(func() {
				for round := range 10 {
					var asks []postgres.TokenAsk
					for i, name := range names {
						if (i+n+round)%3 != 0 {
							asks = append(asks, postgres.TokenAsk{Name: name, Rate: none, Capacity: 50, Want: 3})
						}
					}
					grants, err := postgres.ExchangeTokens(t.Context(), pool, asks)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					for name, g := range grants {
						granted[name] += g.Tokens
					}
					mu.Unlock()
				}
			})
		}
		calls.Wait()
		for _, name := range names {
			if granted[name] != 50 {
				t.Errorf("%s granted %d of 50", name, granted[name])
			}
		}
	})
}

func TestUntilNextToken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		left, rate float64
		want       time.Duration
	}{
		{0.5, 2, 250 * time.Millisecond},
		{0, 0.001, 1000 * time.Second},
		{3, 1, 0},
		{0, 1e-12, time.Hour},
		{0, math.SmallestNonzeroFloat64, time.Hour}, // the quotient is infinite
	} {
		if got := (postgres.TokenGrant{Left: c.left}).UntilNext(c.rate); got != c.want {
			t.Errorf("with %g at %g a second: %s, want %s", c.left, c.rate, got, c.want)
		}
	}
}

func TestForgetBuckets(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	ask := func(name string) postgres.TokenAsk {
		return postgres.TokenAsk{Name: name, Rate: 1, Capacity: 2, Want: 1}
	}
	if _, err := postgres.ExchangeTokens(t.Context(), pool, []postgres.TokenAsk{ask("new"), ask("old")}); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE fairhook.rate_buckets SET updated_at = now() - interval '25 h' WHERE name = 'old'`); err != nil {
		t.Fatal(err)
	}
	if n, err := postgres.ForgetBuckets(t.Context(), pool, 24*time.Hour); n != 1 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	if got := bucketNames(t, pool); !slices.Equal(got, []string{"new"}) {
		t.Errorf("left are %v", got)
	}
}

func bucketNames(t *testing.T, pool *pgxpool.Pool) (names []string) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT array_agg(name) FROM fairhook.rate_buckets`).Scan(&names); err != nil {
		t.Fatal(err)
	}
	return names
}
