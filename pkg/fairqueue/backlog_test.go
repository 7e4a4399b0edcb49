package fairqueue

import (
	"testing"

	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestSampleBacklogs(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	// 300 lanes of 20 deliveries, mixed, and then one of 3,000 in two states, with jobs that
	// have ended and others that are none.
	_, err := db.Exec(t.Context(), `
		INSERT INTO fairhook.river_job (args, kind, max_attempts, queue, tags, state, finalized_at)
		SELECT '{}', kind, 1, 'wh-' || lpad(to_hex(lane), 8, '0') || '-0000-7000-8000-000000000000', '{}', state::fairhook.river_job_state,
		       CASE state WHEN 'cancelled' THEN now() END
		FROM (
			SELECT 'delivery' AS kind, i % 300 AS lane, 'available' AS state FROM generate_series(1, 6000) AS i
			UNION ALL SELECT 'delivery', 4095, CASE i % 2 WHEN 0 THEN 'retryable' ELSE 'scheduled' END FROM generate_series(1, 3000) AS i
			UNION ALL SELECT 'delivery', 4094, 'cancelled' FROM generate_series(1, 5000)
			UNION ALL SELECT 'other', 4093, 'available' FROM generate_series(1, 5000)
		) AS jobs`)
	if err != nil {
		t.Fatal(err)
	}
	large, err := webhook.ParseID("00000fff-0000-7000-8000-000000000000")
	if err != nil {
		t.Fatal(err)
	}

	t.Run("CountATableOfNoMorePagesExactly", func(t *testing.T) {
		t.Parallel()
		got, err := SampleBacklogs(t.Context(), db, 100_000, 5)
		if err != nil || len(got) != 5 || got[0] != (LargeBacklog{large, 3000}) || got[1].Estimate != 20 {
			t.Errorf("got %+v, error %v", got, err)
		}
	})
	t.Run("FindTheLargestInAPartOfIt", func(t *testing.T) {
		t.Parallel()
		for range 100 { // each looks at pages of its own choice
			got, err := SampleBacklogs(t.Context(), db, 40, 1)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == 1 && got[0].WebhookID == large {
				if got[0].Estimate > 30_000 {
					t.Errorf("its estimate is %d", got[0].Estimate)
				}
				return
			}
		}
		t.Error("it is never found")
	})
}
