//go:build unix

// Package pgtest gives each test a database of its own on a real Postgres.
//
// The first test of a test binary that asks for a database starts a private
// server, which ends with the binary, and migrates a template there; every
// database is a copy of that template, and is dropped when its test ends. With
// FAIRHOOK_TEST_DATABASE_URL set, databases are made on that server instead; the
// user in that URL must be allowed to create databases.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pglocal"
	"github.com/fairhook/fairhook/sql"
)

const (
	serverEnv = "FAIRHOOK_TEST_DATABASE_URL"

	setUpTimeout  = 12 * time.Minute // may install Postgres
	createTimeout = time.Minute
	closeTimeout  = 10 * time.Second

	// poolSize bounds each test's pool, so that many tests in parallel fit into
	// one server.
	poolSize  = 8
	adminPool = 4
)

// Database is one test's private database.
type Database struct {
	// URL connects to it, as its owner.
	URL string
	// Pool is connected to it. Tests may close it before the end.
	Pool *pgxpool.Pool
}

// DB makes a migrated private database, and returns a pool of at most 8
// connections to it. Both are gone when the test ends; a connection that the
// test has not given back by then fails it.
func DB(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return New(t).Pool
}

// New is DB for tests that need the URL too.
func New(t testing.TB) *Database {
	t.Helper()
	s := sharedServer(t)
	template, err := s.template()
	if err != nil {
		t.Fatalf("pgtest: make template database: %v", err)
	}
	return s.create(t, template)
}

// Empty makes a private database without the schema.
func Empty(t testing.TB) *Database {
	t.Helper()
	return sharedServer(t).create(t, "template0")
}

// Server starts a private server, for tests that stop, kill or restart it. Its
// database "fairhook" is migrated. It ends with the test.
func Server(t testing.TB) *pglocal.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), setUpTimeout)
	defer cancel()
	server, err := startServer(ctx)
	if err != nil {
		t.Fatalf("pgtest: start server: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("pgtest: stop server: %v", err)
		}
	})
	conn, err := pgx.Connect(ctx, server.URL(""))
	if err != nil {
		t.Fatalf("pgtest: connect: %v", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `CREATE DATABASE fairhook`); err != nil {
		t.Fatalf("pgtest: create database: %v", err)
	}
	if err := migrateUp(ctx, server.URL("fairhook")); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	return server
}

// server is what the tests of one binary share.
type server struct {
	url   string
	admin *pgxpool.Pool
	// strategy is how CREATE DATABASE copies.
	strategy string
	template func() (name string, err error)
}

var shared = sync.OnceValues(func() (*server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), setUpTimeout)
	defer cancel()
	s := &server{url: os.Getenv(serverEnv)}
	own := s.url == ""
	if own {
		local, err := startServer(ctx)
		if err != nil {
			return nil, err
		}
		s.url = local.URL("")
	}
	config, err := postgres.PoolConfig(s.url, "pgtest", adminPool)
	if err != nil {
		return nil, err
	}
	if s.admin, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	var version int
	if err := s.admin.QueryRow(ctx, `SELECT current_setting('server_version_num')::integer / 10000`).Scan(&version); err != nil {
		return nil, fmt.Errorf("ask the server for its version: %w", err)
	}
	if version >= 15 && own {
		s.strategy = "STRATEGY file_copy"
	}
	s.template = sync.OnceValues(s.makeTemplate)
	return s, nil
})

func sharedServer(t testing.TB) *server {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatalf("pgtest: start server: %v", err)
	}
	return s
}

func startServer(ctx context.Context) (*pglocal.Server, error) {
	bin, err := pglocal.FindOrInstall(ctx, func(line string) { fmt.Fprintln(os.Stderr, "pgtest: "+line) })
	if err != nil {
		return nil, err
	}
	return pglocal.Start(ctx, pglocal.Config{BinDir: bin, InMemory: true})
}

