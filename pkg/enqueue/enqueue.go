// Package enqueue submits events inside a transaction of the producer's own, for
// programs whose data lives in the same database as Fairhook: the event and its
// deliveries exist if and only if that transaction commits.
//
// It calls the SQL function fairhook.submit_event, which holds all the rules, and
// translates its errors. The database role needs what fairhook.grant_submit
// gives and nothing else. docs/transactional-submit.md says what differs from a
// submission over REST.
//
// It stands apart from the server's packages, package webhook excepted, so that
// producers link nothing of the server.
package enqueue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Event is what to submit. Either Tenant or WebhookID is required.
type Event struct {
	// Tenant is whose event it is. It goes to each of the tenant's webhooks that
	// subscribes to its type, whatever their status, unless there is a WebhookID.
	Tenant string
	// WebhookID is the one webhook to send to. With a Tenant beside it, it must be
	// one of that tenant's.
	WebhookID webhook.ID
	// Type is the event's type. Required.
	Type string
	// Payload is what receivers get, byte for byte. Required: JSON, unless
	// ContentType says that it is something else.
	Payload []byte
	// ContentType is the payload's media type. Empty: the payload is JSON, and is
	// checked to be. Otherwise it is sent as it is, unchecked.
	ContentType string
	// OccurredAt is when it happened, to the microsecond, where that is worth
	// saying. It is kept with the event and not sent. Zero: not said.
	OccurredAt time.Time
	// Metadata are labels of the producer's own, kept with the event and not sent.
	Metadata map[string]string
	// OrderingKey is what the event is ordered by at webhooks that are ordered by key.
	// Empty: it is not ordered there.
	OrderingKey string
	// Unvalidated lets an event pass whose type has a JSON Schema, which cannot be
	// checked in SQL. Without it such an event is refused.
	Unvalidated bool
}

// The parameters are text, cast by the statement, so that this works in every
// pgx.QueryExecMode.
const statement = `SELECT fairhook.submit_event(tenant => $1, type => $2, payload => $3::bytea, metadata => $4::jsonb,
	occurred_at => $5::timestamptz, webhook_id => $6::uuid, content_type => $7, unvalidated => $8, ordering_key => $9)::text`

// Submit stores an event and its deliveries in tx, and returns the event's id.
// They exist, and dispatchers are told, once tx commits; should it roll back
// there is nothing to undo. To submit again after a COMMIT whose outcome is
// unknown, repeat the whole transaction, and let its own constraints decide.
//
// An error has aborted tx, as any error of a statement does: use tx.Begin, which
// sets a savepoint, to go on after one. Errors that the event or the role's
// rights are the cause of are *webhook.Error:
//
//   - CodeInvalid, with a field for each rule that the event breaks;
//   - CodeTooLarge, for a payload over the limit;
//   - CodeNotFound, for a webhook that does not exist or is not the tenant's;
//   - CodeForbidden, for a role that may not submit, or not for this tenant;
//   - CodeUnavailable, when today's partition of the events does not exist yet:
//     try again in a moment.
//
// Any other error wraps what pgx returned, for example a *pgconn.PgError with
// SQLSTATE 40001 when tx is serializable and has to be repeated.
func Submit(ctx context.Context, tx pgx.Tx, event Event) (webhook.ID, error) {
	metadata, err := metadataJSON(event.Metadata)
	if err != nil {
		return webhook.ID{}, fmt.Errorf("submit event: %w", err)
	}
	var text string
	err = tx.QueryRow(ctx, statement,
		optional(event.Tenant), optional(event.Type), event.Payload, metadata,
		optionalTime(event.OccurredAt), optionalID(event.WebhookID), optional(event.ContentType), event.Unvalidated,
		optional(event.OrderingKey),
	).Scan(&text)
	if err != nil {
		return webhook.ID{}, fmt.Errorf("submit event: %w", translate(err))
	}
	id, err := webhook.ParseID(text)
	if err != nil {
		return webhook.ID{}, fmt.Errorf("submit event: %w", err)
	}
	return id, nil
}

func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

func optionalTime(moment time.Time) *time.Time {
	if moment.IsZero() {
		return nil
	}
	return &moment
}

func optionalID(id webhook.ID) *string {
	if id.IsZero() {
		return nil
	}
	return optional(id.String())
}

// metadataJSON is metadata as JSON, nil where there is none. The rules are
// submit_event's business, but for what cannot be said to it.
func metadataJSON(metadata map[string]string) (*string, error) {
	if len(metadata) == 0 {
		return nil, nil
	}
	for key, value := range metadata {
		if !sayable(key) || !sayable(value) {
			return nil, &webhook.Error{
				Code:    webhook.CodeInvalid,
				Message: "The event breaks rules.",
				Fields:  webhook.CheckMetadata("/metadata", metadata),
			}
		}
	}
	text, err := json.Marshal(metadata)
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	return optional(string(text)), nil
}

// sayable reports whether encoding/json keeps a text as it is, and jsonb can hold
// it.
func sayable(text string) bool { return utf8.ValidString(text) && strings.IndexByte(text, 0) < 0 }

// codes are the SQLSTATEs that fairhook.submit_event raises itself.
var codes = map[string]webhook.Code{
	"FH403": webhook.CodeForbidden,
	"FH404": webhook.CodeNotFound,
	"FH413": webhook.CodeTooLarge,
	"FH422": webhook.CodeInvalid,
}

// translate turns what submit_event or Postgres says about the event into a
// *webhook.Error, and returns any other error as it is.
func translate(err error) error {
	var server *pgconn.PgError
	if !errors.As(err, &server) {
		return err
	}
	if code, ours := codes[server.Code]; ours {
		translated := &webhook.Error{Code: code, Message: server.Message}
		if code == webhook.CodeInvalid {
			if err := json.Unmarshal([]byte(server.Detail), &translated.Fields); err != nil {
				return fmt.Errorf("read the fields of %q: %w", server.Detail, err)
			}
		}
		return translated
	}
	switch {
	case server.Code == "42501": // insufficient_privilege
		return webhook.Errorf(webhook.CodeForbidden, "The database role may not submit events: %s.", server.Message)
	case server.Code == "23514" && server.ConstraintName == "": // check_violation: no partition takes the row
		return webhook.Errorf(webhook.CodeUnavailable, "The table of events has no partition for today yet.")
	case strings.HasPrefix(server.Code, "22"): // data exceptions, such as text that is not UTF-8
		return webhook.Errorf(webhook.CodeInvalid, "The event cannot be stored: %s.", server.Message)
	}
	return err
}
