package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/riverqueue/river"

	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// troublePause is how long a delivery waits when the trouble is ours: it costs
// no step of its schedule.
const troublePause = time.Second

// worker works one delivery at a time per goroutine; River runs many.
type worker struct {
	river.WorkerDefaults[job.Delivery]

	instance  string
	userAgent string
	catalog   *catalog.Catalog
	loader    *batcher[webhook.ID, loaded]
	recorder  *batcher[record, error]
	health    *health
	queue     *fairqueue.Queue
	fresh     func() bool // whether the others count on this instance still
	clients   *identity.Clients
	tokens    *identity.Tokens
	clock     *postgres.Clock
	logger    *slog.Logger
	metrics   *metrics
	gates     *gatekeeper
	failures  *failures
	capacity  *capacity
}

// Work makes one attempt, or ends a delivery that must not be attempted. What it
// returns tells River what to do with the job; by then the attempt is recorded.
func (w *worker) Work(ctx context.Context, j *river.Job[job.Delivery]) error {
	target, err := w.catalog.Webhook(ctx, j.Args.WebhookID)
	switch {
	case webhook.ErrorCode(err) == webhook.CodeNotFound:
		return w.end(ctx, j, "", webhook.ReasonWebhookDeleted, webhook.StatusCancelled)
	case err != nil:
		return w.trouble(ctx, j, err)
	}
	hook := &target.Webhook
	if hook.State != webhook.StateActive {
		// It was paused between the fetch and now. The lane is gated by the same
		// change, so the delivery goes back and waits with the others.
		w.queue.Changed(hook.ID)
		return river.JobSnooze(0)
	}
	age := w.clock.Now().Sub(j.Args.EventID.Time())
	switch {
	case age > time.Duration(hook.MaxAgeSeconds)*time.Second:
		return w.end(ctx, j, hook.Tenant, webhook.ReasonExpired, webhook.StatusExhausted)
	case j.Attempt > max(len(hook.RetrySchedule), requestsMade(j.Metadata))+1:
		// More claims than the schedule and the requests on record account for:
		// the others died with their process. A schedule that was shortened
		// meanwhile does not lead here: its delivery gets one last attempt.
		return w.end(ctx, j, hook.Tenant, webhook.ReasonCrashed, webhook.StatusExhausted)
	}
	done := w.capacity.begin()
	message, err := load(ctx, w.loader, j.Args.EventID)
	done()
	switch {
	case err != nil:
		return w.trouble(ctx, j, err)
	case message == nil:
		return w.end(ctx, j, hook.Tenant, webhook.ReasonEventMissing, webhook.StatusDropped)
	}
	return w.attempt(ctx, j, target, message, age)
}

// NextRetry hands River the moment that the schedule gave.
func (w *worker) NextRetry(j *river.Job[job.Delivery]) time.Time { return j.Args.RetryAt }

// attempt sends the message, records what happened and tells River.
func (w *worker) attempt(ctx context.Context, j *river.Job[job.Delivery], target *catalog.Entry, message *postgres.Message, age time.Duration) error {
	hook := &target.Webhook
	number := requestsMade(j.Metadata) + 1
	if !w.fresh() {
		// This process was stopped, or cannot say that it lives: the delivery may be
		// somebody else's by now. If it is not, it goes back as it came.
		return river.JobSnooze(0)
	}
	client, err := w.clients.Of(hook.ID, hook.TLS)
	if err != nil {
		return w.trouble(ctx, j, err)
	}
	started := w.clock.Now()
	authorization := &authorization{tokens: w.tokens, hook: hook}
	request := requestTo(target, authorization, w.userAgent)
	request.EventID, request.EventType, request.ContentType = message.ID, message.Type, message.ContentType
	request.Body, request.Number, request.Timestamp = message.Payload, number, started
	result := courier.Send(ctx, client, request)
	if result.Interrupted {
		return w.interrupted(ctx, j, hook)
	}
	authorization.answered(result.StatusCode)
	decision := courier.Decide(policyOf(hook, fairqueue.InOrder(j.JobRow)), j.Attempt, age, w.gates.inARow(hook.ID, started), result, 2*rand.Float64()-1)

	a := webhook.Attempt{
		// An attempt whose process was stopped under way may be recorded after a later
		// one, and must not look like the last.
		ID:        webhook.NewID(started),
		EventID:   message.ID,
		WebhookID: hook.ID,
		Tenant:    message.Tenant,
		Number:    number,
		Reason:    result.Reason,
		Status:    decision.Status,
		StartedAt: started,
		Timings:   result.Timings,
		Instance:  w.instance,
		UsesStep:  decision.CountsStep,
	}
	if result.StatusCode != 0 {
		a.StatusCode = &result.StatusCode
	}
	if result.Response != "" {
		a.Response = &result.Response
	}
	if result.Detail != "" {
		a.Detail = &result.Detail
	}
	wait := started.Sub(j.ScheduledAt).Microseconds()
	a.Timings.QueueWait = &wait
	var retryAt time.Time
	if decision.Status == webhook.StatusRetrying {
		retryAt = w.clock.Now().Add(decision.Wait)
		a.NextAttemptAt = &retryAt
	}
	r := record{attempt: a}
	if decision.Skip {
		// The attempt is one that failed, and the end a record of its own.
		r.attempt.Status = webhook.StatusRetrying
		r.skipped = new(w.endOf(j, hook.Tenant, webhook.ReasonSkipped, webhook.StatusExhausted))
	}
	w.settle(&r, j, fairqueue.Settlement{
		Status: decision.Status, RetryAt: retryAt, CountsStep: decision.CountsStep, Requests: number, Error: string(a.Reason),
	})
	if a.Reason != webhook.ReasonDelivered && w.left(ctx, hook) {
		// It says something about the delivery, and nothing about the webhook as it is.
		if err := w.record(ctx, r); err != nil {
			return err
		}
		return w.report(ctx, j, &a, decision, retryAt)
	}
	ended := w.clock.Now()
	change := w.gates.judge(hook.ID, a.Reason, decision.Gate, started, ended)
	r.gate, r.failure = change, w.failures.observe(hook.ID, a.Reason, a.StatusCode, started, ended)
	if decision.DisableWebhook {
		r.disable = hook.URL
	}
	if err := w.record(ctx, r); err != nil {
		return err
	}
	w.health.observe(hook.ID, a.Reason)
	w.queue.Observe(hook.ID, started, ended, paceSignal(a.Reason))
	w.applyGate(hook.ID, change, decision)
	return w.report(ctx, j, &a, decision, retryAt)
}

