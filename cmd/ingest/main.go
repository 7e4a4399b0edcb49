// Command ingest is the REST API: it accepts events and manages webhooks. It
// keeps no state of its own: run as many copies as you like against one
// database, behind any balancer.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/heartbeat"
	"github.com/fairhook/fairhook/pkg/ingest"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/limit"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/reseal"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func main() {
	os.Exit(daemon.Execute(newCommand()))
}

// spareMemory is how much memory may lie about uncollected, besides as much as is in
// use: little enough for ingest to stay under 400 MiB with a full buffer.
const spareMemory = 128 << 20

// maxBodyBytes is the largest limit for bodies that may be chosen: a body is
// held in memory, and a Postgres value may not be much larger.
const maxBodyBytes = 256 << 20

// config is ingest's settings.
type config struct {
	daemon.Common
	// Listen is where the API, health and metrics are served.
	Listen string
	// BootstrapKey is the API key that may do everything.
	BootstrapKey daemon.SecretString
	// TrustedProxies are the proxies whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// AllowPrivate are private networks that webhooks may reach.
	AllowPrivate []netip.Prefix
	// RequireHTTPS refuses webhooks with http URLs.
	RequireHTTPS bool
	// MaxBodyBytes is the largest request body.
	MaxBodyBytes int64
	// MaxBatchItems and MaxBatchBytes bound a batch of events.
	MaxBatchItems int
	MaxBatchBytes int64
	// MaxJSONDepth and MaxJSONKeys bound the structure of an event's JSON.
	MaxJSONDepth, MaxJSONKeys int
	// AcceptPerSecond and TenantAcceptPerSecond limit the events accepted by all
	// copies together; 0: no limit.
	AcceptPerSecond, TenantAcceptPerSecond int
	// AdaptiveCommit, AdaptiveWait and AdaptiveFloor are how slow the database may
	// be before this copy takes fewer events, and how many it takes at least.
	AdaptiveCommit, AdaptiveWait time.Duration
	AdaptiveFloor                int
	// AdaptiveWebhookFloor is how many events a second this copy accepts at least
	// for a webhook whose deliveries fail; 0: any number.
	AdaptiveWebhookFloor int
	// StrictEventTypes refuses events of types that are not declared.
	StrictEventTypes bool
	// JobView serves River UI at /river.
	JobView bool
	// RequestTimeout is how long a request may take.
	RequestTimeout time.Duration
	// Sizes are those of pools, buffer and batches.
	Sizes sizes
	// ShutdownDelay is how long requests are still taken after the first signal,
	// and ShutdownTimeout how long stopping may take in all.
	ShutdownDelay, ShutdownTimeout time.Duration

	keys seal.Keys // that seal and open secrets
}

const about = `The REST API: accepts events, manages webhooks, answers queries. It keeps no state
of its own: any number of copies share one database, behind any balancer.

Serves /v1, /openapi.json, /docs, /livez, /readyz and /metrics on --listen.

SIGTERM turns readiness off, answers the requests under way once their events are
committed, and stops; a second signal stops at once. Exit codes: 0 stopped in
order, 1 failed, 2 wrong configuration.`

func newCommand() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use:   "ingest",
		Short: "Serve the REST API",
		Long:  about,
		Args:  cobra.NoArgs,
	}
	settings := daemon.NewSettings(cmd.Flags())
	cfg.register(settings)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settings.Resolve(os.LookupEnv); err != nil {
			return err
		}
		return run(cmd.Context(), cfg, cmd.OutOrStdout())
	}
	return cmd
}

