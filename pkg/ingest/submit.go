package ingest

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	headerIdempotencyKey      = "Idempotency-Key"
	headerIdempotencyReplayed = "Idempotency-Replayed"

	maxIdempotencyKeyLength = 255
	// defaultContentType is a raw payload's media type where its sender named
	// none (RFC 9110, section 8.3).
	defaultContentType = "application/octet-stream"
)

// submit is POST /v1/events.
func (s *Server) submit(c echo.Context) error {
	if _, err := api.Query(c); err != nil {
		return err
	}
	body, err := api.ReadBody(c, s.maxBodyBytes)
	if err != nil {
		return err
	}
	sub, err := parseSubmission(body)
	if err != nil {
		return err
	}
	return s.accept(c, sub, webhook.FieldError{Pointer: "/type"})
}

// submitRaw is POST /v1/webhooks/{id}/events.
func (s *Server) submitRaw(c echo.Context) error {
	text := c.Param("id")
	id, err := webhook.ParseID(text)
	if err != nil {
		return postgres.NoWebhook(fmt.Sprintf("%.64q", text))
	}
	query, err := api.Query(c, "type")
	if err != nil {
		return err
	}
	eventType := query.Get("type")
	detail := webhook.CheckEventType(eventType)
	if eventType == "" {
		detail = "is required"
	}
	if detail != "" {
		return invalidEvent(webhook.FieldError{Parameter: "type", Detail: detail})
	}
	contentType := c.Request().Header.Get(echo.HeaderContentType)
	switch {
	case contentType == "":
		contentType = defaultContentType
	case len(contentType) > webhook.MaxContentTypeLength || !isPrintableASCII(contentType):
		return webhook.Errorf(webhook.CodeInvalid,
			"The Content-Type header must be at most %d characters of printable ASCII.", webhook.MaxContentTypeLength)
	}
	body, err := api.ReadBody(c, s.maxBodyBytes)
	if err != nil {
		return err
	}
	sub := &submission{way: wayRaw, webhookID: id, eventType: eventType, payload: body, contentType: contentType}
	return s.accept(c, sub, webhook.FieldError{Parameter: "type"})
}

func isPrintableASCII(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

func invalidEvent(faults ...webhook.FieldError) error {
	return &webhook.Error{Code: webhook.CodeInvalid, Message: "The event breaks rules.", Fields: faults}
}

// accept finds a submission's targets, hands it to the intake, and answers once
// it is committed. typeField is where the request has its event type.
func (s *Server) accept(c echo.Context, sub *submission, typeField webhook.FieldError) error {
	known := scopeOf(c)
	known.webhookID = sub.webhookID
	key, err := idempotencyKey(c.Request().Header, sub)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	targets, tenant, err := s.targets(ctx, sub, typeField)
	if err != nil {
		return err
	}
	ids := make([]webhook.ID, len(targets))
	for i, t := range targets {
		ids[i] = t.ID
	}
	receipt, err := s.intake.Submit(ctx, intake.Item{
		Tenant:      tenant,
		Type:        sub.eventType,
		Payload:     sub.payload,
		ContentType: sub.contentType,
		OccurredAt:  sub.occurredAt,
		Metadata:    sub.metadata,
		WebhookIDs:  ids,
		Key:         key,
	})
	if err != nil {
		return err
	}
	known.eventID = receipt.ID
	header := c.Response().Header()
	header.Set(echo.HeaderLocation, "/v1/events/"+receipt.ID.String())
	answer := acceptedEvent{
		ID:        receipt.ID,
		Tenant:    tenant,
		Type:      sub.eventType,
		CreatedAt: receipt.ID.Time(),
	}
	if receipt.Replayed {
		header.Set(headerIdempotencyReplayed, "true")
		targets = s.replayedTargets(ctx, receipt.WebhookIDs, targets)
	}
	answer.Deliveries = make([]acceptedDelivery, len(targets))
	for i, t := range targets {
		answer.Deliveries[i] = acceptedDelivery{t.ID, acceptedStatus(t.State)}
	}
	return api.WriteJSON(c, http.StatusAccepted, answer)
}

// acceptedEvent is the answer to a submit.
type acceptedEvent struct {
	ID         webhook.ID         `json:"id"`
	Tenant     string             `json:"tenant"`
	Type       string             `json:"type"`
	CreatedAt  time.Time          `json:"created_at"`
	Deliveries []acceptedDelivery `json:"deliveries"`
}

type acceptedDelivery struct {
	WebhookID webhook.ID     `json:"webhook_id"`
	Status    webhook.Status `json:"status"`
}

// acceptedStatus is where a delivery stands right after it was accepted.
func acceptedStatus(state webhook.State) webhook.Status {
	if state == webhook.StateActive {
		return webhook.StatusPending
	}
	return webhook.StatusParked
}

// targets are the webhooks that a submission goes to, whatever their state, and
// the tenant that it belongs to.
func (s *Server) targets(ctx context.Context, sub *submission, typeField webhook.FieldError) ([]catalog.Target, string, error) {
	if sub.way == wayFanOut {
		targets, err := s.catalog.Subscribers(ctx, sub.tenant, sub.eventType)
		if err != nil {
			return nil, "", fmt.Errorf("find the webhooks of an event: %w", err)
		}
		return targets, sub.tenant, nil
	}
	entry, err := s.catalog.Webhook(ctx, sub.webhookID)
	if err != nil {
		return nil, "", fmt.Errorf("find the webhook of an event: %w", err)
	}
	w := &entry.Webhook
	if !w.Subscribes(sub.eventType) {
		typeField.Detail = "is not among the webhook's event_types"
		return nil, "", invalidEvent(typeField)
	}
	return []catalog.Target{{ID: w.ID, State: w.State}}, w.Tenant, nil
}

// replayedTargets are the targets of an event that was accepted earlier. The
// states are today's: one that cannot be told, such as that of a webhook deleted
// since, counts as active, as it was then.
func (s *Server) replayedTargets(ctx context.Context, ids []webhook.ID, today []catalog.Target) []catalog.Target {
	states := make(map[webhook.ID]webhook.State, len(today))
	for _, t := range today {
		states[t.ID] = t.State
	}
	targets := make([]catalog.Target, len(ids))
	for i, id := range ids {
		state, known := states[id]
		if !known {
			state = webhook.StateActive
			if entry, err := s.catalog.Webhook(ctx, id); err == nil {
				state = entry.Webhook.State
			}
		}
		targets[i] = catalog.Target{ID: id, State: state}
	}
	return targets
}

// idempotencyKey reads the request's key, if it has one.
func idempotencyKey(header http.Header, sub *submission) (*intake.IdempotencyKey, error) {
	values := header.Values(headerIdempotencyKey)
	switch {
	case len(values) == 0:
		return nil, nil
	case len(values) > 1 || !isVisibleASCII(values[0], maxIdempotencyKeyLength):
		return nil, webhook.Errorf(webhook.CodeMalformed,
			"The header %s must be there once, with 1 to %d visible ASCII characters.",
			headerIdempotencyKey, maxIdempotencyKeyLength)
	}
	return &intake.IdempotencyKey{Key: values[0], Fingerprint: sub.fingerprint()}, nil
}
