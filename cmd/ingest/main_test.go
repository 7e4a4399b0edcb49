package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const testKey = "test-key"

// settings are the flags of an ingest that works.
func settings(db *pgtest.Database) []string {
	return []string{
		"--database-url=" + db.URL, "--listen=127.0.0.1:0", "--bootstrap-key=" + testKey,
		"--encryption-key=" + strings.Repeat("A", 43) + "=",
	}
}

// process is an ingest that runs in this process.
type process struct {
	url    string
	cancel context.CancelFunc
	ended  <-chan error
	logs   <-chan map[string]any // after the line that says it has started
}

// start runs ingest and returns once it says that it has started.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	logReader, logWriter := io.Pipe()
	cmd := newCommand()
	cmd.SetArgs(args)
	cmd.SetOut(logWriter)
	ended := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		logWriter.Close()
		ended <- err
	}()
	p := &process{cancel: cancel, ended: ended}
	logs := make(chan map[string]any, 10_000)
	started := make(chan string, 1)
	go func() {
		defer close(logs)
		defer close(started)
		scanner := bufio.NewScanner(logReader)
		for scanner.Scan() {
			var line map[string]any
			if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
				t.Errorf("log line %q: %v", scanner.Text(), err)
				continue
			}
			if line["msg"] == "ingest started" {
				started <- line["listen"].(string)
			}
			logs <- line
		}
	}()
	p.logs = logs
	t.Cleanup(cancel)
	listen, ok := <-started
	if !ok {
		t.Fatalf("ingest has not started: %v", <-ended)
	}
	p.url = "http://" + listen
	return p
}

func (p *process) request(ctx context.Context, method, path, body string) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, p.url+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+testKey)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}

func TestStopsInOrder(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	p := start(t, settings(db)...)
	if status, body, err := p.request(t.Context(), "GET", "/readyz", ""); status != http.StatusOK {
		t.Fatalf("/readyz answers %d %s, %v", status, body, err)
	}

	// A request is under way, whose commit cannot end, when the signal comes.
	lock, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(t.Context())
	if _, err := lock.Exec(t.Context(), `LOCK TABLE fairhook.events IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		status int
		body   []byte
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		var a answer
		a.status, a.body, a.err = p.request(t.Context(), "POST", "/v1/events", `{"tenant":"acme","type":"a","payload":1}`)
		answers <- a
	}()
	eventually(t, "the commit waits for the lock", func() bool {
		var waiting bool
		err := db.Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waiting)
		return err == nil && waiting
	})
	p.cancel()
	eventually(t, "the listener is closed", func() bool {
		_, _, err := (&process{url: p.url}).request(t.Context(), "GET", "/livez", "")
		return err != nil
	})
	select {
	case a := <-answers:
		t.Fatalf("answered %d %s, %v before its commit", a.status, a.body, a.err)
	case err := <-p.ended:
		t.Fatalf("ended with %v before its last request was answered", err)
	default:
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := <-answers
	if a.err != nil || a.status != http.StatusAccepted {
		t.Fatalf("answered %d %s, %v", a.status, a.body, a.err)
	}
	if err := <-p.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	var event struct{ ID webhook.ID }
	if err := json.Unmarshal(a.body, &event); err != nil {
		t.Fatal(err)
	}
	var stored bool
	err = db.Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM fairhook.events WHERE id = $1)`, event.ID).Scan(&stored)
	if err != nil || !stored {
		t.Errorf("the acknowledged event is stored: %v, %v", stored, err)
	}
	for line := range p.logs {
		if line["role"] != "ingest" || line["instance"] == nil || line["version"] == nil {
			t.Errorf("log line %v has no role, instance or version", line)
		}
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s it is not so that %s", what)
		}
	}
}

func TestSaysSoWhenNoKeyIsConfigured(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	p := start(t, append(settings(db), "--bootstrap-key=")...)
	if status, _, err := p.request(t.Context(), "GET", "/v1/webhooks", ""); status != http.StatusUnauthorized {
		t.Errorf("answered %d, %v", status, err)
	}
	line := <-p.logs
	if line["level"] != "INFO" || !strings.Contains(line["msg"].(string), "FAIRHOOK_BOOTSTRAP_KEY") {
		t.Errorf("the first log line is %v", line)
	}
	p.cancel()
	if err := <-p.ended; err != nil {
		t.Error(err)
	}
}

func TestRefusesToStartWithoutTheSchema(t *testing.T) {
	t.Parallel()
	cmd := newCommand()
	cmd.SetArgs(settings(pgtest.Empty(t)))
	cmd.SetOut(io.Discard)
	err := cmd.ExecuteContext(t.Context())
	if err == nil || !strings.Contains(err.Error(), `run "migrate up"`) {
		t.Errorf("ended with %v, want the command to run", err)
	}
}

func TestWaitsForTheDatabaseUntilToldToStop(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := newCommand()
	cmd.SetArgs([]string{"--database-url=postgres://127.0.0.1:1/none", "--listen=127.0.0.1:0", "--encryption-key=" + strings.Repeat("A", 43)})
	reader, writer := io.Pipe()
	cmd.SetOut(writer)
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx); writer.Close() }()
	scanner := bufio.NewScanner(reader)
	for scanner.Scan() {
		if strings.Contains(scanner.Text(), "waiting for the database") {
			cancel()
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestReportsAllConfigurationProblemsAtOnce(t *testing.T) {
	t.Parallel()
	cmd := newCommand()
	cmd.SetArgs([]string{
		"--encryption-key=short", "--max-body-bytes=10", "--request-timeout=0s", "--buffer-events=-1", "--buffer-bytes=5",
		"--committers=9", "--database-connections=10", "--shutdown-delay=1m", "--allow-private-targets=nonsense", "--log-level=loud", "--listen=8080",
		"--max-json-depth=1", "--max-json-keys=1", "--commit-batch-events=-1", "--commit-batch-bytes=1", "--commit-batch-deliveries=-1", "--adaptive-webhook-floor=-1",
	})
	var config *daemon.ConfigError
	err := cmd.ExecuteContext(t.Context())
	if !errors.As(err, &config) {
		t.Fatalf("ended with %v, want a configuration error", err)
	}
	got := map[string]bool{}
	for _, problem := range config.Problems {
		got[problem.Flag] = true
		if problem.Env == "" || problem.Detail == "" {
			t.Errorf("problem %+v does not say what to do", problem)
		}
	}
	want := []string{
		"--database-url", "--encryption-key", "--max-body-bytes", "--request-timeout", "--buffer-events", "--buffer-bytes",
		"--database-connections", "--shutdown-timeout", "--allow-private-targets", "--log-level", "--listen",
		"--max-json-depth", "--max-json-keys", "--commit-batch-events", "--commit-batch-bytes", "--commit-batch-deliveries", "--adaptive-webhook-floor",
	}
	for _, flag := range want {
		if !got[flag] {
			t.Errorf("%s is not reported in %v", flag, err)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d problems, want %d: %v", len(got), len(want), err)
	}
}
