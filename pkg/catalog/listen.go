package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	connectTimeout = 5 * time.Second
	// pingEvery and pingTimeout bound how long a dead line goes unnoticed, at
	// less than MaxStale together.
	pingEvery   = time.Second
	pingTimeout = time.Second

	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
)

// session is one period of listening.
type session struct {
	// live is true from the moment that LISTEN has committed until the line is
	// found dead.
	live atomic.Bool
	// proved is when the line was last known to work, and every change before
	// that heard of.
	proved atomic.Pointer[time.Time]
}

func newSession() *session { return &session{} }

func (s *session) prove(at time.Time) { s.proved.Store(&at) }

func (s *session) proof() time.Time {
	if at := s.proved.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// Run listens for changes until ctx ends, and returns nil then. It reconnects as
// often as needed.
func (c *Catalog) Run(ctx context.Context) error {
	backoff, complained := minBackoff, false
	for ctx.Err() == nil {
		listened, err := c.listenOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		if listened {
			backoff, complained = minBackoff, false
		}
		if !complained {
			complained = true
			c.logger.WarnContext(ctx, "not listening for changed webhooks; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
	return nil
}

// listenOnce listens on one connection until it breaks or ctx ends. listened
// tells whether LISTEN succeeded.
func (c *Catalog) listenOnce(ctx context.Context) (listened bool, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
		defer cancel()
		_ = conn.Close(closeCtx) // there is nobody left to tell
	}()

	// Loads that began before this moment may have missed a change.
	s := newSession()
	s.prove(time.Now())
	s.live.Store(true)
	defer s.live.Store(false)
	c.current.Store(s)
	c.webhooks.disown()
	c.subscribers.disown()
	c.keys.disown()
	c.types.disown()
	c.publicKeys.disown()
	c.metrics.resets.Inc()
	c.logger.InfoContext(ctx, "listening for changed webhooks")
	for _, reset := range c.onReset {
		reset()
	}

	for nextPing := time.Now().Add(pingEvery); ; {
		waitCtx, cancel := context.WithDeadline(ctx, nextPing)
		notification, err := conn.WaitForNotification(waitCtx)
		timedOut := waitCtx.Err() != nil
		cancel()
		if notification != nil {
			c.changed(notification)
		}
		switch {
		case err == nil:
			if time.Now().Before(nextPing) {
				continue
			}
		case ctx.Err() != nil:
			return true, ctx.Err()
		case !timedOut:
			return true, fmt.Errorf("wait for notifications: %w", err)
		}
		asked := time.Now()
		if err := c.ping(ctx, conn); err != nil {
			return true, err
		}
		s.prove(asked)
		nextPing = time.Now().Add(pingEvery)
	}
}

func (c *Catalog) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, c.listen)
	if err != nil {
		return nil, fmt.Errorf("connect to listen: %w", err)
	}
	if _, err := conn.Exec(ctx, `LISTEN "`+postgres.CatalogChannel+`"`); err != nil {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("listen: %w", err)
	}
	return conn, nil
}

// ping makes sure that the line works and that it is still this session that
// listens: behind a pooler in transaction mode it would not be. What was notified
// before the answer is handled before it returns.
func (c *Catalog) ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var listening bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_listening_channels() AS l (channel) WHERE channel = $1)`,
		postgres.CatalogChannel).Scan(&listening)
	if err != nil {
		return fmt.Errorf("ping the listening connection: %w", err)
	}
	if !listening {
		return errors.New("the connection lost its LISTEN: it must be direct, not through a pooler in transaction mode")
	}
	for {
		// A context that has ended returns what has arrived already, and waits for
		// nothing.
		ended, cancel := context.WithCancel(ctx)
		cancel()
		notification, _ := conn.WaitForNotification(ended)
		if notification == nil {
			return nil
		}
		c.changed(notification)
	}
}

// changed forgets what a notification names. One that cannot be read names
// nothing that could be known here.
func (c *Catalog) changed(n *pgconn.Notification) {
	text, tenant, _ := strings.Cut(n.Payload, " ")
	if n.Channel == postgres.CatalogChannel && text == "type" {
		c.typeChanged(tenant)
		return
	}
	if n.Channel == postgres.CatalogChannel && text == "key" {
		c.keyChanged(tenant)
		return
	}
	id, err := webhook.ParseID(text)
	if n.Channel != postgres.CatalogChannel || err != nil {
		return
	}
	c.metrics.invalidations.Inc()
	c.Invalidate(id, tenant)
	for _, hook := range c.onChange {
		hook(id, tenant)
	}
}
