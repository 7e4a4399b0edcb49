package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

// results is a batch's answer.
func results(each ...string) http.HandlerFunc {
	return answer(http.StatusOK, `{"results":[`+strings.Join(each, ",")+`]}`, "X-Request-Id", "req-1")
}

const (
	stored   = `{"status":202,"id":"` + eventID + `","tenant":"acme","type":"a","created_at":"2026-11-23T10:00:00Z","deliveries":[{"webhook_id":"` + webhookID + `","status":"pending"}]}`
	replayed = `{"status":202,"id":"` + eventID + `","tenant":"acme","type":"a","created_at":"2026-11-23T10:00:00Z","deliveries":[],"idempotency_replayed":true}`
	invalid  = `{"status":422,"error":{"type":"https://fairhook.dev/problems/invalid-request","title":"No","status":422,"request_id":"req-9","errors":[{"pointer":"/1/type","detail":"is required"}]}}`
	conflict = `{"status":409,"error":{"type":"https://fairhook.dev/problems/conflict","title":"Busy","status":409}}`
	limited  = `{"status":429,"retry_after_seconds":%d,"error":{"type":"https://fairhook.dev/problems/rate-limited","title":"Slow down","status":429}}`
)

// sent are the items of a request.
func sent(t *testing.T, r request) (items []map[string]json.RawMessage) {
	t.Helper()
	if r.method != "POST" || r.path != "/v1/events/batch" || r.header.Get("Content-Type") != "application/json" || r.header.Get("Idempotency-Key") != "" {
		t.Errorf("request is %s %s %v", r.method, r.path, r.header)
	}
	if err := json.Unmarshal(r.body, &items); err != nil {
		t.Fatalf("body %s: %v", r.body, err)
	}
	return items
}