// makeTemplate migrates a database that is then closed to connections, which
// CREATE DATABASE ... TEMPLATE needs. On a server of the developer's the test
// binaries of one version share it for a day: partitions are by day.
func (s *server) makeTemplate() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), createTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	// Ends with the connection.
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(hashtext('fairhook pgtest'))`); err != nil {
		return "", err
	}
	var fingerprint strings.Builder
	if err := fs.WalkDir(sql.Migrations(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(sql.Migrations(), path)
		fingerprint.Write(text)
		return err
	}); err != nil {
		return "", err
	}
	var name string
	var made bool
	if err := conn.QueryRow(ctx, `
		SELECT name, EXISTS (SELECT FROM pg_database WHERE datname = name AND datistemplate)
		FROM (SELECT 'fairhook_template_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD') || '_' || substr(md5($1), 1, 12) AS name) AS n`,
		fingerprint.String()).Scan(&name, &made); err != nil || made {
		return name, err
	}
	if err := dropOldTemplates(ctx, conn); err != nil {
		return "", err
	}
	for _, statement := range []string{
		`DROP DATABASE IF EXISTS ` + name, // half-made
		`CREATE DATABASE ` + name + ` TEMPLATE template0`,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return "", err
		}
	}
	if err := migrateUp(ctx, databaseURL(s.url, name)); err != nil {
		return "", err
	}
	_, err = conn.Exec(ctx, `ALTER DATABASE `+name+` WITH ALLOW_CONNECTIONS false IS_TEMPLATE true`)
	return name, err
}

// dropOldTemplates drops what was made before yesterday; newer ones another
// test binary may be using.
func dropOldTemplates(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
		SELECT datname FROM pg_database
		WHERE datname ~ '^fairhook_template_[0-9]{8}_'
		  AND substr(datname, 19, 8) < to_char(now() AT TIME ZONE 'UTC' - interval '1 day', 'YYYYMMDD')`)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		for _, statement := range []string{
			`ALTER DATABASE ` + name + ` IS_TEMPLATE false`,
			`DROP DATABASE IF EXISTS ` + name,
		} {
			if _, execErr := conn.Exec(ctx, statement); execErr != nil {
				err = errors.Join(err, execErr)
			}
		}
	}
	return err
}

func (s *server) create(t testing.TB, template string) *Database {
	t.Helper()
	name := "fairhook_test_" + strings.ToLower(rand.Text())
	ctx, cancel := context.WithTimeout(context.Background(), createTimeout)
	defer cancel()
	if _, err := s.admin.Exec(ctx, `CREATE DATABASE `+name+` TEMPLATE `+template+` `+s.strategy); err != nil {
		t.Fatalf("pgtest: create database: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), createTimeout)
		defer cancel()
		if _, err := s.admin.Exec(ctx, `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			t.Errorf("pgtest: drop database: %v", err)
		}
	})
	d := &Database{URL: databaseURL(s.url, name)}
	var err error
	if d.Pool, err = postgres.Open(ctx, d.URL, "test", poolSize); err != nil {
		t.Fatalf("pgtest: open pool: %v", err)
	}
	t.Cleanup(func() { closePool(t, d.Pool) })
	return d
}

// closePool does not wait for ever for a connection that a test keeps.
func closePool(t testing.TB, pool *pgxpool.Pool) {
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
		t.Errorf("pgtest: the test ended with %d connections of its pool still in use", pool.Stat().AcquiredConns())
	}
}

func migrateUp(ctx context.Context, databaseURL string) error {
	migrator, err := postgres.OpenMigrator(ctx, databaseURL, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return errors.Join(migrator.Up(ctx), migrator.Close())
}

// databaseURL is the server's URL with another database in it.
func databaseURL(server, database string) string {
	u, err := url.Parse(server)
	if err != nil {
		panic(err) // a connection was made with it
	}
	u.Path = "/" + database
	return u.String()
}
