package ingest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// sameAnswer checks that a repeated submission is answered as it was.
func sameAnswer(t *testing.T, first, again *answer) {
	t.Helper()
	if again.status != first.status || again.header.Get("Idempotency-Replayed") != "true" ||
		again.header.Get("Location") != first.header.Get("Location") || string(again.body) != string(first.body) {
		t.Errorf("answered %d %s %v,\nand then %d %s %v", first.status, first.body, first.header, again.status, again.body, again.header)
	}
}

// What was accepted stays accepted, whatever a check would say of it today.
func TestARepeatedSubmissionIsAnsweredAsItWasAfter(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	servers := [2]*testBundle{setupWith(t, options{key: testKey, pool: pool}), setupWith(t, options{key: testKey, pool: pool})}
	b := servers[0]
	strict := setupWith(t, options{key: testKey, pool: pool, strictEventTypes: true})
	tight := setupWith(t, options{key: testKey, pool: pool, tenantAcceptPerSecond: 0.001})
	patch := func(body string) func(*testing.T, webhook.Webhook) {
		return func(t *testing.T, w webhook.Webhook) {
			want[any](t, b, http.StatusOK, "PATCH", "/v1/webhooks/"+w.ID.String(), body)
		}
	}
	remove := func(t *testing.T, w webhook.Webhook) {
		want[any](t, b, http.StatusNoContent, "DELETE", "/v1/webhooks/"+w.ID.String(), "")
	}
	nothing := func(*testing.T, webhook.Webhook) {}

	for _, tt := range []struct {
		name   string
		hook   string // more members of the webhook
		path   string // $ is the webhook's id, % a name of this case's own
		body   string
		change func(*testing.T, webhook.Webhook)
		by     []*testBundle // who is asked then
		status int           // for another key by then
	}{
		{
			name: "ItsWebhookWasDeleted", path: "/v1/events", body: `{"webhook_id":"$","type":"%","payload":1}`,
			change: remove, by: servers[:], status: http.StatusNotFound,
		},
		{
			name: "TheWebhookInItsPathWasDeleted", path: "/v1/webhooks/$/events?type=%", body: `raw`,
			change: remove, by: servers[:], status: http.StatusNotFound,
		},
		{
			name: "ItsWebhooksEventTypesWereNarrowed", path: "/v1/events", body: `{"webhook_id":"$","type":"%","payload":1}`,
			change: patch(`{"event_types":["other"]}`), by: servers[:], status: http.StatusUnprocessableEntity,
		},
		{
			name: "ItsWebhooksAllowedCIDRsChanged", path: "/v1/webhooks/$/events?type=%", body: `raw`,
			change: patch(`{"allowed_cidrs":["192.0.2.0/24"]}`), by: servers[:], status: http.StatusForbidden,
		},
		{
			name: "ItsTypeGotASchema", path: "/v1/events", body: `{"tenant":"%","type":"%","payload":1}`,
			change: func(t *testing.T, w webhook.Webhook) {
				want[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/"+w.Tenant, `{"schema":{"type":"string"}}`)
			},
			by: servers[:], status: http.StatusUnprocessableEntity,
		},
		{
			name: "UndeclaredTypesWereForbidden", path: "/v1/events", body: `{"tenant":"%","type":"%","payload":1}`,
			change: nothing, by: []*testBundle{strict}, status: http.StatusUnprocessableEntity,
		},
		{
			name: "ItsWebhookReachedItsRate", hook: `,"accept_per_second":0.001`, path: "/v1/events", body: `{"webhook_id":"$","type":"%","payload":1}`,
			change: func(t *testing.T, w webhook.Webhook) {
				for b.request(t, "POST", "/v1/webhooks/"+w.ID.String()+"/events?type=a", "x").status != http.StatusTooManyRequests {
				}
			},
			by: servers[:], status: http.StatusTooManyRequests,
		},
		{
			name: "ItsTenantReachedItsRate", path: "/v1/events", body: `{"tenant":"%","type":"%","payload":1}`,
			change: func(t *testing.T, w webhook.Webhook) {
				body := `{"tenant":"` + w.Tenant + `","type":"a","payload":1}`
				for tight.request(t, "POST", "/v1/events", body).status != http.StatusTooManyRequests {
				}
			},
			by: []*testBundle{tight}, status: http.StatusTooManyRequests,
		},
		{
			name: "ItsWebhooksBacklogFilled", hook: `,"max_backlog":1`, path: "/v1/events", body: `{"webhook_id":"$","type":"%","payload":1}`,
			change: nothing, by: servers[:1], status: http.StatusTooManyRequests,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tenant := strings.ToLower(tt.name)
			w := newWebhook(t, b, tenant, tt.hook)
			insert := strings.NewReplacer("$", w.ID.String(), "%", tenant)
			path, body := insert.Replace(tt.path), insert.Replace(tt.body)
			batch := "[" + strings.TrimSuffix(body, "}") + `,"idempotency_key":"batched"}]`
			batches := tt.path == "/v1/events" && !strings.Contains(tt.hook, "max_backlog")

			first := b.request(t, "POST", path, body, "Idempotency-Key", "mine")
			if first.status != http.StatusAccepted {
				t.Fatalf("answered %d %s", first.status, first.body)
			}
			var firstBatch *answer
			if batches {
				firstBatch = b.request(t, "POST", "/v1/events/batch", batch)
			}
			tt.change(t, w)
			for _, by := range tt.by {
				// The other servers hear of the change a moment later.
				refusedBy(t, by, tt.status, path, body)
				sameAnswer(t, first, by.request(t, "POST", path, body, "Idempotency-Key", "mine"))

				another := strings.Replace(body, `"payload":1`, `"payload":2`, 1)
				if tt.body == `raw` {
					another = "other"
				}
				p, _ := refused(t, by, http.StatusUnprocessableEntity, "invalid-request", "POST", path, another, "Idempotency-Key", "mine")
				if !strings.Contains(p.Detail, "was used for another event") {
					t.Errorf("another body is refused with %q", p.Detail)
				}
				if batches {
					again := by.request(t, "POST", "/v1/events/batch", batch)
					if replayed := strings.Replace(string(firstBatch.body), `]}]}`, `],"idempotency_replayed":true}]}`, 1); !sameJSON(t, replayed, string(again.body)) {
						t.Errorf("a batch was answered %s,\nand then %d %s", firstBatch.body, again.status, again.body)
					}
				}
			}
			expected := 1
			if batches {
				expected = 2
			}
			var n int
			if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.events WHERE tenant = $1 AND type = $1`, tenant).Scan(&n); err != nil || n != expected {
				t.Errorf("%d events are stored, want %d, %v", n, expected, err)
			}
		})
	}
}

// refusedBy waits until submissions under keys of their own are refused with this
// status, which is at once where the change has been heard of.
func refusedBy(t *testing.T, b *testBundle, status int, path, body string) {
	t.Helper()
	for range 10_000 {
		// Sent under a key that was never stored, so what is accepted meanwhile is
		// told from what is refused.
		a := b.request(t, "POST", path, body, "Idempotency-Key", "probe")
		if a.status == status {
			return
		}
		if a.status != http.StatusAccepted {
			t.Fatalf("a new submission is answered %d %s, want %d", a.status, a.body, status)
		}
		if _, err := b.db.Exec(t.Context(), `
			WITH gone AS (DELETE FROM fairhook.idempotency_keys WHERE key = 'probe' AND event_id = $1 RETURNING event_id)
			DELETE FROM fairhook.events WHERE id IN (SELECT event_id FROM gone)`, strings.TrimPrefix(a.header.Get("Location"), "/v1/events/")); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("new submissions are never refused with %d", status)
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var values [2]any
	for i, text := range []string{a, b} {
		if err := json.Unmarshal([]byte(text), &values[i]); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	return fmt.Sprint(values[0]) == fmt.Sprint(values[1])
}

func TestReplaysAfterARefusal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	remove := func(t *testing.T, w webhook.Webhook) {
		t.Helper()
		want[any](t, b, http.StatusNoContent, "DELETE", "/v1/webhooks/"+w.ID.String(), "")
	}
	body := func(w webhook.Webhook) string { return submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`) }

	t.Run("TellATenantsKeyNothingAboutAnothers", func(t *testing.T) {
		t.Parallel()
		w := newWebhook(t, b, "theirs", "")
		want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body(w), "Idempotency-Key", "k")
		mine, theirs := newKey(t, b, "mine", "", webhook.ScopeSubmit), newKey(t, b, "theirs", "", webhook.ScopeSubmit)
		remove(t, w)
		p, _ := refused(t, b, http.StatusNotFound, "not-found", "POST", "/v1/events", body(w), mine.with("Idempotency-Key", "k")...)
		if p.Detail != "There is no webhook "+w.ID.String()+"." {
			t.Errorf("refused with %q", p.Detail)
		}
		refused(t, b, http.StatusNotFound, "not-found", "POST", "/v1/events", strings.Replace(body(w), "1", "2", 1), mine.with("Idempotency-Key", "k")...)
		want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body(w), theirs.with("Idempotency-Key", "k")...)
		refused(t, b, http.StatusForbidden, "forbidden", "POST", "/v1/events", submitBody(`"tenant":"theirs"`, `1`), mine.with("Idempotency-Key", "k")...)
	})
	t.Run("EndAfterTwentyFourHours", func(t *testing.T) {
		t.Parallel()
		w := newWebhook(t, b, "old", "")
		want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body(w), "Idempotency-Key", "k")
		remove(t, w)
		age := func(interval string) {
			if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.idempotency_keys SET created_at = now() - $1::interval WHERE tenant = 'old'`, interval); err != nil {
				t.Fatal(err)
			}
		}
		age("23 hours 59 minutes")
		want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body(w), "Idempotency-Key", "k")
		age("24 hours 1 second")
		refused(t, b, http.StatusNotFound, "not-found", "POST", "/v1/events", body(w), "Idempotency-Key", "k")
	})
	t.Run("DoNotSeeAKeyThatIsBeingCommitted", func(t *testing.T) {
		t.Parallel()
		w := newWebhook(t, b, "race", "")
		first, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body(w), "Idempotency-Key", "k")
		remove(t, w)
		// As if its transaction were still open.
		tx, err := b.db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		var fingerprint []byte
		if err := b.db.QueryRow(t.Context(), `DELETE FROM fairhook.idempotency_keys WHERE tenant = 'race' RETURNING fingerprint`).Scan(&fingerprint); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `INSERT INTO fairhook.idempotency_keys (tenant, key, event_id, fingerprint) VALUES ('race', 'k', $1, $2)`, first.ID, fingerprint); err != nil {
			t.Fatal(err)
		}
		refused(t, b, http.StatusNotFound, "not-found", "POST", "/v1/events", body(w), "Idempotency-Key", "k")
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if again, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body(w), "Idempotency-Key", "k"); again.ID != first.ID {
			t.Errorf("answered with event %s and %s", first.ID, again.ID)
		}
	})
	t.Run("NeverContradictEachOtherWhileAWebhookIsDeleted", func(t *testing.T) {
		t.Parallel()
		other := setupWith(t, options{key: testKey, pool: b.db})
		for range 5 {
			w := newWebhook(t, b, "storm", "")
			var (
				callers sync.WaitGroup
				mu      sync.Mutex
				ids     = map[webhook.ID]bool{}
			)
			for i := range 16 {
				callers.Go(func() {
					if i == 8 {
						remove(t, w)
						return
					}
					a := []*testBundle{b, other}[i%2].request(t, "POST", "/v1/events", body(w), "Idempotency-Key", w.ID.String())
					switch a.status {
					case http.StatusAccepted:
						var accepted acceptedEvent
						a.decode(t, &accepted)
						mu.Lock()
						defer mu.Unlock()
						ids[accepted.ID] = true
					case http.StatusNotFound, http.StatusConflict:
					default:
						t.Errorf("answered %d %s", a.status, a.body)
					}
				})
			}
			callers.Wait()
			a := other.request(t, "POST", "/v1/events", body(w), "Idempotency-Key", w.ID.String())
			if len(ids) > 1 || len(ids) == 1 && a.status != http.StatusAccepted {
				t.Errorf("answered with events %v, and in the end %d %s", ids, a.status, a.body)
			}
		}
	})
	t.Run("CoverABatchWhoseFanOutHasGrownTooWide", func(t *testing.T) {
		t.Parallel()
		newWebhook(t, b, "wide", "")
		const items = 1000
		one := submitBody(`"tenant":"wide"`, `1`)
		batch := "[" + strings.Repeat(one+",", items-1) + one + "]"
		type results struct {
			Results []struct {
				ID       webhook.ID `json:"id"`
				Status   int        `json:"status"`
				Replayed bool       `json:"idempotency_replayed"`
			} `json:"results"`
		}
		first, _ := want[results](t, b, http.StatusOK, "POST", "/v1/events/batch", batch, "Idempotency-Key", "k")
		for range maxBatchDeliveries / items {
			newWebhook(t, b, "wide", "")
		}
		p, _ := refused(t, b, http.StatusRequestEntityTooLarge, "too-large", "POST", "/v1/events/batch", batch, "Idempotency-Key", "unused")
		if !strings.Contains(p.Detail, "more deliveries than the limit") {
			t.Errorf("refused with %q", p.Detail)
		}
		again, _ := want[results](t, b, http.StatusOK, "POST", "/v1/events/batch", batch, "Idempotency-Key", "k")
		for i, r := range again.Results {
			if r.ID != first.Results[i].ID || r.Status != http.StatusAccepted || !r.Replayed {
				t.Fatalf("result %d was %+v, and then %+v", i, first.Results[i], r)
			}
		}
		if n := events(t, b, "wide"); n != items {
			t.Errorf("%d events are stored", n)
		}
	})
}
