package fairqueue

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// runBeside has the parts beside the fetch at work until the test ends.
func (b *testBundle) runBeside(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// within waits for a condition.
func within(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline:
			t.Fatalf("waited %s in vain: %s", limit, what)
		case <-tick.C:
		}
	}
}

// lossWait is the second that is promised, and as much for a busy machine.
const lossWait = 2 * time.Second

func TestWithoutNotifications(t *testing.T) {
	t.Parallel()

	t.Run("WorkIsFoundWithinASecond", func(t *testing.T) {
		t.Parallel()
		b := setup(t) // nobody listens
		b.runBeside(t)
		const lanes = 50
		within(t, lossWait, "the first round is over", func() bool { return isUp(b.kick) || b.jobCount(t, "available") == 0 })
		for range lanes {
			b.insert(t, b.newID(), 1)
		}
		within(t, lossWait, "all lanes are found", func() bool { active, _, _ := b.ring.stats(); return active == lanes })
		if jobs := b.fetchJobs(t, 100); len(jobs) != lanes {
			t.Errorf("fetched %d of %d jobs", len(jobs), lanes)
		}
	})

	t.Run("AGateThatOpensIsNoticedWithinASecond", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.newID()
		b.setLimit(hook, Limit{MaxInFlight: 5, Gated: true})
		b.insert(t, hook, 1)
		b.runBeside(t)
		within(t, lossWait, "the lane is held back", func() bool {
			b.fetchJobs(t, 10)
			_, gated, _ := b.ring.stats()
			return gated == 1
		})
		b.mu.Lock()
		b.limits[hook] = Limit{MaxInFlight: 5} // and nobody says so
		b.mu.Unlock()
		within(t, lossWait, "the lane is fetched", func() bool { return len(b.fetchJobs(t, 10)) == 1 })
	})
}

// TestAGateThatWasLearnedOpensByItself closes a lane by what is learned of it alone:
// nobody says that it opens.
func TestAGateThatWasLearnedOpensByItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.hears.Store(true) // so that nothing is learned anew each second
	hook := b.newID()
	b.setLimit(hook, Limit{MaxInFlight: 5, GateUntil: b.cfg.Clock.Now().Add(300 * time.Millisecond)})
	b.runBeside(t)
	b.insert(t, hook, 1)
	signal(b.look)
	within(t, lossWait, "the lane is held back", func() bool { _, gated, _ := b.ring.stats(); return gated == 1 })
	b.mu.Lock()
	b.limits[hook] = Limit{MaxInFlight: 5}
	b.mu.Unlock()
	within(t, lossWait, "the lane is fetched", func() bool { return len(b.fetchJobs(t, 10)) == 1 })
}

// TestDiscoverySeesEachPriority has lanes whose first entry is not due although a
// later one, of a lower priority, is.
func TestDiscoverySeesEachPriority(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hook, later := b.newID(), b.newID()
	b.insert(t, hook, 2)
	b.insert(t, later, 1)
	_, err := b.db.Exec(t.Context(), `
		UPDATE fairhook.river_job SET scheduled_at = now() + interval '1 hour'
		WHERE queue = $1 OR id = (SELECT min(id) FROM fairhook.river_job WHERE queue = $2)`, Lane(later), Lane(hook))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.db.Exec(t.Context(), `
		UPDATE fairhook.river_job SET priority = 3 WHERE id = (SELECT max(id) FROM fairhook.river_job WHERE queue = $1)`, Lane(hook)); err != nil {
		t.Fatal(err)
	}
	b.discoverAll(t)
	jobs := b.fetchJobs(t, 10)
	if len(jobs) != 1 || jobs[0].Queue != Lane(hook) || jobs[0].Priority != 3 {
		t.Errorf("fetched %v, want the one that is due", perLane(jobs))
	}
	if _, next := b.ring.wakeDue(b.cfg.Clock.Now()); next.IsZero() {
		t.Error("it does not know when the other lane is due")
	}
}

