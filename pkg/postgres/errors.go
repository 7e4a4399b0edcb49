package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
)

// Unavailable reports whether err means that the database could not be asked,
// or not now, so that the same request may succeed in a moment: it cannot be
// reached, the connection broke, it is starting or stopping, it has no
// connection left, a deadline passed, or two transactions were in each other's
// way. Everything else is a mistake in a statement or in its data, and would
// fail again.
//
// It says nothing about whether a statement took effect: after a broken
// connection that is unknown.
func Unavailable(err error) bool {
	var server *pgconn.PgError
	if errors.As(err, &server) {
		return unavailableState(server.Code)
	}
	if errors.Is(err, context.Canceled) {
		return false // the caller left; that says nothing about the database
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) ||
		errors.As(err, &network) ||
		errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, puddle.ErrClosedPool)
}

// unavailableState judges a SQLSTATE (PostgreSQL manual, appendix A).
func unavailableState(code string) bool {
	switch code {
	case "40001", // serialization_failure
		"40P01", // deadlock_detected
		"55P03", // lock_not_available
		"57014", // query_canceled: a statement_timeout
		"25006", // read_only_sql_transaction: a standby, mid failover
		"25P03", // idle_in_transaction_session_timeout
		"57P01", // admin_shutdown
		"57P02", // crash_shutdown
		"57P03", // cannot_connect_now
		"57P05": // idle_session_timeout
		return true
	}
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "53")
}