// left reports whether a webhook has another URL by now than the one that an attempt
// was made with.
func (w *worker) left(ctx context.Context, hook *webhook.Webhook) bool {
	now, err := w.catalog.Webhook(context.WithoutCancel(ctx), hook.ID)
	return err == nil && now.Webhook.URL != hook.URL
}

// policyOf is a webhook's retry policy for a delivery that others wait for, or not.
func policyOf(hook *webhook.Webhook, inOrder bool) courier.Policy {
	p := courier.Policy{
		Schedule: seconds(hook.RetrySchedule),
		MaxAge:   time.Duration(hook.MaxAgeSeconds) * time.Second,
		Ordered:  inOrder && hook.Ordering.Ordered(),
	}
	if hook.OrderingSkipAfter != nil {
		p.SkipAfter = *hook.OrderingSkipAfter
	}
	return p
}

// settle has what becomes of a job committed with its attempt where others wait for it.
func (w *worker) settle(r *record, j *river.Job[job.Delivery], s fairqueue.Settlement) {
	if fairqueue.InOrder(j.JobRow) {
		s.Job = j.JobRow
		r.settle = &s
	}
}

// report tells River what the recorded attempt means for the job.
func (w *worker) report(ctx context.Context, j *river.Job[job.Delivery], a *webhook.Attempt, decision courier.Decision, retryAt time.Time) error {
	if decision.Status == webhook.StatusDelivered {
		return nil
	}
	if err := river.MetadataSet(ctx, fairqueue.MetadataRequests, a.Number); err != nil {
		return err // the worker was not called by River: a programming error
	}
	if decision.Status.Terminal() {
		return w.discard(j, a.Reason)
	}
	if !decision.CountsStep {
		return river.JobSnooze(decision.Wait)
	}
	j.Args.RetryAt = retryAt
	return fmt.Errorf("attempt %d: %s", a.Number, a.Reason)
}

// discard makes River end the job as failed: whether there is another attempt
// is the schedule's decision, and River asks only its own counter.
func (w *worker) discard(j *river.Job[job.Delivery], reason webhook.Reason) error {
	j.MaxAttempts = j.Attempt
	return fmt.Errorf("delivery ended: %s", reason)
}

// end records a delivery that ends without a request, and ends its job.
func (w *worker) end(ctx context.Context, j *river.Job[job.Delivery], tenant string, reason webhook.Reason, status webhook.Status) error {
	if tenant == "" {
		// The webhook is gone; its event knows the tenant, unless that is gone too.
		message, err := load(ctx, w.loader, j.Args.EventID)
		if err != nil {
			return w.trouble(ctx, j, err)
		}
		if message != nil {
			tenant = message.Tenant
		}
	}
	if err := w.recordEnd(ctx, j, tenant, reason, status); err != nil {
		return err
	}
	return w.discard(j, reason)
}

