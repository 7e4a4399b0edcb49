package dispatch

import (
	"sync"
	"time"
)

const (
	// probeSlot is the grid on which the times of breakers' gates end, so that probes
	// come in batches: 200 a second, each by itself, are a commit each for the claim, the
	// attempt and the new gate, and slow everybody down; 50 in a quarter of a second are
	// a few.
	probeSlot = 250 * time.Millisecond
	// probesPerSlot is how many probes a dispatcher begins in one: thousands of receivers
	// that failed together must not take it from the others when their gates' times are
	// over.
	probesPerSlot = 50
)

// probePace spreads the beginnings of probes over slots. Its zero value is ready.
type probePace struct {
	mu   sync.Mutex
	slot time.Time // the last in which a probe began, and how many did
	n    int
	// later is the last slot that was given to some that could not begin, and nLater to
	// how many.
	later  time.Time
	nLater int
}

// wait takes note of a probe that would begin now, and returns 0; or it returns after
// how long to ask again: in the first slot that has not been given to others.
func (p *probePace) wait(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	slot := now.Truncate(probeSlot)
	if !slot.Equal(p.slot) {
		p.slot, p.n = slot, 0
	}
	if p.n < probesPerSlot {
		p.n++
		return 0
	}
	switch {
	case !p.later.After(slot):
		p.later, p.nLater = slot.Add(probeSlot), 0
	case p.nLater == probesPerSlot:
		p.later, p.nLater = p.later.Add(probeSlot), 0
	}
	p.nLater++
	return p.later.Sub(now)
}

// probeTime is the end of the slot that a time is in.
func probeTime(at time.Time) time.Time {
	if slot := at.Truncate(probeSlot); slot.Before(at) {
		return slot.Add(probeSlot)
	}
	return at
}
