package api_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestTestWebhook(t *testing.T) {
	t.Parallel()
	const create = `{"tenant":"acme","url":"http://127.0.0.1:1/"}`

	t.Run("AnswersWithWhatADispatcherMadeOfIt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w, _ := must[webhook.Webhook](t, b, http.StatusCreated, "POST", "/v1/webhooks", create)
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhooks SET status = 'disabled', disabled_reason = 'x'`); err != nil {
			t.Fatal(err)
		}
		dispatched := make(chan error, 1)
		go func() { dispatched <- dispatchTest(t, b) }()
		test, header := must[webhook.Test](t, b, http.StatusOK, "POST", "/v1/webhooks/"+w.ID.String()+"/test", "")
		if err := <-dispatched; err != nil {
			t.Fatal(err)
		}
		if test.Status != webhook.TestStatusDelivered || *test.StatusCode != 204 || test.FinishedAt == nil || test.WebhookState != webhook.StateActive {
			t.Errorf("the answer is %+v", test)
		}
		again, _ := must[webhook.Test](t, b, http.StatusOK, "GET", header.Get("Location"), "")
		if again.ID != test.ID || again.Status != test.Status {
			t.Errorf("it reads %+v afterwards", again)
		}
	})
	t.Run("AnswersWithoutWaitingForEverAndMakesOneAtATime", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w, _ := must[webhook.Webhook](t, b, http.StatusCreated, "POST", "/v1/webhooks", create)
		path := "/v1/webhooks/" + w.ID.String() + "/test"
		test, header := must[webhook.Test](t, b, http.StatusAccepted, "POST", path, "")
		if test.Status != webhook.TestStatusPending || test.Reason != nil || test.FinishedAt != nil {
			t.Errorf("the answer is %+v", test)
		}
		tooSoon := func() time.Duration {
			t.Helper()
			_, err := b.call(t, "POST", path, "")
			var limited *webhook.Error
			if !errors.As(err, &limited) || limited.Code != webhook.CodeRateLimited {
				t.Fatalf("another is answered with %v", err)
			}
			return limited.RetryAfter
		}
		if wait := tooSoon(); wait <= webhook.TestRest || wait > webhook.TestLost {
			t.Errorf("while one is under way the next is to wait %s", wait)
		}
		if err := dispatchTest(t, b); err != nil {
			t.Fatal(err)
		}
		if wait := tooSoon(); wait <= 0 || wait > webhook.TestRest {
			t.Errorf("after one the next is to wait %s", wait)
		}
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhook_tests SET requested_at = now() - interval '4 minutes', finished_at = NULL`); err != nil {
			t.Fatal(err)
		}
		if lost, _ := must[webhook.Test](t, b, http.StatusOK, "GET", header.Get("Location"), ""); lost.Status != webhook.TestStatusLost {
			t.Errorf("one that nobody ends is %s", lost.Status)
		}
		must[webhook.Test](t, b, http.StatusAccepted, "POST", path, "")
	})
	t.Run("DoesNotExistForWhatDoesNot", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w, _ := must[webhook.Webhook](t, b, http.StatusCreated, "POST", "/v1/webhooks", create)
		nothing := webhook.NewID(time.Now()).String()
		refused(t, b, webhook.CodeNotFound, "POST", "/v1/webhooks/"+nothing+"/test", "")
		refused(t, b, webhook.CodeNotFound, "GET", "/v1/webhooks/"+w.ID.String()+"/tests/"+nothing, "")
		refused(t, b, webhook.CodeNotFound, "GET", "/v1/webhooks/"+w.ID.String()+"/tests/1", "")
	})
}

// dispatchTest does what a dispatcher does with a test, but for the request.
func dispatchTest(t *testing.T, b *testBundle) error {
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		tests, err := postgres.ClaimTests(t.Context(), b.db, "i", 1)
		if err != nil {
			return err
		}
		if len(tests) > 0 {
			result := &webhook.Test{ID: tests[0].ID, WebhookID: tests[0].WebhookID, Reason: new(webhook.ReasonDelivered), StatusCode: new(204)}
			_, err := postgres.NewAnnouncer(fairqueue.JobInsert()).FinishTest(t.Context(), b.db, result, time.Now())
			return err
		}
		select {
		case <-deadline:
			return errors.New("there is no test to make")
		case <-tick.C:
		}
	}
}

func TestEnabling(t *testing.T) {
	t.Parallel()
	for name, enable := range map[string]struct{ method, path, body string }{
		"ByResuming": {"POST", "/resume", ""},
		"ByAPatch":   {"PATCH", "", `{"status":"active"}`},
	} {
		t.Run(name+"TellsTheOperators", func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			must[any](t, b, http.StatusCreated, "POST", "/v1/webhooks",
				`{"tenant":"fairhook.operator","url":"http://127.0.0.1:1/","event_types":["webhook.recovered"]}`)
			w, _ := must[webhook.Webhook](t, b, http.StatusCreated, "POST", "/v1/webhooks", `{"tenant":"acme","url":"http://127.0.0.1:1/"}`)
			path := "/v1/webhooks/" + w.ID.String()
			told := func() (n int) {
				t.Helper()
				err := b.db.QueryRow(t.Context(), `
					SELECT count(*) FROM fairhook.events WHERE tenant = 'fairhook.operator' AND type = 'webhook.recovered'
					AND convert_from(payload, 'UTF8')::jsonb->'data' @> jsonb_build_object('by', 'enabled', 'webhook_id', $1::text)`, w.ID.String()).Scan(&n)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			must[any](t, b, http.StatusOK, "POST", path+"/pause", "")
			must[any](t, b, http.StatusOK, enable.method, path+enable.path, enable.body)
			if told() != 0 {
				t.Error("they are told of a webhook that was only paused")
			}
			if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhooks SET status = 'disabled' WHERE id = $1`, w.ID); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				must[any](t, b, http.StatusOK, enable.method, path+enable.path, enable.body)
			}
			if n := told(); n != 1 {
				t.Errorf("they are told %d times", n)
			}
		})
	}
}

func TestAutoDisableAfterSeconds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w, _ := must[webhook.Webhook](t, b, http.StatusCreated, "POST", "/v1/webhooks", `{"tenant":"acme","url":"http://127.0.0.1:1/","auto_disable_after_seconds":0}`)
	if w.AutoDisableAfterSeconds == nil || *w.AutoDisableAfterSeconds != 0 {
		t.Errorf("0 is read as %v", w.AutoDisableAfterSeconds)
	}
	path := "/v1/webhooks/" + w.ID.String()
	for _, value := range []string{"-1", "1", "59", "31536001", "1.5", `"1"`} {
		if got := refused(t, b, webhook.CodeInvalid, "PATCH", path, `{"auto_disable_after_seconds":`+value+`}`); len(got) != 1 {
			t.Errorf("%s is refused with %q", value, got)
		}
	}
	w, _ = must[webhook.Webhook](t, b, http.StatusOK, "PATCH", path, `{"auto_disable_after_seconds":60}`)
	if *w.AutoDisableAfterSeconds != 60 {
		t.Errorf("60 is read as %v", *w.AutoDisableAfterSeconds)
	}
	w, _ = must[webhook.Webhook](t, b, http.StatusOK, "PATCH", path, `{"auto_disable_after_seconds":null}`)
	if w.AutoDisableAfterSeconds != nil {
		t.Errorf("null is read as %v", *w.AutoDisableAfterSeconds)
	}
}
