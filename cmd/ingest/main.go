// Command ingest is the REST API: it accepts events and manages webhooks. It
// keeps no state of its own: run as many copies as you like against one
// database, behind any balancer.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/ingest"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/seal"
)

func main() {
	os.Exit(daemon.Execute(newCommand()))
}

// otherConnections is how many database connections ingest needs besides those
// of its committers: for configuration that is not in memory, for management
// and queries, for the clock and for readiness.
const otherConnections = 2

// maxBodyBytes is the largest limit for bodies that may be chosen: a body is
// held in memory, and a Postgres value may not be much larger.
const maxBodyBytes = 256 << 20

// config is ingest's settings.
type config struct {
	daemon.Common
	// Listen is where the API, health and metrics are served.
	Listen string
	// EncryptionKey seals and opens the webhooks' secrets.
	EncryptionKey daemon.SecretString
	// BootstrapKey is the API key that may do everything.
	BootstrapKey daemon.SecretString
	// AllowPrivate are private networks that webhooks may reach.
	AllowPrivate []netip.Prefix
	// RequireHTTPS refuses webhooks with http URLs.
	RequireHTTPS bool
	// MaxBodyBytes is the largest request body.
	MaxBodyBytes int64
	// RequestTimeout is how long a request may take.
	RequestTimeout time.Duration
	// BufferEvents and BufferBytes bound the events that wait to be committed.
	BufferEvents int
	BufferBytes  int64
	// Committers is how many batches of events are committed at the same time.
	Committers int
	// DatabaseConnections bounds the connection pool.
	DatabaseConnections int
	// ShutdownDelay is how long requests are still taken after the first signal,
	// and ShutdownTimeout how long stopping may take in all.
	ShutdownDelay, ShutdownTimeout time.Duration

	key seal.Key
}

