package dispatch

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// told is an operational event as an operator's receiver gets it.
type told struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      struct {
		Tenant     string     `json:"tenant"`
		WebhookID  webhook.ID `json:"webhook_id"`
		Percent    int        `json:"percent"`
		Reason     string     `json:"reason"`
		By         string     `json:"by"`
		Deliveries int        `json:"deliveries"`
	} `json:"data"`
}

// told are the events that an operator's receiver got.
func (r *receiver) told(t *testing.T) (all []told) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, body := range r.body {
		var e told
		if err := json.Unmarshal([]byte(body), &e); err != nil || e.Timestamp.IsZero() {
			t.Fatalf("%s: %v", body, err)
		}
		if h := r.got[i].Header; h.Get("fairhook-event-type") != e.Type || !strings.HasPrefix(h.Get("webhook-signature"), "v1,") {
			t.Errorf("%s came with %v", e.Type, h)
		}
		all = append(all, e)
	}
	return all
}

func (r *receiver) toldOf(t *testing.T, eventType webhook.OperationalType) (all []told) {
	t.Helper()
	return slices.DeleteFunc(r.told(t), func(e told) bool { return e.Type != string(eventType) })
}

// operator stores an operator's webhook.
func (b *testBundle) operator(url string, change ...func(*webhook.Webhook)) *webhook.Webhook {
	b.t.Helper()
	return b.hook(url, append([]func(*webhook.Webhook){func(w *webhook.Webhook) { w.Tenant = webhook.OperatorTenant }}, change...)...)
}

func (b *testBundle) webhook(id webhook.ID) *webhook.Webhook {
	b.t.Helper()
	w, err := postgres.Webhook(b.t.Context(), b.db, id)
	if err != nil {
		b.t.Fatal(err)
	}
	return w
}

// ask asks for a test of a webhook, and returns it once it has ended.
func (b *testBundle) ask(w *webhook.Webhook) *webhook.Test {
	b.t.Helper()
	id := webhook.NewID(b.clock.Now())
	b.eventually("a test may be asked for", func() (asked bool) {
		err := pgx.BeginFunc(b.t.Context(), b.db, func(tx pgx.Tx) error {
			wait, err := postgres.RequestTest(b.t.Context(), tx, id, w.ID)
			asked = wait == 0
			return err
		})
		if err != nil {
			b.t.Fatal(err)
		}
		return asked
	})
	var test *webhook.Test
	b.eventually("the test ends", func() bool {
		var err error
		if test, err = postgres.Test(b.t.Context(), b.db, w.ID, id); err != nil {
			b.t.Fatal(err)
		}
		return test.FinishedAt != nil
	})
	return test
}

// patient is a webhook that tries every second for a minute.
func patient(w *webhook.Webhook) {
	w.RetrySchedule = slices.Repeat([]int{1}, webhook.MaxRetries)
}

