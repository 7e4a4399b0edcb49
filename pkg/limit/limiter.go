package limit

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/postgres"
)

const (
	exchangeTimeout = 500 * time.Millisecond
	// maxWait bounds a call of Take.
	maxWait = 800 * time.Millisecond
	// exchangeGap is the least time between two exchanges, so that callers who
	// come one by one share them.
	exchangeGap = 5 * time.Millisecond
	// maxAsks bounds one exchange.
	maxAsks = 1000
	// troublePause is how long callers are refused after an exchange that failed.
	troublePause = 100 * time.Millisecond
)

// ErrUnknown says that the database could not be asked what a bucket holds.
var ErrUnknown = errors.New("the token buckets cannot be reached")

// LimiterConfig is what a Limiter needs.
type LimiterConfig struct {
	// Exchange is postgres.ExchangeTokens on some pool.
	Exchange func(ctx context.Context, asks []postgres.TokenAsk) (map[string]postgres.TokenGrant, error)
	// Logger hears of exchanges that fail, once for each time of trouble. nil:
	// nobody does.
	Logger *slog.Logger
	// Registerer receives the metrics. nil: there are none.
	Registerer prometheus.Registerer
}

// Refusal says which bucket had no token.
type Refusal struct {
	Bucket Bucket
	// RetryAfter is when it has one again, if nobody else takes it.
	RetryAfter time.Duration
}

// Limiter hands out tokens. Its methods are safe for concurrent use.
type Limiter struct {
	exchange func(ctx context.Context, asks []postgres.TokenAsk) (map[string]postgres.TokenGrant, error)
	logger   *slog.Logger
	metrics  *limiterMetrics
	kick     chan struct{} // holds one; somebody waits for the next exchange

	// mu guards what follows. It is never held while waiting for anything.
	mu     sync.Mutex
	ledger *ledger
	// next is closed when the exchange that comes next has ended.
	next chan struct{}
	// troubleUntil is until when nothing is asked for, since an exchange failed.
	troubleUntil time.Time
	trouble      bool
}

// NewLimiter makes a limiter. It starts nothing: tokens come once Run runs.
func NewLimiter(cfg LimiterConfig) *Limiter {
	l := &Limiter{
		exchange: cfg.Exchange,
		logger:   cfg.Logger,
		kick:     make(chan struct{}, 1),
		ledger:   newLedger(),
		next:     make(chan struct{}),
	}
	if l.logger == nil {
		l.logger = slog.New(slog.DiscardHandler)
	}
	l.metrics = newLimiterMetrics(cfg.Registerer)
	return l
}

// Take takes one token out of each bucket, or none out of any, and then says
// which had none. No two buckets may have one name. Where tokens are in memory,
// or a bucket is known to be empty, it answers at once; otherwise it waits for
// the next exchange with the database, which others share. The error is
// ErrUnknown, within a second, when that cannot be had, or ctx's.
func (l *Limiter) Take(ctx context.Context, buckets ...Bucket) (*Refusal, error) {
	refusals, err := l.take(ctx, [][]Bucket{buckets})
	if err != nil {
		return nil, err
	}
	return refusals[0], nil
}

// TakeEach takes one token out of each bucket that has one: an answer of nil
// means taken. Otherwise it is as Take; after an error no token is taken.
func (l *Limiter) TakeEach(ctx context.Context, buckets []Bucket) ([]*Refusal, error) {
	groups := make([][]Bucket, len(buckets))
	for i := range buckets {
		groups[i] = buckets[i : i+1]
	}
	return l.take(ctx, groups)
}

