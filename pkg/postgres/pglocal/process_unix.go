//go:build unix && !linux

package pglocal

import "syscall"

// processAttributes keeps a child away from the terminal's Ctrl-C, so that it is
// stopped in order by us. These systems have no parent-death signal: the server
// of a process that was killed is ended by the next start.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// memoryHasRoom: these systems have no directory in memory.
func memoryHasRoom() bool { return false }
