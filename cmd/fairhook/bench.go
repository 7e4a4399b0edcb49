//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pglocal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	outputTable = "table"
	outputJSON  = "json"

	modeSingle = "single"
	modeBatch  = "batch"

	// The parts of a run, in their order.
	partAccept   = "accept"
	partDeliver  = "deliver"
	partLatency  = "latency"
	partOrdered  = "ordered"
	partFairness = "fairness"
	partGated    = "gated"

	benchTenant = "bench"
	benchType   = "bench.event"

	// maxBenchWebhooks bounds the set-up: each is created by a request.
	maxBenchWebhooks = 100_000
	// creators is how many webhooks are created at the same time.
	creators = 16
	// rawConnections is how many connections insert rows directly: as many as
	// ingest's committers, since both wait for the same disk.
	rawConnections = intake.DefaultCommitters
)

// benchConfig is what `fairhook bench` can be told.
type benchConfig struct {
	daemon.Common
	// BinDir holds ingest, dispatcher and migrate. Empty: the directory of the
	// running program.
	BinDir string
	// Only are the parts to run. Empty: all.
	Only []string
	// Duration is how long each case at full load is measured.
	Duration time.Duration
	// Connections is how many requests are under way at the same time where only
	// acceptance is measured, and DeliverConnections where delivery is too.
	Connections, DeliverConnections int
	// Webhooks are the numbers of webhooks to spread events over.
	Webhooks []string
	// PayloadBytes is the size of each event's payload.
	PayloadBytes int
	// BatchItems is the number of events of each request of the batch cases.
	BatchItems int
	// CountersDelay is how long a connection of Postgres' that has become idle keeps
	// what it has counted to itself, at most.
	CountersDelay time.Duration
	// MaxInFlight is that of the webhooks.
	MaxInFlight int
	// QuietDuration is how long latencies are measured, at QuietPerSecond events a
	// second over QuietWebhooks webhooks.
	QuietDuration  time.Duration
	QuietPerSecond int
	QuietWebhooks  int
	// OrderedEvents is how many events each of the ordered webhooks gets, and OrderedKeys
	// how many ordering keys those of the one ordered by key have.
	OrderedEvents, OrderedKeys int
	// Waiting is how many deliveries wait behind gates, and GatedWebhooks for how
	// many webhooks.
	Waiting, GatedWebhooks int
	// Backlog is how many deliveries of one webhook wait beside the quiet ones.
	Backlog int
	// HangingWebhooks have receivers that hang for Hang, and get HangingEvents
	// events each at once.
	HangingWebhooks, HangingEvents int
	Hang                           time.Duration
	// FailingWebhooks have receivers that answer 500, and get FailingEvents events
	// each at once. BreakerWait is how long their breakers may take to open.
	FailingWebhooks, FailingEvents int
	BreakerWait                    time.Duration
	// AttackPerSecond is how many events a second go to the webhooks in trouble
	// while the quiet ones are measured.
	AttackPerSecond int
	// Output is outputTable or outputJSON.
	Output string

	webhooks []int
}

