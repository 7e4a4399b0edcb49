package dispatch

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	testTenant = "acme"
	testWait   = 25 * time.Second
)

// testBundle is a database, and dispatchers on it that end with the test.
type testBundle struct {
	t     *testing.T
	db    *pgxpool.Pool
	url   string
	clock *postgres.Clock
	box   *seal.Box
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	database := pgtest.New(t)
	clock, err := postgres.NewClock(t.Context(), database.Pool)
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.ParseKey(base64.StdEncoding.EncodeToString(make([]byte, seal.KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	return &testBundle{t: t, db: database.Pool, url: database.URL, clock: clock, box: seal.New(key)}
}

// process is one running dispatcher.
type process struct {
	*Dispatcher
	stop func() error
}

// config is what a dispatcher on the database needs.
func (b *testBundle) config(change ...func(*Config)) Config {
	b.t.Helper()
	guard, err := egress.New(egress.Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		b.t.Fatal(err)
	}
	cfg := Config{
		DatabaseURL: b.url, Instance: daemon.NewInstanceID(), Version: "test", Workers: 200,
		Guard: guard, Box: b.box, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	}
	for _, c := range change {
		c(&cfg)
	}
	return cfg
}

// start runs a dispatcher until the test ends or stop is called.
func (b *testBundle) start(change ...func(*Config)) *process {
	b.t.Helper()
	cfg := b.config(change...)
	d, err := New(b.t.Context(), cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stages := daemon.NewStages(cfg.Logger, 30*time.Second)
	d.Add(stages)
	done := make(chan error, 1)
	go func() { done <- stages.Run(ctx) }()
	stop := sync.OnceValue(func() error { cancel(); return <-done })
	b.t.Cleanup(func() {
		if err := stop(); err != nil {
			b.t.Errorf("the dispatcher did not stop in order: %v", err)
		}
	})
	b.eventually("the dispatcher works", func() bool { return d.Working(ctx) == nil })
	return &process{d, stop}
}

// hook stores a webhook with one secret.
func (b *testBundle) hook(url string, change ...func(*webhook.Webhook)) *webhook.Webhook {
	b.t.Helper()
	w := &webhook.Webhook{
		ID: webhook.NewID(b.clock.Now()), Tenant: testTenant, URL: url, EventTypes: []string{"*"},
		State: webhook.StateActive, Headers: map[string]webhook.Secret{}, TimeoutSeconds: 5,
		MaxInFlight: webhook.DefaultMaxInFlight, RetrySchedule: []int{1, 1}, MaxAgeSeconds: webhook.DefaultMaxAgeSeconds,
		MaxBacklog: webhook.DefaultMaxBacklog, AllowedCIDRs: []string{},
	}
	for _, c := range change {
		c(w)
	}
	if err := postgres.InsertWebhook(b.t.Context(), b.db, w); err != nil {
		b.t.Fatal(err)
	}
	sealed := b.box.Seal([]byte(signature.NewSecret().Reveal()), w.ID.String())
	if err := postgres.InsertSecret(b.t.Context(), b.db, w.ID, &postgres.Secret{ID: webhook.NewID(b.clock.Now()), Sealed: sealed}); err != nil {
		b.t.Fatal(err)
	}
	return w
}

// submit accepts n events for a webhook as ingest does, and returns their ids.
func (b *testBundle) submit(w *webhook.Webhook, n int) []webhook.ID {
	b.t.Helper()
	return b.submitAt(w, n, b.clock.Now())
}

// submitAt is submit at a moment of the past.
func (b *testBundle) submitAt(w *webhook.Webhook, n int, moment time.Time) []webhook.ID {
	b.t.Helper()
	events, hooks := make([]webhook.ID, n), make([]webhook.ID, n)
	for i := range n {
		events[i], hooks[i] = webhook.NewID(moment), w.ID
	}
	_, err := b.db.Exec(b.t.Context(), `
		WITH accepted AS (
			INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids)
			SELECT id, $3, 'order.paid', '{"a": 1}', ARRAY[$4::uuid] FROM unnest($1::uuid[]) AS e (id) RETURNING id, ordering_key
		) `+fairqueue.InsertSQL(1, 2), events, hooks, w.Tenant, w.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, payload := range fairqueue.Notifications([]webhook.ID{w.ID}) {
		if _, err := b.db.Exec(b.t.Context(), `SELECT pg_notify($1, $2)`, fairqueue.NotifyChannel, payload); err != nil {
			b.t.Fatal(err)
		}
	}
	return events
}

// attempts reads an event's attempts, oldest first.
func (b *testBundle) attempts(event webhook.ID) []webhook.Attempt {
	b.t.Helper()
	attempts, err := postgres.Attempts(b.t.Context(), b.db, event, postgres.AttemptsFilter{Limit: 100})
	if err != nil && !postgres.Unavailable(err) {
		b.t.Fatal(err)
	}
	return attempts // none while the database is away
}

// ended waits for a delivery's end and returns its attempts.
func (b *testBundle) ended(event webhook.ID) []webhook.Attempt {
	b.t.Helper()
	return b.endedWithin(event, testWait)
}

func (b *testBundle) endedWithin(event webhook.ID, limit time.Duration) []webhook.Attempt {
	b.t.Helper()
	var attempts []webhook.Attempt
	b.within(limit, "event "+event.String()+" ends", func() bool {
		attempts = b.attempts(event)
		return len(attempts) > 0 && attempts[len(attempts)-1].Status.Terminal()
	})
	return attempts
}

func (b *testBundle) count(sql string, args ...any) (n int) {
	b.t.Helper()
	if err := b.db.QueryRow(b.t.Context(), sql, args...).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

func (b *testBundle) eventually(what string, is func() bool) {
	b.t.Helper()
	b.within(testWait, what, is)
}

func (b *testBundle) within(limit time.Duration, what string, is func() bool) {
	b.t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline:
			b.t.Fatalf("waited %s in vain: %s", limit, what)
		case <-tick.C:
		}
	}
}

// receiver is a real server that remembers what it got.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	got  []*http.Request
	body []string
}

func newReceiver(t *testing.T, answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		r.got = append(r.got, req)
		r.body = append(r.body, string(body))
		r.mu.Unlock()
		answer(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func answer(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func TestDispatcherDelivers(t *testing.T) {
	t.Parallel()

	t.Run("SendsAnEventAndRecordsTheAttempt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "thanks") })
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.Headers = map[string]webhook.Secret{"X-Shop": webhook.NewSecret("1")} })
		p := b.start()
		event := b.submit(w, 1)[0]
		attempts := b.ended(event)
		if len(attempts) != 1 {
			t.Fatalf("%d attempts, want 1", len(attempts))
		}
		a := attempts[0]
		if a.Number != 1 || a.Reason != webhook.ReasonDelivered || a.Status != webhook.StatusDelivered || *a.StatusCode != 200 ||
			a.Instance != p.cfg.Instance || *a.Response != "thanks" || a.NextAttemptAt != nil {
			t.Errorf("recorded %+v", a)
		}
		if a.Timings.QueueWait == nil || a.Timings.Connect == nil || a.Timings.Total == nil || *a.Timings.Total <= 0 {
			t.Errorf("recorded timings %+v", a.Timings)
		}
		req := r.got[0]
		if r.body[0] != `{"a": 1}` || req.Header.Get("webhook-id") != event.String() || req.Header.Get("fairhook-event-type") != "order.paid" ||
			req.Header.Get("fairhook-attempt") != "1" || req.Header.Get("X-Shop") != "1" || req.Header.Get("User-Agent") != "Fairhook/test" {
			t.Errorf("the receiver saw %q with %v", r.body[0], req.Header)
		}
		b.eventually("the job is gone", func() bool { return b.count(`SELECT count(*) FROM fairhook.river_job`) == 0 })
	})

	t.Run("FindsWhatWasWaitingBeforeItStartedWithoutANotification", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(204))
		event := b.submit(b.hook(r.URL), 1)[0]
		b.start()
		b.ended(event)
	})

	t.Run("RetriesOnTheScheduleAndEndsAsExhausted", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(500))
		event := b.submit(b.hook(r.URL), 1)[0]
		b.start()
		attempts := b.ended(event)
		if len(attempts) != 3 {
			t.Fatalf("%d attempts, want 3 for a schedule of two waits", len(attempts))
		}
		for i, a := range attempts {
			last := i == 2
			if a.Number != i+1 || a.Reason != webhook.ReasonServerError || (a.Status == webhook.StatusExhausted) != last || (a.NextAttemptAt == nil) != last {
				t.Errorf("attempt %d was recorded as %+v", i+1, a)
			}
			if i > 0 && a.StartedAt.Before(*attempts[i-1].NextAttemptAt) {
				t.Errorf("attempt %d began at %s, before it was due at %s", i+1, a.StartedAt, attempts[i-1].NextAttemptAt)
			}
		}
		b.eventually("River has discarded the job", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'discarded'`) == 1
		})
	})

	t.Run("SucceedsOnALaterAttemptWithTheSameID", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var n atomic.Int32
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			if n.Add(1) == 1 {
				w.WriteHeader(500)
			}
		})
		event := b.submit(b.hook(r.URL), 1)[0]
		b.start()
		attempts := b.ended(event)
		if len(attempts) != 2 || attempts[1].Status != webhook.StatusDelivered {
			t.Fatalf("recorded %+v", attempts)
		}
		if first, second := r.got[0].Header.Get("webhook-id"), r.got[1].Header.Get("webhook-id"); first != second {
			t.Errorf("the retry has another id: %s, %s", first, second)
		}
		if r.got[1].Header.Get("fairhook-attempt") != "2" {
			t.Errorf("the retry says attempt %s", r.got[1].Header.Get("fairhook-attempt"))
		}
	})

	t.Run("ChargesNoStepWhenTheReceiverAsksForTime", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var n atomic.Int32
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			if n.Add(1) <= 2 {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(429)
			}
		})
		// A schedule without retries: any step used would end the delivery.
		event := b.submit(b.hook(r.URL, func(w *webhook.Webhook) { w.RetrySchedule = []int{} }), 1)[0]
		b.start()
		attempts := b.ended(event)
		if len(attempts) != 3 || attempts[2].Status != webhook.StatusDelivered || attempts[2].Number != 3 || attempts[0].Reason != webhook.ReasonRateLimited {
			t.Errorf("recorded %+v", attempts)
		}
	})

	t.Run("HoldsTheWholeLaneWhenTheReceiverAsksForTime", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		})
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight = 1 })
		b.submit(w, 20)
		other := newReceiver(t, answer(200))
		b.start()
		b.eventually("the receiver is asked", func() bool { return r.count() > 0 })
		// Others go on, and by the time these are through, the gated lane has been
		// passed over many times.
		for _, event := range b.submit(b.hook(other.URL), 100) {
			b.ended(event)
		}
		if n := r.count(); n != 1 {
			t.Errorf("a receiver that asked for an hour was asked %d times", n)
		}
	})

	t.Run("TakesTheAnswersToRequestsUnderWayForOneGate", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		const together = 8
		var came, gone atomic.Int64
		// All come before the first is answered, and each is answered after the one
		// before is on record.
		r := newReceiver(t, func(w http.ResponseWriter, req *http.Request) {
			mine := came.Add(1)
			for came.Load() < together || gone.Load() < mine-1 {
				select {
				case <-req.Context().Done():
					return
				case <-time.After(time.Millisecond):
				}
			}
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		events := b.submit(b.hook(r.URL), together)
		b.start()
		b.eventually("all are on record", func() bool {
			n := b.count(`SELECT count(*) FROM fairhook.attempts`)
			gone.Store(int64(n))
			return n == together
		})
		for _, event := range events {
			a := b.attempts(event)[0]
			if wait := a.NextAttemptAt.Sub(a.StartedAt); wait > 2*courier.MinGate {
				t.Errorf("one moment of 503 closed the lane for %s, want about %s", wait, courier.MinGate)
			}
		}
	})

	t.Run("DisablesAWebhookThatIsGoneAndKeepsItsQueue", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var gone atomic.Bool
		gone.Store(true)
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			if gone.Load() {
				w.WriteHeader(410)
			}
		})
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight = 1 })
		events := b.submit(w, 5)
		b.start()
		b.eventually("the webhook is disabled", func() bool {
			now, err := postgres.Webhook(t.Context(), b.db, w.ID)
			return err == nil && now.State == webhook.StateDisabled && *now.DisabledReason == disabledGone
		})
		gone.Store(false)
		if _, err := postgres.SetWebhookState(t.Context(), b.db, w.ID, webhook.StateActive); err != nil {
			t.Fatal(err)
		}
		for _, event := range events {
			if attempts := b.ended(event); attempts[len(attempts)-1].Status != webhook.StatusDelivered {
				t.Errorf("event %s ended as %+v", event, attempts)
			}
		}
	})

	t.Run("WaitsWhileAWebhookIsPausedAndGoesOnWhenItIsResumed", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r, other := newReceiver(t, answer(200)), newReceiver(t, answer(200))
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.State = webhook.StatePaused })
		events := b.submit(w, 3)
		b.start()
		for _, event := range b.submit(b.hook(other.URL), 20) {
			b.ended(event)
		}
		if r.count() != 0 {
			t.Fatal("a paused webhook was sent to")
		}
		if _, err := postgres.SetWebhookState(t.Context(), b.db, w.ID, webhook.StateActive); err != nil {
			t.Fatal(err)
		}
		for _, event := range events {
			b.ended(event)
		}
	})

	t.Run("EndsTheDeliveriesOfADeletedWebhookOnTheRecord", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL)
		event := b.submit(w, 1)[0]
		if _, err := postgres.DeleteWebhook(t.Context(), b.db, w.ID); err != nil {
			t.Fatal(err)
		}
		b.start()
		attempts := b.ended(event)
		if len(attempts) != 1 || attempts[0].Number != 0 || attempts[0].Reason != webhook.ReasonWebhookDeleted || attempts[0].Status != webhook.StatusCancelled {
			t.Errorf("recorded %+v", attempts)
		}
		if r.count() != 0 {
			t.Error("a deleted webhook was sent to")
		}
	})

	t.Run("EndsWhatIsOlderThanItsWebhookAllows", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxAgeSeconds = 60 })
		old := webhook.NewID(b.clock.Now().Add(-2 * time.Minute))
		_, err := b.db.Exec(t.Context(), `
			WITH accepted AS (INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids)
				VALUES ($3, 'acme', 'order.paid', '{}', '{}') RETURNING id, ordering_key) `+fairqueue.InsertSQL(1, 2),
			[]webhook.ID{old}, []webhook.ID{w.ID}, old)
		if err != nil {
			t.Fatal(err)
		}
		b.start()
		attempts := b.ended(old)
		if attempts[0].Reason != webhook.ReasonExpired || attempts[0].Status != webhook.StatusExhausted || attempts[0].Number != 0 || r.count() != 0 {
			t.Errorf("recorded %+v after %d requests", attempts, r.count())
		}
	})

	t.Run("EndsADeliveryThatKilledItsDispatcherEveryTime", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		event := b.submit(b.hook(r.URL), 1)[0] // two retries: three attempts
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.river_job SET attempt = 3`); err != nil {
			t.Fatal(err)
		}
		b.start()
		attempts := b.ended(event)
		if attempts[0].Reason != webhook.ReasonCrashed || attempts[0].Status != webhook.StatusExhausted || r.count() != 0 {
			t.Errorf("recorded %+v after %d requests", attempts, r.count())
		}
	})

	t.Run("MakesOneLastAttemptWhenTheScheduleWasShortenedMeanwhile", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(500))
		hook := b.hook(r.URL, func(w *webhook.Webhook) { w.RetrySchedule = []int{1, 3, 3, 3} })
		event := b.submit(hook, 1)[0]
		b.start()
		b.eventually("there are two attempts", func() bool { return len(b.attempts(event)) == 2 })
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhooks SET retry_schedule_seconds = '{}' WHERE id = $1`, hook.ID); err != nil {
			t.Fatal(err)
		}
		attempts := b.ended(event)
		if last := attempts[len(attempts)-1]; len(attempts) != 3 || last.Number != 3 || last.Reason != webhook.ReasonServerError || last.Status != webhook.StatusExhausted {
			t.Errorf("ended after %d attempts as %s, %s; want a third that failed", len(attempts), last.Status, last.Reason)
		}
	})

	t.Run("RefusesAPrivateAddressAlsoIfTheWebhookIsAlreadyThere", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		event := b.submit(b.hook("http://10.0.0.1/", func(w *webhook.Webhook) { w.RetrySchedule = []int{} }), 1)[0]
		b.start()
		a := b.ended(event)[0]
		if a.Reason != webhook.ReasonBlocked || a.Response != nil || a.Detail != nil && strings.Contains(*a.Detail, "10.0.0.1") {
			t.Errorf("recorded %+v", a)
		}
	})

	t.Run("RecordsTheEndOfAnEventThatIsPastItsRetention", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		event := b.submit(b.hook("http://127.0.0.1:1/"), 1)[0]
		if _, err := b.db.Exec(t.Context(), `DELETE FROM fairhook.events`); err != nil {
			t.Fatal(err)
		}
		b.start()
		if a := b.ended(event)[0]; a.Reason != webhook.ReasonEventMissing || a.Status != webhook.StatusDropped {
			t.Errorf("recorded %+v", a)
		}
	})
}

func TestDispatcherIsFair(t *testing.T) {
	t.Parallel()

	t.Run("SendsToAQuietWebhookWhileAnotherHangs", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		release := make(chan struct{})
		hanging := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) {
			select {
			case <-release:
			case <-req.Context().Done():
			}
		})
		t.Cleanup(func() { close(release) })
		b.submit(b.hook(hanging.URL, func(w *webhook.Webhook) { w.MaxInFlight = 10 }), 500)
		b.start(func(c *Config) { c.Workers = 20; c.Drain = time.Second })
		b.eventually("the hanging webhook holds all it may", func() bool { return hanging.count() == 10 })
		quiet := newReceiver(t, answer(200))
		for _, event := range b.submit(b.hook(quiet.URL), 50) {
			b.ended(event)
		}
		if n := hanging.count(); n != 10 {
			t.Errorf("the hanging webhook has %d requests in flight over its cap of 10", n)
		}
	})

	t.Run("KeepsAReceiversConcurrencyWithinItsCapOverTwoDispatchers", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var now, most atomic.Int32
		r := newReceiver(t, func(http.ResponseWriter, *http.Request) {
			n := now.Add(1)
			defer now.Add(-1)
			for {
				seen := most.Load()
				if n <= seen || most.CompareAndSwap(seen, n) {
					return
				}
			}
		})
		b.start()
		b.start()
		b.eventually("both know of each other", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.instances`) == 2
		})
		for _, event := range b.submit(b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight = 4 }), 200) {
			b.ended(event)
		}
		if most.Load() > 4 {
			t.Errorf("%d requests at once, the cap is 4", most.Load())
		}
	})
}

