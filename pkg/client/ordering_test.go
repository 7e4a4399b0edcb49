package client

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestOrderingIsSaidOnEveryWay(t *testing.T) {
	t.Parallel()
	var path, query string
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, query = r.URL.Path, r.URL.Query().Get("ordering_key")
		body, _ = io.ReadAll(r.Body)
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"id":"019aa7c4-6d0e-7c31-b6a5-0f2f4b1c9d3e"}`)
	}))
	t.Cleanup(server.Close)
	c, err := New(server.URL, "key", WithRetryMax(0))
	if err != nil {
		t.Fatal(err)
	}
	const hook = "019aa7c4-6d0e-7c31-b6a5-0f2f4b1c9d3e"
	var said struct {
		OrderingKey       string `json:"ordering_key"`
		Ordering          string `json:"ordering"`
		OrderingSkipAfter int    `json:"ordering_skip_after"`
	}
	check := func(what string, err error, want string) {
		t.Helper()
		said.OrderingKey, said.Ordering = "", ""
		_ = json.Unmarshal(body, &said) // a raw body says nothing
		if got := query + said.OrderingKey + said.Ordering; err != nil || got != want {
			t.Errorf("%s to %s: %q, %v, want %q", what, path, got, err, want)
		}
	}
	_, err = c.Submit(t.Context(), Event{WebhookID: hook, Type: "a", Payload: json.RawMessage(`1`), OrderingKey: "k é"})
	check("an event", err, "k é")
	_, err = c.SubmitRaw(t.Context(), hook, "a", "text/plain", []byte("x"), WithOrderingKey("k&é"))
	check("a raw event", err, "k&é")
	_, err = c.Webhooks().Create(t.Context(), NewWebhook{Tenant: "acme", URL: "https://example.com", Ordering: OrderingStrict, OrderingSkipAfter: new(3)})
	check("a webhook", err, "strict")
	if said.OrderingSkipAfter != 3 {
		t.Errorf("skip after %d, want 3", said.OrderingSkipAfter)
	}
	_, err = c.Webhooks().Update(t.Context(), hook, WebhookUpdate{Ordering: new(OrderingKey)})
	check("a change", err, "key")
}
