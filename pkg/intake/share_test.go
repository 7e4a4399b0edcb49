package intake

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func of(tenant string) func(*Item) { return func(i *Item) { i.Tenant = tenant } }

func TestShares(t *testing.T) {
	t.Parallel()

	t.Run("AFloodKeepsOutNobodyElse", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.BufferEvents, c.BatchEvents = 256, 32 }).start()
		var (
			flood   sync.WaitGroup
			stop    atomic.Bool
			refused atomic.Int64
		)
		for range 400 {
			flood.Go(func() {
				for !stop.Load() {
					if _, err := b.Submit(t.Context(), item(of("flood"))); err != nil {
						if webhook.ErrorCode(err) != webhook.CodeUnavailable {
							t.Errorf("the flood got %v", err)
						}
						refused.Add(1)
						time.Sleep(time.Millisecond) // as a producer does, only much less
					}
				}
			})
		}
		b.eventually("the flood is refused", func() bool { return refused.Load() > 100 })
		slowest := time.Duration(0)
		for i := range 60 {
			begun := time.Now()
			if _, err := b.Submit(t.Context(), item(of("quiet"))); err != nil {
				t.Fatalf("event %d of the quiet tenant: %v", i, err)
			}
			slowest = max(slowest, time.Since(begun))
		}
		stop.Store(true)
		flood.Wait()
		// Two batches and what a busy machine adds.
		if slowest > 10*time.Second {
			t.Errorf("the quiet tenant waited for %s", slowest)
		}
		b.isEmpty()
	})

	t.Run("ABufferThatOneFilledMakesRoomForAnother", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.BufferEvents, c.BatchEvents, c.Committers = 10, 4, 1 })
		var full []<-chan result
		for range 10 {
			full = append(full, b.queue(item(of("flood"))))
		}
		b.refused(b.submit(item(of("flood"))), webhook.CodeUnavailable)
		// Nothing runs: those that make room are refused now, the newest first.
		pushedOut := func(newest ...int) {
			t.Helper()
			for _, i := range newest {
				if err := b.refused(full[i], webhook.CodeUnavailable); err.Message != messageShare {
					t.Errorf("refused with %q", err.Message)
				}
			}
		}
		group := b.submitGroup(t.Context(), repeat(3, item(of("quiet")))...)
		pushedOut(9, 8, 7)
		// Up to its share, and not further.
		two := []<-chan result{b.submit(item(of("quiet")))}
		pushedOut(6)
		two = append(two, b.submit(item(of("quiet"))))
		pushedOut(5)
		if err := b.refused(b.submit(item(of("quiet"))), webhook.CodeUnavailable); err.Message != messageShare {
			t.Errorf("refused with %q", err.Message)
		}
		b.start()
		for _, answer := range slices.Concat(full[:5], two) {
			b.accepted(answer)
		}
		b.outcomes(group)
		if n := b.events(); n != 10 {
			t.Errorf("%d events", n)
		}
		b.isEmpty()
	})

	t.Run("TenantsTakeTurnsInBatches", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.BatchEvents = 4 })
		for range 8 {
			b.queue(item(of("a")))
		}
		b.queueGroup(repeat(3, item(of("b")))...)
		for range 2 {
			b.queue(item(of("c")))
		}
		b.queueGroup(item(of("a")), item(of("b"))) // of several tenants: as one of its own
		var got []string
		for {
			batch := b.take()
			if len(batch) == 0 {
				break
			}
			tenants := ""
			for _, p := range batch {
				tenants += p.event.Tenant
				defer b.finish(p, outcome{})
			}
			got = append(got, tenants)
		}
		// First one unit of each in the order of submission, with the mixed one (ab)
		// last; then a and c by turns, and what is left of a.
		if want := []string{"abbb", "caba", "caaa", "aaa"}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("batches %v, want %v", got, want)
		}
	})
}

