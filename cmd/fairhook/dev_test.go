//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

// programs is the directory of the real programs, built once.
var programs string

// TestMain builds the programs. Under the name of one of them the test binary is
// a stand-in: see fakeProgram.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); name == "ingest" || name == "dispatcher" {
		os.Exit(fakeProgram(os.Getenv("FAKE_" + strings.ToUpper(name))))
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "fairhook-programs-*")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		const module = "github.com/fairhook/fairhook/cmd/"
		build := exec.Command("go", "build", "-o", dir+"/", module+"fairhook", module+"ingest", module+"dispatcher", module+"migrate")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			panic(fmt.Sprintf("build the programs: %v", err))
		}
		programs = dir
		return m.Run()
	}())
}

// fakeProgram stands in for a process that misbehaves.
func fakeProgram(behaviour string) int {
	switch behaviour {
	case "dies":
		fmt.Fprintln(os.Stderr, "the door is stuck")
		return 3
	case "ready":
		_ = http.ListenAndServe(os.Getenv("FAIRHOOK_LISTEN"), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}
	return 4
}

// binDir is a directory with the real programs, but for those that are faked.
func binDir(t *testing.T, fakes ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"ingest", "dispatcher", "migrate"} {
		target := filepath.Join(programs, name)
		if slices.Contains(fakes, name) {
			target = self
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// devRun is a running `fairhook dev`.
type devRun struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout output
	stderr output
	done   chan struct{}
}

// output can be waited for.
type output struct {
	mu      sync.Mutex // guards what follows
	text    bytes.Buffer
	changed chan struct{} // closed and replaced by each write
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed != nil {
		close(o.changed)
	}
	o.changed = make(chan struct{})
	return o.text.Write(p)
}

func (o *output) state() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.text.String(), o.changed
}

func (o *output) String() string {
	text, _ := o.state()
	return text
}

func startDev(t *testing.T, env []string, args ...string) *devRun {
	t.Helper()
	return startFairhook(t, env, append([]string{"dev"}, args...)...)
}

func startFairhook(t *testing.T, env []string, args ...string) *devRun {
	t.Helper()
	d := &devRun{t: t, cmd: exec.Command(filepath.Join(programs, "fairhook"), args...), done: make(chan struct{})}
	d.cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "FAIRHOOK_") })
	d.cmd.Env = append(d.cmd.Env, env...)
	d.cmd.Stdout, d.cmd.Stderr = &d.stdout, &d.stderr
	d.cmd.WaitDelay = time.Second
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell would
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = d.cmd.Wait(); close(d.done) }()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.done
		if t.Failed() {
			t.Logf("stdout:\n%s\nstderr:\n%s", &d.stdout, &d.stderr)
		}
	})
	return d
}

// waitFor returns the output once it matches the pattern, with the match and
// its groups.
func (d *devRun) waitFor(pattern string) []string {
	d.t.Helper()
	return d.waitIn(&d.stdout, pattern)
}

// waitIn is waitFor in one of its outputs.
func (d *devRun) waitIn(out *output, pattern string) []string {
	d.t.Helper()
	want := regexp.MustCompile(pattern)
	deadline := time.After(90 * time.Second)
	for {
		text, changed := out.state()
		if match := want.FindStringSubmatch(text); match != nil {
			return match
		}
		select {
		case <-changed:
		case <-d.done:
			if match := want.FindStringSubmatch(out.String()); match != nil {
				return match
			}
			d.t.Fatalf("it ended without printing %q", pattern)
		case <-deadline:
			d.t.Fatalf("it does not print %q", pattern)
		}
	}
}

func (d *devRun) exitCode() int {
	d.t.Helper()
	select {
	case <-d.done:
		return d.cmd.ProcessState.ExitCode()
	case <-time.After(90 * time.Second):
		d.t.Fatal("it does not end")
		return -1
	}
}

func (d *devRun) signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
}

// family is a process tree at some moment.
type family map[int]string // command line by pid

