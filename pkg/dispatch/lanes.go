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
	// arrangeAgain is when to go on with a lane that is not arranged for its order yet.
	arrangeAgain = 100 * time.Millisecond
	// joinMemory is how long after this dispatcher joined others may still be working
	// what they had fetched before.
	joinMemory = webhook.MaxTimeoutSeconds*time.Second + 30*time.Second
)

// laneNeed is what must be claimed before a lane can be fetched.
type laneNeed int

const (
	needNothing laneNeed = 0
	needProbe   laneNeed = 1 << (iota - 1) // the breaker lets one delivery through
	needOwner                              // its cap is too small to be divided, or it has an order to keep
)

// has reports whether something is among what must be claimed.
func (n laneNeed) has(need laneNeed) bool { return n&need != 0 }

// laneLimit is what follows from a webhook's row and its gate at this moment, and
// what must be claimed first. It is pure.
func laneLimit(w *postgres.WebhookLimit, now time.Time, sharers int) (l fairqueue.Limit, need laneNeed) {
	l = fairqueue.Limit{
		MaxInFlight: w.MaxInFlight, Weight: w.Weight, Host: egress.Target(w.URL), Gated: w.State != webhook.StateActive,
		Ordering: w.Ordering,
	}
	if w.Ordering == webhook.OrderingStrict {
		l.MaxInFlight = 1
	}
	if w.RatePerSecond != nil {
		l.RatePerSecond = *w.RatePerSecond
	}
	if w.Burst != nil {
		l.Burst = *w.Burst
	}
	switch {
	case l.Gated:
		return l, needNothing
	case w.Gate != nil && w.Gate.Until.After(now):
		l.GateUntil = w.Gate.Until
		return l, needNothing
	}
	probe := w.Gate != nil && w.Gate.Cause == postgres.GateBreaker
	if probe {
		need |= needProbe
	}
	if w.Ordering.Ordered() || !probe && w.MaxInFlight < sharers {
		need |= needOwner
	}
	return l, need
}

// laneLook is one lane as limits found it, and what is decided of it on the way.
type laneLook struct {
	row   *postgres.WebhookLimit
	limit fairqueue.Limit
	need  laneNeed
	// share says that this dispatcher still owns the lane, whose cap can be divided.
	share bool
	// counted is the moment before which others may have fetched more than their part
	// of the lane; zero: nobody has.
	counted time.Time
}

// open reports whether the lane may be fetched from, as far as is known yet.
func (l *laneLook) open() bool { return !l.limit.Gated && l.limit.GateUntil.IsZero() }

// lookAt decides what a webhook's row means for the dispatcher me, which joined at a
// moment, before anything is claimed. It is pure.
func lookAt(w *postgres.WebhookLimit, me string, joined, now time.Time, sharers int) laneLook {
	l := laneLook{row: w}
	l.limit, l.need = laneLimit(w, now, sharers)
	if l.need != needNothing || !l.open() {
		return l
	}
	owned := w.OwnedUntil.After(now)
	switch {
	case owned && w.Owner == me:
		l.share = true
	case owned:
		l.limit.GateUntil = w.OwnedUntil
		return l
	}
	l.counted = countedBefore(w, me, joined, now, sharers)
	return l
}

// countedBefore is the moment before which others may have fetched more than their
// part of a lane whose cap is shared: while one of them owned it, or when they did not
// know of this dispatcher. Of both the later counts, since whatever was fetched before
// the earlier was fetched before that too. Zero: there is none that still matters. It is
// pure.
func countedBefore(w *postgres.WebhookLimit, me string, joined, now time.Time, sharers int) (moment time.Time) {
	if w.Owner != "" && w.Owner != me && now.Sub(w.OwnedUntil) < joinMemory {
		moment = w.OwnedUntil
	}
	if sharers > 1 && now.Sub(joined) < joinMemory && joined.After(moment) {
		moment = joined
	}
	return moment
}

