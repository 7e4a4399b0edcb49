package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/limit"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// The limits by their names, in headers and in metrics: a closed set.
const (
	limitGlobal   = "global"   // events a second, of all tenants
	limitTenant   = "tenant"   // events a second, of one tenant
	limitWebhook  = "webhook"  // events a second, for one webhook
	limitBacklog  = "backlog"  // deliveries that wait for one webhook
	limitAdaptive = "adaptive" // events a second, while the database is slow
	// Events a second submitted to one webhook, while its deliveries fail.
	limitHealth = "webhook_health"
)

func limitNames() []string {
	return []string{limitGlobal, limitTenant, limitWebhook, limitBacklog, limitAdaptive, limitHealth}
}

// Headers of draft-ietf-httpapi-ratelimit-headers-10.
const (
	headerRateLimit       = "RateLimit"
	headerRateLimitPolicy = "RateLimit-Policy"
)

const (
	backlogRetryAfter = 5 * time.Second
	limitRetryAfter   = time.Second
	// Token buckets that nobody took from for so long are full, unless their rate
	// is less than one in that time.
	bucketLife         = 24 * time.Hour
	bucketLifeInterval = time.Hour
	bucketLifeTimeout  = 30 * time.Second
)

// LimitsConfig is what Limits need. All fields are required but where said
// otherwise.
type LimitsConfig struct {
	Pool   *pgxpool.Pool
	Intake *intake.Intake // tells how busy it is

	// AcceptPerSecond limits the events accepted by all processes together, and
	// TenantAcceptPerSecond those of each tenant; 0: no limit.
	AcceptPerSecond, TenantAcceptPerSecond float64
	// AdaptiveCommit is how long a commit may take on average, AdaptiveWait how
	// long an event may wait for one, before this process takes less, and
	// AdaptiveFloor the least that it takes, in events a second; 0: the defaults of
	// package limit.
	AdaptiveCommit, AdaptiveWait time.Duration
	AdaptiveFloor                float64
	// WebhookFloor is how many events a second are accepted at least for a webhook
	// whose deliveries fail, by this process; 0: they are limited no more than
	// others.
	WebhookFloor float64

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: there are no metrics
}

// Limits decide whether an event may be accepted now: rates that hold over all
// processes, the length of webhooks' backlogs, and how busy this process is.
type Limits struct {
	pool                *pgxpool.Pool
	logger              *slog.Logger
	limiter             *limit.Limiter
	backlog             *limit.Backlog
	adaptive            *limit.Adaptive
	health              *limit.Health // nil: webhooks are not limited for how they do
	perSecond           float64
	perSecondForTenants float64

	grants, refusals *prometheus.CounterVec
}

// NewLimits makes Limits. It starts nothing: until Run runs, what has a rate is
// refused.
func NewLimits(cfg LimitsConfig) *Limits {
	l := &Limits{
		pool:                cfg.Pool,
		logger:              cfg.Logger,
		perSecond:           cfg.AcceptPerSecond,
		perSecondForTenants: cfg.TenantAcceptPerSecond,
		limiter: limit.NewLimiter(limit.LimiterConfig{
			Exchange: func(ctx context.Context, asks []postgres.TokenAsk) (map[string]postgres.TokenGrant, error) {
				return postgres.ExchangeTokens(ctx, cfg.Pool, asks)
			},
			Logger: cfg.Logger, Registerer: cfg.Registerer,
		}),
		backlog: limit.NewBacklog(limit.BacklogConfig{
			Count: func(ctx context.Context, ids []webhook.ID, limits []int) (map[webhook.ID]int, error) {
				return fairqueue.CountBacklogs(ctx, cfg.Pool, ids, limits)
			},
			Logger: cfg.Logger, Registerer: cfg.Registerer,
		}),
		adaptive: limit.NewAdaptive(limit.AdaptiveConfig{
			Load:      func() limit.Load { return limit.Load(cfg.Intake.Load()) },
			MaxCommit: cfg.AdaptiveCommit, MaxWait: cfg.AdaptiveWait, MinRate: cfg.AdaptiveFloor,
			Registerer: cfg.Registerer,
		}),
		grants: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_limit_grants_total",
			Help: "Times that a limit let an event through, by limit.",
		}, []string{"limit"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_limit_refusals_total",
			Help: "Times that a limit kept an event from being accepted, or from one of the webhooks that it was for, by limit.",
		}, []string{"limit"}),
	}
	if cfg.WebhookFloor > 0 {
		l.health = limit.NewHealth(limit.HealthConfig{
			Read: func(ctx context.Context, within time.Duration, most int) ([]postgres.LaneHealth, error) {
				return postgres.RecentLaneHealth(ctx, cfg.Pool, within, most)
			},
			MinRate: cfg.WebhookFloor, Logger: cfg.Logger, Registerer: cfg.Registerer,
		})
	}
	for _, name := range limitNames() {
		l.grants.WithLabelValues(name)
		l.refusals.WithLabelValues(name)
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(l.grants, l.refusals)
	}
	return l
}

