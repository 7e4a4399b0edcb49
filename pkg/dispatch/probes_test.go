package dispatch

import (
	"testing"
	"time"
)

// TestBreakersThatOpenedTogetherProbeOneAfterTheOther has thousands of gates whose
// times are over at once.
func TestBreakersThatOpenedTogetherProbeOneAfterTheOther(t *testing.T) {
	t.Parallel()
	const lanes = 2000
	var (
		p     probePace
		start = time.Unix(1_700_000_000, 0)
		due   = map[time.Duration]int{0: lanes} // who asks when
		begun []time.Duration
		asked int
	)
	for at := time.Duration(0); len(begun) < lanes; at += probeInterval {
		if at > time.Minute {
			t.Fatalf("%d of %d have begun after a minute", len(begun), lanes)
		}
		for when, n := range due {
			if when > at {
				continue
			}
			delete(due, when)
			for range n {
				asked++
				if wait := p.wait(start.Add(at)); wait > 0 {
					due[at+wait]++
				} else {
					begun = append(begun, at)
				}
			}
		}
	}
	// In no second more than what is allowed in one, and what was saved up.
	for i, at := range begun {
		if j := i + probesPerSecond + probesAtOnce; j < len(begun) && begun[j]-at < time.Second {
			t.Fatalf("%d probes began within %s", probesPerSecond+probesAtOnce+1, begun[j]-at)
		}
	}
	if last := begun[lanes-1]; last > lanes*probeInterval+time.Second {
		t.Errorf("the last began after %s, though %d a second may", last, probesPerSecond)
	}
	if asked > 3*lanes {
		t.Errorf("they asked %d times, which is a question each time", asked)
	}
}

// TestAFewProbesBeginAtOnce needs no patience where nothing has failed on the whole.
func TestAFewProbesBeginAtOnce(t *testing.T) {
	t.Parallel()
	var p probePace
	now := time.Unix(1_700_000_000, 0)
	for range 3 {
		for i := range probesAtOnce {
			if wait := p.wait(now); wait > 0 {
				t.Fatalf("the %d. waits for %s", i+1, wait)
			}
		}
		if p.wait(now) == 0 {
			t.Fatalf("more than %d began at once", probesAtOnce)
		}
		now = now.Add(time.Minute)
	}
}
