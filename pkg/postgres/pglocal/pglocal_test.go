//go:build unix

package pglocal

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// childEnv makes the test binary start a server, say where it is, and hang.
const childEnv = "PGLOCAL_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		server, err := Start(context.Background(), Config{InMemory: true})
		if err != nil {
			panic(err)
		}
		_, _ = os.Stdout.WriteString(server.dir + " " + strconv.Itoa(server.process.cmd.Process.Pid) + " " + server.URL("") + "\n")
		select {}
	}
	os.Exit(m.Run())
}

func start(t *testing.T, config Config) *Server {
	t.Helper()
	bin, err := FindOrInstall(t.Context(), func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	config.BinDir, config.InMemory = bin, true
	server, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close server: %v", err)
		}
	})
	return server
}

// serverDir is a place for Config.Dir that the server's user can reach.
func serverDir(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "pglocal-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(base, "made", "by", "start")
}

func connect(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func run(t *testing.T, databaseURL, statement string) {
	t.Helper()
	if _, err := connect(t, databaseURL).Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func show(t *testing.T, databaseURL, expression string) (value string) {
	t.Helper()
	if err := connect(t, databaseURL).QueryRow(t.Context(), `SELECT (`+expression+`)::text`).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// alive reports whether a process runs; one that waits to be reaped does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		_, procErr := os.Stat("/proc/self")
		return procErr != nil
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("after 20 s still not: %s", what)
		}
	}
}

