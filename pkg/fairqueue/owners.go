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
		if err := q.renewLanes(ctx); err != nil && ctx.Err() == nil {
			q.cfg.Logger.WarnContext(ctx, "could not renew the leases of lanes", "error", err)
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

// giveUpLanes lets other dispatchers have this one's lanes at once. It runs when
// the deliveries have left.
func (q *Queue) giveUpLanes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTimeout)
	defer cancel()
	if err := postgres.GiveUpLanes(ctx, q.pool, q.cfg.ClientID); err != nil {
		// Nothing is lost: the leases end.
		q.cfg.Logger.WarnContext(ctx, "could not give up lanes", "error", err)
	}
}
