package client

import (
	"context"
	"iter"
	"net/url"
	"strconv"
	"time"
)

// InstanceStatus is whether an instance has been heard of lately. A newer Fairhook may
// have more than these.
type InstanceStatus string

// The statuses of instances.
const (
	InstanceAlive InstanceStatus = "alive"
	InstanceStale InstanceStatus = "stale" // dead, stopped, or without its database
)

// Instance is one running process of Fairhook, as its last heartbeat has it.
type Instance struct {
	ID          string    `json:"id"`
	Role        string    `json:"role"` // "ingest" or "dispatcher"
	Version     string    `json:"version"`
	Host        string    `json:"host"`
	StartedAt   time.Time `json:"started_at"`
	HeartbeatAt time.Time `json:"heartbeat_at"`
	// Capacity is how much it can take at once: a dispatcher deliveries, an ingest
	// events that wait to be committed. InFlight is how much of that is in use.
	Capacity int `json:"capacity"`
	InFlight int `json:"in_flight"`
	// Draining says that it was told to stop, and finishes what it has.
	Draining bool `json:"draining"`
	// Leader says that it does the duties that one dispatcher does for all.
	Leader bool           `json:"leader"`
	Status InstanceStatus `json:"status"`
}

// Instances goes through the instances, the one that started last first, dead ones
// too for an hour, fetching pages of pageSize (0: the server's default) as the loop
// goes on. An error is the last thing it yields. It needs a key for all tenants with
// the scope read.
func (c *Client) Instances(ctx context.Context, pageSize int) iter.Seq2[*Instance, error] {
	query := url.Values{}
	if pageSize != 0 {
		query.Set("limit", strconv.Itoa(pageSize))
	}
	return list[Instance](ctx, c, "/v1/instances", query)
}
