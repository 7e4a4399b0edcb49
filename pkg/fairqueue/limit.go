package fairqueue

import (
	"slices"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Limit is what a dispatcher must know of a webhook before it fetches its lane.
type Limit struct {
	// MaxInFlight is how many requests the webhook may have under way at once,
	// over all dispatchers.
	MaxInFlight int
	// Weight is the lane's part of the turns; less than 1 counts as 1.
	Weight int
	// RatePerSecond is how many requests a second may be made, over all
	// dispatchers, and Burst how many at once after a pause; 0: no limit, and what
	// the rate allows in 0.2 s.
	RatePerSecond float64
	Burst         int
	// Host is what the webhook shares its host's limit with; empty: with nobody.
	Host string
	// Gated says that the webhook is paused or disabled.
	Gated bool
	// GateUntil is until when its receiver, or the breaker, or another dispatcher
	// that owns the lane, keeps it shut; zero: it is not.
	GateUntil time.Time
	// Probe says that the breaker lets one delivery through, from this dispatcher.
	Probe bool
	// Owned says that no other dispatcher fetches the lane, so that its cap is not
	// divided: for as long as it is too small for that.
	Owned bool
	// Ordering is the order that the lane keeps; its owner, in this epoch of its lease,
	// fetches from it.
	Ordering webhook.Ordering
	Epoch    int64
	// MaxHere bounds what this dispatcher may have in flight, besides its part of
	// MaxInFlight; 0: it does not.
	MaxHere int
	// Until is when all of this must be asked for anew; zero: when it changes.
	Until time.Time
}

// maxLimits bounds the memory that limits take; past it they are learned anew.
const maxLimits = 500_000

// limitOf is what is known of a lane's limit at a moment. A cap that is smaller
// than the number of dispatchers cannot be divided: until one of them owns the
// lane its limit is not known.
func (r *ring) limitOf(id webhook.ID, now time.Time) (limit Limit, known bool) {
	limit, known = r.limits[id]
	switch {
	case !known, !limit.Until.IsZero() && !now.Before(limit.Until):
		return Limit{}, false
	case limit.Gated, limit.Probe, !limit.GateUntil.IsZero():
		return limit, true
	}
	if limit.Ordering.Ordered() {
		return limit, limit.Owned
	}
	// An owner of a cap that can be divided again must leave the others their parts.
	return limit, limit.Owned == (limit.MaxInFlight < r.sharers)
}

// unknown takes up to n of the lanes whose limits must be learned before they can
// be fetched, and says among how many dispatchers caps are divided. Whoever asks
// reads them and calls learn, or forsake.
func (r *ring) unknown(n int) (ids []webhook.ID, sharers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(n, len(r.strangers))
	for _, l := range r.strangers[:n] {
		ids = append(ids, l.id)
		// From here on a change makes what is being read worthless.
		l.changed = false
	}
	r.strangers = slices.Delete(r.strangers, 0, n)
	if len(r.strangers) > 0 {
		signal(r.strange) // for somebody else
	}
	return ids, r.sharers
}

// forsake puts lanes back whose limits could not be read.
func (r *ring) forsake(ids []webhook.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if l := r.lanes[id]; l != nil && l.strange {
			r.strangers = append(r.strangers, l)
		}
	}
}

// learn takes note of limits, except of webhooks that changed while they were
// being read, and wakes their lanes. It reports whether there is something new to
// fetch.
func (r *ring) learn(limits map[webhook.ID]Limit) (woken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.limits)+len(limits) > maxLimits {
		clear(r.limits)
	}
	now := r.now()
	for id, limit := range limits {
		if limit.Owned && limit.Ordering.Ordered() {
			r.orders[id] = struct{}{}
		}
		l := r.lanes[id]
		if l == nil {
			r.limits[id] = limit
			continue
		}
		// A gate whose time ended while it was being read says nothing of what comes
		// after it: the lane is asked about again.
		if !l.changed && (limit.GateUntil.IsZero() || limit.GateUntil.After(now)) {
			r.limits[id] = limit
			r.moveHost(l, limit.Host)
			if limit.GateUntil.After(now) {
				r.gateLocked(l, limit.GateUntil)
			}
		}
		if l.strange {
			l.strange = false
			woken = r.wakeLocked(l) || woken
			r.forget(l)
		}
	}
	return woken
}

// unlearn forgets a webhook's limit and gate, so that the next fetch asks for
// them, and wakes the lane if they held it back.
func (r *ring) unlearn(id webhook.ID) (woken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.limits, id)
	return r.reconsider(r.lanes[id])
}

// unlearnAll is unlearn for every webhook.
func (r *ring) unlearnAll() (woken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.limits)
	for _, l := range r.lanes {
		woken = r.reconsider(l) || woken
	}
	return woken
}

// reconsider wakes a lane that was held back by what was known of its webhook,
// which is known no more.
func (r *ring) reconsider(l *lane) bool {
	if l == nil {
		return false
	}
	// A bucket may be dry by a rate that is no more.
	dry := r.now().Before(l.dryUntil)
	l.gateUntil, l.dryUntil, l.changed = time.Time{}, time.Time{}, true
	if !l.capped && !l.missed && !dry {
		return false
	}
	l.capped, l.missed = false, false
	return r.wakeLocked(l)
}

// probing lists the lanes for which this dispatcher has a probe under way.
func (r *ring) probing() (ids []webhook.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids = []webhook.ID{}
	for id, l := range r.lanes {
		if r.limits[id].Probe && l.inFlight+l.granted > 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// owned lists the lanes in memory that only this dispatcher may fetch.
func (r *ring) owned() (ids []webhook.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.lanes {
		if r.limits[id].Owned {
			ids = append(ids, id)
		}
	}
	return ids
}

// inOrder lists the lanes that this dispatcher owns for their order, in memory or not.
func (r *ring) inOrder() map[webhook.ID]webhook.Ordering {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	lanes := map[webhook.ID]webhook.Ordering{}
	for id := range r.orders {
		limit, known := r.limits[id]
		if !known || !limit.Owned || !limit.Ordering.Ordered() || !now.Before(limit.Until) {
			delete(r.orders, id)
			continue
		}
		lanes[id] = limit.Ordering
	}
	return lanes
}

// renewed takes note of which of the lanes that were owned still are, and until
// when.
func (r *ring) renewed(asked []webhook.ID, until map[webhook.ID]time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range asked {
		limit, known := r.limits[id]
		end, still := until[id]
		switch {
		case !known || !limit.Owned:
		case still && limit.Probe: // that ends when it was to end
		case still:
			limit.Until = end
			r.limits[id] = limit
		default:
			delete(r.limits, id)
			r.reconsider(r.lanes[id])
		}
	}
}
