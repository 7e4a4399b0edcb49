package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// insertEvent stores an event, and a job for each of its webhooks.
func insertEvent(t *testing.T, b *testBundle, contentType *string, payload string, webhooks ...webhook.ID) webhook.ID {
	t.Helper()
	id := webhook.NewID(time.Now())
	if webhooks == nil {
		webhooks = []webhook.ID{}
	}
	events := make([]webhook.ID, len(webhooks))
	for i := range events {
		events[i] = id
	}
	_, err := b.db.Exec(t.Context(), `
		WITH accepted AS (
			INSERT INTO fairhook.events (id, tenant, type, payload, content_type, metadata, webhook_ids)
			VALUES ($1, 'acme', 'order.paid', $2, $3, '{"payload":"\"payload\":null"}', $4)
			RETURNING id, ordering_key
		) `+fairqueue.InsertSQL(5, 4),
		id, []byte(payload), contentType, webhooks, events)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func record(t *testing.T, b *testBundle, a webhook.Attempt) webhook.Attempt {
	t.Helper()
	a.Tenant, a.Instance = "acme", "test-1"
	if a.ID.IsZero() {
		a.ID = webhook.NewID(time.Now())
	}
	if a.StartedAt.IsZero() {
		a.StartedAt = time.Now().UTC().Truncate(time.Microsecond)
	}
	if err := postgres.RecordAttempts(t.Context(), b.db, []webhook.Attempt{a}, nil, nil); err != nil {
		t.Fatal(err)
	}
	return a
}

// setJob makes an event's job look as River leaves it. An empty state ends it.
func setJob(t *testing.T, b *testBundle, event, hook webhook.ID, state string, attempt int, due time.Time) {
	t.Helper()
	sql, args := `DELETE FROM fairhook.river_job WHERE unique_key = $1`, []any{slices.Concat(event[:], hook[:])}
	if state != "" {
		sql = `UPDATE fairhook.river_job SET state = $2::text::fairhook.river_job_state, attempt = $3::int, scheduled_at = $4,
			attempted_at = clock_timestamp(),
			metadata = jsonb_build_object('` + fairqueue.MetadataRequests + `', $3::int) WHERE unique_key = $1`
		args = append(args, state, attempt, due)
	}
	tag, err := b.db.Exec(t.Context(), sql, args...)
	if err != nil || tag.RowsAffected() != 1 {
		t.Fatalf("%d jobs are there, %v", tag.RowsAffected(), err)
	}
}

func TestGetEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("TellsWhereEachDeliveryStands", func(t *testing.T) {
		t.Parallel()
		names := []string{"pending", "delivering", "retrying", "delivered", "exhausted", "parked", "replayed", "removed", "going", "again"}
		hooks := map[string]webhook.ID{}
		var ids []webhook.ID
		for _, name := range names {
			w := create(t, b, `{"tenant":"acme","url":"https://example.com"}`)
			hooks[name] = w.ID
			ids = append(ids, w.ID)
		}
		event := insertEvent(t, b, nil, `{}`, ids...)
		due := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
		attempt := func(name string, number int, reason webhook.Reason, status webhook.Status, code int) {
			record(t, b, webhook.Attempt{EventID: event, WebhookID: hooks[name], Number: number, Reason: reason, Status: status, StatusCode: &code})
		}
		setJob(t, b, event, hooks["pending"], "available", 0, due)
		setJob(t, b, event, hooks["delivering"], "running", 1, due)
		attempt("retrying", 1, webhook.ReasonServerError, webhook.StatusRetrying, 500)
		setJob(t, b, event, hooks["retrying"], "retryable", 1, due)
		attempt("delivered", 1, webhook.ReasonTimeout, webhook.StatusRetrying, 0)
		attempt("delivered", 2, webhook.ReasonDelivered, webhook.StatusDelivered, 204)
		setJob(t, b, event, hooks["delivered"], "", 0, due)
		attempt("exhausted", 3, webhook.ReasonClientError, webhook.StatusExhausted, 404)
		setJob(t, b, event, hooks["exhausted"], "", 0, due)
		must[any](t, b, http.StatusOK, "POST", "/v1/webhooks/"+hooks["parked"].String()+"/pause", "")
		attempt("replayed", 1, webhook.ReasonDelivered, webhook.StatusDelivered, 200)
		setJob(t, b, event, hooks["replayed"], "scheduled", 0, due)
		setJob(t, b, event, hooks["removed"], "", 0, due)
		// The end is on record, and the job not gone yet.
		setJob(t, b, event, hooks["going"], "running", 0, due)
		attempt("going", 1, webhook.ReasonDelivered, webhook.StatusDelivered, 200)
		// A replay is being sent: the end on record is that of the time before.
		code := 200
		record(t, b, webhook.Attempt{
			ID: webhook.NewID(time.Now().Add(-time.Minute)), EventID: event, WebhookID: hooks["again"],
			Number: 1, Reason: webhook.ReasonDelivered, Status: webhook.StatusDelivered, StatusCode: &code,
		})
		setJob(t, b, event, hooks["again"], "running", 0, due)

		view, _ := must[webhook.EventView](t, b, http.StatusOK, "GET", "/v1/events/"+event.String(), "")
		var got []string
		for i, d := range view.Deliveries {
			if d.WebhookID != ids[i] {
				t.Errorf("delivery %d is to %s, want %s", i, d.WebhookID, ids[i])
			}
			line := fmt.Sprintf("%s: %s after %d", names[i], d.Status, d.Attempts)
			if d.Reason != nil {
				line += fmt.Sprintf(", %s %d", *d.Reason, *d.LastStatusCode)
			}
			if d.NextAttemptAt != nil {
				line += ", next"
				if !d.NextAttemptAt.Equal(due) {
					t.Errorf("%s: next attempt at %v, want %v", names[i], d.NextAttemptAt, due)
				}
			}
			got = append(got, line)
		}
		want := []string{
			"pending: pending after 0, next",
			"delivering: delivering after 1",
			"retrying: retrying after 1, server_error 500, next",
			"delivered: delivered after 2, delivered 204",
			"exhausted: exhausted after 3, client_error 404",
			"parked: parked after 0",
			"replayed: pending after 1, delivered 200, next",
			"removed: cancelled after 0",
			"going: delivered after 1, delivered 200",
			"again: delivering after 1, delivered 200",
		}
		if !slices.Equal(got, want) {
			t.Errorf("deliveries are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
	t.Run("ShowsDeliveriesThatWereAddedLater", func(t *testing.T) {
		t.Parallel()
		event := insertEvent(t, b, nil, `{}`)
		record(t, b, webhook.Attempt{EventID: event, WebhookID: webhook.ID{7}, Number: 1, Reason: webhook.ReasonDelivered, Status: webhook.StatusDelivered})
		view, _ := must[webhook.EventView](t, b, http.StatusOK, "GET", "/v1/events/"+event.String(), "")
		if len(view.Deliveries) != 1 || view.Deliveries[0].WebhookID != (webhook.ID{7}) {
			t.Errorf("deliveries are %+v", view.Deliveries)
		}
	})
	t.Run("ShowsAnEventThatWentNowhere", func(t *testing.T) {
		t.Parallel()
		event := insertEvent(t, b, nil, `{}`)
		recorder, err := b.call(t, "GET", "/v1/events/"+event.String(), "")
		want := fmt.Sprintf(`{"id":%q,"tenant":"acme","type":"order.paid","created_at":%q,"timestamp":null,`+
			`"metadata":{"payload":"\"payload\":null"},"ordering_key":null,"content_type":"application/json","payload":{},"deliveries":[]}`+"\n",
			event, event.Time().Format(time.RFC3339Nano))
		if err != nil || recorder.Code != http.StatusOK || recorder.Body.String() != want || recorder.Header().Get("Content-Type") != "application/json" {
			t.Errorf("answer is %d %s, %v\nwant %s", recorder.Code, recorder.Body, err, want)
		}
	})
	t.Run("ShowsAJSONPayloadByteForByte", func(t *testing.T) {
		t.Parallel()
		merge := "application/merge-patch+json; charset=utf-8"
		for _, payload := range []string{
			"{ \"b\" : 1,\n\t\"a\":2,\"b\":3 }", `1e400`, `"\u0000\ud800\/<>&"`, "9007199254740993", "null", "\"\u2028\"", " [ ] \n",
		} {
			for _, contentType := range []*string{nil, &merge} {
				event := insertEvent(t, b, contentType, payload)
				recorder, err := b.call(t, "GET", "/v1/events/"+event.String(), "")
				if err != nil || !strings.Contains(recorder.Body.String(), `"payload":`+payload+`,"deliveries":[]`) {
					t.Errorf("payload %q is shown as %s, %v", payload, recorder.Body, err)
				}
			}
		}
	})
	t.Run("ShowsAnyOtherPayloadInBase64", func(t *testing.T) {
		t.Parallel()
		text, json := "text/plain", "application/json"
		for _, payload := range []struct {
			contentType *string
			text, want  string
		}{
			{&text, "{}", "e30="}, {&json, "{", "ew=="}, {&json, "\"\xff\"", "Iv8i"}, {&json, "", ""}, {&text, "\x00", "AA=="},
		} {
			event := insertEvent(t, b, payload.contentType, payload.text)
			view, _ := must[webhook.EventView](t, b, http.StatusOK, "GET", "/v1/events/"+event.String(), "")
			if string(view.Payload) != "null" || view.PayloadBase64 == nil || *view.PayloadBase64 != payload.want {
				t.Errorf("payload %q is shown as %s and %v, want %s", payload.text, view.Payload, view.PayloadBase64, payload.want)
			}
		}
	})
	t.Run("SaysThatOneDoesNotExist", func(t *testing.T) {
		t.Parallel()
		for _, id := range []string{webhook.NewID(time.Now()).String(), "nonsense", strings.Repeat("x", 36), "00000000-0000-0000-0000-000000000000"} {
			refused(t, b, webhook.CodeNotFound, "GET", "/v1/events/"+id, "")
			refused(t, b, webhook.CodeNotFound, "GET", "/v1/events/"+id+"/attempts", "")
		}
	})
}

// TestADeliveryIsNeverNowhere reads an event while its deliveries end: their
// attempt is committed and then, separately, their job is gone.
func TestADeliveryIsNeverNowhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const rounds = 60
	hook := webhook.ID{1}
	for range rounds {
		event := insertEvent(t, b, nil, `{}`, hook)
		ended := make(chan error, 1)
		go func() {
			code := 200
			err := postgres.RecordAttempts(t.Context(), b.db, []webhook.Attempt{{
				ID: webhook.NewID(time.Now()), EventID: event, WebhookID: hook, Tenant: "acme", Number: 1, StartedAt: time.Now(),
				Reason: webhook.ReasonDelivered, Status: webhook.StatusDelivered, StatusCode: &code, Instance: "test-1",
			}}, nil, nil)
			if err == nil {
				_, err = b.db.Exec(t.Context(), `DELETE FROM fairhook.river_job WHERE unique_key = $1`, slices.Concat(event[:], hook[:]))
			}
			ended <- err
		}()
		for status := webhook.StatusPending; status != webhook.StatusDelivered; {
			view, _ := must[webhook.EventView](t, b, http.StatusOK, "GET", "/v1/events/"+event.String(), "")
			status = view.Deliveries[0].Status
			if status != webhook.StatusPending && status != webhook.StatusDelivered {
				t.Fatalf("a delivery that ends is shown as %s", status)
			}
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

func TestListAttempts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	event := insertEvent(t, b, nil, `{}`)
	one, two := webhook.NewID(time.Now()), webhook.NewID(time.Now())
	began := time.Now().UTC().Truncate(time.Microsecond)
	response := "<oops> & \u00e9"
	var want, wantOne []webhook.ID
	for i := range 5 {
		hook := one
		if i%2 == 1 {
			hook = two
		}
		a := record(t, b, webhook.Attempt{
			EventID: event, WebhookID: hook, Number: i/2 + 1, Reason: webhook.ReasonServerError, Status: webhook.StatusRetrying,
			StartedAt: began.Add(time.Duration(i/2) * time.Second), Response: &response,
		})
		want = append(want, a.ID)
		if hook == one {
			wantOne = append(wantOne, a.ID)
		}
	}
	path := "/v1/events/" + event.String() + "/attempts"
	read := func(t *testing.T, target string) (ids []webhook.ID) {
		t.Helper()
		for target != "" {
			list, header := must[listAnswer[webhook.Attempt]](t, b, http.StatusOK, "GET", target, "")
			for _, a := range list.Data {
				ids = append(ids, a.ID)
				if a.EventID != event || *a.Response != response || a.StartedAt.Before(began) {
					t.Errorf("attempt is %+v", a)
				}
			}
			next, found := strings.CutSuffix(header.Get("Link"), `>; rel="next"`)
			if found != (list.NextCursor != nil) {
				t.Errorf("link is %q, cursor %v", header.Get("Link"), list.NextCursor)
			}
			target = strings.TrimPrefix(next, "<")
			if !found {
				target = ""
			}
		}
		return ids
	}
	for query, want := range map[string][]webhook.ID{
		"":         want,
		"?limit=1": want,
		"?limit=2": want,
		"?webhook_id=" + one.String() + "&limit=2":     wantOne,
		"?webhook_id=" + webhook.ID{}.String():         nil,
		"?webhook_id=" + strings.ToUpper(one.String()): wantOne,
	} {
		if got := read(t, path+query); !slices.Equal(got, want) {
			t.Errorf("attempts%s are %v\nwant %v", query, got, want)
		}
	}
	for query, want := range map[string]string{
		"?webhook_id=x": "webhook_id: must be a webhook's id",
		"?cursor=x":     "cursor: must be a next_cursor from an earlier page of this list",
		"?cursor=" + url64("a\x7f2345678"+text16): "cursor: must be a next_cursor from an earlier page of this list",
		"?cursor=" + url64("w"+text16):            "cursor: must be a next_cursor from an earlier page of this list",
		"?limit=-1":                               "limit: must be a whole number between 1 and 1000",
		"?status=x":                               "status: is not a known parameter",
	} {
		if got := refused(t, b, webhook.CodeMalformed, "GET", path+query, ""); !slices.Equal(got, []string{want}) {
			t.Errorf("faults of %s are %q, want %q", query, got, want)
		}
	}
}

func TestReadsNeedADatabase(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := create(t, b, `{"tenant":"acme","url":"https://example.com"}`).ID
	var held []pgx.Tx
	for range b.db.Config().MaxConns {
		tx, err := b.db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, tx)
	}
	began := time.Now()
	_, err := b.call(t, "GET", "/v1/webhooks/"+id.String(), "")
	if took := time.Since(began); !postgres.Unavailable(err) || took > 2*time.Second {
		t.Errorf("without a free connection: %v after %v, want unavailable within a second", err, took)
	}
	for _, tx := range held {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	must[webhookAnswer](t, b, http.StatusOK, "GET", "/v1/webhooks/"+id.String(), "")
}
