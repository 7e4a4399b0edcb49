package dispatch

import (
	"context"
	"time"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// probeMargin is how much longer than its request a probe may take before
	// another dispatcher may send one.
	probeMargin = 30 * time.Second
	// lookAgain is when to ask again for a lane that another dispatcher has, or has
	// more of than its part.
	lookAgain = time.Second
	// joinMemory is how long after this dispatcher joined others may still be working
	// what they had fetched before.
	joinMemory = webhook.MaxTimeoutSeconds*time.Second + 30*time.Second
)

// laneNeed is what must be claimed before a lane can be fetched.
type laneNeed int

const (
	needNothing laneNeed = iota
	needProbe            // the breaker lets one delivery through
	needOwner            // the cap is too small to be divided
)

// laneLimit is what follows from a webhook's row and its gate at this moment, and
// what must be claimed first. It is pure.
func laneLimit(w *postgres.WebhookLimit, now time.Time, sharers int) (fairqueue.Limit, laneNeed) {
	l := fairqueue.Limit{
		MaxInFlight: w.MaxInFlight, Weight: w.Weight, Host: egress.Target(w.URL), Gated: w.State != webhook.StateActive,
	}
	if w.RatePerSecond != nil {
		l.RatePerSecond = *w.RatePerSecond
	}
	if w.Burst != nil {
		l.Burst = *w.Burst
	}
	switch {
	case l.Gated:
	case w.Gate != nil && w.Gate.Until.After(now):
		l.GateUntil = w.Gate.Until
	case w.Gate != nil && w.Gate.Cause == postgres.GateBreaker:
		return l, needProbe
	case w.MaxInFlight < sharers:
		return l, needOwner
	}
	return l, needNothing
}

// besideOthers is the limit of a lane whose cap is divided into equal parts, when of
// it peers others are working so many deliveries each that they had fetched before.
// What they fetch from now on is within their parts. It is pure.
func besideOthers(l fairqueue.Limit, elsewhere []int, part, peers int, now time.Time) fairqueue.Limit {
	return within(l, l.MaxInFlight-peers*part-excess(elsewhere, part), part, now)
}

// ownedBeside is the limit of a lane that this dispatcher has become the owner of,
// while others are working what they had fetched before. It is pure.
func ownedBeside(l fairqueue.Limit, elsewhere []int, now time.Time) fairqueue.Limit {
	return within(l, l.MaxInFlight-excess(elsewhere, 0), l.MaxInFlight, now)
}

// excess is how much others have beyond their parts.
func excess(elsewhere []int, part int) (n int) {
	for _, has := range elsewhere {
		n += max(0, has-part)
	}
	return n
}

// within bounds a lane, of which this dispatcher may have part, by what is left for
// it, and has it asked again in a moment where that is less.
func within(l fairqueue.Limit, left, part int, now time.Time) fairqueue.Limit {
	if left >= part {
		return l
	}
	again := now.Add(lookAgain)
	if l.Until.IsZero() || again.Before(l.Until) {
		l.Until = again
	}
	if left <= 0 {
		l.GateUntil = again
	} else {
		l.MaxHere = left
	}
	return l
}

