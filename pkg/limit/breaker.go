package limit

import (
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/maypok86/otter/v2"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Defaults of BreakerConfig.
const (
	DefaultBreakerFailures = 0.5
	DefaultBreakerAttempts = 20
	DefaultBreakerWindow   = 30 * time.Second
)

// leastAttempts is on how many attempts of its own a dispatcher opens a breaker at
// least, unless fewer are asked for of all.
const leastAttempts = 5

// maxBreakers bounds the memory that breakers take: those of the webhooks that got
// something most recently are kept.
const maxBreakers = 200_000

// BreakerConfig says when a webhook's breaker opens. Every number has a default at
// zero.
type BreakerConfig struct {
	// Failures is the part of the attempts that must fail, more than 0 and at most
	// 1; Attempts how many there must be; Window the time that both are about.
	Failures float64
	Attempts int
	Window   time.Duration
}

// Breakers say when so many of a webhook's attempts fail that no more should be
// made. They watch while deliveries flow: what happens once one has opened, who may
// probe and when it closes again, is shared by all dispatchers and not their
// business. A breaker that opened has forgotten everything.
//
// Its methods are safe for concurrent use.
type Breakers struct {
	cfg   BreakerConfig
	cache *otter.Cache[webhook.ID, breaker]
}

type breaker = circuitbreaker.CircuitBreaker[any]

// NewBreakers makes Breakers.
func NewBreakers(cfg BreakerConfig) *Breakers {
	if cfg.Failures == 0 {
		cfg.Failures = DefaultBreakerFailures
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = DefaultBreakerAttempts
	}
	if cfg.Window == 0 {
		cfg.Window = DefaultBreakerWindow
	}
	return &Breakers{cfg: cfg, cache: otter.Must(&otter.Options[webhook.ID, breaker]{
		MaximumSize:      maxBreakers,
		ExpiryCalculator: otter.ExpiryAccessing[webhook.ID, breaker](2 * cfg.Window),
	})}
}

// Record takes in an attempt of a webhook, made by one of so many dispatchers that
// get equal parts of its deliveries, and reports whether the breaker has opened
// with it. Each sees its own attempts only, so it opens on its part of Attempts.
func (b *Breakers) Record(id webhook.ID, ok bool, dispatchers int) (opened bool) {
	one, found := b.cache.GetIfPresent(id)
	if !found {
		one, _ = b.cache.ComputeIfAbsent(id, func() (breaker, bool) { return b.newBreaker(dispatchers), false })
	}
	if ok {
		one.RecordSuccess()
	} else {
		one.RecordFailure()
	}
	// A success can open it too: it may be the last of the attempts that there must be.
	if !one.IsOpen() {
		return false
	}
	// Of those that see it open, one tells.
	_, had := b.cache.Invalidate(id)
	return had
}

func (b *Breakers) newBreaker(dispatchers int) breaker {
	n := max(1, dispatchers)
	attempts := max((b.cfg.Attempts+n-1)/n, min(leastAttempts, b.cfg.Attempts))
	return circuitbreaker.NewBuilder[any]().
		WithFailureRateThreshold(b.cfg.Failures, uint(attempts), b.cfg.Window).
		WithDelay(24 * time.Hour). // it never half-opens by itself
		Build()
}
