package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Announcer writes operational events, in the transactions that write what they tell
// of. They are ordinary events of webhook.OperatorTenant.
type Announcer struct{ acceptor *Acceptor }

// NewAnnouncer prepares the statements.
func NewAnnouncer(jobs JobInsert) *Announcer { return &Announcer{acceptor: NewAcceptor(jobs)} }

// Announce stores events with their deliveries, in tx. One about a webhook of the
// operators is left out, so that operational events never cause others, and so is one
// that no operator's webhook subscribes to. Limits at acceptance do not hold for them.
// It returns those that it stored.
func (a *Announcer) Announce(ctx context.Context, tx pgx.Tx, events []webhook.OperationalEvent, now time.Time) ([]webhook.OperationalEvent, error) {
	about := make([]webhook.OperationalEvent, 0, len(events))
	for _, e := range events {
		if e.Subject.Tenant != webhook.OperatorTenant {
			about = append(about, e)
		}
	}
	if len(about) == 0 {
		return nil, nil
	}
	operators, err := LoadSubscriptions(ctx, tx, webhook.OperatorTenant)
	if err != nil || len(operators) == 0 {
		return nil, err
	}
	var (
		rows   []*NewEvent
		stored []webhook.OperationalEvent
	)
	for i := range about {
		e := &about[i]
		targets := subscribers(operators, string(e.Type))
		if len(targets) == 0 {
			continue
		}
		payload, err := e.Payload()
		if err != nil {
			return nil, err
		}
		at := e.At
		rows = append(rows, &NewEvent{Event: webhook.Event{
			ID: webhook.NewID(now), Tenant: webhook.OperatorTenant, Type: string(e.Type),
			Payload: payload, ContentType: webhook.ContentTypeJSON, OccurredAt: &at, WebhookIDs: targets,
		}})
		stored = append(stored, *e)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	if _, err := tx.Exec(ctx, `SELECT set_config('fairhook.announcing', 'on', true)`); err != nil {
		return nil, fmt.Errorf("announce %d events: %w", len(rows), err)
	}
	if _, err := a.acceptor.Accept(ctx, tx, rows, 0); err != nil {
		return nil, fmt.Errorf("announce: %w", err)
	}
	return stored, nil
}

func subscribers(all []Subscription, eventType string) (ids []webhook.ID) {
	for i := range all {
		w := webhook.Webhook{EventTypes: all[i].EventTypes}
		if w.Subscribes(eventType) {
			ids = append(ids, all[i].WebhookID)
		}
	}
	return ids
}

// Enabled says that a webhook which Fairhook had disabled is active again, in the
// transaction that made it so: that is announced.
func (a *Announcer) Enabled(ctx context.Context, tx pgx.Tx, w *webhook.Webhook, by webhook.RecoveredBy, now time.Time) error {
	if _, err := tx.Exec(ctx, `UPDATE fairhook.webhook_failures SET told = false WHERE webhook_id = $1`, w.ID); err != nil {
		return fmt.Errorf("note that webhook %s is enabled: %w", w.ID, err)
	}
	subject := webhook.NewSubject(w.Tenant, w.ID, w.URL)
	_, err := a.Announce(ctx, tx, []webhook.OperationalEvent{{
		Type: webhook.WebhookRecovered, At: now, Subject: subject, Data: webhook.RecoveredData{Subject: subject, By: by},
	}}, now)
	return err
}

// announceExhaustedSQL locks what is to be announced by now, at most $2 webhooks.
const announceExhaustedSQL = `
SELECT e.webhook_id, e.deliveries, e.event_ids, e.first_at, e.last_at, w.tenant, w.url
FROM fairhook.exhausted_deliveries e JOIN fairhook.webhooks w ON w.id = e.webhook_id
WHERE e.announce_at <= $1 AND e.deliveries > 0
ORDER BY e.announce_at, e.webhook_id LIMIT $2
FOR UPDATE OF e SKIP LOCKED`

// AnnounceExhausted announces the exhausted deliveries that were counted: one event
// for each webhook, of which the next comes after rest at the earliest, and at most so
// many events at once. What is left waits, and is counted on. It returns what it
// announced, and may be called by several at once.
func (a *Announcer) AnnounceExhausted(ctx context.Context, db Beginner, rest time.Duration, most int, now time.Time) (announced []webhook.OperationalEvent, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, announceExhaustedSQL, now, most)
		if err != nil {
			return err
		}
		var (
			events      []webhook.OperationalEvent
			ids         []webhook.ID
			data        webhook.ExhaustedData
			id          webhook.ID
			tenant, url string
		)
		_, err = pgx.ForEachRow(rows, []any{&id, &data.Deliveries, &data.EventIDs, &data.FirstAt, &data.LastAt, &tenant, &url}, func() error {
			data := data
			data.Subject = webhook.NewSubject(tenant, id, url)
			data.EventIDs = append([]webhook.ID(nil), data.EventIDs...)
			data.FirstAt, data.LastAt = data.FirstAt.UTC(), data.LastAt.UTC()
			events = append(events, webhook.OperationalEvent{Type: webhook.DeliveryExhausted, At: data.LastAt, Subject: data.Subject, Data: data})
			ids = append(ids, id)
			return nil
		})
		if err != nil {
			return err
		}
		if announced, err = a.Announce(ctx, tx, events, now); err != nil {
			return err
		}
		batch := &pgx.Batch{}
		if len(ids) > 0 {
			batch.Queue(`
				UPDATE fairhook.exhausted_deliveries
				SET deliveries = 0, event_ids = '{}', first_at = NULL, last_at = NULL, announce_at = $2
				WHERE webhook_id = ANY ($1)`, ids, now.Add(rest))
		}
		batch.Queue(`
			DELETE FROM fairhook.exhausted_deliveries WHERE webhook_id IN (
				SELECT webhook_id FROM fairhook.exhausted_deliveries
				WHERE announce_at <= $1 AND deliveries = 0 LIMIT $2 FOR UPDATE SKIP LOCKED)`, now, sweepBatch)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return nil, fmt.Errorf("announce exhausted deliveries: %w", err)
	}
	return announced, nil
}

