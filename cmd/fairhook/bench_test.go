//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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

// benchCommand is `fairhook bench`.
func benchCommand(t *testing.T, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "fairhook"), append([]string{"bench"}, args...)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "FAIRHOOK_") })
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// runBenchCommand runs `fairhook bench` to its end and returns what it printed.
func runBenchCommand(t *testing.T, env []string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := benchCommand(t, env, args...)
	var out, diagnostics bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnostics
	err = cmd.Run()
	return out.String(), diagnostics.String(), err
}

// tiny makes every part take a moment.
var tiny = []string{
	"--duration", "150ms", "--webhooks", "1,3", "--connections", "4", "--deliver-connections", "4", "--batch-items", "5",
	"--counters-delay", "0s", "--quiet-duration", "300ms", "--quiet-webhooks", "5", "--quiet-per-second", "50",
	"--ordered-events", "30", "--ordered-keys", "4", "--waiting", "600", "--gated-webhooks", "200", "--backlog", "1000",
	"--hanging-webhooks", "3", "--hanging-events", "4", "--hang", "1s",
	"--failing-webhooks", "3", "--failing-events", "4", "--breaker-wait", "100ms",
}

// documentedRuns are the arguments of the "make bench" lines in the documentation.
func documentedRuns(t *testing.T) [][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	var runs [][]string
	for line := range strings.Lines(string(text)) {
		rest, found := strings.CutPrefix(strings.TrimPrefix(line, "$ "), "make bench")
		if !found {
			continue
		}
		rest, _, _ = strings.Cut(rest, "#")
		args, quoted := strings.CutPrefix(strings.TrimSpace(rest), "ARGS='")
		args, closed := strings.CutSuffix(args, "'")
		if quoted != closed || !quoted && args != "" {
			t.Errorf("cannot be run by this test: %s", line)
		}
		if run := strings.Fields(args); !slices.ContainsFunc(runs, func(r []string) bool { return slices.Equal(r, run) }) {
			runs = append(runs, run)
		}
	}
	return runs
}

// What docs/benchmarks.md says to run runs, in small.
func TestBenchAsDocumented(t *testing.T) {
	t.Parallel()
	runs := documentedRuns(t)
	if len(runs) < 3 {
		t.Errorf("found only %d commands", len(runs))
	}
	whole := slices.ContainsFunc(runs, func(run []string) bool { return len(run) == 0 })
	asJSON := slices.ContainsFunc(runs, func(run []string) bool { return slices.Contains(run, "json") })
	if !whole || !asJSON {
		t.Errorf("of %q none is without arguments, or none is for programs", runs)
	}
	for _, run := range runs {
		t.Run(strings.Join(run, " "), func(t *testing.T) {
			t.Parallel()
			database := pgtest.New(t)
			stdout, stderr, err := runBenchCommand(t, []string{"FAIRHOOK_DATABASE_URL=" + database.URL}, append(slices.Clone(run), tiny...)...)
			if err != nil {
				t.Fatalf("%v\n%s", err, stderr)
			}
			if slices.Contains(run, "json") {
				if !json.Valid([]byte(stdout)) {
					t.Errorf("not JSON: %s", stdout)
				}
				return
			}
			parts := benchPartNames()
			if i := slices.Index(run, "--only"); i >= 0 {
				parts = strings.Split(run[i+1], ",")
			}
			for _, part := range parts {
				if !strings.Contains(stdout, "\n"+part+": ") {
					t.Errorf("there is no table of %s:\n%s", part, stdout)
				}
			}
			if got := strings.Count(stdout, "\n\n"); got < len(parts) {
				t.Errorf("%d tables for %q:\n%s", got, parts, stdout)
			}
		})
	}
}

