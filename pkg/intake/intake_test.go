package intake

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// bundle is an intake on a database of its own. It does not run until start.
type bundle struct {
	*Intake
	t    *testing.T
	pool *pgxpool.Pool // for looking, and not the intake's own where a test needs that
	stop context.CancelFunc
	ran  chan error
}

func setup(t *testing.T, changes ...func(*Config)) *bundle {
	t.Helper()
	return setupOn(t, pgtest.DB(t), changes...)
}

func setupOn(t *testing.T, pool *pgxpool.Pool, changes ...func(*Config)) *bundle {
	t.Helper()
	clock, err := postgres.NewClock(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Pool: pool, Clock: clock, Registerer: prometheus.NewRegistry()}
	for _, change := range changes {
		change(&cfg)
	}
	b := &bundle{Intake: New(cfg), t: t, pool: pool}
	// Slow machines must not turn a held batch into a stall; tests of stalls set
	// their own.
	b.limits.stall = patience
	b.limits.keyWait = 200 * time.Millisecond
	return b
}

// start runs the intake until the test ends or calls stop and wait.
func (b *bundle) start() *bundle {
	ctx, cancel := context.WithCancel(b.t.Context())
	b.stop, b.ran = cancel, make(chan error, 1)
	go func() { b.ran <- b.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := b.wait(); err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
	return b
}

func (b *bundle) wait() error {
	select {
	case err := <-b.ran:
		b.ran <- err
		return err
	case <-time.After(patience):
		return errors.New("did not return")
	}
}

type result struct {
	receipt Receipt
	err     error
}

// submit submits in the background.
func (b *bundle) submit(item Item) <-chan result {
	return b.submitContext(b.t.Context(), item)
}

func (b *bundle) submitContext(ctx context.Context, item Item) <-chan result {
	answer := make(chan result, 1)
	go func() {
		receipt, err := b.Submit(ctx, item)
		answer <- result{receipt, err}
	}()
	return answer
}

// queue submits in the background and returns when the buffer holds it.
func (b *bundle) queue(item Item) <-chan result {
	b.t.Helper()
	before, _ := b.Depth()
	answer := b.submit(item)
	b.eventually("the event is in the buffer", func() bool {
		events, _ := b.Depth()
		return events > before
	})
	return answer
}

func (b *bundle) receive(answer <-chan result) result {
	b.t.Helper()
	select {
	case r := <-answer:
		return r
	case <-time.After(patience):
		b.t.Fatal("Submit did not return")
		return result{}
	}
}

func (b *bundle) accepted(answer <-chan result) Receipt {
	b.t.Helper()
	r := b.receive(answer)
	if r.err != nil {
		b.t.Fatalf("Submit: %v", r.err)
	}
	return r.receipt
}

func (b *bundle) refused(answer <-chan result, code webhook.Code) *webhook.Error {
	b.t.Helper()
	r := b.receive(answer)
	var e *webhook.Error
	if !errors.As(r.err, &e) || e.Code != code {
		b.t.Fatalf("Submit: got %+v, %v; want an error with code %s", r.receipt, r.err, code)
	}
	return e
}

func (b *bundle) eventually(what string, condition func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			b.t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func query[T any](t *testing.T, q postgres.Querier, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := q.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func (b *bundle) events() int {
	b.t.Helper()
	return query[int](b.t, b.pool, `SELECT count(*) FROM fairhook.events`)
}

func (b *bundle) jobs() int {
	b.t.Helper()
	return query[int](b.t, b.pool, `SELECT count(*) FROM fairhook.river_job`)
}

// hold keeps every commit waiting until release is called.
func (b *bundle) hold() (release func()) {
	b.t.Helper()
	tx, err := b.pool.Begin(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := tx.Exec(b.t.Context(), `LOCK TABLE fairhook.events IN ACCESS EXCLUSIVE MODE`); err != nil {
		b.t.Fatal(err)
	}
	release = sync.OnceFunc(func() { _ = tx.Rollback(context.WithoutCancel(b.t.Context())) })
	b.t.Cleanup(release)
	return release
}

// waitingCommits is how many transactions wait for hold.
func (b *bundle) waitingCommits() int {
	b.t.Helper()
	return query[int](b.t, b.pool, `
		SELECT count(*) FROM pg_locks
		WHERE NOT granted AND relation = 'fairhook.events'::regclass
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
}

func (b *bundle) commits() uint64 {
	b.t.Helper()
	var m dto.Metric
	if err := b.metrics.batchEvents.Write(&m); err != nil {
		b.t.Fatal(err)
	}
	return m.GetHistogram().GetSampleCount()
}

func count(t *testing.T, c prometheus.Counter) int {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return int(m.GetCounter().GetValue())
}

func item(changes ...func(*Item)) Item {
	i := Item{
		Tenant: "acme", Type: "order.paid", Payload: []byte(`{"id": 1}`), ContentType: webhook.ContentTypeJSON,
		WebhookIDs: []webhook.ID{webhook.NewID(time.Now())},
	}
	for _, change := range changes {
		change(&i)
	}
	return i
}

func withKey(key, body string) func(*Item) {
	return func(i *Item) {
		i.Key = &IdempotencyKey{Key: key, Fingerprint: sha256.Sum256([]byte(body))}
	}
}

// bad is an event that Postgres refuses.
func bad(i *Item) { i.Type = "order\x00paid" }

func TestSubmit(t *testing.T) {
	t.Parallel()

	t.Run("StoresTheEventWithAllItsPartsAndOneJobPerWebhook", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		occurred := time.Date(2024, 5, 6, 7, 8, 9, 123456000, time.UTC)
		in := item(func(i *Item) {
			i.ContentType = "application/cloudevents+json"
			i.OccurredAt = &occurred
			i.Metadata = map[string]string{"trace": `a"b\c`, "empty": ""}
			i.WebhookIDs = []webhook.ID{webhook.NewID(time.Now()), webhook.NewID(time.Now())}
		})
		receipt := b.accepted(b.submit(in))
		if receipt.Replayed || fmt.Sprint(receipt.WebhookIDs) != fmt.Sprint(in.WebhookIDs) {
			t.Errorf("receipt %+v", receipt)
		}
		got, err := postgres.Event(t.Context(), b.pool, receipt.ID)
		if err != nil {
			t.Fatal(err)
		}
		want := &webhook.Event{
			ID: receipt.ID, Tenant: in.Tenant, Type: in.Type, Payload: in.Payload, ContentType: in.ContentType,
			OccurredAt: &occurred, Metadata: in.Metadata, WebhookIDs: in.WebhookIDs,
		}
		if fmt.Sprintf("%+v", *got.OccurredAt) != fmt.Sprintf("%+v", occurred) {
			t.Errorf("occurred at %v", *got.OccurredAt)
		}
		got.OccurredAt, want.OccurredAt = nil, nil
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("stored\n%+v, want\n%+v", got, want)
		}
		rows, err := b.pool.Query(t.Context(), `
			SELECT args->>'event_id', args->>'webhook_id', queue FROM fairhook.river_job WHERE kind = $1 ORDER BY id`, job.KindDelivery)
		if err != nil {
			t.Fatal(err)
		}
		jobs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (j [3]string, err error) {
			err = row.Scan(&j[0], &j[1], &j[2])
			return j, err
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, id := range in.WebhookIDs {
			if len(jobs) != 2 || jobs[i] != [3]string{receipt.ID.String(), id.String(), fairqueue.Lane(id)} {
				t.Fatalf("jobs %v", jobs)
			}
		}
	})

	t.Run("StoresAnEventThatMatchesNoWebhook", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		receipt := b.accepted(b.submit(item(func(i *Item) { i.WebhookIDs = nil })))
		if got, err := postgres.Event(t.Context(), b.pool, receipt.ID); err != nil || len(got.WebhookIDs) != 0 {
			t.Errorf("stored %+v, %v", got, err)
		}
		if n := b.jobs(); n != 0 {
			t.Errorf("%d jobs", n)
		}
	})

	t.Run("KeepsPayloadBytesExactly", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		random := make([]byte, 300_000)
		_, _ = rand.Read(random)
		payloads := [][]byte{
			nil,
			{},
			{0},
			[]byte("\xff\xfe\x00\x80"), random,
			[]byte(` { "b":1e400, "a" : 9007199254740993, "a":"\u0000\ud800" }` + "\n"),
			[]byte(`null`), []byte(`\x00`), []byte(`{}`), []byte(`NULL`), []byte(`"\\"`),
		}
		answers := make([]<-chan result, len(payloads))
		for i, payload := range payloads {
			answers[i] = b.submit(item(func(i *Item) { i.Payload = payload }))
		}
		for i, answer := range answers {
			id := b.accepted(answer).ID
			if got := query[[]byte](t, b.pool, `SELECT payload FROM fairhook.events WHERE id = $1`, id); !bytes.Equal(got, payloads[i]) {
				t.Errorf("payload %d: stored %.80q, want %.80q", i, got, payloads[i])
			}
		}
	})

	t.Run("TellsDispatchersWhichLanesHaveWork", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		conn, err := b.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		if _, err := conn.Exec(t.Context(), `LISTEN "`+fairqueue.NotifyChannel+`"`); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = conn.Exec(context.WithoutCancel(t.Context()), `UNLISTEN *`) }()
		in := item()
		b.accepted(b.submit(in))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		n, err := conn.Conn().WaitForNotification(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if want := fairqueue.Notifications(in.WebhookIDs)[0]; n.Payload != want {
			t.Errorf("notified %s, want %s", n.Payload, want)
		}
	})

	t.Run("AnswersOnlyAfterCommit", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		release := b.hold()
		answer := b.submit(item())
		b.eventually("the transaction waits", func() bool { return b.waitingCommits() == 1 })
		select {
		case r := <-answer:
			t.Fatalf("answered before the commit: %+v", r)
		default:
		}
		release()
		id := b.accepted(answer).ID
		if n := query[int](t, b.pool, `SELECT count(*) FROM fairhook.events WHERE id = $1`, id); n != 1 {
			t.Errorf("%d rows when the answer came", n)
		}
	})

	t.Run("FormsBatchesWhileACommitIsUnderWay", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		release := b.hold()
		var answers []<-chan result
		for range 300 {
			answers = append(answers, b.submit(item()))
		}
		b.eventually("all are in the buffer", func() bool { n, _ := b.Depth(); return n == 300 })
		release()
		for _, answer := range answers {
			b.accepted(answer)
		}
		if n := b.commits(); n > 50 {
			t.Errorf("%d transactions for 300 events", n)
		}
		if e, j := b.events(), b.jobs(); e != 300 || j != 300 {
			t.Errorf("%d events, %d jobs", e, j)
		}
	})

	t.Run("OrdersIdsOfABatchBySubmission", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var answers []<-chan result
		for range 50 {
			answers = append(answers, b.queue(item()))
		}
		b.start()
		var last webhook.ID
		for i, answer := range answers {
			id := b.accepted(answer).ID
			if bytes.Compare(id[:], last[:]) <= 0 {
				t.Fatalf("id %d is %s, after %s", i, id, last)
			}
			last = id
		}
	})

	t.Run("CommitsAWideFanOutAlone", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.Committers = 1 })
		wide := item(func(i *Item) {
			i.WebhookIDs = make([]webhook.ID, 6000)
			for n := range i.WebhookIDs {
				i.WebhookIDs[n] = webhook.NewID(time.Now())
			}
		})
		answers := []<-chan result{b.queue(item()), b.queue(wide), b.queue(item())}
		b.start()
		for _, answer := range answers {
			b.accepted(answer)
		}
		if n := b.commits(); n != 3 {
			t.Errorf("%d transactions, want 3", n)
		}
		if n := b.jobs(); n != 6002 {
			t.Errorf("%d jobs", n)
		}
	})

	t.Run("MakesAMissingPartitionAndGoesOn", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var drop []string
		rows, _ := b.pool.Query(t.Context(), `SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'fairhook.events'::regclass`)
		drop, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(drop) == 0 {
			t.Fatal(drop, err)
		}
		if _, err := b.pool.Exec(t.Context(), `DROP TABLE `+strings.Join(drop, ", ")); err != nil {
			t.Fatal(err)
		}
		b.start()
		b.accepted(b.submit(item()))
		if n := b.events(); n != 1 {
			t.Errorf("%d events", n)
		}
	})
}

