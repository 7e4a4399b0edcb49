package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"
)

// Event is an event to submit: to one webhook (WebhookID), or to every webhook
// of Tenant that subscribes to Type. Exactly one of the two is given.
type Event struct {
	WebhookID string
	Tenant    string
	// Type is dot-delimited, such as "invoice.paid".
	Type string
	// Payload is one JSON value. The receivers get its bytes as they are here,
	// less white space before and after the value.
	Payload json.RawMessage
	// Timestamp is when it happened; zero where that is not known.
	Timestamp time.Time
	// Metadata are labels of your own; receivers never see them.
	Metadata map[string]string
	// OrderingKey is what the event is ordered by at webhooks with OrderingKey: one
	// follows the other if it was submitted after Fairhook had accepted that. At most
	// 256 bytes; empty: it is not ordered there.
	OrderingKey string
	// IdempotencyKey makes submissions with the same key, within 24 hours and for
	// the same tenant, one event. Empty: one is made up for this call. Keep one
	// of your own (NewIdempotencyKey) with the event to be able to submit it
	// again after a crash.
	IdempotencyKey string
}

// Accepted is Fairhook's promise to deliver an event.
type Accepted struct {
	ID         string             `json:"id"`
	Tenant     string             `json:"tenant"`
	Type       string             `json:"type"`
	CreatedAt  time.Time          `json:"created_at"`
	Deliveries []AcceptedDelivery `json:"deliveries"`
	// Replayed is set where the key had been used before, by an earlier call or
	// an earlier try of this one: this is the answer of that time.
	Replayed bool `json:"-"`
	// IdempotencyKey is the key that was used.
	IdempotencyKey string `json:"-"`
}

// AcceptedDelivery is one webhook that the event goes to.
type AcceptedDelivery struct {
	WebhookID string `json:"webhook_id"`
	// Status is DeliveryPending, or DeliveryParked when the webhook is paused or
	// disabled.
	Status DeliveryStatus `json:"status"`
}

// DeliveryStatus is where a delivery stands. A newer Fairhook may have more
// than these.
type DeliveryStatus string

// Where a delivery can stand.
const (
	DeliveryPending    DeliveryStatus = "pending"    // waiting for its first attempt
	DeliveryDelivering DeliveryStatus = "delivering" // a request is under way
	DeliveryRetrying   DeliveryStatus = "retrying"   // failed at least once, and waiting for the next attempt
	DeliveryDelivered  DeliveryStatus = "delivered"  // the receiver answered 2xx
	DeliveryExhausted  DeliveryStatus = "exhausted"  // out of attempts or too old
	DeliveryParked     DeliveryStatus = "parked"     // waiting, and its webhook is paused or disabled
	DeliveryCancelled  DeliveryStatus = "cancelled"  // ended by hand, or its webhook was deleted
	DeliveryDropped    DeliveryStatus = "dropped"    // ended by a limit
)

// EventView is an event as Fairhook has it, with what became of it.
type EventView struct {
	ID          string            `json:"id"`
	Tenant      string            `json:"tenant"`
	Type        string            `json:"type"`
	CreatedAt   time.Time         `json:"created_at"` // when it was accepted
	Timestamp   *time.Time        `json:"timestamp"`  // when it happened, where the producer said so
	Metadata    map[string]string `json:"metadata"`
	OrderingKey *string           `json:"ordering_key"`
	ContentType string            `json:"content_type"`
	// Payload is the payload when it is JSON, and PayloadBase64 has it otherwise:
	// see PayloadBytes.
	Payload       json.RawMessage `json:"payload"`
	PayloadBase64 []byte          `json:"payload_base64"`
	Deliveries    []Delivery      `json:"deliveries"`
}

// PayloadBytes is the payload as it was submitted and as receivers get it,
// whatever its content type.
func (e *EventView) PayloadBytes() []byte {
	if e.PayloadBase64 != nil {
		return e.PayloadBase64
	}
	return e.Payload
}

