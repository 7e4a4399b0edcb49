package limit

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// queues is the job table: how many deliveries wait for each webhook.
type queues struct {
	mu     sync.Mutex
	counts map[webhook.ID]int
	asked  int // backlogs counted
	fail   bool
}

func (q *queues) add(id webhook.ID, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.counts[id] += n
}

func (q *queues) count(_ context.Context, ids []webhook.ID, limits []int) (map[webhook.ID]int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked += len(ids)
	if q.fail {
		return nil, errors.New("away")
	}
	counts := map[webhook.ID]int{}
	for i, id := range ids {
		counts[id] = min(q.counts[id], limits[i])
	}
	return counts, nil
}

// runBacklog runs a Backlog in a bubble of synthetic time.
func runBacklog(t *testing.T, f func(t *testing.T, b *Backlog, q *queues)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		q := &queues{counts: map[webhook.ID]int{}}
		b := NewBacklog(BacklogConfig{Count: q.count})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = b.Run(ctx) })
		f(t, b, q)
		cancel()
		running.Wait()
	})
}

func TestBacklog(t *testing.T) {
	t.Parallel()
	id := webhook.NewID(time.Unix(1_800_000_000, 0))

	t.Run("StopsAtTheLimitByWhatIsAcceptedHere", func(t *testing.T) {
		t.Parallel()
		runBacklog(t, func(t *testing.T, b *Backlog, q *queues) {
			for n := range 7 {
				if admitted := b.Admit(id, 5); admitted != (n < 5) {
					t.Errorf("call %d: %v", n, admitted)
				}
			}
			b.Settle(id, false) // one failed: there is room for one
			if !b.Admit(id, 5) || b.Admit(id, 5) {
				t.Error("not for exactly one")
			}
		})
	})
	t.Run("CountsWhatOthersAccepted", func(t *testing.T) {
		t.Parallel()
		runBacklog(t, func(t *testing.T, b *Backlog, q *queues) {
			q.add(id, 100)
			b.Admit(id, 100)
			b.Settle(id, false)
			synctest.Wait()
			if b.Admit(id, 100) {
				t.Error("a full backlog took one more")
			}
		})
	})
	t.Run("OpensSoonAfterDeliveries", func(t *testing.T) {
		t.Parallel()
		runBacklog(t, func(t *testing.T, b *Backlog, q *queues) {
			q.add(id, 10)
			b.Admit(id, 10)
			b.Settle(id, false)
			synctest.Wait()
			if b.Admit(id, 10) {
				t.Fatal("a full backlog took one more")
			}
			q.add(id, -1)
			time.Sleep(leastCountGap + countInterval)
			synctest.Wait()
			if !b.Admit(id, 10) {
				t.Error("it is still full")
			}
		})
	})
	t.Run("DoesNotCountTwiceNorForget", func(t *testing.T) {
		t.Parallel()
		runBacklog(t, func(t *testing.T, b *Backlog, q *queues) {
			b.Admit(id, 10) // pending over the first count
			for range 4 {
				b.Admit(id, 10)
				q.add(id, 1)
				b.Settle(id, true)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			b.mu.Lock()
			got := *b.backlogs[id]
			b.mu.Unlock()
			if got.counted != 4 || got.stored != 0 || got.pending != 1 {
				t.Errorf("estimate is %+v", got)
			}
		})
	})
	t.Run("CostsNothingFarFromTheLimit", func(t *testing.T) {
		t.Parallel()
		runBacklog(t, func(t *testing.T, b *Backlog, q *queues) {
			for range 500 {
				b.Admit(id, webhook.DefaultMaxBacklog)
				b.Settle(id, true)
				time.Sleep(time.Second)
			}
			if q.asked != 1 {
				t.Errorf("counted %d times", q.asked)
			}
		})
	})
	t.Run("GoesByItsOwnWhileItCannotCount", func(t *testing.T) {
		t.Parallel()
		runBacklog(t, func(t *testing.T, b *Backlog, q *queues) {
			q.fail = true
			for range 3 {
				b.Admit(id, 3)
				b.Settle(id, true)
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if b.Admit(id, 3) {
				t.Error("it took one over the limit")
			}
			if q.asked < 2 || q.asked > 12 {
				t.Errorf("counted %d times in 10 s of failure", q.asked)
			}
		})
	})
	t.Run("ForgetsWhatIsNotUsed", func(t *testing.T) {
		t.Parallel()
		runBacklog(t, func(t *testing.T, b *Backlog, q *queues) {
			b.Admit(id, 3)
			b.Settle(id, true)
			time.Sleep(countAnew + time.Second)
			synctest.Wait()
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.backlogs) != 0 {
				t.Errorf("%d are remembered", len(b.backlogs))
			}
		})
	})
	t.Run("ALargeOneIsCountedAlone", func(t *testing.T) {
		t.Parallel()
		b := NewBacklog(BacklogConfig{})
		for n := range 50 {
			one := webhook.NewID(time.Unix(int64(1_800_000_000+n), 0))
			b.backlogs[one] = &backlog{limit: 1_000_000, counted: (n % 2) * 2 * countAlone, usedAt: time.Now()}
		}
		seen := 0
		for seen < 50 {
			ids, _, _ := b.choose(time.Now())
			if len(ids) == 0 {
				t.Fatalf("%d of 50 were chosen", seen)
			}
			large := slices.ContainsFunc(ids, func(id webhook.ID) bool { return b.backlogs[id].counted > countAlone })
			if large && len(ids) > 1 {
				t.Fatalf("a large one is among %d", len(ids))
			}
			for _, id := range ids {
				b.backlogs[id].recount(time.Now(), b.backlogs[id].counted, 0, time.Millisecond)
			}
			seen += len(ids)
		}
	})
}

// Whatever happens in whatever order, one process never lets a backlog over its
// limit, as long as nobody else adds to it.
func TestOneProcessNeverExceedsABacklog(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var (
			id      = webhook.NewID(time.Unix(1_800_000_000, 0))
			limit   = rapid.IntRange(1, 30).Draw(t, "limit")
			b       = NewBacklog(BacklogConfig{})
			now     = time.Now()
			waiting int // in the database
			pending int
			counts  []func() // that are under way
		)
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if waiting+pending > limit {
					t.Fatalf("%d wait and %d are being stored, over the limit of %d", waiting, pending, limit)
				}
			},
			"admit": func(*rapid.T) {
				if b.Admit(id, limit) {
					pending++
				}
			},
			"settle": func(t *rapid.T) {
				if pending == 0 {
					t.Skip()
				}
				stored := rapid.Bool().Draw(t, "stored")
				pending--
				if stored {
					waiting++ // committed before Settle is called
				}
				b.Settle(id, stored)
			},
			"deliver": func(*rapid.T) { waiting = max(0, waiting-1) },
			"begin a count": func(t *rapid.T) {
				one := b.backlogs[id]
				if one == nil || len(counts) > 0 {
					t.Skip()
				}
				before := one.stored
				found := -1
				counts = append(counts, func() { found = min(waiting, limit) }, func() {
					one.recount(now, found, before, time.Millisecond)
				})
			},
			"go on with a count": func(t *rapid.T) {
				if len(counts) == 0 {
					t.Skip()
				}
				counts[0]()
				counts = counts[1:]
			},
		})
	})
}
