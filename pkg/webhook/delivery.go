package webhook

import "time"

// Status is where a delivery stands. It is derived, never stored for a live
// delivery: a live one is its River job, a finished one its last attempt.
type Status string

// The closed set of delivery statuses.
const (
	StatusPending    Status = "pending"    // waiting for its first attempt
	StatusDelivering Status = "delivering" // a request is under way
	StatusRetrying   Status = "retrying"   // failed at least once, and waiting for the next attempt
	StatusDelivered  Status = "delivered"  // the receiver answered 2xx
	StatusExhausted  Status = "exhausted"  // out of attempts or too old
	StatusParked     Status = "parked"     // waiting, and its webhook is paused or disabled
	StatusCancelled  Status = "cancelled"  // ended by hand, or its webhook was deleted
	StatusDropped    Status = "dropped"    // ended by a limit
)

// Terminal reports whether a delivery in this status will never be attempted
// again.
func (s Status) Terminal() bool {
	switch s {
	case StatusDelivered, StatusExhausted, StatusCancelled, StatusDropped:
		return true
	case StatusPending, StatusDelivering, StatusRetrying, StatusParked:
	}
	return false
}

// EndedStatuses are the statuses of deliveries that ended without success.
func EndedStatuses() []Status { return []Status{StatusExhausted, StatusCancelled, StatusDropped} }

// Reason is how an attempt ended: the same word in the attempts table, in logs
// and as a metric label. The set is closed for writers; readers accept words
// they do not know, since a newer version may have written them.
type Reason string

// The closed set of reasons. The first group is an answer of the receiver, the
// second a request that got none, the third an end without a request.
const (
	ReasonDelivered      Reason = "delivered"       // 2xx
	ReasonRedirect       Reason = "redirect"        // 3xx: never followed
	ReasonGone           Reason = "gone"            // 410: disables the webhook
	ReasonRateLimited    Reason = "rate_limited"    // 429
	ReasonClientError    Reason = "client_error"    // any other 4xx
	ReasonBadGateway     Reason = "bad_gateway"     // 502
	ReasonUnavailable    Reason = "unavailable"     // 503
	ReasonGatewayTimeout Reason = "gateway_timeout" // 504
	ReasonServerError    Reason = "server_error"    // any other 5xx

	ReasonDNS         Reason = "dns"          // the host name did not resolve
	ReasonConnect     Reason = "connect"      // no TCP connection
	ReasonTLS         Reason = "tls"          // the handshake failed or the certificate is not trusted
	ReasonTimeout     Reason = "timeout"      // no answer in time
	ReasonSlowBody    Reason = "slow_body"    // an answer began in time, and trickled past the deadline
	ReasonReset       Reason = "reset"        // the connection broke
	ReasonBadResponse Reason = "bad_response" // what came back is not HTTP
	ReasonTooLarge    Reason = "too_large"    // headers or body over the limit
	ReasonBlocked     Reason = "blocked"      // the address is private or otherwise refused
	ReasonBadURL      Reason = "bad_url"      // the URL breaks today's rules
	ReasonProxy       Reason = "proxy"        // the operator's outbound proxy failed
	// The next two are about the webhook's token endpoint, which gave no token; the
	// receiver was not asked.
	ReasonAuthRejected    Reason = "auth_rejected"    // it refused the client's credentials
	ReasonAuthUnavailable Reason = "auth_unavailable" // it was not reached, or made no sense
	ReasonInternalError   Reason = "internal_error"   // ours: the request could not be made

	ReasonWebhookDeleted Reason = "webhook_deleted" // the webhook is gone
	ReasonCancelled      Reason = "cancelled"       // ended by hand
	ReasonExpired        Reason = "expired"         // older than max_age_seconds
	ReasonCrashed        Reason = "crashed"         // every attempt left ended with a dead dispatcher
	ReasonSkipped        Reason = "skipped"         // ordered, and failed ordering_skip_after times
	ReasonEventMissing   Reason = "event_missing"   // the payload is past its retention
	ReasonAcceptLimited  Reason = "accept_limited"  // over accept_per_second when the event was accepted for others
	ReasonBacklogFull    Reason = "backlog_full"    // max_backlog was reached when the event was accepted for others
)

