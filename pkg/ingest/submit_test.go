package ingest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// nasty are payloads that a careless server changes or refuses.
var nasty = []string{
	`{"b":1,"a":2}`, `{"a":1,"a":2}`, "{ \"a\" :\t[ 1 ,\r\n2 ] }", `1e400`, `-0`, `1.0`, `9007199254740993`, `0.1000`,
	`"\u0000"`, `"\ud800"`, `"\udc00\ud800"`, `"\/"`, `"é\u00e9"`, `"<>&\u2028"`, "\"\u2028\"",
	`null`, `true`, `""`, `[]`, `{}`, `{"payload":{"payload":"}"}}`, `"\\\""`, strings.Repeat("[", 63) + strings.Repeat("]", 63),
}

func submitBody(target, payload string) string {
	return `{` + target + `,"type":"order.paid","payload": ` + payload + ` }`
}

// stored reads an event's payload, content type (empty: JSON) and number of jobs.
func stored(t *testing.T, b *testBundle, id webhook.ID) (payload []byte, contentType string, jobs int) {
	t.Helper()
	err := b.db.QueryRow(t.Context(), `
		SELECT payload, coalesce(content_type, ''),
		       (SELECT count(*) FROM fairhook.river_job WHERE args->>'event_id' = $1::uuid::text)
		FROM fairhook.events WHERE id = $1`, id).Scan(&payload, &contentType, &jobs)
	if err != nil {
		t.Fatal(err)
	}
	return payload, contentType, jobs
}

