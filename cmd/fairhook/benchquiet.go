//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// quietConnections is how many requests of the quiet load may be under way: so
	// many that each is sent at its time even when answers take long.
	quietConnections = 64
	// endureTime is how long the last of the quiet deliveries may take beside
	// something that is in their way, before that is taken away.
	endureTime = 5 * time.Second
	// attackStall is how long the attack may make no progress before it counts as
	// at its height.
	attackStall = 2 * time.Second
	// The quiet webhooks' p99 beside something may be quietTimes what it is without,
	// and quietMore.
	quietTimes = 2
	quietMore  = 20 * time.Millisecond

	// What the quiet webhooks are beside of.
	besideNothing  = "nothing"
	besideBacklog  = "backlog"
	besideHanging  = "hanging"
	besideBreakers = "breakers"

	// backlogAnswer is how long the receiver of the backlog takes.
	backlogAnswer = time.Millisecond
	// The addresses of the receivers: those in trouble are other hosts than the
	// quiet one.
	quietHost, backlogHost, hangingHost, failingHost = 1, 2, 3, 4
)

// latency measures how long events take at a low rate.
func (b *bench) latency(ctx context.Context, report *benchReport) error {
	if err := b.emptyTables(ctx); err != nil {
		return err
	}
	q, err := b.quiet(ctx, nil)
	if err != nil {
		return err
	}
	b.dev.out.step("%d events/s: p50 %.1f ms, p99 %.1f ms", b.cfg.QuietPerSecond, milliseconds(q.P50), milliseconds(q.P99))
	report.Latency = &q
	return nil
}

// quiet sends events to the quiet webhooks at their rate, and makes sure that all
// come. endure, if not nil, takes away what is in their way; it is called when the
// last of them do not come in time.
func (b *bench) quiet(ctx context.Context, endure func()) (benchQuiet, error) {
	q := benchQuiet{Webhooks: b.cfg.QuietWebhooks, PerSecond: b.cfg.QuietPerSecond}
	l := b.newLoad(quietConnections)
	webhooks := b.webhooks[:b.cfg.QuietWebhooks]
	b.sink.forget()
	if endure == nil { // otherwise they are warm, and may not be waited for
		if _, err := b.warm(ctx, l, webhooks); err != nil {
			return q, err
		}
	}
	m, err := l.start(ctx, paced(singleRequests(webhooks, benchPayload(b.cfg.PayloadBytes)), b.cfg.QuietPerSecond, b.cfg.QuietDuration))
	if err != nil {
		return q, err
	}
	err = b.sink.await(ctx, m.acknowledged, endureTime)
	var stalled *stalledError
	if errors.As(err, &stalled) {
		if endure != nil {
			endure()
		}
		err = b.sink.await(ctx, m.acknowledged, stallTimeout)
	}
	if err != nil {
		return q, err
	}
	a, err := settle(m.acks, b.sink.came())
	if err != nil {
		return q, err
	}
	q.Events, q.Duplicates, q.Refused, q.Late = len(m.acks), a.duplicates, m.refused, m.late
	q.P50, q.P99 = percentile(a.sent, 0.50), percentile(a.sent, 0.99)
	q.AnsweredP50, q.AnsweredP99 = percentile(a.answered, 0.50), percentile(a.answered, 0.99)
	return q, nil
}

