package enqueue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/dispatch"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/enqueue"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const testWait = 25 * time.Second

// testBundle is a private database.
type testBundle struct {
	*pgxpool.Pool
	url   string
	clock *postgres.Clock
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	database := pgtest.New(t)
	clock, err := postgres.NewClock(t.Context(), database.Pool)
	if err != nil {
		t.Fatal(err)
	}
	return &testBundle{database.Pool, database.URL, clock}
}

// hook stores a webhook.
func (b *testBundle) hook(t *testing.T, tenant string, eventTypes ...string) *webhook.Webhook {
	t.Helper()
	if len(eventTypes) == 0 {
		eventTypes = []string{"*"}
	}
	w := &webhook.Webhook{
		ID: webhook.NewID(b.clock.Now()), Tenant: tenant, URL: "http://127.0.0.1:1/", EventTypes: eventTypes,
		State: webhook.StateActive, Headers: map[string]webhook.Secret{}, TimeoutSeconds: 5, MaxInFlight: 5,
		RetrySchedule: []int{1}, MaxAgeSeconds: 3600, MaxBacklog: 1000, AllowedCIDRs: []string{},
	}
	if err := postgres.InsertWebhook(t.Context(), b, w); err != nil {
		t.Fatal(err)
	}
	return w
}

func (b *testBundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	exec(t, b, sql, args...)
}

func exec(t *testing.T, db postgres.Querier, sql string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func query[T any](t *testing.T, db postgres.Querier, sql string, args ...any) (value T) {
	t.Helper()
	if err := db.QueryRow(t.Context(), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// counts is how many events and jobs there are.
func (b *testBundle) counts(t *testing.T) (events, jobs int) {
	t.Helper()
	return query[int](t, b, `SELECT count(*) FROM fairhook.events`), query[int](t, b, `SELECT count(*) FROM fairhook.river_job`)
}

// submit submits in a transaction of its own.
func (b *testBundle) submit(t *testing.T, event enqueue.Event) (id webhook.ID, err error) {
	t.Helper()
	return submitIn(t.Context(), b.Pool, event)
}

func submitIn(ctx context.Context, db interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}, event enqueue.Event,
) (id webhook.ID, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		id, err = enqueue.Submit(ctx, tx, event)
		return err
	})
	return id, err
}

func (b *testBundle) mustSubmit(t *testing.T, event enqueue.Event) webhook.ID {
	t.Helper()
	id, err := b.submit(t, event)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// paid is a valid event of a tenant.
func paid(tenant string) enqueue.Event {
	return enqueue.Event{Tenant: tenant, Type: "order.paid", Payload: []byte(`{"n":1}`)}
}

// listener hears what dispatchers are told.
type listener struct{ conn *pgx.Conn }

func (b *testBundle) listen(t *testing.T) listener {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	exec(t, conn, `LISTEN "`+fairqueue.NotifyChannel+`"`)
	return listener{conn}
}

// next is the payload of the next notification.
func (l listener) next(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	n, err := l.conn.WaitForNotification(ctx)
	if err != nil {
		t.Fatalf("wait for a notification: %v", err)
	}
	return n.Payload
}

func wantCode(t *testing.T, err error, code webhook.Code) *webhook.Error {
	t.Helper()
	var e *webhook.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("error is %v, want code %s", err, code)
	}
	return e
}

