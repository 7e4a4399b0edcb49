package ingest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/openapi"
	"github.com/fairhook/fairhook/pkg/openapi/openapitest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// documentedRoute is an operation as Echo writes routes.
func documentedRoute(op *openapitest.Operation) string {
	return op.Method + " " + strings.NewReplacer("{", ":", "}", "").Replace(op.Path)
}

func TestTheDocumentHasEveryRouteAndNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	documented := map[string]bool{}
	for _, op := range openapitest.Load().Operations() {
		documented[documentedRoute(op)] = true
	}
	for _, route := range b.server.echo.Routes() {
		name := route.Method + " " + route.Path
		if !documented[name] {
			t.Errorf("%s is not in the OpenAPI document", name)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("%s is in the OpenAPI document, and no route", name)
	}
}

func TestTheDocumentSaysWhichScopeEachRouteNeeds(t *testing.T) {
	t.Parallel()
	for _, op := range openapitest.Load().Operations() {
		var scopes []string
		if asked, known := rules[documentedRoute(op)]; known {
			scopes = []string{string(asked.scope)}
		}
		if !slices.Equal(op.Scopes, scopes) {
			t.Errorf("%s %s needs %q, and is documented with %q", op.Method, op.Path, scopes, op.Scopes)
		}
	}
}

func TestTheDocumentHasTheClosedSetsOfWords(t *testing.T) {
	t.Parallel()
	contract := openapitest.Load()
	statuses := []webhook.Status{
		webhook.StatusPending, webhook.StatusDelivering, webhook.StatusRetrying, webhook.StatusDelivered,
		webhook.StatusExhausted, webhook.StatusParked, webhook.StatusCancelled, webhook.StatusDropped,
	}
	for schema, words := range map[string]string{
		"Reason": fmt.Sprint(webhook.Reasons()), "Scope": fmt.Sprint(sorted(webhook.Scopes())), "DeliveryStatus": fmt.Sprint(statuses),
		"InstanceRole":   fmt.Sprint([]webhook.Role{webhook.RoleIngest, webhook.RoleDispatcher}),
		"Cause":          fmt.Sprint(webhook.Causes()),
		"BreakerState":   fmt.Sprint([]webhook.BreakerState{webhook.BreakerClosed, webhook.BreakerOpen, webhook.BreakerHalfOpen}),
		"InstanceStatus": fmt.Sprint([]webhook.InstanceStatus{webhook.InstanceAlive, webhook.InstanceStale}),
	} {
		documented := contract.Enum(schema)
		if schema == "Scope" {
			slices.Sort(documented)
		}
		if fmt.Sprint(documented) != words {
			t.Errorf("%s is documented with %v, want %v", schema, documented, words)
		}
	}

	types := []string{}
	for _, k := range kinds {
		types = append(types, problemBase+k.code)
	}
	for _, k := range []kind{kindMethod, kindTimeout, kindMediaType, kindInternal} { // nobody receives kindClientGone
		types = append(types, problemBase+k.code)
	}
	slices.Sort(types)
	if got := contract.ProblemTypes(); !slices.Equal(got, types) {
		t.Errorf("problems are documented with %q, want %q", got, types)
	}
}

func sorted[T ~string](words []T) []T { return slices.Sorted(slices.Values(words)) }

// Clients, and people who read the document, take a default for a promise.
func TestTheDocumentHasTheDefaultsOfAWebhook(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.request(t, "POST", "/v1/webhooks", `{"tenant":"acme","url":"http://127.0.0.1:1/"}`)
	var created map[string]any
	decoder := json.NewDecoder(bytes.NewReader(a.body))
	decoder.UseNumber()
	if err := decoder.Decode(&created); err != nil {
		t.Fatal(err)
	}
	documented := openapitest.Load().Defaults("WebhookSettings")
	if len(documented) < 10 {
		t.Errorf("only %d defaults", len(documented))
	}
	for name, value := range documented {
		if got := fmt.Sprint(created[name]); got != fmt.Sprint(value) {
			t.Errorf("%s is %s by default, and documented with %v", name, got, value)
		}
	}
}

func TestTheDocumentAndItsPageNeedNoKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.request(t, "GET", "/openapi.json", "", "Authorization", "")
	if a.status != http.StatusOK || !bytes.Equal(a.body, openapi.Document()) {
		t.Errorf("/openapi.json answers %d with %d bytes", a.status, len(a.body))
	}
	a = b.request(t, "GET", "/docs", "", "Authorization", "")
	if a.status != http.StatusOK || !bytes.Contains(a.body, []byte("/v1/events/batch")) || a.header.Get("Content-Security-Policy") == "" {
		t.Errorf("/docs answers %d %.200s", a.status, a.body)
	}
}

// What the answers are is checked for every request of this package's tests: here
// are those that nobody else makes.
func TestRefusalsOfManagementAreDocumented(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := "/v1/webhooks/" + newWebhook(t, b, "acme", "").ID.String()
	unsigned := "/v1/keys/" + newKey(t, b, "acme", "", webhook.ScopeRead).ID.String()
	signed := "/v1/keys/" + newKey(t, b, "acme", `,"require_signature":true`, webhook.ScopeSubmit).ID.String()
	for _, call := range []struct {
		status             int
		code               string
		method, path, body string
	}{
		{http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/webhooks", `{"url":"ftp://x"}`},
		{http.StatusUnprocessableEntity, "invalid-request", "PATCH", w, `{"url":null,"timeout_seconds":0}`},
		{http.StatusUnprocessableEntity, "invalid-request", "PUT", "/v1/event-types/a", `{"schema":{"type":1}}`},
		{http.StatusUnprocessableEntity, "invalid-request", "PUT", "/v1/event-types/a%20b", `{}`},
		{http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/keys", `{"tenant":null,"scopes":["x"]}`},
		{http.StatusUnprocessableEntity, "invalid-request", "POST", signed + "/secrets", `{"expire_previous_after_seconds":-1}`},
		{http.StatusConflict, "conflict", "POST", unsigned + "/secrets", `{}`},
		{http.StatusUnprocessableEntity, "invalid-request", "POST", w + "/secrets", `{"kind":"x"}`},
		{http.StatusConflict, "conflict", "POST", w + "/secrets", `{"kind":"ed25519"}`},
		{http.StatusNotFound, "not-found", "GET", w + "/public-keys", ``},
	} {
		p, _ := refused(t, b, call.status, call.code, call.method, call.path, call.body)
		if call.status == http.StatusUnprocessableEntity && len(p.Errors) == 0 {
			t.Errorf("%s %s: the answer does not say what is wrong where", call.method, call.path)
		}
	}
}