// GrowthCandidate is a webhook whose backlog may have to be announced.
type GrowthCandidate struct {
	Subject    webhook.Subject
	State      webhook.State
	MaxBacklog int
	// Announced says that it was, and has not shrunk since.
	Announced bool
}

// GrowthCandidates reads webhooks of which a sample says that their backlogs are large,
// and those whose backlog was announced, at most so many: those that were looked at the
// longest ago. The operators' own are left out.
func GrowthCandidates(ctx context.Context, q Querier, sampled []webhook.ID, announced int) ([]GrowthCandidate, error) {
	rows, err := q.Query(ctx, `
		SELECT w.id, w.tenant, w.url, w.status, w.max_backlog, g.webhook_id IS NOT NULL
		FROM fairhook.webhooks w LEFT JOIN fairhook.growing_backlogs g ON g.webhook_id = w.id
		WHERE w.tenant <> $3 AND (
			w.id = ANY ($1) AND g.webhook_id IS NULL
			OR w.id IN (SELECT webhook_id FROM fairhook.growing_backlogs ORDER BY checked_at LIMIT $2))`,
		sampled, announced, webhook.OperatorTenant)
	if err != nil {
		return nil, fmt.Errorf("read webhooks with large backlogs: %w", err)
	}
	var (
		found       []GrowthCandidate
		id          webhook.ID
		tenant, url string
		c           GrowthCandidate
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &tenant, &url, &c.State, &c.MaxBacklog, &c.Announced}, func() error {
		c.Subject = webhook.NewSubject(tenant, id, url)
		found = append(found, c)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read webhooks with large backlogs: %w", err)
	}
	return found, nil
}

// Backlogs notes which backlogs have grown, and which have shrunk or are to be looked
// at again later: those that nobody noted yet are announced. It returns what it
// announced.
func (a *Announcer) Backlogs(
	ctx context.Context, db Beginner, grown []webhook.GrowingData, shrunk, checked []webhook.ID, now time.Time,
) (announced []webhook.OperationalEvent, err error) {
	if len(grown)+len(shrunk)+len(checked) == 0 {
		return nil, nil
	}
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		ids := make([]webhook.ID, len(grown))
		for i := range grown {
			ids[i] = grown[i].WebhookID
		}
		rows, err := tx.Query(ctx, `
			INSERT INTO fairhook.growing_backlogs (webhook_id) SELECT id FROM unnest($1::uuid[]) AS a (id) ORDER BY id
			ON CONFLICT DO NOTHING RETURNING webhook_id`, ids)
		if err != nil {
			return err
		}
		fresh := map[webhook.ID]bool{}
		var id webhook.ID
		if _, err := pgx.ForEachRow(rows, []any{&id}, func() error { fresh[id] = true; return nil }); err != nil {
			return err
		}
		var events []webhook.OperationalEvent
		for _, g := range grown {
			if fresh[g.WebhookID] {
				events = append(events, webhook.OperationalEvent{Type: webhook.BacklogGrowing, At: now, Subject: g.Subject, Data: g})
			}
		}
		if announced, err = a.Announce(ctx, tx, events, now); err != nil {
			return err
		}
		batch := &pgx.Batch{}
		batch.Queue(`DELETE FROM fairhook.growing_backlogs WHERE webhook_id = ANY ($1)`, shrunk)
		batch.Queue(`UPDATE fairhook.growing_backlogs SET checked_at = clock_timestamp() WHERE webhook_id = ANY ($1)`, checked)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return nil, fmt.Errorf("note backlogs: %w", err)
	}
	return announced, nil
}
