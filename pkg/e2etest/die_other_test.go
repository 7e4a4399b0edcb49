//go:build !linux

package e2etest

import "syscall"

func dieWithUs() *syscall.SysProcAttr { return nil }
