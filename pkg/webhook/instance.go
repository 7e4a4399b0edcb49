package webhook

import "time"

// Role is what kind of process an instance is.
type Role string

// The closed set of roles.
const (
	RoleIngest     Role = "ingest"
	RoleDispatcher Role = "dispatcher"
)

// StaleAfter is how long an instance may be silent before it counts as dead.
const StaleAfter = 15 * time.Second

// InstanceStatus is whether an instance has been heard of lately.
type InstanceStatus string

// The closed set of instance statuses.
const (
	InstanceAlive InstanceStatus = "alive" // heard of within StaleAfter
	InstanceStale InstanceStatus = "stale" // dead, stopped, or without its database
)

// Instance is one running ingest or dispatcher, as its last heartbeat has it.
type Instance struct {
	ID          string    `json:"id"`
	Role        Role      `json:"role"`
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
