package fairhook_test

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/openapi"
)

// notForClients are the operations that the Go client leaves out: those for probes,
// scrapers and readers of the documentation.
var notForClients = []string{"/livez", "/readyz", "/metrics", "/openapi.json", "/docs"}

// anID stands for every id and name in the calls of this test.
const anID = "01890a5d-ac96-774b-bcce-b302099a8057"

// The Go client has a method for every operation of the API, and calls nothing else:
// every exported method is called once, and what arrives is compared with the OpenAPI
// document.
func TestTheClientCoversTheAPI(t *testing.T) {
	t.Parallel()
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(openapi.Document(), &document); err != nil {
		t.Fatal(err)
	}
	calls := clientCalls(t)
	covered := map[string]bool{} // operations, as method and path of the document
	for _, call := range slices.Sorted(maps.Keys(calls)) {
		method, path, _ := strings.Cut(call, " ")
		template := documented(slices.Collect(maps.Keys(document.Paths)), path)
		if document.Paths[template][strings.ToLower(method)].OperationID == "" {
			t.Errorf("%s calls %s, which is not in openapi.json", calls[call], call)
		}
		covered[strings.ToLower(method)+" "+template] = true
	}
	operations := 0
	for path, item := range document.Paths {
		for method, operation := range item {
			if operation.OperationID == "" || slices.Contains(notForClients, path) {
				continue
			}
			operations++
			if !covered[method+" "+path] {
				t.Errorf("no method of the client calls %s %s (%s)", strings.ToUpper(method), path, operation.OperationID)
			}
		}
	}
	if operations < 20 {
		t.Errorf("found only %d operations", operations)
	}
}

// documented is the path of the document that a request's path is of: one without
// parameters before one with them.
func documented(templates []string, path string) string {
	best := ""
	for _, template := range templates {
		want, got := strings.Split(template, "/"), strings.Split(path, "/")
		same := len(want) == len(got)
		for i := 0; same && i < len(want); i++ {
			same = want[i] == got[i] || strings.HasPrefix(want[i], "{") && got[i] != ""
		}
		if same && (best == "" || strings.Count(template, "{") < strings.Count(best, "{")) {
			best = template
		}
	}
	return best
}

// clientCalls are the requests that the client's exported methods make, each with the
// name of the method.
func clientCalls(t *testing.T) map[string]string {
	t.Helper()
	var mu sync.Mutex
	var got []string // guarded by mu
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Method+" "+r.URL.Path)
		w.WriteHeader(http.StatusNotFound)
	}))
	defer server.Close()
	c, err := client.New(server.URL, "key", client.WithRetryMax(0))
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]string{}
	var visit func(part reflect.Value)
	visit = func(part reflect.Value) {
		for i := range part.NumMethod() {
			method, name := part.Method(i), part.Type().String()+"."+part.Type().Method(i).Name
			kind := method.Type()
			if kind.NumIn() == 0 {
				if kind.NumOut() == 1 && kind.Out(0).Kind() == reflect.Struct {
					visit(method.Call(nil)[0]) // a part of the API
				}
				continue
			}
			call(t.Context(), method)
			mu.Lock()
			if len(got) == 0 {
				t.Errorf("%s makes no request: teach this test to call it", name)
			}
			for _, request := range got {
				calls[request] = name
			}
			got = nil
			mu.Unlock()
		}
	}
	visit(reflect.ValueOf(c))
	return calls
}

// call calls a method of the client with arguments that it does not refuse, and goes
// through what it lists.
func call(ctx context.Context, method reflect.Value) {
	kind := method.Type()
	var arguments []reflect.Value
	for i := range kind.NumIn() {
		if kind.IsVariadic() && i == kind.NumIn()-1 {
			break
		}
		arguments = append(arguments, argument(ctx, kind.In(i)))
	}
	for _, result := range method.Call(arguments) {
		if result.Kind() != reflect.Func {
			continue
		}
		for range result.Seq2() {
			continue
		}
	}
}