const about = `The REST API: accepts events, manages webhooks, answers queries. It keeps no state
of its own: any number of copies share one database, behind any balancer.

Serves /v1, /livez, /readyz and /metrics on --listen.

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
	s.Required("database-url", "encryption-key")
	s.String(&c.Listen, "listen", ":8080", "address to serve the API, health and metrics on")
	s.Secret(&c.EncryptionKey, "encryption-key", "base64 of the 32 bytes that seal secrets at rest, the same for all processes; make one with: openssl rand -base64 32")
	s.Check("encryption-key", func() (err error) {
		if !c.EncryptionKey.IsSet() {
			return nil // reported as missing already
		}
		c.key, err = seal.ParseKey(c.EncryptionKey.Reveal())
		return err
	})
	s.Secret(&c.BootstrapKey, "bootstrap-key", "an API key that may do everything; without it every call is refused")
	s.Prefixes(&c.AllowPrivate, "allow-private-targets", nil, "private networks that webhooks may reach, such as 10.1.0.0/16")
	s.Bool(&c.RequireHTTPS, "require-https", false, "refuse webhooks with http URLs")

	s.Int64(&c.MaxBodyBytes, "max-body-bytes", ingest.DefaultMaxBodyBytes, "largest request body, in bytes")
	s.Check("max-body-bytes", func() error { return within(c.MaxBodyBytes, 1024, maxBodyBytes) })
	s.Duration(&c.RequestTimeout, "request-timeout", ingest.DefaultRequestTimeout, "how long a request may take, the reading of its body included")
	s.Check("request-timeout", positive(&c.RequestTimeout))

	s.Int(&c.BufferEvents, "buffer-events", intake.DefaultBufferEvents, "events that may wait to be committed; more are answered with 503")
	s.Check("buffer-events", func() error { return within(c.BufferEvents, 1, 1<<24) })
	s.Int64(&c.BufferBytes, "buffer-bytes", intake.DefaultBufferBytes, "memory for events that wait to be committed, in bytes")
	s.Check("buffer-bytes", func() error { return within(c.BufferBytes, 1<<20, 1<<40) })
	s.Int(&c.Committers, "committers", intake.DefaultCommitters, "batches of events that are committed at the same time, each on its own connection")
	s.Check("committers", func() error { return within(c.Committers, 1, 64) })
	s.Int(&c.DatabaseConnections, "database-connections", 10, "connections to the database, at most, besides the one that listens")
	s.Check("database-connections", func() error {
		if low := c.Committers + otherConnections; c.DatabaseConnections < low {
			return fmt.Errorf("must be at least %d: one for each of --committers, and %d more", low, otherConnections)
		}
		return within(c.DatabaseConnections, 1, 1000)
	})

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
	logger, _ := cfg.NewLogger(logs, string(postgres.RoleIngest), daemon.NewInstanceID())
	registry := daemon.NewRegistry()
	if !cfg.BootstrapKey.IsSet() {
		logger.Warn("no API key is configured, so every call will be refused: set --bootstrap-key (FAIRHOOK_BOOTSTRAP_KEY)")
	}

	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for the API (--listen): %w", err)
	}
	defer listener.Close()
	guard, err := egress.New(egress.Config{AllowPrivate: cfg.AllowPrivate, RequireHTTPS: cfg.RequireHTTPS})
	if err != nil {
		return err
	}
	listen, err := pgx.ParseConfig(cfg.DirectDatabaseURL().Reveal())
	if err != nil {
		return fmt.Errorf("parse the listen database URL: %w", err)
	}
	pool, err := postgres.Open(ctx, cfg.DatabaseURL.Reveal(), "fairhook-ingest", int32(cfg.DatabaseConnections))
	if err != nil {
		return err
	}
	defer pool.Close() // the last stage has closed it already, unless there was no first
	if err := postgres.Await(ctx, pool, logger); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before it had begun
		}
		return err
	}
	if _, err := postgres.EnsurePartitions(ctx, pool, 1); err != nil {
		return err
	}
	clock, err := postgres.NewClock(ctx, pool)
	if err != nil {
		return err
	}

	cat := catalog.New(catalog.Config{Pool: pool, Listen: listen, Logger: logger, Registerer: registry})
	buffer := intake.New(intake.Config{
		Pool: pool, Clock: clock, Logger: logger, Registerer: registry,
		BufferEvents: cfg.BufferEvents, BufferBytes: cfg.BufferBytes, Committers: cfg.Committers,
	})
	health := newHealth(pool, buffer)
	server, err := ingest.New(ingest.Config{
		Catalog: cat,
		Intake:  buffer,
		API: api.New(api.Config{
			Pool: pool, Clock: clock, Box: seal.New(cfg.key), Guard: guard, Catalog: cat, MaxBodyBytes: cfg.MaxBodyBytes,
		}),
		Clock:          clock,
		Livez:          health.Livez(),
		Readyz:         health.Readyz(),
		Metrics:        daemon.MetricsHandler(registry),
		BootstrapKey:   cfg.BootstrapKey.Reveal(),
		MaxBodyBytes:   cfg.MaxBodyBytes,
		RequestTimeout: cfg.RequestTimeout,
		Logger:         logger,
		Registerer:     registry,
	})
	if err != nil {
		return err
	}

	stages := daemon.NewStages(logger, cfg.ShutdownTimeout)
	stages.Add("database", func(ctx context.Context) error {
		<-ctx.Done()
		pool.Close()
		return nil
	})
	stages.Add("clock", clock.Run)
	stages.Add("catalog", cat.Run)
	stages.Add("intake", buffer.Run)
	stages.AddDrained("http", daemon.Serve(server.HTTPServer(), listener))
	stages.AddDrained("readiness", health.Withdraw(cfg.ShutdownDelay))
	logger.Info("ingest started", "listen", listener.Addr().String())
	return stages.Run(ctx)
}

// newHealth says what ingest needs to be ready.
func newHealth(pool *pgxpool.Pool, buffer *intake.Intake) *daemon.Health {
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
		if err := buffer.Ready(ctx); err != nil {
			return daemon.NotReady(err.Error())
		}
		return nil
	})
	return health
}
