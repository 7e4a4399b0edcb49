//go:build unix

package pglocal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeInstallation makes a directory that looks like Postgres' programs, which
// the server's user can reach.
func fakeInstallation(t *testing.T, name, version string) (bin string) {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "pglocal-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	bin = filepath.Join(base, name, "bin")
	if err := errors.Join(os.Chmod(base, 0o755), os.MkdirAll(bin, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"initdb", "postgres"} {
		script := fmt.Sprintf("#!/bin/sh\necho '%s (PostgreSQL) %s'\n", program, version)
		if err := os.WriteFile(filepath.Join(bin, program), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

func TestSearch(t *testing.T) {
	t.Parallel()
	a, err := unprivileged()
	if err != nil {
		t.Fatal(err)
	}
	old, fourteen, eighteen, future := fakeInstallation(t, "old", "13.22"), fakeInstallation(t, "fourteen", "14.3 (Debian 14.3-1)"),
		fakeInstallation(t, "eighteen", "18beta1"), fakeInstallation(t, "future", "19.0")

	for name, test := range map[string]struct {
		preferred, globs []string
		want             string
	}{
		"TakesThePreferredOneEvenIfAnotherIsNewer": {[]string{"", fourteen}, []string{eighteen}, fourteen},
		"TakesTheNewestSupportedOneOtherwise":      {[]string{""}, []string{fourteen, eighteen, old, future}, eighteen},
		"PassesOverAPreferredOneThatIsTooOld":      {[]string{old}, []string{fourteen}, fourteen},
		"PassesOverOneThatIsNotThere":              {[]string{"/nowhere"}, []string{"/nowhere*", fourteen}, fourteen},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := search(t.Context(), a, test.preferred, test.globs)
			if err != nil || got != test.want {
				t.Errorf("found %q, error %v, want %q", got, err, test.want)
			}
		})
	}

	t.Run("SaysWhyEachWasRejected", func(t *testing.T) {
		t.Parallel()
		_, err := search(t.Context(), a, []string{old}, []string{future})
		if !errors.Is(err, errNotFound) || !strings.Contains(err.Error(), old+" is version 13") || !strings.Contains(err.Error(), future+" is version 19") {
			t.Errorf("error is %v, want both versions in it", err)
		}
	})

	t.Run("PassesOverOneThatTheServersUserCannotReach", func(t *testing.T) {
		t.Parallel()
		if a == nil {
			t.Skip("only root runs the server as another user")
		}
		hidden := fakeInstallation(t, "hidden", "15.1")
		if err := os.Chmod(filepath.Dir(filepath.Dir(hidden)), 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := search(t.Context(), a, []string{hidden}, nil)
		if !errors.Is(err, errNotFound) || !strings.Contains(err.Error(), "cannot enter") {
			t.Errorf("error is %v", err)
		}
	})
}

func TestFindOrInstallInstallsNothingWhereThereIsAServer(t *testing.T) {
	t.Parallel()
	want, err := Find(t.Context())
	if err != nil {
		t.Skipf("no server here: %v", err)
	}
	got, err := FindOrInstall(t.Context(), func(line string) { t.Errorf("said %q", line) })
	if err != nil || got != want {
		t.Errorf("found %q, error %v, want %q", got, err, want)
	}
}

func TestInstallationsWaitForEachOther(t *testing.T) {
	t.Parallel()
	unlock, err := lockInstallation(t.Context())
	if err != nil {
		t.Skipf("no cache directory here: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lockInstallation(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second installation got the lock, or error %v", err)
	}
	unlock()
	again, err := lockInstallation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": 15,
		"postgres (PostgreSQL) 18beta1\n":                        18,
		"postgres (PostgreSQL) 9.6.24":                           9,
	} {
		if got, err := parseVersion(text); got != want || err != nil {
			t.Errorf("version of %q is %d, error %v, want %d", text, got, err, want)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	for _, text := range []string{"", "initdb", "(PostgreSQL) ", "postgres (PostgreSQL) 14.1", "(PostgreSQL) 99999999999999999999"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseVersion(text)
		if err != nil {
			return
		}
		if again, err := parseVersion(fmt.Sprintf("postgres (PostgreSQL) %d", got)); got < 0 || again != got || err != nil {
			t.Errorf("version of %q is %d, which reads as %d, error %v", text, got, again, err)
		}
	})
}

func TestAccountEnters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	for _, test := range []struct {
		who  account
		mode os.FileMode
		want bool
	}{
		{account{"owner", uid, gid + 1}, 0o700, true},
		{account{"owner", uid, gid + 1}, 0o077, false}, // the owner's own bits count, not the better ones of others
		{account{"group", uid + 1, gid}, 0o710, true},
		{account{"group", uid + 1, gid}, 0o701, false},
		{account{"other", uid + 1, gid + 1}, 0o701, true},
		{account{"other", uid + 1, gid + 1}, 0o770, false},
	} {
		if err := os.Chmod(dir, test.mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := test.who.enters(info); got != test.want {
			t.Errorf("%s enters a directory of mode %o: %v, want %v", test.who.name, test.mode, got, test.want)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}