func TestDispatcherStops(t *testing.T) {
	t.Parallel()

	t.Run("LetsRunningRequestsFinish", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		release := make(chan struct{})
		r := newReceiver(t, func(http.ResponseWriter, *http.Request) { <-release })
		event := b.submit(b.hook(r.URL), 1)[0]
		p := b.start()
		b.eventually("the request is under way", func() bool { return r.count() == 1 })
		stopped := make(chan error, 1)
		go func() { stopped <- p.stop() }()
		b.eventually("the dispatcher takes nothing new", func() bool { return p.Working(t.Context()) != nil })
		close(release)
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		if a := b.ended(event); len(a) != 1 || a[0].Status != webhook.StatusDelivered {
			t.Errorf("recorded %+v", a)
		}
		if n := b.count(`SELECT count(*) FROM fairhook.instances`) + b.count(`SELECT count(*) FROM fairhook.river_job`); n != 0 {
			t.Errorf("%d rows of the stopped instance are left", n)
		}
	})

	t.Run("GivesBackUncountedWhatDoesNotFinishInTime", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		release := make(chan struct{})
		r := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) {
			select {
			case <-release:
			case <-req.Context().Done():
			}
		})
		t.Cleanup(func() { close(release) })
		b.submit(b.hook(r.URL, func(w *webhook.Webhook) { w.TimeoutSeconds = 60 }), 1)
		p := b.start(func(c *Config) { c.Drain = 200 * time.Millisecond })
		b.eventually("the request is under way", func() bool { return r.count() == 1 })
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
		if n := b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'available' AND attempt = 0`); n != 1 {
			t.Error("the delivery is not back in its lane, or was charged an attempt")
		}
		if n := b.count(`SELECT count(*) FROM fairhook.attempts`); n != 0 {
			t.Errorf("%d attempts are on record, for a request without an outcome", n)
		}
	})
}

func TestDispatcherCancelsARunningDelivery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
	event := b.submit(b.hook(r.URL, func(w *webhook.Webhook) { w.TimeoutSeconds = 100 }), 1)[0]
	p := b.start()
	b.eventually("the request is under way", func() bool { return r.count() == 1 })
	started := time.Now()
	if _, err := p.client.JobCancel(t.Context(), int64(b.count(`SELECT id FROM fairhook.river_job`))); err != nil {
		t.Fatal(err)
	}
	attempts := b.ended(event)
	if len(attempts) != 1 || attempts[0].Reason != webhook.ReasonCancelled || attempts[0].Status != webhook.StatusCancelled {
		t.Errorf("recorded %+v", attempts)
	}
	// A second is promised, on a machine that is not busy with other tests.
	if took := time.Since(started); took > 4*time.Second {
		t.Errorf("the cancel took %s: it was not heard, only found", took)
	}
	b.eventually("River knows that it was cancelled", func() bool {
		return b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'cancelled'`) == 1
	})
}

