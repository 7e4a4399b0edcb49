package e2etest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

const (
	testWait    = 60 * time.Second
	readyWait   = 30 * time.Second
	stopWait    = 40 * time.Second
	bootstrap   = "e2e-bootstrap-key"
	projectRoot = "../.."
)

// binaries builds the programs once per test binary.
type binaries struct {
	once sync.Once
	dir  string
	err  error
}

var (
	checked   binaries // with the race detector, if these tests have it
	unchecked binaries
	shifted   binaries // with clocks that can be wrong: see wrongClocks
)

func TestMain(m *testing.M) {
	code := m.Run()
	for _, b := range []*binaries{&checked, &unchecked, &shifted} {
		if b.dir != "" {
			_ = os.RemoveAll(b.dir)
		}
	}
	os.Exit(code)
}

// program is the path of a built program.
func (b *binaries) program(t *testing.T, name string) string {
	t.Helper()
	b.once.Do(func() {
		var flags []string
		if b == &checked {
			flags = raceFlags
		}
		if b.dir, b.err = os.MkdirTemp("", "fairhook-e2e-"); b.err != nil {
			return
		}
		args := append([]string{"build"}, flags...)
		args = append(args, "-o", b.dir+string(filepath.Separator), "./cmd/...", "./docs/examples/go/...", "./pkg/e2etest/testdata/holder")
		cmd := exec.Command("go", args...)
		cmd.Dir = projectRoot
		if output, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("build the programs: %w\n%s", err, output)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return filepath.Join(b.dir, name)
}

// process is one running program.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	addr string // of its HTTP listener
	done chan struct{}
	err  error // of its end; read it after done

	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

// start runs a program that ends with the test, whatever happens to the test.
func start(t *testing.T, path string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: filepath.Base(path), cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = dieWithUs()
	started := make(chan error)
	go func() {
		// The kernel ends the child when the thread that started it ends.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended long ago
		<-p.done
		if t.Failed() {
			t.Logf("log of %s (pid %d):\n%s", p.name, p.cmd.Process.Pid, p.tail())
		}
		if strings.Contains(p.output(), "DATA RACE") {
			t.Errorf("%s has a data race:\n%s", p.name, p.output())
		}
	})
	return p
}

// Write keeps what the program prints.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *process) tail() string {
	const most = 2000
	output := p.output()
	return output[max(0, len(output)-most):]
}

// kill ends the program as a power cut would.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatalf("kill %s: %v", p.name, err)
	}
	<-p.done
}

// terminate asks the program to stop and returns its exit code.
func (p *process) terminate() int {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	return p.exitCode()
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("signal %s: %v", p.name, err)
	}
}

func (p *process) exitCode() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(stopWait):
		p.t.Fatalf("%s has not ended %s after it was told to", p.name, stopWait)
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// ready waits until the program says that it is.
func (p *process) ready() *process {
	p.t.Helper()
	p.within(readyWait, p.name+" is ready", func() bool {
		select {
		case <-p.done:
			p.t.Fatalf("%s ended: %v\n%s", p.name, p.err, p.tail())
		default:
		}
		response, err := http.Get("http://" + p.addr + "/readyz")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return p
}

func (p *process) within(limit time.Duration, what string, is func() bool) {
	p.t.Helper()
	within(p.t, limit, what, is)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	within(t, testWait, what, is)
}

func within(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline:
			t.Fatalf("waited %s in vain: %s", limit, what)
		case <-tick.C:
		}
	}
}

// stack is a migrated database and what the processes on it share.
type stack struct {
	t        *testing.T
	database *pgtest.Database
	url      string
	env      []string
	programs *binaries
}

// newStack migrates an empty database with the real program.
func newStack(t *testing.T) *stack {
	t.Helper()
	database := pgtest.Empty(t)
	s := stackOn(t, database.URL)
	s.database = database
	return s
}

func stackOn(t *testing.T, url string) *stack {
	t.Helper()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	s := &stack{t: t, url: url, programs: &checked, env: []string{
		"FAIRHOOK_DATABASE_URL=" + url,
		"FAIRHOOK_ENCRYPTION_KEY=" + base64.StdEncoding.EncodeToString(key),
		"FAIRHOOK_BOOTSTRAP_KEY=" + bootstrap,
		"FAIRHOOK_ALLOW_PRIVATE_TARGETS=127.0.0.0/8",
		"FAIRHOOK_LOG_LEVEL=debug",
	}}
	if code := start(t, s.programs.program(t, "migrate"), s.env, "up").exitCode(); code != 0 {
		t.Fatalf("migrate up: exit code %d", code)
	}
	return s
}

// run starts one of the services on a free port.
func (s *stack) run(name string, env ...string) *process {
	s.t.Helper()
	addr := freeAddress(s.t)
	p := start(s.t, s.programs.program(s.t, name), append(append(env, s.env...), "FAIRHOOK_LISTEN="+addr))
	p.addr = addr
	return p
}

// runWith is run with settings that take precedence over the stack's.
func (s *stack) runWith(name string, env ...string) *process {
	s.t.Helper()
	addr := freeAddress(s.t)
	// Of a variable that is set twice the last counts.
	p := start(s.t, s.programs.program(s.t, name), slices.Concat(s.env, env, []string{"FAIRHOOK_LISTEN=" + addr}))
	p.addr = addr
	return p
}

