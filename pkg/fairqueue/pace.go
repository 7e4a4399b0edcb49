package fairqueue

import "time"

// Signal is what an attempt says about how much its receiver can take.
type Signal int

// The closed set of signals.
const (
	SignalNone     Signal = iota // nothing: it failed for another reason
	SignalHealthy                // it succeeded
	SignalOverload               // too much at once: 429, 503, or no answer in time
)

const (
	// paceShrink is what is left of a pace after an overload, and paceEase after
	// answers that take longer and longer.
	paceShrink = 0.5
	paceEase   = 0.8
	// A latency is rising when that of the last few answers is more than
	// slowFactor times the usual one and slowMargin more.
	slowFactor = 2
	slowMargin = 100 * time.Millisecond
	// The weights of one answer in the recent and in the usual latency.
	recentWeight = 0.2
	usualWeight  = 0.01
	// paceLife is how long the pace of a webhook is kept that gets nothing.
	paceLife = time.Minute
)

// pace is how many requests at once a receiver has shown to be able to take, as
// this dispatcher sees it: additive increase, multiplicative decrease. A pace at
// its most limits nothing.
type pace struct {
	limit float64
	// shrunkAt is when limit was last lowered: requests sent before say nothing
	// about what is sent since.
	shrunkAt time.Time
	// recent and usual are latencies, in seconds; 0: none is known.
	recent, usual float64
	seenAt        time.Time
}

// observe takes in one attempt that was started and has ended at the given times,
// when inFlight requests were under way, of at most most.
func (p *pace) observe(started, ended time.Time, signal Signal, inFlight, most int) {
	p.seenAt = ended
	shrink := func(to float64) {
		if started.After(p.shrunkAt) {
			p.limit, p.shrunkAt = max(1, min(p.limit, float64(max(1, inFlight)))*to), ended
		}
	}
	switch signal {
	case SignalOverload:
		shrink(paceShrink)
	case SignalHealthy:
		latency := ended.Sub(started).Seconds()
		if p.usual == 0 {
			p.recent, p.usual = latency, latency
		}
		p.recent += (latency - p.recent) * recentWeight
		p.usual += (latency - p.usual) * usualWeight
		if p.recent > slowFactor*p.usual+slowMargin.Seconds() {
			shrink(paceEase)
			break
		}
		p.limit += 1 / max(1, p.limit)
	}
	p.limit = min(p.limit, float64(most))
}

// idle reports whether nothing is lost by forgetting the pace.
func (p *pace) idle(now time.Time) bool { return now.Sub(p.seenAt) > paceLife }
