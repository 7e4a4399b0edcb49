package fairqueue

import (
	"math"
	"testing"
	"time"

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