func TestSubmit(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("ToOneWebhook", func(t *testing.T) {
		t.Parallel()
		w := newWebhook(t, b, "direct", "")
		newWebhook(t, b, "direct", "")
		got, header := want[map[string]any](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(`"webhook_id":"`+w.ID.String()+`"`, `{"n":1}`))
		id, err := webhook.ParseID(got["id"].(string))
		if err != nil || header.Get("Location") != "/v1/events/"+id.String() || header.Get("Idempotency-Replayed") != "" {
			t.Fatalf("id is %v, %v, headers %v", got["id"], err, header)
		}
		expected := map[string]any{
			"id": id.String(), "tenant": "direct", "type": "order.paid", "created_at": id.Time().Format(time.RFC3339Nano),
			"deliveries": []any{map[string]any{"webhook_id": w.ID.String(), "status": "pending"}},
		}
		if fmt.Sprint(got) != fmt.Sprint(expected) {
			t.Errorf("answer is %v\nwant %v", got, expected)
		}
		payload, contentType, jobs := stored(t, b, id)
		if string(payload) != `{"n":1}` || contentType != "" && contentType != webhook.ContentTypeJSON || jobs != 1 {
			t.Errorf("stored %q as %q with %d jobs", payload, contentType, jobs)
		}
	})
	t.Run("ToEveryWebhookOfATenantThatSubscribes", func(t *testing.T) {
		t.Parallel()
		all := newWebhook(t, b, "fanout", "")
		orders := newWebhook(t, b, "fanout", `,"event_types":["order.*"]`)
		paused := newWebhook(t, b, "fanout", `,"status":"paused"`)
		newWebhook(t, b, "fanout", `,"event_types":["user.*"]`)
		newWebhook(t, b, "fanout2", "")
		got, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(`"tenant":"fanout"`, `1`))
		expected := []acceptedDelivery{
			{all.ID, webhook.StatusPending}, {orders.ID, webhook.StatusPending}, {paused.ID, webhook.StatusParked},
		}
		if !slices.Equal(got.Deliveries, expected) {
			t.Errorf("deliveries are %v, want %v", got.Deliveries, expected)
		}
		view, _ := want[webhook.EventView](t, b, http.StatusOK, "GET", "/v1/events/"+got.ID.String(), "")
		for i, d := range view.Deliveries {
			if d.WebhookID != expected[i].WebhookID || d.Status != expected[i].Status || d.Attempts != 0 {
				t.Errorf("delivery %d is %+v, want %+v", i, d, expected[i])
			}
		}
	})
	t.Run("ToNobodyIsStored", func(t *testing.T) {
		t.Parallel()
		a := b.request(t, "POST", "/v1/events", submitBody(`"tenant":"nobody"`, `1`))
		if a.status != http.StatusAccepted || !bytes.Contains(a.body, []byte(`"deliveries":[]`)) {
			t.Fatalf("answer is %d %s", a.status, a.body)
		}
		var got acceptedEvent
		a.decode(t, &got)
		if _, _, jobs := stored(t, b, got.ID); jobs != 0 {
			t.Errorf("%d jobs", jobs)
		}
	})
	t.Run("KeepsTimestampAndMetadata", func(t *testing.T) {
		t.Parallel()
		body := `{"tenant":"meta","type":"a","payload":1,"timestamp":"2026-01-02T03:04:05.000006+01:00","metadata":{"k":"v","e":""}}`
		got, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body)
		view, _ := want[webhook.EventView](t, b, http.StatusOK, "GET", "/v1/events/"+got.ID.String(), "")
		if view.Timestamp == nil || !view.Timestamp.Equal(time.Date(2026, 1, 2, 2, 4, 5, 6000, time.UTC)) || fmt.Sprint(view.Metadata) != "map[e: k:v]" {
			t.Errorf("event is %+v", view)
		}
	})
	t.Run("KeepsPayloadsByteForByte", func(t *testing.T) {
		t.Parallel()
		w := newWebhook(t, b, "bytes", "")
		for _, payload := range append(slices.Clone(nasty), "\"\xff\xfe\"") {
			for _, target := range []string{`"tenant":"bytes"`, `"webhook_id":"` + w.ID.String() + `"`} {
				got, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(target, payload))
				if kept, _, _ := stored(t, b, got.ID); string(kept) != payload {
					t.Errorf("payload %q is stored as %q", payload, kept)
				}
				a := b.request(t, "GET", "/v1/events/"+got.ID.String(), "")
				var view struct {
					Payload json.RawMessage `json:"payload"`
					Base64  []byte          `json:"payload_base64"`
				}
				a.decode(t, &view)
				shown := string(view.Payload)
				if view.Base64 != nil {
					shown = string(view.Base64)
				}
				if shown != payload {
					t.Errorf("payload %q is shown as %q", payload, shown)
				}
			}
		}
	})
	t.Run("SeesChangesMadeJustBefore", func(t *testing.T) {
		t.Parallel()
		for range 10 {
			tenant := `"tenant":"fresh"`
			w := newWebhook(t, b, "fresh", "")
			path := "/v1/webhooks/" + w.ID.String()
			direct := `"webhook_id":"` + w.ID.String() + `"`
			got, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(tenant, `1`))
			if len(got.Deliveries) != 1 {
				t.Fatalf("after creation %d deliveries", len(got.Deliveries))
			}
			want[any](t, b, http.StatusOK, "POST", path+"/pause", "")
			for _, target := range []string{tenant, direct} {
				got, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(target, `1`))
				if len(got.Deliveries) != 1 || got.Deliveries[0].Status != webhook.StatusParked {
					t.Fatalf("after the pause deliveries of %s are %v", target, got.Deliveries)
				}
			}
			want[any](t, b, http.StatusOK, "PATCH", path, `{"event_types":["user.*"],"status":"active"}`)
			refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/events", submitBody(direct, `1`))
			want[any](t, b, http.StatusNoContent, "DELETE", path, "")
			refused(t, b, http.StatusNotFound, "not-found", "POST", "/v1/events", submitBody(direct, `1`))
		}
	})
	t.Run("RefusesAnUnknownWebhook", func(t *testing.T) {
		t.Parallel()
		id := webhook.NewID(time.Now()).String()
		p, _ := refused(t, b, http.StatusNotFound, "not-found", "POST", "/v1/events", submitBody(`"webhook_id":"`+id+`"`, `1`))
		if !strings.Contains(p.Detail, id) {
			t.Errorf("%q does not name the webhook", p.Detail)
		}
		for _, id := range []string{id, "nonsense", strings.Repeat("x", 9000)} {
			refused(t, b, http.StatusNotFound, "not-found", "POST", "/v1/webhooks/"+id+"/events?type=a", `1`)
		}
	})
	t.Run("RefusesATypeThatTheWebhookDoesNotTake", func(t *testing.T) {
		t.Parallel()
		w := newWebhook(t, b, "types", `,"event_types":["user.*"]`)
		p, _ := refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/events", submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`))
		if !slices.Equal(p.fields(), []string{"/type: is not among the webhook's event_types"}) {
			t.Errorf("errors are %q", p.fields())
		}
		a := b.request(t, "POST", "/v1/webhooks/"+w.ID.String()+"/events?type=order.paid", `1`)
		a.problem(t, http.StatusUnprocessableEntity, "invalid-request")
		if !bytes.Contains(a.body, []byte(`"errors":[{"parameter":"type","detail":"is not among the webhook's event_types"}]`)) {
			t.Errorf("answer is %s", a.body)
		}
	})
	t.Run("RefusesUnknownQueryParameters", func(t *testing.T) {
		t.Parallel()
		refused(t, b, http.StatusBadRequest, "malformed-request", "POST", "/v1/events?type=a", submitBody(`"tenant":"acme"`, `1`))
		refused(t, b, http.StatusBadRequest, "malformed-request", "POST", "/v1/webhooks/"+webhook.ID{}.String()+"/events?type=a&tenant=b", `1`)
	})
}