// limits reads what the fetch must know of webhooks, and claims for this
// dispatcher what only one may do.
func (d *Dispatcher) limits(ctx context.Context, ids []webhook.ID, sharers int) (map[webhook.ID]fairqueue.Limit, error) {
	found, err := postgres.WebhookLimits(ctx, d.pool, ids)
	if err != nil {
		return nil, err
	}
	now := d.clock.Now()
	limits := make(map[webhook.ID]fairqueue.Limit, len(found))
	timeouts := make(map[webhook.ID]time.Duration)
	var (
		owners, probes []webhook.ID
		shared, owned  []webhook.ID                 // of which others may have more than their part
		divisible      []webhook.ID                 // that this dispatcher owned, and can share again
		formerly       = map[webhook.ID]time.Time{} // that another owned until then
		probeLives     []time.Duration
		probeEnds      = map[webhook.ID]time.Time{}
	)
	for i := range found {
		w := &found[i]
		d.gates.learn(w.ID, w.Gate)
		d.failures.learn(w.ID, w.Unwell, now)
		l, need := laneLimit(w, now, sharers)
		limits[w.ID] = l
		switch need {
		case needNothing:
			switch {
			case l.Gated || !l.GateUntil.IsZero() || w.Owner == "":
			case w.Owner == d.cfg.Instance:
				divisible = append(divisible, w.ID)
			case w.OwnedUntil.After(now):
				l.GateUntil = w.OwnedUntil
				limits[w.ID] = l
			case now.Sub(w.OwnedUntil) < joinMemory:
				formerly[w.ID] = w.OwnedUntil
			}
			if sharers > 1 && !l.Gated && l.GateUntil.IsZero() && d.joining() {
				shared = append(shared, w.ID)
			}
		case needOwner:
			owners = append(owners, w.ID)
		case needProbe:
			if wait := d.probes.wait(now); wait > 0 {
				l.GateUntil = now.Add(wait)
				limits[w.ID] = l
				continue
			}
			probes = append(probes, w.ID)
			timeouts[w.ID] = time.Duration(w.TimeoutSeconds) * time.Second
			probeLives = append(probeLives, timeouts[w.ID]+probeMargin)
			if w.Gate.ProbeUntil != nil {
				probeEnds[w.ID] = *w.Gate.ProbeUntil
			}
		}
	}
	if len(probes) > 0 {
		mine, err := postgres.ClaimProbes(ctx, d.pool, d.cfg.Instance, probes, probeLives)
		if err != nil {
			return nil, err
		}
		for _, id := range probes {
			l := limits[id]
			if end, got := mine[id]; got {
				// What is fetched until then has ended when another may probe.
				l.Probe, l.Until = true, end.Add(-timeouts[id]-probeMargin/2)
			} else {
				l.GateUntil = soonest(probeEnds[id], now)
			}
			limits[id] = l
		}
	}
	if len(owners) > 0 {
		mine, others, err := postgres.ClaimLanes(ctx, d.pool, d.cfg.Instance, owners, fairqueue.OwnerLease)
		if err != nil {
			return nil, err
		}
		for _, id := range owners {
			l := limits[id]
			if end, got := mine[id]; got {
				l.Owned, l.Until = true, end.Add(-fairqueue.OwnerMargin)
				owned = append(owned, id)
			} else {
				l.GateUntil = soonest(others[id], now)
			}
			limits[id] = l
		}
	}
	if len(divisible) > 0 {
		if err := postgres.ShareLanes(ctx, d.pool, d.cfg.Instance, divisible); err != nil {
			return nil, err
		}
	}
	for id, until := range formerly {
		elsewhere, err := d.queue.RunningElsewhere(ctx, []webhook.ID{id}, until)
		if err != nil {
			return nil, err
		}
		l := limits[id]
		limits[id] = besideOthers(l, elsewhere[id], max(1, l.MaxInFlight/sharers), sharers-1, now)
	}
	if len(shared) > 0 {
		elsewhere, err := d.queue.RunningElsewhere(ctx, shared, time.Unix(0, d.joined.Load()))
		if err != nil {
			return nil, err
		}
		for _, id := range shared {
			l := limits[id]
			limits[id] = besideOthers(l, elsewhere[id], max(1, l.MaxInFlight/sharers), sharers-1, now)
		}
	}
	if len(owned) > 0 {
		elsewhere, err := d.queue.RunningElsewhere(ctx, owned, now)
		if err != nil {
			return nil, err
		}
		for _, id := range owned {
			limits[id] = ownedBeside(limits[id], elsewhere[id], now)
		}
	}
	return limits, nil
}

// soonest is when to ask again for what another dispatcher has until end.
func soonest(end, now time.Time) time.Time {
	if least := now.Add(lookAgain); end.Before(least) {
		return least
	}
	return end
}