// Delivery is one event going to one webhook.
type Delivery struct {
	WebhookID      string         `json:"webhook_id"`
	Status         DeliveryStatus `json:"status"`
	Attempts       int            `json:"attempts"` // requests made
	LastStatusCode *int           `json:"last_status_code"`
	Reason         *string        `json:"reason"` // how the last attempt ended
	NextAttemptAt  *time.Time     `json:"next_attempt_at"`
}

// Attempt is one request made for a delivery, or the record of a delivery that
// ended without one (Number 0).
type Attempt struct {
	ID        string `json:"id"`
	EventID   string `json:"event_id"`
	WebhookID string `json:"webhook_id"`
	// Number counts the requests of a delivery from 1. It may repeat where a
	// dispatcher died between sending and recording.
	Number int `json:"number"`
	// Reason is how it ended: "delivered", "timeout", "server_error" and so on.
	Reason string `json:"reason"`
	// Status is where the delivery stood afterwards.
	Status        DeliveryStatus `json:"status"`
	StatusCode    *int           `json:"status_code"`
	StartedAt     time.Time      `json:"started_at"`
	NextAttemptAt *time.Time     `json:"next_attempt_at"`
	Timings       Timings        `json:"timings"`
	Response      *string        `json:"response"` // the beginning of the receiver's answer
	Detail        *string        `json:"detail"`   // more about the reason
	Instance      string         `json:"instance"` // the dispatcher that made it
}

// Timings is where an attempt's time went, in whole microseconds, and nil where
// the phase did not happen.
type Timings struct {
	QueueWait *int64 `json:"queue_wait_us"`
	DNS       *int64 `json:"dns_us"`
	Connect   *int64 `json:"connect_us"`
	TLS       *int64 `json:"tls_us"`
	Auth      *int64 `json:"auth_us"` // waiting for an access token
	FirstByte *int64 `json:"first_byte_us"`
	Total     *int64 `json:"total_us"`
}

// NewIdempotencyKey makes a key that nobody else has: a random UUID (RFC 9562,
// version 4).
func NewIdempotencyKey() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = 0x40|b[6]&0x0f, 0x80|b[8]&0x3f
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Submit hands an event over. Without an error it is committed and will be
// delivered. With one it may or may not have been accepted, unless the error is
// an *Error with a 4xx status: then it was not. To settle it, submit the event
// again with the same IdempotencyKey.
func (c *Client) Submit(ctx context.Context, event Event) (*Accepted, error) {
	body, err := event.encode("") // its key is a header
	if err != nil {
		return nil, err
	}
	return c.submit(ctx, call{method: http.MethodPost, path: "/v1/events", body: body}, "application/json", event.IdempotencyKey)
}

// SubmitOption changes one submission.
type SubmitOption func(*rawSubmission)

type rawSubmission struct{ idempotencyKey, orderingKey string }

// WithIdempotencyKey is Event.IdempotencyKey for SubmitRaw.
func WithIdempotencyKey(key string) SubmitOption {
	return func(s *rawSubmission) { s.idempotencyKey = key }
}

// WithOrderingKey is Event.OrderingKey for SubmitRaw.
func WithOrderingKey(key string) SubmitOption {
	return func(s *rawSubmission) { s.orderingKey = key }
}

// SubmitRaw hands over an event for one webhook whose payload is any bytes of
// any content type; the receiver gets both as they are. It gives the same
// guarantees as Submit.
func (c *Client) SubmitRaw(ctx context.Context, webhookID, eventType, contentType string, body []byte, opts ...SubmitOption) (*Accepted, error) {
	if err := checkID(webhookID); err != nil {
		return nil, err
	}
	if contentType == "" {
		return nil, errors.New("fairhook: a raw event needs a content type")
	}
	var submission rawSubmission
	for _, opt := range opts {
		opt(&submission)
	}
	query := url.Values{"type": {eventType}}
	if submission.orderingKey != "" {
		query.Set("ordering_key", submission.orderingKey)
	}
	return c.submit(ctx, call{
		method: http.MethodPost,
		path:   "/v1/webhooks/" + webhookID + "/events",
		query:  query,
		body:   body,
	}, contentType, submission.idempotencyKey)
}

