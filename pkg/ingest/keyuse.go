package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// keyUseInterval is how often the last use of keys is written, keyUseTimeout
	// how long that may take.
	keyUseInterval = 15 * time.Second
	keyUseTimeout  = 5 * time.Second
)

// KeyUse remembers when API keys were last used, to the minute, and writes that
// down in batches: at most once a minute for each key, whatever the number of
// its requests. What was not written when the process dies is forgotten.
//
// Its methods are safe for concurrent use.
type KeyUse struct {
	pool   *pgxpool.Pool
	clock  *postgres.Clock
	logger *slog.Logger

	mu sync.Mutex
	// last is the minute in which each key was last used, and pending are those
	// of them that have not been written; both guarded by mu. last has no more
	// entries than there are keys in use: it is emptied of others at each writing.
	last    map[webhook.ID]time.Time
	pending map[webhook.ID]time.Time
}

// NewKeyUse makes a KeyUse. It starts nothing.
func NewKeyUse(pool *pgxpool.Pool, clock *postgres.Clock, logger *slog.Logger) *KeyUse {
	return &KeyUse{
		pool: pool, clock: clock, logger: logger,
		last: make(map[webhook.ID]time.Time), pending: make(map[webhook.ID]time.Time),
	}
}

// record notes that a key is being used. The zero id is the key of the
// configuration, which has no row.
func (u *KeyUse) record(id webhook.ID) {
	if u == nil || id.IsZero() {
		return
	}
	minute := u.clock.Now().Truncate(time.Minute)
	u.mu.Lock()
	defer u.mu.Unlock()
	if minute.After(u.last[id]) {
		u.last[id], u.pending[id] = minute, minute
	}
}

// Run writes down what was recorded, now and then and once more when ctx ends.
// It returns nil.
func (u *KeyUse) Run(ctx context.Context) error {
	ticker := time.NewTicker(keyUseInterval)
	defer ticker.Stop()
	for complained := false; ; {
		ended := false
		select {
		case <-ctx.Done():
			ended = true
		case <-ticker.C:
		}
		err := u.writeOnce(context.WithoutCancel(ctx))
		if err != nil && !complained {
			u.logger.WarnContext(ctx, "the last use of API keys is not being recorded; trying again", "error", err)
		}
		complained = err != nil
		if ended {
			return nil
		}
	}
}

// writeOnce writes what is pending. What could not be written stays pending.
func (u *KeyUse) writeOnce(ctx context.Context) error {
	now := u.clock.Now()
	u.mu.Lock()
	pending := u.pending
	u.pending = make(map[webhook.ID]time.Time)
	for id, minute := range u.last {
		if now.Sub(minute) > time.Minute {
			delete(u.last, id)
		}
	}
	u.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	ids, at := make([]webhook.ID, 0, len(pending)), make([]time.Time, 0, len(pending))
	for id, minute := range pending {
		ids, at = append(ids, id), append(at, minute)
	}
	ctx, cancel := context.WithTimeout(ctx, keyUseTimeout)
	defer cancel()
	err := postgres.TouchKeys(ctx, u.pool, ids, at)
	if err == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, minute := range pending {
		if minute.After(u.pending[id]) {
			u.pending[id] = minute
		}
	}
	return fmt.Errorf("write the last use of API keys: %w", err)
}