func TestBadData(t *testing.T) {
	t.Parallel()

	t.Run("FailsAlone", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.Committers = 1 })
		var good, refused []<-chan result
		for i := range 60 {
			if i == 17 || i == 41 {
				refused = append(refused, b.queue(item(bad)))
			} else {
				good = append(good, b.queue(item()))
			}
		}
		b.start()
		for _, answer := range refused {
			if err := b.refused(answer, webhook.CodeInvalid); !strings.Contains(err.Message, "0x00") {
				t.Errorf("message %q does not say what is wrong", err.Message)
			}
		}
		for _, answer := range good {
			b.accepted(answer)
		}
		if e, j := b.events(), b.jobs(); e != 58 || j != 58 {
			t.Errorf("%d events, %d jobs", e, j)
		}
	})

	t.Run("LeavesItsKeyForAnotherEvent", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		first := b.queue(item(bad, withKey("k", "bad")))
		repeat := b.queue(item(bad, withKey("k", "bad")))
		other := b.queue(item(withKey("k", "good")))
		b.start()
		b.refused(first, webhook.CodeInvalid)
		b.refused(repeat, webhook.CodeInvalid)
		if r := b.accepted(other); r.Replayed {
			t.Errorf("receipt %+v", r)
		}
		if events, bytes := b.Depth(); events != 0 || bytes != 0 {
			t.Errorf("%d events, %d bytes left in the buffer", events, bytes)
		}
	})
}