// TestSharesModel runs random submissions, batches, answers and departures
// against a plain model of what is in the buffer.
func TestSharesModel(t *testing.T) {
	t.Parallel()
	clock, err := postgres.NewClock(t.Context(), pgtest.DB(t))
	if err != nil {
		t.Fatal(err)
	}
	tenants := []string{"a", "b", "c", "d"}
	rapid.Check(t, func(rt *rapid.T) {
		in := New(Config{
			Clock:        clock,
			BufferEvents: rapid.IntRange(1, 60).Draw(rt, "buffer events"),
			BufferBytes:  rapid.Int64Range(600, 60_000).Draw(rt, "buffer bytes"),
			BatchEvents:  rapid.IntRange(1, 12).Draw(rt, "batch events"),
		})
		type group struct {
			items  []*pending
			tenant string
		}
		var (
			waiting = map[string][]*group{} // in the order of submission
			taken   []*pending
		)
		held := func(tenant string) (events int, bytes int64) {
			for _, g := range waiting[tenant] {
				for _, p := range g.items {
					events++
					bytes += p.size
				}
			}
			for _, p := range taken {
				if p.share.tenant == tenant {
					events++
					bytes += p.size
				}
			}
			return events, bytes
		}
		answered := func(g *group) bool {
			select {
			case <-g.items[0].done:
				return true
			default:
				return false
			}
		}
		all := func() (events int, bytes int64, active int) {
			for _, tenant := range tenants {
				e, s := held(tenant)
				events, bytes = events+e, bytes+s
				if e > 0 {
					active++
				}
			}
			return events, bytes, active
		}
		rt.Repeat(map[string]func(*rapid.T){
			"submit": func(rt *rapid.T) {
				g := &group{tenant: rapid.SampledFrom(tenants).Draw(rt, "tenant")}
				size := int64(0)
				for range rapid.IntRange(1, 8).Draw(rt, "events") {
					p := newPending(item(of(g.tenant), func(i *Item) { i.Payload = make([]byte, rapid.IntRange(0, 2000).Draw(rt, "payload")) }))
					g.items = append(g.items, p)
					size += p.size
				}
				events, bytes, active := all()
				own, ownBytes := held(g.tenant)
				if own == 0 {
					active++
				}
				err := in.enter(g.items)
				for _, tenant := range tenants {
					pushed := 0
					for n := len(waiting[tenant]); n > 0 && answered(waiting[tenant][n-1]); n-- {
						waiting[tenant] = waiting[tenant][:n-1]
						pushed++
					}
					if slices.ContainsFunc(waiting[tenant], answered) {
						rt.Fatal("refused what was not the last of its tenant")
					}
					e, s := held(tenant)
					if pushed > 0 && (err != nil || tenant == g.tenant || in.part(e, s) < in.part(own+len(g.items), ownBytes+size)) {
						rt.Fatalf("%s is left with %d events and %d bytes for %s, error %v", tenant, e, s, g.tenant, err)
					}
				}
				fits := events == 0 || events+len(g.items) <= in.cfg.BufferEvents && bytes+size <= in.cfg.BufferBytes
				even := own == 0 || own+len(g.items) <= in.cfg.BufferEvents/active && ownBytes+size <= in.cfg.BufferBytes/int64(active)
				switch {
				case err == nil:
					waiting[g.tenant] = append(waiting[g.tenant], g)
				case fits && even:
					rt.Fatalf("refused within its share, with room: %v", err)
				case fits && 2*(events+len(g.items)) <= in.cfg.BufferEvents && 2*(bytes+size) <= in.cfg.BufferBytes:
					rt.Fatalf("refused with half of the buffer free: %v", err)
				}
			},
			"leave": func(rt *rapid.T) {
				tenant := rapid.SampledFrom(tenants).Draw(rt, "tenant")
				if len(waiting[tenant]) == 0 {
					return
				}
				i := rapid.IntRange(0, len(waiting[tenant])-1).Draw(rt, "which")
				g := waiting[tenant][i]
				in.withdraw(g.items)
				if !g.items[0].withdrawn {
					rt.Fatal("could not withdraw")
				}
				// It counts until it comes out: take all, so that the model need not know.
				for batch := in.take(); len(batch) > 0; batch = in.take() {
					taken = append(taken, batch...)
				}
				waiting = map[string][]*group{}
			},
			"take": func(rt *rapid.T) {
				batch := in.take()
				if len(batch) > in.cfg.BatchEvents && batch[0].unit != batch[len(batch)-1].unit {
					rt.Fatalf("batch of %d", len(batch))
				}
				for unit := range byUnit(batch) {
					tenant := unit[0].share.tenant
					if len(waiting[tenant]) == 0 || !slices.Equal(waiting[tenant][0].items, unit) {
						rt.Fatal("not in the order of submission")
					}
					waiting[tenant] = waiting[tenant][1:]
				}
				taken = append(taken, batch...)
			},
			"answer": func(rt *rapid.T) {
				n := rapid.IntRange(0, len(taken)).Draw(rt, "how many")
				for _, p := range taken[:n] {
					in.finish(p, outcome{})
				}
				taken = taken[n:]
			},
			"": func(rt *rapid.T) {
				events, bytes, active := all()
				if gotEvents, gotBytes := in.Depth(); gotEvents != events || gotBytes != bytes || len(in.shares) != active {
					rt.Fatalf("%d events, %d bytes, %d shares; want %d, %d, %d", gotEvents, gotBytes, len(in.shares), events, bytes, active)
				}
				queued := 0
				for tenant, groups := range waiting {
					if len(groups) > 0 {
						queued++
						if s := in.shares[tenant]; s.units.len() != len(groups) || in.queue.turns[s.turn] != s {
							rt.Fatalf("%d units of %s are queued, want %d", s.units.len(), tenant, len(groups))
						}
					}
				}
				if len(in.queue.turns) != queued {
					rt.Fatalf("%d tenants are queued, want %d", len(in.queue.turns), queued)
				}
			},
		})
	})
}

