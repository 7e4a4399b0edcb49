package dispatch

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// Defaults of Config.Failures and Config.BacklogWarning, for those who configure a
// dispatcher.
const (
	DefaultDisableAfter   = 5 * 24 * time.Hour
	DefaultWarnAfter      = 15 * time.Minute
	DefaultBacklogWarning = 10_000
)

const (
	tickInterval = 30 * time.Second
	// exhaustedInterval is how soon exhausted deliveries are announced, and exhaustedRest
	// how long after those of a webhook the next of the same one are. With exhaustedMost,
	// which is for one run, a flood of them becomes no flood of events.
	exhaustedInterval = 5 * time.Second
	exhaustedRest     = time.Minute
	exhaustedMost     = 100
	// A look at the backlogs: so many pages of the job table at random, the lanes that
	// have the most there, and of those the ones to count, up to the number that is
	// announced. It costs the same for any number of webhooks.
	backlogInterval = 30 * time.Second
	samplePages     = 1000
	sampleLanes     = 200
	countedBacklogs = 50
	// sampleDoubt is how much larger than its estimate a backlog may be.
	sampleDoubt = 4
)

// herald does the leader's duties about operational events: those that are no part of
// recording an attempt.
type herald struct {
	db        *pgxpool.Pool
	catalog   *catalog.Catalog
	clock     *postgres.Clock
	announcer *postgres.Announcer
	growing   int // deliveries; 0: nothing is announced
	logger    *slog.Logger
	metrics   *metrics
}

// wanted reports whether an operator subscribes to events of this type. When that
// cannot be told one may.
func (h *herald) wanted(ctx context.Context, t webhook.OperationalType) bool {
	targets, err := h.catalog.Subscribers(ctx, webhook.OperatorTenant, string(t))
	return err != nil || len(targets) > 0
}

// exhausted announces exhausted deliveries.
func (h *herald) exhausted(ctx context.Context) error {
	announced, err := h.announcer.AnnounceExhausted(ctx, h.db, exhaustedRest, exhaustedMost, h.clock.Now())
	h.metrics.tell(ctx, h.logger, announced)
	return err
}

// backlogs announces backlogs that have grown, and notes which have shrunk. It looks at
// nothing while nobody wants to hear of it.
func (h *herald) backlogs(ctx context.Context) error {
	if h.growing == 0 || !h.wanted(ctx, webhook.BacklogGrowing) {
		return nil
	}
	sampled, err := fairqueue.SampleBacklogs(ctx, h.db, samplePages, sampleLanes)
	if err != nil {
		return err
	}
	estimates := make(map[webhook.ID]int, len(sampled))
	ids := make([]webhook.ID, 0, len(sampled))
	for _, l := range sampled {
		estimates[l.WebhookID] = l.Estimate
		ids = append(ids, l.WebhookID)
	}
	candidates, err := postgres.GrowthCandidates(ctx, h.db, ids, countedBacklogs)
	if err != nil {
		return err
	}
	var (
		count  []webhook.ID
		limits []int
		fresh  int
	)
	of := make(map[webhook.ID]postgres.GrowthCandidate, len(candidates))
	for _, c := range candidates {
		id, limit := c.Subject.WebhookID, webhook.GrowingAt(h.growing, c.MaxBacklog)
		if !c.Announced {
			if estimates[id]*sampleDoubt < limit || fresh == countedBacklogs {
				continue
			}
			fresh++
		}
		of[id] = c
		count, limits = append(count, id), append(limits, limit)
	}
	if len(count) == 0 {
		return nil
	}
	counts, err := fairqueue.CountBacklogs(ctx, h.db, count, limits)
	if err != nil {
		return err
	}
	var (
		grown           []webhook.GrowingData
		shrunk, checked []webhook.ID
	)
	for i, id := range count {
		c, waiting := of[id], counts[id]
		switch {
		case c.Announced && waiting < webhook.ShrunkAt(limits[i]):
			shrunk = append(shrunk, id)
		case c.Announced:
			checked = append(checked, id)
		case waiting >= limits[i]:
			grown = append(grown, webhook.GrowingData{Subject: c.Subject, State: c.State, AtLeast: waiting, MaxBacklog: c.MaxBacklog})
		}
	}
	announced, err := h.announcer.Backlogs(ctx, h.db, grown, shrunk, checked, h.clock.Now())
	h.metrics.tell(ctx, h.logger, announced)
	return err
}
