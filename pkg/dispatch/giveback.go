package dispatch

import (
	"context"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// giveBackInterval is how often dead instances are looked for. With
	// webhook.StaleAfter it keeps the promise that what a dead dispatcher was working
	// is on its way again within 30 s.
	giveBackInterval = 3 * time.Second
	giveBackTimeout  = 5 * time.Second
)

// giveBackDead takes over from dead dispatchers until ctx ends.
//
// Every dispatcher looks for the dead, not only River's leader: the leader may
// be the dead one, and electing another takes most of the 30 s that are
// promised. An advisory lock sees to it that one does the work.
func (d *Dispatcher) giveBackDead(ctx context.Context) error {
	ticker := time.NewTicker(giveBackInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		d.giveBackOnce(ctx)
	}
}

func (d *Dispatcher) giveBackOnce(ctx context.Context) {
	if !d.heartbeat.Observed() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, giveBackTimeout)
	defer cancel()
	n, err := d.queue.GiveBackDead(ctx, webhook.StaleAfter)
	switch {
	case err != nil && ctx.Err() != context.Canceled:
		d.cfg.Logger.WarnContext(ctx, "could not give back what dead dispatchers were working", "error", err)
	case n > 0:
		d.cfg.Logger.WarnContext(ctx, "gave back what a dead dispatcher was working", "deliveries", n)
	}
}