func TestBuffer(t *testing.T) {
	t.Parallel()

	t.Run("RefusesAtOnceWhenItHasTooManyEvents", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.BufferEvents = 3 })
		answers := []<-chan result{b.queue(item()), b.queue(item()), b.queue(item())}
		// Nothing runs: an answer can only come at once.
		if err := b.refused(b.submit(item()), webhook.CodeUnavailable); err.RetryAfter != time.Second {
			t.Errorf("retry after %s", err.RetryAfter)
		}
		if err := b.Ready(t.Context()); err == nil {
			t.Error("ready with a full buffer")
		}
		b.start()
		for _, answer := range answers {
			b.accepted(answer)
		}
		b.accepted(b.submit(item()))
		if err := b.Ready(t.Context()); err != nil {
			t.Errorf("not ready: %v", err)
		}
		if n := b.events(); n != 4 {
			t.Errorf("%d events", n)
		}
	})

	t.Run("RefusesAtOnceWhenItHasTooManyBytes", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.BufferBytes = 100_000 })
		big := func(i *Item) { i.Payload = bytes.Repeat([]byte("x"), 60_000) }
		answer := b.queue(item(big))
		b.refused(b.submit(item(big)), webhook.CodeUnavailable)
		small := b.queue(item())
		b.start()
		b.accepted(answer)
		b.accepted(small)
		b.accepted(b.submit(item(big)))
	})

	t.Run("TakesAnEventLargerThanItselfWhenEmpty", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.BufferBytes, c.BatchBytes = 1000, 1000 }).start()
		b.accepted(b.submit(item(func(i *Item) { i.Payload = make([]byte, 50_000) })))
	})

	t.Run("ForgetsAnEventWhoseCallerLeftBeforeItWasTaken", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		ctx, cancel := context.WithCancel(t.Context())
		answer := b.submitContext(ctx, item(withKey("k", "1")))
		b.eventually("it is in the buffer", func() bool { n, _ := b.Depth(); return n == 1 })
		cancel()
		if err := b.refused(answer, webhook.CodeUnavailable); errors.Is(err, ErrOutcomeUnknown) {
			t.Error("the outcome is known")
		}
		again := b.queue(item(withKey("k", "2")))
		b.start()
		b.accepted(again)
		if n := b.events(); n != 1 {
			t.Errorf("%d events", n)
		}
		if events, bytes := b.Depth(); events != 0 || bytes != 0 {
			t.Errorf("%d events, %d bytes left in the buffer", events, bytes)
		}
	})

	t.Run("StoresAnEventWhoseCallerLeftDuringTheCommit", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		release := b.hold()
		ctx, cancel := context.WithCancel(t.Context())
		answer := b.submitContext(ctx, item())
		b.eventually("the transaction waits", func() bool { return b.waitingCommits() == 1 })
		cancel()
		if r := b.receive(answer); !errors.Is(r.err, ErrOutcomeUnknown) {
			t.Errorf("got %+v", r)
		}
		release()
		b.eventually("the event is stored", func() bool { return b.events() == 1 })
	})

	t.Run("FillsBatchesWithinTheirBounds", func(t *testing.T) {
		t.Parallel()
		clock, err := postgres.NewClock(t.Context(), pgtest.DB(t))
		if err != nil {
			t.Fatal(err)
		}
		rapid.Check(t, func(rt *rapid.T) {
			in := New(Config{
				Clock:           clock,
				BatchEvents:     rapid.IntRange(1, 8).Draw(rt, "batch events"),
				BatchBytes:      rapid.Int64Range(600, 5000).Draw(rt, "batch bytes"),
				BatchDeliveries: rapid.IntRange(1, 10).Draw(rt, "batch deliveries"),
			})
			var order, waiting []*pending
			for range rapid.IntRange(0, 40).Draw(rt, "events") {
				p := newPending(Item{
					Payload:    make([]byte, rapid.IntRange(0, 3000).Draw(rt, "payload")),
					WebhookIDs: make([]webhook.ID, rapid.IntRange(0, 15).Draw(rt, "deliveries")),
				})
				if err := in.enter([]*pending{p}); err != nil {
					rt.Fatal(err)
				}
				order = append(order, p)
			}
			for _, p := range order {
				if !rapid.Bool().Draw(rt, "leaves") {
					waiting = append(waiting, p)
				} else if in.withdraw([]*pending{p}); !p.withdrawn {
					rt.Fatal("could not withdraw")
				}
			}
			for {
				batch := in.take()
				if len(batch) == 0 {
					break
				}
				bytes, deliveries := int64(0), 0
				for i, p := range batch {
					if len(waiting) == 0 || p != waiting[0] {
						rt.Fatal("not in the order of submission")
					}
					waiting = waiting[1:]
					bytes += p.size
					deliveries += len(p.event.WebhookIDs)
					if i > 0 && (bytes > in.cfg.BatchBytes || deliveries > in.cfg.BatchDeliveries || i >= in.cfg.BatchEvents) {
						rt.Fatalf("batch of %d events, %d bytes, %d deliveries", i+1, bytes, deliveries)
					}
				}
				for _, p := range batch {
					in.finish(p, outcome{})
				}
			}
			if events, bytes := in.Depth(); len(waiting) != 0 || events != 0 || bytes != 0 {
				rt.Fatalf("%d never taken; %d events and %d bytes still counted", len(waiting), events, bytes)
			}
		})
	})
}

