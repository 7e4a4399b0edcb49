package dispatch

import (
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestHealth(t *testing.T) {
	t.Parallel()

	t.Run("CountsTheAttemptsOfWebhooksInTroubleAlone", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		failing, well := newReceiver(t, answer(500)), newReceiver(t, answer(200))
		one, two := b.hook(failing.URL), b.hook(well.URL)
		closed := func(c *Config) { c.NoBreaker = true }
		p, other := b.start(closed), b.start(closed)
		events := b.submit(one, 5)
		b.submit(two, 5)
		for _, event := range events {
			b.ended(event)
		}
		b.eventually("all attempts are counted", func() bool {
			counts, err := postgres.RecentLaneHealth(t.Context(), b.db, time.Minute, 10)
			if err != nil {
				t.Fatal(err)
			}
			return slices.Equal(counts, []postgres.LaneHealth{{WebhookID: one.ID, Failed: 15}})
		})
		for _, p := range []*process{p, other} {
			if err := p.stop(); err != nil {
				t.Error(err)
			}
		}
	})

	now := time.Now()
	id := func(n int) webhook.ID { return webhook.ID{byte(n >> 8), byte(n)} }
	h := func() *health { return newHealth(nil, slog.New(slog.DiscardHandler)) }
	t.Run("CostsNothingForWebhooksThatAreWell", func(t *testing.T) {
		t.Parallel()
		h := h()
		h.observe(id(1), webhook.ReasonDelivered)
		h.observe(id(2), webhook.ReasonInternalError)
		h.flush(t.Context(), now) // has no database
		if len(h.unwell) != 0 {
			t.Errorf("kept %v", h.unwell)
		}
	})
	t.Run("CountsForAMinuteAfterTheLastFailure", func(t *testing.T) {
		t.Parallel()
		h := h()
		for _, reason := range webhook.Reasons() {
			h.observe(id(1), reason)
		}
		failed := int64(len(webhook.Reasons()) - 2)
		now := time.Now() // of the last failure, if not a moment later
		// The order of the closed set: delivered came first, before any failure.
		if got := h.collect(now); !slices.Equal(got, []postgres.LaneHealth{{WebhookID: id(1), Failed: failed}}) {
			t.Errorf("collected %+v", got)
		}
		h.observe(id(1), webhook.ReasonDelivered)
		if got := h.collect(now.Add(59 * time.Second)); !slices.Equal(got, []postgres.LaneHealth{{WebhookID: id(1), Delivered: 1}}) {
			t.Errorf("collected %+v", got)
		}
		if got := h.collect(now.Add(59 * time.Second)); len(got) != 0 {
			t.Errorf("collected %+v without news", got)
		}
		h.observe(id(1), webhook.ReasonDelivered)
		if got := h.collect(now.Add(62 * time.Second)); len(got) != 1 || len(h.unwell) != 0 {
			t.Errorf("collected %+v, and kept %v", got, h.unwell)
		}
	})
	t.Run("BoundsItsMemory", func(t *testing.T) {
		t.Parallel()
		h := h()
		for n := range maxUnwell + 10 {
			h.observe(id(n), webhook.ReasonTimeout)
		}
		if got := len(h.collect(now)); got != maxUnwell {
			t.Errorf("%d webhooks are counted", got)
		}
	})
}

func TestLaneHealthRows(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	ids := []webhook.ID{{1}, {2}, {3}}
	recent := func(within time.Duration, limit int) map[webhook.ID]postgres.LaneHealth {
		t.Helper()
		rows, err := postgres.RecentLaneHealth(t.Context(), db, within, limit)
		if err != nil {
			t.Fatal(err)
		}
		counts := map[webhook.ID]postgres.LaneHealth{}
		for _, row := range rows {
			counts[row.WebhookID] = row
		}
		return counts
	}
	// Several dispatchers at once, each with its webhooks in an order of its own.
	var dispatchers sync.WaitGroup
	for n := range 8 {
		dispatchers.Go(func() {
			for range 10 {
				counts := []postgres.LaneHealth{{WebhookID: ids[n%3], Delivered: 1, Failed: 2}, {WebhookID: ids[(n+1)%3], Delivered: 1, Failed: 2}, {WebhookID: ids[(n+2)%3], Delivered: 1, Failed: 2}}
				if err := postgres.AddLaneHealth(t.Context(), db, counts); err != nil {
					t.Error(err)
				}
			}
		})
	}
	dispatchers.Wait()
	for _, id := range ids {
		if got := recent(time.Minute, 10)[id]; got != (postgres.LaneHealth{WebhookID: id, Delivered: 80, Failed: 160}) {
			t.Errorf("counters are %+v", got)
		}
	}
	if _, err := db.Exec(t.Context(), `UPDATE fairhook.lane_health SET updated_at = now() - interval '10 seconds' * webhook_id_number FROM (
		SELECT webhook_id AS id, row_number() OVER (ORDER BY webhook_id) AS webhook_id_number FROM fairhook.lane_health) AS n WHERE n.id = webhook_id`); err != nil {
		t.Fatal(err)
	}
	if got := recent(15*time.Second, 10); len(got) != 1 || got[ids[0]].Failed == 0 {
		t.Errorf("of the last 15 s there are %v", got)
	}
	if got := recent(time.Minute, 2); len(got) != 2 || got[ids[2]].Failed != 0 {
		t.Errorf("the two latest are %v", got)
	}
}