// gated measures the latency with many deliveries waiting behind gates, the rate
// with them before and after that, and the rate without before and after all.
func (b *bench) gated(ctx context.Context, report *benchReport) error {
	webhooks := b.webhooks[:b.cfg.QuietWebhooks]
	rate := func() (float64, error) {
		c, _, err := b.deliverCase(ctx, modeSingle, webhooks)
		return c.EventsPerSecond, err
	}
	g := benchGated{Waiting: b.cfg.Waiting, Lanes: b.cfg.GatedWebhooks}
	if err := b.emptyTables(ctx); err != nil {
		return err
	}
	var err error
	if g.EmptyBefore, err = rate(); err != nil {
		return err
	}
	if err := b.emptyTables(ctx); err != nil {
		return err
	}
	begun := time.Now()
	if err := b.fillGated(ctx, webhooks[0], g.Lanes, g.Waiting); err != nil {
		return err
	}
	b.dev.out.step("%d deliveries wait for %d paused webhooks (%.0f s)", g.Waiting, g.Lanes, time.Since(begun).Seconds())
	if g.GatedBefore, err = rate(); err != nil {
		return err
	}
	if g.Latency, err = b.quiet(ctx, nil); err != nil {
		return err
	}
	if g.GatedAfter, err = rate(); err != nil {
		return err
	}
	var still int
	if still, err = b.count(ctx, `SELECT count(*) FROM fairhook.river_job WHERE state = 'available'`); err != nil {
		return err
	}
	if still < g.Waiting {
		return fmt.Errorf("of %d deliveries behind gates %d still wait", g.Waiting, still)
	}
	if err := b.emptyTables(ctx); err != nil {
		return err
	}
	if g.EmptyAfter, err = rate(); err != nil {
		return err
	}
	g.EventsPerSecond = (g.GatedBefore + g.GatedAfter) / 2
	g.Ratio = g.EventsPerSecond / ((g.EmptyBefore + g.EmptyAfter) / 2)
	b.dev.out.step("%.0f events/s delivered with them, %.2f of the rate without; p99 %.1f ms", g.EventsPerSecond, g.Ratio, milliseconds(g.Latency.P99))
	report.Gated = &g
	return nil
}

// fairness measures how long the events of quiet webhooks take, alone before and
// after, and beside what could be in their way.
func (b *bench) fairness(ctx context.Context, report *benchReport) error {
	if err := b.emptyTables(ctx); err != nil {
		return err
	}
	all := []func(context.Context) (benchFairness, error){
		b.besideNothing, b.besideBacklog, b.besideHanging, b.besideBreakers, b.besideNothing,
	}
	measured := make([]benchFairness, len(all))
	for i, run := range all {
		var err error
		if measured[i], err = run(ctx); err != nil {
			return fmt.Errorf("beside %s: %w", measured[i].Beside, err)
		}
		b.dev.out.step("quiet webhooks beside %s: p99 %.1f ms", measured[i].Beside, milliseconds(measured[i].P99))
	}
	judge(measured)
	report.Fairness = measured
	return nil
}

// judge compares each p99 with the bound, which follows from the first and the
// last: those beside nothing.
func judge(measured []benchFairness) {
	last := len(measured) - 1
	bound := quietTimes*(measured[0].P99+measured[last].P99)/2 + quietMore
	for i := range measured[1:last] {
		ok := measured[i+1].P99 <= bound
		measured[i+1].Bound, measured[i+1].OK = &bound, &ok
	}
}

// besideNothing: the quiet webhooks are alone.
func (b *bench) besideNothing(ctx context.Context) (benchFairness, error) {
	q, err := b.quiet(ctx, nil)
	return benchFairness{Beside: besideNothing, benchQuiet: q}, err
}

// attackers are webhooks in trouble and their receiver.
type attackers struct {
	sink *sink
	ids  []webhook.ID
}

// newAttackers makes n webhooks to a sink of their own. The sink runs until the end.
func (b *bench) newAttackers(ctx context.Context, n, host int, answer string, wait time.Duration) (*attackers, error) {
	s, err := startSink(host, answer, wait)
	if err != nil {
		return nil, err
	}
	b.dev.onStop("receiver", s.close)
	context.AfterFunc(ctx, s.release) // or the dispatcher waits for it
	ids, err := b.createWebhooks(ctx, n, client.NewWebhook{Tenant: benchTenant, URL: s.url})
	return &attackers{s, ids}, err
}

// beside measures the quiet webhooks while events go to the attackers, and then
// removes all trace of those.
func (b *bench) beside(ctx context.Context, a *attackers) (benchQuiet, error) {
	attack, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	traffic, attack := errgroup.WithContext(attack)
	if b.cfg.AttackPerSecond > 0 {
		traffic.Go(func() error {
			p := paced(singleRequests(a.ids, benchPayload(b.cfg.PayloadBytes)), b.cfg.AttackPerSecond, drainTimeout)
			if _, err := b.newLoad(quietConnections).start(attack, p); !errors.Is(err, errAttackOver) {
				return err
			}
			return nil
		})
	}
	over := func() { stop(errAttackOver); a.sink.release() }
	q, err := b.quiet(ctx, over)
	over()
	if err := errors.Join(err, traffic.Wait()); err != nil {
		return q, err
	}
	return q, b.calm(ctx, a.ids)
}