func TestTransaction(t *testing.T) {
	t.Parallel()

	t.Run("ShowsTheEventToOthersWhenItCommitsAndNotBefore", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w := b.hook(t, "acme")
		heard := b.listen(t)
		tx, err := b.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		if _, err := enqueue.Submit(t.Context(), tx, paid("acme")); err != nil {
			t.Fatal(err)
		}
		if events, jobs := b.counts(t); events != 0 || jobs != 0 {
			t.Errorf("%d events and %d jobs are there before the commit", events, jobs)
		}
		b.exec(t, `SELECT pg_notify($1, 'before')`, fairqueue.NotifyChannel)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if events, jobs := b.counts(t); events != 1 || jobs != 1 {
			t.Errorf("%d events and %d jobs are there after the commit", events, jobs)
		}
		if first, second := heard.next(t), heard.next(t); first != "before" || second != fairqueue.Notifications([]webhook.ID{w.ID})[0] {
			t.Errorf("heard %q and %q", first, second)
		}
	})

	t.Run("LeavesNothingWhenItRollsBack", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.hook(t, "acme")
		heard := b.listen(t)
		tx, err := b.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := enqueue.Submit(t.Context(), tx, paid("acme")); err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if events, jobs := b.counts(t); events != 0 || jobs != 0 {
			t.Errorf("%d events and %d jobs are left", events, jobs)
		}
		b.exec(t, `SELECT pg_notify($1, 'after')`, fairqueue.NotifyChannel)
		if first := heard.next(t); first != "after" {
			t.Errorf("heard %q", first)
		}
	})

	t.Run("GoesOnAfterARefusedEventFromASavepoint", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.hook(t, "acme")
		err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			if _, err := submitIn(t.Context(), tx, enqueue.Event{Tenant: "acme", Type: "order..paid", Payload: []byte(`1`)}); webhook.ErrorCode(err) != webhook.CodeInvalid {
				t.Errorf("error is %v", err)
			}
			_, err := submitIn(t.Context(), tx, paid("acme"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if events, jobs := b.counts(t); events != 1 || jobs != 1 {
			t.Errorf("%d events and %d jobs", events, jobs)
		}
	})

	t.Run("TakesManyEventsInTheirOrder", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w := b.hook(t, "acme")
		heard := b.listen(t)
		var ids []webhook.ID
		err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			for range 50 {
				id, err := enqueue.Submit(t.Context(), tx, paid("acme"))
				if err != nil {
					return err
				}
				ids = append(ids, id)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		rows, err := b.Query(t.Context(), `SELECT (args->>'event_id')::uuid FROM fairhook.river_job ORDER BY priority, scheduled_at, id`)
		if err != nil {
			t.Fatal(err)
		}
		lane, err := pgx.CollectRows(rows, pgx.RowTo[webhook.ID])
		if err != nil || fmt.Sprint(lane) != fmt.Sprint(ids) {
			t.Errorf("the lane holds %v, %v\nwant %v", lane, err, ids)
		}
		// Postgres sends equal notifications of a transaction once.
		b.exec(t, `SELECT pg_notify($1, 'after')`, fairqueue.NotifyChannel)
		if first, second := heard.next(t), heard.next(t); first != fairqueue.Notifications([]webhook.ID{w.ID})[0] || second != "after" {
			t.Errorf("heard %q and %q", first, second)
		}
	})

	t.Run("WorksInEveryQueryExecModeOfPgx", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w := b.hook(t, "acme")
		for _, mode := range []pgx.QueryExecMode{
			pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
			pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
		} {
			config, err := pgx.ParseConfig(b.url)
			if err != nil {
				t.Fatal(err)
			}
			config.DefaultQueryExecMode = mode
			conn, err := pgx.ConnectConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			want := enqueue.Event{
				Tenant: "acme", WebhookID: w.ID, Type: "order.paid", Payload: []byte("\x00\xff'\\"), ContentType: "application/octet-stream",
				OccurredAt: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), Metadata: map[string]string{"a'b": `"\`}, Unvalidated: true,
			}
			for range 2 {
				id, err := submitIn(t.Context(), conn, want)
				if err != nil {
					t.Fatalf("%s: %v", mode, err)
				}
				got, err := postgres.Event(t.Context(), b, id)
				if err != nil {
					t.Fatal(err)
				}
				if string(got.Payload) != string(want.Payload) || got.ContentType != want.ContentType || !got.OccurredAt.Equal(want.OccurredAt) ||
					fmt.Sprint(got.Metadata) != fmt.Sprint(want.Metadata) || got.WebhookIDs[0] != w.ID {
					t.Errorf("%s stored %+v", mode, got)
				}
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("FailsAsSerializationDoesAndIsRepeated", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.hook(t, "acme")
		b.exec(t, `CREATE TABLE orders (n integer); INSERT INTO orders VALUES (0)`)
		tx, err := b.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.Serializable})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		query[int](t, tx, `SELECT n FROM orders`)
		b.exec(t, `UPDATE orders SET n = 1`)
		if _, err := enqueue.Submit(t.Context(), tx, paid("acme")); err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(t.Context(), `UPDATE orders SET n = 2`)
		var server *pgconn.PgError
		if !errors.As(err, &server) || server.Code != "40001" {
			t.Fatalf("error is %v", err)
		}
		if _, err := enqueue.Submit(t.Context(), tx, paid("acme")); !errors.As(err, &server) || server.Code != "25P02" {
			t.Errorf("in an aborted transaction the error is %v", err)
		}
		_ = tx.Rollback(t.Context())
		b.mustSubmit(t, paid("acme"))
		if events, jobs := b.counts(t); events != 1 || jobs != 1 {
			t.Errorf("%d events and %d jobs", events, jobs)
		}
	})

	t.Run("SaysTryAgainWhereTheDayHasNoPartition", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.hook(t, "acme")
		b.exec(t, `DO $$ DECLARE child regclass; BEGIN
			FOR child IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'fairhook.events'::regclass LOOP
				EXECUTE format('ALTER TABLE fairhook.events DETACH PARTITION %s', child);
			END LOOP; END $$`)
		_, err := b.submit(t, paid("acme"))
		wantCode(t, err, webhook.CodeUnavailable)
	})

	t.Run("SaysWhereTheSchemaIsMissing", func(t *testing.T) {
		t.Parallel()
		_, err := submitIn(t.Context(), pgtest.Empty(t).Pool, paid("acme"))
		var server *pgconn.PgError
		if webhook.ErrorCode(err) != "" || !errors.As(err, &server) || !strings.Contains(err.Error(), "fairhook") {
			t.Errorf("error is %v", err)
		}
	})
}

// What only Go can say, or only Go can leave out.
func TestEventIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, tc := range map[string]struct {
		change func(e *enqueue.Event)
		field  string // empty: what Postgres says about the whole
	}{
		"WithoutAType":            {func(e *enqueue.Event) { e.Type = "" }, "/type: is required"},
		"WithoutAPayload":         {func(e *enqueue.Event) { e.Payload = nil }, "/payload: is required"},
		"WithAnEmptyPayload":      {func(e *enqueue.Event) { e.Payload = []byte{} }, "/payload: is not JSON"},
		"WithAPayloadOfNUL":       {func(e *enqueue.Event) { e.Payload = []byte{0} }, "/payload: is not JSON"},
		"WithAnEndlessPayload":    {func(e *enqueue.Event) { e.Payload = bytes.Repeat([]byte("["), 1<<20) }, "/payload: is nested too deeply"},
		"WithATimeBeyondTheYears": {func(e *enqueue.Event) { e.OccurredAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "/occurred_at: must be between the years 1 and 9999"},
		"WithMetadataBeyondUTF8":  {func(e *enqueue.Event) { e.Metadata = map[string]string{"k": "\xff"} }, "/metadata/k: must be valid UTF-8"},
		"WithMetadataOfNUL":       {func(e *enqueue.Event) { e.Metadata = map[string]string{"k": "\x00"} }, "/metadata/k: must not contain control characters"},
		"WithATenantBeyondUTF8":   {func(e *enqueue.Event) { e.Tenant = "\xff" }, ""},
		"WithATypeOfNUL":          {func(e *enqueue.Event) { e.Type = "a\x00" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			event := paid("acme")
			tc.change(&event)
			_, err := b.submit(t, event)
			e := wantCode(t, err, webhook.CodeInvalid)
			if tc.field == "" {
				if len(e.Fields) != 0 || e.Message == "" {
					t.Errorf("error is %v", err)
				}
			} else if len(e.Fields) != 1 || e.Fields[0].Pointer+": "+e.Fields[0].Detail != tc.field {
				t.Errorf("fields are %v, want %s", e.Fields, tc.field)
			}
		})
	}
	if _, err := b.Exec(t.Context(), `SELECT fairhook.submit_event('acme', 'a', '1', occurred_at => 'infinity')`); err == nil {
		t.Error("infinity is a time")
	}
}

// A dispatcher that does nothing else hears of the commit, however long the
// transaction took.
func TestDispatcherWakes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	arrived := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- r.Header.Get("webhook-id")
	}))
	t.Cleanup(receiver.Close)
	w := b.hook(t, "acme")
	b.exec(t, `UPDATE fairhook.webhooks SET url = $2 WHERE id = $1`, w.ID, receiver.URL)
	box := seal.New(seal.Key{})
	sealed := box.Seal([]byte(signature.NewSecret().Reveal()), w.ID.String())
	if err := postgres.InsertSecret(t.Context(), b, w.ID, &postgres.Secret{ID: webhook.NewID(b.clock.Now()), Sealed: sealed}); err != nil {
		t.Fatal(err)
	}
	b.startDispatcher(t, box)

	wait := func(id webhook.ID) {
		t.Helper()
		select {
		case got := <-arrived:
			if got != id.String() {
				t.Fatalf("%s arrived, want %s", got, id)
			}
		case <-time.After(testWait):
			t.Fatalf("%s did not arrive", id)
		}
	}
	wait(b.mustSubmit(t, paid("acme"))) // and now it is up

	long, err := b.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = long.Rollback(context.Background()) }()
	late, err := enqueue.Submit(t.Context(), long, paid("acme"))
	if err != nil {
		t.Fatal(err)
	}
	// Discovery looks once a second, and each event here is submitted right after
	// it looked: without notifications these would take about ten seconds.
	begun := time.Now()
	for range 10 {
		wait(b.mustSubmit(t, paid("acme")))
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("10 events one after the other took %s: dispatchers are not woken", took)
	}
	if err := long.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait(late)
}

func (b *testBundle) startDispatcher(t *testing.T, box *seal.Box) {
	t.Helper()
	guard, err := egress.New(egress.Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	d, err := dispatch.New(t.Context(), dispatch.Config{
		DatabaseURL: b.url, Instance: daemon.NewInstanceID(), Version: "test", Workers: 10,
		Guard: guard, Box: box, Logger: logger, Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stages := daemon.NewStages(logger, testWait)
	d.Add(stages)
	done := make(chan error, 1)
	go func() { done <- stages.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestIDsAreMadeByTheDatabasesClockInTheLayoutOfTheOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(rt *rapid.T) {
		micros := rapid.Int64Range(0, time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()).Draw(rt, "micros")
		moment := time.UnixMicro(micros).UTC()
		want := webhook.NewID(moment)
		var got, again webhook.ID
		if err := b.QueryRow(t.Context(), `SELECT fairhook.new_id($1), fairhook.new_id($1)`, moment).Scan(&got, &again); err != nil {
			rt.Fatal(err)
		}
		if string(got[:8]) != string(want[:8]) || got[8]>>6 != want[8]>>6 {
			rt.Errorf("%s has another layout than %s", got, want)
		}
		if got == again {
			rt.Errorf("%s came twice", got)
		}
	})

	var id webhook.ID
	var before, after time.Time
	err := b.QueryRow(t.Context(), `
		SELECT before, fairhook.submit_event('acme', 'a', '1') AS id, clock_timestamp() AS after
		FROM (SELECT clock_timestamp() AS before OFFSET 0) AS t`).Scan(&before, &id, &after)
	if err != nil {
		t.Fatal(err)
	}
	if id.Time().Before(before.Truncate(time.Millisecond)) || id.Time().After(after) {
		t.Errorf("the id's time is %s, made between %s and %s", id.Time(), before, after)
	}
}

// TestPayloadForms submits in SQL, as people write it.
func TestPayloadForms(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, tc := range map[string]struct {
		call, want string
	}{
		"ALiteral":       {`fairhook.submit_event('acme', 'a', ' {"b": 1.0,"a":"\u0000é"} ')`, ` {"b": 1.0,"a":"\u0000é"} `},
		"Text":           {`fairhook.submit_event('acme', 'a', '{"b": 1.0}'::text)`, `{"b": 1.0}`},
		"Varchar":        {`fairhook.submit_event('acme', 'a', '{"b": 1.0}'::varchar)`, `{"b": 1.0}`},
		"JSONAsWritten":  {`fairhook.submit_event('acme', 'a', '{"b" :1.0, "b":2}'::json)`, `{"b" :1.0, "b":2}`},
		"BuiltJSON":      {`fairhook.submit_event('acme', 'a', json_build_object('n', 1))`, `{"n" : 1}`},
		"JSONB":          {`fairhook.submit_event('acme', 'a', '{"b":1.0,"a":2}'::jsonb)`, `{"a": 2, "b": 1.0}`},
		"Bytes":          {`fairhook.submit_event('acme', 'a', '\x2231ff22'::bytea)`, "\"1\xff\""},
		"OtherMediaType": {`fairhook.submit_event('acme', 'a', '<a/>', content_type => 'application/xml')`, `<a/>`},
		"EmptyBytes":     {`fairhook.submit_event('acme', 'a', ''::bytea, content_type => 'text/plain')`, ``},
		"AllByName": {
			`fairhook.submit_event(type => 'a', payload => '1', tenant => 'acme', metadata => '{"k":"v"}', occurred_at => now(), unvalidated => true)`, `1`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := query[webhook.ID](t, b, `SELECT `+tc.call)
			if got := query[[]byte](t, b, `SELECT payload FROM fairhook.events WHERE id = $1`, id); string(got) != tc.want {
				t.Errorf("stored %q, want %q", got, tc.want)
			}
		})
	}
}

// The SQL side takes for JSON what the REST API takes for JSON.
func TestJSONIsWhatTheAPICallsJSON(t *testing.T) {
	t.Parallel()
	b := setup(t)
	piece := rapid.OneOf(
		rapid.SampledFrom([]string{
			`{`, `}`, `[`, `]`, `,`, `:`, `"`, `\`, `\u`, `\ud800`, `00`, `-`, `-0`, `01`, `.`, `1.`, `1.5`, `e9`, `1e400`, `+`, `null`, `true`, `nul`,
			`"a"`, `"a":`, ` `, "\t", "\n", "\r", "\v", "\f", "\x00", "\x1f", "\x7f", "\xff", "\xc3\xa9", "\u00a0", "\u2028", "\ufeff", `[1]`, `{"a":1}`, `"\n"`, `"\x"`,
			"\"\x01\"", "\"\xff\"", "\"\x7f\"", "\"\t\"", `/`, `'`, `NaN`, `Infinity`,
		}),
		rapid.Map(rapid.Byte(), func(b byte) string { return string([]byte{b}) }),
	)
	rapid.Check(t, func(rt *rapid.T) {
		payload := strings.Join(rapid.SliceOfN(piece, 0, 8).Draw(rt, "pieces"), "")
		_, err := b.submit(t, enqueue.Event{Tenant: "acme", Type: "a", Payload: []byte(payload)})
		if err != nil && webhook.ErrorCode(err) != webhook.CodeInvalid {
			rt.Fatal(err)
		}
		if accepted, want := err == nil, json.Valid([]byte(payload)); accepted != want {
			rt.Errorf("%q: accepted %v, valid for the API %v (%v)", payload, accepted, want, err)
		}
	})
}

