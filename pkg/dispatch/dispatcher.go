package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"

	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/heartbeat"
	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/limit"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/reseal"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// Defaults and bounds of Config.
const (
	DefaultWorkers = 1000
	MaxWorkers     = river.QueueNumWorkersMax
	DefaultDrain   = 20 * time.Second
	// DefaultMaxPerHost is what the largest cap of one webhook can be.
	DefaultMaxPerHost = webhook.MaxMaxInFlight

	// poolConns is the size of the pool that everything but the fetch shares.
	// With the fetch pool and two connections for LISTEN a dispatcher holds at
	// most ten, however many requests are in flight.
	poolConns = 6

	// jobTimeout is above the longest attempt, so that it never cuts one off; it
	// must be positive for River's rescuer to look at a job at all.
	jobTimeout = webhook.MaxTimeoutSeconds*time.Second + 3*time.Minute
	// rescueAfter is River's backstop for a job that no one gave back.
	rescueAfter = time.Hour

	partitionsAhead    = 14
	partitionsInterval = time.Hour
	keysInterval       = 10 * time.Minute
	retentionInterval  = 10 * time.Minute
	sweepInterval      = 10 * time.Minute
	sealingInterval    = time.Minute
	vacuumInterval     = 5 * time.Second
	vacuumTimeout      = 30 * time.Minute // the table may be large, and its indexes are read as a whole
	dutyTimeout        = time.Minute

	// joinTimeout is how long a dispatcher that starts waits for the others to make
	// room for it. It is what a start costs that follows a crash, since the dead one
	// is waited for too.
	joinTimeout = 5 * time.Second

	// The fetch: at most one per cooldown, and one per poll interval when nobody
	// says that there is something. A poll of an empty ring costs no statement; a
	// longer interval would be the pace of every lane at its cap while River's
	// notifier is away, which lasts up to a minute after an outage.
	fetchCooldown = 2 * time.Millisecond
	fetchPoll     = 20 * time.Millisecond
)

