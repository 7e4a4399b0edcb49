// Package intake turns accepted requests into committed events: a bounded buffer
// and a few committers that drain it, each batch one transaction (group commit).
//
// Submit returns only when it is known what became of its event, or says that it
// is not known:
//
//   - a Receipt: the event and its deliveries are committed;
//   - ErrOutcomeUnknown: they may be, now or in a moment;
//   - any other error: they are not, and nothing of them is kept.
//
// No event is stored twice by one Submit, whatever breaks: its id is chosen
// before the first try, and every further try is with the same id. SubmitGroup
// does the same for several events in one transaction.
//
// Batches form by themselves while earlier ones are being committed; nothing
// waits for a batch to fill. Tenants take turns in them, and share the buffer
// when it gets full, so that one that floods it keeps out nobody but itself. The caller has checked what it submits: package
// intake knows no rules about events, and an event that Postgres refuses fails
// alone.
package intake

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// Defaults of Config.
const (
	DefaultBufferEvents    = 8192
	DefaultBufferBytes     = 64 << 20
	DefaultCommitters      = 2
	DefaultBatchEvents     = 500
	DefaultBatchBytes      = 4 << 20
	DefaultBatchDeliveries = 5000
	DefaultDrainTimeout    = 10 * time.Second
)

// Config is what an Intake needs. Every number has a usable default at zero.
type Config struct {
	Pool  *pgxpool.Pool
	Clock *postgres.Clock // for the ids of events
	// Logger hears of batches (debug), of refused data, and of the database going
	// and coming back. nil: nobody does.
	Logger *slog.Logger
	// Registerer receives the metrics. nil: there are none.
	Registerer prometheus.Registerer

	// BufferEvents and BufferBytes bound what is held in memory, events that are
	// being committed included. An event or group larger than that is taken when
	// there is no other.
	BufferEvents int
	BufferBytes  int64
	// Committers is how many batches are committed at the same time.
	Committers int
	// BatchEvents, BatchBytes and BatchDeliveries bound a batch. An event or group
	// that is over a bound by itself is committed alone.
	BatchEvents     int
	BatchBytes      int64
	BatchDeliveries int
	// DrainTimeout bounds how long Run goes on committing what is buffered after
	// its context has ended.
	DrainTimeout time.Duration
}

// IdempotencyKey is a producer's name for one submission, with the fingerprint
// by which a repetition is told from another event under the same key.
type IdempotencyKey = postgres.IdempotencyKey

// Item is one event to be stored, with the webhooks that it goes to.
type Item struct {
	Tenant      string
	Type        string
	Payload     []byte // kept byte for byte; not changed until Submit returns
	ContentType string // empty: JSON
	OccurredAt  *time.Time
	Metadata    map[string]string
	OrderingKey string       // empty: none
	WebhookIDs  []webhook.ID // may be empty
	// Dropped are those of WebhookIDs that do not get the event: that is recorded
	// in the same transaction.
	Dropped []Dropped
	Key     *IdempotencyKey
}

// Dropped is a webhook that a limit keeps from getting an event, and the limit.
type Dropped = postgres.Dropped

// Receipt says that an event is stored.
type Receipt struct {
	ID         webhook.ID
	WebhookIDs []webhook.ID // its targets
	Dropped    []webhook.ID // those of them that do not get it
	// Replayed is true when an earlier submission under the same key stored it.
	// Then WebhookIDs are the targets chosen at that time.
	Replayed bool
}

// overhead is roughly the memory that an event takes besides its texts.
const overhead = 512

// Durations that tests shorten.
type limits struct {
	acquire  time.Duration // wait for a connection
	commit   time.Duration // one try of one transaction
	unknown  time.Duration // finding out what became of a batch
	stall    time.Duration // in the buffer while no commit ends
	keyWait  time.Duration // for a key held by an open transaction elsewhere
	keyHeld  time.Duration // how long such a key is refused without asking again
	away     time.Duration // refusing at once after the database was found away
	suspect  time.Duration // testing each connection after one broke
	tick     time.Duration // of the watch for stalls
	retryGap time.Duration // first pause between tries of an unknown batch
}

