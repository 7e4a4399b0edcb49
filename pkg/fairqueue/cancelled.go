package fairqueue

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// endRecordedSQL asks whether the end of a delivery ($1, $2) was recorded under its
// last claim, of job $3.
const endRecordedSQL = `
SELECT EXISTS (
	SELECT FROM fairhook.attempts a JOIN fairhook.river_job r ON r.id = $3
	WHERE a.event_id = $1 AND a.webhook_id = $2
	  AND a.status NOT IN ('pending', 'delivering', 'retrying', 'parked')
	  AND a.instance = r.attempted_by[array_upper(r.attempted_by, 1)]
	  AND a.id >= fairhook.uuid_floor(r.attempted_at - interval '1 second'))`

// recordCancelled puts the end of deliveries on record that are finished as cancelled
// without it. Somebody asked for that while they ran: then River cancels what was to
// be tried again, also when the request was answered already, or the worker never
// heard of it.
func (q *Queue) recordCancelled(ctx context.Context, tx pgx.Tx, jobs []*rivertype.JobRow) error {
	for _, j := range jobs {
		if j.State != rivertype.JobStateCancelled || j.Kind != job.KindDelivery {
			continue
		}
		var args job.Delivery
		if err := json.Unmarshal(j.EncodedArgs, &args); err != nil {
			return fmt.Errorf("read the arguments of job %d: %w", j.ID, err)
		}
		var recorded bool
		if err := tx.QueryRow(ctx, endRecordedSQL, args.EventID, args.WebhookID, j.ID).Scan(&recorded); err != nil {
			return fmt.Errorf("look for the end of job %d: %w", j.ID, err)
		}
		if recorded {
			continue
		}
		now := q.cfg.Clock.Now()
		err := postgres.RecordEnd(ctx, tx, webhook.Attempt{
			ID: webhook.NewID(now), EventID: args.EventID, WebhookID: args.WebhookID, StartedAt: now, Instance: q.cfg.ClientID,
			Reason: webhook.ReasonCancelled, Status: webhook.StatusCancelled,
		})
		if err != nil {
			return fmt.Errorf("end job %d: %w", j.ID, err)
		}
	}
	return nil
}