// family lists the processes below this run's.
func (d *devRun) family() family {
	d.t.Helper()
	children := map[int][]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		parent, _ := strconv.Atoi(fields[1])
		children[parent] = append(children[parent], pid)
	}
	found := family{}
	for left := slices.Clone(children[d.cmd.Process.Pid]); len(left) > 0; left = left[1:] {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", left[0]))
		found[left[0]] = string(bytes.ReplaceAll(command, []byte{0}, []byte{' '}))
		left = append(left, children[left[0]]...)
	}
	return found
}

// named is the process whose command line begins with a program of that name.
func (f family) named(t *testing.T, name string) int {
	t.Helper()
	for pid, command := range f {
		program, _, _ := strings.Cut(command, " ")
		if filepath.Base(program) == name {
			return pid
		}
	}
	t.Fatalf("no %s among %v", name, f)
	return 0
}

// postgresDir is the directory of the private server.
func (f family) postgresDir(t *testing.T) string {
	t.Helper()
	_, after, _ := strings.Cut(f[f.named(t, "postgres")], " -D ")
	dir, _, _ := strings.Cut(after, " ")
	if dir == "" {
		t.Fatalf("no data directory in %v", f)
	}
	return dir
}

func (f family) waitUntilGone(t *testing.T) {
	t.Helper()
	for pid := range f {
		waitUntil(t, func() bool { return !running(pid) })
	}
}

const stayingUp = `Ctrl-C stops everything`

