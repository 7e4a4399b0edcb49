package fairqueue

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// testBundle is a queue on a private database, without a River client: tests
// play River's part.
type testBundle struct {
	*Queue
	db    *pgxpool.Pool
	url   string
	pilot *pilot
	exec  riverdriver.Executor

	mu     sync.Mutex
	limits map[webhook.ID]Limit // guarded by mu; webhooks not in it have a cap of 1000
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	return setupOn(t, pgtest.New(t), "client-1")
}

func setupOn(t *testing.T, database *pgtest.Database, clientID string) *testBundle {
	t.Helper()
	b := &testBundle{db: database.Pool, url: database.URL, limits: map[webhook.ID]Limit{}}
	clock, err := postgres.NewClock(t.Context(), database.Pool)
	if err != nil {
		t.Fatal(err)
	}
	b.Queue, err = New(t.Context(), Config{
		DatabaseURL: database.URL,
		ClientID:    clientID,
		Limits:      b.readLimits,
		Clock:       clock,
		Logger:      slog.New(slog.DiscardHandler),
		Registerer:  prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	driver := NewDriver(database.Pool, b.Queue)
	b.pilot = driver.PluginPilot().(*pilot)
	b.exec = driver.GetExecutor()
	return b
}

func (b *testBundle) readLimits(_ context.Context, ids []webhook.ID, _ int) (map[webhook.ID]Limit, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	limits := map[webhook.ID]Limit{}
	for _, id := range ids {
		limit, ok := b.limits[id]
		if !ok {
			limit = Limit{MaxInFlight: 1000}
		}
		limits[id] = limit
	}
	return limits, nil
}

func (b *testBundle) setLimit(id webhook.ID, limit Limit) {
	b.mu.Lock()
	b.limits[id] = limit
	b.mu.Unlock()
	b.Changed(id)
}

func (b *testBundle) newID() webhook.ID { return webhook.NewID(b.cfg.Clock.Now()) }

// insert accepts one event for each of n deliveries of a webhook, and returns
// the events' ids.
func (b *testBundle) insert(t *testing.T, hook webhook.ID, n int) []webhook.ID {
	t.Helper()
	events, hooks := make([]webhook.ID, n), make([]webhook.ID, n)
	for i := range n {
		events[i], hooks[i] = b.newID(), hook
	}
	_, err := b.db.Exec(t.Context(), `
		WITH accepted AS (
			INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids)
			SELECT id, 'acme', 'order.paid', '{}', '{}' FROM unnest($1::uuid[]) AS e (id) RETURNING id, ordering_key
		) `+InsertSQL(1, 2), events, hooks)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// learnAll learns of all lanes that are not known.
func (b *testBundle) learnAll(t *testing.T) {
	t.Helper()
	for isUp(b.ring.strange) {
		if err := b.learn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// fetchJobs asks for up to n jobs as River would.
func (b *testBundle) fetchJobs(t *testing.T, n int) []*rivertype.JobRow {
	t.Helper()
	b.learnAll(t)
	result, err := b.pilot.JobGetAvailable(t.Context(), b.exec, producerState{b.Queue}, b.fetchParams(n))
	if err != nil {
		t.Fatal(err)
	}
	return result.Jobs
}

func (b *testBundle) fetchParams(n int) *riverdriver.JobGetAvailableParams {
	return &riverdriver.JobGetAvailableParams{
		ClientID: b.cfg.ClientID, Kind: []string{job.KindDelivery}, MaxAttemptedBy: 100, MaxToLock: n,
		Queue: ClientQueue, Schema: Schema,
	}
}

// finish reports jobs as River's completer would.
func (b *testBundle) finish(t *testing.T, params ...*riverdriver.JobSetStateIfRunningParams) []*rivertype.JobRow {
	t.Helper()
	many := &riverdriver.JobSetStateIfRunningManyParams{Schema: Schema}
	for _, p := range params {
		many.ID = append(many.ID, p.ID)
		many.Attempt = append(many.Attempt, p.Attempt)
		many.ErrData = append(many.ErrData, p.ErrData)
		many.FinalizedAt = append(many.FinalizedAt, p.FinalizedAt)
		many.MetadataDoMerge = append(many.MetadataDoMerge, p.MetadataDoMerge)
		many.MetadataUpdates = append(many.MetadataUpdates, p.MetadataUpdates)
		many.ScheduledAt = append(many.ScheduledAt, p.ScheduledAt)
		many.State = append(many.State, p.State)
	}
	jobs, err := b.pilot.JobSetStateIfRunningMany(t.Context(), b.exec, many)
	if err != nil {
		t.Fatal(err)
	}
	return jobs
}

func (b *testBundle) discoverAll(t *testing.T) {
	t.Helper()
	if cursor, err := b.discover(t.Context(), "", true); err != nil || cursor != "" {
		t.Fatalf("discover: cursor %q, %v", cursor, err)
	}
}

func (b *testBundle) jobCount(t *testing.T, state string) (n int) {
	t.Helper()
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.river_job WHERE state::text = $1`, state).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func perLane(jobs []*rivertype.JobRow) map[string]int {
	lanes := map[string]int{}
	for _, j := range jobs {
		lanes[j.Queue]++
	}
	return lanes
}

func isUp(flag chan struct{}) bool {
	select {
	case <-flag:
		return true
	default:
		return false
	}
}

func TestFetch(t *testing.T) {
	t.Parallel()

	t.Run("TakesFromEveryLaneBesideALongBacklog", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		busy := b.newID()
		b.insert(t, busy, 500)
		want := map[string]int{}
		for range 9 {
			quiet := b.newID()
			b.insert(t, quiet, 1)
			want[Lane(quiet)] = 1
		}
		b.discoverAll(t)
		got := perLane(b.fetchJobs(t, 20))
		// The busy lane fills what the others leave, but for a few slots.
		if n := got[Lane(busy)]; n < 7 || n > 11 {
			t.Errorf("fetched %d of the busy lane into 11 slots that nobody else needs", n)
		}
		delete(got, Lane(busy))
		if !maps.Equal(got, want) {
			t.Errorf("fetched %v of the others, want %v", got, want)
		}
	})

	t.Run("ClaimsEachJobForThisClient", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.newID()
		events := b.insert(t, hook, 1)
		b.discoverAll(t)
		jobs := b.fetchJobs(t, 10)
		if len(jobs) != 1 {
			t.Fatalf("fetched %d jobs, want 1", len(jobs))
		}
		inRiver, err := b.exec.JobGetByID(t.Context(), &riverdriver.JobGetByIDParams{ID: jobs[0].ID, Schema: Schema})
		if err != nil {
			t.Fatal(err)
		}
		if inRiver.State != rivertype.JobStateRunning || inRiver.Attempt != 1 || inRiver.AttemptedBy[0] != "client-1" || inRiver.AttemptedAt == nil {
			t.Errorf("the row says state %s, attempt %d, by %v", inRiver.State, inRiver.Attempt, inRiver.AttemptedBy)
		}
		got := jobs[0]
		if got.Attempt != 1 || got.Kind != job.KindDelivery || got.Queue != Lane(hook) || string(got.EncodedArgs) != string(inRiver.EncodedArgs) {
			t.Errorf("fetched %+v, the row is %+v", got, inRiver)
		}
		live, err := Live(t.Context(), b.db, events[0])
		if err != nil || len(live) != 1 || live[0].Status != webhook.StatusDelivering || live[0].WebhookID != hook {
			t.Errorf("live deliveries: %+v, %v", live, err)
		}
	})

	t.Run("NeverExceedsAWebhooksCap", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.newID()
		b.setLimit(hook, Limit{MaxInFlight: 3})
		b.insert(t, hook, 10)
		b.discoverAll(t)
		jobs := b.fetchJobs(t, 100)
		if len(jobs) != 3 {
			t.Fatalf("fetched %d jobs, want the cap of 3", len(jobs))
		}
		if more := b.fetchJobs(t, 100); len(more) != 0 {
			t.Fatalf("fetched %d jobs over the cap", len(more))
		}
		isUp(b.kick)
		producerState{b.Queue}.JobFinish(jobs[0])
		if !isUp(b.kick) {
			t.Error("a freed slot of a capped lane did not wake the producer: it would wait for the poll")
		}
		if more := b.fetchJobs(t, 100); len(more) != 1 {
			t.Errorf("fetched %d jobs after one slot was freed, want 1", len(more))
		}
	})

	t.Run("LeavesAPausedLaneAloneAndItsRowsUntouched", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.newID()
		b.setLimit(hook, Limit{MaxInFlight: 10, Gated: true})
		b.insert(t, hook, 5)
		b.discoverAll(t)
		if jobs := b.fetchJobs(t, 100); len(jobs) != 0 {
			t.Fatalf("fetched %d jobs of a paused webhook", len(jobs))
		}
		b.discoverAll(t) // finds it again, and changes nothing
		if jobs := b.fetchJobs(t, 100); len(jobs) != 0 {
			t.Fatalf("fetched %d jobs of a paused webhook", len(jobs))
		}
		if n := b.jobCount(t, "available"); n != 5 {
			t.Errorf("%d of 5 rows are still as they were", n)
		}
		isUp(b.kick)
		b.setLimit(hook, Limit{MaxInFlight: 10})
		b.learnAll(t)
		if !isUp(b.kick) {
			t.Error("resuming did not wake the producer")
		}
		if jobs := b.fetchJobs(t, 100); len(jobs) != 5 {
			t.Errorf("fetched %d jobs after the webhook was resumed, want 5", len(jobs))
		}
	})

	t.Run("DoesNotBelieveALimitThatWasReadBeforeItsWebhookChanged", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.newID()
		b.insert(t, hook, 5)
		b.setLimit(hook, Limit{MaxInFlight: 10, Gated: true})
		resume := sync.OnceFunc(func() { b.setLimit(hook, Limit{MaxInFlight: 10}) })
		b.cfg.Limits = func(ctx context.Context, ids []webhook.ID, sharers int) (map[webhook.ID]Limit, error) {
			limits, err := b.readLimits(ctx, ids, sharers)
			resume() // and it is heard of before the answer is here
			return limits, err
		}
		b.discoverAll(t)
		jobs := append(b.fetchJobs(t, 100), b.fetchJobs(t, 100)...)
		if len(jobs) != 5 {
			t.Errorf("fetched %d of 5 jobs of a webhook that has been resumed", len(jobs))
		}
	})

	t.Run("DoesNotTakeWhatIsNotDueYetAndKnowsWhenItWillBe", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.newID()
		b.insert(t, hook, 1)
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.river_job SET scheduled_at = now() + interval '4 seconds'`); err != nil {
			t.Fatal(err)
		}
		b.discoverAll(t)
		if jobs := b.fetchJobs(t, 10); len(jobs) != 0 {
			t.Fatalf("fetched a job 4 s early")
		}
		woken, next := b.ring.wakeDue(b.cfg.Clock.Now())
		if in := next.Sub(b.cfg.Clock.Now()); woken || in < 3*time.Second || in > 4*time.Second {
			t.Errorf("woken=%v, next look in %s, want a timer for the moment it falls due", woken, in)
		}
	})

	t.Run("LeavesKindsItDoesNotKnow", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.insert(t, b.newID(), 1)
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.river_job SET kind = 'of_the_next_release'`); err != nil {
			t.Fatal(err)
		}
		b.discoverAll(t)
		if jobs := b.fetchJobs(t, 10); len(jobs) != 0 {
			t.Error("fetched a job of an unknown kind")
		}
	})

	t.Run("NeverGivesOneJobToTwoDispatchers", func(t *testing.T) {
		t.Parallel()
		database := pgtest.New(t)
		first, second := setupOn(t, database, "client-1"), setupOn(t, database, "client-2")
		for range 5 {
			first.insert(t, first.newID(), 40)
		}
		first.discoverAll(t)
		second.discoverAll(t)
		seen := map[int64]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, b := range []*testBundle{first, second} {
			wg.Go(func() {
				for range 20 {
					jobs := b.fetchJobs(t, 7)
					mu.Lock()
					for _, j := range jobs {
						seen[j.ID]++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		for id, n := range seen {
			if n != 1 {
				t.Errorf("job %d was fetched %d times", id, n)
			}
		}
		if running := first.jobCount(t, "running"); running != len(seen) {
			t.Errorf("%d rows are running, %d were fetched", running, len(seen))
		}
	})

	t.Run("PutsLanesBackAndRestsAfterAFailure", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.insert(t, b.newID(), 1)
		b.discoverAll(t)
		b.learnAll(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := b.pilot.JobGetAvailable(ctx, b.exec, nil, b.fetchParams(5))
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want the fetch to fail", err)
		}
		if jobs := b.fetchJobs(t, 5); len(jobs) != 0 {
			t.Error("fetched again at once: a database that is away would be asked all the time")
		}
		b.Queue.mu.Lock()
		b.restUntil = time.Time{}
		b.Queue.mu.Unlock()
		if jobs := b.fetchJobs(t, 5); len(jobs) != 1 {
			t.Errorf("fetched %d jobs after the failure, want 1", len(jobs))
		}
	})

	t.Run("TakesNothingFromALaneThatAnotherOwnsWhateverItKnows", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook, free := b.newID(), b.newID()
		b.insert(t, hook, 3)
		b.insert(t, free, 3)
		b.discoverAll(t)
		own := func(owner, until string) {
			b.run(t, `INSERT INTO fairhook.lane_owners (webhook_id, owner, until) VALUES ($1, $2, now() + $3::interval)
				ON CONFLICT (webhook_id) DO UPDATE SET owner = excluded.owner, until = excluded.until`, hook, owner, until)
		}
		own("client-2", "1 minute")
		if got := perLane(b.fetchJobs(t, 10)); got[Lane(hook)] != 0 || got[Lane(free)] != 3 {
			t.Errorf("fetched %v, want only the 3 of the lane that is free", got)
		}
		own("client-2", "-1 second") // its lease ended
		b.discoverAll(t)
		if got := perLane(b.fetchJobs(t, 1)); got[Lane(hook)] != 1 {
			t.Errorf("fetched %v of a lane whose owner is gone, want 1", got)
		}
		own("client-1", "1 minute")
		b.discoverAll(t)
		if got := perLane(b.fetchJobs(t, 10)); got[Lane(hook)] != 2 {
			t.Errorf("fetched %v of its own lane, want 2", got)
		}
	})

	t.Run("UsesTheLaneIndexAlsoWithAPlanMadeOnAnEmptyTable", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := b.newID()
		plan := explain(t, b.pool, "force_generic_plan", fetchSQL, []webhook.ID{hook, b.newID()}, []int32{5, 5}, "c", 100, []string{"delivery"}, []*time.Time{new(time.Now()), nil})
		for _, want := range []string{"river_job_prioritized_fetching_index", "river_job_pkey"} {
			if !contains(plan, want) {
				t.Errorf("the plan does not use %s:\n%s", want, plan)
			}
		}
		if contains(plan, "Seq Scan on river_job") {
			t.Errorf("the plan scans the table:\n%s", plan)
		}
	})
}

// TestTheFetchUsesTheLaneIndexAfterAVacuumOfTheEmptyTable plans the fetch when the
// planner has been told that the table is small.
func TestTheFetchUsesTheLaneIndexAfterAVacuumOfTheEmptyTable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.db.Exec(t.Context(), `VACUUM ANALYZE fairhook.river_job`); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		plan := explain(t, b.pool, mode, fetchSQL, []webhook.ID{b.newID(), b.newID()}, []int32{5, 5}, "c", 100, []string{"delivery"}, []*time.Time{new(time.Now()), nil})
		if contains(plan, "river_job_kind") || contains(plan, "Sort") || contains(plan, "Seq Scan on river_job") {
			t.Errorf("with %s:\n%s", mode, plan)
		}
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	now := time.Now()

	fetchOne := func(t *testing.T, b *testBundle) *rivertype.JobRow {
		t.Helper()
		b.insert(t, b.newID(), 1)
		b.discoverAll(t)
		jobs := b.fetchJobs(t, 1)
		if len(jobs) != 1 {
			t.Fatalf("fetched %d jobs, want 1", len(jobs))
		}
		return jobs[0]
	}

	t.Run("DeletesADeliveredJob", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		j := fetchOne(t, b)
		b.finish(t, riverdriver.JobSetStateCompleted(j.ID, now, nil))
		if n := b.jobCount(t, "running") + b.jobCount(t, "completed"); n != 0 {
			t.Errorf("%d rows are left", n)
		}
		if len(b.claims) != 0 {
			t.Errorf("%d claims are left", len(b.claims))
		}
	})

	t.Run("KeepsAFailedJobForItsRetryAndKnowsWhenItIsDue", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		j := fetchOne(t, b)
		due := b.cfg.Clock.Now().Add(3 * time.Second)
		jobs := b.finish(t, riverdriver.JobSetStateErrorAvailable(j.ID, due, []byte(`{"error":"500"}`), []byte(`{"`+MetadataRequests+`":1}`)))
		if len(jobs) != 1 || jobs[0].State != rivertype.JobStateAvailable {
			t.Fatalf("River was told %+v", jobs)
		}
		if _, next := b.ring.wakeDue(b.cfg.Clock.Now()); next.Sub(due).Abs() > time.Second {
			t.Errorf("the next look is at %s, want %s", next, due)
		}
	})

	t.Run("IgnoresAFinishWhoseClaimWasGivenAway", func(t *testing.T) {
		t.Parallel()
		database := pgtest.New(t)
		stopped, other := setupOn(t, database, "stopped"), setupOn(t, database, "other")
		j := fetchOne(t, stopped)
		second := fetchOne(t, stopped)
		if _, err := database.Pool.Exec(t.Context(), `UPDATE fairhook.river_job SET attempted_at = now() - interval '1 minute'`); err != nil {
			t.Fatal(err)
		}
		// While the first process was stopped, its jobs were given back, and the
		// other took them.
		if n, err := other.GiveBackDead(t.Context(), time.Second); err != nil || n != 2 {
			t.Fatalf("gave back %d, %v", n, err)
		}
		// As after an attempt on record that used no step: both claims have one number.
		if _, err := database.Pool.Exec(t.Context(), `UPDATE fairhook.river_job SET attempt = attempt - 1`); err != nil {
			t.Fatal(err)
		}
		other.discoverAll(t)
		if jobs := other.fetchJobs(t, 10); len(jobs) != 2 || jobs[0].Attempt != j.Attempt {
			t.Fatalf("the other fetched %d jobs, want 2", len(jobs))
		}
		stopped.finish(t,
			riverdriver.JobSetStateCompleted(j.ID, now, nil),
			riverdriver.JobSetStateErrorRetryable(second.ID, now.Add(time.Hour), []byte(`{}`), nil))
		if n := stopped.jobCount(t, "running"); n != 2 {
			t.Errorf("%d jobs still run where they belong, want both", n)
		}
		if n := testutil.ToFloat64(stopped.metrics.staleFinishes); n != 2 {
			t.Errorf("%v stale finishes counted, want 2", n)
		}
	})

	t.Run("IgnoresAFinishOfAnEarlierClaimOfItsOwn", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		j := fetchOne(t, b)
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.river_job SET attempt = 7`); err != nil {
			t.Fatal(err)
		}
		b.finish(t, riverdriver.JobSetStateCompleted(j.ID, now, nil))
		if n := b.jobCount(t, "running"); n != 1 {
			t.Error("a finish of attempt 1 ended attempt 7")
		}
	})

	t.Run("IsNotHurtByAJobThatIsGone", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		j := fetchOne(t, b)
		if _, err := b.db.Exec(t.Context(), `DELETE FROM fairhook.river_job`); err != nil {
			t.Fatal(err)
		}
		b.finish(t, riverdriver.JobSetStateCompleted(j.ID, now, nil))
		b.finish(t, riverdriver.JobSetStateErrorRetryable(j.ID, now, []byte(`{}`), nil))
	})

	t.Run("GoesByThePrimaryKeyWhateverPlanIsCached", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			for _, sql := range []string{deleteSQL, lockClaimsSQL} {
				plan := explain(t, b.pool, mode, sql, []int64{1, 2, 3}, 1, "c")
				if !contains(plan, "Index Scan using river_job_pkey") || !contains(plan, "Index Cond: (id = ANY") {
					t.Errorf("%s walks more than the ids it was given:\n%s", mode, plan)
				}
			}
		}
	})
}