// Config is what a Dispatcher needs. Fields without a default are required.
type Config struct {
	DatabaseURL string
	// ListenURL is a direct connection for LISTEN; default: DatabaseURL.
	ListenURL string
	// Instance is this process's id, fresh at each start; it is also the id of
	// the River client.
	Instance string
	Version  string
	// Workers is how many requests may be in flight at once, at most MaxWorkers.
	// Default: DefaultWorkers.
	Workers int
	// Drain is how long running requests may go on once the process is told to
	// stop. Default: DefaultDrain.
	Drain time.Duration
	// MaxPerHost is how many requests one target host may get at once, over all
	// dispatchers and all webhooks that point to it. 0: any number.
	MaxPerHost int
	// Breaker says when webhooks' breakers open; its zero value has the defaults.
	// NoBreaker does without them.
	Breaker   limit.BreakerConfig
	NoBreaker bool
	// Failures says what follows when nothing but failure comes of a webhook.
	Failures webhook.FailurePolicy
	// BacklogWarning is how many waiting deliveries of a webhook are announced; 0: any
	// number is fine.
	BacklogWarning int
	// Retention is how long events and attempts are kept, by the leader: at least
	// MinRetention, or 0 for ever.
	Retention time.Duration
	// Guard is what requests go out through.
	Guard *egress.Guard
	// Box opens the webhooks' secrets.
	Box        *seal.Box
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Dispatcher works deliveries. Add puts its parts into a process.
type Dispatcher struct {
	cfg       Config
	pool      *pgxpool.Pool
	clock     *postgres.Clock
	catalog   *catalog.Catalog
	queue     *fairqueue.Queue
	client    *river.Client[pgx.Tx]
	loader    *batcher[webhook.ID, loaded]
	recorder  *batcher[record, error]
	health    *health
	gates     *gatekeeper
	probes    probePace
	failures  *failures
	clients   *identity.Clients
	tokens    *identity.Tokens
	herald    *herald
	tester    *tester
	capacity  *capacity
	heartbeat *heartbeat.Heartbeat
	retention *retention
	sealing   *sealing
	vacuum    *fairqueue.Vacuum
	joined    atomic.Int64 // when it began to fetch, by the database's clock, in nanoseconds
	working   atomic.Bool  // the River client has started and not been told to stop
}

// New builds a dispatcher. It waits for the database for as long as ctx lives,
// and fails if the schema is not in order, and with a *reseal.MissingKeyError if
// the box cannot open what the database holds. It starts nothing.
func New(ctx context.Context, cfg Config) (*Dispatcher, error) {
	if cfg.Workers == 0 {
		cfg.Workers = DefaultWorkers
	}
	if cfg.Drain == 0 {
		cfg.Drain = DefaultDrain
	}
	if cfg.ListenURL == "" {
		cfg.ListenURL = cfg.DatabaseURL
	}
	d := &Dispatcher{cfg: cfg}
	m := newMetrics(cfg.Registerer)
	var err error
	if d.pool, err = postgres.Open(ctx, cfg.DatabaseURL, "fairhook-dispatcher", poolConns); err != nil {
		return nil, err
	}
	cfg.Registerer.MustRegister(postgres.PoolStats("dispatcher", d.pool))
	if err := d.build(ctx, m); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *Dispatcher) build(ctx context.Context, m *metrics) error {
	err := postgres.Await(ctx, d.pool, d.cfg.Logger)
	if err != nil {
		return err
	}
	if err := reseal.Check(ctx, d.pool, d.cfg.Box); err != nil {
		return err
	}
	if d.clock, err = postgres.NewClock(ctx, d.pool); err != nil {
		return err
	}
	if _, err := postgres.EnsurePartitions(ctx, d.pool, 1); err != nil {
		return err
	}
	var breakers *limit.Breakers
	if !d.cfg.NoBreaker {
		breakers = limit.NewBreakers(d.cfg.Breaker)
	}
	d.gates = newGatekeeper(breakers)
	d.failures = newFailures(d.cfg.Failures)
	d.capacity = newCapacity(d.cfg.Workers, func() { d.queue.Freed() })
	m.showCapacity(d.cfg.Registerer, d.capacity)
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read the host name: %w", err)
	}
	d.heartbeat = heartbeat.New(heartbeat.Config{
		DB: d.pool, Instance: d.cfg.Instance, Role: webhook.RoleDispatcher, Version: d.cfg.Version, Host: host,
		Load: func() (capacity, inFlight int) { return d.cfg.Workers, d.queue.Held() },
		OnBeat: func(alive int) {
			m.dispatchers.Set(float64(alive))
			d.share(alive)
			for _, id := range d.failures.forget(d.clock.Now()) {
				d.queue.Changed(id)
			}
		},
		Logger: d.cfg.Logger, Registerer: d.cfg.Registerer,
	})
	d.queue, err = fairqueue.New(ctx, fairqueue.Config{
		// Direct too: its connections keep settings of their own, which a pooler in
		// transaction mode would hand to everybody else.
		DatabaseURL: d.cfg.ListenURL,
		ListenURL:   d.cfg.ListenURL,
		ClientID:    d.cfg.Instance,
		Limits:      d.limits,
		MaxPerHost:  d.cfg.MaxPerHost,
		Room:        d.capacity.room,
		Clock:       d.clock,
		Fresh:       d.heartbeat.Fresh,
		Duties:      d.duties(),
		Logger:      d.cfg.Logger,
		Registerer:  d.cfg.Registerer,
	})
	if err != nil {
		return err
	}
	d.retention = newRetention(d.pool, d.queue, d.cfg.Retention, d.cfg.Logger, d.cfg.Registerer)
	d.sealing = newSealing(d.pool, d.cfg.Box, d.cfg.Logger, d.cfg.Registerer)
	d.vacuum = fairqueue.NewVacuum(d.pool, d.cfg.Logger, d.cfg.Registerer)
	listen, err := pgx.ParseConfig(d.cfg.ListenURL)
	if err != nil {
		return fmt.Errorf("parse the listen database URL: %w", err)
	}
	d.catalog = catalog.New(catalog.Config{
		Pool:       d.pool,
		Listen:     listen,
		Box:        d.cfg.Box,
		Logger:     d.cfg.Logger,
		Registerer: d.cfg.Registerer,
	})
	d.herald = &herald{
		db: d.pool, catalog: d.catalog, clock: d.clock, announcer: postgres.NewAnnouncer(fairqueue.JobInsert()),
		growing: d.cfg.BacklogWarning, logger: d.cfg.Logger, metrics: m,
	}
	d.clients = identity.NewClients(d.cfg.Guard, 0)
	d.tokens = identity.NewTokens(d.cfg.Guard.Client(), courier.UserAgent(d.cfg.Version), d.cfg.Registerer)
	d.tester = newTester(d, m)
	d.catalog.OnChange(func(id webhook.ID, _ string) {
		d.queue.Changed(id)
		d.tester.look()
	})
	d.catalog.OnReset(d.queue.Reset)
	d.loader = newLoader(d.pool)
	d.recorder = newRecorder(&recording{
		db: d.pool, queue: d.queue, clock: d.clock, announcer: d.herald.announcer, policy: d.cfg.Failures,
		countsExhausted: func(ctx context.Context) bool { return d.herald.wanted(ctx, webhook.DeliveryExhausted) },
		logger:          d.cfg.Logger, metrics: m,
	})
	d.health = newHealth(d.pool, d.cfg.Logger)
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{
		instance:  d.cfg.Instance,
		userAgent: courier.UserAgent(d.cfg.Version),
		catalog:   d.catalog,
		loader:    d.loader,
		recorder:  d.recorder,
		health:    d.health,
		queue:     d.queue,
		fresh:     d.heartbeat.Fresh,
		clients:   d.clients,
		tokens:    d.tokens,
		clock:     d.clock,
		logger:    d.cfg.Logger,
		metrics:   m,
		gates:     d.gates,
		failures:  d.failures,
		capacity:  d.capacity,
	})
	d.client, err = river.NewClient(fairqueue.NewDriver(d.pool, d.queue), d.riverConfig(workers))
	if err != nil {
		return fmt.Errorf("build the River client: %w", err)
	}
	return nil
}

