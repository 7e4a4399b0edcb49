//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// drainTimeout is how long deliveries may trail behind acceptance.
	drainTimeout = 5 * time.Minute
	drainPoll    = 20 * time.Millisecond
	// stallTimeout is how long nothing may come while something should: longer
	// than the first retry takes.
	stallTimeout = 30 * time.Second
)

// account is what became of the events that were acknowledged.
type account struct {
	// duplicates is how many deliveries came again.
	duplicates int
	// first and last are when the first request was sent and when the last
	// delivery came.
	first, last time.Time
	// sent and answered are the times from the start of an event's request, and
	// from its answer, to its first arrival, in ascending order.
	sent, answered []time.Duration
}

// settle compares what was acknowledged with what came: that something has not
// come is an error.
func settle(acks []ack, arrivals []arrival) (account, error) {
	var a account
	if len(acks) == 0 {
		return a, errors.New("no event was acknowledged: measure longer")
	}
	came := make(map[webhook.ID]time.Time, len(arrivals))
	for _, one := range arrivals {
		if first, again := came[one.id]; again {
			a.duplicates++
			if first.Before(one.at) {
				continue
			}
		}
		came[one.id] = one.at
	}
	lost := 0
	for _, one := range acks {
		at, found := came[one.id]
		if !found {
			lost++
			continue
		}
		if a.first.IsZero() || one.sent.Before(a.first) {
			a.first = one.sent
		}
		if at.After(a.last) {
			a.last = at
		}
		a.sent = append(a.sent, at.Sub(one.sent))
		// The answer may still be on its way when the delivery comes.
		a.answered = append(a.answered, max(0, at.Sub(one.answered)))
	}
	if lost > 0 {
		return a, fmt.Errorf("%d of %d events that were acknowledged did not come", lost, len(acks))
	}
	slices.Sort(a.sent)
	slices.Sort(a.answered)
	return a, nil
}

// deliver measures how many events are accepted and delivered a second, for each
// number of webhooks.
func (b *bench) deliver(ctx context.Context, report *benchReport) error {
	// All about the webhooks into memory. What that costs, and what was done before,
	// is counted before.
	if err := b.emptyTables(ctx); err != nil {
		return err
	}
	if _, err := b.warm(ctx, b.newLoad(b.cfg.DeliverConnections), b.webhooks[:slices.Max(b.cfg.webhooks)]); err != nil {
		return err
	}
	if err := pause(ctx, b.cfg.CountersDelay); err != nil {
		return err
	}
	river := func() (float64, error) {
		// So that nothing is vacuumed meanwhile.
		if err := b.emptyTables(ctx); err != nil {
			return 0, err
		}
		return riverRate(ctx, b.database["FAIRHOOK_DATABASE_URL"], b.cfg.Duration/2)
	}
	for _, n := range b.cfg.webhooks {
		webhooks := b.webhooks[:n]
		before, err := river()
		if err != nil {
			return err
		}
		var cases []benchDelivery
		for _, mode := range []string{modeSingle, modeBatch} {
			c, err := b.costedCase(ctx, mode, webhooks)
			if err != nil {
				return fmt.Errorf("%d webhooks, %s: %w", n, mode, err)
			}
			cases = append(cases, c)
		}
		after, err := river()
		if err != nil {
			return err
		}
		for i := range cases {
			c := &cases[i]
			c.RiverBefore, c.RiverAfter = before, after
			c.Ratio = c.EventsPerSecond / ((before + after) / 2)
			b.dev.out.step("%d webhooks, %s: %.0f events/s delivered, %.2f of a stock River's no-op jobs", n, c.Mode, c.EventsPerSecond, c.Ratio)
		}
		report.Deliver = append(report.Deliver, cases...)
	}
	return nil
}

// costedCase is deliverCase on empty tables, with the row writes and commits that an
// event costs. Postgres' counters come late, so that they are of the warm-up too.
func (b *bench) costedCase(ctx context.Context, mode string, webhooks []webhook.ID) (c benchDelivery, err error) {
	if err := b.emptyTables(ctx); err != nil {
		return c, err
	}
	before, err := b.counters(ctx)
	if err != nil {
		return c, err
	}
	c, warm, err := b.deliverCase(ctx, mode, webhooks)
	if err != nil {
		return c, err
	}
	after, err := b.settled(ctx, before, c.Events+warm)
	if err != nil {
		return c, err
	}
	c.RowWrites = float64(after.writes()-before.writes()) / float64(c.Events+warm)
	c.Commits = float64(after.commits-before.commits) / float64(c.Events+warm)
	return c, nil
}

// deliverCase measures the delivery of events to the given webhooks, after a
// warm-up of so many events, and makes sure that all that was acknowledged has
// come. Nothing may be under way.
func (b *bench) deliverCase(ctx context.Context, mode string, webhooks []webhook.ID) (c benchDelivery, warm int, err error) {
	c = benchDelivery{Webhooks: len(webhooks), Mode: mode}
	l := b.newLoad(b.cfg.DeliverConnections)
	payload := benchPayload(b.cfg.PayloadBytes)
	requests := singleRequests(webhooks, payload)
	if mode == modeBatch {
		requests = batchRequests(webhooks, payload, b.cfg.BatchItems)
	}
	if warm, err = b.warm(ctx, l, webhooks); err != nil {
		return c, warm, err
	}
	before, err := b.counters(ctx)
	if err != nil {
		return c, warm, err
	}
	m, err := l.start(ctx, plan{requests: requests, to: time.Now().Add(b.cfg.Duration)})
	if err != nil {
		return c, warm, err
	}
	if err := b.delivered(ctx, m, webhooks); err != nil {
		return c, warm, err
	}
	after, err := b.counters(ctx)
	if err != nil {
		return c, warm, err
	}
	a, err := settle(m.acks, b.sink.came())
	if err != nil {
		return c, warm, err
	}
	c.Events, c.Duplicates, c.Refused = len(m.acks), a.duplicates, m.refused
	c.EventsPerSecond = float64(c.Events) / a.last.Sub(a.first).Seconds()
	c.AcceptedPerSecond = float64(c.Events) / b.cfg.Duration.Seconds()
	c.P50, c.P99 = percentile(a.sent, 0.50), percentile(a.sent, 0.99)
	c.WALBytes = float64(after.wal-before.wal) / float64(c.Events)
	return c, warm, nil
}

// warm has an event for each webhook, at least, accepted and delivered, so that all
// is in memory that is there after some time. It returns how many there were, and
// leaves the sink empty.
func (b *bench) warm(ctx context.Context, l *load, webhooks []webhook.ID) (events int, err error) {
	b.sink.forget()
	m, err := l.warm(ctx, batchRequests(webhooks, benchPayload(b.cfg.PayloadBytes), min(warmItems, len(webhooks))))
	if err != nil {
		return 0, err
	}
	if err := b.delivered(ctx, m, webhooks); err != nil {
		return 0, err
	}
	if _, err := settle(m.acks, b.sink.came()); err != nil {
		return 0, err
	}
	b.sink.forget()
	return len(m.acks), nil
}

// delivered returns when what was acknowledged has come, and the lanes are idle.
func (b *bench) delivered(ctx context.Context, m measurement, webhooks []webhook.ID) error {
	if err := b.sink.await(ctx, m.acknowledged, stallTimeout); err != nil {
		return err
	}
	return b.idle(ctx, webhooks)
}
