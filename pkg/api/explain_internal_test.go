package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// at is so many minutes after noon.
func at(minutes float64) time.Time { return noon.Add(time.Duration(minutes * float64(time.Minute))) }

func pointer[T any](v T) *T { return &v }

// waiting is a delivery accepted at noon that is due since then, ten minutes later, of
// an active webhook with a live dispatcher.
func waiting(change func(f *deliveryFacts)) *deliveryFacts {
	f := &deliveryFacts{
		now: at(10), created: noon, stands: webhook.Delivery{Status: webhook.StatusPending},
		hook: &webhook.Webhook{State: webhook.StateActive, MaxInFlight: 5},
		job: &fairqueue.QueuedDelivery{
			LiveDelivery: fairqueue.LiveDelivery{DueAt: noon, FetchedAt: pointer(at(9))}, Dispatcher: "dispatcher-1",
		},
		dispatchers: 1, heard: map[string]time.Time{"dispatcher-1": at(10)},
	}
	if change != nil {
		change(f)
	}
	return f
}

// ended is a delivery that ended at twenty past with an attempt of a minute, which was
// due when it was accepted.
func ended(status webhook.Status, reason webhook.Reason, number int) *deliveryFacts {
	a := webhook.Attempt{Number: number, Reason: reason, Status: status, StartedAt: at(19)}
	a.Timings = webhook.Timings{Total: pointer(int64(60e6)), QueueWait: pointer(int64(19 * 60e6))}
	if number == 0 {
		a.StartedAt, a.Timings = at(20), webhook.Timings{}
	}
	return &deliveryFacts{
		now: at(60), created: noon, stands: webhook.Delivery{Status: status, Reason: &reason}, attempts: []webhook.Attempt{a},
	}
}

func failed(number int, start, next float64) webhook.Attempt {
	return webhook.Attempt{
		Number: number, Reason: webhook.ReasonServerError, Status: webhook.StatusRetrying, StatusCode: pointer(500),
		StartedAt: at(start), NextAttemptAt: pointer(at(next)), Timings: webhook.Timings{Total: pointer(int64(0)), QueueWait: pointer(int64(0))},
	}
}