func (d *Dispatcher) riverConfig(workers *river.Workers) *river.Config {
	return &river.Config{
		ID:                  d.cfg.Instance,
		Schema:              fairqueue.Schema,
		Queues:              map[string]river.QueueConfig{fairqueue.ClientQueue: {MaxWorkers: d.cfg.Workers}},
		Workers:             workers,
		FetchCooldown:       fetchCooldown,
		FetchPollInterval:   fetchPoll,
		FetchOnlyKnownKinds: true,
		JobTimeout:          jobTimeout,
		// Which failed deliveries to keep is the attempts table's business.
		RescueStuckJobsAfter:        rescueAfter,
		CancelledJobRetentionPeriod: 24 * time.Hour,
		DiscardedJobRetentionPeriod: 24 * time.Hour,
		// The indexes that River would reindex by default include three that
		// migrations 003 and 010 drop.
		ReindexerIndexNames: []string{
			"fairhook_river_job_due_idx", "river_job_pkey", "river_job_prioritized_fetching_index",
			"river_job_state_and_finalized_at_index", "river_job_unique_idx",
		},
		SoftStopTimeout: d.cfg.Drain,
		Logger:          slog.New(quiet{d.cfg.Logger.Handler()}),
		Test:            river.TestConfig{Time: fairqueue.RiverClock{Clock: d.clock}},
	}
}

// duties are what the leader does for all.
func (d *Dispatcher) duties() []fairqueue.Duty {
	return []fairqueue.Duty{
		{
			Name: "partitions", Interval: partitionsInterval, Timeout: dutyTimeout,
			Run: func(ctx context.Context) error {
				_, err := postgres.EnsurePartitions(ctx, d.pool, partitionsAhead)
				return err
			},
		},
		{
			Name: "idempotency_expiry", Interval: keysInterval, Timeout: dutyTimeout,
			Run: func(ctx context.Context) error {
				_, err := postgres.ExpireIdempotencyKeys(ctx, d.pool)
				return err
			},
		},
		{
			Name: "retention", Interval: retentionInterval, Timeout: dutyTimeout,
			Run:  func(ctx context.Context) error { return d.retention.Run(ctx) },
			Lost: func() { d.retention.Lost() },
		},
		{
			Name: "sweep", Interval: sweepInterval, Timeout: dutyTimeout,
			Run: func(ctx context.Context) error {
				_, err := postgres.Sweep(ctx, d.pool, d.cfg.Retention)
				return err
			},
		},
		{
			Name: "credentials", Interval: sealingInterval, Timeout: dutyTimeout,
			Run:  func(ctx context.Context) error { return d.sealing.Run(ctx) },
			Lost: func() { d.sealing.Lost() },
		},
		{
			Name: "vacuum", Interval: vacuumInterval, Timeout: vacuumTimeout,
			Run:  func(ctx context.Context) error { return d.vacuum.Run(ctx) },
			Lost: func() { d.vacuum.Lost() },
		},
		{
			Name: "dispatch_clock", Interval: tickInterval, Timeout: dutyTimeout,
			Run: func(ctx context.Context) error { return postgres.TickDispatchClock(ctx, d.pool, d.clock.Now()) },
		},
		{
			Name: "exhausted_deliveries", Interval: exhaustedInterval, Timeout: dutyTimeout,
			Run: func(ctx context.Context) error { return d.herald.exhausted(ctx) },
		},
		{
			Name: "backlogs", Interval: backlogInterval, Timeout: dutyTimeout,
			Run: func(ctx context.Context) error { return d.herald.backlogs(ctx) },
		},
	}
}

