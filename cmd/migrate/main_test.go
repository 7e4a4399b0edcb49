package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/sql"
)

// mainEnv makes the test binary be the command.
const mainEnv = "FAIRHOOK_TEST_MIGRATE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

type result struct {
	code           int
	stdout, stderr string
}

// migrate runs the command as a process, with only these FAIRHOOK variables.
func migrate(t *testing.T, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "FAIRHOOK_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(append(cmd.Env, mainEnv+"=1"), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func (r result) want(t *testing.T, code int, stdout, stderr string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.stdout, stdout) || !strings.Contains(r.stderr, stderr) {
		t.Fatalf("exit code %d, stdout %q, stderr %q; want code %d, %q in stdout and %q in stderr", r.code, r.stdout, r.stderr, code, stdout, stderr)
	}
	if stderr == "" && r.stderr != "" {
		t.Fatalf("stderr is %q, want nothing", r.stderr)
	}
}

func TestARolloutFromEmptyAndBack(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	env := []string{"FAIRHOOK_DATABASE_URL=" + db.URL}

	migrate(t, env, "validate").want(t, 1, "", `run "migrate up"`)
	migrate(t, env, "status").want(t, 0, "fairhook  1        001_webhooks.sql", "")
	up := migrate(t, env, "up")
	up.want(t, 0, "up river 1: create river migration", "")
	number, newest := newestMigration(t)
	up.want(t, 0, fmt.Sprintf("up fairhook %d: %s", number, newest), "")
	up.want(t, 0, "the schema is up to date\n", "")
	migrate(t, env, "validate").want(t, 0, "the schema is what this build needs", "")
	if status := migrate(t, env, "status"); strings.Contains(status.stdout, "missing") {
		t.Errorf("status after up is %q", status.stdout)
	}
	if again := migrate(t, env, "up"); again.stdout != "the schema is up to date\n" {
		t.Errorf("up again says %q", again.stdout)
	}

	down := migrate(t, env, "down")
	down.want(t, 0, fmt.Sprintf("down fairhook %d: %s", number, newest), "")
	if strings.Contains(down.stdout, fmt.Sprintf("fairhook %d", number-1)) {
		t.Errorf("down reverted more than a step: %q", down.stdout)
	}
	migrate(t, env, "validate").want(t, 1, "", `run "migrate up"`)
	migrate(t, env, "down", "--to", "0").want(t, 0, "down river 1: create river migration", "")
	migrate(t, env, "up").want(t, 0, "the schema is up to date\n", "")
	if err := postgres.CheckSchema(t.Context(), db.Pool); err != nil {
		t.Error(err)
	}
}

// newestMigration is the last of the numbered files.
func newestMigration(t *testing.T) (number int, name string) {
	t.Helper()
	entries, err := fs.ReadDir(sql.Migrations(), ".")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries), entries[len(entries)-1].Name()
}

func TestDownRefusesToLoseDataUnlessTold(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	env := []string{"FAIRHOOK_DATABASE_URL=" + db.URL}
	if _, err := db.Pool.Exec(t.Context(), `INSERT INTO fairhook.idempotency_keys VALUES ('t', 'k', gen_random_uuid(), '')`); err != nil {
		t.Fatal(err)
	}
	migrate(t, env, "down", "--to", "4").want(t, 1, "", "idempotency_keys")
	// The environment cannot say it.
	migrate(t, append(env, "FAIRHOOK_DISCARD_DATA=true"), "down", "--to", "4").want(t, 1, "", "--discard-data")
	migrate(t, env, "down", "--to", "4", "--discard-data").want(t, 0, "down fairhook 5", "")
}

func TestDownSaysWhyTheSchemaStays(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	if _, err := db.Pool.Exec(t.Context(), `CREATE TABLE fairhook.not_ours ()`); err != nil {
		t.Fatal(err)
	}
	migrate(t, nil, "down", "--to=0", "--database-url="+db.URL).want(t, 0, "the schema fairhook was left in place", "")
}

func TestTheDirectConnectionIsPreferred(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	env := []string{"FAIRHOOK_DATABASE_URL=postgres://127.0.0.1:1/nobody-listens-here", "FAIRHOOK_LISTEN_DATABASE_URL=" + db.URL}
	migrate(t, env, "up").want(t, 0, "the schema is up to date\n", "")
}

func TestWrongConfigurationExitsWith2(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		env, args []string
		stderr    string
	}{
		"NoDatabase":        {nil, []string{"up"}, "--database-url (FAIRHOOK_DATABASE_URL)"},
		"BadDatabaseURL":    {nil, []string{"up", "--database-url=postgres://h:port/x"}, "--database-url (FAIRHOOK_DATABASE_URL)"},
		"NoTime":            {[]string{"FAIRHOOK_DATABASE_URL=postgres://h/x"}, []string{"up", "--timeout=0s"}, "--timeout (FAIRHOOK_TIMEOUT): must be more than 0s"},
		"UnknownFlag":       {nil, []string{"up", "--force"}, "unknown flag: --force"},
		"UnknownSubcommand": {nil, []string{"sideways"}, `unknown command "sideways"`},
		"AnArgument":        {nil, []string{"down", "3"}, `"3"`},
		"NotAVersion":       {nil, []string{"down", "--to=all"}, "--to"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			migrate(t, test.env, test.args...).want(t, 2, "", test.stderr)
		})
	}
}

func TestAnUnreachableDatabaseExitsWith1AndKeepsThePasswordToItself(t *testing.T) {
	t.Parallel()
	r := migrate(t, []string{"FAIRHOOK_DATABASE_URL=postgres://u:hunter2@127.0.0.1:1/x"}, "up")
	r.want(t, 1, "", "connect for migration")
	if strings.Contains(r.stderr, "hunter2") {
		t.Errorf("stderr has the password: %q", r.stderr)
	}
}

func TestATimeoutEndsTheWaitForAnotherMigration(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, err := db.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	// The key of the lock spells "fairhook".
	if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock(x'66616972686f6f6b'::bigint)`); err != nil {
		t.Fatal(err)
	}
	migrate(t, []string{"FAIRHOOK_DATABASE_URL=" + db.URL}, "up", "--timeout=500ms").
		want(t, 1, "", "wait for another migration to end")
}

func TestHelpNamesEverySubcommandAndExitCode(t *testing.T) {
	t.Parallel()
	help := migrate(t, nil, "--help")
	for _, word := range []string{"up ", "down ", "status ", "validate ", "--database-url", "--listen-database-url", "--log-level", "--log-format", "--timeout", "Exit codes"} {
		help.want(t, 0, word, "")
	}
	migrate(t, nil, "down", "--help").want(t, 0, "--discard-data", "")
}
