//go:build unix

package pglocal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

const (
	tempPattern = "fairhook-postgres-*"
	lockName    = "lock"

	memoryDir = "/dev/shm"
)

// tempBases is where temporary directories may be made, best first.
func tempBases() []string {
	return slices.Compact([]string{os.TempDir(), "/tmp", "/var/tmp", memoryDir})
}

// makeTempDir makes a directory that the account can reach, and locks it.
func makeTempDir(a *account, inMemory bool) (dir string, lock *os.File, err error) {
	var faults []error
	bases := tempBases()
	if _, chosen := os.LookupEnv("TMPDIR"); inMemory && !chosen && memoryHasRoom() {
		bases = slices.Insert(bases, 0, memoryDir)
	}
	for _, base := range bases {
		if err := a.reaches(base); err != nil {
			faults = append(faults, err)
			continue
		}
		dir, err := os.MkdirTemp(base, tempPattern)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if lock, err = lockDir(dir, a); err != nil {
			return "", nil, errors.Join(err, os.RemoveAll(dir))
		}
		return dir, lock, nil
	}
	return "", nil, fmt.Errorf("no place for a temporary directory: %w", errors.Join(faults...))
}

// lockDir makes a directory the account's, and ours alone until the returned
// file is closed or we end.
func lockDir(dir string, a *account) (*os.File, error) {
	// The file gets its name after its lock, so that nobody ever sees it
	// without one while we live.
	path := filepath.Join(dir, lockName)
	lock, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	fresh := errors.Is(err, os.ErrNotExist)
	if fresh {
		lock, err = os.CreateTemp(dir, lockName+"-*")
	}
	if err != nil {
		return nil, fmt.Errorf("lock directory of the server: %w", err)
	}
	if err := flock(lock); err != nil {
		return nil, errors.Join(fmt.Errorf("directory %s is used by another process: %w", dir, err), lock.Close())
	}
	if fresh {
		// Link and not rename: of two processes that come here, one fails.
		if err := errors.Join(os.Link(lock.Name(), path), os.Remove(lock.Name())); err != nil {
			return nil, errors.Join(fmt.Errorf("lock directory of the server: %w", err), lock.Close())
		}
	}
	if err := a.own(dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func flock(file *os.File) error {
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// removeStale removes the temporary directories of processes that ended without
// removing them. One is removed only if its lock file is ours and nobody holds
// it. What cannot be removed is left: it is in nobody's way.
func removeStale() {
	for _, base := range tempBases() {
		dirs, err := filepath.Glob(filepath.Join(base, tempPattern))
		if err != nil {
			continue
		}
		for _, dir := range dirs {
			removeIfStale(dir)
		}
	}
}

func removeIfStale(dir string) {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer lock.Close()
	info, err := lock.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
		return
	}
	if flock(lock) != nil {
		return
	}
	endOrphan(filepath.Join(dir, "data"))
	_ = os.RemoveAll(dir)
}