// recordEnd records the end of a delivery without a request.
func (w *worker) recordEnd(ctx context.Context, j *river.Job[job.Delivery], tenant string, reason webhook.Reason, status webhook.Status) error {
	r := record{attempt: w.endOf(j, tenant, reason, status)}
	if status != webhook.StatusCancelled {
		w.settle(&r, j, fairqueue.Settlement{Status: status, Requests: requestsMade(j.Metadata), Error: string(reason)})
	}
	return w.record(ctx, r)
}

// endOf is the record of a delivery's end without a request.
func (w *worker) endOf(j *river.Job[job.Delivery], tenant string, reason webhook.Reason, status webhook.Status) webhook.Attempt {
	now := w.clock.Now()
	return webhook.Attempt{
		ID:        webhook.NewID(now),
		EventID:   j.Args.EventID,
		WebhookID: j.Args.WebhookID,
		Tenant:    tenant,
		Reason:    reason,
		Status:    status,
		StartedAt: now,
		Instance:  w.instance,
	}
}

// interrupted is for a request cut off before it had an outcome: by a cancel,
// which ends the delivery, or by the process stopping, which gives it back.
func (w *worker) interrupted(ctx context.Context, j *river.Job[job.Delivery], hook *webhook.Webhook) error {
	cause := fmt.Errorf("attempt cut off: %w", ctx.Err())
	if !fairqueue.IsCancelRequested(ctx) {
		return cause
	}
	if err := w.recordEnd(ctx, j, hook.Tenant, webhook.ReasonCancelled, webhook.StatusCancelled); err != nil {
		return err
	}
	return river.JobCancel(cause)
}

// trouble puts a delivery back for a moment when what failed is ours, and leaves its
// lane alone for as long, or a backlog would be claimed and put back without a pause.
// Nothing is counted.
func (w *worker) trouble(ctx context.Context, j *river.Job[job.Delivery], err error) error {
	if ctx.Err() != nil {
		return err // stopping or cancelled: River knows what to do
	}
	w.logger.WarnContext(ctx, "delivery put off", "event_id", j.Args.EventID, "webhook_id", j.Args.WebhookID,
		"attempt", requestsMade(j.Metadata)+1, "error", err)
	w.queue.Gate(j.Args.WebhookID, w.clock.Now().Add(troublePause))
	return river.JobSnooze(troublePause)
}

// record commits an attempt. It outlives the job's own context: a request that
// was made is recorded even if the process is stopping.
func (w *worker) record(ctx context.Context, r record) error {
	a := &r.attempt
	done := w.capacity.begin()
	defer done()
	refused, err := w.recorder.Do(context.WithoutCancel(ctx), r)
	if err == nil && isBadData(refused) {
		// The row can never be written: its event's partition is past retention,
		// most likely. What happened still decides what happens next.
		w.logger.ErrorContext(ctx, "attempt cannot be recorded", "event_id", a.EventID, "webhook_id", a.WebhookID,
			"attempt", a.Number, "reason", a.Reason, "status", a.Status, "error", refused)
		refused = nil
	}
	if err == nil {
		err = refused
	}
	if err != nil {
		return fmt.Errorf("record attempt %d of event %s for webhook %s: %w", a.Number, a.EventID, a.WebhookID, err)
	}
	w.metrics.observe(a)
	if r.skipped != nil {
		w.metrics.observe(r.skipped)
		a = r.skipped // what is said of it below is its end
	}
	w.metrics.gate(r.gate)
	level := slog.LevelDebug
	if a.Status.Terminal() && a.Status != webhook.StatusDelivered {
		level = slog.LevelWarn // one line per final failure
	}
	w.logger.LogAttrs(ctx, level, "attempt",
		slog.String("event_id", a.EventID.String()),
		slog.String("webhook_id", a.WebhookID.String()),
		slog.Int("attempt", a.Number),
		slog.String("reason", string(a.Reason)),
		slog.String("status", string(a.Status)))
	return nil
}

// applyGate does here at once what was recorded for all.
func (w *worker) applyGate(id webhook.ID, change *postgres.GateChange, decision courier.Decision) {
	switch {
	case change == nil && !decision.DisableWebhook:
	case change != nil && change.Cause != "":
		w.queue.Gate(id, change.Until)
	default:
		w.queue.Changed(id)
	}
}

// requestsMade reads how many requests a delivery has behind it from its job's
// metadata. Almost every job has none.
func requestsMade(metadata []byte) int {
	if len(metadata) <= len(`{}`) {
		return 0
	}
	var m struct {
		Requests int `json:"fairhook:requests"`
	}
	if json.Unmarshal(metadata, &m) != nil {
		return 0
	}
	return m.Requests
}

func seconds(schedule []int) []time.Duration {
	waits := make([]time.Duration, len(schedule))
	for i, s := range schedule {
		waits[i] = time.Duration(s) * time.Second
	}
	return waits
}