// Run keeps the limits true until ctx ends, and returns nil. The routes that
// submit must have left by then.
func (l *Limits) Run(ctx context.Context) error {
	var loops sync.WaitGroup
	running := []func(context.Context) error{l.limiter.Run, l.backlog.Run, l.adaptive.Run, l.forgetBuckets}
	if l.health != nil {
		running = append(running, l.health.Run)
	}
	for _, loop := range running {
		loops.Go(func() { _ = loop(ctx) }) // each returns nil
	}
	loops.Wait()
	return nil
}

// forgetBuckets deletes token buckets of what is gone.
func (l *Limits) forgetBuckets(ctx context.Context) error {
	ticker := time.NewTicker(bucketLifeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		once, cancel := context.WithTimeout(ctx, bucketLifeTimeout)
		if _, err := postgres.ForgetBuckets(once, l.pool, bucketLife); err != nil && ctx.Err() == nil {
			l.logger.WarnContext(ctx, "could not forget unused token buckets", "error", err)
		}
		cancel()
	}
}

// admission is the limits' consent to one event. settle must follow it, whatever
// becomes of the event. The zero value is that of no limits.
type admission struct {
	// dropped are the webhooks that the event does not go to.
	dropped []intake.Dropped

	limits  *Limits
	counted []webhook.ID   // in their backlogs
	taken   []limit.Bucket // a token of each
}

// settle tells the limits what became of the event: what Submit returned.
func (a *admission) settle(receipt intake.Receipt, err error) {
	stored := err == nil && !receipt.Replayed || errors.Is(err, intake.ErrOutcomeUnknown)
	for _, id := range a.counted {
		a.limits.backlog.Settle(id, stored)
	}
	if len(a.taken) > 0 && err != nil && !stored {
		a.limits.limiter.Refund(a.taken...)
	}
	a.counted, a.taken = nil, nil
}

// withdraw tells the limits that the event is not to be stored after all. It does
// nothing after settle.
func (a *admission) withdraw() { a.settle(intake.Receipt{}, errWithdrawn) }

var errWithdrawn = errors.New("the event is not to be stored")

// admit asks all limits whether an event may be accepted. Of a tenant's webhooks,
// those at a limit are left out, and the admission says so; a limit of one webhook
// that was named is an error. A webhook whose deliveries fail is not left out for
// that: its retries are for making up for such times. The error is a *webhook.Error, or one around it that
// has more to say in headers.
func (l *Limits) admit(ctx context.Context, sub *submission, tenant string, targets []catalog.Target) (*admission, error) {
	a := &admission{limits: l}
	if l == nil {
		return a, nil
	}
	if ok, rate := l.adaptive.Admit(tenant, sub.follows); !ok {
		l.refusals.WithLabelValues(limitAdaptive).Inc()
		return nil, errSlow(rate)
	}
	l.grants.WithLabelValues(limitAdaptive).Inc()
	var err error
	if sub.way == wayFanOut {
		if err = l.take(ctx, a, l.buckets(tenant, catalog.Target{})); err == nil {
			err = l.admitEach(ctx, a, targets)
		}
	} else {
		if err = l.admitBacklog(a, targets[0]); err == nil {
			err = l.admitHealth(targets[0].ID)
		}
		if err == nil {
			err = l.take(ctx, a, l.buckets(tenant, targets[0]))
		}
	}
	if err != nil {
		a.withdraw()
		return nil, err
	}
	return a, nil
}

