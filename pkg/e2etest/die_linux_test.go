package e2etest

import "syscall"

// dieWithUs ends a child when this process ends, however that happens.
func dieWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
