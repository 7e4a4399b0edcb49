package postgres_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// failureBundle is a webhook that fails at moments of the test's choice, on a database
// whose dispatchers work without a break from base on.
type failureBundle struct {
	t         *testing.T
	db        *pgxpool.Pool
	announcer *postgres.Announcer
	hook      *webhook.Webhook
	policy    webhook.FailurePolicy
	base      time.Time
}

func setupFailures(t *testing.T, tenant string) *failureBundle {
	t.Helper()
	db := pgtest.DB(t)
	b := &failureBundle{
		t: t, db: db, announcer: postgres.NewAnnouncer(fairqueue.JobInsert()), base: time.Now().Truncate(time.Second),
		hook:   insertWebhook(t, db, tenant),
		policy: webhook.FailurePolicy{DisableAfter: 100 * time.Hour, WarnAfter: time.Hour},
	}
	b.exec(`INSERT INTO fairhook.dispatch_clock (worked, ticked_at) VALUES ('0', $1)`, b.base)
	return b
}

func (b *failureBundle) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.db.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatal(err)
	}
}

// operator adds an operator's webhook.
func (b *failureBundle) operator(patterns ...string) *webhook.Webhook {
	b.t.Helper()
	w := insertWebhook(b.t, b.db, webhook.OperatorTenant)
	b.exec(`UPDATE fairhook.webhooks SET event_types = $2 WHERE id = $1`, w.ID, patterns)
	return w
}

// record says something of the webhook at so long after base, and returns what
// happened, in short.
func (b *failureBundle) record(after time.Duration, change postgres.FailureChange) []string {
	b.t.Helper()
	at := b.base.Add(after)
	change.WebhookID = b.hook.ID
	happened, _, err := b.announcer.Record(b.t.Context(), b.db, postgres.Outcomes{Failures: []postgres.FailureChange{change}}, b.policy, at)
	if err != nil {
		b.t.Fatal(err)
	}
	return short(happened)
}

func (b *failureBundle) fails(after time.Duration) []string {
	b.t.Helper()
	at := b.base.Add(after)
	code := 500
	return b.record(after, postgres.FailureChange{
		FirstFailedAt: at, LastFailedAt: at, Attempts: 1, Reason: webhook.ReasonServerError, StatusCode: &code,
	})
}

// work has the dispatchers be at work until so long after base.
func (b *failureBundle) work(until time.Duration) {
	b.t.Helper()
	b.exec(`UPDATE fairhook.dispatch_clock SET worked = worked + ($1 - ticked_at), ticked_at = $1`, b.base.Add(until))
}

// failsWorking fails after the dispatchers have been at work all the time.
func (b *failureBundle) failsWorking(after time.Duration) []string {
	b.t.Helper()
	b.work(after)
	return b.fails(after)
}

func (b *failureBundle) works(after time.Duration) []string {
	b.t.Helper()
	return b.record(after, postgres.FailureChange{SucceededAt: b.base.Add(after)})
}

func short(happened []webhook.OperationalEvent) (texts []string) {
	for _, e := range happened {
		text := string(e.Type)
		switch data := e.Data.(type) {
		case webhook.FailingData:
			text = fmt.Sprintf("%s %d", text, data.Percent)
		case webhook.DisabledData:
			text += " " + string(data.Reason)
		case webhook.RecoveredData:
			text += " " + string(data.By)
		}
		texts = append(texts, text)
	}
	return texts
}

