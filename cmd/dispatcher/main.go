// Command dispatcher works deliveries: it fetches them fairly, sends them,
// records each attempt and retries on the webhooks' schedules. Run as many
// copies as you like against one database.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/dispatch"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/limit"
	"github.com/fairhook/fairhook/pkg/reseal"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func main() {
	os.Exit(daemon.Execute(newCommand()))
}

// config is the dispatcher's settings.
type config struct {
	daemon.Common
	// Listen is where health and metrics are served.
	Listen string
	// AllowPrivate are private networks that webhooks may reach.
	AllowPrivate []netip.Prefix
	// RequireHTTPS refuses to send to http URLs.
	RequireHTTPS bool
	// EgressProxy is what requests go out through, if it is set.
	EgressProxy daemon.SecretString
	// Workers is how many requests may be in flight at once.
	Workers int
	// MaxPerHost is how many requests one target host may get at once.
	MaxPerHost int
	// BreakerFailures, BreakerAttempts and BreakerWindow say when webhooks' breakers
	// open: in percent of the attempts, 0 for never, of at least so many, in so long.
	BreakerFailures, BreakerAttempts int
	BreakerWindow                    time.Duration
	// DrainTimeout is how long running requests may go on after the first
	// signal, and ShutdownTimeout how long stopping may take in all.
	DrainTimeout, ShutdownTimeout time.Duration
	// AutoDisableAfter and WarnFailingAfter are for how long nothing but failure may come
	// of a webhook until it is disabled, and until that is announced; 0: for ever.
	AutoDisableAfter, WarnFailingAfter time.Duration
	// BacklogWarning is how many waiting deliveries of a webhook are announced; 0: never.
	BacklogWarning int
	// Retention is how long events and attempts are kept; 0: for ever.
	Retention time.Duration

	keys  seal.Keys     // that seal and open secrets
	proxy *egress.Proxy // of EgressProxy
}

// spareMemory is how much memory may lie about uncollected, besides as much as is in
// use.
const spareMemory = 256 << 20

const about = `Works deliveries: fetches them fairly, sends them, records each attempt, and
retries on each webhook's schedule. One of them, the leader, also looks after
the database: partitions, retention, vacuum. Any number of copies share one database; each
needs at most ten connections to it.

Serves /livez, /readyz and /metrics on --listen.

SIGTERM lets running requests finish within --drain-timeout and gives the rest
back uncounted; a second signal stops at once. While the database is away, what
was sent cannot be recorded: it waits for the database until --shutdown-timeout,
exits with 1, and those deliveries are sent again. Exit codes: 0 stopped in
order, 1 failed, 2 wrong configuration.`

func newCommand() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use:   "dispatcher",
		Short: "Send deliveries to webhooks",
		Long:  about,
		Args:  cobra.NoArgs,
	}
	settings := daemon.NewSettings(cmd.Flags())
	cfg.register(settings)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settings.Resolve(os.LookupEnv); err != nil {
			return err
		}
		return run(cmd.Context(), cfg)
	}
	return cmd
}

func (c *config) register(s *daemon.Settings) {
	c.Register(s)
	s.Required("database-url")
	s.String(&c.Listen, "listen", ":8081", "address to serve health and metrics on")
	s.Check("listen", daemon.CheckListen(&c.Listen))
	daemon.EncryptionKeys(s, c.keys.SetCurrent, c.keys.SetOld)
	s.Prefixes(&c.AllowPrivate, "allow-private-targets", nil, "private networks that webhooks may reach, such as 10.1.0.0/16")
	s.Bool(&c.RequireHTTPS, "require-https", false, "refuse to send to http URLs")
	s.Secret(&c.EgressProxy, "egress-proxy", "proxy that requests to webhooks go out through: http://, https:// (both by CONNECT) or socks5://, with user:password@ if it asks for them; names are resolved and judged here, and it is asked for the address")
	s.Check("egress-proxy", func() (err error) {
		if c.EgressProxy.IsSet() {
			c.proxy, err = egress.ParseProxy(c.EgressProxy.Reveal())
		}
		return err
	})
	s.Int(&c.Workers, "workers", dispatch.DefaultWorkers, "requests in flight at once, at most")
	s.Check("workers", func() error {
		return within(c.Workers, 1, dispatch.MaxWorkers)
	})
	s.Int(&c.MaxPerHost, "max-in-flight-per-host", dispatch.DefaultMaxPerHost, "requests that one target host may get at once, over all dispatchers, which must be set alike, and all webhooks that point to it; 0: any number")
	s.Check("max-in-flight-per-host", func() error { return within(c.MaxPerHost, 0, 1_000_000) })
	s.Int(&c.BreakerFailures, "breaker-failures", 100*limit.DefaultBreakerFailures, "percent of a webhook's attempts that must fail for its breaker to open, which leaves its deliveries waiting but for a probe now and then; 0: it never opens")
	s.Check("breaker-failures", func() error { return within(c.BreakerFailures, 0, 100) })
	s.Int(&c.BreakerAttempts, "breaker-attempts", limit.DefaultBreakerAttempts, "attempts, over all dispatchers, that there must be for a breaker to open")
	s.Check("breaker-attempts", func() error { return within(c.BreakerAttempts, 2, 1_000_000) })
	s.Duration(&c.BreakerWindow, "breaker-window", limit.DefaultBreakerWindow, "time that --breaker-failures and --breaker-attempts are about")
	s.Check("breaker-window", func() error {
		if c.BreakerWindow < time.Second || c.BreakerWindow > time.Hour {
			return errors.New("must be between 1s and 1h")
		}
		return nil
	})
	s.Duration(&c.AutoDisableAfter, "auto-disable-after", dispatch.DefaultDisableAfter, "for how long nothing but failure may come of a webhook, such as 5d, before it is disabled, unless it has an auto_disable_after_seconds of its own; set alike for all dispatchers; 0s: for ever")
	s.Check("auto-disable-after", longEnough(&c.AutoDisableAfter))
	s.Duration(&c.WarnFailingAfter, "warn-failing-after", dispatch.DefaultWarnAfter, "for how long nothing but failure may come of a webhook before operators are told for the first time; 0s: not before half of its time has passed")
	s.Check("warn-failing-after", longEnough(&c.WarnFailingAfter))
	s.Int(&c.BacklogWarning, "backlog-warning", dispatch.DefaultBacklogWarning, "waiting deliveries of one webhook, or half of its max_backlog if that is less, of which operators are told; 0: any number is fine")
	s.Check("backlog-warning", func() error { return within(c.BacklogWarning, 0, webhook.MaxMaxBacklog) })
	s.Duration(&c.DrainTimeout, "drain-timeout", dispatch.DefaultDrain, "how long running requests may go on after SIGTERM")
	s.Duration(&c.ShutdownTimeout, "shutdown-timeout", 25*time.Second, "how long stopping may take in all")
	s.Check("drain-timeout", func() error {
		if c.DrainTimeout <= 0 || c.DrainTimeout >= c.ShutdownTimeout {
			return errors.New("must be more than 0s and less than --shutdown-timeout, which includes it")
		}
		return nil
	})
	s.Duration(&c.Retention, "retention", dispatch.DefaultRetention, "how long events and attempts are kept, such as 30d or 36h, set alike for all dispatchers; deliveries that are alive then end as dropped; 0s: for ever")
	s.Check("retention", func() error {
		if c.Retention != 0 && (c.Retention < dispatch.MinRetention || c.Retention > dispatch.MaxRetention) {
			return errors.New("must be 0s, for ever, or between 1d and 36500d")
		}
		return nil
	})
}

