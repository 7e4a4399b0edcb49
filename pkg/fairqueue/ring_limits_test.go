package fairqueue

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// clockRing is a ring whose clock a test sets, and which knows these limits.
func clockRing(limits map[webhook.ID]Limit) (r *ring, now *time.Time) {
	now = new(time.Time)
	*now = ringStart
	r = newRing(func() time.Time { return *now })
	r.learn(limits)
	return r, now
}

// serve takes free slots and fills every grant, and returns what each lane got.
func serve(r *ring, free int) map[webhook.ID]int {
	grants := r.take(free, 1000, 1000)
	got := limitsOf(grants)
	r.settle(grants, got)
	return got
}

func TestRingWeighs(t *testing.T) {
	t.Parallel()

	t.Run("GivesALaneOfTwiceTheWeightTwiceTheSlots", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(2)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 1000, Weight: 1}, ids[1]: {MaxInFlight: 1000, Weight: 2}})
		r.wake(ids[0])
		r.wake(ids[1])
		if got := serve(r, 30); got[ids[0]] != 10 || got[ids[1]] != 20 {
			t.Errorf("of 30 slots the lanes got %d and %d, want 10 and 20", got[ids[0]], got[ids[1]])
		}
	})

	t.Run("LetsATurnThatWasCutShortGoOnBeforeTheOthers", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(2)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 1000, Weight: 3}, ids[1]: {MaxInFlight: 1000, Weight: 1}})
		r.wake(ids[0])
		r.wake(ids[1])
		var order []webhook.ID
		for range 8 {
			for id := range serve(r, 1) {
				order = append(order, id)
			}
		}
		for i, id := range order {
			if want := ids[0]; (i%4 == 3) != (id == ids[1]) {
				t.Fatalf("served %v, want three of %s and then one of the other, twice", order, want)
			}
		}
	})
}

// TestRingSharesByWeight serves lanes that always have more, however many slots
// there are each time, and compares what they got with their weights: no lane is
// ever further ahead of another than one turn of each and one fetch.
func TestRingSharesByWeight(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ids := testIDs(rapid.IntRange(2, 6).Draw(t, "lanes"))
		limits := map[webhook.ID]Limit{}
		for _, id := range ids {
			limits[id] = Limit{MaxInFlight: maxRoom, Weight: rapid.IntRange(1, 5).Draw(t, "weight")}
		}
		r, _ := clockRing(limits)
		for _, id := range ids {
			r.wake(id)
		}
		served := map[webhook.ID]int{}
		most := 0
		for range rapid.IntRange(1, 60).Draw(t, "fetches") {
			free := rapid.IntRange(1, 40).Draw(t, "free")
			most = max(most, free)
			for id, n := range serve(r, free) {
				served[id] += n
			}
			for _, a := range ids {
				for _, b := range ids {
					perA := float64(served[a]) / float64(limits[a].Weight)
					perB := float64(served[b]) / float64(limits[b].Weight)
					if perA-perB > float64(2*most+2) {
						t.Fatalf("a lane of weight %d has got %d, one of weight %d only %d", limits[a].Weight, served[a], limits[b].Weight, served[b])
					}
				}
			}
		}
	})
}

// exchange plays the database's part in one exchange of tokens.
func exchange(r *ring, grant func(ask postgres.TokenAsk) postgres.TokenGrant) (asks []postgres.TokenAsk, woken bool) {
	asks, lanes := r.asks()
	grants := map[string]postgres.TokenGrant{}
	for _, ask := range asks {
		grants[ask.Name] = grant(ask)
	}
	return asks, r.granted(asks, lanes, r.now(), grants)
}

func all(ask postgres.TokenAsk) postgres.TokenGrant { return postgres.TokenGrant{Tokens: ask.Want} }