func TestSubmitRaw(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWebhook(t, b, "raw", "")
	path := "/v1/webhooks/" + w.ID.String() + "/events"

	t.Run("KeepsAnyBodyAndItsContentType", func(t *testing.T) {
		t.Parallel()
		for _, tt := range []struct{ contentType, body string }{
			{"text/xml; charset=utf-8", "<a>\r\n</a>"},
			{"application/json", " {\"a\": 1, \"a\": 2}\n"},
			{"application/json", "not json"},
			{"image/png", "\x89PNG\r\n\x1a\n\x00\xff"},
			{"", "no type"},
			{"text/plain", ""},
			{"x", "x"},
			{"multipart/form-data; boundary=\"a;b\"", "--a;b--"},
		} {
			got, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", path+"?type=a.b", tt.body, "Content-Type", tt.contentType)
			if got.Tenant != "raw" || got.Type != "a.b" || !slices.Equal(got.Deliveries, []acceptedDelivery{{w.ID, webhook.StatusPending}}) {
				t.Errorf("answer is %+v", got)
			}
			expected := tt.contentType
			if expected == "" {
				expected = "application/octet-stream"
			}
			view, _ := want[webhook.EventView](t, b, http.StatusOK, "GET", "/v1/events/"+got.ID.String(), "")
			if payload, _, jobs := stored(t, b, got.ID); string(payload) != tt.body || view.ContentType != expected || jobs != 1 {
				t.Errorf("%q as %q is stored as %q as %q with %d jobs", tt.body, expected, payload, view.ContentType, jobs)
			}
		}
	})
	t.Run("TakesABodyOfUnknownLength", func(t *testing.T) {
		t.Parallel()
		body := strings.Repeat("0123456789", 1999)
		for _, tt := range []struct {
			body   string
			status int
		}{{body, http.StatusAccepted}, {body + body, http.StatusRequestEntityTooLarge}} {
			// A reader of a type that net/http does not know has no length.
			r, err := http.NewRequestWithContext(t.Context(), "POST", b.http.URL+path+"?type=a", struct{ *strings.Reader }{strings.NewReader(tt.body)})
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+testKey)
			response, err := b.http.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != tt.status {
				t.Errorf("%d bytes get %d, want %d", len(tt.body), response.StatusCode, tt.status)
			}
		}
	})
	t.Run("NeedsATypeAndSaneParametersAndContentType", func(t *testing.T) {
		t.Parallel()
		for query, field := range map[string]string{
			"":                                  "type: is required",
			"?type=a..b":                        "type: must be dot-delimited segments, none of them empty",
			"?type=a%20b":                       "type: must be dot-delimited segments of letters, digits, '_' and '-'",
			"?type=" + strings.Repeat("a", 257): "type: must be at most 256 bytes long",
			"?type=a&ordering_key=a%0Ab":        "ordering_key: must not contain control characters",
			"?type=a&ordering_key=" + strings.Repeat("a", 257): "ordering_key: must be at most 256 bytes long",
		} {
			p, _ := refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", path+query, "x")
			if !slices.Equal(p.fields(), []string{field}) {
				t.Errorf("errors of %q are %q, want %q", query, p.fields(), field)
			}
		}
		for query, field := range map[string]string{"?type=": "type: must not be empty", "?type=a&ordering_key=": "ordering_key: must not be empty"} {
			p, _ := refused(t, b, http.StatusBadRequest, "malformed-request", "POST", path+query, "x")
			if !slices.Equal(p.fields(), []string{field}) {
				t.Errorf("errors of %q are %q, want %q", query, p.fields(), field)
			}
		}
		for _, contentType := range []string{strings.Repeat("a", 257), "text/é"} {
			refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", path+"?type=a", "x", "Content-Type", contentType)
		}
	})
}