func defaultLimits() limits {
	return limits{
		acquire:  900 * time.Millisecond,
		commit:   10 * time.Second,
		unknown:  5 * time.Second,
		stall:    900 * time.Millisecond,
		keyWait:  50 * time.Millisecond,
		keyHeld:  time.Second,
		away:     100 * time.Millisecond,
		suspect:  2 * time.Second,
		tick:     50 * time.Millisecond,
		retryGap: 25 * time.Millisecond,
	}
}

// Intake is the buffer and its committers. Its methods are safe for concurrent
// use.
type Intake struct {
	cfg      Config
	limits   limits
	acceptor *postgres.Acceptor
	logger   *slog.Logger
	metrics  *metrics

	// resolvers are the goroutines that find out what became of batches. They are
	// started by committers only, and Run waits for them.
	resolvers sync.WaitGroup

	// mu guards what follows, and the fields of every pending that say so. It is
	// never held while waiting for anything.
	mu   sync.Mutex
	work *sync.Cond // signalled when queue grows or stopping begins
	// queue is what waits for a committer, and numbered how much has been in it.
	queue    fairQueue
	numbered uint64
	// events and bytes count all that Submit took and has not answered, and shares
	// the same by tenant.
	events int
	bytes  int64
	shares map[string]*share
	// keys are the unanswered submissions that others with the same key wait for.
	keys map[postgres.KeyName]*pending
	// held are keys found held by open transactions elsewhere, until when that is
	// believed.
	held     map[postgres.KeyName]time.Time
	stopping bool
	// progress is when a commit last ended, in whatever way.
	progress time.Time
	// away says that the last attempt to get a connection failed; awayUntil is
	// until when Submit refuses for that.
	away      bool
	awayUntil time.Time
	// suspectUntil is until when connections are tested before use.
	suspectUntil time.Time
}

// New makes an intake. It starts nothing: what is submitted waits for Run.
func New(cfg Config) *Intake {
	setDefault(&cfg.BufferEvents, DefaultBufferEvents)
	setDefault(&cfg.BufferBytes, DefaultBufferBytes)
	setDefault(&cfg.Committers, DefaultCommitters)
	setDefault(&cfg.BatchEvents, DefaultBatchEvents)
	setDefault(&cfg.BatchBytes, DefaultBatchBytes)
	setDefault(&cfg.BatchDeliveries, DefaultBatchDeliveries)
	setDefault(&cfg.DrainTimeout, DefaultDrainTimeout)
	in := &Intake{
		cfg:      cfg,
		limits:   defaultLimits(),
		acceptor: postgres.NewAcceptor(fairqueue.JobInsert()),
		logger:   cfg.Logger,
		queue:    fairQueue{debts: make(map[string]float64)},
		shares:   make(map[string]*share),
		keys:     make(map[postgres.KeyName]*pending),
		held:     make(map[postgres.KeyName]time.Time),
	}
	if in.logger == nil {
		in.logger = slog.New(slog.DiscardHandler)
	}
	in.work = sync.NewCond(&in.mu)
	in.metrics = newMetrics(cfg.Registerer, in)
	return in
}

func setDefault[T int | int64 | time.Duration](value *T, def T) {
	if *value <= 0 {
		*value = def
	}
}

// Submit stores one event and its deliveries, and returns after COMMIT. Its
// errors are *webhook.Error:
//
//   - CodeUnavailable, at once when the buffer is full, or the tenant's share of
//     it, or the intake is stopping, and within about a second when the database
//     is away: nothing is kept;
//   - ErrOutcomeUnknown, when the database went away during the commit and did
//     not come back in time, or ctx ended during it;
//   - ErrKeyTaken, when the key stands for another event;
//   - CodeInvalid, when Postgres refused the event's data;
//   - CodeConflict, when the key is held by an open transaction elsewhere.
func (in *Intake) Submit(ctx context.Context, item Item) (Receipt, error) {
	p := newPending(item)
	items := []*pending{p}
	if err := in.enter(items); err != nil {
		return Receipt{}, err
	}
	o := in.await(ctx, items)[0]
	return o.Receipt, o.Err
}