func TestRingSpendsTokens(t *testing.T) {
	t.Parallel()

	t.Run("OffersALaneWithARateNoMoreThanItsTokens", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: 50}})
		if r.wake(ids[0]) || len(r.take(10, 1000, 10)) != 0 {
			t.Fatal("it was offered slots without a token")
		}
		asks, woken := exchange(r, all)
		if len(asks) != 1 || asks[0].Want != 5 || asks[0].Rate != 50 || asks[0].Capacity != 10 || !woken {
			t.Fatalf("asked for %+v, want a tenth of a second's worth", asks)
		}
		if got := serve(r, 100)[ids[0]]; got != 5 {
			t.Errorf("offered %d slots for 5 tokens", got)
		}
		if len(r.take(100, 1000, 10)) != 0 {
			t.Error("it was offered slots after its tokens were spent")
		}
	})

	t.Run("HoldsUpNoOtherLane", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(2)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: 1}, ids[1]: {MaxInFlight: 100}})
		r.wake(ids[0])
		r.wake(ids[1])
		if got := serve(r, 10); got[ids[1]] != 10 {
			t.Errorf("the lane without a rate got %d of 10 slots", got[ids[1]])
		}
	})

	t.Run("ComesBackWhenADryBucketHasATokenAgain", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, now := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: 2}})
		r.wake(ids[0])
		exchange(r, func(postgres.TokenAsk) postgres.TokenGrant { return postgres.TokenGrant{Left: 0.5} })
		if asks, _ := r.asks(); len(asks) != 0 {
			t.Fatal("it asks a bucket that it knows to be dry")
		}
		woken, next := r.wakeDue(*now)
		if woken || next.Sub(*now) != 250*time.Millisecond {
			t.Fatalf("woken=%v, next in %s, want in 250ms: half a token at 2 a second", woken, next.Sub(*now))
		}
		*now = next
		r.wakeDue(*now)
		if asks, _ := r.asks(); len(asks) != 1 {
			t.Error("it does not ask again")
		}
	})

	t.Run("GivesBackWhatTheLaneHadNoUseFor", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: 100}})
		r.wake(ids[0])
		exchange(r, all)
		r.settle(r.take(100, 1000, 10), map[webhook.ID]int{ids[0]: 4})
		asks, _ := r.asks()
		if len(asks) != 1 || asks[0].GiveBack != 6 || asks[0].Want != 0 {
			t.Errorf("the exchange after 4 of 10 tokens were used is %+v, want 6 given back", asks)
		}
		r.finish(ids[0])
		for range 3 {
			r.finish(ids[0])
		}
		if len(r.lanes) != 0 {
			t.Errorf("%d idle lanes are kept in memory", len(r.lanes))
		}
	})

	t.Run("DoesNotSpendATokenWhoseLeaseIsOver", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, now := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: 100}})
		r.wake(ids[0])
		exchange(r, all)
		*now = now.Add(postgres.LeaseLife)
		if got := r.take(100, 1000, 10); len(got) != 0 {
			t.Errorf("offered %v for tokens that are void", limitsOf(got))
		}
		if asks, _ := r.asks(); len(asks) != 1 {
			t.Error("it does not ask for new ones")
		}
	})

	t.Run("AsksAgainAfterAnExchangeThatFailed", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, RatePerSecond: 100}})
		r.wake(ids[0])
		asks, lanes := r.asks()
		r.granted(asks, lanes, r.now(), nil)
		if asks, _ := r.asks(); len(asks) != 1 {
			t.Error("the lane is lost with the failed exchange")
		}
	})

	t.Run("TakesABurstForTheBucketsSize", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			limit Limit
			want  float64
		}{{Limit{RatePerSecond: 100}, 20}, {Limit{RatePerSecond: 0.5}, 1}, {Limit{RatePerSecond: 100, Burst: 500}, 500}, {Limit{RatePerSecond: 100, Burst: 1}, 1}} {
			if got := bucketCapacity(c.limit); got != c.want {
				t.Errorf("the bucket of %+v holds %g, want %g", c.limit, got, c.want)
			}
		}
	})
}

