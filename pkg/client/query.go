package client

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// EventSummary is an event as the list of them has it.
type EventSummary struct {
	ID            string            `json:"id"`
	Tenant        string            `json:"tenant"`
	Type          string            `json:"type"`
	CreatedAt     time.Time         `json:"created_at"` // when it was accepted
	Timestamp     *time.Time        `json:"timestamp"`  // when it happened, where the producer said so
	Metadata      map[string]string `json:"metadata"`
	ContentType   string            `json:"content_type"`
	PayloadBytes  int               `json:"payload_bytes"`
	DeliveryCount int               `json:"delivery_count"` // webhooks chosen when it was accepted
}

// ListEvents says which events to list.
type ListEvents struct {
	Tenant    string // empty: all tenants
	WebhookID string // with a delivery to this webhook; empty: all
	Type      string // empty: any
	// Status is a final one, of a delivery of the event, to WebhookID if that is given.
	// Empty: any.
	Status   DeliveryStatus
	Metadata map[string]string // pairs that all must be there
	// After and Before bound when they were accepted: at After or later, and before
	// Before. Zero: any time.
	After, Before time.Time
	PageSize      int // of one request, at most 1000; 0: the server's default
}

// Events goes through events, the newest first, fetching page after page as the loop
// goes on. An error is the last thing it yields.
func (c *Client) Events(ctx context.Context, filter ListEvents) iter.Seq2[*EventSummary, error] {
	query, err := listQuery(filter.Type, filter.Status, filter.Metadata, filter.After, filter.Before, filter.PageSize)
	if err != nil {
		return failedList[EventSummary](err)
	}
	if filter.Tenant != "" {
		query.Set("tenant", filter.Tenant)
	}
	if filter.WebhookID != "" {
		query.Set("webhook_id", filter.WebhookID)
	}
	return list[EventSummary](ctx, c, "/v1/events", query)
}

// ListedDelivery is a delivery as the list of a webhook's deliveries has it.
type ListedDelivery struct {
	EventID   string            `json:"event_id"`
	Type      string            `json:"type"`       // of the event; empty where the event is gone
	CreatedAt time.Time         `json:"created_at"` // when the event was accepted
	Metadata  map[string]string `json:"metadata"`
	Delivery
}

// ListWebhookDeliveries says which deliveries of a webhook to list.
type ListWebhookDeliveries struct {
	Status   DeliveryStatus    // where they stand; empty: anywhere
	Type     string            // of their event; empty: any
	Metadata map[string]string // pairs that their event's metadata must have
	// After and Before bound when their event was accepted: at After or later, and
	// before Before. Zero: any time.
	After, Before time.Time
	PageSize      int // of one request, at most 1000; 0: the server's default
}

// ListFor goes through the deliveries of one webhook, fetching page after page as the
// loop goes on: those that have not ended by when they are due, if Status asks for
// them, the latest first; otherwise by when their event was accepted, the newest
// first. An error is the last thing it yields.
func (d Deliveries) ListFor(ctx context.Context, webhookID string, filter ListWebhookDeliveries) iter.Seq2[*ListedDelivery, error] {
	query, err := listQuery(filter.Type, filter.Status, filter.Metadata, filter.After, filter.Before, filter.PageSize)
	if err == nil {
		err = checkID(webhookID)
	}
	if err != nil {
		return failedList[ListedDelivery](err)
	}
	return list[ListedDelivery](ctx, d.client, "/v1/webhooks/"+webhookID+"/deliveries", query)
}

func listQuery(eventType string, status DeliveryStatus, metadata map[string]string, after, before time.Time, pageSize int) (url.Values, error) {
	query := url.Values{}
	if eventType != "" {
		query.Set("type", eventType)
	}
	if status != "" {
		query.Set("status", string(status))
	}
	if len(metadata) > 0 {
		text, err := json.Marshal(metadata)
		if err != nil {
			return nil, fmt.Errorf("fairhook: encode the metadata: %w", err)
		}
		query.Set("metadata", string(text))
	}
	if !after.IsZero() {
		query.Set("after", after.Format(time.RFC3339Nano))
	}
	if !before.IsZero() {
		query.Set("before", before.Format(time.RFC3339Nano))
	}
	if pageSize != 0 {
		query.Set("limit", strconv.Itoa(pageSize))
	}
	return query, nil
}

func failedList[T any](err error) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) { yield(nil, err) }
}

// WebhookStats is how a webhook's deliveries go.
type WebhookStats struct {
	WebhookID      string  `json:"webhook_id"`
	Status         string  `json:"status"` // active, paused or disabled
	DisabledReason *string `json:"disabled_reason"`
	// Backlog is how many deliveries have not ended; where BacklogExact is false there
	// are more.
	Backlog       int              `json:"backlog"`
	BacklogExact  bool             `json:"backlog_exact"`
	InFlight      int              `json:"in_flight"` // how many of them dispatchers have
	MaxInFlight   int              `json:"max_in_flight"`
	OldestWaiting *WaitingDelivery `json:"oldest_waiting"` // nil: nothing waits
	Recent        RecentAttempts   `json:"recent"`
	Gate          *Gate            `json:"gate"`    // nil: none is closed
	Breaker       string           `json:"breaker"` // closed, open or half_open
	Owner         *LaneOwner       `json:"owner"`   // nil: every dispatcher may work it
}

