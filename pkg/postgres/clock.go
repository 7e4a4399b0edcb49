package postgres

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	connectTimeout = 5 * time.Second
	clockInterval  = 15 * time.Second
	clockTimeout   = 5 * time.Second
	clockSamples   = 3
)

// Clock tells the database's time without asking it each time: the host's
// monotonic clock plus an offset measured now and then. Ids and schedules use
// it, so a host whose clock is wrong by a day behaves like any other.
//
// Its methods are safe for concurrent use.
type Clock struct {
	db Querier
	// base is a host time with a monotonic reading paired with the database's
	// time at that moment.
	base atomic.Pointer[clockBase]
}

type clockBase struct {
	host     time.Time
	database time.Time
}

// NewClock measures the offset once and fails if the database cannot be asked.
// Run keeps it true.
func NewClock(ctx context.Context, db Querier) (*Clock, error) {
	c := &Clock{db: db}
	if err := c.Measure(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Now is the database's time, in UTC. It is off by at most half a round trip
// plus what the two clocks drift apart between measurements.
func (c *Clock) Now() time.Time {
	base := c.base.Load()
	return base.database.Add(time.Since(base.host))
}

// Measure asks the database for its time and keeps the sample with the shortest
// round trip.
func (c *Clock) Measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	var best *clockBase
	var shortest time.Duration
	for range clockSamples {
		var database time.Time
		before := time.Now()
		if err := c.db.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&database); err != nil {
			return fmt.Errorf("ask the database for its time: %w", err)
		}
		if trip := time.Since(before); best == nil || trip < shortest {
			best, shortest = &clockBase{host: before.Add(trip / 2), database: database.UTC()}, trip
		}
	}
	c.base.Store(best)
	return nil
}

// Run measures every 15 s until ctx ends. While the database is away the last
// offset stays in use.
func (c *Clock) Run(ctx context.Context) error {
	ticker := time.NewTicker(clockInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			_ = c.Measure(ctx) // the next tick tries again, and Now stays usable
		}
	}
}