func (c *config) register(s *daemon.Settings) {
	c.Register(s)
	s.Required("database-url")
	s.String(&c.Listen, "listen", ":8080", "address to serve the API, health and metrics on")
	s.Check("listen", daemon.CheckListen(&c.Listen))
	daemon.EncryptionKeys(s, c.keys.SetCurrent, c.keys.SetOld)
	s.Secret(&c.BootstrapKey, "bootstrap-key", "an API key that may do everything, for first use; without it only keys in the database are accepted")
	s.Prefixes(&c.TrustedProxies, "trusted-proxies", nil, "networks of the proxies in front, whose X-Forwarded-For is believed; without any, clients are who they connect as")
	s.Prefixes(&c.AllowPrivate, "allow-private-targets", nil, "private networks that webhooks may reach, such as 10.1.0.0/16")
	s.Bool(&c.RequireHTTPS, "require-https", false, "refuse webhooks with http URLs")

	s.Int64(&c.MaxBodyBytes, "max-body-bytes", ingest.DefaultMaxBodyBytes, "largest request body, in bytes")
	s.Check("max-body-bytes", func() error { return within(c.MaxBodyBytes, 1024, maxBodyBytes) })
	s.Int(&c.MaxBatchItems, "max-batch-items", ingest.DefaultMaxBatchItems, "events that one batch may have")
	s.Check("max-batch-items", func() error { return within(c.MaxBatchItems, 1, 10_000) })
	s.Int64(&c.MaxBatchBytes, "max-batch-bytes", ingest.DefaultMaxBatchBytes, "largest body of a batch of events, in bytes")
	s.Check("max-batch-bytes", func() error { return within(c.MaxBatchBytes, 1024, maxBodyBytes) })
	s.Int(&c.MaxJSONDepth, "max-json-depth", ingest.DefaultMaxJSONDepth, "how deep an event's JSON may be nested, the body it comes in included")
	s.Check("max-json-depth", func() error { return within(c.MaxJSONDepth, 2, 10_000) })
	s.Int(&c.MaxJSONKeys, "max-json-keys", ingest.DefaultMaxJSONKeys, "keys that all objects of an event's JSON may have together")
	s.Check("max-json-keys", func() error { return within(c.MaxJSONKeys, 10, 1<<24) })
	s.Bool(&c.StrictEventTypes, "strict-event-types", false, "refuse events of types that are not declared at /v1/event-types")
	s.Bool(&c.JobView, "job-view", false, "serve a view of the job table (River UI) at /river, for admins' keys for all tenants")
	s.Duration(&c.RequestTimeout, "request-timeout", ingest.DefaultRequestTimeout, "how long a request may take, the reading of its body included")
	s.Check("request-timeout", positive(&c.RequestTimeout))

	c.Sizes.register(s)
	s.Int(&c.AcceptPerSecond, "accept-per-second", 0, "events a second that all copies together accept, which must be set alike for all; 0: any number")
	s.Check("accept-per-second", func() error { return within(c.AcceptPerSecond, 0, webhook.MaxAcceptPerSecond) })
	s.Int(&c.TenantAcceptPerSecond, "tenant-accept-per-second", 0, "events a second that all copies together accept for each tenant, set alike for all; 0: any number")
	s.Check("tenant-accept-per-second", func() error { return within(c.TenantAcceptPerSecond, 0, webhook.MaxAcceptPerSecond) })
	s.Duration(&c.AdaptiveCommit, "adaptive-commit-time", limit.DefaultMaxCommit, "how long commits may take on average before fewer events are taken")
	s.Check("adaptive-commit-time", positive(&c.AdaptiveCommit))
	s.Duration(&c.AdaptiveWait, "adaptive-wait", limit.DefaultMaxWait, "how long events may wait to be committed on average before fewer are taken")
	s.Check("adaptive-wait", positive(&c.AdaptiveWait))
	s.Int(&c.AdaptiveFloor, "adaptive-floor", limit.DefaultMinRate, "events a second that are taken however slow commits are")
	s.Check("adaptive-floor", func() error { return within(c.AdaptiveFloor, 1, webhook.MaxAcceptPerSecond) })
	s.Int(&c.AdaptiveWebhookFloor, "adaptive-webhook-floor", limit.DefaultHealthRate, "events a second that this copy accepts at least for a webhook whose deliveries fail, when submitted to it directly; 0: any number")
	s.Check("adaptive-webhook-floor", func() error { return within(c.AdaptiveWebhookFloor, 0, webhook.MaxAcceptPerSecond) })

	s.Duration(&c.ShutdownDelay, "shutdown-delay", 0, "how long requests are still taken after SIGTERM, for balancers to notice that /readyz says no")
	s.Duration(&c.ShutdownTimeout, "shutdown-timeout", 25*time.Second, "how long stopping may take in all")
	s.Check("shutdown-timeout", func() error {
		if c.ShutdownTimeout <= c.ShutdownDelay {
			return errors.New("must be more than --shutdown-delay, which it includes")
		}
		return nil
	})
}

func within[T int | int64](value, low, high T) error {
	if value < low || value > high {
		return fmt.Errorf("must be between %d and %d", low, high)
	}
	return nil
}

func positive(d *time.Duration) func() error {
	return func() error {
		if *d <= 0 {
			return errors.New("must be more than 0s")
		}
		return nil
	}
}

