package fairqueue

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/riverqueue/river"

	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// riverBundle is a queue with a real River client over it, and a worker that
// only writes down what it was given.
type riverBundle struct {
	*testBundle
	client *river.Client[pgx.Tx]
	stop   func()

	mu     sync.Mutex
	worked []worked
	answer func(n int, j *river.Job[job.Delivery]) error // of the nth job; nil: done
}

type worked struct {
	event   webhook.ID
	attempt int
	at      time.Time // by the database's clock
}

// riverWorker retries when the job's arguments say so, as the dispatcher's does.
type riverWorker struct {
	river.WorkerDefaults[job.Delivery]
	b *riverBundle
}

func (w *riverWorker) Work(_ context.Context, j *river.Job[job.Delivery]) error {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	w.b.worked = append(w.b.worked, worked{j.Args.EventID, j.Attempt, w.b.cfg.Clock.Now()})
	if w.b.answer == nil {
		return nil
	}
	return w.b.answer(len(w.b.worked), j)
}

func (w *riverWorker) NextRetry(j *river.Job[job.Delivery]) time.Time { return j.Args.RetryAt }

// newRiver makes a client, as a dispatcher does, on a database.
func newRiver(t *testing.T, database *pgtest.Database, clientID string) *riverBundle {
	t.Helper()
	b := &riverBundle{testBundle: setupOn(t, database, clientID)}
	workers := river.NewWorkers()
	river.AddWorker(workers, &riverWorker{b: b})
	var err error
	b.client, err = river.NewClient(NewDriver(b.db, b.Queue), &river.Config{
		ID: clientID, Schema: Schema, Workers: workers,
		Queues:        map[string]river.QueueConfig{ClientQueue: {MaxWorkers: 10}},
		FetchCooldown: 2 * time.Millisecond, FetchPollInterval: 20 * time.Millisecond, FetchOnlyKnownKinds: true,
		JobTimeout: time.Minute, RescueStuckJobsAfter: time.Minute,
		CancelledJobRetentionPeriod: 24 * time.Hour, DiscardedJobRetentionPeriod: 24 * time.Hour,
		Logger: slog.New(slog.DiscardHandler),
		Test:   river.TestConfig{Time: RiverClock{Clock: b.cfg.Clock}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// start runs the client and the queue until the test ends or stop is called.
func (b *riverBundle) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if err := b.client.Start(ctx); err != nil {
		cancel()
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		stopping, end := context.WithTimeout(context.Background(), 20*time.Second)
		defer end()
		if err := b.client.StopAndCancel(stopping); err != nil {
			t.Errorf("River did not stop: %v", err)
		}
		cancel()
		<-done
	})
	t.Cleanup(b.stop)
}

func (b *riverBundle) got() []worked {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]worked{}, b.worked...)
}

// await waits until a condition holds.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(40 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func (b *riverBundle) awaitWorked(t *testing.T, n int) []worked {
	t.Helper()
	await(t, fmt.Sprintf("%d deliveries are worked", n), func() bool { return len(b.got()) >= n })
	return b.got()
}

func (b *testBundle) execOne(t *testing.T, sql string, args ...any) {
	t.Helper()
	tag, err := b.db.Exec(t.Context(), sql, args...)
	if err != nil || tag.RowsAffected() != 1 {
		t.Fatalf("%s: %d rows, %v; want 1", sql, tag.RowsAffected(), err)
	}
}