func TestBench(t *testing.T) {
	t.Parallel()
	t.Run("MeasuresEachPartOnAPrivatePostgres", func(t *testing.T) {
		t.Parallel()
		stdout, stderr, err := runBenchCommand(t, nil, append([]string{"-o", "json"}, tiny...)...)
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
		if report.Machine.CPUs == 0 || report.Version == "" || report.Connections != 4 || report.DeliverConnections != 4 || report.BatchItems != 5 || report.PayloadBytes != 1024 {
			t.Errorf("the report does not say what was measured: %+v", report)
		}
		checkAccepted(t, report.Cases)
		checkDelivered(t, report.Deliver)
		if report.Latency == nil {
			t.Fatal("no latency")
		}
		checkQuiet(t, *report.Latency)
		checkOrdered(t, report.Ordered)
		checkFairness(t, report.Fairness)
		g := report.Gated
		if g == nil {
			t.Fatal("nothing was gated")
		}
		checkQuiet(t, g.Latency)
		if want := (g.GatedBefore + g.GatedAfter) / (g.EmptyBefore + g.EmptyAfter); math.Abs(g.Ratio-want) > 1e-6 || want <= 0 || g.Waiting != 600 || g.Lanes != 200 {
			t.Errorf("gated %+v, want a ratio of %g", g, want)
		}
	})
	t.Run("LeavesNothingOnTheServerItIsGiven", func(t *testing.T) {
		t.Parallel()
		database := pgtest.New(t)
		if _, err := database.Pool.Exec(t.Context(), `INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids)
			VALUES ($1, 'acme', 'order.paid', '{}', '{}')`, webhook.NewID(time.Now())); err != nil {
			t.Fatal(err)
		}
		stdout, stderr, err := runBenchCommand(t, []string{"FAIRHOOK_DATABASE_URL=" + database.URL}, append([]string{"--only", "accept"}, tiny...)...)
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		if !strings.Contains(stdout, "events/s") || strings.Count(stdout, "\n") != 10 {
			t.Errorf("not a table of four cases:\n%s", stdout)
		}
		name := benchDatabase(t, stderr)
		if left, kept := leftOn(t, database, name); left != 0 || kept != 1 {
			t.Errorf("%d databases are left, %d of 1 events of the given one", left, kept)
		}
	})
	t.Run("LeavesNothingWhenItIsStopped", func(t *testing.T) {
		t.Parallel()
		database := pgtest.New(t)
		cmd := benchCommand(t, []string{"FAIRHOOK_DATABASE_URL=" + database.URL}, append(slices.Clone(tiny), "--only", "fairness", "--hang", "1m", "--hanging-webhooks", "7")...)
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var seen strings.Builder
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&seen, lines.Text())
			if strings.HasSuffix(lines.Text(), ". 7 webhooks created") {
				if err := cmd.Process.Signal(os.Interrupt); err != nil {
					t.Error(err)
				}
			}
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(seen.String(), "stopped before the end") {
			t.Errorf("%v\n%s", err, &seen)
		}
		if left, _ := leftOn(t, database, benchDatabase(t, seen.String())); left != 0 {
			t.Errorf("its database is left:\n%s", &seen)
		}
	})
	t.Run("RefusesSettingsThatMakeNoSense", func(t *testing.T) {
		t.Parallel()
		_, stderr, err := runBenchCommand(t, nil, "--only", "accept,none", "--duration", "0s", "--webhooks", "1,none", "--connections", "0",
			"--batch-items", "0", "--payload-bytes", "3", "--quiet-per-second", "0", "--waiting", "0", "-o", "xml")
		if err == nil {
			t.Fatal("it ran")
		}
		for _, flag := range []string{"--only", "--duration", "--webhooks", "--connections", "--batch-items", "--payload-bytes", "--quiet-per-second", "--waiting", "--output"} {
			if !strings.Contains(stderr, flag+" (") {
				t.Errorf("nothing is said about %s:\n%s", flag, stderr)
			}
		}
	})
}

// benchDatabase is the database that a run made, by what it said.
func benchDatabase(t *testing.T, stderr string) string {
	t.Helper()
	_, rest, found := strings.Cut(stderr, "using the database ")
	name, _, _ := strings.Cut(rest, " ")
	if !found || !strings.HasPrefix(name, "fairhook_bench_") {
		t.Fatalf("no database is named:\n%s", stderr)
	}
	return name
}

