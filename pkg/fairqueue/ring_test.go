package fairqueue

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/webhook"
)

var ringStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// testRing is a ring that knows the limit of every lane it is given.
func testRing(maxInFlight int, ids ...webhook.ID) *ring {
	r := newRing(func() time.Time { return ringStart })
	limits := map[webhook.ID]Limit{}
	for _, id := range ids {
		limits[id] = Limit{MaxInFlight: maxInFlight}
	}
	r.learn(limits)
	return r
}

func testIDs(n int) []webhook.ID {
	ids := make([]webhook.ID, n)
	for i := range ids {
		ids[i] = webhook.NewID(ringStart.Add(time.Duration(i) * time.Millisecond))
	}
	return ids
}

func limitsOf(grants []grant) map[webhook.ID]int {
	limits := map[webhook.ID]int{}
	for _, g := range grants {
		limits[g.lane.id] += g.limit
	}
	return limits
}

func TestRing(t *testing.T) {
	t.Parallel()

	t.Run("OffersEveryLaneAnEqualShare", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(4)
		r := testRing(100, ids...)
		for _, id := range ids {
			r.wake(id)
		}
		for id, n := range limitsOf(r.take(40, 1000, 10)) {
			if n != 10 {
				t.Errorf("lane %s was offered %d of 40 slots, want 10", id, n)
			}
		}
	})

	t.Run("GivesALoneLaneAllItsCapAllows", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r := testRing(7, ids...)
		r.wake(ids[0])
		if n := limitsOf(r.take(100, 1000, 10))[ids[0]]; n != 7 {
			t.Errorf("offered %d slots, want the cap of 7", n)
		}
	})

	t.Run("DividesACapAmongTheDispatchers", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(2)
		r := testRing(9, ids[0])
		r.learn(map[webhook.ID]Limit{ids[1]: {MaxInFlight: 4}})
		r.setSharers(4)
		r.wake(ids[0])
		r.wake(ids[1])
		got := limitsOf(r.take(100, 1000, 10))
		if got[ids[0]] != 2 || got[ids[1]] != 1 {
			t.Errorf("offered %v, want 2 of a cap of 9 and 1 of a cap of 4 among 4", got)
		}
	})

	t.Run("DoesNotServeALaneTwiceBeforeTheOthersHadTheirTurn", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(3)
		r := testRing(100, ids...)
		for _, id := range ids {
			r.wake(id)
		}
		first := r.take(1, 1000, 10)
		r.settle(first, map[webhook.ID]int{first[0].lane.id: 1})
		second := r.take(1, 1000, 10)
		r.settle(second, map[webhook.ID]int{second[0].lane.id: 1})
		third := r.take(1, 1000, 10)
		if first[0].lane.id != ids[0] || second[0].lane.id != ids[1] || third[0].lane.id != ids[2] {
			t.Errorf("served %s, %s, %s, want the lanes in turn", first[0].lane.id, second[0].lane.id, third[0].lane.id)
		}
	})

	t.Run("KeepsANotificationThatArrivesWhileTheLaneIsBeingFetched", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r := testRing(100, ids...)
		r.wake(ids[0])
		grants := r.take(10, 1000, 10)
		if !r.wake(ids[0]) {
			t.Error("a notification during the fetch was not taken")
		}
		r.settle(grants, nil) // the fetch itself saw nothing
		if len(r.take(10, 1000, 10)) != 1 {
			t.Error("the lane is lost: nothing will fetch what the notification was about")
		}
	})

	t.Run("WakesALaneAtItsCapWhenASlotIsFreed", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r := testRing(2, ids...)
		r.wake(ids[0])
		r.settle(r.take(10, 1000, 10), map[webhook.ID]int{ids[0]: 2})
		if got := r.take(10, 1000, 10); len(got) != 0 {
			t.Fatalf("a lane at its cap was offered %v", limitsOf(got))
		}
		if !r.finish(ids[0]) {
			t.Fatal("a freed slot did not wake the lane")
		}
		if n := limitsOf(r.take(10, 1000, 10))[ids[0]]; n != 1 {
			t.Errorf("offered %d, want the one freed slot", n)
		}
	})

	t.Run("DoesNotWakeForAFreedSlotWhenNothingWaits", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r := testRing(5, ids...)
		r.wake(ids[0])
		r.settle(r.take(10, 1000, 10), map[webhook.ID]int{ids[0]: 2})
		if r.finish(ids[0]) {
			t.Error("a lane with nothing more to give was woken")
		}
		r.finish(ids[0])
		if len(r.lanes) != 0 {
			t.Errorf("%d idle lanes are kept in memory", len(r.lanes))
		}
	})

	t.Run("DoesNotOfferALaneWhoseLimitIsUnknown", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r := testRing(0)
		r.wake(ids[0])
		if got := r.take(10, 1000, 10); len(got) != 0 {
			t.Fatalf("offered %v before its limit was known", limitsOf(got))
		}
		if unknown, _ := r.unknown(10); len(unknown) != 1 || unknown[0] != ids[0] {
			t.Fatalf("asks for the limits of %v, want %v", unknown, ids)
		}
		r.learn(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 3}})
		if n := limitsOf(r.take(10, 1000, 10))[ids[0]]; n != 3 {
			t.Errorf("offered %d, want 3", n)
		}
	})

	t.Run("HoldsAPausedLaneUntilItsWebhookChanges", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r := testRing(3, ids...)
		r.learn(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 3, Gated: true}})
		if r.wake(ids[0]) || len(r.take(10, 1000, 10)) != 0 {
			t.Fatal("a paused lane was woken")
		}
		r.unlearn(ids[0])
		if asked, _ := r.unknown(1); len(asked) != 1 {
			t.Fatal("the lane's limit is not asked for when its webhook changed")
		}
		if !r.learn(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 3}}) {
			t.Fatal("the lane was not woken when its webhook changed")
		}
		if len(r.take(10, 1000, 10)) != 1 {
			t.Error("the resumed lane is not offered")
		}
	})

	t.Run("HoldsAGatedLaneUntilTheReceiversTimeIsUp", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r := testRing(3, ids...)
		r.gate(ids[0], ringStart.Add(time.Minute))
		r.gate(ids[0], ringStart.Add(time.Second)) // a shorter gate changes nothing
		r.wake(ids[0])
		if woken, next := r.wakeDue(ringStart.Add(30 * time.Second)); woken || !next.Equal(ringStart.Add(time.Minute)) {
			t.Fatalf("woken=%v next=%v while the gate is closed", woken, next)
		}
		r.unlearn(ids[0]) // a change of the webhook: what is known of it is read anew
		r.unknown(1)
		r.learn(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 3, GateUntil: ringStart.Add(time.Minute)}})
		if len(r.take(10, 1000, 10)) != 0 {
			t.Fatal("a change of the webhook opened its gate")
		}
		r.wakeDue(ringStart.Add(time.Minute))
		if asked, _ := r.unknown(1); len(asked) != 1 || len(r.take(10, 1000, 10)) != 0 {
			t.Fatal("what follows the gate was not asked for")
		}
		if !r.learn(map[webhook.ID]Limit{ids[0]: {MaxInFlight: 3}}) {
			t.Fatal("the lane was not woken when its gate opened")
		}
		if len(r.take(10, 1000, 10)) != 1 {
			t.Error("the lane is not offered after its gate opened")
		}
	})

	t.Run("ReArmsAGateWhenAnEarlierDueTimePasses", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r := testRing(3, ids...)
		r.wakeAt(ids[0], ringStart.Add(time.Second))
		r.gate(ids[0], ringStart.Add(time.Minute))
		if woken, next := r.wakeDue(ringStart.Add(2 * time.Second)); woken || !next.Equal(ringStart.Add(time.Minute)) {
			t.Fatalf("woken=%v next=%v, want the end of the gate", woken, next)
		}
		r.wakeDue(ringStart.Add(time.Minute))
		if asked, _ := r.unknown(1); len(asked) != 1 {
			t.Error("the lane sleeps for ever")
		}
	})

	t.Run("WakesLanesInTheOrderInWhichTheyFallDue", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(3)
		r := testRing(3, ids...)
		r.wakeAt(ids[0], ringStart.Add(3*time.Second))
		r.wakeAt(ids[1], ringStart.Add(time.Second))
		r.wakeAt(ids[2], ringStart.Add(2*time.Second))
		r.wakeAt(ids[0], ringStart.Add(9*time.Second)) // later than known: no change
		woken, next := r.wakeDue(ringStart.Add(2 * time.Second))
		if !woken || !next.Equal(ringStart.Add(3*time.Second)) {
			t.Fatalf("woken=%v next=%v", woken, next)
		}
		got := r.take(10, 1000, 10)
		if len(got) != 2 || got[0].lane.id != ids[1] || got[1].lane.id != ids[2] {
			t.Errorf("woke %v, want the second and third lane", limitsOf(got))
		}
	})

	t.Run("KeepsCountWhenEverythingFinishesWhileTheLaneIsBeingFetched", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(1)
		r := testRing(2, ids...)
		r.wake(ids[0])
		r.settle(r.take(10, 1000, 10), map[webhook.ID]int{ids[0]: 2})
		r.finish(ids[0])
		grants := r.take(10, 1000, 10)
		r.finish(ids[0]) // the last one in flight: the lane looks idle
		r.settle(grants, map[webhook.ID]int{ids[0]: 1})
		if got := limitsOf(r.take(10, 1000, 10))[ids[0]]; got != 1 {
			t.Fatalf("offered %d, want the one slot that is left of two", got)
		}
		r.settle(nil, nil)
		if _, _, inFlight := r.stats(); inFlight != 1 {
			t.Errorf("%d in flight, want 1", inFlight)
		}
	})

	t.Run("PutsLanesBackAfterAFetchThatFailed", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(2)
		r := testRing(3, ids...)
		r.wake(ids[0])
		r.wake(ids[1])
		r.putBack(r.take(10, 1000, 10))
		if len(r.take(10, 1000, 10)) != 2 {
			t.Error("lanes were lost with the failed fetch")
		}
	})
}

