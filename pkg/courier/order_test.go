package courier_test

import (
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestDecideOfAnOrderedDelivery(t *testing.T) {
	t.Parallel()
	schedule := []time.Duration{time.Second, time.Minute}
	failed := courier.Result{Reason: webhook.ReasonServerError}
	for name, c := range map[string]struct {
		policy courier.Policy
		step   int
		age    time.Duration
		result courier.Result
		want   courier.Decision
	}{
		"FollowsTheSchedule": {
			courier.Policy{Schedule: schedule, Ordered: true},
			1, 0, failed,
			courier.Decision{Status: webhook.StatusRetrying, Wait: time.Second, CountsStep: true},
		},
		"RepeatsItsLastWait": {
			courier.Policy{Schedule: schedule, Ordered: true},
			9, 0, failed,
			courier.Decision{Status: webhook.StatusRetrying, Wait: time.Minute, CountsStep: true},
		},
		"WithoutAScheduleWaitsAsLongAsAGateCan": {
			courier.Policy{Ordered: true},
			1, 0, failed,
			courier.Decision{Status: webhook.StatusRetrying, Wait: courier.MaxGate, CountsStep: true},
		},
		"EndsWhenItIsTooOld": {
			courier.Policy{Schedule: schedule, Ordered: true, MaxAge: time.Hour},
			9, time.Hour - time.Second, failed,
			courier.Decision{Status: webhook.StatusExhausted, CountsStep: true},
		},
		"IsSkippedAfterSoManyAttempts": {
			courier.Policy{Schedule: schedule, Ordered: true, SkipAfter: 2},
			2, 0, failed,
			courier.Decision{Status: webhook.StatusExhausted, CountsStep: true, Skip: true},
		},
		"IsNotSkippedBeforeThat": {
			courier.Policy{Schedule: schedule, Ordered: true, SkipAfter: 5},
			4, 0, failed,
			courier.Decision{Status: webhook.StatusRetrying, Wait: time.Minute, CountsStep: true},
		},
		"IsNotSkippedForAnAttemptThatCostsNoStep": {
			courier.Policy{Schedule: schedule, Ordered: true, SkipAfter: 1},
			1, 0,
			courier.Result{Reason: webhook.ReasonRateLimited},
			courier.Decision{Status: webhook.StatusRetrying, Wait: courier.MinGate, Gate: courier.MinGate},
		},
		"OthersEndWithTheSchedule": {
			courier.Policy{Schedule: schedule, SkipAfter: 1},
			3, 0, failed,
			courier.Decision{Status: webhook.StatusExhausted, CountsStep: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := courier.Decide(c.policy, c.step, c.age, 0, c.result, 0); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}