// stored are the operators' events: type and data.
func (b *failureBundle) stored() (types []string, data []map[string]any) {
	b.t.Helper()
	rows, err := b.db.Query(b.t.Context(), `SELECT type, payload FROM fairhook.events WHERE tenant = $1 ORDER BY id`, webhook.OperatorTenant)
	if err != nil {
		b.t.Fatal(err)
	}
	var (
		eventType string
		payload   []byte
	)
	_, err = pgx.ForEachRow(rows, []any{&eventType, &payload}, func() error {
		var event struct {
			Type      string         `json:"type"`
			Timestamp time.Time      `json:"timestamp"`
			Data      map[string]any `json:"data"`
		}
		if err := json.Unmarshal(payload, &event); err != nil || event.Type != eventType || event.Timestamp.IsZero() {
			b.t.Errorf("payload %s of type %s, error %v", payload, eventType, err)
		}
		types, data = append(types, eventType), append(data, event.Data)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return types, data
}

func (b *failureBundle) jobs() (n int) {
	b.t.Helper()
	if err := b.db.QueryRow(b.t.Context(), `SELECT count(*) FROM fairhook.river_job`).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

func (b *failureBundle) state() webhook.State {
	b.t.Helper()
	w, err := postgres.Webhook(b.t.Context(), b.db, b.hook.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	return w.State
}

func equal(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestAFailingWebhook(t *testing.T) {
	t.Parallel()
	const hour = time.Hour

	t.Run("IsAnnouncedOnceAtEachStepAndThenDisabled", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.operator("webhook.*")
		b.operator("delivery.exhausted") // wants to hear of nothing here
		equal(t, "the first failure", b.fails(0))
		equal(t, "after 59 minutes", b.failsWorking(59*time.Minute))
		equal(t, "after an hour", b.failsWorking(hour), "webhook.failing 0")
		equal(t, "again", b.failsWorking(2*hour))
		equal(t, "after 26 hours", b.failsWorking(26*hour))
		equal(t, "at 50 %", b.failsWorking(50*hour), "webhook.failing 50")
		equal(t, "after 51 hours", b.failsWorking(51*hour))
		equal(t, "at 71 %", b.failsWorking(71*hour), "webhook.failing 70")
		equal(t, "at 90 %", b.failsWorking(90*hour), "webhook.failing 90")
		equal(t, "at 99 %", b.failsWorking(99*hour))
		equal(t, "at 100 %", b.failsWorking(100*hour), "webhook.disabled failing")
		equal(t, "what was under way then", b.failsWorking(100*hour+time.Second))

		w, err := postgres.Webhook(t.Context(), b.db, b.hook.ID)
		if err != nil || w.State != webhook.StateDisabled || w.DisabledReason == nil || !strings.Contains(*w.DisabledReason, "failure") {
			t.Errorf("the webhook is %+v, error %v", w, err)
		}
		types, data := b.stored()
		equal(t, "stored", types, "webhook.failing", "webhook.failing", "webhook.failing", "webhook.failing", "webhook.disabled")
		half := data[1]
		for name, want := range map[string]any{
			"tenant": "acme", "webhook_id": b.hook.ID.String(), "host": "example.com", "percent": 50.0,
			"failing_since": b.base.UTC().Format(time.RFC3339), "failing_seconds": 50 * 3600.0, "failed_attempts": 6.0,
			"last_reason": "server_error", "last_status_code": 500.0, "disables_at": b.base.Add(100 * hour).UTC().Format(time.RFC3339),
		} {
			if half[name] != want {
				t.Errorf("%s is %v, want %v", name, half[name], want)
			}
		}
		if n := b.jobs(); n != 5 {
			t.Errorf("%d deliveries wait, want 5 to the one that subscribes", n)
		}
	})
	t.Run("StartsAfreshWithASuccess", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.fails(0)
		equal(t, "a success before anybody was told", b.works(10*time.Minute))
		b.failsWorking(20 * time.Minute)
		equal(t, "an hour after the first failure", b.failsWorking(hour+time.Minute))
		equal(t, "an hour after the first since", b.failsWorking(hour+20*time.Minute), "webhook.failing 0")
		equal(t, "a success after that", b.works(hour+21*time.Minute), "webhook.recovered delivery")
		equal(t, "another", b.works(hour+22*time.Minute))
		b.failsWorking(2 * hour)
		equal(t, "later", b.failsWorking(3*hour), "webhook.failing 0")
	})
	t.Run("IsNotFailingBeforeASuccessThatIsNotedLate", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.fails(0)
		b.works(30 * time.Minute)
		b.work(61 * time.Minute)
		equal(t, "an attempt that began before the success", b.record(61*time.Minute, postgres.FailureChange{
			FirstFailedAt: b.base.Add(time.Minute), LastFailedAt: b.base.Add(29 * time.Minute), Attempts: 2, Reason: webhook.ReasonTimeout,
		}))
		var since *time.Time
		if err := b.db.QueryRow(t.Context(), `SELECT since FROM fairhook.webhook_failures`).Scan(&since); err != nil || since != nil {
			t.Errorf("it fails since %v, error %v", since, err)
		}
	})
	t.Run("IsNotToldOfStepsThatWerePassedOver", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.policy.DisableAfter = 20 * hour
		b.fails(0)
		equal(t, "at 75 %", b.failsWorking(15*hour), "webhook.failing 70")
		equal(t, "at 80 %", b.failsWorking(16*hour))
		equal(t, "at 125 %", b.failsWorking(25*hour), "webhook.disabled failing")
	})
	t.Run("IsNotDisabledBySilence", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.fails(0)
		equal(t, "nothing was tried for nine days", b.failsWorking(9*24*hour), "webhook.failing 0")
		if b.state() != webhook.StateActive {
			t.Error("it is disabled")
		}
	})
	t.Run("IsNotDisabledByTimeInWhichNoDispatcherRan", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.policy.DisableAfter, b.policy.WarnAfter = hour, 0
		b.fails(0)
		if err := postgres.TickDispatchClock(t.Context(), b.db, b.base.Add(10*time.Minute)); err != nil { // five of which count
			t.Fatal(err)
		}
		equal(t, "five minutes and a day later", b.fails(24*hour))
		if err := postgres.TickDispatchClock(t.Context(), b.db, b.base.Add(24*hour)); err != nil {
			t.Fatal(err)
		}
		equal(t, "ten minutes of work", b.fails(24*hour+time.Second))
		equal(t, "and twenty more", b.failsWorking(24*hour+21*time.Minute), "webhook.failing 50")
	})
	t.Run("StartsAfreshWhenItIsResumedOrHasAnotherURL", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.base = time.Now().Add(-200 * hour) // the database's clock says when somebody saw to it
		b.exec(`UPDATE fairhook.dispatch_clock SET ticked_at = $1`, b.base)
		b.policy.WarnAfter = 0
		b.fails(0)
		equal(t, "at 20 %", b.failsWorking(20*hour))
		for _, change := range []string{`status = 'paused'`, `status = 'active'`} {
			b.exec(`UPDATE fairhook.webhooks SET `+change+` WHERE id = $1`, b.hook.ID)
		}
		const now = 200 * hour
		b.failsWorking(now + time.Minute)
		equal(t, "49 hours later", b.failsWorking(now+26*hour))
		equal(t, "50 % later", b.failsWorking(now+52*hour), "webhook.failing 50")
		b.exec(`UPDATE fairhook.webhooks SET url = url || '/new' WHERE id = $1`, b.hook.ID)
		var since *time.Time
		if err := b.db.QueryRow(t.Context(), `SELECT since FROM fairhook.webhook_failures`).Scan(&since); err != nil || since != nil {
			t.Errorf("with another URL it fails since %v, error %v", since, err)
		}
	})
	t.Run("IsNotDisabledWhileItIsPaused", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.policy = webhook.FailurePolicy{DisableAfter: hour}
		b.fails(0)
		b.exec(`UPDATE fairhook.webhooks SET status = 'paused' WHERE id = $1`, b.hook.ID)
		equal(t, "what was under way", b.failsWorking(2*hour))
		if got := b.state(); got != webhook.StatePaused {
			t.Errorf("it is %s", got)
		}
	})
	t.Run("HasATimeOfItsOwn", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.exec(`UPDATE fairhook.webhooks SET auto_disable_after_seconds = 0 WHERE id = $1`, b.hook.ID)
		b.fails(0)
		for day := range 9 {
			b.failsWorking(time.Duration(day+1) * 24 * hour)
		}
		if b.state() != webhook.StateActive {
			t.Error("one that is never to be disabled is")
		}
		b.exec(`UPDATE fairhook.webhooks SET auto_disable_after_seconds = 60 WHERE id = $1`, b.hook.ID)
		equal(t, "with a minute", b.failsWorking(10*24*hour), "webhook.disabled failing")
	})
	t.Run("IsAnnouncedOnceByManyDispatchers", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.operator("*")
		b.fails(0)
		b.work(60 * time.Minute)
		var all sync.WaitGroup
		for i := range 12 {
			all.Go(func() {
				at := b.base.Add(hour + time.Duration(i)*time.Millisecond)
				_, _, err := b.announcer.Record(t.Context(), b.db, postgres.Outcomes{Failures: []postgres.FailureChange{{
					WebhookID: b.hook.ID, FirstFailedAt: at, LastFailedAt: at, Attempts: 1, Reason: webhook.ReasonTimeout,
				}}}, b.policy, at)
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		types, _ := b.stored()
		equal(t, "stored", types, "webhook.failing")
	})
	t.Run("OfTheOperatorsIsDisabledAndNobodyIsTold", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, webhook.OperatorTenant)
		b.operator("*")
		b.fails(0)
		equal(t, "what happens is in logs and metrics", b.failsWorking(20*hour), "webhook.failing 0")
		for _, after := range []time.Duration{45, 70, 95, 120} {
			b.failsWorking(after * hour)
		}
		if b.state() != webhook.StateDisabled {
			t.Error("it is not disabled")
		}
		if types, _ := b.stored(); len(types) != 0 || b.jobs() != 0 {
			t.Errorf("%q are stored, and %d deliveries wait", types, b.jobs())
		}
	})
	t.Run("IsNobodysNewsWhereNobodySubscribes", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.operator("backlog.growing")
		b.fails(0)
		equal(t, "it happens", b.failsWorking(hour), "webhook.failing 0")
		if types, _ := b.stored(); len(types) != 0 {
			t.Errorf("%q are stored", types)
		}
	})
	t.Run("AndIsGoneIsAnnouncedWithTheAttempt", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.operator("webhook.disabled")
		for range 2 { // as after an unknown commit
			_, _, err := b.announcer.Record(t.Context(), b.db, postgres.Outcomes{
				Disable: []postgres.Disabling{{WebhookID: b.hook.ID, URL: b.hook.URL, Reason: "gone"}},
			}, b.policy, time.Now())
			if err != nil {
				t.Fatal(err)
			}
		}
		types, data := b.stored()
		equal(t, "stored", types, "webhook.disabled")
		if data[0]["reason"] != "gone" || data[0]["failure"] != nil {
			t.Errorf("its data is %v", data[0])
		}
	})
	t.Run("IsForgottenWhenItIsDeleted", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.fails(0)
		b.exec(`DELETE FROM fairhook.webhooks WHERE id = $1`, b.hook.ID)
		equal(t, "what was under way", b.failsWorking(time.Minute))
		var n int
		if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.webhook_failures`).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows are left, error %v", n, err)
		}
	})
}

// TestFailuresDoNotDeadlock has dispatchers record failures and successes of the same
// webhooks while their owners resume them.
func TestFailuresDoNotDeadlock(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	announcer := postgres.NewAnnouncer(fairqueue.JobInsert())
	hooks := make([]*webhook.Webhook, 8)
	for i := range hooks {
		hooks[i] = insertWebhook(t, db, "acme")
	}
	policy := webhook.FailurePolicy{DisableAfter: time.Nanosecond}
	var all sync.WaitGroup
	for side := range 2 {
		all.Go(func() {
			for round := range 40 {
				var o postgres.Outcomes
				for i, w := range hooks {
					now := time.Now()
					change := postgres.FailureChange{WebhookID: w.ID, FirstFailedAt: now, LastFailedAt: now, Attempts: 1, Reason: webhook.ReasonTimeout}
					if (i+round+side)%3 == 0 {
						change = postgres.FailureChange{WebhookID: w.ID, SucceededAt: now}
					}
					o.Failures = append(o.Failures, change)
				}
				if side == 1 {
					slices.Reverse(o.Failures)
				}
				if _, _, err := announcer.Record(t.Context(), db, o, policy, time.Now()); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			}
		})
	}
	all.Go(func() {
		for range 40 {
			for _, w := range hooks {
				if _, err := postgres.SetWebhookState(t.Context(), db, w.ID, webhook.StateActive); err != nil {
					t.Errorf("resume: %v", err)
				}
			}
		}
	})
	all.Wait()
}

// TestFailuresThatComeAndGoDoNotDeadlock has dispatchers record failures and successes
// while the rows of webhooks that work are swept.
func TestFailuresThatComeAndGoDoNotDeadlock(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	announcer := postgres.NewAnnouncer(fairqueue.JobInsert())
	hooks := make([]*webhook.Webhook, 20)
	for i := range hooks {
		hooks[i] = insertWebhook(t, db, "acme")
	}
	var all sync.WaitGroup
	for side := range 6 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(side)))
			for range 150 {
				var o postgres.Outcomes
				for _, w := range hooks {
					now := time.Now()
					switch random.IntN(4) {
					case 0:
						o.Failures = append(o.Failures, postgres.FailureChange{
							WebhookID: w.ID, FirstFailedAt: now, LastFailedAt: now, Attempts: 1, Reason: webhook.ReasonTimeout,
						})
					case 1:
						o.Failures = append(o.Failures, postgres.FailureChange{WebhookID: w.ID, SucceededAt: now})
					}
				}
				if _, _, err := announcer.Record(t.Context(), db, o, webhook.FailurePolicy{}, time.Now()); err != nil {
					t.Errorf("side %d: %v", side, err)
					return
				}
			}
		})
	}
	all.Go(func() {
		for i := range 300 {
			if _, err := db.Exec(t.Context(), `DELETE FROM fairhook.webhook_failures WHERE webhook_id = $1`, hooks[i%len(hooks)].ID); err != nil {
				t.Errorf("sweep: %v", err)
			}
		}
	})
	all.Wait()
}

func TestExhaustedDeliveries(t *testing.T) {
	t.Parallel()
	exhausted := func(b *failureBundle, w *webhook.Webhook, n int) []webhook.Attempt {
		attempts := make([]webhook.Attempt, n)
		for i := range attempts {
			at := b.base.Add(time.Duration(i) * time.Microsecond)
			attempts[i] = webhook.Attempt{
				ID: webhook.NewID(at), EventID: webhook.NewID(at), WebhookID: w.ID, Tenant: w.Tenant, StartedAt: at,
				Reason: webhook.ReasonExpired, Status: webhook.StatusExhausted, Instance: "i",
			}
		}
		return attempts
	}
	record := func(b *failureBundle, attempts []webhook.Attempt) {
		b.t.Helper()
		o := postgres.Outcomes{Attempts: attempts, CountExhausted: true}
		if _, _, err := b.announcer.Record(b.t.Context(), b.db, o, b.policy, b.base); err != nil {
			b.t.Fatal(err)
		}
	}
	announce := func(b *failureBundle, after time.Duration) []string {
		b.t.Helper()
		announced, err := b.announcer.AnnounceExhausted(b.t.Context(), b.db, time.Minute, 3, b.base.Add(time.Minute+after))
		if err != nil {
			b.t.Fatal(err)
		}
		return short(announced)
	}

	t.Run("AreOneEventOfAWebhookAMinute", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.operator("*")
		attempts := exhausted(b, b.hook, 2000)
		record(b, attempts[:1000])
		record(b, attempts[:1000]) // as after an unknown commit: they are on record, and counted
		record(b, attempts[1000:])
		equal(t, "announced", announce(b, 0), "delivery.exhausted")
		equal(t, "again at once", announce(b, time.Second))
		_, data := b.stored()
		if data[0]["deliveries"] != 2000.0 || len(data[0]["event_ids"].([]any)) != webhook.MaxExhaustedSample || data[0]["webhook_id"] != b.hook.ID.String() {
			t.Errorf("its data is %v", data[0])
		}
		record(b, exhausted(b, b.hook, 5))
		equal(t, "more within the minute", announce(b, 59*time.Second))
		equal(t, "after it", announce(b, time.Minute), "delivery.exhausted")
		equal(t, "nothing more", announce(b, 3*time.Minute))
		var n int
		if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.exhausted_deliveries`).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows are left, error %v", n, err)
		}
	})
	t.Run("OfManyWebhooksAreAnnouncedBitByBit", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, "acme")
		b.operator("delivery.*")
		for range 7 {
			record(b, exhausted(b, insertWebhook(t, b.db, "acme"), 2))
		}
		for i, want := range []int{3, 3, 1, 0} {
			if got := announce(b, time.Duration(i)*time.Second); len(got) != want {
				t.Errorf("run %d announces %d, want %d", i, len(got), want)
			}
		}
	})
	t.Run("OfTheOperatorsAreNotCounted", func(t *testing.T) {
		t.Parallel()
		b := setupFailures(t, webhook.OperatorTenant)
		b.operator("*")
		record(b, exhausted(b, b.hook, 3))
		equal(t, "announced", announce(b, 0))
		if types, _ := b.stored(); len(types) != 0 {
			t.Errorf("%q are stored", types)
		}
	})
}

func TestOnlyFairhookWritesTheOperatorsEvents(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	w := insertWebhook(t, db, webhook.OperatorTenant)
	if _, err := db.Exec(t.Context(), `UPDATE fairhook.webhooks SET event_types = '{*}' WHERE id = $1`, w.ID); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		`SELECT fairhook.submit_event('fairhook.operator', 'webhook.failing', '{}'::json)`,
		`SELECT fairhook.submit_event(NULL, 'webhook.failing', '{}'::json, webhook_id => '` + w.ID.String() + `')`,
	} {
		if _, err := db.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "FH403") {
			t.Errorf("%s: error %v", statement, err)
		}
	}
	if _, err := db.Exec(t.Context(), `SELECT fairhook.grant_submit('pg_monitor', 'fairhook.operator')`); err == nil {
		t.Error("a role can be granted the tenant")
	}
	if _, err := db.Exec(t.Context(), `SELECT fairhook.submit_event('acme', 'webhook.failing', '{}'::json)`); err != nil {
		t.Errorf("another tenant's event: %v", err)
	}
}
