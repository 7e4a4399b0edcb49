package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/heartbeat"
	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// instance reads what an instance says of itself; nil if it is not listed.
func (b *testBundle) instance(id string) *webhook.Instance {
	b.t.Helper()
	all, err := postgres.Instances(b.t.Context(), b.db, nil, 10, webhook.StaleAfter)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := range all {
		if all[i].ID == id {
			return &all[i]
		}
	}
	return nil
}

// newHoldingReceiver is a receiver that answers when it is released, at the latest with
// the end of the test.
func newHoldingReceiver(t *testing.T) (r *receiver, release func()) {
	t.Helper()
	released := make(chan struct{})
	release = sync.OnceFunc(func() { close(released) })
	r = newReceiver(t, func(http.ResponseWriter, *http.Request) { <-released })
	t.Cleanup(release) // before the receiver is closed, which waits for its answers
	return r, release
}

// gauge reads a metric without labels.
func gauge(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func TestInstance(t *testing.T) {
	t.Parallel()

	t.Run("ShowsItsLoadAndThatItLeads", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r, release := newHoldingReceiver(t)
		b.submit(b.hook(r.URL), 3)
		p := b.start(func(c *Config) { c.Workers = 77 })
		b.eventually("three requests are under way", func() bool { return r.count() == 3 })
		b.eventually("it says so", func() bool { return b.instance(p.cfg.Instance).InFlight == 3 })
		b.eventually("it leads", func() bool { return b.instance(p.cfg.Instance).Leader })
		if i := b.instance(p.cfg.Instance); i.Capacity != 77 || i.Draining || i.Role != webhook.RoleDispatcher {
			t.Errorf("it says %+v", i)
		}
		release()
	})

	t.Run("DrainsFromTheFirstSignalOnAndCountsUntilItHoldsNothing", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r, release := newHoldingReceiver(t)
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.TimeoutSeconds = 60 })
		leaving := b.start()
		b.submit(w, 1)
		b.eventually("the request is under way", func() bool { return r.count() == 1 })
		registry := prometheus.NewRegistry()
		staying := b.start(func(c *Config) { c.Registerer = registry })
		b.eventually("two share the caps", func() bool { return gauge(t, registry, "fairhook_dispatchers_alive") == 2 })
		stopped := make(chan error, 1)
		go func() { stopped <- leaving.stop() }()
		b.eventually("it drains", func() bool { return b.instance(leaving.cfg.Instance).Draining })
		if i := b.instance(leaving.cfg.Instance); i.InFlight != 1 {
			t.Errorf("it says %+v", i)
		}
		drained := b.instance(leaving.cfg.Instance).HeartbeatAt
		b.eventually("the other has counted since", func() bool { return b.instance(staying.cfg.Instance).HeartbeatAt.After(drained) })
		if n := gauge(t, registry, "fairhook_dispatchers_alive"); n != 2 {
			t.Errorf("%f share the caps, and one that drains has a request under way", n)
		}
		release()
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		b.eventually("one has the caps alone", func() bool { return gauge(t, registry, "fairhook_dispatchers_alive") == 1 })
	})

	t.Run("WaitsUntilTheOthersHaveMadeRoomWhenItJoins", func(t *testing.T) {
		t.Parallel()
		const inFlight, hooks = 4, 8
		b := setup(t)
		var mu sync.Mutex
		now, most := map[string]int{}, 0
		r := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) {
			mu.Lock()
			now[req.URL.Path]++
			most = max(most, now[req.URL.Path])
			mu.Unlock()
			select {
			case <-req.Context().Done():
			case <-time.After(300 * time.Millisecond): // how long the receiver takes
			}
			mu.Lock()
			now[req.URL.Path]--
			mu.Unlock()
		})
		b.start()
		for i := range hooks {
			w := b.hook(r.URL+"/"+string(rune('a'+i)), func(w *webhook.Webhook) { w.MaxInFlight = inFlight })
			b.submit(w, 1000) // more than can be done before the second has joined
		}
		b.eventually("every receiver is at its cap", func() bool {
			mu.Lock()
			defer mu.Unlock()
			busy := 0
			for _, n := range now {
				if n == inFlight {
					busy++
				}
			}
			return busy == hooks
		})
		second := b.start()
		b.eventually("both work", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.attempts WHERE instance = $1`, second.cfg.Instance) > 4*hooks
		})
		mu.Lock()
		defer mu.Unlock()
		if most > inFlight {
			t.Errorf("%d requests at once with a cap of %d", most, inFlight)
		}
		if n := b.count(`SELECT count(DISTINCT instance) FROM fairhook.attempts`); n != 2 {
			t.Errorf("%d of 2 dispatchers worked", n)
		}
	})

	t.Run("DoesNotWaitForLongForOneThatIsDead", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		if _, err := postgres.WriteBeat(t.Context(), b.db, postgres.Beat{ID: "dead", Role: webhook.RoleDispatcher}, time.Minute); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		b.start()
		if took := time.Since(began); took < joinTimeout {
			t.Errorf("it worked after %s, when the other could not know of it", took)
		}
	})
}

// TestAStaleInstanceSendsNothing is about one that was stopped, or cannot say that it
// lives: others may be working what it holds.
func TestAStaleInstanceSendsNothing(t *testing.T) {
	t.Parallel()

	t.Run("AndGivesBackUncountedWhatItHasFetched", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		hook := b.hook(r.URL)
		p := b.start()
		event := webhook.NewID(b.clock.Now())
		if _, err := b.db.Exec(t.Context(), `INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids) VALUES ($1, 'acme', 'a', '{}', '{}')`, event); err != nil {
			t.Fatal(err)
		}
		fresh := false
		w := &worker{
			instance: p.cfg.Instance, catalog: p.catalog, loader: p.loader, recorder: p.recorder, queue: p.queue,
			fresh: func() bool { return fresh }, clients: identity.NewClients(p.cfg.Guard, 0), clock: p.clock,
			logger: p.cfg.Logger, metrics: newMetrics(prometheus.NewRegistry()), gates: p.gates, capacity: p.capacity, health: p.health, failures: p.failures,
		}
		j := &river.Job[job.Delivery]{
			JobRow: &rivertype.JobRow{Attempt: 1, ScheduledAt: b.clock.Now()},
			Args:   job.Delivery{EventID: event, WebhookID: hook.ID},
		}
		var snooze *rivertype.JobSnoozeError
		if err := w.Work(t.Context(), j); !errors.As(err, &snooze) || snooze.Duration != 0 {
			t.Errorf("the worker says %v, want that the delivery goes back at once", err)
		}
		if r.count() != 0 || len(b.attempts(event)) != 0 {
			t.Errorf("the receiver got %d requests, and %d attempts are on record", r.count(), len(b.attempts(event)))
		}
		fresh = true
		if err := w.Work(t.Context(), j); err != nil || r.count() != 1 {
			t.Errorf("once it is heard again: %v, %d requests", err, r.count())
		}
	})

	t.Run("WhileItsHeartbeatCannotBeWritten", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL)
		registry := prometheus.NewRegistry()
		p := b.start(func(c *Config) { c.Registerer = registry })
		b.ended(b.submit(w, 1)[0])
		var event webhook.ID
		err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `LOCK TABLE fairhook.instances IN EXCLUSIVE MODE`); err != nil {
				return err
			}
			b.eventually("its last heartbeat is old", func() bool { return !p.heartbeat.Fresh() })
			if gauge(t, registry, "fairhook_heartbeat_fresh") != 0 {
				t.Error("the metrics do not say so")
			}
			event = b.submit(w, 1)[0]
			// Long enough for a notification, several polls and a discovery.
			select {
			case <-t.Context().Done():
			case <-time.After(1500 * time.Millisecond):
			}
			if n := r.count(); n != 1 {
				t.Errorf("it sent %d requests nevertheless", n-1)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		b.ended(event)
	})
}

// An attempt whose process was stopped with the request under way is recorded after one
// that began later, and the last attempt says how a delivery ended.
func TestAttemptsSortByTheirStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r, release := newHoldingReceiver(t)
	event := b.submit(b.hook(r.URL), 1)[0]
	b.start()
	b.eventually("the request is under way", func() bool { return r.count() == 1 })
	underWay := b.clock.Now()
	b.eventually("some time has passed", func() bool { return b.clock.Now().Sub(underWay) > 5*time.Millisecond })
	release()
	if a := b.ended(event)[0]; !a.ID.Time().Before(underWay) {
		t.Errorf("the attempt's id is of %s, and its request was under way at %s", a.ID.Time(), underWay)
	}
}

// TestNothingIsGivenBackFromTheLivingAfterAnOutage has every heartbeat old, as it is
// when the database comes back.
func TestNothingIsGivenBackFromTheLivingAfterAnOutage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, answer(200))
	giver, err := New(t.Context(), b.config()) // and none of its loops
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(giver.close)
	b.submit(b.hook(r.URL, func(w *webhook.Webhook) { w.State = webhook.StatePaused }), 5)
	if _, err := b.db.Exec(t.Context(), `
		UPDATE fairhook.river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 minute', attempted_by = '{living}'`); err != nil {
		t.Fatal(err)
	}
	if _, err := postgres.WriteBeat(t.Context(), b.db, postgres.Beat{ID: "living", Role: webhook.RoleDispatcher}, time.Minute); err != nil {
		t.Fatal(err)
	}
	outage := func() {
		t.Helper()
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.instances SET heartbeat_at = now() - interval '1 minute' WHERE id = 'living'`); err != nil {
			t.Fatal(err)
		}
	}
	running := func() int { return b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'running'`) }

	// It has only just begun to watch.
	outage()
	giver.giveBackOnce(t.Context())
	if n := running(); n != 5 {
		t.Fatalf("%d of 5 deliveries of a living instance are left to it", n)
	}
	// It has watched for long enough, and then a beat fails.
	db := &faultyQuerier{Querier: b.db}
	watching := heartbeat.New(heartbeat.Config{
		DB: db, Instance: "watching", Role: webhook.RoleDispatcher, Load: func() (int, int) { return 0, 0 },
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- watching.Run(ctx) }()
	defer func() { cancel(); <-left }()
	b.eventually("it has watched for long enough", watching.Observed)
	d := &Dispatcher{cfg: giver.cfg, queue: giver.queue, heartbeat: watching}
	db.setAway(true)
	b.eventually("a beat has failed", func() bool { return !watching.Observed() })
	db.setAway(false)
	outage()
	d.giveBackOnce(t.Context())
	if n := running(); n != 5 {
		t.Errorf("%d of 5 deliveries of a living instance are left to it after an outage", n)
	}
	// One that stays silent is dead.
	b.eventually("the dead one's deliveries are given back", func() bool {
		d.giveBackOnce(t.Context())
		return running() == 0
	})
}

