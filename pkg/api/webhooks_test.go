package api_test

import (
	"encoding/base64"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

type webhookAnswer struct {
	webhook.Webhook
	Secret string `json:"secret"`
}

type listAnswer[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"next_cursor"`
}

type secretAnswer struct {
	ID        webhook.ID `json:"id"`
	Secret    string     `json:"secret"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at"`
}

func create(t *testing.T, b *testBundle, body string) webhookAnswer {
	t.Helper()
	w, _ := must[webhookAnswer](t, b, http.StatusCreated, "POST", "/v1/webhooks", body)
	return w
}

func TestCreateWebhook(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("FillsInDefaults", func(t *testing.T) {
		t.Parallel()
		w, header := must[map[string]any](t, b, http.StatusCreated, "POST", "/v1/webhooks",
			`{"tenant":"acme","url":"https://example.com/a?b=c&d=e","description":null,"secret":null,"status":null}`)
		if header.Get("Location") != "/v1/webhooks/"+w["id"].(string) || header.Get("Cache-Control") != "no-store" {
			t.Errorf("headers are %v", header)
		}
		got, _ := must[map[string]any](t, b, http.StatusOK, "GET", header.Get("Location"), "")
		for _, w := range []map[string]any{w, got} {
			if w["tenant"] != "acme" || w["url"] != "https://example.com/a?b=c&d=e" || w["description"] != "" ||
				w["status"] != "active" || w["disabled_reason"] != nil || len(w["headers"].(map[string]any)) != 0 ||
				w["timeout_seconds"] != 20.0 || w["max_in_flight"] != 50.0 || w["max_age_seconds"] != 345600.0 ||
				len(w["event_types"].([]any)) != 1 || len(w["retry_schedule_seconds"].([]any)) != 9 ||
				w["created_at"] != w["updated_at"] || !strings.HasSuffix(w["created_at"].(string), "Z") {
				t.Errorf("webhook is %v", w)
			}
		}
		if _, shown := got["secret"]; shown {
			t.Error("reading a webhook shows its secret")
		}
		if key, err := signature.ParseSecret(w["secret"].(string)); err != nil || len(key) < 24 {
			t.Errorf("secret is %v", err)
		}
	})
	t.Run("TakesEveryField", func(t *testing.T) {
		t.Parallel()
		w := create(t, b, `{"tenant":"acme","url":"http://127.0.0.1:8080/","description":"a\nb","event_types":["a.*","b"],"status":"paused",
			"headers":{"X-Key":"v&"},"timeout_seconds":1,"max_in_flight":2,"retry_schedule_seconds":[],"max_age_seconds":3}`)
		got, _ := must[webhookAnswer](t, b, http.StatusOK, "GET", "/v1/webhooks/"+w.ID.String(), "")
		for _, w := range []webhookAnswer{w, got} {
			if w.URL != "http://127.0.0.1:8080/" || w.Description != "a\nb" || !slices.Equal(w.EventTypes, []string{"a.*", "b"}) ||
				w.State != webhook.StatePaused || w.Headers["X-Key"].Reveal() != webhook.Masked || w.TimeoutSeconds != 1 || w.MaxInFlight != 2 ||
				w.RetrySchedule == nil || len(w.RetrySchedule) != 0 || w.MaxAgeSeconds != 3 {
				t.Errorf("webhook is %+v", w)
			}
		}
	})
	t.Run("KeepsASecretThatIsBroughtAlong", func(t *testing.T) {
		t.Parallel()
		encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("s", 25)))
		for _, secret := range []string{"whsec_" + encoded, encoded} {
			w := create(t, b, `{"tenant":"acme","url":"https://example.com","secret":"`+secret+`"}`)
			secrets, header := must[listAnswer[secretAnswer]](t, b, http.StatusOK, "GET", "/v1/webhooks/"+w.ID.String()+"/secrets", "")
			if w.Secret != "whsec_"+encoded || len(secrets.Data) != 1 || secrets.Data[0].Secret != "whsec_"+encoded ||
				secrets.Data[0].ExpiresAt != nil || secrets.Data[0].ID.IsZero() || secrets.Data[0].CreatedAt.IsZero() {
				t.Errorf("secrets of %q are %q, %+v", secret, w.Secret, secrets)
			}
			if header.Get("Cache-Control") != "no-store" {
				t.Errorf("headers are %v", header)
			}
		}
	})
	t.Run("SealsTheSecretForItsWebhookAlone", func(t *testing.T) {
		t.Parallel()
		one := create(t, b, `{"tenant":"acme","url":"https://example.com"}`)
		two := create(t, b, `{"tenant":"acme","url":"https://example.com"}`)
		var sealed []byte
		err := b.db.QueryRow(t.Context(), `SELECT sealed FROM fairhook.webhook_secrets WHERE webhook_id = $1`, one.ID).Scan(&sealed)
		if err != nil || strings.Contains(string(sealed), one.Secret) {
			t.Fatalf("secret is stored in the open, %v", err)
		}
		text, err := b.box.Open(sealed, one.ID.String())
		if err != nil || string(text) != one.Secret {
			t.Errorf("sealed secret opens as %q, %v", text, err)
		}
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhook_secrets SET sealed = $2 WHERE webhook_id = $1`, two.ID, sealed); err != nil {
			t.Fatal(err)
		}
		if _, err := b.call(t, "GET", "/v1/webhooks/"+two.ID.String()+"/secrets", ""); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("another webhook's secret: %v, want %v", err, seal.ErrCorrupt)
		}
	})
	t.Run("ListsEverythingThatIsWrongAtOnce", func(t *testing.T) {
		t.Parallel()
		got := refused(t, b, webhook.CodeInvalid, "POST", "/v1/webhooks", `{
			"tenant":"","url":"ftp://user@10.0.0.1","description":5,"event_types":["ok","no spaces"],"status":"disabled",
			"headers":{"Host":"x","A":1,"X-B":"1","x-b":"2"},"timeout_seconds":0,"max_in_flight":"many","retry_schedule_seconds":[1,-1],
			"max_age_seconds":1e9,"secret":"whsec_short","id":"mine","created_at":null}`)
		var pointers []string
		for _, fault := range got {
			pointer, _, _ := strings.Cut(fault, ": ")
			pointers = append(pointers, pointer)
		}
		want := []string{
			"/created_at", "/description", "/event_types/1", "/headers/A", "/headers/Host", "/headers/X-B", "/headers/x-b", "/id", "/max_age_seconds",
			"/max_in_flight", "/retry_schedule_seconds/1", "/secret", "/status", "/tenant", "/timeout_seconds", "/url",
		}
		if !slices.Equal(pointers, want) {
			t.Errorf("faults are %q\nwant %q", got, want)
		}
	})
	t.Run("NeedsATenantAndAURL", func(t *testing.T) {
		t.Parallel()
		for _, body := range []string{`{}`, `{"tenant":null,"url":null}`} {
			got := refused(t, b, webhook.CodeInvalid, "POST", "/v1/webhooks", body)
			if want := []string{"/tenant: is required", "/url: is required"}; !slices.Equal(got, want) {
				t.Errorf("faults of %s are %q, want %q", body, got, want)
			}
		}
	})
	t.Run("RefusesURLsThatMustNotBeCalled", func(t *testing.T) {
		t.Parallel()
		for _, url := range []string{
			"ftp://example.com", "//example.com", "https://a:b@example.com", "http://10.0.0.1/", "http://169.254.169.254/",
			"http://[::1]/", "http://0x7f000001/", "https://example.com/#f", "https://example.com/" + strings.Repeat("a", 2048), "nonsense",
		} {
			got := refused(t, b, webhook.CodeInvalid, "POST", "/v1/webhooks", `{"tenant":"acme","url":"`+url+`"}`)
			if len(got) != 1 || !strings.HasPrefix(got[0], "/url: ") {
				t.Errorf("faults of %s are %q", url, got)
			}
		}
	})
	t.Run("StoresNothingWhenRefused", func(t *testing.T) {
		t.Parallel()
		refused(t, b, webhook.CodeInvalid, "POST", "/v1/webhooks", `{"tenant":"nothing","url":"https://example.com","secret":"x"}`)
		list, _ := must[listAnswer[webhookAnswer]](t, b, http.StatusOK, "GET", "/v1/webhooks?tenant=nothing", "")
		if list.Data == nil || len(list.Data) != 0 || list.NextCursor != nil {
			t.Errorf("list is %+v, want an empty one", list)
		}
	})
}

func TestUpdateWebhook(t *testing.T) {
	t.Parallel()
	b := setup(t)
	update := func(t *testing.T, id webhook.ID, body string) webhookAnswer {
		t.Helper()
		w, _ := must[webhookAnswer](t, b, http.StatusOK, "PATCH", "/v1/webhooks/"+id.String(), body)
		return w
	}

	t.Run("ChangesOnlyWhatIsGiven", func(t *testing.T) {
		t.Parallel()
		w := create(t, b, `{"tenant":"acme","url":"https://example.com","description":"d","headers":{"A":"1","B":"2"},"timeout_seconds":7}`)
		got := update(t, w.ID, `{"url":"https://example.org","headers":{"C":"3"},"tenant":"acme"}`)
		if got.URL != "https://example.org" || len(got.Headers) != 1 || got.Description != "d" || got.TimeoutSeconds != 7 ||
			!got.UpdatedAt.After(w.UpdatedAt) || !got.CreatedAt.Equal(w.CreatedAt) || got.Secret != "" {
			t.Errorf("updated to %+v", got)
		}
		read, _ := must[webhookAnswer](t, b, http.StatusOK, "GET", "/v1/webhooks/"+w.ID.String(), "")
		if read.URL != got.URL || !read.UpdatedAt.Equal(got.UpdatedAt) {
			t.Errorf("reads as %+v, want %+v", read, got)
		}
	})
	t.Run("NullMeansTheDefault", func(t *testing.T) {
		t.Parallel()
		w := create(t, b, `{"tenant":"acme","url":"https://example.com","description":"d","event_types":["a"],"headers":{"A":"1"},
			"timeout_seconds":7,"max_in_flight":7,"retry_schedule_seconds":[7],"max_age_seconds":7}`)
		got := update(t, w.ID, `{"description":null,"event_types":null,"headers":null,"timeout_seconds":null,
			"max_in_flight":null,"retry_schedule_seconds":null,"max_age_seconds":null}`)
		if got.Description != "" || !slices.Equal(got.EventTypes, []string{"*"}) || len(got.Headers) != 0 || got.TimeoutSeconds != 20 ||
			got.MaxInFlight != 50 || !slices.Equal(got.RetrySchedule, webhook.DefaultRetrySchedule()) || got.MaxAgeSeconds != 345600 {
			t.Errorf("updated to %+v", got)
		}
	})
	t.Run("WithoutAChangeLeavesUpdatedAt", func(t *testing.T) {
		t.Parallel()
		w := create(t, b, `{"tenant":"acme","url":"https://example.com"}`)
		for _, body := range []string{`{}`, `{"url":"https://example.com","event_types":["*"],"status":"active"}`} {
			if got := update(t, w.ID, body); !got.UpdatedAt.Equal(w.UpdatedAt) {
				t.Errorf("%s moves updated_at from %v to %v", body, w.UpdatedAt, got.UpdatedAt)
			}
		}
	})
	t.Run("RefusesWhatCannotChange", func(t *testing.T) {
		t.Parallel()
		w := create(t, b, `{"tenant":"acme","url":"https://example.com"}`)
		got := refused(t, b, webhook.CodeInvalid, "PATCH", "/v1/webhooks/"+w.ID.String(),
			`{"tenant":"other","url":null,"secret":"whsec_x","id":1,"disabled_reason":"x","updated_at":"x","status":"disabled"}`)
		want := []string{
			"/disabled_reason: is set by Fairhook and cannot be chosen",
			"/id: is set by Fairhook and cannot be chosen",
			"/secret: cannot be changed like this: rotate it with POST .../secrets",
			`/status: must be "active" or "paused"`,
			"/tenant: cannot be changed",
			"/updated_at: is set by Fairhook and cannot be chosen",
			"/url: is required",
		}
		if !slices.Equal(got, want) {
			t.Errorf("faults are %q\nwant %q", got, want)
		}
		read, _ := must[webhookAnswer](t, b, http.StatusOK, "GET", "/v1/webhooks/"+w.ID.String(), "")
		if read.URL != w.URL || !read.UpdatedAt.Equal(w.UpdatedAt) {
			t.Errorf("a refused update changed it to %+v", read)
		}
	})
	t.Run("ConcurrentUpdatesOfDifferentFieldsAllCount", func(t *testing.T) {
		t.Parallel()
		w := create(t, b, `{"tenant":"acme","url":"https://example.com"}`)
		var wg sync.WaitGroup
		for _, body := range []string{`{"description":"x"}`, `{"timeout_seconds":9}`, `{"max_in_flight":9}`, `{"status":"paused"}`} {
			wg.Go(func() {
				if recorder, err := b.call(t, "PATCH", "/v1/webhooks/"+w.ID.String(), body); err != nil || recorder.Code != http.StatusOK {
					t.Errorf("%s: %d, %v", body, recorder.Code, err)
				}
			})
		}
		wg.Wait()
		got, _ := must[webhookAnswer](t, b, http.StatusOK, "GET", "/v1/webhooks/"+w.ID.String(), "")
		if got.Description != "x" || got.TimeoutSeconds != 9 || got.MaxInFlight != 9 || got.State != webhook.StatePaused {
			t.Errorf("an update was lost: %+v", got)
		}
	})
}

func TestWebhookStates(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := create(t, b, `{"tenant":"acme","url":"https://example.com"}`)
	path := "/v1/webhooks/" + w.ID.String()

	paused, _ := must[webhookAnswer](t, b, http.StatusOK, "POST", path+"/pause", "")
	if paused.State != webhook.StatePaused || !paused.UpdatedAt.After(w.UpdatedAt) {
		t.Errorf("paused is %+v", paused)
	}
	resumed, _ := must[webhookAnswer](t, b, http.StatusOK, "POST", path+"/resume", "")
	if resumed.State != webhook.StateActive {
		t.Errorf("resumed is %+v", resumed)
	}
	for _, enable := range []struct{ method, path, body string }{
		{"POST", path + "/resume", ""},
		{"PATCH", path, `{"status":"active"}`},
	} {
		if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhooks SET status = 'disabled', disabled_reason = 'gone' WHERE id = $1`, w.ID); err != nil {
			t.Fatal(err)
		}
		kept, _ := must[webhookAnswer](t, b, http.StatusOK, "PATCH", path, `{"description":"`+enable.method+`"}`)
		if kept.State != webhook.StateDisabled || kept.DisabledReason == nil || *kept.DisabledReason != "gone" {
			t.Errorf("an update of another field left %+v", kept)
		}
		enabled, _ := must[webhookAnswer](t, b, http.StatusOK, enable.method, enable.path, enable.body)
		if enabled.State != webhook.StateActive || enabled.DisabledReason != nil {
			t.Errorf("%s %s of a disabled webhook left %+v", enable.method, enable.path, enabled)
		}
	}
}