func TestAWebhookThatOnlyFails(t *testing.T) {
	t.Parallel()

	t.Run("IsAnnouncedAndDisabledWithItsQueueKeptAndComesBackWithATest", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var healthy atomic.Bool
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			if !healthy.Load() {
				w.WriteHeader(500)
			}
		})
		operators := newReceiver(t, answer(204))
		b.operator(operators.URL, func(w *webhook.Webhook) { w.EventTypes = []string{"webhook.*"} })
		w := b.hook(r.URL, patient)
		policy := webhook.FailurePolicy{DisableAfter: 4 * time.Second, WarnAfter: 300 * time.Millisecond}
		for range 2 {
			b.start(func(c *Config) { c.NoBreaker, c.Failures = true, policy })
		}
		events := b.submit(w, 10)
		b.eventually("it is announced as disabled", func() bool { return len(operators.toldOf(t, webhook.WebhookDisabled)) > 0 })

		if now := b.webhook(w.ID); now.State != webhook.StateDisabled || now.DisabledReason == nil {
			t.Fatalf("it is %+v", now)
		}
		percents := map[int]int{}
		for _, e := range operators.toldOf(t, webhook.WebhookFailing) {
			percents[e.Data.Percent]++
			if e.Data.Tenant != testTenant || e.Data.WebhookID != w.ID {
				t.Errorf("told of %+v", e.Data)
			}
		}
		if len(percents) == 0 {
			t.Error("nobody was told that it fails")
		}
		for percent, n := range percents {
			if n != 1 || !slices.Contains([]int{0, 50, 70, 90}, percent) {
				t.Errorf("told %d times of %d %%", n, percent)
			}
		}
		if e := operators.toldOf(t, webhook.WebhookDisabled); len(e) != 1 || e[0].Data.Reason != string(webhook.DisabledFailing) {
			t.Errorf("told that it is disabled: %+v", e)
		}
		b.eventually("what was under way is over", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.river_job WHERE queue = $1 AND state = 'running'`, "wh-"+w.ID.String()) == 0
		})
		if n := b.count(`SELECT count(*) FROM fairhook.river_job WHERE queue = $1`, "wh-"+w.ID.String()); n != len(events) {
			t.Errorf("%d deliveries wait, want %d", n, len(events))
		}

		before := r.count()
		if test := b.ask(w); test.Status != webhook.TestStatusFailed || *test.Reason != webhook.ReasonServerError || *test.StatusCode != 500 ||
			test.WebhookState != webhook.StateDisabled || test.Timings.Total == nil {
			t.Errorf("a test that fails is %+v", test)
		}
		if got := r.count() - before; got != 1 {
			t.Errorf("it made %d requests", got)
		}
		healthy.Store(true)
		test := b.ask(w)
		if test.Status != webhook.TestStatusDelivered || test.WebhookState != webhook.StateActive {
			t.Errorf("a test that succeeds is %+v", test)
		}
		for _, event := range events {
			if attempts := b.ended(event); attempts[len(attempts)-1].Status != webhook.StatusDelivered {
				t.Errorf("event %s ended as %+v", event, attempts[len(attempts)-1])
			}
		}
		b.eventually("its return is announced", func() bool { return len(operators.toldOf(t, webhook.WebhookRecovered)) > 0 })
		if e := operators.toldOf(t, webhook.WebhookRecovered); len(e) != 1 || e[0].Data.By != string(webhook.RecoveredTest) {
			t.Errorf("told that it is back: %+v", e)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		i := slices.IndexFunc(r.got, func(req *http.Request) bool { return req.Header.Get("webhook-id") == test.ID.String() })
		if i < 0 || r.got[i].Header.Get("fairhook-event-type") != webhook.TestEventType || !strings.Contains(r.body[i], `"type":"fairhook.test"`) {
			t.Errorf("the receiver did not get the test: %d", i)
		}
	})

	t.Run("IsSentNothingInOrderAfterTheFailureThatDisablesIt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(500))
		var hooks []*webhook.Webhook
		for range 5 {
			w := b.hook(r.URL, strict, func(w *webhook.Webhook) { w.OrderingSkipAfter = new(1) })
			if _, err := b.db.Exec(t.Context(), `
				INSERT INTO fairhook.webhook_failures (webhook_id, since, failed_at, failed_worked, failing_for, attempts, reason)
				VALUES ($1, now() - interval '1 hour', now(), '1 hour', '1 hour', 9, 'timeout')`, w.ID); err != nil {
				t.Fatal(err)
			}
			hooks = append(hooks, w)
			b.submit(w, 2)
		}
		b.start(func(c *Config) { c.NoBreaker, c.Failures = true, webhook.FailurePolicy{DisableAfter: time.Hour} })
		b.eventually("all are disabled, and nothing is under way", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.webhooks WHERE status = 'disabled'`) == len(hooks) &&
				b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'running'`) == 0
		})
		if got := r.count(); got != len(hooks) {
			t.Errorf("the receiver got %d requests for %d webhooks", got, len(hooks))
		}
		if n := b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'available' AND attempt = 0`); n != len(hooks) {
			t.Errorf("%d deliveries wait as they came", n)
		}
	})

	t.Run("IsAnnouncedAsRecoveredByTheFirstSuccess", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var healthy atomic.Bool
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			if !healthy.Load() {
				w.WriteHeader(500)
			}
		})
		operators := newReceiver(t, answer(204))
		b.operator(operators.URL)
		event := b.submit(b.hook(r.URL, patient), 1)[0]
		b.start(func(c *Config) { c.Failures = webhook.FailurePolicy{WarnAfter: 500 * time.Millisecond} })
		b.eventually("it is announced as failing", func() bool { return len(operators.toldOf(t, webhook.WebhookFailing)) > 0 })
		healthy.Store(true)
		b.ended(event)
		b.eventually("it is announced as recovered", func() bool { return len(operators.toldOf(t, webhook.WebhookRecovered)) > 0 })
		if all := operators.told(t); len(all) != 2 || all[1].Data.By != string(webhook.RecoveredDelivery) || all[0].Data.Percent != 0 {
			t.Errorf("told %+v", all)
		}
	})

	t.Run("AccordingToOneDispatcherWorksAccordingToAnother", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL)
		b.start()
		b.ended(b.submit(w, 1)[0]) // it knows the lane
		if _, err := b.db.Exec(t.Context(), `
			INSERT INTO fairhook.webhook_failures (webhook_id, since, failed_at, failed_worked, failing_for, attempts, reason)
			VALUES ($1, now() - interval '1 hour', now(), '1 hour', '1 hour', 9, 'timeout')`, w.ID); err != nil {
			t.Fatal(err)
		}
		b.eventually("a success is noted", func() bool {
			b.ended(b.submit(w, 1)[0])
			return b.count(`SELECT count(*) FROM fairhook.webhook_failures WHERE since IS NULL AND cleared_at IS NOT NULL`) == 1
		})
	})
}

