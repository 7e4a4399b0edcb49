package webhook

import "time"

// EventSummary is how the list of events shows one: without its payload, and without
// its deliveries, of which there can be thousands.
type EventSummary struct {
	ID          ID                `json:"id"`
	Tenant      string            `json:"tenant"`
	Type        string            `json:"type"`
	CreatedAt   time.Time         `json:"created_at"`
	Timestamp   *time.Time        `json:"timestamp"`
	Metadata    map[string]string `json:"metadata"`
	ContentType string            `json:"content_type"`
	// PayloadBytes is the length of the payload.
	PayloadBytes int `json:"payload_bytes"`
	// DeliveryCount is how many webhooks were chosen when the event was accepted.
	DeliveryCount int `json:"delivery_count"`
}

// ListedDelivery is how the list of a webhook's deliveries shows one.
type ListedDelivery struct {
	EventID   ID                `json:"event_id"`
	Type      *string           `json:"type"` // of the event; nil where its row is gone
	CreatedAt time.Time         `json:"created_at"`
	Metadata  map[string]string `json:"metadata"`
	Delivery
}

// LaneStats is how a webhook's deliveries go.
type LaneStats struct {
	WebhookID      ID      `json:"webhook_id"`
	Status         State   `json:"status"`
	DisabledReason *string `json:"disabled_reason"`
	// Backlog is how many deliveries have not ended. Where BacklogExact is false there
	// are more, and counting stopped.
	Backlog      int  `json:"backlog"`
	BacklogExact bool `json:"backlog_exact"`
	// InFlight is how many of them dispatchers have.
	InFlight    int              `json:"in_flight"`
	MaxInFlight int              `json:"max_in_flight"`
	Oldest      *WaitingDelivery `json:"oldest_waiting"` // nil: nothing waits
	Recent      RecentAttempts   `json:"recent"`
	Gate        *GateView        `json:"gate"` // nil: none is closed
	Breaker     BreakerState     `json:"breaker"`
	Owner       *LaneOwner       `json:"owner"` // nil: the lane is everybody's
}

// WaitingDelivery is a delivery that waits.
type WaitingDelivery struct {
	EventID   ID        `json:"event_id"`
	CreatedAt time.Time `json:"created_at"` // when its event was accepted
	DueAt     time.Time `json:"due_at"`     // since when it could have been sent, or from when on
}

// RecentAttempts is how a webhook's attempts went lately: those for the events that
// were accepted last of those that were attempted, MaxRecentAttempts at most.
type RecentAttempts struct {
	Attempts  int `json:"attempts"`
	Delivered int `json:"delivered"`
	// SuccessRate is the part of them that delivered; nil: there were none.
	SuccessRate *float64       `json:"success_rate"`
	Reasons     map[Reason]int `json:"reasons"` // how many ended how
	From        *time.Time     `json:"from"`    // when the first of them started
	To          *time.Time     `json:"to"`      // when the last of them started
	// Request is how long they took, from the request's start to the end of the answer,
	// and QueueWait from when they were due to the request's start.
	Request   Percentiles `json:"request"`
	QueueWait Percentiles `json:"queue_wait"`
}

// MaxRecentAttempts bounds RecentAttempts.
const MaxRecentAttempts = 1000

// Percentiles of a duration, in whole microseconds; nil: there is nothing to measure.
type Percentiles struct {
	P50 *int64 `json:"p50_us"`
	P95 *int64 `json:"p95_us"`
	P99 *int64 `json:"p99_us"`
}

// GateView is why a lane is shut, other than its webhook's own status.
type GateView struct {
	Cause    Cause     `json:"cause"` // gated_by_receiver, gated_by_proxy, gated_by_auth, breaker_open or breaker_probing
	ClosedAt time.Time `json:"closed_at"`
	Until    time.Time `json:"until"` // of a breaker: when it is probed
	InARow   int       `json:"in_a_row"`
}

// BreakerState is what a webhook's breaker does.
type BreakerState string

// The closed set of breaker states.
const (
	BreakerClosed   BreakerState = "closed"    // it lets everything through
	BreakerOpen     BreakerState = "open"      // it lets nothing through
	BreakerHalfOpen BreakerState = "half_open" // it lets one delivery through, or waits for one
)

// LaneOwner is the dispatcher that alone works a lane.
type LaneOwner struct {
	Instance string    `json:"instance"`
	Until    time.Time `json:"until"` // of its lease, which it renews
}