// TestAnOldSnapshotDoesNotSlowABusyLane holds a snapshot open while a lane is
// worked, so that the index entries of what is done stay at its head, and counts
// the pages that one more fetch touches.
func TestAnOldSnapshotDoesNotSlowABusyLane(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hook := b.newID()
	const done = 20_000
	b.insert(t, hook, done)
	if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.river_job SET scheduled_at = now() - interval '1 minute'`); err != nil {
		t.Fatal(err)
	}
	if _, err := b.db.Exec(t.Context(), `VACUUM fairhook.river_job`); err != nil {
		t.Fatal(err)
	}
	old, err := b.db.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := old.Exec(t.Context(), `SELECT count(*) FROM fairhook.river_job`); err != nil {
		t.Fatal(err)
	}
	if _, err := b.db.Exec(t.Context(), `DELETE FROM fairhook.river_job`); err != nil {
		t.Fatal(err)
	}
	b.insert(t, hook, 300)
	b.ring.wake(hook)
	taken := len(b.fetchJobs(t, 200))
	if taken < busyLane {
		t.Fatalf("fetched %d jobs, want at least %d", taken, busyLane)
	}
	b.ring.mu.Lock()
	from := b.ring.lanes[hook].from(b.cfg.Clock.Now())
	b.ring.mu.Unlock()
	if from.IsZero() {
		t.Fatal("the next fetch of a busy lane begins at its head")
	}
	pages := func(floor *time.Time) float64 {
		tx, err := b.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		var plan []struct {
			Plan map[string]any
		}
		var text []byte
		err = tx.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+fetchSQL, pgx.QueryExecModeExec,
			[]string{hook.String()}, []int32{10}, "c", 100, []string{"delivery"}, []*time.Time{floor}).Scan(&text)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &plan); err != nil {
			t.Fatal(err)
		}
		return plan[0].Plan["Shared Hit Blocks"].(float64) + plan[0].Plan["Shared Read Blocks"].(float64)
	}
	atHead, fromFloor := pages(nil), pages(&from)
	if fromFloor*3 > atHead {
		t.Errorf("a fetch from the floor on touches %g pages, one from the head %g", fromFloor, atHead)
	}
	// What lies below the floor is found within a second all the same.
	if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.river_job SET scheduled_at = now() - interval '1 hour' WHERE state = 'available'`); err != nil {
		t.Fatal(err)
	}
	got := taken
	within(t, lossWait, "what is due below the floor is fetched", func() bool {
		got += len(b.fetchJobs(t, 1000))
		b.ring.wakeDue(b.cfg.Clock.Now())
		return got == 300
	})
}

// TestGatedLanesCostAFetchNothing has a hundred thousand lanes in the database's
// stead, of which thousands are gated and have work: what is gone through for a
// fetch is the lanes that can be fetched.
func TestGatedLanesCostAFetchNothing(t *testing.T) {
	t.Parallel()
	ids := testIDs(100_000)
	limits := map[webhook.ID]Limit{}
	for i, id := range ids {
		limits[id] = Limit{MaxInFlight: 5, Gated: i%20 == 0}
		if i%20 == 1 {
			limits[id] = Limit{MaxInFlight: 5, GateUntil: ringStart.Add(time.Hour)}
		}
	}
	r, _ := clockRing(limits)
	for i, id := range ids {
		if i%20 == 1 {
			r.gate(id, ringStart.Add(time.Hour))
		}
		if i%20 < 2 || i < 200 {
			r.wake(id)
		}
	}
	if n := len(r.active); n != 180 {
		t.Errorf("a fetch goes through %d lanes, want the 180 that can be fetched", n)
	}
	if n := len(r.take(1000, 1000, 1000)); n != 180 {
		t.Errorf("a fetch asks for %d lanes, want 180", n)
	}
	if _, gated, _ := r.stats(); gated != 10_000 {
		t.Errorf("%d lanes are held back, want 10,000", gated)
	}
}
