package fairqueue

import (
	"testing"
	"time"

	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// A cancel of a running delivery that its worker did not hear of, or that came when
// its request had been answered, is carried out by River as the delivery is finished.
func TestACancelThatTheWorkerDidNotSeePutsTheEndOnRecord(t *testing.T) {
	t.Parallel()
	later := time.Now().Add(time.Hour)
	for name, finish := range map[string]func(id int64) *riverdriver.JobSetStateIfRunningParams{
		"OfADeliveryThatFailed": func(id int64) *riverdriver.JobSetStateIfRunningParams {
			return riverdriver.JobSetStateErrorRetryable(id, later, []byte(`{}`), nil)
		},
		"OfOneThatIsTriedAgainSoon": func(id int64) *riverdriver.JobSetStateIfRunningParams {
			return riverdriver.JobSetStateErrorAvailable(id, later, []byte(`{}`), nil)
		},
		"OfOneThatWasPutOff": func(id int64) *riverdriver.JobSetStateIfRunningParams {
			return riverdriver.JobSetStateSnoozed(id, later, 0, nil)
		},
		"OfOneThatRiverCancelsByItself": func(id int64) *riverdriver.JobSetStateIfRunningParams {
			return riverdriver.JobSetStateCancelled(id, time.Now(), []byte(`{}`), nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			event := b.insert(t, b.newID(), 1)[0]
			b.discoverAll(t)
			j := b.fetchJobs(t, 1)[0]
			b.execOne(t, `UPDATE fairhook.river_job SET metadata = '{"cancel_attempted_at":"2026-01-01T00:00:00Z"}'`)
			b.finish(t, finish(j.ID))
			if state := scan[string](t, b, `SELECT state::text FROM fairhook.river_job`); state != string(rivertype.JobStateCancelled) {
				t.Fatalf("the job is %s", state)
			}
			wantEnd(t, b, event, webhook.ReasonCancelled, webhook.StatusCancelled)
		})
	}
}