// TestTurnsAreFair: while two tenants have something waiting, neither gets more
// of the batches than the other by more than their largest units.
func TestTurnsAreFair(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		q := &fairQueue{debts: map[string]float64{}}
		n := rapid.IntRange(2, 5).Draw(rt, "tenants")
		shares := make([]*share, n)
		served := make([]float64, n)
		largest := make([]float64, n)
		costs := map[*unit]float64{}
		push := func(i int) {
			u := &unit{share: shares[i], number: uint64(len(costs))}
			// Tenant i has units of up to i + 1.
			costs[u] = rapid.Float64Range(0.1, float64(i+1)).Draw(rt, "cost")
			largest[i] = max(largest[i], costs[u])
			q.push(u)
		}
		for i := range shares {
			shares[i] = &share{tenant: fmt.Sprint(i), turn: -1}
			push(i)
		}
		for range rapid.IntRange(1, 200).Draw(rt, "turns") {
			u := q.peek()
			i := slices.Index(shares, u.share)
			push(i) // there is always more
			q.pop(costs[u])
			served[i] += costs[u]
			for a := range n {
				for b := range n {
					if served[a]-served[b] > largest[a]+largest[b]+1e-9 {
						rt.Fatalf("served %v, largest %v", served, largest)
					}
				}
			}
		}
	})
}

func TestDebtsAreBounded(t *testing.T) {
	t.Parallel()
	q := &fairQueue{debts: map[string]float64{}}
	waits := &share{tenant: "waits", turn: -1}
	q.push(&unit{share: waits})
	for i := range 3 * maxDebts {
		q.remember(fmt.Sprint(i), 1)
		if len(q.debts) > maxDebts {
			t.Fatalf("%d debts", len(q.debts))
		}
	}
	if got := q.debt(fmt.Sprint(3*maxDebts - 1)); got != 1 {
		t.Errorf("debt %v", got)
	}
	q.pop(2)
	if len(q.debts) != 0 || q.now != 2 {
		t.Errorf("after a busy period: %d debts at %v", len(q.debts), q.now)
	}
}
