package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// maxReplayLookups is how many requests may look up keys at the same time: a
	// flood of refused submissions must not take the connections of others.
	maxReplayLookups = 2
	// replayTimeout bounds a look-up, the wait for its turn included.
	replayTimeout = time.Second
)

// repeat is a submission that was refused. If it has been accepted before, under
// the same idempotency key, the refusal is beside the point: checks are made with
// today's configuration, and the answer is to be that of the first time.
type repeat struct {
	sub *submission
	key *intake.IdempotencyKey // nil: none
	// err is the refusal and, after replay, what to answer: nil if prepared and
	// receipt are set.
	err error

	prepared *prepared
	receipt  intake.Receipt

	tenant string // whose the submission is; empty: nobody's that the caller covers
}

// passing reports whether the refusal says to try again, so that it is no wrong
// answer to a submission that has been accepted before.
func (r *repeat) passing() bool {
	switch webhook.ErrorCode(r.err) {
	case webhook.CodeRateLimited, webhook.CodeBacklogFull:
		return true
	}
	return false
}

// lookedUp reports whether an earlier submission could change the answer, and is
// worth looking for. While the service or its database has trouble it is not: the
// caller is told to come again, and nothing is added to that.
func (r *repeat) lookedUp() bool {
	return r.key != nil && webhook.ErrorCode(r.err) != webhook.CodeUnavailable &&
		!postgres.Unavailable(r.err) && !errors.Is(r.err, context.Canceled)
}

// replay looks for earlier submissions with the keys of refused ones, and has
// those that are found answered as they were. A submission that is being stored
// right now is not found: its repetition stays refused. An error means that
// nobody knows how to answer.
func (s *Server) replay(c echo.Context, repeats []*repeat) error {
	asked := make([]*repeat, 0, len(repeats))
	patient := false
	for _, r := range repeats {
		if r.lookedUp() {
			asked = append(asked, r)
			patient = patient || !r.passing()
		}
	}
	if len(asked) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), replayTimeout)
	defer cancel()
	switch {
	case s.replays.TryAcquire(1):
	case !patient:
		return nil
	case s.replays.Acquire(ctx, 1) != nil:
		return errReplayUnknown()
	}
	defer s.replays.Release(1)
	err := s.findEarlier(ctx, api.PrincipalOf(c), asked)
	switch {
	case err == nil:
		return nil
	case c.Request().Context().Err() != nil:
		return c.Request().Context().Err()
	case postgres.Unavailable(err) || webhook.ErrorCode(err) == webhook.CodeUnavailable:
		if !patient {
			return nil
		}
		return errReplayUnknown()
	}
	return fmt.Errorf("look for earlier submissions: %w", err)
}

// findEarlier sets the answers of what was submitted before.
func (s *Server) findEarlier(ctx context.Context, principal webhook.Principal, repeats []*repeat) error {
	if err := s.findTenants(ctx, principal, repeats); err != nil {
		return err
	}
	var names []postgres.KeyName
	for _, r := range repeats {
		if r.tenant != "" {
			names = append(names, postgres.KeyName{Tenant: r.tenant, Key: r.key.Key})
		}
	}
	if len(names) == 0 {
		return nil
	}
	stored, err := postgres.StoredKeys(ctx, s.pool, names)
	if err != nil {
		return err
	}
	for _, r := range repeats {
		key, known := stored[postgres.KeyName{Tenant: r.tenant, Key: r.key.Key}]
		switch {
		case !known:
		case key.Fingerprint != r.key.Fingerprint:
			r.err = intake.ErrKeyTaken
		default:
			r.err = nil
			r.receipt = intake.Receipt{ID: key.EventID, WebhookIDs: key.WebhookIDs, Dropped: key.Dropped, Replayed: true}
			r.prepared = &prepared{item: intake.Item{Tenant: r.tenant, Type: r.sub.eventType}, admission: &admission{}}
			s.metrics.replays.Inc()
		}
	}
	return nil
}

// findTenants finds out whose the submissions are, as far as the principal may
// know: webhooks that are gone had a tenant, too.
func (s *Server) findTenants(ctx context.Context, principal webhook.Principal, repeats []*repeat) error {
	var gone []webhook.ID
	for _, r := range repeats {
		if r.sub.way == wayFanOut {
			r.tenant = r.sub.tenant
			continue
		}
		entry, err := s.catalog.Webhook(ctx, r.sub.webhookID)
		switch {
		case err == nil:
			r.tenant = entry.Webhook.Tenant
		case webhook.ErrorCode(err) == webhook.CodeNotFound:
			gone = append(gone, r.sub.webhookID)
		default:
			return err
		}
	}
	if len(gone) > 0 {
		tenants, err := postgres.DeletedWebhookTenants(ctx, s.pool, gone)
		if err != nil {
			return err
		}
		for _, r := range repeats {
			if r.tenant == "" {
				r.tenant = tenants[r.sub.webhookID]
			}
		}
	}
	for _, r := range repeats {
		if !principal.Covers(r.tenant) {
			r.tenant = ""
		}
	}
	return nil
}

func errReplayUnknown() error {
	return &webhook.Error{
		Code: webhook.CodeUnavailable,
		Message: "It cannot be found out at the moment whether an event was accepted under this Idempotency-Key before. " +
			"Nothing was kept; try again.",
		RetryAfter: limitRetryAfter,
	}
}