func (c *benchConfig) register(s *daemon.Settings) {
	c.Register(s)
	s.String(&c.BinDir, "bin-dir", "", "directory of the programs ingest, dispatcher and migrate; that of fairhook itself if not set")
	s.Strings(&c.Only, "only", nil, "parts to run, of "+strings.Join(benchPartNames(), ", ")+"; all if not set")
	s.Check("only", func() error {
		for _, name := range c.Only {
			if !slices.Contains(benchPartNames(), name) {
				return fmt.Errorf("%q is none of %s", name, strings.Join(benchPartNames(), ", "))
			}
		}
		return nil
	})
	duration := func(p *time.Duration, name string, def time.Duration, usage string) {
		s.Duration(p, name, def, usage)
		s.Check(name, func() error {
			if *p < time.Millisecond {
				return errors.New("must be at least 1ms")
			}
			return nil
		})
	}
	number := func(p *int, name string, def, low, high int, usage string) {
		s.Int(p, name, def, usage)
		s.Check(name, func() error { return between(*p, low, high) })
	}
	duration(&c.Duration, "duration", 3*time.Second, "how long to measure each case at full load")
	number(&c.Connections, "connections", 64, 1, 10_000, "connections that submit at the same time, each one request at a time")
	number(&c.DeliverConnections, "deliver-connections", 128, 1, 10_000, "the same, where events are delivered too")
	s.Strings(&c.Webhooks, "webhooks", []string{"1", "100", "10000"}, "numbers of webhooks to spread the events over, a case each")
	s.Check("webhooks", func() (err error) {
		c.webhooks, err = parseCounts(c.Webhooks)
		return err
	})
	number(&c.PayloadBytes, "payload-bytes", 1024, minPayload, 1<<20, "size of each event's payload, in bytes")
	number(&c.BatchItems, "batch-items", 100, 1, 10_000, "events in each request of the batch cases")
	// Idle connections report after 10 s, since Postgres 15.
	s.Duration(&c.CountersDelay, "counters-delay", 11*time.Second, "how long to wait, after each case, for Postgres to have counted all of its row writes and commits")
	number(&c.MaxInFlight, "max-in-flight", webhook.DefaultMaxInFlight, 1, webhook.MaxMaxInFlight, "max_in_flight of the webhooks")
	duration(&c.QuietDuration, "quiet-duration", 20*time.Second, "how long to measure latencies at a low rate")
	number(&c.QuietPerSecond, "quiet-per-second", 100, 1, 10_000, "events a second of that rate")
	number(&c.QuietWebhooks, "quiet-webhooks", 100, 1, maxBenchWebhooks, "webhooks that these events are spread over")
	number(&c.OrderedEvents, "ordered-events", 3_000, 1, 1_000_000, "events of each ordered webhook")
	number(&c.OrderedKeys, "ordered-keys", 100, 1, 100_000, "ordering keys of the webhook that is ordered by key")
	number(&c.Waiting, "waiting", 5_000_000, 1, 100_000_000, "deliveries that wait behind gates")
	number(&c.GatedWebhooks, "gated-webhooks", 100_000, 1, 1_000_000, "paused webhooks that these deliveries are of")
	number(&c.Backlog, "backlog", 500_000, 1, 10_000_000, "deliveries of one webhook that wait beside the quiet ones")
	number(&c.HangingWebhooks, "hanging-webhooks", 50, 1, maxBenchWebhooks, "webhooks beside the quiet ones whose receivers hang")
	number(&c.HangingEvents, "hanging-events", webhook.DefaultMaxInFlight, 1, 10_000, "events that each of those has at the start")
	duration(&c.Hang, "hang", 30*time.Second, "how long these receivers hang")
	number(&c.FailingWebhooks, "failing-webhooks", 2_000, 1, maxBenchWebhooks, "webhooks beside the quiet ones whose receivers answer 500")
	number(&c.FailingEvents, "failing-events", 25, 1, 10_000, "events that each of those has at the start")
	duration(&c.BreakerWait, "breaker-wait", 30*time.Second, "how long to wait for the breakers of those")
	number(&c.AttackPerSecond, "attack-per-second", 100, 0, 10_000, "events a second to the webhooks in trouble meanwhile")
	s.String(&c.Output, "output", outputTable, "form of the results: table or json")
	s.Check("output", func() error {
		if c.Output != outputTable && c.Output != outputJSON {
			return fmt.Errorf("%q is neither %s nor %s", c.Output, outputTable, outputJSON)
		}
		return nil
	})
}

func between(value, low, high int) error {
	if value < low || value > high {
		return fmt.Errorf("must be between %d and %d", low, high)
	}
	return nil
}

func parseCounts(texts []string) ([]int, error) {
	counts := make([]int, 0, len(texts))
	for _, text := range texts {
		n, err := strconv.Atoi(text)
		if err != nil || between(n, 1, maxBenchWebhooks) != nil {
			return nil, fmt.Errorf("%q is not a number between 1 and %d", text, maxBenchWebhooks)
		}
		counts = append(counts, n)
	}
	if len(counts) == 0 {
		return nil, errors.New("name at least one number")
	}
	return counts, nil
}

func newBenchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure how many events are accepted and delivered, and how fast",
		Long: `Measure the real programs on a private Postgres that waits for the disk:

  accept    events accepted a second, and how long each submission takes, as a
            ratio to the rate at which the same rows can be inserted directly
  deliver   events accepted and delivered a second, as a ratio to the no-op jobs
            that a River as it comes works on the same database
  latency   how long an event takes to its receiver at a low rate
  ordered   events delivered a second to one webhook in strict order, and to one that
            is ordered by key
  fairness  the latency of quiet webhooks beside others with a backlog, with receivers
            that hang, and with receivers that fail
  gated     rate and latency with millions of deliveries waiting for paused webhooks

Rates to compare with are measured before and after, in the same run: ratios can be
compared between machines, rates cannot. Whatever was acknowledged and did not come
is an error.

Generator, receivers, programs and Postgres share this machine. With --database-url
the rows go into a database of their own on that server, which is dropped at the
end; its user must be allowed to create databases.`,
		Args: cobra.NoArgs,
	}
	var cfg benchConfig
	flags := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	settings := daemon.NewSettings(flags)
	cfg.register(settings)
	flags.Lookup("output").Shorthand = "o"
	cmd.Flags().AddFlagSet(flags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settings.Resolve(os.LookupEnv); err != nil {
			return err
		}
		// What is done goes where it does not get in the way of the results.
		return runBench(cmd.Context(), cfg, os.Environ(), cmd.OutOrStdout(), &console{out: cmd.ErrOrStderr()})
	}
	return cmd
}

// runBench starts everything, measures, stops everything, and writes the results.
func runBench(ctx context.Context, cfg benchConfig, environ []string, results io.Writer, out *console) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b := &bench{cfg: cfg, dev: &dev{
		cfg: devConfig{Common: cfg.Common, BinDir: cfg.BinDir}, environ: environ, out: out, fail: cancel,
	}}
	report, err := b.run(ctx)
	var died *diedError
	switch {
	case errors.As(context.Cause(ctx), &died):
		err = died // whatever failed, failed because of it
	case ctx.Err() != nil:
		err = errors.New("stopped before the end")
	}
	err = errors.Join(err, b.dev.stop())
	if report == nil {
		return err
	}
	// The parts before the one that failed took their time: they are shown.
	write := report.writeTable
	if cfg.Output == outputJSON {
		write = report.writeJSON
	}
	return errors.Join(err, write(results))
}

// bench is one run of `fairhook bench`. It belongs to the goroutine of runBench.
type bench struct {
	cfg  benchConfig
	dev  *dev
	pool *pgxpool.Pool
	// own is whether the server is ours alone, and database the environment that
	// leads to it.
	own      bool
	database map[string]string
	// api is the address of the ingest.
	api  string
	sink *sink
	// webhooks are those that events are sent to.
	webhooks []webhook.ID
}

// benchPart is one part of a run.
type benchPart struct {
	name string
	// webhooks is how many it sends events to.
	webhooks func(cfg *benchConfig) int
	// dispatcher is whether it needs one.
	dispatcher bool
	run        func(b *bench, ctx context.Context, report *benchReport) error
}

// benchParts are in the order in which they are run: the first without a
// dispatcher, and last the one that leaves the most behind.
func benchParts() []benchPart {
	most := func(cfg *benchConfig) int { return slices.Max(cfg.webhooks) }
	quiet := func(cfg *benchConfig) int { return cfg.QuietWebhooks }
	return []benchPart{
		{partAccept, most, false, (*bench).accept},
		{partDeliver, most, true, (*bench).deliver},
		{partLatency, quiet, true, (*bench).latency},
		{partOrdered, func(*benchConfig) int { return 0 }, true, (*bench).ordered},
		{partFairness, quiet, true, (*bench).fairness},
		{partGated, quiet, true, (*bench).gated},
	}
}

func benchPartNames() []string {
	var names []string
	for _, part := range benchParts() {
		names = append(names, part.name)
	}
	return names
}

func (b *bench) run(ctx context.Context) (*benchReport, error) {
	b.dev.out.printf("Fairhook %s\n\n", daemon.Version())
	if err := b.dev.prepare(); err != nil {
		return nil, err
	}
	var err error
	if b.database, err = b.makeDatabase(ctx); err != nil {
		return nil, err
	}
	if _, err := b.dev.keys(); err != nil {
		return nil, err
	}
	if err := b.dev.migrate(ctx, b.database); err != nil {
		return nil, err
	}
	b.pool, err = postgres.Open(ctx, b.database["FAIRHOOK_DATABASE_URL"], "fairhook-bench", rawConnections+1)
	if err != nil {
		return nil, err
	}
	b.dev.onStop("database pool", func() error { b.pool.Close(); return nil })
	if b.sink, err = startSink(quietHost, answerTaken, 0); err != nil {
		return nil, err
	}
	b.dev.onStop("receiver", b.sink.close)
	listen, err := b.dev.serve(ctx, "ingest", []string{anyAddress, anyAddress}, b.database)
	if err != nil {
		return nil, err
	}
	b.api = reachable(listen)
	b.dev.out.step("Ingest is ready")
	report, err := b.describe(ctx)
	if err != nil {
		return nil, err
	}
	return report, b.runParts(ctx, report)
}