// The SQL side matches types as webhook.MatchesType does.
func TestMatchingIsThatOfTheAPI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	segment := rapid.SampledFrom([]string{"a", "b", "A", "aa", "_", "-", "a-b", "0"})
	eventType := rapid.Map(rapid.SliceOfN(segment, 1, 4), func(segments []string) string { return strings.Join(segments, ".") })
	pattern := rapid.Custom(func(rt *rapid.T) string {
		switch rapid.IntRange(0, 4).Draw(rt, "kind") {
		case 0:
			return "*"
		case 1, 2:
			return eventType.Draw(rt, "prefix") + ".*"
		default:
			return eventType.Draw(rt, "exact")
		}
	})
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		tenant := fmt.Sprintf("tenant-%d", n)
		var hooks []*webhook.Webhook
		for range rapid.IntRange(1, 5).Draw(rt, "webhooks") {
			hooks = append(hooks, b.hook(t, tenant, rapid.SliceOfN(pattern, 1, 4).Draw(rt, "event_types")...))
		}
		submitted := eventType.Draw(rt, "type")
		want := []webhook.ID{}
		for _, w := range hooks {
			if w.Subscribes(submitted) {
				want = append(want, w.ID)
			}
			_, err := b.submit(t, enqueue.Event{WebhookID: w.ID, Type: submitted, Payload: []byte(`1`)})
			if (err == nil) != w.Subscribes(submitted) || err != nil && webhook.ErrorCode(err) != webhook.CodeInvalid {
				rt.Errorf("%s to a webhook of %q: %v", submitted, w.EventTypes, err)
			}
		}
		id := b.mustSubmit(t, enqueue.Event{Tenant: tenant, Type: submitted, Payload: []byte(`1`)})
		if got := query[[]webhook.ID](t, b, `SELECT webhook_ids FROM fairhook.events WHERE id = $1`, id); fmt.Sprint(got) != fmt.Sprint(want) {
			rt.Errorf("%s goes to %v, want %v", submitted, got, want)
		}
	})
}

