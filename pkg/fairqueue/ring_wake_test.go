package fairqueue

import (
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// TestNoWakeUpIsLost keeps the interleavings in which one was.
func TestNoWakeUpIsLost(t *testing.T) {
	t.Parallel()

	t.Run("ThatComesWhileAFetchHoldsTheLanesWholeRoom", func(t *testing.T) {
		t.Parallel()
		for _, fetched := range []int{0, 1} {
			ids := testIDs(1)
			r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 50}})
			r.wake(ids[0])
			grants := r.take(1000, 1000, 10)
			r.wake(ids[0]) // a job that the fetch's snapshot did not have
			if !r.settle(grants, map[webhook.ID]int{ids[0]: fetched}) || len(r.take(1000, 1000, 10)) != 1 {
				t.Errorf("after a fetch that brought %d, nothing fetches what the notification was about", fetched)
			}
		}
	})

	t.Run("BehindAHostWhoseRoomWasHeldInVain", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(2)
		shared := Limit{MaxInFlight: 50, Host: "a"}
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: shared, ids[1]: shared})
		r.hostCap = 1
		r.wake(ids[0])
		r.wake(ids[1])
		r.settle(r.take(10, 1000, 10), nil) // the first had nothing
		if got := r.take(10, 1000, 10); limitsOf(got)[ids[1]] != 1 {
			t.Error("the second sleeps beside an idle host")
		}
	})

	t.Run("BehindAHostWhoseNextLaneIsGated", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(3)
		shared := Limit{MaxInFlight: 50, Host: "a"}
		r, now := clockRing(map[webhook.ID]Limit{ids[0]: shared, ids[1]: shared, ids[2]: shared})
		r.hostCap = 1
		r.wake(ids[0])
		r.settle(r.take(10, 1000, 10), map[webhook.ID]int{ids[0]: 1})
		r.wake(ids[1])
		r.wake(ids[2])
		r.gate(ids[1], now.Add(time.Hour))
		for range 3 { // whoever is woken first may find nothing more
			r.finish(ids[0])
			got := r.take(10, 1000, 10)
			if limitsOf(got)[ids[2]] == 1 {
				return
			}
			r.settle(got, nil)
		}
		t.Error("the third sleeps beside an idle host")
	})

	t.Run("ByAGateThatEndsWhileItIsBeingReadOf", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, now := clockRing(nil)
		r.wake(ids[0])
		r.unknown(10)
		until := now.Add(2 * time.Millisecond)
		*now = now.Add(5 * time.Millisecond) // the answer took that long
		r.learn(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 50, GateUntil: until}})
		if got := r.take(10, 1000, 10); len(got) != 0 {
			t.Errorf("offered %v of a lane whose breaker waits for its probe", limitsOf(got))
		}
		if asked, _ := r.unknown(10); len(asked) != 1 {
			t.Error("what comes after the gate is not asked for")
		}
	})

	t.Run("OfALaneWhoseLeaseWasNotRenewed", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 1, Owned: true, Until: ringStart.Add(time.Minute)}})
		r.setSharers(2)
		r.wake(ids[0])
		r.settle(r.take(10, 1000, 10), map[webhook.ID]int{ids[0]: 1}) // it may have more, and is at its cap
		r.renewed(ids, nil)
		if asked, _ := r.unknown(10); len(asked) != 1 {
			t.Error("it is not asked for anew")
		}
	})
}

// TestAnOwnerLeavesOthersTheirPartWhenTheCapCanBeDividedAgain has a dispatcher leave.
func TestAnOwnerLeavesOthersTheirPartWhenTheCapCanBeDividedAgain(t *testing.T) {
	t.Parallel()
	ids := testIDs(1)
	r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 2, Owned: true, Until: ringStart.Add(time.Hour)}})
	r.setSharers(3)
	r.wake(ids[0])
	r.settle(r.take(10, 1000, 10), map[webhook.ID]int{ids[0]: 2})
	r.setSharers(2)
	r.finish(ids[0])
	if got := r.take(10, 1000, 10); len(got) != 0 {
		t.Errorf("the owner was offered %v of a cap that is shared again", limitsOf(got))
	}
	if asked, _ := r.unknown(10); len(asked) != 1 {
		t.Error("the lane's limit is not asked for anew")
	}
}