func TestExplainFindsTheCause(t *testing.T) {
	t.Parallel()
	gate := func(cause webhook.Cause, until float64) func(f *deliveryFacts) {
		return func(f *deliveryFacts) { f.gate = &webhook.GateView{Cause: cause, ClosedAt: at(8), Until: at(until)} }
	}
	retrying := func(f *deliveryFacts) {
		f.stands.Status, f.job.DueAt, f.attempts = webhook.StatusRetrying, at(15), []webhook.Attempt{failed(2, 5, 15)}
	}
	seen := map[webhook.Cause]bool{}
	for _, c := range []struct {
		name  string
		facts *deliveryFacts
		cause webhook.Cause
		says  []string // what its last sentence has
	}{
		{"NothingInTheWay", waiting(nil), webhook.CauseNextInLane, []string{"nothing of its lane goes before it"}},
		{"ABacklog", waiting(func(f *deliveryFacts) { f.ahead = 12 }), webhook.CauseBehindBacklog, []string{"12 deliveries", "go before it"}},
		{"ALongBacklog", waiting(func(f *deliveryFacts) { f.ahead = maxCounted + 1 }), webhook.CauseBehindBacklog, []string{"more than 10000 deliveries"}},
		{"ItsPlaceInStrictOrder", waiting(func(f *deliveryFacts) { f.hook.Ordering, f.ahead = webhook.OrderingStrict, 2 }), webhook.CauseWaitingInOrder, []string{"strict order", "accepted before it go first (2)"}},
		{"TheHeadOfAnOrder", waiting(func(f *deliveryFacts) { f.hook.Ordering = webhook.OrderingStrict }), webhook.CauseNextInLane, []string{"nothing of its lane"}},
		{"ItsKey", waiting(func(f *deliveryFacts) { f.hook.Ordering, f.ahead, f.running = webhook.OrderingKey, 1, 5 }), webhook.CauseWaitingInOrder, []string{"with its key", "(1)"}},
		{"TheCap", waiting(func(f *deliveryFacts) { f.ahead, f.running = 3, 5 }), webhook.CauseAtMaxInFlight, []string{"5 requests under way", "after 3 others"}},
		{"TheRate", waiting(func(f *deliveryFacts) { f.ahead, f.hook.RatePerSecond = 9, pointer(0.5) }), webhook.CauseRateLimited, []string{"rate_per_second 0.5", "about 20s"}},
		{"ItsTime", waiting(func(f *deliveryFacts) { f.job.DueAt = at(11) }), webhook.CauseNotDue, []string{"12:11:00", "in 1m0s"}},
		{"ARetry", waiting(retrying), webhook.CauseWaitingForRetry, []string{"12:15:00", "attempt 2 failed (server_error)", "in 5m0s"}},
		{"ARetryAndAnEarlierGate", waiting(func(f *deliveryFacts) { retrying(f); gate(webhook.CauseGatedByReceiver, 14)(f) }), webhook.CauseWaitingForRetry, []string{"12:15:00"}},
		{"ARetryAndALaterGate", waiting(func(f *deliveryFacts) { retrying(f); gate(webhook.CauseGatedByReceiver, 16)(f) }), webhook.CauseGatedByReceiver, []string{"before 2026-01-02T12:16:00", "due at 2026-01-02T12:15:00"}},
		{"TheReceiver", waiting(gate(webhook.CauseGatedByReceiver, 12)), webhook.CauseGatedByReceiver, []string{"asked for time", "12:12:00"}},
		{"TheProxy", waiting(gate(webhook.CauseGatedByProxy, 12)), webhook.CauseGatedByProxy, []string{"proxy", "12:12:00"}},
		{"TheTokenEndpoint", waiting(gate(webhook.CauseGatedByAuth, 12)), webhook.CauseGatedByAuth, []string{"token endpoint", "12:12:00"}},
		{"TheBreaker", waiting(gate(webhook.CauseBreakerOpen, 12)), webhook.CauseBreakerOpen, []string{"breaker is open", "12:12:00", "probe"}},
		{"TheProbe", waiting(gate(webhook.CauseBreakerProbing, 9)), webhook.CauseBreakerProbing, []string{"half open", "probe"}},
		{"Paused", waiting(func(f *deliveryFacts) { f.stands.Status, f.hook.State = webhook.StatusParked, webhook.StatePaused }), webhook.CausePaused, []string{"paused", "resumed"}},
		{"Disabled", waiting(func(f *deliveryFacts) {
			f.stands.Status, f.hook.State, f.hook.DisabledReason = webhook.StatusParked, webhook.StateDisabled, pointer("it answered 410")
		}), webhook.CauseDisabled, []string{"disabled (it answered 410)"}},
		{"ItsWebhookIsGone", waiting(func(f *deliveryFacts) { f.hook = nil }), webhook.CauseWebhookGone, []string{"deleted", "cancelled when"}},
		{"NobodyDelivers", waiting(func(f *deliveryFacts) { f.dispatchers, f.ahead = 0, 2 }), webhook.CauseNoDispatcher, []string{"2 deliveries", "No dispatcher is alive"}},
		{"NobodyDeliversLater", waiting(func(f *deliveryFacts) { retrying(f); f.dispatchers = 0 }), webhook.CauseWaitingForRetry, []string{"12:15:00", "No dispatcher is alive"}},
		{"UnderWay", waiting(func(f *deliveryFacts) { f.stands.Status = webhook.StatusDelivering }), webhook.CauseDelivering, []string{"dispatcher-1 has it since 2026-01-02T12:09:00"}},
		{"ItsDispatcherIsSilent", waiting(func(f *deliveryFacts) {
			f.stands.Status, f.heard["dispatcher-1"] = webhook.StatusDelivering, at(9.5)
		}), webhook.CauseDispatcherDead, []string{"last heard of at 2026-01-02T12:09:30", "Within 30 s"}},
		{"ItsDispatcherIsGone", waiting(func(f *deliveryFacts) {
			f.stands.Status, f.heard, f.dispatchers = webhook.StatusDelivering, nil, 0
		}), webhook.CauseDispatcherDead, []string{"is gone", "No other dispatcher is alive"}},
		{"Delivered", ended(webhook.StatusDelivered, webhook.ReasonDelivered, 3), webhook.CauseDelivered, []string{"12:20:00", "20m0s after", "attempt 3"}},
		{"NoRetryLeft", ended(webhook.StatusExhausted, webhook.ReasonTimeout, 10), webhook.CauseRetriesUsedUp, []string{"not tried again"}},
		{"Skipped", ended(webhook.StatusExhausted, webhook.ReasonSkipped, 0), webhook.CauseSkipped, []string{"ordering_skip_after"}},
		{"TooOld", ended(webhook.StatusExhausted, webhook.ReasonExpired, 0), webhook.CauseExpired, []string{"max_age_seconds"}},
		{"CrashedEachTime", ended(webhook.StatusExhausted, webhook.ReasonCrashed, 0), webhook.CauseCrashed, []string{"dispatcher that died"}},
		{"CancelledByHand", ended(webhook.StatusCancelled, webhook.ReasonCancelled, 0), webhook.CauseCancelled, []string{"by hand"}},
		{"WebhookDeleted", ended(webhook.StatusCancelled, webhook.ReasonWebhookDeleted, 0), webhook.CauseWebhookDeleted, []string{"webhook was deleted"}},
		{"Removed", &deliveryFacts{now: at(60), created: noon, stands: webhook.Delivery{Status: webhook.StatusCancelled}}, webhook.CauseRemoved, []string{"removed by hand"}},
		{"RemovedAfterAnAttempt", &deliveryFacts{
			now: at(60), created: noon, stands: webhook.Delivery{Status: webhook.StatusCancelled}, attempts: []webhook.Attempt{failed(1, 1, 2)},
		}, webhook.CauseRemoved, []string{"removed by hand"}},
		{"PastRetention", ended(webhook.StatusDropped, webhook.ReasonEventMissing, 0), webhook.CauseEventPastKeeping, []string{"retention"}},
		{"AcceptLimited", ended(webhook.StatusDropped, webhook.ReasonAcceptLimited, 0), webhook.CauseAcceptLimited, []string{"accept_per_second"}},
		{"BacklogFull", ended(webhook.StatusDropped, webhook.ReasonBacklogFull, 0), webhook.CauseBacklogFull, []string{"max_backlog"}},
		{"ForAReasonOfANewerVersion", ended(webhook.StatusDropped, "a_newer_word", 0), webhook.CauseEnded, []string{"dropped"}},
	} {
		seen[c.cause] = true
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := explain(c.facts)
			if x.Cause != c.cause {
				t.Errorf("the cause is %s, want %s", x.Cause, c.cause)
			}
			last := x.Sentences[len(x.Sentences)-1]
			for _, words := range c.says {
				if !strings.Contains(last, words) {
					t.Errorf("%q does not say %q", last, words)
				}
			}
			if !strings.Contains(x.Sentences[0], "Accepted at 2026-01-02T12:00:00") {
				t.Errorf("begins with %q", x.Sentences[0])
			}
			if x.Status.Terminal() != (x.Lane == nil) && c.facts.hook != nil {
				t.Errorf("%s with the lane %+v", x.Status, x.Lane)
			}
		})
	}
	for _, cause := range webhook.Causes() {
		if !seen[cause] {
			t.Errorf("nothing is explained by %s", cause)
		}
	}
}