func TestRingSharesHosts(t *testing.T) {
	t.Parallel()

	t.Run("CountsAllLanesOfAHostTogether", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(3)
		r, _ := clockRing(map[webhook.ID]Limit{
			ids[0]: {MaxInFlight: 100, Host: "a"}, ids[1]: {MaxInFlight: 100, Host: "a"}, ids[2]: {MaxInFlight: 100, Host: "b"},
		})
		r.hostCap = 5
		for _, id := range ids {
			r.wake(id)
		}
		got := map[webhook.ID]int{}
		for range 4 {
			for id, n := range serve(r, 100) {
				got[id] += n
			}
		}
		// One alone leaves a third, for others that may come.
		if got[ids[0]]+got[ids[1]] != 5 || got[ids[2]] != 4 {
			t.Errorf("in flight %v, want 5 for the host that two share, and 4 for the other", got)
		}
	})

	t.Run("WakesTheLaneThatWaitedLongestWhenTheHostHasRoomAgain", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(3)
		limits := map[webhook.ID]Limit{}
		for _, id := range ids {
			limits[id] = Limit{MaxInFlight: 100, Host: "a"}
		}
		r, _ := clockRing(limits)
		r.hostCap = 1
		for _, id := range ids {
			r.wake(id)
		}
		var order []webhook.ID
		for range 6 {
			for id := range serve(r, 100) {
				order = append(order, id)
				r.finish(id)
			}
		}
		if len(order) != 6 || order[0] == order[1] || order[1] == order[2] || order[0] == order[2] || order[3] != order[0] {
			t.Errorf("served %v, want the three lanes in turn", order)
		}
	})

	t.Run("FollowsAWebhookThatMovesToAnotherHost", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(2)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 100, Host: "a"}, ids[1]: {MaxInFlight: 100, Host: "a"}})
		r.hostCap = 1
		r.wake(ids[0])
		serve(r, 10)
		r.wake(ids[1]) // the host is full
		r.unlearn(ids[1])
		r.unknown(10)
		r.learn(map[webhook.ID]Limit{ids[1]: {MaxInFlight: 100, Host: "b"}})
		if got := serve(r, 10)[ids[1]]; got != 1 {
			t.Errorf("the webhook that moved got %d, want 1", got)
		}
		r.finish(ids[0])
		r.finish(ids[1])
		for range ids { // they filled their limits, so both are looked at once more
			r.settle(r.take(10, 1000, 10), nil)
		}
		if len(r.lanes) != 0 || len(r.hosts) != 0 {
			t.Errorf("%d lanes and %d hosts are kept in memory", len(r.lanes), len(r.hosts))
		}
	})
}

