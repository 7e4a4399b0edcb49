package fairqueue

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// Lanes with a rate spend tokens of a bucket in the database that all dispatchers
// share. A lane that is woken and has none goes past runTokens first, which asks
// for the tokens of all such lanes at once, and into the ring when it has some. So
// the fetch itself, and every lane without a rate, never waits for tokens.
//
// What dispatchers send in any w seconds is at most what was in the bucket, what
// came in since, and what was out on lease at the beginning:
//
//	rate × (w + 0.2 + 2 × postgres.LeaseLife), or burst instead of 0.2 × rate
const (
	capacitySeconds = 0.2
	// leaseSeconds of the rate are taken out at a time.
	leaseSeconds = 0.1
	// dryPause is the least time between two questions for a bucket that had fewer
	// tokens than were asked for.
	dryPause        = 20 * time.Millisecond
	exchangeTimeout = 2 * time.Second
	exchangePause   = 100 * time.Millisecond // after one that failed
	maxAsks         = 1000
	bucketPrefix    = "delivery/"
)

// bucketCapacity is how many tokens a lane's bucket can hold.
func bucketCapacity(limit Limit) float64 {
	if limit.Burst > 0 {
		return float64(limit.Burst)
	}
	return max(1, limit.RatePerSecond*capacitySeconds)
}

// usable is how many tokens a lane has now.
func (l *lane) usable(now time.Time) int {
	if !now.Before(l.tokensUntil) {
		return 0
	}
	return l.tokens
}

// giveBack takes a lane's tokens away, for the next exchange to return.
func (r *ring) giveBack(l *lane, limit Limit, now time.Time) {
	if n := l.usable(now); n > 0 && limit.RatePerSecond > 0 {
		r.returns = append(r.returns, postgres.TokenAsk{
			Name: bucketPrefix + l.id.String(), Rate: limit.RatePerSecond, Capacity: bucketCapacity(limit),
			GiveBack: n, TakenAt: l.tokensAt,
		})
		signal(r.thirst)
	}
	l.tokens = 0
}

// needToken lines a lane up for tokens, or wakes it later if its bucket is known
// to be dry.
func (r *ring) needToken(l *lane, now time.Time) {
	longest := max(dryPause, postgres.TokenGrant{}.UntilNext(r.limits[l.id].RatePerSecond))
	// What is longer is from before the clock was set back, or by another rate.
	if now.Before(l.dryUntil) && !l.dryUntil.After(now.Add(longest)) {
		r.wakeAtLocked(l, l.dryUntil)
		return
	}
	l.thirsty = true
	r.thirsty = append(r.thirsty, l)
	signal(r.thirst)
}

// asks is what to ask the buckets for, and the lanes that it is for.
func (r *ring) asks() (asks []postgres.TokenAsk, lanes map[string]*lane) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	lanes = map[string]*lane{}
	byName := map[string]int{}
	n := min(len(r.thirsty), maxAsks)
	for _, l := range r.thirsty[:n] {
		limit, known := r.limitOf(l.id, now)
		if !known || limit.RatePerSecond <= 0 || r.shut(l) {
			l.thirsty = false
			r.wakeLocked(l)
			continue
		}
		want := min(max(1, r.room(l, limit)), max(1, int(math.Ceil(limit.RatePerSecond*leaseSeconds))))
		name := bucketPrefix + l.id.String()
		byName[name] = len(asks)
		lanes[name] = l
		asks = append(asks, postgres.TokenAsk{
			Name: name, Rate: limit.RatePerSecond, Capacity: bucketCapacity(limit), Want: want,
		})
	}
	r.thirsty = slices.Delete(r.thirsty, 0, n)
	for _, back := range r.returns {
		i, asked := byName[back.Name]
		switch {
		case !asked:
			byName[back.Name] = len(asks)
			asks = append(asks, back)
		case asks[i].GiveBack == 0: // of two leases the later is given back only once
			asks[i].GiveBack, asks[i].TakenAt = back.GiveBack, back.TakenAt
		}
	}
	r.returns = r.returns[:0]
	// In one order in all processes, so that they do not wait for each other in a
	// circle.
	slices.SortFunc(asks, func(a, b postgres.TokenAsk) int { return cmp.Compare(a.Name, b.Name) })
	return asks, lanes
}

// granted takes in the answer to asks. It reports whether a lane can be fetched.
// grants is nil after a failure: the lanes line up again.
func (r *ring) granted(asks []postgres.TokenAsk, lanes map[string]*lane, sent time.Time, grants map[string]postgres.TokenGrant) (woken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for _, ask := range asks {
		l := lanes[ask.Name]
		if l == nil {
			continue
		}
		l.thirsty = false
		grant, found := grants[ask.Name]
		if found {
			l.tokens, l.tokensAt = grant.Tokens, grant.TakenAt
			// A slow answer must not leave its tokens without any time at all.
			l.tokensUntil = latest(sent.Add(postgres.LeaseLife), now.Add(10*time.Millisecond))
			if grant.Tokens < ask.Want {
				l.dryUntil = now.Add(max(dryPause, grant.UntilNext(ask.Rate)))
			}
		}
		woken = r.wakeLocked(l) || woken
		r.forget(l)
	}
	return woken
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// runTokens exchanges tokens for the lanes that need some.
func (q *Queue) runTokens(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.ring.thirst:
		}
		if !q.exchangeTokens(ctx) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(exchangePause):
			}
		}
	}
}

// exchangeTokens makes one exchange, and reports whether the database answered.
func (q *Queue) exchangeTokens(ctx context.Context) bool {
	asks, lanes := q.ring.asks()
	if len(asks) == 0 {
		return true
	}
	sent := q.cfg.Clock.Now()
	exchange, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	grants, err := postgres.ExchangeTokens(exchange, q.pool, asks)
	if err != nil && ctx.Err() == nil {
		q.metrics.tokenErrors.Inc()
		q.cfg.Logger.DebugContext(ctx, "could not get delivery tokens", "lanes", len(lanes), "error", err)
	}
	for _, g := range grants {
		q.metrics.tokens.Add(float64(g.Tokens))
	}
	if q.ring.granted(asks, lanes, sent, grants) {
		signal(q.kick)
	}
	return err == nil
}

// Observe tells the queue how an attempt of a webhook went, for its pace.
func (q *Queue) Observe(id webhook.ID, started, ended time.Time, s Signal) {
	q.ring.observe(id, started, ended, s)
}
