package courier

import (
	"math"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Policy is a webhook's retry policy.
type Policy struct {
	// Schedule are the waits after each failed attempt: n entries, n+1 attempts
	// that cost a step.
	Schedule []time.Duration
	// MaxAge ends a delivery whose next attempt would come later than this after
	// the event was accepted. Zero means no limit.
	MaxAge time.Duration
	// Ordered says that other deliveries wait for this one, so that it is tried on where
	// the schedule ends: its last wait repeats, until MaxAge, or until SkipAfter attempts
	// have failed that cost a step; 0: any number.
	Ordered   bool
	SkipAfter int
}

// wait is the wait after a failed attempt of this step, and whether there is another
// attempt. An ordered delivery without a schedule waits as long as a gate can last.
func (p Policy) wait(step int) (wait time.Duration, another bool) {
	n := len(p.Schedule)
	switch {
	case step <= n:
		return p.Schedule[step-1], true
	case !p.Ordered:
		return 0, false
	case n == 0:
		return MaxGate, true
	}
	return p.Schedule[n-1], true
}

// Bounds of a gate for which the receiver named no time.
const (
	MinGate = 5 * time.Second
	MaxGate = 5 * time.Minute
)

// jitterShare is how far a wait of the schedule is spread, to either side.
const jitterShare = 0.1

// Decision is what follows from an attempt.
type Decision struct {
	// Status is where the delivery stands now: delivered, retrying, exhausted, or
	// for an end without a request cancelled or dropped.
	Status webhook.Status
	// Wait is from now until the next attempt, for StatusRetrying; 0 otherwise.
	Wait time.Duration
	// CountsStep says that the attempt used up a step of the schedule. Where it
	// does not, the number of steps used stays what it was before the attempt.
	CountsStep bool
	// Gate is how long no delivery of this webhook may be sent, from now; 0 means
	// no gate.
	Gate time.Duration
	// DisableWebhook says that the receiver is gone for good (410): the webhook
	// is to be disabled in the same transaction. The delivery is due at once, and
	// waits behind the disabled webhook.
	DisableWebhook bool
	// Skip says that an ordered delivery has failed often enough for those behind it to
	// go on: its end is recorded as ReasonSkipped.
	Skip bool
}

// Decide says what follows from an attempt. It is pure and total: any Reason,
// one it does not know included, has an answer.
//
// step counts the steps of the schedule used, this attempt included, from 1. age
// is the time since the event was accepted. consecutiveGates counts the gates of
// this webhook since its last success, this one not included. jitter, between -1
// and 1, spreads the waits of the schedule by up to 10 % to either side: pass a
// fresh random number each time.
//
// The rules:
//   - 2xx: delivered.
//   - 410: the webhook is disabled; the delivery keeps its step and waits.
//   - 429, and 503 with Retry-After: the webhook is gated, which costs no step.
//   - our own outbound proxy failing gates the webhook too and costs no step: it
//     is no fault of the receiver's, and its backlog must not run against it. So does
//     a token endpoint that gives no answer; one that refuses the credentials makes
//     the delivery fail as below, since waiting does not mend that.
//   - 502, 504, and 503 without Retry-After: the webhook is gated, and the
//     delivery fails as below.
//   - anything else fails: the next wait of the schedule, but no less than
//     Retry-After or the gate; after its last entry the delivery is exhausted, unless
//     others wait for it in order: then the last entry repeats.
//   - an ordered delivery that has failed as often as its policy says is skipped, which
//     exhausts it.
//   - a delivery that would wait beyond the policy's MaxAge is exhausted, also
//     where no step was used.
//   - an interrupted attempt says nothing: the delivery is due at once, as before.
//   - an end without a request keeps its word: cancelled and webhook_deleted
//     cancel, expired, crashed and skipped exhaust, event_missing and
//     the limits at acceptance drop.
//
// A gate lasts what Retry-After says, or else 5 s, doubling with each gate in a
// row up to 5 min.
func Decide(policy Policy, step int, age time.Duration, consecutiveGates int, result Result, jitter float64) Decision {
	if result.Interrupted {
		return Decision{Status: webhook.StatusRetrying}
	}
	switch result.Reason {
	case webhook.ReasonDelivered:
		return Decision{Status: webhook.StatusDelivered, CountsStep: true}
	case webhook.ReasonWebhookDeleted, webhook.ReasonCancelled:
		return Decision{Status: webhook.StatusCancelled}
	case webhook.ReasonExpired, webhook.ReasonCrashed, webhook.ReasonSkipped:
		return Decision{Status: webhook.StatusExhausted}
	case webhook.ReasonEventMissing, webhook.ReasonAcceptLimited, webhook.ReasonBacklogFull:
		return Decision{Status: webhook.StatusDropped}
	}

	decision := Decision{Status: webhook.StatusRetrying}
	asked := result.HasRetryAfter && result.RetryAfter > 0
	switch result.Reason {
	case webhook.ReasonGone:
		decision.DisableWebhook = true
	case webhook.ReasonRateLimited, webhook.ReasonProxy, webhook.ReasonAuthUnavailable:
		decision.Gate = gate(result, consecutiveGates)
	case webhook.ReasonUnavailable:
		decision.Gate = gate(result, consecutiveGates)
		decision.CountsStep = !asked
	case webhook.ReasonBadGateway, webhook.ReasonGatewayTimeout:
		decision.Gate = gate(result, consecutiveGates)
		decision.CountsStep = true
	default:
		decision.CountsStep = true
	}

	decision.Wait = decision.Gate
	if decision.CountsStep {
		step = max(step, 1)
		if policy.Ordered && policy.SkipAfter > 0 && step >= policy.SkipAfter {
			decision.Skip = true
			return exhausted(decision)
		}
		wait, another := policy.wait(step)
		if !another {
			return exhausted(decision)
		}
		decision.Wait = max(decision.Wait, spread(wait, jitter))
		if asked {
			decision.Wait = max(decision.Wait, min(result.RetryAfter, MaxRetryAfter))
		}
	}
	age = max(age, 0)
	if policy.MaxAge > 0 && (age > policy.MaxAge || decision.Wait > policy.MaxAge-age) {
		return exhausted(decision)
	}
	return decision
}

// exhausted ends the delivery; what the attempt says about the webhook stands.
func exhausted(decision Decision) Decision {
	decision.Status, decision.Wait = webhook.StatusExhausted, 0
	return decision
}

// gate is how long a webhook is gated.
func gate(result Result, consecutive int) time.Duration {
	if result.HasRetryAfter && result.RetryAfter > 0 {
		return min(result.RetryAfter, MaxRetryAfter)
	}
	return GateLength(consecutive)
}

// GateLength is how long a gate lasts for which nobody named a time, after so many
// in a row before it.
func GateLength(consecutive int) time.Duration {
	wait := MinGate
	for range consecutive {
		if wait *= 2; wait >= MaxGate {
			return MaxGate
		}
	}
	return wait
}

// spread moves a wait by up to jitterShare of it.
func spread(wait time.Duration, jitter float64) time.Duration {
	if math.IsNaN(jitter) {
		jitter = 0
	}
	wait = max(wait, 0)
	offset := time.Duration(float64(wait) * jitterShare * min(max(jitter, -1), 1))
	return wait + offset
}