func TestServer(t *testing.T) {
	t.Parallel()

	t.Run("KeepsItsDataAndURLOverStopKillAndRestart", func(t *testing.T) {
		t.Parallel()
		server := start(t, Config{})
		before := server.URL("")
		run(t, before, `CREATE TABLE numbers AS SELECT 1 AS n`)

		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		if conn, err := pgx.Connect(t.Context(), before); err == nil {
			conn.Close(t.Context())
			t.Fatal("a stopped server answers")
		}
		if err := server.Stop(); err != nil {
			t.Errorf("stop a stopped server: %v", err)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		run(t, before, `INSERT INTO numbers VALUES (2)`)

		done := server.Done()
		server.Kill()
		select {
		case <-done:
		default:
			t.Error("Done is open after Kill")
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := server.URL(""); after != before {
			t.Errorf("URL is %s, and was %s", after, before)
		}
		if n := show(t, before, `SELECT count(*) FROM numbers`); n != "2" {
			t.Errorf("%s rows are left, want 2", n)
		}
	})

	t.Run("KillEndsTheBackendsToo", func(t *testing.T) {
		t.Parallel()
		server := start(t, Config{})
		conn := connect(t, server.URL(""))
		backend := int(conn.PgConn().PID())
		server.Kill()
		eventually(t, "the backend is gone", func() bool { return !alive(backend) })
	})

	t.Run("StopDoesNotWaitForClients", func(t *testing.T) {
		t.Parallel()
		server := start(t, Config{})
		tx, err := connect(t, server.URL("")).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took >= fastTimeout {
			t.Errorf("took %s", took)
		}
		var fault *pgconn.PgError
		if _, err := tx.Exec(t.Context(), `SELECT 1`); !errors.As(err, &fault) || fault.Code != "57P01" {
			t.Errorf("the client got %v, want SQLSTATE 57P01 (admin shutdown)", err)
		}
	})

	t.Run("LetsNobodyInWithoutThePassword", func(t *testing.T) {
		t.Parallel()
		server := start(t, Config{})
		socket := "host=" + server.dir + " port=" + strconv.Itoa(server.Port()) + " user=postgres dbname=postgres password="
		withPassword, err := url.Parse(server.URL(""))
		if err != nil {
			t.Fatal(err)
		}
		withPassword.User = url.UserPassword("postgres", "wrong")
		for _, target := range []string{withPassword.String(), socket + "wrong"} {
			var fault *pgconn.PgError
			if _, err := pgx.Connect(t.Context(), target); !errors.As(err, &fault) || fault.Code != "28P01" {
				t.Errorf("connecting gave %v, want SQLSTATE 28P01 (invalid password)", err)
			}
		}
		if got := show(t, socket+server.password, `1`); got != "1" {
			t.Errorf("over the socket 1 is %q", got)
		}
		if got := show(t, server.URL(""), `current_setting('listen_addresses')`); got != "127.0.0.1" {
			t.Errorf("it listens on %q", got)
		}
		for path, want := range map[string]os.FileMode{server.dir: 0o700 | os.ModeDir, server.passwordFile(): 0o600} {
			info, err := os.Stat(path)
			if err != nil || info.Mode() != want {
				t.Errorf("mode of %s is %v, error %v, want %v", path, info.Mode(), err, want)
			}
		}
	})

	t.Run("CommitsAreAsInProductionWithOrWithoutDurable", func(t *testing.T) {
		t.Parallel()
		for durable, fsync := range map[bool]string{false: "off", true: "on"} {
			server := start(t, Config{Durable: durable, Settings: map[string]string{"work_mem": "5MB"}})
			for setting, want := range map[string]string{"fsync": fsync, "synchronous_commit": "on", "work_mem": "5MB", "server_encoding": "UTF8", "timezone": "UTC"} {
				if got := show(t, server.URL(""), `current_setting('`+setting+`')`); got != want {
					t.Errorf("%s is %q with Durable %v, want %q", setting, got, durable, want)
				}
			}
		}
	})

	t.Run("CloseRemovesATemporaryDirectory", func(t *testing.T) {
		t.Parallel()
		server := start(t, Config{})
		for range 2 {
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(server.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the directory is still there, error %v", err)
		}
	})

	t.Run("ADirectoryIsUsedAgainAndByOneAtATime", func(t *testing.T) {
		t.Parallel()
		dir := serverDir(t)
		first := start(t, Config{Dir: dir})
		run(t, first.URL(""), `CREATE DATABASE kept`)
		if _, err := Start(t.Context(), Config{Dir: dir, BinDir: first.config.BinDir}); err == nil || !strings.Contains(err.Error(), "used by another process") {
			t.Errorf("a second server on the directory: error %v", err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		second := start(t, Config{Dir: dir})
		if second.password != first.password {
			t.Error("the password changed")
		}
		if got := show(t, second.URL("kept"), `current_database()`); got != "kept" {
			t.Errorf("connected to %q", got)
		}
	})

	t.Run("AClusterOfAnotherVersionIsNotTouched", func(t *testing.T) {
		t.Parallel()
		dir := serverDir(t)
		if err := os.MkdirAll(filepath.Join(dir, "data"), 0o755); err != nil {
			t.Fatal(err)
		}
		version := filepath.Join(dir, "data", "PG_VERSION")
		if err := os.WriteFile(version, []byte("11\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Start(t.Context(), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "was made by Postgres 11") {
			t.Errorf("error is %v", err)
		}
		if text, err := os.ReadFile(version); err != nil || string(text) != "11\n" {
			t.Errorf("PG_VERSION is %q, error %v", text, err)
		}
	})

	t.Run("AHalfMadeClusterIsMadeAnew", func(t *testing.T) {
		t.Parallel()
		dir := serverDir(t)
		if err := os.MkdirAll(filepath.Join(dir, "data", "base"), 0o755); err != nil {
			t.Fatal(err)
		}
		server := start(t, Config{Dir: dir})
		if got := show(t, server.URL(""), `1`); got != "1" {
			t.Errorf("1 is %q", got)
		}
	})

	t.Run("AnErrorHasTheEndOfTheServersLog", func(t *testing.T) {
		t.Parallel()
		begin := time.Now()
		_, err := Start(t.Context(), Config{Settings: map[string]string{"no_such_setting": "1"}})
		if err == nil || !strings.Contains(err.Error(), `unrecognized configuration parameter "no_such_setting"`) {
			t.Errorf("error is %v", err)
		}
		if took := time.Since(begin); took >= readyTimeout {
			t.Errorf("took %s to notice that the server ended", took)
		}
	})

	t.Run("APortInUseIsAnError", func(t *testing.T) {
		t.Parallel()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		_, err = Start(t.Context(), Config{Port: listener.Addr().(*net.TCPAddr).Port})
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("error is %v, want EADDRINUSE", err)
		}
	})

	t.Run("RunsAsAnotherUserWhenWeAreRoot", func(t *testing.T) {
		t.Parallel()
		server := start(t, Config{})
		if server.account == nil {
			t.Skip("we are not root")
		}
		info, err := os.Stat(filepath.Join(server.dataDir(), "postmaster.pid"))
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != server.account.uid || uid == 0 {
			t.Errorf("the server runs as user %d, want %d", uid, server.account.uid)
		}
	})

	t.Run("SaysWhenItsUserCannotReachTheDirectory", func(t *testing.T) {
		t.Parallel()
		if os.Geteuid() != 0 {
			t.Skip("only root runs the server as another user")
		}
		dir := serverDir(t)
		base := filepath.Dir(filepath.Dir(filepath.Dir(dir)))
		if err := os.Chmod(base, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Start(t.Context(), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "cannot enter "+base) {
			t.Errorf("error is %v", err)
		}
	})
}

// The process that started a server is killed with -9: the server ends by
// itself, and the next start removes what is left of it.
func TestAServerDoesNotOutliveItsStarter(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a child of its parent's death")
	}
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childEnv+"=1")
	child.Stderr = os.Stderr
	output, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(line)
	dir, databaseURL := fields[0], fields[2]
	pid, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, databaseURL)
	backend := int(conn.PgConn().PID())

	removeStale()
	if !alive(pid) {
		t.Fatal("a server whose starter lives was taken for stale")
	}

	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // says that it was killed
	eventually(t, "the server and its backend are gone", func() bool { return !alive(pid) && !alive(backend) })
	removeStale()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there, error %v", err)
	}
}
