//go:build unix && !linux

package main

import "syscall"

// childAttributes keeps a child away from the terminal's Ctrl-C, so that it is
// stopped in order by us. These systems have no parent-death signal.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