func TestDevShowsTheMainJob(t *testing.T) {
	t.Parallel()
	d := startDev(t, nil, "--exit-after-demo")
	d.waitFor(`Dispatcher is ready`)
	all := d.family()
	dir := all.postgresDir(t)
	if code := d.exitCode(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	const step = `(?m)^ ?\d+\. `
	match := d.waitFor(`(?s)` + step + `Postgres programs found in .*` +
		step + `Postgres started on 127\.0\.0\.1:\d+.*` +
		step + `Schema is up to date.*` +
		step + `Demo receiver listens on (http\S+).*` +
		step + `Ingest is ready: the API is http://127\.0\.0\.1:\d+.*` +
		step + `Dispatcher is ready.*` +
		step + `Webhook created: (\S+) sends to (http\S+).*` +
		step + `Event submitted: (\S+).*` +
		step + `Event delivered .*` +
		`POST / HTTP/1\.1.*Fairhook-Attempt: 1\n.*Fairhook-Event-Type: demo\.hello\n.*User-Agent: Fairhook/\S+\n.*` +
		`Webhook-Id: (\S+)\n.*Webhook-Signature: v1,\S+\n.*Webhook-Timestamp: \d+\n.*` +
		regexp.QuoteMeta(demoPayload) + `.*` +
		step + `signature verified.*` +
		`dispatcher stopped\n.*ingest stopped\n.*demo receiver stopped\n.*Postgres stopped\n$`)
	if match[1] != match[3] {
		t.Errorf("the webhook sends to %s, the receiver is %s", match[3], match[1])
	}
	if match[4] != match[5] {
		t.Errorf("event %s came as %s", match[4], match[5])
	}
	if text := d.stderr.String(); text != "" {
		t.Errorf("stderr: %s", text)
	}
	all.waitUntilGone(t)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}

func TestDevStaysUpUntilCtrlC(t *testing.T) {
	t.Parallel()
	d := startDev(t, nil)
	d.waitFor(stayingUp)

	// What it says to go on with works as it is printed.
	var answers []string
	for line := range strings.Lines(d.stdout.String()) {
		if !strings.HasPrefix(line, "curl ") {
			continue
		}
		answers = append(answers, curl(t, line))
	}
	if len(answers) != 4 {
		t.Fatalf("%d curl lines were printed", len(answers))
	}
	var submitted client.Accepted
	var read client.EventView
	var attempts struct{ Data []client.Attempt }
	for i, into := range []any{&client.CreatedWebhook{}, &submitted, &read, &attempts} {
		if err := json.Unmarshal([]byte(answers[i]), into); err != nil {
			t.Fatalf("%v: %s", err, answers[i])
		}
	}
	if len(submitted.Deliveries) != 2 {
		t.Errorf("the event goes to %d webhooks, want 2: %s", len(submitted.Deliveries), answers[1])
	}
	if string(read.PayloadBytes()) != demoPayload {
		t.Errorf("the demo's event has the payload %s", read.Payload)
	}
	if len(attempts.Data) != 1 || attempts.Data[0].Status != client.DeliveryDelivered {
		t.Errorf("the demo's attempts are %s", answers[3])
	}
	received := `received order\.paid, event ` + submitted.ID + `, attempt 1, signature verified\n    \{"order":1\}\n`
	d.waitFor(`(?s)` + received + `.*` + received)

	// A terminal sends it to the whole process group.
	all := d.family()
	if err := syscall.Kill(-d.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := d.exitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	d.waitFor(`(?s)Stopping\.\n.*dispatcher stopped\n.*ingest stopped\n.*demo receiver stopped\n.*Postgres stopped\n$`)
	all.waitUntilGone(t)
}

// curl runs a printed line as the shell would and, where there is no curl, makes
// its request.
func curl(t *testing.T, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := exec.LookPath("curl"); err == nil {
		answer, err := exec.CommandContext(ctx, "sh", "-c", strings.TrimSpace(line)+" --fail-with-body").CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", line, err, answer)
		}
		return string(answer)
	}
	var words []string
	for _, word := range regexp.MustCompile(`'[^']*'|\S+`).FindAllString(line, -1) {
		words = append(words, strings.Trim(word, "'"))
	}
	method, body, header, url := http.MethodGet, "", http.Header{}, ""
	for i := 1; i < len(words); i++ {
		switch words[i] {
		case "-sS":
		case "-H":
			i++
			name, value, _ := strings.Cut(words[i], ": ")
			header.Set(name, value)
		case "-d":
			i++
			method, body = http.MethodPost, words[i]
		default:
			url = words[i]
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(resp.Body); err != nil || resp.StatusCode >= 400 {
		t.Fatalf("%s: %s %v: %s", line, resp.Status, err, &answer)
	}
	return answer.String()
}

func TestDevLeavesNothingWhenKilled(t *testing.T) {
	t.Parallel()
	// With its port taken it finds another. Whoever has it when we do not, another test
	// of this machine, may give it back at any time.
	taken, err := net.Listen("tcp", defaultListen)
	if err == nil {
		defer taken.Close()
	}
	d := startDev(t, nil)
	d.waitFor(stayingUp)
	if api := d.waitFor(`the API is http://(\S+)`)[1]; err == nil {
		d.waitFor(regexp.QuoteMeta(defaultListen) + ` is taken`)
		if api == defaultListen {
			t.Errorf("the API is %s", api)
		}
	}
	all := d.family()
	for _, name := range []string{"ingest", "dispatcher", "postgres"} {
		all.named(t, name)
	}
	d.signal(syscall.SIGKILL)
	<-d.done
	all.waitUntilGone(t)
}

func TestDevKeepsADataDirectory(t *testing.T) {
	t.Parallel()
	// Not t.TempDir: where root runs the test, Postgres' user must get there.
	dir, err := os.MkdirTemp("", "fairhook-dev-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	keys := func() (text string) {
		for _, name := range []string{"encryption.key", "bootstrap.key"} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("others may read %s: %s", name, info.Mode())
			}
			key, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			text += string(key)
		}
		return text
	}

	// The first run is killed, and leaves its demo webhook behind.
	first := startDev(t, nil, "--data-dir", dir)
	demoWebhook := first.waitFor(`Webhook created: (\S+)`)[1]
	first.waitFor(stayingUp)
	made := keys()
	all := first.family()
	first.signal(syscall.SIGKILL)
	<-first.done
	all.waitUntilGone(t)

	second := startDev(t, nil, "--data-dir", dir)
	second.waitFor(stayingUp)
	if keys() != made {
		t.Error("the keys changed")
	}
	api := second.waitFor(`the API is (\S+)`)[1]
	_, bootstrap, _ := strings.Cut(strings.TrimSpace(made), "\n")
	c, err := client.New(api, bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Webhooks().Get(t.Context(), demoWebhook); !client.IsNotFound(err) {
		t.Errorf("the demo webhook of the killed run: %v", err)
	}
	for _, name := range []string{"ingest", "dispatcher", "migrate"} {
		if _, err := os.Stat(filepath.Join(dir, "log", name+".log")); err != nil {
			t.Error(err)
		}
	}
	all = second.family()
	second.signal(syscall.SIGTERM)
	if code := second.exitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	all.waitUntilGone(t)
}

func TestDevOnAnExistingDatabase(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	env := []string{"FAIRHOOK_DATABASE_URL=" + database.URL}

	first := startDev(t, env)
	first.waitFor(stayingUp)
	for _, command := range first.family() {
		if strings.Contains(command, "postgres") {
			t.Errorf("a private Postgres runs: %s", command)
		}
	}
	// The user's own webhook stays when the demo's goes.
	create := first.waitFor(`(?m)^curl .*/v1/webhooks$`)[0]
	own := strings.Replace(create, demoDescription, "my own", 1)
	if own == create {
		t.Fatalf("the demo's description is not in %s", create)
	}
	var webhook client.CreatedWebhook
	if err := json.Unmarshal([]byte(curl(t, own)), &webhook); err != nil {
		t.Fatal(err)
	}
	first.signal(syscall.SIGTERM)
	if code := first.exitCode(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	var left []string
	rows, err := database.Pool.Query(t.Context(), `SELECT id::text FROM fairhook.webhooks`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		left = append(left, id)
	}
	if rows.Err() != nil || !slices.Equal(left, []string{webhook.ID}) {
		t.Errorf("webhooks left: %q, %v", left, rows.Err())
	}

	// A new key cannot open that webhook's secret: better said at once.
	second := startDev(t, env, "--exit-after-demo")
	if code := second.exitCode(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if text := second.stderr.String(); !strings.Contains(text, "cannot be opened") || !strings.Contains(text, "--encryption-key") {
		t.Errorf("stderr: %s", text)
	}

	key := first.waitFor(`FAIRHOOK_ENCRYPTION_KEY=(\S+)`)[0]
	third := startDev(t, append(env, key), "--exit-after-demo")
	if code := third.exitCode(); code != 0 {
		t.Errorf("with the key: exit code %d", code)
	}
}

func TestDevSaysWhichProcessDied(t *testing.T) {
	t.Parallel()

	t.Run("AtItsStart", func(t *testing.T) {
		t.Parallel()
		env := []string{"FAKE_INGEST=dies", "FAIRHOOK_DATABASE_URL=" + pgtest.New(t).URL}
		d := startDev(t, env, "--bin-dir", binDir(t, "ingest"))
		d.waitFor(`Schema is up to date`)
		all := d.family()
		if code := d.exitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
		if text := d.stderr.String(); !strings.Contains(text, "ingest ended (exit status 3)") || strings.Count(text, "the door is stuck") != 1 {
			t.Errorf("stderr: %s", text)
		}
		all.waitUntilGone(t)
	})

	for _, tc := range []struct {
		program string
		signal  syscall.Signal
		says    string
	}{
		{"dispatcher", syscall.SIGKILL, "dispatcher ended (signal: killed); the end of its log:\n"},
		{"postgres", syscall.SIGQUIT, "Postgres ended; the end of its log:\n"},
	} {
		t.Run("WhileStayingUp/"+tc.program, func(t *testing.T) {
			t.Parallel()
			d := startDev(t, nil)
			d.waitFor(stayingUp)
			all := d.family()
			if err := syscall.Kill(all.named(t, tc.program), tc.signal); err != nil {
				t.Fatal(err)
			}
			if code := d.exitCode(); code != 1 {
				t.Errorf("exit code %d", code)
			}
			if text := d.stderr.String(); !strings.Contains(text, tc.says) || strings.Contains(text, "it said nothing") {
				t.Errorf("stderr: %s", text)
			}
			d.waitFor(`Postgres stopped\n$`)
			all.waitUntilGone(t)
		})
	}
}

func TestDevEndsAtOnceAtASecondSignal(t *testing.T) {
	t.Parallel()
	env := []string{"FAKE_DISPATCHER=ready", "FAIRHOOK_DATABASE_URL=" + pgtest.New(t).URL}
	d := startDev(t, env, "--bin-dir", binDir(t, "dispatcher"))
	// Nobody delivers: it waits. Stopped, the stand-in is deaf to SIGTERM.
	d.waitFor(`Event submitted`)
	all := d.family()
	if err := syscall.Kill(all.named(t, "dispatcher"), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d.signal(syscall.SIGINT)
	d.waitFor(`Stopping`)
	d.signal(syscall.SIGINT)
	if code := d.exitCode(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	all.waitUntilGone(t)
}

func TestDevStoppedBeforeTheDemoIsOver(t *testing.T) {
	t.Parallel()
	d := startDev(t, nil, "--exit-after-demo")
	d.waitFor(`Postgres started`)
	all := d.family()
	d.signal(syscall.SIGTERM)
	if code := d.exitCode(); code != 1 || !strings.Contains(d.stderr.String(), "before the demo was over") {
		t.Errorf("exit code %d, stderr: %s", code, &d.stderr)
	}
	all.waitUntilGone(t)
}

func TestDevDoesNotListenWhereSomebodyElseDoes(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	d := startDev(t, nil, "--listen", taken.Addr().String())
	if code := d.exitCode(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if text := d.stderr.String(); !strings.Contains(text, taken.Addr().String()) || !strings.Contains(text, "--listen") {
		t.Errorf("stderr: %s", text)
	}
}

func TestDevRefusesWhatItCannotDo(t *testing.T) {
	t.Parallel()

	t.Run("WithoutItsPrograms", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		d := startDev(t, nil, "--bin-dir", dir)
		if code := d.exitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
		if text := d.stderr.String(); !strings.Contains(text, "no program migrate in "+dir) || !strings.Contains(text, "--bin-dir") {
			t.Errorf("stderr: %s", text)
		}
	})

	t.Run("AllWrongSettingsAtOnce", func(t *testing.T) {
		t.Parallel()
		d := startDev(t, []string{"FAIRHOOK_LISTEN=here", "FAIRHOOK_ALLOW_PRIVATE_TARGETS=10.0.0.0/99"}, "--verbose=perhaps", "--log-level=loud")
		if code := d.exitCode(); code != 2 {
			t.Errorf("exit code %d", code)
		}
		for _, name := range []string{
			"--listen (FAIRHOOK_LISTEN)", "--allow-private-targets (FAIRHOOK_ALLOW_PRIVATE_TARGETS)", "--verbose (FAIRHOOK_VERBOSE)", "--log-level (FAIRHOOK_LOG_LEVEL)",
		} {
			if !strings.Contains(d.stderr.String(), name) {
				t.Errorf("%s is not named in: %s", name, &d.stderr)
			}
		}
	})

	t.Run("OnADatabaseThatIsNotThere", func(t *testing.T) {
		t.Parallel()
		gone, err := freeAddress()
		if err != nil {
			t.Fatal(err)
		}
		d := startDev(t, nil, "--database-url", "postgres://user:hidden-password@"+gone+"/db?connect_timeout=1")
		if code := d.exitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
		if text := d.stdout.String() + d.stderr.String(); !strings.Contains(text, "migrate the schema") || strings.Contains(text, "hidden-password") {
			t.Errorf("says: %s", text)
		}
	})
}

func TestVersion(t *testing.T) {
	t.Parallel()
	text, err := exec.CommandContext(t.Context(), filepath.Join(programs, "fairhook"), "version").Output()
	if err != nil || !regexp.MustCompile(`^fairhook \S+\n$`).Match(text) {
		t.Errorf("prints %q, %v", text, err)
	}
}