func run(ctx context.Context, cfg config, logs io.Writer) error {
	instance := daemon.NewInstanceID()
	logger, level := cfg.NewLogger(logs, string(webhook.RoleIngest), instance)
	registry := daemon.NewRegistry()
	cfg.Sizes = cfg.Sizes.derive()
	if !cfg.BootstrapKey.IsSet() {
		logger.Info("no API key is configured, so only keys in the database are accepted: for the first one set --bootstrap-key (FAIRHOOK_BOOTSTRAP_KEY)")
	}

	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for the API (--listen): %w", err)
	}
	defer listener.Close()
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read the host name: %w", err)
	}
	guard, err := egress.New(egress.Config{AllowPrivate: cfg.AllowPrivate, RequireHTTPS: cfg.RequireHTTPS})
	if err != nil {
		return err
	}
	listen, err := pgx.ParseConfig(cfg.DirectDatabaseURL().Reveal())
	if err != nil {
		return fmt.Errorf("parse the listen database URL: %w", err)
	}
	// Committers have connections of their own: reads that take long must not keep
	// events from being stored. One is for finding out what became of a batch.
	commitConns := cfg.Sizes.Committers + 1
	commitPool, err := postgres.Open(ctx, cfg.DatabaseURL.Reveal(), "fairhook-intake", int32(commitConns))
	if err != nil {
		return err
	}
	defer commitPool.Close()
	pool, err := postgres.Open(ctx, cfg.DatabaseURL.Reveal(), "fairhook-ingest", int32(cfg.Sizes.DatabaseConnections-commitConns))
	if err != nil {
		return err
	}
	defer pool.Close()

	registry.MustRegister(postgres.PoolStats("intake", commitPool), postgres.PoolStats("ingest", pool))

	box := cfg.keys.Box()
	// The rest waits for the database; probes are answered meanwhile, and
	// everything else is told to come again.
	var buffer atomic.Pointer[intake.Intake]
	beat := heartbeat.New(heartbeat.Config{
		DB: pool, Instance: instance, Role: webhook.RoleIngest, Version: daemon.Version(), Host: host,
		Load: func() (capacity, inFlight int) {
			if b := buffer.Load(); b != nil {
				inFlight, _ = b.Depth()
			}
			return cfg.Sizes.BufferEvents, inFlight
		},
		Logger: logger, Registerer: registry,
	})
	health := newHealth(pool, &buffer)
	front := ingest.NewFront(health.Livez(), health.Readyz(), daemon.MetricsHandler(registry), cfg.RequestTimeout, logger)

	stages := daemon.NewStages(logger, cfg.ShutdownTimeout)
	stages.Add("memory", daemon.TuneGC(os.LookupEnv, spareMemory))
	stages.Add("log level", daemon.TuneLog(logger, level))
	stages.Add("ingest", func(ctx context.Context) error {
		if err := prepare(ctx, pool, box, logger); err != nil {
			if ctx.Err() != nil {
				return nil // told to stop before it had begun
			}
			return err
		}
		return serve(ctx, cfg, parts{
			pool: pool, commitPool: commitPool, box: box, listen: listen, guard: guard, health: health, front: front, buffer: &buffer, beat: beat,
			address: listener.Addr().String(),
			logger:  logger, registry: registry,
		})
	})
	stages.AddDrained("http", daemon.Serve(front.HTTPServer(), listener))
	stages.AddDrained("readiness", health.Withdraw(cfg.ShutdownDelay))
	stages.Add("announcement", func(ctx context.Context) error {
		<-ctx.Done()
		beat.Drain()
		return nil
	})
	return stages.Run(ctx)
}

// prepare waits for the database, and makes sure that its secrets can be opened and
// that there is somewhere to store events.
func prepare(ctx context.Context, pool *pgxpool.Pool, box *seal.Box, logger *slog.Logger) error {
	if err := postgres.Await(ctx, pool, logger); err != nil {
		return err
	}
	var missing *reseal.MissingKeyError
	if err := reseal.Check(ctx, pool, box); errors.As(err, &missing) {
		return daemon.WrongKeyError(missing)
	} else if err != nil {
		return err
	}
	_, err := postgres.EnsurePartitions(ctx, pool, 1)
	return err
}

// parts are what run has made by the time that the database answers.
type parts struct {
	pool, commitPool *pgxpool.Pool

	box      *seal.Box
	listen   *pgx.ConnConfig
	guard    *egress.Guard
	health   *daemon.Health
	front    *ingest.Front
	address  string // of the listener
	buffer   *atomic.Pointer[intake.Intake]
	beat     *heartbeat.Heartbeat
	logger   *slog.Logger
	registry *prometheus.Registry
}