func (s *stack) client(ingest *process) *client.Client {
	s.t.Helper()
	c, err := client.New("http://"+ingest.addr, bootstrap,
		client.WithRetryMax(20), client.WithRetryWait(10*time.Millisecond, 2*time.Second))
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *stack) count(sql string, args ...any) (n int) {
	s.t.Helper()
	if err := s.database.Pool.QueryRow(s.t.Context(), sql, args...).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// receiver is a real server with one path per webhook. It verifies every request
// with an implementation of Standard Webhooks that is not ours, and remembers
// what it got.
type receiver struct {
	t      *testing.T
	url    string
	server *http.Server
	// takes is how long each answer takes, so that something is in flight when a
	// test breaks something. Set before the first request.
	takes time.Duration

	mu       sync.Mutex
	verifier map[string]*standardwebhooks.Webhook // by path; guarded by mu
	got      map[string][]receipt                 // by webhook-id; guarded by mu
	faults   []string                             // guarded by mu
}

type receipt struct {
	path string
	body string
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{
		t: t, url: "http://" + listener.Addr().String(),
		verifier: map[string]*standardwebhooks.Webhook{}, got: map[string][]receipt{},
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = r.server.Serve(listener) // ends with Close
	}()
	t.Cleanup(func() {
		_ = r.server.Close()
		<-served
	})
	return r
}

// expect tells the receiver the secret of the webhook on a path.
func (r *receiver) expect(path, secret string) {
	r.t.Helper()
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verifier[path] = verifier
}

// ServeHTTP takes a delivery.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if r.takes > 0 {
		defer func() {
			select {
			case <-time.After(r.takes):
			case <-req.Context().Done():
			}
		}()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	verifier := r.verifier[req.URL.Path]
	switch {
	case err != nil:
		return // cut off on the way; the sender will come again
	case verifier == nil:
		r.faults = append(r.faults, "a request to "+req.URL.Path)
	default:
		if err := verifier.Verify(body, req.Header); err != nil {
			r.faults = append(r.faults, fmt.Sprintf("%s: %v", req.URL.Path, err))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
	}
	id := req.Header.Get("webhook-id")
	r.got[id] = append(r.got[id], receipt{req.URL.Path, string(body)})
}

// missing is how many of the ledger's events have not arrived.
func (r *receiver) missing(ledger map[string]submitted) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range ledger {
		if len(r.got[id]) == 0 {
			n++
		}
	}
	return n
}

// check compares what arrived with what was acknowledged, and returns how many
// arrived more than once.
func (r *receiver) check(ledger map[string]submitted) (duplicates int) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, fault := range r.faults {
		r.t.Error(fault)
	}
	for id, want := range ledger {
		receipts := r.got[id]
		if len(receipts) == 0 {
			r.t.Errorf("event %s was acknowledged and never arrived", id)
			continue
		}
		duplicates += len(receipts) - 1
		for _, got := range receipts {
			if got.path != want.path || got.body != want.payload {
				r.t.Errorf("event %s arrived at %s as %q, submitted for %s as %q", id, got.path, got.body, want.path, want.payload)
			}
		}
	}
	return duplicates
}

// submitted is what was said when an event was acknowledged.
type submitted struct{ path, payload string }

// hooks creates n webhooks that the receiver verifies.
func (r *receiver) hooks(c *client.Client, n int) (ids, paths []string) {
	r.t.Helper()
	for i := range n {
		path := fmt.Sprintf("/hook/%d", i)
		w, err := c.Webhooks().Create(r.t.Context(), client.NewWebhook{
			Tenant: fmt.Sprintf("tenant-%d", i), URL: r.url + path, RetrySchedule: []int{1, 1, 1, 2, 2, 2, 5, 5, 5},
		})
		if err != nil {
			r.t.Fatal(err)
		}
		r.expect(path, w.Secret)
		ids, paths = append(ids, w.ID), append(paths, path)
	}
	return ids, paths
}

// ledger collects what was acknowledged.
type ledger struct {
	mu     sync.Mutex
	events map[string]submitted // guarded by mu
}

// submit sends n events over the given webhooks and clients, from several
// goroutines, and enters each that was acknowledged. refused hears of the
// others.
func (l *ledger) submit(t *testing.T, clients []*client.Client, ids, paths []string, n int, refused func(error)) {
	t.Helper()
	const submitters = 64
	work := make(chan int)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for range submitters {
		wg.Go(func() {
			for i := range work {
				// Bytes that no encoder would write: they must arrive as they are.
				payload := fmt.Sprintf(`{"n":%d,  "z":1,"a":1e400, "z":9007199254740993,"s":"\u0000\ud800 é"}`, i)
				accepted, err := clients[i%len(clients)].Submit(ctx, client.Event{
					WebhookID: ids[i%len(ids)], Type: "order.paid", Payload: []byte(payload),
				})
				if err != nil {
					refused(err)
					continue
				}
				l.mu.Lock()
				l.events[accepted.ID] = submitted{paths[i%len(ids)], payload}
				l.mu.Unlock()
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
}

func (l *ledger) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.events)
}
