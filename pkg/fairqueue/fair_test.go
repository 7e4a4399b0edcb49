package fairqueue

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// simulation is a ring with a model of the database and of receivers: time goes by
// in ticks, each of which has one fetch, as a dispatcher's cooldown of 2 ms has.
type simulation struct {
	*ring
	rand    *rand.Rand
	slots   int
	waiting map[webhook.ID][]int // the tick at which each job came
	running map[int][]webhook.ID // by the tick at which they end
	busy    int
	tick    int
	takes   func(webhook.ID) int // ticks that a request takes
	waited  map[webhook.ID][]int // ticks from coming to being fetched
	limits  map[webhook.ID]Limit
}

func newSimulation(seed uint64, slots int, limits map[webhook.ID]Limit, takes func(webhook.ID) int) *simulation {
	s := &simulation{
		rand: rand.New(rand.NewPCG(seed, 1)), slots: slots, takes: takes, limits: limits,
		waiting: map[webhook.ID][]int{}, running: map[int][]webhook.ID{}, waited: map[webhook.ID][]int{},
	}
	s.ring, _ = clockRing(limits)
	return s
}

func (s *simulation) arrive(id webhook.ID, n int) {
	for range n {
		s.waiting[id] = append(s.waiting[id], s.tick)
	}
	s.wake(id)
}

func (s *simulation) step() {
	for _, id := range s.running[s.tick] {
		s.busy--
		s.finish(id)
	}
	delete(s.running, s.tick)
	for range maxPasses {
		free := s.slots - s.busy
		grants := s.take(free, free, maxLanes)
		if len(grants) == 0 {
			break
		}
		fetched := map[webhook.ID]int{}
		for _, g := range grants {
			id := g.lane.id
			n := min(g.limit, len(s.waiting[id]))
			for _, came := range s.waiting[id][:n] {
				s.waited[id] = append(s.waited[id], s.tick-came)
				end := s.tick + s.takes(id)
				s.running[end] = append(s.running[end], id)
			}
			s.waiting[id] = s.waiting[id][n:]
			fetched[id] = n
			s.busy += n
		}
		s.settle(grants, fetched)
	}
	s.tick++
}

func p99(waits []int) int {
	slices.Sort(waits)
	if len(waits) == 0 {
		return 0
	}
	return waits[len(waits)*99/100]
}

// TestQuietLanesHardlyFeelOthers has quiet webhooks alone, and then beside backlogs
// and receivers that hang, in whatever numbers: their 99th percentile is at most
// twice what it is alone and ten ticks, which is 20 ms.
func TestQuietLanesHardlyFeelOthers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var (
			slots   = rapid.IntRange(60, 300).Draw(t, "slots")
			quiet   = rapid.IntRange(1, 20).Draw(t, "quiet")
			hanging = rapid.IntRange(0, slots/20).Draw(t, "hanging")
			backlog = rapid.IntRange(0, 5).Draw(t, "backlogged")
			seed    = rapid.Uint64().Draw(t, "seed")
		)
		ids := testIDs(quiet + hanging + backlog)
		limits := map[webhook.ID]Limit{}
		for _, id := range ids {
			limits[id] = Limit{MaxInFlight: rapid.IntRange(1, 100).Draw(t, "cap"), Weight: 1}
		}
		for _, id := range ids[:quiet] {
			limits[id] = Limit{MaxInFlight: 50, Weight: 1}
		}
		kind := map[webhook.ID]int{}
		for i, id := range ids {
			switch {
			case i < quiet:
				kind[id] = 0
			case i < quiet+hanging:
				kind[id] = 1
			default:
				kind[id] = 2
			}
		}
		play := func(others bool) int {
			s := newSimulation(seed, slots, limits, func(id webhook.ID) int {
				if kind[id] == 1 {
					return 15_000 // half a minute
				}
				return 1 + int(id[15]%3)
			})
			if others {
				for _, id := range ids[quiet:] {
					s.arrive(id, 2000)
				}
			}
			for range 400 {
				for _, id := range ids[:quiet] {
					if s.rand.IntN(20) == 0 {
						s.arrive(id, 1)
					}
				}
				s.step()
			}
			var waits []int
			for _, id := range ids[:quiet] {
				waits = append(waits, s.waited[id]...)
				if n := len(s.waiting[id]); n > 3 {
					t.Fatalf("%d deliveries of a quiet webhook wait", n)
				}
			}
			return p99(waits)
		}
		alone, beside := play(false), play(true)
		if beside > 2*alone+10 {
			t.Fatalf("quiet webhooks wait %d ticks beside others, %d alone", beside, alone)
		}
	})
}

// TestWeightsDecideWhenSlotsAreShort has two lanes with a backlog fill all slots.
func TestWeightsDecideWhenSlotsAreShort(t *testing.T) {
	t.Parallel()
	ids := testIDs(2)
	limits := map[webhook.ID]Limit{ids[0]: {MaxInFlight: 1000, Weight: 1}, ids[1]: {MaxInFlight: 1000, Weight: 3}}
	s := newSimulation(1, 40, limits, func(webhook.ID) int { return 10 })
	for _, id := range ids {
		s.arrive(id, 20_000)
	}
	for range 2000 {
		s.step()
	}
	light, heavy := len(s.waited[ids[0]]), len(s.waited[ids[1]])
	if ratio := float64(heavy) / float64(light); ratio < 2 || ratio > 4 {
		t.Errorf("lanes of weight 1 and 3 were served %d and %d times", light, heavy)
	}
	if used := float64(light+heavy) / (2000 * 40 / 10); used < 0.8 {
		t.Errorf("%.0f %% of the slots were used", 100*used)
	}
}

func TestSlotsFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ inFlight, left, weight, want int }{
		{0, 1000, 1, 667}, // two thirds for a lane alone
		{667, 333, 1, 0},
		{0, 1, 1, 1}, // the last slot is for one that has nothing
		{1, 1, 1, 1},
		{2, 1, 1, 0},
		{50, 5, 1, 0},
		{50, 26, 1, 1},
		{0, 1000, 4, 889}, // more for one that counts for four
		{0, 0, 1, 0},
	} {
		if got := slotsFor(c.inFlight, c.left, c.weight); got != c.want {
			t.Errorf("a lane of weight %d with %d in flight gets %d of %d slots, want %d", c.weight, c.inFlight, got, c.left, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		inFlight, left := rapid.IntRange(0, 2000).Draw(t, "in flight"), rapid.IntRange(1, 2000).Draw(t, "left")
		weight := rapid.IntRange(1, 100).Draw(t, "weight")
		n := slotsFor(inFlight, left, weight)
		if n > left || n > 0 && inFlight+n > 2*weight*(left-n)+2*weight {
			t.Fatalf("%d of %d slots for a lane of weight %d with %d in flight", n, left, weight, inFlight)
		}
	})
}
