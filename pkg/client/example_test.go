package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

// standIn answers as Fairhook would, so that the examples run anywhere.
func standIn() *httptest.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/events", answer(202, acceptedBody))
	mux.HandleFunc("GET /v1/webhooks", answer(200, `{"data":[`+webhookBody+`],"next_cursor":null}`))
	mux.HandleFunc("GET /v1/webhooks/{id}", answer(404, `{"type":"https://fairhook.dev/problems/not-found","title":"Not found","detail":"there is no such webhook"}`))
	return httptest.NewServer(mux)
}

func ExampleClient_Submit() {
	server := standIn()
	defer server.Close()

	c, err := client.New(server.URL, "fh_key")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	accepted, err := c.Submit(ctx, client.Event{
		Tenant:  "acme",
		Type:    "invoice.paid",
		Payload: json.RawMessage(`{"invoice":"in_123","amount":4200}`),
	})
	if err != nil {
		panic(err)
	}
	for _, delivery := range accepted.Deliveries {
		fmt.Println(accepted.Type, "goes to", delivery.WebhookID, "-", delivery.Status)
	}
	// Output: invoice.paid goes to 01890a5d-ac96-774b-bcce-b302099a8057 - pending
}

func ExampleWebhooks_List() {
	server := standIn()
	defer server.Close()

	c, err := client.New(server.URL, "fh_key")
	if err != nil {
		panic(err)
	}
	for webhook, err := range c.Webhooks().List(context.Background(), client.ListWebhooks{Tenant: "acme"}) {
		if err != nil {
			panic(err)
		}
		fmt.Println(webhook.URL, webhook.EventTypes)
	}
	// Output: https://example.com/ [*]
}

func ExampleError() {
	server := standIn()
	defer server.Close()

	c, err := client.New(server.URL, "fh_key")
	if err != nil {
		panic(err)
	}
	_, err = c.Webhooks().Get(context.Background(), "01890a5d-ac96-774b-bcce-b302099a8057")
	if refused, ok := errors.AsType[*client.Error](err); ok {
		fmt.Println(refused.Status, refused.Code(), "-", refused.Detail)
	}
	fmt.Println(client.IsNotFound(err))
	// Output:
	// 404 not-found - there is no such webhook
	// true
}
