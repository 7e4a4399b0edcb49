//go:build unix

package pglocal

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the user a server runs as when we are root, which Postgres refuses
// to run as.
type account struct {
	name     string
	uid, gid uint32
}

// unprivileged is the account to drop to: nil for an ordinary user.
func unprivileged() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return &account{name, uint32(uid), uint32(gid)}, nil
		}
	}
	return nil, errors.New("neither a user postgres nor a user nobody to run Postgres as, which refuses to run as root")
}

// credential drops every other group too.
func (a *account) credential() *syscall.Credential {
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: []uint32{a.gid}}
}

// own gives a file to the account; a nil account leaves it to us.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	if err := os.Lchown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("give %s to user %s: %w", path, a.name, err)
	}
	return nil
}

// reaches fails if the account cannot enter a directory, which is judged by the
// modes of the directory and of all above it. A nil account is ourselves, and
// the system says when we cannot.
func (a *account) reaches(dir string) error {
	if a == nil {
		return nil
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for at := resolved; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		if !a.enters(info) {
			return fmt.Errorf("user %s cannot enter %s (mode %s)", a.name, at, info.Mode())
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

func (a *account) enters(info os.FileInfo) bool {
	search := os.FileMode(0o001)
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		switch {
		case stat.Uid == a.uid:
			search = 0o100
		case stat.Gid == a.gid:
			search = 0o010
		}
	}
	return info.IsDir() && info.Mode()&search != 0
}