// explain returns the plan of a statement as it would be made in the given mode.
func explain(t *testing.T, pool *pgxpool.Pool, mode, sql string, args ...any) (plan string) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SET LOCAL plan_cache_mode = `+mode); err != nil {
			return err
		}
		rows, err := tx.Query(t.Context(), "EXPLAIN "+sql, args...)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		plan = strings.Join(lines, "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func TestGiveBack(t *testing.T) {
	t.Parallel()

	// crash makes a job that a process claimed and left behind when it died.
	crash := func(t *testing.T, database *pgtest.Database) (dead, alive *testBundle, j *rivertype.JobRow, args job.Delivery) {
		t.Helper()
		dead, alive = setupOn(t, database, "dead"), setupOn(t, database, "alive")
		if _, err := postgres.WriteBeat(t.Context(), database.Pool, postgres.Beat{ID: "alive", Role: webhook.RoleDispatcher}, time.Minute); err != nil {
			t.Fatal(err)
		}
		hook := dead.newID()
		events := dead.insert(t, hook, 1)
		dead.discoverAll(t)
		jobs := dead.fetchJobs(t, 1)
		if len(jobs) != 1 {
			t.Fatalf("fetched %d jobs, want 1", len(jobs))
		}
		if _, err := dead.db.Exec(t.Context(), `UPDATE fairhook.river_job SET attempted_at = now() - interval '1 minute'`); err != nil {
			t.Fatal(err)
		}
		return dead, alive, jobs[0], job.Delivery{EventID: events[0], WebhookID: hook}
	}
	recordAs := func(t *testing.T, b *testBundle, args job.Delivery, a webhook.Attempt) {
		t.Helper()
		a.ID, a.EventID, a.WebhookID, a.Tenant, a.StartedAt = b.newID(), args.EventID, args.WebhookID, "acme", b.cfg.Clock.Now()
		if err := postgres.RecordAttempts(t.Context(), b.db, []webhook.Attempt{a}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	giveBack := func(t *testing.T, b *testBundle, want int) {
		t.Helper()
		if n, err := b.GiveBackDead(t.Context(), 15*time.Second); err != nil || n != want {
			t.Fatalf("gave back %d, %v; want %d", n, err, want)
		}
	}
	row := func(t *testing.T, b *testBundle, id int64) *rivertype.JobRow {
		t.Helper()
		j, err := b.exec.JobGetByID(t.Context(), &riverdriver.JobGetByIDParams{ID: id, Schema: Schema})
		if errors.Is(err, rivertype.ErrNotFound) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		return j
	}

	t.Run("SendsAgainWhatADeadInstanceLeftUnrecordedAndCountsTheClaim", func(t *testing.T) {
		t.Parallel()
		_, alive, j, _ := crash(t, pgtest.New(t))
		giveBack(t, alive, 1)
		got := row(t, alive, j.ID)
		if got.State != rivertype.JobStateAvailable || got.Attempt != 1 {
			t.Errorf("state %s, attempt %d; want available with the claim counted", got.State, got.Attempt)
		}
		alive.discoverAll(t)
		if jobs := alive.fetchJobs(t, 1); len(jobs) != 1 || jobs[0].Attempt != 2 {
			t.Errorf("the living fetched %+v", jobs)
		}
	})

	t.Run("DoesNotSendAgainWhatWasRecordedAsDelivered", func(t *testing.T) {
		t.Parallel()
		dead, alive, j, args := crash(t, pgtest.New(t))
		recordAs(t, dead, args, webhook.Attempt{Instance: "dead", Number: 1, Reason: webhook.ReasonDelivered, Status: webhook.StatusDelivered})
		giveBack(t, alive, 1)
		if got := row(t, alive, j.ID); got != nil {
			t.Errorf("the job is still there: %+v", got)
		}
	})

	t.Run("AppliesARecordedFailureInsteadOfSendingAgain", func(t *testing.T) {
		t.Parallel()
		dead, alive, j, args := crash(t, pgtest.New(t))
		next := dead.cfg.Clock.Now().Add(time.Hour)
		recordAs(t, dead, args, webhook.Attempt{Instance: "dead", Number: 1, Reason: webhook.ReasonServerError, Status: webhook.StatusRetrying, NextAttemptAt: &next, UsesStep: true})
		giveBack(t, alive, 1)
		got := row(t, alive, j.ID)
		if got.State != rivertype.JobStateRetryable || got.Attempt != 1 || got.ScheduledAt.Sub(next).Abs() > time.Millisecond {
			t.Errorf("state %s, attempt %d, due %s; want retryable at %s", got.State, got.Attempt, got.ScheduledAt, next)
		}
		live, err := Live(t.Context(), alive.db, args.EventID)
		if err != nil || len(live) != 1 || live[0].Requests != 1 || live[0].Status != webhook.StatusRetrying {
			t.Errorf("live: %+v, %v", live, err)
		}
	})

	t.Run("DoesNotChargeAStepForAnAnswerThatOnlyAskedForPatience", func(t *testing.T) {
		t.Parallel()
		dead, alive, j, args := crash(t, pgtest.New(t))
		recordAs(t, dead, args, webhook.Attempt{Instance: "dead", Number: 1, Reason: webhook.ReasonRateLimited, Status: webhook.StatusRetrying})
		giveBack(t, alive, 1)
		if got := row(t, alive, j.ID); got.State != rivertype.JobStateRetryable || got.Attempt != 0 {
			t.Errorf("state %s, attempt %d; want retryable with no attempt used", got.State, got.Attempt)
		}
	})

	t.Run("ChargesA503ByWhatItsRecordSaysOfTheStep", func(t *testing.T) {
		t.Parallel()
		for _, usesStep := range []bool{false, true} { // with Retry-After, and without
			dead, alive, j, args := crash(t, pgtest.New(t))
			recordAs(t, dead, args, webhook.Attempt{Instance: "dead", Number: 1, Reason: webhook.ReasonUnavailable, Status: webhook.StatusRetrying, UsesStep: usesStep})
			giveBack(t, alive, 1)
			if got := row(t, alive, j.ID); (got.Attempt == 1) != usesStep {
				t.Errorf("attempt %d after a 503 that used a step: %v", got.Attempt, usesStep)
			}
		}
	})

	t.Run("EndsWhatWasRecordedAsExhausted", func(t *testing.T) {
		t.Parallel()
		dead, alive, j, args := crash(t, pgtest.New(t))
		recordAs(t, dead, args, webhook.Attempt{Instance: "dead", Number: 1, Reason: webhook.ReasonServerError, Status: webhook.StatusExhausted})
		giveBack(t, alive, 1)
		if got := row(t, alive, j.ID); got.FinalizedAt == nil {
			t.Errorf("the job goes on in state %s", got.State)
		}
	})

	t.Run("HonoursACancelThatTheDeadInstanceDidNotSee", func(t *testing.T) {
		t.Parallel()
		_, alive, j, args := crash(t, pgtest.New(t))
		if _, err := alive.db.Exec(t.Context(), `UPDATE fairhook.river_job SET metadata = '{"cancel_attempted_at":"2026-01-01T00:00:00Z"}'`); err != nil {
			t.Fatal(err)
		}
		giveBack(t, alive, 1)
		if got := row(t, alive, j.ID); got.State != rivertype.JobStateCancelled {
			t.Errorf("state %s, want cancelled", got.State)
		}
		var status, tenant string
		err := alive.db.QueryRow(t.Context(), `SELECT status, tenant FROM fairhook.attempts WHERE event_id = $1 AND number = 0`, args.EventID).Scan(&status, &tenant)
		if err != nil || status != string(webhook.StatusCancelled) || tenant != "acme" {
			t.Errorf("recorded %q for %q, %v", status, tenant, err)
		}
	})

	t.Run("IgnoresAnAttemptOfAnEarlierClaim", func(t *testing.T) {
		t.Parallel()
		dead, alive, j, args := crash(t, pgtest.New(t))
		recordAs(t, dead, args, webhook.Attempt{Instance: "dead", Number: 1, Reason: webhook.ReasonServerError, Status: webhook.StatusRetrying})
		if _, err := dead.db.Exec(t.Context(), `
			UPDATE fairhook.attempts SET id = fairhook.uuid_floor(now() - interval '2 minutes')`); err != nil {
			t.Fatal(err) // what is on record is older than the claim
		}
		giveBack(t, alive, 1)
		if got := row(t, alive, j.ID); got.State != rivertype.JobStateAvailable {
			t.Errorf("state %s, want available: the last claim left no record", got.State)
		}
	})

	t.Run("DoesNotDisturbTheLiving", func(t *testing.T) {
		t.Parallel()
		dead, alive, j, _ := crash(t, pgtest.New(t))
		if _, err := postgres.WriteBeat(t.Context(), dead.db, postgres.Beat{ID: "dead", Role: webhook.RoleDispatcher}, time.Minute); err != nil {
			t.Fatal(err)
		}
		giveBack(t, alive, 0)
		if got := row(t, alive, j.ID); got.State != rivertype.JobStateRunning {
			t.Errorf("a running delivery of a living instance was taken: %s", got.State)
		}
	})

	t.Run("LeavesAClaimThatIsOlderThanItsHoldersFirstHeartbeat", func(t *testing.T) {
		t.Parallel()
		_, alive, j, _ := crash(t, pgtest.New(t))
		if _, err := alive.db.Exec(t.Context(), `UPDATE fairhook.river_job SET attempted_at = now() - interval '5 seconds'`); err != nil {
			t.Fatal(err)
		}
		giveBack(t, alive, 0)
		if got := row(t, alive, j.ID); got.State != rivertype.JobStateRunning {
			t.Errorf("a delivery was taken from an instance that has only just started: %s", got.State)
		}
	})

	t.Run("ReadsNoMoreThanTheRunningJobs", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.insert(t, b.newID(), 5000)
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.river_job SET state = 'running'; ANALYZE fairhook.river_job`); err != nil {
			t.Fatal(err) // what the planner believes: everything is running
		}
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			for _, holder := range []*string{nil, &b.cfg.ClientID} {
				plan := explain(t, b.pool, mode, orphansSQL, holder, []int64{}, 15*time.Second, giveBackBatch)
				if !contains(plan, "Index Scan using river_job_prioritized_fetching_index on river_job r") || contains(plan, "Sort Key: r.") {
					t.Errorf("%s: the running jobs are not read from the lane index:\n%s", mode, plan)
				}
			}
		}
	})

	t.Run("LetsOneOfManyDoTheWork", func(t *testing.T) {
		t.Parallel()
		_, alive, _, _ := crash(t, pgtest.New(t))
		var wg sync.WaitGroup
		var mu sync.Mutex
		total := 0
		for range 8 {
			wg.Go(func() {
				n, err := alive.GiveBackDead(t.Context(), 15*time.Second)
				mu.Lock()
				defer mu.Unlock()
				if total += n; err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if total != 1 {
			t.Errorf("one delivery was given back %d times", total)
		}
	})

	t.Run("TakesAllThatADispatcherMayHaveHadInFlight", func(t *testing.T) {
		t.Parallel()
		_, alive, _, _ := crash(t, pgtest.New(t))
		const more = 2*giveBackBatch + 1
		alive.insert(t, alive.newID(), more)
		if _, err := alive.db.Exec(t.Context(), `
			UPDATE fairhook.river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 minute', attempted_by = '{dead}'`); err != nil {
			t.Fatal(err)
		}
		giveBack(t, alive, 1+more)
		if n := alive.jobCount(t, "running"); n != 0 {
			t.Errorf("%d are left running in nobody's hands", n)
		}
	})

	t.Run("GivesBackAClaimWhoseAnswerWasLost", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.insert(t, b.newID(), 2)
		b.discoverAll(t)
		jobs := b.fetchJobs(t, 2)
		b.release(held{1: {jobs[0].ID}}) // as if its answer had never arrived
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.river_job SET attempted_at = now() - interval '1 minute'`); err != nil {
			t.Fatal(err)
		}
		if n, err := b.giveBackLost(t.Context(), 30*time.Second); err != nil || n != 1 {
			t.Fatalf("gave back %d, %v; want the one that is not held", n, err)
		}
		if got := row(t, b, jobs[0].ID); got.State != rivertype.JobStateAvailable {
			t.Errorf("the lost claim is %s", got.State)
		}
		if got := row(t, b, jobs[1].ID); got.State != rivertype.JobStateRunning {
			t.Errorf("the claim that is held is %s", got.State)
		}
	})
}

func TestDiscoveryVisitsEveryLane(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const lanes = discoverStep + 50
	events, hooks := make([]webhook.ID, lanes), make([]webhook.ID, lanes)
	for i := range lanes {
		events[i], hooks[i] = b.newID(), b.newID()
	}
	_, err := b.db.Exec(t.Context(), `WITH accepted AS (SELECT unnest($1::uuid[]) AS id, NULL::text AS ordering_key) `+InsertSQL(1, 2), events, hooks)
	if err != nil {
		t.Fatal(err)
	}
	b.discoverAll(t)
	if active, _, _ := b.ring.stats(); active != lanes {
		t.Errorf("found %d of %d lanes", active, lanes)
	}
	b.learnAll(t)
	if !isUp(b.kick) {
		t.Error("nobody was told")
	}
}

// TestAFetchWaitsForNoLimits has the database take its time over the limits of one
// lane, while another is fetched.
func TestAFetchWaitsForNoLimits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	known, stranger := b.newID(), b.newID()
	b.insert(t, known, 1)
	b.discoverAll(t)
	b.learnAll(t)
	release, asked := make(chan struct{}), make(chan struct{})
	b.cfg.Limits = func(ctx context.Context, ids []webhook.ID, sharers int) (map[webhook.ID]Limit, error) {
		close(asked)
		<-release
		return b.readLimits(ctx, ids, sharers)
	}
	b.insert(t, stranger, 1)
	b.discoverAll(t)
	learned := make(chan error, 1)
	go func() { learned <- b.learn(t.Context()) }()
	<-asked
	result, err := b.pilot.JobGetAvailable(t.Context(), b.exec, nil, b.fetchParams(10))
	if err != nil || len(result.Jobs) != 1 || result.Jobs[0].Queue != Lane(known) {
		t.Errorf("fetched %v, %v; want the job of the lane that is known", result, err)
	}
	close(release)
	if err := <-learned; err != nil {
		t.Fatal(err)
	}
	if !isUp(b.kick) || len(b.fetchJobs(t, 10)) != 1 {
		t.Error("the other lane is not fetched once its limits are known")
	}
}

// TestLanesWhoseLimitsCannotBeReadAreAskedForAgain loses no lane to a question that
// failed.
func TestLanesWhoseLimitsCannotBeReadAreAskedForAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hook := b.newID()
	b.insert(t, hook, 1)
	b.discoverAll(t)
	limits := b.cfg.Limits
	b.cfg.Limits = func(context.Context, []webhook.ID, int) (map[webhook.ID]Limit, error) { return nil, errors.New("away") }
	if err := b.learn(t.Context()); err == nil {
		t.Fatal("the question did not fail")
	}
	b.cfg.Limits = limits
	if err := b.learn(t.Context()); err != nil || len(b.fetchJobs(t, 10)) != 1 {
		t.Errorf("the lane is lost: %v", err)
	}
}

func TestInsertWritesWhatRiverWouldWrite(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hook := b.newID()
	events := b.insert(t, hook, 1)
	tx, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	args := job.Delivery{EventID: events[0], WebhookID: hook}
	encoded, err := jsonMarshal(args)
	if err != nil {
		t.Fatal(err)
	}
	_, err = riverpgxv5.New(b.db).UnwrapExecutor(tx).JobInsertFastMany(t.Context(), &riverdriver.JobInsertFastManyParams{
		Schema: Schema,
		Jobs: []*riverdriver.JobInsertFastParams{{
			Args: args, EncodedArgs: encoded, Kind: args.Kind(), MaxAttempts: job.MaxAttempts, Metadata: []byte(`{}`),
			Priority: 1, Queue: Lane(hook), State: rivertype.JobStateAvailable, Tags: []string{},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	// Every column but the id, the times (both are the transaction's) and the
	// unique key, which River's insert was not given.
	rows, err := tx.Query(t.Context(), `
		SELECT to_jsonb(j) - '{id,created_at,scheduled_at,unique_key,unique_states}'::text[],
		       j.created_at = j.scheduled_at, j.unique_key, j.unique_states::text
		FROM fairhook.river_job j ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	type seen struct {
		Columns map[string]any
		Same    bool
		Key     []byte
		States  *string
	}
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[seen])
	if err != nil || len(got) != 2 {
		t.Fatalf("%d rows, %v", len(got), err)
	}
	ours, rivers := got[0], got[1]
	if diff := jsonDiff(ours.Columns, rivers.Columns); diff != "" {
		t.Errorf("our row differs from River's: %s", diff)
	}
	if ours.Same != rivers.Same {
		t.Errorf("created_at = scheduled_at: ours %v, River's %v", ours.Same, rivers.Same)
	}
	if string(ours.Key) != string(events[0][:])+string(hook[:]) {
		t.Errorf("unique_key is %x", ours.Key)
	}
	if want := riverUniqueStates(); ours.States == nil || *ours.States != want {
		t.Errorf("unique_states is %v, River's bits for the unfinished states are %s", ours.States, want)
	}
}

func TestInsertDoesNotDoubleALiveDelivery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hook := b.newID()
	event := b.insert(t, hook, 1)
	again := func() {
		t.Helper()
		_, err := b.db.Exec(t.Context(), `WITH accepted AS (SELECT unnest($1::uuid[]) AS id, NULL::text AS ordering_key) `+InsertSQL(1, 2), event, []webhook.ID{hook})
		if err != nil {
			t.Fatal(err)
		}
	}
	again()
	if n := b.jobCount(t, "available"); n != 1 {
		t.Errorf("%d jobs for one delivery", n)
	}
}
