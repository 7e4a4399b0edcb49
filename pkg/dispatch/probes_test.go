package dispatch

import (
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// TestBreakersThatOpenedTogetherProbeInBatches has thousands of gates whose times are
// over at once.
func TestBreakersThatOpenedTogetherProbeInBatches(t *testing.T) {
	t.Parallel()
	const lanes = 2000
	var (
		p     probePace
		start = time.Unix(1_700_000_000, 0)
		due   = map[time.Duration]int{0: lanes} // who asks when
		begun int
		asked int
		slots int
	)
	for ; begun < lanes; slots++ {
		at := time.Duration(slots) * probeSlot
		n, began := due[at], 0
		delete(due, at)
		for range n {
			asked++
			if wait := p.wait(start.Add(at)); wait > 0 {
				due[at+wait]++
			} else {
				began++
			}
		}
		if began > probesPerSlot || n > 0 && began == 0 {
			t.Fatalf("of %d probes %d began in one slot", n, began)
		}
		begun += began
		if len(due) == 0 && begun < lanes {
			t.Fatalf("only %d of %d ever begin", begun, lanes)
		}
	}
	if slots > lanes/probesPerSlot+1 {
		t.Errorf("it took %d slots of %d probes", slots, probesPerSlot)
	}
	if asked > 2*lanes {
		t.Errorf("they asked %d times, which is a question each time", asked)
	}
}

// TestAFewProbesBeginAtOnce needs no patience where little has failed.
func TestAFewProbesBeginAtOnce(t *testing.T) {
	t.Parallel()
	var p probePace
	now := time.Unix(1_700_000_000, 0)
	for range 3 {
		for i := range probesPerSlot {
			if wait := p.wait(now); wait > 0 {
				t.Fatalf("the %d. waits for %s", i+1, wait)
			}
		}
		now = now.Add(probeSlot)
	}
}

// TestABreakersGateEndsWithASlot is what makes probes come in batches, and is no
// reason for an earlier one.
func TestABreakersGateEndsWithASlot(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 123_456_789)
	for _, jitter := range []float64{-1, -0.3, 0, 0.7, 1} {
		change, closed := judgeGate(postgres.Gate{}, false, webhook.ReasonServerError, 0, true, now, now, jitter)
		if !closed || change.Until != change.Until.Truncate(probeSlot) {
			t.Errorf("the gate ends at %v", change.Until)
		}
		exactly := now.Add(5*time.Second + time.Duration(jitter*breakerSpread*float64(5*time.Second)))
		if change.Until.Before(exactly) || change.Until.Sub(exactly) >= probeSlot {
			t.Errorf("the gate ends %s after its time", change.Until.Sub(exactly))
		}
	}
	// A receiver that says how long it wants to rest gets that.
	change, _ := judgeGate(postgres.Gate{}, false, webhook.ReasonRateLimited, time.Second, false, now, now, 0)
	if want := now.Add(time.Second); !change.Until.Equal(want) {
		t.Errorf("a receiver that asked for a second is left alone for %s", change.Until.Sub(now))
	}
}