func TestIdempotency(t *testing.T) {
	t.Parallel()
	servers := setupPair(t, options{})
	b, other := servers[0], servers[1]

	t.Run("TheSameKeyAndBodyGetTheFirstAnswerAgain", func(t *testing.T) {
		t.Parallel()
		for _, tenant := range []string{"again-1", "again-2"} { // a key belongs to its tenant
			newWebhook(t, b, tenant, "")
			body := submitBody(`"tenant":"`+tenant+`"`, `{ "a": 1 }`)
			first := b.request(t, "POST", "/v1/events", body, "Idempotency-Key", "k-1")
			newWebhook(t, b, tenant, "") // the targets are those of the first time
			second := other.request(t, "POST", "/v1/events", body, "Idempotency-Key", "k-1")
			if first.status != http.StatusAccepted || second.status != http.StatusAccepted || !bytes.Equal(first.body, second.body) {
				t.Errorf("answers are %d %s and %d %s", first.status, first.body, second.status, second.body)
			}
			if first.header.Get("Idempotency-Replayed") != "" || second.header.Get("Idempotency-Replayed") != "true" ||
				first.header.Get("Location") != second.header.Get("Location") {
				t.Errorf("headers are %v and %v", first.header, second.header)
			}
		}
	})
	t.Run("TheSameKeyAndAnotherSubmissionAreRefused", func(t *testing.T) {
		t.Parallel()
		w := newWebhook(t, b, "differs", "")
		first := `{"webhook_id":"` + w.ID.String() + `","type":"a","payload":1}`
		want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", first, "Idempotency-Key", "k")
		for _, body := range []string{
			strings.Replace(first, `:1}`, `:2}`, 1),
			strings.Replace(first, `"a"`, `"b"`, 1),
			strings.Replace(first, `:1}`, `:1,"metadata":{"k":"v"}}`, 1),
			strings.Replace(first, `:1}`, `:1,"timestamp":"2026-01-01T00:00:00Z"}`, 1),
			`{"tenant":"differs","type":"a","payload":1}`,
		} {
			for _, b := range servers {
				refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/events", body, "Idempotency-Key", "k")
			}
		}
		refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/webhooks/"+w.ID.String()+"/events?type=a", "1",
			"Idempotency-Key", "k", "Content-Type", "application/json")
		// Other spellings of the same are the same.
		_, header := want[acceptedEvent](t, other, http.StatusAccepted, "POST", "/v1/events",
			"{\"payload\" :\n1 , \"type\":\"\\u0061\",\"webhook_id\":\""+strings.ToUpper(w.ID.String())+"\",\"metadata\":{}}", "Idempotency-Key", "k")
		if header.Get("Idempotency-Replayed") != "true" {
			t.Error("another spelling is taken for another submission")
		}
	})
	t.Run("ConcurrentOnesStoreOneEvent", func(t *testing.T) {
		t.Parallel()
		newWebhook(t, b, "crowd", "")
		var mu sync.Mutex
		ids, replayed := map[webhook.ID]bool{}, 0
		var wg sync.WaitGroup
		const crowd = 20
		for i := range crowd {
			wg.Go(func() {
				a := &answer{status: http.StatusConflict} // while the other one is storing it
				for a.status == http.StatusConflict {
					a = servers[i%2].request(t, "POST", "/v1/events", submitBody(`"tenant":"crowd"`, `1`), "Idempotency-Key", "k")
				}
				var got acceptedEvent
				if err := json.Unmarshal(a.body, &got); err != nil || a.status != http.StatusAccepted {
					t.Errorf("answer is %d %s", a.status, a.body)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				ids[got.ID] = true
				if a.header.Get("Idempotency-Replayed") == "true" {
					replayed++
				}
			})
		}
		wg.Wait()
		if len(ids) != 1 || replayed != crowd-1 {
			t.Errorf("%d events, %d answers replayed", len(ids), replayed)
		}
	})
	t.Run("RefusesMalformedKeys", func(t *testing.T) {
		t.Parallel()
		for _, key := range []string{strings.Repeat("k", 256), "with space", "é"} {
			refused(t, b, http.StatusBadRequest, "malformed-request", "POST", "/v1/events", submitBody(`"tenant":"a"`, `1`), "Idempotency-Key", key)
		}
		for _, values := range [][]string{{""}, {"a", "b"}} {
			if _, err := idempotencyKey(http.Header{"Idempotency-Key": values}, "", &submission{}); webhook.ErrorCode(err) != webhook.CodeMalformed {
				t.Errorf("%q: %v", values, err)
			}
		}
		want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(`"tenant":"a"`, `1`), "Idempotency-Key", strings.Repeat("~", 255))
	})
	t.Run("HoldsWhateverIsSubmittedAtTheSameTime", func(t *testing.T) {
		t.Parallel()
		var round atomic.Int64
		rapid.Check(t, func(rt *rapid.T) {
			testIdempotency(t, rt, servers, fmt.Sprint("round-", round.Add(1), "-"))
		})
	})
}

