package client

import (
	"context"
	"net/http"
	"time"
)

// OperatorTenant is the tenant of the operators' webhooks, to which Fairhook sends what
// happens to webhooks. Only keys for all tenants reach it.
const OperatorTenant = "fairhook.operator"

// WebhookTest is one request made to a webhook for somebody who wants to see what comes
// of it. It is no delivery.
type WebhookTest struct {
	ID          string     `json:"id"`
	WebhookID   string     `json:"webhook_id"`
	Status      TestStatus `json:"status"`
	RequestedAt time.Time  `json:"requested_at"`
	FinishedAt  *time.Time `json:"finished_at"` // nil: it has not ended
	// Reason is how it ended, in the words of attempts; nil: it has not.
	Reason     *string `json:"reason"`
	StatusCode *int    `json:"status_code"` // of the receiver's answer
	Timings    Timings `json:"timings"`
	Response   *string `json:"response"` // the beginning of the answer's body
	Detail     *string `json:"detail"`
	// WebhookStatus is the webhook's: a test that succeeded has enabled a disabled one.
	WebhookStatus WebhookStatus `json:"webhook_status"`
}

// TestStatus is where a test stands. A newer Fairhook may have more than these.
type TestStatus string

// The statuses of a test.
const (
	TestPending   TestStatus = "pending"
	TestDelivered TestStatus = "delivered" // the receiver answered 2xx
	TestFailed    TestStatus = "failed"
	TestLost      TestStatus = "lost" // no dispatcher ran, or the one that began it died
)

// Test has one signed request made to a webhook at once, also to one that is paused or
// disabled, and waits some seconds for its end: a test that is TestPending then goes on,
// and GetTest tells. A test that succeeds enables a webhook that Fairhook has disabled.
func (w Webhooks) Test(ctx context.Context, id string) (*WebhookTest, error) {
	return w.test(ctx, id, "/test", call{method: http.MethodPost})
}

// GetTest reads a test of a webhook. Tests are kept for an hour.
func (w Webhooks) GetTest(ctx context.Context, id, testID string) (*WebhookTest, error) {
	if err := checkID(testID); err != nil {
		return nil, err
	}
	return w.test(ctx, id, "/tests/"+testID, call{method: http.MethodGet, repeatable: true})
}

func (w Webhooks) test(ctx context.Context, id, action string, call call) (*WebhookTest, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	call.path = "/v1/webhooks/" + id + action
	test := &WebhookTest{}
	if _, err := w.client.do(ctx, call, test); err != nil {
		return nil, err
	}
	return test, nil
}