func TestDispatcherElectsALeaderThatKeepsPartitionsAhead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.db.Exec(t.Context(), `
		DO $$ DECLARE child text; BEGIN
			FOR child IN SELECT format('fairhook.%I_%s', parent, to_char(now() + interval '10 days', 'YYYYMMDD'))
			             FROM unnest(ARRAY['events', 'attempts']) parent LOOP
				EXECUTE 'DROP TABLE ' || child;
			END LOOP;
		END $$`); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	b.start(func(c *Config) { c.Registerer = registry })
	b.eventually("the missing partitions are there", func() bool {
		return b.count(`SELECT count(*) FROM pg_class WHERE relname LIKE '%_' || to_char(now() + interval '10 days', 'YYYYMMDD') AND relkind = 'r'`) == 2
	})
	b.eventually("the metrics say who leads and when each duty was done", func() bool {
		n, err := testutil.GatherAndCount(registry, "fairhook_leader", "fairhook_duty_last_success_timestamp_seconds")
		return err == nil && n == 1+len((&Dispatcher{}).duties())
	})
}

// TestDispatcherTakesOverFromADeadOne shows the whole way: an instance that does
// not beat any more, and another that gives its work back and does it.
func TestDispatcherTakesOverFromADeadOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, answer(200))
	w := b.hook(r.URL)
	events := b.submit(w, 3)
	if _, err := b.db.Exec(t.Context(), `
		UPDATE fairhook.river_job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = '{dead}'`); err != nil {
		t.Fatal(err)
	}
	if _, err := postgres.WriteBeat(t.Context(), b.db, postgres.Beat{ID: "dead", Role: webhook.RoleDispatcher}, time.Minute); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	b.start()
	for _, event := range events {
		b.endedWithin(event, 30*time.Second)
	}
	t.Logf("sent again %s after the last heartbeat", time.Since(died).Round(time.Second))
}

