package webhook

import "time"

// Cause is why a delivery is where it is. The set is closed for writers; readers accept
// words they do not know.
type Cause string

// The closed set of causes. The first group is of deliveries that wait, the second of
// those that a dispatcher has, the third of those that have ended.
const (
	CauseNextInLane      Cause = "next_in_lane"      // nothing goes before it
	CauseBehindBacklog   Cause = "behind_backlog"    // others of its lane go before it
	CauseWaitingInOrder  Cause = "waiting_in_order"  // the webhook gets its deliveries in order, and earlier ones may have to go first
	CauseAtMaxInFlight   Cause = "at_max_in_flight"  // the webhook has as many requests under way as it may
	CauseRateLimited     Cause = "rate_limited"      // others go before it, at rate_per_second
	CauseNotDue          Cause = "not_due"           // its time has not come
	CauseWaitingForRetry Cause = "waiting_for_retry" // an attempt failed, and the schedule says when the next is made
	CausePaused          Cause = "paused"            // the webhook was paused by hand
	CauseDisabled        Cause = "disabled"          // the webhook was disabled
	CauseGatedByReceiver Cause = "gated_by_receiver" // the receiver asked for time, or its gateway did
	CauseGatedByProxy    Cause = "gated_by_proxy"    // the operator's own proxy failed
	CauseGatedByAuth     Cause = "gated_by_auth"     // the webhook's token endpoint gave no token
	CauseBreakerOpen     Cause = "breaker_open"      // too many of the webhook's deliveries failed
	CauseBreakerProbing  Cause = "breaker_probing"   // one delivery goes ahead, to see whether the receiver is back
	CauseWebhookGone     Cause = "webhook_gone"      // the webhook was deleted, and the delivery is about to be ended
	CauseNoDispatcher    Cause = "no_dispatcher"     // no dispatcher is alive

	CauseDelivering     Cause = "delivering"      // a request is under way, or about to be
	CauseDispatcherDead Cause = "dispatcher_dead" // the dispatcher that had it was not heard of lately

	CauseDelivered        Cause = "delivered"          // the receiver answered 2xx
	CauseRetriesUsedUp    Cause = "retries_used_up"    // the last attempt that its schedule or its age allowed failed
	CauseSkipped          Cause = "skipped"            // ordered, and failed ordering_skip_after times
	CauseExpired          Cause = "expired"            // it was older than max_age_seconds
	CauseCrashed          Cause = "crashed"            // every attempt left ended with a dispatcher that died
	CauseCancelled        Cause = "cancelled"          // it was ended by hand
	CauseWebhookDeleted   Cause = "webhook_deleted"    // its webhook was deleted
	CauseRemoved          Cause = "removed"            // its job was deleted by hand, and nothing is on record
	CauseEventPastKeeping Cause = "event_past_keeping" // its event is past retention
	CauseAcceptLimited    Cause = "accept_limited"     // accept_per_second was exceeded when the event was accepted
	CauseBacklogFull      Cause = "backlog_full"       // max_backlog was reached when the event was accepted
	CauseEnded            Cause = "ended"              // for a reason that a newer version has written
)

// Causes lists the closed set.
func Causes() []Cause {
	return []Cause{
		CauseNextInLane, CauseBehindBacklog, CauseWaitingInOrder, CauseAtMaxInFlight, CauseRateLimited, CauseNotDue, CauseWaitingForRetry,
		CausePaused, CauseDisabled, CauseGatedByReceiver, CauseGatedByProxy, CauseGatedByAuth, CauseBreakerOpen,
		CauseBreakerProbing,
		CauseWebhookGone, CauseNoDispatcher, CauseDelivering, CauseDispatcherDead, CauseDelivered, CauseRetriesUsedUp,
		CauseSkipped, CauseExpired, CauseCrashed, CauseCancelled, CauseWebhookDeleted, CauseRemoved, CauseEventPastKeeping,
		CauseAcceptLimited, CauseBacklogFull, CauseEnded,
	}
}

// Explanation says where the deliveries of an event stand, and why.
type Explanation struct {
	EventID   ID        `json:"event_id"`
	Tenant    string    `json:"tenant"`
	Type      string    `json:"type"`
	CreatedAt time.Time `json:"created_at"` // when it was accepted
	At        time.Time `json:"at"`         // the moment that all of this is true of
	Summary   string    `json:"summary"`    // in a sentence
	// Deliveries are those asked for, MaxExplained at most; LeftOut counts the others.
	Deliveries []ExplainedDelivery `json:"deliveries"`
	LeftOut    int                 `json:"left_out"`
}

// MaxExplained is how many deliveries one explanation has.
const MaxExplained = 20

// ExplainedDelivery says where a delivery stands, and why.
type ExplainedDelivery struct {
	Delivery
	Cause Cause `json:"cause"`
	// Sentences say in plain words what follows as data, in the order in which it
	// happened, and last what happens next.
	Sentences []string `json:"sentences"`
	// EndedAt is when it ended; nil: it has not, or that is not on record.
	EndedAt *time.Time `json:"ended_at"`
	// LatencyMS is how long after its event's acceptance it was delivered.
	LatencyMS *int64 `json:"latency_ms"`
	// Delays are the times, between acceptance and now or its end, in which it could
	// not be sent: oldest first. They may overlap.
	Delays []Delay `json:"delays"`
	// Lane is the state of its lane; nil: it has ended, or its webhook is gone.
	Lane *LaneView `json:"lane"`
	// AttemptsMade are its attempts, oldest first: the last MaxExplainedAttempts.
	AttemptsMade []Attempt `json:"attempts_made"`
	// AttemptsLeftOut says that there were others before those.
	AttemptsLeftOut bool `json:"attempts_left_out"`
}

// MaxExplainedAttempts is how many attempts of a delivery an explanation has.
const MaxExplainedAttempts = 50

// Delay is a time in which a delivery waited for this cause.
type Delay struct {
	Cause      Cause      `json:"cause"`
	From       time.Time  `json:"from"`
	To         *time.Time `json:"to"` // nil: it goes on
	DurationMS int64      `json:"duration_ms"`
}

// LaneView is the state of the lane in which a delivery waits.
type LaneView struct {
	// Ahead is how many deliveries of the lane are fetched before this one; nil: it is
	// not due, or a dispatcher has it. Where AheadExact is false there are more.
	Ahead         *int       `json:"ahead"`
	AheadExact    bool       `json:"ahead_exact"`
	InFlight      int        `json:"in_flight"`
	MaxInFlight   int        `json:"max_in_flight"`
	RatePerSecond *float64   `json:"rate_per_second"`
	Status        State      `json:"status"` // the webhook's
	Gate          *GateView  `json:"gate"`
	Owner         *LaneOwner `json:"owner"`
	// Dispatcher has the delivery; nil: none has.
	Dispatcher *string `json:"dispatcher"`
	// Dispatchers is how many are alive.
	Dispatchers int `json:"dispatchers"`
}
