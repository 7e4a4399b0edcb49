package ingest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// batchView is a batch's answer as clients read it.
type batchView struct {
	Results []struct {
		Status int `json:"status"`
		acceptedFields
		Replayed   bool           `json:"idempotency_replayed"`
		RetryAfter int            `json:"retry_after_seconds"`
		Error      *problemAnswer `json:"error"`
	} `json:"results"`
}

type acceptedFields struct {
	ID         webhook.ID         `json:"id"`
	Tenant     string             `json:"tenant"`
	Type       string             `json:"type"`
	CreatedAt  string             `json:"created_at"`
	Deliveries []acceptedDelivery `json:"deliveries"`
}

const (
	batchPath = "/v1/events/batch"
	ndjson    = "application/x-ndjson"
)

// statuses are the results' statuses, those of replays negative.
func (v *batchView) statuses() []int {
	all := []int{}
	for _, r := range v.Results {
		status := r.Status
		if r.Replayed {
			status = -status
		}
		all = append(all, status)
	}
	return all
}

func batchOf(t testing.TB, b *testBundle, contentType string, items ...string) string {
	t.Helper()
	if contentType == ndjson {
		return strings.Join(items, "\n")
	}
	return "[" + strings.Join(items, ",") + "]"
}

func submitItem(tenant, payload, more string) string {
	return `{"tenant":"` + tenant + `","type":"order.paid","payload":` + payload + more + `}`
}

// submitBatchAs submits items and expects these statuses.
func submitBatchAs(t testing.TB, b *testBundle, contentType string, items []string, statuses []int, header ...string) batchView {
	t.Helper()
	view, _ := want[batchView](t, b, http.StatusOK, "POST", batchPath, batchOf(t, b, contentType, items...),
		append([]string{"Content-Type", contentType}, header...)...)
	if !slices.Equal(view.statuses(), statuses) {
		t.Fatalf("statuses are %v, want %v", view.statuses(), statuses)
	}
	return view
}

