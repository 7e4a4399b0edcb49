package fairqueue

import (
	"context"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
)

const (
	// OwnerLease is how long a lane stays with its owner that does not renew it.
	OwnerLease = 15 * time.Second
	// OwnerMargin is how long before the end of its lease an owner stops fetching.
	OwnerMargin   = 5 * time.Second
	renewInterval = 3 * time.Second
	renewTimeout  = 2 * time.Second
)

// runOwners renews the leases of the lanes that this dispatcher owns and has
// something to do with, until ctx ends, and then gives all of them up.
func (q *Queue) runOwners(ctx context.Context) {
	ticker := time.NewTicker(renewInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			q.giveUpLanes(ctx)
			return
		case <-ticker.C:
		}
		if q.draining.Load() {
			continue // it has given up its lanes
		}
		if err := q.renewLanes(ctx); err != nil && ctx.Err() == nil {
			q.cfg.Logger.WarnContext(ctx, "could not renew the leases of lanes", "error", err)
		}
		if err := q.rearrange(ctx); err != nil && ctx.Err() == nil {
			q.cfg.Logger.WarnContext(ctx, "could not put deliveries into their places", "error", err)
		}
		q.ring.sweep()
	}
}

func (q *Queue) renewLanes(ctx context.Context) error {
	ids := q.ring.owned()
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	until, err := postgres.RenewLanes(ctx, q.pool, q.cfg.ClientID, ids, OwnerLease)
	if err != nil {
		return err // what they end in is known: fetching stops then
	}
	for id, end := range until {
		until[id] = end.Add(-OwnerMargin)
	}
	q.ring.renewed(ids, until)
	return nil
}

// Drain says that nothing will be fetched any more: lanes and probes that only this
// dispatcher may have are given to others, who count what is still under way. The
// caller has stopped the fetch, or is about to.
func (q *Queue) Drain(ctx context.Context) {
	q.draining.Store(true)
	q.giveUpLanes(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTimeout)
	defer cancel()
	q.putOff(ctx, q.takeBack(func(handed) bool { return true }))
	if err := postgres.GiveUpProbes(ctx, q.pool, q.cfg.ClientID, q.ring.probing()); err != nil {
		q.cfg.Logger.WarnContext(ctx, "could not give up probes", "error", err)
	}
}

// giveUpLanes lets other dispatchers have this one's lanes at once.
func (q *Queue) giveUpLanes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTimeout)
	defer cancel()
	if err := postgres.GiveUpLanes(ctx, q.pool, q.cfg.ClientID); err != nil {
		// Nothing is lost: the leases end.
		q.cfg.Logger.WarnContext(ctx, "could not give up lanes", "error", err)
	}
}