// TestRingServesEveryLane plays random histories of arrivals, fetches, finishes,
// gates and changes, and everything that can happen while the database thinks, against
// a model of the database, and checks what must always hold: no lane and no host is
// over its cap, nothing is offered behind a gate, a lane that has work and may be
// fetched is always reachable, and no lane waits for more than two rounds of the
// others.
func TestRingServesEveryLane(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newRingModel(t)
		t.Repeat(map[string]func(*rapid.T){
			"arrive": func(t *rapid.T) { m.arrive(m.pick(t)) },
			"fetch":  func(t *rapid.T) { m.fetch(t, rapid.IntRange(1, 6).Draw(t, "free"), true) },
			"finish": func(t *rapid.T) { m.finish(m.pick(t)) },
			"pause":  func(t *rapid.T) { m.pause(m.pick(t), true) },
			"resume": func(t *rapid.T) { m.pause(m.pick(t), false) },
			"reset":  func(*rapid.T) { clear(m.passed); m.r.unlearnAll() },
			"gate":   func(t *rapid.T) { m.gate(t, m.pick(t)) },
			"tick":   func(*rapid.T) { m.now = m.now.Add(time.Second); m.r.wakeDue(m.now) },
		})
		// Whatever happened: once all are resumed and time has passed, everything
		// that waits is served without anyone waking a lane by hand.
		for _, id := range m.ids {
			if m.paused[id] {
				m.pause(id, false)
			}
		}
		m.now = m.now.Add(time.Minute)
		m.r.wakeDue(m.now)
		for range 1000 {
			m.fetch(t, 3, false)
			for _, id := range m.ids {
				for m.running[id] > 0 {
					m.finish(id)
				}
			}
		}
		for _, id := range m.ids {
			if m.waiting[id] > 0 {
				t.Fatalf("%d jobs of lane %s are never served", m.waiting[id], id)
			}
		}
		if len(m.r.lanes) != 0 || len(m.r.hosts) != 0 {
			t.Fatalf("%d idle lanes and %d hosts are kept in memory", len(m.r.lanes), len(m.r.hosts))
		}
	})
}

