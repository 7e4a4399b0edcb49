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
	"github.com/fairhook/fairhook/pkg/signature"
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
	sub, err := s.parse(body)
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
	query, err := api.Query(c, "type", "ordering_key")
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
	orderingKey := query.Get("ordering_key")
	if query.Has("ordering_key") {
		if detail := webhook.CheckOrderingKey(orderingKey); detail != "" {
			return invalidEvent(webhook.FieldError{Parameter: "ordering_key", Detail: detail})
		}
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
	if webhook.IsJSON(contentType) {
		if err := s.bounds.Check(body); err != nil {
			return err
		}
	}
	sub := &submission{
		way: wayRaw, webhookID: id, eventType: eventType, payload: body, contentType: contentType, orderingKey: orderingKey,
	}
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

// accept stores a submission, and answers once it is committed. typeField is
// where the request has its event type.
func (s *Server) accept(c echo.Context, sub *submission, typeField webhook.FieldError) error {
	scopeOf(c).webhookID = sub.webhookID
	key, err := idempotencyKey(c.Request().Header, signedID(c), sub)
	if err != nil {
		return err
	}
	p, err := s.prepare(c, sub, typeField)
	if err != nil {
		again := &repeat{sub: sub, key: key, err: err}
		if err := s.replay(c, []*repeat{again}); err != nil {
			return err
		}
		if again.err != nil {
			return again.err
		}
		return s.answer(c, again.prepared, again.receipt)
	}
	p.item.Key = key
	receipt, err := s.intake.Submit(c.Request().Context(), p.item)
	p.admission.settle(receipt, err)
	if err != nil {
		return err
	}
	return s.answer(c, p, receipt)
}

// answer tells a producer that its event is stored.
func (s *Server) answer(c echo.Context, p *prepared, receipt intake.Receipt) error {
	scopeOf(c).eventID = receipt.ID
	header := c.Response().Header()
	header.Set(echo.HeaderLocation, eventPath(receipt.ID))
	if receipt.Replayed {
		header.Set(headerIdempotencyReplayed, "true")
	}
	return api.WriteJSON(c, http.StatusAccepted, s.accepted(c.Request().Context(), p, receipt))
}

// prepared is a submission that may be stored, with where it goes.
type prepared struct {
	item    intake.Item // without its Key
	targets []catalog.Target
	// admission counts the event in the limits: settle must be called once it is
	// known what became of the event, also when it is not submitted after all.
	admission *admission
}

// prepare makes every check that a submission must pass before it is stored,
// whatever its way in, and finds its targets. typeField is where the request has
// its event type.
func (s *Server) prepare(c echo.Context, sub *submission, typeField webhook.FieldError) (*prepared, error) {
	targets, tenant, err := s.targets(c, sub, typeField)
	if err != nil {
		return nil, err
	}
	if err := s.checkPayload(c.Request().Context(), sub, typeField); err != nil {
		return nil, err
	}
	ids := make([]webhook.ID, len(targets))
	for i, t := range targets {
		ids[i] = t.ID
	}
	admission, err := s.limits.admit(c.Request().Context(), sub, tenant, targets)
	if err != nil {
		return nil, err
	}
	return &prepared{
		item: intake.Item{
			Tenant:      tenant,
			Type:        sub.eventType,
			Payload:     sub.payload,
			ContentType: sub.contentType,
			OccurredAt:  sub.occurredAt,
			Metadata:    sub.metadata,
			OrderingKey: sub.orderingKey,
			WebhookIDs:  ids,
			Dropped:     admission.dropped,
		},
		targets:   targets,
		admission: admission,
	}, nil
}

// accepted is what a producer is told about its event once it is stored.
func (s *Server) accepted(ctx context.Context, p *prepared, receipt intake.Receipt) acceptedEvent {
	targets := p.targets
	if receipt.Replayed {
		targets = s.replayedTargets(ctx, receipt.WebhookIDs, targets)
	}
	answer := acceptedEvent{
		ID:         receipt.ID,
		Tenant:     p.item.Tenant,
		Type:       p.item.Type,
		CreatedAt:  receipt.ID.Time(),
		Deliveries: make([]acceptedDelivery, len(targets)),
	}
	for i, t := range targets {
		answer.Deliveries[i] = acceptedDelivery{t.ID, acceptedStatus(t.State)}
	}
	if len(receipt.Dropped) > 0 {
		dropped := make(map[webhook.ID]bool, len(receipt.Dropped))
		for _, id := range receipt.Dropped {
			dropped[id] = true
		}
		for i := range answer.Deliveries {
			if d := &answer.Deliveries[i]; dropped[d.WebhookID] {
				d.Status = webhook.StatusDropped
			}
		}
	}
	return answer
}

// eventPath is where an event can be read.
func eventPath(id webhook.ID) string { return "/v1/events/" + id.String() }

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

// errOperatorTenant refuses events that only Fairhook itself writes.
var errOperatorTenant = webhook.Errorf(webhook.CodeForbidden,
	"The tenant "+webhook.OperatorTenant+" is for Fairhook's own events: nobody submits for it.")

// targets are the webhooks that a submission goes to, whatever their state, and
// the tenant that it belongs to. It also decides whether the request may submit
// to that tenant, and to that webhook.
func (s *Server) targets(c echo.Context, sub *submission, typeField webhook.FieldError) ([]catalog.Target, string, error) {
	ctx, principal := c.Request().Context(), api.PrincipalOf(c)
	if sub.way == wayFanOut {
		if sub.tenant == webhook.OperatorTenant {
			return nil, "", errOperatorTenant
		}
		if !principal.Covers(sub.tenant) {
			return nil, "", webhook.Errorf(webhook.CodeForbidden, "The API key is for one tenant, and submits for that tenant alone.")
		}
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
	if !principal.Covers(w.Tenant) {
		return nil, "", postgres.NoWebhook(w.ID.String())
	}
	if w.Tenant == webhook.OperatorTenant {
		return nil, "", errOperatorTenant
	}
	if client := s.clientAddr(c.Request()); !webhook.AllowsAddr(entry.AllowedFrom, client) {
		return nil, "", webhook.Errorf(webhook.CodeForbidden, "Events may not be submitted to the webhook from %s.", shownAddr(client))
	}
	if !w.Subscribes(sub.eventType) {
		typeField.Detail = "is not among the webhook's event_types"
		return nil, "", invalidEvent(typeField)
	}
	target := catalog.Target{ID: w.ID, State: w.State, MaxBacklog: w.MaxBacklog}
	if w.AcceptPerSecond != nil {
		target.AcceptPerSecond = *w.AcceptPerSecond
	}
	return []catalog.Target{target}, w.Tenant, nil
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

// idempotencyKey is a submission's key, if its request has one.
func idempotencyKey(header http.Header, signed string, sub *submission) (*intake.IdempotencyKey, error) {
	key, err := requestKey(header, signed)
	if err != nil {
		return nil, err
	}
	return keyOf(sub, key), nil
}

// keyOf is a submission's idempotency key by its text, nil if that is empty.
func keyOf(sub *submission, text string) *intake.IdempotencyKey {
	if text == "" {
		return nil
	}
	return &intake.IdempotencyKey{Key: text, Fingerprint: sub.fingerprint()}
}

// requestKey reads a request's idempotency key, empty if it has none. That of a
// signed submission is its webhook-id, given as signed: any other would not be
// covered by the signature.
func requestKey(header http.Header, signed string) (string, error) {
	values := header.Values(headerIdempotencyKey)
	switch {
	case signed != "" && (len(values) == 0 || len(values) == 1 && values[0] == signed):
		return signed, nil
	case signed != "":
		return "", webhook.Errorf(webhook.CodeMalformed,
			"The idempotency key of a signed submission is its %s: leave %s out, or send the same.", signature.HeaderID, headerIdempotencyKey)
	case len(values) == 0:
		return "", nil
	case len(values) > 1 || !isVisibleASCII(values[0], maxIdempotencyKeyLength):
		return "", webhook.Errorf(webhook.CodeMalformed,
			"The header %s must be there once, with 1 to %d visible ASCII characters.",
			headerIdempotencyKey, maxIdempotencyKeyLength)
	}
	return values[0], nil
}
