package ingest

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// ways are all ways in for a payload of a type, as a request to make.
func ways(id webhook.ID, eventType, payload string) map[string]struct {
	path, body string
	header     []string
	pointer    string // of the payload in the body
	batch      bool
} {
	type way = struct {
		path, body string
		header     []string
		pointer    string
		batch      bool
	}
	direct := `{"webhook_id":"` + id.String() + `","type":"` + eventType + `","payload":` + payload + `}`
	raw := "/v1/webhooks/" + id.String() + "/events?type=" + eventType
	return map[string]way{
		"direct":    {path: "/v1/events", body: direct, pointer: "/payload"},
		"fan-out":   {path: "/v1/events", body: `{"tenant":"acme","type":"` + eventType + `","payload":` + payload + `}`, pointer: "/payload"},
		"raw":       {path: raw, body: payload, header: []string{"Content-Type", "application/json; charset=utf-8"}},
		"raw +json": {path: raw, body: payload, header: []string{"Content-Type", "application/cloudevents+json"}},
		"batch":     {path: "/v1/events/batch", body: `[` + direct + `]`, header: []string{"Content-Type", "application/json"}, pointer: "/0/payload", batch: true},
		"NDJSON":    {path: "/v1/events/batch", body: direct + "\n", header: []string{"Content-Type", "application/x-ndjson"}, pointer: "/payload", batch: true},
		"two in NDJSON": {
			path: "/v1/events/batch", body: direct + "\n" + direct + "\n",
			header: []string{"Content-Type", "application/ndjson"}, pointer: "/payload", batch: true,
		},
	}
}

// submitted makes a request to submit one event, and returns the status and the
// problem's fields that its event got.
func submitted(t *testing.T, b *testBundle, path, body string, batch bool, header ...string) (int, []string) {
	t.Helper()
	a := b.request(t, "POST", path, body, header...)
	if batch && a.status == http.StatusOK {
		var results struct {
			Results []struct {
				Status int            `json:"status"`
				Error  *problemAnswer `json:"error"`
			} `json:"results"`
		}
		a.decode(t, &results)
		if len(results.Results) == 0 {
			t.Fatalf("no results: %s", a.body)
		}
		first := results.Results[0]
		if first.Error == nil {
			return first.Status, nil
		}
		return first.Status, first.Error.fields()
	}
	if a.status < 300 {
		return a.status, nil
	}
	var p problemAnswer
	a.decode(t, &p)
	return a.status, p.fields()
}

func TestPayloadsMustSatisfyTheSchemaOfTheirType(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := newWebhook(t, b, "acme", "").ID
	want[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/order.paid",
		`{"schema":{"type":"object","required":["id"],"properties":{"id":{"type":"integer"},"a/b":{"items":{"type":"string"}}}}}`)
	want[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/anything", `{"description":"It has no schema."}`)

	for name, way := range ways(id, "order.paid", `{"id":"1","a/b":["x",2]}`) {
		status, fields := submitted(t, b, way.path, way.body, way.batch, way.header...)
		wanted := []string{
			way.pointer + "/a~1b/1: must be a string, not a number",
			way.pointer + "/id: must be an integer, not a string",
		}
		if status != http.StatusUnprocessableEntity || !slices.Equal(fields, wanted) {
			t.Errorf("%s: %d %q, want 422 and %q", name, status, fields, wanted)
		}
	}
	for _, eventType := range []string{"order.paid", "anything", "unknown"} {
		for name, way := range ways(id, eventType, `{"id":1}`) {
			if status, fields := submitted(t, b, way.path, way.body, way.batch, way.header...); status != http.StatusAccepted {
				t.Errorf("%s of type %s: %d %q", name, eventType, status, fields)
			}
		}
	}

	t.Run("WhichOnlyJSONCan", func(t *testing.T) {
		t.Parallel()
		for _, contentType := range []string{"", "text/plain", "application/x-www-form-urlencoded"} {
			p, _ := refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST",
				"/v1/webhooks/"+id.String()+"/events?type=order.paid", `{"id":1}`, "Content-Type", contentType)
			if !strings.Contains(p.Detail, "must be JSON") || len(p.Errors) > 0 {
				t.Errorf("%q: %q %q", contentType, p.Detail, p.fields())
			}
		}
		p, _ := refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST",
			"/v1/webhooks/"+id.String()+"/events?type=order.paid", `{"id":1`, "Content-Type", "application/json")
		if !slices.Equal(p.fields(), []string{": is not JSON"}) {
			t.Errorf("a broken payload: %q", p.fields())
		}
	})
	t.Run("AndAreStoredByteForByte", func(t *testing.T) {
		t.Parallel()
		for _, payload := range []string{"{ \"id\" :\t1.0 ,\r\n\"x\":\"\\u00e9\\/\", \"y\":1e-7 }", `{"id":-0}`, `{"id":10E1,"z":{"b":1,"a":2}}`} {
			for name, way := range ways(id, "order.paid", payload) {
				if way.batch {
					continue
				}
				got, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", way.path, way.body, way.header...)
				if kept, _, _ := stored(t, b, got.ID); string(kept) != payload {
					t.Errorf("%s: payload %q is stored as %q", name, payload, kept)
				}
			}
		}
	})
	t.Run("WithAtMost50Faults", func(t *testing.T) {
		t.Parallel()
		p, _ := refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/events",
			`{"tenant":"acme","type":"order.paid","payload":{"id":1,"a/b":[0`+strings.Repeat(",1", 500)+`]}}`)
		if len(p.Errors) != 50 {
			t.Errorf("%d faults", len(p.Errors))
		}
	})
}