func TestRingKeepsToOneDispatcher(t *testing.T) {
	t.Parallel()

	t.Run("DoesNotOfferACapThatIsTooSmallToDivideUnlessItOwnsTheLane", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 2}})
		r.setSharers(3)
		r.wake(ids[0])
		if got := r.take(10, 1000, 10); len(got) != 0 {
			t.Fatalf("offered %v", limitsOf(got))
		}
		if unknown, sharers := r.unknown(10); len(unknown) != 1 || sharers != 3 {
			t.Fatalf("asks for %v among %d, want the lane among 3", unknown, sharers)
		}
		r.learn(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 2, Owned: true, Until: ringStart.Add(time.Second)}})
		if got := serve(r, 10)[ids[0]]; got != 2 {
			t.Errorf("the owner was offered %d, want the whole cap of 2", got)
		}
	})

	t.Run("StopsWhenItsLeaseEnds", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, now := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 2, Owned: true, Until: ringStart.Add(time.Second)}})
		r.setSharers(3)
		*now = ringStart.Add(time.Second)
		r.wake(ids[0])
		if got := r.take(10, 1000, 10); len(got) != 0 {
			t.Errorf("offered %v after the lease ended", limitsOf(got))
		}
	})

	t.Run("GoesOnWhenTheLeaseIsRenewedAndAsksWhenItIsNot", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(2)
		owned := Limit{MaxInFlight: 2, Owned: true, Until: ringStart.Add(time.Second)}
		r, now := clockRing(map[webhook.ID]Limit{ids[0]: owned, ids[1]: owned})
		r.setSharers(3)
		r.wake(ids[0])
		r.wake(ids[1])
		if got := r.owned(); len(got) != 2 {
			t.Fatalf("owns %v, want both", got)
		}
		r.renewed(ids, map[webhook.ID]time.Time{ids[0]: ringStart.Add(time.Minute)})
		*now = ringStart.Add(2 * time.Second)
		if got := r.take(10, 1000, 10); len(got) != 1 || got[0].lane.id != ids[0] {
			t.Errorf("offered %v, want only the lane whose lease was renewed", limitsOf(got))
		}
		if unknown, _ := r.unknown(10); len(unknown) != 1 || unknown[0] != ids[1] {
			t.Errorf("asks for %v, want only the lane whose lease was not renewed", unknown)
		}
	})

	t.Run("SendsOneProbe", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, _ := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 50, Probe: true, Until: ringStart.Add(time.Minute)}})
		r.wake(ids[0])
		if got := serve(r, 10)[ids[0]]; got != 1 {
			t.Fatalf("offered %d, want one probe", got)
		}
		r.wake(ids[0])
		if got := r.take(10, 1000, 10); len(got) != 0 {
			t.Errorf("offered %v while the probe is under way", limitsOf(got))
		}
	})
}

func TestPace(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return ringStart.Add(time.Duration(ms) * time.Millisecond) }

	t.Run("HalvesOnAnOverloadAndOnceForAllThatWasUnderWay", func(t *testing.T) {
		t.Parallel()
		p := &pace{limit: 40}
		for range 10 {
			p.observe(at(0), at(10), SignalOverload, 40, 40)
		}
		if p.limit != 20 {
			t.Errorf("at %g after one moment's overload, want 20", p.limit)
		}
		p.observe(at(20), at(30), SignalOverload, 20, 40)
		if p.limit != 10 {
			t.Errorf("at %g after another, want 10", p.limit)
		}
	})

	t.Run("NeverGoesBelowOne", func(t *testing.T) {
		t.Parallel()
		p := &pace{limit: 2}
		for i := range 20 {
			p.observe(at(20*i+1), at(20*i+10), SignalOverload, 0, 40)
		}
		if p.limit != 1 {
			t.Errorf("at %g, want 1", p.limit)
		}
	})

	t.Run("GrowsByOneForEachRoundOfSuccessesUpToTheCap", func(t *testing.T) {
		t.Parallel()
		p := &pace{limit: 4}
		for i := range 4 {
			p.observe(at(i), at(i+5), SignalHealthy, 4, 10)
		}
		if p.limit < 4.8 || p.limit > 5 {
			t.Errorf("at %g after a round of 4, want about 5", p.limit)
		}
		for i := range 200 {
			p.observe(at(i), at(i+5), SignalHealthy, 4, 10)
		}
		if p.limit != 10 {
			t.Errorf("at %g, want the cap of 10", p.limit)
		}
	})

	t.Run("EasesWhenAnswersTakeLongerAndLonger", func(t *testing.T) {
		t.Parallel()
		p := &pace{limit: 20}
		for i := range 200 {
			p.observe(at(100*i), at(100*i+50), SignalHealthy, 20, 20)
		}
		if p.limit != 20 {
			t.Fatalf("at %g while latency is steady, want 20", p.limit)
		}
		for i := 200; i < 210; i++ {
			p.observe(at(1000*i), at(1000*i+900), SignalHealthy, 20, 20)
		}
		if p.limit >= 16 {
			t.Errorf("at %g after latency rose from 50 to 900 ms, want less than 16", p.limit)
		}
		low := p.limit
		for i := 300; i < 1000; i++ {
			p.observe(at(1000*i), at(1000*i+900), SignalHealthy, 20, 20)
		}
		if p.limit <= low {
			t.Errorf("still at %g long after latency has settled", p.limit)
		}
	})

	t.Run("LimitsWhatTheRingOffers", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r, now := clockRing(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 8}})
		r.wake(ids[0])
		serve(r, 100)
		for range 8 {
			r.observe(ids[0], ringStart, ringStart.Add(time.Second), SignalOverload)
			r.finish(ids[0])
		}
		if got := serve(r, 100)[ids[0]]; got != 4 {
			t.Errorf("offered %d after an overload at 8, want 4", got)
		}
		*now = ringStart.Add(time.Hour)
		r.sweep()
		if len(r.paces) != 0 {
			t.Errorf("%d paces of idle webhooks are kept", len(r.paces))
		}
	})
}