var errAttackOver = errors.New("the attack is over")

// besideBacklog: another webhook has a long backlog, and a receiver that takes it.
func (b *bench) besideBacklog(ctx context.Context) (benchFairness, error) {
	f := benchFairness{Beside: besideBacklog}
	a, err := b.newAttackers(ctx, 1, backlogHost, answerTaken, backlogAnswer)
	if err != nil {
		return f, err
	}
	if err := b.fillBacklog(ctx, a.ids[0], b.cfg.Backlog); err != nil {
		return f, err
	}
	if err := a.sink.await(ctx, 1, stallTimeout); err != nil {
		return f, fmt.Errorf("see the backlog being delivered: %w", err)
	}
	before := a.sink.received.Load()
	f.benchQuiet, err = b.beside(ctx, a)
	f.Detail = fmt.Sprintf("%d waiting, %d delivered meanwhile", b.cfg.Backlog, a.sink.received.Load()-before)
	return f, err
}

// besideHanging: the receivers of other webhooks hang, with as many requests as
// each may have under way.
func (b *bench) besideHanging(ctx context.Context) (benchFairness, error) {
	f := benchFairness{Beside: besideHanging}
	a, err := b.newAttackers(ctx, b.cfg.HangingWebhooks, hangingHost, answerTaken, b.cfg.Hang)
	if err != nil {
		return f, err
	}
	if err := b.hit(ctx, a, b.cfg.HangingEvents); err != nil {
		return f, err
	}
	hanging := a.sink.received.Load()
	f.benchQuiet, err = b.beside(ctx, a)
	f.Detail = fmt.Sprintf("%d requests hang for %s", hanging, b.cfg.Hang)
	return f, err
}

// besideBreakers: the receivers of other webhooks fail, until the breakers open.
func (b *bench) besideBreakers(ctx context.Context) (benchFairness, error) {
	f := benchFairness{Beside: besideBreakers}
	a, err := b.newAttackers(ctx, b.cfg.FailingWebhooks, failingHost, answerFailed, 0)
	if err != nil {
		return f, err
	}
	if err := b.hit(ctx, a, b.cfg.FailingEvents); err != nil {
		return f, err
	}
	open, err := b.openBreakers(ctx, a.ids)
	if err != nil {
		return f, err
	}
	failed := a.sink.received.Load()
	f.benchQuiet, err = b.beside(ctx, a)
	f.OpenBreakers = &open
	if open == 0 {
		f.Detail = fmt.Sprintf("not open after %d failures", failed)
	} else {
		f.Detail = fmt.Sprintf("%d of %d open after %d failures", open, len(a.ids), failed)
	}
	return f, err
}

// hit sends so many events to each of the attackers, and returns when that shows
// all the effect that it will have at once.
func (b *bench) hit(ctx context.Context, a *attackers, each int) error {
	l := b.newLoad(b.cfg.Connections)
	requests := batchRequests(a.ids, benchPayload(b.cfg.PayloadBytes), min(b.cfg.BatchItems, len(a.ids)))
	m, err := l.start(ctx, plan{requests: requests, most: each * len(requests)})
	if err != nil {
		return err
	}
	if err := a.sink.await(ctx, min(1, m.acknowledged), stallTimeout); err != nil {
		return err
	}
	var stalled *stalledError
	if err := a.sink.await(ctx, m.acknowledged, attackStall); !errors.As(err, &stalled) {
		return err
	}
	return nil
}

// openBreakers waits until the breakers of all these webhooks are open, but no
// longer than --breaker-wait, and returns how many are.
func (b *bench) openBreakers(ctx context.Context, ids []webhook.ID) (open int, err error) {
	for until := time.Now().Add(b.cfg.BreakerWait); ; {
		open, err = b.count(ctx, `SELECT count(*) FROM fairhook.lane_gates WHERE cause = 'breaker' AND webhook_id = ANY ($1)`, ids)
		if err != nil || open >= len(ids) || time.Now().After(until) {
			return open, err
		}
		if err := pause(ctx, statsPoll); err != nil {
			return open, err
		}
	}
}
