package dispatch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
)

const (
	// beatInterval is how often an instance says that it lives.
	beatInterval = 2 * time.Second
	// staleAfter is how long an instance may be silent before it counts as dead.
	staleAfter = 15 * time.Second
	// giveBackInterval is how often dead instances are looked for. With
	// staleAfter it keeps the promise that what a dead dispatcher was working is
	// on its way again within 30 s.
	giveBackInterval = 3 * time.Second
	// forgetAfter is how long a dead instance's row is kept for people to see.
	forgetAfter = time.Hour
	beatTimeout = 5 * time.Second
	// giveBackTimeout keeps the next beat from being late: two beats are at most
	// beatTimeout and this apart, which is less than staleAfter.
	giveBackTimeout = 5 * time.Second
	// maxGap is how far apart two beats can be in a process that runs.
	maxGap = beatTimeout + giveBackTimeout + beatInterval
)

// heartbeat writes this instance's row, learns from it how many dispatchers
// share the work, and gives back what dead ones left running.
//
// Every dispatcher looks for the dead, not only River's leader: the leader may
// be the dead one, and electing another takes most of the 30 s that are
// promised. An advisory lock sees to it that one does the work.
type heartbeat struct {
	db       postgres.Querier
	share    func(dispatchers int) // told how many are alive
	queue    *fairqueue.Queue
	logger   *slog.Logger
	metrics  *metrics
	instance string
	version  string
	host     string

	// known is closed by the first beat that was written.
	known     chan struct{}
	knownOnce sync.Once

	// healthySince is when the present run of successful beats began, or zero, and
	// lastBeat when the last of them did. Run's goroutine owns both.
	healthySince, lastBeat time.Time
}

// Run beats until ctx ends, and then takes this instance off the list: it is
// told to stop after the deliveries have left.
func (h *heartbeat) Run(ctx context.Context) error {
	ticker := time.NewTicker(beatInterval)
	defer ticker.Stop()
	nextGiveBack := time.Now().Add(giveBackInterval)
	for {
		h.beat(ctx)
		if now := time.Now(); now.After(nextGiveBack) {
			nextGiveBack = now.Add(giveBackInterval)
			h.giveBack(ctx)
		}
		select {
		case <-ctx.Done():
			return h.leave(ctx)
		case <-ticker.C:
		}
	}
}

func (h *heartbeat) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), beatTimeout)
	defer cancel()
	if err := postgres.Leave(ctx, h.db, h.instance); err != nil {
		// Nothing is lost: the row grows old, and others forget it.
		h.logger.WarnContext(ctx, "could not sign off", "error", err)
	}
	return nil
}

// beat writes one heartbeat.
func (h *heartbeat) beat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	before := time.Now()
	alive, err := postgres.Beat(ctx, h.db, h.instance, postgres.RoleDispatcher, h.version, h.host, staleAfter)
	if err != nil {
		h.healthySince = time.Time{}
		h.metrics.heartbeatErrors.Inc()
		h.logger.DebugContext(ctx, "heartbeat failed", "error", err)
		return
	}
	// A gap means that this process, or the whole machine, was stopped: the others
	// may have been too, and must have the time to say that they live.
	if h.healthySince.IsZero() || before.Sub(h.lastBeat) > maxGap {
		h.healthySince = before
	}
	h.lastBeat = before
	h.metrics.dispatchers.Set(float64(alive))
	h.share(alive)
	h.knownOnce.Do(func() { close(h.known) })
}

// observed reports whether this instance has seen the database answer without a
// break for as long as silence must last to mean death: after an outage everyone's
// last heartbeat is old.
func (h *heartbeat) observed() bool {
	return !h.healthySince.IsZero() && time.Since(h.healthySince) >= staleAfter
}

// giveBack takes over from the dead.
func (h *heartbeat) giveBack(ctx context.Context) {
	if !h.observed() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, giveBackTimeout)
	defer cancel()
	n, err := h.queue.GiveBackDead(ctx, staleAfter)
	if err != nil {
		h.logger.WarnContext(ctx, "could not give back what dead dispatchers were working", "error", err)
		return
	}
	if n > 0 {
		h.logger.WarnContext(ctx, "gave back what a dead dispatcher was working", "deliveries", n)
	}
	if _, err := postgres.ForgetInstances(ctx, h.db, forgetAfter); err != nil {
		h.logger.DebugContext(ctx, "could not forget dead instances", "error", err)
	}
}
