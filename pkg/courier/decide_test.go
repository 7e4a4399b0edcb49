package courier_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/webhook"
	"pgregory.net/rapid"
)

var testPolicy = courier.Policy{
	Schedule: []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute},
	MaxAge:   4 * 24 * time.Hour,
}

// asked is a result with a Retry-After.
func asked(reason webhook.Reason, wait time.Duration) courier.Result {
	return courier.Result{Reason: reason, RetryAfter: wait, HasRetryAfter: true}
}

func failed(reason webhook.Reason) courier.Result { return courier.Result{Reason: reason} }

func TestDecide(t *testing.T) {
	t.Parallel()
	const (
		delivered = webhook.StatusDelivered
		retrying  = webhook.StatusRetrying
		exhausted = webhook.StatusExhausted
		cancelled = webhook.StatusCancelled
	)
	for name, c := range map[string]struct {
		result courier.Result
		step   int // 0: 1
		age    time.Duration
		gates  int
		jitter float64
		want   courier.Decision
	}{
		"A2xxIsDelivered":                     {result: failed(webhook.ReasonDelivered), want: courier.Decision{Status: delivered, CountsStep: true}},
		"A2xxIsDeliveredHoweverOld":           {result: failed(webhook.ReasonDelivered), step: 99, age: 365 * 24 * time.Hour, want: courier.Decision{Status: delivered, CountsStep: true}},
		"TheFirstFailureWaitsTheFirstEntry":   {result: failed(webhook.ReasonServerError), want: courier.Decision{Status: retrying, Wait: 5 * time.Second, CountsStep: true}},
		"TheThirdFailureWaitsTheThirdEntry":   {result: failed(webhook.ReasonReset), step: 3, want: courier.Decision{Status: retrying, Wait: 30 * time.Minute, CountsStep: true}},
		"TheFourthFailureExhausts":            {result: failed(webhook.ReasonReset), step: 4, want: courier.Decision{Status: exhausted, CountsStep: true}},
		"JitterShortensByATenthAtMost":        {result: failed(webhook.ReasonDNS), step: 2, jitter: -1, want: courier.Decision{Status: retrying, Wait: 270 * time.Second, CountsStep: true}},
		"JitterLengthensByATenthAtMost":       {result: failed(webhook.ReasonDNS), step: 2, jitter: 1, want: courier.Decision{Status: retrying, Wait: 330 * time.Second, CountsStep: true}},
		"RetryAfterLengthensAWait":            {result: asked(webhook.ReasonClientError, 10*time.Minute), want: courier.Decision{Status: retrying, Wait: 10 * time.Minute, CountsStep: true}},
		"RetryAfterNeverShortensAWait":        {result: asked(webhook.ReasonClientError, time.Second), step: 2, want: courier.Decision{Status: retrying, Wait: 5 * time.Minute, CountsStep: true}},
		"RetryAfterSavesNoExhaustedDelivery":  {result: asked(webhook.ReasonServerError, time.Minute), step: 4, want: courier.Decision{Status: exhausted, CountsStep: true}},
		"A410DisablesAndKeepsTheDelivery":     {result: failed(webhook.ReasonGone), want: courier.Decision{Status: retrying, DisableWebhook: true}},
		"A410KeepsADeliveryAtItsLastStep":     {result: failed(webhook.ReasonGone), step: 99, want: courier.Decision{Status: retrying, DisableWebhook: true}},
		"A429GatesForRetryAfter":              {result: asked(webhook.ReasonRateLimited, 42*time.Second), want: courier.Decision{Status: retrying, Wait: 42 * time.Second, Gate: 42 * time.Second}},
		"A429GatesWithoutRetryAfter":          {result: failed(webhook.ReasonRateLimited), want: courier.Decision{Status: retrying, Wait: 5 * time.Second, Gate: 5 * time.Second}},
		"A429NeverExhaustsBySteps":            {result: failed(webhook.ReasonRateLimited), step: 99, want: courier.Decision{Status: retrying, Wait: 5 * time.Second, Gate: 5 * time.Second}},
		"GatesDouble":                         {result: failed(webhook.ReasonRateLimited), gates: 3, want: courier.Decision{Status: retrying, Wait: 40 * time.Second, Gate: 40 * time.Second}},
		"GatesEndAtFiveMinutes":               {result: failed(webhook.ReasonRateLimited), gates: 1 << 40, want: courier.Decision{Status: retrying, Wait: 5 * time.Minute, Gate: 5 * time.Minute}},
		"RetryAfterEndsAtAnHour":              {result: asked(webhook.ReasonRateLimited, 48*time.Hour), want: courier.Decision{Status: retrying, Wait: time.Hour, Gate: time.Hour}},
		"A503WithRetryAfterCostsNoStep":       {result: asked(webhook.ReasonUnavailable, time.Minute), step: 99, want: courier.Decision{Status: retrying, Wait: time.Minute, Gate: time.Minute}},
		"A503WithoutRetryAfterCostsAStep":     {result: failed(webhook.ReasonUnavailable), step: 2, want: courier.Decision{Status: retrying, Wait: 5 * time.Minute, Gate: 5 * time.Second, CountsStep: true}},
		"OurProxysFailureCostsNoStep":         {result: failed(webhook.ReasonProxy), step: 99, gates: 1, want: courier.Decision{Status: retrying, Wait: 10 * time.Second, Gate: 10 * time.Second}},
		"ATokenEndpointThatIsAwayCostsNoStep": {result: failed(webhook.ReasonAuthUnavailable), step: 99, gates: 1, want: courier.Decision{Status: retrying, Wait: 10 * time.Second, Gate: 10 * time.Second}},
		"ATokenEndpointIsWaitedForAsItAsks":   {result: asked(webhook.ReasonAuthUnavailable, time.Minute), step: 99, want: courier.Decision{Status: retrying, Wait: time.Minute, Gate: time.Minute}},
		"RefusedCredentialsCostAStep":         {result: failed(webhook.ReasonAuthRejected), step: 2, want: courier.Decision{Status: retrying, Wait: 5 * time.Minute, CountsStep: true}},
		"A502GatesAndCostsAStep":              {result: failed(webhook.ReasonBadGateway), gates: 2, want: courier.Decision{Status: retrying, Wait: 20 * time.Second, Gate: 20 * time.Second, CountsStep: true}},
		"A504WithRetryAfterCostsAStep":        {result: asked(webhook.ReasonGatewayTimeout, time.Minute), want: courier.Decision{Status: retrying, Wait: time.Minute, Gate: time.Minute, CountsStep: true}},
		"ALast502ExhaustsAndStillGates":       {result: failed(webhook.ReasonBadGateway), step: 4, want: courier.Decision{Status: exhausted, Gate: 5 * time.Second, CountsStep: true}},
		"AnOldDeliveryIsExhausted":            {result: failed(webhook.ReasonTimeout), age: testPolicy.MaxAge + 1, want: courier.Decision{Status: exhausted, CountsStep: true}},
		"AWaitBeyondTheMaximumAgeExhausts":    {result: failed(webhook.ReasonTimeout), age: testPolicy.MaxAge - 4*time.Second, want: courier.Decision{Status: exhausted, CountsStep: true}},
		"AWaitUpToTheMaximumAgeDoesNot":       {result: failed(webhook.ReasonTimeout), age: testPolicy.MaxAge - 5*time.Second, want: courier.Decision{Status: retrying, Wait: 5 * time.Second, CountsStep: true}},
		"AGateBeyondTheMaximumAgeExhausts":    {result: asked(webhook.ReasonRateLimited, time.Minute), age: testPolicy.MaxAge - time.Second, want: courier.Decision{Status: exhausted, Gate: time.Minute}},
		"A410OnAnOldDeliveryDoesBoth":         {result: failed(webhook.ReasonGone), age: testPolicy.MaxAge + 1, want: courier.Decision{Status: exhausted, DisableWebhook: true}},
		"AnInterruptedAttemptChangesNothing":  {result: courier.Result{Interrupted: true}, step: 99, age: 365 * 24 * time.Hour, want: courier.Decision{Status: retrying}},
		"AnUnknownReasonIsAFailure":           {result: failed("a_newer_word"), want: courier.Decision{Status: retrying, Wait: 5 * time.Second, CountsStep: true}},
		"ADeletedWebhookCancels":              {result: failed(webhook.ReasonWebhookDeleted), want: courier.Decision{Status: cancelled}},
		"AnEndByHandCancels":                  {result: failed(webhook.ReasonCancelled), want: courier.Decision{Status: cancelled}},
		"AnExpiredDeliveryIsExhausted":        {result: failed(webhook.ReasonExpired), want: courier.Decision{Status: exhausted}},
		"ADeliveryWithoutPayloadIsDropped":    {result: failed(webhook.ReasonEventMissing), want: courier.Decision{Status: webhook.StatusDropped}},
		"ADeliveryThatCrashesOnIsExhausted":   {result: failed(webhook.ReasonCrashed), want: courier.Decision{Status: exhausted}},
		"AJitterThatIsNoNumberIsNone":         {result: failed(webhook.ReasonDNS), jitter: math.NaN(), want: courier.Decision{Status: retrying, Wait: 5 * time.Second, CountsStep: true}},
		"AStepBelowOneIsTheFirst":             {result: failed(webhook.ReasonDNS), step: -7, want: courier.Decision{Status: retrying, Wait: 5 * time.Second, CountsStep: true}},
		"A503WithARetryAfterOfNothingCostsIt": {result: asked(webhook.ReasonUnavailable, 0), want: courier.Decision{Status: retrying, Wait: 5 * time.Second, Gate: 5 * time.Second, CountsStep: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.step == 0 {
				c.step = 1
			}
			if got := courier.Decide(testPolicy, c.step, c.age, c.gates, c.result, c.jitter); got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func drawPolicy(t *rapid.T) courier.Policy {
	return courier.Policy{
		Schedule: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.IntRange(1, webhook.MaxRetrySeconds).Draw(t, "wait")) * time.Second
		}), 0, webhook.MaxRetries).Draw(t, "schedule"),
		MaxAge: time.Duration(rapid.IntRange(0, webhook.MaxMaxAgeSeconds).Draw(t, "max age")) * time.Second,
	}
}

