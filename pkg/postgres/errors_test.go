package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

func TestUnavailable(t *testing.T) {
	t.Parallel()
	t.Run("JudgesSQLSTATEs", func(t *testing.T) {
		t.Parallel()
		for code, want := range map[string]bool{
			"57P01": true, "57P03": true, "53300": true, "08006": true, "40001": true, "55P03": true, "57014": true,
			"22021": false, "23505": false, "23514": false, "42P01": false, "42501": false, "57P04": false,
		} {
			err := fmt.Errorf("do it: %w", &pgconn.PgError{Code: code})
			if got := postgres.Unavailable(err); got != want {
				t.Errorf("Unavailable(%s) = %v, want %v", code, got, want)
			}
		}
	})
	t.Run("IsNotACallerThatLeft", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := db.Exec(ctx, `SELECT 1`)
		if err == nil || postgres.Unavailable(err) {
			t.Errorf("Unavailable(%v), want not", err)
		}
		if postgres.Unavailable(nil) || postgres.Unavailable(errors.New("else")) {
			t.Error("nothing, or something else, is unavailable")
		}
	})
	t.Run("IsADeadline", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := db.Exec(ctx, `SELECT pg_sleep(60)`)
		if !postgres.Unavailable(err) {
			t.Errorf("Unavailable(%v) = false", err)
		}
	})
	t.Run("IsABrokenConnection", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		conn, err := db.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		if _, err := db.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, int32(conn.Conn().PgConn().PID())); err != nil {
			t.Fatal(err)
		}
		for range 2 { // first it breaks, then it is known to be broken
			if _, err := conn.Exec(t.Context(), `SELECT pg_sleep(60)`); !postgres.Unavailable(err) {
				t.Errorf("Unavailable(%v) = false", err)
			}
		}
	})
	t.Run("IsAServerThatIsNotThereAndAPoolThatIsClosed", func(t *testing.T) {
		t.Parallel()
		pool, err := postgres.Open(t.Context(), "postgres://nobody@127.0.0.1:1/none", "test", 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), `SELECT 1`); !postgres.Unavailable(err) {
			t.Errorf("Unavailable(%v) = false", err)
		}
		pool.Close()
		if _, err := pool.Exec(t.Context(), `SELECT 1`); !postgres.Unavailable(err) {
			t.Errorf("Unavailable(%v) = false", err)
		}
	})
}
