// Package api is the REST API's management and query routes: webhooks with their
// secrets, event types, what became of events, and what runs. The routes that submit events, and all
// that surrounds a route (keys, limits, problem documents), belong to package
// ingest.
//
// Handlers return errors and render none. A *webhook.Error is for the caller;
// anything else is either the database being away (postgres.Unavailable) or
// internal.
package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// acquireTimeout is how long a request waits for a database connection. With the
// database away the answer is then there within a second.
const acquireTimeout = 900 * time.Millisecond

// Config is what an API needs. All fields are required but where a default is
// named.
type Config struct {
	Pool  *pgxpool.Pool
	Clock *postgres.Clock // for the ids of webhooks and secrets
	Box   *seal.Box       // seals secrets, bound to their webhook's id
	Guard *egress.Guard   // knows which URLs are allowed
	// Catalog is told of each change, so that a submit that follows it through
	// this process goes by it. It also answers for public keys.
	Catalog *catalog.Catalog
	// MaxBodyBytes is the largest request body; 0 means DefaultMaxBodyBytes.
	MaxBodyBytes int64
	// TestWait is how long a request waits for the test that it asks for; 0 means 10 s.
	TestWait time.Duration
}

// PublicKeysRoute is the one route here that anyone may call.
const PublicKeysRoute = "/v1/webhooks/:id/public-keys"

// API holds the routes' dependencies. It is safe for concurrent use.
type API struct {
	pool         *pgxpool.Pool
	clock        *postgres.Clock
	box          *seal.Box
	guard        *egress.Guard
	catalog      *catalog.Catalog
	maxBodyBytes int64
	testWait     time.Duration
	announcer    *postgres.Announcer
}

// New makes an API. It starts nothing.
func New(cfg Config) *API {
	return &API{
		pool: cfg.Pool, clock: cfg.Clock, box: cfg.Box, guard: cfg.Guard, catalog: cfg.Catalog,
		maxBodyBytes: cmp.Or(cfg.MaxBodyBytes, DefaultMaxBodyBytes), testWait: cmp.Or(cfg.TestWait, testWait),
		announcer: postgres.NewAnnouncer(fairqueue.JobInsert()),
	}
}

// Register adds the routes to e. Which scope a route needs is for middleware to
// decide, which also says who calls (SetPrincipal); the routes see to it that no
// one gets at another tenant's things.
func (a *API) Register(e *echo.Echo) {
	e.GET("/v1/events", a.listEvents)
	e.GET("/v1/events/:id", a.getEvent, a.ownEvent)
	e.GET("/v1/events/:id/attempts", a.listAttempts, a.ownEvent)
	e.GET("/v1/events/:id/explain", a.explainEvent, a.ownEvent)

	e.GET("/v1/deliveries", a.listDeliveries)

	e.POST("/v1/webhooks", a.createWebhook)
	e.GET("/v1/webhooks", a.listWebhooks)
	e.GET("/v1/webhooks/:id", a.getWebhook, a.ownWebhook)
	e.PATCH("/v1/webhooks/:id", a.updateWebhook, a.ownWebhook)
	e.DELETE("/v1/webhooks/:id", a.deleteWebhook, a.ownWebhook)
	e.POST("/v1/webhooks/:id/pause", a.pauseWebhook, a.ownWebhook)
	e.POST("/v1/webhooks/:id/resume", a.resumeWebhook, a.ownWebhook)
	e.POST("/v1/webhooks/:id/test", a.startTest, a.ownWebhook)
	e.GET("/v1/webhooks/:id/tests/:test", a.getTest, a.ownWebhook)
	e.GET("/v1/webhooks/:id/secrets", a.listSecrets, a.ownWebhook)
	e.POST("/v1/webhooks/:id/secrets", a.rotateSecret, a.ownWebhook)
	e.DELETE("/v1/webhooks/:id/secrets/:secret_id", a.deleteSecret, a.ownWebhook)
	e.GET(PublicKeysRoute, a.publicKeys) // for anyone
	e.GET("/v1/webhooks/:id/deliveries", a.listWebhookDeliveries, a.ownWebhook)
	e.GET("/v1/webhooks/:id/stats", a.laneStats, a.ownWebhook)

	e.PUT("/v1/event-types/:name", a.putEventType)
	e.GET("/v1/event-types", a.listEventTypes)
	e.GET("/v1/event-types/:name", a.getEventType)
	e.DELETE("/v1/event-types/:name", a.deleteEventType)

	e.POST("/v1/keys", a.createKey)
	e.GET("/v1/keys", a.listKeys)
	e.GET("/v1/keys/:id", a.getKey)
	e.DELETE("/v1/keys/:id", a.revokeKey)
	e.POST("/v1/keys/:id/secrets", a.rotateKeySecret)

	e.GET("/v1/instances", a.listInstances)
}

// withConn lends f a connection.
func (a *API) withConn(ctx context.Context, f func(conn *pgxpool.Conn) error) error {
	acquireCtx, cancel := context.WithTimeout(ctx, acquireTimeout)
	defer cancel()
	conn, err := a.pool.Acquire(acquireCtx)
	if err != nil {
		return fmt.Errorf("get a database connection: %w", err)
	}
	defer conn.Release()
	return f(conn)
}

// inTx runs f in a transaction, which commits if f returns nil.
func (a *API) inTx(ctx context.Context, f func(tx pgx.Tx) error) error {
	return a.withConn(ctx, func(conn *pgxpool.Conn) error {
		return pgx.BeginFunc(ctx, conn, f)
	})
}

// inSnapshot runs f in a transaction whose statements all see the database at
// one moment, and which can change nothing.
func (a *API) inSnapshot(ctx context.Context, f func(tx pgx.Tx) error) error {
	return a.withConn(ctx, func(conn *pgxpool.Conn) error {
		return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, f)
	})
}

// changed says that a change of a webhook has been committed.
func (a *API) changed(w *webhook.Webhook) { a.catalog.Invalidate(w.ID, w.Tenant) }

// WriteJSON answers with a value as JSON. Characters that only HTML minds, such
// as the & of a URL, are not escaped. The error is about the value: a client
// that has left is nobody to tell.
func WriteJSON(c echo.Context, status int, value any) error {
	body, err := encodeJSON(value)
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	writeBody(c, status, body)
	return nil
}

func encodeJSON(value any) ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return buffer.Bytes(), err
}

func writeBody(c echo.Context, status int, body []byte) {
	response := c.Response()
	response.Header().Set(echo.HeaderContentType, echo.MIMEApplicationJSON)
	response.WriteHeader(status)
	_, _ = response.Write(body)
}