func TestATest(t *testing.T) {
	t.Parallel()

	t.Run("OfAPausedWebhookLeavesItPaused", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.State = webhook.StatePaused })
		b.submit(w, 3)
		b.start()
		if test := b.ask(w); test.Status != webhook.TestStatusDelivered || test.WebhookState != webhook.StatePaused || r.count() != 1 {
			t.Errorf("it is %+v, after %d requests", test, r.count())
		}
	})
	t.Run("ThatSucceedsOpensTheGate", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL)
		now := b.clock.Now()
		gate := postgres.GateChange{WebhookID: w.ID, Cause: postgres.GateReceiver, At: now, Until: now.Add(time.Hour), StartedAt: now}
		if err := postgres.RecordAttempts(t.Context(), b.db, nil, nil, []postgres.GateChange{gate}); err != nil {
			t.Fatal(err)
		}
		event := b.submit(w, 1)[0]
		b.start()
		if test := b.ask(w); test.Status != webhook.TestStatusDelivered {
			t.Errorf("it is %+v", test)
		}
		b.ended(event)
	})
	t.Run("DoesNotReachAPrivateNetwork", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.start()
		if test := b.ask(b.hook("http://10.1.2.3/")); *test.Reason != webhook.ReasonBlocked || test.Response != nil {
			t.Errorf("it is %+v", test)
		}
	})
	t.Run("IsMadeOnceByManyDispatchers", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL)
		for range 3 {
			b.start()
		}
		b.ask(w)
		if r.count() != 1 {
			t.Errorf("%d requests were made", r.count())
		}
	})
}

func TestExhaustedDeliveriesAreOneEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r, operators := newReceiver(t, answer(500)), newReceiver(t, answer(204))
	b.operator(operators.URL, func(w *webhook.Webhook) { w.EventTypes = []string{"delivery.exhausted"} })
	w := b.hook(r.URL, func(w *webhook.Webhook) { w.RetrySchedule = []int{} })
	events := b.submit(w, 30)
	p := b.start(func(c *Config) { c.NoBreaker = true })
	for _, event := range events {
		b.ended(event)
	}
	if err := p.herald.exhausted(t.Context()); err != nil { // the leader may have before
		t.Fatal(err)
	}
	sum := func() (n int) {
		for _, e := range operators.told(t) {
			n += e.Data.Deliveries
		}
		return n
	}
	waiting := func() int {
		return b.count(`SELECT coalesce(sum(deliveries), 0) FROM fairhook.exhausted_deliveries`)
	}
	b.eventually("all are announced, or wait to be", func() bool { return sum()+waiting() == len(events) && sum() > 0 })
	if n := len(operators.told(t)); n != 1 {
		t.Errorf("%d events tell of them", n)
	}
}

