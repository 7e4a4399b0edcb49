package e2etest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

// clockOffset is the variable that says how wrong the clock of a program built by
// wrongClocks is.
const clockOffset = "E2E_CLOCK_OFFSET"

// The time package of the programs that wrongClocks builds, as far as it differs
// from Go's own.
const (
	clockHook    = "	sec, nsec, mono := runtimeNow()\n"
	clockChanged = clockHook + "	sec += hostOffset\n"
	clockFile    = `package time

import "syscall"

var hostOffset = func() int64 {
	text, _ := syscall.Getenv("` + clockOffset + `")
	offset, err := ParseDuration(text)
	if err != nil {
		return 0
	}
	return int64(offset / Second)
}()
`
)

// wrongClocks builds the real programs so that a variable sets their clock apart
// from the machine's. Programs in Go read the clock without the C library, which
// is where tools for that step in; a container cannot have a clock of its own.
func wrongClocks(t *testing.T) *binaries {
	t.Helper()
	shifted.once.Do(func() { shifted.dir, shifted.err = buildShifted() })
	if shifted.err != nil {
		t.Fatal(shifted.err)
	}
	return &shifted
}

func buildShifted() (dir string, err error) {
	output, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	source := filepath.Join(strings.TrimSpace(string(output)), "src", "time")
	text, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		return "", err
	}
	begin := bytes.Index(text, []byte("\nfunc Now() Time {\n"))
	if begin < 0 || !bytes.Contains(text[begin:], []byte(clockHook)) {
		return "", errors.New("time.Now of this version of Go is not what clockHook says: adapt it")
	}
	changed := append(bytes.Clone(text[:begin]), bytes.Replace(text[begin:], []byte(clockHook), []byte(clockChanged), 1)...)
	if dir, err = os.MkdirTemp("", "fairhook-e2e-"); err != nil {
		return "", err
	}
	// An overlay shows the compiler these files in place of those in GOROOT.
	overlay := map[string]map[string]string{"Replace": {
		filepath.Join(source, "time.go"):        filepath.Join(dir, "time.go"),
		filepath.Join(source, "host_offset.go"): filepath.Join(dir, "host_offset.go"),
	}}
	list, err := json.Marshal(overlay)
	if err != nil {
		return dir, err
	}
	for name, content := range map[string][]byte{"time.go": changed, "host_offset.go": []byte(clockFile), "overlay.json": list} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return dir, err
		}
	}
	cmd := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", dir+string(filepath.Separator), "./cmd/ingest", "./cmd/dispatcher")
	cmd.Dir = projectRoot
	if output, err := cmd.CombinedOutput(); err != nil {
		return dir, errors.Join(err, errors.New(string(output)))
	}
	return dir, nil
}

// TestHostsWithWrongClocksBehaveLikeTheOthers has ingests and dispatchers on
// hosts whose clocks are minutes and days off.
func TestHostsWithWrongClocksBehaveLikeTheOthers(t *testing.T) {
	t.Parallel()
	const hooks, events = 6, 300
	s := newStack(t)
	s.programs = wrongClocks(t)
	var ingests, dispatchers []*process
	for _, offset := range []string{"-25h", "7m", "24h"} {
		ingests = append(ingests, s.run("ingest", clockOffset+"="+offset))
	}
	for _, offset := range []string{"-7m", "25h"} {
		dispatchers = append(dispatchers, s.run("dispatcher", clockOffset+"="+offset))
	}
	for _, p := range append(ingests, dispatchers...) {
		p.ready()
	}
	for i, far := range []time.Duration{25 * time.Hour, 7 * time.Minute, 24 * time.Hour} {
		if got := time.Until(hostTime(t, ingests[i])).Abs(); (got - far).Abs() > time.Minute {
			t.Fatalf("the clock of ingest %d is %s off, and should be %s: the test tests nothing", i, got, far)
		}
	}

	// A key of an hour's life, whose submissions must be signed within 5 minutes.
	key, secret := s.signingKey(ingests[0])
	var clients []*client.Client
	for _, ingest := range ingests {
		c, err := client.New("http://"+ingest.addr, key, client.WithSigningSecret(secret), client.WithRetryMax(5))
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	r := newReceiver(t) // refuses signatures that are more than 5 minutes old or early
	ids, paths := r.hooks(s.client(ingests[1]), hooks)
	book := &ledger{events: map[string]submitted{}}
	book.submit(t, clients, ids, paths, events, mustNot(t))
	eventually(t, "every event has arrived", func() bool { return r.missing(book.events) == 0 })
	if duplicates := r.check(book.events); duplicates != 0 || book.size() != events {
		t.Errorf("%d events were acknowledged of %d, and %d arrived twice", book.size(), events, duplicates)
	}
	eventually(t, "nothing is left to do", func() bool { return s.count(`SELECT count(*) FROM fairhook.river_job`) == 0 })
	for what, query := range map[string]string{
		"events have ids of another time":  `SELECT count(*) FROM fairhook.events WHERE id < fairhook.uuid_floor(now() - interval '5 minutes') OR id > fairhook.uuid_floor(now() + interval '1 minute')`,
		"attempts were at another time":    `SELECT count(*) FROM fairhook.attempts WHERE abs(extract(epoch FROM now() - started_at)) > 300`,
		"attempts waited an absurd time":   `SELECT count(*) FROM fairhook.attempts WHERE queue_wait_us NOT BETWEEN 0 AND 60000000`,
		"attempts were not the only one":   `SELECT count(*) FROM fairhook.attempts WHERE number <> 1`,
		"dispatchers look dead or unborn":  `SELECT count(*) FROM fairhook.instances WHERE abs(extract(epoch FROM now() - heartbeat_at)) > 60`,
		"keys were last used another time": `SELECT count(*) FROM fairhook.api_keys WHERE abs(extract(epoch FROM now() - last_used_at)) > 300`,
	} {
		if n := s.count(query); n != 0 {
			t.Errorf("%d %s", n, what)
		}
	}

	// One key is one event, whichever host is asked.
	event := client.Event{WebhookID: ids[0], Type: "order.paid", Payload: []byte(`{}`), IdempotencyKey: "the-same"}
	var first string
	for i, c := range clients {
		accepted, err := c.Submit(t.Context(), event)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = accepted.ID
		}
		if accepted.ID != first || accepted.Replayed != (i > 0) {
			t.Errorf("ingest %d: event %s, replayed %t, and the first was %s", i, accepted.ID, accepted.Replayed, first)
		}
	}
}

// hostTime is what a process takes for the time, by its log.
func hostTime(t *testing.T, p *process) time.Time {
	t.Helper()
	line, _, _ := strings.Cut(p.output(), "\n")
	var first struct{ Time time.Time }
	if err := json.Unmarshal([]byte(line), &first); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return first.Time
}

// signingKey creates an API key whose submissions must be signed.
func (s *stack) signingKey(ingest *process) (key, secret string) {
	s.t.Helper()
	body, err := json.Marshal(map[string]any{
		"tenant": nil, "scopes": []string{"submit"}, "require_signature": true, "expires_at": time.Now().Add(time.Hour).UTC(),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "http://"+ingest.addr+"/v1/keys", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+bootstrap)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusCreated {
		s.t.Fatalf("create a key: %s, %v: %s", response.Status, err, text)
	}
	var created struct {
		Key    string `json:"key"`
		Secret string `json:"signing_secret"`
	}
	if err := json.Unmarshal(text, &created); err != nil {
		s.t.Fatal(err)
	}
	return created.Key, created.Secret
}