func (c *Client) submit(ctx context.Context, call call, contentType, key string) (*Accepted, error) {
	if key == "" {
		key = NewIdempotencyKey()
	}
	call.header = http.Header{"Content-Type": {contentType}, "Idempotency-Key": {key}}
	call.repeatable, call.submission = true, true
	accepted := &Accepted{}
	got, err := c.do(ctx, call, accepted)
	if err != nil {
		return nil, err
	}
	accepted.Replayed = got.header.Get("Idempotency-Replayed") == "true"
	accepted.IdempotencyKey = key
	return accepted, nil
}

// encode writes a request's body with the payload's own bytes in it, and with an
// idempotency key if one is given.
func (e *Event) encode(key string) ([]byte, error) {
	// A payload that is not one whole JSON value could close the object around
	// it and add members of its own.
	if !json.Valid(e.Payload) {
		return nil, errors.New("fairhook: the payload is not one JSON value (SubmitRaw takes other content)")
	}
	if err := e.checkText(key); err != nil {
		return nil, err
	}
	head := struct {
		WebhookID string            `json:"webhook_id,omitempty"`
		Tenant    string            `json:"tenant,omitempty"`
		Type      string            `json:"type"`
		Timestamp time.Time         `json:"timestamp,omitzero"`
		Metadata  map[string]string `json:"metadata,omitempty"`
		Ordering  string            `json:"ordering_key,omitempty"`
		Key       string            `json:"idempotency_key,omitempty"`
	}{e.WebhookID, e.Tenant, e.Type, e.Timestamp, e.Metadata, e.OrderingKey, key}
	encoded, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("fairhook: encode the event: %w", err)
	}
	const member = `,"payload":`
	body := bytes.NewBuffer(make([]byte, 0, len(encoded)+len(member)+len(e.Payload)))
	body.Write(encoded[:len(encoded)-1])
	body.WriteString(member)
	body.Write(e.Payload)
	body.WriteByte('}')
	return body.Bytes(), nil
}

// checkText refuses text that encoding/json would silently change.
func (e *Event) checkText(key string) error {
	texts := []string{e.WebhookID, e.Tenant, e.Type, e.OrderingKey, key}
	for key, value := range e.Metadata {
		texts = append(texts, key, value)
	}
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return fmt.Errorf("fairhook: %q is not valid UTF-8", text)
		}
	}
	return nil
}

// Event reads an event and where each of its deliveries stands.
func (c *Client) Event(ctx context.Context, id string) (*EventView, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	event := &EventView{}
	if _, err := c.do(ctx, call{method: http.MethodGet, path: "/v1/events/" + id, repeatable: true}, event); err != nil {
		return nil, err
	}
	return event, nil
}

// Attempts reads every attempt made for an event, of all its deliveries, oldest
// first.
func (c *Client) Attempts(ctx context.Context, eventID string) ([]Attempt, error) {
	var attempts []Attempt
	for attempt, err := range c.EachAttempt(ctx, eventID, 0) {
		if err != nil {
			return nil, err
		}
		attempts = append(attempts, *attempt)
	}
	return attempts, nil
}

// EachAttempt goes through every attempt made for an event, of all its deliveries,
// oldest first, fetching page after page, of pageSize or the server's default, as the
// loop goes on: an event that went to thousands of webhooks has as many and more. An
// error is the last thing it yields.
func (c *Client) EachAttempt(ctx context.Context, eventID string, pageSize int) iter.Seq2[*Attempt, error] {
	if err := checkID(eventID); err != nil {
		return failedList[Attempt](err)
	}
	query := url.Values{}
	if pageSize != 0 {
		query.Set("limit", strconv.Itoa(pageSize))
	}
	return list[Attempt](ctx, c, "/v1/events/"+eventID+"/attempts", query)
}