func drawResult(t *rapid.T) courier.Result {
	result := courier.Result{Reason: rapid.SampledFrom(append(webhook.Reasons(), "", "a_newer_word")).Draw(t, "reason")}
	if rapid.Bool().Draw(t, "has Retry-After") {
		result.HasRetryAfter = true
		result.RetryAfter = time.Duration(rapid.Int64().Draw(t, "Retry-After"))
	}
	return result
}

func TestDecideIsTotalAndSane(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		policy, result := drawPolicy(t), drawResult(t)
		step := rapid.Int().Draw(t, "step")
		age := time.Duration(rapid.Int64Range(-int64(time.Hour), math.MaxInt64).Draw(t, "age"))
		gates := rapid.Int().Draw(t, "gates")
		jitter := rapid.Float64().Draw(t, "jitter")
		got := courier.Decide(policy, step, age, gates, result, jitter)

		if !slices.Contains([]webhook.Status{webhook.StatusDelivered, webhook.StatusRetrying, webhook.StatusExhausted, webhook.StatusCancelled, webhook.StatusDropped}, got.Status) {
			t.Fatalf("status %q", got.Status)
		}
		if (got.Status == webhook.StatusDelivered) != (result.Reason == webhook.ReasonDelivered) {
			t.Fatalf("%s became %s", result.Reason, got.Status)
		}
		if got.Wait < 0 || got.Gate < 0 || got.Gate > courier.MaxRetryAfter {
			t.Fatalf("wait %v, gate %v", got.Wait, got.Gate)
		}
		if got.Status != webhook.StatusRetrying && got.Wait != 0 {
			t.Fatalf("%s waits %v", got.Status, got.Wait)
		}
		if got.DisableWebhook != (result.Reason == webhook.ReasonGone) {
			t.Fatalf("%s: disable %t", result.Reason, got.DisableWebhook)
		}
		if got.Status == webhook.StatusRetrying && got.Wait < got.Gate {
			t.Fatalf("due after %v, before the gate of %v opens", got.Wait, got.Gate)
		}
		if got.Status == webhook.StatusRetrying && policy.MaxAge > 0 && age > policy.MaxAge {
			t.Fatalf("an age of %v is over %v, and it goes on", age, policy.MaxAge)
		}
		if again := courier.Decide(policy, step, age, gates, result, jitter); again != got {
			t.Fatalf("the same input gave %+v and %+v", got, again)
		}
	})
}