// runParts runs those that were asked for.
func (b *bench) runParts(ctx context.Context, report *benchReport) error {
	parts := slices.DeleteFunc(benchParts(), func(part benchPart) bool {
		return len(b.cfg.Only) > 0 && !slices.Contains(b.cfg.Only, part.name)
	})
	n := 0
	for _, part := range parts {
		n = max(n, part.webhooks(&b.cfg))
	}
	var err error
	b.webhooks, err = b.createWebhooks(ctx, n, client.NewWebhook{Tenant: benchTenant, URL: b.sink.url, MaxInFlight: b.cfg.MaxInFlight})
	if err != nil {
		return err
	}
	dispatching := false
	for _, part := range parts {
		if part.dispatcher && !dispatching {
			if err := b.dev.dispatcher(ctx, b.database); err != nil {
				return err
			}
			dispatching = true
		}
		b.dev.out.printf("\n%s\n", part.name)
		if err := part.run(b, ctx, report); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// makeDatabase makes a database to measure on, and returns the environment that
// leads to it.
func (b *bench) makeDatabase(ctx context.Context) (map[string]string, error) {
	if b.cfg.DatabaseURL.IsSet() {
		name, err := createBenchDatabase(ctx, b.cfg.DirectDatabaseURL().Reveal())
		if err != nil {
			return nil, err
		}
		b.dev.onStop("database "+name, func() error {
			return dropBenchDatabase(context.WithoutCancel(ctx), b.cfg.DirectDatabaseURL().Reveal(), name)
		})
		b.dev.out.step("Postgres: using the database %s on the server of --database-url", name)
		return map[string]string{
			"FAIRHOOK_DATABASE_URL":        withDatabase(b.cfg.DatabaseURL.Reveal(), name),
			"FAIRHOOK_LISTEN_DATABASE_URL": withDatabase(b.cfg.DirectDatabaseURL().Reveal(), name),
		}, nil
	}
	b.own = true
	server, err := b.dev.postgres(ctx, pglocal.Config{Durable: true, Settings: map[string]string{
		// Enough that neither a small cache nor a checkpoint in the middle is what
		// is measured.
		"shared_buffers": "256MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min",
	}}, "in a temporary directory, written through to the disk and removed at the end")
	if err != nil {
		return nil, err
	}
	return map[string]string{"FAIRHOOK_DATABASE_URL": server.URL(""), "FAIRHOOK_LISTEN_DATABASE_URL": server.URL("")}, nil
}

// createWebhooks creates n webhooks alike and returns their ids.
func (b *bench) createWebhooks(ctx context.Context, n int, like client.NewWebhook) ([]webhook.ID, error) {
	c, err := client.New("http://"+b.api, b.dev.cfg.BootstrapKey.Reveal(), client.WithUserAgent("fairhook-bench/"+daemon.Version()))
	if err != nil {
		return nil, fmt.Errorf("make the API client: %w", err)
	}
	ids := make([]webhook.ID, n)
	work, workCtx := errgroup.WithContext(ctx)
	work.SetLimit(creators)
	for i := range ids {
		work.Go(func() error {
			created, err := c.Webhooks().Create(workCtx, like)
			if err != nil {
				return fmt.Errorf("create webhook %d of %d: %w", i+1, n, err)
			}
			ids[i], err = webhook.ParseID(created.ID)
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	b.dev.out.step("%d webhooks created", n)
	return ids, nil
}

// newLoad is a generator that remembers what was acknowledged.
func (b *bench) newLoad(connections int) *load {
	return &load{address: b.api, key: b.dev.cfg.BootstrapKey.Reveal(), connections: connections, keep: true}
}

// accept measures the acceptance of events, for each number of webhooks.
func (b *bench) accept(ctx context.Context, report *benchReport) error {
	for _, n := range b.cfg.webhooks {
		cases, err := b.acceptCases(ctx, b.webhooks[:n])
		if err != nil {
			return err
		}
		report.Cases = append(report.Cases, cases...)
	}
	return nil
}

// acceptCases are the cases of one number of webhooks: the raw rate before and
// after them, since a machine that others share changes in between.
func (b *bench) acceptCases(ctx context.Context, webhooks []webhook.ID) ([]benchCase, error) {
	before, err := b.raw(ctx, webhooks)
	if err != nil {
		return nil, err
	}
	var cases []benchCase
	for _, mode := range []string{modeSingle, modeBatch} {
		c, err := b.acceptCase(ctx, mode, webhooks)
		if err != nil {
			return nil, fmt.Errorf("%d webhooks, %s: %w", len(webhooks), mode, err)
		}
		cases = append(cases, c)
	}
	after, err := b.raw(ctx, webhooks)
	if err != nil {
		return nil, err
	}
	for i := range cases {
		cases[i].RawBefore, cases[i].RawAfter = before, after
		cases[i].Ratio = cases[i].EventsPerSecond / ((before + after) / 2)
		b.dev.out.step("%d webhooks, %s: %.0f events/s accepted, %.2f of the raw rate",
			len(webhooks), cases[i].Mode, cases[i].EventsPerSecond, cases[i].Ratio)
	}
	return cases, nil
}

// raw is how many events a second can be inserted directly.
func (b *bench) raw(ctx context.Context, webhooks []webhook.ID) (float64, error) {
	if err := b.emptyTables(ctx); err != nil {
		return 0, err
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		rows   int // guarded by mu
		faults []error
	)
	begun := time.Now()
	until := begun.Add(b.cfg.Duration / 2)
	for range rawConnections {
		wg.Go(func() {
			n, err := insertRaw(ctx, b.pool, webhooks, benchPayload(b.cfg.PayloadBytes), func(int) bool { return !time.Now().Before(until) })
			mu.Lock()
			defer mu.Unlock()
			rows += n
			faults = append(faults, err)
		})
	}
	wg.Wait()
	elapsed := time.Since(begun)
	if err := errors.Join(faults...); err != nil {
		return 0, fmt.Errorf("insert rows directly: %w", err)
	}
	return float64(rows) / elapsed.Seconds(), nil
}

// acceptCase measures the acceptance of events for the given webhooks, after a
// warm-up of a quarter of the time, and makes sure that all that was acknowledged
// is stored.
func (b *bench) acceptCase(ctx context.Context, mode string, webhooks []webhook.ID) (benchCase, error) {
	if err := b.emptyTables(ctx); err != nil {
		return benchCase{}, err
	}
	l := &load{address: b.api, key: b.dev.cfg.BootstrapKey.Reveal(), connections: b.cfg.Connections}
	// The configuration of all webhooks into memory, as it is after some time.
	warm, err := l.warm(ctx, batchRequests(webhooks, []byte(`{}`), warmItems))
	if err != nil {
		return benchCase{}, err
	}
	payload := benchPayload(b.cfg.PayloadBytes)
	requests := singleRequests(webhooks, payload)
	if mode == modeBatch {
		requests = batchRequests(webhooks, payload, b.cfg.BatchItems)
	}
	m, err := l.run(ctx, requests, b.cfg.Duration/4, b.cfg.Duration)
	if err != nil {
		return benchCase{}, err
	}
	acknowledged := m.acknowledged + warm.acknowledged
	stored, err := b.count(ctx, `SELECT count(*) FROM fairhook.events`)
	if err != nil {
		return benchCase{}, err
	}
	if stored < acknowledged {
		return benchCase{}, fmt.Errorf("%d events were acknowledged and %d are stored", acknowledged, stored)
	}
	if m.accepted == 0 {
		return benchCase{}, fmt.Errorf("no event was accepted within %s: measure longer with --duration", b.cfg.Duration)
	}
	return benchCase{
		Webhooks: len(webhooks), Mode: mode,
		EventsPerSecond: float64(m.accepted) / b.cfg.Duration.Seconds(),
		Requests:        len(m.latencies), Refused: m.refused,
		P50: percentile(m.latencies, 0.50), P99: percentile(m.latencies, 0.99),
	}, nil
}