func TestDispatcherSurvivesAnOutageOfTheDatabase(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	db, err := postgres.Open(t.Context(), server.URL("fairhook"), "test", 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	clock, err := postgres.NewClock(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.ParseKey(base64.StdEncoding.EncodeToString(make([]byte, seal.KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	b := &testBundle{t: t, db: db, url: server.URL("fairhook"), clock: clock, box: seal.New(key)}
	release := make(chan struct{})
	r := newReceiver(t, func(http.ResponseWriter, *http.Request) { <-release })
	w := b.hook(r.URL)
	first := b.submit(w, 3)
	b.start()
	b.eventually("three requests are under way", func() bool { return r.count() == 3 })
	server.Kill()
	close(release) // the receiver has answered, and there is nowhere to write it down
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, event := range first {
		if a := b.ended(event); len(a) != 1 || a[0].Status != webhook.StatusDelivered {
			t.Errorf("event %s was recorded as %+v", event, a)
		}
	}
	for _, event := range b.submit(w, 5) {
		b.ended(event)
	}
	if n := r.count(); n != 8 {
		t.Errorf("the receiver got %d requests for 8 events", n)
	}
}

func TestDispatcherMakesUpForAMissingPartition(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, answer(http.StatusOK))
	w := b.hook(r.URL)
	b.start()
	if _, err := b.db.Exec(t.Context(), `DROP TABLE fairhook.attempts_`+b.clock.Now().Format("20060102")); err != nil {
		t.Fatal(err)
	}
	const events = 200
	b.submit(w, events)
	b.eventually("every attempt is on record", func() bool {
		return b.count(`SELECT count(*) FROM fairhook.attempts WHERE status = 'delivered'`) == events
	})
}

func TestDispatcherCancelsADeliveryWhoseAnswerHasBegun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, func(w http.ResponseWriter, req *http.Request) {
		w.WriteHeader(500)
		_ = http.NewResponseController(w).Flush()
		<-req.Context().Done()
	})
	event := b.submit(b.hook(r.URL, func(w *webhook.Webhook) { w.TimeoutSeconds = 100 }), 1)[0]
	p := b.start()
	b.eventually("the request is under way", func() bool { return r.count() == 1 })
	if _, err := p.client.JobCancel(t.Context(), int64(b.count(`SELECT id FROM fairhook.river_job`))); err != nil {
		t.Fatal(err)
	}
	b.eventually("River knows that it was cancelled", func() bool {
		return b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'cancelled'`) == 1
	})
	attempts := b.attempts(event)
	if last := attempts[len(attempts)-1]; last.Reason != webhook.ReasonCancelled || last.Status != webhook.StatusCancelled {
		t.Errorf("nothing is left to do for the delivery, and on record is %+v", last)
	}
}