// ringModel is a ring and the database that it is told about.
type ringModel struct {
	r        *ring
	now      time.Time
	ids      []webhook.ID
	capacity int
	hosts    []string

	waiting, running map[webhook.ID]int
	paused           map[webhook.ID]bool
	gated            map[webhook.ID]time.Time
	// passed counts the jobs of others that were served while the lane waited.
	passed map[webhook.ID]int
}

func newRingModel(t *rapid.T) *ringModel {
	m := &ringModel{
		now: ringStart, ids: testIDs(rapid.IntRange(1, 8).Draw(t, "lanes")), capacity: rapid.IntRange(1, 5).Draw(t, "cap"),
		hosts:   rapid.SampledFrom([][]string{{""}, {"a"}, {"a", "b", ""}}).Draw(t, "hosts"),
		waiting: map[webhook.ID]int{}, running: map[webhook.ID]int{}, paused: map[webhook.ID]bool{},
		gated: map[webhook.ID]time.Time{}, passed: map[webhook.ID]int{},
	}
	m.r = newRing(func() time.Time { return m.now })
	m.r.hostCap = rapid.IntRange(0, 4).Draw(t, "host cap")
	return m
}

func (m *ringModel) pick(t *rapid.T) webhook.ID {
	return m.ids[rapid.IntRange(0, len(m.ids)-1).Draw(t, "lane")]
}

func (m *ringModel) host(id webhook.ID) string {
	return m.hosts[slices.Index(m.ids, id)%len(m.hosts)]
}

func (m *ringModel) onHost(name string) (n int) {
	for _, id := range m.ids {
		if m.host(id) == name {
			n += m.running[id]
		}
	}
	return n
}

func (m *ringModel) arrive(id webhook.ID) {
	m.waiting[id]++
	m.r.wake(id)
}

func (m *ringModel) finish(id webhook.ID) {
	if m.running[id] > 0 {
		m.running[id]--
		m.r.finish(id)
	}
}

// pause changes a webhook. A lane whose limit must be asked for anew goes to the end
// of the ring.
func (m *ringModel) pause(id webhook.ID, paused bool) {
	m.paused[id], m.passed[id] = paused, 0
	m.r.unlearn(id)
}

