package e2etest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const pgbouncerInstallTimeout = 5 * time.Minute

// findPgbouncer finds the program, and installs it where that is possible.
var findPgbouncer = sync.OnceValues(func() (string, error) {
	find := func() (string, error) {
		path, err := exec.LookPath("pgbouncer")
		if err != nil {
			path, err = exec.LookPath("/usr/sbin/pgbouncer") // not on everybody's PATH
		}
		return path, err
	}
	path, err := find()
	if err == nil {
		return path, nil
	}
	if os.Geteuid() == 0 {
		if aptErr := installPgbouncer(); aptErr == nil {
			return find()
		} else if !errors.Is(aptErr, exec.ErrNotFound) {
			err = aptErr
		}
	}
	return "", fmt.Errorf("install pgbouncer (Debian and Ubuntu: apt-get install pgbouncer): %w", err)
})

// policy has Debian's packages start no service on installation.
const policy = "/usr/sbin/policy-rc.d"

func installPgbouncer() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), pgbouncerInstallTimeout)
	defer cancel()
	if _, err := exec.LookPath("apt-get"); err != nil {
		return err
	}
	if _, err := os.Stat(policy); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(policy)) }()
	}
	for _, args := range [][]string{{"update"}, {"install", "--yes", "--no-install-recommends", "pgbouncer"}} {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=120"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
		output, err := cmd.CombinedOutput()
		// A machine whose lists are fresh enough can do without the update.
		if err != nil && args[0] != "update" {
			lines := strings.Split(strings.TrimSpace(string(output)), "\n")
			return fmt.Errorf("apt-get %s: %w: %s", args[0], err, lines[len(lines)-1])
		}
	}
	return nil
}

// documentedIni is the settings that the documentation tells to have.
func documentedIni(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(projectRoot, "docs", "pgbouncer.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "```ini\n[pgbouncer]\n")
	ini, _, ended := strings.Cut(rest, "```")
	if !found || !ended {
		t.Fatal("docs/pgbouncer.md has no settings")
	}
	return ini
}

// pgbouncer starts one in front of a Postgres, as the documentation says, and
// returns the URL that leads through it to the same database.
func pgbouncer(t *testing.T, databaseURL string) string {
	t.Helper()
	program, err := findPgbouncer()
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	addr := freeAddress(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	ini := fmt.Sprintf("[databases]\n* = host=%s port=%s user=%s password=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %s\nunix_socket_dir =\nauth_type = any\n%s",
		u.Hostname(), u.Port(), u.User.Username(), password, port, documentedIni(t))
	var args []string
	if os.Geteuid() == 0 {
		args = append(args, "--user", "nobody") // it refuses to run as root
	}
	// Where another user can read it.
	dir, err := os.MkdirTemp("", "fairhook-pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "pgbouncer.ini")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, []byte(ini), 0o644)); err != nil {
		t.Fatal(err)
	}
	p := start(t, program, nil, append(args, path)...)
	eventually(t, "pgbouncer listens", func() bool {
		select {
		case <-p.done:
			t.Fatalf("pgbouncer ended: %v\n%s", p.err, p.output())
		default:
		}
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	query := u.Query()
	query.Set("default_query_exec_mode", "cache_describe")
	u.Host, u.RawQuery = addr, query.Encode()
	return u.String()
}
