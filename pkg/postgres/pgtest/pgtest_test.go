//go:build unix

package pgtest_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

func TestDatabase(t *testing.T) {
	t.Parallel()

	t.Run("IsMigrated", func(t *testing.T) {
		t.Parallel()
		if err := postgres.CheckSchema(t.Context(), pgtest.DB(t)); err != nil {
			t.Error(err)
		}
	})

	t.Run("IsPrivate", func(t *testing.T) {
		t.Parallel()
		one, other := pgtest.DB(t), pgtest.DB(t)
		if _, err := one.Exec(t.Context(), `CREATE TABLE mine ()`); err != nil {
			t.Fatal(err)
		}
		if !exists(t, one, "mine") || exists(t, other, "mine") {
			t.Error("a table made in one database is not in that one alone")
		}
	})

	t.Run("IsReachedByItsURL", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		conn, err := pgx.Connect(t.Context(), db.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if byURL, byPool := name(t, conn), name(t, db.Pool); byURL != byPool {
			t.Errorf("the URL leads to %s and the pool to %s", byURL, byPool)
		}
	})

	t.Run("IsWithoutTheSchemaWhenEmpty", func(t *testing.T) {
		t.Parallel()
		if exists(t, pgtest.Empty(t).Pool, "fairhook.events") {
			t.Error("fairhook.events is there")
		}
	})

	t.Run("IsGoneAfterTheTest", func(t *testing.T) {
		t.Parallel()
		var gone string
		t.Run("Inner", func(t *testing.T) { gone = name(t, pgtest.DB(t)) })
		var left bool
		if err := pgtest.Empty(t).Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, gone).Scan(&left); err != nil {
			t.Fatal(err)
		}
		if left {
			t.Errorf("database %s is still there", gone)
		}
	})
}

func TestPrivateServerKeepsItsMigratedDatabaseOverACrash(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	pool, err := pgxpool.New(t.Context(), server.URL("fairhook"))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := postgres.CheckSchema(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	if err := postgres.CheckSchema(t.Context(), pool); err == nil {
		t.Fatal("a killed server answers")
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := postgres.CheckSchema(t.Context(), pool); err != nil {
		t.Error(err)
	}
}

// Test binaries that use a developer's server at the same time share one
// template there, and leave nothing else.
func TestServerFromTheEnvironment(t *testing.T) {
	t.Parallel()
	const variable = "FAIRHOOK_TEST_DATABASE_URL"
	server := pgtest.Server(t)
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestDatabase$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s", variable, server.URL("")))
			if output, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, output)
			}
		})
	}
	group.Wait()

	conn, err := pgx.Connect(t.Context(), server.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `SELECT datname FROM pg_database WHERE datname LIKE 'fairhook\_%'`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 1 || !strings.HasPrefix(names[0], "fairhook_template_") {
		t.Errorf("the databases are %q, want one template", names)
	}
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func name(t *testing.T, db querier) (name string) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

func exists(t *testing.T, db querier, table string) (exists bool) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&exists); err != nil {
		t.Fatal(err)
	}
	return exists
}