// A fan-out of any width says what a batch of the API would say.
func TestWideFanOutNotifiesAsTheAPIDoes(t *testing.T) {
	t.Parallel()
	for _, width := range []int{1, 340, 341, 1360, 1361} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			heard := b.listen(t)
			first := b.hook(t, "acme")
			b.exec(t, `INSERT INTO fairhook.webhooks
				SELECT (copy).* FROM (
					SELECT jsonb_populate_record(w, jsonb_build_object('id', gen_random_uuid())) AS copy
					FROM fairhook.webhooks w, generate_series(2, $1::integer) WHERE w.id = $2 OFFSET 0) AS copies`, width, first.ID)
			id := b.mustSubmit(t, paid("acme"))
			targets := query[[]webhook.ID](t, b, `SELECT webhook_ids FROM fairhook.events WHERE id = $1`, id)
			if _, jobs := b.counts(t); len(targets) != width || jobs != width {
				t.Fatalf("%d targets and %d jobs", len(targets), jobs)
			}
			want := map[string]bool{}
			for _, payload := range fairqueue.Notifications(targets) {
				want[payload] = true
			}
			for range len(want) {
				if payload := heard.next(t); !want[payload] {
					t.Errorf("heard %q", payload)
				} else {
					delete(want, payload)
				}
			}
		})
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()

	t.Run("BoundThePayload", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.exec(t, `INSERT INTO fairhook.submit_settings (max_payload_bytes) VALUES (10)`)
		b.mustSubmit(t, enqueue.Event{Tenant: "acme", Type: "a", Payload: []byte(`"12345678"`)})
		_, err := b.submit(t, enqueue.Event{Tenant: "acme", Type: "a", Payload: []byte(`"123456789"`)})
		if e := wantCode(t, err, webhook.CodeTooLarge); !strings.Contains(e.Message, "10 bytes") {
			t.Errorf("message is %q", e.Message)
		}
	})

	t.Run("RefuseTypesThatAreNotDeclared", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.exec(t, `INSERT INTO fairhook.event_types (name, description) VALUES ('order.paid', '')`)
		b.exec(t, `INSERT INTO fairhook.submit_settings (strict_event_types) VALUES (true)`)
		b.mustSubmit(t, paid("acme"))
		for _, unvalidated := range []bool{false, true} {
			_, err := b.submit(t, enqueue.Event{Tenant: "acme", Type: "order.sent", Payload: []byte(`1`), Unvalidated: unvalidated})
			if e := wantCode(t, err, webhook.CodeInvalid); len(e.Fields) != 1 || e.Fields[0].Pointer != "/type" {
				t.Errorf("error is %v", err)
			}
		}
	})

	t.Run("AreOneRow", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.exec(t, `INSERT INTO fairhook.submit_settings DEFAULT VALUES`)
		for _, singleton := range []string{"true", "false"} {
			if _, err := b.Exec(t.Context(), `INSERT INTO fairhook.submit_settings (singleton) VALUES (`+singleton+`)`); err == nil {
				t.Errorf("a second row with %s", singleton)
			}
		}
	})
}