func countEvents(t testing.TB, b *testBundle, tenant string) (n int) {
	t.Helper()
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.events WHERE tenant = $1`, tenant).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSubmitBatch(t *testing.T) {
	t.Parallel()
	b := setup(t)

	for _, contentType := range []string{"application/json", ndjson} {
		t.Run("StoresTheSoundEventsTogetherAndRefusesTheOthersAlone/"+contentType, func(t *testing.T) {
			t.Parallel()
			tenant := "mixed-" + contentType[len("application/"):]
			w := newWebhook(t, b, tenant, "")
			paused := newWebhook(t, b, tenant, `,"status":"paused"`)
			items := []string{
				submitItem(tenant, `1`, ""),
				`{"webhook_id":"` + w.ID.String() + `","type":"a","payload":2}`,
				`{"tenant":"` + tenant + `","type":"b c","payload":3,"metadata":{"k":1}}`,
				submitItem(tenant, `4`, `,"unknown":1`),
				`{"webhook_id":"` + webhook.ID{1}.String() + `","type":"a","payload":5}`,
				`"no object"`,
				submitItem(tenant, `"`+strings.Repeat("x", 20_000)+`"`, ""),
				submitItem(tenant, strings.Repeat("[", 64)+strings.Repeat("]", 64), ""),
				submitItem(tenant, `9`, `,"idempotency_key":"with space"`),
				submitItem(tenant, `10`, ""),
			}
			view := submitBatchAs(t, b, contentType, items, []int{202, 202, 422, 400, 404, 400, 413, 422, 422, 202})
			pointers := map[int][]string{
				2: {"/metadata/k", "/type"}, 3: {"/unknown"}, 5: {""}, 8: {"/idempotency_key"},
			}
			for i, r := range view.Results {
				if r.Status == http.StatusAccepted {
					if r.Error != nil || r.CreatedAt == "" || r.Tenant != tenant || r.ID.IsZero() {
						t.Errorf("result %d is %+v", i, r)
					}
					continue
				}
				if r.Error == nil || r.Error.Status != r.Status || r.Error.RequestID == "" || r.Error.Title == "" || !r.ID.IsZero() {
					t.Fatalf("result %d is %+v", i, r)
				}
				if expected, listed := pointers[i]; listed {
					got := []string{}
					for _, f := range r.Error.Errors {
						got = append(got, f.Pointer)
					}
					for k := range expected {
						if contentType != ndjson {
							expected[k] = fmt.Sprintf("/%d%s", i, expected[k])
						}
					}
					if !slices.Equal(got, expected) {
						t.Errorf("result %d points at %q, want %q", i, got, expected)
					}
				}
			}
			if got := view.Results[0].Deliveries; !slices.Equal(got, []acceptedDelivery{
				{w.ID, webhook.StatusPending}, {paused.ID, webhook.StatusParked},
			}) {
				t.Errorf("deliveries are %v", got)
			}
			var transactions, jobs int
			if err := b.db.QueryRow(t.Context(), `
				SELECT count(DISTINCT j.created_at), count(*) FROM fairhook.river_job AS j
				JOIN fairhook.events AS e ON e.id = (j.args->>'event_id')::uuid WHERE e.tenant = $1`, tenant).Scan(&transactions, &jobs); err != nil {
				t.Fatal(err)
			}
			if n := countEvents(t, b, tenant); n != 3 || jobs != 5 || transactions != 1 {
				t.Errorf("%d events and %d jobs in %d transactions", n, jobs, transactions)
			}
		})
	}
	t.Run("KeepsPayloadsByteForByte", func(t *testing.T) {
		t.Parallel()
		for _, contentType := range []string{"application/json", ndjson, ""} {
			var payloads, items []string
			var statuses []int
			for _, payload := range append(slices.Clone(nasty), "\"\xff\xfe\"") {
				if contentType == ndjson && strings.Contains(payload, "\n") {
					continue // it is no line
				}
				payloads, statuses = append(payloads, payload), append(statuses, http.StatusAccepted)
				items = append(items, " "+submitItem("batch-bytes", " "+payload+" ", "")+" ")
			}
			view := submitBatchAs(t, b, contentType, items, statuses)
			for i, r := range view.Results {
				if kept, _, _ := stored(t, b, r.ID); string(kept) != payloads[i] {
					t.Errorf("payload %q is stored as %q", payloads[i], kept)
				}
			}
		}
	})
	t.Run("TakesAThousandEventsAndNoMore", func(t *testing.T) {
		t.Parallel()
		items := slices.Repeat([]string{submitItem("thousand", `1`, "")}, DefaultMaxBatchItems)
		submitBatchAs(t, b, ndjson, items, slices.Repeat([]int{http.StatusAccepted}, len(items)))
		for _, contentType := range []string{"application/json", ndjson} {
			p, _ := refused(t, b, http.StatusRequestEntityTooLarge, "too-large", "POST", batchPath,
				batchOf(t, b, contentType, append(items, items[0])...), "Content-Type", contentType)
			if !strings.Contains(p.Detail, "1000") {
				t.Errorf("%q does not name the limit", p.Detail)
			}
		}
		if n := countEvents(t, b, "thousand"); n != 1000 {
			t.Errorf("%d events", n)
		}
	})
	t.Run("SkipsBlankLines", func(t *testing.T) {
		t.Parallel()
		item := submitItem("blank", `1`, "")
		submitBatchAs(t, b, ndjson, []string{"", item, " \t\r", item + "\r", "{", "", ""}, []int{202, 202, 400})
	})
	t.Run("RefusesWhatIsNoBatch", func(t *testing.T) {
		t.Parallel()
		item := submitItem("none", `1`, "")
		for _, tt := range []struct {
			contentType, body string
			status            int
			code              string
		}{
			{"application/json", "", http.StatusBadRequest, "malformed-request"},
			{"application/json", item, http.StatusBadRequest, "malformed-request"},
			{"application/json", "[" + item + "," + item, http.StatusBadRequest, "malformed-request"},
			{"application/json", item + "\n" + item, http.StatusBadRequest, "malformed-request"},
			{"application/json", " [ ] ", http.StatusUnprocessableEntity, "invalid-request"},
			{ndjson, "\n \n", http.StatusUnprocessableEntity, "invalid-request"},
			{ndjson, "\n [\n" + submitItem("t", `1`, "") + "\n]", http.StatusBadRequest, "malformed-request"}, // of whose lines one is an event
			{ndjson, strings.Repeat(" ", DefaultMaxBatchBytes+1), http.StatusRequestEntityTooLarge, "too-large"},
		} {
			refused(t, b, tt.status, tt.code, "POST", batchPath, tt.body, "Content-Type", tt.contentType)
		}
		refused(t, b, http.StatusBadRequest, "malformed-request", "POST", batchPath+"?type=a", "["+item+"]")
		refused(t, b, http.StatusBadRequest, "malformed-request", "POST", batchPath, "["+item+"]", "Idempotency-Key", "with space")
		refused(t, b, http.StatusUnsupportedMediaType, "unsupported-media-type", "POST", batchPath, "["+item+"]", "Content-Encoding", "gzip")
		if n := countEvents(t, b, "none"); n != 0 {
			t.Errorf("%d events", n)
		}
	})
	t.Run("RefusesMoreDeliveriesThanFitIntoOneTransaction", func(t *testing.T) {
		t.Parallel()
		newWebhook(t, b, "wide", "")
		if _, err := b.db.Exec(t.Context(), `
			INSERT INTO fairhook.webhooks
			SELECT (jsonb_populate_record(w, jsonb_build_object('id', gen_random_uuid()))).*
			FROM fairhook.webhooks AS w, generate_series(1, 59) WHERE tenant = 'wide'`); err != nil {
			t.Fatal(err)
		}
		items := slices.Repeat([]string{submitItem("wide", `1`, "")}, 900)
		p, _ := refused(t, b, http.StatusRequestEntityTooLarge, "too-large", "POST", batchPath, batchOf(t, b, "", items...))
		if !strings.Contains(p.Detail, "50000") || countEvents(t, b, "wide") != 0 {
			t.Errorf("%q, %d events", p.Detail, countEvents(t, b, "wide"))
		}
	})
}

func TestBatchIdempotency(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := setupWith(t, options{key: testKey, pool: b.db})

	t.Run("AnItemsKeyIsThatOfASingleSubmission", func(t *testing.T) {
		t.Parallel()
		newWebhook(t, b, "keys", "")
		single := submitItem("keys", `{"n":1}`, "")
		first, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", single, "Idempotency-Key", "k")
		view := submitBatchAs(t, other, "application/json", []string{
			submitItem("keys", `{"n":1}`, `,"idempotency_key":"k"`),
			submitItem("keys", `{"n":2}`, `,"idempotency_key":"k"`),
			submitItem("keys", `{"n":3}`, `,"idempotency_key":"l"`),
			submitItem("keys", `{"n":3}`, `,"idempotency_key":"l"`),
			submitItem("keys", `{"n":4}`, `,"idempotency_key":"l"`),
			submitItem("keys", `{"n":3}`, `,"idempotency_key":null`),
		}, []int{-202, 422, 202, -202, 422, 202})
		if view.Results[0].ID != first.ID || view.Results[2].ID != view.Results[3].ID || len(view.Results[0].Deliveries) != 1 {
			t.Errorf("results are %+v", view.Results)
		}
		if n := countEvents(t, b, "keys"); n != 3 {
			t.Errorf("%d events", n)
		}
	})
	t.Run("ARequestsKeyIsGoodForItsItems", func(t *testing.T) {
		t.Parallel()
		items := []string{submitItem("request", `1`, ""), submitItem("request", `1`, `,"idempotency_key":"own"`), submitItem("request", `1`, "")}
		first := submitBatchAs(t, b, ndjson, items, []int{202, 202, 202}, "Idempotency-Key", "k")
		again := submitBatchAs(t, other, "application/json", items, []int{-202, -202, -202}, "Idempotency-Key", "k")
		for i := range items {
			if first.Results[i].ID != again.Results[i].ID {
				t.Errorf("item %d is %s and %s", i, first.Results[i].ID, again.Results[i].ID)
			}
		}
		submitBatchAs(t, b, ndjson, []string{submitItem("request", `2`, ""), items[1], items[2]}, []int{422, -202, -202}, "Idempotency-Key", "k")
		submitBatchAs(t, b, ndjson, items, []int{202, -202, 202}, "Idempotency-Key", "k2")
		// It is another key than that of a single submission.
		want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitItem("request", `7`, ""), "Idempotency-Key", "k")
		if n := countEvents(t, b, "request"); n != 6 {
			t.Errorf("%d events", n)
		}
	})
	t.Run("TheSameBatchThroughTwoServersIsStoredOnce", func(t *testing.T) {
		t.Parallel()
		const events = 40
		var items []string
		for i := range events {
			items = append(items, submitItem("twice", fmt.Sprint(i), fmt.Sprintf(`,"idempotency_key":"k%d"`, i)))
		}
		backwards := slices.Clone(items)
		slices.Reverse(backwards)
		// A key whose transaction is open elsewhere is a conflict, to be tried again.
		submitUntilStored := func(b *testBundle, left []string) {
			for len(left) > 0 {
				a := b.request(t, "POST", batchPath, batchOf(t, b, ndjson, left...), "Content-Type", ndjson)
				if a.status != http.StatusOK {
					t.Errorf("answer is %d %s", a.status, a.body)
					return
				}
				var view batchView
				if err := json.Unmarshal(a.body, &view); err != nil || len(view.Results) != len(left) {
					t.Errorf("answer is %s", a.body)
					return
				}
				var again []string
				for i, r := range view.Results {
					switch r.Status {
					case http.StatusAccepted:
					case http.StatusConflict:
						again = append(again, left[i])
						if r.RetryAfter == 0 {
							t.Errorf("a conflict says nothing about when to try again: %s", a.body)
						}
					default:
						t.Errorf("result %d is %d", i, r.Status)
					}
				}
				left = again
			}
		}
		var running sync.WaitGroup
		for range 3 {
			running.Go(func() { submitUntilStored(b, items) })
			running.Go(func() { submitUntilStored(other, backwards) })
		}
		running.Wait()
		if n := countEvents(t, b, "twice"); n != events {
			t.Errorf("%d events, want %d", n, events)
		}
	})
}

func TestABatchIsRefusedWholeWhenTheBufferIsFull(t *testing.T) {
	t.Parallel()
	b := setupWith(t, options{key: testKey, bufferEvents: 3, noCommitters: true, requestTimeout: 2 * time.Second})
	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		b.request(t, "POST", "/v1/events", submitItem("acme", `1`, ""))
	}()
	for events := 0; events == 0; {
		events, _ = b.server.intake.Depth()
	}
	items := slices.Repeat([]string{submitItem("acme", `1`, "")}, 3)
	_, header := refused(t, b, http.StatusServiceUnavailable, "unavailable", "POST", batchPath, batchOf(t, b, "", append(items, `{}`)...))
	if header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After is %q", header.Get("Retry-After"))
	}
	// A batch without a sound event needs no room.
	submitBatchAs(t, b, ndjson, []string{`{}`, `{`}, []int{422, 400})
	if events, _ := b.server.intake.Depth(); events != 1 {
		t.Errorf("%d events in the buffer", events)
	}
	<-waiting
}

func TestBatchBodiesWaitForRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const bodies = 3
		gate := newBatchGate(100, bodies*100)
		e := echo.New()
		hold := make(chan struct{})
		try := func(length int64, wait bool) error {
			r := httptest.NewRequestWithContext(t.Context(), "POST", batchPath, http.NoBody)
			r.ContentLength = length
			return gate.middleware(func(echo.Context) error {
				if wait {
					<-hold
				}
				return nil
			})(e.NewContext(r, httptest.NewRecorder()))
		}
		var held sync.WaitGroup
		for range bodies {
			held.Go(func() {
				if err := try(-1, true); err != nil { // unknown: it may be as large as allowed
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if err := try(1, false); webhook.ErrorCode(err) != webhook.CodeUnavailable {
			t.Errorf("without room: %v", err)
		}
		late := make(chan error, 1)
		go func() { late <- try(1000, false) }() // is refused by its length, later
		synctest.Wait()
		close(hold)
		if err := <-late; err != nil {
			t.Errorf("once there is room: %v", err)
		}
		held.Wait()
	})
}

// FuzzParseBatch: whatever is sent, each item is refused as the caller's fault,
// or has a payload that is a part of the body.
func FuzzParseBatch(f *testing.F) {
	item := submitItem("t", `{"a":[1,"]"]}`, `,"idempotency_key":"k"`)
	for _, body := range []string{"[" + item + " , " + item + "]", item + "\n\n" + item, "[]", "[1,{},[]]", "{\n}\n[", `[{"payload":"` + "\xff" + `"}]`, "[" + item + "]x"} {
		f.Add([]byte(body), true)
		f.Add([]byte(body), false)
	}
	s := &Server{maxBatchItems: 5, maxBodyBytes: 1000, bounds: strictjson.Bounds{MaxDepth: 10, MaxKeys: 20}}
	f.Fuzz(func(t *testing.T, body []byte, lines bool) {
		contentType := ""
		if lines {
			contentType = ndjson
		}
		items, err := s.parseBatch(contentType, body)
		if err != nil {
			if code := webhook.ErrorCode(err); code != webhook.CodeMalformed && code != webhook.CodeInvalid && code != webhook.CodeTooLarge {
				t.Fatalf("parseBatch() = %v", err)
			}
			return
		}
		if len(items) == 0 || len(items) > s.maxBatchItems || !lines && !json.Valid(body) {
			t.Fatalf("%d items", len(items))
		}
		for i, item := range items {
			var own *webhook.Error
			if item.err != nil {
				if !errors.As(item.err, &own) {
					t.Fatalf("item %d: %v", i, item.err)
				}
				for _, field := range own.Fields {
					if !lines && !strings.HasPrefix(field.Pointer, fmt.Sprintf("/%d", i)) {
						t.Fatalf("item %d: error at %q", i, field.Pointer)
					}
				}
				continue
			}
			if !json.Valid(item.sub.payload) || !bytes.Contains(body, item.sub.payload) || item.key != "" && !isVisibleASCII(item.key, maxIdempotencyKeyLength) {
				t.Fatalf("item %d: %+v", i, item)
			}
		}
	})
}

// BenchmarkSubmitBatch is BenchmarkSubmit in batches of 100 events.
func BenchmarkSubmitBatch(b *testing.B) {
	const connections, events = 16, 100
	bundle := setupWith(b, options{key: testKey, quiet: true})
	bundle.http.Client().Transport.(*http.Transport).MaxIdleConnsPerHost = connections
	w := newWebhook(b, bundle, "bench", "")
	item := submitBody(`"webhook_id":"`+w.ID.String()+`"`, `{"data":"`+strings.Repeat("x", 1024)+`"}`)
	body := batchOf(b, bundle, ndjson, slices.Repeat([]string{item}, events)...)
	b.SetParallelism(connections / runtime.GOMAXPROCS(0))
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if a := bundle.request(b, "POST", batchPath, body, "Content-Type", ndjson); a.status != http.StatusOK {
				b.Errorf("answer is %d %s", a.status, a.body)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N*events)/b.Elapsed().Seconds(), "events/s")
}