func TestAScheduleOfNEntriesAllowsNPlusOneAttempts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		policy := drawPolicy(t)
		policy.MaxAge = 0
		reasons := []webhook.Reason{
			webhook.ReasonServerError, webhook.ReasonTimeout, webhook.ReasonBadGateway, webhook.ReasonUnavailable,
			webhook.ReasonDNS, webhook.ReasonBlocked, webhook.ReasonRedirect, webhook.ReasonInternalError,
		}
		for step := 1; ; step++ {
			got := courier.Decide(policy, step, 0, 0, failed(rapid.SampledFrom(reasons).Draw(t, "reason")), 0)
			if !got.CountsStep {
				t.Fatalf("attempt %d cost no step", step)
			}
			if got.Status == webhook.StatusExhausted {
				if step != len(policy.Schedule)+1 {
					t.Fatalf("%d entries gave %d attempts", len(policy.Schedule), step)
				}
				return
			}
			if step > len(policy.Schedule) {
				t.Fatalf("attempt %d of a schedule with %d entries goes on", step, len(policy.Schedule))
			}
		}
	})
}

func TestJitterStaysWithinATenth(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		wait := time.Duration(rapid.IntRange(1, webhook.MaxRetrySeconds).Draw(t, "wait")) * time.Second
		jitter := rapid.Float64().Draw(t, "jitter")
		got := courier.Decide(courier.Policy{Schedule: []time.Duration{wait}}, 1, 0, 0, failed(webhook.ReasonTimeout), jitter)
		if got.Wait < wait-wait/10-1 || got.Wait > wait+wait/10+1 {
			t.Fatalf("%v became %v", wait, got.Wait)
		}
	})
}

func TestAnswersThatOnlyGateNeverExhaustBeforeTheMaximumAge(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		policy := drawPolicy(t)
		result := failed(webhook.ReasonRateLimited)
		if rapid.Bool().Draw(t, "with Retry-After") {
			reason := rapid.SampledFrom([]webhook.Reason{webhook.ReasonRateLimited, webhook.ReasonUnavailable}).Draw(t, "reason")
			result = asked(reason, time.Duration(rapid.IntRange(1, 1<<20).Draw(t, "Retry-After"))*time.Second)
		}
		age := time.Duration(rapid.Int64Range(0, int64(webhook.MaxMaxAgeSeconds)*int64(time.Second)).Draw(t, "age"))
		got := courier.Decide(policy, rapid.IntRange(1, 1000).Draw(t, "step"), age, rapid.IntRange(0, 100).Draw(t, "gates"), result, 0)
		if got.CountsStep {
			t.Fatal("a gate cost a step")
		}
		if within := policy.MaxAge == 0 || age+got.Gate <= policy.MaxAge; within != (got.Status == webhook.StatusRetrying) {
			t.Fatalf("age %v, gate %v, maximum %v: %s", age, got.Gate, policy.MaxAge, got.Status)
		}
	})
}