// leftOn is how many databases of that name there are, and how many events the
// given one has.
func leftOn(t *testing.T, database *pgtest.Database, name string) (left, kept int) {
	t.Helper()
	if err := database.Pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_database WHERE datname = $1), (SELECT count(*) FROM fairhook.events)`, name).
		Scan(&left, &kept); err != nil {
		t.Fatal(err)
	}
	return left, kept
}

// wantCases are those of tiny.
var wantCases = []string{"xsingle", "xbatch", "xxxsingle", "xxxbatch"}

func checkAccepted(t *testing.T, cases []benchCase) {
	t.Helper()
	var got []string
	for _, c := range cases {
		got = append(got, strings.Repeat("x", c.Webhooks)+c.Mode)
		if c.EventsPerSecond <= 0 || c.Requests == 0 || c.P50 <= 0 || c.P99 < c.P50 || c.RawBefore <= 0 || c.RawAfter <= 0 || c.Refused != 0 {
			t.Errorf("case %+v", c)
		}
		if want := c.EventsPerSecond / ((c.RawBefore + c.RawAfter) / 2); c.Ratio != want {
			t.Errorf("ratio %g, want %g", c.Ratio, want)
		}
	}
	if !slices.Equal(got, wantCases) {
		t.Errorf("accepted %q, want %q", got, wantCases)
	}
}

func checkDelivered(t *testing.T, cases []benchDelivery) {
	t.Helper()
	var got []string
	for _, c := range cases {
		got = append(got, strings.Repeat("x", c.Webhooks)+c.Mode)
		if c.Events == 0 || c.EventsPerSecond <= 0 || c.AcceptedPerSecond <= 0 || c.P50 <= 0 || c.P99 < c.P50 || c.RiverBefore <= 0 || c.RiverAfter <= 0 || c.Refused != 0 {
			t.Errorf("case %+v", c)
		}
		// The payload is written once at least. What Postgres counts comes later than
		// tiny runs wait for.
		if c.WALBytes < 1024 || c.RowWrites < 0 || c.Commits < 0 {
			t.Errorf("what an event costs Postgres: %+v", c)
		}
		if want := c.EventsPerSecond / ((c.RiverBefore + c.RiverAfter) / 2); c.Ratio != want {
			t.Errorf("ratio %g, want %g", c.Ratio, want)
		}
	}
	if !slices.Equal(got, wantCases) {
		t.Errorf("delivered %q, want %q", got, wantCases)
	}
}

func checkQuiet(t *testing.T, q benchQuiet) {
	t.Helper()
	if q.Events+q.Refused != 15 || q.Webhooks != 5 || q.PerSecond != 50 {
		t.Errorf("%+v, want 15 events", q)
	}
	if q.P50 <= 0 || q.P99 < q.P50 || q.AnsweredP50 > q.P50 || q.AnsweredP99 > q.P99 || q.AnsweredP99 < q.AnsweredP50 {
		t.Errorf("latencies %+v", q)
	}
}

func checkOrdered(t *testing.T, measured []benchOrdered) {
	t.Helper()
	var got []string
	for _, c := range measured {
		got = append(got, fmt.Sprintf("%s over %d", c.Ordering, c.Keys))
		if c.Events != 30 || c.EventsPerSecond <= 0 || c.OK != (c.EventsPerSecond >= c.Bound) {
			t.Errorf("case %+v", c)
		}
	}
	if want := []string{"strict over 1", "key over 4"}; !slices.Equal(got, want) {
		t.Errorf("measured %q, want %q", got, want)
	}
}

func TestBenchNoticesEventsThatAreOutOfOrder(t *testing.T) {
	t.Parallel()
	ids := []webhook.ID{{1}, {2}, {3}, {4}}
	var acks []ack
	for _, id := range ids {
		acks = append(acks, ack{id: id})
	}
	for name, c := range map[string]struct {
		came []int
		keys int
		fine bool
	}{
		"InOrder":                      {[]int{0, 1, 2, 3}, 1, true},
		"OneThatCameAgain":             {[]int{0, 1, 0, 2, 3}, 1, true},
		"OneThatCameBeforeAnother":     {[]int{0, 2, 1, 3}, 1, false},
		"OneBeforeThatOfAnotherKey":    {[]int{1, 0, 3, 2}, 2, true},
		"OneBeforeAnotherOfTheSameKey": {[]int{2, 1, 0, 3}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var arrivals []arrival
			for _, i := range c.came {
				arrivals = append(arrivals, arrival{id: ids[i]})
			}
			if err := inOrder(acks, arrivals, c.keys); (err == nil) != c.fine {
				t.Errorf("error %v", err)
			}
		})
	}
}

func checkFairness(t *testing.T, measured []benchFairness) {
	t.Helper()
	var got []string
	for _, f := range measured {
		got = append(got, f.Beside)
		checkQuiet(t, f.benchQuiet)
		if (f.Beside == besideNothing) != (f.OK == nil) || (f.Beside == besideBreakers) != (f.OpenBreakers != nil) || (f.Beside == besideNothing) != (f.Detail == "") {
			t.Errorf("beside %s: %+v", f.Beside, f)
		}
	}
	if want := []string{besideNothing, besideBacklog, besideHanging, besideBreakers, besideNothing}; !slices.Equal(got, want) {
		t.Errorf("beside %q, want %q", got, want)
	}
}

func TestJudgingFairness(t *testing.T) {
	t.Parallel()
	var measured []benchFairness
	for _, p99 := range []time.Duration{10, 50, 51, 20} { // 2 * (10+20)/2 + 20 = 50
		measured = append(measured, benchFairness{benchQuiet: benchQuiet{P99: p99 * time.Millisecond}})
	}
	judge(measured)
	if measured[0].OK != nil || measured[3].OK != nil {
		t.Error("those beside nothing are judged")
	}
	if !*measured[1].OK || *measured[2].OK || *measured[1].Bound != 50*time.Millisecond {
		t.Errorf("%v and %v, by %s; want the one at the bound to be in order", *measured[1].OK, *measured[2].OK, *measured[1].Bound)
	}
}

// What is acknowledged and does not come is an error, and what comes again is
// counted.
func TestSettle(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	a, b, foreign := webhook.NewID(begin), webhook.NewID(begin), webhook.NewID(begin)
	acks := []ack{{a, at(0), at(4)}, {b, at(1), at(9)}}
	got, err := settle(acks, []arrival{{b, at(12)}, {b, at(8)}, {a, at(10)}, {foreign, at(20)}, {a, at(11)}})
	if err != nil {
		t.Fatal(err)
	}
	sent, answered := []time.Duration{7 * time.Millisecond, 10 * time.Millisecond}, []time.Duration{0, 6 * time.Millisecond}
	if got.duplicates != 2 || !got.first.Equal(at(0)) || !got.last.Equal(at(10)) || !slices.Equal(got.sent, sent) || !slices.Equal(got.answered, answered) {
		t.Errorf("got %+v", got)
	}
	if _, err := settle(acks, []arrival{{a, at(10)}, {foreign, at(11)}}); err == nil || !strings.Contains(err.Error(), "1 of 2") {
		t.Errorf("one of two is lost: %v", err)
	}
	if _, err := settle(nil, []arrival{{a, at(10)}}); err == nil {
		t.Error("nothing was acknowledged, and that is no error")
	}
}

func TestSink(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, answer string, wait time.Duration) *sink {
		s, err := startSink(2, answer, wait)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	// post sends a delivery as Fairhook does, and returns the status.
	post := func(t *testing.T, s *sink, id, body string) (int, error) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url, strings.NewReader(body))
		if err != nil {
			return 0, err
		}
		request.Header["webhook-id"] = []string{id}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}

	t.Run("RemembersWhatCame", func(t *testing.T) {
		t.Parallel()
		s := start(t, answerTaken, 0)
		var want []webhook.ID
		for _, size := range []int{0, 10, 100_000, 1} {
			id := webhook.NewID(time.Now())
			want = append(want, id)
			if status, err := post(t, s, id.String(), strings.Repeat("x", size)); err != nil || status != http.StatusNoContent {
				t.Fatalf("%d bytes: %d, %v", size, status, err)
			}
		}
		if err := s.await(t.Context(), len(want), time.Hour); err != nil {
			t.Fatal(err)
		}
		var got []webhook.ID
		for _, one := range s.came() {
			got = append(got, one.id)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		s.forget()
		if len(s.came()) != 0 || s.received.Load() != 0 {
			t.Error("it remembers what it should forget")
		}
	})
	t.Run("FailsWhenToldTo", func(t *testing.T) {
		t.Parallel()
		s := start(t, answerFailed, 0)
		for range 2 {
			if status, err := post(t, s, webhook.NewID(time.Now()).String(), "{}"); err != nil || status != http.StatusInternalServerError {
				t.Errorf("%d, %v", status, err)
			}
		}
	})
	t.Run("HangsUntilItIsReleased", func(t *testing.T) {
		t.Parallel()
		s := start(t, answerTaken, time.Hour)
		answered := make(chan error, 1)
		go func() {
			_, err := post(t, s, webhook.NewID(time.Now()).String(), "{}")
			answered <- err
		}()
		if err := s.await(t.Context(), 1, time.Hour); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-answered:
			t.Errorf("it answered: %v", err)
		default:
		}
		s.release()
		if err := <-answered; err != nil {
			t.Error(err)
		}
	})
	t.Run("EndsWaitingWhenNothingComes", func(t *testing.T) {
		t.Parallel()
		s := start(t, answerTaken, 0)
		if status, err := post(t, s, webhook.NewID(time.Now()).String(), "{}"); err != nil {
			t.Fatal(status, err)
		}
		var stalled *stalledError
		if err := s.await(t.Context(), 2, time.Millisecond); !errors.As(err, &stalled) || stalled.received != 1 || stalled.n != 2 {
			t.Errorf("got %v", err)
		}
	})
	t.Run("DoesNotCountWhatIsNoDelivery", func(t *testing.T) {
		t.Parallel()
		s := start(t, answerTaken, 0)
		if status, err := post(t, s, "none", "{}"); err == nil {
			t.Errorf("it answered %d", status)
		}
		if s.received.Load() != 0 {
			t.Error("it was counted")
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
		n, err := insertRaw(t.Context(), pool, []webhook.ID{hook}, payload, func(int) bool { return true })
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

// What waits behind gates looks like what was accepted for a paused webhook.
func TestGatedRowsAreThoseOfAcceptedEvents(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	hook := webhook.NewID(time.Now())
	insert := `INSERT INTO fairhook.webhooks (id, tenant, url, description, event_types, status, headers, timeout_seconds, max_in_flight, retry_schedule_seconds, max_age_seconds)
		VALUES ($1, 'bench', 'http://127.0.0.1/', '', '{*}', 'active', '{}', 20, 7, '{5,300}', 60)`
	if _, err := pool.Exec(t.Context(), insert, hook); err != nil {
		t.Fatal(err)
	}
	if _, err := insertRaw(t.Context(), pool, []webhook.ID{hook}, []byte(`{}`), func(int) bool { return true }); err != nil {
		t.Fatal(err)
	}
	b := &bench{pool: pool}
	if err := b.fillGated(t.Context(), hook, 3, 20); err != nil {
		t.Fatal(err)
	}
	var webhooks, jobs, lanes, events, kinds int
	if err := pool.QueryRow(t.Context(), `
		WITH gated AS (
			SELECT j.* FROM fairhook.river_job AS j JOIN fairhook.webhooks AS w ON j.queue = 'wh-' || w.id AND j.args ->> 'webhook_id' = w.id::text
			WHERE w.status = 'paused' AND j.unique_key = uuid_send((j.args ->> 'event_id')::uuid) || uuid_send(w.id)
		)
		SELECT (SELECT count(*) FROM fairhook.webhooks WHERE status = 'paused' AND max_in_flight = 7),
		       (SELECT count(*) FROM gated), (SELECT count(DISTINCT queue) FROM gated), (SELECT count(DISTINCT args ->> 'event_id') FROM gated),
		       (SELECT count(DISTINCT to_jsonb(j) - '{id,args,queue,created_at,scheduled_at,unique_key}'::text[]) FROM fairhook.river_job AS j)`).
		Scan(&webhooks, &jobs, &lanes, &events, &kinds); err != nil {
		t.Fatal(err)
	}
	if webhooks != 3 || jobs != 21 || lanes != 3 || events != 21 {
		t.Errorf("%d paused webhooks, %d jobs in %d lanes of %d events; want 3, 21, 3, 21", webhooks, jobs, lanes, events)
	}
	if kinds != 1 {
		t.Errorf("%d kinds of jobs; those that wait differ from those inserted directly", kinds)
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
		return &load{address: server.Listener.Addr().String(), key: "key", connections: 3}
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
		m, err := l.start(t.Context(), plan{requests: batchRequests(webhooks, []byte(`{}`), 3), most: 3})
		if err != nil || m.acknowledged != 6 || m.refused != 3 {
			t.Errorf("%+v, %v", m, err)
		}
	})
	t.Run("KeepsTheIdsOfWhatWasAcknowledged", func(t *testing.T) {
		t.Parallel()
		ids := []webhook.ID{webhook.NewID(time.Now()), webhook.NewID(time.Now())}
		l := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/events" {
				w.WriteHeader(http.StatusAccepted)
				fmt.Fprintf(w, `{"id":%q,"tenant":"bench","deliveries":[{"webhook_id":%q}]}`, ids[0], webhooks[0])
				return
			}
			fmt.Fprintf(w, `{"results":[{"status":202,"id":%q},{"status":429,"error":{}},{"status":202,"id":%q}]}`, ids[0], ids[1])
		})
		l.keep = true
		for _, tc := range []struct {
			requests []request
			want     []webhook.ID
		}{{singleRequests(webhooks, []byte(`{}`)), ids[:1]}, {batchRequests(webhooks, []byte(`{}`), 3), ids}} {
			m, err := l.start(t.Context(), plan{requests: tc.requests, most: 1})
			if err != nil {
				t.Fatal(err)
			}
			var got []webhook.ID
			for _, one := range m.acks {
				got = append(got, one.id)
				if one.sent.IsZero() || one.answered.Before(one.sent) {
					t.Errorf("sent %s, answered %s", one.sent, one.answered)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		}
	})
	t.Run("SendsAtItsPaceWhateverIsAnswered", func(t *testing.T) {
		t.Parallel()
		var under, most atomic.Int64
		hold := make(chan struct{})
		release := sync.OnceFunc(func() { close(hold) })
		l := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if n := under.Add(1); n == 3 { // all connections are busy: the rest waits for them
				most.Store(n)
				release()
			}
			<-hold
			w.WriteHeader(http.StatusAccepted)
		})
		p := paced(singleRequests(webhooks, []byte(`{}`)), 1000, 10*time.Millisecond)
		begun := time.Now()
		m, err := l.start(t.Context(), p)
		if err != nil || m.acknowledged != 10 || most.Load() != 3 {
			t.Errorf("%+v, %v; want 10 sent, 3 of them before the first answer", m, err)
		}
		if took := time.Since(begun); took < 8*time.Millisecond {
			t.Errorf("10 at 1000/s took %s", took)
		}
	})
	t.Run("CountsWhatItSendsLate", func(t *testing.T) {
		t.Parallel()
		l := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
		p := paced(singleRequests(webhooks, []byte(`{}`)), 1000, 4*time.Millisecond)
		p.begin = p.begin.Add(-time.Hour)
		if m, err := l.start(t.Context(), p); err != nil || m.late != 4 {
			t.Errorf("%+v, %v; want 4 late", m, err)
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
		warmed, err := l.warm(t.Context(), batchRequests(webhooks, []byte(`{}`), 2))
		if err != nil || warmed.acknowledged != 14 || asked.Load() != 8 {
			t.Errorf("%d events in %d requests, %v; want 14 in two times 4", warmed.acknowledged, asked.Load(), err)
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
		if _, err := (&load{address: listener.Addr().String(), key: "key", connections: 1}).run(t.Context(), singleRequests(webhooks, benchPayload(20)), 0, time.Hour); err == nil {
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