// Reasons lists the closed set, for metrics and for tests.
func Reasons() []Reason {
	return []Reason{
		ReasonDelivered, ReasonRedirect, ReasonGone, ReasonRateLimited, ReasonClientError,
		ReasonBadGateway, ReasonUnavailable, ReasonGatewayTimeout, ReasonServerError,
		ReasonDNS, ReasonConnect, ReasonTLS, ReasonTimeout, ReasonSlowBody, ReasonReset,
		ReasonBadResponse, ReasonTooLarge, ReasonBlocked, ReasonBadURL, ReasonProxy,
		ReasonAuthRejected, ReasonAuthUnavailable, ReasonInternalError,
		ReasonWebhookDeleted, ReasonCancelled, ReasonExpired, ReasonCrashed, ReasonSkipped, ReasonEventMissing,
		ReasonAcceptLimited, ReasonBacklogFull,
	}
}

// Delivery is one event going to one webhook.
type Delivery struct {
	WebhookID      ID         `json:"webhook_id"`
	Status         Status     `json:"status"`
	Attempts       int        `json:"attempts"` // requests made
	LastStatusCode *int       `json:"last_status_code"`
	Reason         *Reason    `json:"reason"` // of the last attempt
	NextAttemptAt  *time.Time `json:"next_attempt_at"`
}

// EndedDelivery is the end of a delivery that did not succeed, as the list of
// them shows it.
type EndedDelivery struct {
	EventID   ID      `json:"event_id"`
	WebhookID ID      `json:"webhook_id"`
	Tenant    string  `json:"tenant"`
	Type      *string `json:"type"` // of the event; nil where its row is gone
	Status    Status  `json:"status"`
	Reason    Reason  `json:"reason"`
	Attempts  int     `json:"attempts"` // requests made
	// LastStatusCode is what the receiver answered last, if the delivery ended with
	// an attempt that got an answer.
	LastStatusCode *int      `json:"last_status_code"`
	EndedAt        time.Time `json:"ended_at"` // to the millisecond
	Detail         *string   `json:"detail"`
	AttemptID      ID        `json:"-"` // the attempt that ended it: its place in the list
}

// Timings is where an attempt's time went, each in whole microseconds, and nil
// where the phase did not happen (a reused connection has no DNS, connect or
// TLS phase).
type Timings struct {
	QueueWait *int64 `json:"queue_wait_us"` // from due to the start of the request
	DNS       *int64 `json:"dns_us"`
	Connect   *int64 `json:"connect_us"`
	TLS       *int64 `json:"tls_us"`
	Auth      *int64 `json:"auth_us"`       // waiting for a token, where one had to be asked for
	FirstByte *int64 `json:"first_byte_us"` // from the request's start to the first byte of the answer
	Total     *int64 `json:"total_us"`      // from the request's start to the end of the answer
}

// Attempt is one HTTP request made for a delivery, or the record of a delivery
// that ended without one (Number 0).
type Attempt struct {
	ID        ID     `json:"id"`
	EventID   ID     `json:"event_id"`
	WebhookID ID     `json:"webhook_id"`
	Tenant    string `json:"-"`
	// Number counts the requests made for this delivery from 1. It may repeat
	// where a dispatcher died between sending and recording.
	Number int    `json:"number"`
	Reason Reason `json:"reason"`
	// Status is where the delivery stood after this attempt.
	Status        Status     `json:"status"`
	StatusCode    *int       `json:"status_code"`
	StartedAt     time.Time  `json:"started_at"`
	NextAttemptAt *time.Time `json:"next_attempt_at"`
	Timings       Timings    `json:"timings"`
	// Response is the beginning of what the receiver answered, at most
	// MaxResponseSnippet bytes, made valid UTF-8 without NUL.
	Response *string `json:"response"`
	// Detail says more about a reason: an error's text, never an address that
	// the egress guard refused.
	Detail   *string `json:"detail"`
	Instance string  `json:"instance"`
	// UsesStep says that the attempt used a step of the retry schedule.
	UsesStep bool `json:"-"`
}

// MaxResponseSnippet is how many bytes of a receiver's answer are kept.
const MaxResponseSnippet = 1024