// take answers each group of buckets by itself.
func (l *Limiter) take(ctx context.Context, groups [][]Bucket) ([]*Refusal, error) {
	var (
		refusals = make([]*Refusal, len(groups))
		open     = make([]int, len(groups)) // groups without an answer
		again    = false
		expired  <-chan time.Time
	)
	for i := range groups {
		open[i] = i
	}
	for {
		now := time.Now()
		l.mu.Lock()
		open = slices.DeleteFunc(open, func(i int) bool {
			v, culprit, wait := l.ledger.take(now, groups[i], again)
			if v == refused {
				refusals[i] = &Refusal{groups[i][culprit], wait}
			}
			return v != wanting
		})
		next := l.next
		trouble := now.Before(l.troubleUntil)
		l.mu.Unlock()
		if len(open) == 0 {
			return refusals, nil
		}
		var err error
		if trouble {
			err = ErrUnknown
		} else {
			if expired == nil {
				timer := time.NewTimer(maxWait)
				defer timer.Stop()
				expired = timer.C
			}
			select {
			case l.kick <- struct{}{}:
			default:
			}
			l.metrics.waits.Inc()
			select {
			case <-next:
			case <-ctx.Done():
				err = ctx.Err()
			case <-expired:
				err = ErrUnknown
			}
		}
		if err != nil {
			for i, buckets := range groups {
				if refusals[i] == nil && !slices.Contains(open, i) {
					l.Refund(buckets...)
				}
			}
			return nil, err
		}
		again = true
	}
}

// Refund gives back one token of each bucket, taken a moment ago and not used.
func (l *Limiter) Refund(buckets ...Bucket) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range buckets {
		l.ledger.refund(now, b.Name)
	}
}

// Run exchanges tokens with the database until ctx ends, and then gives back
// those that it has. It returns nil.
func (l *Limiter) Run(ctx context.Context) error {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		tick := false
		select {
		case <-ctx.Done():
			continue
		case <-ticker.C:
			tick = true
		case <-l.kick:
		}
		if l.runOnce(ctx, tick) {
			select {
			case <-ctx.Done():
			case <-time.After(exchangeGap):
			}
		}
	}
	l.mu.Lock()
	asks := l.ledger.drain(time.Now())
	l.mu.Unlock()
	if len(asks) == 0 {
		return nil
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), exchangeTimeout)
	defer cancel()
	if _, err := l.exchange(stop, asks); err == nil {
		for _, ask := range asks {
			l.metrics.returned.Add(float64(ask.GiveBack))
		}
	}
	return nil // tokens that are not given back come again with time
}

// runOnce makes one exchange if there is something to ask for, and reports
// whether it did.
func (l *Limiter) runOnce(ctx context.Context, tick bool) bool {
	sent := time.Now()
	l.mu.Lock()
	asks := l.ledger.plan(sent, tick, maxAsks)
	done := l.next
	if len(asks) == 0 {
		// Whoever waits does so for a bucket that is known to be dry by now, or that
		// somebody filled: it can look again.
		if !tick {
			l.next = make(chan struct{})
			close(done)
		}
		l.count()
		l.mu.Unlock()
		return false
	}
	l.next = make(chan struct{})
	l.mu.Unlock()

	exchangeCtx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	grants, err := l.exchange(exchangeCtx, asks)
	cancel()

	now := time.Now()
	l.metrics.exchange(now.Sub(sent), len(asks), err)
	l.mu.Lock()
	defer l.mu.Unlock()
	defer close(done)
	if err != nil {
		l.troubleUntil = now.Add(troublePause)
		if !l.trouble && ctx.Err() == nil {
			l.logger.WarnContext(ctx, "cannot reach the token buckets: what is limited is refused", "error", err)
		}
		l.trouble = true
		return true
	}
	if l.trouble {
		l.logger.InfoContext(ctx, "the token buckets can be reached again")
	}
	l.trouble, l.troubleUntil = false, time.Time{}
	l.ledger.settle(sent, now, asks, grants)
	l.count()
	return true
}

// count moves the ledger's tally into the metrics. The caller holds mu.
func (l *Limiter) count() {
	t := &l.ledger.tally
	l.metrics.leased.Add(float64(t.leased))
	l.metrics.returned.Add(float64(t.returned))
	l.metrics.expired.Add(float64(t.expired))
	*t = tally{}
}
