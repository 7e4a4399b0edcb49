package intake

import (
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// retryAfter is what callers are told to wait when nothing is known about how
// long the trouble will last.
const retryAfter = time.Second

// ErrOutcomeUnknown is the error of a Submit whose event may or may not be
// stored. It is a *webhook.Error with CodeUnavailable.
var ErrOutcomeUnknown = &webhook.Error{
	Code: webhook.CodeUnavailable,
	Message: "It is not known whether the event was stored. " +
		"Trying again with the same Idempotency-Key is safe; without one it may store the event twice.",
	RetryAfter: retryAfter,
}

const (
	messageFull     = "The service has more events waiting than it can take. Nothing was kept; try again."
	messageShare    = "The tenant has more events waiting than its share of what the service can take. Nothing was kept; try again."
	messageStopping = "The service is stopping. Nothing was kept; try again."
	messageAway     = "The service's database cannot be reached. Nothing was kept; try again."
	messageTrouble  = "The service's database could not store the event now. Nothing was kept; try again."
)

func unavailable(message string) *webhook.Error {
	return &webhook.Error{Code: webhook.CodeUnavailable, Message: message, RetryAfter: retryAfter}
}

// ErrKeyTaken is the error of a Submit whose key stands for another event. It is
// a *webhook.Error with CodeInvalid.
var ErrKeyTaken = webhook.Errorf(webhook.CodeInvalid,
	"The Idempotency-Key was used for another event within the last 24 hours: what was submitted differs.")

func errKeyHeld() *webhook.Error {
	return &webhook.Error{
		Code:       webhook.CodeConflict,
		Message:    "Another submission with the same Idempotency-Key is under way. Nothing was kept; try again.",
		RetryAfter: retryAfter,
	}
}

// errData is the error for an event whose data Postgres refuses. What Postgres
// says about the data itself (SQLSTATE class 22) is of use to the caller; the
// names of constraints (class 23) are not.
func errData(err error) *webhook.Error {
	var server *pgconn.PgError
	if errors.As(err, &server) && strings.HasPrefix(server.Code, "22") {
		return webhook.Errorf(webhook.CodeInvalid, "The event cannot be stored: %s.", server.Message)
	}
	return webhook.Errorf(webhook.CodeInvalid, "The event cannot be stored: it breaks a rule of the database.")
}

// refused is an error with the reason that metrics count it under.
type refused struct {
	err    *webhook.Error
	reason string
}
