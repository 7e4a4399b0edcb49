// Package job is the contract between the binaries: the arguments of the River
// jobs that ingest inserts and dispatchers work.
//
// It is versioned like an API. A field may be added when its zero value means
// what the lack of it meant before; anything else is a new kind, which ships
// one release before it is first inserted, since River discards stuck jobs of a
// kind that the leader does not know.
package job

import (
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// MaxAttempts is the max_attempts of every delivery's job. It is out of reach on
// purpose: how often a delivery is tried is decided by its webhook's schedule
// (package courier), and River's own limit would end deliveries without a
// record.
const MaxAttempts = 10_000

// Delivery asks for one event to be sent to one webhook. Its job's queue is the
// webhook's lane (package fairqueue).
type Delivery struct {
	EventID   webhook.ID `json:"event_id"`
	WebhookID webhook.ID `json:"webhook_id"`
	// OrderingKey is the event's; empty: it has none.
	OrderingKey string `json:"ordering_key,omitempty"`

	// RetryAt hands the worker's decision to River's NextRetry. It lives in
	// memory only, for the length of one attempt.
	RetryAt time.Time `json:"-"`
}

// KindDelivery is the River job kind of a delivery.
const KindDelivery = "delivery"

// Kind names the job kind for River.
func (Delivery) Kind() string { return KindDelivery }