// faultyQuerier is a database that can be away.
type faultyQuerier struct {
	postgres.Querier
	mu   sync.Mutex
	away bool
}

func (f *faultyQuerier) setAway(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

// QueryRow is part of postgres.Querier: what a beat calls.
func (f *faultyQuerier) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return awayRow{}
	}
	return f.Querier.QueryRow(ctx, sql, args...)
}

type awayRow struct{}

// Scan is part of pgx.Row.
func (awayRow) Scan(...any) error { return errors.New("the database is away") }

func TestRetention(t *testing.T) {
	t.Parallel()

	const days = 24 * time.Hour
	// submitOld accepts an event of this age for a webhook.
	submitOld := func(b *testBundle, w *webhook.Webhook, age time.Duration) webhook.ID {
		b.t.Helper()
		moment := b.clock.Now().Add(-age)
		if _, err := b.db.Exec(b.t.Context(), `SELECT fairhook.ensure_partitions(($1::timestamptz AT TIME ZONE 'UTC')::date, ($1::timestamptz AT TIME ZONE 'UTC')::date)`, moment); err != nil {
			b.t.Fatal(err)
		}
		return b.submitAt(w, 1, moment)[0]
	}

	t.Run("EndsWhatIsAliveAndDropsTheDayByTheLeaderAlone", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		// It was paused for longer than events are kept.
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.State, w.MaxAgeSeconds = webhook.StatePaused, webhook.MaxMaxAgeSeconds })
		old, young := submitOld(b, w, 12*days), submitOld(b, w, 9*days)
		registry := prometheus.NewRegistry()
		b.start(func(c *Config) { c.Registerer, c.Retention = registry, 10*days })
		b.eventually("the day is dropped", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.events WHERE id = $1`, old) == 0
		})
		if n := b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'cancelled' AND args->>'event_id' = $1`, old.String()); n != 1 {
			t.Error("the delivery of the event that was dropped has not ended")
		}
		if n := b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'available' AND args->>'event_id' = $1`, young.String()); n != 1 {
			t.Error("the delivery of an event that is younger has ended")
		}
		if n := b.count(`SELECT count(*) FROM fairhook.events WHERE id = $1`, young); n != 1 {
			t.Error("an event that is younger was dropped")
		}
		b.eventually("the metrics say so", func() bool { return gauge(t, registry, "fairhook_retention_overdue_days") == 0 })
		if n := r.count(); n != 0 {
			t.Errorf("%d requests were sent for a paused webhook", n)
		}
	})

	t.Run("LeavesTheRecordOfAnEndUntilItsDayIsOver", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w := b.hook("http://127.0.0.1:1", func(w *webhook.Webhook) { w.State = webhook.StatePaused })
		// Of the same day as one that is kept, whatever the time is.
		midnight := b.clock.Now().UTC().Truncate(days).Add(-9 * days)
		age := b.clock.Now().Sub(midnight)
		event := submitOld(b, w, age)
		p := b.start()
		keep := newRetention(b.db, p.queue, age-time.Millisecond, p.cfg.Logger, prometheus.NewRegistry())
		b.eventually("the event is past retention", func() bool { return b.clock.Now().Sub(event.Time()) > keep.after+10*time.Millisecond })
		if err := keep.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		a := b.attempts(event)
		if len(a) != 1 || a[0].Number != 0 || a[0].Reason != webhook.ReasonEventMissing || a[0].Status != webhook.StatusDropped {
			t.Errorf("recorded %+v", a)
		}
		if testutil.ToFloat64(keep.ended) != 1 || testutil.ToFloat64(keep.dropped) != 0 || testutil.ToFloat64(keep.overdue) != 0 {
			t.Errorf("the metrics say %f ended, %f dropped, %f overdue", testutil.ToFloat64(keep.ended), testutil.ToFloat64(keep.dropped), testutil.ToFloat64(keep.overdue))
		}
	})

	t.Run("SaysWhatItCouldNotDropAndDropsItLater", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		submitOld(b, b.hook("http://127.0.0.1:1", func(w *webhook.Webhook) { w.State = webhook.StatePaused }), 12*days)
		p := b.start()
		keep := newRetention(b.db, p.queue, 10*days, p.cfg.Logger, prometheus.NewRegistry())
		err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `SELECT FROM fairhook.events`); err != nil { // as a backup does
				return err
			}
			if err := keep.Run(t.Context()); err == nil {
				t.Error("the duty counts as done")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n, age := testutil.ToFloat64(keep.overdue), testutil.ToFloat64(keep.oldest); n != 1 || age < days.Seconds() || age > 2*days.Seconds() {
			t.Errorf("the metrics say that %f days are overdue, the oldest for %f s", n, age)
		}
		if err := keep.Run(t.Context()); err != nil || testutil.ToFloat64(keep.overdue) != 0 || testutil.ToFloat64(keep.dropped) != 1 {
			t.Errorf("later: %v, %f overdue, %f dropped", err, testutil.ToFloat64(keep.overdue), testutil.ToFloat64(keep.dropped))
		}
	})

	t.Run("DropsNothingWhenEventsAreKeptForEver", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		event := submitOld(b, b.hook("http://127.0.0.1:1", func(w *webhook.Webhook) { w.State = webhook.StatePaused }), 300*days)
		p := b.start()
		if err := newRetention(b.db, p.queue, 0, p.cfg.Logger, prometheus.NewRegistry()).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := b.count(`SELECT count(*) FROM fairhook.events WHERE id = $1`, event) + b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'available'`); n != 2 {
			t.Error("an event or its delivery is gone")
		}
	})
}
