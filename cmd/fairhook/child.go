//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// child is a process of ours that was started and is waited for.
type child struct {
	log  *childLog
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended and its output is read
	err  error         // how it ended; read it after done
}

// startChild starts a program. It ends when we end, however that happens, and a
// Ctrl-C in the terminal reaches only us. The log is closed when it ends.
func startChild(path string, args, environ []string, log *childLog) (*child, error) {
	c := &child{log: log, cmd: exec.Command(path, args...), done: make(chan struct{})}
	c.cmd.Env = environ
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.SysProcAttr = childAttributes()
	// What holds the output open after the process's end is not waited for.
	c.cmd.WaitDelay = time.Second
	started := make(chan error)
	go func() {
		// The kernel sends the parent-death signal when the thread ends that
		// started the child, so that thread stays: it is never unlocked, and ends
		// with this goroutine.
		runtime.LockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = errors.Join(c.cmd.Wait(), log.close())
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// stop has the process stop in order, and ends it when it has not done so in
// time. It returns when the process has ended.
func (c *child) stop(grace time.Duration) {
	// A signal can only fail when the process has ended, which done says.
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		<-c.done
	}
}

// died says how the process ended. Call it after done.
func (c *child) died() *diedError {
	return &diedError{name: filepath.Base(c.cmd.Path), err: c.err, log: "the end of its log:\n" + c.log.tail()}
}

// diedError is the end of something that should have stayed, or done its work.
type diedError struct {
	name string
	err  error  // nil where it is not known, or was no failure
	log  string // what it last said
}

func (e *diedError) Error() string {
	how := ""
	if e.err != nil {
		how = " (" + e.err.Error() + ")"
	}
	return fmt.Sprintf("%s ended%s; %s", e.name, how, e.log)
}

func (e *diedError) Unwrap() error { return e.err }

const (
	// keptLog is how much of a process's output is kept in memory, in bytes.
	keptLog = 32 << 10
	// tailLines is how much of that is shown.
	tailLines = 15
)

// childLog takes what a process prints: it keeps the end of it, and passes it on
// to a file and to the console.
type childLog struct {
	name string
	file *os.File // or nil
	out  *console // or nil

	mu      sync.Mutex // guards what follows
	kept    []byte
	pending []byte // the beginning of a line that is not complete yet, for out
}

// Write never fails: what a process does must not depend on who listens.
func (l *childLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept = append(l.kept, p...); len(l.kept) > 2*keptLog {
		l.kept = bytes.Clone(l.kept[len(l.kept)-keptLog:])
	}
	if l.file != nil {
		_, _ = l.file.Write(p)
	}
	if l.out != nil {
		l.pending = append(l.pending, p...)
		for {
			line, rest, found := bytes.Cut(l.pending, []byte("\n"))
			if !found && len(rest)+len(line) <= keptLog {
				break
			}
			l.out.printf("    %-10s | %s\n", l.name, printable(line))
			l.pending = bytes.Clone(rest)
		}
	}
	return len(p), nil
}

// tail is the last lines, indented.
func (l *childLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimSpace(string(l.kept))
	if text == "" {
		return "    (it said nothing)"
	}
	lines := strings.Split(text, "\n")
	var b strings.Builder
	for _, line := range lines[max(0, len(lines)-tailLines):] {
		fmt.Fprintf(&b, "    %s\n", printable([]byte(line)))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (l *childLog) close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