// Outcome is what became of one event of a group: Err as Submit's, and Receipt
// where it is nil.
type Outcome struct {
	Receipt Receipt
	Err     error
}

// SubmitGroup stores several events and their deliveries in one transaction, and
// returns after COMMIT with an outcome for each, in their order. An event that
// cannot be stored for a reason of its own (CodeInvalid, CodeConflict) fails
// alone, and the others are stored. Two with the same key are treated as two
// submissions, the later one waiting for the earlier; so is one whose key another
// submission is being stored under, and only if that one fails for a reason of
// its own is the event stored in another transaction than the rest of its group.
//
// When there is an error nothing of the group is kept; it is Submit's with
// CodeUnavailable.
func (in *Intake) SubmitGroup(ctx context.Context, items []Item) ([]Outcome, error) {
	if len(items) == 0 {
		return nil, nil
	}
	group := make([]*pending, len(items))
	for i, item := range items {
		group[i] = newPending(item)
	}
	if err := in.enter(group); err != nil {
		return nil, err
	}
	return in.await(ctx, group), nil
}

// await returns what became of items that were entered.
func (in *Intake) await(ctx context.Context, items []*pending) []Outcome {
	left := false
	for _, p := range items {
		if left {
			break
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			in.withdraw(items)
			left = true
		}
	}
	outcomes := make([]Outcome, len(items))
	for i, p := range items {
		select {
		case <-p.done:
			outcomes[i] = Outcome{p.receipt, p.err}
			continue
		default:
		}
		if in.wasWithdrawn(p) {
			in.metrics.refuse(reasonLeft, 1)
			outcomes[i].Err = unavailable("The request ended before its event was stored.")
		} else {
			outcomes[i].Err = ErrOutcomeUnknown
		}
	}
	return outcomes
}

// Ready returns nil when an event submitted now would be taken, and otherwise an
// error that says why not. It is for readiness checks.
func (in *Intake) Ready(context.Context) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if refused := in.refusal(time.Now()); refused != nil {
		return refused.err
	}
	if !in.fits(1, 0) {
		return unavailable(messageFull)
	}
	return nil
}

// Depth is how many events are held in memory, and how many bytes.
func (in *Intake) Depth() (events int, bytes int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.events, in.bytes
}

// Run commits what is submitted until ctx ends. Then it refuses what is new,
// commits what is buffered for at most Config.DrainTimeout, answers the rest, and
// returns nil.
func (in *Intake) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()

	var committers, watch sync.WaitGroup
	for range in.cfg.Committers {
		committers.Go(func() { in.commitLoop(work) })
	}
	watch.Go(func() { in.watchLoop(work) })

	<-ctx.Done()
	in.mu.Lock()
	in.stopping = true
	in.work.Broadcast()
	in.mu.Unlock()
	deadline := time.AfterFunc(in.cfg.DrainTimeout, cancel)
	defer deadline.Stop()

	committers.Wait()
	in.resolvers.Wait()
	// What a resolver put back after the last committer had left.
	in.refuseQueued(time.Now(), 0, reasonStopping, unavailable(messageStopping))
	cancel()
	watch.Wait()
	return nil
}

// watchLoop keeps Submit's promise to answer within about a second while commits
// hang: events that wait behind them were not sent, so they can be refused.
func (in *Intake) watchLoop(ctx context.Context) {
	ticker := time.NewTicker(in.limits.tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			in.watchOnce(now)
		}
	}
}

func (in *Intake) watchOnce(now time.Time) {
	in.mu.Lock()
	stalled := now.Sub(in.progress) > in.limits.stall
	for name, until := range in.held {
		if now.After(until) {
			delete(in.held, name)
		}
	}
	in.mu.Unlock()
	if stalled {
		in.refuseQueued(now, in.limits.stall, reasonStalled, unavailable(messageAway))
	}
}