// testIdempotency submits some of a few events under some of a few keys, all at
// the same time and by every way in, and compares what is stored with the answers.
func testIdempotency(t *testing.T, rt *rapid.T, servers [2]*testBundle, prefix string) {
	type name struct{ tenant, key string }
	type submitted struct {
		name
		payload string
		batch   bool
		server  int
	}
	type outcome struct {
		submitted
		status   int
		id       webhook.ID
		replayed bool
	}
	draws := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) submitted {
		return submitted{
			name{prefix + rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "tenant"), rapid.SampledFrom([]string{"k", "l"}).Draw(rt, "key")},
			rapid.SampledFrom([]string{"1", "2"}).Draw(rt, "payload"), rapid.Bool().Draw(rt, "batch"), rapid.IntRange(0, 1).Draw(rt, "server"),
		}
	}), 1, 12).Draw(rt, "submissions")
	outcomes := make([]outcome, len(draws))
	var callers sync.WaitGroup
	for i, s := range draws {
		callers.Go(func() {
			body := `{"tenant":"` + s.tenant + `","type":"a","payload":` + s.payload + `,"idempotency_key":"` + s.key + `"}`
			o := outcome{submitted: s, status: http.StatusConflict}
			for o.status == http.StatusConflict {
				b := servers[s.server]
				if !s.batch {
					a := b.request(t, "POST", "/v1/events", strings.Replace(body, `,"idempotency_key":"`+s.key+`"`, "", 1), "Idempotency-Key", s.key)
					var got acceptedEvent
					a.decode(t, &got)
					o.status, o.id, o.replayed = a.status, got.ID, a.header.Get("Idempotency-Replayed") == "true"
					continue
				}
				got, _ := want[struct {
					Results []struct {
						Status   int        `json:"status"`
						ID       webhook.ID `json:"id"`
						Replayed bool       `json:"idempotency_replayed"`
					} `json:"results"`
				}](t, b, http.StatusOK, "POST", "/v1/events/batch", "["+body+"]")
				o.status, o.id, o.replayed = got.Results[0].Status, got.Results[0].ID, got.Results[0].Replayed
			}
			outcomes[i] = o
		})
	}
	callers.Wait()

	firsts := map[name]outcome{}
	for _, o := range outcomes {
		if o.status == http.StatusAccepted && !o.replayed {
			if before, twice := firsts[o.name]; twice {
				rt.Fatalf("%v was accepted as %s and as %s", o.name, before.id, o.id)
			}
			firsts[o.name] = o
		}
	}
	for _, o := range outcomes {
		first, accepted := firsts[o.name]
		switch {
		case !accepted:
			rt.Fatalf("%+v, and none was accepted first", o)
		case o.status == http.StatusAccepted && (o.payload != first.payload || o.id != first.id),
			o.status == http.StatusUnprocessableEntity && o.payload == first.payload,
			o.status != http.StatusAccepted && o.status != http.StatusUnprocessableEntity:
			rt.Fatalf("%+v, where the first was %+v", o, first)
		}
	}
	var stored int
	if err := servers[0].db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.events WHERE tenant LIKE $1`, prefix+"_").Scan(&stored); err != nil || stored != len(firsts) {
		rt.Fatalf("%d events are stored of %d accepted, %v", stored, len(firsts), err)
	}
}

func TestAFullBufferRefusesAtOnce(t *testing.T) {
	t.Parallel()
	b := setupWith(t, options{key: testKey, bufferEvents: 1, noCommitters: true, requestTimeout: time.Second})
	body := submitBody(`"tenant":"acme"`, `1`)
	waiting := make(chan *answer, 1)
	go func() { waiting <- b.request(t, "POST", "/v1/events", body) }()
	for events := 0; events == 0; {
		events, _ = b.server.intake.Depth()
	}
	began := time.Now()
	p, header := refused(t, b, http.StatusServiceUnavailable, "unavailable", "POST", "/v1/events", body)
	if took := time.Since(began); header.Get("Retry-After") != "1" || took > 500*time.Millisecond || p.Detail == "" {
		t.Errorf("after %v: Retry-After %q, %q", took, header.Get("Retry-After"), p.Detail)
	}
	if a := b.request(t, "GET", "/readyz", ""); a.status != http.StatusServiceUnavailable || bytes.Contains(a.body, []byte(`"buffer":"ok"`)) {
		t.Errorf("/readyz answers %d %s", a.status, a.body)
	}
	// The one that waits is answered by its deadline.
	a := <-waiting
	a.problem(t, http.StatusServiceUnavailable, "unavailable")
	var events int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.events`).Scan(&events); err != nil || events != 0 {
		t.Errorf("%d events of refused requests are stored, %v", events, err)
	}
}

