package intake

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// session is a committer's or resolver's hold on a connection. It belongs to one
// goroutine.
type session struct {
	in   *Intake
	conn *pgxpool.Conn // nil: none
}

// ready makes sure that there is a connection that works as far as this side can
// know. An error means that nothing was sent.
func (s *session) ready(ctx context.Context) error {
	if s.conn != nil && !s.broken() {
		return nil
	}
	s.release()
	ctx, cancel := context.WithTimeout(ctx, s.in.limits.acquire)
	defer cancel()
	for {
		conn, err := s.in.cfg.Pool.Acquire(ctx)
		if err != nil {
			return fmt.Errorf("get a database connection: %w", err)
		}
		// After a crash of the server the pool is full of connections that are dead
		// and do not look it. Sending on one would make the outcome unknown.
		if !s.in.suspicious() || conn.Ping(ctx) == nil {
			s.conn = conn
			return nil
		}
		_ = conn.Conn().Close(ctx) // the pool drops closed connections
		conn.Release()
	}
}

// broken reports whether the connection can no longer be used.
func (s *session) broken() bool { return s.conn == nil || s.conn.Conn().IsClosed() }

func (s *session) release() {
	if s.conn != nil {
		s.conn.Release()
		s.conn = nil
	}
}

// suspicious reports whether a connection broke lately.
func (in *Intake) suspicious() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return time.Now().Before(in.suspectUntil)
}

// verdict is what is known after one try of one transaction.
type verdict int

const (
	verdictDone      verdict = iota // committed
	verdictUnknown                  // sent; it may have committed
	verdictNotSent                  // nothing was sent
	verdictData                     // rolled back: some event's data is refused
	verdictKeyHeld                  // rolled back: some key is held by an open transaction elsewhere
	verdictPartition                // rolled back: a partition is missing
	verdictRepeat                   // rolled back for a passing reason
	verdictFailed                   // rolled back for another reason
)

func (v verdict) String() string {
	return [...]string{"committed", "unknown", "not_sent", "data", "key_held", "partition", "repeat", "failed"}[v]
}

// judge tells what an error of Accept says about its transaction.
func (s *session) judge(err error) verdict {
	var server *pgconn.PgError
	switch {
	case err == nil:
		return verdictDone
	case errors.As(err, &server):
		return judgeServerError(server)
	case pgconn.SafeToRetry(err):
		return verdictNotSent
	case s.broken() || s.conn.Conn().PgConn().IsBusy():
		return verdictUnknown
	default:
		// The connection is in order: the error is from this side, while the
		// statements were being written, which is before anything is committed.
		return verdictFailed
	}
}

// judgeServerError judges what the server said (PostgreSQL manual, appendix A).
func judgeServerError(err *pgconn.PgError) verdict {
	if err.SeverityUnlocalized != "ERROR" {
		// FATAL ends the session, and can do so after the commit, for example while
		// it waits for a standby.
		return verdictUnknown
	}
	switch err.Code {
	case "40003": // statement_completion_unknown
		return verdictUnknown
	case "40001", // serialization_failure
		"40P01", // deadlock_detected
		"0A000", // feature_not_supported: a cached plan outlived a migration
		"26000": // invalid_sql_statement_name: a pooler lost a prepared statement
		return verdictRepeat
	case "55P03": // lock_not_available
		return verdictKeyHeld
	case "23514": // check_violation
		if err.ConstraintName == "" {
			return verdictPartition // no partition of the relation takes the row
		}
	}
	switch {
	case strings.HasPrefix(err.Code, "22"), strings.HasPrefix(err.Code, "23"):
		return verdictData
	default:
		return verdictFailed
	}
}
