package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// RequestTest asks the dispatchers for a test of a webhook, unless one is under way or
// was asked for within webhook.TestRest: then it says how long to wait, and asks for
// none. The error is a *webhook.Error with CodeNotFound when there is no such webhook.
func RequestTest(ctx context.Context, tx pgx.Tx, id, webhookID webhook.ID) (wait time.Duration, err error) {
	w, err := LockWebhook(ctx, tx, webhookID)
	if err != nil {
		return 0, err
	}
	var seconds float64
	err = tx.QueryRow(ctx, `
		SELECT coalesce(max(extract(epoch FROM requested_at - now() +
		       CASE WHEN finished_at IS NULL AND requested_at > now() - $3::interval THEN $3::interval ELSE $2::interval END))::double precision, 0)
		FROM fairhook.webhook_tests WHERE webhook_id = $1`, webhookID, webhook.TestRest, webhook.TestLost).Scan(&seconds)
	if err != nil {
		return 0, fmt.Errorf("look for tests of webhook %s: %w", webhookID, err)
	}
	if seconds > 0 {
		return time.Duration(seconds * float64(time.Second)), nil
	}
	batch := &pgx.Batch{}
	batch.Queue(`INSERT INTO fairhook.webhook_tests (id, webhook_id) VALUES ($1, $2)`, id, webhookID)
	// Dispatchers look for tests when a webhook changes, and read it anew.
	batch.Queue(`SELECT pg_notify($1, $2)`, CatalogChannel, webhookID.String()+" "+w.Tenant)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return 0, fmt.Errorf("ask for a test of webhook %s: %w", webhookID, err)
	}
	return 0, nil
}

// Test reads a test of a webhook; a *webhook.Error with CodeNotFound when there is
// none, or none any more.
func Test(ctx context.Context, q Querier, webhookID, id webhook.ID) (*webhook.Test, error) {
	t := &webhook.Test{}
	var lost bool
	err := q.QueryRow(ctx, `
		SELECT t.id, t.webhook_id, t.requested_at, t.finished_at, t.reason, t.status_code,
		       t.auth_us, t.dns_us, t.connect_us, t.tls_us, t.first_byte_us, t.total_us, t.response, t.detail,
		       w.status, t.requested_at < now() - $3::interval
		FROM fairhook.webhook_tests t JOIN fairhook.webhooks w ON w.id = t.webhook_id
		WHERE t.webhook_id = $1 AND t.id = $2`, webhookID, id, webhook.TestLost,
	).Scan(&t.ID, &t.WebhookID, &t.RequestedAt, &t.FinishedAt, &t.Reason, &t.StatusCode,
		&t.Timings.Auth, &t.Timings.DNS, &t.Timings.Connect, &t.Timings.TLS, &t.Timings.FirstByte, &t.Timings.Total, &t.Response, &t.Detail,
		&t.WebhookState, &lost)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, NoTest(id.String())
	case err != nil:
		return nil, fmt.Errorf("load test %s: %w", id, err)
	}
	t.RequestedAt, t.FinishedAt = t.RequestedAt.UTC(), utc(t.FinishedAt)
	switch {
	case t.FinishedAt == nil && lost:
		t.Status = webhook.TestStatusLost
	case t.FinishedAt == nil:
		t.Status = webhook.TestStatusPending
	case *t.Reason == webhook.ReasonDelivered:
		t.Status = webhook.TestStatusDelivered
	default:
		t.Status = webhook.TestStatusFailed
	}
	return t, nil
}

// NoTest is the error for a test that does not exist, by the id that was asked for.
func NoTest(id string) *webhook.Error {
	return webhook.Errorf(webhook.CodeNotFound, "There is no test %s of the webhook.", id)
}

// ClaimedTest is a test that an instance is to make.
type ClaimedTest struct{ ID, WebhookID webhook.ID }

// ClaimTests gives an instance tests to make, at most so many: those that nobody
// claimed and somebody may still wait for. A test is claimed once.
func ClaimTests(ctx context.Context, q Querier, instance string, most int) ([]ClaimedTest, error) {
	rows, err := q.Query(ctx, `
		UPDATE fairhook.webhook_tests SET claimed_at = now(), instance = $1
		WHERE id IN (
			SELECT id FROM fairhook.webhook_tests
			WHERE claimed_at IS NULL AND requested_at > now() - $3::interval
			ORDER BY requested_at LIMIT $2 FOR UPDATE SKIP LOCKED)
		RETURNING id, webhook_id`, instance, most, webhook.TestUnclaimed)
	if err != nil {
		return nil, fmt.Errorf("claim tests: %w", err)
	}
	tests, err := pgx.CollectRows(rows, pgx.RowToStructByPos[ClaimedTest])
	if err != nil {
		return nil, fmt.Errorf("claim tests: %w", err)
	}
	return tests, nil
}

// FinishTest records how a test ended. A test that succeeded shows that the webhook
// works: one that Fairhook had disabled is active again, what closed its gate is over,
// and nothing counts as failure that was before. One that is paused stays paused, since
// somebody wanted that. It returns what there was to announce.
func (a *Announcer) FinishTest(ctx context.Context, db Beginner, t *webhook.Test, now time.Time) (happened []webhook.OperationalEvent, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		happened = nil
		works := *t.Reason == webhook.ReasonDelivered
		var w *webhook.Webhook
		if works {
			var err error
			if w, err = LockWebhook(ctx, tx, t.WebhookID); err != nil && webhook.ErrorCode(err) != webhook.CodeNotFound {
				return err
			}
		}
		tag, err := tx.Exec(ctx, `
			UPDATE fairhook.webhook_tests
			SET finished_at = clock_timestamp(), reason = $2, status_code = $3, dns_us = $4, connect_us = $5, tls_us = $6,
			    first_byte_us = $7, total_us = $8, response = $9, detail = $10, auth_us = $11
			WHERE id = $1 AND finished_at IS NULL`,
			t.ID, *t.Reason, t.StatusCode, t.Timings.DNS, t.Timings.Connect, t.Timings.TLS, t.Timings.FirstByte, t.Timings.Total, t.Response, t.Detail,
			t.Timings.Auth)
		if err != nil || tag.RowsAffected() == 0 || w == nil {
			return err
		}
		if w.State == webhook.StateDisabled {
			if _, err := SetWebhookState(ctx, tx, w.ID, webhook.StateActive); err != nil {
				return err
			}
			subject := webhook.NewSubject(w.Tenant, w.ID, w.URL)
			happened = append(happened, webhook.OperationalEvent{
				Type: webhook.WebhookRecovered, At: now, Subject: subject, Data: webhook.RecoveredData{Subject: subject, By: webhook.RecoveredTest},
			})
			return a.Enabled(ctx, tx, w, webhook.RecoveredTest, now)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM fairhook.lane_gates WHERE webhook_id = $1`, w.ID); err != nil {
			return err
		}
		recovered, err := changeFailures(ctx, tx, []FailureChange{{WebhookID: w.ID, SucceededAt: now}}, webhook.FailurePolicy{}, now)
		if err != nil {
			return err
		}
		for i := range recovered {
			data := recovered[i].Data.(webhook.RecoveredData) // a success announces nothing else
			data.By = webhook.RecoveredTest
			recovered[i].Data = data
		}
		happened = recovered
		_, err = a.Announce(ctx, tx, happened, now)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("record test %s of webhook %s: %w", t.ID, t.WebhookID, err)
	}
	return happened, nil
}