func TestParseSubmission(t *testing.T) {
	t.Parallel()
	id := webhook.NewID(time.Now()).String()
	tests := map[string]struct {
		body string
		code webhook.Code
		want []string
	}{
		"NoTarget": {`{"type":"a","payload":1}`, webhook.CodeInvalid, []string{
			"/webhook_id: is required, unless there is a tenant", "/tenant: is required, unless there is a webhook_id",
		}},
		"TwoTargets": {`{"webhook_id":"` + id + `","tenant":"t","type":"a","payload":1}`, webhook.CodeInvalid, []string{
			"/webhook_id: cannot be combined with tenant: give one of them", "/tenant: cannot be combined with webhook_id: give one of them",
		}},
		"NoTypeAndNoPayload": {`{"tenant":"t"}`, webhook.CodeInvalid, []string{"/type: is required", "/payload: is required"}},
		"EverythingWrong": {
			`{"webhook_id":"x","type":"a b","timestamp":"soon","metadata":{"a":1,"` + strings.Repeat("k", 65) + `":"v"}}`, webhook.CodeInvalid,
			[]string{
				"/timestamp: must be a moment as in RFC 3339, for example 2026-01-31T12:00:00Z",
				"/metadata/a: must be a string, not a number", "/webhook_id: must be a webhook's id",
				"/type: must be dot-delimited segments of letters, digits, '_' and '-'", "/payload: is required",
				"/metadata/" + strings.Repeat("k", 65) + ": its name must be at most 64 bytes long",
			},
		},
		"WrongTypes": {`{"tenant":1,"type":[],"payload":1,"metadata":"x"}`, webhook.CodeInvalid, []string{
			"/tenant: must be a string, not a number", "/type: must be a string, not an array", "/metadata: must be an object of strings, not a string",
		}},
		"AFieldOfLaterVersions":      {`{"tenant":"t","type":"a","payload":1,"deliver_after":"k"}`, webhook.CodeMalformed, []string{"/deliver_after: is not a known field"}},
		"AnOrderingKey":              {`{"tenant":"t","type":"a","payload":1,"ordering_key":"k"}`, "", nil},
		"AnOrderingKeyAsNull":        {`{"tenant":"t","type":"a","payload":1,"ordering_key":null}`, "", nil},
		"AnEmptyOrderingKey":         {`{"tenant":"t","type":"a","payload":1,"ordering_key":""}`, webhook.CodeInvalid, []string{"/ordering_key: must not be empty"}},
		"AnOrderingKeyThatIsANumber": {`{"tenant":"t","type":"a","payload":1,"ordering_key":7}`, webhook.CodeInvalid, []string{"/ordering_key: must be a string, not a number"}},
		"APayloadGivenTwice":         {`{"tenant":"t","type":"a","payload":1,"payload":1}`, webhook.CodeMalformed, []string{"/payload: is given more than once"}},
		"ANULInATenant":              {`{"tenant":"\u0000","type":"a","payload":1}`, webhook.CodeInvalid, []string{"/tenant: must not contain control characters"}},
		"ANULInMetadata":             {`{"tenant":"t","type":"a","payload":1,"metadata":{"a":"\u0000"}}`, webhook.CodeInvalid, []string{"/metadata/a: must not contain control characters"}},
		"AnOptionalFieldAsNull":      {`{"tenant":"t","webhook_id":null,"type":"a","payload":null,"timestamp":null,"metadata":null}`, "", nil},
		"ARequiredFieldAsNull":       {`{"tenant":"t","type":null,"payload":1}`, webhook.CodeInvalid, []string{"/type: is required"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := parseSubmission([]byte(tt.body))
			var e *webhook.Error
			var got []string
			if errors.As(err, &e) {
				for _, f := range e.Fields {
					got = append(got, f.Pointer+": "+f.Detail)
				}
			}
			if webhook.ErrorCode(err) != tt.code || !slices.Equal(got, tt.want) {
				t.Errorf("parseSubmission() = %v\nfields %q\nwant code %q and %q", err, got, tt.code, tt.want)
			}
		})
	}
}

