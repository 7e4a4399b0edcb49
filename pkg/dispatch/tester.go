package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// testInterval is how often tests are looked for where nobody says that there are
	// any.
	testInterval = time.Second
	testTimeout  = 5 * time.Second
	// maxTests is how many tests a dispatcher makes at once. They are few, and must not
	// take the place of deliveries.
	maxTests = 8
)

// tester makes the tests of webhooks that ingest was asked for: one request each, past
// pauses and gates, with nothing but its answer on record. A dispatcher does that and
// not ingest, which opens no connection to receivers.
type tester struct {
	instance  string
	userAgent string
	db        *pgxpool.Pool
	clock     *postgres.Clock
	catalog   *catalog.Catalog
	announcer *postgres.Announcer
	clients   *identity.Clients
	tokens    *identity.Tokens
	fresh     func() bool
	logger    *slog.Logger
	metrics   *metrics
	wake      chan struct{} // holds one
}

func newTester(d *Dispatcher, m *metrics) *tester {
	return &tester{
		instance: d.cfg.Instance, userAgent: courier.UserAgent(d.cfg.Version), db: d.pool, clock: d.clock, catalog: d.catalog,
		announcer: d.herald.announcer, clients: d.clients, tokens: d.tokens, fresh: d.heartbeat.Fresh,
		logger: d.cfg.Logger, metrics: m, wake: make(chan struct{}, 1),
	}
}

// look says that there may be a test to make. It does not block.
func (t *tester) look() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Run makes tests until ctx ends, and returns nil. Those under way are cut off then,
// and are lost.
func (t *tester) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxTests)
	ticker := time.NewTicker(testInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-t.wake:
		}
		free := maxTests - len(slots) // only this goroutine takes slots
		if free == 0 || !t.fresh() {
			continue
		}
		tests, err := t.claim(ctx, free)
		if err != nil {
			if ctx.Err() == nil {
				t.logger.DebugContext(ctx, "could not look for tests", "error", err)
			}
			continue
		}
		for _, test := range tests {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() {
					<-slots
					t.look()
				}()
				if err := t.make(ctx, test); err != nil {
					t.logger.WarnContext(ctx, "a test of a webhook was lost", "webhook_id", test.WebhookID, "test_id", test.ID, "error", err)
				}
			})
		}
	}
}

func (t *tester) claim(ctx context.Context, most int) ([]postgres.ClaimedTest, error) {
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	return postgres.ClaimTests(ctx, t.db, t.instance, most)
}

// testPayload is what a test sends.
type testPayload struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      testData  `json:"data"`
}

type testData struct {
	Tenant    string     `json:"tenant"`
	WebhookID webhook.ID `json:"webhook_id"`
}

// make makes one test and records how it ended.
func (t *tester) make(ctx context.Context, claimed postgres.ClaimedTest) error {
	target, err := t.catalog.Webhook(ctx, claimed.WebhookID)
	if err != nil {
		return fmt.Errorf("read the webhook: %w", err)
	}
	hook := &target.Webhook
	started := t.clock.Now()
	body, err := json.Marshal(testPayload{webhook.TestEventType, started.UTC(), testData{hook.Tenant, hook.ID}})
	if err != nil {
		return fmt.Errorf("encode the payload: %w", err)
	}
	client, err := t.clients.Of(hook.ID, hook.TLS)
	if err != nil {
		return err
	}
	authorization := &authorization{tokens: t.tokens, hook: hook}
	request := requestTo(target, authorization, t.userAgent)
	request.EventID, request.EventType = claimed.ID, webhook.TestEventType
	request.Body, request.Number, request.Timestamp = body, 1, started
	result := courier.Send(ctx, client, request)
	if result.Interrupted {
		return context.Cause(ctx)
	}
	authorization.answered(result.StatusCode)
	test := &webhook.Test{ID: claimed.ID, WebhookID: claimed.WebhookID, Reason: &result.Reason, Timings: result.Timings}
	if result.StatusCode != 0 {
		test.StatusCode = &result.StatusCode
	}
	if result.Response != "" {
		test.Response = &result.Response
	}
	if result.Detail != "" {
		test.Detail = &result.Detail
	}
	// What was sent is recorded also when the process is stopping.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), testTimeout)
	defer cancel()
	happened, err := t.announcer.FinishTest(ctx, t.db, test, t.clock.Now())
	if err != nil {
		return err
	}
	t.metrics.tests.WithLabelValues(string(result.Reason)).Inc()
	t.metrics.tell(ctx, t.logger, happened)
	return nil
}
