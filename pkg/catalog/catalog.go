// Package catalog answers questions about webhooks' configuration from memory:
// what a webhook looks like and which public keys it has, which webhooks of a
// tenant want an event, what has been declared of an event type, and what an API
// key may do.
//
// What it answers is loaded on demand and kept until Postgres says that it
// changed (LISTEN/NOTIFY), so an answer is old by the time a notification takes,
// normally milliseconds. When that line is down, answers are checked again after
// StaleAfter, and none is given that could be wrong for longer than MaxStale:
// then the answer is an error. A change made by this process is visible to it at
// once if it says so (Invalidate).
//
// It leaves to callers what to do about a change (OnChange, OnReset).
package catalog

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// StaleAfter is how long an answer is used without asking the database while
	// no notification can arrive.
	StaleAfter = time.Second
	// MaxStale is the longest that a change can go unnoticed. Until then known
	// answers are given while the database is away.
	MaxStale = 5 * time.Second
	// unknownLife is how long it is remembered that a webhook does not exist. The
	// notification of its creation ends it sooner.
	unknownLife = 5 * time.Second
	// loadTimeout bounds one load, the wait for a connection included.
	loadTimeout = time.Second
	// awayFor is how long loads are refused after one found the database away,
	// so that an outage costs its callers no waiting.
	awayFor = 100 * time.Millisecond

	// Room for 100,000 webhooks, each of a tenant of its own.
	defaultMaxWebhookBytes = 96 << 20
	defaultMaxBytes        = 64 << 20
)

// Config is what a Catalog needs.
type Config struct {
	Pool *pgxpool.Pool
	// Listen connects for LISTEN. It must lead to Postgres itself, not through a
	// pooler in transaction mode. nil: as the pool does.
	Listen *pgx.ConnConfig
	// Box opens webhooks' secrets and credentials. nil: entries have no Signer, and no
	// credentials.
	Box *seal.Box
	// KeyBox opens the signing secrets of API keys. nil: a key that requires
	// signatures cannot be used.
	KeyBox *seal.Box
	// Logger hears of the listener's connection coming and going. nil: nobody
	// does.
	Logger *slog.Logger
	// Registerer receives the metrics. nil: there are none.
	Registerer prometheus.Registerer
	// MaxWebhookBytes and MaxSubscriberBytes bound roughly the memory for
	// webhooks and for tenants' lists of them. 0: 96 MiB and 64 MiB.
	MaxWebhookBytes, MaxSubscriberBytes uint64
	// MaxEventTypeBytes bounds roughly the memory for event types with their
	// compiled schemas. 0: 64 MiB.
	MaxEventTypeBytes uint64
}

// Entry is a webhook as it is now. It is shared: nobody may change it.
type Entry struct {
	// Webhook has its credentials opened, unless there is no Config.Box: then Auth and
	// TLS are nil, and Headers those that are stored in the open.
	Webhook webhook.Webhook
	// Signer signs the webhook's requests with all of its secrets that have not
	// expired; nil without Config.Box.
	Signer *signature.Signer
	// AllowedFrom is Webhook.AllowedCIDRs, parsed.
	AllowedFrom []netip.Prefix
}

// Target is one webhook that wants an event.
type Target struct {
	ID    webhook.ID
	State webhook.State
	// AcceptPerSecond is how many events a second are accepted for it; 0: any
	// number. MaxBacklog is how many deliveries may wait for it.
	AcceptPerSecond float64
	MaxBacklog      int
}

// Catalog is the cache. Its methods are safe for concurrent use.
type Catalog struct {
	pool    *pgxpool.Pool
	box     *seal.Box
	keyBox  *seal.Box
	logger  *slog.Logger
	metrics *metrics

	listen   *pgx.ConnConfig
	onChange []func(id webhook.ID, tenant string) // fixed when Run starts
	onReset  []func()                             // fixed when Run starts

	// current is the listening session that new answers belong to. It is replaced
	// when the listener has reconnected; one that has ended stays until then.
	current atomic.Pointer[session]
	// awayUntil is when loads are tried again after the database was found away,
	// as nanoseconds since epoch.
	awayUntil atomic.Int64

	webhooks    *table[webhook.ID, *Entry]
	subscribers *table[string, *subscriptions]
	keys        *table[webhook.KeyHash, *Key]
	types       *table[string, *EventType]
	publicKeys  *table[webhook.ID, *PublicKeys]
	publicLoads chan struct{} // one slot for each load of public keys that may be under way
	keyLoads    chan struct{} // one slot for each load of a key that may be under way
}

// New makes a catalog. It connects to nothing and starts nothing: until Run
// listens, it behaves as if the line were down.
func New(cfg Config) *Catalog {
	c := &Catalog{
		pool:   cfg.Pool,
		listen: cfg.Listen,
		box:    cfg.Box,
		keyBox: cfg.KeyBox,
		logger: cfg.Logger,
	}
	if c.listen == nil {
		c.listen = cfg.Pool.Config().ConnConfig
	}
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	}
	c.metrics = newMetrics(cfg.Registerer, c)
	c.current.Store(newSession())
	c.webhooks = newTable(c, "webhook", c.loadEntry, entryWeight, cmp.Or(cfg.MaxWebhookBytes, defaultMaxWebhookBytes))
	c.subscribers = newTable(c, "subscribers", c.loadSubscriptions, subscriptionsWeight, cmp.Or(cfg.MaxSubscriberBytes, defaultMaxBytes))
	c.types = newTable(c, "event_type", c.loadEventType, eventTypeWeight, cmp.Or(cfg.MaxEventTypeBytes, defaultMaxBytes))
	c.keys = newTable(c, "key", c.loadKey, keyWeight, maxKeyBytes)
	c.keyLoads = make(chan struct{}, maxKeyLoads)
	c.publicKeys = newTable(c, "public_keys", c.loadPublicKeys, publicKeysWeight, maxPublicBytes)
	c.publicLoads = make(chan struct{}, maxPublicLoads)
	return c
}

