package ingest

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// limited is how many webhooks a server limits for how their deliveries go.
func (b *testBundle) limited(t *testing.T) float64 {
	t.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "fairhook_webhook_health_limited" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("there is no such metric")
	return 0
}

func TestAWebhookWhoseDeliveriesFail(t *testing.T) {
	t.Parallel()
	servers := setupPair(t, options{webhookFloor: 5})
	b := servers[0]
	failing, well := newWebhook(t, b, "acme", ""), newWebhook(t, b, "acme", "")
	body := submitBody(`"webhook_id":"`+failing.ID.String()+`"`, `1`)
	// What dispatchers say, several times a second.
	pace := time.NewTicker(100 * time.Millisecond)
	defer pace.Stop()
	report := func(t *testing.T, what string, delivered, failed int64, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); !done(); <-pace.C {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain: %s", what)
			}
			err := postgres.AddLaneHealth(t.Context(), b.db, []postgres.LaneHealth{
				{WebhookID: failing.ID, Delivered: delivered, Failed: failed}, {WebhookID: well.ID, Delivered: 99, Failed: 1},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	status := func(b *testBundle) int { return b.request(t, "POST", "/v1/events", body).status }

	// Each goes by what it accepts itself.
	report(t, "both servers accept less", 1, 9, func() bool {
		for range 3 {
			status(servers[0])
			status(servers[1])
		}
		return servers[0].limited(t) == 1 && servers[1].limited(t) == 1
	})
	var limited *answer
	for limited == nil || limited.status == http.StatusAccepted {
		limited = b.request(t, "POST", "/v1/webhooks/"+failing.ID.String()+"/events?type=a", "raw")
	}
	limited.problem(t, http.StatusTooManyRequests, "rate-limited")
	if got := limited.header.Get("RateLimit-Policy"); !regexp.MustCompile(`^"webhook_health";q=\d+;w=\d+$`).MatchString(got) {
		t.Errorf("RateLimit-Policy: %s", got)
	}
	if got := limited.header.Get("RateLimit"); got != `"webhook_health";r=0;t=1` || limited.header.Get("Retry-After") != "1" {
		t.Errorf("RateLimit: %s, Retry-After: %s", got, limited.header.Get("Retry-After"))
	}
	if n := testutil.ToFloat64(b.server.limits.refusals.WithLabelValues(limitHealth)); n == 0 {
		t.Error("no refusal is counted")
	}

	// An event for both goes to both: retries are for such times.
	for range 20 {
		got, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(`"tenant":"acme"`, `1`))
		if want := []acceptedDelivery{{failing.ID, webhook.StatusPending}, {well.ID, webhook.StatusPending}}; fmt.Sprint(got.Deliveries) != fmt.Sprint(want) {
			t.Fatalf("deliveries are %v", got.Deliveries)
		}
		want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/webhooks/"+well.ID.String()+"/events?type=a", "raw")
	}
	// In a batch its events are refused alone.
	const items = 50
	batch, _ := want[struct {
		Results []struct {
			Status     int   `json:"status"`
			RetryAfter int64 `json:"retry_after_seconds"`
		} `json:"results"`
	}](t, b, http.StatusOK, "POST", "/v1/events/batch", "["+strings.Repeat(body+",", items)+submitBody(`"tenant":"acme"`, `1`)+"]")
	if r := batch.Results; r[items-1].Status != http.StatusTooManyRequests || r[items-1].RetryAfter != 1 || r[items].Status != http.StatusAccepted {
		t.Errorf("a batch is answered %+v", batch)
	}

	for _, b := range servers {
		report(t, "the limit goes once deliveries succeed", 100, 0, func() bool { status(b); return b.limited(t) == 0 })
		for range 20 {
			if code := status(b); code != http.StatusAccepted {
				t.Errorf("answered %d without a limit", code)
			}
		}
	}
}

func TestWebhooksAreNotLimitedForHowTheyDoWhereThatIsOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if b.server.limits.health != nil {
		t.Error("the limit is on")
	}
	if err := b.server.limits.admitHealth(webhook.ID{1}); err != nil {
		t.Error(err)
	}
}
