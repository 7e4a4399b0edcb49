//go:build unix

package fairhook_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// readmeSession is the script in README.md behind its marker.
func readmeSession(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "<!-- session: a test runs this -->\n```sh\n")
	script, _, ended := strings.Cut(rest, "```\n")
	if !found || !ended {
		t.Fatal("README.md has no session")
	}
	return script
}

// dev is a running "fairhook dev".
type dev struct {
	process *exec.Cmd
	stderr  *strings.Builder
	// lines are what it prints, until it ends, and seen what was read of them.
	lines    chan string
	seen     []string
	deadline <-chan time.Time
}

// startDev starts "fairhook dev", which is what "make run" runs. It is stopped with
// the test, if not before.
func startDev(t *testing.T, args ...string) *dev {
	t.Helper()
	bin := programs(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()

	d := &dev{stderr: &strings.Builder{}, lines: make(chan string), deadline: time.After(2 * time.Minute)}
	d.process = exec.CommandContext(t.Context(), filepath.Join(bin, "fairhook"), append([]string{"dev", "--listen", address}, args...)...)
	d.process.Cancel = func() error { return d.process.Process.Signal(syscall.SIGTERM) }
	d.process.WaitDelay = time.Minute
	d.process.Stderr = d.stderr
	stdout, err := d.process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.process.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.lines)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			d.lines <- scanner.Text()
		}
	}()
	return d
}

// wait reads what it prints up to a line that says what is wanted.
func (d *dev) wait(t *testing.T, wanted func(line string) bool) string {
	t.Helper()
	for {
		select {
		case line, open := <-d.lines:
			d.seen = append(d.seen, line)
			switch {
			case !open:
				t.Fatalf("fairhook dev has ended: %s\n%s", d.stderr.String(), strings.Join(d.seen, "\n"))
			case wanted(line):
				return line
			}
		case <-d.deadline:
			t.Fatalf("the line does not come:\n%s", strings.Join(d.seen, "\n"))
		}
	}
}

// stop presses Ctrl-C, and waits until all has stopped.
func (d *dev) stop(t *testing.T) {
	t.Helper()
	if err := d.process.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for range d.lines { // it prints what it stops
	}
	if err := d.process.Wait(); err != nil {
		t.Errorf("fairhook dev stopped by Ctrl-C: %v\n%s", err, d.stderr.String())
	}
}

// The session in README.md, typed in beside what "make run" runs, does what it
// says: its event arrives, signed.
func TestReadmeSession(t *testing.T) {
	t.Parallel()
	script := readmeSession(t)
	dev := startDev(t)
	exports := dev.wait(t, func(line string) bool { return strings.HasPrefix(line, "export FAIRHOOK_URL=") })
	dev.wait(t, func(line string) bool { return strings.HasPrefix(line, "Ctrl-C stops everything") })
	session := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail")
	session.Env = append(os.Environ(), "PATH="+curlPath(t))
	session.Stdin = strings.NewReader(exports + "\n" + script)
	output, err := session.CombinedOutput()
	if err != nil {
		t.Fatalf("the session fails: %v\n%s", err, output)
	}
	for _, want := range []string{`"secret":"whsec_`, `"deliveries":[{"webhook_id":"`, `"payload":{"order": 4711, "total": 99.90}`, `"data":[`} {
		if !strings.Contains(string(output), want) {
			t.Errorf("the session does not show %s:\n%s", want, output)
		}
	}
	dev.wait(t, func(line string) bool {
		return strings.Contains(line, "received order.paid") && strings.Contains(line, "signature verified")
	})
	dev.wait(t, func(line string) bool { return strings.Contains(line, `{"order": 4711, "total": 99.90}`) })
	dev.stop(t)
}

// curlPath is the PATH for the session. Where there is no curl, which a bare
// machine lacks, this test's own program takes its place.
func curlPath(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PATH")
	if _, err := exec.LookPath("curl"); err == nil {
		return path
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "curl")); err != nil {
		t.Fatal(err)
	}
	return dir + string(os.PathListSeparator) + path
}

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "curl" {
		if err := curl(os.Args[1:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "curl:", err)
			os.Exit(22)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if programsDir, err = os.MkdirTemp("", "fairhook-programs-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programsDir)
	return m.Run()
}

// curl is as much of curl as the session uses.
func curl(args []string, out io.Writer) error {
	var url, body string
	method, header := http.MethodGet, http.Header{}
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "-sS" || arg == "--fail-with-body":
		case arg == "-H" && i+1 < len(args):
			i++
			name, value, _ := strings.Cut(args[i], ":")
			header.Set(name, strings.TrimSpace(value))
		case arg == "-d" && i+1 < len(args):
			i++
			method, body = http.MethodPost, args[i]
		case strings.HasPrefix(arg, "-"):
			return fmt.Errorf("this stand-in does not know %s", arg)
		default:
			url = arg
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header = header
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(out, response.Body); err != nil {
		return err
	}
	if response.StatusCode >= 400 {
		return fmt.Errorf("the answer is %s", response.Status)
	}
	return nil
}

func TestTheStandInForCurlDoesWhatCurlDoes(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/missing" {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprintf(w, "%s %s %s", r.Method, r.Header.Get("Authorization"), body)
	}))
	defer server.Close()
	for _, tc := range []struct {
		args []string
		want string
		fail bool
	}{
		{[]string{"-sS", "--fail-with-body", server.URL + "/x", "-H", "Authorization: Bearer k", "-d", "{}"}, "POST Bearer k {}", false},
		{[]string{"-sS", "--fail-with-body", server.URL + "/missing"}, "GET  ", true},
		{[]string{"--no-such", server.URL}, "", true},
	} {
		var out strings.Builder
		err := curl(tc.args, &out)
		if out.String() != tc.want || (err != nil) != tc.fail {
			t.Errorf("curl %q: %q, %v", tc.args, out.String(), err)
		}
	}
}
