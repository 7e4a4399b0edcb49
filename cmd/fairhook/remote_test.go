//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/fairhook/fairhook/pkg/daemon"
)

// tool runs commands of the tool against one API.
type tool struct{ env []string }

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

func (k tool) run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	cmd := exec.Command(filepath.Join(programs, "fairhook"), args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "FAIRHOOK_") }), k.env...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// ok runs a command that must succeed and returns what it prints.
func (k tool) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := k.run(t, "", args...)
	if r.code != 0 {
		t.Fatalf("fairhook %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// asJSON runs a command with -o json and reads its one line.
func (k tool) asJSON(t *testing.T, args ...string) map[string]any {
	t.Helper()
	var v map[string]any
	if text := k.ok(t, append(args, "-o", "json")...); json.Unmarshal([]byte(text), &v) != nil {
		t.Fatalf("fairhook %s printed no JSON document: %s", strings.Join(args, " "), text)
	}
	return v
}

func mustContain(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

func mustFreeAddress(t *testing.T) string {
	t.Helper()
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// TestTool uses every command that talks to an API on a real one.
func TestTool(t *testing.T) {
	t.Parallel()
	dev := startDev(t, nil, "--listen", mustFreeAddress(t))
	dev.waitFor(stayingUp)
	export := dev.waitFor(`FAIRHOOK_URL='([^']+)' FAIRHOOK_KEY='([^']+)'`)
	k := tool{[]string{"FAIRHOOK_URL=" + export[1], "FAIRHOOK_KEY=" + export[2]}}
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

	listen := startFairhook(t, []string{"FAIRHOOK_SECRET=" + secret}, "listen", "--address", "127.0.0.1:0", "--status", "500,204")
	target := listen.waitIn(&listen.stderr, `Listening on (\S+)`)[1]

	created := k.asJSON(t, "webhook", "create", "--tenant", "acme", "--target", target, "--event-types", "order.*",
		"--json", `{"secret": "`+secret+`", "retry_schedule_seconds": [1], "tenant": "other"}`)
	id, _ := created["id"].(string)
	if created["tenant"] != "acme" || created["secret"] != secret || id == "" {
		t.Fatalf("created %v", created)
	}

	t.Run("ListenVerifiesAndAnswersWhatItWasTold", func(t *testing.T) {
		t.Parallel()
		sent := k.run(t, "", "send", "order.paid", `{"order": 7}`, "--webhook", id, "--wait")
		if sent.code != 1 { // the first answer is 500
			t.Errorf("exit code %d\n%s%s", sent.code, sent.stdout, sent.stderr)
		}
		mustContain(t, sent.stdout, "retrying", "server_error (500)")
		listen.waitFor(`(?s)order\.paid.*attempt 1, signature verified.*"order": 7.*answered 500.*attempt 2.*answered 204`)
		event := strings.Fields(sent.stdout)[1]
		mustContain(t, k.ok(t, "event", "show", event), event, "order.paid", `{"order": 7}`)
		mustContain(t, k.ok(t, "event", "attempts", event), "server_error", "500", id)
	})
	t.Run("EventsAreListedExplainedAndFollowed", func(t *testing.T) {
		t.Parallel()
		tail := startFairhook(t, k.env, "event", "tail", "--tenant", "followed", "--since", "1m")
		hook := k.asJSON(t, "webhook", "create", "--json", `{"tenant": "followed", "url": "`+target+`", "status": "paused"}`)["id"].(string)
		event := k.asJSON(t, "send", "order.followed", "--tenant", "followed")["id"].(string)
		tail.waitFor(event)
		tail.signal(syscall.SIGTERM)
		if code := tail.exitCode(); code != 0 {
			t.Errorf("told to stop, it ends with %d", code)
		}
		mustContain(t, k.ok(t, "event", "list", "--tenant", "followed", "--type", "order.followed", "--since", "1h"), event, "order.followed")
		mustContain(t, k.ok(t, "event", "explain", event), "parked: paused", "Its webhook is paused")
		mustContain(t, k.ok(t, "webhook", "deliveries", hook, "--status", "parked"), event, "parked")
		mustContain(t, k.ok(t, "webhook", "stats", hook), "backlog", "paused")
		if secret := k.asJSON(t, "webhook", "rotate", hook, "--overlap", "1h")["secret"].(string); !strings.HasPrefix(secret, "whsec_") {
			t.Errorf("rotated to %q", secret)
		}
		// The receiver trusts another secret, so the test is answered 401.
		if r := k.run(t, "", "webhook", "test", hook); r.code != 1 || !strings.Contains(r.stdout, "client_error") {
			t.Errorf("a test that fails: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
		}
	})
	t.Run("WebhooksAreListedShownAndChanged", func(t *testing.T) {
		t.Parallel()
		other := k.asJSON(t, "webhook", "create", "--tenant", "initech", "--target", target)["id"].(string)
		mustContain(t, k.ok(t, "webhook", "list", "--tenant", "initech"), other, "initech", "active", target)
		mustContain(t, k.ok(t, "webhook", "pause", other), "paused")
		mustContain(t, k.ok(t, "webhook", "resume", other), "active")
		mustContain(t, k.ok(t, "webhook", "show", other, id), other, id, "max_in_flight")
		mustContain(t, k.ok(t, "webhook", "secrets", other), "whsec_")
		pair := k.ok(t, "webhook", "create", "--json", `{"tenant": "initech", "url": "`+target+`", "signatures": ["standard_ed25519"]}`)
		mustContain(t, pair, "whpk_", "whsec_")
		mustContain(t, k.ok(t, "webhook", "secrets", strings.Fields(pair)[1]), "ed25519", "whpk_", "symmetric", "whsec_")
		mustContain(t, k.ok(t, "webhook", "update", other, "--json", `{"status": "paused"}`), "paused")
		if changed := k.asJSON(t, "webhook", "update", other, "--json", `{"max_in_flight": 3, "weight": null}`); changed["max_in_flight"] != 3.0 {
			t.Errorf("changed to %v", changed)
		}
		mustContain(t, k.ok(t, "webhook", "delete", other), "deleted "+other)
		if r := k.run(t, "", "webhook", "show", other); r.code != exitRefused {
			t.Errorf("a webhook that is gone: exit code %d\n%s", r.code, r.stderr)
		}
	})
	t.Run("ListsEndWhereTheyAreToldTo", func(t *testing.T) {
		t.Parallel()
		for range 3 {
			k.ok(t, "webhook", "create", "--tenant", "many", "--target", target)
		}
		mustContain(t, k.ok(t, "webhook", "list", "--tenant", "many", "--limit", "2"), "and more")
		if lines := strings.Count(k.ok(t, "webhook", "list", "--tenant", "many", "--limit", "2", "-o", "json"), "\n"); lines != 2 {
			t.Errorf("%d lines of JSON, want 2", lines)
		}
		mustContain(t, k.ok(t, "webhook", "list", "--tenant", "nobody"), "none")
	})
	t.Run("KeysAreMadeListedAndRevoked", func(t *testing.T) {
		t.Parallel()
		made := k.asJSON(t, "key", "create", "--tenant", "acme", "--scopes", "submit,read", "--description", "billing", "--require-signature")
		keyID := made["id"].(string)
		mustContain(t, k.ok(t, "key", "list", "--tenant", "acme"), keyID, "submit,read", "valid", "billing")
		mustContain(t, k.ok(t, "key", "rotate", keyID, "--overlap", "1h"), "whsec_")
		limited := tool{[]string{k.env[0], "FAIRHOOK_KEY=" + made["key"].(string)}}
		if r := limited.run(t, "", "instances"); r.code != exitRefused {
			t.Errorf("a key that may not: exit code %d\n%s", r.code, r.stderr)
		}
		k.ok(t, "key", "revoke", keyID)
		mustContain(t, k.ok(t, "key", "show", keyID), "revoked")
	})
	t.Run("InstancesAndEndedDeliveriesAreListed", func(t *testing.T) {
		t.Parallel()
		mustContain(t, k.ok(t, "instances"), "ingest", "dispatcher", "alive", "leader")
		gone := k.asJSON(t, "webhook", "create", "--tenant", "gone", "--target", target)["id"].(string)
		k.ok(t, "webhook", "pause", gone)
		event := k.asJSON(t, "send", "order.lost", "--webhook", gone)["id"].(string)
		k.ok(t, "webhook", "delete", gone)
		waitUntil(t, func() bool {
			return strings.Contains(k.ok(t, "delivery", "list", "--status", "cancelled", "--tenant", "gone", "--since", "1h"), event)
		})
	})
	t.Run("PayloadsComeFromFilesAndStandardInput", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "payload.json")
		if err := os.WriteFile(file, []byte(`{"from": "file"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		event := k.asJSON(t, "send", "a.file", "@"+file, "--tenant", "nobody")["id"].(string)
		mustContain(t, k.ok(t, "event", "show", event), `{"from": "file"}`)
		hook := k.asJSON(t, "webhook", "create", "--json", `{"tenant": "files", "url": "`+target+`", "status": "paused"}`)["id"].(string)
		r := k.run(t, "plain text", "send", "a.text", "-", "--webhook", hook, "--content-type", "text/plain", "-o", "json")
		mustContain(t, r.stdout, `"parked"`)
		if r.code != 0 {
			t.Errorf("exit code %d\n%s", r.code, r.stderr)
		}
	})
	t.Run("ExitCodesTellWhoIsToBlame", func(t *testing.T) {
		t.Parallel()
		for name, tc := range map[string]struct {
			env  []string
			args []string
			code int
			says string
		}{
			"no key":             {[]string{k.env[0]}, []string{"webhook", "list"}, daemon.ExitConfig, "--key"},
			"neither target":     {k.env, []string{"send", "a.b"}, daemon.ExitConfig, "--tenant"},
			"no JSON":            {k.env, []string{"send", "a.b", "{", "--tenant", "x"}, daemon.ExitConfig, "not JSON"},
			"unknown setting":    {k.env, []string{"webhook", "create", "--json", `{"colour": 1}`}, daemon.ExitConfig, "colour"},
			"nothing to change":  {k.env, []string{"webhook", "update", id}, daemon.ExitConfig, "--json"},
			"a status of 99":     {k.env, []string{"listen", "--status", "99"}, daemon.ExitConfig, "99"},
			"a wrong key":        {[]string{k.env[0], "FAIRHOOK_KEY=nonsense"}, []string{"webhook", "list"}, exitRefused, "401"},
			"an invalid webhook": {k.env, []string{"webhook", "create", "--tenant", "acme", "--target", "ftp://x"}, exitRefused, "/url"},
			"nobody there":       {[]string{"FAIRHOOK_URL=http://" + mustFreeAddress(t), k.env[1]}, []string{"webhook", "list", "--timeout", "1s"}, exitUnavailable, "refused"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := tool{tc.env}.run(t, "", tc.args...)
				if r.code != tc.code {
					t.Errorf("exit code %d, want %d\n%s%s", r.code, tc.code, r.stdout, r.stderr)
				}
				mustContain(t, r.stderr, tc.says)
			})
		}
	})
}