func argument(ctx context.Context, kind reflect.Type) reflect.Value {
	event := client.Event{WebhookID: anID, Type: "a.b", Payload: json.RawMessage("{}")}
	switch kind {
	case reflect.TypeFor[context.Context]():
		return reflect.ValueOf(ctx)
	case reflect.TypeFor[string]():
		return reflect.ValueOf(anID)
	case reflect.TypeFor[[]byte]():
		return reflect.ValueOf([]byte("{}"))
	case reflect.TypeFor[client.Event]():
		return reflect.ValueOf(event)
	case reflect.TypeFor[[]client.Event]():
		return reflect.ValueOf([]client.Event{event})
	}
	return reflect.Zero(kind)
}

// What the API takes and tells of a webhook, the client has fields for, and no others.
func TestTheClientHasTheSettingsOfTheAPI(t *testing.T) {
	t.Parallel()
	type schema struct {
		AllOf []struct {
			Ref string `json:"$ref"`
		} `json:"allOf"`
		Properties map[string]json.RawMessage `json:"properties"`
	}
	var document struct {
		Components struct {
			Schemas map[string]schema `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(openapi.Document(), &document); err != nil {
		t.Fatal(err)
	}
	var properties func(name string) []string
	properties = func(name string) []string {
		names := slices.Collect(maps.Keys(document.Components.Schemas[name].Properties))
		for _, part := range document.Components.Schemas[name].AllOf {
			names = append(names, properties(strings.TrimPrefix(part.Ref, "#/components/schemas/"))...)
		}
		return names
	}
	for name, kind := range map[string]reflect.Type{
		"NewWebhook": reflect.TypeFor[client.NewWebhook](), "WebhookChange": reflect.TypeFor[client.WebhookUpdate](),
		"Webhook": reflect.TypeFor[client.Webhook](), "CreatedWebhook": reflect.TypeFor[client.CreatedWebhook](),
		"Secret": reflect.TypeFor[client.Secret](), "WebhookTest": reflect.TypeFor[client.WebhookTest](),
		"NewKey": reflect.TypeFor[client.NewKey](), "Key": reflect.TypeFor[client.Key](), "Event": reflect.TypeFor[client.EventView](),
		"Delivery": reflect.TypeFor[client.Delivery](), "Attempt": reflect.TypeFor[client.Attempt](), "Instance": reflect.TypeFor[client.Instance](),
		"EventSummary": reflect.TypeFor[client.EventSummary](), "WebhookStats": reflect.TypeFor[client.WebhookStats](),
		"ListedDelivery": reflect.TypeFor[client.ListedDelivery](), "EndedDelivery": reflect.TypeFor[client.EndedDelivery](),
		"Explanation": reflect.TypeFor[client.Explanation](), "ExplainedDelivery": reflect.TypeFor[client.ExplainedDelivery](),
		"Delay": reflect.TypeFor[client.Delay](), "Gate": reflect.TypeFor[client.Gate](), "LaneOwner": reflect.TypeFor[client.LaneOwner](),
		"Percentiles": reflect.TypeFor[client.Percentiles](), "Timings": reflect.TypeFor[client.Timings](),
		"AuthSettings": reflect.TypeFor[client.Auth](), "TLSSettings": reflect.TypeFor[client.TLS](), "Certificate": reflect.TypeFor[client.Certificate](),
		"SignatureTemplate": reflect.TypeFor[client.SignatureTemplate](), "EventType": reflect.TypeFor[client.EventType](),
		"CreatedKey": reflect.TypeFor[client.CreatedKey](), "AcceptedEvent": reflect.TypeFor[client.Accepted](),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fields []string
			for _, field := range reflect.VisibleFields(kind) {
				if tag, _, _ := strings.Cut(field.Tag.Get("json"), ","); tag != "" && tag != "-" {
					fields = append(fields, tag)
				}
			}
			want := properties(name)
			if len(want) == 0 {
				t.Fatal("openapi.json has no properties of it")
			}
			for _, property := range want {
				if name == "WebhookChange" && property == "tenant" {
					continue // it may be said, and not be changed
				}
				if !slices.Contains(fields, property) {
					t.Errorf("%s has no field for %s", kind, property)
				}
			}
			for _, field := range fields {
				if !slices.Contains(want, field) {
					t.Errorf("%s has %s, which is not in openapi.json", kind, field)
				}
			}
		})
	}
}
