package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// OperatorTenant is the tenant of the operators' webhooks. Its events are Fairhook's
// own: nobody submits for it, and no API key is for it alone, so that only keys for all
// tenants reach it. What happens to its webhooks causes no operational event.
const OperatorTenant = "fairhook.operator"

// OperationalType is the type of an operational event.
type OperationalType string

// The closed set of operational events.
const (
	WebhookFailing    OperationalType = "webhook.failing"    // nothing but failure for a part of the time after which it is disabled
	WebhookDisabled   OperationalType = "webhook.disabled"   // by Fairhook
	WebhookRecovered  OperationalType = "webhook.recovered"  // it works again, or was enabled
	DeliveryExhausted OperationalType = "delivery.exhausted" // deliveries are out of attempts or too old
	BacklogGrowing    OperationalType = "backlog.growing"    // many deliveries wait
)

// OperationalTypes lists the closed set, for metrics and for tests.
func OperationalTypes() []OperationalType {
	return []OperationalType{WebhookFailing, WebhookDisabled, WebhookRecovered, DeliveryExhausted, BacklogGrowing}
}

// TestEventType is the type of the event that a test sends. No such event is stored.
const TestEventType = "fairhook.test"

// Subject is the webhook that an operational event is about, as its data shows it.
// Nothing of it is secret: of the URL, whose path may be, it has the host only.
type Subject struct {
	Tenant    string `json:"tenant"`
	WebhookID ID     `json:"webhook_id"`
	Host      string `json:"host"`
}

// NewSubject is the subject of an event about a webhook with this URL.
func NewSubject(tenant string, id ID, rawURL string) Subject {
	return Subject{Tenant: tenant, WebhookID: id, Host: HostOf(rawURL)}
}

// HostOf is the target host of a URL, with its port if it names one; empty for what is
// no URL.
func HostOf(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return ""
	}
	return strings.ToLower(u.Host)
}

// Failure is how a webhook fails: nothing but failure has come of it.
type Failure struct {
	FailingSince   *time.Time `json:"failing_since"`
	FailingSeconds int64      `json:"failing_seconds"`
	FailedAttempts int64      `json:"failed_attempts"`
	LastReason     Reason     `json:"last_reason"`
	LastStatusCode *int       `json:"last_status_code"`
}

// FailingData is the data of a webhook.failing event.
type FailingData struct {
	Subject
	// Percent is how much of the time after which the webhook is disabled has passed,
	// as the step that was reached: 50, 70 or 90, or 0 for the early announcement.
	Percent int `json:"percent"`
	Failure
	// DisablesAt is when it will be disabled if nothing else comes of it; nil: never.
	DisablesAt *time.Time `json:"disables_at"`
}

// DisabledBy is why Fairhook disabled a webhook.
type DisabledBy string

// The closed set of reasons to disable a webhook.
const (
	DisabledFailing DisabledBy = "failing" // nothing but failure for the time that was set
	DisabledGone    DisabledBy = "gone"    // its receiver answered 410
)

// DisabledData is the data of a webhook.disabled event.
type DisabledData struct {
	Subject
	Reason DisabledBy `json:"reason"`
	// Failure is how it failed; nil for DisabledGone.
	Failure *Failure `json:"failure"`
}

// RecoveredBy is what brought a webhook back.
type RecoveredBy string

// The closed set of ways back.
const (
	RecoveredDelivery RecoveredBy = "delivery" // a delivery succeeded
	RecoveredTest     RecoveredBy = "test"     // a test succeeded
	RecoveredEnabled  RecoveredBy = "enabled"  // by hand
)

// RecoveredData is the data of a webhook.recovered event.
type RecoveredData struct {
	Subject
	By RecoveredBy `json:"by"`
	// FailingSince is when what is over began, where that is known.
	FailingSince *time.Time `json:"failing_since"`
}

// ExhaustedData is the data of a delivery.exhausted event: the deliveries of one
// webhook that were exhausted since the event before.
type ExhaustedData struct {
	Subject
	Deliveries int64 `json:"deliveries"`
	// EventIDs are the events of some of them, at most MaxExhaustedSample.
	EventIDs []ID      `json:"event_ids"`
	FirstAt  time.Time `json:"first_at"`
	LastAt   time.Time `json:"last_at"`
}

// MaxExhaustedSample is how many events an ExhaustedData names.
const MaxExhaustedSample = 10

// GrowingData is the data of a backlog.growing event.
type GrowingData struct {
	Subject
	State State `json:"webhook_status"`
	// AtLeast is how many deliveries wait: it is not counted further.
	AtLeast    int `json:"waiting_at_least"`
	MaxBacklog int `json:"max_backlog"`
}

// OperationalEvent is one thing to tell the operators.
type OperationalEvent struct {
	Type OperationalType
	At   time.Time // when it happened
	// Subject is what it is about, and Data what it says: one of the types above.
	Subject Subject
	Data    any
}

// Payload is what receivers get: the form that Standard Webhooks 1.0.0 recommends.
func (e *OperationalEvent) Payload() ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(struct {
		Type      OperationalType `json:"type"`
		Timestamp time.Time       `json:"timestamp"`
		Data      any             `json:"data"`
	}{e.Type, e.At.UTC(), e.Data})
	if err != nil {
		return nil, fmt.Errorf("encode an event of type %s: %w", e.Type, err)
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n")), nil
}

// Bounds of Webhook.AutoDisableAfterSeconds, besides 0.
const (
	MinAutoDisableSeconds = 60
	MaxAutoDisableSeconds = 365 * 24 * 60 * 60
)

// FailurePolicy says what follows when nothing but failure comes of a webhook.
type FailurePolicy struct {
	// DisableAfter is for how long until it is disabled; 0: never.
	DisableAfter time.Duration
	// WarnAfter is for how long until it is first announced; 0: not before 50 % of
	// DisableAfter.
	WarnAfter time.Duration
}

// For is the policy for one webhook, by its own AutoDisableAfterSeconds.
func (p FailurePolicy) For(seconds *int) FailurePolicy {
	if seconds != nil {
		p.DisableAfter = time.Duration(*seconds) * time.Second
	}
	return p
}

// NothingAnnounced is what Step takes for announced where nothing was.
const NothingAnnounced = -1

// failureSteps are the percents of DisableAfter at which something happens: at the
// last the webhook is disabled, before it is announced.
var failureSteps = []int{50, 70, 90, 100}

// Step is what is to be announced of a webhook of which nothing but failure has come
// for so long, when announced is the highest that was: the highest step reached, 0 for
// the early one, 100 to disable it. due is false where there is nothing new. A step
// that was passed over is not made up for. It is pure.
func (p FailurePolicy) Step(failing time.Duration, announced int) (step int, due bool) {
	step = NothingAnnounced
	if p.WarnAfter > 0 && failing >= p.WarnAfter {
		step = 0
	}
	if p.DisableAfter > 0 {
		for _, percent := range failureSteps {
			if failing >= p.DisableAfter/100*time.Duration(percent) {
				step = percent
			}
		}
	}
	return step, step > announced
}

// GrowingAt is how many waiting deliveries are announced, where so many are set and
// the webhook may have at most maxBacklog: half of that if it is less, since what is
// full is refused. It is pure.
func GrowingAt(setting, maxBacklog int) int { return max(1, min(setting, maxBacklog/2)) }

// ShrunkAt is the number of waiting deliveries below which what was announced at
// growing is over. It is pure.
func ShrunkAt(growing int) int { return (growing + 1) / 2 }
