package e2etest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fairhook/fairhook/pkg/client"
)

// TestOperatorsHearOfAWebhookThatIsGoneAndComesBack goes through the API alone: a
// webhook is disabled, a test through ingest and a dispatcher brings it back, and an
// operator's receiver hears of both.
func TestOperatorsHearOfAWebhookThatIsGoneAndComesBack(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest := s.run("ingest").ready()
	s.run("dispatcher").ready()
	s.run("dispatcher").ready()
	c, err := client.New("http://"+ingest.addr, bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu   sync.Mutex
		told = map[string]int{} // by type, and what follows from it; guarded by mu
	)
	operators := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var event struct {
			Type string                      `json:"type"`
			Data struct{ Reason, By string } `json:"data"`
		}
		if err := json.Unmarshal(body, &event); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		mu.Lock()
		defer mu.Unlock()
		told[event.Type+" "+event.Data.Reason+event.Data.By]++
	}))
	t.Cleanup(operators.Close)
	heard := func(what string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return told[what] == 1
		}
	}
	var (
		gone atomic.Bool
		got  atomic.Int64
	)
	gone.Store(true)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if gone.Load() {
			w.WriteHeader(http.StatusGone)
			return
		}
		got.Add(1)
	}))
	t.Cleanup(receiver.Close)
	if _, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: client.OperatorTenant, URL: operators.URL}); err != nil {
		t.Fatal(err)
	}
	w, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: receiver.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Submit(t.Context(), client.Event{Tenant: "acme", Type: "a", Payload: []byte(`1`)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the operators hear that it is gone", heard("webhook.disabled gone"))
	gone.Store(false)
	test, err := c.Webhooks().Test(t.Context(), w.ID)
	if err != nil || test.Status != client.TestDelivered || test.WebhookStatus != client.WebhookActive {
		t.Fatalf("the test is %+v, error %v", test, err)
	}
	eventually(t, "the operators hear that it is back", heard("webhook.recovered test"))
	eventually(t, "its queue goes on", func() bool { return got.Load() == 2 })
}