// owning is the limit of a lane that this dispatcher owns until end. One that it did
// not own before may still be fetched by another that had asked before the claim was
// there to be seen: it begins a moment later, when all of that can be counted. It is
// pure.
func owning(l fairqueue.Limit, before bool, end, now time.Time, sharers int) fairqueue.Limit {
	l.Owned, l.Until = true, end.Add(-fairqueue.OwnerMargin)
	if !before && sharers > 1 {
		l.GateUntil = now.Add(lookAgain)
	}
	return l
}

// besideOthers is the limit of a lane whose cap is divided into equal parts, when of
// it peers others are working so many deliveries each that they had fetched before.
// What they fetch from now on is within their parts. It is pure.
func besideOthers(l fairqueue.Limit, elsewhere []int, sharers int, now time.Time) fairqueue.Limit {
	part := max(1, l.MaxInFlight/sharers)
	return within(l, l.MaxInFlight-(sharers-1)*part-excess(elsewhere, part), part, now)
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
	now, joined := d.clock.Now(), time.Unix(0, d.joined.Load())
	lanes := make([]laneLook, len(found))
	for i := range found {
		d.gates.learn(found[i].ID, found[i].Gate)
		d.failures.learn(found[i].ID, found[i].Unwell, now)
		lanes[i] = lookAt(&found[i], d.cfg.Instance, joined, now, sharers)
		if l := &lanes[i]; l.need.has(needProbe) {
			if wait := d.probes.wait(now); wait > 0 {
				l.limit.GateUntil, l.need = now.Add(wait), needNothing
			}
		}
	}
	if err := d.claimLanes(ctx, lanes, now, sharers); err != nil {
		return nil, err
	}
	if err := d.claimProbes(ctx, lanes, now); err != nil { // of ordered lanes their owner
		return nil, err
	}
	if err := d.disarrange(ctx, lanes, now); err != nil {
		return nil, err
	}
	if err := d.shareLanes(ctx, lanes); err != nil {
		return nil, err
	}
	if err := d.leaveOthersTheirs(ctx, lanes, now, sharers); err != nil {
		return nil, err
	}
	limits := make(map[webhook.ID]fairqueue.Limit, len(lanes))
	for i := range lanes {
		limits[lanes[i].row.ID] = lanes[i].limit
	}
	return limits, nil
}

// idsOf are the webhooks of the lanes that are wanted.
func idsOf(lanes []laneLook, wanted func(*laneLook) bool) (ids []webhook.ID) {
	for i := range lanes {
		if wanted(&lanes[i]) {
			ids = append(ids, lanes[i].row.ID)
		}
	}
	return ids
}

// claimProbes claims the probes of breakers that let one delivery through.
func (d *Dispatcher) claimProbes(ctx context.Context, lanes []laneLook, now time.Time) error {
	wanted := func(l *laneLook) bool { return l.need.has(needProbe) && l.open() }
	ids := idsOf(lanes, wanted)
	if len(ids) == 0 {
		return nil
	}
	var lives []time.Duration
	for i := range lanes {
		if l := &lanes[i]; wanted(l) {
			lives = append(lives, l.timeout()+probeMargin)
		}
	}
	mine, err := postgres.ClaimProbes(ctx, d.pool, d.cfg.Instance, ids, lives)
	if err != nil {
		return err
	}
	asked := make(map[webhook.ID]bool, len(ids))
	for _, id := range ids {
		asked[id] = true
	}
	for i := range lanes {
		l := &lanes[i]
		if !asked[l.row.ID] {
			continue
		}
		if end, got := mine[l.row.ID]; got {
			// What is fetched until then has ended when another may probe.
			l.limit.Probe, l.limit.Until = true, end.Add(-l.timeout()-probeMargin/2)
			continue
		}
		var end time.Time
		if l.row.Gate.ProbeUntil != nil {
			end = *l.row.Gate.ProbeUntil
		}
		l.limit.GateUntil = soonest(end, now)
	}
	return nil
}

// timeout is how long one request of the lane's webhook may take.
func (l *laneLook) timeout() time.Duration {
	return time.Duration(l.row.TimeoutSeconds) * time.Second
}