func TestATypeWithASchemaIsRefusedUnlessSaidToBeUnvalidated(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.hook(t, "acme")
	b.exec(t, `INSERT INTO fairhook.event_types (name, description, schema) VALUES ('order.paid', '', '{"type": "object"}'), ('order.sent', '', NULL)`)
	for name, event := range map[string]enqueue.Event{
		"fan-out": paid("acme"),
		"direct":  {WebhookID: w.ID, Type: "order.paid", Payload: []byte(`{}`)},
		"not JSON": {
			Tenant: "acme", Type: "order.paid", Payload: []byte(`<a/>`), ContentType: "application/xml",
		},
	} {
		_, err := b.submit(t, event)
		if e := wantCode(t, err, webhook.CodeInvalid); len(e.Fields) != 1 || e.Fields[0].Pointer != "/type" || !strings.Contains(e.Fields[0].Detail, "JSON Schema") {
			t.Errorf("%s: %v", name, err)
		}
		event.Unvalidated = true
		if _, err := b.submit(t, event); err != nil {
			t.Errorf("%s, unvalidated: %v", name, err)
		}
	}
	b.mustSubmit(t, enqueue.Event{Tenant: "acme", Type: "order.sent", Payload: []byte(`1`)})
	b.mustSubmit(t, enqueue.Event{Tenant: "acme", Type: "order.lost", Payload: []byte(`1`)})
}

// roleURL is the database's URL for another user.
func (b *testBundle) roleURL(t *testing.T, name string) string {
	t.Helper()
	u, err := url.Parse(b.url)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(name, "secret")
	return u.String()
}