// buckets are those that an event to this webhook takes a token from.
func (l *Limits) buckets(tenant string, t catalog.Target) []limit.Bucket {
	var buckets []limit.Bucket
	if l.perSecond > 0 {
		buckets = append(buckets, limit.Bucket{Name: limitGlobal, Rate: l.perSecond})
	}
	if l.perSecondForTenants > 0 {
		buckets = append(buckets, limit.Bucket{Name: limitTenant + "/" + tenant, Rate: l.perSecondForTenants})
	}
	if t.AcceptPerSecond > 0 {
		buckets = append(buckets, webhookBucket(t))
	}
	return buckets
}

func webhookBucket(t catalog.Target) limit.Bucket {
	return limit.Bucket{Name: limitWebhook + "/" + t.ID.String(), Rate: t.AcceptPerSecond}
}

// policyOf is the name of the limit that a bucket is for.
func policyOf(b limit.Bucket) string {
	name, _, _ := strings.Cut(b.Name, "/")
	return name
}

// take takes a token from each bucket.
func (l *Limits) take(ctx context.Context, a *admission, buckets []limit.Bucket) error {
	if len(buckets) == 0 {
		return nil
	}
	refusal, err := l.limiter.Take(ctx, buckets...)
	if err != nil {
		return errLimitsUnknown(err)
	}
	if refusal != nil {
		l.refusals.WithLabelValues(policyOf(refusal.Bucket)).Inc()
		return errRateLimited(*refusal, buckets)
	}
	for _, b := range buckets {
		l.grants.WithLabelValues(policyOf(b)).Inc()
	}
	a.taken = append(a.taken, buckets...)
	return nil
}

func (l *Limits) admitBacklog(a *admission, t catalog.Target) error {
	if !l.backlog.Admit(t.ID, t.MaxBacklog) {
		l.refusals.WithLabelValues(limitBacklog).Inc()
		return errBacklogFull(t.MaxBacklog)
	}
	l.grants.WithLabelValues(limitBacklog).Inc()
	a.counted = append(a.counted, t.ID)
	return nil
}

func (l *Limits) admitHealth(id webhook.ID) error {
	if l.health == nil {
		return nil
	}
	if ok, rate := l.health.Admit(id); !ok {
		l.refusals.WithLabelValues(limitHealth).Inc()
		return errFailing(rate)
	}
	l.grants.WithLabelValues(limitHealth).Inc()
	return nil
}

// admitEach leaves out those of a tenant's webhooks that are at a limit.
func (l *Limits) admitEach(ctx context.Context, a *admission, targets []catalog.Target) error {
	var (
		limited []catalog.Target
		buckets []limit.Bucket
	)
	for _, t := range targets {
		switch {
		case l.admitBacklog(a, t) != nil:
			a.dropped = append(a.dropped, intake.Dropped{WebhookID: t.ID, Reason: webhook.ReasonBacklogFull})
		case t.AcceptPerSecond > 0:
			limited, buckets = append(limited, t), append(buckets, webhookBucket(t))
		}
	}
	if len(buckets) == 0 {
		return nil
	}
	refusals, err := l.limiter.TakeEach(ctx, buckets)
	if err != nil {
		return errLimitsUnknown(err)
	}
	over := make(map[webhook.ID]bool)
	for i, refusal := range refusals {
		if refusal == nil {
			l.grants.WithLabelValues(limitWebhook).Inc()
			a.taken = append(a.taken, buckets[i])
			continue
		}
		l.refusals.WithLabelValues(limitWebhook).Inc()
		id := limited[i].ID
		over[id] = true
		a.dropped = append(a.dropped, intake.Dropped{WebhookID: id, Reason: webhook.ReasonAcceptLimited})
	}
	if len(over) == 0 {
		return nil
	}
	kept := a.counted[:0]
	for _, id := range a.counted {
		if over[id] {
			l.backlog.Settle(id, false)
		} else {
			kept = append(kept, id)
		}
	}
	a.counted = kept
	return nil
}