// TestPaceStaysWithinItsBounds plays random attempts.
func TestPaceStaysWithinItsBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 100).Draw(t, "most")
		p := &pace{limit: float64(most)}
		now := ringStart
		for range rapid.IntRange(0, 200).Draw(t, "attempts") {
			latency := time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond
			now = now.Add(time.Duration(rapid.IntRange(0, 1000).Draw(t, "gap")) * time.Millisecond)
			s := Signal(rapid.IntRange(int(SignalNone), int(SignalOverload)).Draw(t, "signal"))
			before := p.limit
			p.observe(now.Add(-latency), now, s, rapid.IntRange(0, most).Draw(t, "in flight"), most)
			if p.limit < 1 || p.limit > float64(most) {
				t.Fatalf("at %g of %d", p.limit, most)
			}
			if s == SignalOverload && p.limit > before {
				t.Fatalf("an overload raised it from %g to %g", before, p.limit)
			}
		}
	})
}

func TestFloor(t *testing.T) {
	t.Parallel()
	start := ringStart

	t.Run("BeginsAtTheHeadOfALaneThatIsNotBusy", func(t *testing.T) {
		t.Parallel()
		var f floor
		f.looked(grant{limit: 10, newest: start}, 10, start)
		if from := f.from(start); !from.IsZero() {
			t.Errorf("begins at %s", from)
		}
	})

	t.Run("BeginsALittleBeforeWhereTheLastFetchOfABusyLaneEnded", func(t *testing.T) {
		t.Parallel()
		var f floor
		f.looked(grant{limit: busyLane, newest: start}, busyLane, start)
		if from := f.from(start); !from.Equal(start.Add(-floorMargin)) {
			t.Errorf("begins at %s, want %s", from, start.Add(-floorMargin))
		}
	})

	t.Run("LooksAtTheWholeOfABusyLaneEverySecond", func(t *testing.T) {
		t.Parallel()
		var f floor
		f.looked(grant{limit: busyLane, newest: start}, busyLane, start)
		if from := f.from(start.Add(wholeLook)); !from.IsZero() {
			t.Errorf("begins at %s after a second, want at the head", from)
		}
	})

	t.Run("ComesBackToWhatIsBelowOnceItHasEmptiedWhatIsAbove", func(t *testing.T) {
		t.Parallel()
		var f floor
		f.looked(grant{limit: busyLane, newest: start}, busyLane, start)
		again := f.looked(grant{limit: 10, from: f.from(start)}, 3, start.Add(time.Millisecond))
		if !again.Equal(start.Add(wholeLook)) {
			t.Errorf("comes back at %s, want a second after it last looked at all", again)
		}
		if again := f.looked(grant{limit: 10, from: start}, 10, start); !again.IsZero() {
			t.Error("comes back later although it may have more now")
		}
	})
}
