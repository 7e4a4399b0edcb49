package dispatch

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// update changes a webhook as its owner does.
func (b *testBundle) update(id webhook.ID, change func(*webhook.Webhook)) {
	b.t.Helper()
	err := pgx.BeginFunc(b.t.Context(), b.db, func(tx pgx.Tx) error {
		w, err := postgres.LockWebhook(b.t.Context(), tx, id)
		if err != nil {
			return err
		}
		change(w)
		return postgres.UpdateWebhook(b.t.Context(), tx, w)
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// What a receiver says after its webhook's owner has left it for another is about the
// delivery that it was sent, and not about the webhook.
func TestAReceiverThatWasLeftHasNoSayInItsWebhook(t *testing.T) {
	t.Parallel()
	for status, header := range map[int]string{410: "", 429: "3600", 503: "3600"} {
		t.Run(fmt.Sprint("AnsweringWith", status), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			release := make(chan struct{})
			old := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
				<-release
				if header != "" {
					w.Header().Set("Retry-After", header)
				}
				w.WriteHeader(status)
			})
			next := newReceiver(t, answer(204))
			hook := b.hook(old.URL, func(w *webhook.Webhook) { w.TimeoutSeconds = 60 })
			p := b.start()
			event := b.submit(hook, 1)[0]
			b.eventually("the old receiver has the request", func() bool { return old.count() == 1 })
			b.update(hook.ID, func(w *webhook.Webhook) { w.URL = next.URL })
			b.eventually("the dispatcher knows the new URL", func() bool {
				e, err := p.catalog.Webhook(t.Context(), hook.ID)
				return err == nil && e.Webhook.URL == next.URL
			})
			close(release)
			b.eventually("the old receiver's answer is on record", func() bool { return len(b.attempts(event)) > 0 })
			if n := b.count(`SELECT count(*) FROM fairhook.webhooks WHERE status = 'active'`); n != 1 {
				t.Fatal("the webhook was disabled")
			}
			if n := b.count(`SELECT count(*) FROM fairhook.lane_gates`); n != 0 {
				t.Fatal("its gate was closed")
			}
			b.ended(b.submit(hook, 1)[0])
			if status == 410 {
				b.ended(event) // it is sent to the new one
			}
		})
	}
}

// The recorder may hear of the change later than the database.
func TestARecorded410DisablesTheWebhookOnlyAtTheURLThatGaveIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hook := b.hook("https://a.example/")
	b.update(hook.ID, func(w *webhook.Webhook) { w.URL = "https://b.example/" })
	for _, c := range []struct {
		url      string
		disabled int
	}{{"https://a.example/", 0}, {"https://b.example/", 1}} {
		gone := []postgres.Disabling{{WebhookID: hook.ID, URL: c.url, Reason: disabledGone}}
		if err := postgres.RecordAttempts(t.Context(), b.db, nil, gone, nil); err != nil {
			t.Fatal(err)
		}
		if n := b.count(`SELECT count(*) FROM fairhook.webhooks WHERE status = 'disabled'`); n != c.disabled {
			t.Errorf("after a 410 of %s, %d webhooks are disabled, want %d", c.url, n, c.disabled)
		}
	}
}

// A webhook whose deliveries cannot even be begun must not be fetched over and over.
func TestAWebhookThatCannotBeReadIsLeftAloneForAMoment(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, answer(204))
	hook := b.hook(r.URL)
	other, err := seal.ParseKey(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, seal.KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	b.start()
	// It was right when the dispatcher started, which refuses keys that are not.
	if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.webhook_secrets SET sealed = $1`, seal.New(other).Seal([]byte("secret"), hook.ID.String())); err != nil {
		t.Fatal(err)
	}
	b.submit(hook, 300)
	b.eventually("deliveries were put off", func() bool {
		return b.count(`SELECT count(*) FROM fairhook.river_job WHERE metadata ? 'snoozes'`) > 0
	})
	began := b.clock.Now()
	b.eventually("some were tried again", func() bool {
		return b.count(`SELECT coalesce(max((metadata->>'snoozes')::integer), 0) FROM fairhook.river_job`) >= 2
	})
	seconds := b.clock.Now().Sub(began).Seconds()
	claims := b.count(`SELECT coalesce(sum((metadata->>'snoozes')::integer), 0) FROM fairhook.river_job`)
	if most := int((seconds + 2) * webhook.DefaultMaxInFlight); claims > most {
		t.Errorf("%d claims in %.1f s, for nothing; want no more than %d", claims, seconds, most)
	}
}