func TestListWebhooks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var want []webhook.ID
	for range 5 {
		want = append(want, create(t, b, `{"tenant":"acme & co","url":"https://example.com"}`).ID)
		create(t, b, `{"tenant":"other","url":"https://example.com"}`)
	}
	slices.Reverse(want)

	t.Run("GoesThroughPagesNewestFirst", func(t *testing.T) {
		t.Parallel()
		for name, next := range map[string]func(list listAnswer[webhookAnswer], header http.Header) string{
			"ByCursor": func(list listAnswer[webhookAnswer], _ http.Header) string {
				if list.NextCursor == nil {
					return ""
				}
				return "/v1/webhooks?tenant=acme+%26+co&limit=2&cursor=" + *list.NextCursor
			},
			"ByLink": func(_ listAnswer[webhookAnswer], header http.Header) string {
				target, found := strings.CutSuffix(header.Get("Link"), `>; rel="next"`)
				if !found {
					return ""
				}
				return strings.TrimPrefix(target, "<")
			},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				var got []webhook.ID
				pages := 0
				for target := "/v1/webhooks?tenant=acme+%26+co&limit=2"; target != ""; pages++ {
					list, header := must[listAnswer[webhookAnswer]](t, b, http.StatusOK, "GET", target, "")
					for _, w := range list.Data {
						got = append(got, w.ID)
					}
					target = next(list, header)
				}
				if !slices.Equal(got, want) || pages != 3 {
					t.Errorf("%d pages list %v\nwant 3 with %v", pages, got, want)
				}
			})
		}
	})
	t.Run("ListsAllTenantsWithoutAFilter", func(t *testing.T) {
		t.Parallel()
		list, header := must[listAnswer[webhookAnswer]](t, b, http.StatusOK, "GET", "/v1/webhooks", "")
		if len(list.Data) != 10 || list.NextCursor != nil || header.Get("Link") != "" {
			t.Errorf("%d webhooks, cursor %v, link %q", len(list.Data), list.NextCursor, header.Get("Link"))
		}
	})
	t.Run("RefusesBadParameters", func(t *testing.T) {
		t.Parallel()
		for query, want := range map[string]string{
			"limit=0":                     "limit: must be a whole number between 1 and 1000",
			"limit=1001":                  "limit: must be a whole number between 1 and 1000",
			"limit=ten":                   "limit: must be a whole number between 1 and 1000",
			"cursor=nonsense":             "cursor: must be a next_cursor from an earlier page of this list",
			"cursor=%FF":                  "cursor: must be a next_cursor from an earlier page of this list",
			"tenat=acme":                  "tenat: is not a known parameter",
			"limit=1&limit=2":             "limit: is given more than once",
			"tenant=":                     "tenant: must not be empty",
			"tenant=%00":                  "tenant: must not contain control characters",
			"tenant=%FF":                  "tenant: must be valid UTF-8",
			"cursor=" + url64("a"+text16): "cursor: must be a next_cursor from an earlier page of this list",
		} {
			got := refused(t, b, webhook.CodeMalformed, "GET", "/v1/webhooks?"+query, "")
			if !slices.Equal(got, []string{want}) {
				t.Errorf("faults of ?%s are %q, want %q", query, got, want)
			}
		}
		refused(t, b, webhook.CodeMalformed, "GET", "/v1/webhooks?a=%zz", "")
	})
}

