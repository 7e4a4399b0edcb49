//go:build unix

package pglocal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

const (
	installTimeout = 10 * time.Minute
	installPoll    = 200 * time.Millisecond

	// downloadVersion is what is downloaded where there is no package.
	downloadVersion = embeddedpostgres.V18

	mavenCentral = "https://repo1.maven.org/maven2"

	createClusterConf = "/etc/postgresql-common/createcluster.conf"
)

// FindOrInstall is Find, and where it finds nothing an installation: as root
// with apt-get, the package "postgresql", without creating or starting a
// cluster; otherwise a download of the server's programs into a cache directory.
// It may take minutes. log hears what is being done, one line each. The error
// of a machine where nothing works says what to install.
//
// Several processes at once wait for the first.
func FindOrInstall(ctx context.Context, log func(string)) (binDir string, err error) {
	binDir, err = Find(ctx)
	if !errors.Is(err, errNotFound) {
		return binDir, err
	}
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	unlock, lockErr := lockInstallation(ctx)
	if lockErr != nil {
		return "", installByHand(err, lockErr)
	}
	defer unlock()
	// Another process may have installed it meanwhile.
	if binDir, err = Find(ctx); !errors.Is(err, errNotFound) {
		return binDir, err
	}
	faults := []error{err}
	if _, err := exec.LookPath("apt-get"); err == nil && os.Geteuid() == 0 {
		log("installing Postgres with apt-get (no cluster is created, nothing is started)")
		err := aptInstall(ctx)
		if err == nil {
			return Find(ctx)
		}
		faults = append(faults, err)
	}
	log("downloading Postgres " + string(downloadVersion) + " into " + cacheDir())
	if err := download(ctx, mavenCentral, cacheDir()); err != nil {
		return "", installByHand(append(faults, err)...)
	}
	return Find(ctx)
}

// installByHand says what to do where nothing worked, and why, on one line.
func installByHand(faults ...error) error {
	return fmt.Errorf("install Postgres %d to %d (Debian and Ubuntu: apt-get install postgresql) and put its initdb on the PATH: %w",
		OldestVersion, NewestVersion, oneLine(faults))
}

// cacheDir is where downloaded programs go: for root a place that other users
// can reach, since the server runs as one.
func cacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/fairhook"
	}
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir() // no home directory
	}
	return filepath.Join(base, "fairhook")
}

func lockInstallation(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(cacheDir(), "install.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the installation: %w", err)
	}
	ticker := time.NewTicker(installPoll)
	defer ticker.Stop()
	for flock(file) != nil {
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for another installation: %w", ctx.Err()), file.Close())
		case <-ticker.C:
		}
	}
	return func() { _ = file.Close() }, nil
}

func aptInstall(ctx context.Context) error {
	// Must be there before the package is: its installation creates a cluster,
	// and starts it, otherwise.
	if _, err := os.Stat(createClusterConf); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(createClusterConf), 0o755); err != nil {
			return fmt.Errorf("prepare the installation: %w", err)
		}
		conf := "# Written by Fairhook, which needs the programs and no cluster.\ncreate_main_cluster = false\n"
		if err := os.WriteFile(createClusterConf, []byte(conf), 0o644); err != nil {
			return fmt.Errorf("prepare the installation: %w", err)
		}
	}
	// A machine whose lists are fresh enough can do without the update.
	updateErr := aptGet(ctx, "update")
	if err := aptGet(ctx, "install", "--yes", "--no-install-recommends", "postgresql"); err != nil {
		return errors.Join(err, updateErr)
	}
	return nil
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "UCF_FORCE_CONFFOLD=1", "LC_ALL=C")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, tail(output.String()))
	}
	return nil
}

// download lets the library fetch the programs and unpack them into a directory
// below dir. It can only do that on the way to starting a server, which it
// cannot do as root: what counts is whether the programs are there afterwards,
// and run.
func download(ctx context.Context, repository, dir string) error {
	work, err := os.MkdirTemp(dir, "download-*")
	if err != nil {
		return fmt.Errorf("make download directory: %w", err)
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return fmt.Errorf("make download directory: %w", err)
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	programs := filepath.Join(work, "programs")
	library := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(downloadVersion).
		Port(uint32(port)).
		CachePath(filepath.Join(work, "archive")).
		RuntimePath(filepath.Join(work, "run")).
		BinariesPath(programs).
		BinaryRepositoryURL(repository).
		Logger(io.Discard))
	ended := make(chan error, 1)
	go func() {
		err := library.Start()
		if err == nil {
			err = library.Stop()
		}
		ended <- err
	}()
	var startErr error
	select {
	case startErr = <-ended:
	case <-ctx.Done():
		return fmt.Errorf("download Postgres: %w", ctx.Err())
	}
	if _, err := versionOf(ctx, filepath.Join(programs, "bin")); err != nil {
		if startErr != nil {
			err = startErr
		}
		return fmt.Errorf("download Postgres: %w", err)
	}
	if err := os.Rename(programs, filepath.Join(dir, "postgres-"+string(downloadVersion))); err != nil {
		return fmt.Errorf("keep downloaded Postgres: %w", err)
	}
	return nil
}

// oneLine joins errors as text on one line.
func oneLine(faults []error) error {
	var text bytes.Buffer
	for i, fault := range faults {
		if i > 0 {
			text.WriteString("; ")
		}
		text.Write(bytes.ReplaceAll([]byte(fault.Error()), []byte("\n"), []byte(", ")))
	}
	return errors.New(text.String())
}
