package dispatch

import (
	"github.com/failsafe-go/failsafe-go/adaptivelimiter"
)

// capacity is how much this dispatcher can sustain. What it measures is its own
// part of each delivery, reading the payload and recording the attempt, and not the
// receiver's: while that takes longer than usual, with more of it under way, fewer
// deliveries are taken, so that another dispatcher gets them. Requests that wait for
// slow receivers cost this process little, and do not count.
type capacity struct {
	limiter adaptivelimiter.AdaptiveLimiter[any]
	freed   func() // called when there is room for more
}

// minCapacity is how many deliveries may be in this process' own hands however slow
// it is.
const minCapacity = 64

func newCapacity(workers int, freed func()) *capacity {
	low := uint(min(minCapacity, workers))
	return &capacity{
		limiter: adaptivelimiter.NewBuilder[any]().
			WithLimits(low, uint(workers), uint(max(int(low), workers/2))).
			Build(),
		freed: freed,
	}
}

// begin marks the beginning of this process' own part of a delivery; done marks its
// end.
func (c *capacity) begin() (done func()) {
	permit, got := c.limiter.TryAcquirePermit()
	if !got {
		// It was taken before the limit fell: it is worked all the same.
		return func() {}
	}
	return func() {
		permit.Record()
		c.freed()
	}
}

// room is how many more deliveries can be taken now.
func (c *capacity) room() int { return max(0, c.limiter.Limit()-c.limiter.Inflight()) }

// size is how many can be in this process' own hands at once now.
func (c *capacity) size() int { return c.limiter.Limit() }