func TestStop(t *testing.T) {
	t.Parallel()

	t.Run("CommitsWhatIsBufferedAndRefusesTheRest", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		release := b.hold()
		var answers []<-chan result
		for range 20 {
			answers = append(answers, b.queue(item()))
		}
		b.stop()
		b.eventually("it refuses", func() bool { return b.Ready(t.Context()) != nil })
		b.refused(b.submit(item()), webhook.CodeUnavailable)
		release()
		for _, answer := range answers {
			b.accepted(answer)
		}
		if err := b.wait(); err != nil {
			t.Error(err)
		}
		if n := b.events(); n != 20 {
			t.Errorf("%d events", n)
		}
	})

	t.Run("GivesUpAtItsDeadlineAndAnswersEverybody", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.DrainTimeout, c.Committers = 50*time.Millisecond, 1 }).start()
		b.hold()
		sent := b.submit(item())
		b.eventually("the transaction waits", func() bool { return b.waitingCommits() == 1 })
		queued := b.queue(item())
		b.stop()
		if r := b.receive(sent); !errors.Is(r.err, ErrOutcomeUnknown) {
			t.Errorf("sent: got %+v", r)
		}
		if err := b.refused(queued, webhook.CodeUnavailable); errors.Is(err, ErrOutcomeUnknown) {
			t.Error("queued: the outcome is known")
		}
		if err := b.wait(); err != nil {
			t.Error(err)
		}
		b.refused(b.submit(item()), webhook.CodeUnavailable)
	})
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()

	t.Run("MakesOneEventOfAHundredSubmissionsAtOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		in := item(withKey("k", "body"))
		var answers []<-chan result
		for range 100 {
			answers = append(answers, b.submit(in))
		}
		first := 0
		var id webhook.ID
		for _, answer := range answers {
			r := b.accepted(answer)
			if !r.Replayed {
				first++
			}
			if id.IsZero() {
				id = r.ID
			}
			if r.ID != id || fmt.Sprint(r.WebhookIDs) != fmt.Sprint(in.WebhookIDs) {
				t.Fatalf("receipt %+v of event %s", r, id)
			}
		}
		if e, j := b.events(), b.jobs(); first != 1 || e != 1 || j != 1 {
			t.Errorf("%d first answers, %d events, %d jobs", first, e, j)
		}
	})

	t.Run("MakesOneEventAcrossProcesses", func(t *testing.T) {
		t.Parallel()
		a := setup(t)
		c := setupOn(t, a.pool)
		a.limits.keyWait, c.limits.keyWait = patience, patience
		a.start()
		c.start()
		in := item(withKey("k", "body"))
		var answers []<-chan result
		for range 50 {
			answers = append(answers, a.submit(in), c.submit(in))
		}
		ids := map[webhook.ID]bool{}
		for _, answer := range answers {
			ids[a.accepted(answer).ID] = true
		}
		if e, j := a.events(), a.jobs(); len(ids) != 1 || e != 1 || j != 1 {
			t.Errorf("%d ids, %d events, %d jobs", len(ids), e, j)
		}
	})

	t.Run("AnswersWithTheFirstEventLater", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		first := b.accepted(b.submit(item(withKey("k", "body"))))
		// The webhooks may have changed since: the answer is still the first one.
		again := b.accepted(b.submit(item(withKey("k", "body"))))
		if !again.Replayed || again.ID != first.ID || fmt.Sprint(again.WebhookIDs) != fmt.Sprint(first.WebhookIDs) {
			t.Errorf("first %+v, again %+v", first, again)
		}
		if e, j := b.events(), b.jobs(); e != 1 || j != 1 {
			t.Errorf("%d events, %d jobs", e, j)
		}
	})

	t.Run("RefusesAnotherEventUnderTheSameKey", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		first := b.queue(item(withKey("k", "body")))
		atOnce := b.queue(item(withKey("k", "other")))
		b.start()
		b.accepted(first)
		b.refused(atOnce, webhook.CodeInvalid)
		b.refused(b.submit(item(withKey("k", "other"))), webhook.CodeInvalid)
		if n := b.events(); n != 1 {
			t.Errorf("%d events", n)
		}
	})

	t.Run("BelongsToItsTenant", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		one := b.accepted(b.submit(item(withKey("k", "body"))))
		two := b.accepted(b.submit(item(withKey("k", "other"), func(i *Item) { i.Tenant = "globex" })))
		if two.Replayed || one.ID == two.ID {
			t.Errorf("one %+v, two %+v", one, two)
		}
	})

	t.Run("StandsForItsEventForADay", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		age := func(by string) {
			t.Helper()
			if _, err := b.pool.Exec(t.Context(), `UPDATE fairhook.idempotency_keys SET created_at = now() - $1::interval`, by); err != nil {
				t.Fatal(err)
			}
		}
		first := b.accepted(b.submit(item(withKey("k", "body"))))
		age("23 hours 59 minutes")
		if r := b.accepted(b.submit(item(withKey("k", "body")))); r.ID != first.ID {
			t.Errorf("within the day: %+v", r)
		}
		age("24 hours 1 second")
		second := b.accepted(b.submit(item(withKey("k", "other"))))
		if second.Replayed || second.ID == first.ID {
			t.Errorf("after the day: %+v", second)
		}
		if r := b.accepted(b.submit(item(withKey("k", "other")))); !r.Replayed || r.ID != second.ID {
			t.Errorf("renewed: %+v", r)
		}
	})

	t.Run("HeldElsewhereIsAConflictAndHoldsUpNobodyElse", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.Committers = 1 })
		b.limits.keyWait = 20 * time.Millisecond
		tx, err := b.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		if _, err := tx.Exec(t.Context(), `
			INSERT INTO fairhook.idempotency_keys (tenant, key, event_id, fingerprint)
			VALUES ('acme', 'held', gen_random_uuid(), '')`); err != nil {
			t.Fatal(err)
		}
		var others []<-chan result
		for i := range 10 {
			others = append(others, b.queue(item()), b.queue(item(withKey(fmt.Sprint(i), "body"))))
		}
		held := b.queue(item(withKey("held", "body")))
		b.start()
		if err := b.refused(held, webhook.CodeConflict); err.RetryAfter != time.Second {
			t.Errorf("retry after %s", err.RetryAfter)
		}
		for _, answer := range others {
			b.accepted(answer)
		}
		before := b.commits()
		b.refused(b.submit(item(withKey("held", "body"))), webhook.CodeConflict)
		if n := b.commits(); n != before {
			t.Error("a key known to be held was tried again at once")
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.eventually("the key is free", func() bool {
			r := b.receive(b.submit(item(withKey("held", "body"))))
			return r.err == nil
		})
		if n := b.events(); n != 21 {
			t.Errorf("%d events", n)
		}
	})
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		severity, code, constraint string
		want                       verdict
	}{
		{"ERROR", "22021", "", verdictData},
		{"ERROR", "22P05", "", verdictData},
		{"ERROR", "23502", "", verdictData},
		{"ERROR", "23514", "events_check", verdictData},
		{"ERROR", "23514", "", verdictPartition},
		{"ERROR", "55P03", "", verdictKeyHeld},
		{"ERROR", "40001", "", verdictRepeat},
		{"ERROR", "40P01", "", verdictRepeat},
		{"ERROR", "0A000", "", verdictRepeat},
		{"ERROR", "57014", "", verdictFailed},
		{"ERROR", "53100", "", verdictFailed},
		{"ERROR", "42501", "", verdictFailed},
		{"ERROR", "25006", "", verdictFailed},
		{"ERROR", "40003", "", verdictUnknown},
		{"FATAL", "57P01", "", verdictUnknown},
		{"FATAL", "57P02", "", verdictUnknown},
		{"PANIC", "XX000", "", verdictUnknown},
		{"FATAL", "22021", "", verdictUnknown},
	} {
		err := &pgconn.PgError{SeverityUnlocalized: c.severity, Code: c.code, ConstraintName: c.constraint}
		if got := judgeServerError(err); got != c.want {
			t.Errorf("%s %s %q: %s, want %s", c.severity, c.code, c.constraint, got, c.want)
		}
	}
}