// longEnough is for times that are 0 for ever, or as long as a webhook may choose.
func longEnough(d *time.Duration) func() error {
	return func() error {
		if *d != 0 && (*d < webhook.MinAutoDisableSeconds*time.Second || *d > webhook.MaxAutoDisableSeconds*time.Second) {
			return errors.New("must be 0s or between 1m and 365d")
		}
		return nil
	}
}

func within(value, low, high int) error {
	if value < low || value > high {
		return fmt.Errorf("must be between %d and %d", low, high)
	}
	return nil
}

func run(ctx context.Context, cfg config) error {
	instance := daemon.NewInstanceID()
	logger, level := cfg.NewLogger(os.Stdout, string(webhook.RoleDispatcher), instance)
	daemon.CaptureStandardLog(logger)
	registry := daemon.NewRegistry()

	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for health and metrics (--listen): %w", err)
	}
	defer listener.Close()
	guard, err := egress.New(egress.Config{AllowPrivate: cfg.AllowPrivate, RequireHTTPS: cfg.RequireHTTPS, Proxy: cfg.proxy})
	if err != nil {
		return err
	}
	// The dispatcher itself waits for the database; probes are answered meanwhile.
	var started atomic.Pointer[dispatch.Dispatcher]
	health := daemon.NewHealth()
	health.Add("database", func(ctx context.Context) error {
		if d := started.Load(); d != nil {
			return d.Check(ctx)
		}
		return daemon.NotReady("not reached yet")
	})
	health.Add("deliveries", func(ctx context.Context) error {
		if d := started.Load(); d != nil {
			return d.Working(ctx)
		}
		return daemon.NotReady("not started")
	})

	stages := daemon.NewStages(logger, cfg.ShutdownTimeout)
	stages.Add("memory", daemon.TuneGC(os.LookupEnv, spareMemory))
	stages.Add("log level", daemon.TuneLog(logger, level))
	stages.AddDrained("health", daemon.Serve(daemon.NewHTTPServer(health.Handler(registry), logger), listener))
	stages.Add("dispatcher", func(ctx context.Context) error {
		d, err := dispatch.New(ctx, dispatch.Config{
			DatabaseURL: cfg.DatabaseURL.Reveal(),
			ListenURL:   cfg.DirectDatabaseURL().Reveal(),
			Instance:    instance,
			Version:     daemon.Version(),
			Workers:     cfg.Workers,
			Drain:       cfg.DrainTimeout,
			MaxPerHost:  cfg.MaxPerHost,
			Breaker: limit.BreakerConfig{
				Failures: float64(cfg.BreakerFailures) / 100, Attempts: cfg.BreakerAttempts, Window: cfg.BreakerWindow,
			},
			NoBreaker:      cfg.BreakerFailures == 0,
			Failures:       webhook.FailurePolicy{DisableAfter: cfg.AutoDisableAfter, WarnAfter: cfg.WarnFailingAfter},
			BacklogWarning: cfg.BacklogWarning,
			Retention:      cfg.Retention,
			Guard:          guard,
			Box:            cfg.keys.Box(),
			Logger:         logger,
			Registerer:     registry,
		})
		if err != nil {
			if ctx.Err() != nil {
				return nil // told to stop before it had begun
			}
			if missing := (*reseal.MissingKeyError)(nil); errors.As(err, &missing) {
				return daemon.WrongKeyError(missing)
			}
			return err
		}
		started.Store(d)
		logger.Info("dispatcher started", "listen", listener.Addr().String(), "workers", cfg.Workers)
		parts := daemon.NewStages(logger, cfg.ShutdownTimeout)
		d.Add(parts)
		return parts.Run(ctx)
	})
	stages.AddDrained("readiness", health.Withdraw(0))
	return stages.Run(ctx)
}
