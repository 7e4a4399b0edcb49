package dispatch

import (
	"sync"
	"time"
)

const (
	// probesPerSecond is how many breakers' probes a dispatcher begins in a second, and
	// probesAtOnce how many after a pause. A probe costs as much as a delivery: thousands
	// of receivers that failed together must not take the dispatcher from the others when
	// their gates' times are over.
	probesPerSecond = 200
	probesAtOnce    = 20
	probeInterval   = time.Second / probesPerSecond
)

// probePace spreads the beginnings of probes over time. Its zero value is ready.
type probePace struct {
	mu sync.Mutex
	// next is when the next probe may begin if none had been saved up, and later the
	// last time that was given to one that could not.
	next, later time.Time
}

// wait takes note of a probe that would begin now, and returns 0; or it returns after
// how long to ask again, each time another.
func (p *probePace) wait(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if saved := now.Add(-probesAtOnce * probeInterval); p.next.Before(saved) {
		p.next = saved
	}
	if p.next.Before(now) {
		p.next = p.next.Add(probeInterval)
		return 0
	}
	if p.later.Before(p.next) {
		p.later = p.next
	}
	p.later = p.later.Add(probeInterval)
	return p.later.Sub(now)
}
