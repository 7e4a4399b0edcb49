package webhook

import "time"

// Bounds of tests.
const (
	// TestRest is how long after a test of a webhook the next may be asked for.
	TestRest = 5 * time.Second
	// TestUnclaimed is how long a dispatcher may begin a test that was asked for.
	TestUnclaimed = time.Minute
	// TestLost is how long a test can be under way: it waits, and makes one request.
	TestLost = TestUnclaimed + MaxTimeoutSeconds*time.Second + 30*time.Second
)

// TestStatus is where a test stands.
type TestStatus string

// The closed set of test statuses.
const (
	TestStatusPending   TestStatus = "pending"   // it was asked for, or is under way
	TestStatusDelivered TestStatus = "delivered" // the receiver answered 2xx
	TestStatusFailed    TestStatus = "failed"    // anything else came of it
	TestStatusLost      TestStatus = "lost"      // no dispatcher ran, or the one that began it died
)

// Test is one request made to a webhook for somebody who wants to see what comes of it.
// It is no delivery: no event is stored, and it is not tried again.
type Test struct {
	ID          ID         `json:"id"` // the request's webhook-id
	WebhookID   ID         `json:"webhook_id"`
	Status      TestStatus `json:"status"`
	RequestedAt time.Time  `json:"requested_at"`
	FinishedAt  *time.Time `json:"finished_at"`
	// Reason is how it ended, in the words of attempts; nil until then.
	Reason     *Reason `json:"reason"`
	StatusCode *int    `json:"status_code"`
	Timings    Timings `json:"timings"`
	Response   *string `json:"response"`
	Detail     *string `json:"detail"`
	// WebhookState is the webhook's now: a test that succeeded has enabled a disabled
	// one.
	WebhookState State `json:"webhook_status"`
}
