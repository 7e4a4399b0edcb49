package fairqueue

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivertype"
	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// orderedHook stores a webhook with an ordering.
func (b *testBundle) orderedHook(t *testing.T, o webhook.Ordering) webhook.ID {
	t.Helper()
	w := &webhook.Webhook{
		ID: b.newID(), Tenant: "acme", URL: "http://127.0.0.1/", EventTypes: []string{"*"}, State: webhook.StateActive,
		Headers: map[string]webhook.Secret{}, RetrySchedule: []int{}, AllowedCIDRs: []string{}, MaxInFlight: 5, Ordering: o,
	}
	if err := postgres.InsertWebhook(t.Context(), b.db, w); err != nil {
		t.Fatal(err)
	}
	return w.ID
}

// accept accepts an event for a webhook, with an ordering key that may be empty, and
// returns its job's id.
func (b *testBundle) accept(t *testing.T, hook webhook.ID, key string) (job int64) {
	t.Helper()
	event := b.newID()
	_, err := b.db.Exec(t.Context(), `
		WITH accepted AS (
			INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids, ordering_key)
			SELECT id, 'acme', 'order.paid', '{}', '{}', nullif($3, '') FROM unnest($1::uuid[]) AS e (id) RETURNING id, ordering_key
		) `+InsertSQL(1, 2), []webhook.ID{event}, []webhook.ID{hook}, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.db.QueryRow(t.Context(), `SELECT max(id) FROM fairhook.river_job`).Scan(&job); err != nil {
		t.Fatal(err)
	}
	return job
}

// own makes the client the owner of a lane, whoever was it, and lets it know.
func (b *testBundle) own(t *testing.T, hook webhook.ID, o webhook.Ordering) {
	t.Helper()
	b.run(t, `UPDATE fairhook.lane_owners SET until = now() WHERE webhook_id = $1`, hook)
	mine, _, err := postgres.ClaimLanes(t.Context(), b.db, b.cfg.ClientID, []webhook.ID{hook}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if mine[hook].Arranged != string(o) {
		if done, err := b.Arrange(t.Context(), hook, o); err != nil || !done {
			t.Fatalf("arranged: %t, %v", done, err)
		}
	}
	limit := Limit{MaxInFlight: 5, Owned: true, Ordering: o, Epoch: mine[hook].Epoch, Until: b.cfg.Clock.Now().Add(time.Hour)}
	if o == webhook.OrderingStrict {
		limit.MaxInFlight = 1
	}
	b.setLimit(hook, limit)
}

// fetchLane fetches what a client would now, and returns the jobs' ids.
func (b *testBundle) fetchLane(t *testing.T, hook webhook.ID) (jobs []*rivertype.JobRow) {
	t.Helper()
	b.ring.wake(hook)
	return b.fetchJobs(t, 10)
}

// settle ends a job's attempt as a dispatcher does, and then as River does. It reports
// whether the first has changed anything.
func (b *testBundle) settle(t *testing.T, j *rivertype.JobRow, status webhook.Status) bool {
	t.Helper()
	s := Settlement{Job: j, Status: status, RetryAt: b.cfg.Clock.Now(), CountsStep: true, Requests: 1, Error: "server_error"}
	statement := b.Settle(s)
	next, hand, more := b.Next([]*Settlement{&s})
	changed := false
	err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
		tag, err := tx.Exec(t.Context(), statement.SQL, statement.Args...)
		if changed = tag.RowsAffected() > 0; err != nil || !more {
			return err
		}
		rows, err := tx.Query(t.Context(), next.SQL, next.Args...)
		if err != nil {
			return err
		}
		return next.Rows(rows)
	})
	if err != nil {
		t.Fatal(err)
	}
	if changed {
		b.Settled(s)
	}
	if more {
		hand(nil)
	}
	producerState{b.Queue}.JobFinish(j)
	now := b.cfg.Clock.Now()
	state := map[webhook.Status]*riverdriver.JobSetStateIfRunningParams{
		webhook.StatusDelivered: riverdriver.JobSetStateCompleted(j.ID, now, nil),
		webhook.StatusRetrying:  riverdriver.JobSetStateErrorAvailable(j.ID, now, []byte(`{}`), nil),
		webhook.StatusExhausted: riverdriver.JobSetStateDiscarded(j.ID, now, []byte(`{}`), nil),
	}[status]
	b.finish(t, state)
	return changed
}