// Add puts the dispatcher's parts into a process, in the order in which they may
// start; they stop the other way round: first no more deliveries are fetched
// and the running ones finish, then what they recorded is flushed, and the pool
// is closed last.
func (d *Dispatcher) Add(stages *daemon.Stages) {
	stages.Add("database", func(ctx context.Context) error {
		<-ctx.Done()
		d.close()
		return nil
	})
	stages.Add("clock", d.clock.Run)
	stages.Add("catalog", d.catalog.Run)
	stages.Add("recorder", d.recorder.Run)
	stages.Add("loader", d.loader.Run)
	stages.Add("health", d.health.Run)
	stages.Add("queue", d.queue.Run)
	stages.Add("heartbeat", d.heartbeat.Run)
	stages.Add("tests", d.tester.Run)
	stages.Add("give back", d.giveBackDead)
	stages.AddDrained("deliveries", d.work)
}

// Check reports whether the dispatcher can work: it asks the database.
func (d *Dispatcher) Check(ctx context.Context) error { return d.pool.Ping(ctx) }

// Working reports whether deliveries are being worked.
func (d *Dispatcher) Working(context.Context) error {
	if !d.working.Load() {
		return daemon.NotReady("not started")
	}
	return nil
}

func (d *Dispatcher) close() {
	if d.queue != nil {
		d.queue.Close()
	}
	d.pool.Close()
}

// work runs the River client until ctx ends, and then lets what is running
// finish: for cfg.Drain, and no longer than drain.
func (d *Dispatcher) work(ctx, drain context.Context) error {
	d.join(ctx)
	if ctx.Err() != nil {
		return nil
	}
	var sharing sync.WaitGroup
	defer sharing.Wait()
	if !d.shareHosts(ctx, &sharing) {
		return nil
	}
	if err := d.startRiver(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	d.working.Store(true)
	<-ctx.Done()
	d.working.Store(false)
	d.heartbeat.Drain()
	// Beside the drain: with the database away it must not take of its time.
	var givingUp sync.WaitGroup
	givingUp.Go(func() { d.queue.Drain(ctx) })
	defer givingUp.Wait()
	// Stop waits for the running jobs, and after SoftStopTimeout cancels them:
	// they return at once and go back to their lanes uncounted.
	if err := d.client.Stop(drain); err != nil {
		hard, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return errors.Join(fmt.Errorf("finish running deliveries: %w", err), d.client.StopAndCancel(hard))
	}
	return nil
}

// join waits until this dispatcher may take its part of the webhooks' caps: all others
// know of it. It waits without an end for its own first beat, and no longer than
// joinTimeout for the others, one of which may be dead. What they fetched before may be
// under way for longer, and is counted against the caps (limits).
func (d *Dispatcher) join(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-d.heartbeat.Known():
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if !d.heartbeat.AwaitPeers(ctx) {
		d.cfg.Logger.DebugContext(ctx, "not all other dispatchers are known to know of this one")
	}
	d.joined.Store(d.clock.Now().UnixNano())
	d.queue.Reset() // what was learned before it knew of the others
}

// startRiver starts the client, and tries again while the database is away.
func (d *Dispatcher) startRiver(ctx context.Context) error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := d.client.Start(context.WithoutCancel(ctx))
		if err == nil {
			return nil
		}
		d.cfg.Logger.WarnContext(ctx, "River could not start; trying again", "error", err, "pause", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// share says among how many dispatchers webhooks' caps are divided.
func (d *Dispatcher) share(dispatchers int) {
	d.gates.sharers.Store(int64(dispatchers))
	d.queue.Share(dispatchers)
}

// quiet passes on River's warnings and errors, and leaves out its line for each
// failed job: the attempt's own line says it better.
type quiet struct{ slog.Handler }

// Enabled is part of slog.Handler.
func (h quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && h.Handler.Enabled(ctx, level)
}

// WithAttrs is part of slog.Handler.
func (h quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{h.Handler.WithAttrs(attrs)} }

// WithGroup is part of slog.Handler.
func (h quiet) WithGroup(name string) slog.Handler { return quiet{h.Handler.WithGroup(name)} }
