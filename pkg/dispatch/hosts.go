package dispatch

import (
	"context"
	"sync"
	"time"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/fairqueue"
)

// shareHosts has the queue leave to others what they are sending to hosts beyond their
// parts, since they fetched it before this dispatcher joined: once before it returns, and
// then in the background until none is left. It reports false if ctx ended first: until
// the first count, nothing may be fetched.
func (d *Dispatcher) shareHosts(ctx context.Context, background *sync.WaitGroup) bool {
	if d.cfg.MaxPerHost == 0 {
		return true
	}
	ticker := time.NewTicker(lookAgain)
	left, known := 0, false
	look := func() bool {
		excess, err := d.hostExcess(ctx)
		if err != nil {
			if ctx.Err() == nil {
				d.cfg.Logger.WarnContext(ctx, "could not ask what others send to hosts; trying again", "error", err)
			}
			return false
		}
		left, known = len(excess), true
		d.queue.ShareHosts(excess)
		return left == 0
	}
	wait := func() bool {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
			return true
		}
	}
	for look(); !known; look() {
		if !wait() {
			ticker.Stop()
			return false
		}
	}
	background.Go(func() {
		defer ticker.Stop()
		for left > 0 && wait() {
			look()
		}
	})
	return true
}

// hostExcess counts, by host, what others fetched before this dispatcher joined and are
// sending still, beyond their parts of the host's limit.
func (d *Dispatcher) hostExcess(ctx context.Context) (map[string]int, error) {
	elsewhere, err := d.queue.HostsElsewhere(ctx, time.Unix(0, d.joined.Load()))
	if err != nil {
		return nil, err
	}
	part := max(1, d.cfg.MaxPerHost/int(d.gates.sharers.Load()))
	return hostExcess(elsewhere, part), nil
}

// hostExcess is what dispatchers have beyond their parts of each host's limit. It is
// pure.
func hostExcess(elsewhere []fairqueue.Elsewhere, part int) map[string]int {
	type place struct{ host, holder string }
	running := map[place]int{}
	for _, e := range elsewhere {
		running[place{egress.Target(e.URL), e.Holder}] += e.Running
	}
	excess := map[string]int{}
	for p, n := range running {
		if p.host != "" && n > part {
			excess[p.host] += n - part
		}
	}
	return excess
}