func scan[T any](t *testing.T, b *testBundle, sql string, args ...any) (value T) {
	t.Helper()
	if err := b.db.QueryRow(t.Context(), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// TestRiversRescuer shows River's own backstop: nothing here gives back the jobs
// of dead instances but it.
func TestRiversRescuer(t *testing.T) {
	t.Parallel()

	t.Run("ReturnsAJobWhoseHolderIsGoneToItsLane", func(t *testing.T) {
		t.Parallel()
		b := newRiver(t, pgtest.New(t), "client-1")
		event, _ := stuck(t, b.testBundle)
		b.start(t)
		if got := b.awaitWorked(t, 1); got[0].event != event || got[0].attempt != 2 {
			t.Errorf("worked %+v, want attempt 2 of %s", got, event)
		}
		await(t, "the job is gone", func() bool { return scan[int](t, b.testBundle, `SELECT count(*) FROM fairhook.river_job`) == 0 })
		if n := testutil.ToFloat64(b.metrics.givenBack.WithLabelValues("stuck", string(verdictAgain))); n != 1 {
			t.Errorf("%v deliveries were counted as given back", n)
		}
	})
	t.Run("SendsNothingAgainThatIsOnRecordAsDelivered", func(t *testing.T) {
		t.Parallel()
		b := newRiver(t, pgtest.New(t), "client-1")
		event, hook := stuck(t, b.testBundle)
		recordClaimed(t, b.testBundle, event, hook, webhook.ReasonDelivered, webhook.StatusDelivered)
		b.start(t)
		await(t, "the job is gone", func() bool { return scan[int](t, b.testBundle, `SELECT count(*) FROM fairhook.river_job`) == 0 })
		if got := b.got(); len(got) != 0 {
			t.Errorf("worked %+v", got)
		}
	})
	t.Run("RecordsTheEndOfADeliveryThatSomebodyAskedToCancel", func(t *testing.T) {
		t.Parallel()
		b := newRiver(t, pgtest.New(t), "client-1")
		event, _ := stuck(t, b.testBundle)
		b.execOne(t, `UPDATE fairhook.river_job SET metadata = '{"cancel_attempted_at": "2026-01-02T03:04:05Z"}'`)
		b.start(t)
		await(t, "the job is cancelled", func() bool {
			return scan[int](t, b.testBundle, `SELECT count(*) FROM fairhook.river_job WHERE state = 'cancelled'`) == 1
		})
		wantEnd(t, b.testBundle, event, webhook.ReasonCancelled, webhook.StatusCancelled)
		if got := b.got(); len(got) != 0 {
			t.Errorf("worked %+v", got)
		}
	})
	t.Run("EndsNoDeliveryAtItsMaximumOfAttempts", func(t *testing.T) {
		t.Parallel()
		b := newRiver(t, pgtest.New(t), "client-1")
		event, _ := stuck(t, b.testBundle)
		b.execOne(t, `UPDATE fairhook.river_job SET attempt = max_attempts`)
		b.start(t)
		if got := b.awaitWorked(t, 1); got[0].event != event {
			t.Errorf("worked %+v", got)
		}
	})
	t.Run("LeavesAJobOfAKindThatOnlyANewerReleaseKnows", func(t *testing.T) {
		t.Parallel()
		b := newRiver(t, pgtest.New(t), "client-1")
		stuck(t, b.testBundle)
		b.execOne(t, `UPDATE fairhook.river_job SET kind = 'delivery2'`)
		known, _ := stuck(t, b.testBundle)
		b.start(t)
		b.awaitWorked(t, 1) // by the same run of the rescuer, which takes them in this order
		if got := b.got(); got[0].event != known {
			t.Errorf("worked %+v", got)
		}
		if state := scan[string](t, b.testBundle, `SELECT state::text FROM fairhook.river_job WHERE kind = 'delivery2'`); state != "running" {
			t.Errorf("the job of an unknown kind is %s now", state)
		}
	})
}

// stuck makes a delivery whose holder is gone, two hours after it was fetched.
func stuck(t *testing.T, b *testBundle) (event, hook webhook.ID) {
	t.Helper()
	hook = b.newID()
	event = b.insert(t, hook, 1)[0]
	b.execOne(t, `UPDATE fairhook.river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '2 hours', attempted_by = '{gone}'
		WHERE args->>'event_id' = $1`, event.String())
	return event, hook
}

// recordClaimed records an attempt made under a claim of two hours ago.
func recordClaimed(t *testing.T, b *testBundle, event, hook webhook.ID, reason webhook.Reason, status webhook.Status) {
	t.Helper()
	err := postgres.RecordAttempts(t.Context(), b.db, []webhook.Attempt{{
		ID: b.newID(), EventID: event, WebhookID: hook, Tenant: "acme", Number: 1, Instance: "gone",
		StartedAt: b.cfg.Clock.Now(), Reason: reason, Status: status,
	}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// wantEnd looks for the record of an end without a request.
func wantEnd(t *testing.T, b *testBundle, event webhook.ID, reason webhook.Reason, status webhook.Status) {
	t.Helper()
	attempts, err := postgres.Attempts(t.Context(), b.db, event, postgres.AttemptsFilter{Limit: 10})
	if err != nil || len(attempts) != 1 || attempts[0].Number != 0 || attempts[0].Reason != reason || attempts[0].Status != status || attempts[0].Tenant != "acme" {
		t.Errorf("on record is %+v, %v; want an end as %s, %s", attempts, err, reason, status)
	}
}

func TestRiversScheduler(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"retryable", "scheduled"} {
		t.Run("WakesTheLaneOfA_"+state+"_JobWhenItIsDue", func(t *testing.T) {
			t.Parallel()
			b := newRiver(t, pgtest.New(t), "client-1")
			event := b.insert(t, b.newID(), 1)[0]
			// Beyond what River's scheduler looks ahead at its first run.
			b.execOne(t, `UPDATE fairhook.river_job SET state = $1::fairhook.river_job_state, attempt = 1, scheduled_at = now() + interval '7 seconds'`, state)
			due := scan[time.Time](t, b.testBundle, `SELECT scheduled_at FROM fairhook.river_job`)
			b.start(t)
			got := b.awaitWorked(t, 1)
			if got[0].event != event || got[0].at.Before(due) {
				t.Errorf("worked %+v, want %s not before %s", got, event, due)
			}
		})
	}
}

func TestRiversCleanerRemovesEndedDeliveriesPastRetention(t *testing.T) {
	t.Parallel()
	b := newRiver(t, pgtest.New(t), "client-1")
	b.insert(t, b.newID(), 4)
	if _, err := b.db.Exec(t.Context(), `
		UPDATE fairhook.river_job SET state = CASE id % 2 WHEN 0 THEN 'cancelled' ELSE 'discarded' END::fairhook.river_job_state,
		       finalized_at = now() - make_interval(hours => CASE WHEN id <= (SELECT min(id) + 1 FROM fairhook.river_job) THEN 25 ELSE 23 END)`); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	await(t, "what is past retention is gone", func() bool {
		return scan[int](t, b.testBundle, `SELECT count(*) FROM fairhook.river_job WHERE finalized_at < now() - interval '24 hours'`) == 0
	})
	if n := scan[int](t, b.testBundle, `SELECT count(*) FROM fairhook.river_job`); n != 2 {
		t.Errorf("%d of the 2 that are within retention are left", n)
	}
}

func TestRiversRetryWaitsUntilTheWorkersNextRetry(t *testing.T) {
	t.Parallel()
	b := newRiver(t, pgtest.New(t), "client-1")
	var due time.Time // guarded by b.mu, like all that answer does
	b.answer = func(n int, j *river.Job[job.Delivery]) error {
		if n > 1 {
			return nil
		}
		due = b.cfg.Clock.Now().Add(8 * time.Second).Truncate(time.Microsecond)
		j.Args.RetryAt = due
		return fmt.Errorf("attempt failed")
	}
	event := b.insert(t, b.newID(), 1)[0]
	b.start(t)
	b.awaitWorked(t, 1)
	await(t, "the delivery waits for its retry", func() bool {
		return scan[int](t, b.testBundle, `SELECT count(*) FROM fairhook.river_job WHERE state = 'retryable' AND attempt = 1`) == 1
	})
	if at := scan[time.Time](t, b.testBundle, `SELECT scheduled_at FROM fairhook.river_job`); !at.Equal(due) {
		t.Errorf("the retry is due at %s, want the worker's %s", at, due)
	}
	got := b.awaitWorked(t, 2)
	if got[1].event != event || got[1].attempt != 2 || got[1].at.Before(due) {
		t.Errorf("worked again %+v, want attempt 2 not before %s", got[1], due)
	}
}

func TestRiversLeaderElection(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	runs := make(chan string, 1000)
	clients := map[string]*riverBundle{}
	for _, id := range []string{"client-1", "client-2"} {
		b := newRiver(t, database, id)
		b.cfg.Duties = []Duty{{Name: "test", Interval: 50 * time.Millisecond, Timeout: time.Second, Run: func(context.Context) error {
			select {
			case runs <- id:
			default:
			}
			return nil
		}}}
		clients[id] = b
		b.start(t)
	}
	next := func() string {
		t.Helper()
		select {
		case id := <-runs:
			return id
		case <-time.After(30 * time.Second):
			t.Fatal("nobody does the leader's duties for 30 s")
			return ""
		}
	}
	leader := next()
	for range 20 { // about a second of duties
		if id := next(); id != leader {
			t.Fatalf("%s does the leader's duties while %s leads", id, leader)
		}
	}
	if id := scan[string](t, clients[leader].testBundle, `SELECT leader_id FROM fairhook.river_leader`); id != leader {
		t.Errorf("River's leader is %s, and %s does the duties", id, leader)
	}
	clients[leader].stop()
	for len(runs) > 0 {
		<-runs
	}
	if id := next(); id == leader {
		t.Errorf("%s has stopped and still does the duties", id)
	}
}

func TestCancellingByHandPutsTheEndOnRecord(t *testing.T) {
	t.Parallel()
	b := newRiver(t, pgtest.New(t), "client-1") // which is not started: the delivery waits
	event := b.insert(t, b.newID(), 1)[0]
	id := scan[int64](t, b.testBundle, `SELECT id FROM fairhook.river_job`)
	for range 2 { // once is as good as twice
		cancelled, err := b.client.JobCancel(t.Context(), id)
		if err != nil || cancelled.State != "cancelled" {
			t.Fatalf("%+v, %v", cancelled, err)
		}
		wantEnd(t, b.testBundle, event, webhook.ReasonCancelled, webhook.StatusCancelled)
	}
	if _, err := b.client.JobCancel(t.Context(), id+1); err == nil {
		t.Error("a job that does not exist was cancelled")
	}
	// In a transaction of the caller's the record goes with it.
	other := b.insert(t, b.newID(), 1)[0]
	tx, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.JobCancelTx(t.Context(), tx, scan[int64](t, b.testBundle, `SELECT max(id) FROM fairhook.river_job`)); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if attempts, err := postgres.Attempts(t.Context(), b.db, other, postgres.AttemptsFilter{Limit: 1}); err != nil || len(attempts) != 0 {
		t.Errorf("a cancel that was rolled back left %+v, %v", attempts, err)
	}
}