func TestAGrowingBacklog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	operators := newReceiver(t, answer(204))
	b.operator(operators.URL, func(w *webhook.Webhook) { w.EventTypes = []string{"backlog.growing"} })
	paused := func(w *webhook.Webhook) { w.State = webhook.StatePaused }
	w := b.hook("http://127.0.0.1:1/", paused)
	small := b.hook("http://127.0.0.1:1/", paused, func(w *webhook.Webhook) { w.MaxBacklog = 10 })
	p := b.start(func(c *Config) { c.BacklogWarning = 40 })
	look := func() {
		t.Helper()
		if err := p.herald.backlogs(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	toldOf := func(w *webhook.Webhook) (n int) {
		for _, e := range operators.told(t) {
			if e.Data.WebhookID == w.ID {
				n++
			}
		}
		return n
	}
	leave := func(n int) {
		t.Helper()
		if _, err := b.db.Exec(t.Context(), `DELETE FROM fairhook.river_job WHERE id IN (
			SELECT id FROM fairhook.river_job WHERE queue = $1 ORDER BY id OFFSET $2)`, "wh-"+w.ID.String(), n); err != nil {
			t.Fatal(err)
		}
	}
	episodes := func() int { return b.count(`SELECT count(*) FROM fairhook.growing_backlogs`) }

	b.submit(w, 39)
	b.submit(small, 4)
	look()
	if n := episodes(); n != 0 {
		t.Fatalf("%d are announced below the number", n)
	}
	b.submit(w, 1)
	b.submit(small, 1) // half of what it may have
	look()
	look()
	b.eventually("both are announced", func() bool { return toldOf(w) == 1 && toldOf(small) == 1 })
	leave(20)
	look()
	if episodes() != 2 {
		t.Error("it is over before half of it has gone")
	}
	b.submit(w, 25)
	look()
	leave(19)
	look()
	if episodes() != 1 {
		t.Error("it is not over when less than half is left")
	}
	b.submit(w, 30)
	look()
	b.eventually("another time is announced", func() bool { return toldOf(w) == 2 && toldOf(small) == 1 })
}

// TestOperationalEventsCauseNone has an operator's webhook fail in every way that there
// is something to tell of.
func TestOperationalEventsCauseNone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	down, failing := newReceiver(t, answer(500)), newReceiver(t, answer(500))
	operator := b.operator(down.URL, patient, func(w *webhook.Webhook) { w.MaxInFlight = 5 })
	impatient := b.operator(down.URL, func(w *webhook.Webhook) { w.RetrySchedule = []int{} })
	gone := newReceiver(t, answer(410))
	b.operator(gone.URL)
	p := b.start(func(c *Config) {
		c.NoBreaker, c.BacklogWarning = true, 1
		c.Failures = webhook.FailurePolicy{DisableAfter: 2 * time.Second, WarnAfter: 100 * time.Millisecond}
	})
	w := b.hook(failing.URL, patient)
	b.submit(w, 5)
	states := func(state webhook.State) int {
		return b.count(`SELECT count(*) FROM fairhook.webhooks WHERE status = $1`, state)
	}
	b.eventually("the webhook, the operator's that fails and the one that is gone are disabled", func() bool {
		return b.webhook(w.ID).State == webhook.StateDisabled && b.webhook(operator.ID).State == webhook.StateDisabled && states(webhook.StateDisabled) >= 3
	})
	b.eventually("deliveries to the operators are exhausted", func() bool {
		return b.count(`SELECT count(*) FROM fairhook.attempts WHERE webhook_id = $1 AND status = 'exhausted'`, impatient.ID) > 0
	})
	for range 2 {
		if err := p.herald.exhausted(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := p.herald.backlogs(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhooks SET status = 'active' WHERE id = $1`, operator.ID); err != nil {
		t.Fatal(err)
	}
	about := b.count(`SELECT count(*) FROM fairhook.events WHERE tenant = $1`, webhook.OperatorTenant)
	others := b.count(`
		SELECT count(*) FROM fairhook.events
		WHERE tenant = $1 AND convert_from(payload, 'UTF8')::jsonb->'data'->>'tenant' IS DISTINCT FROM $2`, webhook.OperatorTenant, testTenant)
	if about == 0 || others != 0 {
		t.Errorf("of %d operational events %d are not about %s's webhook", about, others, testTenant)
	}
	if n := b.count(`SELECT count(*) FROM fairhook.events WHERE tenant = $1 AND type = 'webhook.disabled'`, webhook.OperatorTenant); n != 1 {
		t.Errorf("%d webhooks are announced as disabled", n)
	}
	for _, table := range []string{"exhausted_deliveries", "growing_backlogs"} {
		if n := b.count(`SELECT count(*) FROM fairhook.`+table+` x JOIN fairhook.webhooks w ON w.id = x.webhook_id WHERE w.tenant = $1`, webhook.OperatorTenant); n != 0 {
			t.Errorf("%s has %d rows of the operators", table, n)
		}
	}
}

// TestWhatIsNotedOfFailures is about how often the database hears of them.
func TestWhatIsNotedOfFailures(t *testing.T) {
	t.Parallel()
	id := webhook.ID{1}
	base := time.Unix(1_700_000_000, 0)
	at := func(seconds int) time.Time { return base.Add(time.Duration(seconds) * time.Second) }
	observe := func(f *failures, reason webhook.Reason, second int) *postgres.FailureChange {
		return f.observe(id, reason, nil, at(second), at(second))
	}
	day := webhook.FailurePolicy{DisableAfter: 24 * time.Hour}

	t.Run("NothingOfWebhooksThatWork", func(t *testing.T) {
		t.Parallel()
		f := newFailures(day)
		for i := range 100 {
			if change := observe(f, webhook.ReasonDelivered, i); change != nil {
				t.Fatalf("noted %+v", change)
			}
		}
		if len(f.known) != 0 {
			t.Errorf("knows %v", f.known)
		}
	})
	t.Run("NothingWhereTheTroubleIsOurs", func(t *testing.T) {
		t.Parallel()
		f := newFailures(day)
		for _, reason := range []webhook.Reason{webhook.ReasonProxy, webhook.ReasonInternalError} {
			if change := observe(f, reason, 0); change != nil {
				t.Errorf("%s is noted as %+v", reason, change)
			}
		}
	})
	t.Run("TheFirstFailureAtOnceAndThenTheSumOfEachTenSeconds", func(t *testing.T) {
		t.Parallel()
		f := newFailures(day)
		first := observe(f, webhook.ReasonTimeout, 0)
		if first == nil || first.WebhookID != id || first.Attempts != 1 || first.FirstFailedAt != at(0) {
			t.Fatalf("noted %+v", first)
		}
		for second := 1; second < 10; second++ {
			if change := observe(f, webhook.ReasonReset, second); change != nil {
				t.Fatalf("noted %+v after %d s", change, second)
			}
		}
		next := observe(f, webhook.ReasonConnect, 10)
		if next == nil || next.Attempts != 10 || next.FirstFailedAt != at(1) || next.LastFailedAt != at(10) || next.Reason != webhook.ReasonConnect {
			t.Errorf("noted %+v", next)
		}
	})
	t.Run("ASuccessAtOnceAndThenEachTenSecondsForAsLongAsItIsKnownToFail", func(t *testing.T) {
		t.Parallel()
		f := newFailures(day)
		observe(f, webhook.ReasonTimeout, 0)
		for _, tt := range []struct {
			second int
			noted  bool
		}{{1, true}, {2, false}, {10, false}, {11, true}} {
			change := observe(f, webhook.ReasonDelivered, tt.second)
			if (change != nil) != tt.noted || change != nil && change.SucceededAt != at(tt.second) {
				t.Errorf("after %d s %+v is noted", tt.second, change)
			}
		}
	})
	t.Run("ASuccessOfOneThatAnotherDispatcherSawFail", func(t *testing.T) {
		t.Parallel()
		f := newFailures(day)
		f.learn(id, true, at(0))
		if observe(f, webhook.ReasonDelivered, 1) == nil {
			t.Error("it is not")
		}
		f.learn(id, false, at(60)) // its row is gone
		if change := observe(f, webhook.ReasonDelivered, 70); change != nil {
			t.Errorf("noted %+v", change)
		}
	})
	t.Run("MoreOftenWhereLittleTimeIsAllowed", func(t *testing.T) {
		t.Parallel()
		f := newFailures(webhook.FailurePolicy{DisableAfter: time.Minute, WarnAfter: time.Hour})
		observe(f, webhook.ReasonTimeout, 0)
		if observe(f, webhook.ReasonTimeout, 2) != nil || observe(f, webhook.ReasonTimeout, 3) == nil {
			t.Error("not every 3 s")
		}
	})
	t.Run("NothingOfItsOwnIsKeptForLong", func(t *testing.T) {
		t.Parallel()
		f := newFailures(day)
		observe(f, webhook.ReasonTimeout, 0)
		if got := f.forget(at(600)); len(got) != 0 {
			t.Errorf("forgot %v after ten minutes", got)
		}
		if got := f.forget(at(1300)); !slices.Equal(got, []webhook.ID{id}) || len(f.known) != 0 {
			t.Errorf("forgot %v of %v", got, f.known)
		}
	})
}