// told is delays as lines.
func told(delays []webhook.Delay) []string {
	lines := []string{}
	for _, d := range delays {
		to := "now"
		if d.To != nil {
			to = fmt.Sprint(d.To.Sub(noon))
		}
		lines = append(lines, fmt.Sprintf("%s %v-%s %v", d.Cause, d.From.Sub(noon), to, time.Duration(d.DurationMS)*time.Millisecond))
	}
	return lines
}

func TestExplainFindsWhatHeldADeliveryUp(t *testing.T) {
	t.Parallel()
	closed := func(minute float64, cause string, until float64) postgres.LaneEvent {
		e := postgres.LaneEvent{At: at(minute), Event: "closed", Cause: cause}
		if until != 0 {
			e.Until = pointer(at(until))
		}
		return e
	}
	opened := func(minute float64, cause string) postgres.LaneEvent {
		return postgres.LaneEvent{At: at(minute), Event: "opened", Cause: cause}
	}
	lane := func(events ...postgres.LaneEvent) func(f *deliveryFacts) {
		return func(f *deliveryFacts) { f.lane = events }
	}
	for name, c := range map[string]struct {
		facts *deliveryFacts
		want  []string
	}{
		"NothingButItsLane": {waiting(nil), []string{"behind_backlog 0s-now 10m0s"}},
		"APauseThatIsOver":  {waiting(lane(closed(2, "paused", 0), opened(4, "paused"))), []string{"behind_backlog 0s-2m0s 2m0s", "paused 2m0s-4m0s 2m0s", "behind_backlog 4m0s-now 6m0s"}},
		"APauseFromBefore":  {waiting(lane(closed(-2, "paused", 0), opened(4, "paused"))), []string{"paused 0s-4m0s 4m0s", "behind_backlog 4m0s-now 6m0s"}},
		"APauseThatGoesOn": {waiting(func(f *deliveryFacts) {
			f.stands.Status, f.lane = webhook.StatusParked, []postgres.LaneEvent{closed(2, "paused", 0)}
		}), []string{"behind_backlog 0s-2m0s 2m0s", "paused 2m0s-now 8m0s"}},
		"OnesThatWereOverBefore":  {waiting(lane(closed(-9, "receiver", -5), closed(-4, "disabled", 0), opened(-3, "disabled"))), []string{"behind_backlog 0s-now 10m0s"}},
		"AGateThatOpenedByItself": {waiting(lane(closed(1, "receiver", 3))), []string{"behind_backlog 0s-1m0s 1m0s", "gated_by_receiver 1m0s-3m0s 2m0s", "behind_backlog 3m0s-now 7m0s"}},
		"AGateThatWasLengthened":  {waiting(lane(closed(1, "receiver", 3), closed(2, "receiver", 5))), []string{"behind_backlog 0s-1m0s 1m0s", "gated_by_receiver 1m0s-5m0s 4m0s", "behind_backlog 5m0s-now 5m0s"}},
		"TwoGates":                {waiting(lane(closed(1, "receiver", 3), closed(4, "proxy", 9.995))), []string{"behind_backlog 0s-1m0s 1m0s", "gated_by_receiver 1m0s-3m0s 2m0s", "behind_backlog 3m0s-4m0s 1m0s", "gated_by_proxy 4m0s-9m59.7s 5m59.7s"}},
		"ABreaker": {
			waiting(lane(closed(1, "breaker", 2), postgres.LaneEvent{At: at(2), Event: "probing", Cause: "breaker"}, closed(3, "breaker", 4), opened(9.99, "breaker"))),
			[]string{"behind_backlog 0s-1m0s 1m0s", "breaker_open 1m0s-9m59.4s 8m59.4s"},
		},
		"ABreakerThatIsOpen": {waiting(lane(closed(1, "breaker", 2))), []string{"behind_backlog 0s-1m0s 1m0s", "breaker_open 1m0s-now 9m0s"}},
		"APauseWithinAGate":  {waiting(lane(closed(1, "receiver", 9.999), closed(2, "paused", 0), opened(3, "paused"))), []string{"behind_backlog 0s-1m0s 1m0s", "gated_by_receiver 1m0s-9m59.94s 8m59.94s", "paused 2m0s-3m0s 1m0s"}},
		"ItsRetries": {waiting(func(f *deliveryFacts) {
			f.stands.Status, f.job.DueAt = webhook.StatusRetrying, at(15)
			f.attempts = []webhook.Attempt{failed(1, 0, 2), failed(2, 2, 15)}
		}), []string{"waiting_for_retry 0s-2m0s 2m0s", "waiting_for_retry 2m0s-now 8m0s"}},
		"WhatDelayedWhatIsDelivered": {func() *deliveryFacts {
			f := ended(webhook.StatusDelivered, webhook.ReasonDelivered, 1)
			f.lane = []postgres.LaneEvent{closed(3, "disabled", 0), opened(12, "disabled")}
			return f
		}(), []string{"behind_backlog 0s-3m0s 3m0s", "disabled 3m0s-12m0s 9m0s", "behind_backlog 12m0s-19m0s 7m0s"}},
		"NothingAfterWhatWasRead": {waiting(func(f *deliveryFacts) {
			lane(closed(1, "paused", 0), opened(2, "paused"), closed(3, "receiver", 20), closed(4, "paused", 0))(f)
			f.laneMissed = true
		}), []string{"behind_backlog 0s-1m0s 1m0s", "paused 1m0s-2m0s 1m0s", "behind_backlog 2m0s-3m0s 1m0s", "gated_by_receiver 3m0s-4m0s 1m0s", "behind_backlog 4m0s-now 6m0s"}},
		"NothingAfterTheEnd": {func() *deliveryFacts {
			f := ended(webhook.StatusCancelled, webhook.ReasonCancelled, 0)
			f.lane = []postgres.LaneEvent{closed(3, "paused", 0)}
			return f
		}(), []string{"paused 3m0s-20m0s 17m0s"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := explain(c.facts)
			if got := told(x.Delays); !slices.Equal(got, c.want) {
				t.Errorf("delays are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			// Each delay and each attempt has a sentence, besides the first and the last.
			if n := len(x.Delays) + len(x.AttemptsMade) + 2; len(x.Sentences) != n {
				t.Errorf("%d sentences, want %d: %q", len(x.Sentences), n, x.Sentences)
			}
		})
	}
}

func TestExplainTellsEachAttempt(t *testing.T) {
	t.Parallel()
	f := ended(webhook.StatusExhausted, webhook.ReasonTimeout, 2)
	f.attempts = append([]webhook.Attempt{failed(1, 1, 2)}, f.attempts...)
	f.attempts[0].Timings.Total = pointer(int64(123456))
	f.attemptsMissed = true
	x := explain(f)
	text := strings.Join(x.Sentences, "\n")
	for _, words := range []string{
		"Attempt 1 at 2026-01-02T12:01:00.000Z was answered 500 after 123.5ms (server_error).",
		"Attempt 2 at 2026-01-02T12:19:00.000Z got no answer after 1m0s (timeout).", "Earlier attempts",
	} {
		if !strings.Contains(text, words) {
			t.Errorf("%q is not in\n%s", words, text)
		}
	}
	if !x.AttemptsLeftOut || x.EndedAt == nil || !x.EndedAt.Equal(at(20)) || x.LatencyMS != nil {
		t.Errorf("explained as %+v", x)
	}
}