// serve opens the front and runs what is behind it until ctx ends.
func serve(ctx context.Context, cfg config, p parts) error {
	pool, logger, registry := p.pool, p.logger, p.registry
	clock, err := postgres.NewClock(ctx, pool)
	if err != nil {
		return err
	}

	box := p.box
	cat := catalog.New(catalog.Config{Pool: pool, Listen: p.listen, KeyBox: box, Logger: logger, Registerer: registry})
	keyUse := ingest.NewKeyUse(pool, clock, logger)
	buffer := intake.New(intake.Config{
		Pool: p.commitPool, Clock: clock, Logger: logger, Registerer: registry,
		BufferEvents: cfg.Sizes.BufferEvents, BufferBytes: cfg.Sizes.BufferBytes, Committers: cfg.Sizes.Committers,
		BatchEvents: cfg.Sizes.BatchEvents, BatchBytes: cfg.Sizes.BatchBytes, BatchDeliveries: cfg.Sizes.BatchDeliveries,
	})
	limits := ingest.NewLimits(ingest.LimitsConfig{
		Pool: pool, Intake: buffer,
		AcceptPerSecond: float64(cfg.AcceptPerSecond), TenantAcceptPerSecond: float64(cfg.TenantAcceptPerSecond),
		AdaptiveCommit: cfg.AdaptiveCommit, AdaptiveWait: cfg.AdaptiveWait, AdaptiveFloor: float64(cfg.AdaptiveFloor),
		WebhookFloor: float64(cfg.AdaptiveWebhookFloor),
		Logger:       logger, Registerer: registry,
	})
	var jobView http.Handler
	var runJobView func(context.Context) error
	if cfg.JobView {
		if jobView, runJobView, err = ingest.NewJobView(pool, logger); err != nil {
			return err
		}
	}
	server, err := ingest.New(ingest.Config{
		Catalog: cat,
		Intake:  buffer,
		API: api.New(api.Config{
			Pool: pool, Clock: clock, Box: box, Guard: p.guard, Catalog: cat, MaxBodyBytes: cfg.MaxBodyBytes,
		}),
		Clock:          clock,
		Pool:           pool,
		Livez:          p.health.Livez(),
		Readyz:         p.health.Readyz(),
		Metrics:        daemon.MetricsHandler(registry),
		JobView:        jobView,
		BootstrapKey:   cfg.BootstrapKey.Reveal(),
		KeyUse:         keyUse,
		TrustedProxies: cfg.TrustedProxies,
		MaxBodyBytes:   cfg.MaxBodyBytes,
		MaxBatchItems:  cfg.MaxBatchItems,
		MaxBatchBytes:  cfg.MaxBatchBytes,
		RequestTimeout: cfg.RequestTimeout,

		MaxJSONDepth:     cfg.MaxJSONDepth,
		MaxJSONKeys:      cfg.MaxJSONKeys,
		Limits:           limits,
		StrictEventTypes: cfg.StrictEventTypes,

		Logger:     logger,
		Registerer: registry,
	})
	if err != nil {
		return err
	}

	p.buffer.Store(buffer)
	p.front.Open(server)
	logger.Info("ingest started", "listen", p.address, "sizes", cfg.Sizes)

	stages := daemon.NewStages(logger, cfg.ShutdownTimeout)
	stages.Add("clock", clock.Run)
	stages.Add("catalog", cat.Run)
	stages.Add("key use", keyUse.Run)
	stages.Add("limits", limits.Run)
	if cfg.JobView {
		stages.Add("job view", runJobView)
	}
	stages.Add("heartbeat", p.beat.Run)
	stages.Add("intake", buffer.Run)
	return stages.Run(ctx)
}

// newHealth says what ingest needs to be ready.
func newHealth(pool *pgxpool.Pool, buffer *atomic.Pointer[intake.Intake]) *daemon.Health {
	health := daemon.NewHealth()
	health.Add("database", pool.Ping)
	health.Add("schema", func(ctx context.Context) error {
		err := postgres.CheckSchema(ctx, pool)
		if err == nil || postgres.Unavailable(err) {
			return err
		}
		return daemon.NotReady("not the one that this build needs: run \"migrate status\"")
	})
	health.Add("buffer", func(ctx context.Context) error {
		b := buffer.Load()
		if b == nil {
			return daemon.NotReady("not started")
		}
		if err := b.Ready(ctx); err != nil {
			return daemon.NotReady(err.Error())
		}
		return nil
	})
	return health
}
