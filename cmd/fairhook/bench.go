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

	benchTenant = "bench"
	benchType   = "bench.event"

	// maxBenchWebhooks bounds the set-up: each is created by a request.
	maxBenchWebhooks = 100_000
	// creators is how many webhooks are created at the same time.
	creators = 16
	// drainTimeout is how long deliveries may trail behind acceptance.
	drainTimeout = 5 * time.Minute
	drainPoll    = 20 * time.Millisecond
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
	// Duration is how long each case is measured. Each is run for a quarter of
	// that before.
	Duration time.Duration
	// Connections is how many requests are under way at the same time.
	Connections int
	// Webhooks are the numbers of webhooks to spread events over.
	Webhooks []string
	// PayloadBytes is the size of each event's payload.
	PayloadBytes int
	// BatchItems is the number of events of each request of the batch cases.
	BatchItems int
	// Deliver has a dispatcher work at the same time.
	Deliver bool
	// Output is outputTable or outputJSON.
	Output string

	webhooks []int
}

func (c *benchConfig) register(s *daemon.Settings) {
	c.Register(s)
	s.String(&c.BinDir, "bin-dir", "", "directory of the programs ingest, dispatcher and migrate; that of fairhook itself if not set")
	s.Duration(&c.Duration, "duration", 3*time.Second, "how long to measure each case, after a quarter of it to warm up")
	s.Check("duration", func() error {
		if c.Duration < time.Millisecond {
			return errors.New("must be at least 1ms")
		}
		return nil
	})
	s.Int(&c.Connections, "connections", 64, "connections that submit at the same time, each one request at a time")
	s.Check("connections", func() error { return between(c.Connections, 1, 10_000) })
	s.Strings(&c.Webhooks, "webhooks", []string{"1", "100", "10000"}, "numbers of webhooks to spread the events over, a case each")
	s.Check("webhooks", func() (err error) {
		c.webhooks, err = parseCounts(c.Webhooks)
		return err
	})
	s.Int(&c.PayloadBytes, "payload-bytes", 1024, "size of each event's payload, in bytes")
	s.Check("payload-bytes", func() error { return between(c.PayloadBytes, minPayload, 1<<20) })
	s.Int(&c.BatchItems, "batch-items", 100, "events in each request of the batch cases")
	s.Check("batch-items", func() error { return between(c.BatchItems, 1, 10_000) })
	s.Bool(&c.Deliver, "deliver", false, "deliver the events too, at the same time and on the same machine")
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
		Short: "Measure how many events are accepted, and how fast",
		Long: `Measure how many events are accepted per second, and how long each submission
takes, with the real programs on a private Postgres that waits for the disk.
Each rate is also given as a ratio to the rate at which the same rows can be
inserted directly, by pgx in batches of 500, on the same database in the same
run: ratios can be compared between machines, rates cannot.

Generator, receiver, programs and Postgres share this machine. With --database-url
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
	if err := errors.Join(err, b.dev.stop()); err != nil {
		return err
	}
	if cfg.Output == outputJSON {
		return report.writeJSON(results)
	}
	return report.writeTable(results)
}

// bench is one run of `fairhook bench`. It belongs to the goroutine of runBench.
type bench struct {
	cfg  benchConfig
	dev  *dev
	pool *pgxpool.Pool
	// own is whether the server is ours alone.
	own bool
	// api is the address of the ingest.
	api  string
	sink *sink
}

func (b *bench) run(ctx context.Context) (*benchReport, error) {
	b.dev.out.printf("Fairhook %s\n\n", daemon.Version())
	if err := b.dev.prepare(); err != nil {
		return nil, err
	}
	database, err := b.database(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := b.dev.keys(); err != nil {
		return nil, err
	}
	if err := b.dev.migrate(ctx, database); err != nil {
		return nil, err
	}
	b.pool, err = postgres.Open(ctx, database["FAIRHOOK_DATABASE_URL"], "fairhook-bench", rawConnections+1)
	if err != nil {
		return nil, err
	}
	b.dev.onStop("database pool", func() error { b.pool.Close(); return nil })
	if b.sink, err = startSink(); err != nil {
		return nil, fmt.Errorf("start the receiver: %w", err)
	}
	b.dev.onStop("receiver", b.sink.close)
	listen, err := b.dev.serve(ctx, "ingest", []string{anyAddress, anyAddress}, database)
	if err != nil {
		return nil, err
	}
	b.api = reachable(listen)
	b.dev.out.step("Ingest is ready")
	if b.cfg.Deliver {
		if err := b.dev.dispatcher(ctx, database); err != nil {
			return nil, err
		}
	}
	webhooks, err := b.createWebhooks(ctx, slices.Max(b.cfg.webhooks))
	if err != nil {
		return nil, err
	}
	report, err := b.describe(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range b.cfg.webhooks {
		cases, err := b.measure(ctx, webhooks[:n])
		if err != nil {
			return nil, err
		}
		report.Cases = append(report.Cases, cases...)
	}
	return report, nil
}

// database makes a database to measure on, and returns the environment that
// leads to it.
func (b *bench) database(ctx context.Context) (map[string]string, error) {
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

// createWebhooks creates n webhooks to the sink and returns their ids.
func (b *bench) createWebhooks(ctx context.Context, n int) ([]webhook.ID, error) {
	c, err := client.New("http://"+b.api, b.dev.cfg.BootstrapKey.Reveal(), client.WithUserAgent("fairhook-bench/"+daemon.Version()))
	if err != nil {
		return nil, fmt.Errorf("make the API client: %w", err)
	}
	ids := make([]webhook.ID, n)
	work, workCtx := errgroup.WithContext(ctx)
	work.SetLimit(creators)
	for i := range ids {
		work.Go(func() error {
			created, err := c.Webhooks().Create(workCtx, client.NewWebhook{Tenant: benchTenant, URL: b.sink.url})
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

// measure runs the cases of one number of webhooks: the raw rate before and after
// them, since a machine that others share changes in between.
func (b *bench) measure(ctx context.Context, webhooks []webhook.ID) ([]benchCase, error) {
	before, err := b.raw(ctx, webhooks)
	if err != nil {
		return nil, err
	}
	var cases []benchCase
	for _, mode := range []string{modeSingle, modeBatch} {
		c, err := b.accept(ctx, mode, webhooks)
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
		b.dev.out.step("%d webhooks, %s: %.0f events/s, %.2f of the raw rate",
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
			n, err := insertRaw(ctx, b.pool, webhooks, benchPayload(b.cfg.PayloadBytes), until)
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

// accept measures the acceptance of events for the given webhooks, and makes sure
// that all that was acknowledged is stored.
func (b *bench) accept(ctx context.Context, mode string, webhooks []webhook.ID) (benchCase, error) {
	if err := b.emptyTables(ctx); err != nil {
		return benchCase{}, err
	}
	l := newLoad(b.api, b.dev.cfg.BootstrapKey.Reveal(), b.cfg.Connections)
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
	begun := time.Now()
	m, err := l.run(ctx, requests, b.cfg.Duration/4, b.cfg.Duration)
	if err != nil {
		return benchCase{}, err
	}
	m.acknowledged += warm
	stored, err := b.count(ctx, `SELECT count(*) FROM fairhook.events`)
	if err != nil {
		return benchCase{}, err
	}
	if stored < m.acknowledged {
		return benchCase{}, fmt.Errorf("%d events were acknowledged and %d are stored", m.acknowledged, stored)
	}
	if m.accepted == 0 {
		return benchCase{}, fmt.Errorf("no event was accepted within %s: measure longer with --duration", b.cfg.Duration)
	}
	c := benchCase{
		Webhooks: len(webhooks), Mode: mode,
		EventsPerSecond: float64(m.accepted) / b.cfg.Duration.Seconds(),
		Requests:        len(m.latencies), Refused: m.refused,
		P50: percentile(m.latencies, 0.50), P99: percentile(m.latencies, 0.99),
	}
	if b.cfg.Deliver {
		if err := b.drained(ctx); err != nil {
			return benchCase{}, err
		}
		rate := float64(m.acknowledged-warm) / time.Since(begun).Seconds()
		c.DeliveredPerSecond = &rate
	}
	return c, nil
}

// drained returns when nothing is left to deliver.
func (b *bench) drained(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	ticker := time.NewTicker(drainPoll)
	defer ticker.Stop()
	for {
		waiting, err := b.count(ctx, `SELECT count(*) FROM (SELECT FROM fairhook.river_job WHERE kind = 'delivery' LIMIT 1) AS any_job`)
		if err != nil || waiting == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("deliveries are still waiting after %s", drainTimeout)
		case <-ticker.C:
		}
	}
}