func jobIDs(jobs []*rivertype.JobRow) (ids []int64) {
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	slices.Sort(ids)
	return ids
}

func TestOrder(t *testing.T) {
	t.Parallel()

	t.Run("FetchesTheHeadAloneHoweverDueTheOthersAre", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.orderedHook(t, webhook.OrderingStrict)
		first, second := b.accept(t, hook, ""), b.accept(t, hook, "a key makes no difference")
		b.run(t, `UPDATE fairhook.river_job SET scheduled_at = now() - interval '1 hour' WHERE id = $1`, second)
		b.own(t, hook, webhook.OrderingStrict)
		jobs := b.fetchLane(t, hook)
		if !slices.Equal(jobIDs(jobs), []int64{first}) {
			t.Fatalf("fetched %v, want the head %d", jobIDs(jobs), first)
		}
		if more := b.fetchLane(t, hook); len(more) != 0 {
			t.Fatalf("fetched %v while the head is under way", jobIDs(more))
		}
		b.settle(t, jobs[0], webhook.StatusRetrying)
		b.run(t, `UPDATE fairhook.river_job SET scheduled_at = now() + interval '1 hour', state = 'retryable' WHERE id = $1`, first)
		if more := b.fetchLane(t, hook); len(more) != 0 {
			t.Fatalf("fetched %v while the head waits for its retry", jobIDs(more))
		}
		b.run(t, `UPDATE fairhook.river_job SET scheduled_at = now() WHERE id = $1`, first)
		jobs = b.fetchLane(t, hook)
		if !slices.Equal(jobIDs(jobs), []int64{first}) {
			t.Fatalf("fetched %v, want the head again", jobIDs(jobs))
		}
		b.settle(t, jobs[0], webhook.StatusExhausted)
		if jobs = b.fetchLane(t, hook); !slices.Equal(jobIDs(jobs), []int64{second}) {
			t.Fatalf("fetched %v, want %d: the one before it has ended", jobIDs(jobs), second)
		}
	})

	t.Run("TheNextIsHandedOverWithTheOneBeforeUnlessSomebodyElseWaits", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.orderedHook(t, webhook.OrderingStrict)
		ids := []int64{b.accept(t, hook, ""), b.accept(t, hook, ""), b.accept(t, hook, ""), b.accept(t, hook, "")}
		b.own(t, hook, webhook.OrderingStrict)
		jobs := b.fetchLane(t, hook)
		b.settle(t, jobs[0], webhook.StatusDelivered)
		if len(b.handed) != 1 || b.handed[0].job.ID != ids[1] || b.jobCount(t, "running") != 1 {
			t.Fatalf("handed over: %v", b.handed)
		}
		jobs = b.fetchJobs(t, 10)
		if !slices.Equal(jobIDs(jobs), ids[1:2]) || b.ring.lanes[hook].inFlight != 1 {
			t.Fatalf("fetched %v, want what was handed over, and no more", jobIDs(jobs))
		}
		// Another lane waits for a slot: this one has had its turn.
		other := b.newID()
		b.insert(t, other, 1)
		b.ring.wake(other)
		b.learnAll(t)
		b.settle(t, jobs[0], webhook.StatusDelivered)
		if len(b.handed) != 0 {
			t.Fatal("a lane went on while another waited for a slot")
		}
		jobs = b.fetchLane(t, hook)
		for _, j := range jobs {
			if j.ID == ids[2] {
				b.settle(t, j, webhook.StatusDelivered)
			}
		}
		// Nobody fetches it in time.
		if len(b.handed) != 1 {
			t.Fatal("nothing was handed over")
		}
		b.handed[0].at = b.handed[0].at.Add(-2 * handedLife)
		if jobs := b.fetchJobs(t, 10); len(jobs) != 0 {
			t.Errorf("fetched %v, which others may have by now", jobIDs(jobs))
		}
		if b.jobCount(t, "available") != 1 {
			t.Error("what was not fetched in time did not go back")
		}
	})

	t.Run("AnOwnerOfBeforeFetchesNothing", func(t *testing.T) {
		t.Parallel()
		database := pgtest.New(t)
		old, b := setupOn(t, database, "client-1"), setupOn(t, database, "client-2")
		hook := b.orderedHook(t, webhook.OrderingStrict)
		b.accept(t, hook, "")
		old.own(t, hook, webhook.OrderingStrict)
		b.own(t, hook, webhook.OrderingStrict)
		if jobs := old.fetchLane(t, hook); len(jobs) != 0 {
			t.Errorf("it fetched %v", jobIDs(jobs))
		}
		// Back in the same hands by name, and not in the same epoch.
		stale := old.limits[hook]
		old.own(t, hook, webhook.OrderingStrict)
		old.setLimit(hook, stale)
		if jobs := old.fetchLane(t, hook); len(jobs) != 0 {
			t.Errorf("with the epoch of before it fetched %v", jobIDs(jobs))
		}
	})

	t.Run("ATakeoverWaitsForAFetchThatIsUnderWay", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.orderedHook(t, webhook.OrderingStrict)
		b.accept(t, hook, "")
		b.own(t, hook, webhook.OrderingStrict)
		tx, err := b.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }()
		tag, err := tx.Exec(t.Context(), strictSQL, []webhook.ID{hook}, []int64{b.limits[hook].Epoch}, "client-1", 100)
		if err != nil || tag.RowsAffected() != 1 {
			t.Fatalf("fetched %d, %v", tag.RowsAffected(), err)
		}
		_, err = b.db.Exec(t.Context(), `SET LOCAL lock_timeout = '50ms'; UPDATE fairhook.lane_owners SET owner = 'client-2'`)
		if err == nil {
			t.Error("another took the lane before it could see what was fetched")
		}
	})

	t.Run("SomebodyWhoKnowsOfNoOrderFetchesNothing", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for _, o := range []webhook.Ordering{webhook.OrderingStrict, webhook.OrderingKey} {
			hook := b.orderedHook(t, o)
			b.accept(t, hook, "a")
			if jobs := b.fetchLane(t, hook); len(jobs) != 0 {
				t.Errorf("%s: it fetched %v", o, jobIDs(jobs))
			}
		}
	})

	t.Run("WhatIsOutOfItsPlaceKeepsTheLaneBackUntilItHasOne", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for _, o := range []webhook.Ordering{webhook.OrderingStrict, webhook.OrderingKey} {
			hook := b.orderedHook(t, o)
			first, second := b.accept(t, hook, "a"), b.accept(t, hook, "a")
			b.own(t, hook, o)
			// As a transaction inserts it that began before the ordering was changed.
			b.run(t, `UPDATE fairhook.river_job SET priority = 1 WHERE id = $1`, first)
			if jobs := b.fetchLane(t, hook); len(jobs) != 0 {
				t.Fatalf("%s: fetched %v", o, jobIDs(jobs))
			}
			if err := b.rearrange(t.Context()); err != nil {
				t.Fatal(err)
			}
			if jobs := b.fetchLane(t, hook); !slices.Equal(jobIDs(jobs), []int64{first}) {
				t.Fatalf("%s: fetched %v, want %d and not %d", o, jobIDs(jobs), first, second)
			}
		}
	})

	t.Run("AFetchWithoutOrderThatBeganBeforeTheChangeIsWaitedFor", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.orderedHook(t, webhook.OrderingNone)
		first := b.accept(t, hook, "a")
		b.accept(t, hook, "a")
		tx, err := b.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		tag, err := tx.Exec(t.Context(), fetchSQL, []webhook.ID{hook}, []int32{1}, "client-2", 100, []string{"delivery"}, []*time.Time{nil})
		if err != nil || tag.RowsAffected() != 1 {
			t.Fatalf("fetched %d, %v", tag.RowsAffected(), err)
		}
		b.run(t, `UPDATE fairhook.webhooks SET ordering = 'key' WHERE id = $1`, hook)
		if _, _, err := postgres.ClaimLanes(t.Context(), b.db, "client-1", []webhook.ID{hook}, time.Hour); err != nil {
			t.Fatal(err)
		}
		arranged := make(chan bool, 1)
		go func() {
			done, err := b.Arrange(t.Context(), hook, webhook.OrderingKey)
			if err != nil {
				t.Error(err)
			}
			arranged <- done
		}()
		for waits := 0; waits == 0; {
			if err := b.db.QueryRow(t.Context(), `
				SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waits); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if <-arranged {
			t.Error("the lane is in order while something runs that was fetched without")
		}
		b.run(t, `DELETE FROM fairhook.river_job WHERE id = $1`, first)
		if done, err := b.Arrange(t.Context(), hook, webhook.OrderingKey); err != nil || !done {
			t.Errorf("once that has ended: %t, %v", done, err)
		}
	})

	t.Run("GoesRoundMoreKeysThanOneFetchLooksAt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.orderedHook(t, webhook.OrderingKey)
		b.run(t, `INSERT INTO fairhook.river_job (args, kind, max_attempts, priority, queue, state, scheduled_at)
			SELECT jsonb_build_object('ordering_key', 'k' || i), 'delivery', 10000, 3, $1, 'retryable', now() + interval '1 hour'
			FROM generate_series(1, $2) i`, Lane(hook), 3*walkSteps)
		b.own(t, hook, webhook.OrderingKey)
		want := []int64{b.accept(t, hook, "a"), b.accept(t, hook, "k5"+"0"), b.accept(t, hook, "z")}
		got := jobIDs(b.fetchLane(t, hook))
		for range 4 {
			got = append(got, jobIDs(b.fetchJobs(t, 10))...)
		}
		slices.Sort(got)
		if !slices.Equal(got, []int64{want[0], want[2]}) { // k50 has a head that waits
			t.Errorf("fetched %v, want %v", got, []int64{want[0], want[2]})
		}
		if again := b.fetchJobs(t, 10); len(again) != 0 || len(b.ring.active) != 0 {
			t.Errorf("the lane is gone round without an end")
		}
	})

	t.Run("UsesItsIndexesAlsoWithPlansMadeOnAnEmptyTable", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		ids, epochs := []webhook.ID{b.newID(), b.newID()}, []int64{1, 1}
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			for index, plan := range map[string]string{
				"river_job_strict_idx": explain(t, b.pool, mode, strictSQL, ids, epochs, "c", 100),
				"river_job_key_idx":    explain(t, b.pool, mode, walkSQL, ids, []int32{5, 5}, []string{"", ""}, walkSteps),
				"river_job_pkey":       explain(t, b.pool, mode, claimHeadsSQL, ids, epochs, "c", 100, []int64{1}),
			} {
				if !contains(plan, index) || contains(plan, "Seq Scan on river_job") || contains(plan, "hashed SubPlan") || contains(plan, "Anti Join") {
					t.Errorf("with %s:\n%s", mode, plan)
				}
			}
		}
	})

	t.Run("OneKeysBacklogCostsTheWalkOneLook", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.orderedHook(t, webhook.OrderingKey)
		b.run(t, `INSERT INTO fairhook.river_job (args, kind, max_attempts, priority, queue)
			SELECT jsonb_build_object('ordering_key', 'blocked'), 'delivery', 10000, 3, $1 FROM generate_series(1, 20000)`, Lane(hook))
		b.run(t, `UPDATE fairhook.river_job SET state = 'retryable', scheduled_at = now() + interval '1 hour'
			WHERE id = (SELECT min(id) FROM fairhook.river_job)`)
		b.run(t, `VACUUM ANALYZE fairhook.river_job`)
		var text []byte
		err := b.pool.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+walkSQL, pgx.QueryExecModeExec,
			[]string{hook.String()}, []int32{5}, []string{""}, walkSteps).Scan(&text)
		if err != nil {
			t.Fatal(err)
		}
		var plan []struct {
			Plan map[string]any
		}
		if err := json.Unmarshal(text, &plan); err != nil {
			t.Fatal(err)
		}
		if pages := plan[0].Plan["Shared Hit Blocks"].(float64) + plan[0].Plan["Shared Read Blocks"].(float64); pages > 40 {
			t.Errorf("the walk touches %g pages:\n%s", pages, text)
		}
	})
}

// TestOrderHoldsOnAnySchedule has three dispatchers take a lane from each other in any
// order, fail, crash, be taken for dead and go on, while events are accepted. The first
// success of each event comes after those of all that were accepted before it, in its lane
// or with its key; no two of those are sent at once; and in the end all have succeeded.
func TestOrderHoldsOnAnySchedule(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	clients := []*testBundle{setupOn(t, database, "client-0"), setupOn(t, database, "client-1"), setupOn(t, database, "client-2")}
	unaware := setupOn(t, database, "unaware") // of any order: it never owns a lane
	rapid.Check(t, func(rt *rapid.T) {
		o := rapid.SampledFrom([]webhook.Ordering{webhook.OrderingStrict, webhook.OrderingKey}).Draw(rt, "ordering")
		l := &orderedLane{t: t, rt: rt, clients: clients, hook: clients[0].orderedHook(t, o), ordering: o, keys: map[int64]string{}, done: map[int64]bool{}}
		client := func() int { return rapid.IntRange(0, len(clients)-1).Draw(rt, "client") }
		accept := func() { l.accept(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key")) }
		steps := map[string]func(){
			"accept":    accept,
			"take over": func() { l.takeOver(client()) },
			"fetch":     func() { l.fetch(rapid.SampledFrom(l.owners).Draw(rt, "owner, or one of before")) },
			"fetch, knowing of no order": func() {
				if jobs := unaware.fetchLane(t, l.hook); len(jobs) > 0 {
					rt.Fatalf("somebody who knows of no order fetched %v", jobIDs(jobs))
				}
			},
			"succeed": func() { l.end(webhook.StatusDelivered, true) },
			"succeed and die before that is recorded": func() { l.end("", true) },
			"fail":              func() { l.end(webhook.StatusRetrying, false) },
			"crash":             func() { l.crash(client()) },
			"be taken for dead": func() { l.giveBack(client()) },
		}
		often := []string{"accept", "fetch", "fetch", "fetch", "fetch", "succeed", "succeed", "fail", "take over", "take over"}
		names := append(slices.Sorted(maps.Keys(steps)), often...)
		for range 5 {
			accept()
		}
		l.takeOver(client())
		for range 40 {
			steps[rapid.SampledFrom(names).Draw(rt, "step")]()
			l.checkOneAtATime()
		}
		for i := range clients {
			l.crash(i)
		}
		l.takeOver(0)
		for range 3 * len(l.accepted) {
			// Some were put off for a second.
			clients[0].run(t, `UPDATE fairhook.river_job SET scheduled_at = now() WHERE queue = $1 AND scheduled_at > now()`, Lane(l.hook))
			l.fetch(0)
			l.end(webhook.StatusDelivered, true)
		}
		if len(l.done) != len(l.accepted) {
			rt.Fatalf("%d of %d have succeeded in the end", len(l.done), len(l.accepted))
		}
	})
}

// lose forgets a claim.
func (b *testBundle) lose(j *rivertype.JobRow) {
	b.Queue.mu.Lock()
	defer b.Queue.mu.Unlock()
	delete(b.claims, j.ID)
}

// orderedLane is a lane, and what the test knows of it.
type orderedLane struct {
	t        *testing.T
	rt       *rapid.T
	clients  []*testBundle
	hook     webhook.ID
	ordering webhook.Ordering
	accepted []int64
	keys     map[int64]string // by job
	done     map[int64]bool   // have succeeded
	held     []heldJob
	owners   []int // who owned the lane, and may believe that it does
}

// heldJob is what a client works, or believes it does.
type heldJob struct {
	client int
	job    *rivertype.JobRow
}

func (l *orderedLane) accept(key string) {
	job := l.clients[0].accept(l.t, l.hook, key)
	if l.ordering == webhook.OrderingStrict {
		key = ""
	}
	l.accepted, l.keys[job] = append(l.accepted, job), key
}

func (l *orderedLane) takeOver(client int) {
	l.clients[client].own(l.t, l.hook, l.ordering)
	if !slices.Contains(l.owners, client) {
		l.owners = append(l.owners, client)
	}
}

func (l *orderedLane) fetch(client int) {
	for _, j := range l.clients[client].fetchLane(l.t, l.hook) {
		l.held = append(l.held, heldJob{client, j})
	}
}

// end has a request of any client end: the receiver has it, as a success or not, and what
// becomes of the job is recorded, unless status is empty. A client that was taken for dead
// may do that long after.
func (l *orderedLane) end(status webhook.Status, succeeds bool) {
	if len(l.held) == 0 {
		return
	}
	i := rapid.IntRange(0, len(l.held)-1).Draw(l.rt, "request")
	h := l.held[i]
	if succeeds {
		for _, before := range l.accepted {
			if before == h.job.ID {
				break
			}
			if l.keys[before] == l.keys[h.job.ID] && !l.done[before] {
				l.rt.Fatalf("job %d succeeded before job %d", h.job.ID, before)
			}
		}
		l.done[h.job.ID] = true
	}
	if status == "" {
		l.crash(h.client)
		return
	}
	l.held = slices.Delete(l.held, i, i+1)
	l.clients[h.client].settle(l.t, h.job, status)
}

// crash has a client lose all that it knows, and what it worked be given back.
func (l *orderedLane) crash(client int) {
	b := l.clients[client]
	for _, h := range l.held {
		if h.client == client {
			producerState{b.Queue}.JobFinish(h.job)
			b.lose(h.job)
		}
	}
	l.held = slices.DeleteFunc(l.held, func(h heldJob) bool { return h.client == client })
	l.giveBack(client)
}

// giveBack has another client give back what this one works, which goes on. That takes
// so long that what was handed over and not fetched is not fetched any more.
func (l *orderedLane) giveBack(client int) {
	l.clients[client].takeBack(func(handed) bool { return true })
	b := l.clients[(client+1)%len(l.clients)]
	if _, err := b.giveBack(l.t.Context(), "dead", &l.clients[client].cfg.ClientID, nil, 0); err != nil {
		l.t.Fatal(err)
	}
}

// checkOneAtATime holds the database to it.
func (l *orderedLane) checkOneAtATime() {
	var most int
	err := l.clients[0].db.QueryRow(l.t.Context(), `
		SELECT coalesce(max(n), 0) FROM (
			SELECT count(*) AS n FROM fairhook.river_job
			WHERE state = 'running' AND queue = $1 GROUP BY CASE WHEN priority = 3 THEN args->>'ordering_key' END) AS running`, Lane(l.hook)).Scan(&most)
	if err != nil {
		l.t.Fatal(err)
	}
	if most > 1 {
		l.rt.Fatalf("%d are under way at once", most)
	}
}

// TestWhatFailsWhileItsLaneIsArrangedGetsItsPlace has a job that runs when the lane is
// looked through go back to waiting before anybody asks whether something runs.
func TestWhatFailsWhileItsLaneIsArrangedGetsItsPlace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hook := b.orderedHook(t, webhook.OrderingNone)
	first, second := b.accept(t, hook, ""), b.accept(t, hook, "")
	b.run(t, `UPDATE fairhook.river_job SET state = 'running' WHERE id = $1`, first)
	b.run(t, `UPDATE fairhook.webhooks SET ordering = 'strict' WHERE id = $1`, hook)
	if _, _, err := postgres.ClaimLanes(t.Context(), b.db, b.cfg.ClientID, []webhook.ID{hook}, time.Hour); err != nil {
		t.Fatal(err)
	}
	holder, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	if _, err := holder.Exec(t.Context(), `SELECT FROM fairhook.river_job WHERE id = $1 FOR UPDATE`, second); err != nil {
		t.Fatal(err)
	}
	type outcome struct {
		done bool
		err  error
	}
	arranged := make(chan outcome, 1)
	go func() {
		done, err := b.Arrange(t.Context(), hook, webhook.OrderingStrict)
		arranged <- outcome{done, err}
	}()
	for waiting := false; !waiting; {
		err := b.db.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
	}
	b.run(t, `UPDATE fairhook.river_job SET state = 'retryable', scheduled_at = now() + interval '1 hour' WHERE id = $1`, first)
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-arranged; got.err != nil || !got.done {
		t.Fatalf("arranged: %+v", got)
	}
	var strays int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.river_job WHERE priority <> $1`, placeStrict).Scan(&strays); err != nil {
		t.Fatal(err)
	}
	if strays != 0 {
		t.Errorf("%d jobs have no place in the order", strays)
	}
}