// OnChange registers f to be called, one call at a time, for every webhook that
// changed, after the catalog has forgotten it. It must be called before Run, and
// f must not block.
func (c *Catalog) OnChange(f func(id webhook.ID, tenant string)) {
	c.onChange = append(c.onChange, f)
}

// OnReset registers f to be called whenever listening has begun, the first time
// included: changes before that moment may not have been reported. It must be
// called before Run, and f must not block.
func (c *Catalog) OnReset(f func()) { c.onReset = append(c.onReset, f) }

// Webhook returns a webhook. The error is a *webhook.Error with CodeNotFound
// when there is none, or with CodeUnavailable when the database is away and
// nothing fresh enough is known; any other error is internal. A known webhook
// costs no allocation.
func (c *Catalog) Webhook(ctx context.Context, id webhook.ID) (*Entry, error) {
	return c.webhooks.get(ctx, id)
}

// Subscribers returns the webhooks of a tenant whose event types match, in every
// state, oldest first: an event for a paused webhook is kept for it. None is not
// an error. The slice is shared: nobody may change it. Errors are those of
// Webhook, without CodeNotFound. The answer for a known tenant and a type asked
// for before costs no allocation.
func (c *Catalog) Subscribers(ctx context.Context, tenant, eventType string) ([]Target, error) {
	s, err := c.subscribers.get(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return s.match(eventType), nil
}

// Invalidate forgets a webhook and its tenant's list. Whoever commits a change
// through this process calls it afterwards, so that its own next question sees
// the change without waiting for the notification. It calls no hook.
func (c *Catalog) Invalidate(id webhook.ID, tenant string) {
	c.webhooks.invalidate(id)
	c.publicKeys.invalidate(id)
	c.subscribers.invalidate(tenant)
}

func (c *Catalog) loadEntry(ctx context.Context, id webhook.ID) (*Entry, time.Duration, error) {
	loaded, err := postgres.LoadCatalogWebhook(ctx, c.pool, id, c.box != nil)
	if err != nil {
		return nil, 0, err
	}
	e := &Entry{Webhook: loaded.Webhook}
	if c.box != nil {
		if err := identity.Open(c.box, &e.Webhook); err != nil {
			return nil, 0, err
		}
	}
	e.Webhook.Sealed = nil // of no use from here on
	if e.AllowedFrom, err = webhook.ParseCIDRs(loaded.Webhook.AllowedCIDRs); err != nil {
		return nil, 0, fmt.Errorf("read allowed_cidrs of webhook %s: %w", id, err)
	}
	if c.box != nil {
		if e.Signer, err = c.newSigner(loaded); err != nil {
			return nil, 0, fmt.Errorf("make ready to sign for webhook %s: %w", id, err)
		}
	}
	if loaded.ExpiresIn == nil {
		return e, 0, nil
	}
	return e, max(time.Millisecond, *loaded.ExpiresIn), nil
}

func (c *Catalog) newSigner(loaded *postgres.CatalogWebhook) (*signature.Signer, error) {
	w := &loaded.Webhook
	secrets := make([]signature.Secret, len(loaded.Sealed))
	for i, sealed := range loaded.Sealed {
		text, err := c.box.Open(sealed, w.ID.String())
		if err != nil {
			return nil, fmt.Errorf("open a secret: %w", err)
		}
		secrets[i] = signature.Secret{Kind: loaded.Kinds[i], Text: string(text)}
	}
	return signature.NewSigner(w.Signatures, w.SignatureTemplate, secrets)
}

func (c *Catalog) loadSubscriptions(ctx context.Context, tenant string) (*subscriptions, time.Duration, error) {
	rows, err := postgres.LoadSubscriptions(ctx, c.pool, tenant)
	if err != nil {
		return nil, 0, err
	}
	return newSubscriptions(rows), 0, nil
}

// entryWeight is roughly how many bytes an entry takes.
func entryWeight(_ webhook.ID, e *Entry) int {
	weight := 544
	if e == nil {
		return weight
	}
	w := &e.Webhook
	weight += len(w.Tenant) + len(w.URL) + len(w.Description) + 8*len(w.RetrySchedule)
	for _, pattern := range w.EventTypes {
		weight += 16 + len(pattern)
	}
	for name, value := range w.Headers {
		weight += 80 + len(name) + len(value.Reveal())
	}
	if a := w.Auth; a != nil {
		weight += 256 + len(a.TokenURL) + len(a.Audience)
		for _, secret := range a.Secrets() {
			weight += 16 + len(secret.Reveal())
		}
		for _, scope := range a.Scopes {
			weight += 16 + len(scope)
		}
	}
	if t := w.TLS; t != nil {
		weight += 128 + len(t.ClientCertificate.Reveal()) + len(t.ClientKey.Reveal()) + len(t.CACertificates.Reveal())
	}
	weight += e.Signer.Size() + 32*len(e.AllowedFrom)
	for _, scheme := range w.Signatures {
		weight += 16 + len(scheme)
	}
	if w.SignatureTemplate != nil {
		weight += 512
	}
	return weight
}