// WaitingDelivery is the delivery that has been due for longest, or is due next.
type WaitingDelivery struct {
	EventID   string    `json:"event_id"`
	CreatedAt time.Time `json:"created_at"`
	DueAt     time.Time `json:"due_at"`
}

// RecentAttempts is how a webhook's attempts went: those for the events that were
// accepted last of those that were attempted, 1,000 at most.
type RecentAttempts struct {
	Attempts    int            `json:"attempts"`
	Delivered   int            `json:"delivered"`
	SuccessRate *float64       `json:"success_rate"` // nil: there were none
	Reasons     map[string]int `json:"reasons"`
	From        *time.Time     `json:"from"` // when the first of them started
	To          *time.Time     `json:"to"`   // when the last of them started
	Request     Percentiles    `json:"request"`
	QueueWait   Percentiles    `json:"queue_wait"`
}

// Percentiles of a duration, in whole microseconds; nil: there is nothing to measure.
type Percentiles struct {
	P50 *int64 `json:"p50_us"`
	P95 *int64 `json:"p95_us"`
	P99 *int64 `json:"p99_us"`
}

// Gate is why nothing is sent to a webhook for a while, other than its own status.
type Gate struct {
	Cause    string    `json:"cause"`
	ClosedAt time.Time `json:"closed_at"`
	Until    time.Time `json:"until"`
	InARow   int       `json:"in_a_row"`
}

// LaneOwner is the dispatcher that alone works a webhook's deliveries for now.
type LaneOwner struct {
	Instance string    `json:"instance"`
	Until    time.Time `json:"until"`
}

// WebhookStats reads how a webhook's deliveries go.
func (c *Client) WebhookStats(ctx context.Context, webhookID string) (*WebhookStats, error) {
	if err := checkID(webhookID); err != nil {
		return nil, err
	}
	stats := &WebhookStats{}
	if _, err := c.do(ctx, call{method: http.MethodGet, path: "/v1/webhooks/" + webhookID + "/stats", repeatable: true}, stats); err != nil {
		return nil, err
	}
	return stats, nil
}

// Explanation says where the deliveries of an event stand, and why.
type Explanation struct {
	EventID    string              `json:"event_id"`
	Tenant     string              `json:"tenant"`
	Type       string              `json:"type"`
	CreatedAt  time.Time           `json:"created_at"`
	At         time.Time           `json:"at"` // the moment that all of it is true of
	Summary    string              `json:"summary"`
	Deliveries []ExplainedDelivery `json:"deliveries"` // 20 at most
	LeftOut    int                 `json:"left_out"`   // how many there are besides
}

// ExplainedDelivery says where a delivery stands, and why.
type ExplainedDelivery struct {
	Delivery
	Cause     string     `json:"cause"`     // a word for why it is there, such as "behind_backlog"
	Sentences []string   `json:"sentences"` // the same in plain words, and what happens next
	EndedAt   *time.Time `json:"ended_at"`
	LatencyMS *int64     `json:"latency_ms"` // from acceptance to its delivery
	Delays    []Delay    `json:"delays"`
	Lane      *Lane      `json:"lane"` // nil: it has ended, or its webhook is gone
	// AttemptsMade are the last 50, the first of them first.
	AttemptsMade    []Attempt `json:"attempts_made"`
	AttemptsLeftOut bool      `json:"attempts_left_out"`
}

// Delay is a time in which a delivery waited.
type Delay struct {
	Cause      string     `json:"cause"`
	From       time.Time  `json:"from"`
	To         *time.Time `json:"to"` // nil: it goes on
	DurationMS int64      `json:"duration_ms"`
}

// Lane is the state of the lane in which a delivery waits.
type Lane struct {
	// Ahead is how many deliveries go before it; nil: it is not due, or a dispatcher
	// has it. Where AheadExact is false there are more.
	Ahead         *int       `json:"ahead"`
	AheadExact    bool       `json:"ahead_exact"`
	InFlight      int        `json:"in_flight"`
	MaxInFlight   int        `json:"max_in_flight"`
	RatePerSecond *float64   `json:"rate_per_second"`
	Status        string     `json:"status"` // the webhook's
	Gate          *Gate      `json:"gate"`
	Owner         *LaneOwner `json:"owner"`
	Dispatcher    *string    `json:"dispatcher"`  // which has this delivery
	Dispatchers   int        `json:"dispatchers"` // how many are alive
}

// Explain says where an event's deliveries stand and why, or where the one to a webhook
// does, if its id is not empty.
func (c *Client) Explain(ctx context.Context, eventID, webhookID string) (*Explanation, error) {
	if err := checkID(eventID); err != nil {
		return nil, err
	}
	query := url.Values{}
	if webhookID != "" {
		query.Set("webhook_id", webhookID)
	}
	explanation := &Explanation{}
	if _, err := c.do(ctx, call{method: http.MethodGet, path: "/v1/events/" + eventID + "/explain", query: query, repeatable: true}, explanation); err != nil {
		return nil, err
	}
	return explanation, nil
}
