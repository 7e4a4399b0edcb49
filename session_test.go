//go:build unix

package fairhook_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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
	output, err := typeIn(t, exports+"\n"+script)
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

// requestPages are the pages whose commands with curl are run: all such pages but those
// about deployments. A schema for order.paid would refuse what the others submit, so
// the one that declares it comes last.
var requestPages = []string{
	"docs/api-keys.md", "docs/operational-events.md", "docs/ordering.md", "docs/querying.md", "docs/receiver-identity.md", "docs/signatures.md",
	"docs/event-types.md",
}

// aWebhook sets WEBHOOK, which the pages' commands are about.
const aWebhook = `
created=$(curl -sS --fail-with-body "$FAIRHOOK_URL/v1/webhooks" -H "Authorization: Bearer $FAIRHOOK_KEY" \
  -d '{"tenant": "initech", "url": "'"$RECEIVER"'"}')
WEBHOOK=$(echo "$created" | grep -o '"id":"[^"]*"' | head -n 1 | cut -d '"' -f 4)
`

// The requests in the documentation are ones that Fairhook takes.
func TestDocumentedRequests(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	scripts := map[string]string{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, rest := range strings.Split(string(text), "```sh\ncurl ")[1:] {
			script, _, _ := strings.Cut(rest, "```")
			scripts[page] += "curl " + script
		}
	}
	if found := slices.Sorted(maps.Keys(scripts)); !slices.Equal(found, slices.Sorted(slices.Values(requestPages))) {
		t.Errorf("requests are in %v, and run are those of %v", found, requestPages)
	}
	dev := startDev(t)
	exports := dev.wait(t, func(line string) bool { return strings.HasPrefix(line, "export FAIRHOOK_URL=") })
	dev.wait(t, func(line string) bool { return strings.HasPrefix(line, "Ctrl-C stops everything") })
	for _, page := range requestPages {
		script := scripts[page]
		if strings.Count(script, "curl ") != strings.Count(script, "--fail-with-body ") {
			t.Errorf("%s does without --fail-with-body, and so would not be seen to fail", page)
		}
		// Nothing is sent to anybody else's machine.
		script = regexp.MustCompile(`"url": "[^"]*"`).ReplaceAllString(script, `"url": "'"$$RECEIVER"'"`)
		if output, err := typeIn(t, exports+"\n"+aWebhook+script); err != nil {
			t.Errorf("what %s says to do fails: %v\n%s\n%s", page, err, script, output)
		}
	}
	dev.stop(t)
}

// typeIn has a shell do what a script says, and returns what it prints.
func typeIn(t *testing.T, script string) ([]byte, error) {
	t.Helper()
	shell := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail")
	shell.Env = append(os.Environ(), "PATH="+curlPath(t))
	shell.Stdin = strings.NewReader(script)
	return shell.CombinedOutput()
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
	var target, body string
	method, header, query := "", http.Header{}, url.Values{}
	asked := false // -G
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "-sS" || arg == "--fail-with-body":
		case arg == "-G":
			asked = true
		case arg == "-X" && i+1 < len(args):
			i++
			method = args[i]
		case arg == "-H" && i+1 < len(args):
			i++
			name, value, _ := strings.Cut(args[i], ":")
			header.Set(name, strings.TrimSpace(value))
		case (arg == "-d" || arg == "--data-urlencode") && i+1 < len(args):
			i++
			body = args[i]
			name, value, _ := strings.Cut(args[i], "=")
			query.Add(name, value)
		case strings.HasPrefix(arg, "-"):
			return fmt.Errorf("this stand-in does not know %s", arg)
		default:
			target = arg
		}
	}
	switch {
	case asked:
		target, body = target+"?"+query.Encode(), ""
	case body != "" && method == "":
		method = http.MethodPost
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
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
		fmt.Fprintf(w, "%s %s %s%s", r.Method, r.Header.Get("Authorization"), body, r.URL.RawQuery)
	}))
	defer server.Close()
	for _, tc := range []struct {
		args []string
		want string
		fail bool
	}{
		{[]string{"-sS", "--fail-with-body", server.URL + "/x", "-H", "Authorization: Bearer k", "-d", "{}"}, "POST Bearer k {}", false},
		{[]string{"-sS", "--fail-with-body", server.URL + "/missing"}, "GET  ", true},
		{[]string{"-X", "PATCH", server.URL, "-d", "{}"}, "PATCH  {}", false},
		{[]string{"-G", server.URL, "-d", "a=b", "--data-urlencode", `c={"d":1}`}, "GET  a=b&c=%7B%22d%22%3A1%7D", false},
		{[]string{"--no-such", server.URL}, "", true},
	} {
		var out strings.Builder
		err := curl(tc.args, &out)
		if out.String() != tc.want || (err != nil) != tc.fail {
			t.Errorf("curl %q: %q, %v", tc.args, out.String(), err)
		}
	}
}