// errRate is a *webhook.Error with what the RateLimit headers say about it.
type errRate struct {
	err              *webhook.Error
	policies, status string
}

func (e *errRate) Error() string { return e.err.Error() }
func (e *errRate) Unwrap() error { return e.err }

// errRateLimited says which rate is used up, and among which others it stands.
func errRateLimited(r limit.Refusal, all []limit.Bucket) error {
	var what string
	switch policyOf(r.Bucket) {
	case limitWebhook:
		what = "The webhook accepts"
	case limitTenant:
		what = "Each tenant may submit"
	default:
		what = "The service accepts"
	}
	policies := make([]string, len(all))
	for i, b := range all {
		policies[i] = policyText(policyOf(b), b.Rate)
	}
	return &errRate{
		err: &webhook.Error{
			Code: webhook.CodeRateLimited,
			Message: fmt.Sprintf("%s at most %s events a second. Nothing was kept; try again.",
				what, strconv.FormatFloat(r.Bucket.Rate, 'f', -1, 64)),
			RetryAfter: r.RetryAfter,
		},
		policies: strings.Join(policies, ", "),
		status:   usedUp(policyOf(r.Bucket), r.RetryAfter),
	}
}

// policyText is a limit and its rate as in RateLimit-Policy, and usedUp as in
// RateLimit.
func policyText(name string, rate float64) string {
	quota, window := quotaOf(rate)
	return fmt.Sprintf("%q;q=%d;w=%d", name, quota, window)
}

func usedUp(name string, wait time.Duration) string {
	return fmt.Sprintf("%q;r=0;t=%s", name, retryAfter(wait))
}

// quotaOf is a rate as a whole number of events in a whole number of seconds: in
// one where that is exact, in ten or more otherwise, and rounded down.
func quotaOf(rate float64) (quota, window int64) {
	switch {
	case rate == math.Trunc(rate):
		return int64(rate), 1
	case rate >= 0.1:
		return int64(rate*10 + 1e-9), 10
	default:
		return 1, int64(min(math.Ceil(1/rate), 1e9))
	}
}

func errBacklogFull(most int) error {
	return &webhook.Error{
		Code:       webhook.CodeBacklogFull,
		Message:    fmt.Sprintf("The webhook has %d deliveries waiting, which is its max_backlog. Nothing was kept; try again.", most),
		RetryAfter: backlogRetryAfter,
	}
}

func errSlow(rate float64) error {
	return &webhook.Error{
		Code: webhook.CodeUnavailable,
		Message: fmt.Sprintf("The database is slow, so no more than %.0f events a second are taken here for the moment. "+
			"Nothing was kept; try again.", rate),
		RetryAfter: limitRetryAfter,
	}
}

// errFailing says at which rate events are accepted for a webhook whose deliveries
// fail.
func errFailing(rate float64) error {
	return &errRate{
		err: &webhook.Error{
			Code: webhook.CodeRateLimited,
			Message: fmt.Sprintf("More than half of the webhook's deliveries have failed lately, so no more than %.0f events a second "+
				"are accepted for it here for the moment. Nothing was kept; try again.", rate),
			RetryAfter: limitRetryAfter,
		},
		policies: policyText(limitHealth, rate),
		status:   usedUp(limitHealth, limitRetryAfter),
	}
}

// errLimitsUnknown is for a rate that cannot be looked up now. The cause is the
// limiter's to log.
func errLimitsUnknown(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return &webhook.Error{
		Code:       webhook.CodeUnavailable,
		Message:    "Rate limits cannot be checked at the moment. Nothing was kept; try again.",
		RetryAfter: limitRetryAfter,
	}
}
