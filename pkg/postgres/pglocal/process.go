//go:build unix

package pglocal

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a child that was started, and is waited for.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended
	err  error         // of its end; read it after done
}

// startProcess starts cmd on a thread of its own that lives as long as the child
// does: the kernel sends the parent-death signal when the thread that started
// the child ends, not the process. keep is reachable for as long: the file that
// locks the child's directory would otherwise be closed, and the lock lost, once
// nobody but the child remembers the server.
func startProcess(cmd *exec.Cmd, keep any) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
			runtime.KeepAlive(keep)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// ending is how it ended, never nil.
func (p *process) ending() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

func (p *process) wait(timeout time.Duration) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}

// signal can only fail when the process has ended, which done says.
func (p *process) signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// end shuts the server down at once, in Postgres' own way and then in the
// kernel's.
func (p *process) end() {
	p.signal(syscall.SIGQUIT)
	if !p.wait(immediateTimeout) {
		p.kill()
	}
}

// kill ends the process and its children. Each child of a Postgres server leads
// a process group of its own, so they are looked up while their parent, stopped,
// cannot make more.
func (p *process) kill() {
	p.signal(syscall.SIGSTOP)
	children := childrenOf(p.cmd.Process.Pid)
	p.signal(syscall.SIGKILL)
	for _, child := range children {
		_ = syscall.Kill(child, syscall.SIGKILL) // it may have ended by itself
	}
	<-p.done
}

func childrenOf(parent int) []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		return childrenByPgrep(parent)
	}
	var children []int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		// "pid (name) state ppid ...", and the name may hold anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 2 || string(fields[1]) != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			children = append(children, pid)
		}
	}
	return children
}

func childrenByPgrep(parent int) []int {
	output, err := exec.Command("pgrep", "-P", strconv.Itoa(parent)).Output()
	if err != nil {
		return nil // no children, or no pgrep: they notice their parent's death
	}
	var children []int
	for field := range strings.FieldsSeq(string(output)) {
		if pid, err := strconv.Atoi(field); err == nil {
			children = append(children, pid)
		}
	}
	return children
}

// endOrphan ends the server of a cluster whose starter is gone, and waits until
// it has ended. On Linux the kernel has told it to end already.
func endOrphan(dataDir string) {
	text, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil {
		return
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 {
		return
	}
	for deadline := time.Now().Add(immediateTimeout); serves(pid, dataDir); time.Sleep(readyPoll) {
		sig := syscall.SIGQUIT
		if time.Now().After(deadline) {
			sig = syscall.SIGKILL
		}
		if syscall.Kill(pid, sig) != nil {
			return
		}
	}
}

// serves reports whether a process is the server of a cluster, and not another
// one that got its number.
func serves(pid int, dataDir string) bool {
	if cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd"); err == nil {
		return cwd == dataDir
	}
	if _, err := os.Stat("/proc/self"); err == nil {
		return false
	}
	command, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(command), dataDir)
}
