package fairqueue

import (
	"context"
	"sync"
	"time"

	"github.com/riverqueue/river/rivershared/startstop"
)

// Duty is work that one dispatcher does for all: it runs on River's elected
// leader only, in no worker's slot, and must be safe to run twice at once, since
// an old leader may not know yet that it is none.
type Duty struct {
	Name     string        // a metric label
	Interval time.Duration // between the end of one run and the start of the next
	Timeout  time.Duration // of one run
	Run      func(ctx context.Context) error
	// Lost, if set, is called when this dispatcher leads no more, after the last Run:
	// what a leader reports of the whole must not stay on show where nobody renews it.
	Lost func()
}

// duties is the service that River starts on its leader and stops when it is
// the leader no more.
type duties struct {
	startstop.BaseStartStop
	q *Queue
}

// PluginMaintenanceServices is part of River's seam: what runs on the leader.
func (p *pilot) PluginMaintenanceServices() []startstop.Service {
	return []startstop.Service{&duties{q: p.q}}
}

// PluginServices is part of River's seam: what runs on every client.
func (p *pilot) PluginServices() []startstop.Service { return nil }

// Start runs every duty at once and then at its interval, each on its own, so
// that one that hangs until its timeout delays no other.
func (d *duties) Start(ctx context.Context) error {
	ctx, shouldStart, started, stopped := d.StartInit(ctx)
	if !shouldStart {
		return nil
	}
	go func() {
		started()
		defer stopped()
		d.q.metrics.leader.Set(1)
		defer d.q.metrics.leader.Set(0)
		var wg sync.WaitGroup
		for _, duty := range d.q.cfg.Duties {
			wg.Go(func() { d.repeat(ctx, duty) })
		}
		<-ctx.Done()
		wg.Wait()
	}()
	return nil
}

func (d *duties) repeat(ctx context.Context, duty Duty) {
	if duty.Lost != nil {
		defer duty.Lost()
	}
	for {
		d.runOnce(ctx, duty)
		select {
		case <-ctx.Done():
			return
		case <-time.After(duty.Interval):
		}
	}
}

func (d *duties) runOnce(ctx context.Context, duty Duty) {
	ctx, cancel := context.WithTimeout(ctx, duty.Timeout)
	defer cancel()
	err := duty.Run(ctx)
	switch {
	case err == nil:
		d.q.metrics.dutySuccess.WithLabelValues(duty.Name).SetToCurrentTime()
	case context.Cause(ctx) == nil || ctx.Err() == context.DeadlineExceeded:
		d.q.metrics.dutyErrors.WithLabelValues(duty.Name).Inc()
		d.q.cfg.Logger.ErrorContext(ctx, "leader duty failed", "duty", duty.Name, "error", err)
	}
}
