package limit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/limit"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

type exchange func(ctx context.Context, asks []postgres.TokenAsk) (map[string]postgres.TokenGrant, error)

// start runs a limiter until the test ends or stop is called, which waits.
func start(t *testing.T, f exchange) (l *limit.Limiter, stop func()) {
	t.Helper()
	l = limit.NewLimiter(limit.LimiterConfig{Exchange: f, Registerer: prometheus.NewRegistry()})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return l, stop
}

// Four processes on one database. Not in parallel with others: it measures.
func TestProcessesShareRates(t *testing.T) {
	pool := pgtest.DB(t)
	var exchanges atomic.Int64
	const (
		processes = 4
		length    = 4 * time.Second
	)
	buckets := []limit.Bucket{{Name: "webhook/quick", Rate: 1000}, {Name: "webhook/slow", Rate: 20}}
	admitted, calls := make([]atomic.Int64, len(buckets)), make([]atomic.Int64, len(buckets))

	limiters := make([]*limit.Limiter, processes)
	for i := range limiters {
		limiters[i], _ = start(t, func(ctx context.Context, asks []postgres.TokenAsk) (map[string]postgres.TokenGrant, error) {
			exchanges.Add(1)
			return postgres.ExchangeTokens(ctx, pool, asks)
		})
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var callers sync.WaitGroup
	const callersEach = 8 // of each process, for each bucket
	for i, b := range buckets {
		// Twice the rate, evenly.
		turns := make(chan struct{})
		callers.Go(func() {
			defer close(turns)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for given := 0.0; ctx.Err() == nil; <-tick.C {
				for ; given < 2*b.Rate*time.Since(began).Seconds(); given++ {
					select {
					case turns <- struct{}{}:
					case <-ctx.Done():
						return
					}
				}
			}
		})
		for n := range processes * callersEach {
			l := limiters[n%processes]
			callers.Go(func() {
				for range turns {
					refusal, err := l.Take(ctx, b)
					calls[i].Add(1)
					switch {
					case ctx.Err() != nil:
					case err != nil:
						t.Error(err)
						return
					case refusal == nil:
						admitted[i].Add(1)
					case refusal.Bucket != b || refusal.RetryAfter <= 0:
						t.Errorf("refused with %+v", refusal)
						return
					}
				}
			})
		}
	}
	callers.Wait()
	seconds := time.Since(began).Seconds()
	for i, b := range buckets {
		got, asked := float64(admitted[i].Load()), float64(calls[i].Load())
		// The bucket was full at first. A machine that is too busy to ask for much
		// more than the rate gets less.
		least, most := 0.9*min(b.Rate*length.Seconds(), 0.75*asked), b.Rate*(seconds+0.5)
		if got < least || got > most {
			t.Errorf("%s: %v were admitted in %.2f s, not %v to %v", b.Name, got, seconds, least, most)
		}
	}
	if n, c := exchanges.Load(), calls[0].Load(); n > c/5 {
		t.Errorf("%d calls took %d exchanges", c, n)
	}
}

func TestStoppingReturnsTokens(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	var back atomic.Int64
	l, stop := start(t, func(ctx context.Context, asks []postgres.TokenAsk) (map[string]postgres.TokenGrant, error) {
		for _, a := range asks {
			back.Add(int64(a.GiveBack))
		}
		return postgres.ExchangeTokens(ctx, pool, asks)
	})
	bucket := limit.Bucket{Name: "global", Rate: 1000}
	for range 40 {
		if refusal, err := l.Take(t.Context(), bucket); refusal != nil || err != nil {
			t.Fatal(refusal, err)
		}
	}
	// The last lease is as large as all that was taken before it.
	stop()
	if back.Load() == 0 {
		t.Error("nothing was given back")
	}
	if _, err := l.Take(t.Context(), bucket); !errors.Is(err, limit.ErrUnknown) {
		t.Errorf("a stopped limiter says %v", err)
	}
}

func TestTakeEachAnswersEachBucket(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	l, _ := start(t, func(ctx context.Context, asks []postgres.TokenAsk) (map[string]postgres.TokenGrant, error) {
		return postgres.ExchangeTokens(ctx, pool, asks)
	})
	buckets := make([]limit.Bucket, 50)
	for i := range buckets {
		buckets[i] = limit.Bucket{Name: fmt.Sprintf("webhook/%d", i), Rate: 0.01}
	}
	for range 2 { // as many as they hold
		if refusal, err := l.Take(t.Context(), buckets[7]); refusal != nil || err != nil {
			t.Fatal(refusal, err)
		}
	}
	refusals, err := l.TakeEach(t.Context(), buckets)
	if err != nil || len(refusals) != len(buckets) {
		t.Fatal(len(refusals), err)
	}
	for i, r := range refusals {
		if (r != nil) != (i == 7) || r != nil && (r.Bucket != buckets[7] || r.RetryAfter < 50*time.Second) {
			t.Errorf("bucket %d: %+v", i, r)
		}
	}
}

func TestTakeWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	t.Run("FailsWithinASecond", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l, stop := start(t, func(ctx context.Context, _ []postgres.TokenAsk) (map[string]postgres.TokenGrant, error) {
				<-ctx.Done() // hangs
				return nil, ctx.Err()
			})
			defer stop()
			began := time.Now()
			_, err := l.Take(t.Context(), limit.Bucket{Name: "global", Rate: 10})
			if took := time.Since(began); !errors.Is(err, limit.ErrUnknown) || took > time.Second {
				t.Errorf("%v after %v", err, took)
			}
		})
	})
	t.Run("AndResumesWhenItIsBack", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var back atomic.Bool
			l, stop := start(t, func(_ context.Context, asks []postgres.TokenAsk) (map[string]postgres.TokenGrant, error) {
				if !back.Load() {
					return nil, errors.New("away")
				}
				return map[string]postgres.TokenGrant{asks[0].Name: {Tokens: asks[0].Want}}, nil
			})
			defer stop()
			bucket := limit.Bucket{Name: "global", Rate: 10}
			if _, err := l.Take(t.Context(), bucket); !errors.Is(err, limit.ErrUnknown) {
				t.Fatalf("error is %v", err)
			}
			back.Store(true)
			time.Sleep(200 * time.Millisecond) // in the bubble: no real time
			if refusal, err := l.Take(t.Context(), bucket); refusal != nil || err != nil {
				t.Errorf("%+v, %v", refusal, err)
			}
		})
	})
	t.Run("ACallerThatLeavesIsLetGo", func(t *testing.T) {
		t.Parallel()
		l := limit.NewLimiter(limit.LimiterConfig{}) // does not run
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.Take(ctx, limit.Bucket{Name: "global", Rate: 10}); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
	})
}
