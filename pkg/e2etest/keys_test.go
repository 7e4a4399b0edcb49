package e2etest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/client"
)

// procedure are the commands of docs/encryption-keys.md, one text for each step that
// has any.
func procedure(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(projectRoot, "docs", "encryption-keys.md"))
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, match := range regexp.MustCompile("(?s)<!-- procedure: a test runs this -->\n```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		steps = append(steps, match[1])
	}
	if all := strings.Count(string(text), "```sh"); len(steps) != 3 || all != 3 {
		t.Fatalf("docs/encryption-keys.md has %d commands, of which %d are run; want 3", all, len(steps))
	}
	return steps
}

// The procedure of docs/encryption-keys.md, command by command, with services that
// are replaced one by one: deliveries go on, signed with the secrets that their
// receivers know, and webhooks are created and read at every step.
func TestTheEncryptionKeyIsReplacedWhileEverythingRuns(t *testing.T) {
	t.Parallel()
	steps := procedure(t)
	s := newStack(t)
	dir := t.TempDir()
	var current string
	for _, setting := range s.env {
		if text, found := strings.CutPrefix(setting, "FAIRHOOK_ENCRYPTION_KEY="); found {
			current = text
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "old.key"), []byte(current+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	run := func(script string) string {
		t.Helper()
		command := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
		command.Dir = dir
		command.Env = append(slices.Clone(s.env), "PATH="+filepath.Dir(s.programs.program(t, "migrate"))+":"+os.Getenv("PATH"))
		output, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, output)
		}
		return string(output)
	}

	// Two copies of each, so that a rollout can go one by one.
	var keys []string // what the next copy is started with
	services := []string{"ingest", "ingest", "dispatcher", "dispatcher"}
	copies := make([]*process, len(services))
	replace := func(i int) {
		t.Helper()
		fresh := s.runWith(services[i], keys...).ready()
		if copies[i] != nil {
			if code := copies[i].terminate(); code != 0 {
				t.Fatalf("%s ended with %d", copies[i].name, code)
			}
		}
		copies[i] = fresh
	}
	r := newReceiver(t)
	use := func(step string) {
		t.Helper()
		for i := range 2 {
			c := s.client(copies[i])
			path := fmt.Sprintf("/%s/%d", step, i)
			hook, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: r.url + path, RetrySchedule: []int{1, 1, 1, 1, 1, 1}})
			if err != nil {
				t.Fatalf("%s: %v", step, err)
			}
			r.expect(path, hook.Secret)
			// The other copy reads what this one has sealed.
			secrets, err := s.client(copies[1-i]).Webhooks().Secrets(t.Context(), hook.ID)
			if err != nil || len(secrets) != 1 || secrets[0].Secret != hook.Secret {
				t.Fatalf("%s: the other copy reads %d secrets, %v", step, len(secrets), err)
			}
		}
		// One event for all webhooks so far, whichever key their secrets are under.
		accepted, err := s.client(copies[0]).Submit(t.Context(), client.Event{Tenant: "acme", Type: "a", Payload: []byte(`{"step":1}`)})
		if err != nil {
			t.Fatal(err)
		}
		want := len(accepted.Deliveries)
		eventually(t, fmt.Sprintf("%s: %d deliveries arrive", step, want), func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			paths := map[string]bool{}
			for _, got := range r.got[accepted.ID] {
				paths[got.path] = true
			}
			return len(paths) == want
		})
	}
	rollout := func(step, encryptionKey, oldKeys string) {
		t.Helper()
		keys = []string{"FAIRHOOK_ENCRYPTION_KEY=" + encryptionKey, "FAIRHOOK_OLD_ENCRYPTION_KEYS=" + oldKeys}
		for i := range copies {
			replace(i)
			if i%2 == 0 && copies[len(copies)-1] != nil {
				use(fmt.Sprintf("%s-half-%d", step, i)) // some have the new setting, and some do not
			}
		}
		use(step)
	}

	rollout("before", current, "")
	run(steps[0])
	fresh := read("new.key")
	if fresh == current {
		t.Fatal("the new key is the old one")
	}
	rollout("opens", current, fresh)
	rollout("seals", fresh, current)
	resealed := run(steps[1])
	if strings.Contains(resealed, "webhook_secrets.sealed: 0 sealed anew") || !strings.Contains(resealed, "everything is sealed under the key with the id") {
		t.Errorf("reseal says %s", resealed)
	}
	if again := run(steps[1]); !strings.Contains(again, "webhook_secrets.sealed: 0 sealed anew, 0 cannot be opened") {
		t.Errorf("reseal says, a second time, %s", again)
	}
	rollout("done", fresh, "")
	run(steps[2])
	if read("old.key") != fresh {
		t.Error("the new key is not where the current one is kept")
	}
	r.mu.Lock()
	for _, fault := range r.faults {
		t.Error(fault)
	}
	r.mu.Unlock()

	// The key that was replaced is refused by both services.
	for _, name := range []string{"ingest", "dispatcher"} {
		p := s.runWith(name, "FAIRHOOK_ENCRYPTION_KEY="+current)
		if code := p.exitCode(); code != 2 {
			t.Errorf("%s with the old key ended with %d, want 2", name, code)
		}
		for _, want := range []string{"--encryption-key (FAIRHOOK_ENCRYPTION_KEY)", "FAIRHOOK_OLD_ENCRYPTION_KEYS", "docs/encryption-keys.md"} {
			if !strings.Contains(p.output(), want) {
				t.Errorf("%s says %s; want it to name %s", name, p.output(), want)
			}
		}
		if strings.Contains(p.output(), current) {
			t.Errorf("%s prints the key", name)
		}
	}
}