const text16 = "0123456789abcdef"

func url64(raw string) string { return base64.RawURLEncoding.EncodeToString([]byte(raw)) }

func TestWebhooksThatDoNotExist(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deleted := create(t, b, `{"tenant":"acme","url":"https://example.com"}`).ID.String()
	must[any](t, b, http.StatusNoContent, "DELETE", "/v1/webhooks/"+deleted, "")
	for _, id := range []string{deleted, webhook.NewID(time.Now()).String(), "nonsense", "%00", strings.Repeat("x", 5000)} {
		for _, call := range []struct{ method, rest, body string }{
			{"GET", "", ""}, {"PATCH", "", `{}`}, {"DELETE", "", ""}, {"POST", "/pause", ""}, {"POST", "/resume", ""}, {"GET", "/secrets", ""},
		} {
			refused(t, b, webhook.CodeNotFound, call.method, "/v1/webhooks/"+id+call.rest, call.body)
		}
	}
	var secrets int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.webhook_secrets`).Scan(&secrets); err != nil || secrets != 0 {
		t.Errorf("%d secrets are left, %v", secrets, err)
	}
}

func TestBodiesThatAreNotAnObjectOfKnownFields(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/webhooks/" + create(t, b, `{"tenant":"acme","url":"https://example.com"}`).ID.String()
	for _, call := range []struct{ method, path string }{{"POST", "/v1/webhooks"}, {"PATCH", path}} {
		for body, want := range map[string]string{
			``:                      ": ends too early, at byte offset 0",
			`[]`:                    ": must be an object, not an array",
			`{"payload":1}`:         "/payload: is not a known field",
			`{"url":"a","url":"b"}`: "/url: is given more than once",
		} {
			got := refused(t, b, webhook.CodeMalformed, call.method, call.path, body)
			if !slices.Equal(got, []string{want}) {
				t.Errorf("faults of %s %s are %q, want %q", call.method, body, got, want)
			}
		}
		refused(t, b, webhook.CodeTooLarge, call.method, call.path, `{"url":"`+strings.Repeat("a", 10_000)+`"}`)
	}
}
