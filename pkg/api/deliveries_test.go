package api_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

type endedPage struct {
	Data       []webhook.EndedDelivery `json:"data"`
	NextCursor *string                 `json:"next_cursor"`
}

// endAt records the end of a delivery of a new event.
func endAt(t *testing.T, b *testBundle, at time.Time, hook webhook.ID, status webhook.Status, reason webhook.Reason) webhook.ID {
	t.Helper()
	event := insertEvent(t, b, nil, `{}`)
	record(t, b, webhook.Attempt{ID: webhook.NewID(at), EventID: event, WebhookID: hook, Number: 1, Status: status, Reason: reason, StartedAt: at})
	return event
}

func TestListDeliveries(t *testing.T) {
	t.Parallel()

	t.Run("ListsTheExhaustedNewestFirstPageAfterPage", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var want []webhook.ID
		now := time.Now()
		for i := range 5 {
			want = append(want, endAt(t, b, now.Add(-time.Duration(i)*time.Minute), webhook.ID{1}, webhook.StatusExhausted, webhook.ReasonTimeout))
			endAt(t, b, now, webhook.ID{1}, webhook.StatusDelivered, webhook.ReasonDelivered)
		}
		var got []webhook.ID
		for target := "/v1/deliveries?limit=2"; target != ""; {
			page, header := must[endedPage](t, b, http.StatusOK, "GET", target, "")
			for _, d := range page.Data {
				got = append(got, d.EventID)
			}
			link := header.Get("Link")
			if (page.NextCursor == nil) != (link == "") {
				t.Errorf("next_cursor %v with Link %q", page.NextCursor, link)
			}
			target, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
		}
		if len(got) != len(want) {
			t.Fatalf("lists %d, want %d", len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("item %d is %s, want %s", i, got[i], want[i])
			}
		}
	})

	t.Run("ListsByEachParameter", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		now := time.Now().UTC().Truncate(time.Second)
		hooks := []webhook.ID{webhook.NewID(now), webhook.NewID(now)}
		events := map[webhook.ID]string{
			endAt(t, b, now, hooks[0], webhook.StatusExhausted, webhook.ReasonTimeout):                 "a",
			endAt(t, b, now.Add(-time.Hour), hooks[1], webhook.StatusExhausted, webhook.ReasonExpired): "b",
			endAt(t, b, now, hooks[0], webhook.StatusCancelled, webhook.ReasonWebhookDeleted):          "c",
			endAt(t, b, now, hooks[0], webhook.StatusDropped, webhook.ReasonEventMissing):              "d",
		}
		half := url.QueryEscape(now.Add(-30 * time.Minute).In(time.FixedZone("", 7200)).Format(time.RFC3339))
		for query, want := range map[string]string{
			"":                                 "ab",
			"?status=exhausted":                "ab",
			"?status=cancelled":                "c",
			"?status=dropped":                  "d",
			"?tenant=acme":                     "ab",
			"?tenant=other":                    "",
			"?webhook_id=" + hooks[1].String(): "b",
			"?reason=timeout":                  "a",
			"?reason=a_newer_word":             "",
			"?after=" + half:                   "a",
			"?before=" + half:                  "b",
			"?after=9999-12-31T23:59:59Z":      "",
			"?tenant=acme&before=" + half + "&webhook_id=" + hooks[0].String(): "",
		} {
			var got string
			page, _ := must[endedPage](t, b, http.StatusOK, "GET", "/v1/deliveries"+query, "")
			for _, d := range page.Data {
				got += events[d.EventID]
			}
			if got != want {
				t.Errorf("%s lists %q, want %q", query, got, want)
			}
		}
	})

	t.Run("RefusesParametersByName", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		id := webhook.NewID(time.Now())
		foreign := base64.RawURLEncoding.EncodeToString(append([]byte{'w'}, id[:]...)) // of the list of webhooks
		for query, parameter := range map[string]string{
			"status=delivered": "status", "status=pending": "status", "status=nonsense": "status", "status=": "status",
			"webhook_id=1": "webhook_id", "reason=%00": "reason", "reason=%ff": "reason", "after=yesterday": "after", "before=2026-01-02": "before", "after=1969-12-31T00:00:00Z": "after",
			"limit=0": "limit", "cursor=x": "cursor", "cursor=" + foreign: "cursor", "tenant=%00": "tenant", "state=exhausted": "state", "status=exhausted&status=dropped": "status",
		} {
			if fields := refused(t, b, webhook.CodeMalformed, "GET", "/v1/deliveries?"+query, ""); len(fields) != 1 || !strings.HasPrefix(fields[0], parameter+": ") {
				t.Errorf("%s: told of %q, want of %s", query, fields, parameter)
			}
		}
	})

	t.Run("ShowsATenantItsOwn", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := webhook.NewID(time.Now())
		endAt(t, b, time.Now(), hook, webhook.StatusExhausted, webhook.ReasonTimeout) // acme's
		for tenant, want := range map[string]int{"acme": 1, "other": 0} {
			for _, query := range []string{"", "?tenant=acme", "?webhook_id=" + hook.String(), "?tenant=acme&webhook_id=" + hook.String()} {
				recorder, err := b.as(t, adminOf(tenant), "GET", "/v1/deliveries"+query, "")
				if err != nil {
					t.Fatal(err)
				}
				var page endedPage
				if err := json.Unmarshal(recorder.Body.Bytes(), &page); err != nil || len(page.Data) != want {
					t.Errorf("%s asks for %s and is shown %s", tenant, query, recorder.Body)
				}
			}
		}
	})
}
