package pglocal

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

const (
	tmpfsMagic = 0x01021994
	// What must be free for a server in memory: several test binaries run at
	// once, and containers often have a /dev/shm of 64 MB.
	memoryDirRoom = 2 << 30
	memoryRoom    = 4 << 30
)

// processAttributes keeps a child away from the terminal's Ctrl-C, so that it is
// stopped in order by us, and ends it when we end: SIGQUIT is Postgres' immediate
// shutdown.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGQUIT}
}

// memoryHasRoom reports whether memoryDir is in memory, and neither it nor the
// machine is short of it.
func memoryHasRoom() bool {
	var fs syscall.Statfs_t
	if syscall.Statfs(memoryDir, &fs) != nil || int64(fs.Type) != tmpfsMagic || fs.Bavail*uint64(fs.Bsize) < memoryDirRoom {
		return false
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return false
	}
	_, rest, found := bytes.Cut(meminfo, []byte("MemAvailable:"))
	var kilobytes uint64
	if _, err := fmt.Sscan(string(rest), &kilobytes); !found || err != nil {
		return false
	}
	return kilobytes<<10 >= memoryRoom
}
