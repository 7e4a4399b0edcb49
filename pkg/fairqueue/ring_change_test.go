package fairqueue

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// dry is a bucket's answer when it has nothing.
func dry(postgres.TokenAsk) postgres.TokenGrant { return postgres.TokenGrant{} }

func TestRingAfterAChange(t *testing.T) {
	t.Parallel()

	t.Run("SpendsARaisedRateWithoutWaitingForATokenOfTheOldOne", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: 0.001}})
		r.wake(ids[0])
		exchange(r, dry)
		r.unlearn(ids[0])
		if asked, _ := r.unknown(10); len(asked) != 1 {
			t.Fatal("the lane waits for a token of its old rate, 1000 s away")
		}
		r.learn(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: 100}})
		exchange(r, all)
		if got := serve(r, 100)[ids[0]]; got != 10 {
			t.Errorf("offered %d slots, want a tenth of a second's worth of the new rate", got)
		}
	})

	t.Run("DoesNotAskAgainAndAgainForAHopelessRate", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, now := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: math.SmallestNonzeroFloat64}})
		r.wake(ids[0])
		exchange(r, dry)
		*now = now.Add(time.Minute)
		r.wakeDue(*now)
		if asks, _ := r.asks(); len(asks) != 0 {
			t.Error("a bucket that gets a token in a million years is asked every 20 ms")
		}
	})
}

func TestRingMovesABusyLaneToItsNewHost(t *testing.T) {
	t.Parallel()
	// moved is a ring with a lane that has 3 requests under way to host a and points to
	// b, where each host may get 5, and one that pointed to b all along.
	moved := func() (r *ring, mover, other webhook.ID) {
		ids := testIDs(2)
		mover, other = ids[0], ids[1]
		r, _ = clockRing(map[webhook.ID]Limit{mover: {MaxInFlight: 3, Host: "a"}, other: {MaxInFlight: 100, Host: "b"}})
		r.hostCap = 5
		r.wake(mover)
		serve(r, 100)
		r.unlearn(mover)
		r.unknown(10)
		r.learn(map[webhook.ID]Limit{mover: {MaxInFlight: 100, Host: "b"}})
		return r, mover, other
	}

	t.Run("CountsWhatItSendsFromNowOnForTheNewOne", func(t *testing.T) {
		t.Parallel()
		r, mover, other := moved()
		r.wake(other)
		got := map[webhook.ID]int{}
		for range 5 {
			for id, n := range serve(r, 100) {
				got[id] += n
			}
		}
		if sum := got[mover] + got[other]; sum != 5 {
			t.Errorf("the new host got %d requests at once, want 5", sum)
		}
		if n := r.hosts["a"].inFlight; n != 3 {
			t.Errorf("%d requests are counted for the old host, want the 3 that are under way", n)
		}
	})

	t.Run("KeepsAFetchThatIsUnderWayWithTheOldOne", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, Host: "a"}})
		r.hostCap = 5
		r.wake(ids[0])
		grants := r.take(2, 1000, 10)
		r.unlearn(ids[0])
		r.wake(ids[0])
		r.unknown(10)
		r.learn(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, Host: "b"}})
		r.settle(grants, map[webhook.ID]int{ids[0]: 2})
		if a, b := r.hosts["a"].inFlight, r.hosts["b"].inFlight; a != 2 || b != 0 {
			t.Errorf("%d and %d requests are counted for the old host and the new, want 2 and 0", a, b)
		}
	})

	t.Run("CountsRightWhereverItGoes", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			id := testIDs(1)[0]
			r, _ := clockRing(map[webhook.ID]Limit{id: {MaxInFlight: 100, Host: "a"}})
			r.hostCap = 5
			var grants [][]grant
			for range rapid.IntRange(1, 40).Draw(t, "steps") {
				switch rapid.IntRange(0, 3).Draw(t, "step") {
				case 0:
					r.unlearn(id)
					r.wake(id)
					r.unknown(10)
					r.learn(map[webhook.ID]Limit{id: {MaxInFlight: 100, Host: rapid.SampledFrom([]string{"a", "b", "c", ""}).Draw(t, "host")}})
				case 1:
					r.wake(id)
					grants = append(grants, r.take(rapid.IntRange(1, 3).Draw(t, "free"), 1000, 10))
				case 2:
					if len(grants) > 0 {
						n := 0
						for _, g := range grants[0] {
							n = rapid.IntRange(0, g.limit).Draw(t, "fetched")
						}
						r.settle(grants[0], map[webhook.ID]int{id: n})
						grants = grants[1:]
					}
				case 3:
					r.finish(id)
				}
				for name, h := range r.hosts {
					if h.inFlight < 0 || h.granted < 0 || h.inFlight+h.granted > 5 || h.lanes != 1 {
						t.Fatalf("host %s has %+v", name, h)
					}
				}
			}
			for _, g := range grants {
				r.settle(g, nil)
			}
			for r.lanes[id] != nil && r.lanes[id].inFlight > 0 {
				r.finish(id)
			}
			for name, h := range r.hosts { // the lane may have been left in the ring
				if l := r.lanes[id]; l == nil || l.host != h || len(l.former) > 0 || h.inFlight+h.granted > 0 {
					t.Fatalf("host %s is kept in memory: %+v", name, h)
				}
			}
		})
	})

	t.Run("ForgetsTheOldOneWithItsLastRequest", func(t *testing.T) {
		t.Parallel()
		r, mover, _ := moved()
		sent := serve(r, 100)[mover]
		for range 3 + sent {
			r.finish(mover)
		}
		for range 3 {
			r.settle(r.take(10, 1000, 10), nil)
		}
		if len(r.lanes) != 0 || len(r.hosts) != 0 {
			t.Errorf("%d lanes and %d hosts are kept in memory", len(r.lanes), len(r.hosts))
		}
	})
}

// A database's clock is set back: by hand, or by a standby that takes over.
func TestRingAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()

	t.Run("LooksAtTheWholeOfABusyLane", func(t *testing.T) {
		t.Parallel()
		now := ringStart
		f := &floor{}
		f.looked(grant{limit: busyLane, newest: now}, busyLane, now)
		now = now.Add(-10 * time.Minute)
		if at := f.from(now); !at.IsZero() {
			t.Errorf("it looks for what is due since %s, ten minutes from now, and finds nothing until then", at)
		}
	})

	t.Run("AsksABucketThatWasDry", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, now := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: 10}})
		r.wake(ids[0])
		exchange(r, dry)
		*now = now.Add(-10 * time.Minute)
		r.wake(ids[0]) // as discovery does
		if asks, _ := r.asks(); len(asks) != 1 {
			t.Error("it waits ten minutes for a token that comes in a tenth of a second")
		}
	})
}
