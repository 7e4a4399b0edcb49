//go:build unix

package pglocal

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// archive is what the library downloads: a jar with a tar of the programs. Its
// initdb fails, as the real one does for root.
func archive(t *testing.T) []byte {
	t.Helper()
	bin := fakeInstallation(t, "programs", "18.3")
	for program, script := range map[string]string{"initdb": "#!/bin/sh\nexit 1\n", "pg_ctl": "#!/bin/sh\nexit 1\n"} {
		if err := os.WriteFile(filepath.Join(bin, program), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := exec.LookPath("xz"); err != nil {
		t.Skip("no xz here to pack the programs with")
	}
	tar, err := exec.CommandContext(t.Context(), "tar", "-C", filepath.Dir(bin), "-cJf", "-", "bin").Output()
	if err != nil {
		t.Fatal(err)
	}
	var jar bytes.Buffer
	writer := zip.NewWriter(&jar)
	file, err := writer.Create("postgres-linux-x86_64.txz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(tar); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return jar.Bytes()
}

func TestDownload(t *testing.T) {
	t.Parallel()

	t.Run("KeepsTheProgramsWhereFindLooksForThem", func(t *testing.T) {
		t.Parallel()
		jar := archive(t)
		repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, ".sha256") {
				http.NotFound(w, r)
				return
			}
			_, _ = w.Write(jar)
		}))
		defer repository.Close()
		dir := filepath.Dir(filepath.Dir(fakeInstallation(t, "cache", "0"))) // reachable for the server's user
		if err := download(t.Context(), repository.URL, dir); err != nil {
			t.Fatal(err)
		}
		a, err := unprivileged()
		if err != nil {
			t.Fatal(err)
		}
		bin, err := search(t.Context(), a, nil, []string{filepath.Join(dir, "postgres-*", "bin")})
		if err != nil || bin != filepath.Join(dir, "postgres-"+string(downloadVersion), "bin") {
			t.Errorf("found %q, error %v", bin, err)
		}
		if left, err := filepath.Glob(filepath.Join(dir, "download-*")); err != nil || len(left) > 0 {
			t.Errorf("%q is left, error %v", left, err)
		}
	})

	t.Run("FailsWhereTheRepositoryHasNothing", func(t *testing.T) {
		t.Parallel()
		repository := httptest.NewServer(http.NotFoundHandler())
		defer repository.Close()
		dir := t.TempDir()
		if err := download(t.Context(), repository.URL, dir); err == nil || !strings.Contains(err.Error(), "download Postgres") {
			t.Errorf("error is %v", err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%v is left, error %v", left, err)
		}
	})

	t.Run("EndsWithItsContext", func(t *testing.T) {
		t.Parallel()
		leave := make(chan struct{})
		repository := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-leave }))
		defer repository.Close()
		defer close(leave)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := download(ctx, repository.URL, t.TempDir()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestWhatToInstallIsSaidOnOneLine(t *testing.T) {
	t.Parallel()
	err := installByHand(errNotFound, errors.New("first\nsecond"))
	if text := err.Error(); strings.Contains(text, "\n") || !strings.Contains(text, "apt-get install postgresql") || !strings.Contains(text, "second") {
		t.Errorf("error is %q", text)
	}
}