// A change made through one copy of ingest holds for what is submitted through
// another.
func TestSchemasHoldEverywhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := setupWith(t, options{key: testKey, pool: b.db})
	submit := func(via *testBundle, payload string) int {
		return via.request(t, "POST", "/v1/events", submitBody(`"tenant":"acme"`, payload)).status
	}
	eventually := func(what string, condition func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !condition(); {
			if time.Now().After(deadline) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	for _, via := range []*testBundle{b, other} {
		if status := submit(via, `1`); status != http.StatusAccepted {
			t.Fatalf("without a declaration: %d", status)
		}
	}
	want[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/order.paid", `{"schema":{"type":"string"}}`)
	if status := submit(b, `1`); status != http.StatusUnprocessableEntity {
		t.Errorf("right after the declaration: %d", status)
	}
	eventually("the other copy knows the schema", func() bool { return submit(other, `1`) == http.StatusUnprocessableEntity })
	want[any](t, other, http.StatusNoContent, "DELETE", "/v1/event-types/order.paid", "")
	if status := submit(other, `1`); status != http.StatusAccepted {
		t.Errorf("right after the deletion: %d", status)
	}
	eventually("the first copy has forgotten it", func() bool { return submit(b, `1`) == http.StatusAccepted })
}

func TestStrictEventTypes(t *testing.T) {
	t.Parallel()
	b := setupWith(t, options{key: testKey, strictEventTypes: true})
	id := newWebhook(t, b, "acme", "").ID
	want[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/known", `{}`)
	for name, way := range ways(id, "known", `1`) {
		if status, fields := submitted(t, b, way.path, way.body, way.batch, way.header...); status != http.StatusAccepted {
			t.Errorf("%s: %d %q", name, status, fields)
		}
	}
	for name, way := range ways(id, "unknown", `1`) {
		status, fields := submitted(t, b, way.path, way.body, way.batch, way.header...)
		wanted := "type: is not a declared event type" // a parameter of the raw way
		if way.pointer != "" {
			wanted = strings.TrimSuffix(way.pointer, "payload") + wanted
		}
		if status != http.StatusUnprocessableEntity || !slices.Equal(fields, []string{wanted}) {
			t.Errorf("%s: %d %q, want 422 and %q", name, status, fields, wanted)
		}
	}
}

func TestTheStructureOfJSONIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := newWebhook(t, b, "acme", "").ID
	nested := func(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }
	for name, way := range ways(id, "a", nested(DefaultMaxJSONDepth-1)) {
		if status, fields := submitted(t, b, way.path, way.body, way.batch, way.header...); status != http.StatusAccepted {
			t.Errorf("%s, as deep as allowed: %d %q", name, status, fields)
		}
	}
	for name, way := range ways(id, "a", nested(DefaultMaxJSONDepth+1)) {
		status, fields := submitted(t, b, way.path, way.body, way.batch, way.header...)
		const detail = ": is nested deeper than the limit of 64 levels"
		if status != http.StatusUnprocessableEntity || len(fields) != 1 ||
			!strings.HasPrefix(fields[0], way.pointer+"/0/0/0") || !strings.HasSuffix(fields[0], detail) {
			t.Errorf("%s, too deep: %d %q", name, status, fields)
		}
	}
	p, _ := refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/events", strings.Repeat("[", 20_000))
	if p.Detail != "The JSON is nested deeper than the limit of 64 levels." {
		t.Errorf("an abyss: %q", p.Detail)
	}
	// What is not JSON is passed on as it is.
	want[any](t, b, http.StatusAccepted, "POST", "/v1/webhooks/"+id.String()+"/events?type=a", nested(1000), "Content-Type", "text/plain")

	t.Run("AlsoInTheNumberOfKeys", func(t *testing.T) {
		t.Parallel()
		// The limit for bodies is too low in these tests to have 10,000 keys.
		b := setupWith(t, options{key: testKey, pool: b.db, maxJSONKeys: 100})
		object := func(keys int) string {
			all := map[string]int{}
			for i := range keys {
				all[strings.Repeat("k", i+1)] = i
			}
			text, err := json.Marshal(all)
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		for name, way := range ways(id, "a", object(97)) {
			if status, fields := submitted(t, b, way.path, way.body, way.batch, way.header...); status != http.StatusAccepted {
				t.Errorf("%s, as many as allowed: %d %q", name, status, fields)
			}
		}
		for name, way := range ways(id, "a", object(101)) {
			status, fields := submitted(t, b, way.path, way.body, way.batch, way.header...)
			if status != http.StatusUnprocessableEntity || len(fields) != 1 ||
				!strings.HasPrefix(fields[0], way.pointer+"/k") || !strings.HasSuffix(fields[0], ": has more object keys than the limit of 100") {
				t.Errorf("%s, too many: %d %q", name, status, fields)
			}
		}
	})
}
