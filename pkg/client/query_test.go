package client_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

func TestEvents(t *testing.T) {
	t.Parallel()
	fake := newFake(t, answer(http.StatusOK, `{"data":[],"next_cursor":"more"}`), answer(http.StatusOK, `{"data":[{
		"id":"e","tenant":"acme","type":"a","created_at":"2026-01-02T03:04:05Z","timestamp":null,"metadata":{"k":"v"},
		"content_type":"application/json","payload_bytes":7,"delivery_count":2}],"next_cursor":null}`))
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n := 0
	for e, err := range dial(t, fake).Events(t.Context(), client.ListEvents{
		Tenant: "acme", WebhookID: webhookID, Type: "a", Status: client.DeliveryDelivered, Metadata: map[string]string{"k": "v"},
		After: at, Before: at.Add(time.Second), PageSize: 7,
	}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if e.ID != "e" || e.PayloadBytes != 7 || e.DeliveryCount != 2 || e.Metadata["k"] != "v" || !e.CreatedAt.Equal(at) {
			t.Errorf("got %+v", e)
		}
	}
	const query = "after=2026-01-02T03%3A04%3A05Z&before=2026-01-02T03%3A04%3A06Z&limit=7&metadata=%7B%22k%22%3A%22v%22%7D&status=delivered&tenant=acme&type=a&webhook_id=" + webhookID
	sent := fake.got()
	if n != 1 || len(sent) != 2 || sent[0].path != "/v1/events" || sent[0].query != query {
		t.Errorf("listed %d, sent %+v", n, sent) // an empty page is not the last one
	}
}

func TestDeliveriesListFor(t *testing.T) {
	t.Parallel()
	fake := newFake(t, answer(http.StatusOK, `{"data":[{
		"event_id":"e","type":null,"created_at":"2026-01-02T03:04:05Z","metadata":{},"webhook_id":"w","status":"retrying","attempts":3,
		"last_status_code":500,"reason":"server_error","next_attempt_at":"2026-01-02T03:04:05Z"}],"next_cursor":null}`))
	deliveries := dial(t, fake).Deliveries()
	for d, err := range deliveries.ListFor(t.Context(), webhookID, client.ListWebhookDeliveries{Status: client.DeliveryRetrying}) {
		if err != nil || d.EventID != "e" || d.Status != client.DeliveryRetrying || d.Attempts != 3 || *d.LastStatusCode != 500 {
			t.Errorf("got %+v, %v", d, err)
		}
	}
	for _, err := range deliveries.ListFor(t.Context(), "../x", client.ListWebhookDeliveries{}) {
		if err == nil {
			t.Error("takes anything for an id")
		}
	}
	if sent := fake.got(); len(sent) != 1 || sent[0].path != "/v1/webhooks/"+webhookID+"/deliveries" || sent[0].query != "status=retrying" {
		t.Errorf("sent %+v", sent)
	}
}

func TestWebhookStats(t *testing.T) {
	t.Parallel()
	fake := newFake(t, answer(http.StatusOK, `{"webhook_id":"w","status":"active","backlog":10000,"backlog_exact":false,"in_flight":4,
		"oldest_waiting":{"event_id":"e","created_at":"2026-01-02T03:04:05Z","due_at":"2026-01-02T03:04:05Z"},
		"recent":{"attempts":4,"delivered":3,"success_rate":0.75,"reasons":{"timeout":1},"request":{"p50_us":7}},
		"gate":{"cause":"breaker_open","in_a_row":2},"breaker":"open","owner":{"instance":"d"}}`))
	s, err := dial(t, fake).WebhookStats(t.Context(), webhookID)
	if err != nil || s.Backlog != 10000 || s.BacklogExact || s.OldestWaiting.EventID != "e" || *s.Recent.SuccessRate != 0.75 ||
		*s.Recent.Request.P50 != 7 || s.Gate.InARow != 2 || s.Breaker != "open" || s.Owner.Instance != "d" {
		t.Errorf("got %+v, %v", s, err)
	}
	if sent := fake.got(); sent[0].path != "/v1/webhooks/"+webhookID+"/stats" {
		t.Errorf("sent %+v", sent)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	fake := newFake(t, answer(http.StatusOK, `{"event_id":"e","summary":"s","deliveries":[{"webhook_id":"w","status":"pending","cause":"behind_backlog",
		"sentences":["a","b"],"delays":[{"cause":"paused","from":"2026-01-02T03:04:05Z","to":null,"duration_ms":5}],
		"lane":{"ahead":12,"ahead_exact":true},"attempts_made":[{"number":1}]}],"left_out":3}`))
	x, err := dial(t, fake).Explain(t.Context(), webhookID, webhookID)
	if err != nil || x.LeftOut != 3 || len(x.Deliveries) != 1 {
		t.Fatalf("got %+v, %v", x, err)
	}
	d := x.Deliveries[0]
	if d.Status != client.DeliveryPending || d.Cause != "behind_backlog" || len(d.Sentences) != 2 || d.Delays[0].DurationMS != 5 || *d.Lane.Ahead != 12 || d.AttemptsMade[0].Number != 1 {
		t.Errorf("got %+v", d)
	}
	if sent := fake.got(); sent[0].path != "/v1/events/"+webhookID+"/explain" || sent[0].query != "webhook_id="+webhookID {
		t.Errorf("sent %+v", sent)
	}
}
