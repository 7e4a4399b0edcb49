package e2etest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/fairhook/fairhook/pkg/client"
)

const migrationToken = "the-token-of-the-other-sender"

// collect runs docs/examples/migrate/collect.py against a stand-in for another sender
// and returns the file that it writes.
func collect(t *testing.T, environment []string, arguments ...string) string {
	t.Helper()
	script := filepath.Join(examplesDir, "migrate/collect.py")
	cmd := exec.CommandContext(t.Context(), interpreter(t, "python3"), append([]string{script}, arguments...)...)
	cmd.Env = append(os.Environ(), environment...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("collect.py: %v\n%s", err, stderr.String())
	}
	file := filepath.Join(t.TempDir(), "collected.json")
	if err := os.WriteFile(file, output, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// standIn answers GET with what answers has for a path and its query, and for all else
// with 404. It insists on the token.
func standIn(t *testing.T, answers map[string]string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, known := answers[r.URL.RequestURI()]
		switch {
		case r.Header.Get("Authorization") != "Bearer "+migrationToken:
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method != http.MethodGet || !known:
			w.WriteHeader(http.StatusNotFound)
		default:
			_, _ = w.Write([]byte(answer))
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// fairhookImport runs the real program.
func (s *stack) fairhookImport(ingest *process, arguments ...string) (code int, output string) {
	s.t.Helper()
	p := start(s.t, s.programs.program(s.t, "fairhook"),
		[]string{"FAIRHOOK_URL=http://" + ingest.addr, "FAIRHOOK_KEY=" + bootstrap}, append([]string{"import"}, arguments...)...)
	return p.exitCode(), p.output()
}

// From Svix's API to a delivery: its endpoints are read with collect.py, imported with
// the program, and their receiver verifies what comes with the secret that it has.
func TestImportFromSvix(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest := s.run("ingest").ready()
	s.run("dispatcher").ready()
	c := s.client(ingest)

	const secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[string]http.Header{} // by body; guarded by mu
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		if err := verifier.Verify(body, r.Header); err != nil {
			t.Errorf("the receiver of before does not take it: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		got[string(body)] = r.Header
	}))
	defer receiver.Close()

	application := func(id, uid string) string {
		return fmt.Sprintf(`{"id":"%s","uid":%s,"name":"A","metadata":{},"createdAt":"2026-01-02T03:04:05Z","updatedAt":"2026-01-02T03:04:05Z"}`, id, uid)
	}
	endpoint := func(id, more string) string {
		return fmt.Sprintf(`{"id":"%s","url":"%s/hook","version":1,"description":"Orders","metadata":{},"createdAt":"2026-01-02T03:04:05Z","updatedAt":"2026-01-02T03:04:05Z"%s}`,
			id, receiver.URL, more)
	}
	const app = "/api/v1/app"
	svix := standIn(t, map[string]string{
		// Two pages of applications.
		app + "?limit=250":                `{"data":[` + application("app_1", `"acme"`) + `],"iterator":"app_1","prevIterator":null,"done":false}`,
		app + "?limit=250&iterator=app_1": `{"data":[` + application("app_2", `null`) + `],"iterator":"app_2","prevIterator":"-app_2","done":true}`,
		app + "/app_1/endpoint?limit=250": `{"data":[` + endpoint("ep_1", `,"eventTypes":["order.paid"],"disabled":false,"throttleRate":50`) + `,` + endpoint("ep_2", `,"channels":["eu"]`) + `],"iterator":"ep_2","done":true}`,
		app + "/app_2/endpoint?limit=250": `{"data":[` + endpoint("ep_3", `,"disabled":true`) + `],"iterator":"ep_3","done":true}`,
		// Svix's own server has no transformations and answers 404.
		app + "/app_1/endpoint/ep_1/secret":         `{"key":"` + secret + `"}`,
		app + "/app_1/endpoint/ep_1/headers":        `{"headers":{"X-Env":"live"},"sensitive":[]}`,
		app + "/app_1/endpoint/ep_1/transformation": `{"code":null,"enabled":false}`,
		app + "/app_1/endpoint/ep_2/secret":         `{"key":"` + secret + `"}`,
		app + "/app_1/endpoint/ep_2/headers":        `{"headers":{},"sensitive":[]}`,
		app + "/app_2/endpoint/ep_3/secret":         `{"key":"` + secret + `"}`,
		app + "/app_2/endpoint/ep_3/headers":        `{"headers":{},"sensitive":["authorization"]}`,
	})
	file := collect(t, []string{"SVIX_URL=" + svix, "SVIX_TOKEN=" + migrationToken}, "svix")

	for _, step := range []struct {
		arguments []string
		code      int
		shows     map[string]int
	}{
		{[]string{"svix", file, "--dry-run"}, 1, map[string]int{"would make": 1, "refused": 2, "channels (eu)": 1, `header "authorization"`: 1}},
		{[]string{"svix", file}, 1, map[string]int{"made  ": 1, "refused": 2, "2 of 3 webhooks were not imported": 1}},
		{[]string{"svix", file, "--lossy"}, 0, map[string]int{"exists": 1, "made  ": 2}},
		{[]string{"svix", file, "--lossy"}, 0, map[string]int{"exists": 3, "made  ": 0}},
	} {
		code, output := s.fairhookImport(ingest, step.arguments...)
		if code != step.code || strings.Contains(output, secret) || strings.Contains(output, bootstrap) {
			t.Fatalf("%q: exit code %d, and prints\n%s", step.arguments, code, output)
		}
		for text, times := range step.shows {
			if n := strings.Count(output, text); n != times {
				t.Fatalf("%q shows %q %d times instead of %d:\n%s", step.arguments, text, n, times, output)
			}
		}
	}

	hooks := map[string]*client.Webhook{} // by the endpoint's id
	for hook, err := range c.Webhooks().List(t.Context(), client.ListWebhooks{}) {
		if err != nil {
			t.Fatal(err)
		}
		_, id, _ := strings.Cut(hook.Description, "[imported from svix ")
		hooks[strings.TrimSuffix(id, "]")] = hook
		secrets, err := c.Webhooks().Secrets(t.Context(), hook.ID)
		if err != nil || len(secrets) != 1 || secrets[0].Secret != secret {
			t.Errorf("webhook %s has the secrets %v, %v", hook.ID, secrets, err)
		}
	}
	first, third := hooks["ep_1"], hooks["ep_3"]
	if len(hooks) != 3 || first == nil || third == nil {
		t.Fatalf("got the webhooks %v", hooks)
	}
	if first.Tenant != "acme" || first.RatePerSecond == nil || *first.RatePerSecond != 50 || first.Status != client.WebhookActive ||
		len(first.EventTypes) != 1 || first.EventTypes[0] != "order.paid" {
		t.Errorf("ep_1 became %+v", first)
	}
	if third.Tenant != "app_2" || third.Status != client.WebhookPaused {
		t.Errorf("ep_3 became %+v", third)
	}

	accepted, err := c.Submit(t.Context(), client.Event{WebhookID: first.ID, Type: "order.paid", Payload: json.RawMessage(`{"order":4711}`)})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the event arrives", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return got[`{"order":4711}`] != nil
	})
	mu.Lock()
	defer mu.Unlock()
	if header := got[`{"order":4711}`]; header.Get("X-Env") != "live" || header.Get("Webhook-Id") != accepted.ID {
		t.Errorf("it arrives with %v", header)
	}
}

// Convoy's API, read with collect.py, makes a file that the program understands.
func TestImportFromConvoy(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest := s.run("ingest").ready()

	page := func(content, next string) string {
		return fmt.Sprintf(`{"status":true,"message":"fetched","data":{"content":[%s],"pagination":{"per_page":100,"has_next_page":%t,"has_prev_page":false,"prev_page_cursor":"","next_page_cursor":"%s"}}}`,
			content, next != "", cmp.Or(next, "end"))
	}
	endpoint := func(id, more string) string {
		return fmt.Sprintf(`{"uid":"%s","project_id":"p1","owner_id":"acme","url":"https://example.com/%s","name":"Orders","description":"","status":"active",
			"secrets":[{"uid":"s","value":"jb5uLmqFPHrGVFVZC2BNxWsrI","expires_at":null,"created_at":"2026-01-02T03:04:05Z"}],"advanced_signatures":true,
			"http_timeout":10,"rate_limit":100,"rate_limit_duration":60,"authentication":null,"content_type":"application/json"%s}`, id, id, more)
	}
	subscription := func(id, endpoint, types string) string {
		return fmt.Sprintf(`{"uid":"%s","name":"s","type":"api","project_id":"p1","function":null,"endpoint_metadata":{"uid":"%s","url":"https://example.com"},
			"filter_config":{"event_types":[%s],"filter":{"is_flattened":false,"headers":{},"body":{},"query":{},"path":{}}}}`, id, endpoint, types)
	}
	const project = "/v1/projects/p1"
	convoy := standIn(t, map[string]string{
		project: `{"status":true,"message":"fetched","data":{"uid":"p1","name":"P","type":"outgoing","config":{"strategy":{"type":"exponential","duration":100,"retry_count":10},
			"signature":{"header":"X-Convoy-Signature","versions":[{"uid":"v","hash":"SHA256","encoding":"hex"}]}}}}`,
		project + "/endpoints?perPage=100&direction=next":                           page(endpoint("e1", ""), "e1"),
		project + "/endpoints?perPage=100&direction=next&next_page_cursor=e1":       page(endpoint("e2", `,"slack_webhook_url":"https://hooks.slack.com/x"`)+","+endpoint("e3", ""), ""),
		project + "/subscriptions?perPage=100&direction=next":                       page(subscription("sub1", "e1", `"order.paid","order.lost"`), "sub1"),
		project + "/subscriptions?perPage=100&direction=next&next_page_cursor=sub1": page(subscription("sub2", "e2", `"*"`), ""),
		project + "/subscriptions/sub1/filters":                                     `{"status":true,"message":"fetched","data":[{"uid":"f","event_type":"order.paid","headers":{},"body":{},"query":{},"path":{}}]}`,
		// An older Convoy has no filters of types, and answers 404.
	})
	file := collect(t, []string{"CONVOY_URL=" + convoy, "CONVOY_API_KEY=" + migrationToken}, "convoy", "p1")
	code, output := s.fairhookImport(ingest, "convoy", file, "--dry-run")
	if code != 1 || strings.Contains(output, "jb5uLmq") || strings.Contains(output, "hooks.slack.com") {
		t.Fatalf("exit code %d, and prints\n%s", code, output)
	}
	for text, times := range map[string]int{
		`would make    tenant "acme"  convoy e1`: 1, `would make    tenant "acme"  convoy e2`: 1, `refused       tenant "acme"  convoy e3`: 1,
		"which events it gets": 1, "Slack": 1,
	} {
		if n := strings.Count(output, text); n != times {
			t.Errorf("it shows %q %d times instead of %d:\n%s", text, n, times, output)
		}
	}
}
