//go:build unix

package pglocal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The major versions of Postgres that Fairhook supports.
const (
	OldestVersion = 14
	NewestVersion = 18
)

const probeTimeout = 10 * time.Second

// binGlobs is where packages put the server's programs, besides the PATH.
var binGlobs = []string{
	"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                   // Red Hat
	"/usr/libexec/postgresql*",                           // Alpine
	"/usr/lib/postgresql*/bin",                           // SUSE
	"/opt/homebrew/opt/postgresql@*/bin",                 // Homebrew
	"/usr/local/opt/postgresql@*/bin",                    // Homebrew on Intel
	"/opt/local/lib/postgresql*/bin",                     // MacPorts
	"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
	"/usr/local/pgsql/bin",                               // built from source
}

// errNotFound is when there is no usable Postgres on this machine.
var errNotFound = errors.New("no Postgres server of version 14 to 18 found")

// Find returns the directory of initdb and postgres of a supported version: on
// the PATH, where pg_config says, or the newest in the places where packages put
// them.
func Find(ctx context.Context) (binDir string, err error) {
	a, err := unprivileged()
	if err != nil {
		return "", err
	}
	globs := append(slices.Clone(binGlobs), filepath.Join(cacheDir(), "postgres-*", "bin"))
	return search(ctx, a, []string{onPath(), byConfig(ctx)}, globs)
}

// search returns the first usable one of the preferred directories, or the one
// with the newest server of those that the globs match.
func search(ctx context.Context, a *account, preferred, globs []string) (binDir string, err error) {
	var rejected []error
	usable := func(dir string) (major int, ok bool) {
		major, err := probe(ctx, a, dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			rejected = append(rejected, err)
		}
		return major, err == nil
	}
	for _, dir := range preferred {
		if dir == "" {
			continue
		}
		if _, ok := usable(dir); ok {
			return dir, nil
		}
	}
	best := 0
	for _, glob := range globs {
		dirs, err := filepath.Glob(glob)
		if err != nil {
			return "", fmt.Errorf("look for %s: %w", glob, err)
		}
		for _, dir := range dirs {
			if major, ok := usable(dir); ok && major > best {
				best, binDir = major, dir
			}
		}
	}
	if best == 0 {
		return "", errors.Join(append([]error{errNotFound}, rejected...)...)
	}
	return binDir, nil
}

// onPath is the directory of the initdb that a shell would run, links followed:
// a link elsewhere may stand alone, without the postgres beside it.
func onPath() string {
	initdb, err := exec.LookPath("initdb")
	if err != nil {
		return ""
	}
	if initdb, err = filepath.EvalSymlinks(initdb); err != nil {
		return ""
	}
	return filepath.Dir(initdb)
}

func byConfig(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	output, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(output))
}

// probe fails if a directory has no server that we can use; with
// os.ErrNotExist, if it has none at all.
func probe(ctx context.Context, a *account, dir string) (major int, err error) {
	for _, program := range []string{"initdb", "postgres"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
			return 0, err
		}
	}
	if err := a.reaches(dir); err != nil {
		return 0, err
	}
	major, err = versionOf(ctx, dir)
	if err != nil {
		return 0, err
	}
	if major < OldestVersion || major > NewestVersion {
		return 0, fmt.Errorf("the Postgres in %s is version %d", dir, major)
	}
	return major, nil
}

// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "postgres (PostgreSQL) 18beta1"
var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ([0-9]+)`)

// versionOf is the major version of the server in a directory.
func versionOf(ctx context.Context, binDir string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	path := filepath.Join(binDir, "postgres")
	output, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", path, err)
	}
	return parseVersion(string(output))
}

func parseVersion(text string) (int, error) {
	match := versionPattern.FindStringSubmatch(text)
	if match == nil {
		return 0, fmt.Errorf("cannot read a Postgres version from %q", text)
	}
	major, err := strconv.Atoi(match[1])
	if err != nil {
		return 0, fmt.Errorf("cannot read a Postgres version from %q: %w", text, err)
	}
	return major, nil
}