func TestSubmitBatch(t *testing.T) {
	t.Parallel()
	events := []client.Event{
		{Tenant: "acme", Type: "a", Payload: json.RawMessage(`{ "b":1, "a" : 1e400 }`), IdempotencyKey: "own"},
		{Tenant: "acme", Payload: json.RawMessage(`2`)},
		{WebhookID: webhookID, Type: "a", Payload: json.RawMessage(`3`)},
	}

	t.Run("GivesEachEventItsResult", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, results(stored, invalid, replayed))
		got, err := dial(t, fake).SubmitBatch(t.Context(), events)
		if err != nil || len(got) != 3 {
			t.Fatalf("%+v, %v", got, err)
		}
		if a := got[0].Accepted; got[0].Err != nil || a.ID != eventID || a.Replayed || a.IdempotencyKey != "own" || len(a.Deliveries) != 1 {
			t.Errorf("the first is %+v", a)
		}
		var e *client.Error
		if got[1].Accepted != nil || !errors.As(got[1].Err, &e) || !client.IsInvalid(got[1].Err) || e.RequestID != "req-9" ||
			fmt.Sprint(e.Errors) != "[{/type  is required}]" {
			t.Errorf("the second is %+v", got[1])
		}
		items := sent(t, fake.got()[0])
		if a := got[2].Accepted; !a.Replayed || a.IdempotencyKey == "" || `"`+a.IdempotencyKey+`"` != string(items[2]["idempotency_key"]) {
			t.Errorf("the third is %+v", a)
		}
		if !strings.Contains(string(fake.got()[0].body), `{ "b":1, "a" : 1e400 }`) || string(items[0]["idempotency_key"]) != `"own"` {
			t.Errorf("sent %s", fake.got()[0].body)
		}
	})
	t.Run("TriesTheWholeAgainAsASubmission", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, breakConnection(t), answer(http.StatusServiceUnavailable, `{}`), results(stored, stored, stored))
		if got, err := dial(t, fake).SubmitBatch(t.Context(), events); err != nil || got[2].Err != nil {
			t.Fatalf("%+v, %v", got, err)
		}
		requests := fake.got()
		if len(requests) != 3 || string(requests[0].body) != string(requests[2].body) {
			t.Errorf("%d requests", len(requests))
		}
	})
	t.Run("TriesEventsAgainThatMayBeTakenLater", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, results(conflict, invalid, fmt.Sprintf(limited, 1)), results(replayed, conflict), results(stored))
		begun := time.Now()
		got, err := dial(t, fake).SubmitBatch(t.Context(), events)
		if err != nil || got[0].Err != nil || !got[0].Accepted.Replayed || !client.IsInvalid(got[1].Err) || got[2].Err != nil {
			t.Fatalf("%+v, %v", got, err)
		}
		if took := time.Since(begun); took < time.Second {
			t.Errorf("waited for %s, asked for a second", took)
		}
		requests := fake.got()
		first, second, third := sent(t, requests[0]), sent(t, requests[1]), sent(t, requests[2])
		if len(second) != 2 || len(third) != 1 ||
			string(second[0]["idempotency_key"]) != `"own"` || string(third[0]["idempotency_key"]) != string(first[2]["idempotency_key"]) {
			t.Errorf("sent %s, then %s, then %s", requests[0].body, requests[1].body, requests[2].body)
		}
	})
	t.Run("GivesUpOnEventsWithinItsBounds", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, results(conflict))
		got, err := dial(t, fake, client.WithRetryMax(2)).SubmitBatch(t.Context(), events[:1])
		if err != nil || !client.IsConflict(got[0].Err) || len(fake.got()) != 3 {
			t.Errorf("%+v, %v after %d requests", got, err, len(fake.got()))
		}
		for _, wait := range []int{3600, 1 << 62} { // longer than a call may wait
			fake = newFake(t, results(fmt.Sprintf(limited, wait)))
			got, err = dial(t, fake).SubmitBatch(t.Context(), events[:1])
			var e *client.Error
			if err != nil || !errors.As(got[0].Err, &e) || e.RetryAfter < time.Hour || len(fake.got()) != 1 {
				t.Errorf("%+v, %v after %d requests", got, err, len(fake.got()))
			}
		}
		fake = newFake(t, results(stored, conflict), answer(http.StatusBadRequest, `{}`))
		got, err = dial(t, fake).SubmitBatch(t.Context(), events[:2])
		if err != nil || got[0].Err != nil || !client.IsInvalid(got[1].Err) {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("EndsWithTheContext", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		fake := newFake(t, func(w http.ResponseWriter, r *http.Request) {
			results(fmt.Sprintf(limited, 4))(w, r)
			time.AfterFunc(50*time.Millisecond, cancel)
		})
		begun := time.Now()
		got, err := dial(t, fake).SubmitBatch(ctx, events[:1])
		if err == nil && !client.IsRateLimited(got[0].Err) || time.Since(begun) > 3*time.Second {
			t.Errorf("%+v, %v after %s", got, err, time.Since(begun))
		}
	})
	t.Run("RefusesWhatItCannotSend", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, results(stored))
		c := dial(t, fake)
		for _, bad := range []client.Event{
			{Tenant: "acme", Type: "a", Payload: json.RawMessage(`1}`)},
			{Tenant: "acme", Type: "a", Payload: json.RawMessage(`1`), IdempotencyKey: "\xff"},
		} {
			if _, err := c.SubmitBatch(t.Context(), []client.Event{event, bad}); err == nil || !strings.Contains(err.Error(), "event 1") {
				t.Errorf("%v", err)
			}
		}
		if got, err := c.SubmitBatch(t.Context(), nil); len(got) != 0 || err != nil || len(fake.got()) != 0 {
			t.Errorf("%v, %v, %d requests", got, err, len(fake.got()))
		}
	})
	t.Run("TakesAnErrorForTheWholeAsItsOwn", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(http.StatusRequestEntityTooLarge, `{"type":"https://fairhook.dev/problems/too-large"}`))
		if got, err := dial(t, fake).SubmitBatch(t.Context(), events); got != nil || !client.IsTooLarge(err) {
			t.Errorf("%+v, %v", got, err)
		}
		fake = newFake(t, results(stored))
		if got, err := dial(t, fake).SubmitBatch(t.Context(), events); got != nil || err == nil {
			t.Errorf("one result for three events: %+v, %v", got, err)
		}
	})
}