// FuzzParseSubmission: whatever is sent, it is refused as the caller's fault, or
// it obeys the rules and its payload is a part of the body.
func FuzzParseSubmission(f *testing.F) {
	for _, payload := range nasty {
		f.Add([]byte(submitBody(`"tenant":"t"`, payload)))
	}
	f.Add([]byte(`{"webhook_id":"0190c0de-0000-7000-8000-000000000000","type":"a","payload":"` + "\xff" + `","timestamp":"2026-01-31T12:00:00Z","metadata":{"a":"b"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		sub, err := parseSubmission(body)
		if err != nil {
			if code := webhook.ErrorCode(err); code != webhook.CodeMalformed && code != webhook.CodeInvalid {
				t.Fatalf("parseSubmission() = %v", err)
			}
			return
		}
		if !json.Valid(sub.payload) || !bytes.Contains(body, sub.payload) {
			t.Fatalf("payload %q is not from the body", sub.payload)
		}
		if webhook.CheckEventType(sub.eventType) != "" || (sub.way == wayFanOut) != sub.webhookID.IsZero() && sub.tenant != "" ||
			len(webhook.CheckMetadata("", sub.metadata)) != 0 {
			t.Fatalf("accepted %+v", sub)
		}
		sub.fingerprint()
	})
}

func TestFingerprintsAreEqualOnlyForEqualSubmissions(t *testing.T) {
	t.Parallel()
	text := rapid.StringOfN(rapid.SampledFrom([]rune("ab\x00\x01")), 0, 3, -1)
	draw := rapid.Custom(func(t *rapid.T) *submission {
		s := &submission{
			way:         rapid.SampledFrom([]way{wayDirect, wayFanOut, wayRaw}).Draw(t, "way"),
			tenant:      text.Draw(t, "tenant"),
			eventType:   text.Draw(t, "type"),
			contentType: text.Draw(t, "content type"),
			payload:     []byte(text.Draw(t, "payload")),
			metadata:    rapid.MapOfN(text, text, 0, 2).Draw(t, "metadata"),
		}
		if rapid.Bool().Draw(t, "has time") {
			at := time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "time")), 0)
			s.occurredAt = &at
		}
		return s
	})
	describe := func(s *submission) string {
		return fmt.Sprintf("%q %q %q %q %q %q %v", s.way, s.tenant, s.eventType, s.contentType, s.payload, s.metadata, s.occurredAt)
	}
	seen := map[[sha256.Size]byte]string{}
	rapid.Check(t, func(t *rapid.T) {
		s := draw.Draw(t, "submission")
		print := s.fingerprint()
		if other, found := seen[print]; found && other != describe(s) {
			t.Fatalf("%s and %s have one fingerprint", other, describe(s))
		}
		seen[print] = describe(s)
		again := *s
		if s.occurredAt != nil {
			elsewhere := s.occurredAt.In(time.FixedZone("", 3600))
			again.occurredAt = &elsewhere
		}
		if again.fingerprint() != print {
			t.Fatalf("%s has two fingerprints", describe(s))
		}
	})
}

// BenchmarkSubmit is the whole way of a 1 KiB event, client and Postgres
// included, at 64 requests at a time.
func BenchmarkSubmit(b *testing.B) {
	bundle := setupWith(b, options{key: testKey, quiet: true})
	bundle.http.Client().Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	w := newWebhook(b, bundle, "bench", "")
	body := submitBody(`"webhook_id":"`+w.ID.String()+`"`, `{"data":"`+strings.Repeat("x", 1024)+`"}`)
	b.SetParallelism(64 / runtime.GOMAXPROCS(0))
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if a := bundle.request(b, "POST", "/v1/events", body); a.status != http.StatusAccepted {
				b.Errorf("answer is %d %s", a.status, a.body)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
