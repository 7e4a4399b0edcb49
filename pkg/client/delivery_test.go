package client_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

func TestDeliveriesList(t *testing.T) {
	t.Parallel()
	fake := newFake(t, answer(http.StatusOK, `{"data":[{
		"event_id":"e","webhook_id":"w","tenant":"acme","type":null,"status":"dropped","reason":"backlog_full","attempts":0,
		"last_status_code":null,"ended_at":"2026-01-02T03:04:05.678Z","detail":"full"}],"next_cursor":null}`))
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	deliveries := dial(t, fake).Deliveries()
	n := 0
	for d, err := range deliveries.List(t.Context(), client.ListDeliveries{
		Status: client.DeliveryDropped, Tenant: "acme", WebhookID: webhookID, Reason: "backlog_full", After: at, Before: at.Add(time.Second), PageSize: 7,
	}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if d.EventID != "e" || d.WebhookID != "w" || d.Type != "" || d.Status != client.DeliveryDropped || !d.EndedAt.Equal(at) || *d.Detail != "full" {
			t.Errorf("got %+v", d)
		}
	}
	for range deliveries.List(t.Context(), client.ListDeliveries{}) {
	}
	sent := fake.got()
	if n != 1 || sent[0].path != "/v1/deliveries" || sent[1].query != "" ||
		sent[0].query != "after=2026-01-02T03%3A04%3A05.678Z&before=2026-01-02T03%3A04%3A06.678Z&limit=7&reason=backlog_full&status=dropped&tenant=acme&webhook_id="+webhookID {
		t.Errorf("listed %d, sent %+v", n, sent)
	}
}
