//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// runBenchCommand runs `fairhook bench` to its end and returns what it printed.
func runBenchCommand(t *testing.T, env []string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "fairhook"), append([]string{"bench"}, args...)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "FAIRHOOK_") })
	cmd.Env = append(cmd.Env, env...)
	var out, diagnostics bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnostics
	err = cmd.Run()
	return out.String(), diagnostics.String(), err
}

func TestBench(t *testing.T) {
	t.Parallel()
	t.Run("MeasuresEachCaseOnAPrivatePostgres", func(t *testing.T) {
		t.Parallel()
		stdout, stderr, err := runBenchCommand(t, nil, "--duration", "200ms", "--webhooks", "1,3", "--connections", "4", "--batch-items", "5", "-o", "json", "--deliver")
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		var report benchReport
		if err := json.Unmarshal([]byte(stdout), &report); err != nil {
			t.Fatalf("%v: %s", err, stdout)
		}
		if report.Postgres.Fsync != "on" || report.Postgres.SynchronousCommit != "on" {
			t.Errorf("measured without waiting for the disk: %+v", report.Postgres)
		}
		if report.Machine.CPUs == 0 || report.Version == "" || report.Connections != 4 || report.BatchItems != 5 || report.PayloadBytes != 1024 {
			t.Errorf("the report does not say what was measured: %+v", report)
		}
		var got []string
		for _, c := range report.Cases {
			got = append(got, strings.Repeat("x", c.Webhooks)+c.Mode)
			if c.EventsPerSecond <= 0 || c.Requests == 0 || c.P50 <= 0 || c.P99 < c.P50 || c.RawBefore <= 0 || c.RawAfter <= 0 || c.Refused != 0 {
				t.Errorf("case %+v", c)
			}
			if want := c.EventsPerSecond / ((c.RawBefore + c.RawAfter) / 2); c.Ratio != want {
				t.Errorf("ratio %g, want %g", c.Ratio, want)
			}
			if c.DeliveredPerSecond == nil || *c.DeliveredPerSecond <= 0 {
				t.Errorf("nothing was delivered: %+v", c)
			}
		}
		if want := []string{"xsingle", "xbatch", "xxxsingle", "xxxbatch"}; !slices.Equal(got, want) {
			t.Errorf("cases %q, want %q", got, want)
		}
	})
	t.Run("LeavesNothingOnTheServerItIsGiven", func(t *testing.T) {
		t.Parallel()
		database := pgtest.New(t)
		if _, err := database.Pool.Exec(t.Context(), `INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids)
			VALUES ($1, 'acme', 'order.paid', '{}', '{}')`, webhook.NewID(time.Now())); err != nil {
			t.Fatal(err)
		}
		stdout, stderr, err := runBenchCommand(t, []string{"FAIRHOOK_DATABASE_URL=" + database.URL}, "--duration", "100ms", "--webhooks", "2", "--connections", "2", "--batch-items", "2")
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		if !strings.Contains(stdout, "events/s") || strings.Count(stdout, "\n") != 6 {
			t.Errorf("not a table of two cases:\n%s", stdout)
		}
		_, rest, found := strings.Cut(stderr, "using the database ")
		name, _, _ := strings.Cut(rest, " ")
		if !found || !strings.HasPrefix(name, "fairhook_bench_") {
			t.Fatalf("no database is named:\n%s", stderr)
		}
		var left, kept int
		if err := database.Pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_database WHERE datname = $1), (SELECT count(*) FROM fairhook.events)`, name).
			Scan(&left, &kept); err != nil || left != 0 || kept != 1 {
			t.Errorf("%d databases are left, %d of 1 events of the given one, %v", left, kept, err)
		}
	})
	t.Run("RefusesSettingsThatMakeNoSense", func(t *testing.T) {
		t.Parallel()
		_, stderr, err := runBenchCommand(t, nil, "--duration", "0s", "--webhooks", "1,none", "--connections", "0", "--batch-items", "0", "--payload-bytes", "3", "-o", "xml")
		if err == nil {
			t.Fatal("it ran")
		}
		for _, flag := range []string{"--duration", "--webhooks", "--connections", "--batch-items", "--payload-bytes", "--output"} {
			if !strings.Contains(stderr, flag+" (") {
				t.Errorf("nothing is said about %s:\n%s", flag, stderr)
			}
		}
	})
}

// What is inserted directly is what the acceptance of the same events writes.
func TestRawRowsAreThoseOfAcceptedEvents(t *testing.T) {
	t.Parallel()
	rows := func(write func(pool *pgxpool.Pool, hook webhook.ID, payload []byte)) string {
		pool := pgtest.DB(t)
		hook, err := webhook.ParseID("01890a5d-ac96-774b-bcce-b302099a8057")
		if err != nil {
			t.Fatal(err)
		}
		write(pool, hook, []byte(`{"data":"x"}`))
		// All columns; those that differ from event to event are left out or put
		// in relation to each other.
		got, err := pgx.CollectRows(must(pool.Query(t.Context(), `
			SELECT (to_jsonb(e) - 'id')::text
			    || (to_jsonb(j) - '{id,args,created_at,scheduled_at,unique_key}'::text[])::text
			    || (j.args = jsonb_build_object('event_id', e.id, 'webhook_id', e.webhook_ids[1]))::text
			    || (j.unique_key = uuid_send(e.id) || uuid_send(e.webhook_ids[1]))::text
			    || (j.scheduled_at <= now() AND j.created_at <= now())::text
			FROM fairhook.events AS e JOIN fairhook.river_job AS j ON j.args ->> 'event_id' = e.id::text
			LIMIT 1`)), pgx.RowTo[string])
		if err != nil || len(got) != 1 {
			t.Fatalf("%d rows, %v", len(got), err)
		}
		return got[0]
	}
	raw := rows(func(pool *pgxpool.Pool, hook webhook.ID, payload []byte) {
		n, err := insertRaw(t.Context(), pool, []webhook.ID{hook}, payload, time.Now())
		if err != nil || n != rawBatch {
			t.Fatalf("%d rows, %v", n, err)
		}
	})
	accepted := rows(func(pool *pgxpool.Pool, hook webhook.ID, payload []byte) {
		acceptor := postgres.NewAcceptor(postgres.JobInsert{SQL: fairqueue.InsertSQL, Channel: fairqueue.NotifyChannel, Notifications: fairqueue.Notifications})
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		event := &postgres.NewEvent{Event: webhook.Event{
			ID: webhook.NewID(time.Now()), Tenant: benchTenant, Type: benchType, Payload: payload, WebhookIDs: []webhook.ID{hook},
		}}
		if _, err := acceptor.Accept(t.Context(), conn, []*postgres.NewEvent{event}, time.Second); err != nil {
			t.Fatal(err)
		}
	})
	if raw != accepted || !strings.HasSuffix(raw, "truetruetrue") {
		t.Errorf("inserted directly:\n%s\naccepted:\n%s", raw, accepted)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func TestBenchLoad(t *testing.T) {
	t.Parallel()
	webhooks := make([]webhook.ID, 7)
	for i := range webhooks {
		webhooks[i] = webhook.NewID(time.Now())
	}
	serve := func(t *testing.T, handler http.HandlerFunc) *load {
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		return newLoad(server.Listener.Addr().String(), "key", 3)
	}

	t.Run("SendsRequestsThatReachEveryWebhook", func(t *testing.T) {
		t.Parallel()
		payload := benchPayload(minPayload)
		for _, requests := range [][]request{singleRequests(webhooks, payload), batchRequests(webhooks, payload, 3), batchRequests(webhooks, payload, 100)} {
			reached := map[string]bool{}
			for _, r := range requests {
				type event struct {
					WebhookID string          `json:"webhook_id"`
					Payload   json.RawMessage `json:"payload"`
				}
				events := make([]event, 1)
				var err error
				if r.path == "/v1/events" {
					err = json.Unmarshal(r.body, &events[0])
				} else {
					err = json.Unmarshal(r.body, &events)
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range events {
					reached[e.WebhookID] = true
					if !bytes.Equal(e.Payload, payload) {
						t.Errorf("payload %s, want %s", e.Payload, payload)
					}
				}
			}
			if len(reached) != len(webhooks) {
				t.Errorf("%d of %d webhooks are reached", len(reached), len(webhooks))
			}
		}
	})
	t.Run("MakesPayloadsOfTheSizeAskedFor", func(t *testing.T) {
		t.Parallel()
		for _, size := range []int{minPayload, 100, 1024, 1 << 20} {
			if payload := benchPayload(size); len(payload) != size || !json.Valid(payload) {
				t.Errorf("%d bytes for %d: %.40s", len(payload), size, payload)
			}
		}
	})
	t.Run("CountsWhatIsAcceptedAndWhatIsRefused", func(t *testing.T) {
		t.Parallel()
		var asked atomic.Int64
		l := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer key" {
				w.WriteHeader(http.StatusUnauthorized)
			} else if asked.Add(1)%2 == 0 {
				w.WriteHeader(http.StatusServiceUnavailable)
			} else {
				w.WriteHeader(http.StatusAccepted)
			}
		})
		m, err := l.run(t.Context(), singleRequests(webhooks, benchPayload(20)), 30*time.Millisecond, 100*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if int64(m.acknowledged+m.refused) != asked.Load() || m.refused == 0 {
			t.Errorf("%d acknowledged and %d refused of %d", m.acknowledged, m.refused, asked.Load())
		}
		if m.accepted == 0 || m.accepted >= m.acknowledged || m.accepted != len(m.latencies) || !slices.IsSorted(m.latencies) {
			t.Errorf("%d accepted of %d, with %d latencies", m.accepted, m.acknowledged, len(m.latencies))
		}
	})
	t.Run("CountsTheEventsOfABatch", func(t *testing.T) {
		t.Parallel()
		l := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"results":[{"status":202},{"status":429,"error":{}},{"status":202}]}`))
		})
		m, err := l.start(t.Context(), batchRequests(webhooks, []byte(`{}`), 3), 3, time.Time{}, time.Time{})
		if err != nil || m.acknowledged != 6 || m.refused != 3 {
			t.Errorf("%+v, %v", m, err)
		}
	})
	t.Run("IsWarmOnceAllIsAccepted", func(t *testing.T) {
		t.Parallel()
		var asked atomic.Int64
		l := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) == 1 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write([]byte(`{"results":[{"status":202},{"status":202}]}`))
		})
		acknowledged, err := l.warm(t.Context(), batchRequests(webhooks, []byte(`{}`), 2))
		if err != nil || acknowledged != 14 || asked.Load() != 8 {
			t.Errorf("%d events in %d requests, %v; want 14 in two times 4", acknowledged, asked.Load(), err)
		}
	})
	t.Run("EndsWithAnAnswerThatIsNeither", func(t *testing.T) {
		t.Parallel()
		l := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such thing", http.StatusNotFound) })
		_, err := l.run(t.Context(), singleRequests(webhooks, benchPayload(20)), 0, time.Hour)
		if err == nil || !strings.Contains(err.Error(), "no such thing") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("EndsWhenNobodyListens", func(t *testing.T) {
		t.Parallel()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listener.Close()
		if _, err := newLoad(listener.Addr().String(), "key", 1).run(t.Context(), singleRequests(webhooks, benchPayload(20)), 0, time.Hour); err == nil {
			t.Error("no error")
		}
	})
}

func TestPercentile(t *testing.T) {
	t.Parallel()
	values := make([]time.Duration, 100)
	for i := range values {
		values[i] = time.Duration(i + 1)
	}
	for _, tc := range []struct {
		values []time.Duration
		part   float64
		want   time.Duration
	}{{values, 0.5, 50}, {values, 0.99, 99}, {values, 1, 100}, {values[:1], 0.5, 1}, {values[:2], 0.99, 2}, {nil, 0.5, 0}} {
		if got := percentile(tc.values, tc.part); got != tc.want {
			t.Errorf("percentile %g of %d values: %d, want %d", tc.part, len(tc.values), got, tc.want)
		}
	}
}

func TestWithDatabase(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"postgres://u:p%40@h:5433/old?sslmode=disable": "postgres://u:p%40@h:5433/new?sslmode=disable",
		"postgres://h":                     "postgres://h/new",
		"host=h dbname=old password='a b'": "host=h dbname=old password='a b' dbname=new",
	} {
		if got := withDatabase(given, "new"); got != want {
			t.Errorf("%s: %s, want %s", given, got, want)
		}
		config, err := pgx.ParseConfig(withDatabase(given, "new"))
		if err != nil || config.Database != "new" {
			t.Errorf("%s: %+v, %v", given, config, err)
		}
	}
}
