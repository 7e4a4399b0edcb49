package daemon

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

const childEnv = "FAIRHOOK_DAEMON_TEST_CHILD"

// TestMain lets the test binary be the process that the tests below signal.
func TestMain(m *testing.M) {
	if how := os.Getenv(childEnv); how != "" {
		os.Exit(Execute(&cobra.Command{
			Use:  "child",
			Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				fmt.Println("running")
				<-cmd.Context().Done()
				fmt.Println("stopping")
				if how == "stubborn" {
					for range make(chan struct{}) { // only the second signal ends it
					}
				}
				return nil
			},
		}))
	}
	os.Exit(m.Run())
}

func TestProcess(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, how string) (*exec.Cmd, func(want string)) {
		t.Helper()
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+how)
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		reader := bufio.NewReader(stdout)
		expect := func(want string) {
			t.Helper()
			line, err := reader.ReadString('\n')
			if strings.TrimSpace(line) != want {
				t.Fatalf("the process says %q (%v), want %q", line, err, want)
			}
		}
		expect("running")
		return child, expect
	}
	signal := func(t *testing.T, child *exec.Cmd, sig syscall.Signal) {
		t.Helper()
		if err := child.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}

	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run("StopsInOrderOn"+sig.String(), func(t *testing.T) {
			t.Parallel()
			child, expect := start(t, "obedient")
			signal(t, child, sig)
			expect("stopping")
			if err := child.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
		})
		t.Run("StopsAtOnceOnASecond"+sig.String(), func(t *testing.T) {
			t.Parallel()
			child, expect := start(t, "stubborn")
			signal(t, child, sig)
			expect("stopping")
			signal(t, child, sig)
			_ = child.Wait()
			if code := child.ProcessState.ExitCode(); code != ExitKilled {
				t.Errorf("it ended with code %d", code)
			}
		})
	}
}