// claimLanes claims the lanes that only one dispatcher may fetch from.
func (d *Dispatcher) claimLanes(ctx context.Context, lanes []laneLook, now time.Time, sharers int) error {
	wanted := func(l *laneLook) bool { return l.need.has(needOwner) }
	ids := idsOf(lanes, wanted)
	if len(ids) == 0 {
		return nil
	}
	mine, others, err := postgres.ClaimLanes(ctx, d.pool, d.cfg.Instance, ids, fairqueue.OwnerLease)
	if err != nil {
		return err
	}
	for i := range lanes {
		l := &lanes[i]
		if !wanted(l) {
			continue
		}
		lease, got := mine[l.row.ID]
		switch {
		case !got:
			l.limit.GateUntil = soonest(others[l.row.ID], now)
			continue
		case l.row.Ordering.Ordered():
			if l.limit, err = d.ordered(ctx, l.row, l.limit, lease, now); err != nil {
				return err
			}
			continue
		}
		before := l.row.Owner == d.cfg.Instance && l.row.OwnedUntil.After(now)
		l.limit = owning(l.limit, before, lease.Until, now, sharers)
		if l.open() {
			l.counted = now
		}
	}
	return nil
}

// ordered is the limit of a lane that this dispatcher owns for its order. It is arranged
// for it first, which may take more than one look: until what was fetched without that
// order has ended. In strict order nothing need be counted: whatever runs keeps the lane
// back.
func (d *Dispatcher) ordered(ctx context.Context, w *postgres.WebhookLimit, l fairqueue.Limit, lease postgres.Lease, now time.Time) (fairqueue.Limit, error) {
	l.Owned, l.Epoch, l.Until = true, lease.Epoch, lease.Until.Add(-fairqueue.OwnerMargin)
	if lease.Arranged == string(w.Ordering) {
		return l, nil
	}
	done, err := d.queue.Arrange(ctx, w.ID, w.Ordering)
	if err != nil {
		return l, err
	}
	if !done {
		l.GateUntil = now.Add(arrangeAgain)
	}
	return l, nil
}

// disarrange has lanes whose webhooks have no order any more worked as all others are. They
// are worked meanwhile: what was in order may come later than what is new.
func (d *Dispatcher) disarrange(ctx context.Context, lanes []laneLook, now time.Time) error {
	for i := range lanes {
		l := &lanes[i]
		if l.row.Ordering.Ordered() || l.row.Arranged == string(webhook.OrderingNone) {
			continue
		}
		done, err := d.queue.Arrange(ctx, l.row.ID, webhook.OrderingNone)
		if err != nil {
			return err
		}
		if again := now.Add(arrangeAgain); !done && (l.limit.Until.IsZero() || again.Before(l.limit.Until)) {
			l.limit.Until = again
		}
	}
	return nil
}

// shareLanes gives up what this dispatcher owns and need not.
func (d *Dispatcher) shareLanes(ctx context.Context, lanes []laneLook) error {
	ids := idsOf(lanes, func(l *laneLook) bool { return l.share })
	if len(ids) == 0 {
		return nil
	}
	return postgres.ShareLanes(ctx, d.pool, d.cfg.Instance, ids)
}

// leaveOthersTheirs bounds lanes of which others may be working more than their parts.
func (d *Dispatcher) leaveOthersTheirs(ctx context.Context, lanes []laneLook, now time.Time, sharers int) error {
	before := map[webhook.ID]time.Time{}
	for i := range lanes {
		if l := &lanes[i]; !l.counted.IsZero() {
			before[l.row.ID] = l.counted
		}
	}
	if len(before) == 0 {
		return nil
	}
	elsewhere, err := d.queue.RunningElsewhere(ctx, before)
	if err != nil {
		return err
	}
	for i := range lanes {
		l := &lanes[i]
		switch has := elsewhere[l.row.ID]; {
		case l.counted.IsZero():
		case l.limit.Owned:
			l.limit = ownedBeside(l.limit, has, now)
		default:
			l.limit = besideOthers(l.limit, has, sharers, now)
		}
	}
	return nil
}

// soonest is when to ask again for what another dispatcher has until end.
func soonest(end, now time.Time) time.Time {
	if least := now.Add(lookAgain); end.Before(least) {
		return least
	}
	return end
}
