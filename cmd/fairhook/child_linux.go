package main

import "syscall"

// childAttributes keeps a child away from the terminal's Ctrl-C, so that it is
// stopped in order by us, and ends it when we end.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
