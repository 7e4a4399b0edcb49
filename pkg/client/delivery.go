package client

import (
	"context"
	"iter"
	"time"
)

// EndedDelivery is the end of a delivery that did not succeed.
type EndedDelivery struct {
	EventID        string         `json:"event_id"`
	WebhookID      string         `json:"webhook_id"`
	Tenant         string         `json:"tenant"`
	Type           string         `json:"type"`             // of the event; empty where the event is gone
	Status         DeliveryStatus `json:"status"`           // exhausted, cancelled or dropped
	Reason         string         `json:"reason"`           // how the last attempt ended
	Attempts       int            `json:"attempts"`         // requests made
	LastStatusCode *int           `json:"last_status_code"` // where it ended with an answer
	EndedAt        time.Time      `json:"ended_at"`
	Detail         *string        `json:"detail"` // more about the reason
}

// ListDeliveries says which ended deliveries to list.
type ListDeliveries struct {
	// Status is how they ended: DeliveryExhausted, DeliveryCancelled or
	// DeliveryDropped. Empty: DeliveryExhausted.
	Status    DeliveryStatus
	Tenant    string // empty: all tenants
	WebhookID string // empty: all webhooks
	Reason    string // of the last attempt; empty: any
	// After and Before bound when they ended: at After or later, and before Before.
	// Zero: any time.
	After, Before time.Time
	PageSize      int // of one request, at most 1000; 0: the server's default
}

// Deliveries lists deliveries. Those of one event are in its EventView.
type Deliveries struct{ client *Client }

// Deliveries is the part of the API that lists ended deliveries over all webhooks.
func (c *Client) Deliveries() Deliveries { return Deliveries{c} }

// List goes through deliveries that ended without success, those that ended last
// first, fetching page after page as the loop goes on. An error is the last thing
// it yields.
func (d Deliveries) List(ctx context.Context, filter ListDeliveries) iter.Seq2[*EndedDelivery, error] {
	query, err := listQuery("", filter.Status, nil, filter.After, filter.Before, filter.PageSize)
	if err != nil {
		return failedList[EndedDelivery](err)
	}
	set := func(name, value string) {
		if value != "" {
			query.Set(name, value)
		}
	}
	set("tenant", filter.Tenant)
	set("webhook_id", filter.WebhookID)
	set("reason", filter.Reason)
	return list[EndedDelivery](ctx, d.client, "/v1/deliveries", query)
}