// gate closes a gate, of this dispatcher's own accord or another's.
func (m *ringModel) gate(t *rapid.T, id webhook.ID) {
	m.gated[id] = m.now.Add(time.Second)
	if rapid.Bool().Draw(t, "elsewhere") {
		m.r.gateClosed(id, m.gated[id])
	} else {
		m.r.gate(id, m.gated[id])
	}
}

// shut reports whether a lane may not be fetched.
func (m *ringModel) shut(id webhook.ID) bool { return m.paused[id] || m.gated[id].After(m.now) }

// meanwhile is what may happen while the database is asked.
func (m *ringModel) meanwhile(t *rapid.T) {
	for range rapid.IntRange(0, 3).Draw(t, "meanwhile") {
		switch id := m.pick(t); rapid.IntRange(0, 4).Draw(t, "what") {
		case 0:
			m.finish(id)
		case 1:
			m.arrive(id)
		case 2:
			m.gate(t, id)
		case 3:
			m.pause(id, rapid.Bool().Draw(t, "paused"))
		case 4:
			m.r.wake(id) // of which nothing came
		}
	}
}

// learn answers the ring's questions with what was true when it asked.
func (m *ringModel) learn(t *rapid.T, busy bool) {
	asked, _ := m.r.unknown(len(m.ids))
	limits := map[webhook.ID]Limit{}
	for _, id := range asked {
		limits[id] = Limit{MaxInFlight: m.capacity, Gated: m.paused[id], Host: m.host(id)}
		if m.gated[id].After(m.now) {
			limits[id] = Limit{MaxInFlight: m.capacity, Gated: m.paused[id], Host: m.host(id), GateUntil: m.gated[id]}
		}
	}
	if busy {
		m.meanwhile(t)
		if rapid.IntRange(0, 9).Draw(t, "unanswered") == 0 {
			m.r.forsake(asked)
			return
		}
	}
	m.r.learn(limits)
}

func (m *ringModel) fetch(t *rapid.T, free int, busy bool) {
	m.learn(t, busy)
	var (
		ready = map[webhook.ID]bool{} // before the fetch: what comes later had no chance
		seen  = maps.Clone(m.waiting) // the snapshot of the fetch
	)
	for _, id := range m.ids {
		ready[id] = m.waiting[id] > 0 && m.running[id] < m.capacity && !m.shut(id)
	}
	grants := m.r.take(free, 1000, len(m.ids))
	for _, g := range grants {
		if m.shut(g.lane.id) && g.limit > 0 {
			t.Fatalf("lane %s was offered slots behind a gate", g.lane.id)
		}
	}
	if busy {
		m.meanwhile(t)
		if rapid.IntRange(0, 9).Draw(t, "failed") == 0 {
			m.r.putBack(grants)
			return
		}
	}
	fetched := map[webhook.ID]int{}
	for _, g := range grants {
		id := g.lane.id
		fetched[id] = min(g.limit, seen[id])
		m.waiting[id] -= fetched[id]
		m.running[id] += fetched[id]
		if m.running[id] > m.capacity {
			t.Fatalf("lane %s has %d in flight over its cap of %d", id, m.running[id], m.capacity)
		}
		if host := m.host(id); host != "" && m.r.hostCap > 0 && m.onHost(host) > m.r.hostCap {
			t.Fatalf("host %s has %d in flight over its cap of %d", host, m.onHost(host), m.r.hostCap)
		}
	}
	for _, id := range m.ids {
		if fetched[id] > 0 || !ready[id] || m.waiting[id] == 0 || m.shut(id) || m.running[id] >= m.capacity ||
			m.r.hostCap > 0 && m.onHost(m.host(id)) >= m.r.hostCap {
			m.passed[id] = 0
			continue
		}
		for _, other := range m.ids {
			m.passed[id] += fetched[other]
		}
		// One round offers each other lane at most its whole cap; a lane that becomes
		// ready in the middle of one waits for the rest of it, and one more.
		if m.passed[id] > 2*len(m.ids)*m.capacity {
			t.Fatalf("lane %s waited while %d jobs of others were served", id, m.passed[id])
		}
	}
	m.r.settle(grants, fetched)
}

func BenchmarkRing(b *testing.B) {
	ids := testIDs(10_000)
	r := testRing(50, ids...)
	for _, id := range ids {
		r.wake(id)
	}
	fetched := map[webhook.ID]int{}
	for b.Loop() {
		grants := r.take(500, 1000, 1000)
		clear(fetched)
		for _, g := range grants {
			fetched[g.lane.id] = g.limit
		}
		r.settle(grants, fetched)
		for id, n := range fetched {
			for range n {
				r.finish(id)
			}
		}
		r.wake(ids[rand.IntN(len(ids))])
	}
}
